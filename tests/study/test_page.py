"""The page of a study: names are text, photos stand first, one run is called one run."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusekrona.common import files
from diffusekrona.common.errors import UserError
from diffusekrona.common.own_files import without_mark
from diffusekrona.study import __main__ as program
from diffusekrona.study.cell import Scoring
from diffusekrona.study.grid import Arm, Study, axis
from diffusekrona.study.page import markdown, study_page, write_results
from diffusekrona.study.picture_grids import grids_of
from diffusekrona.study.results import Point, Results
from diffusekrona.study.results_file import read_results

DOCS = Path(__file__).parents[2] / "docs"
NAME = "<script>$a$"


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """One arm over a rate, one subject, one run; two prompts with one picture each."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (20, 16), "red").save(photos / "one.png")
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "picture.png")
    arm = Arm(NAME, {}, (axis("rate $", "learning_rate", (1e-3, 1e-2)),))
    study = Study("tiny", NAME, (arm,), question="<b>why?", seeds=(0,))
    points = [
        Point(
            NAME, (label,), None, 10, [("dog", 0)],
            {m: [np.array([[0.1], [0.2]])] for m in ("clip_i", "clip_t")},
            folders=[tmp_path], pictures=[["picture.png", "picture.png"]],
        )
        for label in ("0.001", "0.01")
    ]  # fmt: skip
    scoring = Scoring("<base>", "pocket", seeds=(0,), steps=2, clip="clip")
    prompts = ["{subject} <i>in the snow", "a wet {name}"]
    return Results(study, points, [], prompts, scoring, {"dog": str(photos)})


def test_names_are_text_and_one_run_is_called_one_run(results, tmp_path) -> None:
    page = study_page(results, ["<u>a note"])
    for tag in ("<script", "<b>", "<i>", "<u>", "<base>"):
        assert tag not in page
    assert "&lt;script&gt;$a$" in page and "One training run" in page
    results.points[0].runs.append(("dog", 1))
    for scores in results.points[0].scores.values():
        scores.append(scores[0])
    assert "One training run" not in study_page(results, [])
    assert "rate $" in markdown(results)
    assert (write_results(results, tmp_path / "out", [])).is_file()
    assert list((tmp_path / "out").glob("grid_*.png"))


def test_no_half_written_chart_on_a_full_disk(results, tmp_path, monkeypatch) -> None:
    def full(file: Path) -> None:
        if file.suffix == ".png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_flush", full)
    with pytest.raises(UserError, match=r"no space left on the disk holding .*chart_\w+\.png"):
        write_results(results, tmp_path / "out", [])
    assert not list((tmp_path / "out").glob("*.png"))


def test_the_subjects_photo_is_in_the_first_column(results) -> None:
    (grid,) = grids_of(results)
    assert grid.columns == ("photos", "0.001", "0.01")
    assert [len(pictures) for _, pictures in grid.rows] == [3, 3]
    for _, (photo, first, _) in grid.rows:
        assert photo.getpixel((0, 0)) == (255, 0, 0) and first.getpixel((0, 0)) == (0, 0, 255)


def test_photos_that_are_gone_leave_no_column(results, tmp_path) -> None:
    results.subjects["dog"] = str(tmp_path / "nowhere")
    assert grids_of(results)[0].columns == ("0.001", "0.01")


def test_the_tables_come_from_the_results_file_alone(results, tmp_path, capsys) -> None:
    for point in results.points:
        point.norms = [0.1]
    page = write_results(results, tmp_path / "out", [])
    shutil.rmtree(tmp_path / "photos")
    (tmp_path / "picture.png").unlink()
    for suffix in ("", ".gz"):
        path = page.with_name("results.json" + suffix)
        path.write_bytes(gzip.compress(page.with_name("results.json").read_bytes())
                         if suffix else page.with_name("results.json").read_bytes())  # fmt: skip
        assert program.main(["--results", str(path)]) == 0
        written = without_mark(page.with_name("results.md").read_text())
        assert capsys.readouterr().out == written
    assert read_results(path).study == results.study


@pytest.mark.parametrize("file", sorted(DOCS.glob("studies/*/results.json.gz")), ids=str)
def test_the_published_tables_are_those_of_the_published_scores(file: Path) -> None:
    tables = markdown(read_results(file))
    assert tables == without_mark(file.with_name("results.md").read_text())
    assert f"studies/{file.parent.name}/results.md" in (DOCS / "studies.md").read_text()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x1f\x8b\x08", b"{}", b"[1]", b'{"declaration": "x: [", "points": []}',
        gzip.compress(b"{}", mtime=0)[:-6],
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["results.json", "results.json.gz"])
def test_a_damaged_results_file_is_one_line(content, name, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        read_results(tmp_path / name)
    assert "\n" not in str(error.value)


def test_scores_that_do_not_fit_their_runs_are_refused(results, tmp_path) -> None:
    page = write_results(results, tmp_path / "out", [])
    file = page.with_name("results.json")
    content = json.loads(file.read_text())
    content["points"][0]["scores"]["clip_i"] *= 2
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="do not fit its runs"):
        read_results(file)
