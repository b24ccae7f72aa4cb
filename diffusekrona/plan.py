"""What a run is going to do, resolved and counted before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from . import backbones
from .adapters import (
    TEXT_LETTERS,
    AdaptedLayer,
    Choice,
    adapted_layers,
    krona_choice,
    lora_choice,
    parse_factors,
)
from .errors import UserError
from .layer_shapes import linear_layers
from .memory.estimate import estimate, in_words
from .memory.sizes import BYTES
from .schedules import rate_factor

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass
class Plan:
    """A resolved run.

    Attributes:
        base: folder or hub name of the base model.
        family: its family.
        choices: component to what is put on it.
        layers: every layer that is adapted, with its factors and parameter count.
        resolution: pixels a side.
        pixel_step: what picture sides must be multiples of, in pixels.
        vae_config: of the VAE that makes the latents.
    """

    base: str
    family: backbones.Family
    choices: dict[str, Choice]
    layers: list[AdaptedLayer]
    resolution: int
    pixel_step: int
    vae_config: Mapping[str, Any]

    @cached_property
    def configs(self) -> dict[str, PeftConfig]:
        """Component to PEFT config, made when first asked for: the import is slow."""
        return {name: choice.config() for name, choice in self.choices.items()}

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)


def make_plan(args: argparse.Namespace) -> Plan:
    """Read the base's configs, and check that the adapter fits them. No weights are loaded.

    Raises:
        UserError: a missing base, factors that fit no layer, a resolution the UNet cannot take.
    """
    base = backbones.resolve_base(args.pretrained_model_name_or_path)
    unet_config = backbones.read_unet_config(base, args.revision)
    family = backbones.family_of(unet_config)
    shapes = {"unet": linear_layers("UNet2DConditionModel", unet_config)}
    choices = {"unet": _unet_choice(args)}
    if args.train_text_encoder:
        for name, kind in backbones.text_encoder_kinds(family).items():
            config = backbones.read_part_config(base, name, args.revision)
            shapes[name] = linear_layers(kind, config)
            choices[name] = _text_choice(args)
    layers = adapted_layers(choices, shapes)
    vae_config = backbones.read_vae_config(
        base, args.pretrained_vae_model_name_or_path, args.revision
    )
    scale = backbones.vae_scale(vae_config)
    pixel_step = scale * 2 ** (len(unet_config["block_out_channels"]) - 1)
    native = unet_config.get("sample_size") or family.resolution // scale
    resolution = args.resolution or scale * native
    if resolution % scale or resolution < pixel_step:
        raise UserError(
            f"--resolution {resolution}: this base takes multiples of {scale} from {pixel_step} on."
        )
    return Plan(base, family, choices, layers, resolution, pixel_step, vae_config)


def _unet_choice(args: argparse.Namespace) -> Choice:
    letters, feed_forward = args.attn_update_unet, args.train_feed_forward
    if args.adapter_type == "lora":
        return lora_choice(letters, args.rank, args.lora_alpha, feed_forward=feed_forward)
    return krona_choice(
        letters,
        args.a1,
        args.a2,
        parse_factors(args.factors),
        feed_forward=feed_forward,
        scale=args.krona_scale,
        terms=args.terms,
        init_weights=args.init_weights,
        output_order=args.output_order,
    )


def _text_choice(args: argparse.Namespace) -> Choice:
    if args.adapter_type == "lora":
        return lora_choice(args.attn_update_text, args.rank, args.lora_alpha, TEXT_LETTERS)
    return krona_choice(
        args.attn_update_text,
        args.text_encoder_a1 or args.a1,
        args.text_encoder_a2 or args.a2,
        names=TEXT_LETTERS,
        scale=args.krona_scale,
        terms=args.terms,
        init_weights=args.init_weights,
        output_order=args.output_order,
    )


def max_train_steps(args: argparse.Namespace, pictures: int, processes: int = 1) -> int:
    """Optimizer steps of the run."""
    if args.max_train_steps is not None:
        return args.max_train_steps
    if args.num_train_epochs is None:
        return 1000
    batch = args.train_batch_size * processes * args.gradient_accumulation_steps
    return max(1, -(-pictures * args.num_train_epochs // batch))


def print_plan(
    plan: Plan, args: argparse.Namespace, pictures: Sequence[Any], captions: Sequence[str]
) -> None:
    """Print the resolved plan: what is trained, for how long, and which files it will write."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    table = Table(title="Adapted layers", box=box.SIMPLE, title_justify="left")
    for column in ("where", "layers", "out", "in", "factors or rank", "parameters"):
        numeric = column in ("layers", "out", "in", "parameters")
        table.add_column(column, justify="right" if numeric else "left")
    groups: dict[tuple, list[AdaptedLayer]] = {}
    for layer in plan.layers:
        block = f"{layer.component} {_block(layer.name)}"
        key = (block, layer.out_features, layer.in_features, layer.factors)
        groups.setdefault(key, []).append(layer)
    for (block, out, inside, factors), group in sorted(groups.items()):
        names = ", ".join(dict.fromkeys(_projection(layer.name) for layer in group))
        count = sum(layer.parameters for layer in group)
        row = (f"{block}: {names}", str(len(group)), str(out), str(inside), factors, f"{count:,}")
        table.add_row(*row)
    console.print(table)
    steps = max_train_steps(args, len(pictures))
    width = BYTES[args.save_precision]
    lines = {
        "base": f"{args.pretrained_model_name_or_path} ({plan.family.title})",
        "pictures": f"{len(pictures)} in {args.instance_data_dir}",
        "captions": "; ".join(dict.fromkeys(captions)),
        "resolution": f"{plan.resolution} px" + " in buckets" * args.aspect_ratio_buckets,
        "adapter": f"{args.adapter_type}, {len(plan.layers)} layers, "
        f"{plan.parameters:,} parameters",
        "adapter file": f"{plan.parameters * width / 1e6:.2f} MB in {args.save_precision}",
        "steps": f"{steps} of batch {args.train_batch_size} x {args.gradient_accumulation_steps}",
        "learning rate": _schedule_in_words(args, steps),
        "memory": in_words(estimate(args, plan)),
        "will write": "\n    ".join(_files(args, steps)),
    }
    for name, value in lines.items():
        console.print(f"  {name:14}{value}", highlight=False, markup=False)


