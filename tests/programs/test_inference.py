"""From adapter files and prompts to pictures, on tiny pipelines of the genuine classes."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from chances import chances
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel

from diffusekrona import KronAConfig, inference, save_adapter
from diffusekrona.adapters.file import read_adapter
from diffusekrona.adapters.mixing import (
    WeightedAdapter,
    apply_adapters,
    choose_base,
    parse_adapter,
    read_adapters,
    read_weighted,
)
from diffusekrona.bases import loading
from diffusekrona.bases.schedulers import SCHEDULERS, set_scheduler
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import convert
from diffusekrona.krona.functional import kron_weight
from diffusekrona.sampling import pipeline as sampling
from diffusekrona.sampling.grids import read_recipe, save_new_png, save_png
from diffusekrona.sampling.settings import read_prompts

Run = Callable[..., list[Path]]


def make_adapter(base: Path, file: Path, seed: int, text_encoder: bool = False) -> Path:
    """An adapter file with random factors for a tiny base."""
    parts = {"unet": UNet2DConditionModel.from_pretrained(base / "unet")}
    parts["unet"].add_adapter(KronAConfig(a1=4, a2=16))
    if text_encoder:
        parts["text_encoder"] = CLIPTextModel.from_pretrained(base / "text_encoder")
        targets = ["q_proj", "out_proj"]
        parts["text_encoder"].add_adapter(KronAConfig(a1=2, a2=8, target_modules=targets))
    for part in parts.values():
        tiny_models.random_factors(part, seed=seed)
    reported = {"base_model": str(base), "instance_prompt": "a sks dog"}
    return save_adapter(parts, file, metadata=reported)


@pytest.fixture(scope="module")
def adapters(tiny_sd1: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return (
        make_adapter(tiny_sd1, folder / "one" / "adapter.safetensors", 1),
        make_adapter(tiny_sd1, folder / "two" / "adapter.safetensors", 2, text_encoder=True),
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the program in this process; returns the pictures that are then in its folder."""
    monkeypatch.setattr(loading, "quiet_libraries", lambda: None)

    def call(*flags: object, out: str = "out") -> list[Path]:
        fixed = ["--output_dir", tmp_path / out, "--device", "cpu", "--num_inference_steps", 3]
        monkeypatch.setattr(sys, "argv", ["inference", *map(str, fixed), *map(str, flags)])
        inference.main()
        return sorted(p for p in (tmp_path / out).iterdir() if p.name != "grid.png")

    return call


def pixels(image: Path | Image.Image) -> np.ndarray:
    if isinstance(image, Path):
        image = Image.open(image)
    return np.asarray(image, dtype=np.int16)


def apart(ones: list, others: list) -> int:
    """The largest difference of a colour value, in 255ths."""
    assert len(ones) == len(others)
    return max(int(abs(pixels(a) - pixels(b)).max()) for a, b in zip(ones, others, strict=True))


def test_merged_equals_live_and_weights_count(
    run: Run, adapters: tuple[Path, Path], tiny_sd1: Path
) -> None:
    one, two = adapters
    mix = ["--adapter", one.parent, "--adapter", f"{two}:0.5", "--prompt", "a dog"]
    mix += ["--seeds", 0, 1]
    merged = run(*mix, out="merged")
    assert len(merged) == 2
    assert apart(merged, run(*mix, "--no_merge", out="live")) <= 1
    plain = ["--pretrained_model_name_or_path", tiny_sd1, "--prompt", "a dog", "--seeds", 0, 1]
    base = run(*plain, out="base")
    assert apart(merged, base) > 3
    assert apart(merged, run(*plain, "--adapter", one, out="one")) > 3
    assert apart(base, run(*plain, "--adapter", f"{one}:0", out="zero")) == 0


