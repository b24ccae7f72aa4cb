"""Shared fixtures: tiny pipelines on disk, made once a test run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

torch.set_num_threads(1)
# A busy machine fails nothing, and a failure that one machine sees is seen on every other.
settings.register_profile(
    "project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")

# The files that take longest, about longest first: one that is begun last would be waited for.
# Those with a browser alternate with others, which leave it the time to draw.
LONG = (
    "ui/test_browser.py",
    "gpu/test_pretended.py",
    "bases/test_every_family.py",
    "ui/test_browser_keyboard.py",
    "programs/test_train_dreambooth.py",
    "ui/test_browser_late.py",
    "repository/test_docs.py",
    "ui/test_browser_folders.py",
    "programs/test_inference.py",
    "repository/test_notebook.py",
    "training/test_memory.py",
    "study/test_study.py",
    "ui/test_browser_uploads.py",
    "programs/test_scripts_inference.py",
    "programs/test_choose.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def own_latents_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither find nor leave latents and text states in the user's own folder."""
    folder = str(tmp_path_factory.mktemp("assets"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", folder)
        patch.setenv("HF_ASSETS_CACHE", folder)  # for the programs that tests start
        yield


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its state, precision included, as long as the process lives."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four pictures, which no test changes."""
    folder = tmp_path_factory.mktemp("pictures")
    for colour in ("red", "green", "blue", "yellow"):
        Image.new("RGB", (48, 40), colour).save(folder / f"{colour}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_pipeline(tmp_path_factory.mktemp("models") / "sd1", "sd1")


@pytest.fixture(scope="session")
def tiny_sd2_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd2"
    return tiny_models.save_pipeline(folder, "sd2", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_pipeline(tmp_path_factory.mktemp("models") / "sdxl", "sdxl")
