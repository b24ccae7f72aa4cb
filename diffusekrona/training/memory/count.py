"""What a base takes in a run, counted on shapes for any base and any flags.

One training step is run on torch's `meta` device, where tensors have shapes and no contents, while
every allocation and every release is counted. So no formula has to be kept in step with the
libraries. It takes a second, and the page asks again at every edit of its form: what was counted
once in a process is not counted again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ...adapters.layers import add_adapters
from ...bases.loading import read_part_config
from ...bases.meta import build_empty, weight_bytes
from ...bases.offload import largest_layer_bytes, offloaded_bytes
from ...bases.precision import dtype_of
from ...bases.quantisation import quantisable, quantised_bytes, whole_bytes
from ...bases.vae import tile_vae, vae_scale
from .sizes import Sizes, checkpoints, samples
from .trace import step_peak, without_gradients

if TYPE_CHECKING:
    from ...bases.settings import BaseSettings, PrecisionSettings
    from ...data.settings import PriorSettings
    from ..resolved_run import ResolvedRun
    from ..settings import OptimisationSettings

_counted: dict[str, Sizes] = {}  # by everything that decides it
_MOST_COUNTED = 100


def count(
    base: BaseSettings,
    optimisation: OptimisationSettings,
    precision: PrecisionSettings,
    prior: PriorSettings,
    resolved: ResolvedRun,
) -> Sizes:
    """The sizes of a run.

    Raises:
        UserError: a component's config cannot be read.
    """
    text_configs = {
        name: read_part_config(resolved.base, name, base.revision)
        for name in resolved.family.text_encoders
    }
    batch = samples(optimisation, prior)
    asked = repr((
        resolved.family.name, resolved.denoiser_config, resolved.vae_config, text_configs,
        resolved.configs, resolved.resolution, precision, batch,
    ))  # fmt: skip
    if asked not in _counted:
        if len(_counted) == _MOST_COUNTED:
            _counted.clear()
        _counted[asked] = _count(precision, resolved, text_configs, batch)
    return _counted[asked]


def _count(
    precision: PrecisionSettings,
    resolved: ResolvedRun,
    text_configs: Mapping[str, Any],
    batch: int,
) -> Sizes:
    family = resolved.family
    dtype = dtype_of(precision.mixed_precision or "no")
    vae = build_empty(family.vae_class, resolved.vae_config, dtype_of(precision.vae_dtype))
    encoders = {
        name: build_empty(kind, text_configs[name], dtype)
        for name, kind in family.text_encoders.items()
    }
    text = sum(map(weight_bytes, encoders.values()))
    offloaded = precision.low_vram and family.large
    text_layer = max(map(largest_layer_bytes, encoders.values())) if offloaded else 0
    denoiser = family.empty_denoiser(resolved.denoiser_config, dtype)
    layers = quantisable(denoiser, family.block_lists).values()
    whole = weight_bytes(denoiser)
    kind, frozen = precision.quantize_base, whole
    if kind != "none":
        frozen += sum(quantised_bytes(layer, kind) - layer.weight.nbytes for layer in layers)
    dequantised = whole_bytes(denoiser, kind, family.block_lists, checkpoints(precision) != "none")
    drawn = offloaded_bytes(denoiser) if precision.low_vram and family.large else whole
    encoding, drawing = pictures_peaks(vae, resolved.resolution, precision.vae_tiling)
    models = {family.denoiser: denoiser}
    models |= encoders if resolved.trains_text_encoders else {}
    for parameter in add_adapters(resolved.configs, models, "default"):
        # As in every later step of an accumulation; the gradients' own bytes are not activations.
        parameter.grad = torch.empty_like(parameter)
    side = resolved.resolution // family.latent_scale(resolved.vae_config)
    step = step_peak(family, models, batch, side, checkpoints(precision))
    return Sizes(
        weight_bytes(vae), text, frozen, encoding, drawing, dequantised, step, drawn, text_layer
    )


def pictures_peaks(vae: Any, resolution: int, tiling: bool) -> tuple[int, int]:
    """The most bytes held while the VAE encodes a square picture, and while it decodes one."""
    picture = torch.empty(1, 3, resolution, resolution, device="meta", dtype=vae.dtype)
    side = resolution // vae_scale(vae.config)
    latent = picture.new_empty(1, vae.config["latent_channels"], side, side)
    encoding = without_gradients(vae.encode, picture)
    if tiling:
        tile_vae(vae)
    return encoding, without_gradients(vae.decode, latent)
