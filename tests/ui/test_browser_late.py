"""What is typed while an answer of the server is on its way stays, whatever fills fields."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
from browsing import CHROMIUM, Server, control, field, late_answers, write
from PIL import Image
from playwright.sync_api import Page, expect

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
    pytest.mark.slow,
]


def test_train(page: Page) -> None:
    """A preset, a subject, an edited YAML, and what is typed."""
    page.get_by_text("Method, factors").click()
    page.get_by_role("button", name="run.yaml").click()
    steps, rate = field(page, "max_train_steps"), field(page, "learning_rate")
    prompt, base = field(page, "instance_prompt"), field(page, "pretrained_model_name_or_path")
    yaml, plan = page.locator("#yaml textarea"), page.locator("#plan")
    expect(yaml).to_have_value(re.compile("max_train_steps: 150"))
    with late_answers(page):
        write(page, control(page, "preset"), "Bundled base, all steps")
        page.keyboard.press("Enter")
        write(page, steps, "77")
        write(page, base, "pocket-s")  # has no value before it is left
    expect(yaml).to_have_value(re.compile("validation_loss_steps: 100"))
    expect(base).to_have_value("pocket-s")
    write(page, base, "pocket")
    page.keyboard.press("Tab")
    expect(yaml).to_have_value(re.compile("max_train_steps: 77"))

    with late_answers(page):
        write(page, control(page, "subject"), "some cat")
        page.keyboard.press("Tab")
        write(page, prompt, "a photo of zwx")
    expect(field(page, "output_dir")).to_have_value("outputs/some-cat/krona-1")
    expect(prompt).to_have_value("a photo of zwx")
    expect(yaml).to_have_value(re.compile("a photo of zwx"))

    write(page, yaml, yaml.input_value().replace("max_train_steps: 77", "max_train_steps: 88"))
    with late_answers(page):
        page.get_by_role("button", name="Take over").click()
        write(page, rate, "0.0123")
    expect(steps).to_have_value("88")
    expect(rate).to_have_value("0.0123")
    expect(yaml).to_have_value(re.compile("learning_rate: 0.0123"))

    with late_answers(page):
        write(page, steps, "99")
        write(page, yaml, "seed: 5")  # before the answer to the steps has come
    expect(plan).to_contain_text("parameters")
    page.wait_for_timeout(500)
    expect(yaml).to_have_value("seed: 5")
    assert page.complaints == []


def test_pictures(page: Page, server: Server, tmp_path: Path) -> None:
    """A caption, and pictures that are dropped before the others are copied."""
    files = [tmp_path / f"{name}.png" for name in ("new", "newer")]
    for file in files:
        Image.new("RGB", (64, 64), "red").save(file)
    upload = page.locator("#upload input[type=file]")
    box = page.get_by_label("caption of 01.png")
    with late_answers(page):
        for file in files:
            upload.set_input_files(file)
            page.wait_for_timeout(500)  # until the browser has sent it
        write(page, box, "a sks dog on grass")
    for file in files:
        expect(page.get_by_label(f"caption of {file.name}")).to_be_visible()
    expect(box).to_have_value("a sks dog on grass")
    other = server.folder / "data/dog/input/00.txt"
    other.write_text("edited elsewhere\n")
    box.press("Tab")
    expect(page.get_by_text("Captions saved.")).to_be_visible()
    assert (server.folder / "data/dog/input/01.txt").read_text() == "a sks dog on grass\n"
    assert other.read_text() == "edited elsewhere\n"
    assert page.complaints == []


def test_draw(page: Page, server: Server, adapters: list[str]) -> None:
    """A picture's recipe; what there is to choose from."""
    tab = page.get_by_role("tab", name="Draw")
    tab.click()
    prompt, steps = control(page, "draw-prompt"), control(page, "draw-num_inference_steps")
    first, weight = control(page, "adapter-0"), control(page, "weight-0")
    expect(first).to_have_value(re.compile("adapter.safetensors"))
    write(page, first, adapters[0])
    page.keyboard.press("Tab")
    write(page, prompt, "a sks dog")
    write(page, steps, "1")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#drawn img")).to_have_count(2)
    (_, picture) = sorted((server.folder / "outputs/pictures").glob("*.png"))[-2:]

    write(page, first, adapters[1])
    page.keyboard.press("Tab")
    page.get_by_text("Parts of the adapters").click()
    page.get_by_text("Recipe of a picture").click()
    write(page, steps, "3")
    off = page.locator("#switch-projections").get_by_label("q", exact=True)
    with late_answers(page):
        page.locator("#recipe input[type=file]").set_input_files(picture)
        page.wait_for_timeout(500)  # until the browser has sent it
        write(page, prompt, "typed meanwhile")
        write(page, weight, "0.5")
        off.uncheck()
    expect(first).to_have_value(adapters[0])
    expect(steps).to_have_value("1")
    expect(prompt).to_have_value("typed meanwhile")
    expect(weight).to_have_value("0.5")
    expect(off).not_to_be_checked()

    page.get_by_role("tab", name="Train").click()
    with late_answers(page):
        tab.click()
        write(page, first, adapters[2])  # not left
    page.wait_for_timeout(1000)
    expect(first).to_have_value(adapters[2])
    assert page.complaints == []


def test_watch(page: Page, adapters: list[str]) -> None:
    """The runs to watch; a run that is cloned; a run that is drawn with."""
    write(page, field(page, "instance_prompt"), "a photo of zwx")
    watch, runs = page.get_by_role("tab", name="Watch"), page.locator("#runs")
    with late_answers(page):
        watch.click()
        write(page, runs.locator("input"), "dog/one")
        page.keyboard.press("Tab")
    titles = page.locator(".dk-run h3")
    expect(titles).to_contain_text("outputs/dog/one")
    page.wait_for_timeout(1000)
    expect(titles).to_have_count(1)

    with late_answers(page):
        page.get_by_role("button", name="Clone").click()
        page.get_by_role("tab", name="Train").click()
        write(page, field(page, "max_train_steps"), "77")
    expect(field(page, "instance_prompt")).to_have_value("a sks dog")
    expect(field(page, "max_train_steps")).to_have_value("77")

    watch.click()
    with late_answers(page):
        page.get_by_role("button", name="Draw with it").click()
        page.get_by_role("tab", name="Draw").click()
        write(page, control(page, "adapter-0"), adapters[2])
        page.keyboard.press("Tab")
    page.wait_for_timeout(1000)
    expect(control(page, "adapter-0")).to_have_value(adapters[2])
    assert page.complaints == []
