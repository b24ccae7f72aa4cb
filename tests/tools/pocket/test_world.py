"""Records, captions and pictures: the same for the same seed, and true to each other."""

import dataclasses
import json
import random

import numpy as np
import pytest

from diffusekrona.data.folder import find_pictures
from diffusekrona.data.masks import find_mask, load_mask
from tools.pocket import data, subjects
from tools.pocket.captions import PATTERN_WORDS, RARE_WORDS, VIEWS, caption, known_words, view_word
from tools.pocket.clip import batch_rows
from tools.pocket.figures import FIGURES, SCALES, solids_of
from tools.pocket.places import BUILDERS
from tools.pocket.records import (
    COLOURS,
    HELD_OUT_FROM,
    KINDS,
    NOUNS,
    PLACES,
    PROPORTIONS,
    Paint,
    Picture,
    Pose,
    Setting,
    draw_identity,
    draw_picture,
)
from tools.pocket.render import coverage, render
from tools.pocket.sheets import FIXED_PROMPTS
from tools.pocket.tokens import LENGTH, build_tokenizer, tokenize

FRONT = Pose(0.5, 0.14, 1.0, 0.0, 0.0)


def test_every_class_and_place_can_be_built():
    assert len(NOUNS) >= 16 and len(PLACES) >= 16
    assert set(FIGURES) == set(KINDS) and set(BUILDERS) == set(PLACES)
    assert set(SCALES) <= set(KINDS)


def test_the_same_seed_gives_the_same_picture():
    first, again, other = draw_picture(7), draw_picture(7), draw_picture(8)
    assert first == again != other
    assert np.array_equal(render(first, 32), render(again, 32))
    assert not np.array_equal(render(first, 32), render(other, 32))


@pytest.mark.parametrize("noun", NOUNS)
def test_a_thing_fills_a_good_part_of_the_picture(noun):
    for seed in range(3):
        identity = draw_identity(noun, seed)
        low = min(s.bounds[0][1] - s.bounds[1] for s in solids_of(identity))
        assert -0.8 < low < 0.3
        thing = render(Picture(identity, FRONT, Setting("white", 1)), 48).astype(int)
        empty = np.abs(thing - thing[0, 0]).max(-1) < 12
        assert 0.04 < 1 - empty.mean() < 0.75


@pytest.mark.parametrize("place", PLACES)
def test_a_place_has_a_look_of_its_own(place):
    identity = draw_identity("mug", 1)
    here = render(Picture(identity, FRONT, Setting(place, 3)), 32).astype(int)
    other = "snow" if place != "snow" else "night"
    there = render(Picture(identity, FRONT, Setting(other, 3)), 32).astype(int)
    assert np.abs(here - there).mean() > 5


def test_colours_are_the_named_ones():
    for seed in range(50):
        identity = draw_identity(NOUNS[seed % len(NOUNS)], seed)
        for paint in (identity.main, identity.second):
            assert np.abs(np.subtract(paint.rgb, COLOURS[paint.name])).max() < 0.25
        assert identity.main.name != identity.second.name
        assert len(identity.proportions) == len(PROPORTIONS)
        assert identity.accessory in KINDS[identity.noun].accessories


def test_captions_say_nothing_that_is_not_so():
    rng = random.Random(0)
    for seed in range(400):
        picture = draw_picture(seed)
        text, one = caption(picture, rng), picture.identity
        words = text.replace("two-tone", "two_tone").split()
        assert one.noun in words
        named = [w for w in words if w in COLOURS]
        assert set(named) - {"white", "blue"} <= {
            one.main.name,
            one.second.name,
            one.accessory_paint.name,
        }
        for pattern, word in PATTERN_WORDS.items():
            if word in text:
                assert one.pattern == pattern
        for thing in ("collar", "hat", "scarf", "bow", "glasses", "flag"):
            if thing in words:
                assert one.accessory == thing
        for view in VIEWS:
            if view in text:
                assert view == view_word(picture.pose.yaw)
        if any(text.endswith(p) for p in PLACES.values()):
            assert text.endswith(PLACES[picture.setting.place])


