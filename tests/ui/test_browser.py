"""The page in a real browser: a person's way from pictures to an adapter."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
from browsing import (
    CHROMIUM,
    Server,
    control,
    field,
    fill,
    opened,
    start,
    write,
)
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect
from processes import wait_until

from diffusekrona.adapters.file import read_adapter, write_adapter
from diffusekrona.sampling.grids import read_recipe

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
    pytest.mark.slow,
]


def test_from_pictures_to_an_adapter(
    page: Page, server: Server, context: BrowserContext, tmp_path: Path
) -> None:
    """Upload, caption, train, watch; close the page, kill the server; draw, save, stop, resume,
    clone."""
    files = []
    for number, colour in enumerate(("red", "green", "blue")):
        files.append(tmp_path / f"My Toy {number}.png")
        Image.new("RGB", (64, 64), colour).save(files[-1])
    write(page, page.get_by_role("combobox", name="subject"), "my toy")
    page.keyboard.press("Tab")
    page.locator("#upload input[type=file]").set_input_files(files)
    expect(page.locator("#refused")).to_contain_text("3 pictures have been added to my toy.")
    box = page.get_by_label("caption of my-toy-0.png")
    write(page, box, "a <b>red</b> toy")
    box.press("Tab")
    expect(page.get_by_text("Captions saved.")).to_be_visible()
    pictures = server.folder / "data/my-toy/input"
    assert (pictures / "my-toy-0.txt").read_text() == "a <b>red</b> toy\n"
    expect(field(page, "output_dir")).to_have_value("outputs/my-toy/krona-1")

    run = start(page, server.folder, max_train_steps=40000)  # it does not end by itself
    page.get_by_role("tab", name="Watch").click()
    expect(page.locator(".dk-strip figure")).not_to_have_count(0)  # photo, first pictures
    expect(page.locator(".dk-run .dk-state")).to_have_text("running")
    assert page.complaints == []
    page.close()
    server.kill()
    server.start()

    page = opened(context, server)
    page.get_by_role("tab", name="Watch").click()
    expect(page.locator(".dk-run .dk-state")).to_have_text("running")
    shown = page.locator(".dk-strip figure").count()
    page.get_by_role("button", name="Draw now").click()
    expect(page.locator(".dk-strip figure")).not_to_have_count(shown)
    page.get_by_role("button", name="Save now").click()
    expect(page.locator("#watch-said")).to_contain_text("save a checkpoint")
    wait_until(lambda: list(run.glob("checkpoint-*")))
    expect(page.locator(".dk-run .dk-state")).to_have_text("running")
    page.get_by_role("button", name="Stop and save").click()
    expect(page.locator(".dk-run .dk-state")).to_have_text("stopped")
    assert list(run.glob("checkpoint-*")) and not (run / "adapter.safetensors").exists()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".dk-run .dk-state")).to_have_text("running")
    page.get_by_role("button", name="Stop and save").click()
    expect(page.locator(".dk-run .dk-state")).to_have_text("stopped")
    page.get_by_role("button", name="Clone").click()
    expect(field(page, "output_dir")).to_have_value("outputs/my-toy/krona-2")
    expect(field(page, "max_train_steps")).to_have_value("40000")
    assert page.complaints == []


def test_drawing(page: Page, server: Server, adapters: list[str]) -> None:
    """Two adapters, one of them foreign, beside the base; the form from the picture; a projection
    and a block off, two weights: each picture with its scores and recipe."""
    page.get_by_role("tab", name="Draw").click()
    page.get_by_text("More adapters").click()
    for number, name in enumerate((adapters[0], adapters[2])):
        write(page, control(page, f"adapter-{number}"), name)
        page.keyboard.press("Tab")
    first, weight = control(page, "adapter-0"), control(page, "weight-0")
    write(page, weight, "0.5")
    write(page, control(page, "draw-prompt"), "a <i>sks</i> dog in the snow")
    write(page, control(page, "draw-num_inference_steps"), "2")
    page.get_by_role("button", name="Draw", exact=True).click()
    pictures = page.locator("#drawn img")
    expect(pictures).to_have_count(2)
    expect(page.locator("#drawn")).to_contain_text("a <i>sks</i> dog in the snow")
    drawn = sorted((server.folder / "outputs/pictures").glob("*.png"))
    assert len(drawn) == 2 and drawn[0].read_bytes() != drawn[1].read_bytes()
    write(page, control(page, "draw-prompt"), "something else")
    best = "outputs/dog/one/best.safetensors"
    adapter = read_adapter(server.folder / adapters[0])
    adapter = replace(adapter, metadata={**adapter.metadata, "default_weight": "0.7"})
    write_adapter(adapter, server.folder / best)
    write(page, first, best)
    page.keyboard.press("Tab")
    expect(weight).to_have_value("0.7")
    page.get_by_text("Recipe of a picture").click()
    page.locator("#recipe input[type=file]").set_input_files(drawn[1])
    expect(control(page, "draw-prompt")).to_have_value("a <i>sks</i> dog in the snow")
    expect(first).to_have_value(adapters[0])
    page.wait_for_timeout(1000)  # the weight of the recipe stays, whatever the adapter's file names
    expect(weight).to_have_value("0.5")

    page.get_by_text("Compare", exact=True).click()
    write(page, control(page, "grid-weights"), "0.5 1")
    write(page, control(page, "score-photos"), "dog")
    page.keyboard.press("Tab")
    page.get_by_text("Parts of the adapters").click()
    blocks = page.locator("#switch-blocks input")
    expect(blocks).not_to_have_count(0)
    block = blocks.first.get_attribute("name") or ""
    page.locator("#switch-projections").get_by_label("q", exact=True).uncheck()
    blocks.first.uncheck()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#drawn small")).to_have_count(3)
    for text in page.locator("#drawn small").all_inner_texts():
        assert re.fullmatch(r"CLIP-I -?\d\.\d\d, CLIP-T -?\d\.\d\d by pocket-clip", text)
    new = sorted(set((server.folder / "outputs/pictures").glob("*.png")) - set(drawn))
    assert len({path.read_bytes() for path in new}) == 3
    used = (read_recipe(new[-1]) or {})["adapters"][0]
    assert used["weight"] == 1 and used["projections"] == {"q": 0} and used["blocks"] == {block: 0}

    write(page, control(page, "draw-num_inference_steps"), "1000")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#draw-said")).to_contain_text("Stopped.")
    write(page, control(page, "draw-num_inference_steps"), "3")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#draw-said")).not_to_contain_text("Stopped.")
    expect(page.locator("#drawn small")).to_have_count(3)
    assert page.complaints == []


def test_converting_and_downloading(page: Page, server: Server, adapters: list[str]) -> None:
    """The whole model, and a place of one's own; an adapter's format is in the keyboard's test."""
    page.get_by_role("tab", name="Reports", exact=True).click()
    page.get_by_role("tab", name="Convert").click()
    destination = control(page, "convert-destination")
    write(page, control(page, "convert-source"), adapters[0])
    page.keyboard.press("Tab")
    expect(destination).to_have_value("outputs/converted/dog-one.safetensors")
    expect(page.locator("#convert-source ul[role=listbox]")).to_have_count(0)  # closed again
    write(page, control(page, "convert-to"), "the whole model")
    page.keyboard.press("Enter")
    expect(destination).to_have_value("outputs/converted/dog-one-merged.safetensors")
    page.get_by_role("button", name="Convert", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("link", name="dog-one-merged.safetensors").click()
    made = server.folder / "outputs/converted/dog-one-merged.safetensors"
    assert download.value.path().read_bytes() == made.read_bytes()
    write(page, control(page, "convert-source"), adapters[1])
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    write(page, destination, "outputs/mine.safetensors")  # at once
    filled = control(page, "convert-filled")  # what the page would have put there
    expect(filled).to_have_value("outputs/converted/dog-two-merged.safetensors")
    expect(destination).to_have_value("outputs/mine.safetensors")
    assert page.complaints == []


def test_runs_by_a_part_of_their_name(page: Page, server: Server, adapters: list[str]) -> None:
    """Typed and left with the Tab key. What is not there is said: watched, drawn with,
    converted."""
    page.get_by_role("tab", name="Watch").click()
    box, titles = page.locator("#runs input"), page.locator(".dk-run h3")
    expect(titles).to_have_count(1)
    for text in ("dog/one", "dog/two"):
        box.focus()
        page.keyboard.type(text)
        page.keyboard.press("Tab")
        expect(titles.filter(has_text=f"outputs/{text}")).to_have_count(1)
    box.focus()
    page.keyboard.type("dog/none")
    page.keyboard.press("Tab")
    expect(page.locator("#watched")).to_contain_text("There is no run dog/none")

    run, name = server.folder / "outputs/dog/gone", "outputs/dog/gone/adapter.safetensors"
    shutil.copytree(server.folder / "outputs/dog/two", run)
    page.get_by_role("tab", name="Draw").click()
    write(page, control(page, "adapter-0"), name)
    page.keyboard.press("Tab")
    page.get_by_role("tab", name="Watch").click()
    write(page, box, "dog/gone")
    page.keyboard.press("Tab")
    title = titles.filter(has_text="dog/gone")
    expect(title).to_be_visible()
    shutil.rmtree(run)
    expect(title).to_have_count(0)
    expect(page.locator("#watched")).to_contain_text("There is no run dog/gone")
    page.get_by_role("tab", name="Draw").click()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#draw-said")).to_contain_text(f"{name} cannot be read")
    page.get_by_role("tab", name="Reports", exact=True).click()
    page.get_by_role("tab", name="Convert").click()
    write(page, control(page, "convert-source"), name)
    page.keyboard.press("Tab")
    write(page, control(page, "convert-to"), "LoKr under kohya")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Convert", exact=True).click()
    expect(page.locator("#said-convert")).to_contain_text(f"{name} is not there")
    assert page.complaints == []


def test_reports_are_made_and_shown(page: Page, server: Server, adapters: list[str]) -> None:
    """Choose, evaluate and inspect: from the form to the page in its frame, and the list of all."""
    page.get_by_role("tab", name="Reports", exact=True).click()
    prompts = server.folder / "data/prompts.txt"
    prompts.write_text("{subject} in the snow\na red {name}\n")
    forms: dict[str, tuple[dict[str, str], str]] = {
        "choose": ({"run": "outputs/dog/one", "weights": "1"}, "Choosing a checkpoint of"),
        "evaluate": (
            {"adapter": adapters[0], "subject_dir": "data/dog/input", "class_word": "dog"},
            "Scores of",
        ),
        "inspect": ({"adapter": adapters[0]}, "Inside"),
    }
    page.get_by_role("tab", name="Choose").click()
    write(page, control(page, "choose-run"), "outputs/dog/one")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Choose", exact=True).click()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#said-choose")).to_contain_text("Stopped.")
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()
    for name, (values, words) in forms.items():
        page.get_by_role("tab", name=name.capitalize()).click()
        if name != "inspect":
            values |= {"prompts": "data/prompts.txt", "seeds": "0", "num_inference_steps": "1"}
            page.locator("button:visible", has_text="More settings").click()
        for setting, text in values.items():
            write(page, control(page, f"{name}-{setting}"), text)
            page.keyboard.press("Tab")
        page.get_by_role("button", name=name.capitalize(), exact=True).click()
        frame = page.frame_locator(f"#shown-{name} iframe").first
        expect(frame.locator("h1")).to_contain_text(words)
        expect(frame.locator("img").first).to_be_visible()
    assert (server.folder / "outputs/dog/one/choice.json").is_file()
    page.get_by_role("tab", name="All reports").click()
    write(page, control(page, "report"), "outputs/dog/one/choice/index.html")
    page.keyboard.press("Enter")  # before the list has come, too
    shown = page.frame_locator("#report-shown iframe")
    expect(shown.locator("h1")).to_contain_text("Choosing a checkpoint of")
    assert page.complaints == []


