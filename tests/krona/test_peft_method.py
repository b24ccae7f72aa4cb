"""The adapter as diffusers' and PEFT's own calls drive it, on tiny and full-size UNets."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftMixedModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter as peft_hotswap_adapter
from torch import nn

from diffusekrona import KronAConfig
from diffusekrona.bases.published import SD15_UNET, SD21_UNET, SDXL_UNET
from diffusekrona.krona import KronALinear, merge_and_unload
from diffusekrona.krona.functional import kron_weight

FAMILIES = ("sd1", "sd2", "sdxl")


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def unet(family) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny_models.unet(family).eval()


def run(unet, family) -> torch.Tensor:
    with torch.no_grad():
        return unet(**tiny_models.unet_inputs(family)).sample


def test_first_forward_is_the_bases(unet, family) -> None:
    before = run(unet, family)
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    assert torch.equal(run(unet, family), before)


def test_wraps_every_attention_projection_and_trains_only_factors(unet, family) -> None:
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    wrapped = {n for n, m in unet.named_modules() if isinstance(m, KronALinear)}
    attentions = [n for n, _ in unet.named_modules() if n.endswith(("attn1", "attn2"))]
    want = {f"{n}.{p}" for n in attentions for p in ("to_q", "to_k", "to_v", "to_out.0")}
    assert wrapped == want and want
    names = [n for n, p in unet.named_parameters() if p.requires_grad]
    assert names and all("krona_a" in n or "krona_b" in n for n in names)


def test_initialisation() -> None:
    unet = tiny_models.unet()
    torch.manual_seed(1)
    unet.add_adapter(KronAConfig(a1=4, a2=64))
    a = torch.cat([p.flatten() for n, p in unet.named_parameters() if "krona_a" in n])
    b = torch.cat([p.flatten() for n, p in unet.named_parameters() if "krona_b" in n])
    assert b.abs().max() == 0
    assert abs(a.mean().item()) < 1e-3
    assert a.std().item() == pytest.approx(1 / 64, rel=0.05)


def test_delta_is_scaled_kron(unet, family) -> None:
    unet.add_adapter(KronAConfig(a1=4, a2=16, scale=0.7))
    tiny_models.random_factors(unet)
    layer = next(m for m in unet.modules() if isinstance(m, KronALinear))
    a, b = layer.krona_a["default"], layer.krona_b["default"]
    x = torch.randn(3, layer.in_features)
    want = layer.base_layer(x) + 0.7 * x @ torch.kron(a, b).T
    torch.testing.assert_close(layer(x), want)


def test_fuse_equals_live_and_unfuse_is_bit_exact(unet, family) -> None:
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    tiny_models.random_factors(unet)
    weights = {n: p.clone() for n, p in unet.named_parameters() if "base_layer" in n}
    live = run(unet, family)
    unet.fuse_lora()
    torch.testing.assert_close(run(unet, family), live, atol=1e-5, rtol=1e-4)
    assert any(not torch.equal(p, weights[n]) for n, p in unet.named_parameters() if n in weights)
    unet.unfuse_lora()
    for name, parameter in unet.named_parameters():
        if name in weights:
            assert torch.equal(parameter, weights[name]), name
    assert torch.equal(run(unet, family), live)


def test_a_safe_fusing_that_overflows_is_undone_by_unfusing() -> None:
    """diffusers fuses layer by layer: those before the one that is refused are fused by then."""
    unet = tiny_models.unet().half()
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    tiny_models.random_factors(unet)
    layers = [m for m in unet.modules() if isinstance(m, KronALinear)]
    before = [layer.get_base_layer().weight.clone() for layer in layers]
    for factors in (layers[-1].krona_a, layers[-1].krona_b):
        factors["default"].data.fill_(300.0)  # finite, but their product is not in fp16
    with pytest.raises(ValueError, match="not finite"):
        unet.fuse_lora(safe_fusing=True)
    unet.unfuse_lora()
    for layer, weight in zip(layers, before, strict=True):
        assert not layer.merged and torch.equal(layer.get_base_layer().weight, weight)


def test_what_peft_does_for_its_own_methods_alone_is_refused(tmp_path: Path) -> None:
    """By PEFT, in one line; `diffusekrona.krona.hotswap_adapter` swaps KronA adapters."""

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8))

    config = KronAConfig(a1=2, a2=2, target_modules=["0"])
    with pytest.raises(ValueError, match="'KRONA' is not compatible with the `PeftMixedModel`"):
        PeftMixedModel(model(), config)
    get_peft_model(model(), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but KRONA was passed"):
        peft_hotswap_adapter(get_peft_model(model(), config), str(tmp_path), "default")


def test_fuse_of_several_then_unfuse_is_bit_exact() -> None:
    unet = tiny_models.unet()
    before = {n: p.clone() for n, p in unet.named_parameters()}
    for name, pair in (("dog", (4, 16)), ("cat", (8, 8))):
        unet.add_adapter(KronAConfig(a1=pair[0], a2=pair[1]), name)
        tiny_models.random_factors(unet, name)
    unet.set_adapters(["dog", "cat"], [0.8, 0.3])
    live = run(unet, "sd1")
    unet.fuse_lora()
    torch.testing.assert_close(run(unet, "sd1"), live, atol=1e-5, rtol=1e-4)
    unet.unfuse_lora()
    for name, parameter in unet.named_parameters():
        plain = name.replace(".base_layer", "")
        if plain in before:
            assert torch.equal(parameter, before[plain]), name


def test_weights_enable_disable_delete(unet, family) -> None:
    base = run(unet, family)
    unet.add_adapter(KronAConfig(a1=4, a2=16), "dog")
    unet.add_adapter(KronAConfig(a1=2, a2=8), "cat")
    tiny_models.random_factors(unet, "dog", 1)
    tiny_models.random_factors(unet, "cat", 2)
    unet.set_adapters("dog")
    dog = run(unet, family)
    unet.set_adapters(["dog", "cat"], [1.0, 0.0])
    torch.testing.assert_close(run(unet, family), dog)
    unet.set_adapters(["dog", "cat"], [0.0, 0.0])
    torch.testing.assert_close(run(unet, family), base)
    unet.set_adapters(["dog", "cat"], [1.0, 1.0])
    both = run(unet, family)
    assert not torch.allclose(both, dog)
    unet.disable_adapters()
    assert torch.equal(run(unet, family), base)
    unet.enable_adapters()
    assert torch.equal(run(unet, family), both)
    unet.delete_adapters("cat")
    unet.set_adapters("dog")
    assert torch.equal(run(unet, family), dog)
    assert list(unet.peft_config) == ["dog"]


def test_merge_for_good_leaves_plain_layers_and_no_copy(unet, family) -> None:
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    tiny_models.random_factors(unet)
    live = run(unet, family)
    pointers = {n: p.data_ptr() for n, p in unet.named_parameters() if "base_layer" in n}
    merge_and_unload(unet)
    torch.testing.assert_close(run(unet, family), live, atol=1e-5, rtol=1e-4)
    assert not any(isinstance(m, KronALinear) for m in unet.modules())
    now = {n: p.data_ptr() for n, p in unet.named_parameters()}
    assert all(now[n.replace(".base_layer", "")] == p for n, p in pointers.items())
    unet.add_adapter(KronAConfig(a1=4, a2=16))  # and it can be adapted again


def test_lora_merges_for_good_by_the_same_call() -> None:
    unet = tiny_models.unet()
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_out.0"]))
    tiny_models.random_factors(unet)
    live = run(unet, "sd1")
    merge_and_unload(unet)
    torch.testing.assert_close(run(unet, "sd1"), live, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("first", ["krona", "lora"])
def test_krona_and_lora_on_the_same_layers_merge_for_good(first) -> None:
    unet = tiny_models.unet().eval()
    configs = {"krona": KronAConfig(a1=4, a2=16), "lora": LoraConfig(r=2, target_modules=["to_q"])}
    for name in (first, *(configs.keys() - {first})):
        unet.add_adapter(configs[name], name)
    unet.set_adapters(["krona", "lora"], [1.0, 0.5])
    tiny_models.random_factors(unet)
    live = run(unet, "sd1")
    merge_and_unload(unet)
    assert {type(m) for n, m in unet.named_modules() if n.endswith("to_q")} == {nn.Linear}
    torch.testing.assert_close(run(unet.to("cpu"), "sd1"), live, atol=1e-5, rtol=1e-5)


def test_factors_per_projection() -> None:
    unet = tiny_models.unet()
    pattern = {"to_k": (8, 64), "to_out.0": (2, 64)}
    unet.add_adapter(KronAConfig(a1=4, a2=16, factor_pattern=pattern))
    for name, module in unet.named_modules():
        if isinstance(module, KronALinear):
            want = pattern.get("to_out.0" if name.endswith("to_out.0") else name[-4:], (4, 16))
            assert tuple(module.krona_a["default"].shape) == want


def test_subset_and_feed_forward() -> None:
    unet = tiny_models.unet()
    unet.add_adapter(KronAConfig(a1=4, a2=16, target_modules=["to_k", "ff.net.0.proj", "ff.net.2"]))
    names = [n for n, m in unet.named_modules() if isinstance(m, KronALinear)]
    for end in ("attn1.to_k", "attn2.to_k", "ff.net.0.proj", "ff.net.2"):
        assert any(n.endswith(end) for n in names)
    assert all(n.endswith(("to_k", "ff.net.0.proj", "ff.net.2")) for n in names)


def test_pair_that_does_not_divide_is_refused_before_anything_is_wrapped() -> None:
    unet = tiny_models.unet()
    with pytest.raises(ValueError, match=r"a1=3, a2=64.*to_q.*64 out and 64 in.*\(2, 64\)"):
        unet.add_adapter(KronAConfig(a1=3, a2=64))
    assert not any(isinstance(m, KronALinear) for m in unet.modules())
    unet.add_adapter(KronAConfig(a1=4, a2=64))  # the model is as it was


def test_not_a_linear_layer_is_refused() -> None:
    unet = tiny_models.unet()
    with pytest.raises(ValueError, match=r"conv_in.*Conv2d"):
        unet.add_adapter(KronAConfig(target_modules=["conv_in"]))


@pytest.mark.parametrize(
    "field", [{"a1": 0}, {"terms": 0}, {"init_weights": "ones"}, {"output_order": "backwards"}]
)
def test_bad_config(field) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        KronAConfig(**field)


def test_gradient_checkpointing_and_both_factors_learn() -> None:
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        unet = tiny_models.unet().train()
        unet.add_adapter(KronAConfig(a1=4, a2=16))
        tiny_models.random_factors(unet)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(**tiny_models.unet_inputs()).sample.square().mean().backward()
        grads.append({n: p.grad for n, p in unet.named_parameters() if p.requires_grad})
    assert all(g is not None and g.abs().sum() > 0 for g in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_base_keeps_fp32_factors(dtype) -> None:
    torch.manual_seed(0)
    unet = tiny_models.unet().to(dtype)
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    tiny_models.random_factors(unet)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in unet_args().items()}
    out = unet(**inputs).sample
    assert out.dtype == dtype and torch.isfinite(out).all()
    out.float().square().mean().backward()
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32 and torch.isfinite(parameter.grad).all(), name


def test_autocast() -> None:
    layer = adapted_linear(bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(2, 5, 32))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("output_order", ["kron", "interleaved"])
def test_linear_layer(bias, terms, output_order) -> None:
    layer = adapted_linear(bias, terms=terms, output_order=output_order)
    x = torch.randn(2, 5, 32)
    delta = kron_weight(layer.krona_a["default"], layer.krona_b["default"], output_order)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ delta.T)
    torch.testing.assert_close(layer.get_delta_weight("default"), delta)


def test_compiles_to_the_same_result() -> None:
    layer = adapted_linear(bias=True)
    x = torch.randn(4, 32)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_both_non_zero_initialisation_is_possible() -> None:
    layer = adapted_linear(True, init_weights="both", trained=False)
    assert layer.krona_b["default"].abs().max() > 0


PAIRS = ((2, 64), (4, 64), (8, 64), (16, 64), (16, 16), (64, 64))


@pytest.mark.parametrize(
    ("config", "layers", "lora", "millions"),
    [
        (SDXL_UNET, 560, 5_806_080, (7.534, 3.875, 2.152, 1.506, 3.875, 2.527)),
        (SD15_UNET, 128, 797_184, (0.747, 0.398, 0.248, 0.222, 0.398, 0.547)),
        (SD21_UNET, 128, 829_952, (0.797, 0.423, 0.261, 0.229, 0.423, 0.549)),
    ],
    ids=["sdxl", "sd15", "sd21"],
)
def test_counts_on_the_real_architectures(config, layers, lora, millions) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    assert trainable(unet) == lora
    unet.unload_lora()
    counts = {}
    for a1, a2 in (*PAIRS, (64, 8)):
        unet.add_adapter(KronAConfig(a1=a1, a2=a2))
        counts[a1, a2] = trainable(unet)
        assert sum(isinstance(m, KronALinear) for m in unet.modules()) == layers
        unet.delete_adapters("default")
        unet.unload_lora()
    assert tuple(round(counts[pair] / 1e6, 3) for pair in PAIRS) == millions
    if config is SDXL_UNET:
        assert counts[4, 64] == 3_874_560
        assert counts[8, 64] == counts[64, 8] == 2_152_320
    if config is SD15_UNET:
        assert counts[4, 64] == 398_048
        assert counts[8, 64] == 248_176


def adapted_linear(bias: bool, trained: bool = True, **options) -> KronALinear:
    torch.manual_seed(0)
    layer = KronALinear(
        nn.Linear(32, 24, bias), "default", KronAConfig(a1=4, a2=8, **options), 4, 8
    )
    if trained:
        nn.init.normal_(layer.krona_b["default"])
    return layer


def unet_args() -> dict:
    return {k: v for k, v in tiny_models.unet_inputs().items() if torch.is_tensor(v)}
