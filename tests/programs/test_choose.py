"""`diffusekrona choose` on a tiny run: what it draws, keeps, writes, and how it agrees with
`evaluate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState
from PIL import Image
from processes import run_two
from tiny_scorers import save_clip, save_dino

from diffusekrona import choose, evaluate, train_dreambooth
from diffusekrona.adapters.mixing import read_weighted
from diffusekrona.choose import write_best
from diffusekrona.common.errors import UserError
from diffusekrona.evaluation.candidates import CandidateScores
from diffusekrona.evaluation.choice_report import Row
from diffusekrona.evaluation.settings import parse_settings
from diffusekrona.training.choosing import coarse_to_fine
from diffusekrona.training.finished_run import find_checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_sd1) -> tuple[Path, list[str]]:
    """A run with checkpoints at 2 and 4 of 4 steps, one picture of four held out; flags to choose
    with."""
    folder = tmp_path_factory.mktemp("choose")
    (folder / "photos").mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        noise = random.integers(0, 255, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "photos" / f"{number}.png")
    (folder / "prompts.txt").write_text("{subject} in the snow\na red {name}\n")
    flags = [
        "--pretrained_model_name_or_path", str(tiny_sd1), "--instance_data_dir",
        str(folder / "photos"), "--instance_prompt", "a sks dog", "--output_dir",
        str(folder / "run"), "--a2", "16", "--max_train_steps", "4", "--checkpointing_steps", "2",
        "--learning_rate", "1e-2", "--report_to", "none", "--cpu", "--holdout", "1",
    ]  # fmt: skip
    assert train_dreambooth.main(flags) == 0
    scorers = save_clip(folder / "clip"), save_dino(folder / "dino")
    return folder / "run", [
        "--prompts", str(folder / "prompts.txt"), "--seeds", "0", "7", "--num_inference_steps", "2",
        "--weights", "1", "0.5", "--clip", str(scorers[0]), "--dino", str(scorers[1]),
    ]  # fmt: skip


def test_a_run_is_chosen_from_and_goes_on_where_it_stopped(trained, capsys, caplog) -> None:
    run, flags = trained
    caplog.set_level("INFO", "diffusekrona")
    choose.main([str(run), *flags, "--budget", "0s"])
    assert "budget left out 3 of 4" in capsys.readouterr().out
    caplog.clear()
    choose.main([str(run), *flags])
    drawn = [r.getMessage() for r in caplog.records if "pictures drawn" in r.getMessage()]
    assert drawn == [
        "base: 0 pictures drawn, 6 kept",
        "base with the identifier: 0 pictures drawn, 6 kept",
        "step 4 at 1: 0 pictures drawn, 6 kept",  # the last comes first
        "step 2 at 1: 6 pictures drawn, 0 kept",
        "step 4 at 0.5: 6 pictures drawn, 0 kept",
        "step 2 at 0.5: 6 pictures drawn, 0 kept",
    ]
    found = json.loads((run / "choice.json").read_text())
    names = ["step 2 at 1", "step 2 at 0.5", "step 4 at 1", "step 4 at 0.5"]
    assert [c["name"] for c in found["candidates"]] == names
    assert (found["subject"], found["class_word"]) == ("sks dog", "dog")
    assert (len(found["training"]), len(found["held_out"])) == (3, 1)
    chosen = [c["name"] for c in found["candidates"] if c["chosen"]]
    assert chosen == ([found["chosen"]["name"]] if found["chosen"] else [])
    assert (run / "best.safetensors").is_file() == bool(found["best_file"])
    assert all((run / p).is_file() for c in found["candidates"] for r in c["pictures"] for p in r)
    page = (run / "choice" / "index.html").read_text()
    assert "http" not in page and "<script" not in page and all(f">{n}<" in page for n in names)
    assert page.count("<img") >= 8 + 2 and "Validation loss" in page
    assert not chosen or "Nearest to a training picture" in page
    once = (run / "choice.json").read_bytes()
    choose.main([str(run), *flags])
    assert (run / "choice.json").read_bytes() == once


def test_scores_are_those_of_evaluate(trained, tmp_path) -> None:
    """On the same pictures, and on pictures that `evaluate` draws itself."""
    run, flags = trained
    choose.main([str(run), *flags])
    found = json.loads((run / "choice.json").read_text())
    (tmp_path / "held").mkdir()
    for name in found["held_out"]:
        photo = run.parent / "photos" / name
        (tmp_path / "held" / name).write_bytes(photo.read_bytes())
    place = flags.index("--weights")
    same = [*flags[:place], *flags[place + 3 :]]
    evaluation = evaluate.evaluate(
        parse_settings([
            *same, "--adapter", f"{run / 'checkpoint-2'}:0.5", "--class_word", "dog",
            "--subject_dir", str(tmp_path / "held"), "--output_dir", str(tmp_path / "out"),
        ]),
        PartialState(cpu=True),
    )  # fmt: skip
    theirs = evaluation.rows[0].scores
    ours = next(c for c in found["candidates"] if c["name"] == "step 2 at 0.5")
    for metric in ("clip_i", "dino", "clip_t"):
        mean = theirs.pictures[metric].mean()
        assert ours["scores"][metric]["mean"] == pytest.approx(mean, abs=1e-6)
    assert ours["scores"]["diversity"]["mean"] == pytest.approx(theirs.diversity.mean(), abs=1e-6)


def test_the_chosen_adapter_is_drawn_at_its_weight(trained, tmp_path) -> None:
    run, _ = trained
    scores = CandidateScores({}, [], None, [], [])
    file = run / "checkpoint-2" / "adapter.safetensors"
    best = write_best(run, Row("step 2 at 0.5", 2, 0.5, file, scores, []))
    assert best == run / "best.safetensors"
    assert read_weighted(str(best)).weight == 0.5
    assert read_weighted(f"{best}:0.9").weight == 0.9
    assert read_weighted(str(file)).weight == 1
    assert read_weighted(str(best)).adapter.metadata["chosen_from"].startswith("checkpoint-2/")
    assert write_best(run, None) is None and not best.exists()


def test_candidates_are_the_whole_checkpoints(trained, tmp_path) -> None:
    run, _ = trained
    assert list(find_checkpoints(run, None)) == [2, 4]
    assert find_checkpoints(run, None)[4] == run / "adapter.safetensors"
    assert list(find_checkpoints(run, 3)) == [4]
    with pytest.raises(UserError, match="no checkpoint and no adapter"):
        find_checkpoints(tmp_path, None)


def test_a_budget_sees_the_whole_run_early() -> None:
    assert list(coarse_to_fine(9))[:4] == [8, 4, 2, 6]
    for count in range(12):
        assert sorted(coarse_to_fine(count)) == list(range(count))


def test_requests_that_cannot_be_met(trained, tmp_path) -> None:
    run, flags = trained
    for more, words in (
        (["--seeds", "1", "1"], "different"),
        (["--weights", "1", "1"], "different"),
        (["--budget", "soon"], "--budget soon"),
        (["--subject_dir", str(tmp_path / "gone")], "gone"),
    ):
        with pytest.raises(UserError, match=words):
            choose.main([str(run), *flags, *more])


def test_two_processes_choose_what_one_chooses(trained, tmp_path) -> None:
    """Each draws its share, the main one scores, and its clock counts for both."""
    run, flags = trained
    more = ["--device", "cpu", "--batch_size", "2", "--weights", "1", "--budget", "1h"]
    found: list[dict] = []
    for processes in (1, 2):
        copy = tmp_path / str(processes)
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("choice*", "best*"))
        arguments = [str(copy), *flags, *more]
        if processes == 1:
            choose.main(arguments)
        else:
            said = tmp_path / "said"
            run_two("diffusekrona.choose", *arguments, said=said, CUDA_VISIBLE_DEVICES="")
        one = json.loads((copy / "choice.json").read_text())
        pictures = [path for c in one["candidates"] for row in c["pictures"] for path in row]
        one["drawn"] = [Image.open(copy / path).tobytes() for path in pictures]
        found.append(one)
    for name in ("candidates", "chosen", "drawn"):
        assert found[0][name] == found[1][name], name
