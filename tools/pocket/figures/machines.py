"""Machines: a robot, a car, a steam engine."""

from __future__ import annotations

import numpy as np

from ..solids import Solid, Surface, ball, box, limb, tube, turn_x, turn_z
from .parts import BLACK, Anchor, Figure, Look


def robot(k: Look) -> Figure:
    """A boxy robot; its head is a box, a drum or a ball, arms down, up or forward."""
    wide, tall = 0.3 + 0.07 * k.b, 0.3 + 0.06 * k.h
    leg = 0.26 + 0.07 * k.h
    head = 0.22 * (1 + 0.18 * k.e)
    y = leg + tall
    hy = y + tall + head + 0.08
    metal = Surface((0.3, 0.32, 0.36), gloss=0.6)
    out = [box((0, y, 0), (wide, tall, 0.22), k.skin)]
    out.append(box((0, y + 0.02, 0.215), (wide * 0.6, tall * 0.5, 0.03), k.second))
    for i, colour in enumerate(((0.9, 0.2, 0.15), (0.95, 0.8, 0.2), (0.3, 0.8, 0.3))):
        out.append(ball(((i - 1) * wide * 0.35, y + 0.05, 0.25), 0.045, Surface(colour, glow=0.5)))
    out.append(tube((0, y + tall + 0.04, 0), 0.09, 0.06, metal))
    shape = (
        box((0, hy, 0), (head * 1.2, head, head), k.main),
        tube((0, hy, 0), head * 1.15, head, k.main),
        ball((0, hy, 0), head * 1.15, k.main),
    )[k.v]
    out.append(shape)
    front = head * (1.0, 1.12, 1.05)[k.v]
    white = Surface((0.75, 0.95, 1.0), glow=0.8)
    for side in (-1, 1):
        out.append(ball((side * head * 0.5, hy + 0.1 * head, front), (0.085, 0.085, 0.04), white))
        out.append(
            ball(
                (side * head * 0.5, hy + 0.1 * head, front + 0.03),
                (0.045, 0.045, 0.03),
                Surface(BLACK),
            )
        )
        out.append(
            limb((side * wide * 0.55, leg, 0), (side * wide * 0.55, 0.1, 0), 0.09, 0.09, metal)
        )
        out.append(box((side * wide * 0.55, 0.07, 0.05), (0.14, 0.07, 0.19), k.second))
        shoulder = (side * (wide + 0.08), y + tall * 0.7, 0)
        hand = (
            (side * (wide + 0.2), y - tall * 0.7, 0.06),
            (side * (wide + 0.28), y + tall * 1.5, 0.06),
            (side * (wide + 0.12), y + tall * 0.2, 0.42),
        )[k.v]
        out.append(limb(shoulder, hand, 0.075, 0.07, metal))
        out.append(ball(hand, 0.115, k.second))
    out.append(box((0, hy - 0.5 * head, front), (head * 0.45, 0.025, 0.02), Surface(BLACK)))
    long = 0.16 * (1 + 0.4 * k.d)
    out.append(limb((0, hy + head, 0), (0, hy + head + long, 0), 0.025, 0.025, metal))
    out.append(ball((0, hy + head + long + 0.04, 0), 0.06, Surface((0.9, 0.2, 0.15), glow=0.4)))
    return Figure(
        out,
        top=Anchor((0, hy + head, 0), head * 0.95),
        neck=Anchor((0, y + tall + 0.03, 0), head * 0.95),
        eyes=Anchor((0, hy + 0.1 * head, front + 0.02), head * 1.1),
    )


def _wheel(x: float, z: float, r: float, hub: Surface) -> list[Solid]:
    lying, side = turn_z(np.pi / 2), np.sign(x)
    tyre = Surface((0.1, 0.1, 0.11), gloss=0.15)
    out = [tube((x, r, z), r, 0.09, tyre, 1.0, lying)]
    out.append(tube((x + side * 0.085, r, z), r * 0.55, 0.015, hub, 1.0, lying))
    return out


