"""What a run is going to do, counted on the real modules without their weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from random_models import write_configs

from diffusekrona.bases.families import FAMILIES
from diffusekrona.bases.settings import BaseSettings
from diffusekrona.common.errors import UserError
from diffusekrona.data.examples import Example
from diffusekrona.data.folder import batches
from diffusekrona.training.resolved_run import (
    ResolvedRun,
    inapplicable_settings,
    max_train_steps,
    resolve_run,
)
from diffusekrona.training.settings import OptimisationSettings, parse_settings


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
    folder = write_configs(tmp_path / base, base)
    resolved = planned(folder, "--a1", "4", "--a2", "64")
    assert (len(resolved.layers), resolved.parameters) == (layers, krona)
    assert planned(folder, "--adapter_type", "lora", "--rank", "4").parameters == lora


def test_text_encoders_are_counted_too(tmp_path: Path) -> None:
    folder = write_configs(tmp_path / "sd15", "sd15")
    assert planned(folder, "--train_text_encoder").parameters == 398_048 + 122_880
    lora = ("--adapter_type", "lora", "--rank", "4", "--train_text_encoder")
    assert planned(folder, *lora).parameters == 797_184 + 294_912


@pytest.mark.parametrize(("batch", "processes", "accumulation"), [(4, 1, 1), (2, 2, 1), (1, 1, 4)])
def test_an_epoch_is_every_batch_of_the_loop(batch: int, processes: int, accumulation: int) -> None:
    """Batches are of one size, however many pictures each size has."""
    sides = (8, 16, 24, 32, 40, 48, 48)
    examples = [Example(Path(f"{n}"), (), resolution=side) for n, side in enumerate(sides)]
    examples[0] = replace(examples[0], repeats=5)
    resolved = SimpleNamespace(resolution=64, pixel_step=8)
    occurrences = [side for e, side in zip(examples, sides, strict=True) for _ in range(e.repeats)]
    an_epoch = len(batches(occurrences, batch * processes, seed=0, epoch=0))
    for epochs in (1, 3):
        optimisation = OptimisationSettings(
            train_batch_size=batch, num_train_epochs=epochs,
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        steps = max_train_steps(optimisation, examples, resolved, processes)
        assert (steps - 1) * accumulation < epochs * an_epoch <= steps * accumulation


def test_a_resolution_that_the_base_cannot_take(tiny_sd1: Path) -> None:
    with pytest.raises(UserError, match="multiples of 2, at least 4"):
        planned(tiny_sd1, "--a2", "16", "--resolution", "33")


def test_a_setting_that_only_another_familys_loss_reads_does_not_apply(monkeypatch) -> None:
    base = BaseSettings("pocket")
    own, flow = FAMILIES["sd1"].loss_settings, FAMILIES["z-image"].loss_settings
    assert inapplicable_settings(base) >= {*flow} and not inapplicable_settings(base) & {*own}
    new = replace(FAMILIES["z-image"], name="new", loss_settings=("huber_c",))
    monkeypatch.setitem(FAMILIES, "new", new)
    assert "huber_c" in inapplicable_settings(base)
