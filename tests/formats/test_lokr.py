"""LoKr in and out, against other programs' rules and their own loaders."""

from __future__ import annotations

import json
from pathlib import Path

import peers
import pytest
import tiny_models
import torch
from peft import LoKrConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_layer_names import random_lokr

from diffusekrona import KronAConfig, load_adapter, save_adapter
from diffusekrona.adapters.file import read_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import Options, convert

FAMILIES = ["sd1", "sd2", "sdxl"]


def trained(family: str, path: Path, config=None) -> torch.nn.Module:
    unet = peers.plain_unet(family)
    unet.add_adapter(config or KronAConfig(a1=4, a2=16, scale=0.3, factor_pattern={"to_k": (8, 4)}))
    tiny_models.random_factors(unet)
    save_adapter(unet, path, metadata={"instance_prompt": "a sks dog", "base_model": "some/base"})
    return unet


@pytest.mark.parametrize("family", FAMILIES)
def test_out_by_the_rule_of_the_user_interfaces(tmp_path: Path, family) -> None:
    unet = trained(family, tmp_path / "a.safetensors")
    report = convert(tmp_path / "a.safetensors", tmp_path / "dog.safetensors", "lokr")
    plain = peers.plain_unet(family)
    tensors = load_file(tmp_path / "dog.safetensors")
    peers.apply_ui_rule(tensors, peers.ui_stems(plain, sgm=family == "sdxl"))
    want = peers.output(unet, family)
    torch.testing.assert_close(peers.output(plain, family), want, atol=1e-5, rtol=0)
    assert report.relative < 1e-6 and all(t.is_contiguous() for t in tensors.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_metadata_names_the_family(tmp_path: Path, family) -> None:
    trained(family, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "dog.safetensors", "lokr")
    with safe_open(tmp_path / "dog.safetensors", "pt") as file:
        metadata, keys = file.metadata(), list(file.keys())
    version = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[family]
    assert metadata["ss_base_model_version"] == version
    assert metadata["ss_v2"] == str(family == "sd2")
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert json.loads(metadata["ss_network_args"])["algo"] == "lokr"
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "dog"
    assert metadata["modelspec.architecture"].startswith("stable-diffusion-")
    assert metadata["modelspec.trigger_phrase"] == "a sks dog"
    assert {k.rpartition(".")[2] for k in keys} == {"lokr_w1", "lokr_w2", "alpha"}
    down = "input_blocks_1_1" if family == "sdxl" else "down_blocks_0_attentions_0"
    assert f"lora_unet_{down}_transformer_blocks_0_attn1_to_out_0.alpha" in keys


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["lokr", "lokr-diffusers"])
def test_there_and_back(tmp_path: Path, family, target) -> None:
    unet = trained(family, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "l.safetensors", target)
    convert(tmp_path / "l.safetensors", tmp_path / "b.safetensors", "krona")
    back = peers.plain_unet(family)
    load_adapter(back, tmp_path / "b.safetensors")
    torch.testing.assert_close(
        peers.output(back, family), peers.output(unet, family), atol=1e-5, rtol=0
    )


def test_square_factors_load_in_stock_diffusers(tmp_path: Path) -> None:
    config = KronAConfig(a1=8, a2=8, scale=0.7)
    unet = trained("sd1", tmp_path / "a.safetensors", config)
    report = convert(tmp_path / "a.safetensors", tmp_path / "l.safetensors", "lokr-diffusers")
    stock = peers.plain_unet()
    stock.load_lora_adapter(load_file(tmp_path / "l.safetensors"), prefix=None)
    torch.testing.assert_close(peers.output(stock), peers.output(unet), atol=1e-5, rtol=0)
    assert not report.notes
    trained("sd1", tmp_path / "a.safetensors")
    report = convert(tmp_path / "a.safetensors", tmp_path / "l.safetensors", "lokr-diffusers")
    assert any("not square" in note for note in report.notes)


@pytest.mark.parametrize("kind", ["whole", "w2", "both", "w1"])
@pytest.mark.parametrize("sgm", [False, True])
def test_in_whole_or_decomposed(tmp_path: Path, kind, sgm) -> None:
    """delta = kron(w1, w2) * alpha / rank where a factor is a product, alpha ignored where not."""
    family = "sdxl" if sgm else "sd1"
    original = peers.plain_unet(family)
    tensors = {}
    for stem, layer in peers.ui_stems(original, sgm).items():
        if "_attn" not in stem:
            continue
        parts, delta = random_lokr(*layer.weight.shape, kind=kind, alpha=3.0)
        layer.weight.data += delta
        tensors |= {f"{stem}.{k}": v for k, v in parts.items()}
    save_file(tensors, tmp_path / "l.safetensors")
    options = {"base": None, "family": family}
    per_block = {"layers_per_block": "1"}  # as our own files note it; published models have 2
    save_file(tensors, tmp_path / "l.safetensors", metadata=per_block)
    report = convert(tmp_path / "l.safetensors", tmp_path / "a.safetensors", "krona", **options)
    unet = peers.plain_unet(family)
    load_adapter(unet, tmp_path / "a.safetensors")
    want = peers.output(original, family)
    torch.testing.assert_close(peers.output(unet, family), want, atol=1e-5, rtol=0)
    assert report.source == "LoKr"


