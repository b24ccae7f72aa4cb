"""The page in the browser: `diffusekrona ui`."""

from __future__ import annotations

import os
import socket
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..common.command_line import parse
from ..common.errors import UserError, exit_on_user_error
from ..common.paths import as_path
from ..common.settings import setting


@dataclass(frozen=True)
class UiSettings:
    """Where the page is served, and to whom."""

    folder: Path = setting(
        Path("."), metavar="FOLDER", help="Folder that holds data/ and outputs/."
    )
    port: int = setting(7860, minimum=1, maximum=65535, help="Port to listen on.")
    host: str = setting(
        "127.0.0.1", help="Address to listen on. Any but this machine's own needs --password."
    )
    password: str | None = setting(
        None, in_file=False, help="Ask for this password; the user name does not matter."
    )
    no_browser: bool = setting(False, help="Do not open the page in a browser.")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: check, build, serve until Ctrl-C. Runs that were started continue."""
    settings = parse(
        UiSettings,
        argv,
        prog="diffusekrona ui",
        description="Serve the programs as a page in the browser.",
    )
    if find_spec("gradio") is None:
        raise UserError("The page needs gradio: pip install -r requirements-ui.txt")
    check_host(settings)
    root = as_path(settings.folder).resolve()
    if not root.is_dir():
        raise UserError(f"--folder {settings.folder} is not a folder.")
    _check_port(settings)
    serve(settings, root)


def check_host(settings: UiSettings) -> None:
    """Refuse to listen to other machines without a password. Raises UserError."""
    if settings.host not in ("127.0.0.1", "localhost", "::1") and not settings.password:
        raise UserError(f"--host {settings.host} lets other machines in: give --password too.")


def _check_port(settings: UiSettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise UserError(
                f"Cannot listen on {settings.host}:{settings.port}: "
                f"{(error.strerror or str(error)).lower()}; give another --port."
            ) from error


def serve(settings: UiSettings, root: Path) -> None:
    """Serve the page until the process is asked to end."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import uvicorn

    from . import train_form
    from .libraries import read_in_background
    from .page import CSS, build, theme
    from .places import Workspace
    from .server import make_app, mount

    os.chdir(root)  # adapters and folders are named from here on
    workspace = Workspace(root)
    app = make_app(workspace, settings.host, settings.password)
    mount(app, build(workspace), theme(), CSS)
    read_in_background(lambda: train_form.first_plan(workspace))
    address = f"http://{settings.host}:{settings.port}/"
    print(f"The page: {address}   (Ctrl-C ends it; runs continue)", flush=True)
    if not settings.no_browser:
        webbrowser.open(address)
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning")


if __name__ == "__main__":
    exit_on_user_error(main)
