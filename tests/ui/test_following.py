"""Another base or method fills in its own values, and hides what does not apply."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusekrona.bases.families import FAMILIES, FLUX2_KLEIN, SD1, SDXL, Z_IMAGE
from diffusekrona.common.settings import options_of
from diffusekrona.training.settings import TrainSettings
from diffusekrona.ui.following import FOLLOWING, LEADING, defaults_of, hidden_settings, usual_values
from diffusekrona.ui.form import field_value, field_values, read_form
from diffusekrona.ui.jobs import settings_from
from diffusekrona.ui.presets import PRESETS

ROOT = Path(__file__).parents[2]
SCRIPTS = {"finetune_sd": SD1, "finetune_sdxl": SDXL, "finetune_flux2_klein": FLUX2_KLEIN,
           "finetune_z_image": Z_IMAGE}  # fmt: skip


def typed(base: str, method: str = "krona", **more: Any) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": base, "adapter_type": method, **more}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)


def test_names_are_settings() -> None:
    assert {*FOLLOWING, *LEADING} <= set(options_of(TrainSettings))
    for family in FAMILIES.values():
        assert {*family.usual, *family.defaults, *family.usual_training("pocket")} <= {*FOLLOWING}
    for preset in PRESETS.values():
        assert {*preset} <= {*FOLLOWING, *LEADING, "validation_loss_steps"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize("method", ["krona", "lora"])
@pytest.mark.parametrize(("script", "base"), [*((s, None) for s in SCRIPTS),
                                              ("finetune_sd", "pocket"),
                                              ("finetune_sdxl", "pocket-sdxl")])  # fmt: skip
def test_the_form_begins_as_the_scripts_do(
    gpu: None, tmp_path: Path, script: str, base: str | None, method: str
) -> None:
    stub = tmp_path / "python"
    stub.write_text(
        f'#!/bin/sh\n[ "$1" != -c ] || exec "{sys.executable}" "$@"\nprintf "%s\\n" "$@"\n'
    )
    stub.chmod(0o755)
    variables = {"PATH": os.environ["PATH"], "PYTHON": str(stub), "ADAPTER_TYPE": method}
    variables |= {"MODEL_NAME": base} if base else {}
    done = subprocess.run(
        ["bash", str(ROOT / f"scripts/{script}.sh")], env=variables, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    words = done.stdout.splitlines()
    usual = usual_values(typed(base or SCRIPTS[script].default_base, method), {})
    options = options_of(TrainSettings)
    for name in FOLLOWING:
        flag = f"--{name}"
        if options[name].kind is bool:
            assert usual[name] == (flag in words), name
        elif flag in words:
            given = options[name].kind(words[words.index(flag) + 1])
            assert usual[name] == field_value(options[name], given), name


def test_the_bases_resolution_and_rate_are_shown() -> None:
    usual = usual_values(typed("pocket"), {})
    assert usual["resolution"] == "64" and usual["learning_rate"] == "0.006"
    assert usual["validation_guidance_scale"] == "3.0"
    assert usual_values(typed("pocket", "lora"), {})["learning_rate"] == "0.0006"
    usual = usual_values(typed(FLUX2_KLEIN.default_base, "lora"), {})
    assert usual["resolution"] == "1024" and usual["learning_rate"] == "0.0001"
    assert usual["mixed_precision"] == ("bf16" if torch.accelerator.is_available() else "no")


def test_a_base_that_is_not_there_changes_the_rate_alone() -> None:
    before = {"learning_rate": "0.002", "a1": "7"}
    assert usual_values(typed("pock", "lora"), before) == {"learning_rate": "0.0001", "a1": "7"}


def test_low_vram_shows_what_it_selects() -> None:
    usual = usual_values(typed(SDXL.default_base, low_vram=True), {})
    assert usual["cpu_offload_checkpointing"] is True and usual["mixed_precision"] == "bf16"
    values = field_values(TrainSettings, {"low_vram": True}) | usual
    values |= {"pretrained_model_name_or_path": SDXL.default_base, "output_dir": "outputs/x",
               "instance_data_dir": "data/x", "vae_tiling": False}  # fmt: skip
    read, mistakes = read_form(TrainSettings, values, defaults_of(values))
    precision = settings_from(read).precision
    assert not mistakes and precision.cpu_offload_checkpointing and not precision.vae_tiling


def test_a_lora_without_a_rate_has_its_own() -> None:
    values = {"output_dir": Path("outputs/x"), "instance_data_dir": Path("data/x")}
    settings = settings_from(typed("pocket", "lora") | values)
    assert settings.optimisation.learning_rate == 1e-4


def test_what_does_not_apply_is_hidden() -> None:
    hidden = hidden_settings(typed("pocket"))
    assert {"rank", "weighting_scheme", "text_encoder_lr", "revision"} <= hidden
    assert not {"a1", "snr_gamma", "train_text_encoder"} & hidden
    hidden = hidden_settings(typed(Z_IMAGE.default_base, "lora"))
    assert {"a1", "snr_gamma", "train_text_encoder"} <= hidden
    assert not {"rank", "weighting_scheme", "revision"} & hidden
    assert "text_encoder_lr" not in hidden_settings(typed("pocket", train_text_encoder=True))
    assert "max_train_steps" not in hidden
    assert "max_train_steps" in hidden_settings({**typed("pocket"), "num_train_epochs": "3"})
