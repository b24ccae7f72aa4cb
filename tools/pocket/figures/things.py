"""Things of the house that one can put down anywhere."""

from __future__ import annotations

import numpy as np

from ..solids import Surface, ball, box, chain, limb, tube, turn_x, turn_z
from .parts import BLACK, Anchor, Figure, Look, arc, dark


def teapot(k: Look) -> Figure:
    """A teapot, round, straight or bellied; spout to the front, handle behind."""
    r, tall = 0.46 + 0.06 * k.b, 0.4 + 0.1 * k.h
    out = []
    if k.v == 1:
        out.append(tube((0, tall + 0.05, 0), r, tall, k.skin, 0.72))
    else:
        out.append(ball((0, tall * 0.95 + 0.05, 0), (r, tall, r), k.skin))
    out.append(tube((0, 0.05, 0), r * 0.65, 0.05, k.second))
    top = 1.95 * tall if k.v != 1 else 2 * tall + 0.05
    rim = r * (0.5 if k.v != 1 else 0.72)
    lid = 0.1 if k.v == 0 else 0.17
    out.append(tube((0, top - 0.02, 0), rim, 0.03, k.second))
    out.append(ball((0, top, 0), (rim * 0.9, lid, rim * 0.9), k.main))
    out.append(ball((0, top + lid + 0.05, 0), 0.08, k.second))
    long = 0.36 * (1 + 0.25 * k.e)
    end = (0, tall * 1.7 + 0.1, r + long)
    out.append(
        limb((0, tall * 0.75, r * 0.8), (0, tall * 1.15, r + long * 0.6), 0.15, 0.09, k.main)
    )
    out.append(limb((0, tall * 1.15, r + long * 0.6), end, 0.09, 0.07, k.main))
    out.append(ball((0, end[1] + 0.02, end[2] + 0.01), (0.085, 0.05, 0.085), k.second))
    big = 0.28 * (1 + 0.2 * k.d)
    out += chain(arc((0, tall + 0.05, -r * 0.9), big, 85, 275, 8), 0.06, k.second)
    return Figure(
        out,
        top=Anchor((0, top + lid + 0.05, 0), rim * 0.8),
        neck=Anchor((0, top - 0.1, 0), rim * 1.05),
        front=Anchor((r * 0.98, tall, 0), 0.2),
    )


def mug(k: Look) -> Figure:
    """A mug with a handle, straight, conical or round."""
    r, tall = 0.4 + 0.06 * k.b, 0.42 + 0.1 * k.h
    flare = (1.0, 1.18, 0.88)[k.v] + 0.06 * k.e
    out = [tube((0, tall, 0), r, tall, k.skin, flare)]
    out.append(tube((0, 2 * tall, 0), r * flare * 1.04, 0.035, k.second))
    drink = Surface((0.28, 0.15, 0.08), gloss=0.6)
    out.append(tube((0, 2 * tall + 0.035, 0), r * flare * 0.88, 0.006, drink))
    out.append(tube((0, 0.03, 0), r * 1.03, 0.03, k.second))
    big = 0.27 * (1 + 0.22 * k.d)
    out += chain(arc((0, tall * 1.02, -r * (1 + flare) / 2), big, 80, 280, 8), 0.065, k.second)
    return Figure(
        out,
        top=Anchor((0, 2 * tall + 0.03, 0), r * 0.8),
        neck=Anchor((0, tall * 1.6, 0), r * 1.1),
        front=Anchor((r * (1 + flare) / 2, tall * 1.0, 0), 0.2),
    )


