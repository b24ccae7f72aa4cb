"""A run's settings: flags, run.yaml, and what a resumed run must share with the one before."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from diffusekrona.adapters.methods import METHODS
from diffusekrona.common.errors import UserError
from diffusekrona.common.settings import (
    Option,
    broken_limit,
    build,
    flat,
    options_of,
    with_values,
)
from diffusekrona.common.settings_files import to_yaml, typed_values
from diffusekrona.common.yaml_files import parse_yaml
from diffusekrona.data.settings import PriorSettings
from diffusekrona.training.resolved_run import resolve_run
from diffusekrona.training.resume import OUTCOMES, check_agreement, fixed_settings
from diffusekrona.training.settings import (
    TrainSettings,
    parse_settings,
    resolve,
    unused_class_flags,
)

OPTIONS = options_of(TrainSettings)
REQUIRED = {
    "pretrained_model_name_or_path": "pocket",
    "instance_data_dir": Path("."),
    "output_dir": Path("out"),
}
FLAGS = [part for name, value in REQUIRED.items() for part in (f"--{name}", str(value))]
# Named one by one: a field that is marked free by mistake would change a run unnoticed.
FREE = """
latents_cache_dir no_latents_cache sample_batch_size max_train_steps
num_train_epochs gradient_checkpointing cpu_offload_checkpointing vae_tiling
shard_base cpu validation_prompt validation_steps num_validation_images
validation_inference_steps validation_guidance_scale output_dir overwrite_output_dir
save_precision checkpointing_steps checkpoints_total_limit resume_from_checkpoint
report_to logging_dir push_to_hub hub_model_id hub_token dry_run
holdout_data_dir validation_loss_steps early_stop early_stop_by lr_find
"""
# May change by themselves, because what they come to is compared.
BY_OUTCOME = {
    "mixed_precision": "mixed_precision",
    "train_batch_size": "batch over all processes",
    "resolution": "resolution",
    "instance_data_dir": "pictures and captions (hash)",
    "instance_prompt": "pictures and captions (hash)",
    "trigger": "pictures and captions (hash)",
    "holdout": "pictures and captions (hash)",
    "class_data_dir": "class pictures (hash)",
    "low_vram": "mixed_precision",
    "use_8bit_adam": "optimizer",
}


def values_of(option: Option) -> st.SearchStrategy[Any]:
    """Values that keep the option's limits."""
    if option.choices:
        one = st.sampled_from(option.choices)
    else:
        one = {
            bool: st.booleans(),
            int: st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(-4, 4),
            float: st.floats(-3e38, 3e38) | st.floats(0, 1),
            str: st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
            Path: st.from_regex(r"[a-zé~ #:.]{1,20}(/[a-z:'\"]{1,9})?", fullmatch=True).map(Path),
        }[option.kind]
        one = one.filter(lambda value: broken_limit(option, value) is None)
    return st.lists(one, max_size=3).map(tuple) if option.many else one


@hypothesis_settings(max_examples=60)
@given(st.data())
def test_any_settings_survive_yaml(data) -> None:
    chosen = data.draw(st.lists(st.sampled_from(list(OPTIONS)), unique=True, max_size=8))
    changes = {name: data.draw(values_of(OPTIONS[name])) for name in chosen}
    made = build(TrainSettings, REQUIRED | changes)
    again = build(TrainSettings, typed_values(TrainSettings, parse_yaml(to_yaml(made)), "run.yaml"))
    forgotten = {
        name: option.default for name, option in OPTIONS.items() if not option.metadata["in_file"]
    }
    assert again == with_values(made, **forgotten)


def test_run_yaml_is_the_same_as_its_flags(tmp_path: Path) -> None:
    flags = [*FLAGS, "--low_vram", "--no-vae_tiling", "--validation_prompt", "a", "--use_8bit_adam"]
    made, path = parse_settings(flags), tmp_path / "run.yaml"
    path.write_text(to_yaml(made))
    assert parse_settings(["--config", str(path)]) == made
    assert made.precision.mixed_precision == "bf16" and not made.precision.vae_tiling
    beside = parse_settings(["--config", str(path), "--output_dir", "other", "--no_low_vram"])
    assert beside == with_values(made, output_dir=Path("other"), low_vram=False)


def test_an_optimizer_given_beside_run_yaml_takes_precedence(tmp_path: Path) -> None:
    made, path = parse_settings([*FLAGS, "--use_8bit_adam"]), tmp_path / "run.yaml"
    assert made.optimisation.optimizer == "adamw8bit"
    path.write_text(to_yaml(made))
    beside = parse_settings(["--config", str(path), "--optimizer", "adamw"])
    assert beside.optimisation.optimizer == "adamw"