@pytest.mark.parametrize("components", [1, 2])
def test_an_adapter_in_a_peft_folder_draws_as_its_file_does(
    run: Run, adapters: tuple[Path, Path], components: int, tiny_sd1: Path, tmp_path: Path
) -> None:
    file, folder = adapters[components - 1], tmp_path / "dog"
    convert(file, folder, "peft")
    assert (folder / "unet").is_dir() == (components == 2)
    common = ["--pretrained_model_name_or_path", tiny_sd1, "--prompt", "a dog"]
    drawn = run(*common, "--adapter", folder, out="folder")
    assert apart(drawn, run(*common, "--adapter", file, out="file")) == 0
    [recipe] = read_recipe(drawn[0])["adapters"]
    assert recipe["sha256"] and read_weighted(str(folder)).title == "dog"


def test_what_is_merged_is_the_weighted_sum(adapters: tuple[Path, Path], tiny_sd1: Path) -> None:
    one, two = adapters
    pipeline = sampling.load_pipeline(str(tiny_sd1))
    apply_adapters(pipeline, read_adapters([f"{one}:0.25", f"{two}:-2"]))
    before = load_file(tiny_sd1 / "unet" / "diffusion_pytorch_model.safetensors")
    after = dict(pipeline.unet.named_parameters())
    assert after.keys() == before.keys() and not hasattr(pipeline.unet, "peft_config")
    stem = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    want = before[f"{stem}.weight"]
    for file, weight in ((one, 0.25), (two, -2.0)):
        tensors = read_adapter(file).tensors
        want = want + weight * kron_weight(tensors[f"{stem}.krona_a"], tensors[f"{stem}.krona_b"])
    torch.testing.assert_close(after[f"{stem}.weight"].data, want)
    encoder = CLIPTextModel.from_pretrained(tiny_sd1 / "text_encoder")
    changed = [
        name
        for (name, a), b in zip(
            encoder.named_parameters(), pipeline.text_encoder.parameters(), strict=True
        )
        if not torch.equal(a, b)
    ]
    assert len(changed) == 4 and all("q_proj" in n or "out_proj" in n for n in changed)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_seed_gives_the_same_picture_in_any_batch(
    family: str, request: pytest.FixtureRequest
) -> None:
    pipeline = sampling.load_pipeline(str(request.getfixturevalue(f"tiny_{family}")))
    set_scheduler(pipeline, "euler_a")  # draws noise at every step
    prompts, seeds = ["a dog", "a cat", "a dog"], [5, 6, 7]
    options = {"steps": 3, "guidance": 4.0, "progress": False}
    single = sampling.generate(pipeline, prompts, seeds, **options)
    batched = sampling.generate(pipeline, prompts, seeds, batch_size=3, **options)
    assert apart(single, batched) <= 1
    alone = sampling.generate(pipeline, ["a cat"], [6], **options)
    assert apart(alone, single[1:2]) == 0 and apart(single[:1], single[2:]) > 5
    with pytest.raises(ValueError, match="3 prompts for 1 seeds"):
        sampling.generate(pipeline, prompts, [1], **options)


def test_pictures_are_those_of_the_library(tiny_sd1: Path, tiny_sdxl: Path) -> None:
    for base in (tiny_sd1, tiny_sdxl):
        pipeline = sampling.load_pipeline(str(base))
        for negative in (None, "blurry"):
            ours = sampling.generate(
                pipeline, ["a dog"], [3], steps=3, guidance=7.0, negative_prompt=negative
            )
            generator = torch.Generator().manual_seed(3)
            theirs = pipeline(
                "a dog",
                negative_prompt=negative,
                num_inference_steps=3,
                guidance_scale=7.0,
                generator=generator,
            ).images
            assert apart(ours, theirs) <= 1


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_text_states_instead_of_text_encoders(family: str, request: pytest.FixtureRequest) -> None:
    pipeline = sampling.load_pipeline(str(request.getfixturevalue(f"tiny_{family}")))
    options = {"steps": 2, "guidance": 7.0, "progress": False}
    with_encoders = sampling.generate(pipeline, ["a dog", "a cat"], [0, 0], **options)
    states = sampling.encode(pipeline, ["a dog", "a cat"])
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        if hasattr(pipeline, name):
            setattr(pipeline, name, None)
    without = sampling.generate(pipeline, ["a dog", "a cat"], [0, 0], **options, **states)
    assert apart(with_encoders, without) == 0
    positive = {name: t for name, t in states.items() if not name.startswith("negative_")}
    if family == "sdxl":  # this base takes zeros for no negative prompt
        assert apart(without, sampling.generate(pipeline, "ab", [0, 0], **options, **positive)) == 0
    else:
        with pytest.raises(ValueError, match="negative_prompt_embeds"):
            sampling.generate(pipeline, "ab", [0, 0], **options, **positive)


