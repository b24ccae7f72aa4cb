"""Files of PEFT, diffusers, kohya and LyCORIS whose meaning is easily lost: each with its value."""

from __future__ import annotations

import json
from pathlib import Path

import peers
import pytest
import tiny_models
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from diffusekrona import KronAConfig, load_adapter
from diffusekrona.common.errors import UserError
from diffusekrona.formats import merged
from diffusekrona.formats.conversion import convert
from diffusekrona.formats.report import Options

STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SKIP = Options(skip_unsupported=True)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def base_unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder / "unet").eval()


def same_output(one: torch.nn.Module, other: torch.nn.Module) -> None:
    torch.testing.assert_close(peers.output(one), peers.output(other), atol=1e-5, rtol=0)


def krona_output(path: Path) -> torch.nn.Module:
    unet = peers.plain_unet()
    load_adapter(unet, path)
    return unet


def lora_output(path: Path) -> torch.nn.Module:
    unet = peers.plain_unet()
    unet.load_lora_adapter(load_file(path), prefix="unet")
    return unet


# --- PEFT's own files ---------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["folder", "folder/adapter_model.safetensors"])
@pytest.mark.parametrize("source_format", [None, "peft"])
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=32, target_modules=["to_q"]),
        LoKrConfig(r=64, alpha=32, target_modules=["to_q"], init_weights=False),
        KronAConfig(a1=4, a2=8, scale=0.25),
    ],
    ids=["lora", "lokr", "krona"],
)
def test_peft_scales_are_kept_from_its_file(tmp_path, config, given, source_format) -> None:
    model = get_peft_model(peers.plain_unet(), config)
    if config.peft_type != "LOKR":
        tiny_models.random_factors(model)
    model.save_pretrained(tmp_path / "folder")
    target = "lora" if config.peft_type == "LORA" else "krona"
    out = tmp_path / "o.safetensors"
    convert(tmp_path / given, out, target, family="sd1", source_format=source_format)
    same_output(lora_output(out) if target == "lora" else krona_output(out), model)


