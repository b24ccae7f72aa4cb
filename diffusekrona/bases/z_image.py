"""Z-Image: a single-stream transformer on flow matching, with Qwen3 text states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import qwen
from .base import USUAL_TRAINING, DrawingDefaults, Family, Objective, TextStates
from .flow import TRAIN_TIMESTEPS, flow_refusal, load_flow_objective
from .loading import read_json_of
from .offload import input_device

PATCH = 2  # latents per token, along one side
TURBO_SHIFT = 3.0
# diffusers' ZImageTransformer2DModel takes these for keys that a config leaves out.
_CAPTION = 2560
THINKING = True  # as ZImagePipeline sets the chat template's option

_LISTS = ("layers", "noise_refiner", "context_refiner")


class ZImageFamily(Family):
    """Z-Image and its fine-tunes; the transformer takes lists, and captions without padding."""

    def resembles(self, config: Mapping[str, Any]) -> bool:
        return config.get("_class_name") == self.denoiser_class

    def refusal(self, config: Mapping[str, Any], index: Mapping[str, Any]) -> str | None:
        if config.get("siglip_feat_dim") is not None:
            return "a Z-Image Omni model, which takes pictures as conditions"
        return None

    def schedule_refusal(self, config: Mapping[str, Any]) -> str | None:
        return flow_refusal(config)

    def is_distilled(self, base: str, revision: str | None) -> bool:
        """Only the schedule tells them apart: Z-Image-Turbo's shift is 3, Z-Image's 6."""
        schedule = read_json_of(base, "scheduler", "scheduler_config.json", revision)
        return schedule.get("shift") == TURBO_SHIFT

    def side_step(self, config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> int:
        return self.latent_scale(vae_config) * PATCH

    def text_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        width = config.get("cap_feat_dim", _CAPTION)
        return {"prompt_embeds": (self.tokens, width), "prompt_mask": (self.tokens,)}

    def load_objective(self, base: str, **options: Any) -> Objective:
        return load_flow_objective(base, PATCH, **options)

    def token_ids(self, tokenizers: Sequence[Any], prompts: Sequence[str]) -> list[torch.Tensor]:
        return qwen.token_ids(tokenizers[0], prompts, self.tokens, THINKING)

    def words_lost(self, tokenizers: Sequence[Any], prompt: str) -> str | None:
        return qwen.words_lost(tokenizers[0], prompt, self.tokens, THINKING)

    def encode_text(
        self, encoders: Mapping[str, Any], tokens: Sequence[torch.Tensor]
    ) -> TextStates:
        """The last but one hidden state, and which of its rows are the prompt's."""
        encoder = encoders["text_encoder"]
        ids, mask = (each.to(input_device(encoder)) for each in tokens)
        output = encoder(
            input_ids=ids, attention_mask=mask.bool(), output_hidden_states=True, use_cache=False
        )
        states = output.hidden_states[-2]
        return {"prompt_embeds": states, "prompt_mask": mask.to(states.dtype)}

    def sample_latents(
        self, moments: torch.Tensor, noise: torch.Tensor, vae_config: Mapping[str, Any]
    ) -> torch.Tensor:
        """The mean, as diffusers' training scripts take it; `noise` plays no part."""
        return super().sample_latents(moments, torch.zeros_like(noise), vae_config)

    def predict(
        self,
        denoiser: Any,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: Mapping[str, torch.Tensor],
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        """The velocity from picture to noise: the model gives its opposite, and its time runs from
        0 at noise to 1 at the picture."""
        output = denoiser(
            list(noisy.unsqueeze(2)),  # of one frame each
            (TRAIN_TIMESTEPS - timesteps) / TRAIN_TIMESTEPS,
            captions(text["prompt_embeds"], text["prompt_mask"]),
            return_dict=False,
        )[0]
        return -torch.stack(list(output)).squeeze(2)

    def draw(self, pipeline: Any, text: Mapping[str, torch.Tensor], **options: Any) -> torch.Tensor:
        lists = {
            f"{sign}prompt_embeds": captions(
                text[f"{sign}prompt_embeds"], text[f"{sign}prompt_mask"]
            )
            for sign in ("", "negative_")
            if f"{sign}prompt_embeds" in text
        }
        latents: torch.Tensor = pipeline(**lists, output_type="latent", **options).images
        return latents


def captions(embeds: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Text states (n, tokens, width) to those of each caption, without its padding.

    The mask decides shapes: one in host memory (`host_states`) spares waiting for the device. On
    the meta device, where it has no contents, every token counts: the most there can be.
    """
    if mask.is_meta:
        return list(embeds)
    rows = [torch.nonzero(row).flatten().tolist() for row in mask.cpu()]
    return [states[own[0] : own[-1] + 1] for states, own in zip(embeds, rows, strict=True)]


Z_IMAGE = ZImageFamily(
    name="z-image",
    title="Z-Image",
    pipeline="ZImagePipeline",
    denoiser="transformer",
    denoiser_class="ZImageTransformer2DModel",
    text_encoders={"text_encoder": "Qwen3Model"},
    tokenizers={"tokenizer": "Qwen2Tokenizer"},
    tokens=512,
    text_states={"prompt_embeds": 3, "prompt_mask": 2},
    host_states=("prompt_mask",),
    channels=16,
    resolution=1024,
    default_base="Tongyi-MAI/Z-Image",
    letters={"k": ("to_k",), "q": ("to_q",), "v": ("to_v",), "o": ("to_out.0",)},
    feed_forward=("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    text_letters={},
    large=True,
    block_lists=_LISTS,
    block_layers=dict.fromkeys(
        _LISTS,
        (
            *(f"attention.{end}" for end in ("to_q", "to_k", "to_v", "to_out.0")),
            *(f"feed_forward.w{n}" for n in (1, 2, 3)),
            "adaLN_modulation.0",
        ),
    ),
    other_names={
        blocks: (
            blocks,
            {"attention.qkv": "attention.to_qkv", "attention.out": "attention.to_out.0"},
        )
        for blocks in _LISTS
    },
    joint_layers={"to_qkv": ("to_q", "to_k", "to_v")},
    loss_settings=("weighting_scheme",),
    drawing=DrawingDefaults(guidance=4.0, precision="bf16"),
    distilled=DrawingDefaults(guidance=0.0, steps=8, precision="bf16"),
    # Of 3840 x 3840 layers: a quarter of LoRA r=4's parameters; (4, 64) would have nearly twice.
    defaults={"a1": 64, "a2": 64},
    usual={**USUAL_TRAINING, "mixed_precision": "bf16", "gradient_checkpointing": True},
)
