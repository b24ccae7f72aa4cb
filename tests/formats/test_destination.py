"""A conversion never writes onto its sources, and replaces only what it wrote itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import peers
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from diffusekrona import KronAConfig, save_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.common.tensor_files import read_metadata
from diffusekrona.formats.conversion import convert


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    unet = peers.plain_unet()
    unet.add_adapter(KronAConfig(a1=4, a2=8, target_modules=["to_q"]))
    tiny_models.random_factors(unet)
    return save_adapter(unet, tmp_path / "run" / "adapter.safetensors")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["base", "base/unet", "base/new", ".", "link", "base/unet/x.st"])
def test_a_base_is_never_replaced(tmp_path: Path, adapter, tiny_sd1, name, overwrite) -> None:
    shutil.copytree(tiny_sd1, tmp_path / "all" / "base")
    (tmp_path / "all" / "link").symlink_to(tmp_path / "all" / "base")
    before = snapshot(tmp_path / "all")
    name = name.replace(".st", ".safetensors")
    with pytest.raises(UserError, match=r"source"):
        convert(
            adapter, tmp_path / "all" / name, "merged", base=tmp_path / "all" / "base",
            overwrite=overwrite,
        )  # fmt: skip
    assert snapshot(tmp_path / "all") == before


def test_a_base_through_links_is_never_replaced(tmp_path: Path, adapter, tiny_sd1) -> None:
    shutil.copytree(tiny_sd1, tmp_path / "real")
    (tmp_path / "base").mkdir()
    for part in (tmp_path / "real").iterdir():
        (tmp_path / "base" / part.name).symlink_to(part)
    with pytest.raises(UserError, match="holds the source"):
        convert(adapter, tmp_path / "real", "merged", base=tmp_path / "base", overwrite=True)


def test_a_base_file_is_never_replaced(tmp_path: Path, adapter, tiny_sd1) -> None:
    convert(adapter, tmp_path / "one.safetensors", "merged", base=tiny_sd1)
    os.link(tmp_path / "one.safetensors", tmp_path / "hard.safetensors")
    for name in ("one", "hard"):
        with pytest.raises(UserError, match="source itself"):
            convert(
                adapter, tmp_path / f"{name}.safetensors", "merged",
                base=tmp_path / "one.safetensors", overwrite=True,
            )  # fmt: skip


def test_a_peft_source_is_never_replaced(tmp_path: Path, adapter) -> None:
    convert(adapter, tmp_path / "folder", "peft")
    for name in ("folder", "folder/adapter_model.safetensors"):
        target = "lora" if "." in name else "peft-lora"
        with pytest.raises(UserError, match="source"):
            convert(tmp_path / "folder", tmp_path / name, target, overwrite=True)


def test_only_what_convert_wrote_is_replaced(tmp_path: Path, adapter, tiny_sd1) -> None:
    shutil.copytree(tiny_sd1, tmp_path / "theirs")
    before = snapshot(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"not written by convert.*--overwrite"):
        convert(adapter, tmp_path / "theirs", "merged", base=tiny_sd1)
    assert snapshot(tmp_path / "theirs") == before
    convert(adapter, tmp_path / "theirs", "merged", base=tiny_sd1, overwrite=True)
    convert(adapter, tmp_path / "theirs", "merged", base=tiny_sd1)  # now it is ours
    (tmp_path / "theirs" / "unet" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"has other contents \(unet/thesis.tex\)"):
            convert(adapter, tmp_path / "theirs", "merged", base=tiny_sd1, overwrite=overwrite)
    assert (tmp_path / "theirs" / "unet" / "thesis.tex").read_text() == "years of work"


def test_weights_that_no_adapter_changes_are_copied_and_replaced_unless_exchanged(
    tmp_path: Path, adapter, tiny_sd1
) -> None:
    base, model = tmp_path / "base", tmp_path / "model"
    shutil.copytree(tiny_sd1, base)
    (base / "safety_checker").mkdir()
    weights = {"a": torch.randn(3, 2, dtype=torch.float16), "ids": torch.arange(3)}
    save_file(weights, base / "safety_checker" / "model.safetensors", {"format": "pt", "by": "x"})
    for _ in range(2):
        convert(adapter, model, "merged", base=base)
    copied = model / "safety_checker" / "model.safetensors"
    assert read_metadata(copied).items() >= {"format": "pt", "by": "x"}.items()
    for key, tensor in load_file(copied).items():
        assert torch.equal(tensor, weights[key]) and tensor.dtype == weights[key].dtype
    save_file({"a": torch.zeros(3, 2)}, copied)  # by its owner
    with pytest.raises(UserError, match="not written by convert"):
        convert(adapter, model, "merged", base=base)


def test_an_edited_model_is_kept(tmp_path: Path, adapter, tiny_sd1) -> None:
    """Its configs are its owner's; equal ones are replaced."""
    for _ in range(2):
        convert(adapter, tmp_path / "model", "merged", base=tiny_sd1)
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("{", '{"edited": true,', 1))
    with pytest.raises(UserError, match=r"scheduler_config\.json differs from the base's"):
        convert(adapter, tmp_path / "model", "merged", base=tiny_sd1)
    assert "edited" in config.read_text()
    convert(adapter, tmp_path / "model", "merged", base=tiny_sd1, overwrite=True)
    assert "edited" not in config.read_text()


@pytest.mark.parametrize("target", ["krona", "lokr", "lora", "lora-kohya", "merged"])
def test_files_of_others_are_kept(tmp_path: Path, adapter, tiny_sd1, target) -> None:
    base = tiny_sd1 if target == "merged" else None
    theirs = tmp_path / "theirs.safetensors"
    shutil.copy(adapter, theirs)  # a trained adapter is not a conversion either
    before = theirs.read_bytes()
    with pytest.raises(UserError, match="not written by convert"):
        convert(adapter, theirs, target, base=base)
    assert theirs.read_bytes() == before
    convert(adapter, theirs, target, base=base, overwrite=True)
    convert(adapter, theirs, target, base=base)
    save_file(load_file(theirs), theirs)  # another program has written it since
    with pytest.raises(UserError, match="not written by convert"):
        convert(adapter, theirs, target, base=base)


KILLED = """
import os, signal, sys
from diffusekrona.formats.conversion import convert

real, calls = os.replace, []

def counted(*args):
    calls.append(args)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*args)

os.replace = counted
convert(sys.argv[1], sys.argv[2], "merged", base=sys.argv[3])
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_between_the_renames(tmp_path: Path, adapter, tiny_sd1) -> None:
    model = tmp_path / "out" / "model"
    convert(adapter, model, "merged", base=tiny_sd1)
    before = snapshot(model)
    arguments = [str(adapter), str(model), str(tiny_sd1)]
    run = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert run.returncode == -signal.SIGKILL and not model.exists()
    # The model can be read again at once, and its folder holds nothing else.
    convert(adapter, tmp_path / "next", "merged", base=model)
    assert snapshot(tmp_path / "out" / "model") == before
    assert os.listdir(tmp_path / "out") == ["model"]
