"""Draws a picture record: rays against solids, one light, soft shadows, smooth edges.

Every pixel gets one ray; where neighbours differ, four. A solid is tested only inside the square
that its bounding ball covers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .figures import solids_of
from .places import Place, build_place, mix
from .records import Picture
from .solids import (
    NO_HIT,
    Solid,
    intersect,
    local_points,
    moved,
    normals,
    paint,
    squares,
    turn_y,
)

SIZE = 128
DISTANCE, HALF_WIDTH = 3.5, 0.38  # camera to thing; tangent of half the angle of view
AIM = 0.68  # height that the camera looks at
EDGE_CONTRAST = 0.06
QUARTERS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))


@dataclass(frozen=True)
class Camera:
    """A pinhole at `eye` (3,); rows of `axes` (3, 3) are right, up and towards the viewer."""

    eye: np.ndarray
    axes: np.ndarray
    lift: float  # shift of the picture, in half heights

    def rays(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Directions (n, 3) through screen points in -1..1, y upwards; not of unit length."""
        flat = np.stack([x * HALF_WIDTH, (y + self.lift) * HALF_WIDTH, -np.ones_like(x)], 1)
        return (flat @ self.axes).astype(np.float32)

    def screen_box(self, solid: Solid) -> tuple[float, float, float, float] | None:
        """Left, right, bottom, top in screen units of what may show the solid; None: behind."""
        centre, radius = solid.bounds
        x, y, z = self.axes @ (centre - self.eye)
        if -z <= radius * 1.01:
            return None
        reach = radius / np.sqrt(max(z * z - radius * radius, 1e-6)) / HALF_WIDTH * 1.12
        x, y = x / -z / HALF_WIDTH, y / -z / HALF_WIDTH - self.lift
        return x - reach, x + reach, y - reach, y + reach


def camera_of(pitch: float, lift: float) -> Camera:
    """A camera that looks down by `pitch` at the thing."""
    c, s = np.cos(pitch), np.sin(pitch)
    axes = np.float32([[1, 0, 0], [0, c, -s], [0, s, c]])
    eye = np.float32([0, AIM, 0]) + DISTANCE * axes[2]
    return Camera(eye.astype(np.float32), axes, lift)


@dataclass
class Scene:
    """All that rays can meet."""

    place: Place
    thing: list[Solid]
    camera: Camera


def scene_of(picture: Picture) -> Scene:
    """Builds the place and stands the thing in it."""
    place, pose = build_place(picture.setting), picture.pose
    rotation, shift = turn_y(pose.yaw), np.float32([pose.x, 0, 0])
    thing = [moved(s, rotation, pose.size, shift) for s in solids_of(picture.identity)]
    return Scene(place, thing, camera_of(pose.pitch, pose.y))


def soft_shadow(points: np.ndarray, towards: np.ndarray, solids: list[Solid]) -> np.ndarray:
    """How much of the light from `towards` is kept off `points`, (n,) in 0..1.

    Each solid counts as an ellipsoid; the edge softens with how closely the ray passes by.
    """
    light = np.ones(len(points), np.float32)
    for solid in solids:
        centre, radius = solid.bounds
        if radius < 0.09:
            continue
        away = points - centre
        ahead = -(away @ towards)
        aside = squares(away) - ahead * ahead
        near = np.flatnonzero((aside < (1.35 * radius) ** 2) & (ahead > -radius))
        if not len(near):
            continue
        local, ray = _rounded(solid, away[near], towards)
        along = -(local @ ray) / (ray @ ray)
        passing = local + along[:, None] * ray
        miss = np.sqrt(squares(passing))
        cover = np.clip((1.25 - miss) / 0.5, 0, 1) * (along > 0)
        light[near] *= 1 - cover * cover * (3 - 2 * cover)
    return 1 - light


