"""The VAE: loading, tiling, and the normalisation of latents, written once for both directions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from ..common.errors import UserError
from ..common.paths import as_path, looks_local
from ..common.tensor_files import read_shapes
from .bundled import BUNDLED, bundled_models
from .loading import load_part, read_json_of, read_part_config
from .single_file_parts import UNET, VAE, SingleFile, write_configs

# What diffusers' AutoencoderKL takes for a key that an old config leaves out.
_DEFAULTS = {"block_out_channels": (64,), "latent_channels": 4, "scaling_factor": 0.18215}


def vae_place(base: str, other: str | None = None) -> tuple[str, str]:
    """(model, subfolder) of the VAE: the base's, or another given by itself or in a pipeline."""
    if other is None:
        return base, "vae"
    if as_path(other).is_file():
        return open_vae_file(str(as_path(other)), base), "vae"
    folder = BUNDLED / other if other in bundled_models() else as_path(other)
    if looks_local(other) and not folder.is_dir():
        raise UserError(
            f"No VAE at {other!r}: give the folder of one or of a pipeline, a .safetensors file, "
            "or a hub name like madebyollin/sdxl-vae-fp16-fix."
        )
    return str(folder) if folder.is_dir() else other, "vae" if (folder / "vae").is_dir() else ""


@cache
def open_vae_file(path: str, base: str) -> SingleFile:
    """A VAE in a file of its own, in diffusers' or the original layout, with the base's config.

    Raises:
        UserError: a pickle or a damaged file, or the base's config cannot be read.
    """
    keys = read_shapes(path)
    if not any(key.removeprefix(VAE).startswith("decoder.") for key in keys):
        raise UserError(f"{path} is not a VAE: no key begins with decoder.")
    if isinstance(base, SingleFile):
        config = json.loads((base.configs / "vae" / "config.json").read_text(encoding="utf-8"))
    else:
        config = read_json_of(base, "vae", "config.json")
    prefix = VAE if any(key.startswith((UNET, VAE)) for key in keys) else ""
    configs = write_configs({"vae/config.json": config})
    return SingleFile(path, configs, base, {"vae": prefix})


def read_vae_config(
    base: str, other: str | None = None, revision: str | None = None
) -> dict[str, Any]:
    """The VAE's config, with AutoencoderKL's defaults for keys that old configs leave out.

    Raises:
        UserError: it cannot be read.
    """
    place, subfolder = vae_place(base, other)
    config = read_part_config(place, subfolder, revision if other is None else None)
    known = config.get("_class_name", "AutoencoderKL") == "AutoencoderKL"
    return _DEFAULTS | config if known else config


def load_vae(
    base: str,
    other: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    kind: str = "AutoencoderKL",
    **options: Any,
) -> Any:
    """The frozen VAE, in the precision of its files unless `torch_dtype` is given.

    Args:
        revision, variant: of the base; another VAE's repository has its own.

    Raises:
        UserError: it cannot be loaded.
    """
    place, subfolder = vae_place(base, other)
    if other is None:
        options |= {"revision": revision, "variant": variant}
    vae = load_part(place, kind, subfolder, **options)
    return vae.requires_grad_(False).eval()


def channels_last(vae: Any) -> Any:
    """Lay a VAE's weights so that its convolutions run on channels-last tensors, which is faster on
    a CPU (benchmarks/vae_layout.py)."""
    return vae.to(memory_format=torch.channels_last)


def vae_scale(config: Mapping[str, Any]) -> int:
    """Pixels per latent along one side, from the VAE's config."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def tile_vae(vae: Any) -> None:
    """Let an AutoencoderKL encode and decode overlapping tiles of at most 512 pixels per side."""
    scale = vae_scale(vae.config)
    vae.enable_tiling()
    vae.tile_sample_min_size = min(512, vae.tile_sample_min_size)
    vae.tile_latent_min_size = vae.tile_sample_min_size // scale


def encode_pictures(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures (n, 3, H, W) in [-1, 1] to the latent distribution's mean and std (n, 2c, h, w)."""
    distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return torch.cat([distribution.mean, distribution.std], dim=1).float()


def normalise(latents: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """What a VAE encodes (n, c, h, w) to what a denoiser is trained on.

    A VAE with `latents_mean` and `latents_std` is normalised channel by channel: the inverse of
    what diffusers' pipelines do before they decode.
    """
    latents = latents - (config.get("shift_factor") or 0.0)
    statistics = _statistics(latents, config)
    if statistics is None:
        return latents * config["scaling_factor"]
    mean, std = statistics
    return (latents - mean) * config["scaling_factor"] / std


def denormalise(latents: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """The inverse of `normalise`.

    Source: diffusers' `StableDiffusionXLPipeline.__call__`, the step before `vae.decode`.
    """
    latents = latents / config["scaling_factor"]
    statistics = _statistics(latents, config)
    if statistics is not None:
        mean, std = statistics
        latents = latents * std + mean
    return latents + (config.get("shift_factor") or 0.0)


def _statistics(
    latents: torch.Tensor, config: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    if not (config.get("latents_mean") and config.get("latents_std")):
        return None
    mean, std = (
        latents.new_tensor(config[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std")
    )
    return mean, std
