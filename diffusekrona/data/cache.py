"""Everything about the data that does not change from step to step, computed once.

Pictures become latent distributions (mean and std, so that each step still samples), captions
become text states. After that the VAE and the text encoders are not needed any more. Both are kept
on the disk, and what is found there needs neither loaded.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.training_utils import free_memory

from ..bases.base import Family
from ..bases.offload import offload_layers
from ..bases.precision import dtype_of
from ..bases.settings import BaseSettings, PrecisionSettings
from ..bases.vae import channels_last, vae_place
from ..common.prompts import warn_of_syntax
from .disk_cache import OFF, DiskCache, cache_of, origin
from .examples import Example, sizes_of
from .latents import Item, cache_pictures
from .photographs import report_photographs
from .settings import DataSettings, PriorSettings

log = logging.getLogger(__name__)


class ReadBase(Protocol):
    """A base model whose configs have been read.

    Attributes:
        base: its folder or hub name.
        family: its family.
        resolution: pixels per side of the pictures trained on.
        pixel_step: what picture sides must be multiples of, in pixels.
        vae_config: of the VAE that makes the latents.
    """

    base: str
    family: Family
    resolution: int
    pixel_step: int
    vae_config: Mapping[str, Any]


@dataclass
class Data:
    """What the loop reads.

    Attributes:
        instance: the subject's pictures, each at one size.
        prior: pictures of the class, each at every size of the instance's; empty without.
        states: text states of every caption and validation prompt, and of ""; empty when the
            encoders are trained.
        ids: token ids of every caption, one tensor (1, tokens) an encoder; for trained encoders.
        text_encoders: the encoders that are trained, on the device; empty otherwise.
        vae_config: of the VAE that made the latents.
        dtype: that the denoiser computes in.
        held_out: pictures that are not trained on, cropped in the middle.
        preserved: prompt of the class that is to stay as the base has it, without class pictures.
    """

    instance: list[Item]
    prior: list[Item]
    states: dict[str, dict[str, torch.Tensor]]
    ids: dict[str, list[torch.Tensor]]
    text_encoders: dict[str, Any]
    vae_config: Mapping[str, Any]
    dtype: torch.dtype
    held_out: list[Item] = field(default_factory=list[Item])
    preserved: str | None = None

    @property
    def masked(self) -> bool:
        """Whether a picture has a mask."""
        found = (v for item in self.instance for some in item.variants.values() for v in some)
        return any(variant.mask is not None for variant in found)

    @property
    def weighted(self) -> bool:
        """Whether any picture's loss has a weight of its own."""
        return any(item.weight != 1 or item.regularisation for item in self.instance)


