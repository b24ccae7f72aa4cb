"""Published architectures with random weights, from their configs: nothing is downloaded.

    python benchmarks/random_models.py FOLDER       an SD 1.5-size base for training, 4.3 GB in fp32
    python benchmarks/random_models.py FOLDER sdxl  an SDXL-size base in bf16, 7 GB

The weights mean nothing; sizes, times and memory are those of the real models.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusekrona.bases.published import BASES, CLIP_G, CLIP_L, SD15_UNET, SDXL_UNET, VAE

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


def write_configs(folder: Path, name: str) -> Path:
    """A pipeline folder of a published size, of configs alone: all that an estimate reads."""
    for part, config in BASES[name].items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text("{}")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    return folder


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

    from diffusekrona.bases.bundled import BUNDLED

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


def save_sdxl(folder: Path) -> Path:
    """Save a random SDXL in bf16 (7 GB), with the bundled model's tokenizers."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(
        Path(__file__).parents[1] / "diffusekrona" / "pocket" / "models" / "pocket" / "tokenizer"
    )
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    ends |= {"pad_token_id": tokenizer.pad_token_id}
    # Made where it is fast, and in half precision: in fp32 it would be 14 GB.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        encoder = CLIPTextModel(CLIPTextConfig(**CLIP_L, **ends)).to(torch.bfloat16)
        second = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, **ends)).to(torch.bfloat16)
        vae = AutoencoderKL(**{**VAE, "sample_size": 1024, "scaling_factor": 0.13025})
    StableDiffusionXLPipeline(
        vae=vae.to(torch.bfloat16),
        unet=random_unet(SDXL_UNET, torch.bfloat16, device),
        scheduler=EulerDiscreteScheduler(**SCHEDULE),
        text_encoder=encoder,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
    ).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    make = save_sdxl if sys.argv[2:] == ["sdxl"] else save_sd15
    print(make(Path(sys.argv[1])))
