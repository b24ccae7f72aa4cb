"""The inference scripts, by Bash and by accelerate, and the quick start's refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny_models
from diffusers import UNet2DConditionModel
from processes import run_two

from diffusekrona import KronAConfig, save_adapter
from diffusekrona.sampling.grids import read_recipe

ROOT = Path(__file__).parents[2]
SCRIPTS = [f"inference_{family}.sh" for family in ("sd", "sdxl")]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of its own, so that outputs/ of this one is left alone. Not installed."""
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    os.symlink(ROOT / "diffusekrona", folder / "diffusekrona")
    (tmp_path / "elsewhere").mkdir()
    return folder


def put_adapter(base: Path, run: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    tiny_models.random_factors(unet)
    save_adapter(unet, run / "adapter.safetensors", metadata={"base_model": str(base)})


def start(*command: object, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("script", SCRIPTS)
def test_they_are_python_too(script: str) -> None:
    path = ROOT / "scripts" / script
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an escape that Python does not know
        compile(path.read_text(), script, "exec")


def test_by_bash_from_any_folder(clone: Path, tiny_sd1: Path, tmp_path: Path) -> None:
    runs = clone / "outputs" / "my cat"
    put_adapter(tiny_sd1, runs / "krona_kqvo_4x16_sd1_lr6e-4")
    put_adapter(tiny_sd1, runs / "krona_kqvo_4x16_other_lr6e-4")
    os.utime(runs / "krona_kqvo_4x16_sd1_lr6e-4" / "adapter.safetensors", (1, 1))
    done = start(
        *("bash", clone / "scripts" / "inference_sd.sh", "--scheduler", "euler"),
        folder=tmp_path / "elsewhere",
        PYTHON=sys.executable,
        SUBJECT="my cat",
        MODEL_NAME=str(tiny_sd1),
        PROMPTS="a cat, it's here|  $HOME * ",
        SEEDS="3 4",
        STEPS="2",
        WEIGHT="0.5",
    )
    assert done.returncode == 0, done.stderr
    made = sorted((runs / "krona_kqvo_4x16_sd1_lr6e-4" / "images").iterdir())
    assert len(made) == 5 and made[-1].name == "grid.png"
    recipes = [read_recipe(path) for path in made[:4]]
    wanted = [(prompt, seed) for prompt in ("a cat, it's here", "$HOME *") for seed in (3, 4)]
    assert [(r["prompt"], r["seed"]) for r in recipes] == wanted
    assert recipes[0]["adapters"][0]["weight"] == 0.5 and recipes[0]["steps"] == 2
    assert recipes[0]["scheduler"] == "EulerDiscreteScheduler"
    assert not any((tmp_path / "elsewhere").iterdir())


def test_by_accelerate(clone: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    put_adapter(tiny_sdxl, clone / "outputs" / "dog" / "any name")
    done = start(
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1),
        *(clone / "scripts" / "inference_sdxl.sh", "--num_inference_steps", 2),
        folder=tmp_path / "elsewhere",
        PYTHON="/nowhere/python",  # it must be accelerate's own
        SEEDS="0",
        OUTPUT_DIR="here",
    )
    assert done.returncode == 0, done.stderr
    made = sorted((tmp_path / "elsewhere" / "here").iterdir())
    assert [path.name for path in made] == [
        "0000_a-sks-dog-in-the-forest_seed0.png",
        "0001_a-sks-dog-on-the-beach_seed0.png",
        "0002_a-sks-dog-in-the-snow_seed0.png",
        "grid.png",
    ]
    assert read_recipe(made[0])["base"] == str(tiny_sdxl)


def test_processes_share_the_pictures(tiny_sd1: Path, tmp_path: Path) -> None:
    put_adapter(tiny_sd1, tmp_path / "run")
    both = run_two(
        *("diffusekrona.inference", "--adapter", tmp_path / "run", "--device", "cpu"),
        *("--prompt", "a dog", "--seeds", 0, 1, 2, "--num_inference_steps", 2),
        *("--output_dir", tmp_path / "out"),
        said=tmp_path / "said",
    )
    assert both.count("3 pictures") == 1
    made = sorted((tmp_path / "out").iterdir())
    assert [read_recipe(path)["seed"] for path in made[:3]] == [0, 1, 2] and len(made) == 4


@pytest.mark.parametrize("script", [*SCRIPTS, "quickstart.sh"])
def test_refusals_are_one_line(script: str, clone: Path) -> None:
    done = start("bash", clone / "scripts" / script, folder=clone, SUBJECT="unicorn")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "unicorn" in done.stderr


@pytest.mark.parametrize(
    ("lacks", "reported"),
    [("version_info", "needs Python 3.11"), ("ensurepip", "venv module")],
)
def test_the_quick_start_checks_python(lacks: str, reported: str, clone: Path) -> None:
    (clone / "data" / "dog" / "input").mkdir(parents=True)
    python = clone / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *{lacks}*) exit 1;; --version) echo Python 3.8;; esac\n'
    )
    python.chmod(0o755)
    done = start("bash", clone / "scripts" / "quickstart.sh", folder=clone, PYTHON=str(python))
    assert done.returncode == 2 and reported in done.stderr and done.stderr.count("\n") == 1
    assert not (clone / ".venv").exists()