def _rounded(solid: Solid, away: np.ndarray, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 3) and a direction (3,) in the frame in which the solid is about a unit ball.

    `away` are offsets from the middle of the solid's bounding ball.
    """
    matrix = solid.matrix
    if solid.shape == "limb":
        length, low, high = solid.sizes
        wide = (low + high) / 2
        matrix = matrix * np.float32([wide, length / 2 + wide, wide])
    elif solid.shape in ("box", "tube"):
        matrix = matrix * np.float32(1.15)
    inverse = np.linalg.inv(matrix).astype(np.float32)
    return away @ inverse.T, inverse @ ray


def shade(solid: Solid, points: np.ndarray, eye: np.ndarray, place: Place) -> np.ndarray:
    """Colours (n, 3) of surface points as lit: sun, sky, ground, highlight, a darker rim."""
    local = local_points(solid, points)
    colour, normal = paint(solid, local), normals(solid, local)
    light = place.light
    towards = np.float32(light.towards) / np.linalg.norm(light.towards)
    view = eye - points
    view /= np.sqrt(squares(view)[:, None])
    facing = np.clip(np.einsum("ij,ij->i", normal, view), 0, 1)
    sun = np.clip((normal @ towards + 0.15) / 1.15, 0, 1)[:, None]
    above = mix(light.ground, light.sky, 0.5 + 0.5 * normal[:, 1])
    lit = np.float32(light.sun) * sun + above
    half = view + towards
    half /= np.sqrt(squares(half)[:, None])
    shine = np.clip(np.einsum("ij,ij->i", normal, half), 0, 1)[:, None] ** 32 * solid.surface.gloss
    rim = (0.72 + 0.28 * np.minimum(1, facing / 0.45))[:, None]
    near_ground = (0.78 + 0.22 * np.clip(points[:, 1] / 0.35, 0, 1))[:, None]
    out = colour * lit * rim * near_ground + shine * np.float32(light.sun)
    glow = solid.surface.glow
    return out * (1 - glow) + colour * glow if glow else out


def _background(scene: Scene, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours (n, 3) and depths (n,) of ground, wall and sky."""
    place, eye = scene.place, scene.camera.eye
    with np.errstate(all="ignore"):
        down = np.where(rays[:, 1] < -1e-3, -eye[1] / rays[:, 1], NO_HIT).astype(np.float32)
    beyond = NO_HIT if place.wall is None else (place.wall - eye[2]) / rays[:, 2]
    on_ground = down < np.minimum(beyond, 60.0)
    colour = np.empty_like(rays)
    rest = ~on_ground
    if rest.any():
        if place.wall is None:
            unit = rays[rest] / np.sqrt(squares(rays[rest])[:, None])
            colour[rest] = place.sky(unit)
        else:
            hit = eye + rays[rest] * beyond[rest, None]
            colour[rest] = place.sky(hit[:, :2])
    if on_ground.any():
        points = eye + rays[on_ground] * down[on_ground, None]
        ground = place.ground(points[:, [0, 2]]).astype(np.float32)
        close = np.flatnonzero((np.abs(points[:, 0]) < 2.4) & (points[:, 2] > -2.2))
        towards = np.float32(place.light.towards) / np.linalg.norm(place.light.towards)
        cast = soft_shadow(points[close], towards, scene.thing)
        under = soft_shadow(points[close], np.float32([0, 1, 0]), scene.thing)
        dark = 1 - place.light.shadow * np.maximum(cast, 0.8 * under)
        ground[close] *= dark[:, None]
        if place.haze is not None:
            ground = mix(ground, place.haze, down[on_ground] / 40)
        colour[on_ground] = ground
    return colour, np.where(on_ground, down, np.minimum(beyond, 1e8)).astype(np.float32)


def trace(scene: Scene, x: np.ndarray, y: np.ndarray, boxes: list) -> np.ndarray:
    """Colours (n, 3) at screen points; `boxes` holds (solid, screen box) of all that may show."""
    eye, rays = scene.camera.eye, scene.camera.rays(x, y)
    colour, depth = _background(scene, rays)
    owner = np.full(len(x), -1)
    for number, (solid, (left, right, bottom, top)) in enumerate(boxes):
        inside = np.flatnonzero((x > left) & (x < right) & (y > bottom) & (y < top))
        if not len(inside):
            continue
        t = intersect(solid, eye, rays[inside])
        nearer = t < depth[inside]
        rows = inside[nearer]
        depth[rows], owner[rows] = t[nearer], number
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(len(boxes) + 1))
    for number, (solid, _) in enumerate(boxes):
        rows = order[starts[number] : starts[number + 1]]
        if len(rows):
            points = eye + rays[rows] * depth[rows, None]
            colour[rows] = shade(solid, points, eye, scene.place)
    return np.clip(colour, 0, 1)


def render(picture: Picture, size: int = SIZE) -> np.ndarray:
    """The picture as uint8 (size, size, 3)."""
    scene = scene_of(picture)
    boxes = [(s, scene.camera.screen_box(s)) for s in [*scene.place.props, *scene.thing]]
    boxes = [(s, b) for s, b in boxes if b and b[0] < 1 and b[1] > -1 and b[2] < 1 and b[3] > -1]
    step = np.float32(2 / size)
    line = (np.arange(size, dtype=np.float32) + 0.5) * step - 1
    x, y = (a.ravel() for a in np.meshgrid(line, -line))
    colour = trace(scene, x, y, boxes)
    rough = np.flatnonzero(_edges(colour.reshape(size, size, 3)).ravel())
    if len(rough):
        fine_x = np.concatenate([x[rough] + step * dx for dx, _ in QUARTERS])
        fine_y = np.concatenate([y[rough] + step * dy for _, dy in QUARTERS])
        fine = trace(scene, fine_x.astype(np.float32), fine_y.astype(np.float32), boxes)
        colour[rough] = fine.reshape(4, -1, 3).mean(0)
    return (colour.reshape(size, size, 3) * 255 + 0.5).astype(np.uint8)


def coverage(picture: Picture, size: int = 32) -> np.ndarray:
    """Where the thing is: bool (size, size), one ray through the middle of each square."""
    scene = scene_of(picture)
    line = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    x, y = (a.ravel() for a in np.meshgrid(line, -line))
    rays, depth = scene.camera.rays(x, y), np.full(size * size, NO_HIT, np.float32)
    shown = np.zeros(size * size, bool)
    for solids, is_thing in ((scene.place.props, False), (scene.thing, True)):
        for solid in solids:
            box = scene.camera.screen_box(solid)
            if box is None:
                continue
            inside = np.flatnonzero((x > box[0]) & (x < box[1]) & (y > box[2]) & (y < box[3]))
            if len(inside):
                t = intersect(solid, scene.camera.eye, rays[inside])
                nearer = t < depth[inside]
                depth[inside[nearer]], shown[inside[nearer]] = t[nearer], is_thing
    return shown.reshape(size, size)


def _edges(picture: np.ndarray) -> np.ndarray:
    """Pixels (H, W) that differ from a neighbour."""
    out = np.zeros(picture.shape[:2], bool)
    across = (np.abs(np.diff(picture, axis=1)) > EDGE_CONTRAST).any(-1)
    down = (np.abs(np.diff(picture, axis=0)) > EDGE_CONTRAST).any(-1)
    out[:, 1:] |= across
    out[:, :-1] |= across
    out[1:] |= down
    out[:-1] |= down
    return out
