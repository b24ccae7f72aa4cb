"""Pictures drawn by the page, their commands and recipes."""

from __future__ import annotations

import dataclasses
import shlex
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from diffusekrona import inference
from diffusekrona.adapters.file import read_adapter, save_adapter, write_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.common.settings import build, check_limits, flat
from diffusekrona.krona import KronAConfig
from diffusekrona.sampling.grids import read_recipe
from diffusekrona.sampling.settings import InferenceSettings, parse_settings
from diffusekrona.ui import drawing, live
from diffusekrona.ui.places import Workspace


@pytest.fixture
def workspace(tmp_path: Path, tiny_sd1: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """With a run of two checkpoints on a tiny base."""
    unet = UNet2DConditionModel.from_pretrained(tiny_sd1 / "unet")
    unet.add_adapter(KronAConfig(a1=4, a2=16))
    for number, folder in enumerate(("checkpoint-2", "checkpoint-10", ".")):
        tiny_models.random_factors(unet, seed=number)
        path = tmp_path / "outputs/dog/run" / folder / "adapter.safetensors"
        save_adapter(unet, path, metadata={"base_model": str(tiny_sd1)})
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path)


RUN = "outputs/dog/run/adapter.safetensors"


def values(base: Path, **more: object) -> dict:
    return {
        "pretrained_model_name_or_path": str(base),
        "adapter": (f"{RUN}:1",),
        "prompt": ("a dog", "a 'cat'"),
        "num_inference_steps": 2,
        "seeds": (3,),
        **more,
    }


def test_a_comparison_has_a_column_per_checkpoint_and_weight(
    workspace: Workspace, tiny_sd1: Path
) -> None:
    settings = drawing.settings_from(workspace, values(tiny_sd1))
    columns = drawing.variants(
        workspace, settings, base_too=True, weights=[0.5, 1], checkpoints=True
    )
    assert [column.label for column in columns] == [
        "the base", "checkpoint-2 × 0.5", "checkpoint-2 × 1", "checkpoint-10 × 0.5",
        "checkpoint-10 × 1", "run × 0.5", "run × 1",
    ]  # fmt: skip


def test_commands_give_the_same_settings(workspace: Workspace, tiny_sd1: Path) -> None:
    more = {"negative_prompt": "--x", "projections": ("k=0", "q=0"), "seeds": (1, 2)}
    settings = drawing.settings_from(workspace, values(tiny_sd1, **more))
    words = shlex.split(drawing.command_of(settings))
    assert words[:2] == ["diffusekrona", "draw"]
    assert flat(parse_settings(words[2:])) == flat(settings)
    assert isinstance(settings, InferenceSettings)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that are loaded."""
    live.forget()
    load, bases = live._load, []
    monkeypatch.setattr(live, "_load", lambda *key: bases.append(key[0]) or load(*key))
    return bases


def test_a_base_is_freed_before_the_next_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    live.forget()

    class Base:
        pass

    made: list[weakref.ref] = []

    def load(*_: object) -> Base:
        assert all(base() is None for base in made)
        base = Base()
        made.append(weakref.ref(base))
        return base

    monkeypatch.setattr(live, "_load", load)
    for name in ("one", "one", "two"):
        live.loaded(name, (), (), ())
    assert len(made) == 2
    live.forget()


def test_weights_change_without_loading_and_recipes_come_back(
    workspace: Workspace, tiny_sd1: Path, loads: list[str]
) -> None:
    pictures = {}
    for weight in (1, 0.5, 1):
        given = values(tiny_sd1, adapter=(f"{RUN}:{weight}",), prompt=("a dog",))
        (path,) = drawing.draw(drawing.settings_from(workspace, given))
        pictures.setdefault(weight, []).append(path)
    assert len(loads) == 1
    first, again = (path.read_bytes() for path in pictures[1])
    assert first == again != pictures[0.5][0].read_bytes()
    recipe = read_recipe(pictures[1][0])
    assert recipe is not None
    found, adapters, missing = drawing.values_of_recipe(workspace, recipe)
    assert adapters == [(RUN, 1.0)] and missing == []
    assert found["prompt"] == ("a dog",) and found["seeds"] == (3,)
    assert found["num_inference_steps"] == 2 and "scheduler" not in found
    Path(RUN).unlink()
    assert drawing.values_of_recipe(workspace, recipe)[2] != []


def test_an_adapter_that_is_deleted_while_the_base_is_loaded(tmp_path: Path) -> None:
    one = SimpleNamespace(path=tmp_path / "adapter.safetensors")
    with pytest.raises(UserError, match=r"adapter.safetensors cannot be read: No such file"):
        drawing._files([one])


def test_a_base_in_one_file(
    one_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read with the configs that the adapter was trained with."""
    monkeypatch.chdir(tmp_path)
    values = {"adapter": ("outputs/zero.safetensors:1",), "prompt": ("a dog",)}
    values |= {"num_inference_steps": 1, "seeds": (3,)}
    (picture,) = drawing.draw(drawing.settings_from(Workspace(tmp_path), values))
    assert (read_recipe(picture) or {})["base"] == str(one_file)


