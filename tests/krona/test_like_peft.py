"""KronA is driven by PEFT, transformers and diffusers as their own methods are."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import CLIPTextModel

from diffusekrona import KronAConfig
from diffusekrona.krona import KronALinear, hotswap_adapter
from diffusekrona.krona.fused_linear import fused_kron_linear


class MLP(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12, dtype=dtype) for _ in range(3))
        self.head = nn.Linear(12, 2, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


def config(**more) -> KronAConfig:
    options = {"a1": 2, "a2": 4, "target_modules": ["0", "1", "2"], "init_weights": False}
    return KronAConfig(**(options | more))


def adapted(seed: int = 0, dtype: torch.dtype = torch.float32, **more) -> PeftModel:
    torch.manual_seed(0)
    model = MLP(dtype)
    torch.manual_seed(seed)
    return get_peft_model(model, config(**more)).eval()


def layers_of(model: nn.Module) -> dict[str, KronALinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, KronALinear)}


def test_type_is_as_an_enum_member() -> None:
    kind = config().peft_type
    assert kind.value == "KRONA" and kind == "KRONA" and {kind: 1}["KRONA"] == 1
    assert adapted().get_model_status().peft_types == {"default": "KRONA"}


def test_transformers_loads_and_deletes_an_adapter(tmp_path: Path) -> None:
    targets = ["q_proj", "v_proj"]
    encoder = CLIPTextModel(tiny_models.text_config()).eval()
    tokens = {"input_ids": torch.arange(7)[None]}
    plain = encoder(**tokens).last_hidden_state
    encoder.add_adapter(config(target_modules=targets), "one")
    want = encoder(**tokens).last_hidden_state
    assert not torch.equal(want, plain)
    encoder.save_pretrained(tmp_path)
    encoder.delete_adapter("one")
    assert torch.equal(encoder(**tokens).last_hidden_state, plain)
    encoder.load_adapter(str(tmp_path), adapter_name="two")
    torch.testing.assert_close(encoder(**tokens).last_hidden_state, want)


def test_a_pipeline_with_an_adapted_text_encoder_is_saved(tiny_sd1: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny_sd1)
    pipeline.text_encoder.add_adapter(config(target_modules=["q_proj"]), "default")
    pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "text_encoder").is_dir()


def test_layerwise_casting_of_an_adapted_unet() -> None:
    unet = tiny_models.unet("sd1").eval()
    unet.add_adapter(config(target_modules=["to_q", "to_v"]), "default")
    with torch.no_grad():
        want = unet(**tiny_models.unet_inputs("sd1")).sample
        unet.enable_layerwise_casting(torch.bfloat16, torch.float32)
        have = unet(**tiny_models.unet_inputs("sd1")).sample
    torch.testing.assert_close(have, want, rtol=0.1, atol=0.1)


def test_whole_modules_are_trained_and_saved_beside(tmp_path: Path) -> None:
    model = adapted(modules_to_save=["head"])
    x = torch.randn(3, 12)
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.add_(1.0)
        want = model(x)
    assert any(p.requires_grad for n, p in model.named_parameters() if "head" in n)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    assert torch.equal(PeftModel.from_pretrained(MLP(), tmp_path)(x), want)


def test_layers_by_index() -> None:
    model = adapted(target_modules=r".*\.\d", init_weights=True)
    assert len(layers_of(model)) == 3

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(12, 12)}) for _ in range(3))

    chosen = config(target_modules=["q"], layers_to_transform=[0, 2], layers_pattern="blocks")
    names = {n.split(".")[-2] for n in layers_of(get_peft_model(Blocks(), chosen))}
    assert names == {"0", "2"}
    with pytest.raises(ValueError, match="layers_pattern needs layers_to_transform"):
        config(layers_pattern="blocks")


def test_factors_are_in_single_precision_unless_asked_otherwise() -> None:
    for autocast, want in ((True, torch.float32), (False, torch.bfloat16)):
        model = get_peft_model(MLP(torch.bfloat16), config(), autocast_adapter_dtype=autocast)
        dtypes = {p.dtype for n, p in model.named_parameters() if "krona_" in n}
        assert dtypes == {want}
        assert model(torch.randn(2, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_starts_by_a_bool() -> None:
    x = torch.randn(3, 12)
    torch.manual_seed(0)
    plain = MLP().eval()(x)
    torch.testing.assert_close(adapted(init_weights=True)(x), plain)
    assert not torch.allclose(adapted(init_weights=False)(x), plain)


def test_targets_without_names_are_a_unets_attention() -> None:
    assert KronAConfig().target_modules is None  # as in PEFT's methods, until there is a model
    unet = tiny_models.unet("sd1")
    unet.add_adapter(KronAConfig(a1=4, a2=8))
    assert {n.rpartition("attn")[2][2:] for n in layers_of(unet)} == {
        "to_q", "to_k", "to_v", "to_out.0"
    }  # fmt: skip
    assert unet.peft_config["default"].target_modules == {"to_q", "to_k", "to_v", "to_out.0"}


def test_all_linear_and_other_layers() -> None:
    names = layers_of(get_peft_model(MLP(), config(target_modules="all-linear")))
    assert len(names) == 4
    model = nn.Sequential(nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match="'0' is a Conv2d"):
        get_peft_model(model, config(target_modules=["0"]))


def test_one_set_of_adapters_per_forward_call() -> None:
    model, x = adapted(), torch.randn(2, 12)
    with pytest.raises(ValueError, match="instead of adapter_names"):
        model(x, adapter_names=["default", "__base__"])
    layer = next(iter(layers_of(model).values()))
    with pytest.raises(ValueError, match="instead of adapter_names"):
        layer(x, adapter_names=["default", "__base__"])


@pytest.mark.parametrize("more", [{}, {"terms": 2}, {"scale": 0.5}])
def test_gradients_have_gradients(more) -> None:
    model = adapted(**more).double()
    layer = next(iter(layers_of(model).values()))
    x = torch.randn(2, 12, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_gradients_of_factors_have_gradients() -> None:
    shapes = ((3, 12), (2, 4), (6, 3))
    x, a, b = (torch.randn(s, dtype=torch.double, requires_grad=True) for s in shapes)
    weight = torch.randn(12, 12, dtype=torch.double)
    assert torch.autograd.gradgradcheck(
        lambda *t: fused_kron_linear(t[0], weight, None, t[1], t[2], 0.5), (x, a, b)
    )


@pytest.mark.parametrize("how", ["merge_adapter", "merge_and_unload"])
def test_a_merge_that_overflows_leaves_every_layer_unmerged(how) -> None:
    model = adapted(dtype=torch.float16)
    last = list(layers_of(model).values())[-1]
    for factors in (last.krona_a, last.krona_b):
        factors["default"].data.fill_(300.0)  # finite, but their product is not in fp16
    before = {n: m.get_base_layer().weight.clone() for n, m in layers_of(model).items()}
    with pytest.raises(ValueError, match="not finite"):
        getattr(model, how)(safe_merge=True)
    assert len(before) == 3
    for name, layer in layers_of(model).items():
        assert not layer.merged and torch.equal(layer.get_base_layer().weight, before[name])
    model.merge_adapter()  # as it is
    assert all(layer.merged for layer in layers_of(model).values())


def test_safe_merge_of_a_sum_that_overflows() -> None:
    model = adapted(dtype=torch.float16)
    model.add_adapter("other", config())
    layer = next(iter(layers_of(model).values()))
    for name in ("default", "other"):
        layer.krona_a[name].data.fill_(200.0)
        layer.krona_b[name].data.fill_(200.0)
    layer.check_merge(["other"])
    with pytest.raises(ValueError, match="'other' makes weights"):
        layer.merge(safe_merge=True, adapter_names=["default", "other"])
    assert not layer.merged


def compiled(model: nn.Module) -> tuple[nn.Module, list[int]]:
    """The model compiled, and a list that grows with each graph that is."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(model, backend=backend), graphs


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_hot_swaps_do_not_recompile(scale, tmp_path: Path) -> None:
    adapted(seed=2, scale=scale).save_pretrained(tmp_path)
    x = torch.randn(3, 12)
    want = adapted(seed=2, scale=scale)(x)
    model, graphs = compiled(adapted(seed=1))
    with torch.no_grad():
        before = model(x)
        count = len(graphs)
        hotswap_adapter(model, str(tmp_path))
        torch.testing.assert_close(model(x), want)
    assert len(graphs) == count > 0
    assert not torch.allclose(before, want)


