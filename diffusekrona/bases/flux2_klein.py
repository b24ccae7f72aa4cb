"""FLUX.2-klein: a double- and single-stream transformer on flow matching, with Qwen3 text states.

Its single blocks compute q, k, v and the feed-forward's input in one layer, `to_qkv_mlp_proj`, and
both outputs in another, `to_out`. They are split here, so that q, k, v and o name the attention's
projections in all blocks and the rest is feed-forward.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from . import qwen
from .base import USUAL_TRAINING, DrawingDefaults, Family, Objective, TextStates
from .flow import TRAIN_TIMESTEPS, flow_refusal, load_flow_objective
from .fused import ColumnSplit, RowSplit, plain_linear
from .loading import read_json_of
from .offload import input_device
from .vae import encode_pictures, vae_scale

PATCH = 2  # of the VAE's latents, along one side, make one that the transformer sees
STATES = (9, 18, 27)  # of the text encoder, joined
THINKING = False  # as Flux2KleinPipeline sets the chat template's option
# diffusers' Flux2Transformer2DModel takes these for keys that a config leaves out.
_TEXT_WIDTH = 15360


_SLICES = (".to_q", ".to_k", ".to_v")  # of `to_qkv_mlp_proj`
_MLP_RATIO = 3  # of all FLUX.2 models
_FUSED = {"to_qkv_mlp_proj": ("to_q", "to_k", "to_v", "mlp"), "to_out": ("attention", "mlp")}


class Flux2KleinFamily(Family):
    """FLUX.2-klein, base and distilled, and their fine-tunes."""

    def resembles(self, config: Mapping[str, Any]) -> bool:
        return config.get("_class_name") == self.denoiser_class

    def refusal(self, config: Mapping[str, Any], index: Mapping[str, Any]) -> str | None:
        if config.get("guidance_embeds", True):
            return "a FLUX.2 model with guidance as a condition, such as FLUX.2-dev"
        return None

    def schedule_refusal(self, config: Mapping[str, Any]) -> str | None:
        return flow_refusal(config)

    def is_distilled(self, base: str, revision: str | None) -> bool:
        index = read_json_of(base, "", "model_index.json", revision)
        return bool(index.get("is_distilled"))

    def latent_scale(self, vae_config: Mapping[str, Any]) -> int:
        return vae_scale(vae_config) * PATCH

    def text_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (self.tokens, config.get("joint_attention_dim", _TEXT_WIDTH))}

    def split_fused(self, denoiser: Any) -> Any:
        for number, block in enumerate(denoiser.single_transformer_blocks):
            attention, name = block.attn, f"single_transformer_blocks.{number}.attn"
            width, inner = attention.inner_dim, attention.mlp_hidden_dim
            if not isinstance(attention.to_qkv_mlp_proj, RowSplit):
                layer = plain_linear(attention.to_qkv_mlp_proj, f"{name}.to_qkv_mlp_proj")
                sizes = {"to_q": width, "to_k": width, "to_v": width}
                sizes["mlp"] = inner * attention.mlp_mult_factor
                attention.to_qkv_mlp_proj = RowSplit(layer, sizes)
            if not isinstance(attention.to_out, ColumnSplit):
                layer = plain_linear(attention.to_out, f"{name}.to_out")
                attention.to_out = ColumnSplit(layer, {"attention": width, "mlp": inner})
        return denoiser

    def read_layer(self, stem: str) -> str | None:
        path = super().read_layer(stem)
        if path and path.startswith("single_") and path.endswith(_SLICES):
            return path.replace(".attn.", ".attn.to_qkv_mlp_proj.")
        return path

    def file_name(self, path: str) -> str:
        """ComfyUI knows the q, k and v of single blocks as slices of its own fused layer."""
        return path.replace(".to_qkv_mlp_proj", "") if path.endswith(_SLICES) else path

    def fused_part(self, path: str) -> tuple[str, str] | None:
        whole, _, part = path.rpartition(".")
        known = whole.rpartition(".")[2] in _FUSED and part in _FUSED[whole.rpartition(".")[2]]
        return (whole, part) if known and whole.startswith("single_") else None

    def fused_shape(self, part: str, shape: tuple[int, int]) -> tuple[int, int]:
        rows, columns = shape
        if part == "attention":
            return rows, (1 + _MLP_RATIO) * columns
        if part == "mlp":
            rows_fused = rows > columns  # the input of the feed-forward is twice its width
            return (rows + 3 * columns, columns) if rows_fused else (rows, columns + rows)
        return (3 + 2 * _MLP_RATIO) * columns, columns

    def fused_slices(self, path: str, shape: tuple[int, int]) -> dict[str, tuple[slice, slice]]:
        (rows, columns), every = shape, slice(None)
        if path.endswith(".to_qkv_mlp_proj"):
            bounds = [0, columns, 2 * columns, 3 * columns, rows]
            cuts = [slice(*pair) for pair in itertools.pairwise(bounds)]
            return {
                part: (cut, every)
                for part, cut in zip(_FUSED["to_qkv_mlp_proj"], cuts, strict=True)
            }
        if path.startswith("single_") and path.endswith(".to_out"):
            return {"attention": (every, slice(0, rows)), "mlp": (every, slice(rows, columns))}
        return super().fused_slices(path, shape)

    def load_objective(self, base: str, **options: Any) -> Objective:
        return load_flow_objective(base, 1, **options)

    def token_ids(self, tokenizers: Sequence[Any], prompts: Sequence[str]) -> list[torch.Tensor]:
        return qwen.token_ids(tokenizers[0], prompts, self.tokens, THINKING)

    def words_lost(self, tokenizers: Sequence[Any], prompt: str) -> str | None:
        return qwen.words_lost(tokenizers[0], prompt, self.tokens, THINKING)

    def encode_text(
        self, encoders: Mapping[str, Any], tokens: Sequence[torch.Tensor]
    ) -> TextStates:
        """Three of the hidden states, joined; those of the padding too, as the base is trained."""
        encoder = encoders["text_encoder"]
        ids, mask = (each.to(input_device(encoder)) for each in tokens)
        output = encoder(
            input_ids=ids,
            attention_mask=mask,
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        )
        return {"prompt_embeds": torch.cat([output.hidden_states[n] for n in STATES], dim=-1)}

    def encode_pictures(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """As `Family.encode_pictures`, in patches of 2 x 2 and normalised by the VAE's batch norm:
        (n, 8c, h / 2, w / 2)."""
        mean, std = encode_pictures(vae, pixels).chunk(2, dim=1)
        shape = (1, -1, 1, 1)
        scale = (vae.bn.running_var.float() + vae.config["batch_norm_eps"]).sqrt().view(shape)
        mean = F.pixel_unshuffle(mean, PATCH) - vae.bn.running_mean.float().view(shape)
        return torch.cat([mean, F.pixel_unshuffle(std, PATCH)], dim=1) / torch.cat([scale] * 2, 1)

    def sample_latents(
        self, moments: torch.Tensor, noise: torch.Tensor, vae_config: Mapping[str, Any]
    ) -> torch.Tensor:
        """The mean, as diffusers' training scripts take it; `noise` plays no part."""
        return moments.chunk(2, dim=1)[0]

    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """The pipeline gives latents out of patches and as the VAE takes them."""
        pixels: torch.Tensor = vae.decode(latents, return_dict=False)[0]
        return pixels

    def predict(
        self,
        denoiser: Any,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: Mapping[str, torch.Tensor],
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        batch, channels, height, width = noisy.shape
        states = text["prompt_embeds"]
        output = denoiser(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            timestep=timesteps / TRAIN_TIMESTEPS,
            guidance=None,
            encoder_hidden_states=states,
            txt_ids=_positions(batch, 1, 1, states.shape[1], noisy.device),
            img_ids=_positions(batch, height, width, 1, noisy.device),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).reshape(batch, channels, height, width)


def _positions(
    batch: int, height: int, width: int, tokens: int, device: torch.device
) -> torch.Tensor:
    """(n, height * width * tokens, 4): time, row, column and place in the text of every token."""
    sizes = (1, height, width, tokens)
    grid = torch.cartesian_prod(*(torch.arange(n, device=device) for n in sizes))
    return grid.expand(batch, -1, -1)


FLUX2_KLEIN = Flux2KleinFamily(
    name="flux2-klein",
    title="FLUX.2-klein",
    pipeline="Flux2KleinPipeline",
    denoiser="transformer",
    denoiser_class="Flux2Transformer2DModel",
    vae_class="AutoencoderKLFlux2",
    text_encoders={"text_encoder": "Qwen3ForCausalLM"},
    tokenizers={"tokenizer": "Qwen2TokenizerFast"},
    tokens=512,
    text_states={"prompt_embeds": 3},
    channels=128,
    resolution=1024,
    default_base="black-forest-labs/FLUX.2-klein-base-4B",
    letters={
        "k": ("to_k", "add_k_proj"),
        "q": ("to_q", "add_q_proj"),
        "v": ("to_v", "add_v_proj"),
        "o": ("to_out.0", "to_add_out", "to_out.attention"),
    },
    feed_forward=(
        "ff.linear_in",
        "ff.linear_out",
        "ff_context.linear_in",
        "ff_context.linear_out",
        "to_qkv_mlp_proj.mlp",
        "to_out.mlp",
    ),
    text_letters={},
    large=True,
    block_lists=("transformer_blocks", "single_transformer_blocks"),
    block_layers={
        "transformer_blocks": (
            *(f"attn.{end}" for end in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
            *(f"attn.add_{letter}_proj" for letter in "qkv"),
            *(f"{part}.linear_{end}" for part in ("ff", "ff_context") for end in ("in", "out")),
        ),
        "single_transformer_blocks": (
            *("attn.to_qkv_mlp_proj", "attn.to_out"),
            *(f"attn{end}" for end in _SLICES),
        ),
    },
    other_names={
        "double_blocks": (
            "transformer_blocks",
            {
                "img_attn.qkv": "attn.to_qkv",
                "txt_attn.qkv": "attn.to_added_qkv",
                "img_attn.proj": "attn.to_out.0",
                "txt_attn.proj": "attn.to_add_out",
                "img_mlp.0": "ff.linear_in",
                "img_mlp.2": "ff.linear_out",
                "txt_mlp.0": "ff_context.linear_in",
                "txt_mlp.2": "ff_context.linear_out",
            },
        ),
        "single_blocks": (
            "single_transformer_blocks",
            {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"},
        ),
    },
    joint_layers={
        "to_qkv": ("to_q", "to_k", "to_v"),
        "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    },
    toolkit_has_publisher_names=True,
    loss_settings=("weighting_scheme",),
    drawing=DrawingDefaults(guidance=4.0, precision="bf16"),
    distilled=DrawingDefaults(guidance=1.0, steps=4, precision="bf16"),
    # Of 3072 x 3072 layers: a quarter of LoRA r=4's parameters; (4, 64) would have 1.5 times.
    defaults={"a1": 64, "a2": 64},
    usual={**USUAL_TRAINING, "mixed_precision": "bf16", "gradient_checkpointing": True},
)