_BLOCKS = ("attn1", "attn2", "self_attn", "ff")


def _block(layer_name: str) -> str:
    return next((part for part in layer_name.split(".") if part in _BLOCKS), "")


def _projection(layer_name: str) -> str:
    return layer_name.rpartition(f"{_block(layer_name)}.")[2]


def _schedule_in_words(args: argparse.Namespace, steps: int) -> str:
    factor = rate_factor(args, steps, args.learning_rate)
    marks = sorted({1, max(1, steps // 4), max(1, steps // 2), max(1, 3 * steps // 4), steps})
    rates = {step: args.learning_rate * factor(step - 1) for step in marks}
    points = ", ".join(f"{rate:.3g} at {step}" for step, rate in rates.items())
    return f"{args.lr_scheduler}, warm-up {args.lr_warmup_steps}: {points}"


def _files(args: argparse.Namespace, steps: int) -> list[str]:
    files = ["adapter.safetensors", "run.json", "train_log.jsonl"]
    saved = range(args.checkpointing_steps, steps + 1, args.checkpointing_steps)
    names = [f"checkpoint-{step}/" for step in saved]
    if args.checkpoints_total_limit:
        names = names[-args.checkpoints_total_limit :]
    files += names if len(names) < 5 else [names[0], "…", names[-1]]
    if args.validation_prompt:
        files.append("validation/grid.png")
    if args.report_to != "none":
        files.append(f"{args.logging_dir}/")
    return [str(args.output_dir / name) for name in files]


if __name__ == "__main__":  # `python -m diffusekrona.plan`: which factors to take
    from .errors import exit_on_user_error
    from .factor_plan import main

    exit_on_user_error(main)
