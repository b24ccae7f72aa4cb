"""The page by the keyboard alone: everything can be reached, left and seen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
from browsing import CHROMIUM, Server
from PIL import Image
from playwright.sync_api import Page, expect
from processes import wait_until

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
    pytest.mark.slow,
]
# What has the focus: its name, and whether that is seen.
FOCUS = """() => {
  const e = document.activeElement, style = getComputedStyle(e);
  const named = e.getAttribute("aria-label") || e.labels?.[0]?.innerText || e.innerText || e.name
    || [...e.querySelectorAll("img")].map(i => i.alt).join();
  return [e === document.body, named.trim(), e.id || e.closest("[id]")?.id || "",
          style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
}"""
MOST_STOPS = 120


def tab_to(page: Page, wanted: str) -> None:
    """Press the Tab key until the focus is on what has this id or a name that begins so."""
    passed = []
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        nowhere, name, place, seen = page.evaluate(FOCUS)
        if nowhere:  # past the end, and so to the beginning again
            continue
        assert name and seen, f"{place}: {name or 'no name'}, focus visible: {seen}"
        passed.append(f"{place}: {name[:30]}")
        if place == wanted or name.startswith(wanted):
            return
    raise AssertionError(f"{wanted} was not reached: {passed}")


def press(page: Page, wanted: str) -> None:
    tab_to(page, wanted)
    page.keyboard.press("Enter")


def type_into(page: Page, wanted: str, text: str) -> None:
    """Replace a field's text, and leave it."""
    tab_to(page, wanted)
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type(text)
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")


def drop(page: Page, wanted: str, files: list[Path]) -> None:
    with page.expect_file_chooser() as chooser:
        press(page, wanted)
    chooser.value.set_files(files)


def state(page: Page, words: str) -> None:
    expect(page.locator(".dk-run .dk-state")).to_have_text(words)


def test_training_by_keyboard(page: Page, server: Server, tmp_path: Path) -> None:
    """Upload, caption, set, start, watch, draw, save, stop, resume."""
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 90, 40)).save(tmp_path / f"toy-{number}.png")
    type_into(page, "subject", "toy")
    drop(page, "upload", sorted(tmp_path.glob("toy-*.png")))
    expect(page.get_by_label("caption of toy-2.png")).to_be_visible()
    type_into(page, "caption of toy-0.png", "a sks toy on a table")
    expect(page.get_by_text("Captions saved.")).to_be_visible()
    expect(page.locator("#setting-output_dir textarea")).to_have_value("outputs/toy/krona-1")
    type_into(page, "steps", "40000")  # it does not end by itself
    press(page, "run.yaml")
    yaml = page.locator("#yaml textarea")
    expect(yaml).to_have_value(re.compile("max_train_steps: 40000"))
    tab_to(page, "yaml")  # and out of it again
    press(page, "start")
    expect(page.get_by_role("tab", name="Watch")).to_be_focused()
    state(page, "running")
    run = server.folder / "outputs/toy/krona-1"
    pictures = page.locator(".dk-strip figure")
    expect(pictures).not_to_have_count(0)
    shown = pictures.count()
    press(page, "draw-now")
    expect(pictures).not_to_have_count(shown)
    press(page, "save-now")
    wait_until(lambda: list(run.glob("checkpoint-*")))
    press(page, "stop")
    state(page, "stopped")
    press(page, "resume")
    state(page, "running")
    press(page, "stop")
    state(page, "stopped")
    press(page, "clone")
    expect(page.get_by_role("tab", name="Train")).to_be_focused()
    assert page.complaints == []


def test_drawing_and_converting_by_keyboard(
    page: Page, server: Server, adapters: list[str]
) -> None:
    """Draw, restore the recipe of a picture, convert, download."""
    press(page, "Draw")
    type_into(page, "adapter 1", adapters[0])
    type_into(page, "prompt", "a sks dog in the snow")
    type_into(page, "denoising steps", "2")
    press(page, "draw")
    expect(page.locator("#drawn img")).to_have_count(2)
    (picture, _) = sorted((server.folder / "outputs/pictures").glob("*.png"))
    type_into(page, "prompt", "something else")
    press(page, "Recipe of a picture")
    drop(page, "recipe", [picture])
    prompt: Any = page.locator("#draw-prompt textarea")
    expect(prompt).to_have_value("a sks dog in the snow")
    press(page, "Reports")
    press(page, "Convert")
    type_into(page, "convert-source", adapters[0])
    tab_to(page, "convert-to")
    page.keyboard.type("LoKr under kohya")
    page.keyboard.press("Enter")
    expect(page.locator("#convert-destination textarea")).to_have_value(re.compile("-lokr"))
    press(page, "run-convert")
    expect(page.get_by_role("link", name="Download")).to_be_visible()
    with page.expect_download() as download:
        press(page, "Download")
    made = server.folder / "outputs/converted/dog-one-lokr.safetensors"
    assert download.value.path().read_bytes() == made.read_bytes()
    assert page.complaints == []