def car(k: Look) -> Figure:
    """A toy car: saloon, small round car, or pick-up; faces +z."""
    wide, long = 0.36 + 0.05 * k.b, 0.62 + 0.08 * k.e
    r = 0.19 * (1 + 0.2 * k.d)
    tall = 0.16 + 0.05 * k.h
    y = r + tall * 0.9
    glass = Surface((0.55, 0.78, 0.92), gloss=0.9)
    out = [box((0, y, 0), (wide, tall, long), k.skin)]
    for z in (-long, long):
        out.append(limb((-wide + 0.1, y, z), (wide - 0.1, y, z), tall * 0.98, tall * 0.98, k.skin))
    cab = {0: (-0.05, 0.62, 0.62), 1: (0, 0.85, 0.9), 2: (0.2, 0.36, 0.7)}[k.v]
    at, size, slope = cab[0] * long, cab[1] * long, cab[2]
    cy = y + tall + 0.15
    if k.v == 1:
        out.append(ball((0, y + tall * 0.6, at), (wide * 0.92, 0.42 + 0.1 * k.h, size), k.main))
        out.append(
            ball((0, y + tall * 0.75, at), (wide * 0.945, 0.3 + 0.08 * k.h, size * 0.75), glass)
        )
        out.append(
            ball(
                (0, y + tall * 0.8, at + 0.02), (wide * 0.65, 0.33 + 0.08 * k.h, size * 0.98), glass
            )
        )
    else:
        out.append(tube((0, cy, at), (wide * 1.3, size * 1.05), 0.19 + 0.05 * k.h, glass, slope))
        out.append(
            tube(
                (0, cy + 0.2 + 0.05 * k.h, at),
                (wide * 1.3 * slope * 1.05, size * 1.05 * slope * 1.05),
                0.035,
                k.main,
            )
        )
        for side in (-1, 1):
            out.append(
                limb(
                    (side * wide * 0.95, y + tall, at),
                    (side * wide * 0.85, cy + 0.19, at),
                    0.035,
                    0.035,
                    k.main,
                )
            )
    if k.v == 2:
        out.append(box((0, y + tall + 0.06, -long * 0.58), (wide, 0.07, long * 0.5), k.second))
    out.append(box((0, y - tall * 0.35, 0), (wide * 1.03, tall * 0.3, long * 0.6), k.second))
    for side in (-1, 1):
        for z in (-long * 0.68, long * 0.68):
            out += _wheel(side * (wide - 0.02), z, r, k.second)
        out.append(
            ball(
                (side * wide * 0.62, y + 0.02, long + tall * 0.9),
                (0.09, 0.09, 0.04),
                Surface((1, 0.95, 0.7), glow=0.5),
            )
        )
        out.append(
            ball(
                (side * wide * 0.62, y + 0.02, -long - tall * 0.9),
                (0.08, 0.06, 0.04),
                Surface((0.8, 0.1, 0.1)),
            )
        )
    out.append(
        limb(
            (-wide * 0.8, y - tall * 0.6, long + tall * 0.85),
            (wide * 0.8, y - tall * 0.6, long + tall * 0.85),
            0.04,
            0.04,
            Surface((0.7, 0.7, 0.73), gloss=0.8),
        )
    )
    roof = cy + 0.24 + 0.1 * k.h if k.v != 1 else y + tall * 0.6 + 0.42 + 0.1 * k.h
    return Figure(
        out,
        top=Anchor((0, roof, at), wide * 0.6),
        neck=Anchor((0, y, 0), wide),
        front=Anchor((0, y + 0.02, long + tall), 0.15),
    )


def train(k: Look) -> Figure:
    """A steam engine with a funnel, a boiler and a cab; faces +z."""
    r, long = 0.25 + 0.03 * k.b, 0.42 + 0.06 * k.e
    wheel = 0.16
    y = wheel + 0.16 + r
    metal = Surface((0.2, 0.2, 0.22), gloss=0.5)
    lying = turn_x(np.pi / 2)
    out = [box((0, wheel + 0.1, 0), (0.29, 0.07, 0.82), metal)]
    out.append(tube((0, y, 0.72 - long), r, long, k.skin, 1.0, lying))
    out.append(tube((0, y, 0.74), r * 1.05, 0.05, k.second, 1.0, lying))
    out.append(ball((0, y, 0.8), (0.09, 0.09, 0.04), Surface((1, 0.95, 0.7), glow=0.6)))
    cab = 0.42 + 0.08 * k.h
    out.append(box((0, wheel + 0.16 + cab, -0.45), (0.32, cab, 0.26), k.main))
    window = Surface((0.62, 0.82, 0.93), gloss=0.9)
    for side in (-1, 1):
        out.append(
            box((side * 0.32, wheel + 0.2 + cab * 1.4, -0.45), (0.015, cab * 0.35, 0.16), window)
        )
        for z in (-0.55, -0.12, 0.32):
            out += _wheel(side * 0.28, z, wheel * (1.2 if z < 0 else 0.95), k.second)
    out.append(box((0, wheel + 0.2 + cab * 1.45, -0.2), (0.2, cab * 0.28, 0.015), window))
    roof = wheel + 0.16 + 2 * cab
    out.append(tube((0, roof + 0.02, -0.45), (0.39, 0.34), 0.05, k.second, (0.7, 0.9, 0.5)[k.v]))
    high = 0.2 * (1 + 0.4 * k.d)
    funnel = (0.75, 1.4, 1.9)[k.v]
    out.append(tube((0, y + r + high * 0.8, 0.5), 0.09, high, metal, funnel))
    out.append(tube((0, y + r + high * 1.8, 0.5), 0.09 * funnel * 1.15, 0.035, k.second))
    out.append(ball((0, y + r, 0.12), (0.1, 0.12, 0.1), Surface((0.9, 0.75, 0.3), gloss=0.8)))
    out.append(box((0, 0.16, 0.85), (0.25, 0.09, 0.05), k.second, turn_x(0.35)))
    return Figure(
        out,
        top=Anchor((0, roof + 0.06, -0.45), 0.25),
        neck=Anchor((0, y, 0.3), r * 1.05),
        front=Anchor((0, y - 0.02, 0.8), 0.17),
    )
