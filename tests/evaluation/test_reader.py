"""The reader's labels as scores: identity against the photos, place against the prompt."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diffusekrona.common.errors import UserError
from diffusekrona.data.folder import find_pictures
from diffusekrona.evaluation.encoders import ClipEncoder, Scorers, choose_names, load_scorers
from diffusekrona.evaluation.reader import Reader, Reading, average, likeness, load_reader, turned
from diffusekrona.evaluation.scoring import read_reference, score
from diffusekrona.evaluation.settings import EncoderSettings

DATA = Path(__file__).parents[2] / "data"
LABELS = ("main_colour", "second_colour", "pattern", "accessory", "accessory_colour", "variant")


def reading(class_chance: float = 1.0, colour: str = "red", place: str = "snow") -> Reading:
    chances = {name: {"red": 0.0, "blue": 0.0, colour: 1.0} for name in LABELS}
    chances["class"] = {"dog": class_chance, "cat": 1 - class_chance}
    chances["place"] = {"snow": 0.0, "beach": 0.0, place: 1.0}
    return Reading(chances, (0.0,) * 4, (1.0, 0.0, 0.0), 0.0)


class Fixed(Reader):
    """Reads a picture's label off its first pixel: 0 a red dog in the snow, 1 a blue one there,
    2 a red one on the beach."""

    def read(self, pictures, batch: int = 64) -> list[Reading]:
        kinds = (reading(), reading(colour="blue"), reading(place="beach"))
        return [kinds[np.asarray(picture)[0, 0, 0]] for picture in pictures]


def picture(kind: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (kind, 0, 0))


@pytest.fixture
def scorers() -> Scorers:
    def unit(things) -> torch.Tensor:
        return F.normalize(torch.ones(len(things), 3), dim=-1)

    values = {"class": ("dog", "cat"), "place": ("snow", "beach")}
    phrases = {"snow": "in the snow", "beach": "on the beach"}
    return Scorers(ClipEncoder("flat", unit, unit), None, Fixed(values, (8,), (0,), phrases))


def test_identity_and_place_of_each_picture(scorers: Scorers, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "photo.png")
    reference = read_reference([tmp_path / "photo.png"], scorers)
    images = [[picture(0), picture(1)], [picture(2), picture(0)]]
    found = score(images, ["a dog in the snow", "a dog on the beach"], reference, scorers).pictures
    assert found["place"].tolist() == [[1, 1], [1, 0]]
    weights = 1.5 / 11  # of what a blue dog shares with a red one: the proportions
    assert found["identity"] == pytest.approx(np.array([[1, weights], [1, 1]]))


def test_no_place_score_where_a_prompt_names_none(scorers: Scorers, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "photo.png")
    reference = read_reference([tmp_path / "photo.png"], scorers)
    images = [[picture(0)], [picture(0)]]
    found = score(images, ["a dog in the snow", "a red dog"], reference, scorers).pictures
    assert "place" not in found and "identity" in found


def test_colour_of_each_picture_where_every_prompt_names_one(
    scorers: Scorers, tmp_path: Path
) -> None:
    """A colour in the words of a place is not the subject's."""
    scorers.reader.values["main_colour"] = ("red", "blue")
    scorers.reader.phrases["blue"] = "on a blue background"
    picture(0).save(tmp_path / "photo.png")
    reference = read_reference([tmp_path / "photo.png"], scorers)
    images = [[picture(0), picture(1)], [picture(0), picture(1)]]
    texts = ["a red dog on a blue background", "a blue dog in the snow"]
    assert score(images, texts, reference, scorers).pictures["colour"].tolist() == [[1, 0], [0, 1]]
    texts[0] = "a dog on a blue background"
    assert "colour" not in score(images, texts, reference, scorers).pictures


def test_poses_are_measured_from_their_mean_direction() -> None:
    """Across the back too, where an angle jumps from 180 to -180 degrees."""
    readings = [dataclasses.replace(reading(), yaw=math.radians(d)) for d in (170, -170, 180)]
    assert turned(readings) == pytest.approx([10, 10, 0], abs=1e-4)
    assert turned(readings[:1]) == pytest.approx([0], abs=1e-4)


def test_likeness_is_a_share_and_falls_with_the_class() -> None:
    assert likeness(reading(), reading()) == pytest.approx(1)
    assert likeness(reading(0.5), reading()) == pytest.approx(0.5)
    assert average([reading(0.0), reading(1.0)]).chances["class"]["dog"] == 0.5


def test_a_folder_without_a_reader_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot load the reader"):
        load_reader(tmp_path)


def test_the_bundled_reader_tells_the_subjects_apart() -> None:
    """Held-out photos of a subject agree more with its own photos than with another subject's."""
    names, _ = choose_names(EncoderSettings(), bundled_base=True)
    reader = load_scorers(names).reader
    assert reader is not None

    def read(subject: str, kind: str) -> list[Reading]:
        paths, _ = find_pictures(DATA / subject / kind)
        return reader.read([Image.open(path) for path in paths])

    subjects = [path.parent.name for path in sorted(DATA.glob("*/input"))]
    known = {subject: average(read(subject, "input")) for subject in subjects}
    for subject in subjects:
        photos = average(read(subject, "heldout"))
        nearest = max(subjects, key=lambda other: likeness(photos, known[other]))
        assert nearest == subject
    assert reader.place_in("a sks dog in front of mountains") == "mountains"
    assert reader.place_in("a sks dog") is None
