"""Who is in a picture, how it stands and where: three records, each drawn from a seed.

The same record gives the same picture for ever, so labels are exact. Identities that no training
may see have seeds from `HELD_OUT_FROM` on.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

#: Colour words and what they look like (RGB in 0..1).
COLOURS = {
    "red": (0.83, 0.12, 0.12),
    "orange": (0.96, 0.47, 0.08),
    "yellow": (0.97, 0.82, 0.16),
    "green": (0.24, 0.62, 0.2),
    "teal": (0.08, 0.62, 0.6),
    "blue": (0.14, 0.3, 0.82),
    "purple": (0.5, 0.2, 0.68),
    "pink": (0.96, 0.5, 0.68),
    "brown": (0.45, 0.26, 0.13),
    "beige": (0.86, 0.72, 0.52),
    "white": (0.95, 0.94, 0.92),
    "grey": (0.53, 0.54, 0.57),
    "black": (0.12, 0.12, 0.14),
}
PATTERNS = ("plain", "spots", "stripes", "halves")
ACCESSORIES = ("none", "collar", "hat", "scarf", "bow", "glasses", "face", "flag")
PROPORTIONS = ("build", "height", "head", "detail")
VARIANTS = 3

_WORN = {"none": 8, "collar": 4, "hat": 3, "scarf": 3, "bow": 2, "glasses": 2}
_PUT_ON = {"none": 9, "bow": 3, "face": 3, "hat": 2}
_VEHICLE = {"none": 9, "flag": 3, "face": 3}


@dataclass(frozen=True)
class Kind:
    """What is usual for a class: colours more likely than others, and what it may wear."""

    usual: tuple[str, ...]
    accessories: dict[str, int]
    turns: bool = True  # False: looks the same from all sides, so facing is not worth a word


KINDS = {
    "dog": Kind(("brown", "beige", "white", "black", "grey", "orange"), _WORN),
    "cat": Kind(("orange", "grey", "black", "white", "brown", "beige"), _WORN),
    "rabbit": Kind(("white", "grey", "brown", "beige", "pink"), _WORN),
    "bear": Kind(("brown", "beige", "black", "white", "pink"), _WORN),
    "duck": Kind(("yellow", "white", "green", "brown"), _WORN),
    "bird": Kind(("blue", "red", "green", "yellow"), _WORN),
    "robot": Kind(("grey", "blue", "red", "teal", "orange"), _WORN),
    "teapot": Kind(("white", "blue", "red", "teal", "beige"), _PUT_ON),
    "mug": Kind(("white", "red", "blue", "yellow"), _PUT_ON),
    "vase": Kind(("teal", "white", "purple", "blue"), _PUT_ON, False),
    "bowl": Kind(("white", "red", "blue", "green"), _PUT_ON, False),
    "can": Kind(("red", "green", "blue", "grey"), _PUT_ON, False),
    "candle": Kind(("white", "red", "purple", "beige"), _PUT_ON, False),
    "clock": Kind(("red", "brown", "blue", "teal"), _PUT_ON),
    "boot": Kind(("brown", "black", "red", "yellow"), {"none": 9, "bow": 3}),
    "backpack": Kind(("red", "blue", "green", "purple"), _PUT_ON),
    "car": Kind(("red", "blue", "yellow", "white"), _VEHICLE),
    "train": Kind(("red", "green", "blue", "black"), _VEHICLE),
}
NOUNS = tuple(KINDS)
#: place -> the words that follow the noun.
PLACES = {
    "grass": "on the grass",
    "beach": "on the beach",
    "snow": "in the snow",
    "desert": "in the desert",
    "floor": "on a wooden floor",
    "brick": "in front of a brick wall",
    "night": "at night",
    "forest": "in the forest",
    "mountains": "in front of mountains",
    "lake": "by a lake",
    "city": "in the city",
    "kitchen": "in the kitchen",
    "moon": "on the moon",
    "sunset": "at sunset",
    "volcano": "by a volcano",
    "stage": "on a stage",
    "white": "on a white background",
    "blue": "on a blue background",
}

#: Identities with seeds from here on are in no training set.
HELD_OUT_FROM = 1_000_000_000


@dataclass(frozen=True)
class Paint:
    """A colour word and the shade of it that this thing has."""

    name: str
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Identity:
    """One thing: everything that stays the same from picture to picture.

    `proportions` are in -1..1, in the order of `PROPORTIONS`; `variant` chooses between forms of a
    part (ears, lid, hands).
    """

    noun: str
    seed: int
    main: Paint
    second: Paint
    pattern: str
    density: float
    accessory: str
    accessory_paint: Paint
    proportions: tuple[float, float, float, float]
    variant: int


@dataclass(frozen=True)
class Pose:
    """How it stands: `yaw` in radians (0 faces the camera, pi/2 faces right in the picture)."""

    yaw: float
    pitch: float  # how far the camera looks down, radians
    size: float
    x: float
    y: float  # shift of the picture, as a share of its half height


@dataclass(frozen=True)
class Setting:
    """Where: a place of `PLACES`, and the seed of what varies in it."""

    place: str
    seed: int


@dataclass(frozen=True)
class Picture:
    """All that a picture is made from."""

    identity: Identity
    pose: Pose
    setting: Setting


def shade(name: str, rng: random.Random) -> Paint:
    """A shade of a named colour."""
    light = rng.uniform(0.88, 1.1)
    rgb = tuple(
        round(min(0.98, max(0.05, c * light + rng.gauss(0, 0.025))), 3) for c in COLOURS[name]
    )
    return Paint(name, rgb)


def _proportion(rng: random.Random) -> float:
    return round(max(-1.0, min(1.0, rng.gauss(0, 0.5))), 3)


def draw_identity(noun: str, seed: int) -> Identity:
    """One thing of the class, the same for the same seed; what is usual is likelier."""
    rng, kind = random.Random(f"{noun} {seed}"), KINDS[noun]
    usual = list(kind.usual)
    names = list(COLOURS)
    main = rng.choice(usual) if rng.random() < 0.55 else rng.choice(names)
    others = [name for name in names if name != main]
    light = [name for name in ("white", "beige", "yellow", "black") if name != main]
    second = rng.choice(light) if rng.random() < 0.5 else rng.choice(others)
    worn = rng.choices(list(kind.accessories), list(kind.accessories.values()))[0]
    strange = [name for name in names if name not in (main, second)]
    return Identity(
        noun=noun,
        seed=seed,
        main=shade(main, rng),
        second=shade(second, rng),
        pattern=rng.choices(PATTERNS, (5, 2, 2, 1))[0],
        density=round(rng.uniform(0.7, 1.3), 2),
        accessory=worn,
        accessory_paint=shade(rng.choice(strange), rng),
        proportions=tuple(_proportion(rng) for _ in PROPORTIONS),
        variant=rng.randrange(VARIANTS),
    )


def draw_pose(rng: random.Random) -> Pose:
    """Any yaw, views that show the front three times in four; sizes and positions that fit."""
    front = rng.random() < 0.75
    return Pose(
        yaw=rng.uniform(-1.75, 1.75) if front else rng.uniform(-math.pi, math.pi),
        pitch=rng.uniform(0.05, 0.25),
        size=rng.uniform(1.0, 1.35),
        x=rng.uniform(-0.2, 0.2),
        y=rng.uniform(-0.06, 0.06),
    )


def draw_setting(rng: random.Random, place: str | None = None) -> Setting:
    """A place, any if none is given, and a seed."""
    return Setting(place or rng.choice(list(PLACES)), rng.randrange(1 << 30))


def draw_picture(seed: int, identity: Identity | None = None) -> Picture:
    """Everything at random from one seed; the identity's seed is the same number."""
    rng = random.Random(f"picture {seed}")
    identity = identity or draw_identity(rng.choice(NOUNS), seed)
    return Picture(identity, draw_pose(rng), draw_setting(rng))