@pytest.mark.parametrize("source_format", [None, "lora", "lokr", "peft"])
def test_peft_factors_without_their_config_are_refused(tmp_path: Path, source_format) -> None:
    model = get_peft_model(peers.plain_unet(), LoraConfig(r=4, target_modules=["to_q"]))
    model.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "adapter_model.safetensors").rename(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        convert(
            tmp_path / "a.safetensors", tmp_path / "o.safetensors", "lora", family="sd1",
            source_format=source_format,
        )  # fmt: skip


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora", "loftq", "corda", {"x": 1}])
def test_starts_that_change_the_base_are_refused(tmp_path: Path, start) -> None:
    model = get_peft_model(peers.plain_unet(), LoraConfig(r=4, target_modules=["to_q"]))
    tiny_models.random_factors(model)
    model.save_pretrained(tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"init_lora_weights": start}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="path_initial_model_for_weight_conversion"):
        convert(tmp_path / "peft", tmp_path / "o.safetensors", "lora", family="sd1")
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    noted = {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in config.items()})}
    bare = {k.replace("base_model.model.", "unet."): t for k, t in tensors.items()}
    save_file(bare, tmp_path / "d.safetensors", metadata=noted)
    with pytest.raises(UserError, match="path_initial_model_for_weight_conversion"):
        convert(tmp_path / "d.safetensors", tmp_path / "o.safetensors", "lora", family="sd1")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (LoraConfig(r=4, target_modules=["to_q"], modules_to_save=["conv_out"]), "modules_to_save"),
        (LoraConfig(r=4, target_modules=["to_out.0"], bias="lora_only"), "bias"),
        (
            LoKrConfig(r=64, target_modules=["to_q"], modules_to_save=["conv_out"]),
            "modules_to_save",
        ),
        (KronAConfig(a1=4, a2=8, modules_to_save=["conv_out"]), "modules_to_save"),
    ],
)
def test_weights_of_the_base_beside_the_factors(tmp_path, tiny_sd1, config, field) -> None:
    """What PEFT trains as a whole is named, and left out only when asked."""
    model = get_peft_model(base_unet(tiny_sd1), config)
    if config.peft_type != "LOKR":
        tiny_models.random_factors(model)
    model.save_pretrained(tmp_path / "peft")
    with pytest.raises(UserError, match=rf"\({field}\).*merge_and_unload.*--skip_unsupported"):
        convert(tmp_path / "peft", tmp_path / "m", "merged", base=tiny_sd1)
    report = convert(tmp_path / "peft", tmp_path / "m", "merged", base=tiny_sd1, options=SKIP)
    assert any(f"({field})" in note for note in report.notes)
    same_output(base_unet(tmp_path / "m"), model)  # whose own weights were not trained


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"use_bdlora": {"nblocks": 2}}, "a LoRA with use_bdlora is not two plain factors"),
        ({"kasa_config": {"beta": 1.0}}, "a LoRA with kasa_config"),
        ({"layer_replication": [[0, 1]]}, "a LoRA with layer_replication"),
        ({"use_what_is_to_come": True}, "merge_and_unload"),
        ({"use_dora": True}, "has no magnitude"),
        ({"peft_type": "IA3"}, "IA3 is not supported: merge it"),
    ],
)
def test_configs_that_say_more_than_the_tensors_are_refused(tmp_path: Path, field, says) -> None:
    model = get_peft_model(peers.plain_unet(), LoraConfig(r=4, target_modules=["to_q"]))
    model.save_pretrained(tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | field))
    with pytest.raises(UserError, match=says):
        convert(tmp_path / "peft", tmp_path / "o.safetensors", "lora", family="sd1")
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("effective", [False, True])
def test_peft_loha(tmp_path: Path, tiny_sd1: Path, effective: bool) -> None:
    """Its scale is the config's alpha / r, by layer; a convolution has cores or none."""
    config = LoHaConfig(
        r=2, alpha=6, rank_pattern={"to_k": 3}, alpha_pattern={"to_k": 4.5}, init_weights=False,
        target_modules=["to_q", "to_k", "conv1"], use_effective_conv2d=effective,
    )  # fmt: skip
    model = get_peft_model(base_unet(tiny_sd1), config)
    for name, parameter in model.named_parameters():
        if "hada" in name:
            parameter.data.mul_(0.1)
    model.save_pretrained(tmp_path / "peft")
    convert(tmp_path / "peft", tmp_path / "model", "merged", base=tiny_sd1)
    same_output(base_unet(tmp_path / "model"), model)


@pytest.mark.parametrize("head", ["unet.", ""])
@pytest.mark.parametrize(("component", "factor"), [("unet", 2.5), ("text_encoder", 1.0)])
def test_a_noted_alpha_is_kept_whatever_the_prefix(
    tmp_path: Path, head: str, component: str, factor: float
) -> None:
    down, up = random(4, 32, seed=1), random(32, 4, seed=2)
    tensors = {f"{head}{NAME}.lora_A.weight": down, f"{head}{NAME}.lora_B.weight": up}
    noted = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 10}}
    text = json.dumps({f"{component}.{key}": value for key, value in noted.items()})
    save_file(tensors, tmp_path / "in.safetensors", metadata={"lora_adapter_metadata": text})
    convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", "lora", family="sd1")
    back = load_file(tmp_path / "o.safetensors")
    made = back[f"unet.{NAME}.lora_B.weight"] @ back[f"unet.{NAME}.lora_A.weight"]
    torch.testing.assert_close(made, factor * up @ down)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480])
