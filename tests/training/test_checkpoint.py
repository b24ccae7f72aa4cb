"""Checkpoints: nothing in them is pickled, nothing damaged is believed, nothing foreign deleted."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from chances import chances
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffusekrona.common.errors import UserError
from diffusekrona.training import checkpoint as checkpoints
from diffusekrona.training.state_file import load_state, save_state
from diffusekrona.training.training_state import TrainingState

ALONE = SimpleNamespace(
    is_main_process=True,
    num_processes=1,
    distributed_type="NO",
    scaler=None,
    wait_for_everyone=lambda: None,
)


def same(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two or (one != one and two != two)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
leaves = plain | st.sampled_from(
    [
        torch.tensor(3.5),
        torch.arange(6, dtype=torch.uint8).view(2, 3).T,
        torch.zeros(0),
        torch.full((2,), torch.nan, dtype=torch.bfloat16).nan_to_num(1.5),
    ]
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(trees)
@settings(max_examples=60)
def test_a_state_comes_back_exactly(tmp_path_factory, tree) -> None:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    save_state(tree, path)
    assert same(load_state(path), tree)


def test_a_tensor_that_is_shared_is_stored_once(tmp_path: Path) -> None:
    book = torch.rand(1000)
    save_state({n: {"book": book} for n in range(50)}, tmp_path / "s")
    assert (tmp_path / "s").stat().st_size < 10_000


def test_a_damaged_state_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_state({0: {"step": torch.tensor(1.0), "m": torch.rand(3)}, "betas": (0.9, 1)}, path)
    whole = path.read_bytes()
    for chance in chances(200):
        path.write_bytes(mutated(whole, chance))
        try:
            load_state(path)  # a value may have changed unseen: the checkpoint's hashes find it
        except UserError as error:
            assert "\n" not in str(error)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut, doubled or put in."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(data)) if data else 0
        match chance.randrange(5):
            case 0:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del data[place:]
            case 2:
                del data[place : place + chance.randrange(1, 9)]
            case 3:
                data[place:place] = chance.choice(
                    (b"null", b"[", b"{}", b"-1", b"1e999", b"NaN", b"\xff", b'"', b"99999999999")
                )
            case 4:
                data[place:place] = data[: chance.randrange(40)]
    return bytes(data)


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(3, 2))


@pytest.fixture
def state(monkeypatch) -> TrainingState:
    return make_state(monkeypatch)


def make_state(monkeypatch: pytest.MonkeyPatch) -> TrainingState:
    """A run's parts around one parameter; its adapter file is a stand-in."""
    from diffusekrona.training import training_state

    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    model.weight.sum().backward()
    optimizer.step()
    schedule.step()

    def save(models, path, *_, **__) -> None:
        save_file({"weight": model.weight.detach()}, path)

    monkeypatch.setattr(training_state, "save_adapter", save)
    monkeypatch.setattr(training_state, "read_adapter", lambda _: None)
    monkeypatch.setattr(training_state, "put_back", lambda *_: None)
    stepped = SimpleNamespace(
        optimizer=optimizer,
        param_groups=optimizer.param_groups,
        state_dict=optimizer.state_dict,
        load_state_dict=optimizer.load_state_dict,
    )
    return TrainingState({"unet": model}, stepped, schedule, None, {})


@pytest.fixture
def saved(state, tmp_path: Path) -> Path:
    folder = checkpoints.save_checkpoint(ALONE, tmp_path, 1, {"seed": 0}, None, state)
    assert folder is not None and checkpoints.what_is_wrong(folder) is None
    return folder


def test_no_damage_is_believed(saved: Path) -> None:
    """Whatever is damaged in state.json or beside it, the checkpoint is refused in one line."""
    for chance in chances(300):
        name = chance.choice(
            ("state.json", "state.json", "adapter.safetensors", "training_state.safetensors")
        )
        content = (saved / name).read_bytes()
        damaged = mutated(content, chance)
        if damaged == content:
            continue
        (saved / name).write_bytes(damaged)
        wrong = checkpoints.what_is_wrong(saved)
        if wrong is None:  # such as one more space
            assert json.loads(damaged) == json.loads(content)
        else:
            assert "\n" not in wrong
            assert checkpoints.find_checkpoint(saved.parent, "latest") is None
            with pytest.raises(UserError):
                checkpoints.find_checkpoint(saved.parent, "checkpoint-1")
        (saved / name).write_bytes(content)
        assert checkpoints.what_is_wrong(saved) is None


def test_a_checkpoint_that_was_renamed_is_refused(saved: Path) -> None:
    other = saved.rename(saved.with_name("checkpoint-7"))
    assert checkpoints.what_is_wrong(other) == "its state.json is of step 1"
    assert checkpoints.what_is_wrong(other.rename(saved.with_name("best"))) is None


