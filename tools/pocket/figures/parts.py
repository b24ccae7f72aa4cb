"""What all figures are made with: the surfaces of an identity, anchors, eyes, arcs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..records import Identity
from ..solids import Solid, Surface, ball

BLACK, WHITE = (0.05, 0.05, 0.06), (0.97, 0.97, 0.97)


@dataclass(frozen=True)
class Anchor:
    """Where something can be put on: a point, and the radius of what is there."""

    point: tuple[float, float, float]
    radius: float


@dataclass
class Figure:
    """The solids of a thing, and where accessories go."""

    solids: list[Solid] = field(default_factory=list)
    top: Anchor = Anchor((0, 1, 0), 0.2)  # of the head, or of the thing
    neck: Anchor = Anchor((0, 0.7, 0), 0.15)
    eyes: Anchor = Anchor((0, 0.8, 0.2), 0.2)  # middle between the eyes, width of the head
    front: Anchor = Anchor((0, 0.5, 0.4), 0.2)  # where a face is painted on a thing


@dataclass(frozen=True)
class Look:
    """The surfaces and numbers of one identity."""

    skin: Surface  # main colour with the pattern
    main: Surface  # main colour alone
    second: Surface
    extra: Surface  # the accessory's colour
    b: float
    h: float
    e: float
    d: float
    v: int


def look_of(identity: Identity) -> Look:
    """The identity's surfaces and proportions."""
    main, second = identity.main.rgb, identity.second.rgb
    skin = Surface(main, second, identity.pattern, identity.density, identity.seed % 1000)
    extra = Surface(identity.accessory_paint.rgb)
    return Look(
        skin, Surface(main), Surface(second), extra, *identity.proportions, identity.variant
    )


def dark(surface: Surface, factor: float = 0.6) -> Surface:
    """The plain colour, darker."""
    r, g, b = surface.colour
    return Surface((r * factor, g * factor, b * factor))


def arc(centre, radius: float, start: float, end: float, count: int = 7, plane: str = "zy"):
    """Points of an arc about `centre`; angles in degrees from the plane's first axis."""
    angles = np.radians(np.linspace(start, end, count))
    out = np.tile(np.asarray(centre, np.float32), (count, 1))
    out[:, "xyz".index(plane[0])] += radius * np.cos(angles)
    out[:, "xyz".index(plane[1])] += radius * np.sin(angles)
    return out


def eye_pair(y: float, z: float, apart: float, size: float) -> list[Solid]:
    """Two black eyes with a glint, looking along +z."""
    black, glint = Surface(BLACK, gloss=0.9), Surface(WHITE, glow=0.6)
    out = []
    for side in (-1, 1):
        out.append(ball((side * apart, y, z), (size, size * 1.15, size * 0.7), black))
        out.append(
            ball((side * apart + 0.35 * size, y + 0.45 * size, z + 0.62 * size), 0.34 * size, glint)
        )
    return out


def mirror(make: Callable[[int], list[Solid]]) -> list[Solid]:
    """What `make` gives for the left (-1) and for the right (1)."""
    return make(-1) + make(1)