def vase(k: Look) -> Figure:
    """A bellied vase with a neck, with or without flowers."""
    r, tall = 0.36 + 0.07 * k.b, 0.36 + 0.09 * k.h
    out = [ball((0, tall, 0), (r, tall, r), k.skin), tube((0, 0.05, 0), r * 0.6, 0.05, k.second)]
    neck = 0.17 * (1 + 0.25 * k.e)
    long = 0.22 * (1 + 0.4 * k.d)
    y = 2 * tall - 0.06
    out.append(tube((0, y + long, 0), neck, long, k.main, 1.0))
    out.append(tube((0, y + 2 * long, 0), neck * 1.15, 0.06, k.second, 1.35))
    top = y + 2 * long + 0.06
    out.append(tube((0, top, 0), neck * 1.3, 0.006, Surface((0.08, 0.07, 0.07))))
    if k.v == 1:
        for side in (-1, 1):
            out += chain(
                arc(
                    (0, y + long * 0.7, side * neck),
                    0.2,
                    90 - side * 90 - 80,
                    90 - side * 90 + 80,
                    7,
                ),
                0.05,
                k.second,
            )
    if k.v == 2:
        stem, leaf = Surface((0.2, 0.5, 0.2)), Surface((0.95, 0.8, 0.2))
        for x, z, petal in (
            (-0.14, 0.05, (0.95, 0.4, 0.5)),
            (0.15, 0, (0.95, 0.6, 0.2)),
            (0, -0.1, (0.8, 0.3, 0.7)),
        ):
            end = (x, top + 0.34, z)
            out.append(limb((0, top, 0), end, 0.025, 0.025, stem))
            out.append(ball(end, (0.13, 0.11, 0.13), Surface(petal)))
            out.append(ball((x, top + 0.42, z), 0.06, leaf))
    return Figure(
        out,
        top=Anchor((0, top, 0), neck * 1.1),
        neck=Anchor((0, y + 0.06, 0), neck * 1.2),
        front=Anchor((0, tall, r * 0.98), 0.2),
    )


def bowl(k: Look) -> Figure:
    """A wide bowl of soup, fruit or nothing."""
    r, tall = 0.52 + 0.07 * k.b, 0.24 + 0.07 * k.h
    out = [tube((0, 0.06, 0), r * 0.45, 0.06, k.second)]
    out.append(
        tube((0, 0.08 + tall, 0), r * (0.55 + 0.1 * k.e), tall, k.skin, 1 / (0.55 + 0.1 * k.e))
    )
    y = 0.08 + 2 * tall
    out.append(tube((0, y, 0), r * 1.04, 0.04 + 0.015 * k.d, k.second))
    inside = dark(k.main, 0.55) if k.v else Surface((0.85, 0.4, 0.12), gloss=0.6)
    out.append(tube((0, y + 0.045, 0), r * 0.9, 0.012, inside))
    if k.v == 1:
        for x, z, colour in (
            (-0.22, 0.08, (0.85, 0.15, 0.12)),
            (0.2, 0.12, (0.95, 0.6, 0.1)),
            (0.02, -0.18, (0.5, 0.75, 0.2)),
        ):
            out.append(ball((x, y + 0.13, z), 0.19, Surface(colour, gloss=0.5)))
    if k.v == 2:
        out.append(
            limb((0.1, y, 0), (r * 1.25, y + 0.35, 0.1), 0.05, 0.035, Surface((0.7, 0.7, 0.74)))
        )
    return Figure(
        out,
        top=Anchor((0, y + 0.04, 0), r * 0.5),
        neck=Anchor((0, y - 0.1, 0), r),
        front=Anchor((0, 0.1 + tall, r * 0.84), 0.19),
    )


def can(k: Look) -> Figure:
    """A tin can with a band; tall, or with an open lid."""
    r, tall = 0.36 + 0.07 * k.b, 0.5 + 0.1 * k.h
    metal = Surface((0.75, 0.76, 0.78), gloss=0.8)
    out = [tube((0, tall, 0), r, tall - 0.05, k.skin)]
    for y in (0.03, 2 * tall - 0.03):
        out.append(tube((0, y, 0), r * 1.03, 0.035, metal))
    band = 0.14 * (1 + 0.4 * k.e)
    out.append(tube((0, tall * (1 + 0.3 * k.d), 0), r * 1.02, band, k.second))
    out.append(tube((0, 2 * tall + 0.005, 0), r * 0.85, 0.006, dark(metal, 0.75)))
    if k.v == 1:
        out.append(tube((0, 2 * tall + 0.24, -r * 0.95), r, 0.015, metal, 1.0, turn_x(1.35)))
    if k.v == 2:
        out.append(limb((0.04, 2 * tall, 0), (-0.12, 2 * tall + 0.5, 0.05), 0.045, 0.045, k.second))
    return Figure(
        out,
        top=Anchor((0, 2 * tall, 0), r * 0.8),
        neck=Anchor((0, 2 * tall - 0.15, 0), r * 1.04),
        front=Anchor((0, tall * 0.9, r * 1.02), 0.2),
    )


