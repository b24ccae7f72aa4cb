"""Simple solids, and where a ray meets them, in closed form.

A solid is a unit shape in its own frame, `world = matrix @ local + centre`. A ray keeps its
parameter t under such a map, so every shape is solved in its own frame and the nearest t wins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

NO_HIT = np.float32(1e9)


@dataclass(frozen=True)
class Surface:
    """What a solid looks like: a colour, perhaps a second one laid over it in a pattern.

    Colours are RGB in 0..1. `density` counts stripes or spots, `seed` places the spots.
    """

    colour: tuple[float, float, float]
    second: tuple[float, float, float] | None = None
    pattern: str = "plain"
    density: float = 1.0
    seed: int = 0
    gloss: float = 0.25
    glow: float = 0.0


@dataclass(frozen=True)
class Solid:
    """One shape: sphere, box, tube (a cylinder or cone) or limb (two balls and what is between).

    `sizes` are a tube's upper radius, or a limb's length and two radii, in the solid's own frame.
    """

    shape: str
    matrix: np.ndarray  # (3, 3)
    centre: np.ndarray  # (3,)
    surface: Surface
    sizes: tuple[float, ...] = ()

    @property
    def bounds(self) -> tuple[np.ndarray, float]:
        """A ball (centre, radius) that holds the solid."""
        if self.shape == "limb":
            length, low, high = self.sizes
            scale = float(np.linalg.norm(self.matrix[:, 1]))
            middle = self.centre + self.matrix[:, 1] * length / 2
            return middle, scale * (length / 2 + max(low, high))
        axes = np.linalg.norm(self.matrix, axis=0)
        if self.shape == "sphere":
            return self.centre, float(axes.max())
        if self.shape == "box":
            return self.centre, float(np.linalg.norm(axes))
        wide = max(1.0, *self.sizes)
        return self.centre, float(np.hypot(max(axes[0], axes[2]) * wide, axes[1]))


def squares(vectors: np.ndarray) -> np.ndarray:
    """Squared lengths (n,) of vectors (n, 3); several times faster than `.sum(1)`."""
    return np.einsum("ij,ij->i", vectors, vectors)


def turn_y(angle: float) -> np.ndarray:
    """Rotation about the vertical, (3, 3); positive turns +z towards +x."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def turn_x(angle: float) -> np.ndarray:
    """Rotation about the x axis, (3, 3); positive turns +y towards +z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]], np.float32)


def turn_z(angle: float) -> np.ndarray:
    """Rotation about the z axis, (3, 3); positive turns +x towards +y."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)


def along(direction: np.ndarray) -> np.ndarray:
    """A rotation (3, 3) whose second column is `direction`."""
    up = direction / np.linalg.norm(direction)
    other = np.array([1.0, 0, 0]) if abs(up[0]) < 0.9 else np.array([0, 0, 1.0])
    side = np.cross(other, up)
    side /= np.linalg.norm(side)
    return np.stack([side, up, np.cross(side, up)], 1).astype(np.float32)


def ball(centre, radii, surface: Surface, turn: np.ndarray | None = None) -> Solid:
    """An ellipsoid; `radii` is one number or three."""
    return _shaped("sphere", centre, radii, surface, turn)


def box(centre, half, surface: Surface, turn: np.ndarray | None = None) -> Solid:
    """A box of half extents `half`."""
    return _shaped("box", centre, half, surface, turn)


def tube(centre, radius, half_height, surface, top=1.0, turn=None) -> Solid:
    """A capped cylinder about its own y axis; its upper radius is `top` times the lower one.

    `radius` is one number, or two for an oval.
    """
    wide, deep = np.broadcast_to(radius, 2)
    return _shaped("tube", centre, (wide, half_height, deep), surface, turn, (float(top),))


def limb(start, end, low: float, high: float, surface: Surface) -> Solid:
    """Balls of radii `low` at `start` and `high` at `end`, and the cone that joins them."""
    start, end = np.asarray(start, np.float32), np.asarray(end, np.float32)
    length = float(np.linalg.norm(end - start))
    return Solid("limb", along(end - start), start, surface, (length, float(low), float(high)))


