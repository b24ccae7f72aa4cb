"""Animals: on four legs, sitting, or feathered."""

from __future__ import annotations

import numpy as np

from ..solids import Solid, Surface, ball, box, chain, limb, tube, turn_x, turn_z
from .parts import BLACK, WHITE, Anchor, Figure, Look, dark, eye_pair, mirror


def _four_legs(k: Look, leg: float, wide: float, near: float, far: float, r: float) -> list[Solid]:
    out = []
    for x in (-wide, wide):
        for z in (near, far):
            out.append(limb((x, leg, z), (x, r * 0.9, z), r * 1.15, r * 0.9, k.main))
            out.append(ball((x, r * 0.75, z + 0.3 * r), (r * 1.1, r * 0.75, r * 1.35), k.second))
    return out


def dog(k: Look) -> Figure:
    """A dog on four legs; ears hang, stand or are round."""
    leg, r = 0.36 + 0.12 * k.h, 0.235 + 0.07 * k.b
    long, head = 0.3 + 0.04 * k.h, 0.27 * (1 + 0.16 * k.e)
    y = leg + 0.55 * r
    hy, hz = y + r + 0.62 * head, long + 0.16
    out = [limb((0, y, -long), (0, y + 0.02, long), r * 0.95, r, k.skin)]
    out += _four_legs(k, y - 0.05, r * 0.62, long, -long, 0.085 + 0.02 * k.b)
    out.append(limb((0, y, long), (0, hy, hz - 0.05), r * 0.85, head * 0.6, k.main))
    out.append(ball((0, hy, hz), (head, head * 0.95, head * 0.95), k.skin))
    muzzle = 0.2 * (1 + 0.35 * k.d)
    tip = hz + head * 0.75 + muzzle
    out.append(
        limb(
            (0, hy - 0.25 * head, hz + head * 0.6),
            (0, hy - 0.28 * head, tip),
            0.5 * head,
            0.4 * head,
            k.second,
        )
    )
    out.append(
        ball((0, hy - 0.08 * head, tip + 0.3 * head), (0.08, 0.06, 0.05), Surface(BLACK, gloss=0.8))
    )
    out += eye_pair(hy + 0.22 * head, hz + 0.84 * head, 0.42 * head, 0.058)

    def ear(side: int) -> list[Solid]:
        x = side * head
        if k.v == 0:
            start, end = (x * 0.8, hy + 0.6 * head, hz), (x * 1.15, hy - 0.55 * head, hz + 0.02)
            return [limb(start, end, 0.07, 0.12, k.second)]
        if k.v == 1:
            lean = turn_z(-side * 0.25)
            return [tube((x * 0.62, hy + 1.1 * head, hz), (0.12, 0.07), 0.17, k.main, 0.1, lean)]
        return [ball((x * 0.8, hy + 0.8 * head, hz), (0.13, 0.13, 0.07), k.second)]

    out += mirror(ear)
    up = 0.3 + 0.1 * k.d
    out.append(
        limb(
            (0, y + 0.5 * r, -long - 0.5 * r),
            (0, y + r + up, -long - r - 0.1),
            0.075,
            0.05,
            k.second,
        )
    )
    return Figure(
        out,
        top=Anchor((0, hy + 0.85 * head, hz), head * 0.75),
        neck=Anchor((0, y + r * 0.92, long + 0.09), head * 0.74),
        eyes=Anchor((0, hy + 0.22 * head, hz + 0.9 * head), head),
    )


def _sitting(k: Look, body: float, head: float, paws: Surface) -> tuple[list[Solid], float, float]:
    """Body, head and feet of something that sits; also the head's height and depth."""
    tall = body * (1.15 + 0.25 * k.h)
    out = [ball((0, tall * 0.92, 0), (body, tall, body * 0.9), k.skin)]
    hy, hz = tall * 1.75 + head * 0.75, 0.06
    out.append(ball((0, hy, hz), (head * 1.08, head * 0.95, head * 0.95), k.skin))
    for side in (-1, 1):
        x = side * body
        out.append(
            limb((x * 0.55, 0.1, body * 0.5), (x * 0.65, 0.1, body * 1.15), 0.13, 0.11, paws)
        )
    return out, hy, hz


