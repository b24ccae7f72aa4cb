"""The memory estimate against what torch really allocates, and the ways to need less."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from peft import LoraConfig
from PIL import Image
from random_models import write_configs
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile

from diffusekrona import KronAConfig
from diffusekrona.adapters.layers import add_adapters
from diffusekrona.bases import quantisation
from diffusekrona.bases.families import FAMILIES
from diffusekrona.bases.meta import build_empty
from diffusekrona.bases.settings import BaseSettings
from diffusekrona.common.errors import UserError
from diffusekrona.train_dreambooth import main
from diffusekrona.training import gradient_checkpointing, settings
from diffusekrona.training.losses import dreambooth_loss
from diffusekrona.training.memory import count, estimate, trace
from diffusekrona.training.resolved_run import family_defaults, resolve_run
from diffusekrona.training.settings import parse_settings

CONFIG = KronAConfig(a1=4, a2=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for colour in ("red", "green"):
        Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
    return folder


def flags(base: Path, pictures: Path, out: Path, *more: str) -> list[str]:
    return [
        "--pretrained_model_name_or_path", str(base),
        "--instance_data_dir", str(pictures),
        "--instance_prompt", "a sks dog",
        "--output_dir", str(out),
        "--a2", "16",
        "--max_train_steps", "2",
        "--report_to", "none",
        "--cpu",
        *more,
    ]  # fmt: skip


def allocated(run: Callable[[], Any], folder: Path) -> int:
    """The most bytes that torch's CPU allocator had given out at once while `run` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    del kept
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    live = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


def deep_unet(family: str) -> Any:
    """A tiny UNet with three equal transformer blocks in a row, as SDXL has."""
    config = dict(tiny_models.unet(family).config) | {"transformer_layers_per_block": 3}
    return tiny_models.UNet2DConditionModel.from_config(config)


