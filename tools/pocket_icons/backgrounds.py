"""Procedural backgrounds: grass, beach, night sky ... and plain colours, 64 x 64 RGB.

Every drawer takes a numpy generator, so no two pictures share a background exactly. They are smooth
on purpose: fine noise would cost the VAE and the UNet capacity that the object needs.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from .concepts import BACKGROUNDS

SIZE = 64
PLAIN = {
    "red": (214, 48, 44),
    "blue": (48, 104, 214),
    "green": (58, 168, 76),
    "yellow": (247, 214, 70),
    "pink": (246, 160, 196),
    "purple": (134, 74, 186),
    "white": (246, 246, 246),
}


def _gradient(top, bottom, height: int = SIZE) -> np.ndarray:
    """A vertical gradient (height, 64, 3) between two RGB colours."""
    t = np.linspace(0, 1, height)[:, None, None]
    column = np.array(top, float) * (1 - t) + np.array(bottom, float) * t
    return np.broadcast_to(column, (height, SIZE, 3)).copy()


def _scene(rng, sky_top, sky_bottom, ground_top, ground_bottom, horizon=(26, 34)) -> Image.Image:
    """Sky over ground, with a horizon (px from the top) drawn from the given range."""
    y = int(rng.integers(*horizon))
    both = [_gradient(sky_top, sky_bottom, y), _gradient(ground_top, ground_bottom, SIZE - y)]
    image = Image.fromarray(np.concatenate(both).clip(0, 255).astype(np.uint8))
    image.info["horizon"] = y
    return image


def _grass(rng):
    image = _scene(rng, (130, 200, 245), (200, 232, 250), (120, 200, 80), (60, 150, 50))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = rng.integers(0, 64), rng.integers(image.info["horizon"] + 3, 64)
        draw.line([(x - 1, y - 3), (x, y), (x + 2, y - 3)], fill=(44, 128, 40))
    return image


def _beach(rng):
    sky, sand = ((120, 205, 250), (205, 238, 252)), ((250, 226, 160), (236, 200, 124))
    image = _scene(rng, *sky, *sand, (34, 42))
    y = image.info["horizon"]
    ImageDraw.Draw(image).rectangle([0, y - 11, 64, y - 2], fill=(28, 148, 190))
    ImageDraw.Draw(image).rectangle([0, y - 2, 64, y], fill=(232, 248, 250))
    return image


def _night(rng):
    image = Image.fromarray(_gradient((8, 10, 42), (34, 40, 96)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(22):
        x, y = rng.integers(1, 62, 2)
        draw.rectangle([x, y, x + rng.integers(0, 2), y], fill=(250, 246, 200))
    x, y = int(rng.integers(4, 50)), int(rng.integers(3, 8))
    draw.ellipse([x, y, x + 9, y + 9], fill=(250, 240, 180))
    return image


def _snow(rng):
    image = _scene(rng, (150, 174, 206), (206, 220, 236), (246, 250, 255), (220, 230, 244))
    draw = ImageDraw.Draw(image)
    for _ in range(22):
        x, y = rng.integers(0, 63, 2)
        draw.ellipse([x, y, x + 1, y + 1], fill=(255, 255, 255))
    return image


def _table(rng):
    image = Image.fromarray(_gradient((190, 128, 72), (160, 100, 52)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    offset = int(rng.integers(0, 12))
    for i, y in enumerate(range(offset - 12, 64, 12)):
        shade = (176, 114, 60) if i % 2 else (196, 136, 80)
        draw.rectangle([0, y, 64, y + 11], fill=shade)
        draw.line([(0, y + 11), (64, y + 11)], fill=(112, 66, 32))
    return image


def _brick(rng):
    image = Image.new("RGB", (SIZE, SIZE), (216, 200, 186))
    draw = ImageDraw.Draw(image)
    dx, dy = int(rng.integers(0, 16)), int(rng.integers(0, 8))
    for row, y in enumerate(range(-dy, 64, 8)):
        for x in range(-dx - 8 * (row % 2), 64, 16):
            draw.rectangle([x, y, x + 14, y + 6], fill=(172, 72, 54))
    return image


def _forest(rng):
    image = _scene(rng, (60, 110, 62), (112, 158, 92), (62, 104, 44), (40, 78, 34), (42, 50))
    draw = ImageDraw.Draw(image)
    for x in np.arange(4, 64, 15) + rng.integers(-3, 4, 4):
        draw.rectangle([x, 0, x + 4, image.info["horizon"] + 2], fill=(82, 56, 34))
    for x in range(0, 70, 10):
        draw.ellipse([x - 9, -10, x + 9, 9 + int(rng.integers(0, 5))], fill=(30, 86, 40))
    return image


def _desert(rng):
    image = _scene(rng, (250, 206, 122), (254, 232, 178), (232, 164, 82), (206, 130, 56), (30, 38))
    draw, y = ImageDraw.Draw(image), image.info["horizon"]
    peak = int(rng.integers(6, 58))
    draw.polygon([(peak - 30, y), (peak, y - 9), (peak + 34, y)], fill=(222, 148, 70))
    draw.ellipse([4, 4, 13, 13], fill=(255, 250, 214))
    return image


def _sunset(rng):
    image = _scene(rng, (92, 44, 122), (255, 140, 64), (122, 52, 84), (56, 26, 66), (40, 46))
    draw, y = ImageDraw.Draw(image), image.info["horizon"]
    x = int(rng.integers(8, 56))
    draw.pieslice([x - 11, y - 11, x + 11, y + 11], 180, 360, fill=(255, 226, 110))
    return image


def _water(rng):
    image = Image.fromarray(_gradient((72, 176, 226), (18, 92, 172)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    phase = float(rng.uniform(0, 9))
    for y in range(int(rng.integers(2, 10)), 64, 10):
        points = [(x, y + 2 * math.sin(x / 3.2 + phase + y)) for x in range(65)]
        draw.line(points, fill=(168, 222, 246), width=1)
    return image


def _mountains(rng):
    image = _scene(rng, (140, 190, 240), (214, 232, 248), (122, 172, 96), (88, 142, 74), (44, 50))
    draw, y = ImageDraw.Draw(image), image.info["horizon"]
    for x, top in ((10, 12), (52, 8), (31, 18)):
        x, top = x + int(rng.integers(-5, 6)), top + int(rng.integers(-3, 4))
        draw.polygon([(x - 24, y), (x, top), (x + 24, y)], fill=(104, 112, 138))
        draw.polygon([(x - 7, top + 10), (x, top), (x + 7, top + 10)], fill=(246, 250, 255))
    return image


def _city(rng):
    image = _scene(rng, (166, 196, 224), (222, 230, 238), (96, 98, 106), (74, 76, 84), (48, 53))
    draw, y = ImageDraw.Draw(image), image.info["horizon"]
    for i, x in enumerate(range(-int(rng.integers(0, 8)), 64, 13)):
        top = int(rng.integers(4, 26))
        draw.rectangle([x, top, x + 11, y], fill=((92, 106, 132), (126, 116, 120))[i % 2])
        for wy in range(top + 3, y - 3, 6):
            for wx in (x + 2, x + 7):
                draw.rectangle([wx, wy, wx + 2, wy + 2], fill=(250, 230, 150))
    return image


def draw_background(name: str, rng: np.random.Generator) -> Image.Image:
    """One random background `name` (a key of `BACKGROUNDS`), RGB 64 x 64."""
    if name in PLAIN:
        colour = np.clip(np.array(PLAIN[name]) + rng.integers(-8, 9, 3), 0, 255)
        return Image.new("RGB", (SIZE, SIZE), tuple(int(c) for c in colour))
    return _DRAWERS[name](rng)


_DRAWERS = {n: globals()[f"_{n}"] for n in BACKGROUNDS if n not in PLAIN}