def cat(k: Look) -> Figure:
    """A sitting cat with a long tail."""
    body, head = 0.33 + 0.07 * k.b, 0.31 * (1 + 0.14 * k.e)
    out, hy, hz = _sitting(k, body, head, k.second)
    front = hz + 0.92 * head
    for side in (-1, 1):
        x = side * 0.13
        out.append(limb((x, 0.55, body * 0.65), (x, 0.08, body * 0.95), 0.1, 0.085, k.main))
        out.append(ball((x, 0.07, body * 1.0), (0.095, 0.07, 0.12), k.second))
        out.append(
            ball((side * 0.085, hy - 0.3 * head, front - 0.03), (0.115, 0.085, 0.08), k.second)
        )
        lean, wide = turn_z(-side * 0.3), (0.15, 0.09)
        place = (side * 0.68 * head, hy + 0.98 * head, hz)
        ear = (
            tube(place, wide, 0.16, k.main, 0.08, lean)
            if k.v != 2
            else tube(place, wide, 0.12, k.second, 0.35, lean)
        )
        out.append(ear)
    out.append(
        ball((0, hy - 0.16 * head, front + 0.06), (0.045, 0.035, 0.03), Surface((0.9, 0.45, 0.5)))
    )
    out += eye_pair(hy + 0.14 * head, front - 0.05, 0.45 * head, 0.066)
    side = -1 if k.v == 1 else 1
    length = 1 + 0.3 * k.d
    tail = [
        (0, 0.12, -body * 0.8),
        (side * 0.38 * length, 0.12, -body * 1.0),
        (side * 0.62 * length, 0.3, -body * 0.75),
        (side * 0.62 * length, 0.62, -body * 0.75),
    ]
    tail_paint = k.second if k.v == 2 else k.main
    out += chain(np.float32(tail), (0.09, 0.085, 0.075, 0.065), tail_paint)
    return Figure(
        out,
        top=Anchor((0, hy + 0.84 * head, hz), head * 0.72),
        neck=Anchor((0, hy - 0.85 * head, hz), head * 0.78),
        eyes=Anchor((0, hy + 0.14 * head, front), head),
    )


def rabbit(k: Look) -> Figure:
    """A sitting rabbit; ears upright, apart or one folded."""
    body, head = 0.34 + 0.07 * k.b, 0.29 * (1 + 0.14 * k.e)
    out, hy, hz = _sitting(k, body, head, k.main)
    front = hz + 0.92 * head
    length = 0.46 + 0.14 * k.d
    for side in (-1, 1):
        spread = (0.06, 0.22, 0.12)[k.v]
        base = np.float32([side * 0.45 * head, hy + 0.75 * head, hz])
        tip = base + np.float32([side * spread, length, -0.03])
        if k.v == 2 and side == 1:
            middle = base + np.float32([0.06, length * 0.55, 0])
            out.append(limb(base, middle, 0.08, 0.1, k.main))
            out.append(limb(middle, middle + np.float32([0.17, -0.2, 0.05]), 0.1, 0.07, k.second))
        else:
            out.append(limb(base, tip, 0.08, 0.1, k.main))
            out.append(
                limb(
                    base + np.float32([0, 0.05, 0.06]),
                    tip + np.float32([0, -0.02, 0.06]),
                    0.04,
                    0.06,
                    k.second,
                )
            )
        out.append(
            limb(
                (side * 0.2, 0.5, body * 0.8), (side * 0.12, 0.34, body * 1.02), 0.09, 0.085, k.main
            )
        )
        out.append(ball((side * 0.09, hy - 0.3 * head, front - 0.02), (0.12, 0.1, 0.09), k.second))
    out.append(box((0, hy - 0.58 * head, front + 0.01), (0.05, 0.055, 0.02), Surface(WHITE)))
    out.append(
        ball((0, hy - 0.14 * head, front + 0.07), (0.045, 0.035, 0.03), Surface((0.9, 0.45, 0.5)))
    )
    out.append(ball((0, 0.24, -body * 0.98), 0.14, k.second))
    out += eye_pair(hy + 0.16 * head, front - 0.06, 0.5 * head, 0.062)
    return Figure(
        out,
        top=Anchor((0, hy + 0.84 * head, hz + 0.05), head * 0.6),
        neck=Anchor((0, hy - 0.85 * head, hz), head * 0.8),
        eyes=Anchor((0, hy + 0.16 * head, front), head),
    )


