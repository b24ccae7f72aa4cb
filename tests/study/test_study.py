"""Studies: defined, run, killed, run again, reported."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy_jobs
from chances import chances
from filelock import FileLock
from PIL import Image
from processes import Program
from tiny_scorers import save_clip, save_dino

from diffusekrona.bases.fingerprint import fingerprint_of
from diffusekrona.common.errors import UserError
from diffusekrona.data.masks import mask_files
from diffusekrona.study import __main__ as program
from diffusekrona.study import cell_run, engines
from diffusekrona.study import scoring as study_scoring
from diffusekrona.study.builtin_studies import studies
from diffusekrona.study.cell import Scoring, cells_of, finished
from diffusekrona.study.cell_run import check_flags, run_cell, training_arguments
from diffusekrona.study.engines import LOCK, run_local, work
from diffusekrona.study.grid import (
    Arm,
    Axis,
    Study,
    Subject,
    Value,
    axis,
    check_names,
    check_steps,
    label_of,
    with_axis,
    with_flags,
    yaml_value,
)
from diffusekrona.study.page import write_results
from diffusekrona.study.ray_engine import run_ray
from diffusekrona.study.results import (
    Point,
    Results,
    csv_rows,
    differences_table,
    gather,
    table,
)
from diffusekrona.study.results_file import as_json, read_results
from diffusekrona.study.spread import as_json as spread_json
from diffusekrona.study.spread import spread_table, spreads
from diffusekrona.study.yaml_files import read_study, to_yaml
from diffusekrona.training.settings import parse_settings

COLOURS = ("red", "green", "blue")
FLAGS = {"max_train_steps": 2, "a2": 16, "cpu": True}


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("subjects") / "dog"
    folder.mkdir()
    for colour in COLOURS:
        Image.new("RGB", (40, 32), colour).save(folder / f"{colour}.png")
    return Subject("dog", str(folder), "dog")


@pytest.fixture(scope="session")
def scoring(tiny_sd1: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Scoring:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("{subject} in the snow\na wet {name}\n")
    return Scoring(str(tiny_sd1), str(prompts), steps=2, clip=str(clip))


def tiny_study(**changes) -> Study:
    rates = axis("learning rate", "learning_rate", (1e-3, 1e-1))
    return Study("tiny", "Tiny", (Arm("KronA", {}, (rates,)),), flags=FLAGS, seeds=(0,), **changes)


# --- declarations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bundled", [True, False])
def test_builtin_studies_are_training_runs(bundled, subject, tmp_path) -> None:
    builtin = studies(bundled)
    names = "iterations factors learning-rate few-shot modules stability comparison"
    names += " initialisation"
    assert list(builtin) == names.split()
    scoring = Scoring("base", "pocket")
    for study in builtin.values():
        if study.name == "few-shot":
            continue  # wants four pictures
        for cell in cells_of(study, [subject], scoring)[1:]:
            if cell.seed != study.seeds[-1]:
                continue  # but for the seed they are the same
            arguments = training_arguments(cell, tmp_path, tmp_path / "run")
            settings = parse_settings(arguments)  # every flag is one of the trainer's
            assert settings.data.instance_prompt == "a sks dog"
            assert settings.optimisation.seed == cell.seed
    with pytest.raises(UserError, match="3 pictures, the study needs 4"):
        cells_of(builtin["few-shot"], [subject], scoring)


def test_yaml_gives_the_study_back(tmp_path) -> None:
    for study in (*studies(True).values(), *studies(False).values()):
        (tmp_path / "study.yaml").write_text(to_yaml(study))
        assert read_study(tmp_path / "study.yaml") == study


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "Cannot read"),
        ("a list", "is not a study"),
        ("name: x", "arms: .*required"),
        ("name: x\narms: []", "arms: there is none"),
        ("name: x\nwhat: 1\narms: [{label: a}]", "what: "),
        ("name: ../../x\narms: [{label: a}]", "cannot be a folder's name"),
        ("name: /tmp/x\narms: [{label: a}]", "cannot be a folder's name"),
        ("name: ..\narms: [{label: a}]", "cannot be a folder's name"),
        ("name: x\nseeds: '123'\narms: [{label: a}]", "seeds: "),
        ("name: x\nseeds: [-1]\narms: [{label: a}]", "seeds: "),
        ("name: x\ncheckpoints: [0, 50]\narms: [{label: a}]", "checkpoints: .* from 1 on"),
        ("name: x\narms: [{label: a, flags: {a1: {b: 1}}}]", "arms.0.flags.a1"),
        ("name: x\narms: [{label: a, axes: [{name: b, values: [1]}]}]", "no flag"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nname: *b\narms: []", "alias"),
        ("name: 2024-99-99\narms: []", "Cannot read"),
        ("[" * 3000, "Cannot read"),
        ("!!python/object/apply:os.system ['touch ran']", "Cannot read"),
    ],
)
def test_broken_yaml_is_one_line(tmp_path, text, words) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_study(tmp_path / "study.yaml")
    assert "\n" not in str(error.value)


def test_odd_yaml_is_a_study_or_one_line(tmp_path) -> None:
    odd = (
        "null",
        "[]",
        "{}",
        "-1",
        ".nan",
        "1e999",
        "[[",
        "- ",
        ": ",
        "'",
        "2001-01-01",
        "\0",
        "&a *a",
    )
    texts = [to_yaml(study) for _, study in sorted(studies(True).items())]
    for chance in chances(200):
        lines = chance.choice(texts).split("\n")
        for _ in range(chance.choice((1, 2, 4))):
            n = chance.randrange(len(lines))
            key = lines[n].partition(":")[0]
            lines[n] = chance.choice(
                (f"{key}: {chance.choice(odd)}", chance.choice(odd), lines[n][3:], "")
            )
        (tmp_path / "study.yaml").write_text("\n".join(lines))
        try:
            check_names(read_study(tmp_path / "study.yaml"))
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "flags",
    [
        {"push_to_hub": True}, {"push_to_h": True}, {"hub_token": "x"}, {"logging_dir": "../x"},
        {"overwrite_output_dir": True}, {"logging_dir=/tmp/x": True}, {"dry_run": True},
        {"lr_find": True},
    ],
)  # fmt: skip
def test_a_study_stays_in_its_folder_and_off_the_hub(flags, subject, scoring) -> None:
    study = Study("s", "S", (Arm("a", flags),), seeds=(0,))
    with pytest.raises(UserError, match=r"a study cannot set|is not a setting"):
        check_flags(cells_of(study, [subject], scoring))


def test_a_damaged_result_is_made_again(subject, scoring, tmp_path) -> None:
    study = Study("s", "S", (Arm("a"),), seeds=(0,))
    cell = cells_of(study, [subject], scoring)[1]
    folder = cell.scored(tmp_path)
    folder.mkdir(parents=True)
    (folder / "f.safetensors").touch()
    scores = {"clip_i": [[0.5, 0.25], [0.5, 0.25]]}
    point = {"point": "end", "step": None, "scores": scores, "diversity": None}
    point |= {"pictures": ["pictures/a.png"] * 4, "features": "f.safetensors"}
    result = {"key": cell.key(), "scored_by": cell.scored_by(), "title": "t", "points": [point]}
    text = json.dumps({**result, "cost": {"trained_parameters": 3}})
    (folder / "result.json").write_text(text)
    assert finished(cell, tmp_path)["points"] == [point]
    for chance in chances(200):
        data = bytearray(text.encode())
        for _ in range(chance.choice((1, 2))):
            place = chance.randrange(len(data))
            data[place : place + chance.randrange(3)] = chance.choice(
                (b"null", b"[", b"{}", b"NaN", b"\xff", b'"', b"../", b"1e999", b"", b"true")
            )
        (folder / "result.json").write_bytes(data)
        have = finished(cell, tmp_path)
        assert have is None or (have["key"] == cell.key() and len(have["points"]) == 1)


def test_yaml_takes_plain_numbers(tmp_path) -> None:
    text = "name: x\narms:\n- label: a\n  axes:\n  - {name: r, flag: learning_rate, values: [1e-4]}"
    (tmp_path / "study.yaml").write_text(text)
    value = read_study(tmp_path / "study.yaml").arms[0].axes[0].values[0]
    assert value.flags == {"learning_rate": 1e-4} and value.label == "1e-4"
    assert [label_of(v) for v in (5e-4, 0.1, 3, "kq")] == ["5e-4", "0.1", "3", "kq"]
    assert [yaml_value(t) for t in ("3", "1e-3", "true", "kq")] == [3, 1e-3, True, "kq"]


def test_changes_from_the_command_line() -> None:
    study = studies(True)["factors"]
    assert with_flags(study, {"max_train_steps": 7}).flags["max_train_steps"] == 7
    with pytest.raises(UserError, match="varies it"):
        with_flags(study, {"a1": 2})
    fewer = with_axis(study, "factors", ["(4, 64)", "2x32"]).arms[0].axes[0]
    assert [v.flags for v in fewer.values] == [{"a1": 4, "a2": 64}, {"a1": 2, "a2": 32}]
    rates = with_axis(studies(True)["stability"], "learning_rate", ["1e-5"])
    assert all(arm.axes[0].values[0].flags == {"learning_rate": 1e-5} for arm in rates.arms)
    sizes = with_axis(studies(True)["stability"], "size", ["4x64", "r=3", "16"])
    assert [[v.flags for v in arm.axes[1].values] for arm in sizes.arms] == [
        [{"a1": 4, "a2": 64}],
        [{"rank": 3}, {"rank": 16}],
    ]
    with pytest.raises(UserError, match="for LoRA"):
        with_axis(studies(True)["stability"], "size", ["4x64"])
    for name, values, words in (("nothing", ["1"], "axes of"), ("factors", ["x"], "cannot take")):
        with pytest.raises(UserError, match=words):
            with_axis(study, name, values)


# --- cells ----------------------------------------------------------------------------------------


def test_a_cell_is_its_settings(subject, scoring, tmp_path) -> None:
    first = cells_of(tiny_study(), [subject], scoring)
    again = cells_of(dataclasses.replace(tiny_study(), name="other"), [subject], scoring)
    assert [c.key() for c in first] == [c.key() for c in again]
    assert len({c.key() for c in first}) == 3
    changed = [
        cells_of(with_flags(tiny_study(), {"a1": 2}), [subject], scoring)[1],
        cells_of(tiny_study(), [dataclasses.replace(subject, identifier="zwx")], scoring)[1],
        cells_of(dataclasses.replace(tiny_study(), seeds=(1,)), [subject], scoring)[1],
    ]
    assert len({first[1].key(), *(c.key() for c in changed)}) == 4
    drawn = [first[1].drawn_by()]
    for change in ({"steps": 3}, {"seeds": (0,)}, {"guidance": 3.0}, {"vae": "other"}):
        (other,) = cells_of(tiny_study(), [subject], dataclasses.replace(scoring, **change))[1:2]
        assert other.key() == first[1].key()  # the run that is there will do
        drawn.append(other.drawn_by())
    assert len(set(drawn)) == 5
    same = with_flags(tiny_study(), {"terms": 1, "init_weights": "paper"})  # the defaults
    assert [c.key() for c in cells_of(same, [subject], scoring)] == [c.key() for c in first]
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(bytes(200_000))
    before = fingerprint_of(str(model))
    (model / "weights").write_bytes(bytes(199_999) + b"x")  # trained again under the same name
    assert before != fingerprint_of(str(model)) and fingerprint_of("hub/name") is None


def test_masks_are_of_the_runs_that_use_them(subject, scoring, tmp_path) -> None:
    folder = tmp_path / "dog"
    shutil.copytree(subject.folder, folder)
    dog = dataclasses.replace(subject, folder=str(folder))

    def keys() -> list[str]:
        both = (tiny_study(), with_flags(tiny_study(), {"masked_loss": True}))
        return [cells_of(study, [dog], scoring)[1].key() for study in both]

    found = []
    for colour in (None, "black", "white"):
        if colour:
            Image.new("L", (40, 32), colour).save(folder / "red.mask.png")
        found.append(keys())
    plain, masked = zip(*found, strict=True)
    assert len(set(plain)) == 1 and len(set(masked)) == 3
    chosen = cell_run.first_pictures(folder, 3, tmp_path / "chosen")
    assert [file.name for file in mask_files(chosen)] == ["red.mask.png"]


def test_pictures_of_the_base_alone_heed_how_the_study_reads_it(scoring, subject, tmp_path) -> None:
    arguments = ["tiny", "--base", scoring.base, "--prompts", scoring.prompts]
    settings = program.parse_settings([*arguments, "--clip", scoring.clip, "--image_seeds", "0"])
    found = []
    for flags in ({}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}):
        study = with_flags(tiny_study(), flags)
        chosen, _ = program.choose_scoring(scoring.base, settings.scored, study, False)
        cell = cells_of(study, [subject], dataclasses.replace(chosen, steps=2, dino=None), "cpu")[0]
        (picture,) = run_cell(cell, tmp_path)["points"][0]["pictures"][:1]
        found.append((cell.scored(tmp_path) / picture).read_bytes())
    assert found[0] != found[1]


def test_similarity_is_to_held_out_photos(subject, scoring, tmp_path) -> None:
    home = tmp_path / "dog"
    shutil.copytree(subject.folder, home / "input")
    (home / "heldout").mkdir()
    Image.new("RGB", (40, 32), "yellow").save(home / "heldout" / "other.png")
    (one,) = program.choose_subjects(
        program.parse_settings(["tiny", "--subject", str(home)]).chosen
    )
    assert one.held_out == str(home / "heldout")
    plain = dataclasses.replace(one, held_out=None)
    cell, without = (cells_of(tiny_study(), [s], scoring, "cpu")[0] for s in (one, plain))
    # The same run and pictures, scored another way.
    assert (cell.key(), cell.drawn_by()) == (without.key(), without.drawn_by())
    assert cell.scored_by() != without.scored_by()
    scores = [run_cell(c, tmp_path / "cells")["points"][0]["scores"] for c in (without, cell)]
    assert scores[0]["clip_t"] == scores[1]["clip_t"]
    assert scores[0]["clip_i"] != scores[1]["clip_i"]
    assert gather(tiny_study(), [cell], tmp_path / "cells").held_out


def test_one_run_several_checkpoints_and_few_pictures(subject, scoring, tmp_path) -> None:
    study = dataclasses.replace(
        tiny_study(checkpoints=(2, 4)), arms=(Arm("KronA", {"pictures": 2, "learning_rate": 0.1}),)
    )
    cells = cells_of(study, [subject], scoring, "cpu")
    for cell in cells:
        run_cell(cell, tmp_path)
    folder = cells[1].folder(tmp_path)
    assert {p.name for p in (folder / "run").glob("checkpoint-*")} == {
        "checkpoint-2",
        "checkpoint-4",
    }
    assert len(list((folder / "pictures_trained_on").iterdir())) == 2
    results = gather(study, cells, tmp_path)
    assert [p.label() for p in results.points] == ["base", "2 steps", "4 steps"]
    scores = [p.summary("clip_i").mean for p in results.points]
    assert len(set(scores)) == 3 and not results.missing
    page = write_results(results, tmp_path, ["DINO is left out."]).read_text()
    assert "DINO is left out" in page and "http" not in page
    assert len(list(tmp_path.glob("grid_*.png"))) == 1
    assert {p.name for p in tmp_path.glob("chart_*.png")} == {"chart_scores.png", "chart_plane.png"}


def flags_of(scoring: Scoring, subject: Subject, root: Path, file: Path) -> list[str]:
    return [
        str(file), "--base", scoring.base, "--subject", subject.folder, "--prompts",
        scoring.prompts, "--clip", scoring.clip, "--dino", "none", "--num_inference_steps", "2",
        "--output_dir", str(root), "--device", "cpu",
    ]  # fmt: skip


def test_killed_and_restarted_gives_the_same_table(subject, scoring, tmp_path, capsys) -> None:
    study = with_axis(tiny_study(), "learning rate", ["0.1"])
    study = with_flags(study, {"max_train_steps": 6, "checkpointing_steps": 2})
    (tmp_path / "study.yaml").write_text(to_yaml(study))
    whole = cells_of(study, [subject], scoring, "cpu")
    for cell in whole:
        run_cell(cell, tmp_path / "whole" / "cells")
    wanted = csv_rows(gather(study, whole, tmp_path / "whole" / "cells"))

    root = tmp_path / "killed"
    flags = flags_of(scoring, subject, root, tmp_path / "study.yaml")
    process = Program("diffusekrona.study", *flags, said=tmp_path / "said", OMP_NUM_THREADS="1")
    process.wait_for(whole[1].folder(root / "cells") / "run" / "checkpoint-2" / "state.json")
    process.send(signal.SIGKILL)
    process.wait()
    before = (whole[0].scored(root / "cells") / "result.json").stat().st_mtime_ns
    for cell in whole:  # in this process, to save the time of another start
        assert work(cell, root / "cells") is None
    assert (whole[0].scored(root / "cells") / "result.json").stat().st_mtime_ns == before
    assert csv_rows(gather(study, whole, root / "cells")) == wanted
    # Everything is finished: the program itself runs nothing and only reports.
    assert program.main(flags_of(scoring, subject, root, tmp_path / "study.yaml")) == 0
    assert "CLIP-I" in capsys.readouterr().out
    written = json.loads((root / "results.json").read_text())
    assert written["missing"] == [] and len(written["points"]) == 2


def test_other_scorers_score_kept_pictures_and_studies_share_runs(
    subject, scoring, tmp_path
) -> None:
    study = with_axis(tiny_study(), "learning rate", ["0.1"])
    cell = cells_of(study, [subject], scoring, "cpu")[1]
    first = run_cell(cell, tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in cell.folder(tmp_path).rglob("*.png")}
    trained = cell.folder(tmp_path) / "run" / "adapter.safetensors"
    stamps[trained] = trained.stat().st_mtime_ns
    both = dataclasses.replace(scoring, dino=str(save_dino(tmp_path / "dino")))
    (again,) = cells_of(dataclasses.replace(study, name="other"), [subject], both, "cpu")[1:]
    assert again.folder(tmp_path) == cell.folder(tmp_path) and finished(again, tmp_path) is None
    second = run_cell(again, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert second["points"][0]["scores"]["clip_i"] == first["points"][0]["scores"]["clip_i"]
    assert "dino" in second["points"][0]["scores"] and finished(again, tmp_path) == second


def test_a_run_that_another_study_has_in_hand_is_waited_for(subject, scoring, tmp_path) -> None:
    study = with_axis(tiny_study(), "learning rate", ["0.1"])
    cells = cells_of(study, [subject], scoring, "cpu")
    trained = cells[1].folder(tmp_path / "cells")
    results = [cell.scored(tmp_path / "cells") / "result.json" for cell in cells]
    trained.mkdir(parents=True)
    held, passed, begun = threading.Event(), threading.Event(), []

    def other_worker() -> None:
        with FileLock(trained / LOCK):
            held.set()
            passed.wait(120)
            time.sleep(0.5)
            begun.append((trained / "run").exists())

    other = threading.Thread(target=other_worker)
    other.start()
    assert held.wait(120)
    assert work(cells[0], tmp_path / "cells") is None and results[0].exists()
    passed.set()
    assert work(cells[1], tmp_path / "cells") is None and results[1].exists()
    other.join()
    assert begun == [False]


def test_program_lists_and_prints(capsys) -> None:
    assert program.main(["--list"]) == 0
    assert "stability" in capsys.readouterr().out
    assert program.main(["modules", "--print", "--seeds", "5"]) == 0
    printed = capsys.readouterr().out
    assert "with feed-forward" in printed and "- 5" in printed
    with pytest.raises(UserError, match="No study 'nothing'"):
        program.main(["nothing"])


# --- engines --------------------------------------------------------------------------------------


def toy_cells(subject: Subject, fates: list[str]) -> list:
    cells = cells_of(tiny_study(), [subject], Scoring("base", "pocket"))
    return [
        dataclasses.replace(cells[1], labels=(fate,), seed=number)
        for number, fate in enumerate(fates)
    ]


FATES = ["fine", "killed once", "fails", "fine", "always killed"]


@pytest.fixture
def light_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that begin without importing torch, which these jobs do not need."""
    monkeypatch.setattr(engines, "_start_worker", toy_jobs.start_worker)


