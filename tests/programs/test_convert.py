"""The program: flags, what it reports, and that a refusal writes nothing."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusekrona import KronAConfig, load_adapter, save_adapter
from diffusekrona.adapters.file import read_adapter, write_adapter
from diffusekrona.common.errors import UserError, exit_on_user_error
from diffusekrona.common.weights import split_weight
from diffusekrona.convert import main
from diffusekrona.formats.conversion import convert
from diffusekrona.formats.recognise import READERS
from diffusekrona.formats.targets import SOURCES, TARGETS


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    unet = tiny_models.unet("sd1")
    unet.add_adapter(KronAConfig(a1=4, a2=16, scale=0.5))
    tiny_models.random_factors(unet)
    return save_adapter(unet, tmp_path / "run" / "adapter.safetensors")


def test_every_source_has_a_reader() -> None:
    assert (*READERS, "full") == SOURCES


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, diffusekrona.convert as c\n"
        "try: c.main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for target in TARGETS:
        assert target in run.stdout


def test_what_it_tells(adapter: Path, tmp_path: Path, capsys) -> None:
    assert main([str(adapter.parent), str(tmp_path / "dog.safetensors"), "--to", "lokr"]) == 0
    read, wrote, exact = capsys.readouterr().out.splitlines()
    assert "DiffuseKronA adapter (krona), sd1: 32 layers" in read and "MB" in read
    assert "lokr" in wrote and "dog.safetensors" in wrote and "MB" in wrote
    assert "largest absolute difference of delta W" in exact
    main([str(adapter), str(tmp_path / "l.safetensors"), "--to", "lora", "--rank", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("error") for line in lines) == 32


def test_weights_and_mixing(adapter: Path, tmp_path: Path, capsys) -> None:
    flags = ["--to", "krona", "--adapter", f"{adapter}:0.5", "--adapter", str(adapter)]
    main([f"{adapter}:-2", str(tmp_path / "m.safetensors"), *flags])
    assert "mix of -2 × " in capsys.readouterr().out
    mixed, plain = tiny_models.unet("sd1"), tiny_models.unet("sd1")
    load_adapter(mixed, tmp_path / "m.safetensors")
    load_adapter(plain, adapter)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    have = mixed.get_submodule(name).get_delta_weight("default")
    want = plain.get_submodule(name).get_delta_weight("default") * (-2 + 0.5 + 1)
    torch.testing.assert_close(have, want)


def test_a_run_s_folder_is_converted_at_the_weight_that_its_adapter_names(
    adapter: Path, tmp_path: Path
) -> None:
    chosen = read_adapter(adapter)
    chosen.metadata["default_weight"] = "0.5"
    file = write_adapter(chosen, tmp_path / "run" / "adapter.safetensors")
    for source in (file, file.parent):
        assert main([str(source), str(tmp_path / "out.safetensors"), "--to", "krona"]) == 0
        assert read_adapter(tmp_path / "out.safetensors").configs["unet"].scale == 0.25


def test_sources_with_weights(tmp_path: Path) -> None:
    assert split_weight("a/b") == ("a/b", 1.0)
    assert split_weight("a/b:0.5") == ("a/b", 0.5)
    assert split_weight("C:\\a") == ("C:\\a", 1.0)
    (tmp_path / "odd:3").touch()
    assert split_weight(f"{tmp_path}/odd:3") == (f"{tmp_path}/odd:3", 1.0)
    with pytest.raises(UserError, match="must be a number"):
        split_weight("a:nan")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--to", "merged"], "add --base"),
        (["--to", "krona", "--rank", "4"], "--rank is for --to lora"),
        (["--to", "lora", "--a1", "4"], "--a1 is for --to krona"),
        (["--to", "lokr", "--terms", "2"], "cannot store 2 terms"),
        (["--to", "lora", "--rank", "0"], "--rank must be at least 1"),
        (["--to", "krona", "--a1", "0", "--a2", "4"], "--a1 must be at least 1"),
        (["--to", "krona", "--a1", "7", "--a2", "4"], r"a1=7, a2=4.*do not fit unet\..*nearest"),
        (["--to", "krona", "--from", "lokr"], "is not part of a LoRA, LoKr"),
        (["--to", "lora", "--adapter", "nowhere.safetensors"], "No file or folder at nowhere"),
        (["--to", "merged", "--base", "no/such/base/at/all"], "No base model at"),
    ],
)
def test_wrong_requests(adapter: Path, tmp_path: Path, flags, says) -> None:
    with pytest.raises(UserError, match=says):
        main([str(adapter), str(tmp_path / "out" / "x.safetensors"), *flags])
    assert not (tmp_path / "out").exists()


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path: Path, capsys) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}q\x00.")
    arguments = [str(tmp_path / "model.ckpt"), str(tmp_path / "x.safetensors"), "--to", "krona"]
    with pytest.raises(SystemExit) as caught:
        exit_on_user_error(lambda: main(arguments))
    reported = capsys.readouterr()
    (line,) = reported.err.splitlines()
    assert caught.value.code == 2 and reported.out == ""
    assert line.startswith("error: ") and "pickle" in line and "model.ckpt" in line


def test_the_source_is_never_the_destination(adapter: Path) -> None:
    before = adapter.read_bytes()
    with pytest.raises(UserError, match="source itself"):
        convert(adapter.parent, adapter, "lora")
    assert adapter.read_bytes() == before


def test_an_existing_file_survives_a_failure(adapter: Path, tmp_path: Path, monkeypatch) -> None:
    from diffusekrona.formats import conversion

    out = tmp_path / "x.safetensors"
    convert(adapter, out, "lokr")
    before = out.read_bytes()

    def fails(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "write_entries", fails)
    with pytest.raises(UserError, match="no space left"):
        convert(adapter, out, "lora")
    assert out.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["run", "x.safetensors"]


def lying_headers(whole: bytes) -> dict[str, bytes]:
    size = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def rebuilt(change) -> bytes:
        changed = json.loads(json.dumps(header))
        change(changed, next(k for k in changed if k != "__metadata__"))
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + data

    return {
        "empty": b"",
        "text": b"<html>not found</html>",
        "zip": b"PK\x03\x04" + whole,
        "header longer than the file": struct.pack("<Q", 2**40) + whole[8:],
        "header of all ones": b"\xff" * 64,
        "cut in the header": whole[: size // 2],
        "cut in the data": whole[:-3],
        "more data than declared": whole + b"\0" * 16,
        "a huge shape": rebuilt(lambda h, k: h[k].update(shape=[2**40, 2**40])),
        "a negative shape": rebuilt(lambda h, k: h[k].update(shape=[-1, 4])),
        "another shape": rebuilt(lambda h, k: h[k].update(shape=[3, 3])),
        "bytes beyond the end": rebuilt(lambda h, k: h[k].update(data_offsets=[0, 2**40])),
        "bytes backwards": rebuilt(lambda h, k: h[k].update(data_offsets=[64, 0])),
        "an unknown dtype": rebuilt(lambda h, k: h[k].update(dtype="F1")),
        "no object": struct.pack("<Q", 2) + b"[]",
    }


@pytest.mark.parametrize("source_format", [None, "lokr", "published", "krona"])
def test_files_that_lie(adapter: Path, tmp_path: Path, source_format) -> None:
    kind = {"lokr": "lokr", "published": "lora"}.get(source_format, "krona")
    convert(adapter, tmp_path / "good.safetensors", kind)
    for name, content in lying_headers((tmp_path / "good.safetensors").read_bytes()).items():
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(UserError) as caught:
            convert(
                tmp_path / "bad.safetensors", tmp_path / "x.safetensors", "lora",
                source_format=source_format,
            )  # fmt: skip
        assert "bad.safetensors" in str(caught.value) and "\n" not in str(caught.value), name
        assert not (tmp_path / "x.safetensors").exists()


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_refused_or_harmless(adapter: Path, data) -> None:
    """Bytes changed at random: a UserError, or a conversion as good as any."""
    content = bytearray(adapter.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    bad = adapter.parent / "bad.safetensors"
    bad.write_bytes(bytes(content))
    out = adapter.parent / "out.safetensors"
    out.unlink(missing_ok=True)
    try:
        convert(bad, out, "lora")
    except UserError:
        assert not out.exists()


@pytest.mark.parametrize(
    "change",
    [{"scale": "x"}, {"scale": float("nan")}, {"scale": 1e308}, {"scale": None}, {"a1": []},
     {"factor_pattern": 3}, {"terms": -1}, {"output_order": "random"}],
)  # fmt: skip
def test_damaged_settings(adapter: Path, tmp_path: Path, change) -> None:
    with safe_open(adapter, "pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    config = json.loads(metadata["config"])
    config["unet"] |= change
    metadata["config"] = json.dumps(config)
    save_file(tensors, tmp_path / "bad.safetensors", metadata=metadata)
    with pytest.raises(UserError, match=r"bad\.safetensors(: \S+)? has a damaged config"):
        convert(tmp_path / "bad.safetensors", tmp_path / "x.safetensors", "lora")


def test_thin_factors_of_an_enormous_layer(tmp_path: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{stem}.lokr_w1": torch.ones(100_000, 1), f"{stem}.lokr_w2": torch.ones(1, 100_000)}
    save_file(tensors, tmp_path / "s.safetensors")
    with pytest.raises(UserError, match=r"would be 100000x100000: no model's layer is"):
        convert(tmp_path / "s.safetensors", tmp_path / "x.safetensors", "krona")


def test_a_folder_as_destination_gets_the_usual_name(adapter: Path, tmp_path: Path) -> None:
    for target, name in [
        ("krona", "adapter.safetensors"),
        ("lora", "pytorch_lora_weights.safetensors"),
        ("lokr", "dog.safetensors"),
    ]:
        report = convert(adapter, tmp_path / target / "dog", target)
        assert report.destination == tmp_path / target / "dog" / name
        assert report.destination.is_file()


def test_strangers_are_named(tmp_path: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    for keys, says in [
        ([f"{stem}.oft_blocks"], "OFT"),
        ([f"{stem}.hada_w1_a"], "without its hada_w1_b"),
        (["emb_params"], "textual inversion"),
        (["transformer.single_blocks.0.lora_x"], "FLUX"),
        (["something.else"], "has an unknown format; its first unknown key is something.else"),
    ]:
        save_file({key: torch.zeros(2, 2) for key in keys}, tmp_path / "s.safetensors")
        with pytest.raises(UserError, match=says):
            convert(tmp_path / "s.safetensors", tmp_path / "x.safetensors", "krona")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no adapter and no model"):
        convert(tmp_path / "folder", tmp_path / "x.safetensors", "krona")
    (tmp_path / "folder" / "pytorch_lora_weights.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="pickle"):
        convert(tmp_path / "folder", tmp_path / "x.safetensors", "krona")
    with pytest.raises(UserError, match="No file or folder"):
        convert("stable-diffusion-v1-5/lora", tmp_path / "x.safetensors", "krona")


def test_two_families_in_one_file(tmp_path: Path) -> None:
    tensors = {}
    for block, width in (("down_blocks_0", 768), ("down_blocks_1", 2048)):
        stem = f"lora_unet_{block}_attentions_0_transformer_blocks_0_attn2_to_k"
        tensors[f"{stem}.lokr_w1"] = torch.ones(4, 8)
        tensors[f"{stem}.lokr_w2"] = torch.ones(80, width // 8)
    save_file(tensors, tmp_path / "s.safetensors")
    with pytest.raises(UserError, match=r"mixes base models: unet\.\S+ reads .* 768|2048"):
        convert(tmp_path / "s.safetensors", tmp_path / "x.safetensors", "krona")


def test_a_family_that_nothing_tells(adapter: Path, tmp_path: Path) -> None:
    tensors = {k: v for k, v in load_file(adapter).items() if "attn1" in k}
    bare = {}
    for key, tensor in tensors.items():
        path, _, part = key.rpartition(".")
        bare[f"{path}.lokr_w{'12'[part == 'krona_b']}"] = tensor
    save_file(bare, tmp_path / "s.safetensors")
    with pytest.raises(UserError, match="add --family"):
        convert(tmp_path / "s.safetensors", tmp_path / "x.safetensors", "lora-kohya")
    main([str(tmp_path / "s.safetensors"), str(tmp_path / "x.safetensors"), "--to", "lora-kohya",
          "--family", "sd1"])  # fmt: skip
