"""Published architectures with random weights, from their configs: nothing is downloaded.

    python benchmarks/random_models.py FOLDER      an SD 1.5-size base for training, 4.3 GB in fp32

The weights mean nothing; sizes, times and memory are those of the real models.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SD15_UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "sample_size": 512,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def random_unet(config: dict[str, Any], dtype: Any, device: str = "cpu", seed: int = 0) -> Any:
    """A frozen UNet of `config` with small random weights, made in `dtype` on `device`."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    for name, parameter in list(unet.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        empty = torch.empty(parameter.shape, dtype=dtype, device=device)
        new = torch.nn.Parameter(empty, requires_grad=False)
        setattr(unet.get_submodule(owner), leaf, new)
    torch.manual_seed(seed)
    for parameter in unet.parameters():
        parameter.uniform_(-0.02, 0.02)
    return unet.eval()


def save_sd15(folder: Path) -> Path:
    """Save a random Stable Diffusion of 1.5's size, with the bundled model's tokenizer."""
    import torch
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from diffusekrona.backbones import BUNDLED

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED / "pocket" / "tokenizer")
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(**SD15_VAE),
        unet=UNet2DConditionModel(**SD15_UNET),
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(**CLIP_L, **ends, pad_token_id=tokenizer.pad_token_id)
        ),
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    print(save_sd15(Path(sys.argv[1])))
