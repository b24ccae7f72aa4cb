"""How much memory a run is going to need, counted before anything loads.

One training step is run on torch's `meta` device, where tensors have shapes and no contents, while
every allocation and every release is counted. So the figure holds for any base, resolution, batch,
precision and kind of checkpointing, and no formula has to be kept in step with the libraries. What
shapes do not tell is left out: the CUDA context and the scratch space that kernels take inside.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import backbones
from .adapters import add_adapters
from .cache import DTYPES
from .memory_trace import step_peak, without_gradients
from .small_cards import quantisable, quantised_bytes, tile_vae

if TYPE_CHECKING:
    from .plan import Plan


@dataclass(frozen=True)
class Phase:
    """A part of a run: its name, and bytes by what they are for; their sum is its peak."""

    name: str
    parts: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def estimate(args: argparse.Namespace, plan: Plan) -> list[Phase]:
    """The phases of a run in order, each with its peak.

    Args:
        args: the training program's, with `mixed_precision` None counted as "no".

    Raises:
        UserError: a component's config cannot be read.
    """
    dtype = DTYPES[args.mixed_precision or "no"]
    other, revision = args.pretrained_vae_model_name_or_path, args.revision
    vae_config = backbones.read_vae_config(plan.base, other, revision)
    vae = build_empty("AutoencoderKL", vae_config, DTYPES[args.vae_dtype])
    encoders = {
        name: build_empty(kind, backbones.read_part_config(plan.base, name, revision), dtype)
        for name, kind in backbones.text_encoder_kinds(plan.family).items()
    }
    text = sum(map(weight_bytes, encoders.values()))
    unet = build_empty(
        "UNet2DConditionModel", backbones.read_unet_config(plan.base, revision), dtype
    )
    side = plan.resolution // 2 ** (len(vae_config["block_out_channels"]) - 1)
    picture = torch.empty(1, 3, plan.resolution, plan.resolution, device="meta", dtype=vae.dtype)
    latent = picture.new_empty(1, vae_config["latent_channels"], side, side)
    encoding, drawing = without_gradients(vae.encode, picture), 0
    if args.vae_tiling:
        tile_vae(vae)
    if args.validation_prompt:
        drawing = without_gradients(vae.decode, latent)
    models = {"unet": unet, **(encoders if args.train_text_encoder else {})}
    train = training(args, plan, models, side)
    phases = [
        Phase("pictures to latents", {"VAE": weight_bytes(vae), "activations": encoding}),
        Phase("captions to text states", {"text encoders": text}),
        train,
    ]
    if args.validation_prompt:
        kept = {name: size for name, size in train.parts.items() if name != "activations"}
        parts = {**kept, "VAE": weight_bytes(vae), "activations": drawing}
        phases.append(Phase("validation pictures", parts))
    return phases


def build_empty(kind: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A frozen component of the full size on the meta device, in `dtype`."""
    empty = backbones.build_empty(kind, config)
    return nn.Module.to(empty, dtype).requires_grad_(False)  # diffusers' own warns about nothing


def training(
    args: argparse.Namespace, plan: Plan, models: dict[str, nn.Module], side: int
) -> Phase:
    """The training loop's phase.

    Args:
        models: the UNet and the text encoders that are trained, without adapters, on the meta
            device, in the dtype that they compute in. They are changed.
        side: of the latents, which are square.
    """
    parts = {"base": weight_bytes(models["unet"], args.quantize_base)}
    if len(models) > 1:
        parts["text encoders"] = sum(weight_bytes(m) for n, m in models.items() if n != "unet")
    trained = add_adapters(plan.configs, models, "default")
    factors = sum(p.nbytes for p in trained)
    parts["factors"] = factors * (2 if args.use_ema else 1)
    parts["gradients"] = factors
    parts["optimizer"] = sum(state_bytes(args.optimizer, p) for p in trained)
    for parameter in trained:  # as in every later step of an accumulation; counted above
        parameter.grad = torch.empty_like(parameter)
    batch = args.train_batch_size * (2 if args.with_prior_preservation else 1)
    checkpoints = "none"
    if args.gradient_checkpointing:
        checkpoints = "host" if args.cpu_offload_checkpointing else "device"
    if args.quantize_base != "none":
        parts["one weight dequantised"] = max(
            layer.weight.nbytes for layer in quantisable(models["unet"]).values()
        )
    parts["activations"] = step_peak(plan.family, models, batch, side, checkpoints)
    return Phase("training", parts)


def weight_bytes(model: nn.Module, quantisation: str = "none") -> int:
    """Bytes of a model's weights and buffers, as `small_cards.quantise` keeps them."""
    tensors = [*model.parameters(), *model.buffers()]
    layers = quantisable(model).values() if quantisation != "none" else ()
    saved = sum(layer.weight.nbytes - quantised_bytes(layer, quantisation) for layer in layers)
    return sum(tensor.nbytes for tensor in tensors) - saved


def state_bytes(optimizer: str, parameter: nn.Parameter) -> int:
    """Bytes of an optimizer's state of one fp32 parameter.

    AdamW: two moments. In 8 bit: one byte each from 4096 values on, and a scale for every 256.
    Prodigy: two moments, the start and a sum.
    """
    count = parameter.numel()
    if optimizer == "adamw8bit" and count >= 4096:
        return 2 * (count + 4 * -(-count // 256))
    return count * 4 * (4 if optimizer == "prodigy" else 2)


def in_words(phases: Sequence[Phase]) -> str:
    """The estimate for people: the highest peak, what it is made of, and the other phases."""
    worst = max(phases, key=lambda phase: phase.peak)
    parts = ", ".join(f"{name} {gib(size)}" for name, size in worst.parts.items())
    others = "; ".join(f"{p.name} {gib(p.peak)}" for p in phases if p is not worst)
    return (
        f"about {gib(worst.peak)} GiB, in {worst.name} ({parts})\n    other phases: {others}\n"
        "    not counted: the CUDA context and the kernels' own scratch space"
    )


def gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
