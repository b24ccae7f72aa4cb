"""Scores are those of an independent computation; pictures are drawn once."""

from __future__ import annotations

import json
import shutil
import sys
import types
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from accelerate import PartialState
from PIL import Image
from tiny_scorers import save_clip, save_dino
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from diffusekrona import KronAConfig, save_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.evaluate import evaluate, main
from diffusekrona.evaluation.encoders import choose_names, load_clip_encoder, load_dino_encoder
from diffusekrona.evaluation.pictures import is_there, jobs_of
from diffusekrona.evaluation.pixels import CLIP_MEAN, CLIP_STD, Pixels, from_config
from diffusekrona.evaluation.prompts import LISTS, get_prompts, parse_prompts
from diffusekrona.evaluation.settings import EncoderSettings, parse_settings
from diffusekrona.evaluation.statistics import bootstrap_means, summarise

PROMPTS = "{subject} in the snow\nattribute: a red {name}\n"


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("scorers")
    return save_clip(folder / "clip"), save_dino(folder / "dino")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, tiny_sd1, scorers) -> list[str]:
    """Flags of an evaluation of the base and one adapter, 2 prompts × 2 seeds."""
    folder = tmp_path_factory.mktemp("evaluation")
    unet = tiny_models.unet()
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    tiny_models.random_factors(unet)
    save_adapter(unet, folder / "dog" / "adapter.safetensors")
    (folder / "photos").mkdir()
    random = np.random.default_rng(0)
    for number, size in enumerate([(48, 40), (37, 51), (64, 64)]):
        noise = random.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "photos" / f"{number}.png")
    (folder / "prompts.txt").write_text("# mine\n" + PROMPTS)
    return [
        "--pretrained_model_name_or_path", str(tiny_sd1), "--adapter", "none",
        "--adapter", f"KronA={folder / 'dog'}", "--subject_dir", str(folder / "photos"),
        "--class_word", "dog", "--prompts", str(folder / "prompts.txt"), "--seeds", "0", "7",
        "--num_inference_steps", "2", "--clip", str(scorers[0]), "--dino", str(scorers[1]),
    ]  # fmt: skip


# --- preparation of pictures ----------------------------------------------------------------------


def as_openai_does_it(image: Image.Image, side: int) -> np.ndarray:
    """torchvision's Resize(side, bicubic), CenterCrop, ToTensor, Normalize, written out by hand."""
    width, height = image.size
    short, long = sorted((width, height))
    new = (side, int(side * long / short)) if width <= height else (int(side * long / short), side)
    image = image.resize(new, Image.Resampling.BICUBIC)
    top, left = int(round((new[1] - side) / 2.0)), int(round((new[0] - side) / 2.0))  # noqa: RUF046
    array = np.asarray(image)[top : top + side, left : left + side].astype(np.float64) / 255
    return ((array - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (227, 224), (224, 224), (50, 1000)])
def test_pixels_are_those_of_openais_clip(size) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    np.testing.assert_allclose(Pixels()([image])[0], as_openai_does_it(image, 224), atol=1e-5)


def test_pixels_are_those_of_torchvision() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    for size in ((300, 200), (200, 301), (227, 224), (640, 479)):
        noise = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        torch.testing.assert_close(Pixels()([image])[0], theirs(image), atol=1e-6, rtol=0)


def test_configs_of_published_scorers() -> None:
    look = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    dino = {"size": 224, "do_resize": True, "resample": 2, **look}
    assert (from_config(dino).resize, from_config(dino).crop) == (256, 224)
    assert from_config(dino).resample == Image.Resampling.BICUBIC
    v2 = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, **look}
    assert (from_config(v2).resize, from_config(v2).crop) == (256, 224)
    clip = {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3, **look}
    assert from_config(clip) == Pixels(224, 224, (0.5,) * 3, (0.5,) * 3)


# --- scores ---------------------------------------------------------------------------------------


def run(flags: list[str], out: Path, *more: str):
    settings = parse_settings([*flags, "--output_dir", str(out), *more])
    return evaluate(settings, PartialState(cpu=True))


