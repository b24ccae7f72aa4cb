"""What a study reads back may be damaged: each file is used as it was written, made again, or
refused in one line that names it."""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chances import chances
from PIL import Image
from safetensors.torch import save_file

from diffusekrona.common.errors import UserError
from diffusekrona.study.cell import Cell, Scoring, finished
from diffusekrona.study.grid import Arm, Study, Subject, axis
from diffusekrona.study.page import markdown
from diffusekrona.study.picture_grids import grids_of
from diffusekrona.study.results import Results, gather
from diffusekrona.study.results_file import as_json, read_results

ODD = (
    *(None, True, -1, 0, 3, 0.5, 10**30, 10**400, 1e308, -1e308, float("nan"), float("inf")),
    *("", "x" * 5000, "base", "a", "0.01", "../..", "\0", "learning_rate: [", "NaN"),
    *([], [[]], [[[]]], [None], [[1.0]], [[[1e300]]], [["dog", 0]], [["dog", 0]] * 3, {}, {"a": 1}),
)
PIECES = (b"null", b"[", b"{}", b"NaN", b"\xff", b'"', b"1e999", b"", b"true", b"-", b"0", b"]")


def damaged(content: Any, chance: random.Random) -> Any:
    """Another JSON value with a few places replaced, gone, twice or in another order."""
    content = copy.deepcopy(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        node, parent, key = content, None, None
        while isinstance(node, (dict, list)) and node and chance.random() < 0.85:
            parent = node
            key = (
                chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
            )
            node = node[key]
        if parent is None:
            continue
        how = chance.randrange(5)
        if how == 0:
            del parent[key]
        elif how == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(node))
        elif how == 2 and isinstance(node, list):
            chance.shuffle(node)
        else:
            parent[key] = copy.deepcopy(chance.choice(ODD))
    return content


def with_odd_bytes(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed))
        changed[place : place + chance.randrange(4)] = chance.choice(PIECES)
    return bytes(changed[: chance.randint(1, len(changed))] if chance.random() < 0.2 else changed)


@pytest.fixture
def cells() -> list[Cell]:
    subjects = [Subject(name, f"nowhere/{name}", name) for name in ("dog", "cat", "car")]
    scoring = Scoring("base", "prompts", steps=2, clip="clip")
    places = [("base", (), None)] + [
        (arm, (rate,), {"a2": a2, "learning_rate": float(rate)})
        for arm, a2 in (("a", 16), ("b", 32))
        for rate in ("0.001", "0.01", "0.1")
    ]
    texts = ("x:{subject} in the snow", "x:a {name}")
    return [
        Cell("s", *place[:2], subject, 0, place[2], (), scoring, texts, ())
        for place in places
        for subject in subjects
    ]  # fmt: skip


@pytest.fixture
def study() -> Study:
    rates = axis("rate", "learning_rate", (1e-3, 1e-2, 1e-1))
    arms = (Arm("a", {}, (rates,)), Arm("b", {}, (rates,)))
    return Study("tiny", "Tiny", arms, seeds=(0,), spread=True)


@pytest.fixture
def root(cells: list[Cell], tmp_path: Path) -> Path:
    """The cells' folders as `run_cell` leaves them."""
    numbers = np.random.default_rng(0)
    for cell in cells:
        folder = cell.scored(tmp_path / "cells")
        (folder / "pictures").mkdir(parents=True)
        pictures = [f"pictures/{number}.png" for number in range(4)]
        for name in pictures:
            Image.new("RGB", (8, 8)).save(folder / name)
        features = torch.from_numpy(numbers.random((2, 2, 4), dtype=np.float32))
        save_file({"clip": features}, folder / "f.safetensors")
        scores = {name: numbers.random((2, 2)).tolist() for name in ("clip_i", "clip_t")}
        point = {"point": "end", "step": None, "scores": scores, "pictures": pictures}
        point |= {"diversity": numbers.random(2).tolist(), "features": "f.safetensors"}
        result = {"key": cell.key(), "scored_by": cell.scored_by(), "title": cell.title()}
        result |= {"points": [point], "cost": {"trained_parameters": 3}}
        (folder / "result.json").write_text(json.dumps(result))
    return tmp_path / "cells"


def refused(path: Path) -> str | None:
    """The error of a results file, on one line; None if its tables can be made."""
    try:
        markdown(read_results(path))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 600
        return str(error)
    return None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["results.json", "results.json.gz"])
def test_damaged_results_are_tables_or_one_line(cells, study, root, tmp_path, name) -> None:
    content = as_json(gather(study, cells, root))
    path = tmp_path / name
    outcomes = []
    for chance in chances(120):
        data = json.dumps(damaged(content, chance)).encode()
        data = gzip.compress(data, 1) if path.suffix == ".gz" else data
        if chance.random() < 0.3:
            data = with_odd_bytes(data, chance)
        path.write_bytes(data)
        outcomes.append(refused(path) is None)
    assert any(outcomes) and not all(outcomes)


@pytest.mark.parametrize("kind", ["bomb", "values", "points", "folder", "pipe", "missing"])
def test_results_that_could_fill_the_memory_or_hang(cells, study, root, tmp_path, kind) -> None:
    content = as_json(gather(study, cells, root))
    path = tmp_path / "results.json.gz"
    if kind == "bomb":
        with gzip.open(path, "wb", 1) as file:
            for _ in range(70):
                file.write(b" " * 1_000_000)
    elif kind == "values":
        path.write_bytes(gzip.compress(b'{"prompts": [' + b"[0]," * 2_000_000 + b"0]}", 1))
    elif kind == "points":
        path.write_bytes(
            gzip.compress(json.dumps({**content, "points": content["points"] * 300}).encode(), 1)
        )
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    words = {
        "bomb": "larger than 64 MiB", "values": "more than 2,000,000 values",
        "points": "points: from 1 to 2000", "folder": "not a file", "pipe": "not a file",
        "missing": "No such file",
    }[kind]  # fmt: skip
    assert words in (refused(path) or "")


def test_results_of_other_versions_are_read(cells, study, root, tmp_path) -> None:
    content = as_json(gather(study, cells, root))
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    wanted = markdown(read_results(path))
    del content["held_out"]  # of an earlier one
    content["of_a_later_one"] = [1]
    for point in content["points"]:
        point["scores"]["of_a_later_one"] = [[0.5]] * 3
        del point["relative_norms"], point["summary"]
    path.write_text(json.dumps(content))
    assert markdown(read_results(path)) == wanted


@pytest.mark.filterwarnings("error")
def test_damaged_cells_are_as_written_or_made_again(cells, study, root) -> None:
    """Each file that a cell keeps; a study whose features are damaged names them."""
    whole = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    made_again = 0
    for chance in chances(70):
        suffix = chance.choice((".json", ".json", ".safetensors", ".png"))
        changed = chance.sample([p for p in whole if p.suffix == suffix], chance.choice((1, 2)))
        for path in changed:
            odd = with_odd_bytes(whole[path], chance)
            if path.suffix == ".json" and chance.random() < 0.8:
                odd = json.dumps(damaged(json.loads(whole[path]), chance)).encode()
            path.write_bytes(odd)
        made_again += any(finished(cell, root) is None for cell in cells)
        results = gather(study, cells, root)
        assert isinstance(results, Results)
        try:
            markdown(results)
            assert json.dumps(as_json(results), allow_nan=False) and grids_of(results)
        except UserError as error:
            line = str(error)
            assert any(str(path) in line for path in changed) and "delete it" in line
        for path in changed:
            path.write_bytes(whole[path])
    assert 20 < made_again < 60
