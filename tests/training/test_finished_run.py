"""A finished run's subject, where it was trained on several."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from diffusekrona.common.errors import UserError
from diffusekrona.evaluation.choice_settings import SubjectSettings
from diffusekrona.training.finished_run import read_subject

FOLDERS = """
folders:
  - {folder: dog, prompt: "a [trigger]", trigger: sks dog}
  - {folder: pot, prompt: a zwx teapot}
  - {folder: class, prompt: a dog, regularisation: true}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for folder, colours in (("dog", ("red", "green")), ("pot", ("blue", "navy", "cyan"))):
        (tmp_path / folder).mkdir()
        for colour in colours:
            Image.new("RGB", (24, 16), colour).save(tmp_path / folder / f"{colour}.png")
    (tmp_path / "class").mkdir()
    Image.new("RGB", (24, 16), "white").save(tmp_path / "class" / "white.png")
    (tmp_path / "data.yaml").write_text(FOLDERS)
    settings = {"instance_data_dir": tmp_path / "data.yaml", "holdout": 1, "seed": 0}
    (tmp_path / "run.yaml").write_text("\n".join(f"{k}: {v}" for k, v in settings.items()))
    return tmp_path


def test_one_of_several_subjects_with_its_own_name_and_held_out_picture(run: Path) -> None:
    adapter = SimpleNamespace(metadata={})
    for folder, name, count in (("dog", "sks dog", 1), ("pot", "zwx teapot", 2)):
        subject = read_subject(run, SubjectSettings(subject_dir=run / folder), adapter)
        assert subject.name == name
        assert (len(subject.training), len(subject.held_out)) == (count, 1)
        assert {p.parent.name for p in (*subject.training, *subject.held_out)} == {folder}


def test_the_trigger_of_a_run_on_one_folder_is_its_name(run: Path) -> None:
    settings = {
        "instance_data_dir": run / "pot", "instance_prompt": "a photo of [trigger]",
        "trigger": "zwx teapot",
    }  # fmt: skip
    (run / "run.yaml").write_text(
        "\n".join(f"{k}: {json.dumps(str(v))}" for k, v in settings.items())
    )
    adapter = SimpleNamespace(metadata={})
    assert read_subject(run, SubjectSettings(), adapter).name == "zwx teapot"


def test_which_subject_is_asked_for(run: Path) -> None:
    adapter = SimpleNamespace(metadata={})
    with pytest.raises(
        UserError, match=r"several subjects: give --subject_dir, one of .*dog, .*pot"
    ):
        read_subject(run, SubjectSettings(), adapter)
    with pytest.raises(UserError, match="several subjects"):
        read_subject(run, SubjectSettings(subject_dir=run / "class"), adapter)
    (run / "data.yaml").unlink()  # the pictures were moved: those in the folder count
    subject = read_subject(
        run, SubjectSettings(subject_dir=run / "pot", identifier="zwx", class_word="pot"), adapter
    )
    assert len(subject.training) == 2
