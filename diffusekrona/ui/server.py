"""The web server: the page, the pictures in data/ and outputs/, and who may see them."""

from __future__ import annotations

import base64
import binascii
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse

from .places import Workspace, served
from .uploads import MOST_BYTES

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# A report is shown in a frame: it may show its own styles and pictures, and run nothing.
_NO_SCRIPTS = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data: 'self'"


def address_of(name: str) -> str:
    """Where the page finds a file, from the workspace on."""
    return f"/files/{quote(name)}"


def make_app(workspace: Workspace, host: str, password: str | None) -> FastAPI:
    """The server without the page: its files, and the checks that every request passes."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/files/{name:path}")
    def file(name: str) -> Response:
        path = served(workspace, name)
        if path is None:
            return PlainTextResponse("There is no such file here.", 404)
        return FileResponse(path, headers=_headers(path))

    app.add_middleware(_Gate, host=host, password=password)
    return app


class _Gate:
    """Lets a request in, or answers it with `refusal`. Streams pass through it unchanged."""

    def __init__(self, app: Any, host: str, password: str | None) -> None:
        self.app, self.host, self.password = app, host, password

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            answer = refusal(Request(scope), self.host, self.password)
            await (answer or self.app)(scope, receive, send)
        elif scope["type"] == "lifespan":  # nothing here uses websockets
            await self.app(scope, receive, send)


def _headers(path: Path) -> dict[str, str]:
    headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": _NO_SCRIPTS}
    if path.suffix.lower() in (".safetensors", ".json", ".jsonl", ".yaml", ".md"):
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(path.name)}"
    return headers


def refusal(request: Request, host: str, password: str | None) -> Response | None:
    """The answer to a request that is not let in: by another name of this machine (DNS
    rebinding), from another site's page, or without the password."""
    try:
        asked = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        asked = ""
    if host in LOOPBACK and asked not in LOOPBACK:
        return PlainTextResponse("This page is served to this machine only.", 403)
    origin = request.headers.get("origin")
    if origin and urlsplit(origin).netloc != request.headers.get("host"):
        return PlainTextResponse("Requests from other sites are refused.", 403)
    if password and not _knows(request.headers.get("authorization", ""), password):
        asks = {"WWW-Authenticate": 'Basic realm="DiffuseKronA", charset="UTF-8"'}
        return PlainTextResponse("The password is needed.", 401, asks)
    return None


def _knows(header: str, password: str) -> bool:
    """Whether a Basic authorisation has the password; any user name will do."""
    kind, _, text = header.partition(" ")
    try:
        given = base64.b64decode(text).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return False
    return kind.lower() == "basic" and secrets.compare_digest(given.encode(), password.encode())


def mount(app: FastAPI, page: Any, theme: Any, css: Path) -> None:
    """Put the page on the server."""
    import gradio as gr

    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme,
        css_paths=[css],
        footer_links=[],
        run_history=False,  # would keep what is typed in the browser
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        show_error=True,
    )
