"""What a run is going to do, counted on the real modules without their weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusekrona.bases.published import BASES
from diffusekrona.common.errors import UserError
from diffusekrona.training.resolved_run import ResolvedRun, resolve_run
from diffusekrona.training.settings import parse_settings


def write_configs(folder: Path, parts: dict) -> Path:
    """A pipeline folder of configs alone: all that resolving a run reads."""
    for part, config in parts.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text("{}")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    return folder


def planned(base: Path | str, *more: str) -> ResolvedRun:
    required = ["--instance_data_dir", ".", "--output_dir", "unused", "--instance_prompt", "a dog"]
    settings = parse_settings(["--pretrained_model_name_or_path", str(base), *required, *more])
    return resolve_run(settings.base, settings.adapter, settings.data.resolution)


@pytest.mark.parametrize(
    ("base", "layers", "krona", "lora"),
    [
        ("sdxl", 560, 3_874_560, 5_806_080),
        ("sd15", 128, 398_048, 797_184),
        ("sd21", 128, 423_008, 829_952),
    ],
)
def test_counts_of_the_published_bases(base, layers, krona, lora, tmp_path: Path) -> None:
    folder = write_configs(tmp_path / base, BASES[base])
    resolved = planned(folder, "--a1", "4", "--a2", "64")
    assert (len(resolved.layers), resolved.parameters) == (layers, krona)
    assert planned(folder, "--adapter_type", "lora", "--rank", "4").parameters == lora


def test_text_encoders_are_counted_too(tmp_path: Path) -> None:
    folder = write_configs(tmp_path / "sd15", BASES["sd15"])
    assert planned(folder, "--train_text_encoder").parameters == 398_048 + 122_880
    lora = ("--adapter_type", "lora", "--rank", "4", "--train_text_encoder")
    assert planned(folder, *lora).parameters == 797_184 + 294_912


def test_a_resolution_that_the_base_cannot_take(tiny_sd1: Path) -> None:
    with pytest.raises(UserError, match="multiples of 2, at least 4"):
        planned(tiny_sd1, "--a2", "16", "--resolution", "33")