def test_the_state_is_put_back_exactly_and_the_schedule_is_this_runs(saved: Path, state) -> None:
    before = state.optimizer.state_dict()
    moments = {k: v.clone() for k, v in before["state"][0].items()}
    for value in before["state"][0].values():
        value.fill_(0)
    state.optimizer.param_groups[0]["lr"] = 7.0
    state.lr_scheduler.last_epoch = 40
    state.lr_scheduler.lr_lambdas = [lambda step: 10.0 * step]  # lengthened, say
    checkpoints.load_checkpoint(ALONE, saved, state)
    assert same(state.optimizer.state_dict()["state"][0], moments)
    assert state.lr_scheduler.last_epoch == 1
    assert (
        state.optimizer.optimizer.param_groups[0]["lr"]
        == 5.0
        == state.lr_scheduler.get_last_lr()[0]
    )


def rewritten(checkpoint: Path, content: object) -> None:
    """Replace the state of a checkpoint as somebody would who knows how its hashes are made."""
    record = checkpoints.read_json(checkpoint / "state.json", checkpoints.Record)
    name = "training_state.safetensors"
    save_state(content, checkpoint / name)
    record.files[name] = checkpoints._fingerprint(checkpoint / name)
    record.digest = record.own_digest()
    (checkpoint / "state.json").write_text(json.dumps(vars(record)))


def damage_of(content: dict, chance: random.Random) -> None:
    """Change one value somewhere in a nested state."""
    node = content
    while True:
        key = chance.choice(list(node))
        inner = node[key]
        if isinstance(inner, dict) and inner and chance.random() < 0.8:
            node = inner
            continue
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            node = inner[0]
            continue
        odd = (None, {}, [], "x", -3, 10**30, torch.rand(5), torch.tensor(2), float("nan"))
        node[key] = chance.choice(odd)
        if chance.random() < 0.3:
            del node[key]
        return


def test_a_forged_state_is_refused_or_trains_on(saved: Path, monkeypatch) -> None:
    whole = shutil.copy(saved / "training_state.safetensors", saved.parent / "whole")
    for chance in chances(200):
        state, content = make_state(monkeypatch), load_state(whole)
        damage_of(content, chance)
        rewritten(saved, content)
        try:
            checkpoints.load_checkpoint(ALONE, saved, state)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        state.models["unet"].weight.grad = torch.ones(3, 2)
        state.optimizer.optimizer.step()