def test_live_bytes_counts_what_is_held_at_once() -> None:
    known = torch.empty(100)
    with trace.LiveBytes([known]) as tracker:
        a = torch.empty(1000)
        b = a.view(10, 100)[2:]  # a view takes nothing
        c = known * 2
        del a, b
        d = torch.empty(50)
    assert tracker.peak == 4 * (1000 + 100)
    assert tracker.live == c.nbytes + d.nbytes


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("checkpoints", ["none", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_estimate_is_what_a_step_allocates(family, checkpoints, dtype, tmp_path: Path) -> None:
    unet = deep_unet(family).to(dtype)
    add_adapters({"unet": CONFIG}, {"unet": unet}, "default")
    if checkpoints == "device":
        unet.enable_gradient_checkpointing()
    unet.train()

    def step() -> None:
        inputs = tiny_models.unet_inputs(family, batch=8)
        text = torch.randn(8, 77, inputs["encoder_hidden_states"].shape[-1])
        inputs["encoder_hidden_states"] = text
        cast = torch.utils._pytree.tree_map(
            lambda t: t.to(dtype) if t.is_floating_point() else t, inputs
        )
        dreambooth_loss(unet(**cast).sample, torch.randn(8, 4, 16, 16)).backward()

    step()  # gradients are there from the second one on
    measured = allocated(step, tmp_path)
    shapes = build_empty("UNet2DConditionModel", deep_unet(family).config, dtype)
    add_adapters({"unet": CONFIG}, {"unet": shapes}, "default")
    for parameter in shapes.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    estimated = trace.step_peak(FAMILIES[family], {"unet": shapes}, 8, 16, checkpoints)
    assert estimated == pytest.approx(measured, rel=0.1)


def test_checkpointing_needs_less_and_on_the_host_least(tiny_sdxl) -> None:
    peaks = []
    for checkpoints in ("none", "device", "host"):
        unet = build_empty("UNet2DConditionModel", deep_unet("sdxl").config, torch.float32)
        add_adapters({"unet": CONFIG}, {"unet": unet}, "default")
        peaks.append(trace.step_peak(FAMILIES["sdxl"], {"unet": unet}, 1, 16, checkpoints))
    assert peaks[0] > peaks[1] > peaks[2]


@pytest.mark.parametrize("base", ["tiny_sd1", "tiny_sdxl"])
@pytest.mark.parametrize("more", [[], ["--train_text_encoder", "--low_vram"]])
def test_estimate_is_printed_and_nothing_written(
    request, base, more, pictures, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    arguments = flags(request.getfixturevalue(base), pictures, out, *more)
    assert main([*arguments, "--dry_run", "--validation_prompt", "a dog"]) == 0
    reported = capsys.readouterr().out
    assert "GiB, in " in reported and "validation pictures" in reported
    assert not out.exists()


def planned(base: str, *more: str) -> tuple[Any, Any]:
    required = ["--instance_data_dir", ".", "--output_dir", "unused", "--instance_prompt", "a dog"]
    settings = parse_settings(["--pretrained_model_name_or_path", base, *required, *more])
    return settings, resolve_run(settings.base, settings.adapter, settings.data.resolution)


BF16, DRAW = ["--mixed_precision", "bf16"], ["--validation_prompt", "a dog"]
CHECKPOINTS = "--gradient_checkpointing"
PRIOR = ["--with_prior_preservation", "--class_data_dir", "class", "--class_prompt", "a dog"]


@pytest.mark.parametrize(
    ("base", "more", "weights", "encoding", "drawing", "step"),
    [
        ("sd15", ["--quantize_base", "int8", *BF16, CHECKPOINTS], 1477.7, 674.2, 805.4, 231.2),
        ("sdxl", ["--low_vram", "--quantize_base", "nf4"], 1893.6, 2696.9, 816.6, 267.5),
    ],
)
def test_sizes_of_the_published_bases(
    base, more, weights, encoding, drawing, step, tmp_path: Path
) -> None:
    """Millions of bytes, counted before with torch 2.13 and diffusers 0.42."""
    folder = str(write_configs(tmp_path / base, base))
    args, resolved = planned(folder, *more)
    groups = (args.optimisation, args.precision, args.prior)
    sizes = count.count(args.base, *groups, resolved)
    assert sizes.base / 1e6 == pytest.approx(weights, abs=0.1)
    counted = [size / 1e6 for size in (sizes.encoding, sizes.drawing, sizes.step)]
    assert counted == pytest.approx([encoding, drawing, step], rel=0.02)
    phases = estimate.phases(*groups, args.validation, resolved, sizes)
    assert phases[-1].parts["factors"] == 4 * resolved.parameters


def test_text_encoders_with_few_places_are_counted() -> None:
    args, resolved = planned("pocket", "--train_text_encoder")
    groups = (args.optimisation, args.precision, args.prior)
    assert count.count(args.base, *groups, resolved).step > 0


def test_class_pictures_are_drawn_by_the_whole_base() -> None:
    sizes = count.Sizes(1, 20, 300, 0, 4000, 0, 0, 50000)
    prior = ["--with_prior_preservation", "--class_data_dir", "x", "--class_prompt", "a"]
    for more, peak in (([], 50000 + 4000 + 20 + 1), (["--low_vram"], 50000 + 4000)):
        args, resolved = planned("pocket", *prior, *more)
        groups = (args.optimisation, args.precision, args.prior, args.validation)
        first, *_ = estimate.phases(*groups, resolved, sizes)
        assert (first.name, first.peak) == ("class pictures", peak)


def test_low_vram_is_a_recipe_that_gives_way() -> None:
    required = ["--pretrained_model_name_or_path", "b", "--instance_data_dir", ".", "--output_dir"]
    plain = parse_settings([*required, "o"]).precision
    assert not (plain.gradient_checkpointing or plain.vae_tiling)
    low = parse_settings([*required, "o", "--low_vram"]).precision
    assert low.gradient_checkpointing and low.cpu_offload_checkpointing and low.vae_tiling
    assert low.mixed_precision == "bf16"
    own = ["--mixed_precision", "fp16", "--no-cpu_offload_checkpointing", "--quantize_base", "none"]
    mine = parse_settings([*required, "o", "--low_vram", *own]).precision
    assert (mine.mixed_precision, mine.cpu_offload_checkpointing) == ("fp16", False)
    assert mine.quantize_base == "none" and mine.gradient_checkpointing


def test_low_vram_takes_fp16_where_the_card_has_no_bf16(monkeypatch) -> None:
    required = ["--pretrained_model_name_or_path", "b", "--instance_data_dir", ".", "--output_dir"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert parse_settings([*required, "o", "--low_vram"]).precision.mixed_precision == "fp16"


@pytest.mark.parametrize("base", ["tiny_sd1", "tiny_sdxl"])
def test_low_vram_trains_and_draws(request, base, pictures, tmp_path: Path) -> None:
    folder = request.getfixturevalue(base)
    more = ["--low_vram", "--validation_prompt", "a dog", "--validation_inference_steps", "2"]
    assert main(flags(folder, pictures, tmp_path / "out", *more)) == 0
    tensors = load_file(tmp_path / "out" / "adapter.safetensors")
    assert any(t.abs().max() > 0 for name, t in tensors.items() if "krona_b" in name)
    assert (tmp_path / "out" / "validation" / "grid.png").is_file()


def test_checkpoints_on_the_host_are_needed_and_change_nothing() -> None:
    packed = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tensor)
        return tensor

    def hooks() -> Any:
        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    gradients = []
    for how in (None, gradient_checkpointing.checkpoints_on_host(torch.device("cpu")), hooks):
        unet = tiny_models.unet("sd1")
        torch.manual_seed(0)
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        unet.add_adapter(CONFIG)
        tiny_models.random_factors(unet)
        if how is not None:
            run = gradient_checkpointing.checkpoint_with(how) if how is hooks else how
            unet.enable_gradient_checkpointing(run)
        unet.train()(**tiny_models.unet_inputs()).sample.square().mean().backward()
        gradients.append([p.grad for p in unet.parameters() if p.requires_grad])
    for plain, host, hooked in zip(*gradients, strict=True):
        assert torch.equal(plain, host) and torch.equal(plain, hooked)
    blocks = sum(type(m).__name__ == "BasicTransformerBlock" for m in unet.modules())
    assert len(packed) >= blocks  # each block's input, and not what is inside of the blocks
    assert max(t.numel() for t in packed) <= 2 * 128 * 16 * 16 * 2


def test_a_missing_library_is_one_line(tiny_sd1, pictures, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(quantisation, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--quantize_base nf4 needs bitsandbytes"):
        main(flags(tiny_sd1, pictures, tmp_path / "out", "--quantize_base", "nf4"))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("adapter", ["krona", "lora"])
def test_training_over_a_quantised_base(kind, adapter, tiny_sdxl, pictures, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    more = ["--quantize_base", kind, "--low_vram", "--adapter_type", adapter]
    more += ["--validation_prompt", "a dog", "--validation_inference_steps", "2"]
    assert main(flags(tiny_sdxl, pictures, tmp_path / "out", *more)) == 0
    tensors = load_file(tmp_path / "out" / "adapter.safetensors")
    second = "krona_b" if adapter == "krona" else "lora_B"
    assert all(t.isfinite().all() for t in tensors.values())
    assert any(t.abs().max() > 0 for name, t in tensors.items() if second in name)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_over_a_quantised_layer(kind) -> None:
    pytest.importorskip("bitsandbytes")
    unet = quantisation.quantise(tiny_models.unet("sd1").requires_grad_(False), kind).to("cpu")
    name = next(iter(quantisation.quantisable(unet)))
    layer = unet.get_submodule(name)
    x = torch.randn(3, layer.in_features)
    before = layer(x)
    unet.add_adapter(CONFIG)
    tiny_models.random_factors(unet)
    wrapped = unet.get_submodule(name)
    delta = wrapped.get_delta_weight("default")
    torch.testing.assert_close(wrapped(x), before + x @ delta.T, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="quantised"):
        wrapped.merge()
    torch.testing.assert_close(wrapped(x), before + x @ delta.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_an_adapter_below_which_the_base_is_quantised_stays_as_it_is(kind) -> None:
    """As drawing does it, which puts the adapters on first."""
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    unet = tiny_models.unet("sd1").requires_grad_(False)
    names = [*quantisation.quantisable(unet)]
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    tiny_models.random_factors(unet)
    factors = {name: p.clone() for name, p in unet.named_parameters() if "lora_" in name}
    linear = quantisation.quantisable(unet)
    assert [name.removesuffix(".base_layer") for name in linear] == names
    quantisation.quantise(unet, kind)
    assert all(torch.equal(unet.get_parameter(name), p) for name, p in factors.items())


@pytest.mark.parametrize("adapter", ["krona", "lora"])
def test_training_over_a_base_in_fp8(adapter, tiny_sdxl, pictures, tmp_path: Path) -> None:
    more = ["--quantize_base", "fp8", "--low_vram", "--adapter_type", adapter]
    more += ["--validation_prompt", "a dog", "--validation_inference_steps", "2"]
    assert main(flags(tiny_sdxl, pictures, tmp_path / "out", *more)) == 0
    tensors = load_file(tmp_path / "out" / "adapter.safetensors")
    second = "krona_b" if adapter == "krona" else "lora_B"
    assert all(t.isfinite().all() for t in tensors.values())
    assert any(t.abs().max() > 0 for name, t in tensors.items() if second in name)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_base_in_fp8_computes_with_its_rounded_weights(checkpointed: bool) -> None:
    """Forward and backward, as a base does whose weights were rounded beforehand."""
    results = []
    for kind in ("fp8", "none"):
        torch.manual_seed(0)
        unet = tiny_models.unet("sd1").requires_grad_(False)
        layers = quantisation.quantisable(unet).values()
        if kind == "none":
            for layer in layers:
                layer.weight.data = layer.weight.to(quantisation.FP8).float()
                if layer.bias is not None:
                    layer.bias.data = layer.bias.to(quantisation.FP8).float()
        quantisation.quantise(unet, kind)
        assert all(layer.weight.itemsize == (1 if kind == "fp8" else 4) for layer in layers)
        unet.add_adapter(CONFIG)
        tiny_models.random_factors(unet)
        if checkpointed:
            unet.train().enable_gradient_checkpointing()
        sample = unet(**tiny_models.unet_inputs()).sample
        sample.square().mean().backward()
        results.append([sample, *(p.grad for p in unet.parameters() if p.requires_grad)])
    for quantised, rounded in zip(*results, strict=True):
        torch.testing.assert_close(quantised, rounded, rtol=1e-4, atol=1e-6)
    wrapped = next(m for m in unet.modules() if hasattr(m, "krona_a"))
    quantisation.quantise(unet, "fp8")
    with pytest.raises(ValueError, match="quantised"):
        wrapped.merge()


def test_low_vram_keeps_a_large_base_in_fp8_without_bitsandbytes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    for family, kind in (("z-image", "fp8"), ("sd1", "none")):
        base = BaseSettings(str(tiny_models.save_pipeline(tmp_path / family, family)))
        required = [
            "--pretrained_model_name_or_path",
            "b",
            "--instance_data_dir",
            ".",
            "--low_vram",
        ]
        found = parse_settings([*required, "--output_dir", "o"], family_defaults(base, True))
        assert found.precision.quantize_base == kind


def test_an_estimate_of_fp8_counts_the_weights_that_are_cast_up(tmp_path: Path) -> None:
    folder = str(tiny_models.save_pipeline(tmp_path, "z-image"))
    sizes = {}
    for kind, more in (("none", []), ("fp8", []), ("checkpointed", [CHECKPOINTS])):
        chosen = ["--quantize_base", "none" if kind == "none" else "fp8", "--resolution", "32"]
        args, resolved = planned(folder, "--a1", "4", "--a2", "16", *BF16, *chosen, *more)
        groups = (args.optimisation, args.precision, args.prior)
        sizes[kind] = count.count(args.base, *groups, resolved)
    linear = 2 * (sizes["none"].base - sizes["fp8"].base)  # in bf16
    assert sizes["fp8"].dequantised == linear
    assert sizes["checkpointed"].dequantised == pytest.approx(linear / 4, rel=0.3)  # of 4 blocks


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_bytes_of_a_quantised_weight(kind) -> None:
    pytest.importorskip("bitsandbytes")
    import bitsandbytes.nn as quantised

    model = torch.nn.ModuleDict({"transformer_blocks": torch.nn.Linear(256, 512, bias=False)})
    expected = quantisation.quantised_bytes(model["transformer_blocks"], kind)
    layer = quantisation.quantise(model.requires_grad_(False), kind).to("cpu")["transformer_blocks"]
    if kind == "nf4":
        assert isinstance(layer, quantised.Linear4bit)
        state = layer.weight.quant_state
        scales = state.absmax.nbytes + state.state2.absmax.nbytes
    else:
        assert isinstance(layer, quantised.Linear8bitLt)
        scales = layer.weight.SCB.nbytes
    assert layer.weight.nbytes + scales == expected
