"""Reading a base: fp16 files alone are found without a flag, odd configs are one line."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from chances import chances
from PIL import Image

from diffusekrona.bases.bundled import BUNDLED, is_bundled
from diffusekrona.bases.loading import load_part, quiet_libraries
from diffusekrona.bases.meta import trusting_no_config
from diffusekrona.common.errors import UserError
from diffusekrona.sampling.pipeline import encode, load_pipeline
from diffusekrona.train_dreambooth import train
from diffusekrona.training.resolved_run import family_defaults
from diffusekrona.training.settings import parse_settings

WEIGHTS = ("diffusion_pytorch_model", "model")


@pytest.fixture
def fp16_only(tiny_sd1: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_sd1, tmp_path / "fp16"))
    for name in WEIGHTS:
        for path in folder.glob(f"*/{name}.safetensors"):
            path.rename(path.with_name(f"{name}.fp16.safetensors"))
    return folder


def test_fp16_files_alone_are_found_by_parts_and_pipelines(fp16_only: Path) -> None:
    assert load_part(str(fp16_only), "AutoencoderKL", "vae").config.latent_channels == 4
    assert load_part(str(fp16_only), "CLIPTextModel", "text_encoder").config.hidden_size == 64
    assert load_part(str(fp16_only), "UNet2DConditionModel", "unet").config.sample_size == 16
    assert load_pipeline(str(fp16_only)).unet.config.sample_size == 16


def test_looking_for_fp16_files_prints_no_error(fp16_only: Path) -> None:
    """diffusers reports each file that is not there, which reads as if something had failed. What
    it reports at other times is shown."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("diffusers").addHandler(handler)
    quiet_libraries()
    try:
        load_part(str(fp16_only), "UNet2DConditionModel", "unet")
        assert records == []
        logging.getLogger("diffusers.models.modeling_utils").error("something else")
    finally:
        logging.getLogger("diffusers").removeHandler(handler)
    assert [record.getMessage() for record in records] == ["something else"]


def test_what_is_missing_altogether_is_still_one_line(fp16_only: Path) -> None:
    shutil.rmtree(fp16_only / "vae")
    with pytest.raises(UserError) as error:
        load_part(str(fp16_only), "AutoencoderKL", "vae")
    assert "\n" not in str(error.value) and "vae" in str(error.value)


ODD = (None, [], {}, "x", -1, 0, 1.5, True, [1, "x"], 10**30, float("nan"))


def test_an_odd_config_is_one_line_in_a_dry_run(tiny_sd1: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_sd1, tmp_path / "base"))
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    flags = ["--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(tmp_path)]
    flags += ["--instance_prompt", "a", "--a2", "16", "--output_dir", str(tmp_path / "o")]
    settings = parse_settings([*flags, "--dry_run", "--cpu"])
    for chance in chances(40):
        path = base / chance.choice(("unet", "unet", "vae")) / "config.json"
        whole = path.read_text()
        config = json.loads(whole)
        config[chance.choice(sorted(config))] = chance.choice(ODD)
        path.write_text(json.dumps(config))
        try:
            family_defaults(settings.base, low_vram=False)  # as `main` does
            assert train(settings) == 0
        except UserError as error:
            assert "\n" not in str(error)
        path.write_text(whole)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("unet/config.json", "block_out_channels", 1.5),
        ("vae/config.json", "down_block_types", [1e400, "DownEncoderBlock2D"]),
        ("text_encoder/config.json", "hidden_size", {}),
        ("scheduler/scheduler_config.json", "beta_schedule", "x"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12),
        ("tokenizer/tokenizer_config.json", "eos_token", "no such token"),
        ("model_index.json", "scheduler", ["subprocess", "run"]),
    ],
)
def test_an_odd_config_is_one_line_where_pictures_are_drawn(
    name: str, key: str, value: object, tiny_sd1: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_sd1, tmp_path / "base"))
    content = json.loads((base / name).read_text())
    (base / name).write_text(json.dumps({**content, key: value}))
    with pytest.raises(UserError) as error:
        encode(load_pipeline(str(base)), ["a dog"])
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_tokenizer_that_does_not_say_its_length_has_clips(tiny_sd1: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_sd1, tmp_path / "base"))
    path = base / "tokenizer/tokenizer_config.json"
    for length in (None, 10**12, -1, []):
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": length}))
        assert encode(load_pipeline(str(base)), ["a"])["prompt_embeds"].shape == (1, 77, 64)


def test_a_bundled_base_is_known_by_its_name_and_by_its_folder(monkeypatch, tmp_path) -> None:
    assert is_bundled("pocket") and is_bundled(str(BUNDLED / "pocket"))
    assert not is_bundled(str(tmp_path)) and not is_bundled("runwayml/stable-diffusion-v1-5")
    monkeypatch.chdir(BUNDLED)
    assert is_bundled("./pocket-sdxl")
    (tmp_path / "link").symlink_to(BUNDLED / "pocket")
    assert is_bundled(str(tmp_path / "link"))


def test_what_a_damaged_config_holds_is_escaped_in_the_error() -> None:
    with pytest.raises(UserError, match=r"\\x1b\[2J") as caught, trusting_no_config("a config"):
        raise ValueError("no activation \x1b[2J")
    assert str(caught.value).isprintable()
