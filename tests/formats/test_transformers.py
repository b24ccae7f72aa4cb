"""Adapters of transformer bases in diffusers' formats, in and out, and merged into their bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from peft import OFTConfig
from safetensors.torch import load_file, save_file

from diffusekrona import KronAConfig
from diffusekrona.adapters.file import load_adapter, read_adapter, save_adapter
from diffusekrona.adapters.methods import targets_of
from diffusekrona.bases.families import FAMILIES
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import convert
from diffusekrona.formats.report import Options
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


# A layer of a block with q, k and v in one at the publisher's, and how the files call it.
SHARED = {
    "lora-ai-toolkit": (
        "diffusion_model.",
        {
            "flux2-klein": "double_blocks.0.img_attn.qkv.lora_A.weight",
            "z-image": "layers.0.attention.to_q.lora_A.weight",
        },
    ),
    "lora-kohya": (
        "lora_unet_",
        {
            "flux2-klein": "double_blocks_0_img_attn_qkv.lora_down.weight",
            "z-image": "layers_0_attention_qkv.lora_down.weight",
        },
    ),
}


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("target", SHARED)
def test_names_of_ai_toolkit_and_kohya_are_loaded_by_diffusers_and_read_back(
    trained, target: str, rank: int | None, tmp_path: Path
) -> None:
    family, base, path = trained
    file, again = tmp_path / "theirs.safetensors", tmp_path / "again.safetensors"
    report = convert(path, file, target, options=Options(rank=rank))
    assert rank or report.relative < 1e-5
    head, name = SHARED[target][0], SHARED[target][1][family.name]
    keys = load_file(file).keys()
    assert head + name in keys and all(key.startswith(head) for key in keys)

    convert(path, tmp_path / "lora.safetensors", "lora", options=Options(rank=rank))
    pipeline, plain = load_pipeline(str(base)), load_pipeline(str(base))
    pipeline.load_lora_weights(str(file))
    plain.load_lora_weights(str(tmp_path / "lora.safetensors"))
    want = output(family, plain.transformer)
    torch.testing.assert_close(output(family, pipeline.transformer), want, rtol=1e-4, atol=1e-5)

    convert(file, again, "lora")
    got, expected = (deltas(load_file(p)) for p in (again, tmp_path / "lora.safetensors"))
    for layer, delta in expected.items():
        torch.testing.assert_close(got[layer], delta, rtol=1e-5, atol=1e-6)


def test_lokr_for_ai_toolkit_is_loaded_by_diffusers_or_refused(trained, tmp_path: Path) -> None:
    family, base, path = trained
    file = tmp_path / "lokr.safetensors"
    if family.toolkit_has_publisher_names:
        with pytest.raises(UserError, match=r"is a slice of a layer .* --to lora-ai-toolkit"):
            convert(path, file, "lokr-ai-toolkit")
        return
    convert(path, file, "lokr-ai-toolkit")
    assert "diffusion_model.layers.0.attention.to_q.lokr_w1" in load_file(file)
    pipeline = load_pipeline(str(base))
    pipeline.load_lora_weights(str(file))
    want = adapted(family, base, path)
    torch.testing.assert_close(output(family, pipeline.transformer), want, rtol=1e-4, atol=1e-5)
    convert(file, tmp_path / "back.safetensors", "krona")
    torch.testing.assert_close(adapted(family, base, tmp_path / "back.safetensors"), want)


@pytest.mark.parametrize("head", ["diffusion_model.", ""])
def test_a_lora_is_read_under_other_programs_names(trained, head: str, tmp_path: Path) -> None:
    family, _, path = trained
    convert(path, tmp_path / "lora.safetensors", "lora")
    tensors = load_file(tmp_path / "lora.safetensors")
    renamed = {head + key.removeprefix("transformer."): t for key, t in tensors.items()}
    save_file(renamed, tmp_path / "renamed.safetensors")  # without metadata
    renamed = tmp_path / "renamed.safetensors"
    with pytest.raises(UserError, match=f"no published {family.title} model"):  # it is tiny
        convert(renamed, tmp_path / "back.safetensors", "lora")
    report = convert(renamed, tmp_path / "back.safetensors", "lora", family=family.name)
    assert report.family == family.name
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == tensors.keys()
    for key in (key for key in back if key.endswith("lora_A.weight")):
        up = key.replace("lora_A", "lora_B")
        torch.testing.assert_close(back[up] @ back[key], tensors[up] @ tensors[key])


def low_rank(shapes: dict[str, tuple[int, int]], head: str, ends: tuple[str, str]) -> dict:
    """LoRA tensors of rank 1 for layers of (out, in)."""
    g, (down, up) = torch.Generator().manual_seed(0), ends
    return {
        f"{head}{name}.{end}.weight": torch.randn(*size, generator=g)
        for name, (rows, columns) in shapes.items()
        for end, size in ((down, (1, columns)), (up, (rows, 1)))
    }


def deltas(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ups = {n.partition(".lora_B")[0]: t for n, t in tensors.items() if ".lora_B" in n}
    return {n: up @ tensors[f"{n}.lora_A.weight"] for n, up in ups.items()}


WIDTH = {"flux2-klein": 3072, "z-image": 3840}
PUBLISHERS = {
    "flux2-klein": {
        "double_blocks.4.img_attn.qkv": (3, 1), "double_blocks.4.txt_attn.qkv": (3, 1),
        "double_blocks.0.img_attn.proj": (1, 1), "double_blocks.0.txt_attn.proj": (1, 1),
        "double_blocks.0.img_mlp.0": (6, 1), "double_blocks.0.txt_mlp.2": (1, 3),
        "single_blocks.19.linear1": (9, 1), "single_blocks.19.linear2": (1, 4),
    },
    "z-image": {"layers.29.attention.qkv": (3, 1), "context_refiner.1.attention.out": (1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHERS)
def test_publishers_own_names_are_read_as_diffusers_reads_them(name: str, tmp_path: Path) -> None:
    from diffusers.loaders import lora_conversion_utils as theirs

    shapes = {n: (r * WIDTH[name], c * WIDTH[name]) for n, (r, c) in PUBLISHERS[name].items()}
    tensors = low_rank(shapes, "diffusion_model.", ("lora_A", "lora_B"))
    save_file(tensors, tmp_path / "theirs.safetensors")
    report = convert(tmp_path / "theirs.safetensors", tmp_path / "lora.safetensors", "lora")
    assert report.family == name
    got = deltas(load_file(tmp_path / "lora.safetensors"))
    if name == "flux2-klein":
        want = deltas(theirs._convert_non_diffusers_flux2_lora_to_diffusers(dict(tensors)))
    else:
        whole = deltas(tensors)["diffusion_model.layers.29.attention.qkv"]
        out = deltas(tensors)["diffusion_model.context_refiner.1.attention.out"]
        ends = zip(("to_q", "to_k", "to_v"), whole.chunk(3), strict=True)
        want = {f"transformer.layers.29.attention.{end}": part for end, part in ends}
        want["transformer.context_refiner.1.attention.to_out.0"] = out
    assert got.keys() == want.keys()
    for layer, delta in want.items():
        torch.testing.assert_close(got[layer], delta)


@pytest.mark.parametrize(
    "shapes",
    [
        {"transformer_blocks.18.attn.to_q": (3072, 3072)},  # FLUX.1, which has 19 blocks
        {"single_transformer_blocks.0.attn.to_q": (6144, 6144)},  # FLUX.2-dev
        {"single_blocks.3.linear1": (21504, 3072)},  # FLUX.1, whose feed-forward is narrower
        {"transformer_blocks.0.attn.to_q": (1536, 1536)},  # Stable Diffusion 3
    ],
)
def test_adapters_of_other_bases_with_such_names_are_refused_in_one_line(shapes, tmp_path) -> None:
    save_file(low_rank(shapes, "transformer.", ("lora_A", "lora_B")), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"is a layer of no published FLUX\.2-klein model"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "lora")


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


@pytest.mark.parametrize("target", ["peft", "peft-lora", "lokr-lycoris"])
def test_targets_without_a_place_for_transformers_are_refused_in_one_line(
    trained, target: str, tmp_path: Path
) -> None:
    family, base, path = trained
    with pytest.raises(UserError, match=f"--to {target} is not written for {family.title}"):
        convert(path, tmp_path / "out.safetensors", target)
    with pytest.raises(UserError, match="is written as a diffusers folder"):
        convert(path, tmp_path / "out.safetensors", "merged", base=base)


def test_a_base_of_no_known_family_that_lacks_the_layers_is_refused(trained, tmp_path) -> None:
    family, _, path = trained
    weights = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}
    save_file(weights, tmp_path / "base.safetensors")
    with pytest.raises(UserError, match=f"has no {family.denoiser}"):
        convert(path, tmp_path / "m.safetensors", "merged", base=tmp_path / "base.safetensors")


@pytest.fixture(scope="module")
def sd35(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base of Stable Diffusion 3.5, and an adapter on it."""
    folder = tmp_path_factory.mktemp("sd35")
    base = tiny_models.save_pipeline(folder / "base", "sd35")
    denoiser = FAMILIES["sd35"].load_denoiser(str(base))
    denoiser.add_adapter(KronAConfig(a1=2, a2=2, target_modules=["to_q"]))
    tiny_models.random_factors(denoiser)
    return base, save_adapter(denoiser, folder / "adapter.safetensors")


