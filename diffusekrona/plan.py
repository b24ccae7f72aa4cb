"""Which Kronecker factors to take: `python -m diffusekrona.plan --base sdxl-folder --budget 2M`.

Every pair (a1, a2) that divides all layers, with what it costs, and the one to take within a
budget. Only the base's configs are read; no weights are loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .bases.precision import BYTES, STORED
from .common.command_line import parse
from .common.errors import UserError, exit_on_user_error
from .common.settings import setting

if TYPE_CHECKING:
    from .krona.factors import Pair

# (4, 64) is the paper's best on SDXL, and 64 with a1 of 2 to 8 its good region; with both factors
# at most 8 prompts were no longer followed (arXiv 2402.17412, section 4).
BEST = (4, 64)
TOO_SMALL = 8
Shape = tuple[int, int]


@dataclass(frozen=True)
class Cost:
    """What one pair costs over all layers.

    Attributes:
        multiplications: of one token through every layer once, in the cheaper order.
        slowdown: those by the frozen layers' own.
        rank: the highest that delta W of the largest layer can have.
    """

    pair: Pair
    parameters: int
    multiplications: int
    slowdown: float
    rank: int

    def megabytes(self, precision: str = "fp32") -> float:
        """Of the adapter file's tensors, in millions of bytes."""
        return self.parameters * BYTES[precision] / 1e6