def test_pictures_are_checked_and_settings_too(page: Page) -> None:
    """What training would make of the pictures; mistakes at their field."""
    page.get_by_role("button", name="Check the pictures").click()
    expect(page.locator("#checked")).to_contain_text("2 pictures")
    sheet = page.frame_locator("#checked iframe")
    expect(sheet.locator("h1")).to_contain_text("would be trained on")
    page.get_by_text("Method, factors").click()
    fill(page, max_train_steps="many")
    expect(page.locator("#problems")).to_contain_text("steps: must be a whole number")
    expect(page.locator("#setting-max_train_steps")).to_contain_text("must be a whole number")
    fill(page, max_train_steps="10", a1="7")
    expect(page.locator("#setting-max_train_steps")).not_to_contain_text("must be")
    expect(page.locator("#plan")).to_contain_text("a1=7")
    expect(page.locator("#setting-a1")).to_contain_text("a1=7")
    fill(page, a1="2")
    expect(page.locator("#plan")).to_contain_text("parameters")
    expect(page.locator("#setting-a1")).not_to_contain_text("a1=7")
    assert page.complaints == []


def choose(page: Page, name: str, text: str) -> None:
    """Type into a field with choices, and leave it."""
    write(page, field(page, name), text)
    page.keyboard.press("Tab")