@pytest.mark.parametrize(
    "other, says",
    [
        ({"a1": 4}, "factors of the same shapes"),
        ({"terms": 2}, "factors of the same shapes"),
        ({"output_order": "interleaved"}, "same row order"),
        ({"target_modules": ["0"]}, "same layers"),
    ],
)
def test_hot_swaps_that_do_not_fit_change_nothing(other, says, tmp_path: Path) -> None:
    adapted(seed=2, **other).save_pretrained(tmp_path)
    model, x = adapted(seed=1), torch.randn(3, 12)
    before = model(x)
    with pytest.raises(ValueError, match=says):
        hotswap_adapter(model, str(tmp_path))
    assert torch.equal(model(x), before)
    with pytest.raises(ValueError, match="No KronA adapter named 'x'"):
        hotswap_adapter(model, str(tmp_path), "x")
    model.merge_adapter()
    adapted(seed=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is merged"):
        hotswap_adapter(model, str(tmp_path))


@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("pair", [(2, 4), (12, 12), (4, 6)])
def test_the_papers_start_makes_first_steps_of_equal_length(pair, terms) -> None:
    torch.manual_seed(0)
    rate, scale = 1e-3, terms**-0.5
    options = {"init_weights": "paper", "terms": terms, "scale": scale, "target_modules": ["0"]}
    layer = nn.Sequential(nn.Linear(960, 480, bias=False))
    model = get_peft_model(layer, KronAConfig(a1=pair[0] * 10, a2=pair[1] * 10, **options))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    model(torch.randn(8, 960)).square().sum().backward()
    optimizer.step()
    norm = next(iter(layers_of(model).values())).get_delta_weight("default").norm().item()
    assert norm == pytest.approx(rate / 64 * (960 * 480) ** 0.5, rel=0.1)
