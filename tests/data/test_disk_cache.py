"""The cache on the disk: what is found is what was made, and nothing found is trusted blindly."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from chances import chances
from PIL import Image
from processes import Program
from safetensors.torch import load_file, save_file

from diffusekrona.bases import base as family_base
from diffusekrona.bases import vae as vae_module
from diffusekrona.common.errors import UserError
from diffusekrona.common.pictures import load_picture, picture_size
from diffusekrona.data.disk_cache import DiskCache
from diffusekrona.train_dreambooth import main

KEY = {"picture": "abc", "size": [8, 8]}
TENSORS = {"moments": torch.arange(16.0).reshape(1, 4, 2, 2), "time_ids": torch.ones(1, 6)}
SHAPES = {"moments": (1, None, None, None), "time_ids": (1, 6)}


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "kept")


def entry(cache: DiskCache) -> Path:
    (path,) = (cache.folder / "latents").glob("*.safetensors")
    return path


def test_what_is_written_is_read(cache) -> None:
    assert cache.read("latents", KEY, SHAPES) is None
    cache.write("latents", KEY, TENSORS, note="a line")
    tensors, notes = cache.read("latents", KEY, SHAPES)
    assert notes["note"] == "a line" and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert cache.read("latents", {**KEY, "size": [8, 16]}, SHAPES) is None
    assert cache.read("texts", KEY, SHAPES) is None
    half = {"state": torch.randn(2, 3).bfloat16()}
    cache.write("texts", KEY, half)
    found = cache.read("texts", KEY, {"state": (2, 3)})[0]["state"]
    assert found.dtype == torch.bfloat16 and torch.equal(found, half["state"])


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def one_bit_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def another_entry(path: Path) -> None:
    other = DiskCache(path.parent / "other")
    other.write("latents", {**KEY, "picture": "def"}, TENSORS)
    shutil.copy(entry(other), path)


def another_programs_file(path: Path) -> None:
    save_file(TENSORS, path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [truncated, empty, one_bit_flipped, another_entry, another_programs_file, a_folder],
)
def test_a_damaged_or_foreign_entry_is_not_used(cache, damage, caplog) -> None:
    cache.write("latents", KEY, TENSORS)
    path = entry(cache)
    damage(path)
    assert cache.read("latents", KEY, SHAPES) is None
    if path.is_file():
        assert path.name in caplog.text and "made again" in caplog.text
        cache.write("latents", KEY, TENSORS)
        assert cache.read("latents", KEY, SHAPES) is not None


def test_entries_of_wrong_shape_names_or_values_are_not_used(cache) -> None:
    for wrong in (
        {**TENSORS, "time_ids": torch.ones(2, 6)},
        {**TENSORS, "time_ids": torch.ones(6)},
        {**TENSORS, "more": torch.ones(1)},
        {"moments": TENSORS["moments"]},
        {**TENSORS, "moments": torch.full((1, 4, 2, 2), float("nan"))},
    ):
        cache.write("latents", KEY, wrong)
        assert cache.read("latents", KEY, SHAPES) is None


def test_no_folder_keeps_nothing(tmp_path: Path) -> None:
    off = DiskCache(None)
    off.write("latents", KEY, TENSORS)
    off.shrink()
    assert off.read("latents", KEY, SHAPES) is None
    assert off.fingerprint(str(tmp_path), "vae") is None


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file" / "kept")
    for number in range(3):
        cache.write("latents", {"n": number}, TENSORS)
    assert caplog.text.count("are not cached") == 1
    assert cache.read("latents", {"n": 0}, SHAPES) is None


def test_the_entries_longest_not_used_go_first(cache) -> None:
    keys = [{"n": number} for number in range(4)]
    for age, key in enumerate(keys):
        before = set(cache.folder.rglob("*.safetensors"))
        cache.write("latents", key, TENSORS)
        (path,) = set(cache.folder.rglob("*.safetensors")) - before
        os.utime(path, (time.time() - 1000 + age,) * 2)
    size = path.stat().st_size
    assert cache.read("latents", keys[0], SHAPES)  # used, so it is not the oldest any more
    cache.shrink(2 * size)
    left = [n for n, key in enumerate(keys) if cache.read("latents", key, SHAPES)]
    assert left == [0, 3]
    cache.shrink(10 * size)
    assert cache.read("latents", keys[0], SHAPES)


def test_what_we_did_not_write_is_never_deleted(cache) -> None:
    cache.write("latents", {"n": 0}, TENSORS)
    (entry,) = (cache.folder / "latents").iterdir()
    names = ("photo.jpg", "latents/photo.png", "latents/mine.safetensors", "notes/a.safetensors")
    mine = [cache.folder / name for name in names]
    # Even under a name like ours, and even an entry of ours under another's name.
    mine += [cache.folder / "latents" / f"{digit * 40}.safetensors" for digit in "ab"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100_000)
        os.utime(path, (1, 1))
    shutil.copy(entry, mine[-1])
    cache.shrink(0)
    assert not entry.exists() and all(path.exists() for path in mine)


def test_a_damaged_digest_is_not_believed(cache, tmp_path: Path) -> None:
    weights = tmp_path / "model.bin"
    weights.write_bytes(b"w" * (1 << 20))
    digest = cache.file_digest(weights)
    (memo,) = (cache.folder / "weights").iterdir()
    whole = memo.read_bytes()
    for chance in chances(150):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3))):
            place = chance.randrange(len(data))
            if chance.random() < 0.5:
                data[place] = chance.randrange(256)
            else:
                data[place:place] = chance.choice(
                    (b"[", b"null", b"0", b"NaN", b"\xff", b'"', b"{}")
                )
        size = len(data) if chance.random() < 0.8 else chance.randrange(len(data))
        memo.write_bytes(data[:size])
        assert cache.file_digest(weights) == digest
        assert cache.file_digest(weights) == digest


def test_a_fingerprint_is_of_the_contents(cache, tmp_path: Path) -> None:
    part = tmp_path / "base" / "vae"
    part.mkdir(parents=True)
    (part / "config.json").write_text("{}")
    base = str(part.parent)
    assert cache.fingerprint(base, "vae") is None  # no weights yet
    assert cache.fingerprint(base, "vae", weights=False) is not None
    weights = bytearray(3 << 20)
    (part / "model.safetensors").write_bytes(weights)
    first = cache.fingerprint(base, "vae")
    assert first == cache.fingerprint(base, "vae") and len(list(cache.folder.rglob("*.json"))) == 1
    shutil.copytree(part.parent, tmp_path / "copy")
    assert cache.fingerprint(str(tmp_path / "copy"), "vae") == first
    weights[len(weights) // 2] = 1  # in the middle, size and name as they were
    (part / "model.safetensors").write_bytes(weights)
    changed = cache.fingerprint(base, "vae")
    assert changed != first
    (part / "config.json").write_text('{"scaling_factor": 1}')
    assert cache.fingerprint(base, "vae") not in (first, changed)
    for memo in cache.folder.rglob("*.json"):
        memo.write_text("[")
    (part / "config.json").write_text("{}")
    assert cache.fingerprint(base, "vae") == changed


def test_a_header_tells_the_size_that_a_picture_is_read_at(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, size, exif in (
        ("a.png", (48, 40), Image.Exif()),
        ("b.jpg", (701, 433), Image.Exif()),
        ("c.jpg", (701, 433), turned),
        ("d.webp", (64, 32), turned),
    ):
        path = tmp_path / name
        Image.new("RGB", size, "red").save(path, exif=exif)
        for least in (None, 16, 64, 512):
            assert picture_size(path, least) == load_picture(path, least).size[::-1]
    (tmp_path / "e.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"e\.png"):
        picture_size(tmp_path / "e.png")


# --- in training runs ---------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for colour in ("red", "green", "blue"):
        Image.effect_noise((48, 40), 60).convert("RGB").save(folder / f"{colour}.png")
    return folder


def flags(base: Path, pictures: Path, out: Path, *more: str) -> list[str]:
    return [
        "--pretrained_model_name_or_path", str(base),
        "--instance_data_dir", str(pictures),
        "--instance_prompt", "a sks dog",
        "--output_dir", str(out),
        "--a2", "16",
        "--max_train_steps", "3",
        "--report_to", "none",
        "--random_flip",
        "--cpu",
        *more,
    ]  # fmt: skip


def run(*arguments) -> dict[str, torch.Tensor]:
    assert main(flags(*arguments)) == 0
    return load_file(arguments[2] / "adapter.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """Names of the VAEs, tokenizers and text encoders that have been loaded."""
    names: list[str] = []
    load = vae_module.load_part

    def load_part(base, kind, subfolder, **options):
        if kind == "AutoencoderKL" or kind.startswith("CLIP"):
            names.append(subfolder)
        return load(base, kind, subfolder, **options)

    for module in (vae_module, family_base):
        monkeypatch.setattr(module, "load_part", load_part)
    return names


@pytest.mark.parametrize("base", ["tiny_sd1", "tiny_sdxl"])
def test_with_and_without_the_cache_the_same_factors(
    request, base, pictures, tmp_path: Path, loaded
) -> None:
    folder = request.getfixturevalue(base)
    kept = ("--latents_cache_dir", str(tmp_path / "kept"), "--aspect_ratio_buckets")
    plain = run(folder, pictures, tmp_path / "0", "--no_latents_cache", "--aspect_ratio_buckets")
    assert not (tmp_path / "kept").exists() and "vae" in loaded
    cold = run(folder, pictures, tmp_path / "1", *kept)
    loaded.clear()
    warm = run(folder, pictures, tmp_path / "2", *kept)
    assert loaded == []  # neither the VAE nor text encoders nor tokenizers
    assert same(plain, cold) and same(plain, warm)
    (pictures / "red.png").write_bytes((pictures / "blue.png").read_bytes())
    Image.effect_noise((48, 40), 90).convert("RGB").save(pictures / "blue.png")
    changed = run(folder, pictures, tmp_path / "3", *kept)
    assert loaded == ["vae"] and not same(warm, changed)
    loaded.clear()
    run(folder, pictures, tmp_path / "4", *kept, "--instance_prompt", "a sks cat")
    assert "vae" not in loaded and "text_encoder" in loaded


def test_other_weights_under_the_same_name_are_noticed(
    tiny_sd1, pictures, tmp_path: Path, loaded
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_sd1, base)
    kept = ("--latents_cache_dir", str(tmp_path / "kept"))
    run(base, pictures, tmp_path / "1", *kept)
    for part in ("vae", "text_encoder"):
        (path,) = (base / part).glob("*.safetensors")
        tensors = {name: tensor * 1.01 for name, tensor in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})
        loaded.clear()
        trained = run(base, pictures, tmp_path / f"{part} cached", *kept)
        assert part in loaded
        plain = run(base, pictures, tmp_path / f"{part} plain", "--no_latents_cache")
        assert same(trained, plain)


def test_every_entry_damaged_changes_nothing(tiny_sd1, pictures, tmp_path: Path) -> None:
    kept = ("--latents_cache_dir", str(tmp_path / "kept"))
    first = run(tiny_sd1, pictures, tmp_path / "1", *kept)
    entries = list((tmp_path / "kept").rglob("*.safetensors"))
    assert len(entries) == 3 + 2  # pictures; the prompt and the empty one
    for path in entries:
        one_bit_flipped(path)
    assert same(run(tiny_sd1, pictures, tmp_path / "2", *kept), first)


def test_a_words_lost_warning_is_told_again(tiny_sd1, pictures, tmp_path: Path, caplog) -> None:
    kept = ("--latents_cache_dir", str(tmp_path / "kept"), "--instance_prompt", "dog " * 40)
    run(tiny_sd1, pictures, tmp_path / "1", *kept)
    assert "not seen by it" in caplog.text
    caplog.clear()
    run(tiny_sd1, pictures, tmp_path / "2", *kept)
    assert "not seen by it" in caplog.text


def test_trained_text_encoders_use_no_kept_states(tiny_sd1, pictures, tmp_path: Path) -> None:
    kept = ("--latents_cache_dir", str(tmp_path / "kept"), "--train_text_encoder")
    cold = run(tiny_sd1, pictures, tmp_path / "1", *kept)
    assert not (tmp_path / "kept" / "texts").exists()
    assert same(run(tiny_sd1, pictures, tmp_path / "2", *kept), cold)


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(
    tiny_sd1, pictures, tmp_path: Path, caplog
) -> None:
    (tmp_path / "file").write_text("in the way")
    run(tiny_sd1, pictures, tmp_path / "1", "--latents_cache_dir", str(tmp_path / "file"))
    assert caplog.text.count("are not cached") == 1


def test_processes_that_start_together_share_a_folder(tiny_sd1, pictures, tmp_path: Path) -> None:
    kept = ("--latents_cache_dir", str(tmp_path / "kept"))
    started = [
        Program(
            "diffusekrona.train_dreambooth", *flags(tiny_sd1, pictures, tmp_path / name, *kept),
            said=tmp_path / f"{name}.txt", OMP_NUM_THREADS="1",
        )
        for name in "01"
    ]  # fmt: skip
    for process in started:
        assert process.wait() == 0 and "made again" not in process.text(), process.text()
    one, two = (load_file(tmp_path / str(n) / "adapter.safetensors") for n in range(2))
    assert same(one, two)
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 5
    assert not list((tmp_path / "kept").rglob("*.partial"))