def test_values_follow_the_base_and_the_method(page: Page) -> None:
    """Another base or method fills its own values in; what was typed stays. A preset does when it
    is chosen, not when it is passed by the Tab key."""
    page.get_by_text("Method, factors").click()
    rate, steps = field(page, "learning_rate"), field(page, "max_train_steps")
    expect(rate).to_have_value("0.006")
    expect(steps).to_have_value("150")
    choose(page, "pretrained_model_name_or_path", "black-forest-labs/FLUX.2-klein-base-4B")
    expect(rate).to_have_value("0.0006")
    expect(steps).to_have_value("1000")
    expect(field(page, "a1")).to_have_value("64")
    expect(page.locator("#plan")).to_contain_text("1024 px")
    expect(page.locator("#problems .dk-mistakes")).to_have_count(0)
    choose(page, "adapter_type", "lora")
    expect(rate).to_have_value("0.0001")
    expect(field(page, "output_dir")).to_have_value(re.compile("outputs/dog/lora-"))
    expect(page.locator("#setting-a1")).to_have_count(0)
    fill(page, max_train_steps="77")
    choose(page, "pretrained_model_name_or_path", "pocket")
    write(page, rate, "0.005")  # while the answer is on its way
    expect(field(page, "pretrained_model_name_or_path")).to_have_value("pocket")
    expect(page.locator("#plan")).to_contain_text("64 px")
    choose(page, "adapter_type", "krona")
    expect(page.locator("#setting-a1")).to_have_count(1)
    expect(field(page, "a1")).to_have_value("2")
    expect(field(page, "output_dir")).to_have_value(re.compile("outputs/dog/krona-"))
    expect(rate).to_have_value("0.005")
    expect(steps).to_have_value("77")

    control(page, "preset").focus()
    page.keyboard.press("Tab")
    page.get_by_role("button", name="run.yaml").click()
    yaml = page.locator("#yaml textarea")
    expect(yaml).to_have_value(re.compile("max_train_steps: 77"))
    write(
        page, field(page, "instance_prompt"), "a sks hound"
    )  # its answer comes after the preset's
    expect(yaml).to_have_value(re.compile("a sks hound"))
    expect(steps).to_have_value("77")
    assert page.complaints == []


