"""Which adapter is trained, and on which layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..common.settings import setting
from .methods import METHODS

LARGEST_SCALE = 1e6  # that an adapter file may hold: `file_config`
MOST_TERMS = 4096


@dataclass(frozen=True)
class AdapterSettings:
    """The adapter."""

    adapter_type: str = setting(
        "krona",
        choices=METHODS,
        help="Method; lora is the baseline, lokr that of LyCORIS, oft rotates weights.",
    )
    attn_update_unet: str = setting(
        "kqvo", metavar="LETTERS", help="Attention projections to adapt: any of k, q, v, o."
    )
    a1: int = setting(4, minimum=1, help="Rows of A; must divide out_features.")
    a2: int = setting(64, minimum=1, help="Columns of A; must divide in_features.")
    factors: str | None = setting(
        None, metavar="k=8x64,o=2x64", help="Factors a1 x a2 of single projections."
    )
    krona_scale: float = setting(
        1.0, above=0, below=LARGEST_SCALE, help="Multiply delta W by this constant."
    )
    terms: int = setting(
        1,
        minimum=1,
        maximum=MOST_TERMS,
        help="Sum this many Kronecker products in each layer.",
    )
    init_weights: Literal["paper", "normal", "kaiming_uniform", "both"] = setting(
        "paper",
        help="Initialisation of A: std 1/64 as in the paper, or 1/a2 with normal (B is 0, except "
        "with both).",
    )
    output_order: Literal["kron", "interleaved"] = setting(
        "kron",
        help="Order of the output; interleaved is that of the published code's checkpoints.",
    )
    init_from: Path | None = setting(
        None,
        metavar="FILE",
        help="Start from this adapter, in any format that diffusekrona.convert reads.",
    )
    rank: int = setting(
        4,
        minimum=1,
        maximum=16_384,
        help="Rank of a LoRA, or of a LoKr's second factor.",
    )
    lora_alpha: float | None = setting(
        None,
        above=0,
        below=LARGEST_SCALE,
        help="Alpha of a LoRA or LoKr; by default its rank (scale 1).",
    )
    decompose_factor: int = setting(
        -1,
        maximum=16_384,
        help="Rows and columns of a LoKr's first factor, nearly; -1: nearly square factors.",
    )
    oft_block_size: int = setting(
        32,
        minimum=2,
        maximum=16_384,
        help="Side of the blocks that OFT rotates: a divisor of in_features, or the nearest one.",
    )
    train_feed_forward: bool = setting(False, help="Adapt the feed-forward layers as well.")
    train_text_encoder: bool = setting(False, help="Adapt the text encoders as well.")
    text_encoder_a1: int | None = setting(
        None, minimum=1, help="a1 in the text encoders; default: --a1."
    )
    text_encoder_a2: int | None = setting(
        None, minimum=1, help="a2 in the text encoders; default: --a2."
    )
    attn_update_text: str = setting(
        "kqvo", metavar="LETTERS", help="Projections of the text encoders to adapt."
    )
