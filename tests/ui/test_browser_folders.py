"""Folders that cannot be read, or are gone while the page is open, in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
from browsing import CHROMIUM, ROOT, Server, control, write
from playwright.sync_api import Page, expect
from processes import wait_until

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
    pytest.mark.slow,
]
# Root may read everything, but for a process that has given that right up.
PLAIN = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = os.geteuid() == 0
    if root and shutil.which(PLAIN[0]) is None:
        pytest.skip("root may read everything, and there is no setpriv")
    folder = tmp_path_factory.mktemp("folders")
    for name in ("cat", "dog"):
        (folder / "data" / name / "input").mkdir(parents=True)
        shutil.copy(ROOT / "data/dog/input/00.png", folder / "data" / name / "input")
    (folder / "outputs").mkdir()
    server = Server(folder, PLAIN if root else ())
    yield server
    server.kill()


@pytest.fixture
def shut() -> Iterator[Any]:
    """Takes every right to a folder away, until the test ends."""
    folders: list[Path] = []

    def close(folder: Path) -> None:
        folders.append(folder)
        folder.chmod(0)

    yield close
    for folder in folders:
        folder.chmod(0o700)


def select(page: Page, name: str) -> None:
    write(page, control(page, "subject"), name)
    page.keyboard.press("Tab")


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_pictures_that_cannot_be_read_or_are_gone(page: Page, server: Server, shut: Any) -> None:
    folder = server.folder / "data/dog/input"
    shut(folder)
    select(page, "dog")
    expect(page.get_by_text("data/dog/input: Permission denied")).to_be_visible()
    page.get_by_role("button", name="Check the pictures").click()
    expect(page.locator("#checked")).to_contain_text("data/dog/input cannot be read")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#started")).to_contain_text("data/dog/input cannot be read")
    page.locator("#upload input[type=file]").set_input_files(ROOT / "data/dog/input/01.png")
    expect(page.locator("#refused")).to_contain_text("data/dog/input")

    select(page, "cat")
    caption = page.get_by_label("caption of 00.png")
    expect(caption).to_be_visible()
    # A picture that the browser still asks for when its folder is gone is noted in the console.
    picture = page.get_by_role("img", name="data/cat/input/00.png")
    picture.scroll_into_view_if_needed()
    wait_until(lambda: picture.evaluate("image => image.complete && image.naturalWidth > 0"))
    shutil.move(server.folder / "data/cat", server.folder / "cat")
    write(page, caption, "a sks cat")
    caption.press("Tab")
    expect(page.get_by_text("data/cat/input").first).to_be_visible()
    page.get_by_role("button", name="Check the pictures").click()
    expect(page.locator("#checked")).to_contain_text("data/cat/input is not there")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#started")).to_contain_text("data/cat/input is not there")
    shutil.move(server.folder / "cat", server.folder / "data/cat")
    assert page.complaints == []


def test_outputs_that_cannot_be_read(page: Page, server: Server, shut: Any) -> None:
    outputs = server.folder / "outputs"
    shut(outputs)
    select(page, "cat")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#started")).to_contain_text("outputs")
    expect(page.locator("#started")).to_contain_text("ermission denied")
    tab(page, "Watch")
    expect(page.locator("#watched")).to_contain_text("outputs/ cannot be read: Permission denied")
    tab(page, "Draw")
    page.get_by_text("More settings").first.click()
    write(page, control(page, "draw-pretrained_model_name_or_path"), "pocket")
    page.keyboard.press("Tab")
    write(page, control(page, "draw-prompt"), "a dog")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#draw-said")).to_contain_text("ermission denied")
    tab(page, "Reports")
    write(page, control(page, "choose-run"), "outputs/dog/one")
    page.get_by_role("button", name="Choose", exact=True).click()
    expect(page.locator("#said-choose")).to_contain_text("ermission denied")
    tab(page, "Train")
    outputs.chmod(0o700)
    tab(page, "Watch")
    expect(page.locator("#watched")).to_contain_text("There are no runs in outputs/ yet")
    assert page.complaints == []