def prepare_data(
    base: BaseSettings,
    data: DataSettings,
    prior: PriorSettings,
    precision: PrecisionSettings,
    resolved: ReadBase,
    accelerator: Any,
    examples: Sequence[Example],
    *,
    seed: int,
    train_text_encoder: bool,
    validation_prompts: Sequence[str],
    held_out: Sequence[Example] = (),
) -> Data:
    """Pictures and captions to cached latents and text states; VAE and encoders are then freed.

    Args:
        seed: of the random crops.
        train_text_encoder: keep the text encoders, and token ids in place of text states.
        validation_prompts: whose text states are needed as well.
        held_out: pictures that are measured with and not trained on.
    """
    dtype = dtype_of(accelerator.mixed_precision)
    show = accelerator.is_local_main_process
    report_photographs(base.pretrained_model_name_or_path, [example.path for example in examples])
    class_pictures = _class_pictures(base, prior, precision, resolved, accelerator, examples)
    preserved = prior.class_prompt if prior.preserve_class else None
    sizes = sizes_of(examples, resolved.resolution, resolved.pixel_step)
    each, every = [[size] for size in sizes], [sorted(set(sizes))] * len(class_pictures)
    cut = {"center_crop": data.center_crop, "random_flip": data.random_flip}
    of_class = [Example(path, (prior.class_prompt or "",), **cut) for path in class_pictures]
    cache = cache_of(data)

    vae, cache_key = _vae_and_origin(base, precision, resolved, accelerator, cache)
    latents = functools.partial(
        cache_pictures,
        resolved.family,
        vae,
        seed=seed,
        cache=cache if cache_key["vae"] else OFF,
        cache_key=cache_key,
    )
    instance = latents(examples, each, progress=show)
    of_prior = latents(of_class, every, progress=show)
    held_out = [replace(one, center_crop=True, random_flip=False) for one in held_out]
    of_held_out = [[size] for size in sizes_of(held_out, resolved.resolution, resolved.pixel_step)]
    kept = latents(held_out, of_held_out, progress=show)
    loaded = vae.cache_info().currsize
    del vae, latents
    if loaded:
        free_memory()
    texts = [
        caption for example in (*examples, *of_class, *held_out) for caption in example.captions
    ]
    texts += [preserved] * (preserved is not None)
    texts += [""] * any(example.caption_dropout for example in examples)
    if train_text_encoder:
        states: dict[str, dict[str, torch.Tensor]] = {}
        ids, encoders = _token_ids(base, resolved, accelerator, texts)
    else:
        texts += [*validation_prompts, ""]
        offloaded = precision.low_vram and resolved.family.large
        states = _text_states(base, resolved, accelerator, cache, texts, offloaded)
        ids, encoders = {}, {}
    cache.shrink()
    if cache.found and accelerator.is_main_process:
        log.info("%d latents and text states found in %s", cache.found, cache.folder)
    return Data(
        instance, of_prior, states, ids, encoders, resolved.vae_config, dtype, kept, preserved
    )


def _class_pictures(
    base: BaseSettings,
    prior: PriorSettings,
    precision: PrecisionSettings,
    resolved: ReadBase,
    accelerator: Any,
    examples: Sequence[Example],
) -> list[Path]:
    """The pictures of the class, drawn as far as they are not there; none without prior
    preservation."""
    if not prior.with_prior_preservation:
        return []
    from .class_images import draw_class_pictures, refuse_pictures_of

    refuse_pictures_of([example.path for example in examples], prior.class_data_dir)
    return draw_class_pictures(
        accelerator,
        resolved.base,
        prior.class_prompt,
        prior.class_data_dir,
        prior.num_class_images,
        prior.sample_batch_size,
        low_vram=precision.low_vram,
        dtype=dtype_of(accelerator.mixed_precision),
        vae=base.pretrained_vae_model_name_or_path,
        revision=base.revision,
        variant=base.variant,
        **base.schedule(),
    )


def _vae_and_origin(
    base: BaseSettings,
    precision: PrecisionSettings,
    resolved: ReadBase,
    accelerator: Any,
    cache: DiskCache,
) -> tuple[Any, dict[str, Any]]:
    """The VAE, loaded when first called for, and what latents depend on beside the picture."""
    other = base.pretrained_vae_model_name_or_path
    place, subfolder = vae_place(resolved.base, other)
    revision = base.revision if other is None else None
    dtype = dtype_of(precision.vae_dtype)

    @functools.cache
    def vae() -> Any:
        hub = {"revision": base.revision, "variant": base.variant}
        loaded = resolved.family.load_vae(resolved.base, other, torch_dtype=dtype, **hub)
        loaded = loaded.to(accelerator.device)
        on_cpu = accelerator.device.type == "cpu"  # measured there only
        return channels_last(loaded) if on_cpu else loaded

    weights = cache.fingerprint(place, subfolder, revision)
    if weights is None:  # not downloaded yet, so nothing can have been made with them
        vae()
        weights = cache.fingerprint(place, subfolder, revision)
    return vae, {"vae": weights, "variant": base.variant, **origin(accelerator.device, dtype)}


