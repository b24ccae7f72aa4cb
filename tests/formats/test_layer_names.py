"""One name a layer, from every way of writing it."""

from __future__ import annotations

import peers
import pytest
import tiny_models
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

from diffusekrona.common.errors import UserError
from diffusekrona.formats.delta_set import layers_from_metadata
from diffusekrona.formats.layer_names import kohya_stem, layer_name, names_of
from diffusekrona.formats.sgm_names import from_sgm, to_sgm

DOWN = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "unet.up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_out.0"
TEXT = "text_model.encoder.layers.3.self_attn.q_proj"


def random_lokr(out: int, columns: int, *kernel: int, kind: str = "whole", alpha: float = 1.0):
    """Tensors of a LoKr layer by its part's name, and the delta they mean."""
    a, c = (4, 8) if out % 4 == 0 and columns % 8 == 0 else (1, 1)
    b, d, rank = out // a, columns // c, 3
    size = 1
    for n in kernel:
        size *= n
    g = torch.Generator().manual_seed(out + columns)
    parts, whole = {}, {}
    for name, rows, width, product in (
        ("lokr_w1", a, c, kind in ("w1", "both")),
        ("lokr_w2", b, d * size, kind in ("w2", "both")),
    ):
        if product:
            left = torch.randn(rows, rank, generator=g) * 0.2
            right = torch.randn(rank, width, generator=g) * 0.2
            parts |= {f"{name}_a": left, f"{name}_b": right}
            whole[name] = left @ right
        else:
            whole[name] = torch.randn(rows, width, generator=g) * 0.2
            shaped = whole[name].reshape(rows, d, *kernel) if name == "lokr_w2" else whole[name]
            parts[name] = shaped.clone()
    parts["alpha"] = torch.tensor(alpha)
    scale = 1.0 if kind == "whole" else alpha / rank
    delta = torch.kron(whole["lokr_w1"], whole["lokr_w2"]) * scale
    return parts, delta.reshape(out, columns, *kernel)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", DOWN),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", DOWN),
        ("lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", DOWN),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q", DOWN),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", DOWN),
        ("base_model.model." + DOWN.removeprefix("unet."), DOWN),
        ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q", DOWN),
        ("lora_unet_output_blocks_2_1_transformer_blocks_9_attn2_to_out_0", OUT),
        ("unet.up_blocks.0.attentions.2.transformer_blocks.9.attn2.processor.to_out", OUT),
        ("lora_unet_middle_block_1_proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("lora_unet_output_blocks_5_2_conv", "unet.up_blocks.1.upsamplers.0.conv"),
        ("lora_unet_input_blocks_3_0_op", "unet.down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_input_blocks_4_0_in_layers_2", "unet.down_blocks.1.resnets.0.conv1"),
        ("lora_unet_time_embed_2", "unet.time_embedding.linear_2"),
        ("lora_unet_label_emb_0_0", "unet.add_embedding.linear_1"),
        ("lora_te_text_model_encoder_layers_3_self_attn_q_proj", f"text_encoder.{TEXT}"),
        ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj", f"text_encoder.{TEXT}"),
        ("lora_te2_text_model_encoder_layers_3_self_attn_q_proj", f"text_encoder_2.{TEXT}"),
        (f"text_encoder_2.{TEXT}", f"text_encoder_2.{TEXT}"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.to_q", f"text_encoder.{TEXT}"),
        ("text_encoders.clip_g.transformer." + TEXT, f"text_encoder_2.{TEXT}"),
    ],
)
def test_known_ways(stem, name) -> None:
    assert layer_name(stem) == name


@pytest.mark.parametrize(
    "stem",
    ["../../etc/passwd", "unet.__class__", "lora_unet_", "", "lora_unet_input_blocks_4_1_x",
     "transformer.single_blocks.0.attn.to_q", "lora_unet_down_blocks_9999999999_resnets_0_conv1"],
)  # fmt: skip
def test_strange_names_are_refused(stem) -> None:
    with pytest.raises(UserError, match="no such layer"):
        layer_name(stem, f"{stem}.key")


@given(st.text(max_size=80))
def test_no_text_does_harm(text) -> None:
    try:
        name = layer_name(text)
    except UserError:
        return
    assert name.partition(".")[0] in ("unet", "text_encoder", "text_encoder_2")


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_weighted_layer_of_a_unet_goes_there_and_back(family, layers) -> None:
    config = {k: v for k, v in tiny_models.unet(family).config.items() if not k.startswith("_")}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**{**config, "layers_per_block": layers})
    for name, module in unet.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            continue
        for sgm in (False, True):
            stem = kohya_stem(f"unet.{name}", sgm, True, layers)
            if not (sgm and "upsamplers" in name):  # its slot depends on the block
                assert layer_name(stem, layers=layers) == f"unet.{name}"
        sgm_name = to_sgm(name, layers)
        assert from_sgm(sgm_name, layers) == name
        if ".attentions." in name:
            assert sgm_name == peers.sgm_name(name, unet)


def test_mixtures_are_refused() -> None:
    text = "text_model_encoder_layers_0_self_attn_q_proj"
    with pytest.raises(UserError, match=r"two base families: lora_te_\S+ and lora_te1_"):
        names_of([f"lora_te_{text}", f"lora_te1_{text[:-6]}k_proj"], "f", 2)
    with pytest.raises(UserError, match="two ways of naming"):
        names_of(["lora_unet_middle_block_1_proj_in", "lora_unet_conv_in"], "f", 2)
    with pytest.raises(UserError, match="twice"):
        names_of(
            ["lora_unet_mid_block_attentions_0_proj_in", "mid_block.attentions.0.proj_in"], "f", 2
        )


@pytest.mark.parametrize("noted", ["", "0", "10", "x", "²", "9" * 5000])
def test_a_damaged_count_of_layers_is_the_published_models(noted: str) -> None:
    assert layers_from_metadata({"layers_per_block": noted}) == 2
    assert layers_from_metadata({"layers_per_block": "3"}) == 3
