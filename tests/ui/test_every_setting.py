"""Every field of the tab Train: what is set there is in the run.yaml shown, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
import yaml

from diffusekrona.adapters.methods import METHODS
from diffusekrona.bases.bundled import BUNDLED
from diffusekrona.bases.families import FLUX2_KLEIN
from diffusekrona.common.settings import Option
from diffusekrona.ui import train_form
from diffusekrona.ui.following import hidden_settings
from diffusekrona.ui.places import Workspace

NEEDED = {
    "lr_num_cycles": {"lr_scheduler": "cosine_with_restarts"},
    "lr_power": {"lr_scheduler": "polynomial"},
    "lr_step_rules": {"lr_scheduler": "piecewise_constant"},
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
    return ["data/dog/other", "pocket-sdxl", "outputs/dog/other", "words", "4-8", "1=1"]


def test_a_run_of_the_page_has_its_logs_in_its_folder() -> None:
    _, _, filled = train_form.from_yaml("logging_dir: /elsewhere\nseed: 3")
    assert filled["seed"] == "3" and "logging_dir" not in filled


def test_every_field_reaches_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/dog/input").mkdir(parents=True)
    (tmp_path / "data/dog/other").mkdir()
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path)
    _, *values = train_form.first_values(workspace)
    usual = dict(zip(train_form.NAMES, values, strict=True))
    # The first goes with a base in one file, see below; the second is shown as the optimizer.
    never = set(train_form.NAMES) - {"single_file_config", "use_8bit_adam"}
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


def test_files_and_folders_that_are_not_there(
    tmp_path: Path, one_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is said at its field; another program's configs fit a base in one file, or are named."""
    (tmp_path / "data/dog/input").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path)
    usual = dict(zip(train_form.NAMES, train_form.first_values(workspace)[1:], strict=True))
    file = one_file.name
    configs = "single_file_config"
    wrong = {
        "pretrained_model_name_or_path": ["pock", "/nowhere", "data/dog/input"],
        "init_from": ["data/nowhere", "/etc"],
        "holdout_data_dir": ["data/nowhere", "../elsewhere"],
        configs: ["", "nowhere", "data/dog/input"],  # this file does not fit the published ones
    }
    for name, texts in wrong.items():
        for text in texts:
            base = {"pretrained_model_name_or_path": file} if name == configs else {}
            now, _, mistaken, *looks = train_form.checked(
                workspace, {**usual, **base, name: text}, ()
            )
            assert now is None and mistaken == (name,), (name, text)
            look = dict(zip(train_form.NAMES, looks, strict=True))[name]
            assert look["visible"] and look["info"].startswith("✗"), (name, text)
    typed = {**usual, "pretrained_model_name_or_path": file, configs: str(BUNDLED / "pocket")}
    text, _, mistaken, *_ = train_form.checked(workspace, typed, ())
    assert not mistaken and yaml.safe_load(text)[configs] == str(BUNDLED / "pocket")
    assert "13,312 parameters" in train_form.planned(workspace, typed, ())[0]


def test_what_does_not_fit_the_base_is_said_at_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Factors, letters, a size, a VAE and a base that cannot be read, until they are corrected."""
    (tmp_path / "data/dog/input").mkdir(parents=True)
    (tmp_path / "data/dog/input/00.png").touch()
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path)
    usual = dict(zip(train_form.NAMES, train_form.first_values(workspace)[1:], strict=True))
    vae, base = "pretrained_vae_model_name_or_path", "pretrained_model_name_or_path"
    wrong = {"a1": ("7", ("a1", "a2")), "attn_update_unet": ("kx", ()), "resolution": ("7", ()),
             vae: ("no name/at all", ()), base: ("no name/at all", ())}  # fmt: skip
    for name, (text, places) in wrong.items():
        said, misfits, *looks = train_form.planned(workspace, {**usual, name: text}, ())
        assert misfits == (places or (name,)), (name, said)
        look = dict(zip(train_form.NAMES, looks, strict=True))[name]
        assert look["elem_classes"] == ["dk-mistake"] and look["info"].startswith("✗")
        said, misfits, *looks = train_form.planned(workspace, usual, misfits)
        look = dict(zip(train_form.NAMES, looks, strict=True))[name]
        assert misfits == () and look["elem_classes"] == [] and "✗" not in look["info"]
    said, _, run = train_form.started(workspace, {**usual, "a1": "7"})
    assert "a1=7" in said and not run and not (tmp_path / "outputs").exists()
