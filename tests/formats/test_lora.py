"""LoRA out of Kronecker adapters, through stock loaders; LoRA in; truncation."""

from __future__ import annotations

import json
from pathlib import Path

import peers
import pytest
import tiny_models
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusekrona import KronAConfig, load_adapter, save_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import Options, convert

CONFIGS = {
    "pattern": {"a1": 4, "a2": 16, "scale": 0.5, "factor_pattern": {"to_k": (8, 32)}},
    "terms": {"a1": 8, "a2": 16, "terms": 3},
    "interleaved": {"a1": 8, "a2": 4, "terms": 2, "output_order": "interleaved", "scale": -2.0},
    "wide": {"a1": 32, "a2": 32, "terms": 9},  # more terms than the rank has room for
}


def trained(family: str, path: Path, which: str = "pattern", **more) -> torch.nn.Module:
    unet = peers.plain_unet(family)
    unet.add_adapter(KronAConfig(**{**CONFIGS[which], **more}))
    tiny_models.random_factors(unet)
    save_adapter(unet, path)
    return unet


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("target", ["lora", "lora-kohya"])
def test_stock_pipelines_load_it(tmp_path: Path, request, family, target) -> None:
    """UNet and text encoders, with ranks that differ between layers, nothing of ours involved."""
    folder = request.getfixturevalue({"sd2": "tiny_sd2_v"}.get(family, f"tiny_{family}"))
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.unet.add_adapter(KronAConfig(**CONFIGS["pattern"]))
    encoders = [n for n in ("text_encoder", "text_encoder_2") if getattr(pipe, n, None)]
    for name in encoders:
        text = KronAConfig(a1=8, a2=8, target_modules=["q_proj", "out_proj"], scale=0.1)
        getattr(pipe, name).add_adapter(text)
        tiny_models.random_factors(getattr(pipe, name))
    tiny_models.random_factors(pipe.unet)
    save_adapter(pipe, tmp_path / "a.safetensors")
    report = convert(tmp_path / "a.safetensors", tmp_path / "lora.safetensors", target)
    assert report.relative < 1e-6
    stock = DiffusionPipeline.from_pretrained(folder)
    stock.load_lora_weights(tmp_path / "lora.safetensors")
    want = peers.output(pipe.unet, family)
    torch.testing.assert_close(peers.output(stock.unet, family), want, atol=1e-5, rtol=0)
    ids = torch.arange(8)[None]
    for name in encoders:
        with torch.no_grad():
            want, have = getattr(pipe, name)(ids)[0], getattr(stock, name)(ids)[0]
        torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", CONFIGS)
def test_every_kind_of_adapter_is_exact(tmp_path: Path, which) -> None:
    unet = trained("sd1", tmp_path / "a.safetensors", which)
    convert(tmp_path / "a.safetensors", tmp_path / "lora.safetensors", "lora")
    tensors = load_file(tmp_path / "lora.safetensors")
    stock = peers.plain_unet()
    stock.load_lora_adapter(tensors, prefix="unet")
    torch.testing.assert_close(peers.output(stock), peers.output(unet), atol=2e-5, rtol=1e-5)
    for key, tensor in tensors.items():
        if key.endswith("lora_A.weight") and which != "wide":
            layer = unet.get_submodule(key.removesuffix(".lora_A.weight").removeprefix("unet."))
            a, b = layer.krona_a["default"], layer.krona_b["default"]
            terms = CONFIGS[which].get("terms", 1)
            rank = min(a.shape[-2:]) * min(b.shape[-2:])
            assert tensor.shape[0] == min(terms * rank, layer.in_features, layer.out_features)


def test_a_factor_that_lacks_rank_makes_a_smaller_lora(tmp_path: Path) -> None:
    unet = trained("sd1", tmp_path / "a.safetensors")
    with torch.no_grad():
        for name, factor in unet.named_parameters():
            if "krona_b" in name:
                factor.copy_(factor[:, :1] @ factor[:1])
    save_adapter(unet, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "lora.safetensors", "lora")
    ranks = {t.shape[0] for k, t in load_file(tmp_path / "lora.safetensors").items() if "_A" in k}
    assert ranks == {4, 8}
    stock = peers.plain_unet()
    stock.load_lora_adapter(load_file(tmp_path / "lora.safetensors"), prefix="unet")
    torch.testing.assert_close(peers.output(stock), peers.output(unet), atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["pattern", "terms", "interleaved"])
