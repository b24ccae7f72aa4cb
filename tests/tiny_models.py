"""Tiny pipelines of the genuine classes, made from configs: what tests run instead of downloads."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?-'"
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def tokenizer() -> CLIPTokenizer:
    """One token a character; 77 tokens long, as CLIP's."""
    words = [*CHARACTERS, *(c + "</w>" for c in CHARACTERS)]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def text_config(width: int = 64, projection: int = 64) -> CLIPTextConfig:
    size = 2 * len(CHARACTERS) + 2
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projection,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def vae(shift_factor: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        shift_factor=shift_factor,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=32,
    )


def unet(family: str = "sd1", linear: bool = False) -> UNet2DConditionModel:
    """A UNet with attention of widths 64 and 128 in down, mid and up blocks."""
    options = {
        "sample_size": 16,
        "block_out_channels": (64, 128),
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": {"sd1": 64, "sd2": 1024, "sdxl": 128}[family],
        "attention_head_dim": 2,
        "use_linear_projection": linear or family != "sd1",
    }
    if family == "sdxl":
        options |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 64,
        }
    return UNet2DConditionModel(**options)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """One token a byte, with a chat template as Qwen3's."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {word: i for i, word in enumerate([*sorted(ByteLevel.alphabet()), *marks])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=marks[1:])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    )
    return tokenizer


def qwen_config(width: int = 32, layers: int = 2) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=260,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
    )


def z_image_transformer() -> ZImageTransformer2DModel:
    model = ZImageTransformer2DModel(
        in_channels=4,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[16, 8, 8],
        axes_lens=[1024, 32, 32],
    )
    with torch.no_grad():  # what training would have made of them
        model.x_pad_token.fill_(1.0)
        model.cap_pad_token.fill_(1.0)
    return model


def z_image_pipeline() -> ZImagePipeline:
    return ZImagePipeline(
        transformer=z_image_transformer(),
        vae=vae(shift_factor=0.1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        text_encoder=Qwen3Model(qwen_config()),
        tokenizer=qwen_tokenizer(),
    )


def flux2_klein_transformer() -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )


def flux2_vae() -> AutoencoderKLFlux2:
    model = AutoencoderKLFlux2(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        sample_size=32,
    )
    with torch.no_grad():  # what training would have made of them
        model.bn.running_mean.normal_(std=0.3)
        model.bn.running_var.uniform_(0.5, 2.0)
    return model


def flux2_klein_pipeline() -> Flux2KleinPipeline:
    return Flux2KleinPipeline(
        transformer=flux2_klein_transformer(),
        vae=flux2_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        text_encoder=Qwen3ForCausalLM(qwen_config(width=16, layers=28)),
        tokenizer=qwen_tokenizer(),
    )


def sd35_pipeline() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            dual_attention_layers=(0,),
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=160,
            caption_projection_dim=64,
            pooled_projection_dim=128,
            pos_embed_max_size=64,
            qk_norm="rms_norm",
        ),
        vae=vae(shift_factor=0.1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=CLIPTextModelWithProjection(text_config()),
        tokenizer=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer_2=tokenizer(),
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=300, d_model=160, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
        ),
        tokenizer_3=t5_tokenizer(),
    )


def t5_tokenizer() -> T5TokenizerFast:
    """One token a character."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    return T5TokenizerFast(vocab=[*vocab, *((c, -1.0) for c in CHARACTERS)], extra_ids=0)


TRANSFORMERS = {"flux2-klein": flux2_klein_pipeline, "z-image": z_image_pipeline}


def save_pipeline(folder: Path, family: str = "sd1", prediction_type: str = "epsilon") -> Path:
    """Save a whole tiny pipeline of a family; returns the folder."""
    torch.manual_seed(0)
    if family in (others := {**TRANSFORMERS, "sd35": sd35_pipeline}):
        others[family]().save_pretrained(folder)
        return folder
    if family == "sdxl":
        pipeline = StableDiffusionXLPipeline(
            vae=vae(),
            unet=unet("sdxl"),
            scheduler=EulerDiscreteScheduler(**SCHEDULE, prediction_type=prediction_type),
            text_encoder=CLIPTextModel(text_config()),
            tokenizer=tokenizer(),
            text_encoder_2=CLIPTextModelWithProjection(text_config()),
            tokenizer_2=tokenizer(),
        )
    else:
        width = 1024 if family == "sd2" else 64
        pipeline = StableDiffusionPipeline(
            vae=vae(),
            unet=unet(family),
            scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type=prediction_type),
            text_encoder=CLIPTextModel(text_config(width)),
            tokenizer=tokenizer(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def random_factors(model: torch.nn.Module, adapter_name: str = "default", seed: int = 0) -> None:
    """Give every factor of an adapter random values, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter_name}" in name and any(k in name for k in ("krona_", "lora_")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def unet_inputs(family: str = "sd1", batch: int = 2, seed: int = 0) -> dict:
    """Arguments of one UNet call."""
    g = torch.Generator().manual_seed(seed)
    width = {"sd1": 64, "sd2": 1024, "sdxl": 128}[family]
    inputs = {
        "sample": torch.randn(batch, 4, 16, 16, generator=g),
        "timestep": torch.tensor([10] * batch),
        "encoder_hidden_states": torch.randn(batch, 7, width, generator=g),
    }
    if family == "sdxl":
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, 64, generator=g),
            "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * batch),
        }
    return inputs