def check_outcomes(outcomes: dict[str, str | None], cells, root: Path) -> None:
    tries = [len((cell.folder(root) / "tries").read_text()) for cell in cells]
    assert outcomes[cells[0].key()] is None and outcomes[cells[1].key()] is None
    assert outcomes[cells[2].key()] == "it was meant to" and outcomes[cells[3].key()] is None
    assert tries[1] == 2 and tries[4] == 3
    assert len(outcomes) == len(cells) and outcomes[cells[4].key()]


def test_a_killed_worker_costs_a_try_and_no_other_cell(light_workers, subject, tmp_path) -> None:
    cells, outcomes = toy_cells(subject, FATES), {}

    def on_outcome(outcome) -> None:
        outcomes[outcome.cell.key()] = outcome.error

    run_local(cells, tmp_path, 1, [], on_outcome, toy_jobs.work)
    check_outcomes(outcomes, cells, tmp_path)
    assert "killed 3 times" in outcomes[cells[4].key()]


def test_a_killed_worker_is_not_blamed_on_its_neighbour(light_workers, subject, tmp_path) -> None:
    cells, outcomes = toy_cells(subject, ("always killed", "slow")), {}

    def on_outcome(outcome) -> None:
        outcomes[outcome.cell.labels[0]] = outcome.error

    run_local(cells, tmp_path, 2, [], on_outcome, toy_jobs.work)
    assert "killed 3 times" in outcomes["always killed"] and outcomes["slow"] is None


