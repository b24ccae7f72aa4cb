"""A method is a record: one that is registered is trained, saved, loaded, counted and converted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tiny_models
import torch
from diffusers import UNet2DConditionModel
from peft import LoHaConfig
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusekrona import load_adapter, save_adapter
from diffusekrona.adapters.deltas import DenseDelta
from diffusekrona.adapters.file import put_adapter, read_adapter
from diffusekrona.adapters.groups import GroupWeights, set_group_weights
from diffusekrona.adapters.method import Method, Targets
from diffusekrona.adapters.methods import (
    METHODS,
    is_second_factor,
    method_of,
    register,
    targets_of,
)
from diffusekrona.adapters.settings import AdapterSettings
from diffusekrona.common.errors import UserError
from diffusekrona.convert import main as convert
from diffusekrona.formats.conversion import convert as convert_file
from diffusekrona.formats.full_model import open_model
from diffusekrona.inspection.facts import facts_of
from diffusekrona.krona import merge_and_unload
from diffusekrona.train_dreambooth import main as train

SD_LETTERS = {"q": ("to_q",)}


def loha_config(settings, targets: Targets) -> LoHaConfig:
    return LoHaConfig(
        r=settings.rank,
        alpha=settings.lora_alpha or settings.rank,
        target_modules=list(targets.names),
    )


def loha_delta(tensors, config, layer: str) -> DenseDelta:
    one, two = (tensors[f"hada_w{i}_a"] @ tensors[f"hada_w{i}_b"] for i in (1, 2))
    return DenseDelta(lambda: (one * two).float() * (config.alpha / config.r), tuple(one.shape))


LOHA = Method(
    name="loha",
    title="LoHa",
    config_path="peft:LoHaConfig",
    tensor_names=("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    settings=("rank", "lora_alpha"),
    make_config=loha_config,
    delta=loha_delta,
    describe=lambda config: f"rank {config.r}",
    size=lambda shapes: f"rank {shapes['hada_w1_b'][0]}",
)


@pytest.fixture
def loha(monkeypatch: pytest.MonkeyPatch) -> Method:
    monkeypatch.setitem(METHODS, "loha", LOHA)
    return LOHA


@pytest.fixture
def run_flags(tiny_sd1: Path, tmp_path: Path) -> list[str]:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (40, 40), "red").save(pictures / "red.png")
    flags = {
        "pretrained_model_name_or_path": tiny_sd1,
        "instance_data_dir": pictures,
        "instance_prompt": "a sks dog",
        "resolution": 32,
        "output_dir": tmp_path / "out",
        "adapter_type": "loha",
        "max_train_steps": 2,
        "learning_rate": 0.01,
        "report_to": "none",
    }
    return [x for name, value in flags.items() for x in (f"--{name}", str(value))]


def test_a_method_needs_a_record_and_nothing_else(
    loha, run_flags, tiny_sd1: Path, tmp_path: Path, capsys
) -> None:
    assert train([*run_flags, "--dry_run"]) == 0
    planned = capsys.readouterr().out
    assert train(run_flags) == 0
    file = tmp_path / "out" / "adapter.safetensors"
    tensors = load_file(file)
    count = sum(tensor.numel() for tensor in tensors.values())
    assert f"loha, {len(tensors) // 4} layers, {count:,} parameters" in planned
    assert any(t.abs().max() > 0 for k, t in tensors.items() if k.endswith("hada_w2_a"))

    adapter = read_adapter(file)
    assert adapter.method is loha
    torch.manual_seed(0)
    unet = tiny_models.unet("sd1").eval()
    before = unet(**tiny_models.unet_inputs("sd1")).sample
    load_adapter(unet, file)
    assert not torch.equal(unet(**tiny_models.unet_inputs("sd1")).sample, before)
    for key, tensor in tensors.items():
        assert torch.equal(unet.get_parameter(f"{key}.default"), tensor)

    facts = facts_of(adapter, "loha")
    assert facts.parameters == count and 0 < facts.norm < float("inf")
    name, _ = loha.layer_of(next(iter(tensors)))
    layer = next(layer for layer in facts.layers if layer.name == name)
    module = unet.get_submodule(name)
    assert layer.norm == pytest.approx(module.get_delta_weight("default").norm().item(), rel=1e-4)

    card = (tmp_path / "out" / "README.md").read_text()
    assert "A LoHa adapter" in card and "rank 4" in card and "--to merged" in card
    assert "--to lokr" not in card and "exactly equal" not in card


def test_its_file_is_checked_and_converted(loha, run_flags, tiny_sd1: Path, tmp_path: Path) -> None:
    assert train(run_flags) == 0
    file, merged = tmp_path / "out" / "adapter.safetensors", tmp_path / "merged"
    convert([str(file), str(merged), "--to", "merged", "--base", str(tiny_sd1)])
    assert open_model(merged).family == "sd1"
    adapter = read_adapter(file)
    metadata = json.loads(adapter.metadata["config"])
    metadata["unet"]["r"] = 2
    adapter.metadata["config"] = json.dumps(metadata)
    from diffusekrona.adapters.file import write_adapter

    write_adapter(adapter, file)
    unet = tiny_models.unet("sd1")
    with pytest.raises(UserError, match=r"hada_w1_a is 64x4, but its config asks for 64x2"):
        load_adapter(unet, file)
    assert not hasattr(unet, "peft_config")


def test_records_are_found_by_their_config() -> None:
    for method in METHODS.values():
        assert method_of(method.config_class(target_modules=["x"])) is method
    with pytest.raises(ValueError, match="already an adapter method named 'krona'"):
        register(dataclasses.replace(LOHA, name="krona"))


@pytest.mark.parametrize("rank", [1, 64])  # the second factor of low rank, and whole
def test_lokr_is_trained_loaded_and_converted(
    run_flags, rank: int, tiny_sd1: Path, tmp_path: Path
) -> None:
    """PEFT's layers hold the file's tensors, and every exact target has their product."""
    flags = [*run_flags, "--decompose_factor", "2", "--max_relative_norm", "0.01"]
    flags[flags.index("loha")] = "lokr"
    assert train([*flags, "--rank", str(rank)]) == 0
    file = tmp_path / "out" / "adapter.safetensors"
    adapter = read_adapter(file)
    assert adapter.method is METHODS["lokr"]
    unet = UNet2DConditionModel.from_pretrained(tiny_sd1, subfolder="unet")
    load_adapter(unet, file)
    layers = adapter.method.by_layer(adapter.component_tensors("unet"))
    assert {"lokr_w2_a" in own for own in layers.values()} == {rank == 1}
    for name, own in layers.items():
        module = unet.get_submodule(name)
        delta = adapter.method.delta(own, adapter.configs["unet"], name).weight()
        assert delta.norm() > 0
        torch.testing.assert_close(delta, module.get_delta_weight("default"))
        assert delta.norm() <= 0.01001 * module.get_base_layer().weight.norm()
    for target in ("lokr", "lokr-diffusers", "lora", "krona"):
        assert convert([str(file), str(tmp_path / f"{target}.safetensors"), "--to", target]) == 0


@pytest.mark.parametrize("alpha", [2.0, 0.5])
def test_lokr_with_an_alpha_of_its_own_is_read(alpha: float, tmp_path: Path) -> None:
    settings = AdapterSettings(rank=4, lora_alpha=alpha)
    unet = tiny_models.unet("sd1")
    lokr = METHODS["lokr"]
    unet.add_adapter(lokr.make_config(settings, targets_of("q", SD_LETTERS, "unet")))
    adapter = read_adapter(save_adapter(unet, tmp_path / "adapter.safetensors"))
    assert adapter.configs["unet"].alpha == alpha
    name, own = next(iter(lokr.by_layer(adapter.tensors).items()))
    assert lokr.delta_of(own, adapter.configs["unet"], name).scale == alpha / 4


def test_lokr_factors_that_are_not_a_layer(run_flags, tmp_path: Path) -> None:
    flags = [*run_flags, "--rank", "1", "--max_train_steps", "1"]
    flags[flags.index("loha")] = "lokr"
    with pytest.raises(UserError, match="--decompose_factor must be -1 or at least 1, not 0"):
        train([*flags, "--decompose_factor", "0"])
    assert train(flags) == 0
    file = tmp_path / "out" / "adapter.safetensors"
    tensors, adapter = load_file(file), read_adapter(file)
    name = next(key for key in tensors if key.endswith(".lokr_w2_b"))
    lacking = {key: tensor for key, tensor in tensors.items() if key != name}
    save_file(lacking, tmp_path / "bad.safetensors", metadata=adapter.metadata)
    with pytest.raises(UserError, match=r"lokr_w1 without its lokr_w2"):
        read_adapter(tmp_path / "bad.safetensors")
    deep = tensors | {name: tensors[name][None].contiguous()}
    save_file(deep, tmp_path / "deep.safetensors", metadata=adapter.metadata)
    with pytest.raises(UserError, match=r"lokr_w2_b of shape \(1, 1, \d+\) is not a matrix"):
        load_adapter(tiny_models.unet("sd1"), tmp_path / "deep.safetensors")


def test_oft_turns_weights_and_is_drawn_whole(run_flags, tiny_sd1: Path, tmp_path: Path) -> None:
    """Merged, a weight is rotated by PEFT's own rotation; what needs a delta W is refused."""
    flags = [*run_flags, "--oft_block_size", "8", "--max_relative_norm", "0.01"]
    flags[flags.index("loha")] = "oft"
    assert train(flags) == 0
    file = tmp_path / "out" / "adapter.safetensors"
    adapter = read_adapter(file)
    assert adapter.method is METHODS["oft"]
    base = UNet2DConditionModel.from_pretrained(tiny_sd1, subfolder="unet")
    unet = UNet2DConditionModel.from_pretrained(tiny_sd1, subfolder="unet")
    load_adapter(unet, file)
    inputs = tiny_models.unet_inputs("sd1")
    live = unet(**inputs).sample
    assert not torch.equal(live, base(**inputs).sample)
    for name, own in adapter.method.by_layer(adapter.component_tensors("unet")).items():
        layer, weight = unet.get_submodule(name), base.get_submodule(name).weight
        blocks, side = weight.shape[1] // 8, 8
        assert own["oft_R.weight"].shape == (blocks, side * (side - 1) // 2)
        rotated = weight @ layer.get_delta_weight("default").t()
        torch.testing.assert_close(rotated.norm(), weight.norm(), rtol=1e-4, atol=0)
        norm = adapter.method.delta_norm(layer, "default")
        torch.testing.assert_close(norm, (rotated - weight).norm(), rtol=1e-3, atol=1e-6)
        assert 0 < norm <= 0.0101 * weight.norm()
    merge_and_unload(unet)
    torch.testing.assert_close(unet(**inputs).sample, live, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unet.get_parameter(f"{name}.weight"), rotated)
    with pytest.raises(UserError, match=r"drawn at weight 1 and whole, not at 0\.5"):
        put_adapter(base, adapter, weight=0.5)
    assert not hasattr(base, "peft_config")
    put_adapter(base, adapter)
    with pytest.raises(UserError, match="not at 0"):
        set_group_weights(base, "default", GroupWeights(projections={"k": 0.0}))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "An OFT adapter" in card and "blocks of 8" in card and "--to " not in card
    with pytest.raises(UserError, match="but not converted, inspected"):
        convert_file(file, tmp_path / "lora.safetensors", "lora")
    with pytest.raises(UserError, match="but not converted, inspected"):
        facts_of(adapter, "oft")
    with pytest.raises(UserError, match="--adapter_dropout does not apply to OFT"):
        train([*flags, "--adapter_dropout", "0.1", "--output_dir", str(tmp_path / "dropped")])


def test_the_factor_that_starts_at_zero_is_known(tiny_sd1: Path) -> None:
    """Its rate is `--lr_ratio` times the other's."""
    for method in METHODS.values():
        unet = tiny_models.unet("sd1")
        settings = AdapterSettings(a1=2, a2=4, rank=2)
        unet.add_adapter(method.make_config(settings, targets_of("q", SD_LETTERS, "unet")))
        for name, parameter in unet.named_parameters():
            if parameter.requires_grad:
                assert is_second_factor(name) == bool((parameter == 0).all()), name
