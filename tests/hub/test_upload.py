"""Model cards, and uploads to a local stand-in for the hub."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny_models
import torch
import yaml
from diffusers import DiffusionPipeline

from diffusekrona import KronAConfig, load_adapter, save_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.common.tensor_files import read_metadata
from diffusekrona.formats.conversion import convert
from diffusekrona.hub.upload import push_conversion, push_to_hub, write_model_card

PROMPT = 'a "sks" dog: with | bars\n---\nlicense: evil'


def a_run(folder: Path, **metadata) -> Path:
    """What a training run leaves, in small."""
    torch.manual_seed(0)
    unet = tiny_models.unet("sd1")
    unet.add_adapter(KronAConfig(a1=4, a2=16, factor_pattern={"to_k": (8, 8)}))
    tiny_models.random_factors(unet)
    facts = {"base_model": "some/base", "instance_prompt": PROMPT, "steps": 500, "seed": 3}
    save_adapter(unet, folder / "adapter.safetensors", metadata=facts | metadata)
    (folder / "validation").mkdir()
    (folder / "validation" / "grid.png").write_bytes(b"png")
    (folder / "validation" / "step-000001-00.png").write_bytes(b"png")
    (folder / "checkpoint-250").mkdir()
    (folder / "checkpoint-250" / "adapter.safetensors").write_bytes(b"state")
    settings = {"output_dir": str(folder), "instance_data_dir": "/home/me/private"}
    run = {"settings": settings, "seconds_training": 754.0, "device": "Some GPU"}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "train_log.jsonl").write_text("{}")
    return folder


def head_of(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))


def test_the_card_says_what_a_reader_needs(tmp_path: Path) -> None:
    run = a_run(tmp_path / "dog")
    (run / "results.md").write_text("| variant | CLIP-I |\n|---|---|\n| dog | 0.81 |")
    path = write_model_card(run, repo_id="me/dog", license="openrail++")
    card = path.read_text()
    head = head_of(card)
    assert head["base_model"] == "some/base" and head["license"] == "openrail++"
    assert head["instance_prompt"] == PROMPT and head["library_name"] == "diffusers"
    counts = sum(t.numel() for t in tensors_of(run).values())
    for words in (
        "# dog", "A (4, 16)", f"{counts:,} parameters", "32 layers", "13 minutes", "Some GPU",
        "500", "load_adapter", "load_lora_weights", "torch.kron", "--to lora",
        "--to lokr", "validation/grid.png", "| dog | 0.81 |", "me/dog",
    ):  # fmt: skip
        assert words in card, words
    assert "/home/me" not in card and str(tmp_path) not in card
    table = [line for line in card.splitlines() if line.startswith("| ")]
    assert all(line.count("|") == 3 for line in table)


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "adapter.safetensors")


@pytest.mark.parametrize("order", ["kron", "interleaved"])
def test_the_code_on_the_card_works_without_the_package(tmp_path: Path, order, tiny_sdxl) -> None:
    def pipeline():
        return DiffusionPipeline.from_pretrained(tiny_sdxl)

    trained, plain = pipeline(), pipeline()
    config = {"a1": 4, "a2": 8, "terms": 2, "scale": 0.5, "output_order": order}
    trained.unet.add_adapter(KronAConfig(**config))
    text = {**config, "scale": 2.0, "target_modules": ["q_proj"]}
    trained.text_encoder_2.add_adapter(KronAConfig(**text))
    for part in (trained.unet, trained.text_encoder_2):
        tiny_models.random_factors(part)
    save_adapter(trained, tmp_path / "adapter.safetensors")
    card = write_model_card(tmp_path).read_text()
    code = card.split("```python")[2].split("```")[0]
    assert "diffusekrona" not in code
    code = code.replace('"adapter.safetensors"', repr(str(tmp_path / "adapter.safetensors")))
    exec(compile(code, "card", "exec"), {"pipe": plain})
    inputs = tiny_models.unet_inputs("sdxl")
    with torch.no_grad():
        want, have = trained.unet(**inputs).sample, plain.unet(**inputs).sample
        torch.testing.assert_close(have, want, atol=1e-5, rtol=0)
        ids = torch.arange(8)[None]
        want, have = trained.text_encoder_2(ids)[0], plain.text_encoder_2(ids)[0]
        torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-5)


def test_a_card_of_little(tmp_path: Path) -> None:
    run = a_run(tmp_path / "dog", base_model="/home/me/models/base", instance_prompt="")
    (run / "run.json").write_text("{broken")
    (run / "validation" / "grid.png").unlink()
    card = write_model_card(run).read_text()
    assert "base_model" not in head_of(card) and "license" not in head_of(card)
    assert "/home/me" not in card and "`base`" in card
    assert "grid.png" not in card and "## Scores" not in card
    with pytest.raises(UserError, match="No adapter file"):
        write_model_card(tmp_path / "nothing")


def test_a_folder_that_is_written_as_a_name_of_the_hub_is_not_taken_for_one(
    tmp_path: Path, monkeypatch
) -> None:
    run = a_run(tmp_path / "dog", base_model="models/sdxl")
    assert head_of(write_model_card(run).read_text())["base_model"] == "models/sdxl"
    (tmp_path / "models" / "sdxl").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = write_model_card(run).read_text()
    assert "base_model" not in head_of(card) and "models/sdxl" not in card and "`sdxl`" in card
    convert(run, tmp_path / "lora.safetensors", "lora-kohya")
    assert read_metadata(tmp_path / "lora.safetensors")["ss_sd_model_name"] == "sdxl"


@pytest.mark.parametrize("options", [{"terms": 2}, {"output_order": "interleaved"}])
def test_the_card_offers_no_lokr_where_an_adapter_is_none(tmp_path: Path, options) -> None:
    unet = tiny_models.unet("sd1")
    unet.add_adapter(KronAConfig(a1=4, a2=8, **options))
    save_adapter(unet, tmp_path / "adapter.safetensors")
    card = write_model_card(tmp_path).read_text()
    assert "--to lokr" not in card and "`--to lora-kohya`" in card


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as an upload of small files calls."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        address = f"http://127.0.0.1:{self.server.server_port}/me/dog"
        code, reply = 200, {}
        if self.server.broken:
            code, reply = 401, {"error": "Invalid username or password."}
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            reply = {"url": address, "name": "me/dog"}
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]
            ]
            reply = {"files": [{**f, "shouldIgnore": False, "oid": None} for f in files]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            oid = "0" * 40
            reply = {"success": True, "commitOid": oid, "commitUrl": f"{address}/commit/{oid}"}
        data = json.dumps(reply).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_args) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.created, server.broken = {}, [], False
    server.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_a_run_is_uploaded_and_loads_from_what_arrived(tmp_path: Path, hub) -> None:
    run = a_run(tmp_path / "dog")
    (run / "private").mkdir()
    for name in ("private/base.safetensors", "another.safetensors"):  # somebody's, put there
        (run / name).write_bytes(b"not the run's")
    write_model_card(run, repo_id="me/dog")
    options = {"token": "hf_x", "endpoint": hub.endpoint, "private": True}
    address = push_to_hub(run, "me/dog", **options)
    assert address == f"{hub.endpoint}/me/dog"
    assert hub.created[0]["name"] == "dog" and hub.created[0]["visibility"] == "private"
    # No training state, no log, no settings with this machine's paths.
    assert set(hub.files) == {"README.md", "adapter.safetensors", "validation/grid.png"}
    (tmp_path / "got.safetensors").write_bytes(hub.files["adapter.safetensors"])
    load_adapter(tiny_models.unet("sd1"), tmp_path / "got.safetensors")


def test_refusals_are_one_line(tmp_path: Path, hub) -> None:
    run = a_run(tmp_path / "dog")
    options = {"token": "hf_x", "endpoint": hub.endpoint}
    with pytest.raises(UserError, match=r"Cannot upload to '\.\./\.\./etc'"):
        push_to_hub(run, "../../etc", **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to upload"):
        push_to_hub(tmp_path / "empty", "me/dog", **options)
    hub.broken = True
    with pytest.raises(UserError) as caught:
        push_to_hub(run, "me/dog", **options)
    assert "\n" not in str(caught.value) and not hub.files


def test_a_conversion_is_uploaded_with_a_card(tmp_path: Path, hub, monkeypatch) -> None:
    import huggingface_hub

    run = a_run(tmp_path / "dog")
    real = huggingface_hub.HfApi
    monkeypatch.setattr(
        huggingface_hub, "HfApi", lambda endpoint, token: real(endpoint=hub.endpoint, token="hf_x")
    )
    report = convert(run, tmp_path / "out" / "dog.safetensors", "lokr")
    push_conversion(report, "me/dog")
    assert set(hub.files) == {"README.md", "dog.safetensors"}
    card = hub.files["README.md"].decode()
    assert "largest absolute difference" in card and str(tmp_path) not in card
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["dog.safetensors"]
