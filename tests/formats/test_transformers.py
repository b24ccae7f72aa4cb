"""Adapters of transformer bases in diffusers' formats, in and out, and merged into their bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from diffusekrona import KronAConfig
from diffusekrona.adapters.file import load_adapter, read_adapter, save_adapter
from diffusekrona.adapters.methods import targets_of
from diffusekrona.bases.families import FAMILIES
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import convert
from diffusekrona.hub.card import card_text
from diffusekrona.sampling.pipeline import load_pipeline


@pytest.fixture(scope="module", params=tiny_models.TRANSFORMERS)
def trained(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A family, its tiny base, and an adapter on all attention and feed-forward layers."""
    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("transformers")
    base = tiny_models.save_pipeline(folder / "base", family.name)
    denoiser = family.load_denoiser(str(base))
    names = targets_of("kqvo", family.letters, family.denoiser, family.feed_forward[-1:]).names
    denoiser.add_adapter(KronAConfig(a1=2, a2=2, target_modules=list(names)))
    tiny_models.random_factors(denoiser)
    path = save_adapter(denoiser, folder / "adapter.safetensors")
    return family, base, path


@torch.no_grad()
def output(family: Any, denoiser: Any) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    shapes = family.text_shapes(denoiser.config)
    text = {name: torch.randn(1, *shape, generator=g) for name, shape in shapes.items()}
    noisy = torch.randn(1, *family.latent_shape(denoiser.config, 8), generator=g)
    return family.predict(denoiser, noisy, torch.tensor([300.0]), text, torch.zeros(1, 6))


def adapted(family: Any, base: Path, path: Path) -> torch.Tensor:
    denoiser = family.load_denoiser(str(base)).eval()
    load_adapter(denoiser, path)
    return output(family, denoiser)


def test_diffusers_loads_the_lora(trained, tmp_path: Path) -> None:
    family, base, path = trained
    report = convert(path, tmp_path / "lora.safetensors", "lora")
    assert report.relative < 1e-5
    pipeline = load_pipeline(str(base))
    pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"))
    want = adapted(family, base, path)
    torch.testing.assert_close(output(family, pipeline.transformer), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["diffusion_model.", ""])
def test_a_lora_is_read_under_other_programs_names(trained, head: str, tmp_path: Path) -> None:
    family, _, path = trained
    convert(path, tmp_path / "lora.safetensors", "lora")
    tensors = load_file(tmp_path / "lora.safetensors")
    renamed = {head + key.removeprefix("transformer."): t for key, t in tensors.items()}
    save_file(renamed, tmp_path / "renamed.safetensors")  # without metadata
    report = convert(tmp_path / "renamed.safetensors", tmp_path / "back.safetensors", "lora")
    assert report.family == family.name
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == tensors.keys()
    for key in (key for key in back if key.endswith("lora_A.weight")):
        up = key.replace("lora_A", "lora_B")
        torch.testing.assert_close(back[up] @ back[key], tensors[up] @ tensors[key])


def test_merged_into_the_base_it_changes_its_layers_and_nothing_else(trained, tmp_path) -> None:
    family, base, path = trained
    report = convert(path, tmp_path / "merged", "merged", base=base)
    assert report.relative < 1e-4
    merged = load_pipeline(str(tmp_path / "merged"))
    want = adapted(family, base, path)
    torch.testing.assert_close(output(family, merged.transformer), want, rtol=1e-4, atol=1e-5)
    one, other = load_pipeline(str(base)), merged
    for component in ("vae", "text_encoder"):
        before, after = (getattr(p, component).state_dict() for p in (one, other))
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    same = merged.transformer.state_dict()
    layers = {(family.fused_part(n) and family.fused_part(n)[0]) or n for n in _layers(path)}
    for key, tensor in one.transformer.state_dict().items():
        changed = key.removesuffix(".weight") in layers
        assert torch.equal(tensor, same[key]) != changed, key


def _layers(path: Path) -> list[str]:
    adapter = read_adapter(path)
    return list(adapter.method.by_layer(adapter.tensors))


def test_lokr_is_loaded_by_diffusers_or_refused(trained, tmp_path: Path) -> None:
    family, base, path = trained
    file = tmp_path / "lokr.safetensors"
    if family.name == "flux2-klein":
        with pytest.raises(UserError, match=r"is a slice of a layer .* --to lora"):
            convert(path, file, "lokr-diffusers")
        return
    convert(path, file, "lokr-diffusers")
    pipeline = load_pipeline(str(base))
    pipeline.load_lora_weights(str(file))
    want = adapted(family, base, path)
    torch.testing.assert_close(output(family, pipeline.transformer), want, rtol=1e-4, atol=1e-5)
    convert(file, tmp_path / "back.safetensors", "krona")
    torch.testing.assert_close(adapted(family, base, tmp_path / "back.safetensors"), want)


def test_lokr_for_comfyui_has_slices_under_the_names_that_it_knows(trained, tmp_path: Path) -> None:
    family, base, _ = trained
    denoiser = family.load_denoiser(str(base))
    names = targets_of("kqvo", family.letters, family.denoiser).names
    denoiser.add_adapter(KronAConfig(a1=8, a2=16, target_modules=list(names)))
    tiny_models.random_factors(denoiser)
    path = save_adapter(denoiser, tmp_path / "adapter.safetensors")
    file = tmp_path / "lokr.safetensors"
    assert convert(path, file, "lokr").relative < 1e-6
    tensors = load_file(file)
    if family.name == "flux2-klein":
        single = "transformer.single_transformer_blocks.1.attn"
        assert tensors[f"{single}.to_k.lokr_w1"].shape == (8, 16)
        whole = torch.kron(tensors[f"{single}.to_out.lokr_w1"], tensors[f"{single}.to_out.lokr_w2"])
        assert whole.shape == (64, 256) and not whole[:, 64:].any()
    convert(file, tmp_path / "back.safetensors", "krona")
    want = adapted(family, base, path)
    torch.testing.assert_close(adapted(family, base, tmp_path / "back.safetensors"), want)


@pytest.mark.parametrize("target", ["peft", "peft-lora", "lora-kohya", "lokr-lycoris"])
def test_targets_without_a_place_for_transformers_are_refused_in_one_line(
    trained, target: str, tmp_path: Path
) -> None:
    family, base, path = trained
    with pytest.raises(UserError, match=f"--to {target} is not written for {family.title}"):
        convert(path, tmp_path / "out.safetensors", target)
    with pytest.raises(UserError, match="is written as a diffusers folder"):
        convert(path, tmp_path / "out.safetensors", "merged", base=base)


def test_the_model_card_of_a_transformer_says_what_works(trained) -> None:
    family, _, path = trained
    text = card_text(path.parent, "a dog")
    assert ("torch.kron" in text) == (family.name == "z-image")
    assert "--to lokr" in text and "lora-kohya" not in text
