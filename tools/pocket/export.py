"""Puts the trained parts into the folders that diffusers and transformers load.

pocket/        StableDiffusionPipeline (fp16): vae, unet, text_encoder, tokenizer, scheduler
pocket-clip/   CLIPModel with its tokenizer and image processor: the offline scorer
pocket-dino/   Dinov2Model with image processor settings: the scorer that has seen no words
pocket-sdxl/   StableDiffusionXLPipeline (fp16): its own unet, the same vae and text tower
pocket-reader/ the reader: see reader.py
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Dinov2Model,
)

from diffusekrona.evaluation.reader import Reader

#: The noise schedule of training and sampling. Zero terminal SNR and trailing steps: the first
#: sampling step then really starts from pure noise, without which a plain bright or dark
#: background comes out grey.
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 1,  # not used with trailing steps; diffusers warns of another
}
PREPROCESS = {
    "crop_size": {"height": 128, "width": 128},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 128},
}


def new_scheduler() -> EulerAncestralDiscreteScheduler:
    """The scheduler that both pipelines carry.

    It adds noise at every step, which mends what a small UNet gets wrong in the steps before it:
    with DDIM heads, spouts and handles stay blurred.
    """
    return EulerAncestralDiscreteScheduler(**SCHEDULER)


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """The text tower alone, as Stable Diffusion uses it."""
    encoder = CLIPTextModel(copy.deepcopy(clip.config.text_config))
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval().requires_grad_(False)


def projected_encoder_of(clip: CLIPModel) -> CLIPTextModelWithProjection:
    """The text tower with its projection, as SDXL's second encoder."""
    encoder = CLIPTextModelWithProjection(copy.deepcopy(clip.config.text_config))
    encoder.text_model.load_state_dict(clip.text_model.state_dict())
    encoder.text_projection.load_state_dict(clip.text_projection.state_dict())
    return encoder.eval().requires_grad_(False)


def sd_pipeline(
    unet: UNet2DConditionModel, vae: AutoencoderKL, clip: CLIPModel, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """The parts as a text-to-image pipeline."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder_of(clip),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl_pipeline(
    unet: UNet2DConditionModel, vae: AutoencoderKL, clip: CLIPModel, tokenizer: CLIPTokenizer
) -> StableDiffusionXLPipeline:
    """The parts in SDXL's arrangement: the one text tower serves as both encoders."""
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder_of(clip),
        text_encoder_2=projected_encoder_of(clip),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def declare_float32(folder: Path) -> None:
    """Makes transformers load the fp16 text weights as fp32 unless asked otherwise.

    diffusers loads its own fp16 files as fp32 by default, transformers as stored; the mixture would
    fail in the pipeline's first step.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config.get("text_config"), config.get("vision_config")):
        if part is not None:
            part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def export_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes the scorer: fp16 weights, tokenizer, image processor settings."""
    clip = copy.deepcopy(clip).half()
    clip.save_pretrained(folder)
    declare_float32(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESS, indent=2) + "\n")


def export_dino(dino: Dinov2Model, folder: Path) -> None:
    """Writes the image encoder again: fp16 weights, image processor settings."""
    shutil.rmtree(folder, ignore_errors=True)
    copy.deepcopy(dino).half().save_pretrained(folder)
    declare_float32(folder)
    settings = {**PREPROCESS, "image_processor_type": "BitImageProcessor"}  # as DINOv2 has it
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def export_sd(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Writes the SD folder in fp16. The pipeline itself keeps its precision."""
    half = {k: copy.deepcopy(getattr(pipeline, k)).half() for k in ("unet", "vae", "text_encoder")}
    parts = {**pipeline.components, **half}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    declare_float32(folder / "text_encoder")


def export_sdxl(pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Writes the SDXL folder in fp16."""
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    half = {k: copy.deepcopy(getattr(pipeline, k)).half() for k in names}
    parts = {**pipeline.components, **half}
    StableDiffusionXLPipeline(
        **parts, force_zeros_for_empty_prompt=True, add_watermarker=False
    ).save_pretrained(folder)
    declare_float32(folder / "text_encoder")
    declare_float32(folder / "text_encoder_2")


def save_reader(reader: Reader, folder: Path, errors: dict[str, float] | None = None) -> None:
    """Writes `model.safetensors` (fp16) and `config.json`; `errors` are on fresh renders."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in reader.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    config = {
        "values": reader.values,
        "widths": reader.widths,
        "blocks": reader.blocks,
        "phrases": reader.phrases,
        "errors": errors or {},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def export_all(models_dir: Path, parts: dict) -> None:
    """Writes again under `models_dir` the folders of all parts that are there.

    `parts` may hold clip and tokenizer, vae, unet, unet_sdxl, dino, reader and reader_errors.
    """

    def fresh(name: str) -> Path:
        shutil.rmtree(models_dir / name, ignore_errors=True)
        return models_dir / name

    if "clip" in parts:
        export_clip(parts["clip"], parts["tokenizer"], fresh("pocket-clip"))
    if "unet" in parts:
        common = (parts["vae"], parts["clip"], parts["tokenizer"])
        export_sd(sd_pipeline(parts["unet"], *common), fresh("pocket"))
        if "unet_sdxl" in parts:
            export_sdxl(sdxl_pipeline(parts["unet_sdxl"], *common), fresh("pocket-sdxl"))
    if "dino" in parts:
        export_dino(parts["dino"], fresh("pocket-dino"))
    if "reader" in parts:
        save_reader(parts["reader"], fresh("pocket-reader"), parts.get("reader_errors"))
