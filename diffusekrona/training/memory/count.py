"""What a base takes in a run, counted on shapes for any base and any flags.

One training step is run on torch's `meta` device, where tensors have shapes and no contents, while
every allocation and every release is counted. So no formula has to be kept in step with the
libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...adapters.layers import add_adapters
from ...bases import backbones
from ...bases.small_cards import quantisable, quantised_bytes, tile_vae
from ...data.cache import DTYPES
from .sizes import Sizes, checkpoints, samples
from .trace import step_peak, without_gradients

if TYPE_CHECKING:
    from ..plan import Plan
    from ..settings import TrainSettings


def count(settings: TrainSettings, plan: Plan) -> Sizes:
    """The sizes of a run.

    Raises:
        UserError: a component's config cannot be read.
    """
    dtype = DTYPES[settings.precision.mixed_precision or "no"]
    vae = build_empty("AutoencoderKL", plan.vae_config, DTYPES[settings.precision.vae_dtype])
    encoders = {
        name: build_empty(
            kind, backbones.read_part_config(plan.base, name, settings.base.revision), dtype
        )
        for name, kind in backbones.text_encoder_kinds(plan.family).items()
    }
    text = sum(map(weight_bytes, encoders.values()))
    config = backbones.read_unet_config(plan.base, settings.base.revision)
    unet = build_empty("UNet2DConditionModel", config, dtype)
    quantised = settings.precision.quantize_base != "none"
    base, whole = weight_bytes(unet, settings.precision.quantize_base), weight_bytes(unet)
    largest = max(layer.weight.nbytes for layer in quantisable(unet).values()) if quantised else 0
    encoding, drawing = pictures_peaks(vae, plan.resolution, settings.precision.vae_tiling)
    models = {"unet": unet, **(encoders if settings.adapter.train_text_encoder else {})}
    for parameter in add_adapters(plan.configs, models, "default"):
        # As in every later step of an accumulation; the gradients' own bytes are no activations.
        parameter.grad = torch.empty_like(parameter)
    side = plan.resolution // backbones.vae_scale(plan.vae_config)
    step = step_peak(plan.family, models, samples(settings), side, checkpoints(settings))
    return Sizes(weight_bytes(vae), text, base, encoding, drawing, largest, step, whole)


def build_empty(kind: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A frozen component of the full size on the meta device, in `dtype`."""
    empty = backbones.build_empty(kind, config)
    return nn.Module.to(empty, dtype).requires_grad_(False)  # diffusers' own warns about nothing


def pictures_peaks(vae: Any, resolution: int, tiling: bool) -> tuple[int, int]:
    """The most bytes held while the VAE encodes a square picture, and while it decodes one."""
    picture = torch.empty(1, 3, resolution, resolution, device="meta", dtype=vae.dtype)
    side = resolution // backbones.vae_scale(vae.config)
    latent = picture.new_empty(1, vae.config["latent_channels"], side, side)
    encoding = without_gradients(vae.encode, picture)
    if tiling:
        tile_vae(vae)
    return encoding, without_gradients(vae.decode, latent)


def weight_bytes(model: nn.Module, quantisation: str = "none") -> int:
    """Bytes of a model's weights and buffers, as `small_cards.quantise` keeps them."""
    tensors = [*model.parameters(), *model.buffers()]
    layers = quantisable(model).values() if quantisation != "none" else ()
    saved = sum(layer.weight.nbytes - quantised_bytes(layer, quantisation) for layer in layers)
    return sum(tensor.nbytes for tensor in tensors) - saved
