"""A base whose linear layers are kept in 4 or 8 bits (bitsandbytes), or in fp8 (diffusers)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..common.errors import UserError

FP8 = torch.float8_e4m3fn
NF4_BLOCK = 64  # weights that share one scale; the scales are 8 bit, in blocks of 256 themselves


def quantisable(
    model: nn.Module, block_lists: Sequence[str] = ("transformer_blocks",)
) -> dict[str, nn.Linear]:
    """The layers that are quantised: every linear layer of the base's transformer blocks, also
    under an adapter, whose own factors stay as they are.

    Args:
        block_lists: names of the lists that these blocks lie in, as the family has them.

    That is most of a base. Convolutions stay (no library quantises them), and so do the few small
    layers of the time embedding, on which everything depends.
    """
    factors = {
        module
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for module in {*layer.modules()} - {*layer.get_base_layer().modules()}
    }
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module not in factors
        and not {*block_lists}.isdisjoint(name.split("."))
    }


def quantised_bytes(layer: nn.Linear, kind: str) -> int:
    """Bytes of a layer's weight as `kind` keeps it, with its scales."""
    weights = layer.weight.numel()
    if kind == "nf4":
        blocks = -(-weights // NF4_BLOCK)
        return -(-weights // 2) + blocks + 4 * -(-blocks // 256)
    if kind == "int8":
        return weights + 4 * layer.out_features
    if kind == "fp8":
        return weights
    return layer.weight.nbytes


def whole_bytes(model: nn.Module, kind: str, block_lists: Sequence[str], checkpointed: bool) -> int:
    """The most bytes of quantised weights that are whole at once in a training step: a layer's, or
    in fp8 those of all layers whose backward pass is to come.

    Args:
        checkpointed: with gradient checkpointing, so that these are the layers of one block.
    """
    layers = {name: layer.weight.nbytes for name, layer in quantisable(model, block_lists).items()}
    if kind == "none" or not layers:
        return 0
    if kind != "fp8":
        return max(layers.values())
    if not checkpointed:
        return sum(layers.values())
    sums = Counter[str]()
    for name, size in layers.items():
        parts = name.split(".")
        last = max(n for n, part in enumerate(parts) if part in block_lists)
        sums[".".join(parts[: last + 2])] += size
    return max(sums.values())


def check_quantisation(kind: str) -> None:
    """Refuse a quantisation whose library is not installed.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if kind in ("nf4", "int8") and find_spec("bitsandbytes") is None:
        raise UserError(
            f"--quantize_base {kind} needs bitsandbytes, which is not installed: "
            "pip install bitsandbytes"
        )


def quantise(
    model: nn.Module, kind: str, block_lists: Sequence[str] = ("transformer_blocks",)
) -> nn.Module:
    """Put bitsandbytes' layers in the place of `quantisable` ones; frozen, changed in place.

    fp8 is diffusers' layerwise casting instead, which needs no library: a layer's weights are cast
    up when it is called. Autograd keeps those of a forward pass until the backward pass, so it
    saves memory in training only with gradient checkpointing.

    bitsandbytes quantises a weight when the model moves to its device, layer by layer, so a card
    never holds the base whole. It dequantises a weight for the time of its product, in forward
    and again in backward, and keeps nothing in between; torchao's int8 keeps every dequantised
    weight until the backward pass, which costs more than it saves in training.

    Args:
        kind: "nf4", "int8", "fp8", or "none", which changes nothing.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if kind == "none":
        return model
    if kind == "fp8":
        return _cast_layers(model, block_lists)
    check_quantisation(kind)
    import bitsandbytes

    layers: Any = bitsandbytes.nn
    for name, old in quantisable(model, block_lists).items():
        bias = cast("nn.Parameter | None", old.bias)  # torch declares that it is always there
        shape = (old.in_features, old.out_features, bias is not None)
        if kind == "nf4":
            new = layers.Linear4bit(
                *shape, compute_dtype=old.weight.dtype, quant_type="nf4", device="meta"
            )
            # On some CPUs a forward pass in eval mode packs the weight again, for inference only.
            new.support_avx512bf16_for_cpu = False
            new.weight = layers.Params4bit(
                old.weight.data, requires_grad=False, quant_type="nf4", blocksize=NF4_BLOCK
            )
        else:
            new = layers.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
            new.weight = layers.Int8Params(
                old.weight.data, requires_grad=False, has_fp16_weights=False
            )
        new.bias = old.bias
        model.set_submodule(name, new)
    return model


def _cast_layers(model: nn.Module, block_lists: Sequence[str]) -> nn.Module:
    from diffusers.hooks.layerwise_casting import apply_layerwise_casting_hook

    for layer in quantisable(model, block_lists).values():
        dtype = layer.weight.dtype
        apply_layerwise_casting_hook(layer, FP8, dtype, non_blocking=False)
    return model
