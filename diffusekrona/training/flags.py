"""The training program's flags. Those that diffusers' DreamBooth scripts have bear their names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..adapters.methods import METHODS
from ..common.errors import UserError

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "piecewise_constant",
)


def build_parser() -> argparse.ArgumentParser:
    """Every flag, in groups, with its default and what it is for."""
    parser = argparse.ArgumentParser(
        prog="diffusekrona.train_dreambooth",
        description="DreamBooth fine-tuning of Stable Diffusion and SDXL with a Kronecker adapter.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _base_and_data(parser)
    _adapter(parser)
    _prior(parser)
    _optimisation(parser)
    _memory(parser)
    _output(parser)
    return parser


def _base_and_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("base model and pictures")
    add = group.add_argument
    add(
        "--pretrained_model_name_or_path",
        required=True,
        metavar="NAME_OR_PATH",
        help="Hub name, diffusers folder, or a bundled model: pocket, pocket-sdxl.",
    )
    add(
        "--pretrained_vae_model_name_or_path",
        metavar="NAME_OR_PATH",
        help="Another VAE, such as an SDXL VAE made for fp16.",
    )
    add("--revision", help="Revision of the base on the hub.")
    add("--variant", help="Variant of the base's files, such as fp16.")
    add("--instance_data_dir", type=Path, required=True, help="Folder of the subject's pictures.")
    add(
        "--instance_prompt",
        help='With the identifier: "a sks dog". A picture.txt beside '
        "picture.jpg, or a metadata.jsonl, gives single pictures captions of their own.",
    )
    add("--resolution", type=int, help="Pixels a side; by default the base's own.")
    add("--center_crop", action="store_true", help="Cut the middle instead of random places.")
    add("--random_flip", action="store_true", help="Add mirrored pictures.")
    add(
        "--aspect_ratio_buckets",
        action="store_true",
        help="Keep pictures' shapes: train at sizes of equal area instead of cropping squares.",
    )
    add(
        "--latents_cache_dir",
        type=Path,
        metavar="FOLDER",
        help="Latents and text states are kept here for later runs; default: beside the hub's "
        "downloads, ~/.cache/huggingface/assets/diffusekrona.",
    )
    add("--no_latents_cache", action="store_true", help="Neither keep nor use them.")


def _adapter(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("adapter")
    add = group.add_argument
    add("--adapter_type", choices=tuple(METHODS), default="krona", help="lora: the baseline.")
    add(
        "--attn_update_unet",
        default="kqvo",
        metavar="LETTERS",
        help="Attention projections to adapt: any of k, q, v, o.",
    )
    add("--a1", type=int, default=4, help="Rows of A; must divide out_features.")
    add("--a2", type=int, default=64, help="Columns of A; must divide in_features.")
    add("--factors", metavar="k=8x64,o=2x64", help="Factors a1 x a2 of single projections.")
    add("--krona_scale", type=float, default=1.0, help="Multiplies delta W; fixed.")
    add("--terms", type=int, default=1, help="Kronecker products summed in each layer.")
    add(
        "--init_weights",
        choices=("normal", "kaiming_uniform", "both"),
        default="normal",
        help="How A starts (B starts at zero, except with both).",
    )
    add(
        "--output_order",
        choices=("kron", "interleaved"),
        default="kron",
        help="interleaved: the reordered product of the published code's checkpoints.",
    )
    add("--rank", type=int, default=4, help="Rank of a LoRA.")
    add("--lora_alpha", type=float, help="Alpha of a LoRA; by default its rank (scale 1).")
    add("--train_feed_forward", action="store_true", help="Adapt the feed-forward layers as well.")
    add("--train_text_encoder", action="store_true", help="Adapt the text encoders as well.")
    add("--text_encoder_a1", type=int, help="a1 in the text encoders; default: --a1.")
    add("--text_encoder_a2", type=int, help="a2 in the text encoders; default: --a2.")
    add(
        "--attn_update_text",
        default="kqvo",
        metavar="LETTERS",
        help="Projections of the text encoders to adapt.",
    )


def _prior(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prior preservation")
    add = group.add_argument
    add("--with_prior_preservation", action="store_true", help="Train on class pictures as well.")
    add("--prior_loss_weight", type=float, default=1.0, help="Weight of the class pictures' loss.")
    add("--class_data_dir", type=Path, help="Class pictures; missing ones are generated here.")
    add("--class_prompt", help='Without the identifier: "a dog".')
    add("--num_class_images", type=int, default=100, help="How many class pictures there shall be.")
    add("--sample_batch_size", type=int, default=4, help="Batch in which they are generated.")


def _optimisation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimisation")
    add = group.add_argument
    add("--train_batch_size", type=int, default=1, help="Pictures a step on each device.")
    add("--gradient_accumulation_steps", type=int, default=1, help="Batches summed in a step.")
    add("--max_train_steps", type=int, help="Steps; default 1000, or from --num_train_epochs.")
    add("--num_train_epochs", type=int, help="Passes over the pictures, instead of steps.")
    add("--learning_rate", type=float, default=6e-4, help="Optimum 5e-4 to 6e-4 in the paper.")
    add("--text_encoder_lr", type=float, help="Learning rate in the text encoders; default: half.")
    add("--scale_lr", action="store_true", help="Multiply it by batch, accumulation, processes.")
    add("--lr_scheduler", choices=SCHEDULES, default="constant", help="Learning-rate schedule.")
    add("--lr_warmup_steps", type=int, default=0, help="Steps of warm-up.")
    add("--lr_num_cycles", type=int, default=1, help="Hard restarts of cosine_with_restarts.")
    add("--lr_power", type=float, default=1.0, help="Power of the polynomial schedule.")
    add("--lr_step_rules", help='Rules of piecewise_constant, such as "1:500,0.1".')
    add(
        "--optimizer",
        choices=("adamw", "adamw8bit", "prodigy"),
        default="adamw",
        type=str.lower,
        help="adamw8bit needs bitsandbytes, prodigy needs prodigyopt and a learning rate of 1.",
    )
    add("--use_8bit_adam", action="store_true", help="The same as --optimizer adamw8bit.")
    add("--adam_beta1", type=float, default=0.9, help=" ")
    add("--adam_beta2", type=float, default=0.999, help=" ")
    add("--adam_weight_decay", type=float, default=1e-2, help=" ")
    add("--adam_epsilon", type=float, default=1e-8, help=" ")
    add("--max_grad_norm", type=float, default=1.0, help="Gradients are clipped to this norm.")
    add("--snr_gamma", type=float, help="Min-SNR weighting; 5.0 is its paper's choice.")
    add("--noise_offset", type=float, default=0.0, help="Offset noise, for dark or light pictures.")
    add("--use_ema", action="store_true", help="Save the moving average of the factors.")
    add("--ema_decay", type=float, default=0.999, help="Decay of that average.")
    add("--seed", type=int, default=0, help="Same seed, same run.")


def _memory(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("precision and memory")
    add = group.add_argument
    add(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        help="Default: as accelerate is configured. The factors stay fp32.",
    )
    add(
        "--vae_dtype",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="Precision of the VAE; the published SDXL VAE overflows in fp16.",
    )
    add(
        "--low_vram",
        action="store_true",
        help="The recipe for small cards: gradient checkpointing with its checkpoints on the host, "
        "bf16, a tiled VAE for validation pictures and, if bitsandbytes is there, a base quantised "
        "to nf4. What you give yourself counts more.",
    )
    on_or_off = argparse.BooleanOptionalAction
    add(
        "--gradient_checkpointing",
        action=on_or_off,
        default=False,
        help="Less memory, a slower step.",
    )
    add(
        "--cpu_offload_checkpointing",
        action=on_or_off,
        default=False,
        help="Gradient checkpointing that keeps its checkpoints in the host's memory.",
    )
    add(
        "--quantize_base",
        choices=("none", "nf4", "int8"),
        default="none",
        type=str.lower,
        help="Keep the frozen base's transformer blocks in 4 or 8 bit; needs bitsandbytes.",
    )
    add(
        "--vae_tiling",
        action=on_or_off,
        default=False,
        help="Decode validation pictures in tiles: less memory, hardly another picture.",
    )
    add(
        "--shard_base",
        action="store_true",
        help="With several processes: each holds a share of the frozen UNet (FSDP2).",
    )
    add("--allow_tf32", action="store_true", help="TF32 matrix products on Ampere and later.")
    add(
        "--enable_xformers_memory_efficient_attention",
        action="store_true",
        help="xformers' attention; torch's own needs no more memory and is the default.",
    )
    add("--cpu", action="store_true", help="Train on the CPU although there is a GPU.")


def _output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--output_dir", type=Path, required=True, help="adapter.safetensors lands exactly here.")
    add("--overwrite_output_dir", action="store_true", help="Replace an adapter that is there.")
    add(
        "--save_precision",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="Of the adapter file; fp16 halves it.",
    )
    add("--checkpointing_steps", type=int, default=500, help="Save the training state so often.")
    add("--checkpoints_total_limit", type=int, help="Keep the newest only.")
    add("--resume_from_checkpoint", metavar="latest|PATH", help="Go on from a saved state.")
    add(
        "--validation_prompt",
        action="append",
        metavar="PROMPT",
        help="Draw this during training; may be given several times.",
    )
    add("--validation_steps", type=int, default=250, help="How often, besides start and end.")
    add("--num_validation_images", type=int, default=2, help="Pictures a prompt, seeds 0, 1 …")
    add("--validation_inference_steps", type=int, default=25, help="Denoising steps of these.")
    add("--validation_guidance_scale", type=float, default=7.0, help="Guidance of these.")
    add("--report_to", default="tensorboard", help="tensorboard, wandb, all or none.")
    add("--logging_dir", default="logs", help="Folder of the trackers' logs, in --output_dir.")
    add("--push_to_hub", action="store_true", help="Upload adapter, card and grid when done.")
    add(
        "--hub_model_id",
        metavar="NAME",
        help="Repository on the hub; default: --output_dir's name.",
    )
    add("--hub_token", help="Token for it; by default that of your login.")
    add(
        "--dry_run",
        action="store_true",
        help="Print the plan, with its memory, and leave.",
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check what can be checked without loading anything.

    Raises:
        UserError: values that cannot work, one line each.
        SystemExit: argparse's own, code 2, for unknown flags and wrong types.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.low_vram:  # once more, with other defaults: what was given counts more
        parser.set_defaults(**low_vram_recipe())
        args = parser.parse_args(argv)
    args.gradient_checkpointing |= args.cpu_offload_checkpointing
    positive = (
        "train_batch_size gradient_accumulation_steps checkpointing_steps validation_steps "
        "num_validation_images validation_inference_steps num_class_images sample_batch_size "
        "resolution max_train_steps num_train_epochs checkpoints_total_limit terms rank"
    )
    for name in positive.split():
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}.")
    for name in ("learning_rate", "text_encoder_lr", "snr_gamma"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} must be a positive number, not {value}.")
    if args.use_8bit_adam:
        args.optimizer = "adamw8bit"
    if args.with_prior_preservation and not (args.class_data_dir and args.class_prompt):
        raise UserError("--with_prior_preservation needs --class_data_dir and --class_prompt.")
    if args.lr_scheduler == "piecewise_constant" and not args.lr_step_rules:
        raise UserError('--lr_scheduler piecewise_constant needs --lr_step_rules, as "1:500,0.1".')
    return args


def low_vram_recipe() -> dict[str, Any]:
    """What `--low_vram` stands for on this machine, by flag. The optimizer is not in it: only the
    factors have a state, a few megabytes."""
    quantised = {"quantize_base": "nf4"} if find_spec("bitsandbytes") else {}
    return {
        "gradient_checkpointing": True,
        "cpu_offload_checkpointing": True,
        "mixed_precision": "bf16",
        "vae_tiling": True,
        **quantised,
    }


def low_vram_in_words(args: argparse.Namespace) -> str:
    """What `--low_vram` came to, the user's own flags included."""
    names = [*low_vram_recipe(), "quantize_base", "train_batch_size", "optimizer"]
    words = ", ".join(f"{name} {getattr(args, name)}" for name in dict.fromkeys(names))
    missing = "" if find_spec("bitsandbytes") else "; pip install bitsandbytes for a 4-bit base"
    return f"{words}{missing}"
