"""A family of base models is one object: with a transformer, a flow objective and its own names.

It is registered here as a new file would be, and goes through the programs as the others do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from PIL import Image
from safetensors import safe_open
from transformers import CLIPTextModelWithProjection

from diffusekrona.adapters.file import load_adapter, read_adapter
from diffusekrona.bases.base import Family, Objective, TextStates
from diffusekrona.bases.families import FAMILIES
from diffusekrona.common.errors import UserError
from diffusekrona.convert import main as convert
from diffusekrona.train_dreambooth import main as train

CONFIG = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "caption_projection_dim": 64,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 16,
}


class Flow:
    """Rectified flow: noisy = (1 - s) x + s noise, and the velocity noise - x is predicted."""

    def draw_timestep(self, generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
        return 1000 * torch.rand((), generator=generator)

    def add_noise(self, latents, noise, timesteps) -> torch.Tensor:
        sigma = (timesteps / 1000).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents, noise, timesteps) -> torch.Tensor:
        return noise - latents

    def weight(self, timesteps, snr_gamma, weighting_scheme) -> None:
        return None


class Toy(Family):
    def resembles(self, config: Mapping[str, Any]) -> bool:
        return config.get("_class_name") == self.denoiser_class

    def pixel_step(self, config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> int:
        return self.latent_scale(vae_config) * config["patch_size"]

    def latent_shape(self, config: Mapping[str, Any], side: int) -> tuple[int, int, int]:
        return config["in_channels"], side, side

    def text_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        pooled = config["pooled_projection_dim"]
        return {
            "prompt_embeds": (self.tokens, config["joint_attention_dim"]),
            "pooled_prompt_embeds": (pooled,),
        }

    def load_objective(self, base: str, **options: Any) -> Objective:
        return Flow()

    def token_ids(self, tokenizers: Sequence[Any], prompts: Sequence[str]) -> list[torch.Tensor]:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return [tokenizers[0](list(prompts), max_length=self.tokens, **options).input_ids]

    def words_lost(self, tokenizers: Sequence[Any], prompt: str) -> str | None:
        return None

    def encode_text(self, encoders: Mapping[str, Any], tokens: Sequence[Any]) -> TextStates:
        encoder = encoders["text_encoder"]
        output = encoder(tokens[0].to(encoder.device), output_hidden_states=True)
        embeds = {"prompt_embeds": output.hidden_states[-2]}
        return {**embeds, "pooled_prompt_embeds": output.text_embeds}

    def predict(self, denoiser, noisy, timesteps, text, time_ids) -> torch.Tensor:
        return denoiser(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=text["prompt_embeds"],
            pooled_projections=text["pooled_prompt_embeds"],
        ).sample

    def pipeline_parts(self) -> dict[str, Any]:
        names = ("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
        return dict.fromkeys(names)


TOY = Toy(
    name="toy",
    title="Toy",
    pipeline="StableDiffusion3Pipeline",
    denoiser="transformer",
    denoiser_class="SD3Transformer2DModel",
    text_encoders={"text_encoder": "CLIPTextModelWithProjection"},
    tokenizers={"tokenizer": "CLIPTokenizer"},
    tokens=77,
    text_states={"prompt_embeds": 3, "pooled_prompt_embeds": 2},
    resolution=32,
    default_base="nobody/toy",
    letters={
        "k": ("attn.to_k", "add_k_proj"),
        "q": ("attn.to_q", "add_q_proj"),
        "v": ("attn.to_v", "add_v_proj"),
        "o": ("attn.to_out.0", "to_add_out"),
    },
    feed_forward=("ff.net.0.proj", "ff.net.2"),
    text_letters=FAMILIES["sd1"].text_letters,
)


@pytest.fixture
def base(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.delitem(FAMILIES, "sd35")  # which has this denoiser too
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    torch.manual_seed(0)
    folder = tmp_path / "toy"
    parts = {
        "transformer": SD3Transformer2DModel(**CONFIG),
        "vae": tiny_models.vae(),
        "text_encoder": CLIPTextModelWithProjection(tiny_models.text_config()),
        "tokenizer": tiny_models.tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }
    index: dict[str, Any] = {"_class_name": "StableDiffusion3Pipeline", "_diffusers_version": "0"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 32), "red").save(tmp_path / "pictures" / "red.png")
    return folder


def flags(base: Path, *more: str) -> list[str]:
    return [
        *("--pretrained_model_name_or_path", str(base)),
        *("--instance_data_dir", str(base.parent / "pictures")),
        *("--instance_prompt", "a sks dog", "--output_dir", str(base.parent / "out")),
        *("--a1", "4", "--a2", "16", "--max_train_steps", "2", "--report_to", "none", "--cpu"),
        *more,
    ]


def test_it_is_counted_trained_drawn_and_loaded(base: Path, capsys) -> None:
    assert train(flags(base, "--dry_run")) == 0
    printed = capsys.readouterr().out
    assert "(Toy)" in printed and "15 layers" in printed and "GiB, in " in printed
    drawn = ["--validation_prompt", "a dog", "--validation_inference_steps", "2"]
    assert train(flags(base, "--gradient_checkpointing", *drawn)) == 0
    out = base.parent / "out"
    assert (out / "validation" / "grid.png").is_file()
    adapter = read_adapter(out)
    assert adapter.base_family == "toy" and list(adapter.configs) == ["transformer"]
    with safe_open(out / "adapter.safetensors", framework="pt") as file:
        assert all(key.startswith("transformer_blocks.") for key in file.keys())  # noqa: SIM118
    assert sum(t.numel() for t in adapter.tensors.values()) == 15 * (4 * 16 + 16 * 4)

    model = SD3Transformer2DModel.from_pretrained(base / "transformer")
    inputs = [torch.randn(1, 4, 16, 16), torch.randn(1, 7, 64), torch.randn(1, 64)]
    before = model(*inputs, torch.tensor([500.0])).sample
    load_adapter(model, out / "adapter.safetensors")
    assert not torch.equal(model(*inputs, torch.tensor([500.0])).sample, before)


def test_files_of_other_programs_are_refused_in_one_line(base: Path) -> None:
    assert train(flags(base, "--max_train_steps", "1")) == 0
    out = base.parent / "out" / "adapter.safetensors"
    with pytest.raises(UserError, match="Toy"):
        convert([str(out), str(base.parent / "x.safetensors"), "--to", "lokr"])
