"""Bases are recognised, and what no family claims is named in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models

from diffusekrona.bases.families import (
    FAMILIES,
    check_schedule,
    components_of,
    denoiser_of,
    family_of_pipeline,
    identify,
    resembling,
)
from diffusekrona.bases.published import BASES
from diffusekrona.common.errors import UserError

REFINER = {
    **BASES["sdxl"]["unet"],
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
SD, XL = BASES["sd15"]["unet"], BASES["sdxl"]["unet"]


def base_of(folder: Path, config: dict, **index: object) -> str:
    """A pipeline folder with the denoiser's config alone."""
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.mark.parametrize(("name", "family"), [("sd15", "sd1"), ("sd21", "sd2"), ("sdxl", "sdxl")])
def test_published_bases_are_claimed(name: str, family: str, tmp_path: Path) -> None:
    found, config = identify(base_of(tmp_path, BASES[name]["unet"]))
    assert found is FAMILIES[family]
    assert found.native_resolution(config, BASES[name]["vae"]) == found.resolution


@pytest.mark.parametrize(
    ("config", "index", "says"),
    [
        ({**SD, "in_channels": 9}, {}, "an inpainting UNet (9 input channels)"),
        ({**XL, "in_channels": 9}, {}, "an inpainting UNet (9 input channels)"),
        ({**SD, "in_channels": 8}, {}, "an image-editing UNet (8 input channels)"),
        ({**SD, "in_channels": 3, "out_channels": 6}, {}, "(3 input channels)"),
        (REFINER, {}, "the SDXL refiner"),
        (XL, {"requires_aesthetics_score": True}, "the SDXL refiner"),
        ({**XL, "encoder_hid_dim_type": "text_proj"}, {}, "encoder_hid_dim_type 'text_proj'"),
        ({**SD, "class_embed_type": "projection"}, {}, "conditioned on images"),
        ({**SD, "addition_embed_type": "text"}, {}, "addition_embed_type 'text'"),
        ({**SD, "_class_name": "UNet3DConditionModel"}, {}, "UNet3DConditionModel"),
        (SD, {"_class_name": "FluxPipeline"}, "a FluxPipeline"),
        (SD, {"unet": [None, "U"], "text_encoder": [None, None]}, "without text_encoder"),
    ],
)
def test_what_no_family_claims_is_named(config, index, says, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        identify(base_of(tmp_path, config, **index))
    assert says in str(error.value) and "\n" not in str(error.value)
    assert "Stable Diffusion XL" in str(error.value)  # what to give instead


def test_a_schedule_of_another_kind_is_named(tmp_path: Path) -> None:
    base = base_of(tmp_path, XL)
    (tmp_path / "scheduler").mkdir()
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"}))
    with pytest.raises(UserError, match=r"EDM noise schedule \(EDMEulerScheduler\).* be trained"):
        check_schedule(FAMILIES["sdxl"], base)
    path.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler"}))
    check_schedule(FAMILIES["sdxl"], base)


def test_layers_alone_show_the_family() -> None:
    """For merging and conversion: an inpainting model has its base's layers."""
    assert resembling({**SD, "in_channels": 9}) is FAMILIES["sd1"]
    assert resembling({"_class_name": "FluxTransformer2DModel"}) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_pipelines_and_their_parts(family: str, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    folder = tiny_models.save_pipeline(tmp_path / family, family)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    known = FAMILIES[family]
    assert family_of_pipeline(pipeline) is known
    denoiser = getattr(pipeline, known.denoiser)
    assert denoiser_of(pipeline) is denoiser
    assert list(components_of(pipeline)) == [known.denoiser, *known.text_encoders]
    assert list(components_of(denoiser)) == [known.denoiser]
    assert list(components_of(pipeline.text_encoder)) == ["text_encoder"]
    shapes = known.text_shapes(denoiser.config)
    tokens = known.tokenize([getattr(pipeline, name) for name in known.tokenizers], ["a", "a dog"])
    states = known.encode_text({n: getattr(pipeline, n) for n in known.text_encoders}, tokens)
    assert {name: len(state.shape) for name, state in states.items()} == known.text_states
    assert {name: tuple(state.shape[1:]) for name, state in states.items()} == shapes