def test_truncated_to_the_best_of_that_rank(tmp_path: Path, which) -> None:
    """By Eckart and Young the error is the root of the squared singular values left out."""
    trained("sd1", tmp_path / "a.safetensors", which)
    report = convert(
        tmp_path / "a.safetensors", tmp_path / "l.safetensors", "lora", options=Options(rank=5)
    )
    tensors = load_file(tmp_path / "l.safetensors")
    unet = peers.plain_unet()
    load_adapter(unet, tmp_path / "a.safetensors")
    assert len(report.errors) == report.layers
    for name, error in report.errors.items():
        layer = unet.get_submodule(name.removeprefix("unet."))
        delta = layer.get_delta_weight("default").detach().double()
        values = torch.linalg.svdvals(delta)
        best = (values[5:].norm() / values.norm()).item()
        assert error == pytest.approx(best, abs=1e-5)
        assert tensors[f"{name}.lora_A.weight"].shape[0] <= 5
    assert any("error" in line for line in report.lines())


def test_half_precision_keeps_the_factors_bit_for_bit(tmp_path: Path) -> None:
    unet = trained("sd1", tmp_path / "a.safetensors", scale=1.0)
    save_adapter(unet, tmp_path / "h.safetensors", dtype=torch.float16)
    report = convert(tmp_path / "h.safetensors", tmp_path / "l.safetensors", "lora")
    dtypes = {t.dtype for t in load_file(tmp_path / "l.safetensors").values()}
    assert dtypes == {torch.float16} and report.largest == 0


def test_too_large_for_fp16_is_refused(tmp_path: Path) -> None:
    unet = trained("sd1", tmp_path / "a.safetensors")
    next(p for n, p in unet.named_parameters() if "krona_a" in n).data.fill_(1e6)
    save_adapter(unet, tmp_path / "a.safetensors")
    half = Options(dtype=torch.float16)
    with pytest.raises(UserError, match=r"krona_a has numbers too large.*fp32"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "krona", options=half)
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("style", ["diffusers", "old", "kohya", "linear_layer"])
def test_in_by_every_naming(tmp_path: Path, style) -> None:
    unet = peers.plain_unet()
    tensors, generator = {}, torch.Generator().manual_seed(0)
    for name, layer in peers.projections(unet, "qo").items():
        down = torch.randn(4, layer.in_features, generator=generator) * 0.1
        up = torch.randn(layer.out_features, 4, generator=generator) * 0.1
        scale = 2.0 / 4 if style == "kohya" else 1.0
        layer.weight.data += scale * up @ down
        old = name.replace(".to_", ".processor.to_").removesuffix(".0")
        pair, stem = {
            "diffusers": ((".lora_A.weight", ".lora_B.weight"), f"unet.{name}"),
            "old": (("_lora.down.weight", "_lora.up.weight"), f"unet.{old}"),
            "kohya": (
                (".lora_down.weight", ".lora_up.weight"),
                "lora_unet_" + name.replace(".", "_"),
            ),
            "linear_layer": (
                (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
                f"unet.{name}",
            ),
        }[style]
        tensors |= {stem + pair[0]: down, stem + pair[1]: up}
        if style == "kohya":
            tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "l.safetensors")
    report = convert(tmp_path / "l.safetensors", tmp_path / "m.safetensors", "lora", family="sd1")
    assert report.layers == 16
    stock = peers.plain_unet()
    stock.load_lora_adapter(load_file(tmp_path / "m.safetensors"), prefix="unet")
    torch.testing.assert_close(peers.output(stock), peers.output(unet), atol=1e-5, rtol=0)


