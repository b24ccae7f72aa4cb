"""The classes: an identity becomes a list of solids, standing on y = 0, facing +z, about 1.2 high.

`b`, `h`, `e`, `d` in every figure are its proportions in -1..1 (build, height, head, detail), and
`v` is the variant, 0 to 2, of some part.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..records import Identity
from ..solids import Solid, moved
from .accessories import ACCESSORY_MAKERS
from .animals import bear, bird, cat, dog, duck, rabbit
from .machines import car, robot, train
from .parts import Figure, Look, look_of
from .things import backpack, boot, bowl, can, candle, clock, mug, teapot, vase

FIGURES: dict[str, Callable[[Look], Figure]] = {
    f.__name__: f
    for f in (
        dog,
        cat,
        rabbit,
        bear,
        duck,
        bird,
        robot,
        teapot,
        mug,
        vase,
        bowl,
        can,
        candle,
        clock,
        boot,
        backpack,
        car,
        train,
    )
}


#: Factors that bring the classes to about the same size in the picture.
SCALES = {
    "vase": 0.92,
    "robot": 0.9,
    "rabbit": 1.0,
    "cat": 1.12,
    "bird": 1.12,
    "car": 1.12,
    "mug": 1.2,
    "bowl": 1.2,
    "can": 1.1,
    "candle": 1.12,
    "teapot": 1.12,
    "duck": 1.12,
    "boot": 1.1,
    "bear": 1.05,
}


def solids_of(identity: Identity) -> list[Solid]:
    """All solids of one thing with its accessory, at the origin, facing +z."""
    look = look_of(identity)
    figure = FIGURES[identity.noun](look)
    solids = list(figure.solids)
    if identity.accessory != "none":
        solids += ACCESSORY_MAKERS[identity.accessory](figure, look.extra)
    scale = 1.06 * SCALES.get(identity.noun, 1.0)
    return [moved(solid, np.eye(3, dtype=np.float32), scale, np.zeros(3)) for solid in solids]
