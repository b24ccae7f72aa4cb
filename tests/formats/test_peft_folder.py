"""PEFT's folders, written and read by PEFT itself."""

from __future__ import annotations

import json
from pathlib import Path

import peers
import pytest
import tiny_models
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, PeftModel, get_peft_model

from diffusekrona import KronAConfig, load_adapter, save_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import Options, Report, convert

PATTERN = {"a1": 4, "a2": 16, "scale": 0.5, "factor_pattern": {"to_k": (8, 32)}}


def trained(path: Path, **config) -> torch.nn.Module:
    unet = peers.plain_unet()
    unet.add_adapter(KronAConfig(**{**PATTERN, **config}))
    tiny_models.random_factors(unet)
    save_adapter(unet, path)
    return unet


@pytest.mark.parametrize("more", [{}, {"terms": 2, "output_order": "interleaved"}])
@pytest.mark.parametrize("target", ["peft", "peft-lora"])
def test_peft_loads_what_we_write(tmp_path: Path, target, more) -> None:
    unet = trained(tmp_path / "a.safetensors", **more)
    convert(tmp_path / "a.safetensors", tmp_path / "folder", target)
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = PeftModel.from_pretrained(peers.plain_unet(), tmp_path / "folder")
    torch.testing.assert_close(peers.output(loaded), peers.output(unet), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        KronAConfig(**PATTERN),
        KronAConfig(a1=2, a2=4, terms=2, output_order="interleaved"),
        LoraConfig(r=4, lora_alpha=9, target_modules=["to_q"], rank_pattern={"attn2.to_q": 2},
                   alpha_pattern={"attn1.to_q": 5}, use_rslora=True),
    ],
    ids=["krona", "terms", "lora"],
)  # fmt: skip
def test_we_read_what_peft_writes(tmp_path: Path, config) -> None:
    model = get_peft_model(peers.plain_unet(), config)
    tiny_models.random_factors(model)
    model.save_pretrained(tmp_path / "folder")
    target = "krona" if isinstance(config, KronAConfig) else "lora"
    convert(tmp_path / "folder", tmp_path / "a.safetensors", target, family="sd1")
    unet = peers.plain_unet()
    if target == "krona":
        load_adapter(unet, tmp_path / "a.safetensors")
    else:
        unet.load_lora_adapter(tmp_path / "a.safetensors", prefix="unet")
    torch.testing.assert_close(peers.output(unet), peers.output(model), atol=1e-5, rtol=0)


def test_a_folder_a_component(tmp_path: Path, tiny_sdxl: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(tiny_sdxl)
    pipe.unet.add_adapter(KronAConfig(**PATTERN))
    text = {"a1": 8, "a2": 8, "factor_pattern": {"k_proj": (2, 4)}}
    for name in ("text_encoder", "text_encoder_2"):
        part = getattr(pipe, name)
        part.add_adapter(KronAConfig(**text, target_modules=["q_proj", "k_proj"]))
        tiny_models.random_factors(part)
    tiny_models.random_factors(pipe.unet)
    save_adapter(pipe, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "peft")
    ids = torch.arange(8)[None]
    fresh = DiffusionPipeline.from_pretrained(tiny_sdxl)
    for name in ("text_encoder", "text_encoder_2"):
        loaded = PeftModel.from_pretrained(getattr(fresh, name), tmp_path / "folder" / name)
        with torch.no_grad():
            want, have = getattr(pipe, name)(ids)[0], loaded.base_model.model(ids)[0]
        torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-5)
    report = convert(tmp_path / "folder", tmp_path / "b.safetensors", "krona")
    assert report.family == "sdxl" and report.largest == 0
    back = DiffusionPipeline.from_pretrained(tiny_sdxl)
    load_adapter(back, tmp_path / "b.safetensors")
    with torch.no_grad():
        want, have = pipe.text_encoder_2(ids)[0], back.text_encoder_2(ids)[0]
    torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-5)


def spoil(folder: Path, how: str) -> None:
    config = folder / "adapter_config.json"
    weights = folder / "adapter_model.safetensors"
    if how == "json":
        config.write_text("{not json")
    elif how == "method":
        config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "OFT"}))
    elif how == "field":
        config.write_text(json.dumps({**json.loads(config.read_text()), "terms": "many"}))
    elif how == "pickle":
        weights.rename(folder / "adapter_model.bin")
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("json", r"adapter_config\.json is damaged"),
        ("method", "PEFT method OFT is not supported"),
        ("field", r"adapter_config\.json has a damaged config: terms is 'many'"),
        ("pickle", "pickle"),
        ("cut", "not a readable safetensors"),
    ],
)
def test_bad_folders(tmp_path: Path, how, says) -> None:
    trained(tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "peft")
    spoil(tmp_path / "folder", how)
    with pytest.raises(UserError, match=says):
        convert(tmp_path / "folder", tmp_path / "b.safetensors", "krona")


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    trained(tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "peft")
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "peft-lora")  # replaced whole
    config = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"has other contents \(thesis.tex\)"):
        convert(tmp_path / "a.safetensors", tmp_path / "folder", "peft")
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "years of work"
    assert not list(tmp_path.glob(".folder*"))


def test_biases_that_the_base_lacks_are_named_or_left_out(tmp_path: Path, tiny_sd1: Path) -> None:
    """PEFT's lora_bias gives one to every layer, also to those that have none."""
    config = LoraConfig(r=2, target_modules=["to_q", "to_out.0"], lora_bias=True)
    model = get_peft_model(peers.plain_unet(), config)
    tiny_models.random_factors(model)
    model.save_pretrained(tmp_path / "folder")

    def merge(**options) -> Report:
        return convert(tmp_path / "folder", tmp_path / "merged", "merged", base=tiny_sd1, **options)

    with pytest.raises(UserError, match=r"8 changes of what .*to_q\.bias.*--skip_unsupported"):
        merge()
    report = merge(options=Options(skip_unsupported=True))
    assert any("left out 8 changes of what" in note for note in report.notes)
    unet = DiffusionPipeline.from_pretrained(tmp_path / "merged").unet
    plain = DiffusionPipeline.from_pretrained(tiny_sd1).unet
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    change = unet.get_submodule(path).bias - plain.get_submodule(path).bias
    trained_bias = model.base_model.model.get_submodule(path).lora_B.default.bias
    torch.testing.assert_close(change, 4 * trained_bias)  # alpha / r
