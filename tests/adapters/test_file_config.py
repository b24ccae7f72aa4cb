"""Configs from files: names are literal, types are checked, and nothing is changed before that.

A few hundred damaged configs: each loads, or is refused in one line with the model as it was.
"""

from __future__ import annotations

import copy
import json
import random
import time
from pathlib import Path

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTextModel

from diffusekrona import KronAConfig, load_adapter, save_adapter
from diffusekrona.adapters.file_config import literal, lookup
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import convert

EVIL = r"([a-z0-9_.]+)+#"  # as a regular expression it never ends
VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 2**40, 10**400, 0.5, float("nan"), float("inf"), 1e300, "",
    "x", "all-linear", "pissa", "5", EVIL, "a" * 60_000, "\n", [], [[]], ["q_proj"], [EVIL],
    ["q_proj"] * 99, [1, 2], [4, 8], {}, {"q_proj": 2}, {"q_proj": [4, 8]}, {EVIL: [4, 8]},
    {EVIL: 2}, {"^q_proj$": 2}, {"a" * 60_000: 2}, {"q_proj": {}}, {"r": "x"},
)  # fmt: skip
LORA_FIELDS = (
    "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
    "init_lora_weights", "megatron_config", "layers_to_transform", "layers_pattern", "lora_bias",
    "exclude_modules", "fan_in_fan_out", "loftq_config", "layer_replication", "target_parameters",
    "modules_to_save", "bias", "peft_type", "lora_dropout", "runtime_config",
    "trainable_token_indices",
)  # fmt: skip
KRONA_FIELDS = (
    "a1", "a2", "target_modules", "exclude_modules", "factor_pattern", "scale", "terms",
    "init_weights", "output_order", "peft_type", "modules_to_save", "task_type",
)  # fmt: skip
CONFIGS = {
    "krona": (
        KronAConfig(
            a1=4, a2=8, target_modules=["q_proj", "k_proj"], factor_pattern={"k_proj": (2, 4)}
        ),
        KRONA_FIELDS,
    ),
    "lora": (LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"]), LORA_FIELDS),
}


@pytest.fixture(scope="module")
def encoder() -> CLIPTextModel:
    return CLIPTextModel(tiny_models.text_config())


@pytest.fixture(scope="module", params=list(CONFIGS))
def saved(request, tmp_path_factory) -> tuple[str, Path]:
    config, _ = CONFIGS[request.param]
    model = CLIPTextModel(tiny_models.text_config())
    model.add_adapter(config)
    tiny_models.random_factors(model)
    path = tmp_path_factory.mktemp("a") / "a.safetensors"
    return request.param, save_adapter(model, path, base_family="sd1")


def damaged(values: dict, fields: tuple[str, ...], seed: int) -> dict:
    rng, values = random.Random(seed), json.loads(json.dumps(values))
    for field in rng.sample(fields, rng.randint(1, 2)):
        if rng.random() < 0.15:
            values.pop(field, None)
        else:
            values[field] = rng.choice(VALUES)
    return values


def content(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


def one_line(error: UserError) -> bool:
    return "\n" not in str(error) and len(str(error)) < 700


def test_damaged_configs_change_nothing(saved, encoder, tmp_path: Path) -> None:
    method, path = saved
    tensors, metadata = content(path)
    config, names = json.loads(metadata["config"]), [n for n, _ in encoder.named_modules()]
    loaded = refused = 0
    for seed in range(200):
        changed = {"text_encoder": damaged(config["text_encoder"], CONFIGS[method][1], seed)}
        text = json.dumps(changed)
        save_file(tensors, tmp_path / "b.safetensors", metadata={**metadata, "config": text})
        start, fresh = time.process_time(), copy.deepcopy(encoder)
        try:
            load_adapter(fresh, tmp_path / "b.safetensors")
        except UserError as error:
            assert one_line(error), text[:300]
            assert [n for n, _ in fresh.named_modules()] == names, text[:300]
            assert not hasattr(fresh, "peft_config"), text[:300]
            refused += 1
        else:
            have = get_peft_model_state_dict(fresh)
            assert {f"text_encoder.{key}" for key in have} == tensors.keys()
            same = [torch.equal(have[k.partition(".")[2]], t) for k, t in tensors.items()]
            assert all(same), text[:300]
            loaded += 1
        assert time.process_time() - start < 10, text[:300]
    assert loaded > 20 and refused > 20


def test_damaged_peft_folders_are_refused_in_one_line(saved, tmp_path: Path) -> None:
    method, path = saved
    convert(path, tmp_path / "peft", "peft" if method == "krona" else "peft-lora")
    (file,) = (tmp_path / "peft").rglob("adapter_config.json")
    config = json.loads(file.read_text())
    done = refused = 0
    for seed in range(200):
        file.write_text(json.dumps(damaged(config, CONFIGS[method][1], seed)))
        start = time.process_time()
        try:
            convert(tmp_path / "peft", tmp_path / "o.safetensors", "lora", family="sd1")
            done += 1
        except UserError as error:
            assert one_line(error), file.read_text()[:300]
            refused += 1
        assert time.process_time() - start < 10, file.read_text()[:300]
    assert done > 20 and refused > 20


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "null", "[]", '{"unet": 3}', '{"x": {}}',
     '{"text_encoder": {}, "unet": {}}'],
)  # fmt: skip
def test_damaged_metadata(saved, encoder, tmp_path: Path, text) -> None:
    tensors, metadata = content(saved[1])
    save_file(tensors, tmp_path / "b.safetensors", metadata={**metadata, "config": text})
    with pytest.raises(UserError, match="config") as caught:
        load_adapter(encoder, tmp_path / "b.safetensors")
    assert one_line(caught.value) and not hasattr(encoder, "peft_config")


