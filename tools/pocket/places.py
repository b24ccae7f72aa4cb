"""The places: ground, sky or wall, light, and what stands about, each with something that varies.

A place gets its rays and gives their colours. Ground points are (n, 2): x to the right, z towards
the camera; the thing stands near (0, 0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .records import Setting
from .solids import Solid, Surface, ball, box, limb, tube

Colours = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Light:
    """A sun and what comes from above and below; all colours RGB, about 0..1."""

    towards: tuple[float, float, float] = (-0.45, 0.75, 0.5)
    sun: tuple[float, float, float] = (0.72, 0.7, 0.66)
    sky: tuple[float, float, float] = (0.48, 0.5, 0.55)
    ground: tuple[float, float, float] = (0.28, 0.27, 0.25)
    shadow: float = 0.55  # how dark a cast shadow is, 0..1


@dataclass
class Place:
    """What `render` needs of a place."""

    ground: Colours  # (n, 2) points -> (n, 3)
    sky: Colours  # (n, 3) unit directions -> (n, 3); or (n, 2) points of the wall
    light: Light = field(default_factory=Light)
    wall: float | None = None  # z of a wall in place of the sky
    props: list[Solid] = field(default_factory=list)
    haze: tuple[float, float, float] | None = None  # what far ground fades to


def rgb(*values: float) -> np.ndarray:
    """A colour as an array (3,)."""
    return np.float32(values)


def mix(a, b, share: np.ndarray) -> np.ndarray:
    """Colours (n, 3) between `a` and `b` by `share` (n,) in 0..1."""
    share = np.clip(share, 0, 1)[:, None].astype(np.float32)
    return np.asarray(a, np.float32) * (1 - share) + np.asarray(b, np.float32) * share


def waves(points: np.ndarray, rng: np.random.Generator, scale: float, count: int = 4) -> np.ndarray:
    """Smooth noise (n,) of about -1..1: a few sines in random directions."""
    total = np.zeros(len(points), np.float32)
    for _ in range(count):
        direction = rng.normal(size=points.shape[1]).astype(np.float32) * scale
        total += np.sin(points @ direction + np.float32(rng.uniform(0, 6.28)))
    return total / (0.7 * count)


def rough_ground(low, high, rng: np.random.Generator, scale: float = 3.0) -> Colours:
    """Ground between two colours, in soft patches and finer grain."""
    seed = int(rng.integers(1 << 30))

    def paint(points: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(seed)
        value = 0.6 * waves(points, noise, scale) + 0.4 * waves(points, noise, 3.5 * scale)
        return mix(low, high, 0.5 + 0.45 * value)

    return paint


def gradient_sky(horizon, zenith, rng: np.random.Generator, clouds: float = 0.0) -> Colours:
    """A sky from horizon to zenith, with soft clouds."""
    seed = int(rng.integers(1 << 30))

    def paint(rays: np.ndarray) -> np.ndarray:
        up = np.clip(rays[:, 1], 0, 1)
        colour = mix(horizon, zenith, up * 2.4)
        if clouds:
            noise = np.random.default_rng(seed)
            flat = np.stack([rays[:, 0] * 1.0, rays[:, 1] * 2.6], 1)
            value = waves(flat, noise, 4.0, 5) + 0.5 * waves(flat, noise, 9.0, 3)
            colour = mix(colour, (1, 1, 1), np.clip(value - 0.35, 0, 0.8) * clouds * (up > 0))
        return colour

    return paint


def starry_sky(horizon, zenith, rng: np.random.Generator, moon: bool) -> Colours:
    """A dark sky with stars and perhaps a moon."""
    stars = rng.uniform((-0.9, 0.02), (0.9, 0.6), (70, 2)).astype(np.float32)
    sizes = rng.uniform(0.003, 0.008, 70).astype(np.float32)
    at = rng.uniform((-0.3, 0.14), (0.3, 0.22)).astype(np.float32)

    def paint(rays: np.ndarray) -> np.ndarray:
        flat = rays[:, :2]
        colour = mix(horizon, zenith, np.clip(rays[:, 1], 0, 1) * 2.2)
        lit = np.zeros(len(flat), bool)
        for (sx, sy), size in zip(stars, sizes, strict=True):
            lit |= (flat[:, 0] - sx) ** 2 + (flat[:, 1] - sy) ** 2 < size * size
        colour = mix(colour, (1, 1, 0.92), lit * 0.9)
        if moon:
            away = np.sqrt(((flat - at) ** 2).sum(1))
            colour = mix(colour, (0.97, 0.95, 0.82), (away < 0.075).astype(np.float32))
        return colour

    return paint


def ridge(sky: Colours, colour, top, base: float, height: float, rng, jagged: float) -> Colours:
    """`sky` behind a line of hills or peaks; above `top` (a colour) they are capped."""
    seed = int(rng.integers(1 << 30))

    def paint(rays: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(seed)
        x = rays[:, :1]
        soft = waves(x, noise, 4.0, 3)
        phase = noise.uniform(0, 1)
        tooth = np.abs(((x[:, 0] * 2.6 + phase) % 1) - 0.5) * 2
        tooth2 = np.abs(((x[:, 0] * 4.3 + phase * 3) % 1) - 0.5) * 2
        line = base + height * (
            (1 - jagged) * (0.5 + 0.4 * soft) + jagged * (0.7 * tooth + 0.3 * tooth2)
        )
        behind = sky(rays)
        up = rays[:, 1]
        hill = np.broadcast_to(np.float32(colour), behind.shape)
        if top is not None:
            lit = mix(
                colour, np.float32(colour) * 0.75, (waves(rays[:, :2], noise, 9.0, 3) > 0) * 1.0
            )
            hill = mix(lit, top, (up > line - 0.35 * height * (line / (base + height))) * 1.0)
        return np.where((up < line)[:, None], hill, behind)

    return paint


def _day(rng: np.random.Generator) -> tuple[Light, np.ndarray, np.ndarray]:
    """A light of the day with sky colours: sun left or right, morning to noon."""
    side, high = rng.choice([-1, 1]) * rng.uniform(0.25, 0.6), rng.uniform(0.6, 0.85)
    warm = rng.uniform(-0.04, 0.06)
    light = Light((side, high, 0.5), (0.7 + warm, 0.69, 0.66 - warm), (0.5, 0.52, 0.56))
    return light, rgb(0.78, 0.89, 0.98), rgb(0.25, 0.52, 0.9) * rng.uniform(0.9, 1.1)


def grass(rng: np.random.Generator) -> Place:
    """A lawn with tufts and flowers under a blue sky."""
    light, low, high = _day(rng)
    green = rgb(0.32, 0.62, 0.2) * rng.uniform(0.85, 1.1)
    ground = rough_ground(green * 0.82, green * 1.12, rng)
    props = []
    for _ in range(9):
        x, z = rng.uniform((-2.6, -3), (2.6, 0.6))
        if abs(x) > 0.8 or z < -1.2:
            petal = [(1, 1, 1), (0.98, 0.85, 0.2), (0.95, 0.45, 0.6)][rng.integers(3)]
            props.append(ball((x, 0.07, z), (0.055, 0.04, 0.055), Surface(petal)))
    hills = ridge(gradient_sky(low, high, rng, 0.8), green * 0.72, None, 0.0, 0.07, rng, 0)
    return Place(ground, hills, light, props=props, haze=tuple(green * 0.95))


def beach(rng: np.random.Generator) -> Place:
    """Sand, then the sea up to the horizon."""
    light, low, high = _day(rng)
    sand = rough_ground((0.88, 0.77, 0.54), (0.96, 0.88, 0.68), rng, 2.5)
    shore, phase = -rng.uniform(1.3, 1.9), rng.uniform(0, 6)
    sea, deep = rgb(0.2, 0.68, 0.78), rgb(0.06, 0.36, 0.66)

    def ground(points: np.ndarray) -> np.ndarray:
        away = shore + 0.12 * np.sin(points[:, 0] * 1.7 + phase) - points[:, 1]
        water = mix(sea, deep, away / 6)
        foam = (away > 0) & (away < 0.16)
        out = np.where((away > 0)[:, None], water, sand(points))
        return np.where(foam[:, None], rgb(0.97, 0.98, 0.98), out)

    return Place(ground, gradient_sky(low, high, rng, 1.0), light)


def snow(rng: np.random.Generator) -> Place:
    """Snow, white firs and a pale sky."""
    light = Light((-0.4, 0.75, 0.5), (0.62, 0.62, 0.62), (0.54, 0.57, 0.63), (0.45, 0.46, 0.5), 0.3)
    ground = rough_ground((0.83, 0.88, 0.95), (0.97, 0.98, 1.0), rng, 1.6)
    props = []
    for x in (-2.6, 2.4, -1.7, 3.2, 1.5):
        if rng.random() < 0.75:
            z, s = -rng.uniform(2.6, 4), rng.uniform(0.8, 1.2)
            x = x + rng.uniform(-0.3, 0.3)
            props.append(tube((x, 0.15 * s, z), 0.1 * s, 0.15 * s, Surface((0.36, 0.24, 0.16))))
            for i, wide in enumerate((0.55, 0.42, 0.29)):
                at = (x, (0.5 + 0.36 * i) * s, z)
                props.append(tube(at, wide * s, 0.28 * s, Surface((0.2, 0.42, 0.36)), 0.1))
                cap = (x, (0.66 + 0.36 * i) * s, z + 0.02)
                props.append(tube(cap, wide * s * 0.55, 0.13 * s, Surface((0.96, 0.97, 1)), 0.1))
    return Place(
        ground, gradient_sky((0.8, 0.86, 0.93), (0.58, 0.7, 0.86), rng), light, props=props
    )


def desert(rng: np.random.Generator) -> Place:
    """Orange dunes and cacti."""
    light = Light((0.5, 0.7, 0.45), (0.78, 0.7, 0.55), (0.48, 0.46, 0.44), (0.38, 0.28, 0.18))
    tone = rng.uniform(0.94, 1.06)
    ground = rough_ground(rgb(0.84, 0.52, 0.25) * tone, rgb(0.93, 0.64, 0.34) * tone, rng, 1.8)
    sky = gradient_sky((0.99, 0.86, 0.62), (0.5, 0.72, 0.88), rng)
    sky = ridge(sky, (0.86, 0.55, 0.3), None, 0.0, 0.09, rng, 0)
    props, green = [], Surface((0.24, 0.5, 0.24))
    for side in (-1, 1):
        if rng.random() < 0.75:
            x, z, s = side * rng.uniform(1.4, 2.4), -rng.uniform(1.8, 3.2), rng.uniform(0.8, 1.2)
            props.append(limb((x, 0, z), (x, 1.1 * s, z), 0.16 * s, 0.15 * s, green))
            elbow = (x + 0.4 * s, 0.55 * s, z)
            props.append(limb((x, 0.5 * s, z), elbow, 0.09 * s, 0.09 * s, green))
            props.append(limb(elbow, (x + 0.4 * s, 0.9 * s, z), 0.09 * s, 0.09 * s, green))
    return Place(ground, sky, light, props=props)


def _planks(colour: np.ndarray, rng: np.random.Generator, width: float = 0.34) -> Colours:
    offsets = rng.uniform(0, 1, 64).astype(np.float32)

    def paint(points: np.ndarray) -> np.ndarray:
        board = np.floor(points[:, 0] / width).astype(int)
        tone = 0.86 + 0.26 * offsets[board % 64]
        along = (points[:, 1] + 2.5 * offsets[board % 64]) % 1.9
        gap = (np.abs(points[:, 0] / width - np.round(points[:, 0] / width)) < 0.045) | (
            along < 0.035
        )
        return colour * np.where(gap, 0.55, tone)[:, None].astype(np.float32)

    return paint


def floor(rng: np.random.Generator) -> Place:
    """A room with a floor of boards and a plain wall with a skirting."""
    wood = rgb(0.72, 0.47, 0.27) * rng.uniform(0.85, 1.12)
    wall = [rgb(0.93, 0.88, 0.78), rgb(0.8, 0.88, 0.86), rgb(0.92, 0.82, 0.8)][rng.integers(3)]

    def paint(points: np.ndarray) -> np.ndarray:
        colour = wall * (0.92 + 0.05 * np.clip(points[:, 1:2], 0, 2))
        return np.where(points[:, 1:2] < 0.16, rgb(0.97, 0.96, 0.94), colour)

    light = Light((-0.5, 0.7, 0.55), (0.66, 0.63, 0.58), (0.5, 0.49, 0.48), (0.36, 0.3, 0.25))
    return Place(_planks(wood, rng), paint, light, wall=-rng.uniform(1.6, 2.2))


def _bricks(
    colour: np.ndarray, mortar, rng: np.random.Generator, width=0.5, height=0.22
) -> Colours:
    tones = rng.uniform(0.82, 1.12, 97).astype(np.float32)

    def paint(points: np.ndarray) -> np.ndarray:
        row = np.floor(points[:, 1] / height)
        x = points[:, 0] / width + 0.5 * (row % 2)
        column = np.floor(x)
        edge = (x - column < 0.07) | (points[:, 1] / height - row < 0.15)
        tone = tones[(row * 31 + column * 7).astype(int) % 97]
        return np.where(edge[:, None], np.float32(mortar), colour * tone[:, None])

    return paint


def brick(rng: np.random.Generator) -> Place:
    """A brick wall behind a pavement."""
    red = rgb(0.7, 0.3, 0.22) * rng.uniform(0.9, 1.1)
    grey = rough_ground((0.6, 0.6, 0.6), (0.68, 0.68, 0.67), rng, 4)

    def pavement(points: np.ndarray) -> np.ndarray:
        joint = (np.abs(points / 0.9 - np.round(points / 0.9)) < 0.02).any(1)
        return np.where(joint[:, None], rgb(0.48, 0.48, 0.48), grey(points))

    wall = _bricks(red, (0.84, 0.8, 0.74), rng)
    return Place(pavement, wall, Light(), wall=-rng.uniform(1.3, 1.8))


def night(rng: np.random.Generator) -> Place:
    """A meadow at night under stars and a moon."""
    light = Light((0.4, 0.75, 0.5), (0.34, 0.38, 0.5), (0.26, 0.29, 0.42), (0.1, 0.12, 0.16), 0.5)
    ground = rough_ground((0.09, 0.16, 0.2), (0.14, 0.22, 0.25), rng)
    sky = starry_sky((0.16, 0.2, 0.42), (0.03, 0.04, 0.16), rng, True)
    return Place(ground, ridge(sky, (0.05, 0.08, 0.14), None, 0.0, 0.08, rng, 0), light)


def forest(rng: np.random.Generator) -> Place:
    """Between trunks and dark firs."""
    light = Light((-0.35, 0.8, 0.45), (0.58, 0.6, 0.5), (0.42, 0.48, 0.42), (0.2, 0.24, 0.16))
    ground = rough_ground((0.23, 0.33, 0.14), (0.36, 0.43, 0.2), rng, 3.5)
    sky = gradient_sky((0.55, 0.7, 0.5), (0.36, 0.56, 0.4), rng)
    props = []
    for x in (-3.4, -2.4, -1.5, -0.6, 0.5, 1.4, 2.3, 3.3):
        z, s = -rng.uniform(2.2, 4.5), rng.uniform(0.9, 1.3)
        x = x + rng.uniform(-0.3, 0.3)
        props.append(tube((x, 0.3 * s, z), 0.13 * s, 0.3 * s, Surface((0.34, 0.22, 0.13))))
        leaf = rgb(0.13, 0.4, 0.18) * rng.uniform(0.8, 1.25)
        if rng.random() < 0.6:
            for i, wide in enumerate((0.75, 0.58, 0.4)):
                at = (x, (0.85 + 0.5 * i) * s, z)
                props.append(tube(at, wide * s, 0.4 * s, Surface(tuple(leaf)), 0.08))
        else:
            props.append(ball((x, 1.35 * s, z), (0.7 * s, 0.85 * s, 0.7 * s), Surface(tuple(leaf))))
    return Place(ground, sky, light, props=props)


def mountains(rng: np.random.Generator) -> Place:
    """A meadow below snow-capped peaks."""
    light, low, high = _day(rng)
    ground = rough_ground((0.42, 0.58, 0.26), (0.54, 0.68, 0.34), rng)
    peaks = ridge(
        gradient_sky(low, high, rng, 0.3), (0.4, 0.43, 0.52), (0.96, 0.97, 0.99), 0.06, 0.26, rng, 1
    )
    return Place(ground, ridge(peaks, (0.28, 0.46, 0.3), None, 0.0, 0.07, rng, 0), light)


def lake(rng: np.random.Generator) -> Place:
    """A shore of reeds, still water and wooded hills."""
    light, low, high = _day(rng)
    shore = rough_ground((0.4, 0.5, 0.24), (0.52, 0.58, 0.3), rng)
    edge, phase = -rng.uniform(0.8, 1.2), rng.uniform(0, 6)

    def ground(points: np.ndarray) -> np.ndarray:
        away = edge + 0.15 * np.sin(points[:, 0] * 1.3 + phase) - points[:, 1]
        ripple = np.sin(points[:, 1] * 9 + 0.6 * np.sin(points[:, 0] * 2)) * 0.5 + 0.5
        water = mix(
            mix((0.2, 0.45, 0.68), (0.4, 0.63, 0.8), ripple * 0.6), (0.55, 0.74, 0.86), away / 9
        )
        out = np.where((away > 0)[:, None], water, shore(points))
        return np.where(((away > -0.08) & (away < 0.04))[:, None], rgb(0.72, 0.64, 0.45), out)

    props, reed = [], Surface((0.36, 0.5, 0.2))
    for _ in range(10):
        x = rng.choice([-1, 1]) * rng.uniform(0.95, 2.2)
        z, tall = edge - rng.uniform(0, 0.4), rng.uniform(0.35, 0.7)
        props.append(limb((x, 0, z), (x + rng.uniform(-0.1, 0.1), tall, z), 0.025, 0.015, reed))
        props.append(limb((x, tall * 0.8, z), (x, tall, z), 0.04, 0.04, Surface((0.4, 0.25, 0.14))))
    sky = ridge(gradient_sky(low, high, rng, 0.6), (0.24, 0.42, 0.3), None, 0.015, 0.1, rng, 0.3)
    return Place(ground, sky, light, props=props)


def city(rng: np.random.Generator) -> Place:
    """A street between houses with lit windows."""
    light, _, _ = _day(rng)
    asphalt = rough_ground((0.34, 0.35, 0.37), (0.42, 0.43, 0.45), rng, 5)

    def ground(points: np.ndarray) -> np.ndarray:
        line = (np.abs(points[:, 1] + 0.95) < 0.06) & ((points[:, 0] % 1.2) < 0.7)
        kerb = points[:, 1] < -1.7
        out = np.where(line[:, None], rgb(0.93, 0.92, 0.86), asphalt(points))
        return np.where(kerb[:, None], rgb(0.62, 0.61, 0.6), out)

    props = []
    tones = [
        (0.72, 0.4, 0.32),
        (0.82, 0.74, 0.6),
        (0.5, 0.56, 0.64),
        (0.62, 0.62, 0.62),
        (0.45, 0.4, 0.5),
    ]
    for i, x in enumerate((-3.4, -2.0, -0.65, 0.7, 2.0, 3.3)):
        tall, z = rng.uniform(0.8, 2.0), -rng.uniform(3.2, 4.2)
        tone = tones[int(rng.integers(len(tones)))]
        props.append(box((x, tall, z), (0.6, tall, 0.4), Surface(tone, gloss=0.0)))
        for row in np.arange(0.35, 2 * tall - 0.15, 0.45):
            for column in (-0.33, 0.0, 0.33):
                lit = (rng.random() + i * 0.1) % 1 < 0.4
                glass = Surface((0.98, 0.85, 0.45) if lit else (0.3, 0.42, 0.55), glow=0.3 * lit)
                props.append(box((x + column, row, z + 0.4), (0.09, 0.12, 0.02), glass))
    sky = gradient_sky((0.83, 0.86, 0.9), (0.5, 0.64, 0.82), rng, 0.4)
    return Place(ground, sky, light, props=props)


def kitchen(rng: np.random.Generator) -> Place:
    """A kitchen table with a checked cloth before tiles and a cupboard."""
    cloth = [rgb(0.85, 0.2, 0.2), rgb(0.25, 0.45, 0.8), rgb(0.3, 0.6, 0.35)][rng.integers(3)]
    wood = [rgb(0.45, 0.62, 0.6), rgb(0.6, 0.42, 0.26), rgb(0.88, 0.85, 0.78)][rng.integers(3)]

    def ground(points: np.ndarray) -> np.ndarray:
        across, down = np.floor(points[:, 0] / 0.32) % 2, np.floor(points[:, 1] / 0.32) % 2
        return mix((0.96, 0.95, 0.93), cloth, (across + down) / 2)

    def wall(points: np.ndarray) -> np.ndarray:
        x, y = points[:, 0], points[:, 1]
        joint = (np.abs(x / 0.36 - np.round(x / 0.36)) < 0.04) | (
            np.abs(y / 0.36 - np.round(y / 0.36)) < 0.04
        )
        tiles = np.where(joint[:, None], rgb(0.74, 0.78, 0.8), rgb(0.93, 0.95, 0.95))
        door = np.abs(x / 1.1 - np.round(x / 1.1)) < 0.025
        knob = (np.abs(np.abs(x / 1.1 - np.round(x / 1.1)) - 0.09) < 0.03) & (
            np.abs(y - 1.5) < 0.07
        )
        cupboard = np.where((door | knob)[:, None], wood * 0.5, wood)
        return np.where((y > 1.25)[:, None], cupboard, tiles)

    light = Light((-0.4, 0.75, 0.5), (0.62, 0.6, 0.55), (0.52, 0.51, 0.5), (0.4, 0.36, 0.34), 0.45)
    return Place(ground, wall, light, wall=-rng.uniform(1.4, 1.9))


def moon(rng: np.random.Generator) -> Place:
    """Grey dust with craters below black space and the earth."""
    light = Light((0.6, 0.6, 0.5), (0.85, 0.85, 0.82), (0.24, 0.25, 0.28), (0.2, 0.2, 0.2), 0.75)
    dust = rough_ground((0.52, 0.52, 0.53), (0.64, 0.64, 0.64), rng, 2.5)
    spots = rng.uniform((-3, -5), (3, 0.8), (14, 2)).astype(np.float32)
    sizes = rng.uniform(0.15, 0.5, 14).astype(np.float32)
    stars = starry_sky((0.01, 0.01, 0.03), (0.01, 0.01, 0.04), rng, False)
    at = rng.uniform((-0.3, 0.14), (0.3, 0.22)).astype(np.float32)

    def ground(points: np.ndarray) -> np.ndarray:
        away = np.sqrt(((points[:, None] - spots[None]) ** 2).sum(-1)) / sizes
        near = away.min(1)
        tone = np.where(near < 0.8, 0.72, np.where(near < 1, 1.18, 1.0)).astype(np.float32)
        return dust(points) * tone[:, None]

    def sky(rays: np.ndarray) -> np.ndarray:
        flat = rays[:, :2] - at
        away = np.sqrt((flat * flat).sum(1))
        land = np.sin(flat[:, 0] * 55 + 2) + np.sin(flat[:, 1] * 48 + flat[:, 0] * 30) > 0.5
        earth = np.where(land[:, None], rgb(0.3, 0.65, 0.35), rgb(0.2, 0.42, 0.85))
        earth = np.where(
            (np.sin(flat[:, 1] * 80 + flat[:, 0] * 20) > 0.85)[:, None], rgb(0.95, 0.96, 1), earth
        )
        return np.where((away < 0.11)[:, None], earth, stars(rays))

    return Place(ground, sky, light)


def sunset(rng: np.random.Generator) -> Place:
    """Low orange sun over dark hills."""
    light = Light((0.5, 0.5, 0.55), (0.8, 0.5, 0.3), (0.42, 0.34, 0.42), (0.28, 0.16, 0.14))
    ground = rough_ground((0.3, 0.2, 0.2), (0.44, 0.28, 0.24), rng, 2.5)
    sky = gradient_sky((0.99, 0.62, 0.25), (0.5, 0.22, 0.45), rng)
    at = np.float32([rng.uniform(-0.35, 0.35), rng.uniform(0.06, 0.12)])

    def with_sun(rays: np.ndarray) -> np.ndarray:
        away = np.sqrt(((rays[:, :2] - at) ** 2).sum(1))
        glow = mix(sky(rays), (1, 0.85, 0.45), np.exp(-((away / 0.2) ** 2)) * 0.7)
        return np.where((away < 0.1)[:, None], rgb(1, 0.93, 0.6), glow)

    return Place(ground, ridge(with_sun, (0.3, 0.14, 0.25), None, 0.0, 0.07, rng, 0.2), light)


def volcano(rng: np.random.Generator) -> Place:
    """Black rock with glowing cracks; a volcano smokes behind."""
    light = Light((0.4, 0.7, 0.5), (0.7, 0.45, 0.32), (0.4, 0.28, 0.28), (0.45, 0.16, 0.05))
    rock = rough_ground((0.1, 0.08, 0.08), (0.2, 0.15, 0.15), rng, 4)
    seed = int(rng.integers(1 << 30))

    def ground(points: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(seed)
        value = np.abs(waves(points, noise, 2.4) + 0.35 * waves(points, noise, 6.5))
        hot = mix((1, 0.85, 0.25), (0.95, 0.3, 0.05), value / 0.09)
        return np.where((value < 0.1)[:, None], hot, rock(points))

    sky = gradient_sky((0.75, 0.3, 0.16), (0.22, 0.08, 0.12), rng)
    x0, side = rng.uniform(-0.3, 0.3), rng.uniform(0.55, 0.75)

    def mountain(rays: np.ndarray) -> np.ndarray:
        across = np.abs(rays[:, 0] - x0)
        line = np.minimum(0.24, 0.24 - (across - 0.07) * side)
        out = sky(rays)
        smoke = (rays[:, 1] > 0.2) & (across < 0.05 + 0.4 * (rays[:, 1] - 0.2))
        out = np.where(smoke[:, None], out * 0.55 + 0.12, out)
        stream = np.abs(rays[:, 0] - x0 - 0.03 * np.sin(rays[:, 1] * 30)) < 0.022
        body = np.where(
            (stream | (rays[:, 1] > 0.215))[:, None], rgb(1, 0.5, 0.1), rgb(0.2, 0.12, 0.13)
        )
        return np.where((rays[:, 1] < line)[:, None], body, out)

    return Place(ground, mountain, light)


def stage(rng: np.random.Generator) -> Place:
    """A theatre's stage: boards, a red curtain, a spotlight."""
    boards = _planks(rgb(0.52, 0.33, 0.2), rng, 0.5)
    red = [rgb(0.7, 0.08, 0.12), rgb(0.55, 0.06, 0.2)][rng.integers(2)]

    def ground(points: np.ndarray) -> np.ndarray:
        away = np.sqrt((points * points).sum(1))
        return boards(points) * mix((1.45, 1.4, 1.25), (0.7, 0.66, 0.68), (away - 0.95) / 0.25)

    folds = rng.uniform(6, 8)

    def curtain(points: np.ndarray) -> np.ndarray:
        fold = np.sin(points[:, 0] * folds + 0.5 * np.sin(points[:, 0] * 2.3))
        tone = (0.72 + 0.38 * fold)[:, None].astype(np.float32)
        hem = np.where(points[:, 1:2] < 0.14, rgb(0.92, 0.75, 0.3), red)
        return hem * tone

    light = Light((0.0, 0.85, 0.5), (0.85, 0.82, 0.72), (0.36, 0.33, 0.36), (0.3, 0.2, 0.16), 0.65)
    return Place(ground, curtain, light, wall=-rng.uniform(1.5, 2.0))