def candle(k: Look) -> Figure:
    """A burning candle on a saucer; one, twisted or a group of three."""
    r, tall = 0.2 + 0.06 * k.b, 0.42 + 0.14 * k.h
    plate = 0.42 * (1 + 0.12 * k.d)
    out = [tube((0, 0.04, 0), plate * 0.8, 0.04, k.second, 1.25)]
    out += chain(arc((0, 0.1, -plate), 0.12, 30, 330, 7), 0.04, k.second) if k.v == 1 else []
    sticks = [(0.0, 0.0, 1.0)]
    if k.v == 2:
        sticks = [(-0.2, 0.02, 0.75), (0.2, 0.06, 0.6), (0.0, -0.12, 1.0)]
    for x, z, share in sticks:
        half, wide = tall * share, r * (0.8 if k.v == 2 else 1)
        y = 0.08 + 2 * half
        out.append(tube((x, 0.08 + half, z), wide, half, k.skin, 0.92 + 0.08 * k.e))
        out.append(ball((x, y, z), (wide * 0.8, 0.05, wide * 0.8), k.main))
        out.append(limb((x, y, z), (x, y + 0.09, z), 0.018, 0.018, Surface(BLACK)))
        flame = Surface((1.0, 0.62, 0.12), glow=1.0)
        out.append(limb((x, y + 0.13, z), (x, y + 0.31, z), 0.075, 0.015, flame))
        out.append(
            ball((x, y + 0.13, z + 0.05), (0.04, 0.06, 0.04), Surface((1, 0.95, 0.6), glow=1.0))
        )
    return Figure(
        out,
        top=Anchor((0, 0.1, plate * 0.7), 0.2),
        neck=Anchor((0, tall, 0), r * 1.05),
        front=Anchor((0, 0.08 + tall, r * 0.98), 0.15),
    )


def clock(k: Look) -> Figure:
    """An alarm clock with bells, a wooden box clock or a round one on feet."""
    r = 0.46 + 0.05 * k.b
    y = r + 0.14 + 0.05 * k.h
    white, black = Surface((0.96, 0.95, 0.9)), Surface(BLACK)
    facing = turn_x(np.pi / 2)
    out = []
    if k.v == 1:
        out.append(box((0, y, 0), (r, r, 0.18), k.skin))
        out.append(tube((0, y + r + 0.13, 0), (r * 1.1, 0.24), 0.13, k.second, 0.2))
    else:
        out.append(tube((0, y, 0), r, 0.17, k.skin, 1.0, facing))
    face = r * (0.8 + 0.05 * k.e)
    out.append(tube((0, y, 0.175), face * 1.06, 0.02, k.second, 1.0, facing))
    out.append(tube((0, y, 0.195), face * 0.96, 0.015, white, 1.0, facing))
    for i in range(12):
        angle, size = i * np.pi / 6, 0.042 if i % 3 == 0 else 0.022
        spot = (0.8 * face * np.sin(angle), y + 0.8 * face * np.cos(angle), 0.21)
        out.append(ball(spot, (size, size, 0.012), black))
    for angle, long in ((0.9 + 2 * k.d, 0.45), (-0.9 + k.d, 0.66)):
        end = (long * face * np.sin(angle), y + long * face * np.cos(angle), 0.225)
        out.append(limb((0, y, 0.225), end, 0.032, 0.022, black))
    for side in (-1, 1):
        out.append(
            limb((side * r * 0.55, y - r * 0.8, 0), (side * r * 0.7, 0.05, 0), 0.06, 0.05, k.second)
        )
        if k.v == 0:
            out.append(
                ball(
                    (side * r * 0.62, y + r * 0.98, 0),
                    (0.19, 0.13, 0.16),
                    k.second,
                    turn_z(-side * 0.55),
                )
            )
    if k.v == 0:
        out += chain(arc((0, y + r * 1.02, 0), 0.2, 0, 180, 7, "xy"), 0.035, k.second)
    return Figure(
        out,
        top=Anchor((0, y + r * (1.0 if k.v != 1 else 1.25), 0), r * 0.45),
        neck=Anchor((0, y - r * 0.7, 0), r * 0.7),
        front=Anchor((0, y, 0.22), 0.2),
    )


