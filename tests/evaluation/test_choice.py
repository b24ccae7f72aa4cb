"""The rule that chooses, on scores whose right answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from diffusekrona.common.errors import UserError
from diffusekrona.evaluation.candidates import (
    VIEWS,
    keep_scores,
    kept_scores,
    make_candidate_scorer,
    score_candidate,
    scores_key,
    views,
)
from diffusekrona.evaluation.choice import Baseline, Candidate, choose
from diffusekrona.evaluation.choice_settings import seconds_of, subject_of
from diffusekrona.evaluation.encoders import ClipEncoder, Encoder, Scorers

SHAPE = (10, 4)  # prompts, seeds


def pictures(mean: float, seed: int, spread: float = 0.02) -> np.ndarray:
    return mean + spread * np.random.default_rng(seed).standard_normal(SHAPE)


BASE = Baseline(pictures(0.40, 0), pictures(0.32, 1, 0.03), pictures(0.20, 2))


def candidate(step: int, gain: float, lost: float, weight: float = 1.0, seed: int = 9) -> Candidate:
    noise = 0.002 * np.random.default_rng(seed + step).standard_normal((2, *SHAPE))
    return Candidate(
        step, weight, BASE.likeness + gain + noise[0], BASE.obedience - lost + noise[1]
    )


def untrained(step: int = 0) -> Candidate:
    return Candidate(step, 1.0, BASE.likeness.copy(), BASE.obedience + 0.01)


# A run continued far too long: likeness rises throughout, prompts are forgotten.
LONG_RUN = [
    candidate(step, gain, lost)
    for step, gain, lost in (
        (100, 0.02, 0.0), (200, 0.08, 0.001), (300, 0.15, 0.003), (400, 0.20, 0.05),
        (1000, 0.24, 0.09), (4000, 0.26, 0.118),
    )
]  # fmt: skip


@pytest.mark.parametrize("prefer", ["likeness", "obedience", "balance"])
def test_a_run_continued_too_long_is_not_chosen_at_its_end(prefer) -> None:
    choice = choose([untrained(), *LONG_RUN], BASE, prefer)
    assert choice.chosen is not None and choice.repeats
    step = [0, *(c.step for c in LONG_RUN)][choice.chosen]
    assert step == {"likeness": 300, "obedience": 300, "balance": 300}[prefer]
    assert not choice.verdicts[0].learned and all(v.learned for v in choice.verdicts[1:])


@pytest.mark.parametrize("prefer", ["likeness", "obedience", "balance"])
def test_an_untrained_adapter_never_wins(prefer) -> None:
    choice = choose([untrained(0), untrained(100)], BASE, prefer)
    assert choice.chosen is None and not choice.undecided
    assert choose([untrained(0), candidate(900, 0.2, 0.1)], BASE, prefer).chosen == 1


def test_where_none_follows_prompts_the_balance_decides() -> None:
    worse = [candidate(100, 0.2, 0.06), candidate(200, 0.21, 0.115)]
    choice = choose(worse, BASE, "likeness")
    assert choice.chosen == 0 and "no candidate" in choice.rule
    assert not choose(LONG_RUN, BASE, "likeness").rule.endswith("base does, since")


def test_candidates_that_cannot_be_told_apart_are_named_and_the_earliest_is_taken() -> None:
    noise = pictures(0, 5, 0.05)
    later = Candidate(600, 1.0, LONG_RUN[2].likeness + noise - noise.mean() + 1e-3, BASE.obedience)
    earlier = LONG_RUN[2]
    choice = choose([earlier, later], BASE, "likeness")
    assert (choice.best, choice.chosen, choice.undecided) == (1, 0, [1])
    assert choice.verdicts[0].behind is not None and choice.verdicts[0].behind.low <= 0
    clear = Candidate(600, 1.0, earlier.likeness + 0.01, BASE.obedience)
    assert choose([earlier, clear], BASE, "likeness").undecided == []


def test_of_one_checkpoint_the_better_weight_is_taken() -> None:
    pair = [candidate(300, 0.10, 0, 0.7), candidate(300, 0.15, 0, 1.0)]
    assert choose(pair, BASE, "likeness").chosen == 1


def test_differences_are_paired() -> None:
    """Two candidates apart by far less than their pictures vary, but by the same on each."""
    wide = Baseline(pictures(0.4, 0, 0.2), BASE.obedience, BASE.floor)
    pair = [Candidate(n, 1.0, wide.likeness + 0.1 + n * 1e-3, BASE.obedience) for n in (0, 1)]
    assert choose(pair, wide, "likeness").chosen == 1


def test_the_choice_repeats_under_another_seed_or_says_so() -> None:
    for case in range(12):
        random = np.random.default_rng(case)
        some = [
            candidate(100 * n, 0.1 + 0.004 * random.standard_normal(), 0, seed=case)
            for n in range(4)
        ]
        one, two = choose(some, BASE, "likeness", 0), choose(some, BASE, "likeness", 77)
        assert one.chosen == two.chosen or {one.chosen, two.chosen} <= {
            one.chosen, two.chosen, *one.undecided, *two.undecided,
        }  # fmt: skip
        low, other = (c.verdicts[1].gain.low for c in (one, two))
        assert low == pytest.approx(other, abs=5e-4)  # a bound does not wander


def test_too_few_pictures() -> None:
    one = np.ones((1, 1))
    with pytest.raises(ValueError, match="two pictures"):
        choose([Candidate(1, 1.0, one, one)], Baseline(one, one, one), "likeness")


# --- scores ---------------------------------------------------------------------------------------


def unit(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(values.float().flatten(1), dim=-1)


def see(images) -> torch.Tensor:
    small = [image.convert("RGB").resize((8, 8), Image.Resampling.BOX) for image in images]
    return unit(torch.stack([torch.tensor(np.asarray(image)).float() for image in small]))


def read(texts) -> torch.Tensor:
    return unit(torch.stack([torch.arange(192) % (3 + len(text)) for text in texts]))


CLIP, DINO = ClipEncoder("clip", see, read), Encoder("dino", lambda images: see(images))


def noise_picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{n}.png" for n in range(4)]
    for number, path in enumerate(paths):
        noise_picture(number).save(path)
    return paths


COPIES = {
    "the picture": lambda photo: photo,
    "its mirror image": ImageOps.mirror,
    "a part of it": lambda photo: photo.crop((8, 4, 64, 60)),
    "a mirrored part": lambda photo: ImageOps.mirror(photo.crop((12, 0, 58, 46))),
}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("held", [0, 1])
def test_a_copied_training_picture_raises_copy_risk(photos, held, copied) -> None:
    scorer = make_candidate_scorer(Scorers(CLIP, DINO), ["a", "bb"], photos[held:], photos[:held])
    images = [[noise_picture(10 * row + n + 50) for n in range(2)] for row in range(2)]
    plain = [noise_picture(90), noise_picture(91)]
    own = score_candidate(scorer, images, plain, CLIP.images(plain))
    copies = [[COPIES[copied](Image.open(photos[3])), images[0][1]], images[1]]
    copy = score_candidate(scorer, copies, plain, CLIP.images(plain))
    assert scorer.baseline is not None and scorer.baseline < 0.9
    assert copy.nearest_photo[0][0] == 3 - held
    assert copy.nearest[0][0] > (0.97 if "part" in copied else 0.999)
    assert np.mean(copy.nearest) > np.mean(own.nearest)
    assert np.array(own.nearest).max() - scorer.baseline < 0.05 < 0.97 - scorer.baseline
    assert own.drift == pytest.approx([0, 0], abs=1e-6)
    moved = score_candidate(scorer, images, plain[::-1], CLIP.images(plain))
    assert min(moved.drift) > 0.05


def test_views_are_parts_and_mirror_images_of_bounded_size() -> None:
    ramp = Image.linear_gradient("L").rotate(90).resize((3000, 2000)).convert("RGB")
    found = views(ramp)
    assert len(found) == VIEWS == 32
    assert [image.size for image in found[:3]] == [(768, 512), (691, 461), (691, 461)]
    small = noise_picture(0)
    assert views(small)[0] is small  # nothing is enlarged
    for plain, mirrored in zip(found[:16], found[16:], strict=True):
        assert ImageOps.mirror(plain).tobytes() == mirrored.tobytes()


def test_scores_are_kept_until_something_changes(photos, tmp_path) -> None:
    scorer = make_candidate_scorer(Scorers(CLIP), ["a", "bb"], photos, [])
    images = [[noise_picture(n), noise_picture(n + 9)] for n in (20, 30)]
    scores = score_candidate(scorer, images, images[0], CLIP.images(images[0]))
    key, path = scores_key(scorer, photos), tmp_path / "scores.json"
    keep_scores(path, key, scores)
    assert kept_scores(path, key) == scores
    other = make_candidate_scorer(Scorers(CLIP), ["a", "cc c"], photos, [])
    assert kept_scores(path, scores_key(other, photos)) is None
    path.write_text(path.read_text()[:40])
    assert kept_scores(path, key) is None


def test_words_of_a_request() -> None:
    assert [seconds_of(t) for t in (None, "10min", "90s", "1.5h", "2")] == [
        None,
        600,
        90,
        5400,
        120,
    ]
    with pytest.raises(UserError, match="--budget soon"):
        seconds_of("soon")
    for prompt in ("a sks dog", "a photo of a sks dog", "sks dog.", "The picture of sks dog"):
        assert subject_of(prompt) == ("sks", "dog")
    assert subject_of("an ohwx teddy bear") == ("ohwx", "teddy bear")
    assert subject_of("dog") is None and subject_of("") is None
