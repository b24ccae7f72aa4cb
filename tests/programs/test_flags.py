"""Every program's flags: those that scripts and people's notes rely on, with their defaults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest

from diffusekrona.check_data import CheckDataSettings
from diffusekrona.common.command_line import _reader, arguments_of, parse
from diffusekrona.common.errors import UserError
from diffusekrona.common.settings import Option, broken_limit, flat, options_of
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


def other_value(option: Option) -> Any:
    """One that is not the default, or two of them."""
    texts = [*reversed(option.choices), "a b=c", "x"] if option.kind is str else []
    found: dict[type, list[Any]] = {
        bool: [option.default is not True, option.default is True],
        int: [*range(2, 5), *range(8, 8192, 8)],
        float: [0.25, 0.125, 7.5, 2.0],
        str: [text for text in texts if not option.choices or text in option.choices],
        Path: [Path("a b"), Path("x")],
    }
    fitting = [one for one in found[option.kind] if broken_limit(option, one) is None]
    fitting = [one for one in fitting if one != option.default]
    return tuple(fitting[:2]) if option.many else fitting[0]


@pytest.mark.parametrize("program", CLASSES)
def test_a_command_line_gives_its_settings_back(program: str) -> None:
    cls = CLASSES[program]
    options = options_of(cls)
    values = {name: other_value(option) for name, option in options.items()}
    off = {name: False for name, option in options.items() if option.kind is bool}
    for given in (values, values | off):
        arguments = arguments_of(cls, given)
        assert flat(parse(cls, arguments, prog="x", description="")) == given


@pytest.mark.parametrize("program", sorted({*CLASSES} - {"format_datasets"}))
def test_the_base_has_the_same_two_flags_everywhere(program: str) -> None:
    names = ("base", "pretrained_model_name_or_path")
    (base,) = (o for o in options_of(CLASSES[program]).values() if o.name in names)
    assert {base.flag, *base.metadata["aliases"]} == {f"--{name}" for name in names}


def test_another_name_of_a_flag_is_a_flag() -> None:
    def base_of(cls: type, *argv: str) -> Any:
        values = flat(parse(cls, argv, prog="x", description=""))
        return values.get("base") or values.get("pretrained_model_name_or_path")

    for flag in ("--base", "--pretrained_model_name_or_path"):
        assert base_of(InspectSettings, "a", flag, "B") == "B"
        assert base_of(InferenceSettings, f"{flag}=B") == "B"
        with pytest.raises(UserError, match="adapter needs a value"):
            base_of(InspectSettings, flag, "B")
    with pytest.raises(UserError, match=r"^Required: --base\.$"):
        base_of(PlanSettings)
    with pytest.raises(UserError, match=r"^Required: --pretrained_model_name_or_path, "):
        base_of(TrainSettings)


# Numbers for which 0 or less means something; everywhere else a run with it would be wrong.
ZERO = {
    *("--seed", "--seeds", "--image_seeds", "--bootstrap_seed", "--keep_tokens", "--holdout"),
    *("--caption_dropout", "--noise_offset", "--prior_loss_weight", "--unmasked_weight"),
    *("--lr_warmup_steps", "--lr_power", "--adam_beta1", "--adam_beta2", "--adam_weight_decay"),
    *("--adam_epsilon", "--adapter_dropout", "--ema_decay", "--validation_loss_steps"),
    *("--factors", "--gpus_per_cell", "--cpus_per_cell"),
}
BELOW = {"--guidance_scale", "--validation_guidance_scale", "--decompose_factor"}


@pytest.mark.parametrize("program", CLASSES)
def test_numbers_that_no_run_can_use_are_one_line(program: str) -> None:
    numbers = (o for o in options_of(CLASSES[program]).values() if o.kind in (int, float))
    for option in numbers:
        kept = []
        large = "1e39" if option.kind is float else str(2**64)
        for text in ("-1", "0", "nan", "inf", large, "9" * 5000, "x", ""):
            with suppress(UserError):  # not of the kind
                value = _reader(option).instance_from_str([text])
                one = value[0] if option.many else value
                limit = broken_limit(option, one)
                assert limit is None or "\n" not in limit
                kept += [] if limit else [text]
        below = {"0": option.flag in ZERO | BELOW, "-1": option.flag in BELOW}
        assert set(kept) <= {text for text, fits in below.items() if fits}, option.flag


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