def boot(k: Look) -> Figure:
    """A boot with a sole, a cuff and laces."""
    tall, wide = 0.36 + 0.12 * k.h, 0.21 + 0.035 * k.b
    long = 0.36 + 0.06 * k.e
    sole = dark(k.second, 0.9)
    out = [box((0, 0.06, long * 0.42), (wide * 1.02, 0.06, long * 0.98), sole)]
    out.append(ball((0, 0.06, long * 1.38), (wide * 1.02, 0.06, 0.14), sole))
    out.append(limb((0, 0.26, 0), (0, 0.22, long * 1.15), wide, wide * 0.92, k.skin))
    out.append(tube((0, 0.3 + tall, -0.04), (wide * 1.02, wide * 1.12), tall, k.skin, 1.06))
    top = 0.3 + 2 * tall
    out.append(tube((0, top, -0.04), (wide * 1.16, wide * 1.26), 0.07 * (1 + 0.4 * k.d), k.second))
    out.append(tube((0, top + 0.08, -0.04), (wide * 0.9, wide), 0.006, Surface((0.09, 0.07, 0.06))))
    if k.v == 0:
        for i in range(4):
            y, z = 0.36 + i * tall * 0.36, wide * 1.02 + 0.05 - 0.03 * min(i, 1) * i
            out.append(limb((-0.1, y, z), (0.1, y, z), 0.03, 0.03, k.second))
    if k.v == 1:
        out.append(ball((0, 0.2, long * 1.4), (wide * 0.9, 0.17, 0.16), k.second))
    if k.v == 2:
        out.append(box((0, 0.1, -0.1), (wide * 0.9, 0.1, 0.15), sole))
        out.append(tube((0, 0.34, -0.03), (wide * 1.12, wide * 1.22), 0.05, k.second))
    return Figure(
        out,
        top=Anchor((0, top + 0.08, -0.04), wide),
        neck=Anchor((0, top - 0.22, -0.04), wide * 1.15),
        front=Anchor((wide, 0.3 + tall, -0.04), 0.15),
    )


def backpack(k: Look) -> Figure:
    """A backpack with a pocket, flap and straps."""
    wide, tall = 0.4 + 0.06 * k.b, 0.46 + 0.09 * k.h
    deep = 0.2 + 0.04 * k.e
    out = [box((0, tall, 0), (wide, tall * 0.95, deep), k.skin)]
    out.append(ball((0, 2 * tall - 0.06, 0), (wide, 0.24, deep), k.skin))
    for x in (-wide, wide):
        out.append(
            limb(
                (x, 0.14, 0),
                (x, 2 * tall - 0.14, 0),
                0.14 + deep * 0.25,
                0.12 + deep * 0.25,
                k.main,
            )
        )
    pocket = tall * (0.4 + 0.08 * k.d)
    out.append(box((0, pocket + 0.06, deep + 0.07), (wide * 0.7, pocket, 0.1), k.second))
    out.append(
        limb(
            (-wide * 0.62, 2 * pocket, deep + 0.1),
            (wide * 0.62, 2 * pocket, deep + 0.1),
            0.08,
            0.08,
            dark(k.second, 0.8),
        )
    )
    gold = Surface((0.9, 0.75, 0.3), gloss=0.8)
    if k.v == 0:
        out.append(ball((0, 1.75 * tall, deep * 0.4), (wide * 0.92, tall * 0.42, deep), k.main))
        out.append(box((0, 1.4 * tall, deep + 0.12), (0.06, 0.08, 0.03), gold))
    if k.v == 1:
        for x in (-wide * 0.5, wide * 0.5):
            out.append(box((x, tall * 1.05, deep + 0.03), (0.05, tall * 0.9, 0.03), k.second))
            out.append(box((x, tall * 1.35, deep + 0.07), (0.07, 0.05, 0.03), gold))
    if k.v == 2:
        out.append(
            limb(
                (-wide * 0.75, 1.5 * tall, deep), (wide * 0.75, 1.5 * tall, deep), 0.03, 0.03, gold
            )
        )
        out.append(box((0, 1.75 * tall, deep + 0.02), (0.13, 0.09, 0.03), k.second))
    out += chain(arc((0, 2 * tall + 0.12, 0), 0.13, -10, 190, 7, "xy"), 0.04, dark(k.main, 0.7))
    for x in (-wide * 0.5, wide * 0.5):
        out += chain(arc((x, tall, -deep), tall * 0.7, 100, 260, 7), 0.06, dark(k.main, 0.7))
    return Figure(
        out,
        top=Anchor((0, 2 * tall + 0.15, 0), wide * 0.6),
        neck=Anchor((0, 2 * tall, 0), wide),
        front=Anchor((0, pocket + 0.06, deep + 0.17), 0.2),
    )