def test_stable_diffusion_3_is_merged_into_a_folder_only_as_its_card_says(sd35, tmp_path) -> None:
    base, path = sd35
    with pytest.raises(UserError, match=r"Stable Diffusion 3\.5 is written as a diffusers folder"):
        convert(path, tmp_path / "out.safetensors", "merged", base=base)
    assert "adapter.safetensors merged --to merged --base BASE" in card_text(path.parent)
    for _ in range(2):  # its own folder, third text encoder included, is replaced
        assert convert(path, tmp_path / "merged", "merged", base=base).relative < 1e-4


def test_the_model_card_of_a_transformer_says_what_works(trained) -> None:
    family, _, path = trained
    text = card_text(path.parent)
    assert ("torch.kron" in text) == (family.name == "z-image")
    assert "--to lokr" in text and "lora-ai-toolkit" in text and "lora-kohya" not in text


def test_the_model_card_of_a_rotated_transformer_offers_no_conversion(trained, tmp_path) -> None:
    family, base, _ = trained
    denoiser = family.load_denoiser(str(base))
    denoiser.add_adapter(OFTConfig(oft_block_size=8, target_modules=["to_q"]))
    save_adapter(denoiser, tmp_path / "adapter.safetensors")
    assert "--to " not in card_text(tmp_path)