def test_recipe_names_and_grid(run: Run, adapters: tuple[Path, Path], tiny_sd1: Path) -> None:
    one, _ = adapters
    flags = [
        "--adapter",
        f"{one.parent}:0.7",
        "--prompt",
        "a sks dog, at NIGHT/été",
        "--seeds",
        4,
        9,
    ]
    flags += ["--negative_prompt", "blurry", "--scheduler", "dpm++", "--height", 16, "--width", 24]
    pictures = run(*flags, "--guidance_scale", 5)
    names = [path.name for path in pictures]
    assert names == [
        "0000_a-sks-dog-at-night-été_seed4.png",
        "0001_a-sks-dog-at-night-été_seed9.png",
    ]
    recipe = read_recipe(pictures[1])
    assert recipe["prompt"] == "a sks dog, at NIGHT/été" and recipe["negative_prompt"] == "blurry"
    assert (recipe["seed"], recipe["steps"], recipe["guidance"]) == (9, 3, 5.0)
    assert (recipe["height"], recipe["width"]) == (16, 24)
    assert recipe["scheduler"] == "DPMSolverMultistepScheduler"
    assert recipe["base"] == str(tiny_sd1) and recipe["merged"] is True
    digest = hashlib.sha256(one.read_bytes()).hexdigest()
    assert recipe["adapters"] == [
        {"file": "one/adapter.safetensors", "weight": 0.7, "sha256": digest}
    ]
    assert recipe["versions"]["torch"] == torch.__version__
    with Image.open(pictures[0].with_name("grid.png")) as grid:
        assert grid.width > 2 * 160  # labels and two enlarged columns
    again = run(*flags, "--guidance_scale", 5)
    assert again[:2] == pictures and len(again) == 4 and again[2].name.startswith("0002_")
    assert apart(again[:2], again[2:]) == 0


def test_groups_of_layers_have_weights_of_their_own(
    run: Run, adapters: tuple[Path, Path], tiny_sd1: Path
) -> None:
    both = ["--adapter", adapters[0], "--adapter", adapters[1], "--prompt", "a dog"]
    whole = run(*both, out="whole")
    groups = ["--blocks", "mid=0.5", "text_encoder=0", "--projections", "k=0", "v=2"]
    merged = run(*both, *groups, out="merged")
    assert apart(merged, run(*both, *groups, "--no_merge", out="live")) <= 1
    assert apart(merged, whole) > 0
    recipe = read_recipe(merged[0])["adapters"][0]
    assert recipe["blocks"] == {"mid": 0.5, "text_encoder": 0.0}
    assert recipe["projections"] == {"k": 0.0, "v": 2.0} and "attention" not in recipe
    nothing = run(*both, "--attention", "self=0", "cross=0", "text=0", out="nothing")
    plain = ["--pretrained_model_name_or_path", tiny_sd1, "--prompt", "a dog"]
    assert apart(nothing, run(*plain, out="base")) == 0


