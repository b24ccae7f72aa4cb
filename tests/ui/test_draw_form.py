"""What the tab Draw fills in, and what it says of pictures that it cannot score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("gradio", reason="gradio is not installed")
from diffusekrona.common.errors import UserError
from diffusekrona.evaluation import encoders
from diffusekrona.sampling.grids import save_png
from diffusekrona.ui import draw_form, scoring
from diffusekrona.ui.places import Workspace

ADAPTER, BEST = "outputs/dog/adapter.safetensors", "outputs/dog/best.safetensors"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "outputs/dog").mkdir(parents=True)
    save_file({"x": torch.ones(1)}, tmp_path / ADAPTER)
    save_file({"x": torch.ones(1)}, tmp_path / BEST, {"default_weight": "0.7"})
    (tmp_path / "data/dog/input").mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "data/dog/input/one.png")
    return Workspace(tmp_path)


@pytest.mark.parametrize(
    ("name", "before", "filled"),
    [
        (BEST, "", {"weight 1": 0.7}),
        (ADAPTER, BEST, {"weight 1": 1.0}),
        (BEST, BEST, {}),  # filled for it before, as by a picture's recipe
        ("", BEST, {}),
        ("../x", "", {}),
    ],
)
def test_an_adapter_is_chosen_with_its_weight(
    workspace: Workspace, name: str, before: str, filled: dict
) -> None:
    assert draw_form.weight_of(workspace, 1, name, before) == (name, filled)


@pytest.mark.parametrize(
    ("base", "clip"),
    [("pocket", "pocket-clip"), ("some/photo-model", "openai/clip-vit-base-patch32")],
)
def test_pictures_are_scored_by_the_model_that_suits_their_base(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, base: str, clip: str
) -> None:
    asked, load = [], encoders.load_clip_encoder
    monkeypatch.setattr(
        encoders, "load_clip_encoder", lambda name: asked.append(name) or load("pocket-clip")
    )
    scoring._clip.cache_clear()
    path = workspace.outputs / "picture.png"
    save_png(Image.new("RGB", (32, 32), "red"), path, {"prompt": "a dog", "base": base})
    (line,) = scoring.score_pictures(workspace, [path], "dog")
    scoring._clip.cache_clear()
    assert asked == [clip] and line.endswith(" by pocket-clip")


def test_pictures_are_shown_though_they_cannot_be_scored(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workspace.outputs / "picture.png"
    save_png(Image.new("RGB", (32, 32), "red"), path, {"prompt": "a dog"})

    def fail(*_: object) -> None:
        raise UserError("Cannot load the scorer.")

    monkeypatch.setattr(draw_form, "draw", lambda _: [path])
    monkeypatch.setattr(draw_form, "score_pictures", fail)
    *_, (said, result) = draw_form.drawn(workspace, given())
    assert "Cannot load the scorer." in said and "outputs/picture.png" in result


def given() -> list[object]:
    """The form as it is opened, with a base, a prompt and photos to score against."""
    values = draw_form.field_values(draw_form.InferenceSettings, {})
    values |= {"pretrained_model_name_or_path": "pocket", "prompt": "a dog"}
    adapters = [None] * draw_form.ROWS + [1.0] * draw_form.ROWS
    compared = [False, "", False, "dog"]
    return [*adapters, [], [], [], *compared, *(values[name] for name in draw_form.NAMES)]