@pytest.fixture
def two_workers():
    ray = pytest.importorskip("ray")
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        num_cpus=2, log_to_driver=False, include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
    yield
    ray.shutdown()


def test_ray_survives_a_killed_worker(two_workers, subject, tmp_path) -> None:
    cells, outcomes = toy_cells(subject, FATES), {}

    def on_outcome(outcome) -> None:
        outcomes[outcome.cell.key()] = outcome.error

    run_ray(cells, tmp_path, None, 0, 1, on_outcome, toy_jobs.work)
    check_outcomes(outcomes, cells, tmp_path)


def test_ray_and_local_agree(two_workers, subject, scoring, tmp_path) -> None:
    cells = cells_of(tiny_study(), [subject], scoring, "cpu")
    errors = []
    run_ray(cells, tmp_path / "ray", None, 0, 1, lambda o: errors.append(o.error))
    assert errors == [None] * 3
    for cell in cells:
        run_cell(cell, tmp_path / "local")
    study = tiny_study()
    by_ray, by_local = (csv_rows(gather(study, cells, tmp_path / n)) for n in ("ray", "local"))
    assert by_ray == by_local


def test_without_ray_one_line(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install ray"):
        run_ray([], tmp_path, None, 0, 1, print)


# --- results --------------------------------------------------------------------------------------


def test_spread_of_known_pictures(tmp_path) -> None:
    """Two settings at right angles are 45° from their centre; three that agree are at it."""
    from safetensors.torch import save_file

    study = Study("s", "S", (Arm("KronA"), Arm("LoRA")), spread=True)
    points = []
    for arm, directions in (
        ("KronA", ([1.0, 0], [1.0, 0], [1.0, 0])),
        ("LoRA", ([1.0, 0], [0, 1.0])),
    ):
        for number, direction in enumerate(directions):
            path = tmp_path / f"{arm}{number}.safetensors"
            save_file({"clip": torch.tensor(direction).repeat(2, 3, 1)}, path)
            values = np.full((2, 3), 0.5 + 0.1 * number)
            point = Point(arm, (str(number),), None, 10, [("dog", 0), ("dog", 1)])
            point.scores = {"clip_i": [values, values], "clip_t": [values, values]}
            point.features = [path, path]
            points.append(point)
    results = Results(
        study, points, [], ["a", "b"], Scoring("base", "pocket", seeds=(0, 1, 2)), {"dog": ""}
    )
    krona, lora = spreads(results)
    file = tmp_path / "results.json"
    file.write_text(json.dumps({**as_json(results), "spread": spread_json([krona, lora])}))
    again = spreads(read_results(file))  # without the pictures
    assert spread_table(again) == spread_table([krona, lora])
    assert np.allclose(krona.pictures, 0, atol=1e-6)
    assert np.allclose(lora.pictures, 1 - np.sqrt(0.5), atol=1e-6)
    assert np.allclose(krona.scores["clip_i"], np.std([0.5, 0.6, 0.7], ddof=1))
    assert lora.ranges["clip_i"] == pytest.approx(0.1)
    assert [row[0] for row in table(results)[1]][:2] == ["KronA: 0", "KronA: 1"]
    head, rows = differences_table(results)
    assert head[0] == "difference from KronA: 0" and rows[0] == [
        "KronA: 1",
        *["+0.100 [+0.100, +0.100]"] * 2,
    ]


def test_other_pictures_are_drawn_from_the_run_that_is_there(subject, scoring, tmp_path) -> None:
    study = with_axis(tiny_study(), "learning rate", ["0.1"])
    (cell,) = cells_of(study, [subject], scoring, "cpu")[1:]
    first = run_cell(cell, tmp_path)
    trained = (cell.folder(tmp_path) / "run" / "adapter.safetensors").stat().st_mtime_ns
    (again,) = cells_of(study, [subject], dataclasses.replace(scoring, steps=3), "cpu")[1:]
    assert finished(again, tmp_path) is None
    second = run_cell(again, tmp_path)
    assert (again.folder(tmp_path) / "run" / "adapter.safetensors").stat().st_mtime_ns == trained
    assert second["points"][0]["scores"] != first["points"][0]["scores"]
    assert finished(cell, tmp_path) == first and finished(again, tmp_path) == second


def test_every_flag_reaches_training(subject, scoring, tmp_path) -> None:
    flags = {
        "adam_weight_decay": 0,
        "lr_power": 0.0,
        "lr_scheduler": "polynomial",
        "mixed_precision": False,
    }
    flags |= {"random_flip": True, "center_crop": False, "snr_gamma": None}
    flags |= {"low_vram": True, "gradient_checkpointing": False}
    cells = cells_of(with_flags(tiny_study(), flags), [subject], scoring)
    check_flags(cells)
    settings = parse_settings(training_arguments(cells[1], tmp_path, tmp_path / "run"))
    optimisation, data = settings.optimisation, settings.data
    assert (optimisation.adam_weight_decay, optimisation.lr_power) == (0, 0)
    assert settings.precision.mixed_precision == "no" and settings.loss.snr_gamma is None
    assert data.random_flip and not data.center_crop
    assert not settings.precision.gradient_checkpointing  # which --low_vram would switch on


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"learning_rte": 1e-3}, "'learning_rte' is not a setting .did you mean learning_rate"),
        ({"lr_scheduler": "cosin"}, "lr_scheduler"),
        ({"rank": 4.5}, "rank"),
        ({"seed": 3}, "a study cannot set seed: use --seeds"),
        ({"instance_data_dir": "x"}, "use --subject"),
        ({"pretrained_model_name_or_path": "x"}, "use --base"),
        ({"pictures": "all"}, "pictures must be a positive whole number, not 'all'"),
        ({"pictures": 0}, "pictures must be a positive whole number, not 0"),
    ],
)
def test_a_mistyped_flag_is_refused_before_anything_runs(subject, scoring, flags, words) -> None:
    with pytest.raises(UserError, match=words):
        check_flags(cells_of(with_flags(tiny_study(), flags), [subject], scoring))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--set", "max_train_steps=500"], "max_train_steps cannot be 500: .* make it 600"),
        (["--set", "checkpointing_steps=7"], "checkpointing_steps cannot be 7: .* make it 50"),
        (["--set", "max_train_steps=600"], None),
        (["--checkpoints", "100", "300"], None),
    ],
)
def test_steps_are_the_checkpoints_where_there_are_any(changes, words) -> None:
    chosen = program.parse_settings(["iterations", *changes]).chosen
    if not words:
        program.choose_study(chosen, True)
        return
    with pytest.raises(UserError, match=words):
        program.choose_study(chosen, True)