def test_alphas_that_diffusers_noted_are_honoured(tmp_path: Path) -> None:
    unet = peers.plain_unet()
    config = LoraConfig(
        r=4, lora_alpha=10, target_modules=["to_q", "to_v"], alpha_pattern={"attn1.to_q": 3},
        rank_pattern={"attn2.to_v": 2}, init_lora_weights=False,
    )  # fmt: skip
    unet.add_adapter(config, "one")
    want = peers.output(unet)
    unet.save_lora_adapter(tmp_path, adapter_name="one")
    convert(tmp_path, tmp_path / "out.safetensors", "lora-kohya", family="sd1")
    pipe_unet = peers.plain_unet()
    tensors = load_file(tmp_path / "out.safetensors")
    for stem, layer in peers.ui_stems(pipe_unet, False).items():
        if f"{stem}.lora_up.weight" in tensors:
            up, down = tensors[f"{stem}.lora_up.weight"], tensors[f"{stem}.lora_down.weight"]
            layer.weight.data += tensors[f"{stem}.alpha"] / down.shape[0] * up @ down
    torch.testing.assert_close(peers.output(pipe_unet), want, atol=1e-5, rtol=0)


def test_lora_becomes_the_nearest_kronecker_adapter(tmp_path: Path) -> None:
    unet = peers.plain_unet()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "one")
    unet.save_lora_adapter(tmp_path, adapter_name="one")
    errors = []
    for terms in (1, 4, 16):
        options = Options(a1=4, a2=8, terms=terms)
        report = convert(
            tmp_path, tmp_path / f"out{terms}.st", "krona", family="sd1", options=options
        )
        errors.append(report.relative)
        assert set(report.errors) and all(0 <= e <= 1 for e in report.errors.values())
    assert errors[0] > errors[1] > errors[2]
    back = peers.plain_unet()
    (tmp_path / "out16.st").rename(tmp_path / "16.safetensors")
    load_adapter(back, tmp_path / "16.safetensors")


def test_metadata(tmp_path: Path) -> None:
    trained("sdxl", tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "l.safetensors", "lora-kohya")
    with safe_open(tmp_path / "l.safetensors", "pt") as file:
        metadata = file.metadata()
        alphas = {file.get_tensor(k).item() for k in file.keys() if k.endswith("alpha")}  # noqa: SIM118
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert alphas == {float(metadata["ss_network_alpha"])}  # one: diffusers reads no more
    convert(tmp_path / "a.safetensors", tmp_path / "d.safetensors", "lora")
    with safe_open(tmp_path / "d.safetensors", "pt") as file:
        noted = json.loads(file.metadata()["lora_adapter_metadata"])
    assert noted["unet.r"] == noted["unet.lora_alpha"] and noted["unet.rank_pattern"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, s: t.pop(f"{s}.lora_up.weight"), "holds down of .* without its up"),
        (lambda t, s: t.update({f"{s}.lora_up.weight": torch.ones(64, 3)}), "differ in rank"),
        (
            lambda t, s: t.update({f"{s}.lora_mid.weight": torch.ones(2, 2)}),
            "lora_mid of .* fits no",
        ),
        (lambda t, s: t.update({f"{s}.dora_scale": torch.ones(64)}), "DoRA.*add --base"),
        (lambda t, s: t.update({"unet.x.lora_A.weight": torch.ones(2, 2)}), r"unet\.x"),
        (lambda t, s: t[f"{s}.lora_up.weight"].fill_(torch.nan), "lora_up.weight holds NaN"),
    ],
)
def test_refused_with_the_key(tmp_path: Path, change, says) -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{stem}.lora_down.weight": torch.ones(2, 64), f"{stem}.alpha": torch.tensor(1.0)}
    tensors[f"{stem}.lora_up.weight"] = torch.ones(64, 2)
    change(tensors, stem)
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(UserError, match=says):
        convert(
            tmp_path / "l.safetensors", tmp_path / "m.safetensors", "lora", source_format="lora"
        )
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_names_that_only_transformers_have_are_refused_with_a_way_out(kind, tmp_path: Path) -> None:
    trained("sd1", tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=rf"for FLUX.2-klein and Z-Image: write --to {kind}"):
        convert(tmp_path / "a.safetensors", tmp_path / "l.safetensors", f"{kind}-ai-toolkit")
