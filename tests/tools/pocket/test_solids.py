"""Rays meet solids where geometry says."""

import numpy as np
import pytest

from tools.pocket.solids import (
    NO_HIT,
    Surface,
    ball,
    box,
    intersect,
    limb,
    local_points,
    moved,
    normals,
    paint,
    tube,
    turn_x,
    turn_y,
    turn_z,
)

RED = Surface((1, 0, 0))
EYE = np.float32([0, 0, 10])
AHEAD = np.float32([[0, 0, -1]])


@pytest.mark.parametrize(
    ("solid", "distance"),
    [
        (ball((0, 0, 0), 1.5, RED), 8.5),
        (ball((0, 0, 0), (3, 3, 0.5), RED), 9.5),
        (box((0, 0, 1), (1, 1, 2), RED), 7.0),
        (tube((0, 0, 0), 2, 1, RED), 8.0),
        (tube((0, 0, 0), 2, 1, RED, top=0.5), 8.5),  # half way up the radius is 1.5
        (tube((0, 0, 0), 1, 3, RED, turn=turn_x(np.pi / 2)), 7.0),  # seen onto a cap
        (limb((0, -1, 0), (0, 1, 0), 0.5, 0.5, RED), 9.5),
        (limb((0, 0, 0), (0, 0, 4), 1.0, 0.5, RED), 5.5),  # onto the end ball
    ],
)
def test_distance_is_the_analytic_one(solid, distance):
    assert intersect(solid, EYE, AHEAD) == pytest.approx([distance], abs=1e-4)
    assert intersect(solid, EYE, 4 * AHEAD) == pytest.approx([distance / 4], abs=1e-4)


@pytest.mark.parametrize(
    "solid",
    [
        ball((0, 5, 0), 1, RED),
        box((3, 0, 0), (1, 1, 1), RED),
        tube((0, -3, 0), 1, 1, RED),
        limb((2, -1, 0), (2, 1, 0), 0.5, 0.9, RED),
    ],
)
def test_a_ray_beside_a_solid_does_not_hit(solid):
    assert intersect(solid, EYE, AHEAD)[0] == NO_HIT


def test_a_moved_solid_is_hit_where_it_went():
    ring = moved(tube((0, 0, 0), 1, 1, RED), turn_z(0.3), 2.0, np.float32([0, 0, 1]))
    assert intersect(ring, EYE, AHEAD) == pytest.approx([7.0], abs=1e-3)


@pytest.mark.parametrize(
    "solid",
    [
        ball((0.1, 0, 0), (1, 0.5, 2), RED, turn_y(0.4)),
        box((0, 0, 0), (1, 2, 0.7), RED, turn_y(0.5)),
        tube((0, 0.1, 0), 1, 1, RED, 0.4, turn_x(0.7)),
        limb((-0.5, -0.5, 0), (0.7, 0.4, 0.3), 0.6, 0.3, RED),
    ],
)
def test_normals_are_those_of_the_surface_nearby(solid):
    rng = np.random.default_rng(0)
    rays = np.float32([0, 0, -1]) + 0.02 * rng.normal(size=(200, 3)).astype(np.float32)
    aside, above = np.float32([[2e-4, 0, 0], [0, 2e-4, 0]])
    t = intersect(solid, EYE, rays)
    right = intersect(solid, EYE, rays + aside)
    up = intersect(solid, EYE, rays + above)
    ok = (t < 100) & (right < 100) & (up < 100)
    point = EYE + rays * t[:, None]
    across = EYE + (rays + aside) * right[:, None] - point
    along = EYE + (rays + above) * up[:, None] - point
    expected = np.cross(across, along)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = normals(solid, local_points(solid, point.astype(np.float32)))
    agreement = (found * expected).sum(1)[ok]
    assert np.median(agreement) > 0.99
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)


def test_a_pattern_shows_both_colours_and_plain_only_one():
    solid = ball((0, 0, 0), 1, Surface((1, 0, 0), (0, 0, 1), "stripes"))
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    assert len(np.unique(paint(solid, points), axis=0)) == 2
    plain = ball((0, 0, 0), 1, Surface((1, 0, 0), (0, 0, 1), "plain"))
    assert len(np.unique(paint(plain, points), axis=0)) == 1
