"""The rule that chooses a checkpoint and a weight, from the scores of every candidate's pictures.

Candidates are compared picture by picture: the same prompt, the same seed. The bootstrap draws
prompts and, within them, seeds, the same ones for every candidate, so that an interval of a
difference is of the paired difference.

1. A candidate has **learned** if its likeness to the subject is above that of the base with the
   same words; the interval of the difference is above 0. An untrained adapter draws the base's own
   pictures, and never has.
2. `likeness` (the default): the highest likeness among those whose obedience reaches the lower end
   of the base's interval; if none does, as `balance`. `obedience`: the highest obedience among
   those with at least half of the largest gain in likeness. `balance`: the highest geometric mean
   of the gain in likeness, as a part of the largest, and the obedience kept, as a part of what the
   base has above pictures that ignore the prompt.
3. Those whose difference from the best has 0 in its interval cannot be distinguished from it: the
   earliest checkpoint of them is taken, and of its weights the better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .statistics import CONFIDENCE, bootstrap_means

Preference = Literal["likeness", "obedience", "balance"]
# The standard error of a bound is then some 1.4 % of half the interval, three at 2000.
RESAMPLES = 10_000
OTHER_SEEDS = (1, 2)  # of the bootstrap, under which the choice must be the same


@dataclass(frozen=True)
class Candidate:
    """One checkpoint at one weight.

    Attributes:
        likeness, obedience: of each picture (prompts, seeds).
    """

    step: int
    weight: float
    likeness: np.ndarray
    obedience: np.ndarray


@dataclass(frozen=True)
class Baseline:
    """The base without an adapter, each (prompts, seeds).

    Attributes:
        likeness: with the candidates' words, identifier included.
        obedience: with the plain class, as the prompts are scored.
        floor: obedience of pictures that ignore the prompt: the base's against the other prompts.
    """

    likeness: np.ndarray
    obedience: np.ndarray
    floor: np.ndarray


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Verdict:
    """What the rule says of one candidate.

    Attributes:
        gain: likeness above the base's with the same words; kept: obedience above the base's.
        learned: `gain` is above 0; eligible: it may be chosen under the preference.
        value: what the preference maximises; behind: how far it is behind the best one's.
        tied: it cannot be distinguished from the best.
    """

    gain: Interval
    kept: Interval
    learned: bool
    eligible: bool
    value: float
    behind: Interval | None
    tied: bool


@dataclass(frozen=True)
class Choice:
    """The outcome.

    Attributes:
        chosen: number of the candidate; None if none has learned.
        best: number of the one with the highest value.
        undecided: the others that cannot be distinguished from the best.
        rule: what was maximised among which, in words.
        repeats: whether other random numbers of the bootstrap give the same choice.
    """

    chosen: int | None
    best: int | None
    undecided: list[int]
    verdicts: list[Verdict]
    rule: str
    repeats: bool


RULES = {
    "likeness": "the highest likeness among candidates that follow prompts as the base does",
    "obedience": "the highest obedience among candidates with at least half of the largest gain in "
    "likeness",
    "balance": "the best balance of likeness gained and obedience kept",
    "fallback": "the best balance of likeness gained and obedience kept, since no candidate "
    "follows prompts as the base does",
}


def choose(
    candidates: Sequence[Candidate], base: Baseline, prefer: Preference, seed: int = 0
) -> Choice:
    """Choose a candidate by the rule of this module; a pure function of its arguments.

    Raises:
        ValueError: no candidate, or fewer than two pictures each.
    """
    if not candidates or base.likeness.size < 2:
        raise ValueError("needs candidates with at least two pictures each")
    choice = _choose(candidates, base, prefer, seed)
    others = [_choose(candidates, base, prefer, seed + more) for more in OTHER_SEEDS]
    repeats = all(other.chosen == choice.chosen for other in others)
    also = {n for o in others for n in (o.chosen, *o.undecided) if n is not None} - {choice.chosen}
    undecided = choice.undecided if repeats else sorted({*choice.undecided, *also})
    return Choice(choice.chosen, choice.best, undecided, choice.verdicts, choice.rule, repeats)


def _choose(
    candidates: Sequence[Candidate], base: Baseline, prefer: Preference, seed: int
) -> Choice:
    likeness, obedience = (
        np.stack([_means(values, seed) for values in arrays])
        for arrays in ([c.likeness for c in candidates], [c.obedience for c in candidates])
    )  # (candidates, 1 + resamples): the mean, then the bootstrap's
    plain, floor = _means(base.obedience, seed), _means(base.floor, seed)
    gain, kept = likeness - _means(base.likeness, seed), obedience - plain
    # Column 0 is the mean over all pictures, the others are resamples.
    learned = [_interval(each).low > 0 for each in gain]
    most = max((each[0] for each, ok in zip(gain, learned, strict=True) if ok), default=0.0)
    room = np.maximum(plain - floor, 1e-6)
    share = np.clip((obedience - floor) / room, 0, 1)
    balance = np.sqrt(np.maximum(gain, 0) / (most or 1.0) * share)
    rule: str = prefer
    values = {"likeness": likeness, "obedience": obedience, "balance": balance}[prefer]
    eligible = list(learned)
    if prefer == "obedience":
        eligible = [ok and bool(g[0] >= most / 2) for ok, g in zip(learned, gain, strict=True)]
    if prefer == "likeness":
        least = _interval(plain).low
        eligible = [ok and bool(o[0] >= least) for ok, o in zip(learned, obedience, strict=True)]
        if not any(eligible):
            rule, values, eligible = "fallback", balance, list(learned)
    best, chosen, tied = _best(candidates, values, eligible)
    verdicts = [
        Verdict(
            _interval(gain[n]),
            _interval(kept[n]),
            learned[n],
            eligible[n],
            float(values[n, 0]),
            None if best is None else _interval(values[best] - values[n]),
            n in tied,
        )
        for n in range(len(candidates))
    ]
    undecided = [n for n in tied if n != chosen]
    return Choice(chosen, best, undecided, verdicts, RULES[rule], True)


def _best(
    candidates: Sequence[Candidate], values: np.ndarray, eligible: Sequence[bool]
) -> tuple[int | None, int | None, list[int]]:
    """The best candidate's number, the chosen one's, and all that cannot be distinguished."""
    numbers = [n for n, ok in enumerate(eligible) if ok]
    if not numbers:
        return None, None, []
    best = max(numbers, key=lambda n: values[n, 0])
    tied = [n for n in numbers if n == best or _interval(values[best] - values[n]).low <= 0]
    chosen = min(tied, key=lambda n: (candidates[n].step, -values[n, 0]))
    return best, chosen, tied


def _means(values: np.ndarray, seed: int) -> np.ndarray:
    """(1 + resamples,): the mean of (prompts, seeds), then the bootstrap's means."""
    return np.concatenate([[values.mean()], bootstrap_means(values, RESAMPLES, seed)])


def _interval(means: np.ndarray) -> Interval:
    """The mean in column 0, and the interval of the others."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means[1:], [tail, 100 - tail])
    return Interval(float(means[0]), float(low), float(high))
