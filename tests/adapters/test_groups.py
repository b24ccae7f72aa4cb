"""Weights of groups of layers: what they do to the deltas, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from diffusekrona import KronAConfig
from diffusekrona.adapters.file import collect_adapter
from diffusekrona.adapters.groups import (
    GroupWeights,
    enable_adapters,
    layers_with,
    parse_groups,
    place_of,
    places_of,
    set_group_weights,
)
from diffusekrona.adapters.mixing import run_name
from diffusekrona.adapters.norms import NORMS_KEY, norms_in, relative_norms, summarise_norms
from diffusekrona.common.errors import UserError
from diffusekrona.krona import merge_and_unload

QKVO = ["to_q", "to_k", "to_v", "to_out.0"]
CONFIGS = {
    "krona": KronAConfig(a1=4, a2=16, scale=0.5),
    "terms": KronAConfig(a1=4, a2=16, terms=2),
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules=QKVO),
}
GROUPS = GroupWeights({"up.1": 0.5}, {"k": 0.0}, {"self": 3.0})


def adapted(kind: str) -> UNet2DConditionModel:
    unet = tiny_models.unet()
    unet.add_adapter(CONFIGS[kind], "dog")
    tiny_models.random_factors(unet, "dog")
    return unet


def deltas(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    return {
        name: module.get_delta_weight("dog").detach()
        for name, module in unet.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_layers_delta_is_multiplied_by_the_weights_of_its_groups(kind) -> None:
    unet = adapted(kind)
    before = deltas(unet)
    set_group_weights(unet, "dog", GROUPS, 2.0)
    for name, delta in deltas(unet).items():
        factor = 2.0 * (0.5 if name.startswith("up_blocks.1") else 1)
        factor *= 0 if name.endswith("to_k") else 1
        factor *= 3 if "attn1" in name else 1
        torch.testing.assert_close(delta, before[name] * factor)
    set_group_weights(unet, "dog", GroupWeights())  # back as trained
    for name, delta in deltas(unet).items():
        torch.testing.assert_close(delta, before[name])


def test_a_layer_inside_another_methods_layer_has_its_own_name() -> None:
    """Weights of groups are also set when all adapters are on the base, as by the page."""
    unet = adapted("krona")
    alone = [name for _, name, _ in layers_with(unet, "dog")]
    unet.add_adapter(CONFIGS["lora"], "cat")
    assert [name for _, name, _ in layers_with(unet, "dog")] == alone
    assert all(name in alone for _, name, _ in layers_with(unet, "cat"))


@pytest.mark.parametrize("kind", ["krona", "lora"])
def test_merged_and_live_are_the_same(kind) -> None:
    unet = adapted(kind).eval()
    set_group_weights(unet, "dog", GROUPS)
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor(5), torch.randn(1, 7, 64))
    with torch.no_grad():
        live = unet(*inputs).sample
        merge_and_unload(unet)
        torch.testing.assert_close(unet(*inputs).sample, live, atol=1e-4, rtol=1e-4)


def test_unknown_groups_are_refused_in_one_line_that_lists_the_known_ones() -> None:
    unet = adapted("krona")
    before = deltas(unet)
    for groups, words in (
        (GroupWeights(blocks={"up.7": 0.5}), "--blocks up.7: .* has down.0, mid, up.1"),
        (GroupWeights(projections={"x": 0}), "--projections x: .* has k, o, q, v"),
        (GroupWeights(attention={"none": 0}), "--attention none: .* has cross, self"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            set_group_weights(unet, "dog", groups)
        assert "\n" not in str(refused.value)
    assert all(torch.equal(delta, before[name]) for name, delta in deltas(unet).items())
    set_group_weights(unet, "dog", GroupWeights(blocks={"up.7": 0.5}), allow_unknown=True)
    with pytest.raises(ValueError, match="no adapter named"):
        set_group_weights(unet, "cat", GROUPS)


def test_flags() -> None:
    groups = parse_groups(["up.1=0.5", "mid=-1"], ["k=0"])
    assert groups == GroupWeights({"up.1": 0.5, "mid": -1.0}, {"k": 0.0}, {})
    assert groups.as_dict() == {"blocks": {"up.1": 0.5, "mid": -1.0}, "projections": {"k": 0.0}}
    assert str(groups) == "k=0, up.1=0.5, mid=-1" and not parse_groups()
    for wrong in ("up.1", "up.1=", "=1", "up.1=x", "up.1=nan", "up.1=inf"):
        with pytest.raises(UserError, match=r"name=weight, such as up\.1=0\.5"):
            parse_groups([wrong])


def test_places_are_known_from_the_file_alone() -> None:
    unet = adapted("terms")
    names = [name for name in deltas(unet)]
    assert places_of(collect_adapter(unet, "dog")) == {place_of("unet", n) for n in names}


def test_adapters_are_switched_off_and_on() -> None:
    unet = adapted("krona").eval()
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor(5), torch.randn(1, 7, 64))
    with torch.no_grad():
        on = unet(*inputs).sample
        enable_adapters(unet, False)
        bare = unet(*inputs).sample
        enable_adapters(unet, True)
        assert torch.equal(unet(*inputs).sample, on) and not torch.allclose(on, bare)


@pytest.mark.parametrize("kind", CONFIGS)
def test_norms_relative_to_the_base(kind) -> None:
    unet = adapted(kind)
    norms = relative_norms(unet, "dog")
    wanted = {
        f"unet.{name}": delta.norm().item()
        / unet.get_submodule(name).get_base_layer().weight.norm().item()
        for name, delta in deltas(unet).items()
    }
    assert norms == pytest.approx(wanted, rel=1e-5)
    summary = summarise_norms(norms)
    assert summary["largest"] == pytest.approx(max(wanted.values()), abs=1e-6)
    assert wanted[summary["largest_layer"]] == max(wanted.values())
    assert summarise_norms({}) is None


def test_norms_are_read_back_from_metadata() -> None:
    summary = {"median": 0.02, "largest": 0.1, "largest_layer": "unet.x"}
    want = {"median": 0.02, "largest": 0.1}
    assert norms_in({NORMS_KEY: summary}) == norms_in({NORMS_KEY: json.dumps(summary)}) == want
    for damaged in (None, "", "{", "[]", '{"median": 1}', {"median": "x", "largest": 1}):
        assert norms_in({NORMS_KEY: damaged}) is None


def test_runs_have_names_not_hashes() -> None:
    adapter = collect_adapter(adapted("krona"), "dog", metadata={"steps": 500, "seed": 1})
    for path, want in (
        ("runs/dog/adapter.safetensors", "dog"),
        ("runs/my.safetensors", "my"),
        ("runs/dog/checkpoint-4/adapter.safetensors", "dog/checkpoint-4"),
        ("runs/dog/best.safetensors", "dog/best"),
        ("cells/0123456789abcdef/run/adapter.safetensors", "KronA, 500 steps, seed 1"),
        ("cells/0123456789abcdef/adapter.safetensors", "KronA, 500 steps, seed 1"),
    ):
        assert run_name(Path(path), adapter) == want
