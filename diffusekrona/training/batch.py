"""A training step's batch, and its loss."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..adapters.groups import without_adapters
from ..bases.base import Objective
from ..common.seeds import seed_for
from ..data.cache import Data
from ..data.captions import choose_caption
from ..data.folder import batches
from ..data.latents import Item
from .losses import batch_loss, draw
from .resolved_run import ResolvedRun
from .settings import LossSettings, OptimisationSettings


def make_batch(
    optimisation: OptimisationSettings,
    loss: LossSettings,
    data: Data,
    accelerator: Any,
    objective: Objective,
    number: int,
) -> dict[str, Any]:
    """This process's share of micro-step `number`, a pure function of (seed, number).

    Returns:
        "moments" (n, 2c, h, w), "posterior" and "noise" (n, c, h, w), "timesteps" (n,),
        "time_ids" (n, 6), where there are masks "mask" (n, 1, h, w), and where pictures have
        weights "weight" (n,), on the device, and "captions" (n); class samples come last: as many
        as of the subject.
    """
    seed, processes = optimisation.seed, accelerator.num_processes
    per_device = optimisation.train_batch_size
    everyone = per_device * processes
    mine = slice(
        accelerator.process_index * per_device, (accelerator.process_index + 1) * per_device
    )
    torch.manual_seed(seed_for(seed, "model", number, accelerator.process_index))
    numbers = range(number * everyone, (number + 1) * everyone)[mine]
    size, chosen = pick(data.instance, everyone, seed, number)
    samples = [
        (item, seed_for(seed, "instance", n)) for item, n in zip(chosen[mine], numbers, strict=True)
    ]
    if data.prior:
        _, chosen = pick(data.prior, everyone, seed, number)
        samples += [
            (item, seed_for(seed, "class", n))
            for item, n in zip(chosen[mine], numbers, strict=True)
        ]
    elif data.preserved is not None:
        samples += [
            (
                replace(
                    item,
                    captions=(data.preserved,),
                    caption_dropout=0.0,
                    weight=1.0,
                    regularisation=False,
                ),
                seed_for(seed, "class", n),
            )
            for (item, _), n in zip(samples, numbers, strict=True)
        ]
    generators = [torch.Generator().manual_seed(own) for _, own in samples]
    variants = []
    for (item, _), generator in zip(samples, generators, strict=True):
        choices = item.variants[size]
        variants.append(choices[int(torch.randint(len(choices), (), generator=generator))])
    moments = torch.stack([variant.moments for variant in variants])
    channels = moments.shape[1] // 2
    posterior, noise, timesteps = draw(
        generators,
        (channels, *moments.shape[2:]),
        objective,
        loss.noise_offset,
    )
    tensors = {
        "moments": moments,
        "posterior": posterior,
        "noise": noise,
        "timesteps": timesteps,
        "time_ids": torch.stack([variant.time_ids for variant in variants]),
    }
    if data.masked:
        whole = torch.ones(1, *moments.shape[2:])
        of_subject = per_device if data.preserved is not None else len(variants)
        masks = [
            whole if variant.mask is None or place >= of_subject else variant.mask
            for place, variant in enumerate(variants)
        ]
        tensors["mask"] = torch.stack(masks)
    if data.weighted:
        weights = [
            item.weight * (loss.prior_loss_weight if item.regularisation else 1)
            for item, _ in samples
        ]
        tensors["weight"] = torch.tensor(weights, dtype=torch.float32)
    batch = {name: to_device(tensor, accelerator.device) for name, tensor in tensors.items()}
    captions = [choose_caption(item.captions, item.caption_dropout, own) for item, own in samples]
    return {**batch, "captions": captions}


def to_device(tensor: Any, device: Any) -> Any:
    """A tensor on its way to `device`; only from pinned memory does a GPU's copy not hold us up."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def pick(
    items: list[Item], batch_size: int, seed: int, number: int
) -> tuple[tuple[int, int], list[Item]]:
    """The items of batch `number`, all of one size, and that size (height, width)."""
    items = [item for item in items for _ in range(item.repeats)]
    sizes = tuple(next(iter(item.variants)) for item in items)
    epoch, place = divmod(number, len(epoch_batches(sizes, batch_size, seed, 0)))
    chosen = epoch_batches(sizes, batch_size, seed, epoch)[place]
    return sizes[chosen[0]], [items[i] for i in chosen]


@functools.lru_cache(maxsize=4)
def epoch_batches(
    sizes: tuple[tuple[int, int], ...], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """`data.folder.batches`, remembered for the epoch at hand."""
    return batches(sizes, batch_size, seed, epoch)


def training_loss(
    settings: LossSettings,
    resolved: ResolvedRun,
    data: Data,
    models: dict[str, Any],
    objective: Objective,
    batch: dict[str, Any],
) -> Any:
    """The loss of one batch, a scalar with gradients to the factors."""
    family = resolved.family
    latents = family.sample_latents(batch["moments"], batch["posterior"], data.vae_config)
    noise, timesteps = batch["noise"], batch["timesteps"]
    noisy = objective.add_noise(latents, noise, timesteps).to(data.dtype)
    text = text_of(resolved, data, models, batch["captions"], latents.device)
    text = {name: state.to(data.dtype) for name, state in text.items()}
    denoiser = models[family.denoiser]
    num_prior = len(noise) // 2 if data.prior or data.preserved is not None else 0
    preserved = None
    if data.preserved is not None:
        preserved = base_prediction(
            resolved, data, models, noisy[-num_prior:], timesteps[-num_prior:],
            batch["captions"][-num_prior:], batch["time_ids"][-num_prior:],
        )  # fmt: skip
    prediction = family.predict(denoiser, noisy, timesteps, text, batch["time_ids"])
    return batch_loss(
        settings, objective, prediction, latents, noise, timesteps, num_prior,
        mask=batch.get("mask"), preserved=preserved, sample_weight=batch.get("weight"),
    )  # fmt: skip


@torch.no_grad()
def base_prediction(
    resolved: ResolvedRun,
    data: Data,
    models: dict[str, Any],
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    captions: Sequence[str],
    time_ids: torch.Tensor,
) -> torch.Tensor:
    """What the base predicts without adapters: (n, c, h, w) of noisy latents (n, c, h, w)."""
    family = resolved.family
    with without_adapters(models.values()):
        text = text_of(resolved, data, models, captions, noisy.device)
        text = {name: state.to(data.dtype) for name, state in text.items()}
        return family.predict(models[family.denoiser], noisy, timesteps, text, time_ids)


def plain_loss(
    resolved: ResolvedRun,
    data: Data,
    models: dict[str, Any],
    objective: Objective,
    batch: dict[str, Any],
) -> Any:
    """The loss of a batch without pictures of the class, as the default settings have it: a scalar
    that can be compared between runs that train with different losses."""
    data = replace(data, prior=[], preserved=None)
    return training_loss(LossSettings(), resolved, data, models, objective, batch)


def text_of(
    resolved: ResolvedRun, data: Data, models: dict[str, Any], captions: Sequence[str], device: Any
) -> dict[str, Any]:
    """The batch's text states: from the cache, or through the encoders that are trained."""
    if not data.text_encoders:
        family = resolved.family
        states = family.stack_text([data.states[caption] for caption in captions])
        return {
            name: state if name in family.host_states else to_device(state, device)
            for name, state in states.items()
        }
    columns = zip(*(data.ids[caption] for caption in captions), strict=True)
    ids = [to_device(torch.cat(column), device) for column in columns]
    return resolved.family.encode_text(models, ids)