def test_a_rare_word_comes_now_and_then_and_means_nothing():
    rng, found = random.Random(0), {}
    for seed in range(3000):
        picture = draw_picture(seed)
        for word in caption(picture, rng).split():
            if word in RARE_WORDS:
                found.setdefault(word, set()).add(picture.identity.noun)
    assert set(found) == set(RARE_WORDS)
    assert all(len(nouns) > 6 for nouns in found.values())


def test_views_are_named_from_the_camera():
    assert [view_word(a) for a in (0, np.pi / 2, np.pi, -np.pi / 2)] == list(VIEWS)


def test_held_out_identities_are_in_no_training():
    assert all(
        data.training_picture(row).identity.seed < HELD_OUT_FROM for row in range(0, 999, 37)
    )
    tests = {data.test_picture(row).identity.seed for row in range(data.TEST_COUNT)}
    assert min(tests) >= HELD_OUT_FROM
    assert tests.isdisjoint(subjects.SUBJECTS.values())
    assert min(subjects.SUBJECTS.values()) >= HELD_OUT_FROM


def test_rows_come_in_pairs_of_one_thing():
    for maker in data.MAKERS.values():
        one, other, next_one = maker(10), maker(11), maker(12)
        assert one.identity == other.identity != next_one.identity
        assert one.pose != other.pose
    rows = batch_rows(3600, random.Random(0))
    assert len(set(rows)) == len(rows) and [r ^ 1 for r in rows[::2]] == rows[1::2]


def test_every_known_word_is_one_token_and_prompts_fit():
    tokenizer = build_tokenizer()
    assert all(len(tokenizer.tokenize(word)) == 1 for word in known_words() if "-" not in word)
    ids = tokenize(tokenizer, list(FIXED_PROMPTS))
    assert ids.shape == (len(FIXED_PROMPTS), LENGTH)
    assert (ids[:, -1] == tokenizer.pad_token_id).all()


def test_subjects_are_shown_in_other_places_and_poses_when_held_out():
    assert not set(subjects.INPUT_PLACES) & set(subjects.HELD_OUT_PLACES)
    assert not {p[0] for p in subjects.INPUT_POSES} & {p[0] for p in subjects.HELD_OUT_POSES}
    assert len(subjects.SUBJECTS) == 6


def test_settings_are_chosen_on_things_that_are_no_subjects(tmp_path, monkeypatch):
    others = set(subjects.OTHERS.items())
    assert others.isdisjoint(subjects.SUBJECTS.items()) and len(others) == 12
    assert min(subjects.OTHERS.values()) >= HELD_OUT_FROM
    monkeypatch.setattr(subjects, "OTHERS", {"mug": subjects.OTHERS["mug"]})  # one is enough
    subjects.main(["--others", str(tmp_path), "--masks"])
    assert [p.name for p in tmp_path.iterdir()] == ["mug"]
    (pictures, left_out), (held_out, _) = (
        find_pictures(tmp_path / "mug" / name) for name in ("input", "heldout")
    )
    assert len(pictures) == len(held_out) == 5 and not left_out
    masks = [find_mask(path) for path in pictures]
    assert [mask and mask.name for mask in masks] == [f"0{n}.mask.png" for n in range(5)]
    assert 0.1 < np.asarray(load_mask(masks[0], pictures[0])).mean() / 255 < 0.6
    assert not any(map(find_mask, held_out))
    labels = json.loads((tmp_path / "mug/labels.json").read_text())
    assert labels["identity"]["seed"] == subjects.OTHERS["mug"]


@pytest.mark.parametrize("row", range(4))
def test_coverage_is_where_recolouring_the_thing_changes_the_picture(row):
    picture = data.training_picture(row)
    black, white = (
        dataclasses.replace(
            picture.identity,
            main=Paint("x", (tone,) * 3),
            second=Paint("x", (tone,) * 3),
            accessory_paint=Paint("x", (tone,) * 3),
        )
        for tone in (0.05, 0.95)
    )
    one, other = (
        render(dataclasses.replace(picture, identity=identity)).astype(int)
        for identity in (black, white)
    )
    changed = np.abs(one - other).max(-1).reshape(32, 4, 32, 4).mean((1, 3)) > 20
    covered = coverage(picture)
    assert (changed & covered).sum() > 0.8 * max(changed.sum(), covered.sum())
