"""pocket-dino: loads, distinguishes subjects, is found by itself; the program that trained it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from diffusekrona import evaluate
from diffusekrona.evaluation import encoders
from diffusekrona.evaluation.encoders import Encoder, choose_names, load_dino_encoder
from diffusekrona.study import __main__ as study
from diffusekrona.study.settings import parse_settings
from tools.pocket_icons import dino, judge
from tools.pocket_icons.export import export_dino

FOLDER = encoders.BUNDLED / "pocket-dino"
SHEETS = Path(__file__).parent / "sheets"
DATA = Path(__file__).parents[2] / "data"
SUBJECTS = ("dog", "cat", "teapot")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_dino_encoder("pocket-dino")


@pytest.fixture(scope="module")
def photos() -> dict[str, list[Image.Image]]:
    return {name: judge.photos_of(DATA, name) for name in SUBJECTS}


def test_features(encoder, photos) -> None:
    odd = [Image.new("L", (90, 40)), photos["dog"][0].resize((64, 64)), photos["dog"][0]]
    together = encoder.images([*odd, *photos["cat"]])
    assert together.shape == (8, 128) and torch.isfinite(together).all()
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(8))
    assert torch.equal(together, load_dino_encoder("pocket-dino").images([*odd, *photos["cat"]]))
    torch.testing.assert_close(encoder.images(odd[2:]), together[2:3], atol=1e-5, rtol=0)
    assert together[1] @ together[2] > 0.95  # the same picture in another size


def test_loads_as_any_transformers_model(encoder, photos) -> None:
    """A stranger's way to it: AutoModel and AutoImageProcessor, the first token."""
    model, info = AutoModel.from_pretrained(FOLDER, output_loading_info=True)
    assert not any(info.values()) and next(model.parameters()).dtype == torch.float32
    look = AutoImageProcessor.from_pretrained(FOLDER)
    with torch.no_grad():
        hidden = model(**look(photos["teapot"], return_tensors="pt")).last_hidden_state
    expected = torch.nn.functional.normalize(hidden[:, 0], dim=-1)
    torch.testing.assert_close(encoder.images(photos["teapot"]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_own_photo_is_nearer_than_any_other_subjects(subject, encoder, photos) -> None:
    own = encoder.images(photos[subject])
    rest = encoder.images([p for name in SUBJECTS if name != subject for p in photos[name]])
    rng = np.random.default_rng(0)
    noise = encoder.images([Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))])
    nearest = (own @ own.T).min()  # the least alike of its own
    assert nearest > (own @ rest.T).max() + 0.2
    assert nearest > (own @ noise.T).max() + 0.2


def test_tells_a_subject_from_its_class(encoder) -> None:
    """In a style never trained on, on the sheet that the CLIP is judged by too."""
    tiles, labels = judge.read_sheet(SHEETS / "individuals.png")
    found = judge.individuals(encoder.images(tiles), labels)
    assert found["within an individual"] > found["to others of its class"] + 0.5
    assert found["own picture nearer (share of triples)"] >= 0.95


def test_individuals_are_counted_by_hand() -> None:
    """Two pictures of one dog at a right angle, a rival between them, a cat opposite the first."""
    angles = torch.deg2rad(torch.tensor([0.0, 90.0, 60.0, 180.0]))
    vectors = torch.stack([angles.cos(), angles.sin()], -1)
    found = judge.individuals(vectors, [("dog", 0), ("dog", 0), ("dog", 1), ("cat", 0)])
    assert found["to other classes"] == pytest.approx((-1 + 0 - 0.5) / 3, abs=1e-6)
    assert found["within an individual"] == pytest.approx(0, abs=1e-6)
    assert found["to others of its class"] == pytest.approx((0.5 + 3**0.5 / 2) / 2)
    assert found["own picture nearer (share of triples)"] == 0


# --- taken by itself ------------------------------------------------------------------------------


def test_is_the_default_beside_a_bundled_base(monkeypatch, tmp_path) -> None:
    assert choose_names("auto", "auto", True) == ("pocket-clip", "pocket-dino", "")
    settings = parse_settings(["stability", "--base", "pocket"])
    chosen = study.choose_study(settings.chosen, True)
    scoring, notes = study.choose_scoring("pocket", settings.scored, chosen, True)
    assert scoring.dino == "pocket-dino" and not notes
    monkeypatch.setattr(encoders, "BUNDLED", tmp_path)  # an install without it
    _, name, note = choose_names("auto", "auto", True)
    assert name is None and "left out" in note


