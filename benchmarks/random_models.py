"""Published architectures with random weights, from their configs: nothing is downloaded.

    python benchmarks/random_models.py FOLDER      an SD 1.5-size base for training, 4.3 GB in fp32

The weights mean nothing; sizes, times and memory are those of the real models.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusekrona.bases.published import CLIP_L, SD15_UNET, VAE

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

    from diffusekrona.bases.backbones import BUNDLED

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED / "pocket" / "tokenizer")
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE),
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
    print(save_sd15(Path(sys.argv[1])))
