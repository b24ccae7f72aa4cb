"""One name per layer, whatever program wrote it: `unet.down_blocks.1…`, `text_encoder.text_model…`.

Their names differ in prefix, in dots against underscores, and in diffusers' against the
original's block numbers. Every name is brought to underscores, read by the grammar of the models'
modules, and given back as component + module path. What the grammar does not know is refused: no
name from a file reaches the disk or an attribute look-up.

    kohya, LyCORIS        lora_unet_…, lora_te_…, lora_te1_…, lora_te2_…
    LyCORIS on its own    lycoris_…
    diffusers, PEFT       unet.…, text_encoder.…, text_encoder_2.…, base_model.model.…, or bare
    ComfyUI, OneTrainer   diffusion_model.…, text_encoders.clip_l.…, text_encoders.clip_g.…
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..bases.families import FAMILIES
from ..common.errors import UserError
from .sgm_names import LAYERS_PER_BLOCK, from_sgm, to_sgm

# The first that fits names the component; "" leaves it to the name's body.
_PREFIXES = (
    ("base_model_model_", ""),
    ("lora_unet_", "unet"),
    ("lycoris_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("model_diffusion_model_", "unet"),
    ("diffusion_model_", "unet"),
    ("unet_", "unet"),
    ("text_encoders_clip_l_", "text_encoder"),
    ("text_encoders_clip_g_", "text_encoder_2"),
    ("text_encoder_2_", "text_encoder_2"),
    ("text_encoder_", "text_encoder"),
)
_ATTENTION = (
    (
        r"transformer_blocks_(\d+)_(attn[12])_(?:processor_)?to_(q|k|v)",
        r"transformer_blocks.\1.\2.to_\3",
    ),
    (
        r"transformer_blocks_(\d+)_(attn[12])_(?:processor_)?to_out(?:_0)?",
        r"transformer_blocks.\1.\2.to_out.0",
    ),
    (r"transformer_blocks_(\d+)_ff_net_0_proj", r"transformer_blocks.\1.ff.net.0.proj"),
    (r"transformer_blocks_(\d+)_ff_net_2", r"transformer_blocks.\1.ff.net.2"),
    (r"transformer_blocks_(\d+)_norm(1|2|3)", r"transformer_blocks.\1.norm\2"),
    (r"proj_(in|out)", r"proj_\1"),
    (r"norm", "norm"),
)
_RESNET = ((r"(conv1|conv2|conv_shortcut|time_emb_proj|norm1|norm2)", r"\1"),)
_SAMPLER = ((r"conv", r"conv"),)
_SGM_REST = (
    *_ATTENTION,
    (r"in_layers_(0|2)", r"in_layers.\1"),
    (r"out_layers_(0|3)", r"out_layers.\1"),
    (r"emb_layers_1", "emb_layers.1"),
    (r"(skip_connection|op|conv)", r"\1"),
)
_OUTSIDE = (
    (r"(time|add)_embedding_linear_(1|2)", r"\1_embedding.linear_\2"),
    (r"conv_(in|out|norm_out)", r"conv_\1"),
)
_SGM_OUTSIDE = (
    (r"time_embed_(0|2)", r"time_embed.\1"),
    (r"label_emb_0_(0|2)", r"label_emb.0.\1"),
    (r"input_blocks_0_0", "input_blocks.0.0"),
    (r"out_(0|2)", r"out.\1"),
)
_TEXT_HEAD = r"(?:transformer_)?(?:text_model_)?"
_TEXT = (
    (
        _TEXT_HEAD + r"encoder_layers_(\d+)_self_attn_(?:to_)?(q|k|v|out)(?:_proj)?",
        r"text_model.encoder.layers.\1.self_attn.\2_proj",
    ),
    (
        _TEXT_HEAD + r"encoder_layers_(\d+)_mlp_fc(1|2)",
        r"text_model.encoder.layers.\1.mlp.fc\2",
    ),
    (
        _TEXT_HEAD + r"encoder_layers_(\d+)_layer_norm(1|2)",
        r"text_model.encoder.layers.\1.layer_norm\2",
    ),
    (_TEXT_HEAD + r"final_layer_norm", "text_model.final_layer_norm"),
    (r"(?:transformer_)?text_projection", "text_projection"),
)
_SGM_HEADS = ("input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_")


def layer_name(stem: str, key: str | None = None, layers: int = LAYERS_PER_BLOCK) -> str:
    """A stem of any program to `<component>.<module path in diffusers or transformers>`.

    Args:
        stem: the key without its tensor's own name (`.lokr_w1`, `.lora_down.weight` …).
        key: the whole key, for the message.
        layers: `layers_per_block` of the UNet, which the original's block numbers depend on.

    Raises:
        UserError: a layer that no Stable Diffusion model has; the key is named.
    """
    for family in FAMILIES.values():
        if known := family.read_layer(stem):
            return f"{family.denoiser}.{known}"
    text = stem.replace(".", "_")
    component = ""
    for prefix, named in _PREFIXES:
        if text.startswith(prefix):
            component, text = component or named, text[len(prefix) :]
            if component:
                break
    path = None
    if component in ("", "unet"):
        path = _unet_path(text, layers)
    if path is None and component != "unet":
        path = _read(_TEXT, text)
        component = component or "text_encoder"
    if path is None or len(stem) > 300:
        raise UserError(f"{key or stem}: no such layer in the supported base models.")
    return f"{component or 'unet'}.{path}"


def names_of(stems: Iterable[str], where: object, layers: int) -> dict[str, str]:
    """Stem to layer name for a whole file; refuses a file that mixes two ways of naming.

    Raises:
        UserError: two stems for one layer, SD's text encoder beside SDXL's, or the original's
            block names beside diffusers'.
    """
    names: dict[str, str] = {}
    owner: dict[str, str] = {}
    for stem in stems:
        name = layer_name(stem, layers=layers)
        if name in owner:
            raise UserError(f"{where} holds layer {name} twice: {owner[name]} and {stem}.")
        owner[name], names[stem] = stem, name
    _one_kind(where, names, ("lora_te_",), ("lora_te1_", "lora_te2_"), "base families")
    sgm = [s for s in names if names[s].startswith("unet.") and is_sgm(s)]
    others = [s for s in names if names[s].startswith("unet.") and not is_sgm(s)]
    if sgm and others:
        raise UserError(
            f"{where} mixes two ways of naming the UNet's blocks: {sgm[0]} and {others[0]}."
        )
    return names


def is_sgm(stem: str) -> bool:
    """Whether a stem uses the original's block names."""
    text = "_" + stem.replace(".", "_")
    return any("_" + head in text for head in _SGM_HEADS)