def _encoders(
    base: BaseSettings, resolved: ReadBase, accelerator: Any, offloaded: bool = False
) -> tuple[list[Any], dict[str, Any]]:
    """Tokenizers, and the text encoders on the device, or of a GPU only the layer at work."""
    dtype = dtype_of(accelerator.mixed_precision)
    hub = {"revision": base.revision, "variant": base.variant}
    tokenizers = resolved.family.load_tokenizers(resolved.base, revision=base.revision)
    encoders = resolved.family.load_text_encoders(resolved.base, torch_dtype=dtype, **hub)
    if not (offloaded and accelerator.device.type == "cuda"):
        return tokenizers, {name: part.to(accelerator.device) for name, part in encoders.items()}
    for part in encoders.values():
        offload_layers(part, accelerator.device)
    return tokenizers, encoders


def _token_ids(
    base: BaseSettings, resolved: ReadBase, accelerator: Any, captions: Sequence[str]
) -> tuple[dict[str, list[torch.Tensor]], dict[str, Any]]:
    """Of encoders that are trained: token ids of each caption, and the encoders themselves."""
    tokenizers, encoders = _encoders(base, resolved, accelerator)
    warn_of_syntax(captions)
    family, prompts = resolved.family, dict.fromkeys(captions)
    return {prompt: family.tokenize(tokenizers, [prompt]) for prompt in prompts}, encoders


def _text_states(
    base: BaseSettings,
    resolved: ReadBase,
    accelerator: Any,
    cache: DiskCache,
    prompts: Sequence[str],
    offloaded: bool,
) -> dict[str, dict[str, torch.Tensor]]:
    """Text states of the prompts, from the disk or from encoders that are then freed."""
    load = functools.cache(lambda: _encoders(base, resolved, accelerator, offloaded))

    def weights() -> list[str | None]:
        names, tokens = resolved.family.text_encoders, resolved.family.tokenizers
        return [
            *(cache.fingerprint(resolved.base, name, base.revision) for name in names),
            *(
                cache.fingerprint(resolved.base, name, base.revision, weights=False)
                for name in tokens
            ),
        ]

    made_with = weights()
    if None in made_with:
        load()
        made_with = weights()
    cache_key = {"weights": made_with, "variant": base.variant, "family": resolved.family.name}
    cache_key |= origin(accelerator.device, dtype_of(accelerator.mixed_precision))
    cache = OFF if None in made_with else cache
    states = _cached_texts(resolved.family, load, prompts, cache, cache_key)
    if load.cache_info().currsize:
        load.cache_clear()
        free_memory()
    return states


def _cached_texts(
    family: Family,
    load: Callable[[], tuple[list[Any], dict[str, Any]]],
    prompts: Sequence[str],
    cache: DiskCache,
    cache_key: Mapping[str, Any],
) -> dict[str, dict[str, torch.Tensor]]:
    """Text states of the prompts: from the disk cache, or encoded and written to it."""
    shapes = {name: (1, *[None] * (n - 1)) for name, n in family.text_states.items()}
    states = {}
    warn_of_syntax(prompts)
    for prompt in dict.fromkeys(prompts):
        key = {"prompt": prompt, **cache_key}
        found = cache.read("texts", key, shapes)
        if found is None:
            tokenizers, encoders = load()
            states |= cache_texts(family, tokenizers, encoders, [prompt])
            warning = family.words_lost(tokenizers, prompt) or ""
            cache.write("texts", key, states[prompt], warning=warning)
            continue
        states[prompt], notes = found
        if notes.get("warning"):
            log.warning("%s", notes["warning"])
    return states


@torch.no_grad()
def cache_texts(
    family: Family,
    tokenizers: Sequence[Any],
    encoders: Mapping[str, Any],
    prompts: Sequence[str],
) -> dict[str, dict[str, torch.Tensor]]:
    """Text states of each distinct prompt, on the CPU: prompt → name → (1, …) tensor."""
    states = {}
    for prompt in dict.fromkeys(prompts):
        one = family.encode_text(encoders, family.tokenize(tokenizers, [prompt]))
        states[prompt] = {name: tensor.cpu() for name, tensor in one.items()}
    return states
