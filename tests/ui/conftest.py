"""A server of the page over a folder of its own, and a browser."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browsing import Server
    from playwright.sync_api import Browser, BrowserContext, Page


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from browsing import ROOT, Server

    folder = tmp_path_factory.mktemp("page")
    (folder / "data/dog/input").mkdir(parents=True)
    for name in ("00.png", "00.txt", "01.png"):
        shutil.copy(ROOT / "data/dog/input" / name, folder / "data/dog/input" / name)
    (folder / "outputs").mkdir()
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from browsing import CHROMIUM
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def context(browser: Browser) -> BrowserContext:
    return browser.new_context(viewport={"width": 1280, "height": 1000})


@pytest.fixture
def page(server: Server, context: BrowserContext) -> Iterator[Page]:
    from browsing import opened

    yield opened(context, server)
    for tab in context.pages:  # or it would load itself anew when the next server answers
        tab.goto("about:blank")


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    """The bundled base in one file, whose layers are not those of the published model, and beside
    it outputs/zero.safetensors, an adapter that was trained on it and changes nothing."""
    from diffusekrona.adapters.file import save_adapter
    from diffusekrona.formats.conversion import convert
    from diffusekrona.krona import KronAConfig
    from diffusekrona.sampling.pipeline import load_pipeline

    file, adapter = tmp_path / "base.safetensors", tmp_path / "outputs/zero.safetensors"
    pipe = load_pipeline("pocket")
    pipe.unet.add_adapter(KronAConfig(a1=4, a2=8))
    trained = {"base_model": str(file), "single_file_config": "pocket"}
    save_adapter(pipe, adapter, metadata=trained)
    convert(adapter, file, "merged", base="pocket")
    return file


@pytest.fixture(scope="module")
def adapters(server: Server) -> list[str]:
    """Two adapters of one step on pocket, and a LoRA under kohya's names."""
    from diffusekrona import convert, train_dreambooth

    run = server.folder / "outputs/dog/one"
    settings = {
        "pretrained_model_name_or_path": "pocket", "instance_data_dir": "data/dog/input",
        "instance_prompt": "a sks dog", "output_dir": run, "max_train_steps": 1,
        "learning_rate": 0.05, "report_to": "none",
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in settings.items()]
    foreign = ["outputs/dog/one", "outputs/foreign/lora.safetensors", "--to", "lora-kohya"]
    with contextlib.chdir(server.folder):  # in this process, which has the libraries loaded
        assert not train_dreambooth.main(words) and not convert.main(foreign)
    shutil.copytree(run, server.folder / "outputs/dog/two")
    return [f"outputs/{name}" for name in (
        "dog/one/adapter.safetensors", "dog/two/adapter.safetensors", "foreign/lora.safetensors"
    )]  # fmt: skip