def kohya_stem(name: str, sgm: bool, numbered: bool, layers: int = LAYERS_PER_BLOCK) -> str:
    """Layer name to kohya's stem.

    Args:
        sgm: the original's block names in the UNet (what kohya trains SDXL under).
        numbered: `lora_te1_`/`lora_te2_`, for a family of two text encoders.
    """
    component, _, path = name.partition(".")
    if component == "unet":
        try:
            return "lora_unet_" + (to_sgm(path, layers) if sgm else path).replace(".", "_")
        except ValueError as error:
            raise UserError(f"{name} has no place in the original layout.") from error
    if component == "text_encoder_2" and not numbered:
        raise UserError(f"{name}: this family of base models has no second text encoder.")
    number = {"text_encoder": "1", "text_encoder_2": "2"}[component] if numbered else ""
    return f"lora_te{number}_" + path.replace(".", "_")


def is_convolution(name: str, linear_projection: bool = True) -> bool:
    """Whether a layer is a convolution, by its name.

    Args:
        linear_projection: whether the UNet's proj_in and proj_out are linear (all but SD 1.x).
    """
    last = name.rpartition(".")[2]
    if last in ("proj_in", "proj_out"):
        return not linear_projection
    return last in ("conv", "conv1", "conv2", "conv_shortcut", "conv_in", "conv_out")


def kernel_of(name: str) -> tuple[int, int]:
    """Kernel size of a convolution of these models, by its name."""
    return (1, 1) if name.endswith(("conv_shortcut", "proj_in", "proj_out")) else (3, 3)


def _unet_path(text: str, layers: int) -> str | None:
    found = re.fullmatch(r"(down|up)_blocks_(\d{1,2})_([a-z]+)_(\d{1,2})_(\w+)", text)
    if found:
        side, block, kind, item, rest = found.groups()
        rules = {"attentions": _ATTENTION, "resnets": _RESNET, f"{side}samplers": _SAMPLER}
        inner = _read(rules.get(kind, ()), rest)
        return inner and f"{side}_blocks.{block}.{kind}.{item}.{inner}"
    found = re.fullmatch(r"mid_block_(attentions|resnets)_(\d{1,2})_(\w+)", text)
    if found:
        kind, item, rest = found.groups()
        inner = _read(_ATTENTION if kind == "attentions" else _RESNET, rest)
        return inner and f"mid_block.{kind}.{item}.{inner}"
    path = _read(_OUTSIDE, text)
    if path is not None:
        return path
    found = re.fullmatch(r"(input_blocks|output_blocks)_(\d{1,2})_(\d)_(\w+)", text)
    if found:
        inner = _read(_SGM_REST, found[4])
        sgm = inner and f"{found[1]}.{found[2]}.{found[3]}.{inner}"
    else:
        found = re.fullmatch(r"middle_block_(\d)_(\w+)", text)
        inner = _read(_SGM_REST, found[2]) if found else None
        sgm = f"middle_block.{found[1]}.{inner}" if found and inner else _read(_SGM_OUTSIDE, text)
    try:
        return from_sgm(sgm, layers) if sgm else None
    except ValueError:
        return None


def _read(rules: Iterable[tuple[str, str]], text: str) -> str | None:
    for pattern, to in rules:
        found = re.fullmatch(pattern, text)
        if found:
            return found.expand(to)
    return None


def _one_kind(
    where: object, stems: Iterable[str], one: tuple[str, ...], other: tuple[str, ...], of: str
) -> None:
    first = next((s for s in stems if s.startswith(one)), None)
    second = next((s for s in stems if s.startswith(other)), None)
    if first and second:
        raise UserError(f"{where} mixes two {of}: {first} and {second}.")