def test_the_base_tells_how_its_blocks_are_counted(tmp_path: Path, tiny_sdxl: Path) -> None:
    from diffusers import UNet2DConditionModel

    original = UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet").eval()
    tensors = {}
    for stem, layer in peers.ui_stems(original, True).items():
        if stem.endswith("_attn1_to_q"):
            parts, delta = random_lokr(*layer.weight.shape)
            layer.weight.data += delta
            tensors |= {f"{stem}.{k}": v for k, v in parts.items()}
    save_file(tensors, tmp_path / "l.safetensors")
    convert(tmp_path / "l.safetensors", tmp_path / "a.safetensors", "krona", base=tiny_sdxl)
    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet").eval()
    load_adapter(unet, tmp_path / "a.safetensors")
    want = peers.output(original, "sdxl")
    torch.testing.assert_close(peers.output(unet, "sdxl"), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [2, 64])
def test_in_from_peft(tmp_path: Path, rank) -> None:
    """PEFT scales whole factors too; its folder and diffusers' file both say by how much."""
    unet = peers.plain_unet()
    config = LoKrConfig(
        r=rank,
        alpha=5,
        target_modules=["to_q", "to_v"],
        decompose_both=True,
        init_weights=False,
        rank_pattern={"attn2.to_q": 3},
        alpha_pattern={"attn2.to_v": 2},
    )
    unet.add_adapter(config)
    want = peers.output(unet)
    from peft import get_peft_model_state_dict

    folder = tmp_path / "peft"
    config.save_pretrained(folder)
    tensors = {
        f"base_model.model.{k}": v.clone() for k, v in get_peft_model_state_dict(unet).items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    convert(folder, tmp_path / "a.safetensors", "krona", family="sd1")
    back = peers.plain_unet()
    load_adapter(back, tmp_path / "a.safetensors")
    torch.testing.assert_close(peers.output(back), want, atol=1e-5, rtol=0)


def test_in_from_a_file_that_diffusers_saved(tmp_path: Path) -> None:
    unet = peers.plain_unet()
    unet.add_adapter(LoKrConfig(r=64, alpha=16, target_modules=["to_q"], init_weights=False), "one")
    want = peers.output(unet)
    unet.save_lora_adapter(tmp_path, adapter_name="one")
    convert(tmp_path, tmp_path / "out.safetensors", "krona", family="sd1")
    back = peers.plain_unet()
    load_adapter(back, tmp_path / "out.safetensors")
    torch.testing.assert_close(peers.output(back), want, atol=1e-5, rtol=0)


def test_convolutions_go_to_lora_and_merged_but_not_to_krona(
    tmp_path: Path, tiny_sd1: Path
) -> None:
    from diffusers import UNet2DConditionModel

    original = UNet2DConditionModel.from_pretrained(tiny_sd1 / "unet").eval()
    tensors = {}
    for stem, layer in peers.ui_stems(original, False).items():
        if not stem.endswith(("resnets_0_conv1", "proj_in", "attn1_to_q")):
            continue
        kind = "w2" if stem.endswith("conv1") else "whole"
        parts, delta = random_lokr(*layer.weight.shape, kind=kind, alpha=1.0)
        layer.weight.data += delta
        tensors |= {f"{stem}.{k}": v for k, v in parts.items()}
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(UserError, match=r"convolutions.*unet\.\S+.*--drop_convolutions"):
        convert(tmp_path / "l.safetensors", tmp_path / "a.safetensors", "krona", family="sd1")
    drop = Options(drop_convolutions=True)
    report = convert(
        tmp_path / "l.safetensors", tmp_path / "a.safetensors", "krona", family="sd1", options=drop
    )
    assert any("left out" in n and "resnets.0.conv1" in n for n in report.notes)
    convert(tmp_path / "l.safetensors", tmp_path / "m.safetensors", "lora", family="sd1")
    want = peers.output(original)
    unet = UNet2DConditionModel.from_pretrained(tiny_sd1 / "unet").eval()
    unet.load_lora_adapter(load_file(tmp_path / "m.safetensors"), prefix="unet")
    torch.testing.assert_close(peers.output(unet), want, atol=1e-5, rtol=0)
    convert(tmp_path / "l.safetensors", tmp_path / "model", "merged", base=tiny_sd1)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "model" / "unet").eval()
    torch.testing.assert_close(peers.output(unet), want, atol=1e-5, rtol=0)
    convert(tmp_path / "l.safetensors", tmp_path / "k.safetensors", "lokr", family="sd1")
    unet = UNet2DConditionModel.from_pretrained(tiny_sd1 / "unet").eval()
    peers.apply_ui_rule(load_file(tmp_path / "k.safetensors"), peers.ui_stems(unet, False))
    torch.testing.assert_close(peers.output(unet), want, atol=1e-5, rtol=0)