def test_evaluate_scores_with_it(encoder, photos, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("a {name} on the grass\n")
    evaluate.main([
        "--pretrained_model_name_or_path", "pocket", "--adapter", "none", "--class_word", "dog",
        "--subject_dir", str(DATA / "dog" / "input"), "--prompts", str(tmp_path / "prompts.txt"),
        "--seeds", "0", "1", "--num_inference_steps", "2", "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    result = json.loads(next((tmp_path / "out").rglob("results.json")).read_text())
    assert result["settings"]["dino"] == "pocket-dino"
    drawn = [Image.open(p) for p in sorted((tmp_path / "out").rglob("*.png")) if "seed" in p.name]
    assert len(drawn) == 2
    expected = (encoder.images(drawn) @ encoder.images(photos["dog"]).T).mean().item()
    assert result["variants"]["base"]["overall"]["dino"]["mean"] == pytest.approx(
        expected, abs=1e-4
    )


# --- the program that trained it ------------------------------------------------------------------


def sprites(count: int, size: int = dino.SPRITE) -> torch.Tensor:
    """Opaque squares of random colours in a transparent frame, (count, 4, size, size) in 0..1."""
    rgba = torch.rand(count, 4, 1, 1).expand(-1, -1, size, size).clone()
    rgba[:, 3] = 0
    rgba[:, 3, 8:-8, 8:-8] = 1
    return rgba


def test_pasting_shows_the_thing_in_front_of_the_background() -> None:
    torch.manual_seed(0)
    things, behind = sprites(32), torch.rand(32, 3, 1, 1).expand(-1, -1, 64, 64)
    views = dino.paste(things, behind) / 2 + 0.5
    assert views.shape == (32, 3, 64, 64)
    empty = torch.cat([things[:, :3], torch.zeros(32, 1, 56, 56)], 1)
    torch.testing.assert_close(dino.paste(empty, behind) / 2 + 0.5, behind)
    colour = (views - things[:, :3, :1, :1]).abs().amax(1) < 1e-3
    share = colour.float().mean((1, 2))  # of the frame: (40 / 56 of the extent) squared
    low, high = ((0.71 * extent) ** 2 for extent in dino.EXTENT)
    assert share.min() > 0.7 * low and share.max() < 1.1 * high and share.std() > 0.05


def test_a_batch_pairs_views_of_one_individual() -> None:
    torch.manual_seed(0)
    stock = (sprites(20) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    views = dino.draw_batch(stock, torch.zeros(1, 3, 64, 64), 6) / 2 + 0.5
    assert views.shape == (24, 3, 64, 64)
    colours = torch.nn.functional.normalize(views.sum((2, 3)), dim=-1)  # on black: the thing's
    likeness = (colours @ colours.T).numpy()
    one = np.arange(24) // 2
    assert likeness[one[:, None] == one].min() > 0.98
    assert likeness[one[:, None] != one].mean() < 0.95


def test_recolouring_keeps_the_outline() -> None:
    torch.manual_seed(0)
    things = sprites(64)
    again = dino.recolour(things)
    assert again.min() >= 0 and again.max() <= 1
    assert torch.equal(again[:, 3], things[:, 3])
    assert (again - things)[:, :3].abs().mean((1, 2, 3)).median() > 0.1


def test_training_goes_on_where_it_was_left(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    for name, count in (("sprites", 12), ("held_out", 4)):
        stock = (sprites(count) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        np.save(tmp_path / "data" / f"dino_{name}.npy", stock)
    dino.train_dino(tmp_path, 0.01)
    first = torch.load(tmp_path / "dino.pt", weights_only=False)
    dino.train_dino(tmp_path, 0.01)  # its time is spent
    assert torch.load(tmp_path / "dino.pt", weights_only=False)["step"] == first["step"]
    dino.train_dino(tmp_path, 0.01 + 2 * first["spent"] / 60)
    second = torch.load(tmp_path / "dino.pt", weights_only=False)
    assert second["step"] > first["step"] and second["spent"] > first["spent"]
    model = dino.load_dino(tmp_path)
    export_dino(model, tmp_path / "exported")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    got = load_dino_encoder(str(tmp_path / "exported")).images([picture])
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()[None] / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(got, dino.features(model, pixels), atol=5e-3, rtol=0)
