"""Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .base import USUAL_TRAINING, FileNames, TextStates
from .sd import (
    CLIP_LETTERS,
    CROSS_ATTENTION,
    FEED_FORWARD,
    TOKENS,
    UNET_LETTERS,
    StableDiffusion,
    for_encoder,
)

REFINER_CONTEXT, REFINER_EMBEDDING = 1280, 2560  # one text encoder, five time ids


class StableDiffusionXL(StableDiffusion):
    """As Stable Diffusion, with two text encoders, a pooled text state and sizes as conditions."""

    def resembles(self, config: Mapping[str, Any]) -> bool:
        same = config.get("_class_name", self.denoiser_class) == self.denoiser_class
        return same and config.get("addition_embed_type") == "text_time"

    def refusal(self, config: Mapping[str, Any], index: Mapping[str, Any]) -> str | None:
        widths = [config.get("cross_attention_dim")]
        widths.append(config.get("projection_class_embeddings_input_dim"))
        if index.get("requires_aesthetics_score") or widths == [REFINER_CONTEXT, REFINER_EMBEDDING]:
            return "the SDXL refiner, which finishes pictures (inference takes it as --refiner)"
        return super().refusal(config, index)

    def text_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        sizes = 6 * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - sizes
        return {**super().text_shapes(config), "pooled_prompt_embeds": (pooled,)}

    def encode_text(
        self, encoders: Mapping[str, Any], tokens: Sequence[torch.Tensor]
    ) -> TextStates:
        """The last but one hidden state of both encoders, joined, and the second's pooled state."""
        states, output = [], None
        for name, ids in zip(self.text_encoders, tokens, strict=True):
            encoder = encoders[name]
            output = encoder(for_encoder(ids, encoder), output_hidden_states=True)
            states.append(output.hidden_states[-2])
        assert output is not None
        return {
            "prompt_embeds": torch.cat(states, dim=-1),
            "pooled_prompt_embeds": output.text_embeds,
        }

    def predict(
        self,
        denoiser: Any,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: Mapping[str, torch.Tensor],
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        pooled = text["pooled_prompt_embeds"]
        prediction: torch.Tensor = denoiser(
            noisy,
            timesteps,
            encoder_hidden_states=text["prompt_embeds"],
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids.to(pooled.dtype)},
        ).sample
        return prediction

    def pipeline_parts(self) -> dict[str, Any]:
        return {}


SDXL = StableDiffusionXL(
    name="sdxl",
    title="Stable Diffusion XL",
    pipeline="StableDiffusionXLPipeline",
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    text_encoders={
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    },
    tokenizers={"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"},
    tokens=TOKENS,
    text_states={"prompt_embeds": 3, "pooled_prompt_embeds": 2},
    resolution=1024,
    default_base="stabilityai/stable-diffusion-xl-base-1.0",
    letters=UNET_LETTERS,
    feed_forward=FEED_FORWARD,
    text_letters=CLIP_LETTERS,
    cross_attention=CROSS_ATTENTION,
    usual={**USUAL_TRAINING, "gradient_checkpointing": True},
    files=FileNames(
        context=2048,
        sgm=True,
        numbered=True,
        linear_projection=True,
        version="sdxl_base_v1-0",
        v_version="sdxl_base_v1-0",
        version_prefix="sdxl_",
        architecture="stable-diffusion-xl-v1-base",
        v_architecture="stable-diffusion-xl-v1-base",
        architecture_prefix="stable-diffusion-xl",
        text_layouts=("clip", "open_clip"),
        text_prefixes=("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
        text_width=768,
        widths={
            "down_blocks.1": 640,
            "down_blocks.2": 1280,
            "up_blocks.0": 1280,
            "up_blocks.1": 640,
        },
    ),
)
