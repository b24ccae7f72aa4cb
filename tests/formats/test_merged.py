"""Whole models: merged into folders and single files, read back by diffusers; full fine-tunes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import peers
import pytest
import tiny_models
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusekrona import KronAConfig, load_adapter, save_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.formats.conversion import Options, convert
from diffusekrona.formats.full_model import needed_files
from diffusekrona.formats.report import ROUNDED_AWAY

FAMILIES = ["sd1", "sd2", "sdxl"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: peers.save_base(folder / family, family) for family in FAMILIES}


def trained(base: Path, path: Path, text: bool = True):
    pipe = DiffusionPipeline.from_pretrained(base)
    pipe.unet.add_adapter(KronAConfig(a1=4, a2=8, scale=0.5, factor_pattern={"to_k": (8, 16)}))
    tiny_models.random_factors(pipe.unet)
    for name in ("text_encoder", "text_encoder_2") if text else ():
        if getattr(pipe, name, None) is not None:
            config = KronAConfig(a1=8, a2=8, scale=0.2, target_modules=["q_proj", "v_proj"])
            getattr(pipe, name).add_adapter(config)
            tiny_models.random_factors(getattr(pipe, name))
    save_adapter(pipe, path)
    return pipe


def same(one, other, family: str, atol: float = 1e-5) -> None:
    with torch.no_grad():
        want = one.unet(**peers.base_inputs(family)).sample
        have = other.unet(**peers.base_inputs(family)).sample
        torch.testing.assert_close(have, want, atol=atol, rtol=0)
        ids = torch.arange(8)[None]
        for name in ("text_encoder", "text_encoder_2"):
            if getattr(one, name, None) is not None:
                want, have = getattr(one, name)(ids)[0], getattr(other, name)(ids)[0]
                torch.testing.assert_close(have, want, atol=atol, rtol=1e-4)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        want = one.vae.decode(latents).sample
        torch.testing.assert_close(other.vae.decode(latents).sample, want)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_into_a_folder(tmp_path: Path, bases, family) -> None:
    pipe = trained(bases[family], tmp_path / "a.safetensors")
    before = digest(bases[family])
    report = convert(tmp_path / "a.safetensors", tmp_path / "m", "merged", base=bases[family])
    same(pipe, DiffusionPipeline.from_pretrained(tmp_path / "m"), family)
    assert digest(bases[family]) == before
    assert report.relative < 1e-5
    assert {p.name for p in (tmp_path / "m").iterdir()} == {p.name for p in bases[family].iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_into_one_file_and_into_that_file_again(tmp_path: Path, bases, family) -> None:
    pipe = trained(bases[family], tmp_path / "a.safetensors")
    one = tmp_path / "model.safetensors"
    convert(tmp_path / "a.safetensors", one, "merged", base=bases[family])
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    options = {"config": str(bases[family]), "local_files_only": True}
    same(pipe, kind.from_single_file(str(one), **options), family)
    with safe_open(one, "pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert metadata["modelspec.architecture"].startswith("stable-diffusion")
    assert {"v_pred", "ztsnr"} <= keys or family != "sdxl"
    predicts = "v" if family == "sdxl" else "epsilon"  # as the folder says
    assert metadata["modelspec.prediction_type"] == predicts
    # The other way round: a base that is one file itself, from which the adapter is taken off.
    back = tmp_path / "back.safetensors"
    report = convert(tmp_path / "a.safetensors", back, "merged", base=one, weight=-1.0)
    assert report.relative < 1e-5
    plain = kind.from_single_file(str(back), **options)
    same(DiffusionPipeline.from_pretrained(bases[family]), plain, family)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_an_upsampler_into_one_file_with_and_without_attention_in_its_block(
    tmp_path: Path, family, block: int
) -> None:
    """Its place in the original layout depends on that."""
    torch.manual_seed(0)
    kinds = ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = peers.plain_unet(
        family, layers_per_block=2, block_out_channels=(32, 32, 64), attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=(kinds[0], kinds[1], kinds[1]),
    )  # fmt: skip
    tiny_models.save_pipeline(tmp_path / "base", family)
    unet.save_pretrained(tmp_path / "base" / "unet")
    name = f"up_blocks.{block}.upsamplers.0.conv"
    width = unet.get_submodule(name).weight.shape[0]
    stem, up = "lora_unet_" + name.replace(".", "_"), torch.randn(width, 2, 1, 1)
    change = {f"{stem}.lora_down.weight": torch.randn(2, width, 3, 3) * 0.1}
    save_file(change | {f"{stem}.lora_up.weight": up}, tmp_path / "locon.safetensors")
    convert(tmp_path / "locon.safetensors", tmp_path / "m", "merged", base=tmp_path / "base")
    for base, made in (("base", "one"), ("one.safetensors", "two")):
        file = tmp_path / f"{made}.safetensors"
        convert(tmp_path / "locon.safetensors", file, "merged", base=tmp_path / base)
    folder = load_file(tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors")
    one, two = (load_file(tmp_path / f"{made}.safetensors") for made in ("one", "two"))
    key = f"model.diffusion_model.output_blocks.{3 * block + 2}.{1 + block}.conv.weight"
    before = unet.get_parameter(f"{name}.weight")
    torch.testing.assert_close(one[key], folder[f"{name}.weight"])
    torch.testing.assert_close(two[key] - one[key], one[key] - before, atol=1e-5, rtol=1e-4)


def test_half_precision(tmp_path: Path, bases) -> None:
    pipe = trained(bases["sd1"], tmp_path / "a.safetensors", text=False)
    half = Options(dtype=torch.float16)
    for name in ("m", "m.safetensors"):
        report = convert(
            tmp_path / "a.safetensors", tmp_path / name, "merged", base=bases["sd1"], options=half
        )
        assert 0 < report.largest < 1e-3
    stored = load_file(tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors")
    want = pipe.unet.state_dict()
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    layer = pipe.unet.get_submodule(key)
    rounded = (want[f"{key}.base_layer.weight"] + layer.get_delta_weight("default")).half()
    assert torch.equal(stored[f"{key}.weight"], rounded)
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert (tmp_path / "m.safetensors").stat().st_size < 7.5e6


def test_a_change_that_half_precision_rounds_away_gets_a_line(tmp_path: Path, bases) -> None:
    trained(bases["sd1"], tmp_path / "a.safetensors")
    for weight, lost in ((1.0, False), (1e-3, True)):
        report = convert(
            tmp_path / "a.safetensors", tmp_path / f"m{lost}", "merged", base=bases["sd1"],
            weight=weight, options=Options(dtype=torch.float16),
        )  # fmt: skip
        assert any("is lost: --dtype fp32" in line for line in report.lines()) == lost
        assert (report.relative > ROUNDED_AWAY) == lost


def test_a_mix_of_adapters_is_what_they_do_live(tmp_path: Path, bases) -> None:
    paths = []
    for seed in (1, 2):
        unet = DiffusionPipeline.from_pretrained(bases["sd1"]).unet
        unet.add_adapter(
            KronAConfig(a1=4 * seed, a2=8, output_order=["kron", "interleaved"][seed - 1])
        )
        tiny_models.random_factors(unet, seed=seed)
        paths.append(save_adapter(unet, tmp_path / f"{seed}.safetensors"))
    live = DiffusionPipeline.from_pretrained(bases["sd1"])
    load_adapter(live, paths[0], "one", weight=0.5)
    load_adapter(live, paths[1], "two", weight=-0.25)
    mixed = {"weight": 0.5, "adapters": [(paths[1], -0.25)]}
    convert(paths[0], tmp_path / "m", "merged", base=bases["sd1"], **mixed)
    same(live, DiffusionPipeline.from_pretrained(tmp_path / "m"), "sd1")
    convert(paths[0], tmp_path / "l.safetensors", "lora", **mixed)
    stock = DiffusionPipeline.from_pretrained(bases["sd1"])
    stock.load_lora_weights(tmp_path / "l.safetensors")
    same(live, stock, "sd1")
    with pytest.raises(UserError, match="not a sum of Kronecker products"):
        convert(paths[0], tmp_path / "t.safetensors", "krona", **mixed)


def test_equal_factors_mix_into_terms(tmp_path: Path) -> None:
    paths, unets = [], []
    for seed, letters in ((1, ["to_q", "to_k"]), (2, ["to_q"])):
        unet = peers.plain_unet()
        unet.add_adapter(KronAConfig(a1=4, a2=8, scale=0.5, target_modules=letters))
        tiny_models.random_factors(unet, seed=seed)
        paths.append(save_adapter(unet, tmp_path / f"{seed}.safetensors"))
        unets.append(unet)
    convert(paths[0], tmp_path / "t.safetensors", "krona", adapters=[(paths[1], 0.3)])
    live, terms = peers.plain_unet(), peers.plain_unet()
    load_adapter(live, paths[0], "one")
    load_adapter(live, paths[1], "two", weight=0.3)
    load_adapter(terms, tmp_path / "t.safetensors")
    torch.testing.assert_close(peers.output(terms), peers.output(live), atol=1e-5, rtol=0)
    assert (
        terms.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.krona_a["default"].dim() == 3
    )


def test_adapters_of_two_families_do_not_mix(tmp_path: Path, bases) -> None:
    trained(bases["sd1"], tmp_path / "1.safetensors", text=False)
    trained(bases["sdxl"], tmp_path / "x.safetensors", text=False)
    with pytest.raises(UserError, match="different base models: sd1, sdxl"):
        convert(
            tmp_path / "1.safetensors", tmp_path / "m.safetensors", "lora",
            adapters=[(tmp_path / "x.safetensors", 1.0)],
        )  # fmt: skip
    with pytest.raises(UserError, match=r"is for sdxl, the base .* is sd1"):
        convert(tmp_path / "x.safetensors", tmp_path / "m", "merged", base=bases["sd1"])
    unet = peers.plain_unet("sd1", block_out_channels=(32, 64), norm_num_groups=8)
    unet.add_adapter(KronAConfig(a1=4, a2=8))
    save_adapter(unet, tmp_path / "small.safetensors")
    with pytest.raises(UserError, match=r"does not fit the base.*attn1\.to_k is 64x64.*make 32x32"):
        convert(tmp_path / "small.safetensors", tmp_path / "m", "merged", base=bases["sd1"])
    assert not (tmp_path / "m").exists() and not list(tmp_path.glob(".m*"))


@pytest.mark.parametrize("as_file", [False, True])
def test_a_full_finetune_becomes_a_kronecker_adapter(tmp_path: Path, bases, as_file) -> None:
    """A change that is a sum of two products is found again; of one, what is lost is reported."""
    pipe = DiffusionPipeline.from_pretrained(bases["sd1"])
    generator = torch.Generator().manual_seed(0)
    for layer in peers.projections(pipe.unet).values():
        for _ in range(2):
            a = torch.randn(4, 8, generator=generator)
            b = torch.randn(layer.out_features // 4, layer.in_features // 8, generator=generator)
            layer.weight.data += 0.02 * torch.kron(a, b)
    pipe.unet.conv_in.bias.data += 1
    pipe.save_pretrained(tmp_path / "tuned")
    tuned = tmp_path / "tuned"
    if as_file:
        nothing = peers.plain_unet()
        nothing.add_adapter(KronAConfig(a1=4, a2=8, target_modules=["to_q"]))
        save_adapter(nothing, tmp_path / "zero.safetensors")
        tuned = tmp_path / "tuned.safetensors"
        convert(tmp_path / "zero.safetensors", tuned, "merged", base=tmp_path / "tuned")
    run = lambda terms: convert(  # noqa: E731
        tuned, tmp_path / f"{terms}.safetensors", "krona", base=bases["sd1"],
        options=Options(a1=4, a2=8, terms=terms),
    )  # fmt: skip
    one, two = run(1), run(2)
    assert two.relative < 1e-4 < 0.3 < one.relative < 0.8
    assert len(two.errors) == 32
    assert as_file or any("conv_in.bias" in note for note in two.notes)
    load_adapter(
        pipe := DiffusionPipeline.from_pretrained(bases["sd1"]), tmp_path / "2.safetensors"
    )
    want = DiffusionPipeline.from_pretrained(tmp_path / "tuned")
    want.unet.conv_in.bias.data -= 1
    same(want, pipe, "sd1", atol=1e-4)
    report = convert(
        tuned, tmp_path / "l.safetensors", "lora", base=bases["sd1"], options=Options(rank=4)
    )
    assert 0 < report.relative < 1
    with pytest.raises(UserError, match="whole model: add --base"):
        convert(tuned, tmp_path / "x.safetensors", "krona")


def test_an_index_may_not_name_files_elsewhere(tmp_path: Path, bases) -> None:
    trained(bases["sd1"], tmp_path / "a.safetensors", text=False)
    shutil.copytree(bases["sd1"], tmp_path / "base")
    folder = tmp_path / "base" / "unet"
    (folder / "diffusion_pytorch_model.safetensors").rename(tmp_path / "base" / "w.safetensors")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../w.safetensors"}}))
    with pytest.raises(UserError, match="outside its folder"):
        convert(tmp_path / "a.safetensors", tmp_path / "m", "merged", base=tmp_path / "base")
    for damaged in ('{"weight_map": []}', '{"weight_map": {"a": ["b"]}}', "{}", "[" * 5000):
        index.write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            convert(tmp_path / "a.safetensors", tmp_path / "m", "merged", base=tmp_path / "base")


def test_a_sharded_base(tmp_path: Path, bases) -> None:
    pipe = trained(bases["sd1"], tmp_path / "a.safetensors")
    shutil.copytree(bases["sd1"], tmp_path / "base")
    folder = tmp_path / "base" / "unet"
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    names, keys = ["a.safetensors", "b.safetensors"], sorted(tensors)
    halves = [keys[::2], keys[1::2]]
    for name, half in zip(names, halves, strict=True):
        save_file({k: tensors[k] for k in half}, folder / name)
    # And as published models name CLIP: `text_model.`, and a buffer that is not a parameter.
    text = tmp_path / "base" / "text_encoder" / "model.safetensors"
    named = {"text_model." + k.removeprefix("text_model."): v for k, v in load_file(text).items()}
    named["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(named, text, metadata={"format": "pt"})
    # Parts may be links to another model's, and what is hidden stays behind.
    shutil.move(tmp_path / "base" / "scheduler", tmp_path / "elsewhere")
    (tmp_path / "base" / "scheduler").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "base" / ".cache").mkdir()
    (tmp_path / "base" / ".cache" / "token").write_text("secret")
    index = {"weight_map": {k: n for n, half in zip(names, halves, strict=True) for k in half}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    convert(tmp_path / "a.safetensors", tmp_path / "m", "merged", base=tmp_path / "base")
    same(pipe, DiffusionPipeline.from_pretrained(tmp_path / "m"), "sd1")
    assert len(list((tmp_path / "m" / "unet").iterdir())) == 2
    assert not (tmp_path / "m" / ".cache").exists()
    one = tmp_path / "one.safetensors"
    convert(tmp_path / "a.safetensors", one, "merged", base=tmp_path / "base")
    loaded = StableDiffusionPipeline.from_single_file(str(one), config=str(bases["sd1"]))
    same(pipe, loaded, "sd1")


def test_pickled_weights_are_not_opened(tmp_path: Path, bases) -> None:
    trained(bases["sd1"], tmp_path / "a.safetensors", text=False)
    shutil.copytree(bases["sd1"], tmp_path / "base")
    folder = tmp_path / "base" / "unet"
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="pickle"):
        convert(tmp_path / "a.safetensors", tmp_path / "m", "merged", base=tmp_path / "base")


def test_numbers_too_large_for_the_dtype_name_the_layer(tmp_path: Path, bases) -> None:
    pipe = trained(bases["sd1"], tmp_path / "a.safetensors", text=False)
    next(p for n, p in pipe.unet.named_parameters() if "krona_a" in n).data.fill_(1e6)
    save_adapter(pipe.unet, tmp_path / "a.safetensors")
    half = Options(dtype=torch.float16)
    with pytest.raises(UserError, match=r"unet\.\S+ does not fit in torch.float16"):
        convert(
            tmp_path / "a.safetensors", tmp_path / "m", "merged", base=bases["sd1"], options=half
        )
    assert not (tmp_path / "m").exists()


def test_memory_stays_far_below_the_model(tmp_path: Path) -> None:
    """A 400 MB "UNet" merges in a process that grows by less than half of that."""
    base = tmp_path / "base.safetensors"
    big = {f"model.diffusion_model.filler.{i}": torch.zeros(5_000_000) for i in range(20)}
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    save_file({**big, key: torch.zeros(64, 64)}, base)
    stem = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    lokr = {f"{stem}.lokr_w1": torch.ones(2, 2), f"{stem}.lokr_w2": torch.ones(32, 32)}
    save_file(lokr, tmp_path / "l.safetensors")
    code = (
        "import sys; from diffusekrona.common.cpu_memory import peak_resident\n"
        "from diffusekrona.formats.conversion import convert\n"
        "before = peak_resident()\n"
        "convert(sys.argv[1], sys.argv[2], 'merged', base=sys.argv[3])\n"
        "print(peak_resident() - before)\n"
    )
    arguments = [str(tmp_path / "l.safetensors"), str(tmp_path / "m.safetensors"), str(base)]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert int(run.stdout.splitlines()[-1]) < 200e6, run.stdout


def test_of_a_repository_only_what_the_model_consists_of_is_fetched() -> None:
    needed = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",  # there is no other
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    more = [
        "README.md",
        "sd_xl_base_1.0.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/model.onnx",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/flax_model.msgpack",
    ]
    assert needed_files([*more, *needed]) == needed
