"""The page's server, and what a person does with a browser, for the tests that have one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect
from processes import Program

# One port for every server, so that the browser keeps what comes from there.
with socket.socket() as _probe:
    _probe.bind(("127.0.0.1", 0))
    PORT = _probe.getsockname()[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROOT = Path(__file__).parents[1]
PATIENCE = 1000 * float(os.environ.get("BROWSER_PATIENCE", "120"))  # milliseconds
LATENCY = float(os.environ.get("BROWSER_LATENCY", "0"))  # milliseconds before each answer
SLOWER = float(os.environ.get("BROWSER_SLOWER", "1"))  # times that the browser is slower


class Server:
    """The page's server over a folder of its own.

    Args:
        through: a command that starts it with other rights; then it imports all libraries itself.
    """

    def __init__(self, folder: Path, through: Sequence[str] = ()) -> None:
        self.folder, self.through = folder, through
        self.address = f"http://127.0.0.1:{PORT}/"
        self.start()

    def start(self) -> None:
        flags = ("--no_browser", "--port", str(PORT), "--folder", str(self.folder))
        said = self.folder / "server.txt"
        if self.through:
            self.process: Any = subprocess.Popen(
                [*self.through, sys.executable, "-m", "diffusekrona.ui", *flags],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=subprocess.STDOUT,
                stdout=open(said, "ab"),  # noqa: SIM115
            )
            alive, self.wait = lambda: self.process.poll() is None, self.process.wait
        else:
            program = Program("diffusekrona.ui", *flags, said=said, PYTHONPATH=str(ROOT))
            self.process = program.process
            alive, self.wait = self.process.is_alive, self.process.join
        end = time.monotonic() + PATIENCE / 1000
        while time.monotonic() < end and alive():
            try:
                urllib.request.urlopen(self.address)
                return
            except OSError:
                time.sleep(0.1)
        self.kill()
        raise AssertionError(said.read_text())

    def kill(self) -> None:
        self.process.kill()
        self.wait()


def opened(context: Any, server: Server) -> Page:
    """The page, loaded anew in the context's tab, where the browser has it compiled from the last
    time. What its console says, or is asked of other servers, fails."""
    page = context.pages[0] if context.pages else _new_tab(context, server)
    page.unroute_all()
    page.goto("about:blank")
    page.complaints = []
    page.goto(server.address)
    expect(page.locator("#plan")).to_contain_text("parameters")
    return page


def _new_tab(context: Any, server: Server) -> Any:
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.on("console", lambda message: complain(page, message))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("http:", "https:"))
            and not request.url.startswith(server.address)
            and page.complaints.append(request.url)
        ),
    )
    slow_down(context, page)
    return page


def slow_down(context: Any, page: Page) -> None:
    """As a distant server and a slow machine would: a test that only passes in a hurry fails."""
    if not LATENCY and SLOWER == 1:
        return
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    throughput = {"downloadThroughput": -1, "uploadThroughput": -1}
    conditions = {"offline": False, "latency": LATENCY, **throughput}
    session.send("Network.emulateNetworkConditions", conditions)
    session.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})


def complain(page: Page, message: Any) -> None:
    """Note a warning or an error. Gradio's own stream gives one whenever it is closed."""
    if message.type in ("error", "warning") and message.text != "Method not implemented.":
        page.complaints.append(message.text)


def field(page: Page, name: str) -> Any:
    return control(page, f"setting-{name}")


def control(page: Page, name: str) -> Any:
    return page.locator(f"#{name}").locator("input, textarea").first


def fill(page: Page, **values: object) -> None:
    for name, value in values.items():
        write(page, field(page, name), str(value))


def write(page: Page, box: Any, text: str) -> None:
    """Replace a field's text at once, as one who pastes it does. (The keyboard's test types.)"""
    box.focus()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.press("Delete")
    page.keyboard.insert_text(text)


@contextmanager
def late_answers(page: Page) -> Iterator[None]:
    """What the page asks of the server meanwhile is asked when the block ends."""
    held: list[Any] = []
    page.route("**/queue/join*", lambda route: held.append(route))
    yield
    end = time.monotonic() + PATIENCE / 1000
    while not held and time.monotonic() < end:  # the page may wait for its last answer first
        page.wait_for_timeout(100)
    page.wait_for_timeout(300)  # as long as the page waits before it asks
    assert held
    for route in held:
        route.continue_()
    page.unroute("**/queue/join*")


def start(page: Page, folder: Path, **values: object) -> Path:
    """Start a run by the button Start; its folder."""
    fill(page, **values)
    expect(page.locator("#problems .dk-mistakes")).to_have_count(0)
    name = field(page, "output_dir").input_value()
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#started")).to_contain_text("has been started")
    assert (folder / name / "run.yaml").is_file()
    return folder / name