def test_low_vram_without_gradient_checkpointing() -> None:
    given = parse_settings([*FLAGS, "--low_vram", "--no_gradient_checkpointing"]).precision
    assert not given.gradient_checkpointing and not given.cpu_offload_checkpointing
    assert given.vae_tiling
    usual = parse_settings([*FLAGS, "--low_vram"]).precision
    assert usual.gradient_checkpointing and usual.cpu_offload_checkpointing


def test_secrets_and_commands_are_not_in_run_yaml() -> None:
    made = build(TrainSettings, {**REQUIRED, "hub_token": "hf_x", "overwrite_output_dir": True})
    text = to_yaml(with_values(made, resume_from_checkpoint="latest", dry_run=True))
    for word in ("hf_x", "overwrite", "resume", "dry_run"):
        assert word not in text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"max_grad_norm": 0.0}, "--max_grad_norm must be a positive number"),
        ({"max_grad_norm": -1.0}, "--max_grad_norm must be a positive number"),
        ({"ema_decay": 5.0}, "--ema_decay must be at most 1"),
        ({"seed": 2**64}, "--seed must be a smaller number"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"prior_loss_weight": 1e39}, "--prior_loss_weight must be a smaller number"),
        ({"noise_offset": float("nan")}, "--noise_offset must be a finite number"),
        ({"lora_alpha": float("inf")}, "--lora_alpha must be a finite number"),
        ({"learning_rate": 0.0}, "--learning_rate must be a positive number"),
    ],
)
def test_values_that_cannot_work(flags, says) -> None:
    given = [f"--{name}={value}" for name, value in {**REQUIRED, **flags}.items()]
    with pytest.raises(UserError, match=says):
        parse_settings(given)


@pytest.mark.parametrize("wanted", ["latest", "out/checkpoint-4"])
def test_flags_that_contradict_each_other(wanted: str) -> None:
    made = build(TrainSettings, REQUIRED)
    both = with_values(made, overwrite_output_dir=True, resume_from_checkpoint=wanted)
    with pytest.raises(UserError, match=r"--overwrite_output_dir.*--resume_from_checkpoint"):
        resolve(both)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            {"max_train_steps": 9, "num_train_epochs": 1},
            "--max_train_steps and --num_train_epochs .*: give one",
        ),
        ({"lr_warmup_steps": 9}, "--lr_warmup_steps .* give --lr_scheduler constant_with_warmup"),
        (
            {"lr_warmup_steps": 9, "lr_scheduler": "piecewise_constant", "lr_step_rules": "1:2,.1"},
            "--lr_warmup_steps does not apply to --lr_scheduler piecewise_constant",
        ),
        (
            {"lr_num_cycles": 2, "lr_scheduler": "cosine"},
            "give --lr_scheduler cosine_with_restarts",
        ),
        ({"lr_power": 2.0}, "give --lr_scheduler polynomial"),
        ({"lr_step_rules": "1:2,.1"}, "give --lr_scheduler piecewise_constant"),
        ({"use_8bit_adam": True, "optimizer": "prodigy"}, "leave it or --optimizer prodigy out"),
        *(
            ({name: 0.5, "optimizer": "lion"}, f"--{name} does not apply to --optimizer lion")
            for name in ("adam_beta1", "adam_beta2", "adam_epsilon")
        ),
    ],
)
def test_flags_of_which_one_would_do_nothing(flags, says) -> None:
    with pytest.raises(UserError, match=says):
        resolve(build(TrainSettings, REQUIRED | flags))


def test_settings_are_accepted_where_they_are_read() -> None:
    for some in (
        {"lr_warmup_steps": 9, "lr_power": 2.0, "lr_scheduler": "polynomial"},
        *({"adam_beta1": 0.5, "optimizer": name} for name in ("adamw", "adamw8bit", "prodigy")),
        {"adam_weight_decay": 0.5, "optimizer": "lion"},
    ):
        made = build(TrainSettings, REQUIRED | some)
        assert resolve(made) == made and flat(made).items() >= some.items()


def test_class_flags_without_effect_are_named() -> None:
    both = PriorSettings(class_data_dir=Path("class"), class_prompt="a dog")
    assert unused_class_flags(both) == ["--class_data_dir", "--class_prompt"]
    assert unused_class_flags(replace(both, preserve_class=True)) == ["--class_data_dir"]
    assert not unused_class_flags(replace(both, with_prior_preservation=True))
    assert not unused_class_flags(PriorSettings())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"use_ema": True}, "--use_ema and schedule-free"),
        ({"optimizer": "schedulefreesgd"}, "--use_ema and schedule-free"),
        ({"checkpoints_total_limit": 2}, "leave --checkpoints_total_limit out"),
    ],
)
def test_an_early_stop_by_scores_refuses_what_its_result_would_not_have(flags, says) -> None:
    made = build(TrainSettings, {**REQUIRED, "early_stop": 2, "early_stop_by": "scores", **flags})
    with pytest.raises(UserError, match=says):
        resolve(made)
    resolve(with_values(made, early_stop=None))


