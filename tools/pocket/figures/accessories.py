"""What a thing can wear or carry, put where its figure has an anchor for it."""

from __future__ import annotations

import numpy as np

from ..solids import Solid, Surface, ball, box, chain, limb, tube, turn_x, turn_y, turn_z
from .parts import BLACK, WHITE, Figure, dark


def _hat(figure: Figure, paint: Surface) -> list[Solid]:
    (x, y, z), r = figure.top.point, figure.top.radius
    band = dark(paint, 0.45)
    return [
        tube((x, y + 0.02, z), r * 1.35, 0.025, paint),
        tube((x, y + 0.19, z), r * 0.8, 0.17, paint, 0.9),
        tube((x, y + 0.08, z), r * 0.83, 0.045, band),
    ]


def _collar(figure: Figure, paint: Surface) -> list[Solid]:
    (x, y, z), r = figure.neck.point, figure.neck.radius
    tag = Surface((0.95, 0.8, 0.25), gloss=0.8)
    return [tube((x, y, z), r, 0.05, paint), ball((x, y - 0.08, z + r), (0.07, 0.07, 0.03), tag)]


def _scarf(figure: Figure, paint: Surface) -> list[Solid]:
    (x, y, z), r = figure.neck.point, figure.neck.radius
    ring = ball((x, y, z), (r * 1.18, 0.11, r * 1.18), paint)
    end = limb((x + 0.12, y, z + r * 1.05), (x + 0.17, y - 0.32, z + r * 1.2), 0.085, 0.085, paint)
    return [ring, end, box((x + 0.17, y - 0.38, z + r * 1.2), (0.09, 0.05, 0.05), dark(paint, 0.6))]


def _bow(figure: Figure, paint: Surface) -> list[Solid]:
    (x, y, z), r = figure.neck.point, figure.neck.radius
    out = [tube((x, y, z), r * 1.02, 0.035, paint)]
    at = np.float32([x, y, z + r * 1.05])
    for side in (-1, 1):
        lean = turn_z(side * np.pi / 2)
        middle = at + np.float32([side * 0.13, 0, 0.02])
        out.append(tube(middle, (0.045, 0.05), 0.11, paint, 2.9, lean @ turn_y(0)))
    return [*out, ball(at + np.float32([0, 0, 0.04]), 0.065, dark(paint, 0.7))]


def _glasses(figure: Figure, paint: Surface) -> list[Solid]:
    (x, y, z), r = figure.eyes.point, figure.eyes.radius
    out, facing, size = [], turn_x(np.pi / 2), 0.36 * r
    for side in (-1, 1):
        at = (x + side * 0.46 * r, y, z + 0.03)
        out.append(tube(at, size, 0.02, paint, 1.0, facing))
        out.append(
            tube(
                (at[0], at[1], at[2] + 0.016),
                size * 0.7,
                0.012,
                Surface((0.15, 0.17, 0.25), gloss=0.9),
                1.0,
                facing,
            )
        )
        out.append(
            limb(
                (x + side * 0.8 * r, y, z + 0.02),
                (x + side * 1.0 * r, y + 0.02, z - r * 0.8),
                0.025,
                0.025,
                paint,
            )
        )
    out.append(
        limb(
            (x - 0.12 * r, y + 0.02, z + 0.04),
            (x + 0.12 * r, y + 0.02, z + 0.04),
            0.022,
            0.022,
            paint,
        )
    )
    return out


def _face(figure: Figure, paint: Surface) -> list[Solid]:
    """Eyes and a smile, on the front or, where that is to the side, on the right flank."""
    (x, y, z), r = figure.front.point, figure.front.radius
    sideways = abs(x) > abs(z)
    black, glint = Surface(BLACK, gloss=0.8), Surface(WHITE, glow=0.6)

    def at(across: float, up: float, out: float) -> tuple[float, float, float]:
        return (x + out, y + up, z - across) if sideways else (x + across, y + up, z + out)

    def flat(a: float, b: float, c: float) -> tuple[float, float, float]:
        return (c, b, a) if sideways else (a, b, c)

    solids = []
    for side in (-1, 1):
        solids.append(ball(at(side * 0.55 * r, 0.3 * r, 0), flat(0.075, 0.095, 0.05), black))
        solids.append(ball(at(side * 0.55 * r + 0.02, 0.3 * r + 0.035, 0.045), 0.025, glint))
        solids.append(ball(at(side * 1.0 * r, -0.2 * r, -0.02), flat(0.07, 0.05, 0.04), paint))
    angles = np.radians(np.linspace(200, 340, 6))
    smile = [at(0.4 * r * np.cos(t), -0.05 * r + 0.4 * r * np.sin(t), 0.02) for t in angles]
    return solids + chain(np.float32(smile), 0.024, black)


def _flag(figure: Figure, paint: Surface) -> list[Solid]:
    x, y, z = figure.top.point
    pole = Surface((0.8, 0.8, 0.8))
    return [
        limb((x, y - 0.05, z), (x, y + 0.5, z), 0.022, 0.022, pole),
        box((x, y + 0.39, z - 0.19), (0.015, 0.12, 0.18), paint),
    ]


ACCESSORY_MAKERS = {
    "hat": _hat,
    "collar": _collar,
    "scarf": _scarf,
    "bow": _bow,
    "glasses": _glasses,
    "face": _face,
    "flag": _flag,
}
