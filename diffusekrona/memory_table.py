"""What the published bases take in a run, counted beforehand: `memory_table.json`.

    python -m diffusekrona.memory_table      writes it anew; needed when torch or diffusers change
                                             what they allocate, which the tests would tell

What a step holds is proportional to its samples and, but for the text, to their area. So two counts
of each kind give it for any batch and resolution; a third checks that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import backbones
from .adapters import KronAChoice, LoRAChoice, krona_choice, lora_choice
from .files import write_text
from .layer_shapes import UNET_DEFAULTS, unet_layers
from .memory_sizes import WIDTHS, Sizes, checkpoints, samples

if TYPE_CHECKING:
    from .plan import Plan

TABLE = Path(__file__).parent / "memory_table.json"
CHECKPOINTS = ("none", "device", "host")
LARGEST_RANK = 16  # up to which a LoRA's rank hardly shows in a step
Line = list[float]  # an offset and a slope

# The keys of a config that decide its sizes, with what the libraries take where one is left out.
_DECIDING: dict[str, dict[str, Any]] = {
    "unet": {
        **UNET_DEFAULTS,
        "in_channels": 4,
        "out_channels": 4,
        "use_linear_projection": False,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    },
    "vae": {
        "block_out_channels": (64,),
        "layers_per_block": 1,
        "latent_channels": 4,
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "mid_block_add_attention": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
}
_DECIDING["text_encoder"] = _DECIDING["text_encoder_2"] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "projection_dim": 512,
}


def look_up(args: argparse.Namespace, plan: Plan) -> Sizes | None:
    """The sizes of a run, or None where the table does not know its base or its flags.

    Raises:
        UserError: a component's config cannot be read.
    """
    kind = _kind(plan.choices)
    config = backbones.read_unet_config(plan.base, args.revision)
    unet, vae = _find("unet", config), _find("vae", plan.vae_config)
    encoders = [
        _find(name, backbones.read_part_config(plan.base, name, args.revision))
        for name in plan.family.text_encoders
    ]
    if kind is None or unet is None or vae is None or None in encoders:
        return None
    width, vae_width = WIDTHS[args.mixed_precision or "no"], WIDTHS[args.vae_dtype]
    side = plan.resolution // 2 ** (len(plan.vae_config["block_out_channels"]) - 1)
    drawing = "tiled" if args.vae_tiling and side > vae["tile"] else "drawing"
    quantised = args.quantize_base != "none"
    base = unet["values"] * width
    if quantised:
        base += unet[args.quantize_base] - unet["quantisable"] * width
    return Sizes(
        vae=vae["values"] * vae_width,
        text_encoders=sum(encoder["values"] for encoder in encoders if encoder) * width,
        base=base,
        encoding=_on(vae["encoding"][str(vae_width)], plan.resolution**2),
        drawing=_on(vae[drawing][str(vae_width)], plan.resolution**2),
        dequantised=unet["largest"] * width if quantised else 0,
        step=samples(args) * _on(unet["step"][kind][checkpoints(args)][str(width)], side**2),
    )


def _kind(choices: Mapping[str, Any]) -> str | None:
    """What is adapted, as the table names it; None for what it does not hold."""
    choice = choices["unet"]
    if len(choices) > 1 or (isinstance(choice, LoRAChoice) and choice.rank > LARGEST_RANK):
        return None
    if isinstance(choice, KronAChoice) and (
        choice.terms > 1 or choice.options.get("output_order", "kron") != "kron"
    ):
        return None
    targets = set(choice.targets)
    kinds = _kinds().items()
    same_type = ((name, c) for name, c in kinds if type(c) is type(choice))
    return next((name for name, c in same_type if set(c.targets) == targets), None)


def _kinds() -> dict[str, KronAChoice | LoRAChoice]:
    """What the table holds: all four projections, with and without feed-forward layers."""
    return {
        "krona": krona_choice("kqvo", 4, 16),
        "krona, feed-forward": krona_choice("kqvo", 4, 16, feed_forward=True),
        "lora": lora_choice("kqvo", 4),
        "lora, feed-forward": lora_choice("kqvo", 4, feed_forward=True),
    }


def _find(part: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table's entry of a component with this config."""
    if part == "unet" and unet_layers(config) is None:
        return None
    wanted = _deciding(part, config)
    return next((entry for entry in _table()[part] if entry["config"] == wanted), None)