def bear(k: Look) -> Figure:
    """A sitting stuffed bear with a belly of another colour."""
    body, head = 0.37 + 0.07 * k.b, 0.32 * (1 + 0.14 * k.e)
    tall = body * (1.1 + 0.2 * k.h)
    hy, hz = tall * 1.7 + head * 0.7, 0.04
    out = [ball((0, tall * 0.92, 0), (body, tall, body * 0.88), k.skin)]
    out.append(
        ball((0, tall * 0.85, body * 0.3), (body * 0.66, tall * 0.68, body * 0.68), k.second)
    )
    out.append(ball((0, hy, hz), (head * 1.08, head * 0.98, head * 0.95), k.skin))
    front = hz + 0.92 * head
    raised = (0.0, 0.45, 0.2)[k.v]
    for side in (-1, 1):
        out.append(
            limb(
                (side * body * 0.6, 0.16, body * 0.3),
                (side * body * 0.85, 0.15, body * 1.25),
                0.16,
                0.15,
                k.main,
            )
        )
        out.append(ball((side * body * 0.86, 0.16, body * 1.42), (0.12, 0.12, 0.05), k.second))
        up = raised if side == 1 else 0.0
        shoulder = (side * body * 0.75, tall * 1.4, 0.02)
        hand = (side * (body + 0.2), tall * 1.0 + up, 0.16 * (1 - up))
        out.append(limb(shoulder, hand, 0.12, 0.11, k.main))
        ear = (side * 0.8 * head, hy + 0.78 * head, hz)
        size = 0.13 * (1 + 0.25 * k.d)
        out.append(ball(ear, (size, size, 0.08), k.main))
        out.append(ball((ear[0], ear[1], ear[2] + 0.05), (size * 0.6, size * 0.6, 0.05), k.second))
    out.append(ball((0, hy - 0.25 * head, front), (0.16, 0.12, 0.13), k.second))
    out.append(
        ball((0, hy - 0.12 * head, front + 0.11), (0.065, 0.045, 0.04), Surface(BLACK, gloss=0.8))
    )
    out += eye_pair(hy + 0.2 * head, front - 0.05, 0.4 * head, 0.055)
    return Figure(
        out,
        top=Anchor((0, hy + 0.86 * head, hz), head * 0.75),
        neck=Anchor((0, hy - 0.86 * head, hz), head * 0.82),
        eyes=Anchor((0, hy + 0.2 * head, front), head),
    )