def _studio(colour: np.ndarray, shadow: float) -> Place:
    def plain(points: np.ndarray) -> np.ndarray:
        return np.broadcast_to(colour, (len(points), 3))

    light = Light(
        (-0.45, 0.75, 0.5), (0.62, 0.61, 0.6), (0.55, 0.55, 0.56), (0.42, 0.42, 0.42), shadow
    )
    return Place(plain, plain, light)


def white(rng: np.random.Generator) -> Place:
    """Nothing but white."""
    return _studio(rgb(0.96, 0.96, 0.96) * rng.uniform(0.98, 1.02), 0.3)


def blue(rng: np.random.Generator) -> Place:
    """Nothing but blue."""
    return _studio(rgb(0.36, 0.6, 0.9) * rng.uniform(0.94, 1.06), 0.35)


BUILDERS: dict[str, Callable[[np.random.Generator], Place]] = {
    f.__name__: f
    for f in (
        grass,
        beach,
        snow,
        desert,
        floor,
        brick,
        night,
        forest,
        mountains,
        lake,
        city,
        kitchen,
        moon,
        sunset,
        volcano,
        stage,
        white,
        blue,
    )
}


def build_place(setting: Setting) -> Place:
    """The place, with what varies drawn from its seed."""
    return BUILDERS[setting.place](np.random.default_rng(setting.seed))
