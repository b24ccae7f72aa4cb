"""Which base model is used, and how its weights are held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..common.settings import setting
from .schedulers import schedule_options


@dataclass(frozen=True)
class ReadingSettings:
    """How the base model is read."""

    single_file_config: str | None = setting(
        None,
        metavar="FOLDER",
        help="Read the configs and tokenizers of a single-file base from this diffusers folder or "
        "bundled model; by default the published models' configs, and tokenizers from the hub.",
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = setting(
        None, help="Set what the denoiser predicts; by default as the base says."
    )
    rescale_betas_zero_snr: bool = setting(
        False, help="Rescale the noise schedule to end in pure noise, whatever the base says."
    )

    def schedule(self) -> dict[str, Any]:
        """What overrides the base's own noise schedule, as `schedulers.load_sampler` takes it."""
        return schedule_options(self.prediction_type, self.rescale_betas_zero_snr)

    def options(self) -> dict[str, Any]:
        """All of it, as `sampling.pipeline.load_pipeline` takes it; None is left out."""
        given = {"single_file_config": self.single_file_config, **self.schedule()}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class _NamedBase:
    pretrained_model_name_or_path: str = setting(
        metavar="NAME_OR_PATH",
        aliases=("--base",),
        help="Hub name, diffusers folder, .safetensors file of a whole model, or a bundled model: "
        "pocket, pocket-sdxl.",
    )
    pretrained_vae_model_name_or_path: str | None = setting(
        None, metavar="NAME_OR_PATH", help="Use another VAE, such as an SDXL VAE made for fp16."
    )
    revision: str | None = setting(None, help="Use this revision of the base on the hub.")
    variant: str | None = setting(None, help="Use this variant of the base's files, such as fp16.")


@dataclass(frozen=True)
class BaseSettings(ReadingSettings, _NamedBase):
    """The base model."""


@dataclass(frozen=True)
class PrecisionSettings:
    """Precision and memory."""

    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None,
        may_change_on_resume=True,  # its outcome, with accelerate's configuration, may not
        help="Compute the base in this precision; by default as accelerate is configured. The "
        "factors stay fp32.",
    )
    vae_dtype: Literal["fp32", "fp16", "bf16"] = setting(
        "fp32", help="Set the VAE's precision; the published SDXL VAE overflows in fp16."
    )
    low_vram: bool = setting(
        False,
        may_change_on_resume=True,  # the settings that it selects are compared
        help="Settings for small GPUs: gradient checkpointing with checkpoints in host "
        "memory, bf16, a tiled VAE for validation pictures, large text encoders kept in host "
        "memory and, if bitsandbytes is installed, a base quantised to nf4 (else FLUX.2-klein and "
        "Z-Image to fp8). Explicit flags take precedence.",
    )
    gradient_checkpointing: bool = setting(
        False, may_change_on_resume=True, help="Save memory at the cost of slower steps."
    )
    cpu_offload_checkpointing: bool = setting(
        False,
        may_change_on_resume=True,
        help="Use gradient checkpointing and keep the checkpoints in host memory.",
    )
    quantize_base: Literal["none", "nf4", "int8", "fp8"] = setting(
        "none",
        ignore_case=True,
        help="Keep the frozen base's transformer blocks in 4 or 8 bit; nf4 and int8 need "
        "bitsandbytes, fp8 saves memory only with gradient checkpointing.",
    )
    vae_tiling: bool = setting(
        False,
        may_change_on_resume=True,
        help="Decode validation pictures in tiles: less memory, almost the same picture.",
    )
    shard_base: bool = setting(
        False,
        may_change_on_resume=True,
        help="Shard the frozen base over the processes, if there are several (FSDP2).",
    )
    allow_tf32: bool = setting(False, help="Allow TF32 matrix products on Ampere and later.")
    enable_xformers_memory_efficient_attention: bool = setting(
        False,
        help="Use xformers' attention; torch's own needs no more memory and is the default.",
    )
    cpu: bool = setting(False, may_change_on_resume=True, help="Train on the CPU despite a GPU.")
