"""Everything about the data that does not change from step to step, computed once.

Pictures become latent distributions (mean and std, so that each step still samples), captions
become text states. After that the VAE and the text encoders are not needed any more.
"""

from __future__ import annotations

import argparse
import gc
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from . import backbones
from .data import bucket_sizes, nearest_bucket
from .errors import UserError
from .losses import seed_for
from .pictures import fit_picture, load_picture, to_tensor

if TYPE_CHECKING:
    from .plan import Plan

RANDOM_CROPS = 4  # cached random crops of a picture that does not have the target's shape


@dataclass
class Variant:
    """One crop of one picture, flipped or not.

    Attributes:
        moments: (2c, h, w) mean and std of the latents, fp32 on the CPU.
        time_ids: (6,) original height, width, crop top, left, target height, width, in pixels.
    """

    moments: torch.Tensor
    time_ids: torch.Tensor


@dataclass
class Item:
    """A picture with its caption: its variants at each size (height, width) that is trained."""

    caption: str
    variants: dict[tuple[int, int], list[Variant]]


@dataclass(frozen=True)
class Cropping:
    """How pictures are cut: `center` or random places, and whether mirrored copies are added."""

    center: bool = False
    flip: bool = False
    seed: int = 0


@dataclass
class Data:
    """What the loop reads.

    Attributes:
        instance: the subject's pictures, each at one size.
        prior: pictures of the class, each at every size of the instance's; empty without.
        states: text states of every caption and validation prompt, and of "".
        ids: token ids of every caption, one tensor (1, tokens) an encoder; for trained encoders.
        text_encoders: the encoders that are trained, on the device; empty otherwise.
        vae_config: of the VAE that made the latents.
        dtype: that the denoiser computes in.
    """

    instance: list[Item]
    prior: list[Item]
    states: dict[str, dict[str, torch.Tensor]]
    ids: dict[str, list[torch.Tensor]]
    text_encoders: dict[str, Any]
    vae_config: Mapping[str, Any]
    dtype: torch.dtype