class Hostile:
    """Whatever unpickles this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


HOSTILE = {
    "optimizer.bin": lambda bad, path: torch.save({"state": bad}, path),
    "scheduler.bin": lambda bad, path: torch.save(bad, path),
    "random_states_0.pkl": lambda bad, path: torch.save({"random_state": bad}, path),
    "custom_checkpoint_0.pkl": lambda bad, path: path.write_bytes(pickle.dumps(bad)),
    "scaler.pt": lambda bad, path: torch.save([bad], path, _use_new_zipfile_serialization=False),
    "training_state.safetensors": lambda bad, path: torch.save(bad, path),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("old", [True, False], ids=["pickled", "ours"])
def test_no_code_runs_from_a_checkpoint(name: str, old: bool, saved: Path, state) -> None:
    ran = saved.parent / "ran"
    if old:
        (saved / "training_state.safetensors").unlink()
    HOSTILE[name](Hostile(ran), saved / name)
    record = checkpoints.read_json(saved / "state.json", checkpoints.Record)
    record.files = {
        path.name: checkpoints._fingerprint(path)
        for path in saved.iterdir()
        if path.name != "state.json"
    }
    record.digest = record.own_digest()
    (saved / "state.json").write_text(json.dumps(vars(record)))
    for wanted in ("latest", str(saved)):
        try:
            found = checkpoints.find_checkpoint(saved.parent, wanted)
            if found is not None:
                checkpoints.load_checkpoint(ALONE, found, state)
        except UserError as error:
            assert "\n" not in str(error)
    assert not ran.exists()


def test_a_pickled_checkpoint_is_refused_in_one_line(saved: Path) -> None:
    (saved / "training_state.safetensors").rename(saved / "optimizer.bin")
    with pytest.raises(UserError, match="older version, whose state is pickled"):
        checkpoints.find_checkpoint(saved.parent, "latest")


@pytest.mark.parametrize(
    "name", ["a\0b", "", ".", "../mine.txt", "/etc/hostname", "x" * 5000, "sub"]
)
def test_a_record_names_files_of_its_own_alone(name: str, saved: Path) -> None:
    (saved.parent / "mine.txt").write_text("mine")
    (saved / "sub").mkdir()
    (saved / "sub" / "mine.txt").write_text("mine")
    record = checkpoints.read_json(saved / "state.json", checkpoints.Record)
    record.files[name] = (4, "0" * 64)
    record.digest = record.own_digest()
    (saved / "state.json").write_text(json.dumps(vars(record)))
    assert checkpoints.what_is_wrong(saved).endswith("is missing")
    checkpoints.remove_checkpoint(saved)
    assert (saved.parent / "mine.txt").exists() and (saved / "sub" / "mine.txt").exists()


def test_what_is_not_ours_is_neither_deleted_nor_replaced(saved: Path, state) -> None:
    out = saved.parent
    best = out / "checkpoint-best"
    shutil.copytree(saved, best)
    for name in ("checkpoint-2", "checkpoint-0"):  # of another program
        (out / name).mkdir()
        (out / name / "mine.bin").write_text("mine")
    (saved / "notes.txt").write_text("mine")
    assert checkpoints.checkpoints_in(out) == [saved]
    assert checkpoints.save_checkpoint(ALONE, out, 2, {}, 1, state) == out / "checkpoint-2"
    assert checkpoints.checkpoints_in(out) == [out / "checkpoint-2"]
    assert (out / "checkpoint-2.set-aside" / "mine.bin").exists()
    assert (out / "checkpoint-0" / "mine.bin").exists() and (best / "state.json").exists()
    assert [path.name for path in saved.iterdir()] == ["notes.txt"]


def test_state_json_of_another_program_makes_no_checkpoint_of_ours(tmp_path: Path) -> None:
    for step, text in ((7, "mine"), (8, '{"step": 8, "optimizer": "sgd"}')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "state.json").write_text(text)
        (tmp_path / f"checkpoint-{step}" / "adapter.safetensors").write_text("mine")
    assert checkpoints.checkpoints_in(tmp_path) == []
    (tmp_path / "checkpoint-7" / "training_state.safetensors").write_text("")  # ours, damaged
    assert checkpoints.checkpoints_in(tmp_path) == [tmp_path / "checkpoint-7"]


def test_going_on_from_an_older_checkpoint_leaves_the_newer_ones(saved: Path, state) -> None:
    out = saved.parent
    for step in (2, 3):
        checkpoints.save_checkpoint(ALONE, out, step, {}, None, state)
    (out / "run.json").write_text("{}")
    checkpoints.leave_branch(out, out / "checkpoint-1")
    assert checkpoints.find_checkpoint(out, "latest") == saved  # were it killed now
    aside = {p.name for p in out.iterdir() if "set-aside" in p.name}
    assert aside == {f"{n}.set-aside" for n in ("checkpoint-2", "checkpoint-3", "run.json")}
    assert checkpoints.what_is_wrong(out / "checkpoint-3.set-aside") is None


def test_what_a_killed_run_left_is_cleaned(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-5.partial").mkdir()
    (tmp_path / ".checkpoint-mine.partial").mkdir()
    checkpoints.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".checkpoint-mine.partial"]


def test_a_resumed_8_bit_optimizer_goes_on_exactly(state, tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def begin() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.rand(5000))
        small = torch.nn.Parameter(torch.rand(100))  # has a state of 32 bits
        return weight, bitsandbytes.optim.AdamW8bit([weight, small], lr=1e-2)

    def step(weight, optimizer, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for each in optimizer.param_groups[0]["params"]:
            each.grad = torch.rand(each.shape, generator=generator)
        optimizer.step()

    def put_into(state, optimizer) -> None:
        state.optimizer.optimizer = optimizer
        for name in ("param_groups", "state_dict", "load_state_dict"):
            setattr(state.optimizer, name, getattr(optimizer, name))

    weight, optimizer = begin()
    step(weight, optimizer, 1)
    put_into(state, optimizer)
    folder = checkpoints.save_checkpoint(ALONE, tmp_path, 1, {}, None, state)
    there = weight.detach().clone()
    step(weight, optimizer, 2)
    resumed, fresh = begin()
    resumed.data.copy_(there)
    put_into(state, fresh)
    checkpoints.load_checkpoint(ALONE, folder, state)
    step(resumed, fresh, 2)
    assert fresh.state[resumed]["state1"].dtype == torch.uint8
    assert torch.equal(resumed, weight)


@pytest.mark.parametrize("main", [True, False])
def test_all_processes_hear_of_a_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch, main: bool
) -> None:
    answers = []

    def reduce(failures: torch.Tensor, reduction: str) -> torch.Tensor:
        answers.append(float(failures))
        return torch.tensor(1.0)  # the main one failed

    process = SimpleNamespace(
        **vars(ALONE) | {"is_main_process": main, "num_processes": 2}, device="cpu", reduce=reduce
    )
    (tmp_path / "out").write_text("a file in its place")
    monkeypatch.setattr(checkpoints, "save_training_state", lambda *_: pytest.fail("it waits"))
    saved = checkpoints.save_checkpoint(process, tmp_path / "out", 1, {}, None, None)
    assert saved is None and answers == [float(main)]
