"""Held-out pictures: kept out of training, so that what was learned can be measured on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from ..common.errors import UserError
from ..common.pictures import content_key
from .examples import Example, read_examples
from .settings import DataSettings


def split_held_out(
    examples: Sequence[Example], data: DataSettings, seed: int
) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and the held-out ones.

    Which of them `--holdout` keeps back depends on the seed and on the pictures' content, not on
    their names. Copies of a held-out picture are not trained on either.

    Raises:
        UserError: no picture is left to train on, or the folder of held-out pictures has none.
    """
    if data.holdout_data_dir is not None:
        folder = replace(data, instance_data_dir=data.holdout_data_dir, masked_loss=False)
        held = read_examples(folder, seed)
        contents = {content_key(example.path) for example in held}
        return [e for e in examples if content_key(e.path) not in contents], held
    if not data.holdout:
        return list(examples), []
    keys = {e.path: content_key(e.path) for e in examples if not e.regularisation}
    order = sorted(
        set(keys.values()), key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest()
    )
    chosen = order[: data.holdout]
    trained = [e for e in examples if keys.get(e.path) not in chosen]
    if all(e.regularisation for e in trained):
        raise UserError(
            f"--holdout {data.holdout} leaves none of the {len(order)} pictures in "
            f"{data.instance_data_dir} to train on: hold out fewer."
        )
    first = {keys[e.path]: e for e in reversed(examples) if e.path in keys}
    return trained, [first[key] for key in chosen]
