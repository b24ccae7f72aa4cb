"""What makes a run fit a small card: a quantised base, checkpoints on the host, the recipe."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..common.errors import UserError
from .backbones import vae_scale

NF4_BLOCK = 64  # weights that share one scale; the scales are 8 bit, in blocks of 256 themselves


def quantisable(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that are quantised: every linear layer of the transformer blocks.

    That is most of a base. Convolutions stay (no library quantises them), and so do the few small
    layers of the time embedding, on which everything depends.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if "transformer_blocks" in name and isinstance(module, nn.Linear)
    }


def quantised_bytes(layer: nn.Linear, kind: str) -> int:
    """Bytes of a layer's weight as `kind` keeps it, with its scales."""
    weights = layer.weight.numel()
    if kind == "nf4":
        blocks = -(-weights // NF4_BLOCK)
        return -(-weights // 2) + blocks + 4 * -(-blocks // 256)
    if kind == "int8":
        return weights + 4 * layer.out_features
    return layer.weight.nbytes


def check_quantisation(kind: str) -> None:
    """Refuse a quantisation whose library is not there.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if kind != "none" and find_spec("bitsandbytes") is None:
        raise UserError(
            f"--quantize_base {kind} needs bitsandbytes, which is not installed: "
            "pip install bitsandbytes"
        )


def quantise(model: nn.Module, kind: str) -> nn.Module:
    """Put bitsandbytes' layers in the place of `quantisable` ones; frozen, changed in place.

    The weights are quantised when the model moves to its device, layer by layer, so a card never
    holds the base whole. bitsandbytes dequantises a weight for the time of its product, in forward
    and again in backward, and keeps nothing in between; torchao's int8 keeps every dequantised
    weight until the backward pass, which costs more than it saves in training.

    Args:
        kind: "nf4", "int8", or "none", which changes nothing.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if kind == "none":
        return model
    check_quantisation(kind)
    import bitsandbytes

    for name, old in quantisable(model).items():
        shape = (old.in_features, old.out_features, old.bias is not None)
        if kind == "nf4":
            new = bitsandbytes.nn.Linear4bit(
                *shape, compute_dtype=old.weight.dtype, quant_type="nf4", device="meta"
            )
            # On some CPUs a forward pass in eval mode packs the weight anew, for inference alone.
            new.support_avx512bf16_for_cpu = False
            new.weight = bitsandbytes.nn.Params4bit(
                old.weight.data, requires_grad=False, quant_type="nf4", blocksize=NF4_BLOCK
            )
        else:
            new = bitsandbytes.nn.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
            new.weight = bitsandbytes.nn.Int8Params(
                old.weight.data, requires_grad=False, has_fp16_weights=False
            )
        new.bias = old.bias
        model.set_submodule(name, new)
    return model


def checkpoint_with(
    hooks: Callable[[], AbstractContextManager], **options: Any
) -> Callable[..., Any]:
    """A gradient checkpointing function, as diffusers' models take one, whose saved inputs go
    through the saved-tensor `hooks`; `options` are torch's `checkpoint`'s."""

    def run(block: Callable[..., Any], *inputs: Any) -> Any:
        with hooks():
            return checkpoint(block, *inputs, use_reentrant=False, **options)

    return run


def checkpoints_on_host(device: torch.device) -> Callable[..., Any]:
    """Gradient checkpointing that keeps the blocks' inputs in the host's memory."""
    pinned = device.type == "cuda"
    return checkpoint_with(lambda: torch.autograd.graph.save_on_cpu(pin_memory=pinned))


def tile_vae(vae: Any, pixels: int = 512) -> None:
    """Let an AutoencoderKL encode and decode in overlapping tiles of `pixels` a side at most."""
    scale = vae_scale(vae.config)
    vae.enable_tiling()
    vae.tile_sample_min_size = min(pixels, vae.tile_sample_min_size)
    vae.tile_latent_min_size = vae.tile_sample_min_size // scale
