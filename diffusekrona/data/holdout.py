"""Held-out pictures: kept out of training, so that what was learned can be measured on them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..common.errors import UserError
from ..common.pictures import content_key
from .examples import Example, balanced, read_examples
from .settings import DataSettings


def split_held_out(
    examples: Sequence[Example], data: DataSettings, seed: int
) -> tuple[list[Example], list[Example]]:
    """The examples to train on, those of regularisation as many as the others, and the held-out
    ones.

    Which of them `--holdout` keeps back of each folder depends on the seed and on the pictures'
    content, not on their names. Copies of a held-out picture are not trained on either.

    Raises:
        UserError: no picture of a folder is left, or the folder of held-out pictures has none.
    """
    if data.holdout_data_dir is not None:
        folder = replace(data, instance_data_dir=data.holdout_data_dir, masked_loss=False)
        held = read_examples(folder, seed)
        contents = {content_key(example.path) for example in held}
        trained = [e for e in examples if content_key(e.path) not in contents]
        _check_all_left(examples, trained, f"--holdout_data_dir {data.holdout_data_dir}")
        return balanced(trained), held
    if not data.holdout:
        return balanced(examples), []
    keys = {e.path: content_key(e.path) for e in examples if not e.regularisation}
    chosen: list[str] = []
    for folder in dict.fromkeys(path.parent for path in keys):
        there = {key for path, key in keys.items() if path.parent == folder}
        order = sorted(there, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
        chosen += order[: data.holdout]
    first = {keys[e.path]: e for e in reversed(examples) if e.path in keys}
    trained = [e for e in examples if keys.get(e.path) not in chosen]
    _check_all_left(examples, trained, f"--holdout {data.holdout}")
    return balanced(trained), [first[key] for key in dict.fromkeys(chosen)]


def _check_all_left(examples: Sequence[Example], trained: Sequence[Example], flag: str) -> None:
    """Raises UserError where `flag` holds out all pictures of a folder."""
    left = {example.path.parent for example in trained}
    for folder, count in Counter(example.path.parent for example in examples).items():
        if folder not in left:
            raise UserError(
                f"{flag} leaves none of the {count} pictures in {folder} to train on: hold out "
                "fewer, or others."
            )
