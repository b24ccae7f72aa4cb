"""The original (LDM, SGM) layout of a whole model in one file, as ComfyUI and A1111 read it.

    model.diffusion_model.…          the UNet, see `sgm_names`
    first_stage_model.…              the VAE; its attention's projections are 1x1 convolutions
    cond_stage_model.transformer.…   SD 1.x: CLIP as transformers names it
    cond_stage_model.model.…         SD 2.x: OpenCLIP, with q, k, v fused into in_proj
    conditioner.embedders.0 / .1     SDXL: one of each

Source: CompVis/latent-diffusion, Stability-AI/generative-models, mlfoundations/open_clip; checked
against what diffusers' `from_single_file` reads back.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from ..bases.names import with_text_model, without_text_model
from ..bases.single_file_parts import UNET, VAE
from ..common.errors import UserError
from .layer_names import layer_name
from .metadata import names_in_files
from .sgm_names import to_sgm

ENCODERS = ("text_encoder", "text_encoder_2")

_VAE_RULES = (
    (r"(encoder|decoder)\.conv_norm_out\.(.+)", r"\1.norm_out.\2"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.group_norm\.(.+)", r"\1.mid.attn_1.norm.\2"),
    (
        r"(encoder|decoder)\.mid_block\.attentions\.0\.(?:to_)?(q|k|v)(?:uery|ey|alue)?\.(.+)",
        r"\1.mid.attn_1.\2.\3",
    ),
    (
        r"(encoder|decoder)\.mid_block\.attentions\.0\.(?:to_out\.0|proj_attn)\.(.+)",
        r"\1.mid.attn_1.proj_out.\2",
    ),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.(.+)", r"encoder.down.\1.downsample.\2"),
    (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", r"encoder.down.\1.block.\2.\3"),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.(.+)", r"decoder.up.\1.upsample.\2"),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", r"decoder.up.\1.block.\2.\3"),
)
_OPEN_CLIP = (
    (r"embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"final_layer_norm\.(.+)", r"ln_final.\1"),
    (r"encoder\.layers\.(\d+)\.layer_norm(1|2)\.(.+)", r"transformer.resblocks.\1.ln_\2.\3"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.(.+)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.(.+)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
    (
        r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.+)",
        r"transformer.resblocks.\1.attn.out_proj.\2",
    ),
    (
        r"encoder\.layers\.(\d+)\.self_attn\.(?:q|k|v)_proj\.(.+)",
        r"transformer.resblocks.\1.attn.in_proj_\2",
    ),
)


def unet_key(key: str, config: Mapping[str, Any]) -> str:
    """A diffusers UNet key to its place in the file. Raises UserError for one it lacks."""
    module, _, parameter = key.rpartition(".")
    layers = config.get("layers_per_block", 2)
    after_attention = False
    found = re.match(r"up_blocks\.(\d+)\.upsamplers", module)
    try:
        if found:
            after_attention = "CrossAttn" in config["up_block_types"][int(found[1])]
        return f"{UNET}{to_sgm(module, layers, after_attention)}.{parameter}"
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"The UNet's {key} has no place in the original layout.") from error


def vae_key(key: str, blocks: int) -> tuple[str, bool]:
    """A diffusers VAE key to its place, and whether a linear weight becomes a 1x1 convolution."""
    for pattern, to in _VAE_RULES:
        found = re.fullmatch(pattern, key)
        if found:
            name = found.expand(to)
            break
    else:
        found = re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d)\.(.+)", key)
        name = f"{found[1]}.mid.block_{int(found[2]) + 1}.{found[3]}" if found else key
    # The original counts the decoder's blocks from the last.
    name = re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{blocks - 1 - int(m[1])}", name)
    name = name.replace("conv_shortcut", "nin_shortcut")
    return VAE + name, bool(re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", name))


def up_blocks(keys: Iterable[str]) -> int:
    """How many blocks a diffusers VAE's decoder has."""
    found = (re.match(r"decoder\.up_blocks\.(\d{1,3})\.", key) for key in keys)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def text_key(key: str, layout: str, prefix: str) -> tuple[str, int | None, bool] | None:
    """A transformers CLIP key to (key in the file, part of a fused q/k/v, whether transposed).

    None for what the file has no place for (buffers that are computed again).
    """
    if layout == "clip":
        return prefix + with_text_model(key), None, False
    bare = without_text_model(key)
    if bare == "text_projection.weight":
        return prefix + "text_projection", None, True
    if bare.endswith("position_ids"):
        return None
    for pattern, to in _OPEN_CLIP:
        found = re.fullmatch(pattern, bare)
        if found:
            fused = re.search(r"self_attn\.(q|k|v)_proj", bare)
            return prefix + found.expand(to), "qkv".index(fused[1]) if fused else None, False
    raise UserError(f"The text encoder's {key} has no place in the original layout.")


def text_place(component: str, family: str | None) -> tuple[str, str] | None:
    """Layout and prefix of a text encoder in a family's files; None if they have no such one.

    Raises:
        UserError: no such family, or one that has no such files.
    """
    known = names_in_files(family) if family else None
    if known is None or component not in ENCODERS[: len(known.text_layouts)]:
        return None
    index = ENCODERS.index(component)
    return known.text_layouts[index], known.text_prefixes[index]


def locate(
    name: str, family: str | None, layers: int, keys: Container[str], parameter: str = "weight"
) -> tuple[str, int | None]:
    """Layer name to (key of its weight or bias in the file, which third of it or None).

    Args:
        keys: all of the file, which show where upsamplers are: after an attention or not.

    Raises:
        UserError: the original layout, or the family's files, have no such layer.
    """
    component, _, path = name.partition(".")
    if component == "unet":
        try:
            first, other = (f"{UNET}{to_sgm(path, layers, a)}.{parameter}" for a in (True, False))
        except ValueError as error:
            raise UserError(f"{name} has no place in the original layout.") from error
        return other if other in keys else first, None
    place = text_place(component, family)
    found = text_key(f"{path}.{parameter}", *place) if place else None
    if found is None:
        raise UserError(f"{name}: this family of models has no {component}.")
    return found[0], found[1]


def projections(key: str, family: str | None, layers: int) -> Iterator[str]:
    """Layer names of the attention projections whose weight is under a key of the file."""
    if key.startswith(UNET) and re.search(r"attn[12]\.to_(q|k|v|out\.0)\.weight$", key):
        yield layer_name(key.removesuffix(".weight"), layers=layers)
        return
    known = names_in_files(family) if family else None
    for i, prefix in enumerate(known.text_prefixes if known else ()):
        if not key.startswith(prefix):
            continue
        rest = key.removeprefix(prefix)
        own = re.fullmatch(r"(text_model\.encoder\.layers\.\d+\.self_attn\.\w+_proj)\.weight", rest)
        if own:
            yield f"{ENCODERS[i]}.{own[1]}"
        fused = re.fullmatch(
            r"transformer\.resblocks\.(\d+)\.attn\.(in_proj_|out_proj\.)weight", rest
        )
        if fused:
            for which in ("q", "k", "v") if fused[2] == "in_proj_" else ("out",):
                yield f"{ENCODERS[i]}.text_model.encoder.layers.{fused[1]}.self_attn.{which}_proj"


def layers_per_block(keys: Iterable[str]) -> int:
    """Resnets per down block: the original's first downsampler comes after them."""
    numbers = [
        int(m[1])
        for m in (re.match(re.escape(UNET) + r"input_blocks\.(\d+)\.0\.op\.", k) for k in keys)
        if m
    ]
    return min(numbers) - 1 if numbers else 2
