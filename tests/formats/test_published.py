"""Checkpoints of the published code, against an independent writing of its layer."""

from __future__ import annotations

from pathlib import Path

import peers
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from diffusekrona import load_adapter
from diffusekrona.adapters.file import read_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import convert


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("letters", ["kqvo", "kv", "o"])
def test_the_outputs_are_those_of_the_published_code(tmp_path: Path, family, letters) -> None:
    source, original = peers.published_checkpoint(
        peers.plain_unet(family), tmp_path / "pytorch_lora_weights.safetensors", letters
    )
    report = convert(source, tmp_path / "a.safetensors", "krona", family=family)
    ours = peers.plain_unet(family)
    load_adapter(ours, tmp_path / "a.safetensors")
    want = peers.output(original, family)
    torch.testing.assert_close(peers.output(ours, family), want, atol=1e-5, rtol=0)
    assert (want - peers.output(peers.plain_unet(family), family)).abs().max() > 1e-3
    assert report.largest == 0 and report.layers == len(letters) * 8
    assert "published" in report.source


@pytest.mark.parametrize("factors", [(16, 8), (2, 4), (1, 64), (64, 1), (8, 8)])
def test_every_pair_of_factors(tmp_path: Path, factors) -> None:
    """(8, 8) on 64x64 gives four equal sides: its keys and shapes are those of a LoRA as well."""
    source, original = peers.published_checkpoint(
        peers.plain_unet(), tmp_path / "p.safetensors", factors=factors
    )
    convert(source, tmp_path / "a.safetensors", "krona", family="sd1")
    ours = peers.plain_unet()
    load_adapter(ours, tmp_path / "a.safetensors")
    torch.testing.assert_close(peers.output(ours), peers.output(original), atol=1e-5, rtol=0)


def test_the_row_order_is_kept_and_named(tmp_path: Path) -> None:
    source, _ = peers.published_checkpoint(peers.plain_unet(), tmp_path / "p.safetensors")
    convert(source, tmp_path / "a.safetensors", "krona", family="sd1")
    config = read_adapter(tmp_path / "a.safetensors").configs["unet"]
    assert config.output_order == "interleaved"
    assert (config.a1, config.a2) == (8, 16)  # ours: a1 divides out_features, as theirs does


def test_lokr_is_refused_with_what_to_do_and_exact_where_rows_allow(tmp_path: Path) -> None:
    source, _ = peers.published_checkpoint(peers.plain_unet(), tmp_path / "p.safetensors")
    with pytest.raises(UserError, match=r"interleaved rows .*--to lora or --to merged"):
        convert(source, tmp_path / "l.safetensors", "lokr", family="sd1")
    assert not (tmp_path / "l.safetensors").exists()
    for factors in [(8, 1), (1, 8)]:
        source, original = peers.published_checkpoint(
            peers.plain_unet(), tmp_path / "p.safetensors", factors=factors
        )
        convert(source, tmp_path / "l.safetensors", "lokr", family="sd1")
        unet = peers.plain_unet()
        peers.apply_ui_rule(load_file(tmp_path / "l.safetensors"), peers.ui_stems(unet, False))
        torch.testing.assert_close(peers.output(unet), peers.output(original), atol=1e-5, rtol=0)


def published_lora(unet, path: Path, rank: int = 4) -> Path:
    """A LoRA file of the published code: the same keys, down (r, in), up (out, r)."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, layer in peers.projections(unet).items():
        block, _, which = name.removesuffix(".0").rpartition(".")
        stem = f"unet.{block}.processor.{which}_lora"
        tensors[f"{stem}.down.weight"] = 0.1 * torch.randn(
            rank, layer.in_features, generator=generator
        )
        tensors[f"{stem}.up.weight"] = 0.1 * torch.randn(
            layer.out_features, rank, generator=generator
        )
        layer.weight.data += tensors[f"{stem}.up.weight"] @ tensors[f"{stem}.down.weight"]
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("rank", [4, 8, 64])
def test_lora_files_of_that_code(tmp_path: Path, rank) -> None:
    original = peers.plain_unet()
    source = published_lora(original, tmp_path / "pytorch_lora_weights.safetensors", rank)
    report = convert(source, tmp_path / "lora.safetensors", "lora", family="sd1")
    assert "LoRA" in report.source and report.largest == 0
    unet = peers.plain_unet()
    unet.load_lora_adapter(load_file(tmp_path / "lora.safetensors"), prefix="unet")
    torch.testing.assert_close(peers.output(unet), peers.output(original), atol=1e-4, rtol=1e-5)


def test_a_folder_is_searched_for_its_usual_name(tmp_path: Path) -> None:
    peers.published_checkpoint(peers.plain_unet(), tmp_path / "pytorch_lora_weights.safetensors")
    report = convert(tmp_path, tmp_path / "out" / "a.safetensors", "krona", family="sd1")
    assert report.layers == 32


def test_a_damaged_layer_is_named(tmp_path: Path) -> None:
    source, _ = peers.published_checkpoint(peers.plain_unet(), tmp_path / "p.safetensors")
    tensors = load_file(source)
    key = next(k for k in tensors if "attn1.processor.to_q_lora.up" in k)
    tensors[key] = tensors[key][:-1].contiguous()
    save_file(tensors, source)
    with pytest.raises(UserError, match=r"attn1\.processor\.to_q.*do not make a weight"):
        convert(source, tmp_path / "a.safetensors", "krona")
    del tensors[key]
    save_file(tensors, source)
    with pytest.raises(UserError, match=r"to_q_lora\.down\.weight without its up"):
        convert(source, tmp_path / "a.safetensors", "krona")
    assert not (tmp_path / "a.safetensors").exists()


def test_the_families_of_published_models_are_recognised(tmp_path: Path) -> None:
    for width, family in [(768, "sd1"), (1024, "sd2"), (2048, "sdxl")]:
        stem = "unet.mid_block.attentions.0.transformer_blocks.0.attn{}.processor.to_k_lora"
        tensors = {}
        for number, columns in [(1, 1280), (2, width)]:
            tensors[stem.format(number) + ".down.weight"] = torch.randn(8, 64)
            tensors[stem.format(number) + ".up.weight"] = torch.randn(20, columns // 8)
        save_file(tensors, tmp_path / "p.safetensors")
        report = convert(tmp_path / "p.safetensors", tmp_path / "a.safetensors", "krona")
        assert report.family == family == read_adapter(tmp_path / "a.safetensors").base_family


def test_trains_on(tmp_path: Path) -> None:
    source, _ = peers.published_checkpoint(peers.plain_unet(), tmp_path / "p.safetensors")
    convert(source, tmp_path / "a.safetensors", "krona", family="sd1")
    unet = peers.plain_unet()
    load_adapter(unet, tmp_path / "a.safetensors")
    trained = [p for n, p in unet.named_parameters() if "krona_" in n]
    optimizer = torch.optim.SGD([p.requires_grad_(True) for p in trained], lr=1.0)
    losses = []
    for _ in range(2):
        loss = unet(**tiny_models.unet_inputs()).sample.square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad.abs().sum() > 0 for p in trained) and losses[1] < losses[0]
