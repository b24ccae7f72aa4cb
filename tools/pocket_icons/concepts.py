"""What the pocket model knows: objects, backgrounds, caption templates, and the 24 fixed prompts.

A base model of 8 million parameters cannot know the world, so it knows little and that well:
one object from `CONCEPTS`, in one place from `BACKGROUNDS`. Everything that trains, tests or shows
the model takes its words from here.
"""

from __future__ import annotations

import random

#: noun used in captions -> icon name shared by the icon sets. Distinct silhouettes and colours.
CONCEPTS: dict[str, str] = {
    "dog": "dog",
    "cat": "cat",
    "horse": "horse",
    "cow": "cow",
    "pig": "pig",
    "rabbit": "rabbit",
    "elephant": "elephant",
    "penguin": "penguin",
    "duck": "duck",
    "owl": "owl",
    "fish": "tropical-fish",
    "turtle": "turtle",
    "frog": "frog",
    "butterfly": "butterfly",
    "ladybug": "lady-beetle",
    "snail": "snail",
    "octopus": "octopus",
    "crab": "crab",
    "apple": "red-apple",
    "banana": "banana",
    "strawberry": "strawberry",
    "pineapple": "pineapple",
    "pizza": "pizza",
    "hamburger": "hamburger",
    "donut": "doughnut",
    "mushroom": "mushroom",
    "cake": "birthday-cake",
    "car": "automobile",
    "bus": "bus",
    "airplane": "airplane",
    "rocket": "rocket",
    "sailboat": "sailboat",
    "teapot": "teapot",
    "guitar": "guitar",
    "backpack": "backpack",
    "umbrella": "umbrella",
    "clock": "alarm-clock",
    "balloon": "balloon",
    "ball": "soccer-ball",
    "sunflower": "sunflower",
    "cactus": "cactus",
    "house": "house",
    "castle": "castle",
    "robot": "robot",
    "crown": "crown",
    "hat": "top-hat",
}

#: background name -> the words that put an object there.
BACKGROUNDS: dict[str, str] = {
    "grass": "on the grass",
    "beach": "on the beach",
    "night": "in the night sky",
    "snow": "in the snow",
    "table": "on a wooden table",
    "brick": "in front of a brick wall",
    "forest": "in the forest",
    "desert": "in the desert",
    "sunset": "at sunset",
    "water": "in the water",
    "mountains": "in front of mountains",
    "city": "in the city",
    "red": "on a red background",
    "blue": "on a blue background",
    "green": "on a green background",
    "yellow": "on a yellow background",
    "pink": "on a pink background",
    "purple": "on a purple background",
    "white": "on a white background",
}

TEMPLATES = ("{}", "{}", "a photo of {}", "a picture of {}", "an image of {}")

#: Identifiers of one token each. They stand before any noun at random, so that they mean nothing
#: yet: DreamBooth then gives `sks` its meaning. The others keep `sks` from being a special case.
RARE_WORDS = ("sks", "zwx", "olis", "qiv", "vkt", "pnd", "blor", "xjy")

#: Share of captions with a rare word, and share that name the object only.
RARE_SHARE, OBJECT_ONLY_SHARE = 0.08, 0.12

#: Words that people type in DreamBooth prompts. Each is one token, though the pocket model has
#: not seen what they mean: a prompt then stays short of the 32-token limit.
_TYPED = (
    "photo picture image drawing painting of a an the with and in on at by to from behind front "
    "its it is wearing floating standing sitting playing running sleeping background top next "
    "jungle cobblestone street fabric floor rug wheat field tree trees autumn leaves eiffel tower "
    "mirror scarf santa rainbow police chef outfit glasses shiny wet cube shaped orange black "
    "brown grey small big cute old new toy plushie vase can bowl candle boot sneaker shoe bear "
    "stuffed animal monster cartoon sunglasses dirty road river lake sea sky moon sun stars clouds "
    "rain garden park room kitchen bed sofa box paper book digital art style close up high quality "
    "one two three person man woman child boy girl hand flower flowers light dark colorful"
)
EXTRA_WORDS = tuple(_TYPED.split())

#: The fixed list that the model is judged on: (object, background), seed 0, nothing picked.
PROMPT_PAIRS = (
    ("dog", "grass"),
    ("cat", "table"),
    ("horse", "desert"),
    ("cow", "mountains"),
    ("pig", "snow"),
    ("elephant", "forest"),
    ("penguin", "snow"),
    ("duck", "water"),
    ("owl", "night"),
    ("fish", "water"),
    ("butterfly", "pink"),
    ("ladybug", "grass"),
    ("banana", "blue"),
    ("strawberry", "table"),
    ("pizza", "brick"),
    ("hamburger", "beach"),
    ("car", "city"),
    ("bus", "sunset"),
    ("rocket", "night"),
    ("sailboat", "sunset"),
    ("teapot", "brick"),
    ("umbrella", "beach"),
    ("castle", "mountains"),
    ("robot", "purple"),
)


def article(words: str) -> str:
    """`words` with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def caption(concept: str, background: str | None = None, rare: str | None = None) -> str:
    """The plain caption, e.g. `caption("dog", "beach", "sks")` -> "a sks dog on the beach"."""
    thing = f"a {rare} {concept}" if rare else article(concept)
    return f"{thing} {BACKGROUNDS[background]}" if background else thing


def random_caption(concept: str, background: str, rng: random.Random) -> str:
    """One caption as drawn in training: some object-only, some with a rare word, any template."""
    rare = rng.choice(RARE_WORDS) if rng.random() < RARE_SHARE else None
    place = None if rng.random() < OBJECT_ONLY_SHARE else background
    return rng.choice(TEMPLATES).format(caption(concept, place, rare))


FIXED_PROMPTS = tuple(caption(concept, place) for concept, place in PROMPT_PAIRS)
