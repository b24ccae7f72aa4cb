"""The page's pictures in docs/images, from the page as it is now:

    python -m tools.page_pictures

Serves the page over a new folder with the sample dog, fills in and trains, draws and compares in
Debian's chromium as a user would, and writes ui-train.png, ui-watch.png and ui-draw.png. Needs what
the browser tests need (requirements-dev.txt, chromium).
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
WIDTH = 1280
PATIENCE = 1000 * 900  # milliseconds


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--into", type=Path, default=ROOT / "docs/images", help="Write here.")
    into = parser.parse_args().into
    expect.set_options(timeout=PATIENCE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "data/dog", folder / "data/dog")
        (folder / "outputs").mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "diffusekrona.ui", "--no_browser"]
        where = ["--folder", str(folder), "--port", str(port)]
        server = subprocess.Popen([*command, *where], cwd=ROOT)
        try:
            with sync_playwright() as playwright:
                chromium = shutil.which("chromium") or shutil.which("chromium-browser")
                browser = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox"]
                )
                page = browser.new_page(viewport={"width": WIDTH, "height": 900})
                page.set_default_timeout(PATIENCE)
                _open(page, f"http://127.0.0.1:{port}/", server)
                _take(page, into)
        finally:
            server.terminate()
            server.wait()


def _open(page: Page, address: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            urllib.request.urlopen(address)
            break
        except OSError:
            time.sleep(0.2)
    page.goto(address)
    expect(page.locator("#plan")).to_contain_text("parameters")


def _take(page: Page, into: Path) -> None:
    """Walk through the tabs, with a picture of each."""
    page.get_by_text("Method, factors and learning rate").click()
    _shoot(page, into / "ui-train.png")
    _write(page, "setting-max_train_steps", "300")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".dk-run .dk-state")).to_have_text("finished")
    _shoot(page, into / "ui-watch.png")
    page.get_by_role("button", name="Draw with it").click()
    _write(page, "draw-prompt", "a sks dog in the snow\na sks dog on a beach")
    _write(page, "draw-seeds", "2")
    page.get_by_text("Compare", exact=True).click()
    _write(page, "grid-weights", "0.6 1")
    _write(page, "score-photos", "dog")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#drawn img")).to_have_count(6)
    expect(page.locator("#draw-said")).to_be_hidden()
    _shoot(page, into / "ui-draw.png")


def _write(page: Page, name: str, text: str) -> None:
    box: Any = page.locator(f"#{name}").locator("input, textarea").first
    box.fill(text)
    box.press("Tab")


def _shoot(page: Page, path: Path) -> None:
    """The whole page, once what it shows is there."""
    page.wait_for_function("[...document.images].every(image => image.complete)")
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # until what was opened has unfolded
    page.screenshot(path=path, full_page=True)
    Image.open(path).convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    main()
