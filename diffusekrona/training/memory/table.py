"""What the published bases take in a run, counted beforehand: `table.json`.

What a step holds is proportional to its samples and, but for the text, to their area. So two counts
of each kind give it for any batch and resolution (`make_table`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...adapters.layers import FEED_FORWARD, UNET_LETTERS
from ...adapters.methods import METHODS, method_of, targets_of
from ...adapters.settings import AdapterSettings
from ...bases import backbones
from ...bases.layer_shapes import CLIP_DEFAULTS, UNET_DEFAULTS, unet_layers
from .sizes import WIDTHS, Sizes, checkpoints, samples

if TYPE_CHECKING:
    from peft import PeftConfig

    from ..plan import Plan
    from ..settings import TrainSettings

TABLE = Path(__file__).parent / "table.json"
LARGEST_RANK = 16  # up to which a LoRA's rank hardly shows in a step
Line = list[float]  # an offset and a slope

# The keys of a config that decide its sizes, with what the libraries take where one is left out.
DECIDING: dict[str, dict[str, Any]] = {
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
DECIDING["text_encoder"] = DECIDING["text_encoder_2"] = {
    **CLIP_DEFAULTS,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "projection_dim": 512,
}


def look_up(settings: TrainSettings, plan: Plan) -> Sizes | None:
    """The sizes of a run, or None where the table does not know its base or its flags.

    Raises:
        UserError: a component's config cannot be read.
    """
    kind = _kind(plan.configs)
    config = backbones.read_unet_config(plan.base, settings.base.revision)
    unet, vae = _find("unet", config), _find("vae", plan.vae_config)
    encoders = [
        _find(name, backbones.read_part_config(plan.base, name, settings.base.revision))
        for name in plan.family.text_encoders
    ]
    if kind is None or unet is None or vae is None or None in encoders:
        return None
    width, vae_width = (
        WIDTHS[settings.precision.mixed_precision or "no"],
        WIDTHS[settings.precision.vae_dtype],
    )
    side = plan.resolution // backbones.vae_scale(plan.vae_config)
    drawing = "tiled" if settings.precision.vae_tiling and side > vae["tile"] else "drawing"
    quantised = settings.precision.quantize_base != "none"
    base = unet["values"] * width
    if quantised:
        base += unet[settings.precision.quantize_base] - unet["quantisable"] * width
    return Sizes(
        vae=vae["values"] * vae_width,
        text_encoders=sum(encoder["values"] for encoder in encoders if encoder) * width,
        base=base,
        encoding=on(vae["encoding"][str(vae_width)], plan.resolution**2),
        drawing=on(vae[drawing][str(vae_width)], plan.resolution**2),
        dequantised=unet["largest"] * width if quantised else 0,
        step=samples(settings) * on(unet["step"][kind][checkpoints(settings)][str(width)], side**2),
        whole_unet=unet["values"] * width,
    )


def _kind(configs: Mapping[str, PeftConfig]) -> str | None:
    """What is adapted, as the table names it; None for what it does not hold."""
    config = configs["unet"]
    plain = getattr(config, "terms", 1) == 1 and getattr(config, "output_order", "kron") == "kron"
    if len(configs) > 1 or getattr(config, "r", 0) > LARGEST_RANK or not plain:
        return None
    wanted = (method_of(config), set(config.target_modules))
    return next(
        (name for name, c in kinds().items() if (method_of(c), set(c.target_modules)) == wanted),
        None,
    )


def kinds() -> dict[str, PeftConfig]:
    """What the table holds: all four projections, with and without feed-forward layers."""
    settings = AdapterSettings(a2=16)
    found = {}
    for name in ("krona", "lora"):
        for ending, more in (("", ()), (", feed-forward", FEED_FORWARD)):
            targets = targets_of("kqvo", UNET_LETTERS, "unet", more)
            found[name + ending] = METHODS[name].make_config(settings, targets)
    return found


def _find(part: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table's entry of a component with this config."""
    if part == "unet" and unet_layers(config) is None:
        return None
    wanted = deciding(part, config)
    return next((entry for entry in _table()[part] if entry["config"] == wanted), None)


def deciding(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The deciding keys alone, all of them there, as JSON has them."""
    full = {key: config.get(key, value) for key, value in DECIDING[part].items()}
    return json.loads(json.dumps(full))


@cache
def _table() -> dict[str, list[dict[str, Any]]]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def on(line: Line, x: float) -> int:
    return round(line[0] + line[1] * x)