def test_adapters_take_part_in_some_steps_only(
    run: Run, adapters: tuple[Path, Path], tiny_sd1: Path
) -> None:
    flags = ["--adapter", adapters[0], "--prompt", "a dog"]
    live = run(*flags, "--no_merge", out="live")
    part = run(*flags, "--adapter_steps", "0.0-0.4", out="part")
    recipe = read_recipe(part[0])
    assert recipe["adapter_steps"] == "0.0-0.4" and recipe["merged"] is False
    late = run(*flags, "--adapter_steps", "0.4-1", out="late")
    plain = ["--pretrained_model_name_or_path", tiny_sd1, "--prompt", "a dog"]
    base = run(*plain, out="base")
    drawn = [live, part, late, base]
    assert all(apart(a, b) > 0 for n, a in enumerate(drawn) for b in drawn[n + 1 :])
    assert apart(live, run(*flags, "--adapter_steps", "0-1", out="all")) == 0
    never = run(*flags, "--adapter_steps", "0.1-0.3", out="never")  # steps begin at 0, 1/3, 2/3
    assert apart(base, never) == 0


def test_runs_into_one_folder_at_once_keep_every_picture(tmp_path: Path) -> None:
    def save(n: int) -> Path:
        return save_new_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", {"n": n})

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(save, range(40)))
    assert len(set(paths)) == 40 == len(list(tmp_path.iterdir()))
    assert [read_recipe(path)["n"] for path in paths] == list(range(40))


def test_a_damaged_recipe_is_none_or_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (8, 8)), path, {"prompt": "a dog", "seed": 3})
    whole = path.read_bytes()
    for chance in chances(200):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3))):
            place = chance.randrange(len(data))
            if chance.random() < 0.7:
                data[place] = chance.randrange(256)
            else:
                del data[place : place + chance.randrange(1, 9)]
        path.write_bytes(data)
        try:
            assert isinstance(read_recipe(path), dict | None)
        except UserError as error:
            assert "\n" not in str(error)


def test_prompts_from_a_file_from_flags_and_from_the_adapter(
    run: Run, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff# places\r\n\r\n  a cat # 2 \r\nein Hündchen".encode())
    assert read_prompts(file) == ["a cat # 2", "ein Hündchen"]
    made = run("--adapter", adapters[0], "--prompt_file", file, "--prompt", "first")
    assert [read_recipe(p)["prompt"] for p in made] == ["first", "a cat # 2", "ein Hündchen"]
    assert [read_recipe(p)["prompt"] for p in run("--adapter", adapters[0], out="b")] == [
        "a sks dog"
    ]
    for content in (b"# none\n", b"\xff\xfe\x00"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"prompts\.txt"):
            read_prompts(file)


def test_paths_with_colons_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "krona_k64:8").mkdir()
    assert parse_adapter("krona_k64:8") == (Path("krona_k64:8/adapter.safetensors"), 1.0)
    assert parse_adapter("krona_k64:8:0.5") == (Path("krona_k64:8/adapter.safetensors"), 0.5)
    assert parse_adapter(r"C:\runs\a.safetensors") == (Path(r"C:\runs\a.safetensors"), 1.0)
    assert parse_adapter(r"C:\runs\a.safetensors:-0.5") == (Path(r"C:\runs\a.safetensors"), -0.5)
    assert parse_adapter("a:b/c") == (Path("a:b/c"), 1.0)
    with pytest.raises(UserError, match="weight"):
        parse_adapter("a.safetensors:nan")


def test_a_long_prompt_is_told_once(
    tiny_sdxl: Path, caplog: pytest.LogCaptureFixture, run: Run
) -> None:
    words = "a dog " + "very " * 20 + "unseen"
    with caplog.at_level(logging.WARNING):
        run("--pretrained_model_name_or_path", tiny_sdxl, "--prompt", words, "--seeds", 0, 1)
    reported = [r.getMessage() for r in caplog.records if "not seen" in r.getMessage()]
    assert len(reported) == 1 and "unseen" in reported[0] and "77" in reported[0]


