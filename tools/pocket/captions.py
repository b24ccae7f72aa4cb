"""Captions of pictures: noun and place always, attributes and the view sometimes.

A word that means nothing stands before the noun in some of them, so that the base knows such words
and ignores them: `sks` gets its meaning from DreamBooth.
"""

from __future__ import annotations

import math
import random

from diffusekrona.evaluation import prompts

from .records import COLOURS, KINDS, PLACES, Identity, Picture

RARE_WORDS = ("sks", "zwx", "xjy", "qrv", "olis", "ktn", "vbp", "phm")
PREFIXES = ("", "", "", "", "a photo of ", "a picture of ", "a rendering of ")
PATTERN_WORDS = {"spots": "spotted", "stripes": "striped", "halves": "two-tone"}
VIEWS = ("from the front", "facing right", "from behind", "facing left")
#: Words for proportions beyond this share of their range: (index, sign) -> word.
BUILD_WORDS = {(0, 1): "fat", (0, -1): "thin", (1, 1): "tall", (1, -1): "short"}
#: Words that no caption has but that users may write.
EXTRA_WORDS = ("the", "my", "with", "one", "small", "big", "cute", "toy", "very", "an", "is", "its")


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{prompts.article(words)} {words}"


def view_word(yaw: float) -> str:
    """The view of a yaw, in quarters: front, right, behind, left."""
    return VIEWS[round(yaw / (math.pi / 2)) % 4]


def describe(identity: Identity, rng: random.Random) -> str:
    """The noun with some of its attributes and an article, each named at random."""
    words = []
    if rng.random() < 0.08:
        words.append(rng.choice(RARE_WORDS))
    strong = [w for (i, s), w in BUILD_WORDS.items() if identity.proportions[i] * s > 0.5]
    if strong and rng.random() < 0.25:
        words.append(rng.choice(strong))
    patterned = identity.pattern != "plain"
    if patterned and rng.random() < 0.45:
        words.append(PATTERN_WORDS[identity.pattern])
    if rng.random() < 0.5:
        both = patterned and rng.random() < 0.4
        words.append(
            f"{identity.main.name} and {identity.second.name}" if both else identity.main.name
        )
    text = article(" ".join([*words, identity.noun]))
    if identity.accessory != "none" and rng.random() < 0.5:
        named = rng.random() < 0.6
        colour = f"{identity.accessory_paint.name} " if named else ""
        if identity.accessory == "glasses":
            text += f" with {colour}glasses"
        else:
            text += f" with {article(colour + identity.accessory)}"
    return text


def caption(picture: Picture, rng: random.Random) -> str:
    """One caption of the picture; another generator state gives another one."""
    text = rng.choice(PREFIXES) + describe(picture.identity, rng)
    if KINDS[picture.identity.noun].turns and rng.random() < 0.15:
        text += " " + view_word(picture.pose.yaw)
    return text if rng.random() < 0.06 else f"{text} {PLACES[picture.setting.place]}"


def known_words() -> set[str]:
    """Every word that a caption can have, and a few more."""
    texts = [*KINDS, *COLOURS, *PLACES.values(), *PREFIXES, *PATTERN_WORDS.values(), *VIEWS]
    texts += [*BUILD_WORDS.values(), *RARE_WORDS, *EXTRA_WORDS]
    texts += ["collar hat scarf bow glasses face flag", "a and with photo picture image drawing"]
    words = {word for text in texts for word in text.split()}
    return words | {part for word in words for part in word.split("-")}
