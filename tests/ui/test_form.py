"""A form is made from a settings class, and read back into it."""

from __future__ import annotations

from pathlib import Path

from diffusekrona.common.settings import build, flat, options_of
from diffusekrona.sampling.settings import InferenceSettings
from diffusekrona.training.settings import TrainSettings
from diffusekrona.ui.form import (
    field_values,
    groups_of,
    help_of,
    label_of,
    place_of,
    places_of,
    read_form,
    without_flags,
)
from diffusekrona.ui.tools import TOOLS

GIVEN = {
    "pretrained_model_name_or_path": "pocket",
    "instance_data_dir": Path("data/dog/input"),
    "output_dir": Path("outputs/dog/run"),
    "validation_prompt": ("one", "two"),
    "learning_rate": 5e-3,
    "random_flip": True,
    "seed": 2**63 - 1,
}


def test_every_setting_has_a_field_in_a_group() -> None:
    names = [o.name for _, options in groups_of(TrainSettings).values() for o in options]
    assert sorted(names) == sorted(options_of(TrainSettings))


def test_values_survive_the_form() -> None:
    typed = field_values(TrainSettings, GIVEN)
    values, mistakes = read_form(TrainSettings, typed)
    assert mistakes == {} and flat(build(TrainSettings, values)) == flat(
        build(TrainSettings, GIVEN)
    )


def test_mistakes_are_at_their_field() -> None:
    typed = field_values(TrainSettings, GIVEN)
    typed |= {"max_train_steps": "many", "adam_beta1": "2", "output_dir": " ", "a1": "1.5"}
    _, mistakes = read_form(TrainSettings, typed)
    assert mistakes == {
        "max_train_steps": "must be a whole number",
        "adam_beta1": "must be below 1",
        "output_dir": "is required",
        "a1": "must be a whole number",
    }


def test_a_reader_of_the_page_sees_no_flag() -> None:
    text = '"for small GPUs" needs "VAE tiling" (see --4, a--b)'
    assert without_flags("--low_vram needs --vae_tiling (see --4, a--b)") == text
    for settings in (TrainSettings, InferenceSettings, *(tool.settings for tool in TOOLS)):
        for option in options_of(settings).values():
            shown = f"{label_of(option)} {help_of(option)}"
            assert "--" not in shown and "_dir" not in shown, shown


def test_an_error_finds_its_field() -> None:
    assert place_of(TrainSettings, "--rank 3: does not fit --a1") == "rank"
    assert place_of(TrainSettings, "the disk is full, --nothing") == ""
    held = {"pretrained_model_name_or_path": "here", "instance_prompt": "a dog"}
    assert places_of(TrainSettings, "(a1=7, a2=4) do not fit", held) == ["a1", "a2"]
    assert places_of(TrainSettings, "--rank 3: not with a1=4", held) == ["rank"]
    assert places_of(TrainSettings, "base 'here' is none", held) == [
        "pretrained_model_name_or_path"
    ]
    assert places_of(TrainSettings, "the disk is full", held) == []


def test_a_value_that_is_not_the_bases_own_default_is_kept() -> None:
    typed = field_values(TrainSettings, GIVEN)
    values, _ = read_form(TrainSettings, typed, {"a1": 64, "a2": 64})
    assert values["a1"] == 4 and "a2" not in read_form(TrainSettings, {"a2": ""}, {"a2": 1})[0]
