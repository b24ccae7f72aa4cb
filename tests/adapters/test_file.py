"""Round trips through a real file, and the errors of bad files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

import diffusekrona
from diffusekrona import KronAConfig, load_adapter, save_adapter
from diffusekrona.adapters.file import read_adapter
from diffusekrona.common.errors import UserError

PATTERN = {"to_k": (8, 32), "to_out.0": (2, 64)}


def trained_unet(family: str = "sd1", config=None, seed: int = 0):
    torch.manual_seed(0)
    unet = tiny_models.unet(family).eval()
    unet.add_adapter(config or KronAConfig(a1=4, a2=16, scale=0.5, factor_pattern=PATTERN))
    tiny_models.random_factors(unet, seed=seed)
    return unet


def plain_unet(family: str = "sd1"):
    torch.manual_seed(0)
    return tiny_models.unet(family).eval()


def run(unet, family: str = "sd1") -> torch.Tensor:
    with torch.no_grad():
        return unet(**tiny_models.unet_inputs(family)).sample


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(
    "config",
    [
        KronAConfig(a1=4, a2=16, scale=0.5, factor_pattern=PATTERN),
        KronAConfig(a1=4, a2=16, terms=2, output_order="interleaved"),
        LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v"]),
    ],
    ids=["krona", "terms", "lora"],
)
def test_round_trip(tmp_path: Path, family, config) -> None:
    unet = trained_unet(family, config)
    path = save_adapter(unet, tmp_path / "deep" / "adapter.safetensors")
    other = plain_unet(family)
    load_adapter(other, path)
    assert torch.equal(run(other, family), run(unet, family))


def test_the_default_weight_is_that_of_the_file(tmp_path: Path) -> None:
    """As `choose` writes it; a weight that is given takes precedence."""
    unet = trained_unet()
    plain = save_adapter(unet, tmp_path / "a.safetensors")
    chosen = save_adapter(unet, tmp_path / "b.safetensors", metadata={"default_weight": "0.5"})
    found = {}
    for name, path, weight in (
        ("half", plain, 0.5), ("chosen", chosen, None), ("one", plain, 1), ("given", chosen, 1.0),
    ):  # fmt: skip
        other = plain_unet()
        load_adapter(other, path, weight=weight)
        found[name] = run(other)
    assert torch.equal(found["half"], found["chosen"])
    assert torch.equal(found["one"], found["given"])
    assert not torch.equal(found["half"], found["one"])


def test_the_same_adapter_is_the_same_bytes(tmp_path: Path) -> None:
    """Its SHA-256 is in the recipe of every picture."""
    config = LoraConfig(r=4, target_modules=["to_q", "to_v", "to_k", "to_out.0"])
    notes = {"seed": 1, "instance_prompt": "a sks dog", "steps": 3, "learning_rate": 0.1}
    written = [
        save_adapter(trained_unet(config=config), tmp_path / f"{n}.safetensors", metadata=notes)
        for n in range(4)
    ]
    assert len({path.read_bytes() for path in written}) == 1
    assert load_file(written[0]).keys() == read_adapter(written[0]).tensors.keys()


def test_the_file_describes_itself(tmp_path: Path) -> None:
    path = save_adapter(trained_unet(), tmp_path / "a.safetensors", metadata={"steps": 7})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["method"] == "krona" and metadata["base_family"] == "sd1"
    assert metadata["steps"] == "7"
    config = json.loads(metadata["config"])["unet"]
    assert (config["a1"], config["a2"], config["scale"]) == (4, 16, 0.5)
    assert config["factor_pattern"] == {"to_k": [8, 32], "to_out.0": [2, 64]}
    tensors = load_file(path)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    assert tensors[f"{name}.krona_a"].shape == (8, 32)
    assert tensors[f"{name}.krona_b"].shape == (8, 2)
    assert len(tensors) == 2 * 4 * 2 * len([n for n in tensors if n.endswith("attn1.to_q.krona_a")])


def test_weight_and_mixing_of_two(tmp_path: Path) -> None:
    one = save_adapter(trained_unet(seed=1), tmp_path / "1.safetensors")
    two = save_adapter(trained_unet(seed=2), tmp_path / "2.safetensors")
    unet = plain_unet()
    load_adapter(unet, one, "one", weight=0.5)
    load_adapter(unet, two, "two", weight=0.25)
    mixed = run(unet)
    unet.set_adapters(["one", "two"], [0.5, 0.25])
    assert torch.equal(run(unet), mixed)
    unet.set_adapters(["one", "two"], [0.0, 0.0])
    torch.testing.assert_close(run(unet), run(plain_unet()))


def test_swapping_on_a_live_model_loads_no_base(tmp_path: Path) -> None:
    files = [
        save_adapter(trained_unet(seed=n), tmp_path / f"{n}.safetensors", "default") for n in (1, 2)
    ]
    alone = []
    for file in files:
        load_adapter(fresh := plain_unet(), file)
        alone.append(run(fresh))
    assert not torch.allclose(*alone)
    unet = plain_unet()
    base = run(unet)
    places = {p.data_ptr() for p in unet.parameters()}
    for name, file in zip("ab", files, strict=True):
        load_adapter(unet, file, name)
    for name, expected in (("b", alone[1]), ("a", alone[0]), ("b", alone[1])):
        unet.set_adapters([name], [1.0])  # both are on the model: no file is read
        assert torch.equal(run(unet), expected)
        unet.fuse_lora(adapter_names=[name])
        torch.testing.assert_close(run(unet), expected, atol=1e-5, rtol=1e-4)
        unet.unfuse_lora()
    unet.delete_adapters(["a", "b"])
    load_adapter(unet, files[0], "a")  # one replaced by another from its file
    assert torch.equal(run(unet), alone[0])
    unet.delete_adapters("a")
    assert torch.equal(run(unet), base)
    assert places <= {p.data_ptr() for p in unet.parameters()}  # the very same weights


def test_pipeline_with_text_encoder(tmp_path: Path, tiny_sdxl: Path) -> None:
    def pipeline():
        return DiffusionPipeline.from_pretrained(tiny_sdxl)

    trained = pipeline()
    trained.unet.add_adapter(KronAConfig(a1=4, a2=16))
    text = KronAConfig(a1=8, a2=8, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
    trained.text_encoder_2.add_adapter(text)
    tiny_models.random_factors(trained.unet)
    tiny_models.random_factors(trained.text_encoder_2)
    path = save_adapter(trained, tmp_path / "a.safetensors")
    keys = set(load_file(path))
    assert any(k.startswith("text_encoder_2.") and k.endswith("q_proj.krona_a") for k in keys)
    fresh = pipeline()
    load_adapter(fresh, path)
    for name in ("unet", "text_encoder_2"):
        want = getattr(trained, name).state_dict()
        for key, value in getattr(fresh, name).state_dict().items():
            assert torch.equal(value, want[key]), key
    with pytest.raises(UserError, match="text_encoder_2"):
        load_adapter(plain_unet("sdxl"), path)


def test_half_precision_file_is_half_the_size(tmp_path: Path) -> None:
    unet = trained_unet()
    full = save_adapter(unet, tmp_path / "32.safetensors")
    half = save_adapter(unet, tmp_path / "16.safetensors", dtype=torch.float16)
    sizes = [sum(t.numel() * t.element_size() for t in load_file(p).values()) for p in (full, half)]
    assert sizes[0] == 2 * sizes[1]
    other = plain_unet()
    load_adapter(other, half)
    torch.testing.assert_close(run(other), run(unet), atol=1e-3, rtol=1e-2)


def test_a_subset_of_layers_loads(tmp_path: Path) -> None:
    path = save_adapter(trained_unet(), tmp_path / "a.safetensors")
    adapter = read_adapter(path)
    kept = {k: v for k, v in adapter.tensors.items() if "mid_block" in k}
    save_file(kept, path, metadata=adapter.metadata)
    unet = plain_unet()
    load_adapter(unet, path)
    names = {n for n, m in unet.named_modules() if hasattr(m, "krona_a")}
    assert names and all("mid_block" in n for n in names)


def test_other_family_or_size_is_refused_and_the_model_untouched(tmp_path: Path) -> None:
    path = save_adapter(trained_unet("sdxl"), tmp_path / "a.safetensors")
    unet = plain_unet()
    with pytest.raises(UserError, match="trained for sdxl, but the base model is sd1"):
        load_adapter(unet, path)
    save_adapter(trained_unet("sd2"), path, base_family="sd1")
    with pytest.raises(UserError, match=r"layer .*attn2.to_k is 64x64, its factors make 64x1024"):
        load_adapter(unet, path)
    assert not hasattr(unet, "peft_config")


def spoil(tensors, metadata, how: str):
    key = next(k for k in tensors if k.endswith("krona_b"))
    if how == "nan":
        tensors[key][0, 0] = float("nan")
    elif how == "alone":
        del tensors[key]
    elif how == "shape":
        tensors[key] = tensors[key].flatten()
    elif how == "foreign":
        tensors["conv_in.weight"] = torch.zeros(2, 2)
    elif how == "config":
        metadata["config"] = "{not json"
    elif how == "stranger":
        metadata.clear()
    elif how == "empty":
        tensors.clear()
    elif how == "factors":
        metadata["config"] = json.dumps({"unet": {"a1": -1}})


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("nan", "krona_b holds NaN"),
        ("alone", "without its krona_b"),
        ("shape", "is not a valid factor"),
        ("foreign", "conv_in.weight"),
        ("config", "damaged config"),
        ("factors", "damaged config"),
        ("stranger", "KronA adapter without its config: put the adapter_config.json"),
        ("empty", "no tensors"),
    ],
)
def test_bad_files(tmp_path: Path, how, says) -> None:
    path = save_adapter(trained_unet(), tmp_path / "a.safetensors")
    adapter = read_adapter(path)
    spoil(adapter.tensors, adapter.metadata, how)
    save_file(adapter.tensors, path, metadata=adapter.metadata)
    with pytest.raises(UserError, match=says):
        load_adapter(plain_unet(), path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\xff" * 64, None])
def test_not_even_safetensors(tmp_path: Path, content) -> None:
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors"):
        load_adapter(plain_unet(), path)


def test_truncated_file(tmp_path: Path) -> None:
    path = save_adapter(trained_unet(), tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_adapter(plain_unet(), path)


def test_no_such_adapter() -> None:
    with pytest.raises(ValueError, match="no adapter named"):
        save_adapter(plain_unet(), "nowhere.safetensors")


def test_public_names() -> None:
    for name in diffusekrona.__all__:
        assert getattr(diffusekrona, name) is not None


def test_folders_that_peft_wrote_of_each_component(tmp_path: Path) -> None:
    """As PEFT's DreamBooth scripts save: unet/ and text_encoder/, each a PEFT folder."""
    encoder = CLIPTextModel(tiny_models.text_config())
    encoder_config = KronAConfig(a1=2, a2=4, target_modules=["q_proj"])
    wrapped = get_peft_model(encoder, encoder_config)
    tiny_models.random_factors(wrapped)
    wrapped.save_pretrained(tmp_path / "text_encoder")
    unet = get_peft_model(plain_unet(), KronAConfig(a1=4, a2=16, scale=0.5))
    tiny_models.random_factors(unet)
    unet.save_pretrained(tmp_path / "unet")
    adapter = read_adapter(tmp_path)
    assert set(adapter.configs) == {"unet", "text_encoder"}
    assert (adapter.configs["unet"].scale, adapter.configs["text_encoder"].a2) == (0.5, 4)
    other = plain_unet()
    load_adapter({"unet": other, "text_encoder": CLIPTextModel(encoder.config)}, tmp_path)
    assert torch.equal(run(other), run(unet))
    (tmp_path / "unet" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="unet"):
        read_adapter(tmp_path)