@pytest.mark.parametrize(("name", "steps"), [("ddim", 1001), ("euler", 5000), ("lcm", 51)])
def test_more_steps_than_the_schedule_has_are_one_line(
    name: str, steps: int, tiny_sd1: Path
) -> None:
    pipeline = sampling.load_pipeline(str(tiny_sd1))
    set_scheduler(pipeline, name)
    with pytest.raises(UserError, match=rf"^{steps} denoising steps are too many"):
        sampling.generate(pipeline, ["a"], [0], steps=steps, guidance=1.0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_draws(name: str, tiny_sd1: Path, tiny_sdxl: Path) -> None:
    base = tiny_sdxl if name in ("ddim", "pndm", "dpm++_karras") else tiny_sd1
    pipeline = sampling.load_pipeline(str(base))
    set_scheduler(pipeline, name)
    assert not pipeline.scheduler.config.get("clip_sample")
    [image] = sampling.generate(pipeline, ["a dog"], [0], steps=4, guidance=2.0, progress=False)
    assert pixels(image).std() > 1


def test_a_refiner_takes_the_last_steps(run: Run, tiny_sdxl: Path, tiny_sd1: Path) -> None:
    flags = ["--pretrained_model_name_or_path", tiny_sdxl, "--prompt", "a dog", "--seeds", 0, 1]
    flags += ["--num_inference_steps", 5, "--batch_size", 2]
    whole = run(*flags, out="whole")
    refined = run(*flags, "--refiner", tiny_sdxl, "--refiner_start", 0.6, out="refined")
    assert read_recipe(refined[0])["refiner"] == str(tiny_sdxl)
    assert len(refined) == 2 and apart(whole, refined) < 255
    # Both halves by one sampler: a base that is its own refiner draws what it draws alone.
    for name in (None, "ddim", "dpm++"):
        more = ["--scheduler", name] if name else []
        whole = run(*flags, *more, out=f"whole-{name}")
        more += ["--refiner", tiny_sdxl, "--refiner_start", 0.6]
        assert apart(whole, run(*flags, *more, out=f"refined-{name}")) <= 1
    with pytest.raises(UserError, match="refiner"):
        run("--pretrained_model_name_or_path", tiny_sd1, "--prompt", "a", "--refiner", tiny_sdxl)


def test_the_vae_stays_in_fp32(tiny_sd1: Path, tmp_path: Path) -> None:
    pipeline = sampling.load_pipeline(str(tiny_sd1), torch.bfloat16)
    assert (pipeline.unet.dtype, pipeline.vae.dtype) == (torch.bfloat16, torch.float32)
    [image] = sampling.generate(pipeline, ["a dog"], [0], steps=2, guidance=2.0, progress=False)
    assert pixels(image).std() > 1
    pipeline.vae.register_to_config(force_upcast=False)
    pipeline.vae.save_pretrained(tmp_path / "fixed")
    fixed = sampling.load_pipeline(str(tiny_sd1), torch.bfloat16, vae=str(tmp_path / "fixed"))
    assert fixed.vae.dtype == torch.bfloat16
    with pytest.raises(UserError, match="nowhere"):
        sampling.load_pipeline(str(tiny_sd1), vae="./nowhere")


def test_a_picture_that_is_nan_is_an_error(tiny_sd1: Path) -> None:
    pipeline = sampling.load_pipeline(str(tiny_sd1))
    with pytest.raises(UserError, match="came out as NaN"):
        sampling.decode(pipeline, torch.full((4, 16, 16), torch.nan))


def test_a_decoder_short_of_memory_tries_in_tiles(tiny_sd1: Path, monkeypatch, caplog) -> None:
    pipeline = sampling.load_pipeline(str(tiny_sd1))
    decode, latent = pipeline.vae.decode, torch.zeros(4, 16, 16)
    whole = sampling.decode(pipeline, latent)

    def short(*args, **options):
        if not pipeline.vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*args, **options)

    monkeypatch.setattr(pipeline.vae, "decode", short)
    assert abs(pixels(sampling.decode(pipeline, latent)) - pixels(whole)).max() < 30
    assert "in tiles" in caplog.text
    monkeypatch.setattr(
        pipeline.vae, "decode", lambda *_, **__: short(pipeline.vae.disable_tiling())
    )
    with pytest.raises(UserError, match="--low_vram"):
        list(sampling.generate(pipeline, ["a"], [0], steps=1, guidance=1.0, progress=False))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--adapter", "nowhere"], "nowhere"),
        (["--prompt", "a"], "--pretrained_model_name_or_path"),
        (["--pretrained_model_name_or_path", "./nowhere", "--prompt", "a"], "nowhere"),
        (["--pretrained_model_name_or_path", "BASE"], "--prompt"),
        (["--adapter", "ONE", "--prompt_file", "nowhere.txt"], "nowhere.txt"),
        (["--adapter", "ONE", "--seeds", "-1"], "--seeds"),
        (["--adapter", "ONE", "--height", "20", "--width", "16"], "--height"),
        (["--adapter", "ONE", "--height", "16"], "--width"),
        (["--adapter", "ONE", "--num_inference_steps", "0"], "--num_inference_steps"),
        (["--adapter", "ONE", "--device", "teapot"], "teapot"),
        (["--adapter", "ONE", "--blocks", "up.9=0"], "--blocks up.9: .* has down.0, mid, up.1"),
        (["--adapter", "ONE", "--projections", "k"], "--projections k: write name=weight"),
        (["--adapter", "ONE", "--adapter_steps", "0.4-0.2"], "--adapter_steps 0.4-0.2"),
        (["--adapter", "ONE", "--adapter_steps", "0-1.5"], "--adapter_steps 0-1.5"),
        (["--pretrained_model_name_or_path", "BASE", "--blocks", "mid=0"], "--blocks .* --adapter"),
        (["--adapter", "ONE", "--output_dir", "ONE"], "a file exists"),
    ],
)
def test_mistakes_are_user_errors(
    flags: list[str], words: str, run: Run, adapters: tuple[Path, Path], tiny_sd1: Path
) -> None:
    known = {"ONE": adapters[0], "BASE": tiny_sd1}
    with pytest.raises(UserError, match=words) as error:
        run(*(known.get(flag, flag) for flag in flags))
    assert "\n" not in str(error.value)