def fitting_pairs(shapes: Sequence[Shape]) -> list[Pair]:
    """Every (a1, a2) that divides all (out, in)."""
    out = math.gcd(*(shape[0] for shape in shapes))
    in_features = math.gcd(*(shape[1] for shape in shapes))
    return [(a1, a2) for a1 in _divisors(out) for a2 in _divisors(in_features)]


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def cost_of(pair: Pair, shapes: Sequence[Shape], terms: int = 1) -> Cost:
    """Counts over the layers of sizes (out, in)."""
    from .krona.factors import multiplications  # brings PEFT

    a1, a2 = pair
    sizes = [(a1, a2, out // a1, in_features // a2) for out, in_features in shapes]
    own = sum(out * in_features for out, in_features in shapes)
    products = sum(multiplications(*size, terms=terms) for size in sizes)
    return Cost(
        pair,
        terms * sum(a1 * a2 + b1 * b2 for _, _, b1, b2 in sizes),
        products,
        products / own,
        max(min(terms * min(a1, a2) * min(b1, b2), a1 * b1, a2 * b2) for _, _, b1, b2 in sizes),
    )


def nearness(pair: Pair, best: Pair = BEST) -> tuple[float, Pair]:
    """How far from the best, in doublings, those of a2 counting twice: the paper's good region is
    a2 = 64 with several a1. Sorts a list of pairs best first."""
    far = abs(math.log2(pair[0] / best[0])) + 2 * abs(math.log2(pair[1] / best[1]))
    return (far + 100 * (max(pair) <= TOO_SMALL), pair)


def recommend(costs: Sequence[Cost], limit: float | None, best: Pair = BEST) -> Cost:
    """The pair nearest to the best within `limit` parameters.

    Raises:
        UserError: none is within it.
    """
    affordable = [c for c in costs if limit is None or c.parameters <= limit]
    if not affordable:
        least = min(costs, key=lambda c: c.parameters)
        raise UserError(
            f"No pair of factors fits a budget of {limit:,.0f} parameters: the smallest, "
            f"{least.pair}, has {least.parameters:,}. Raise --budget or adapt fewer projections."
        )
    return min(affordable, key=lambda c: nearness(c.pair, best))


def parse_budget(text: str, precision: str = "fp32") -> int:
    """ "2M", "500k" or "2000000" parameters, or a file size "4MB", to parameters.

    Raises:
        UserError: anything else, or nothing.
    """
    digits = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|[\d._]+"  # commas separate thousands only
    match = re.fullmatch(rf"\s*({digits})\s*([kKmMgG]?)(i?[bB])?\s*", text)
    try:
        number = float(match[1].replace("_", "").replace(",", "")) if match else 0.0
    except ValueError:
        number = 0.0
    if match is None or not 0 < number < 1e18:
        raise UserError(f"--budget {text!r}: write parameters as 2.5M or 500k, or a size as 8MB.")
    number *= {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()]
    return int(number / BYTES[precision] if match[3] else number)


# --- the program ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanSettings:
    """What is adapted, and what it may cost."""

    base: str = setting(
        metavar="NAME_OR_PATH",
        aliases=("--pretrained_model_name_or_path",),
        help="Base model: hub name, diffusers folder, single file, or a bundled one. Only configs "
        "are read.",
    )
    budget: str | None = setting(
        None, metavar="2M|8MB", help="Maximum number of parameters, or size of the adapter file."
    )
    attn_update_unet: str = setting("kqvo", metavar="LETTERS", help="Projections to adapt.")
    train_feed_forward: bool = setting(False, help="Adapt the feed-forward layers as well.")
    train_text_encoder: bool = setting(False, help="Adapt the text encoders as well.")
    terms: int = setting(
        1, minimum=1, maximum=4096, help="Sum this many Kronecker products in each layer."
    )
    save_precision: str = setting("fp32", choices=STORED, help="Precision of the adapter file.")
    revision: str | None = setting(None, help="Use this revision of the base on the hub.")
    single_file_config: str | None = setting(
        None, metavar="FOLDER", help="Read a single-file base's configs from this folder."
    )
    all: bool = setting(False, help="Print every pair, not only the dozen best ones.")


def layer_shapes(settings: PlanSettings) -> tuple[Any, list[Shape]]:
    """The base's family and the (out, in) of every layer that would be adapted.

    Raises:
        UserError: no such base, or letters that are none.
    """
    from .adapters.layers import matching
    from .adapters.methods import targets_of
    from .bases.families import identify
    from .bases.loading import quiet_libraries, read_part_config
    from .bases.meta import build_empty, linear_layers
    from .bases.resolve import resolve_base

    quiet_libraries()
    base, letters = (
        resolve_base(settings.base, settings.single_file_config),
        settings.attn_update_unet,
    )
    family, config = identify(base, settings.revision)
    more = family.feed_forward if settings.train_feed_forward else ()
    targets = targets_of(letters, family.letters, family.denoiser, more)
    layers = linear_layers(family.empty_denoiser(config))
    shapes = list(matching(targets.names, layers).values())
    if settings.train_text_encoder:
        for name, kind in family.text_encoders.items():
            part = read_part_config(base, name, settings.revision)
            targets = targets_of(letters, family.text_letters, name)
            shapes += matching(targets.names, linear_layers(build_empty(kind, part))).values()
    if not shapes:
        raise UserError(f"No layer of the base matches {', '.join(targets.names)}.")
    return family, shapes


HEAD = ("(a1, a2)", "parameters", "MB", "mult.", "of base", "rank ≤", "as a LoRA")


def rows_of(costs: Sequence[Cost], shapes: Sequence[Shape], precision: str) -> list[list[str]]:
    """One row per pair, under HEAD; the last is the rank of a LoRA with as many parameters."""
    one_rank = sum(out + in_features for out, in_features in shapes)
    return [
        [
            f"({c.pair[0]}, {c.pair[1]})",
            f"{c.parameters:,}",
            f"{c.megabytes(precision):.2f}",
            f"{c.multiplications:,}",
            f"{c.slowdown:.1%}",
            str(c.rank),
            f"r = {c.parameters / one_rank:.1f}",
        ]
        for c in costs
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: count, print, recommend."""
    from .common.tables import show_table

    settings = parse(
        PlanSettings,
        argv,
        prog="diffusekrona.plan",
        description="Which Kronecker factors fit a base model, what each costs, which to take.",
    )
    limit = parse_budget(settings.budget, settings.save_precision) if settings.budget else None
    family, shapes = layer_shapes(settings)
    best = (family.defaults.get("a1", BEST[0]), family.defaults.get("a2", BEST[1]))
    pairs = fitting_pairs(shapes)
    costs = sorted(
        (cost_of(p, shapes, settings.terms) for p in pairs), key=lambda c: nearness(c.pair, best)
    )
    chosen = recommend(costs, limit, best)
    fitting = [c for c in costs if limit is None or c.parameters <= limit]
    shown = costs if settings.all else fitting[:12]
    frozen = sum(out * in_features for out, in_features in shapes)
    print(
        f"{settings.base} ({family.title}): {len(shapes)} layers of {frozen:,} weights; "
        f"{len(pairs)} pairs divide all of them"
        + (f", {len(fitting)} within {limit:,} parameters." if limit else ".")
    )
    title = f"Nearest to the {'paper' if best == BEST else 'base'}'s {best} first"
    show_table(title, HEAD, rows_of(shown, shapes, settings.save_precision), [shown.index(chosen)])
    print("mult.: multiplications of one token through all of these layers, the adapter's own")
    print(
        f"Use --a1 {chosen.pair[0]} --a2 {chosen.pair[1]}: {_reason(chosen, limit, best, shapes)}"
    )


def _reason(chosen: Cost, limit: int | None, best: Pair, shapes: Sequence[Shape]) -> str:
    if best != BEST:
        lora = 4 * sum(out + in_features for out, in_features in shapes)
        which = "the default for this base" if chosen.pair == best else f"the nearest to {best}"
        return f"{which}: {chosen.parameters / lora:.0%} of the {lora:,} parameters of LoRA r=4."
    if chosen.pair == BEST:
        return "the paper's best on SDXL" + (", within the budget." if limit else ".")
    if max(chosen.pair) <= TOO_SMALL:
        return "but expect prompts to be ignored: both factors at most 8 did so in the paper."
    within = "within the budget" if limit else "that divides these layers"
    return f"the pair nearest to the paper's best, (4, 64), {within}."


if __name__ == "__main__":
    exit_on_user_error(main)
