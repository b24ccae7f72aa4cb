"""Each folder's share of what is trained on: pictures times repeats."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from .examples import Example, epoch_length


@dataclass(frozen=True)
class FolderShare:
    """One folder of a run.

    Attributes:
        samples: in an epoch, the repeats of its pictures included.
        share: of the samples, and so of a batch on average.
        weights: factors of its pictures' loss, each once.
        regularisation: pictures of the class, whose loss --prior_loss_weight weights as well.
    """

    folder: str
    pictures: int
    samples: int
    share: float
    weights: tuple[float, ...]
    regularisation: bool


def shares_of(examples: Sequence[Example]) -> list[FolderShare]:
    """The folders of the examples that are trained on, in their order.

    Args:
        examples: those of regularisation as many as the others, see `examples.balanced`.
    """
    folders: dict[tuple[str, bool], list[Example]] = {}
    for example in examples:
        key = str(example.path.absolute().parent), example.regularisation
        folders.setdefault(key, []).append(example)
    above = os.path.commonpath([os.path.dirname(path) for path, _ in folders] or ["."])
    total = epoch_length(examples)
    return [
        FolderShare(
            os.path.relpath(path, above), len(own), epoch_length(own), epoch_length(own) / total,
            tuple(dict.fromkeys(example.weight for example in own)), regularisation,
        )
        for (path, regularisation), own in folders.items()
    ]  # fmt: skip