def test_a_limit_on_the_norm_is_refused_where_it_would_not_hold() -> None:
    made = build(TrainSettings, {**REQUIRED, "optimizer": "schedulefreeadamw"})
    resolve(made)
    with pytest.raises(UserError, match="--max_relative_norm does not limit the average"):
        resolve(with_values(made, max_relative_norm=0.15))
    resolve(with_values(made, optimizer="adamw", max_relative_norm=0.15))


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_rate_that_is_not_given_is_the_methods(method) -> None:
    argv = [*FLAGS, "--adapter_type", method.name]
    assert parse_settings(argv).optimisation.learning_rate == method.learning_rate
    low = parse_settings([*argv, "--low_vram", "--learning_rate", "1e-2"])
    assert low.optimisation.learning_rate == 1e-2
    assert (
        f"{method.learning_rate:g} for {method.name}"
        in options_of(TrainSettings)["learning_rate"].metadata["help"]
    )


def test_settings_are_frozen() -> None:
    made = build(TrainSettings, REQUIRED)
    groups = [made, *(getattr(made, f.name) for f in fields(made))]
    assert all(is_dataclass(group) for group in groups)
    for group in groups:
        with pytest.raises(AttributeError):
            setattr(group, fields(group)[0].name, 1)


# --- resuming -------------------------------------------------------------------------------------


ACCELERATOR = SimpleNamespace(num_processes=1, mixed_precision="no")


def record(settings: TrainSettings, accelerator: Any = ACCELERATOR) -> dict[str, Any]:
    resolved = resolve_run(settings.base, settings.adapter, settings.data.resolution)
    return fixed_settings(settings, resolved, accelerator, [])


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    return record(build(TrainSettings, REQUIRED))


def another(option: Option) -> Any:
    """A value of the option's kind that is not its default."""
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    default = REQUIRED.get(option.name, option.default)
    if option.kind is bool:
        return not default
    if option.kind in (int, float):
        return (default or 0) + 1
    return ("else",) if option.many else option.kind("else")


@pytest.mark.parametrize("name", list(OPTIONS))
def test_every_field_is_free_to_change_or_refused(name: str, saved, monkeypatch) -> None:
    option = OPTIONS[name]
    now = dict(saved)
    changed = with_values(build(TrainSettings, REQUIRED), **{name: another(option)})
    if option.metadata["may_change_on_resume"]:
        assert name not in saved or name in OUTCOMES
        return
    now[name] = json.loads(json.dumps(flat(changed)[name], default=str))
    with pytest.raises(UserError, match=f"was trained with --{name} = ") as error:
        check_agreement(Path("checkpoint-4"), saved, now)
    assert str(now[name]) in str(error.value) and "\n" not in str(error.value)


def test_what_must_agree_is_everything_not_marked_free(saved) -> None:
    fixed = {name for name, o in OPTIONS.items() if not o.metadata["may_change_on_resume"]}
    assert set(saved) == fixed | set(OUTCOMES)
    free = set(OPTIONS) - fixed - set(BY_OUTCOME)
    assert free == set(FREE.split())


def test_several_differences_are_named_together(saved) -> None:
    now = record(with_values(build(TrainSettings, REQUIRED), a1=2, learning_rate=1e-3))
    with pytest.raises(UserError, match=r"--a1 = 4, --learning_rate = 0.0006; .* has 2, 0.001"):
        check_agreement(Path("checkpoint-4"), saved, now)


def test_outcomes_are_compared(saved) -> None:
    made = build(TrainSettings, REQUIRED)
    twice = SimpleNamespace(num_processes=2, mixed_precision="no")
    with pytest.raises(UserError, match="train_batch_size times processes = 1; this run has 2"):
        check_agreement(Path("x"), saved, record(made, twice))
    two = record(with_values(made, train_batch_size=2))
    check_agreement(Path("x"), two, record(made, twice))  # the same batch, spread otherwise
    half = SimpleNamespace(num_processes=1, mixed_precision="bf16")
    with pytest.raises(UserError, match="--mixed_precision = no; this run has bf16"):
        check_agreement(Path("x"), saved, record(made, half))


def test_records_of_older_versions_are_compared_in_what_they_have(saved) -> None:
    old = {"base model": "pocket", "seed": 0, "adapter": saved["adapter"], "gone": 5}
    check_agreement(Path("x"), old, saved)
    with pytest.raises(UserError, match="--pretrained_model_name_or_path = pocket-sdxl"):
        check_agreement(Path("x"), {**old, "base model": "pocket-sdxl"}, saved)
    other = json.loads(json.dumps(saved["adapter"]).replace('"a1": 4', '"a1": 8'))
    assert other != saved["adapter"]
    with pytest.raises(UserError, match="adapter: unet: a1 = 8; this run has 4"):
        check_agreement(Path("x"), {**old, "adapter": other}, saved)
