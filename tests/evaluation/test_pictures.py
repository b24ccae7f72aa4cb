"""A base that is loaded once gives each variant what a newly loaded one gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from diffusekrona import KronAConfig, save_adapter
from diffusekrona.adapters.mixing import WeightedAdapter, apply_adapters, read_weighted
from diffusekrona.evaluation.pictures import Drawing, Job, KeptBase, is_there
from diffusekrona.sampling import pipeline as sampling
from diffusekrona.sampling.grids import save_png


@pytest.fixture
def variants(tmp_path: Path, tiny_sd1: Path) -> list[tuple[WeightedAdapter, ...]]:
    """The base; an adapter of the denoiser; one of the text encoder too, at a lower weight."""
    adapters = []
    for name, parts in (("unet", ("unet",)), ("both", ("unet", "text_encoder"))):
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd1)
        for part in parts:
            letters = ("q_proj", "v_proj") if part == "text_encoder" else ("to_q", "to_v")
            config = KronAConfig(a1=4, a2=16, target_modules=list(letters))
            getattr(pipeline, part).add_adapter(config)
            tiny_models.random_factors(getattr(pipeline, part))
        save_adapter(pipeline, tmp_path / f"{name}.safetensors")
        adapters.append(read_weighted(str(tmp_path / f"{name}.safetensors")))
    lower = WeightedAdapter(adapters[1].path, 0.5, adapters[1].adapter)
    return [(), (adapters[0],), (lower,), (adapters[0],), ()]


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor
        for part in ("unet", "text_encoder", "vae")
        for name, tensor in getattr(pipeline, part).state_dict().items()
    }


def test_a_picture_counts_as_drawn_by_its_own_recipe_alone(tmp_path: Path) -> None:
    recipe = {"prompt": "a dog", "adapters": [{"file": "a", "sha256": "b", "weight": 1.0}]}
    none = {"prompt": "a dog", "adapters": None}
    moved = {**recipe, "adapters": [{**recipe["adapters"][0], "file": "c"}]}
    for number, (have, want, same) in enumerate([
        (recipe, recipe, True), (moved, recipe, True), (none, none, True), (none, recipe, False),
        (recipe, none, False), ({**recipe, "adapters": ["b"]}, recipe, False),
        ({**recipe, "adapters": "x"}, none, False), ({"prompt": "a dog"}, recipe, False),
        ({**recipe, "revision": "old"}, recipe, False), ({**recipe, "vae": None}, recipe, True),
    ]):  # fmt: skip
        path = tmp_path / f"{number}.png"
        save_png(Image.new("RGB", (8, 8)), path, have)
        assert is_there(Job(0, 0, path, want)) is same, (have, want)


@pytest.mark.parametrize(("keep", "low_vram", "loaded"), [
    (True, False, 1), (False, False, 5), (True, True, 5),
])  # fmt: skip
def test_a_kept_base_is_a_newly_loaded_one(
    tiny_sd1: Path,
    variants,
    monkeypatch: pytest.MonkeyPatch,
    keep: bool,
    low_vram: bool,
    loaded: int,
) -> None:
    load, loads = sampling.load_pipeline, []
    monkeypatch.setattr(
        sampling, "load_pipeline", lambda *a, **k: loads.append(a) or load(*a, **k)
    )  # fmt: skip
    kept = KeptBase(Drawing(str(tiny_sd1), low_vram=low_vram), keep)
    for adapters in variants:
        pipeline = kept.with_adapters(adapters)
        new = load(str(tiny_sd1))
        apply_adapters(new, adapters)
        ours, theirs = weights(pipeline), weights(new)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        pipeline.unet.to(torch.float16)  # what happens to it on the device is its own
    assert len(loads) == loaded