DTYPES = {"no": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def prepare_data(
    args: argparse.Namespace,
    plan: Plan,
    accelerator: Any,
    pictures: Sequence[Path],
    captions: Sequence[str],
) -> Data:
    """Pictures and captions to cached latents and text states; VAE and encoders are then freed."""
    dtype = DTYPES[accelerator.mixed_precision]
    show = accelerator.is_local_main_process
    class_pictures: list[Path] = []
    if args.with_prior_preservation:
        from .class_images import draw_class_pictures

        class_pictures = draw_class_pictures(
            accelerator,
            plan.base,
            args.class_prompt,
            args.class_data_dir,
            args.num_class_images,
            args.sample_batch_size,
            dtype,
        )
    hub = {"revision": args.revision, "variant": args.variant}
    cropping = Cropping(args.center_crop, args.random_flip, args.seed)
    sizes = [(plan.resolution, plan.resolution)] * len(pictures)
    if args.aspect_ratio_buckets:
        buckets = bucket_sizes(plan.resolution, plan.pixel_step)
        sizes = [nearest_bucket(load_picture(p).size[::-1], buckets) for p in pictures]
    other_vae, vae_dtype = args.pretrained_vae_model_name_or_path, DTYPES[args.vae_dtype]
    vae = backbones.load_vae(plan.base, other_vae, torch_dtype=vae_dtype, **hub)
    vae = vae.to(accelerator.device)
    each = [[size] for size in sizes]
    instance = cache_pictures(vae, pictures, captions, each, cropping, show)
    every = [sorted(set(sizes))] * len(class_pictures)
    prior_captions = [args.class_prompt] * len(class_pictures)
    prior = cache_pictures(vae, class_pictures, prior_captions, every, cropping, show)
    vae_config = dict(vae.config)
    del vae

    tokenizers = backbones.load_tokenizers(plan.base, plan.family, revision=args.revision)
    encoders = backbones.load_text_encoders(plan.base, plan.family, torch_dtype=dtype, **hub)
    encoders = {name: encoder.to(accelerator.device) for name, encoder in encoders.items()}
    trained_on = [*captions, *prior_captions]
    states = cache_texts(
        plan.family, tokenizers, encoders, [*trained_on, *(args.validation_prompt or []), ""]
    )
    ids = {
        prompt: backbones.tokenize(tokenizers, [prompt])
        for prompt in dict.fromkeys(trained_on)
        if args.train_text_encoder
    }
    kept = encoders if args.train_text_encoder else {}
    del encoders
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Data(instance, prior, states, ids, kept, vae_config, dtype)


@torch.no_grad()
def cache_pictures(
    vae: Any,
    pictures: Sequence[Path],
    captions: Sequence[str],
    sizes: Sequence[Sequence[tuple[int, int]]],
    cropping: Cropping,
    progress: bool = True,
) -> list[Item]:
    """Encode every picture at each of its sizes.

    Args:
        sizes: the (height, width) wanted of each picture, in pixels.
        cropping: random places are a pure function of its seed and the picture's number.

    Raises:
        UserError: a picture that cannot be read, or that the VAE turns into NaN.
    """
    items = []
    pairs = list(zip(pictures, captions, sizes, strict=True))
    bar = tqdm(pairs, desc="latents", unit="picture", disable=not progress or not pairs)
    for number, (path, caption, wanted) in enumerate(bar):
        picture = load_picture(path, min_size=max(max(size) for size in wanted))
        variants = {}
        for size in wanted:
            crops = _crop_places(picture.size[::-1], size, cropping, number)
            variants[size] = _encode(vae, picture, path, size, crops, cropping.flip)
        items.append(Item(caption, variants))
    return items


def _crop_places(
    have: tuple[int, int], want: tuple[int, int], cropping: Cropping, number: int
) -> list[tuple[float, float]]:
    same_shape = abs(have[0] * want[1] - have[1] * want[0]) < max(have[0], have[1])
    if cropping.center or same_shape:
        return [(0.5, 0.5)]
    chance = random.Random(seed_for(cropping.seed, "crop", number))
    return [(chance.random(), chance.random()) for _ in range(RANDOM_CROPS)]


def _encode(
    vae: Any,
    picture: Any,
    path: Path,
    size: tuple[int, int],
    crops: Sequence[tuple[float, float]],
    flip: bool,
) -> list[Variant]:
    variants = []
    for crop in crops:
        fitted, original, corner = fit_picture(picture, size, crop)
        pixels = to_tensor(fitted)
        time_ids = torch.tensor([*original, *corner, *size], dtype=torch.float32)
        for image in (pixels, pixels.flip(-1)) if flip else (pixels,):
            moments = backbones.encode_pictures(vae, image.unsqueeze(0))[0].cpu()
            if not torch.isfinite(moments).all():
                raise UserError(
                    f"The VAE gives NaN for {path} in {vae.dtype}: train with --vae_dtype fp32, or "
                    "give a VAE made for half precision with --pretrained_vae_model_name_or_path."
                )
            variants.append(Variant(moments, time_ids))
    return variants


@torch.no_grad()
def cache_texts(
    family: backbones.Family,
    tokenizers: Sequence[Any],
    encoders: Mapping[str, Any],
    prompts: Sequence[str],
) -> dict[str, dict[str, torch.Tensor]]:
    """Text states of each distinct prompt, on the CPU: prompt → name → (1, …) tensor."""
    states = {}
    for prompt in dict.fromkeys(prompts):
        one = backbones.text_states(family, encoders, backbones.tokenize(tokenizers, [prompt]))
        states[prompt] = {name: tensor.cpu() for name, tensor in one.items()}
    return states


def stack_states(states: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Join cached text states into a batch."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}