def chain(points, radii, surface: Surface) -> list[Solid]:
    """Limbs from point to point: handles, tails, spouts."""
    radii = np.broadcast_to(radii, len(points))
    steps = zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)
    return [limb(a, b, ra, rb, surface) for a, b, ra, rb in steps]


def _shaped(shape, centre, half, surface, turn, sizes=()) -> Solid:
    matrix = np.diag(np.broadcast_to(np.asarray(half, np.float32), 3))
    matrix = matrix if turn is None else turn @ matrix
    return Solid(shape, matrix.astype(np.float32), np.asarray(centre, np.float32), surface, sizes)


def moved(solid: Solid, rotation: np.ndarray, scale: float, shift: np.ndarray) -> Solid:
    """The solid turned, scaled about the origin, then shifted."""
    matrix = (scale * rotation @ solid.matrix).astype(np.float32)
    centre = (scale * rotation @ solid.centre + shift).astype(np.float32)
    return replace(solid, matrix=matrix, centre=centre)


def intersect(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Ray parameter of the first hit, (n,), `NO_HIT` where there is none.

    Args:
        origin: (3,), outside the solid.
        rays: directions (n, 3), of any length.
    """
    inverse = np.linalg.inv(solid.matrix).astype(np.float32)
    o, d = inverse @ (origin - solid.centre), rays @ inverse.T
    with np.errstate(all="ignore"):
        t = {"sphere": _sphere, "box": _box, "tube": _tube, "limb": _limb}[solid.shape](
            o, d, solid.sizes
        )
    return np.where(t > 1e-3, t, NO_HIT).astype(np.float32)  # also turns NaN into no hit


def _sphere(o: np.ndarray, d: np.ndarray, _) -> np.ndarray:
    a, b, c = squares(d), d @ o, o @ o - 1
    return (-b - np.sqrt(b * b - a * c)) / a


def _box(o: np.ndarray, d: np.ndarray, _) -> np.ndarray:
    low, high = (-1 - o) / d, (1 - o) / d
    near, far = np.minimum(low, high), np.maximum(low, high)
    enter = np.maximum(np.maximum(near[:, 0], near[:, 1]), near[:, 2])
    leave = np.minimum(np.minimum(far[:, 0], far[:, 1]), far[:, 2])
    return np.where(enter < leave, enter, NO_HIT)


def _tube(o: np.ndarray, d: np.ndarray, sizes: tuple[float, ...]) -> np.ndarray:
    middle, slope = (1 + sizes[0]) / 2, (sizes[0] - 1) / 2
    x, y, z = d.T
    radius = middle + slope * o[1]
    a = x * x + z * z - (slope * y) ** 2
    b = o[0] * x + o[2] * z - slope * y * radius
    root = np.sqrt(b * b - a * (o[0] ** 2 + o[2] ** 2 - radius**2))
    found = np.full(len(d), NO_HIT)
    for t in ((-b - root) / a, (-b + root) / a):
        height = o[1] + t * y
        on_side = (np.abs(height) <= 1) & (middle + slope * height >= 0) & (t > 0)
        found = np.where(on_side & (t < found), t, found)
    for end, wide in ((-1, 1.0), (1, sizes[0])):
        t = (end - o[1]) / y
        inside = (o[0] + t * x) ** 2 + (o[2] + t * z) ** 2 <= wide * wide
        found = np.where(inside & (t > 0) & (t < found), t, found)
    return found


def _limb(o: np.ndarray, d: np.ndarray, sizes: tuple[float, ...]) -> np.ndarray:
    length, low, high = sizes
    speed = np.sqrt(squares(d))
    d = d / speed[:, None]
    above = o - np.array([0, length, 0], np.float32)
    m0, m1, m2 = length * length, length * o[1], length * d[:, 1]
    m3, m5, m6, m7 = d @ o, o @ o, d @ above, above @ above
    taper = low - high
    span = m0 - taper * taper
    k2 = span - m2 * m2
    k1 = span * m3 - m1 * m2 + m2 * taper * low
    k0 = span * m5 - m1 * m1 + 2 * m1 * taper * low - m0 * low * low
    h = k1 * k1 - k0 * k2
    t = (-np.sqrt(h) - k1) / k2
    y = m1 - low * taper + t * m2
    on_cone = (h >= 0) & (y > 0) & (y < span)
    first, second = m3 * m3 - m5 + low * low, m6 * m6 - m7 + high * high
    lower = np.where(first >= 0, -m3 - np.sqrt(first), NO_HIT)
    upper = np.where(second >= 0, -m6 - np.sqrt(second), NO_HIT)
    return np.where(on_cone, t, np.minimum(lower, upper)) / speed


def local_points(solid: Solid, points: np.ndarray) -> np.ndarray:
    """World points (n, 3) in the solid's own frame."""
    return (points - solid.centre) @ np.linalg.inv(solid.matrix).T.astype(np.float32)


def normals(solid: Solid, local: np.ndarray) -> np.ndarray:
    """Unit outward normals in the world (n, 3) at surface points in the solid's own frame."""
    inverse = np.linalg.inv(solid.matrix).astype(np.float32)
    out = _local_normals(solid, local) @ inverse
    return out / np.sqrt(squares(out)[:, None] + 1e-12)


def _local_normals(solid: Solid, u: np.ndarray) -> np.ndarray:
    if solid.shape == "sphere":
        return u
    if solid.shape == "box":
        side = np.abs(u).argmax(1)
        out = np.zeros_like(u)
        rows = np.arange(len(u))
        out[rows, side] = np.sign(u[rows, side])
        return out
    if solid.shape == "tube":
        slope = (solid.sizes[0] - 1) / 2
        radius = np.sqrt(u[:, 0] ** 2 + u[:, 2] ** 2)
        side = np.stack([u[:, 0], -slope * radius, u[:, 2]], 1)
        cap = np.zeros_like(u)
        cap[:, 1] = np.sign(u[:, 1])
        return np.where((np.abs(u[:, 1]) > 0.9995)[:, None], cap, side)
    length, low, high = solid.sizes
    # On a cone of balls the normal points away from the ball that touches here.
    radial = np.sqrt(u[:, 0] ** 2 + u[:, 2] ** 2)
    sine = (low - high) / length
    touching = np.clip(u[:, 1] - radial * sine / np.sqrt(max(1 - sine * sine, 1e-6)), 0, length)
    return u - np.stack([np.zeros_like(touching), touching, np.zeros_like(touching)], 1)


def paint(solid: Solid, local: np.ndarray) -> np.ndarray:
    """Colours (n, 3) at surface points in the solid's own frame."""
    surface = solid.surface
    colour = np.broadcast_to(np.float32(surface.colour), local.shape)
    if surface.second is None or surface.pattern == "plain":
        return colour
    if solid.shape == "limb":
        length, low, high = solid.sizes
        local = (local - np.float32([0, length / 2, 0])) / (length / 2 + max(low, high))
    if surface.pattern == "stripes":
        mask = np.sin(local[:, 1 if solid.shape == "limb" else 0] * 6.5 * surface.density) > 0
    elif surface.pattern == "halves":
        mask = local[:, 1] < (0.0 if solid.shape != "limb" else -0.1)
    else:
        rng = np.random.default_rng(surface.seed)
        spots = rng.normal(size=(max(6, int(13 * surface.density)), 3)).astype(np.float32)
        spots /= np.linalg.norm(spots, axis=1, keepdims=True)
        towards = local / np.sqrt(squares(local)[:, None] + 1e-9)
        mask = (towards @ spots.T).max(1) > 0.9
    return np.where(mask[:, None], np.float32(surface.second), colour)