def duck(k: Look) -> Figure:
    """A round duck; the tail and the tuft on the head vary."""
    r, head = 0.4 + 0.07 * k.b, 0.29 * (1 + 0.14 * k.e)
    y, hz = r * 0.82, r * 0.55
    hy = y + r * 0.75 + head * (0.75 + 0.3 * k.h)
    bill = Surface((0.96, 0.55, 0.1))
    out = [ball((0, y, 0), (r * 0.9, r * 0.84, r * 1.2), k.skin)]
    out.append(limb((0, y + 0.2, r * 0.5), (0, hy, hz), head * 0.85, head * 0.75, k.main))
    out.append(ball((0, hy, hz), head, k.skin))
    for side in (-1, 1):
        out.append(
            ball(
                (side * r * 0.82, y + 0.08, -0.08), (0.1, r * 0.48, r * 0.72), k.second, turn_x(0.2)
            )
        )
        out.append(ball((side * 0.16, 0.03, 0.12), (0.13, 0.035, 0.17), bill))
    lift = (0.24, 0.36, 0.12)[k.v]
    out.append(limb((0, y + 0.12, -r * 0.95), (0, y + 0.12 + lift, -r * 1.4), 0.17, 0.05, k.main))
    long = 0.17 * (1 + 0.4 * k.d)
    out.append(
        ball((0, hy - 0.15 * head, hz + head * 0.85 + long * 0.5), (0.15, 0.055, long), bill)
    )
    out.append(
        ball(
            (0, hy - 0.3 * head, hz + head * 0.8 + long * 0.4),
            (0.12, 0.04, long * 0.8),
            dark(bill, 0.8),
        )
    )
    if k.v != 2:
        tip = (0, hy + head * 1.3, hz - 0.12) if k.v == 0 else (0, hy + head * 1.35, hz + 0.1)
        out.append(limb((0, hy + head * 0.9, hz), tip, 0.06, 0.035, k.second))
    out += eye_pair(hy + 0.25 * head, hz + 0.86 * head, 0.45 * head, 0.058)
    return Figure(
        out,
        top=Anchor((0, hy + 0.84 * head, hz), head * 0.72),
        neck=Anchor((0, hy - 0.8 * head, hz - 0.04), head * 0.86),
        eyes=Anchor((0, hy + 0.25 * head, hz + 0.9 * head), head),
    )


def bird(k: Look) -> Figure:
    """A small round bird on thin legs, long tail, crest."""
    r = 0.37 + 0.06 * k.b
    leg = 0.22 + 0.1 * k.h
    y = leg + r * 0.9
    foot, beak = Surface((0.93, 0.6, 0.15)), Surface((0.95, 0.7, 0.15))
    head = r * (0.78 + 0.1 * k.e)
    hy, hz = y + r * 0.95, r * 0.35
    out = [ball((0, y, 0), (r * 0.92, r, r), k.skin, turn_x(-0.2))]
    out.append(ball((0, y - 0.06, r * 0.28), (r * 0.72, r * 0.78, r * 0.8), k.second))
    out.append(ball((0, hy, hz), head, k.main))
    tail = 0.5 + 0.15 * k.d
    out.append(
        box((0, y - 0.02, -r - tail * 0.35), (0.13, 0.035, tail * 0.5), k.second, turn_x(-0.35))
    )
    for side in (-1, 1):
        out.append(
            ball(
                (side * r * 0.9, y + 0.02, -0.08),
                (0.08, r * 0.5, r * 0.75),
                dark(k.main, 0.75),
                turn_x(-0.5),
            )
        )
        out.append(
            limb((side * 0.13, y - r * 0.8, 0), (side * 0.14, 0.05, 0.03), 0.035, 0.03, foot)
        )
        out.append(limb((side * 0.14, 0.035, -0.05), (side * 0.16, 0.03, 0.17), 0.035, 0.03, foot))
    out.append(
        tube((0, hy - 0.05, hz + head + 0.09), (0.085, 0.085), 0.14, beak, 0.05, turn_x(np.pi / 2))
    )
    crest = ((0, 0.2, -0.1), (0, 0.26, 0.03), (0, 0.0, 0.0))[k.v]
    if k.v < 2:
        start = np.float32([0, hy + head * 0.85, hz])
        out.append(limb(start, start + np.float32(crest), 0.07, 0.03, k.second))
    out += eye_pair(hy + 0.18 * head, hz + 0.84 * head, 0.5 * head, 0.06)
    return Figure(
        out,
        top=Anchor((0, hy + 0.86 * head, hz), head * 0.72),
        neck=Anchor((0, hy - 0.55 * head, hz * 0.7), head * 1.02),
        eyes=Anchor((0, hy + 0.18 * head, hz + 0.9 * head), head),
    )