def test_terms_and_ranks_unlike_the_tensors(saved, encoder, tmp_path: Path) -> None:
    method, path = saved
    tensors, metadata = content(path)
    config = json.loads(metadata["config"])
    config["text_encoder"] |= {"terms": 3} if method == "krona" else {"r": 3}
    save_file(
        tensors, tmp_path / "b.safetensors", metadata=metadata | {"config": json.dumps(config)}
    )
    with pytest.raises(UserError, match=r"(terms|r) is 3, but"):
        load_adapter(encoder, tmp_path / "b.safetensors")
    assert not hasattr(encoder, "peft_config")


@pytest.mark.parametrize("target", ["krona", "lora"])
def test_keys_of_any_length_are_refused_at_once(tmp_path: Path, target) -> None:
    kohya, peft = "lora_unet_" + "a_" * 26_000, "unet." + "x." * 26_000
    for key in (kohya + ".lokr_w1", peft + "lora_A.weight", "x" * 52_000):
        save_file({key: torch.ones(2, 2)}, tmp_path / "in.safetensors")
        start = time.process_time()
        with pytest.raises(UserError, match=r"key of 5\d{4} characters") as caught:
            convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", target)
        assert one_line(caught.value) and time.process_time() - start < 1


def test_names_are_literal() -> None:
    patterns = {"attn1.q_proj": 1, "q_proj": 2, "k.proj": 3}
    assert lookup(patterns, "a.attn1.q_proj", 0) == 1
    assert lookup(patterns, "a.attn2.q_proj", 0) == 2
    assert lookup(patterns, "a.attn2.k_proj", 0) == 0  # a dot is a dot
    assert lookup(patterns, "a.xq_proj", 0) == 0
    assert literal(r"mid\.q_proj$", "file", "rank_pattern") == "mid.q_proj"
    whole = {literal(r"^mid\.q_proj$", "file", "rank_pattern"): 1}
    assert lookup(whole, "mid.q_proj", 0) == 1
    assert lookup(whole, "down.mid.q_proj", 0) == 0  # as in PEFT: ^ is where the path begins
    for key in (EVIL, "to_(q|k)", ".*", "", "a b", 3, "a" * 301):
        with pytest.raises(UserError, match=r"rank_pattern.*write the layers' names"):
            literal(key, "file", "rank_pattern")
