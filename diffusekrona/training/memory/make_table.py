"""Writes the memory table: `python -m diffusekrona.training.memory.make_table`, some minutes.

Needed when torch or diffusers change what they allocate, which the tests would tell. Every kind of
step is counted at two sizes, which give a straight line, and at a third, which has to lie on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ...adapters.layers import add_adapters
from ...bases import backbones
from ...bases.published import BASES
from ...bases.small_cards import quantisable, quantised_bytes, tile_vae
from ...common.files import write_text
from .count import build_empty, pictures_peaks, weight_bytes
from .table import DECIDING, TABLE, Line, deciding, kinds, on
from .trace import step_peak

CHECKPOINTS = ("none", "device", "host")
DTYPES = {4: torch.float32, 2: torch.bfloat16}  # by bytes of a value


def make_table() -> Iterator[tuple[str, dict[str, Any]]]:
    """(component, entry) of every published and bundled base, counted; takes some minutes.

    Raises:
        ValueError: something is not a straight line after all.
    """
    makers = {"unet": _unet, "vae": _vae}
    made: list[tuple[str, Any]] = []
    for name, parts in (_bundled() | BASES).items():
        for part, config in parts.items():
            identity = (part, deciding(part, config))
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
            if path.name in DECIDING
        }
        for name in backbones.bundled_models()
    }


def _unet(config: Mapping[str, Any]) -> dict[str, Any]:
    def empty(width: int) -> Any:
        return build_empty("UNet2DConditionModel", config, DTYPES[width])

    def line(adapter: Any, checkpointing: str, width: int) -> Line:
        def peak(samples: int, side: int) -> int:
            unet = empty(width)
            for parameter in add_adapters({"unet": adapter}, {"unet": unet}, "default"):
                parameter.grad = torch.empty_like(parameter)
            family = backbones.family_of(config)
            return step_peak(family, {"unet": unet}, samples, side, checkpointing)

        return _line(lambda side: peak(1, side), lambda side: peak(3, side) / 3, 32, 64)

    unet = empty(4)
    layers = quantisable(unet).values()
    return {
        "values": weight_bytes(unet) // 4,
        "quantisable": sum(layer.weight.numel() for layer in layers),
        "largest": max(layer.weight.numel() for layer in layers),
        **{q: sum(quantised_bytes(layer, q) for layer in layers) for q in ("nf4", "int8")},
        "step": {
            name: {
                where: {str(width): line(adapter, where, width) for width in (4, 2)}
                for where in CHECKPOINTS
            }
            for name, adapter in kinds().items()
        },
    }


def _vae(config: Mapping[str, Any]) -> dict[str, Any]:
    def empty(width: int) -> Any:
        return build_empty("AutoencoderKL", config, DTYPES[width])

    def line(width: int, which: int, tiling: bool, *between: Any) -> Line:
        def peak(side: int) -> int:
            return pictures_peaks(empty(width), side, tiling)[which]

        return _line(peak, peak, *between)

    tiled = empty(4)
    tile_vae(tiled)
    tile = tiled.tile_latent_min_size
    pixels = tile * backbones.vae_scale(config)
    whole = (False, pixels // 2, pixels)
    # Tiling begins above one tile, and goes by steps; the line through them is good enough.
    tiling = (True, 2 * pixels, 4 * pixels, 0.05)
    lines = {"encoding": (0, *whole), "drawing": (1, *whole), "tiled": (1, *tiling)}
    return {
        "values": weight_bytes(tiled) // 4,
        "tile": tile,
        **{n: {str(w): line(w, *rest) for w in (4, 2)} for n, rest in lines.items()},
    }


def _text_encoder(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    kind = backbones.text_encoder_kinds(backbones.FAMILIES["sdxl"])[part]
    encoder = build_empty(kind, config, torch.float32)
    return {"values": weight_bytes(encoder) // 4}


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
    if abs(checked(between) / on(line, between**2) - 1) > tolerance:
        raise ValueError(f"no straight line: {checked(between)} at {between}, not on {line}")
    return line


def main() -> None:
    """Write the table, and say what is being counted."""
    backbones.quiet_libraries()
    table: dict[str, list[dict[str, Any]]] = {part: [] for part in DECIDING}
    for part, entry in make_table():
        print(f"{entry['name']}: {part}", flush=True)
        table[part].append(entry)
    write_text(TABLE, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
