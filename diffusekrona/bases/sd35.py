"""Stable Diffusion 3.5: a double-stream transformer on flow matching, with CLIP and T5 text states.

Experimental: trained on tiny models only, and drawn as diffusers' pipeline draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .base import (
    USUAL_TRAINING,
    DrawingDefaults,
    Family,
    Objective,
    TextStates,
    end_not_read,
)
from .flow import flow_refusal, load_flow_objective
from .offload import input_device

CLIP_TOKENS, T5_TOKENS = 77, 256  # as StableDiffusion3Pipeline reads them
_LENGTHS = (CLIP_TOKENS, CLIP_TOKENS, T5_TOKENS)
# diffusers' SD3Transformer2DModel takes these for keys that a config leaves out.
_PATCH, _TEXT_WIDTH, _POOLED_WIDTH = 2, 4096, 2048


class StableDiffusion35Family(Family):
    """Stable Diffusion 3.5 medium and large, and 3; text encoders stay frozen."""

    def resembles(self, config: Mapping[str, Any]) -> bool:
        return config.get("_class_name") == self.denoiser_class

    def refusal(self, config: Mapping[str, Any], index: Mapping[str, Any]) -> str | None:
        missing = [n for n in self.text_encoders if n in index and index[n][-1] is None]
        return f"a pipeline without {missing[0]}" if missing else None

    def schedule_refusal(self, config: Mapping[str, Any]) -> str | None:
        return flow_refusal(config)

    def side_step(self, config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> int:
        return self.latent_scale(vae_config) * config.get("patch_size", _PATCH)

    def text_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {
            "prompt_embeds": (self.tokens, config.get("joint_attention_dim", _TEXT_WIDTH)),
            "pooled_prompt_embeds": (config.get("pooled_projection_dim", _POOLED_WIDTH),),
        }

    def load_objective(self, base: str, **options: Any) -> Objective:
        return load_flow_objective(base, _PATCH, **options)

    def token_ids(self, tokenizers: Sequence[Any], prompts: Sequence[str]) -> list[torch.Tensor]:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return [
            tokenizer(list(prompts), max_length=length, **options).input_ids
            for tokenizer, length in zip(tokenizers, _LENGTHS, strict=True)
        ]

    def words_lost(self, tokenizers: Sequence[Any], prompt: str) -> str | None:
        """Of T5, which reads on where CLIP ends."""
        ids = tokenizers[-1](prompt, truncation=False).input_ids
        return end_not_read(tokenizers[-1], ids, T5_TOKENS, end_marks=1)

    def encode_text(
        self, encoders: Mapping[str, Any], tokens: Sequence[torch.Tensor]
    ) -> TextStates:
        """The last but one hidden states of both CLIP encoders side by side, then T5's; and CLIP's
        pooled states."""
        *clips, t5 = (encoders[name] for name in self.text_encoders)
        outputs = [
            clip(ids.to(input_device(clip)), output_hidden_states=True)
            for clip, ids in zip(clips, tokens[:-1], strict=True)
        ]
        joined = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        states = t5(tokens[-1].to(input_device(t5)))[0]
        joined = F.pad(joined, (0, states.shape[-1] - joined.shape[-1]))
        return {
            "prompt_embeds": torch.cat([joined, states], dim=-2),
            "pooled_prompt_embeds": torch.cat([output.text_embeds for output in outputs], dim=-1),
        }

    def predict(
        self,
        denoiser: Any,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: Mapping[str, torch.Tensor],
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=text["prompt_embeds"],
            pooled_projections=text["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return prediction


SD35 = StableDiffusion35Family(
    name="sd35",
    title="Stable Diffusion 3.5",
    pipeline="StableDiffusion3Pipeline",
    denoiser="transformer",
    denoiser_class="SD3Transformer2DModel",
    text_encoders={
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    tokenizers={
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "tokenizer_3": "T5TokenizerFast",
    },
    tokens=CLIP_TOKENS + T5_TOKENS,
    text_states={"prompt_embeds": 3, "pooled_prompt_embeds": 2},
    channels=16,
    resolution=1024,
    default_base="stabilityai/stable-diffusion-3.5-medium",
    letters={
        "k": ("to_k", "add_k_proj"),
        "q": ("to_q", "add_q_proj"),
        "v": ("to_v", "add_v_proj"),
        "o": ("to_out.0", "to_add_out"),
    },
    feed_forward=(
        *("ff.net.0.proj", "ff.net.2"),
        *("ff_context.net.0.proj", "ff_context.net.2"),
    ),
    text_letters={},
    large=True,
    loss_settings=("weighting_scheme",),
    drawing=DrawingDefaults(guidance=4.5, steps=40, precision="bf16"),
    usual={**USUAL_TRAINING, "mixed_precision": "bf16", "gradient_checkpointing": True},
)
