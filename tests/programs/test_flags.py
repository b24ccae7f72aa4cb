"""Every program's flags: those that scripts and people's notes rely on, with their defaults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest

from diffusekrona.check_data import CheckDataSettings
from diffusekrona.common.settings import options_of
from diffusekrona.convert import ConvertSettings
from diffusekrona.evaluation.choice_settings import ChooseSettings
from diffusekrona.evaluation.settings import EvaluateSettings
from diffusekrona.format_datasets import FormatSettings
from diffusekrona.inspect import InspectSettings
from diffusekrona.plan import PlanSettings
from diffusekrona.quickstart import QuickstartSettings
from diffusekrona.sampling.settings import InferenceSettings
from diffusekrona.study.settings import StudySettings
from diffusekrona.training.settings import TrainSettings

CLASSES = {
    "train_dreambooth": TrainSettings,
    "inference": InferenceSettings,
    "convert": ConvertSettings,
    "evaluate": EvaluateSettings,
    "check_data": CheckDataSettings,
    "choose": ChooseSettings,
    "inspect": InspectSettings,
    "plan": PlanSettings,
    "quickstart": QuickstartSettings,
    "study": StudySettings,
    "format_datasets": FormatSettings,
}
FLAGS: Mapping[str, Any] = json.loads((Path(__file__).parent / "flags.json").read_text())


@pytest.mark.parametrize("program", CLASSES)
def test_flags_and_defaults_are_those_that_people_know(program: str) -> None:
    options = {option.flag: option for option in options_of(CLASSES[program]).values()}
    for flag, known in FLAGS[program].items():
        option = options[flag]
        assert (option.default is MISSING) == known.get("required", False), flag
        default = None if option.default is MISSING else option.default
        default = list(default) if isinstance(default, tuple) else default
        default = str(default) if isinstance(default, Path) else default
        assert (default or None) == (known["default"] or None), flag
        # Values that were taken once still are; others may have joined them.
        assert not option.choices or set(known.get("choices", ())) <= set(option.choices), flag
        assert option.metadata["help"], flag


@pytest.mark.parametrize("program", CLASSES)
def test_help_is_fast_and_needs_no_torch(program: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    before = os.times().children_user
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"diffusekrona.{program}", "--help"],
        capture_output=True, text=True, env=env, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert os.times().children_user - before < 2
    assert " torch\n" not in done.stderr  # among the modules imported
    words = " ".join(done.stdout.replace("│", " ").split())
    for option in options_of(CLASSES[program]).values():
        assert option.key in words or option.metadata.get("metavar", "") in words