def test_scores_are_those_of_an_independent_computation(setting, scorers, tmp_path) -> None:
    evaluation = run(setting, tmp_path)
    clip, words = CLIPModel.from_pretrained(scorers[0]), CLIPTokenizer.from_pretrained(scorers[0])
    dino = ViTModel.from_pretrained(scorers[1])
    photos = [Image.open(p) for p in evaluation.photos]

    def unit(x: torch.Tensor) -> torch.Tensor:
        return x.double() / x.double().norm(dim=-1, keepdim=True)

    def clip_sees(image: Image.Image) -> torch.Tensor:
        pixels = torch.tensor(as_openai_does_it(image, 32)).float()[None]
        tokens = words(["a dog in the snow", "a red dog"], padding=True, return_tensors="pt")
        with torch.no_grad():
            seen = clip(pixel_values=pixels, **tokens)
        return unit(seen.image_embeds[0]), unit(seen.text_embeds)

    def dino_sees(image: Image.Image) -> torch.Tensor:
        look = Pixels(37, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        with torch.no_grad():
            return unit(dino(look([image])).last_hidden_state[0, 0])

    drawn = (tmp_path / "pictures" / "krona").glob("*.png")  # named by prompt and seed
    names = sorted(drawn, key=lambda path: ("snow" not in path.name, path.name))
    assert len(names) == 4
    row = evaluation.rows[1]
    for number, name in enumerate(names):
        image, place = Image.open(name), (number // 2, number % 2)
        seen, texts = clip_sees(image)
        by_clip = np.mean([(seen @ clip_sees(p)[0]).item() for p in photos])
        by_dino = np.mean([(dino_sees(image) @ dino_sees(p)).item() for p in photos])
        got = row.scores.pictures
        assert got["clip_i"][place] == pytest.approx(by_clip, abs=1e-4)
        assert got["clip_t"][place] == pytest.approx((seen @ texts[place[0]]).item(), abs=1e-4)
        assert got["dino"][place] == pytest.approx(by_dino, abs=1e-4)
    pair = [clip_sees(Image.open(name))[0] for name in names[:2]]
    assert row.scores.diversity[0] == pytest.approx(1 - (pair[0] @ pair[1]).item(), abs=1e-4)
    among = [(clip_sees(a)[0] @ clip_sees(b)[0]).item() for a, b in combinations(photos, 2)]
    assert evaluation.own["clip_i"] == pytest.approx(np.mean(among), abs=1e-4)


def test_similarity_is_to_held_out_photos(setting, scorers, tmp_path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    Image.new("RGB", (24, 24), "yellow").save(held / "0.png")
    before, after = (run(setting, tmp_path / "out", *more) for more in (
        (), ("--holdout_data_dir", str(held)),
    ))  # fmt: skip
    one, other = (evaluation.rows[0].scores.pictures for evaluation in (before, after))
    assert np.array_equal(one["clip_t"], other["clip_t"])
    assert not np.allclose(one["clip_i"], other["clip_i"])
    assert str(held) in after.notes[0]


def test_openai_backend_scores_the_same(scorers, monkeypatch) -> None:
    """Its package's calls, answered by the same weights: what the backend makes of them."""
    model = CLIPModel.from_pretrained(scorers[0])
    words = CLIPTokenizer.from_pretrained(scorers[0])

    class Theirs(torch.nn.Module):
        def encode_image(self, pixels):
            return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

        def encode_text(self, tokens):
            return model.text_projection(model.text_model(input_ids=tokens).pooler_output)

    def tokenize(texts, truncate=False):
        return words(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids

    def prepare(image):
        return torch.tensor(as_openai_does_it(image, 32)).float()

    fake = types.ModuleType("clip")
    fake.load = lambda name, device, jit: (Theirs(), prepare)
    fake.tokenize = tokenize
    monkeypatch.setitem(sys.modules, "clip", fake)
    one = load_clip_encoder("ViT-B/32", "openai")
    two = load_clip_encoder(str(scorers[0]))
    noise = np.random.default_rng(2).integers(0, 255, (45, 70, 3), dtype=np.uint8)
    images = [Image.fromarray(noise)] * 40
    torch.testing.assert_close(one.images(images), two.images(images), atol=1e-4, rtol=0)
    texts = ["a dog", "a cat in the snow"]
    torch.testing.assert_close(one.texts(texts), two.texts(texts), atol=1e-4, rtol=0)


def test_openai_backend_without_its_package(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "clip", None)
    with pytest.raises(UserError, match="--clip_backend transformers"):
        load_clip_encoder("ViT-B/32", "openai")


def test_missing_scorers_are_one_line(tmp_path) -> None:
    for load in (load_clip_encoder, load_dino_encoder):
        with pytest.raises(UserError, match="nowhere"):
            load(str(tmp_path / "nowhere"))
    names, note = choose_names(EncoderSettings(dino="none"), True)
    assert (names.clip, names.dino, names.reader) == ("pocket-clip", None, "pocket-reader")
    assert "left out" in note
    names, note = choose_names(EncoderSettings(), False)
    assert (names.clip, names.dino) == ("openai/clip-vit-base-patch32", "facebook/dino-vits16")
    assert names.reader is None and not note


# --- statistics -----------------------------------------------------------------------------------


def test_interval_of_independent_values() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    summary = summarise(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert summary.mean == pytest.approx(values.mean())
    assert summary.std == pytest.approx(values.std(ddof=1))
    assert summary.low == pytest.approx(values.mean() - half, abs=0.03)
    assert summary.high == pytest.approx(values.mean() + half, abs=0.03)


def test_pictures_that_agree_within_prompts_widen_the_interval() -> None:
    by_prompt = np.random.default_rng(0).normal(size=(16, 1)).repeat(25, axis=1)
    grouped, flat = summarise(by_prompt), summarise(by_prompt.reshape(-1))
    assert grouped.high - grouped.low > 3 * (flat.high - flat.low)
    assert bootstrap_means(by_prompt, 2000).std() == pytest.approx(
        by_prompt[:, 0].std() / 4, rel=0.1
    )


def test_summaries_of_few_values() -> None:
    assert summarise(np.array([[2.0]])) == summarise(np.array([2.0]))
    assert summarise(np.array([2.0])).low is None and summarise(np.array([2.0])).std is None
    assert summarise(np.array([np.nan, 4.0, 2.0])).mean == 3
    assert summarise(np.array([[1.0, 2.0], [3.0, 4.0]])) == summarise(
        np.array([[1.0, 2.0], [3, 4]])
    )


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_are_kept_and_only_missing_ones_drawn(setting, tmp_path, caplog) -> None:
    caplog.set_level("INFO", "diffusekrona")
    first = run(setting, tmp_path)
    names = sorted((tmp_path / "pictures" / "krona").glob("*.png"))
    content = [name.read_bytes() for name in names]
    names[0].unlink()
    names[1].write_bytes(content[1][:200])
    caplog.clear()
    second = run(setting, tmp_path)
    assert "base: 0 pictures drawn, 4 kept" in caplog.text
    assert "KronA: 2 pictures drawn, 2 kept" in caplog.text
    assert [name.read_bytes() for name in names] == content
    for one, two in zip(first.rows, second.rows, strict=True):
        for metric in one.scores.metrics():
            np.testing.assert_array_equal(one.scores.levels(metric), two.scores.levels(metric))
    run(setting, tmp_path, "--guidance_scale", "3")  # other settings: all are drawn again
    assert [name.read_bytes() for name in names] != content
    with pytest.raises(UserError, match=r"drawn with guidance 3.0, not 7.0: use the flags"):
        run(setting, tmp_path, "--score_only")
    assert run(setting, tmp_path, "--guidance_scale", "3", "--score_only").rows
    names[2].unlink()
    with pytest.raises(UserError, match=r"is missing.* without --score_only"):
        run(setting, tmp_path, "--guidance_scale", "3", "--score_only")


def test_a_prompt_put_in_at_the_top_draws_only_its_own(setting, tmp_path, caplog) -> None:
    caplog.set_level("INFO", "diffusekrona")
    prompts = tmp_path / "prompts.txt"
    lines = ["a {subject} on grass", "a red {subject}"]
    place = setting.index("--prompts") + 1
    mine = [*setting[:place], str(prompts), *setting[place + 1 :]]
    prompts.write_text("\n".join(lines))
    run(mine, tmp_path / "out")
    prompts.write_text("\n".join(["a {subject} at sea", *lines]))
    caplog.clear()
    run(mine, tmp_path / "out")
    assert "base: 2 pictures drawn, 4 kept" in caplog.text


def test_an_adapter_that_was_moved_is_still_the_same(setting, tmp_path, caplog) -> None:
    caplog.set_level("INFO", "diffusekrona")
    run(setting, tmp_path / "out")
    old = setting[setting.index("--adapter", 4) + 1].removeprefix("KronA=")
    shutil.copytree(old, tmp_path / "moved")
    moved = [part.replace(f"KronA={old}", f"KronA={tmp_path / 'moved'}") for part in setting]
    caplog.clear()
    run(moved, tmp_path / "out")
    assert "KronA: 0 pictures drawn, 4 kept" in caplog.text


def test_processes_share_the_drawing(setting, tmp_path) -> None:
    from diffusekrona.evaluate import read_variants
    from diffusekrona.evaluation.pictures import KeptBase, draw_missing, drawing_of

    more = ["--output_dir", str(tmp_path), "--batch_size", "1"]
    settings = parse_settings([*setting, *more])
    compared = settings.compared
    variant = read_variants(compared)[1]
    base = compared.pretrained_model_name_or_path
    drawing = drawing_of(settings.drawing, settings.model, base, torch.device("cpu"), {})
    jobs = jobs_of(variant, drawing, get_prompts(compared.prompts), compared.seeds, tmp_path)
    state = types.SimpleNamespace(
        process_index=1, num_processes=2, is_main_process=False,
        wait_for_everyone=lambda: None,
    )  # fmt: skip
    draw_missing(variant, KeptBase(drawing), jobs, state, "cpu")
    assert [is_there(job) for job in jobs] == [False, True, False, True]


def test_program(setting, tmp_path, capsys) -> None:
    main([*setting, "--output_dir", str(tmp_path), "--shown_seeds", "1", "--dino", "none"])
    assert "CLIP-I" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["variants"]) == {"base", "KronA"}
    assert set(results["variants"]["KronA"]["overall"]) == {"clip_i", "clip_t", "diversity"}
    assert "left out" in results["notes"][0]
    prompts = results["variants"]["KronA"]["prompts"]
    assert [p["kind"] for p in prompts] == ["context", "attribute"]
    page = (tmp_path / "index.html").read_text()
    assert "left out" in page and "http" not in page and page.count("<img") > 6
    assert (tmp_path / "pictures.csv").read_text().count("\n") == 1 + 2 * 2 * 2
    assert "| KronA |" in (tmp_path / "results.md").read_text()


def test_names_reach_the_page_as_text(setting, tmp_path) -> None:
    name = "<script>alert(1) $a$"
    there = [text.replace("KronA=", f"{name}=") for text in setting]
    main([*there, "--output_dir", str(tmp_path), "--class_word", "<b>dog", "--dino", "none"])
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page and "<b>" not in page
    assert "&lt;script&gt;alert(1) $a$" in page and "Scores of “&lt;b&gt;dog”" in page
    assert "One training run" in page


def test_arguments_that_cannot_be(setting, tmp_path) -> None:
    out = ["--output_dir", str(tmp_path)]
    for more, words in (
        (["--seeds", "1", "1"], "different"),
        (["--height", "64"], "together"),
        (["--batch_size", "0"], "at least 1"),
        (["--adapter", "none"], "called 'base'"),
        (["--device", "nonsense:9"], "--device nonsense:9 cannot be used"),
        (["--height", "100", "--width", "100"], "multiple of 8"),
    ):
        with pytest.raises(UserError, match=words):
            main([*setting, *out, *more])


# --- prompts --------------------------------------------------------------------------------------


def test_prompts() -> None:
    assert len(LISTS["object"]) == len(LISTS["live"]) == 25
    for prompts in LISTS.values():
        texts = [prompt.text("sks dog") for prompt in prompts]
        assert len(set(texts)) == len(texts)
        assert all("sks dog" in text and "{" not in text for text in texts)
    assert LISTS["object"][0].text("orange cat").startswith("an orange cat")
    own = parse_prompts(PROMPTS.split("\n"), "mine")
    assert [p.kind for p in own] == ["context", "attribute"]
    assert own[1].text("sks dog") == "a red sks dog"
    for lines in (["a dog"], [""]):
        with pytest.raises(UserError, match="mine"):
            parse_prompts(lines, "mine")
    with pytest.raises(UserError, match="object, live, pocket"):
        get_prompts("nowhere.txt")
