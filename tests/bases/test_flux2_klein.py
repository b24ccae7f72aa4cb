"""The fused layers of FLUX.2-klein's single blocks: one Kronecker product per row slice."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from diffusers import Flux2Transformer2DModel
from torch import nn

from diffusekrona import KronAConfig
from diffusekrona.adapters.file import collect_adapter
from diffusekrona.bases.families import FAMILIES
from diffusekrona.bases.meta import linear_layers
from diffusekrona.common.errors import UserError

KLEIN = FAMILIES["flux2-klein"]
FUSED = "single_transformer_blocks.0.attn.to_qkv_mlp_proj"


def arguments(model: Flux2Transformer2DModel) -> dict:
    g = torch.Generator().manual_seed(0)
    return {
        "noisy": torch.randn(2, 16, 6, 4, generator=g),
        "timesteps": torch.tensor([300.0, 800.0]),
        "text": {"prompt_embeds": torch.randn(2, 5, 48, generator=g)},
        "time_ids": torch.zeros(2, 6),
    }


@torch.no_grad()
def test_splitting_keeps_weights_and_output() -> None:
    torch.manual_seed(0)
    model = tiny_models.flux2_klein_transformer().eval()
    given, before = arguments(model), model.single_transformer_blocks[0].attn
    fused = before.to_qkv_mlp_proj.weight.clone()
    want = KLEIN.predict(model, **given)
    split = KLEIN.split_fused(model)
    torch.testing.assert_close(KLEIN.predict(split, **given), want, rtol=1e-5, atol=1e-5)
    parts = dict(before.to_qkv_mlp_proj.named_children())
    assert list(parts) == ["to_q", "to_k", "to_v", "mlp"]
    assert torch.equal(torch.cat([part.weight for part in parts.values()]), fused)
    assert KLEIN.split_fused(split) is split
    assert [name for name, _ in before.to_out.named_children()] == ["attention", "mlp"]


@torch.no_grad()
def test_each_row_slice_has_a_product_of_its_own_equal_to_a_dense_reference() -> None:
    torch.manual_seed(0)
    model = KLEIN.split_fused(tiny_models.flux2_klein_transformer().eval())
    names = [f"to_qkv_mlp_proj.{part}" for part in ("to_q", "to_k", "to_v", "mlp")]
    model.add_adapter(KronAConfig(a1=4, a2=16, target_modules=names), "default")
    tiny_models.random_factors(model)
    adapter = collect_adapter(model)
    layers = adapter.method.by_layer(adapter.tensors)
    assert len(layers) == 8  # two blocks of four slices
    torch.manual_seed(0)
    dense = tiny_models.flux2_klein_transformer().eval()
    for number, block in enumerate(dense.single_transformer_blocks):
        stem = f"single_transformer_blocks.{number}.attn.to_qkv_mlp_proj"
        own = [layers[f"{stem}.{part}"] for part in ("to_q", "to_k", "to_v", "mlp")]
        deltas = [torch.kron(each["krona_a"], each["krona_b"]) for each in own]
        block.attn.to_qkv_mlp_proj.weight += torch.cat(deltas)
    given = arguments(model)
    got, want = KLEIN.predict(model, **given), KLEIN.predict(dense, **given)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_slices_are_counted_without_weights() -> None:
    config = dict(tiny_models.flux2_klein_transformer().config)
    layers = linear_layers(KLEIN.empty_denoiser(config))
    assert layers[f"{FUSED}.to_q"] == (64, 64) and layers[f"{FUSED}.mlp"] == (384, 64)
    assert layers["single_transformer_blocks.1.attn.to_out.attention"] == (64, 64)


def test_a_layer_that_is_not_plain_is_refused() -> None:
    class Quantised(nn.Linear):
        pass

    model = tiny_models.flux2_klein_transformer()
    attention = model.single_transformer_blocks[0].attn
    attention.to_qkv_mlp_proj = Quantised(64, 576, bias=False)
    with pytest.raises(UserError, match=f"{FUSED} .* cannot be split as Quantised"):
        KLEIN.split_fused(model)