def test_adapters_are_swapped_on_one_base(
    workspace: Workspace, tiny_sd1: Path, loads: list[str]
) -> None:
    """Each checkpoint's picture is that of a base loaded for it alone; one that fails does no
    harm."""
    names = ["outputs/dog/run/checkpoint-2/adapter.safetensors", RUN]
    given = [values(tiny_sd1, adapter=(f"{name}:1",), prompt=("a dog",)) for name in names]

    def drawn(number: int) -> bytes:
        (path,) = drawing.draw(drawing.settings_from(workspace, given[number]))
        return path.read_bytes()

    alone = []
    for number in range(2):
        live.forget()
        alone.append(drawn(number))
    live.forget()
    loads.clear()
    drawn(0), drawn(0)  # merged the second time
    assert drawn(1) == alone[1] != alone[0] == drawn(0)
    adapter = read_adapter(Path(names[0]))
    layer = next(iter(adapter.tensors)).rpartition(".")[0]
    other = {k.replace(layer, f"{layer}_none"): v for k, v in adapter.tensors.items()}
    write_adapter(dataclasses.replace(adapter, tensors=other), Path("outputs/wrong.safetensors"))
    wrong = values(tiny_sd1, adapter=("outputs/wrong.safetensors:1",))
    with pytest.raises(UserError):
        drawing.draw(drawing.settings_from(workspace, wrong))
    assert drawn(1) == alone[1]
    assert len(loads) == 1


def test_adapters_that_are_left_alone_are_merged(
    workspace: Workspace, tiny_sd1: Path, loads: list[str]
) -> None:
    """The picture is the same but for rounding; a moved weight brings the live one back."""
    pixels, merged = [], []
    for weight in (1, 0, 1, 1, 0.5, 1):
        given = values(tiny_sd1, adapter=(f"{RUN}:{weight}",), prompt=("a dog",))
        (path,) = drawing.draw(drawing.settings_from(workspace, given))
        merged.append((read_recipe(path) or {})["merged"])
        with Image.open(path) as image:
            pixels.append(np.asarray(image, dtype=int))
    assert merged == [False, False, True, True, False, False]
    assert np.abs(pixels[2] - pixels[0]).max() <= 1
    assert (pixels[3] == pixels[2]).all() and (pixels[5] == pixels[0]).all()
    given = values(tiny_sd1, prompt=("a dog",), output_dir=Path("shell"))
    command = drawing.command_of(check_limits(build(InferenceSettings, given)))
    inference.main(shlex.split(command)[2:])  # which merges
    (path,) = Path("shell").glob("*seed3.png")
    with Image.open(path) as image:
        assert (np.asarray(image) == pixels[2]).all()
    assert np.abs(pixels[1] - pixels[0]).max() > 1 < np.abs(pixels[4] - pixels[0]).max()
    assert len(loads) == 1


def test_precision_is_the_forms(workspace: Workspace, tiny_sd1: Path) -> None:
    given = values(tiny_sd1, prompt=("a dog",), mixed_precision="bf16")
    (path,) = drawing.draw(drawing.settings_from(workspace, given))
    assert (read_recipe(path) or {})["dtype"] == "bfloat16"


def test_adapters_elsewhere_are_refused(workspace: Workspace, tiny_sd1: Path) -> None:
    for name in ("/etc/hostname", "../x.safetensors", "data/x.safetensors"):
        with pytest.raises(UserError):
            drawing.settings_from(workspace, values(tiny_sd1, adapter=(f"{name}:1",)))
        with pytest.raises(UserError):
            drawing.usable(workspace, name)


def test_foreign_adapters_are_converted_once(workspace: Workspace) -> None:
    from safetensors.torch import save_file

    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 64)}
    tensors[f"{layer}.lora_B.weight"] = torch.ones(64, 2)
    save_file(tensors, workspace.outputs / "foreign.safetensors")
    name = drawing.usable(workspace, "outputs/foreign.safetensors")
    assert name.startswith("outputs/converted/") and read_adapter(name).method.name == "lora"
    assert drawing.usable(workspace, name) == name
    assert drawing.usable(workspace, RUN) == RUN


def test_a_drawing_that_is_stopped_ends_at_its_step(workspace: Workspace, tiny_sd1: Path) -> None:
    """No picture is left, and the next one is drawn with its adapters."""
    before = values(tiny_sd1, prompt=("a dog",))
    drawn = drawing.draw(drawing.settings_from(workspace, before))[0]
    late = values(tiny_sd1, prompt=("a dog",), num_inference_steps=900, adapter_steps="0.9-1")
    with ThreadPoolExecutor() as threads:
        long = threads.submit(drawing.draw, drawing.settings_from(workspace, late))
        while not long.done() and not drawing._stops:
            time.sleep(0.01)
        drawing.stop()
        with pytest.raises(drawing.Stopped):
            long.result(timeout=60)
    assert not drawing._stops
    again = drawing.draw(drawing.settings_from(workspace, before))[0]
    assert np.array_equal(Image.open(drawn), Image.open(again))
    assert len(list((workspace.root / drawing.PICTURES).glob("*.png"))) == 2