REPORTS = ("Choose", "Evaluate", "Inspect", "Convert", "All reports")
WIDTH = """() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(
    () => done(document.documentElement.scrollWidth))))"""  # once it has been laid out


def test_it_fits_the_screen(page: Page) -> None:
    """At both widths, in light and in dark, which the page follows while it is open."""
    try:
        for tab in ("Train", "Watch", "Draw", *REPORTS):
            if tab in REPORTS:
                page.get_by_role("tab", name="Reports", exact=True).click()
            button = page.get_by_role("tab", name=tab, exact=True)
            button.click()
            expect(button).to_have_attribute("aria-selected", "true")
            for width, scheme in itertools.product((400, 1280), ("light", "dark")):
                page.set_viewport_size({"width": width, "height": 900})
                page.emulate_media(color_scheme=scheme)
                expect(page.locator("body.dark")).to_have_count(1 if scheme == "dark" else 0)
                assert page.evaluate(WIDTH) <= width, tab
                if folder := os.environ.get("SCREENSHOTS"):
                    page.screenshot(path=f"{folder}/{tab}-{width}-{scheme}.png", full_page=True)
        assert page.complaints == []
    finally:
        page.set_viewport_size({"width": 1280, "height": 1000})
        page.emulate_media(color_scheme="light")