def test_a_base_that_has_moved_is_explained(run: Run, tiny_sd1: Path, tmp_path: Path) -> None:
    file = make_adapter(tiny_sd1, tmp_path / "a.safetensors", 0)
    adapter = read_adapter(file)
    adapter.metadata["base_model"] = "/gone/base"
    with pytest.raises(UserError, match=r"/gone/base.*--pretrained_model_name_or_path"):
        choose_base(None, [WeightedAdapter(file, 1.0, adapter)])


def test_adapters_of_different_bases_need_a_base_named(tmp_path: Path, tiny_sd1: Path) -> None:
    one = make_adapter(tiny_sd1, tmp_path / "one.safetensors", 1)
    other = shutil.copytree(tiny_sd1, tmp_path / "other")
    two = make_adapter(other, tmp_path / "two.safetensors", 2)
    both = read_adapters([str(one), str(two)])
    with pytest.raises(UserError, match="different bases"):
        choose_base(None, both)
    assert choose_base(str(other), both) == str(other)


def test_the_wrong_family_is_one_line(adapters: tuple[Path, Path], tiny_sdxl: Path) -> None:
    command = [sys.executable, "-m", "diffusekrona.inference", "--adapter", str(adapters[0])]
    command += ["--pretrained_model_name_or_path", str(tiny_sdxl)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "sd1" in done.stderr and "sdxl" in done.stderr


def test_flags_need_no_torch() -> None:
    code = "import sys, diffusekrona.inference as i; i.parse_settings([]); "
    code += "assert 'torch' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120)


def test_a_pipeline_loads_without_its_safety_checker(tiny_sd1: Path) -> None:
    pipeline = sampling.load_pipeline(str(tiny_sd1))
    assert isinstance(pipeline, StableDiffusionPipeline) and pipeline.safety_checker is None