def test_a_header_as_long_as_a_pickles_mark(tmp_path: Path, length: int) -> None:
    """The first two bytes of the file are those of a pickle then."""
    down, up = random(4, 32, seed=1), random(32, 4, seed=2)
    tensors = {f"{STEM}.lora_down.weight": down, f"{STEM}.lora_up.weight": up}
    save_file(tensors, tmp_path / "in.safetensors", metadata={"note": ""})
    raw = (tmp_path / "in.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].ljust(length)
    (tmp_path / "in.safetensors").write_bytes(
        length.to_bytes(8, "little") + header + raw[8 + size :]
    )
    report = convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", "lora", family="sd1")
    assert report.layers == 1


def test_pissa_as_peft_converts_it(tmp_path: Path) -> None:
    """PEFT's own plain LoRA of a PiSSA adapter is read, and is right on the untouched base."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], init_lora_weights="pissa")
    model = get_peft_model(peers.plain_unet(), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += random(*parameter.shape, seed=len(name))
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    convert(tmp_path / "plain", tmp_path / "o.safetensors", "lora", family="sd1")
    same_output(lora_output(tmp_path / "o.safetensors"), model)


# --- what diffusers saves ------------------------------------------------------------------------


def test_patterns_of_a_lokr_that_diffusers_saved(tmp_path: Path, tiny_sd1: Path) -> None:
    """Ranks and alphas by layer and by component, in one file of `pipe.save_lora_weights`."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd1)
    unet_config = LoKrConfig(
        r=64, alpha=64, target_modules=["to_q", "to_k"], init_weights=False,
        rank_pattern={"to_q": 32}, alpha_pattern={"attn2.to_k": 16},
    )  # fmt: skip
    text_config = LoKrConfig(r=64, alpha=32, target_modules=["q_proj"], init_weights=False)
    pipe.unet.add_adapter(unet_config)
    pipe.text_encoder.add_adapter(text_config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "saved",
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder),
        unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=pipe.text_encoder.peft_config["default"].to_dict(),
    )
    convert(tmp_path / "saved", tmp_path / "model", "merged", base=tiny_sd1)
    made = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    same_output(made.unet, pipe.unet)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        want, have = pipe.text_encoder(ids)[0], made.text_encoder(ids)[0]
    torch.testing.assert_close(have, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", ["unet.save_lora_adapter", "pipe.save_lora_weights", "PEFT"])
def test_a_krona_adapter_that_others_saved_is_read(tmp_path: Path, how) -> None:
    config = KronAConfig(a1=4, a2=8, scale=0.5, terms=2, factor_pattern={"attn2.to_k": (2, 4)})
    unet = peers.plain_unet()
    if how == "PEFT":
        unet = get_peft_model(unet, config)
        tiny_models.random_factors(unet)
        unet.save_pretrained(tmp_path / "saved")
        file = "adapter_model.safetensors"
    else:
        unet.add_adapter(config)
        tiny_models.random_factors(unet)
        file = "pytorch_lora_weights.safetensors"
        if how.startswith("unet"):
            unet.save_lora_adapter(tmp_path / "saved")
        else:
            StableDiffusionPipeline.save_lora_weights(
                tmp_path / "saved",
                unet_lora_layers=get_peft_model_state_dict(unet),
                unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
            )
    for source in (tmp_path / "saved", tmp_path / "saved" / file):
        same_output(krona_output(source), unet)
        convert(source, tmp_path / "o.safetensors", "krona", family="sd1")
        same_output(krona_output(tmp_path / "o.safetensors"), unet)


# --- layers that are more than two factors -------------------------------------------------------


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_dora_is_exact_with_its_base(tmp_path: Path, tiny_sd1: Path, rank_stabilised) -> None:
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_v"], use_dora=True,
        use_rslora=rank_stabilised, init_lora_weights=False,
    )  # fmt: skip
    model = get_peft_model(base_unet(tiny_sd1), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter *= 1.3
    model.eval().save_pretrained(tmp_path / "peft")
    with pytest.raises(UserError, match=r"layers are DoRA.*add --base"):
        convert(tmp_path / "peft", tmp_path / "o.safetensors", "lora", family="sd1")
    convert(tmp_path / "peft", tmp_path / "model", "merged", base=tiny_sd1)
    same_output(base_unet(tmp_path / "model"), model)
    convert(tmp_path / "peft", tmp_path / "o.safetensors", "lora", base=tiny_sd1)
    unet = base_unet(tiny_sd1)
    unet.load_lora_adapter(load_file(tmp_path / "o.safetensors"), prefix="unet")
    same_output(unet, model)


def changed(tmp_path: Path, base: Path, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """A layer's weight after a file of these tensors was merged into the base."""
    save_file(tensors, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "model", "merged", base=base)
    return base_unet(tmp_path / "model").get_submodule(NAME).weight.data


def test_every_kind_of_layer_has_its_value(tmp_path: Path, tiny_sd1: Path) -> None:
    weight = base_unet(tiny_sd1).get_submodule(NAME).weight.data
    rows, columns = weight.shape
    down, up = random(3, columns, seed=1), random(rows, 3, seed=2)
    a1, a2, b1, b2 = random(columns, 3, seed=3), random(3, columns, seed=4), up, down
    moved = weight + 2 / 3 * up @ down
    lora = {f"{STEM}.lora_down.weight": down, f"{STEM}.lora_up.weight": up}
    alpha = {f"{STEM}.alpha": torch.tensor(2.0)}
    per_row, per_column = random(rows, 1, seed=5).abs(), random(1, columns, seed=6).abs()
    glora = dict(zip(("a1", "a2", "b1", "b2"), (a1, a2, b1, b2), strict=True))
    for tensors, want in [
        (lora | alpha, moved),
        (
            lora | alpha | {f"{STEM}.dora_scale": per_row},
            per_row * moved / moved.norm(dim=1, keepdim=True),
        ),
        (
            lora | alpha | {f"{STEM}.dora_scale": per_column},
            per_column * moved / moved.norm(dim=0, keepdim=True),
        ),
        (
            alpha | {f"{STEM}.{part}.weight": t for part, t in glora.items()},
            weight + 2 / 3 * (weight @ a1 @ a2 + b1 @ b2),
        ),
        (
            alpha
            | {
                f"{STEM}.hada_w{i}_{x}": t.clone()
                for i in (1, 2)
                for x, t in (("a", up), ("b", down))
            },
            weight + 2 / 3 * (up @ down) ** 2,
        ),
        ({f"{STEM}.diff": up @ down}, weight + up @ down),
    ]:
        torch.testing.assert_close(changed(tmp_path, tiny_sd1, tensors), want, atol=1e-5, rtol=1e-5)


def test_convolutions_of_other_kinds(tmp_path: Path, tiny_sd1: Path) -> None:
    """A LoHa with cores, a GLoRA, and a LoRA whose `up` is a matrix."""
    name, stem = "mid_block.resnets.0.conv1", "lora_unet_mid_block_resnets_0_conv1"
    weight = base_unet(tiny_sd1).get_submodule(name).weight.data
    out, channels, height, width = weight.shape
    up, down, core = random(out, 3), random(3, channels), random(3, 3, height, width)
    other, a1, a2 = random(3, 3, height, width, seed=1), random(channels, 3), random(3, channels)
    whole = random(3, channels, height, width)
    loha = {"hada_w1_a": up.mT, "hada_w1_b": down, "hada_t1": core}
    loha |= {"hada_w2_a": up.mT, "hada_w2_b": down, "hada_t2": other}
    one, two = (torch.einsum("or,rshw,si->oihw", up, t, down) for t in (core, other))
    glora = {"a1.weight": a1[:, :, None, None], "a2.weight": a2[:, :, None, None]}
    glora |= {"b1.weight": up[:, :, None, None], "b2.weight": whole}
    product = torch.einsum("or,rihw->oihw", up, whole)
    moved = torch.einsum("oihw,ir,rj->ojhw", weight, a1, a2)
    for parts, change in [
        (loha, one * two),
        (glora, moved + product),
        ({"lora_up.weight": up, "lora_down.weight": whole}, product),
    ]:
        tensors = {f"{stem}.{part}": tensor.contiguous().clone() for part, tensor in parts.items()}
        save_file(tensors | {f"{stem}.alpha": torch.tensor(2.0)}, tmp_path / "in.safetensors")
        kind = "lora" if "lora_up.weight" in parts else None
        convert(tmp_path / "in.safetensors", tmp_path / "m", "merged", base=tiny_sd1,
                source_format=kind)  # fmt: skip
        made = base_unet(tmp_path / "m").get_submodule(name).weight.data
        torch.testing.assert_close(made, weight + change * 2 / 3, atol=1e-5, rtol=1e-5)
    del tensors[f"{stem}.lora_up.weight"]
    save_file(tensors | {f"{stem}.hada_t1": core}, tmp_path / "in.safetensors")
    with pytest.raises(UserError, match="holds LoHa and LoRA"):
        convert(tmp_path / "in.safetensors", tmp_path / "m", "merged", base=tiny_sd1)


@pytest.mark.parametrize("network", ["convolution", "named in metadata"])
def test_a_dylora_is_read_as_a_lora_only_when_asked(tmp_path, tiny_sd1, network) -> None:
    """Its file does not hold the scale at which LyCORIS runs it, alpha / blocks of ranks."""
    metadata, stem, shape = {}, "lora_unet_mid_block_resnets_0_conv1", (4, 128, 3, 3)
    if network == "named in metadata":
        arguments = json.dumps({"algo": "dylora", "block_size": "2"})
        metadata = {"ss_network_module": "lycoris.kohya", "ss_network_args": arguments}
        stem, shape = STEM, (4, 128)
    up, down = random(128, 4), random(*shape, seed=1)
    tensors = {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
    tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    source = tmp_path / "in.safetensors"
    save_file(tensors, source, metadata=metadata)
    with pytest.raises(UserError, match=r"DyLoRA of LyCORIS.*--from lora"):
        convert(source, tmp_path / "o.safetensors", "lora", family="sd1")
    for target in ("lora", "lora-kohya"):
        report = convert(source, tmp_path / f"{target}.safetensors", target, family="sd1",
                         source_format="lora")  # fmt: skip
        assert any("DyLoRA" in note for note in report.notes)
        convert(tmp_path / f"{target}.safetensors", tmp_path / "m", "merged", base=tiny_sd1)
        name = "mid_block.resnets.0.conv1" if len(shape) == 4 else NAME
        weight, made = (base_unet(f).get_submodule(name).weight for f in (tiny_sd1, tmp_path / "m"))
        want = weight.flatten(1) + 2 / 4 * up @ down.flatten(1)
        torch.testing.assert_close(made.flatten(1), want, atol=1e-5, rtol=1e-5)


def test_a_scalar_beside_the_factors_is_named(tmp_path: Path) -> None:
    """LyCORIS multiplies it into the factors when it saves, and its loader sets it to 1."""
    tensors = {f"{STEM}.lokr_w1": random(4, 4), f"{STEM}.lokr_w2": random(32, 32)}
    save_file(tensors | {f"{STEM}.scalar": torch.tensor(0.5)}, tmp_path / "in.safetensors")
    with pytest.raises(UserError, match=r"scalar is not part of.*--skip_unsupported"):
        convert(tmp_path / "in.safetensors", tmp_path / "k.safetensors", "krona", family="sd1")
    convert(tmp_path / "in.safetensors", tmp_path / "k.safetensors", "krona", family="sd1",
            options=SKIP)  # fmt: skip
    unet = peers.plain_unet()
    unet.get_submodule(NAME).weight.data += torch.kron(*tensors.values())
    same_output(krona_output(tmp_path / "k.safetensors"), unet)


def test_convolutions_with_a_core(tmp_path: Path, tiny_sd1: Path) -> None:
    """LoCon's third factor and LoKr's Tucker core."""
    name, stem = "mid_block.resnets.0.conv1", "lora_unet_mid_block_resnets_0_conv1"
    weight = base_unet(tiny_sd1).get_submodule(name).weight.data
    out, channels, height, width = weight.shape
    up, mid, down = random(out, 3), random(3, 3, height, width), random(3, channels)
    locon = {
        f"{stem}.lora_up.weight": up[:, :, None, None],
        f"{stem}.lora_mid.weight": mid,
        f"{stem}.lora_down.weight": down[:, :, None, None],
        f"{stem}.alpha": torch.tensor(1.0),
    }
    want = weight + torch.einsum("or,rshw,si->oihw", up, mid, down) / 3
    save_file(locon, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "m", "merged", base=tiny_sd1)
    made = base_unet(tmp_path / "m").get_submodule(name).weight.data
    torch.testing.assert_close(made, want, atol=1e-5, rtol=1e-5)
    scale = random(1, channels, 1, 1, seed=7).abs()  # as wide as the rows, but per column
    save_file(locon | {f"{stem}.dora_scale": scale}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "m", "merged", base=tiny_sd1)
    made = base_unet(tmp_path / "m").get_submodule(name).weight.data
    norms = want.transpose(0, 1).flatten(1).norm(dim=1)[None, :, None, None]
    torch.testing.assert_close(made, want * scale / norms, atol=1e-5, rtol=1e-5)
    w1, a, b = random(4, 4), random(3, out // 4), random(3, channels // 4)
    w2 = torch.einsum("rshw,ro,si->oihw", mid, a, b).contiguous()
    lokr = {f"{stem}.lokr_w1": w1, f"{stem}.lokr_t2": mid, f"{stem}.lokr_w2_a": a}
    save_file(lokr | {f"{stem}.lokr_w2_b": b}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "m", "merged", base=tiny_sd1)
    made = base_unet(tmp_path / "m").get_submodule(name).weight.data
    want = weight + torch.kron(w1[:, :, None, None], w2)
    torch.testing.assert_close(made, want, atol=1e-5, rtol=1e-5)


def test_norm_layers_are_held_by_a_merged_model_alone(tmp_path: Path, tiny_sd1: Path) -> None:
    norm = "mid_block.attentions.0.transformer_blocks.0.norm1"
    stem = "lora_unet_" + norm.replace(".", "_")
    size = base_unet(tiny_sd1).get_submodule(norm).weight.numel()
    te = "lora_te_text_model_encoder_layers_0_layer_norm1"
    tensors = {
        f"{STEM}.lokr_w1": random(4, 4), f"{STEM}.lokr_w2": random(32, 32),
        f"{stem}.w_norm": random(size), f"{stem}.b_norm": random(size, seed=1),
        f"{te}.w_norm": random(64),
    }  # fmt: skip
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(UserError, match=r"3 changes of norms.*norm1\.weight.*--skip_unsupported"):
        convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", "lokr", family="sd1")
    report = convert(
        tmp_path / "in.safetensors", tmp_path / "o.safetensors", "lokr", family="sd1", options=SKIP
    )
    assert report.layers == 1 and any("left out 3 changes of norms" in n for n in report.notes)
    for destination in ("model", "one.safetensors"):
        convert(tmp_path / "in.safetensors", tmp_path / destination, "merged", base=tiny_sd1)
    pipes = [
        StableDiffusionPipeline.from_pretrained(tmp_path / "model"),
        StableDiffusionPipeline.from_single_file(
            str(tmp_path / "one.safetensors"), config=str(tiny_sd1)
        ),
    ]
    for pipe in pipes:
        made, plain = (u.get_submodule(norm) for u in (pipe.unet, base_unet(tiny_sd1)))
        torch.testing.assert_close(made.weight.data - plain.weight.data, random(size))
        torch.testing.assert_close(made.bias.data - plain.bias.data, random(size, seed=1))
        text = StableDiffusionPipeline.from_pretrained(tiny_sd1).text_encoder
        key = next(n for n, _ in text.named_parameters() if n.endswith("0.layer_norm1.weight"))
        gap = pipe.text_encoder.get_parameter(key) - text.get_parameter(key)
        torch.testing.assert_close(gap.data, random(64))


@pytest.mark.parametrize("destination", ["model", "one.safetensors"])
def test_norm_layers_alone_are_merged_and_compared(
    tmp_path: Path, tiny_sd1: Path, destination: str, monkeypatch
) -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_norm1"
    tensors = {f"{stem}.w_norm": random(128), f"{stem}.b_norm": random(128, seed=1)}
    save_file(tensors, tmp_path / "in.safetensors")
    given = (tmp_path / "in.safetensors", tmp_path / destination, "merged")
    report = convert(*given, base=tiny_sd1)
    assert (report.layers, report.parameters) == (1, 256) and report.relative < 1e-4
    assert report.worst_layer.startswith("unet.mid_block.attentions.0")
    lost = lambda base, ref, edits, dtype: base.load(ref)  # noqa: E731
    monkeypatch.setattr(merged, "merged_tensor", lost)
    assert convert(*given, base=tiny_sd1).relative == pytest.approx(1)


def test_textual_inversions_stay_in_kohyas_files(tmp_path: Path) -> None:
    bundled = {"bundle_emb.dog.string_to_param.*": random(2, 768)}
    lokr = {f"{STEM}.lokr_w1": random(4, 4), f"{STEM}.lokr_w2": random(32, 32)}
    save_file(lokr | bundled, tmp_path / "in.safetensors")
    for target in ("lokr", "lora-kohya"):
        convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", target, family="sd1")
        (key,) = bundled
        assert torch.equal(load_file(tmp_path / "o.safetensors")[key], bundled[key])
    with pytest.raises(UserError, match=r"textual inversions.*bundle_emb\.dog.*skip_unsupported"):
        convert(tmp_path / "in.safetensors", tmp_path / "k.safetensors", "krona", family="sd1")
    report = convert(tmp_path / "in.safetensors", tmp_path / "k.safetensors", "krona", options=SKIP)
    assert any("bundle_emb.dog" in note for note in report.notes)


def test_lokr_and_lora_layers_in_one_file(tmp_path: Path, tiny_sd1: Path) -> None:
    other = STEM.replace("to_q", "to_k")
    tensors = {
        f"{STEM}.lokr_w1": random(4, 4), f"{STEM}.lokr_w2": random(32, 32),
        f"{other}.lora_down.weight": random(2, 128), f"{other}.lora_up.weight": random(128, 2),
        f"{other}.alpha": torch.tensor(1.0),
    }  # fmt: skip
    save_file(tensors, tmp_path / "in.safetensors")
    unet = base_unet(tiny_sd1)
    unet.get_submodule(NAME).weight.data += torch.kron(random(4, 4), random(32, 32))
    k = unet.get_submodule(NAME.replace("to_q", "to_k")).weight.data
    k += random(128, 2) @ random(2, 128) / 2
    for target in ("lora", "lora-kohya", "lokr", "merged"):
        convert(tmp_path / "in.safetensors", tmp_path / f"{target}.safetensors", target,
                base=tiny_sd1)  # fmt: skip
        convert(tmp_path / f"{target}.safetensors", tmp_path / "m", "merged", base=tiny_sd1)
        same_output(base_unet(tmp_path / "m"), unet)
    assert sorted(k.rpartition(".")[2] for k in load_file(tmp_path / "lokr.safetensors")) == [
        "alpha", "alpha", "lokr_w1", "lokr_w2", "weight", "weight",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"to_k is not a sum of Kronecker.*--a1 and --a2"):
        convert(tmp_path / "in.safetensors", tmp_path / "k.safetensors", "krona", family="sd1")


def test_what_is_unknown_is_left_out_only_when_asked(tmp_path: Path) -> None:
    tensors = {f"{STEM}.lokr_w1": random(4, 4), f"{STEM}.lokr_w2": random(32, 32)}
    odd = {f"{STEM.replace('to_q', 'to_k')}.oft_blocks": random(2, 4, 4)}
    save_file(tensors | odd, tmp_path / "in.safetensors")
    with pytest.raises(UserError, match=r"oft_blocks is not part.*--skip_unsupported"):
        convert(tmp_path / "in.safetensors", tmp_path / "k.safetensors", "krona", family="sd1")
    report = convert(tmp_path / "in.safetensors", tmp_path / "k.safetensors", "krona",
                     family="sd1", options=SKIP)  # fmt: skip
    assert report.layers == 1 and any("oft_blocks" in note for note in report.notes)


@pytest.mark.parametrize(
    ("module", "arguments", "scale"),
    [
        ("networks.krona", {"krona_alpha": "6", "use_cdka_scale": "true"}, 3.0),  # 6 / sqrt(4)
        ("networks.krona", {"krona_alpha": "6"}, 1.0),
        ("networks.krona", {"cdka_alpha": "6"}, 1.0),  # later drafts keep it in the factors
        ("networks.cdka", {"cdka_alpha": "16"}, 1.0),
        ("lycoris.kohya", {"krona_alpha": "6", "use_cdka_scale": "true"}, 1.0),
    ],
)
def test_kronecker_networks_of_kohyas_pull_request(tmp_path, module, arguments, scale) -> None:
    w1, w2 = random(64, 4), random(2, 32)  # (out / r1, r2) and (r1, in / r2)
    tensors = {f"{STEM}.lokr_w1": w1, f"{STEM}.lokr_w2": w2, f"{STEM}.alpha": torch.tensor(6.0)}
    noted = {"ss_network_module": module, "ss_network_args": json.dumps(arguments)}
    save_file(tensors, tmp_path / "in.safetensors", metadata=noted)
    convert(tmp_path / "in.safetensors", tmp_path / "k.safetensors", "krona", family="sd1")
    unet = peers.plain_unet()
    unet.get_submodule(NAME).weight.data += scale * torch.kron(w1, w2)
    same_output(krona_output(tmp_path / "k.safetensors"), unet)


# --- families and targets ----------------------------------------------------------------------


def lokr_of(layers: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    tensors = {}
    for stem, (out, columns) in layers.items():
        tensors[f"{stem}.lokr_w1"] = random(4, 4)
        tensors[f"{stem}.lokr_w2"] = random(out // 4, columns // 4)
    return tensors


SD1 = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (320, 320),
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (640, 768),
}
SDXL = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (640, 640),
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (640, 2048),
    "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280),
}


@pytest.mark.parametrize("target", ["lokr", "krona", "lora", "lora-kohya", "lokr-lycoris"])
@pytest.mark.parametrize(
    ("layers", "family", "says"),
    [
        (SD1, "sdxl", "--family sdxl: .* sd1"),
        (dict([next(iter(SD1.items()))]), "sdxl", "--family sdxl: .* sd1 or sd2"),
        (SD1, "sd2", "--family sd2: .* sd1"),
        (SDXL, "sd1", "--family sd1: .* sdxl"),
        ({**SD1, "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280)}, None,
         "mixes base models"),
        ({**SD1, "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": (64, 64)}, None,
         "mixes base models"),
    ],
)  # fmt: skip
def test_a_wrong_family_is_refused(tmp_path, layers, family, says, target) -> None:
    save_file(lokr_of(layers), tmp_path / "in.safetensors")
    with pytest.raises(UserError, match=says):
        convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", target, family=family)


@pytest.mark.parametrize("target", ["lokr-diffusers", "lokr-lycoris"])
def test_text_encoders_have_no_place_in_formats_of_one_unet(tmp_path: Path, target) -> None:
    save_file(lokr_of(SDXL), tmp_path / "in.safetensors")
    with pytest.raises(UserError, match=r"1 layers of text encoders.*text_encoder_2.*--to lora"):
        convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", target)
    report = convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", target, options=SKIP)
    assert report.layers == 2 and any("text_encoder_2" in note for note in report.notes)


def test_names_of_lycoris(tmp_path: Path) -> None:
    """What LyCORIS' wrapper calls a UNet's layers, whatever the family, and back again."""
    layers = {k: v for k, v in SDXL.items() if "te2" not in k}
    save_file(lokr_of(layers), tmp_path / "in.safetensors")
    report = convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", "lokr-lycoris")
    path = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = load_file(tmp_path / "o.safetensors")
    assert {k.partition(".")[0] for k in tensors if "attn1" in k} == {f"lycoris_{path}"}
    assert torch.equal(tensors[f"lycoris_{path}.lokr_w1"], random(4, 4))
    assert report.notes == []
    save_file(
        {f"{STEM}.lokr_w1": random(32, 32), f"{STEM}.lokr_w2": random(4, 4)},
        tmp_path / "in.safetensors",
    )
    report = convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", "lokr-lycoris")
    assert any("LyCORIS' loader will refuse" in note for note in report.notes)


@pytest.mark.parametrize(
    ("key", "kind"),
    [("oft_blocks", "an OFT"), ("on_input", r"an \(IA\)\^3"), ("lambda_layer", "a T-LoRA")],
)
def test_networks_that_no_other_format_holds_are_named(tmp_path, key: str, kind: str) -> None:
    stem = "lycoris_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    names = (f"{stem}.{key}", f"{stem}.alpha")
    save_file({name: torch.ones(2) for name in names}, tmp_path / "in.safetensors")
    with pytest.raises(UserError, match=f"is {kind}.*cannot be converted"):
        convert(tmp_path / "in.safetensors", tmp_path / "o.safetensors", "lora", family="sd1")
