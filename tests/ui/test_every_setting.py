"""Every field of the tab Train: what is set there is in the run.yaml shown, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
import yaml

from diffusekrona.adapters.methods import METHODS
from diffusekrona.bases.families import FLUX2_KLEIN
from diffusekrona.common.settings import Option
from diffusekrona.ui import train_form
from diffusekrona.ui.following import hidden_settings
from diffusekrona.ui.places import Workspace

NEEDED = {
    "preserve_class": {"class_prompt": "a dog"},
    "with_prior_preservation": {"class_prompt": "a dog", "class_data_dir": "data/dog/other"},
}
FORMS: list[dict[str, Any]] = [
    {},
    {"train_text_encoder": True},
    *({"adapter_type": method} for method in METHODS),
    {"pretrained_model_name_or_path": FLUX2_KLEIN.default_base, "train_text_encoder": False},
]  # some fields apply to some of them only


def candidates(option: Option, now: Any) -> list[Any]:
    """Contents of a field that differ from what it holds, one of which a run can use."""
    if option.kind is bool:
        return [not now]
    if option.choices:
        return [name for name in option.choices if name != now]
    if option.kind in (int, float):
        return [v for v in ("2", "8", "16", "0.5", "0.25", "1", "128") if v != now]
    return ["data/dog/other", "outputs/dog/other", "words", "4-8", "1=1"]


def test_every_field_reaches_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/dog/input").mkdir(parents=True)
    (tmp_path / "data/dog/other").mkdir()
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path)
    _, *values = train_form.first_values(workspace)
    usual = dict(zip(train_form.NAMES, values, strict=True))
    never = set(train_form.NAMES) - {"single_file_config"}  # only beside a base in one file
    for form in FORMS:
        begun = {**usual, **form}
        for name in sorted(never - hidden_settings(begun)):
            option = train_form.OPTIONS[name]
            for candidate in candidates(option, begun[name]):
                typed = {**begun, **NEEDED.get(name, {}), name: candidate}
                text = train_form.checked(workspace, typed, ())[0]
                if text is None:
                    continue
                shown = yaml.safe_load(text)[name]
                shown = shown if isinstance(shown, list) else [shown]
                kind = option.kind if option.kind in (bool, int, float) else str
                assert [kind(one) for one in shown] == [kind(candidate)], name
                never.remove(name)
                break
    assert not never