def test_no_axis_varies_steps_that_the_checkpoints_decide() -> None:
    arm = Arm("KronA", {}, (axis("steps", "max_train_steps", (2, 4)),))
    with pytest.raises(UserError, match="max_train_steps cannot be 2"):
        check_steps(dataclasses.replace(tiny_study(checkpoints=(4,)), arms=(arm,)), {})


def test_flags_that_training_refuses_do_not_end_the_study(subject, scoring, tmp_path) -> None:
    cell = cells_of(with_flags(tiny_study(), {"rank": 4.5}), [subject], scoring, "cpu")[1]
    assert "rank must be a whole number, not 4.5" in (work(cell, tmp_path) or "")


def test_two_points_of_one_name_are_refused() -> None:
    value = Value("(4, 64)", {"a1": 4})
    twice = Arm("KronA", {}, (Axis("factors", (value, dataclasses.replace(value, flags={}))),))
    for study, words in (
        (dataclasses.replace(tiny_study(), arms=(twice,)), "values of factors called"),
        (dataclasses.replace(tiny_study(), seeds=(1, 1)), "seeds called 1"),
        (dataclasses.replace(tiny_study(), arms=(Arm("A"), Arm("A"))), "arms called A"),
        (dataclasses.replace(tiny_study(), arms=(Arm("base"),)), "bare base"),
    ):
        with pytest.raises(UserError, match=words):
            check_names(study)


