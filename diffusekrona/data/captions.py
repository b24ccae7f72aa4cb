"""What becomes of a caption on its way to training: trigger word, alternatives, shuffled tags,
dropout."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Sequence

from ..common.errors import UserError, shortened
from ..common.seeds import seed_for

TRIGGER = "[trigger]"
SHUFFLES = 8  # orders of one caption's tags: each has text states of its own in memory
ALTERNATIVES = 16  # of one caption with wildcards, for the same reason

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


def with_trigger(caption: str, trigger: str | None) -> str:
    """A caption with its `[trigger]` replaced.

    Raises:
        UserError: it has one, but there is no trigger word.
    """
    if TRIGGER in caption and not trigger:
        raise UserError(
            f"The caption {shortened(caption)!r} has {TRIGGER}: give the words that replace it "
            "with --trigger."
        )
    return caption.replace(TRIGGER, trigger or "")


def alternatives(caption: str, seed: int) -> tuple[str, ...]:
    """A caption with each `{red|green}` replaced by one of its words, in every combination or in
    `ALTERNATIVES` random ones, a pure function of caption and seed. `{{` stands for `{`."""
    parts: list[list[str]] = []
    end = 0
    for match in _BRACES.finditer(caption):
        words = match[1].split("|") if match[1] else [match[0][0]]
        parts += [[caption[end : match.start()]], words]
        end = match.end()
    parts.append([caption[end:]])
    count = math.prod(map(len, parts))
    if count <= ALTERNATIVES:
        return tuple(map("".join, itertools.product(*parts)))
    rng = random.Random(seed_for(seed, "wildcards", caption))
    return tuple("".join(map(rng.choice, parts)) for _ in range(ALTERNATIVES))


def shuffled(
    caption: str, keep_tokens: int, seed: int, keep_separator: str | None = None
) -> tuple[str, ...]:
    """A caption with its tags in `SHUFFLES` orders, a pure function of caption and seed.

    Args:
        caption: tags separated by commas; the first `keep_tokens` of them stay where they are.
        keep_separator: where the caption has it, what is before it stays, and what is after a
            second one, in place of `keep_tokens`.
    """
    if keep_separator and keep_separator in caption:
        first, middle, last = (*caption.split(keep_separator, 2), "")[:3]
        kept, rest, end = _tags(first), _tags(middle), _tags(last)
    else:
        tags = _tags(caption)
        kept, rest, end = tags[:keep_tokens], tags[keep_tokens:], []
    rng = random.Random(seed_for(seed, "shuffle", caption))
    return tuple(", ".join([*kept, *rng.sample(rest, len(rest)), *end]) for _ in range(SHUFFLES))


def _tags(text: str) -> list[str]:
    return [tag for part in text.split(",") if (tag := part.strip())]


def choose_caption(captions: Sequence[str], dropout: float, seed: int) -> str:
    """One of the captions, or "" with probability `dropout`: a pure function of its arguments."""
    if len(captions) == 1 and not dropout:
        return captions[0]
    rng = random.Random(seed_for(seed, "caption"))
    return "" if rng.random() < dropout else rng.choice(captions)