def _deciding(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The deciding keys alone, all of them there, as JSON has them."""
    full = {key: config.get(key, value) for key, value in _DECIDING[part].items()}
    return json.loads(json.dumps(full))


@cache
def _table() -> dict[str, list[dict[str, Any]]]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def _on(line: Line, x: float) -> int:
    return round(line[0] + line[1] * x)


# --- making it ----------------------------------------------------------------------------------


def make_table() -> Iterator[tuple[str, dict[str, Any]]]:
    """(component, entry) of every published and bundled base, counted; takes some minutes.

    Raises:
        ValueError: something is not a straight line after all.
    """
    from .published_bases import BASES

    makers = {"unet": _unet, "vae": _vae}
    made: list[tuple[str, Any]] = []
    for name, parts in (_bundled() | BASES).items():
        for part, config in parts.items():
            identity = (part, _deciding(part, config))
            if identity not in made:
                made.append(identity)
                counted = makers[part](config) if part in makers else _text_encoder(part, config)
                yield part, {"name": name, "config": identity[1], **counted}


def _bundled() -> dict[str, dict[str, Any]]:
    """The bundled bases as `published_bases.BASES` has others: component to config."""
    return {
        name: {
            path.name: backbones.read_part_config(str(backbones.BUNDLED / name), path.name)
            for path in sorted((backbones.BUNDLED / name).iterdir())
            if path.name in _DECIDING
        }
        for name in backbones.bundled_models()
    }


def _unet(config: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from . import memory_count
    from .memory_trace import step_peak
    from .small_cards import quantisable, quantised_bytes

    def empty(width: int) -> Any:
        dtype = {4: torch.float32, 2: torch.bfloat16}[width]
        return memory_count.build_empty("UNet2DConditionModel", config, dtype)

    def line(choice: Any, checkpointing: str, width: int) -> Line:
        def peak(samples: int, side: int) -> int:
            unet = empty(width)
            for parameter in memory_count.add_adapters(
                {"unet": choice.config()}, {"unet": unet}, "default"
            ):
                parameter.grad = torch.empty_like(parameter)
            family = backbones.family_of(config)
            return step_peak(family, {"unet": unet}, samples, side, checkpointing)

        return _line(lambda side: peak(1, side), lambda side: peak(3, side) / 3, 32, 64)

    unet = empty(4)
    layers = quantisable(unet).values()
    return {
        "values": memory_count.weight_bytes(unet) // 4,
        "quantisable": sum(layer.weight.numel() for layer in layers),
        "largest": max(layer.weight.numel() for layer in layers),
        **{q: sum(quantised_bytes(layer, q) for layer in layers) for q in ("nf4", "int8")},
        "step": {
            name: {
                where: {str(width): line(choice, where, width) for width in (4, 2)}
                for where in CHECKPOINTS
            }
            for name, choice in _kinds().items()
        },
    }


def _vae(config: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from . import memory_count
    from .small_cards import tile_vae

    def empty(width: int) -> Any:
        dtype = {4: torch.float32, 2: torch.bfloat16}[width]
        return memory_count.build_empty("AutoencoderKL", config, dtype)

    def line(width: int, which: int, tiling: bool, *between: Any) -> Line:
        def peak(side: int) -> int:
            return memory_count.pictures_peaks(empty(width), side, tiling)[which]

        return _line(peak, peak, *between)

    tiled = empty(4)
    tile_vae(tiled)
    tile = tiled.tile_latent_min_size
    pixels = tile * memory_count.vae_scale(config)
    whole = (False, pixels // 2, pixels)
    # Tiling begins above one tile, and goes by steps; the line through them is good enough.
    tiling = (True, 2 * pixels, 4 * pixels, 0.05)
    lines = {"encoding": (0, *whole), "drawing": (1, *whole), "tiled": (1, *tiling)}
    return {
        "values": memory_count.weight_bytes(tiled) // 4,
        "tile": tile,
        **{n: {str(w): line(w, *rest) for w in (4, 2)} for n, rest in lines.items()},
    }


def _text_encoder(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from . import memory_count

    kind = backbones.text_encoder_kinds(backbones.FAMILIES["sdxl"])[part]
    encoder = memory_count.build_empty(kind, config, torch.float32)
    return {"values": memory_count.weight_bytes(encoder) // 4}


def _line(
    peak: Callable[[int], float],
    checked: Callable[[int], float],
    small: int,
    large: int,
    tolerance: float = 0.01,
) -> Line:
    """The straight line through a count over squares of two sides, checked at a third."""
    low, high = peak(small), peak(large)
    slope = (high - low) / (large**2 - small**2)
    line = [round(low - slope * small**2, 3), round(slope, 3)]
    between = (small + large) // 2
    if abs(checked(between) / _on(line, between**2) - 1) > tolerance:
        raise ValueError(f"no straight line: {checked(between)} at {between}, not on {line}")
    return line


def main() -> None:
    """Write the table, and say what is being counted."""
    backbones.quiet_libraries()
    table: dict[str, list[dict[str, Any]]] = {part: [] for part in _DECIDING}
    for part, entry in make_table():
        print(f"{entry['name']}: {part}", flush=True)
        table[part].append(entry)
    write_text(TABLE, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
