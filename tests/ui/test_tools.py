"""Programs started from a form."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffusekrona.common.command_line import parse
from diffusekrona.common.errors import UserError
from diffusekrona.common.settings import flat, options_of
from diffusekrona.ui import tools
from diffusekrona.ui.drawing import flags_of
from diffusekrona.ui.places import Workspace

CHOOSE, EVALUATE, INSPECT, CONVERT = tools.TOOLS


def test_fields_are_settings() -> None:
    for tool in tools.TOOLS:
        named = {*tool.first, *tool.choices, *tool.left_out, *tool.output("x")}
        assert named <= set(options_of(tool.settings))


@pytest.mark.parametrize(
    ("tool", "values"),
    [
        (CHOOSE, {"run": Path("outputs/a"), "prefer": "balance", "weights": (1.0, 0.5)}),
        (EVALUATE, {"adapter": ("none", "outputs/a:0.5"), "subject_dir": Path("data/dog"),
                    "class_word": "big dog", "seeds": (1, 2), "output_dir": Path("outputs/x")}),
        (INSPECT, {"adapter": ("outputs/a", "outputs/b"), "draw": "a 'dog'", "layers": True}),
        (CONVERT, {"source": "outputs/a", "destination": "outputs/b", "to": "lokr", "a1": 2}),
    ],
)  # fmt: skip
def test_flags_give_a_program_the_values(tool: tools.Tool, values: dict) -> None:
    settings = flat(parse(tool.settings, flags_of(tool.settings, values), prog="x", description=""))
    assert values.items() <= settings.items()


@pytest.mark.parametrize(
    "values",
    [{"source": "/etc/passwd"}, {"run": Path("/etc")}, {"destination": "../x"},
     {"adapter": ("none", "data/x")},
     {"subject_dir": Path("outputs")}, {"blocks": ("--output=/x",)}, {"class_word": "-x"},
     {"prompts": "/etc/passwd"}, {"adapter": ("A=../x",)}, {"run": Path("object")}],
)  # fmt: skip
def test_what_leads_out_is_refused(tmp_path: Path, values: dict) -> None:
    with pytest.raises(UserError):
        tools.check_places(Workspace(tmp_path), values)
    values = {"adapter": ("none", "plain=none", "A=outputs/x:0.5"), "destination": "outputs/new"}
    values |= {"prompts": "object"}
    with pytest.raises(UserError, match=r"^outputs/x is not there\.$"):
        tools.check_places(Workspace(tmp_path), values)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/x").touch()
    tools.check_places(Workspace(tmp_path), values)


def test_every_page_is_listed_but_linked_ones(tmp_path: Path) -> None:
    run = tmp_path / "outputs/dog/run"
    run.mkdir(parents=True)
    for name in ("inspect.html", "README.md", "x.txt"):
        (run / name).write_text("x")
    (tmp_path / "outputs/README.md").write_text("x")
    (run / "link.html").symlink_to(tmp_path / "outputs/README.md")
    assert set(tools.reports(Workspace(tmp_path))) == {
        "outputs/dog/run/inspect.html", "outputs/dog/run/README.md",
    }  # fmt: skip


def test_a_folder_that_is_deleted_while_its_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools_tab = pytest.importorskip("diffusekrona.ui.tools_tab", reason="gradio is not installed")
    workspace, folder = Workspace(tmp_path), tmp_path / "outputs/reports/convert-1"
    folder.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr(tools_tab, "start", lambda *_: (folder, process, ["diffusekrona"]))
    typed = {"source": "outputs/a", "destination": "outputs/b", "to": "lokr"}
    said = tools_tab._run(workspace, CONVERT, typed)
    assert "running" in next(said)[0]
    shutil.rmtree(folder)
    process.communicate(b"\n")
    assert "outputs/reports/convert-1 is gone" in list(said)[-1][0]
