"""The programs on a pretended CUDA device (tests/pretend_cuda/README.md): placement, dtypes, waits.

On a machine without a GPU this is what stands between a change and its first card.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models

from diffusekrona.adapters.file import read_adapter
from diffusekrona.common.run_record import read_run_record

ROOT = Path(__file__).parents[2]
RUN = ROOT / "tests" / "pretend_cuda" / "run.sh"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here"),
    pytest.mark.skipif(sys.platform != "linux", reason="built for Linux"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretended")


class Device:
    """A process with a pretended device, which runs one program after another."""

    def __init__(self, folder: Path) -> None:
        self.said = folder / "said.txt"
        env = {**os.environ, "PYTHON": sys.executable, "PRETEND_CUDA_BUILD": str(folder / "build")}
        self.process = subprocess.Popen(
            ["bash", str(RUN), "-"], cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=open(self.said, "w"),  # noqa: SIM115
        )  # fmt: skip

    def run(self, program: str, *flags: object) -> None:
        """Run a program to its end."""
        self.run_module(f"diffusekrona.{program}", *flags)

    def run_module(self, module: str, *flags: object) -> None:
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        print(json.dumps([module, *map(str, flags)]), file=process.stdin)
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("exit "):
                assert line.startswith("exit 0;"), self.said.read_text()[-3000:]
                return
        pytest.fail(self.said.read_text()[-3000:])


@pytest.fixture(scope="module")
def device(folder: Path) -> Iterator[Device]:
    device = Device(folder)
    device.run_module("few_steps")
    yield device
    device.process.kill()
    device.process.communicate()


def train(device: Device, out: Path, *flags: object, base: str = "pocket") -> None:
    device.run(
        *("train_dreambooth", "--pretrained_model_name_or_path", base),
        *("--instance_data_dir", "data/dog/input", "--instance_prompt", "a sks dog"),
        *("--output_dir", out, "--report_to", "none", "--no_latents_cache", *flags),
    )


def steps_of(run: Path) -> int | None:
    """The steps in a run's record, once its adapter has been read: its numbers are finite."""
    read_adapter(run / "adapter.safetensors")
    record = read_run_record(run)
    return record and record.steps


@pytest.fixture(scope="module")
def run(device: Device, folder: Path) -> Path:
    """A run in fp16 with a scaler and validation pictures, three steps."""
    flags = ["--max_train_steps", 3, "--mixed_precision", "fp16", "--checkpointing_steps", 2]
    flags += ["--validation_prompt", "a sks dog in the snow", "--num_validation_images", 1]
    flags += ["--validation_inference_steps", 2]
    train(device, folder / "run", *flags)
    return folder / "run"


def test_training_with_validation(run: Path) -> None:
    assert steps_of(run) == 3
    assert list((run / "validation").glob("*.png"))


def test_resume(device: Device, folder: Path, run: Path) -> None:
    flags = ["--max_train_steps", 4, "--mixed_precision", "fp16", "--checkpointing_steps", 2]
    flags += ["--validation_prompt", "a sks dog in the snow", "--num_validation_images", 1]
    flags += ["--validation_inference_steps", 2]
    train(device, folder / "run", *flags, "--resume_from_checkpoint", "checkpoint-2")
    assert steps_of(run) == 4 and (run / "checkpoint-4").is_dir()


@pytest.mark.parametrize("flags", [[], ["--train_text_encoder"]])
def test_other_ways_to_train(device: Device, folder: Path, flags: list[str]) -> None:
    flags = [*flags, "--max_train_steps", "2", "--mixed_precision", "bf16"]
    out = folder / f"sdxl{len(flags)}"
    train(device, out, *flags, "--adapter_type", "lora", base="pocket-sdxl")
    assert steps_of(out) == 2
    components = set(read_adapter(out / "adapter.safetensors").configs)
    assert components == {"unet", *(["text_encoder", "text_encoder_2"] if len(flags) > 4 else [])}


@pytest.mark.parametrize("family", tiny_models.TRANSFORMERS)
def test_transformers_with_their_text_encoder_offloaded(
    device: Device, folder: Path, family: str
) -> None:
    base = tiny_models.save_pipeline(folder / f"{family}-base", family)
    flags = ["--low_vram", "--quantize_base", "none", "--resolution", 32, "--a1", 4, "--a2", 16]
    flags += ["--validation_prompt", "a dog", "--validation_inference_steps", 2]
    train(device, folder / family, *flags, "--max_train_steps", 2, base=str(base))
    assert list((folder / family / "validation").glob("step-000002*.png"))


def test_prior_preservation(device: Device, folder: Path) -> None:
    flags = ["--with_prior_preservation", "--class_prompt", "a dog", "--num_class_images", 2]
    flags += ["--class_data_dir", folder / "class", "--gradient_checkpointing"]
    train(device, folder / "prior", "--max_train_steps", 2, "--mixed_precision", "fp16", *flags)
    assert len(list((folder / "class").glob("*.png"))) == 2


@pytest.mark.parametrize("merge", [[], ["--no_merge"]])
def test_inference(device: Device, folder: Path, run: Path, merge: list[str]) -> None:
    device.run(
        *("inference", "--adapter", run, "--prompt", "a sks dog", "--seeds", 0, 1),
        *("--num_inference_steps", 2, "--output_dir", folder / "drawn", *merge),
    )
    assert (folder / "drawn" / "grid.png").is_file()


def test_evaluate(device: Device, folder: Path, run: Path) -> None:
    (folder / "prompts.txt").write_text("{subject} in the snow\na red {name}\n")
    device.run(
        *("evaluate", "--adapter", "none", "--adapter", run, "--seeds", 0),
        *("--subject_dir", "data/dog/input", "--class_word", "dog", "--num_inference_steps", 2),
        *("--output_dir", folder / "scored", "--prompts", folder / "prompts.txt"),
    )
    rows = (folder / "scored" / "results.md").read_text()
    assert "\n| base |" in rows and "\n| krona " in rows
    assert len(list((folder / "scored" / "pictures").rglob("*.png"))) == 4