def test_a_full_disk_is_said_in_words_though_the_log_has_no_room(
    subject, scoring, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cell_run, "run_cell", full)
    monkeypatch.setattr(engines, "_add_to", full)
    cell = cells_of(tiny_study(), [subject], scoring, "cpu")[0]
    words = f"no space left on the disk holding {cell.folder(tmp_path)}: "
    assert (work(cell, tmp_path) or "").startswith(words)


def test_a_failed_cell_is_told_and_missing(subject, scoring, tmp_path) -> None:
    study = with_flags(tiny_study(), {"a1": 7})  # divides no layer
    cells = cells_of(study, [subject], scoring, "cpu")[1:2]
    error = work(cells[0], tmp_path)
    assert "a1=7" in error and finished(cells[0], tmp_path) is None
    assert "a1=7" in (cells[0].folder(tmp_path) / "log.txt").read_text()
    results = gather(study, cells, tmp_path)
    assert results.missing == [cell.title() for cell in cells] and not results.points


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_comes_back_from_a_log_on_a_full_disk(capfd, monkeypatch) -> None:
    with open(1, "w", closefd=False) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with engines._output_to(Path("/dev/full")):
            print("does not fit")
        print("after it")
    assert "after it" in capfd.readouterr().out


def test_pictures_are_drawn_on_whatever_accelerator_there_is(
    subject, scoring, tmp_path, monkeypatch
) -> None:
    def choose(name: str | None, default: torch.device) -> torch.device:
        raise UserError(f"{name} or {default}")

    there = SimpleNamespace(device=torch.device("mps"))
    monkeypatch.setattr(study_scoring, "process_state", lambda device: there)
    monkeypatch.setattr(study_scoring, "choose_device", choose)
    base = cells_of(tiny_study(), [subject], scoring)[0]
    with pytest.raises(UserError, match="None or mps"):
        study_scoring.score_point(base, tmp_path, None, None)
