"""What becomes of a caption on its way to training: trigger word, shuffled tags, dropout."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..common.errors import UserError, shortened
from ..common.seeds import seed_for

TRIGGER = "[trigger]"
SHUFFLES = 8  # orders of one caption's tags: each has text states of its own in memory


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


def shuffled(caption: str, keep_tokens: int, seed: int) -> tuple[str, ...]:
    """A caption with its tags in `SHUFFLES` orders, a pure function of caption and seed.

    Args:
        caption: tags separated by commas; the first `keep_tokens` of them stay where they are.
    """
    tags = [tag for part in caption.split(",") if (tag := part.strip())]
    kept, rest = tags[:keep_tokens], tags[keep_tokens:]
    rng = random.Random(seed_for(seed, "shuffle", caption))
    return tuple(", ".join([*kept, *rng.sample(rest, len(rest))]) for _ in range(SHUFFLES))


def choose_caption(captions: Sequence[str], dropout: float, seed: int) -> str:
    """One of the captions, or "" with probability `dropout`: a pure function of its arguments."""
    if len(captions) == 1 and not dropout:
        return captions[0]
    rng = random.Random(seed_for(seed, "caption"))
    return "" if rng.random() < dropout else rng.choice(captions)