FACTORS = {"a1": 4, "a2": 8}


@pytest.mark.parametrize("flag", ["drop_convolutions", "skip_unsupported"])
@pytest.mark.parametrize(
    ("target", "factors"),
    [("lokr", FACTORS), ("lokr-diffusers", FACTORS), ("lokr-lycoris", FACTORS), ("peft-lora", {})],
)
def test_convolutions_are_left_out_where_they_have_no_place(
    tmp_path: Path, target: str, factors, flag: str
) -> None:
    unet = peers.plain_unet()
    tensors = {}
    for stem, layer in peers.ui_stems(unet, False).items():
        if stem.endswith(("mid_block_resnets_0_conv1", "attn1_to_q")):
            out, *inner = layer.weight.shape
            down, up = torch.randn(2, *inner), torch.randn(out, 2, *(1 for _ in inner[1:]))
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    save_file(tensors, tmp_path / "l.safetensors")
    given = (tmp_path / "l.safetensors", tmp_path / "out", target)
    with pytest.raises(UserError, match=r"convolutions, .*--(drop_conv|skip_unsup)"):
        convert(*given, family="sd1", options=Options(**factors))
    report = convert(*given, family="sd1", options=Options(**factors, **{flag: True}))
    assert any("left out 1 convolutions" in note for note in report.notes)
    alone = {key: tensor for key, tensor in tensors.items() if "conv1" in key}
    save_file(alone, tmp_path / "l.safetensors")
    with pytest.raises(UserError, match=r"can hold no layer|hold, the first .*: write LoRA"):
        convert(*given, family="sd1", options=Options(**factors, **{flag: True}))


@pytest.mark.parametrize("target", ["krona", "peft"])
def test_terms_stay_as_many_under_other_factors(tmp_path: Path, target: str) -> None:
    trained("sd1", tmp_path / "a.safetensors", KronAConfig(a1=4, a2=16, terms=2))
    report = convert(tmp_path / "a.safetensors", tmp_path / "out", target, options=Options(a1=4))
    assert read_adapter(tmp_path / "out").configs["unet"].terms == 2
    assert report.relative < 1e-4


def test_terms_have_no_place(tmp_path: Path) -> None:
    trained("sd1", tmp_path / "a.safetensors", KronAConfig(a1=4, a2=16, terms=2))
    with pytest.raises(UserError, match=r"sum of 2 Kronecker products.*--to lora or --to merged"):
        convert(tmp_path / "a.safetensors", tmp_path / "l.safetensors", "lokr")
    nearest = Options(a1=4, a2=16)
    report = convert(
        tmp_path / "a.safetensors", tmp_path / "l.safetensors", "lokr", options=nearest
    )
    assert 0.1 < report.relative < 1 and len(report.errors) == report.layers


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t, s: t.update({f"{s}.lokr_t2": torch.zeros(2, 2, 3, 3)}),
            r"lokr_t2 \(2.* fits no",
        ),
        (lambda t, s: t.update({f"{s}.dora_scale": torch.ones(64, 1)}), "DoRA.*add --base"),
        (lambda t, s: t.update({f"{s}.dora_scale": torch.ones(9, 1)}), "DoRA magnitude of .* fits"),
        (lambda t, s: t.pop(f"{s}.lokr_w2"), "without a whole lokr_w2"),
        (lambda t, s: t.update({f"{s}.lokr_w1_a": torch.ones(2, 2)}), "without a whole lokr_w1"),
        (lambda t, s: t.update({f"{s}.lokr_w1": torch.ones(2)}), r"lokr_w1 of shape \(2,\)"),
        (lambda t, s: t.update({f"{s}.lokr_w1": torch.ones(2, 2).int()}), "lokr_w1 of shape"),
        (lambda t, s: t[f"{s}.lokr_w1"].fill_(torch.nan), "lokr_w1 holds NaN"),
        (lambda t, s: t[f"{s}.lokr_w2"].fill_(torch.inf), "lokr_w2 holds NaN or inf"),
        (lambda t, s: t.update({"lora_unet_../../x.lokr_w1": torch.ones(2, 2)}), r"lora_unet_\.\."),
        (lambda t, s: t.update({"conv_in.weight": torch.ones(2, 2)}), "conv_in.weight is not part"),
        (lambda t, s: t.update({f"{s}.alpha": torch.ones(3)}), "alpha is not a single number"),
    ],
)
def test_refused_with_the_key(tmp_path: Path, change, says) -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{stem}.lokr_w1": torch.ones(2, 2), f"{stem}.lokr_w2": torch.ones(32, 32)}
    change(tensors, stem)
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(UserError, match=says):
        convert(
            tmp_path / "l.safetensors", tmp_path / "a.safetensors", "krona", source_format="lokr"
        )
    assert not (tmp_path / "a.safetensors").exists()
