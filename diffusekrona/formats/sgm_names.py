"""Names of the original (LDM, SGM) UNet against those of diffusers'.

With L resnets a down block (`layers_per_block`, 2 in every published SD and SDXL model):

    down_blocks.i.resnets.j       input_blocks.((L+1)i + j + 1).0
    down_blocks.i.attentions.j    input_blocks.((L+1)i + j + 1).1
    down_blocks.i.downsamplers.0  input_blocks.((L+1)(i+1)).0.op
    mid_block.resnets.0 / .1      middle_block.0 / .2
    mid_block.attentions.0        middle_block.1
    up_blocks.i.resnets.j         output_blocks.((L+1)i + j).0
    up_blocks.i.attentions.j      output_blocks.((L+1)i + j).1
    up_blocks.i.upsamplers.0      output_blocks.((L+1)i + L).1 or, after an attention, .2

Source: CompVis/latent-diffusion and Stability-AI/generative-models, `openaimodel.py`; the same
counting as kohya's, ComfyUI's and diffusers' own conversion tables.
"""

from __future__ import annotations

import re

LAYERS_PER_BLOCK = 2

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_FROM_RESNET = {sgm: name for name, sgm in _RESNET.items()}
_FROM_OUTSIDE = {sgm: name for name, sgm in _OUTSIDE.items()}


def to_sgm(
    path: str, layers: int = LAYERS_PER_BLOCK, upsampler_after_attention: bool = True
) -> str:
    """A diffusers UNet module path to the original's. Raises ValueError for a path it lacks.

    Args:
        layers: `layers_per_block` of the UNet.
        upsampler_after_attention: whether the up block of an upsampler has attentions.
    """
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", path)
    if found:
        side, block, kind, item, rest = found.groups()
        i, j = int(block), int(item)
        if kind == "downsamplers" and side == "down":
            return f"input_blocks.{(layers + 1) * (i + 1)}.0.{rest.replace('conv', 'op', 1)}"
        if kind == "upsamplers" and side == "up":
            slot = 2 if upsampler_after_attention else 1
            return f"output_blocks.{(layers + 1) * i + layers}.{slot}.{rest}"
        number = (layers + 1) * i + j + (1 if side == "down" else 0)
        head = f"{'input' if side == 'down' else 'output'}_blocks.{number}"
        if kind == "attentions":
            return f"{head}.1.{rest}"
        if kind == "resnets" and rest in _RESNET:
            return f"{head}.0.{_RESNET[rest]}"
    found = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", path)
    if found:
        kind, j, rest = found.group(1), int(found.group(2)), found.group(3)
        if kind == "attentions" and j == 0:
            return f"middle_block.1.{rest}"
        if kind == "resnets" and rest in _RESNET:
            return f"middle_block.{2 * j}.{_RESNET[rest]}"
    raise ValueError(f"{path} has no place in the original layout")


def from_sgm(path: str, layers: int = LAYERS_PER_BLOCK) -> str:
    """The inverse of `to_sgm`. Raises ValueError."""
    if path in _FROM_OUTSIDE:
        return _FROM_OUTSIDE[path]
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)", path)
    if found:
        side, number, slot, rest = found[1], int(found[2]), int(found[3]), found[4]
        down = side == "input"
        i, j = divmod(number - 1 if down else number, layers + 1)
        block = f"{'down' if down else 'up'}_blocks.{i}"
        if down and slot == 0 and rest == "op":
            return f"down_blocks.{i}.downsamplers.0.conv"
        if not down and rest == "conv" and slot in (1, 2):
            return f"{block}.upsamplers.0.conv"
        if slot == 1:
            return f"{block}.attentions.{j}.{rest}"
        if slot == 0 and rest in _FROM_RESNET:
            return f"{block}.resnets.{j}.{_FROM_RESNET[rest]}"
    found = re.fullmatch(r"middle_block\.(\d+)\.(.+)", path)
    if found:
        slot, rest = int(found[1]), found[2]
        if slot == 1:
            return f"mid_block.attentions.0.{rest}"
        if rest in _FROM_RESNET:
            return f"mid_block.resnets.{slot // 2}.{_FROM_RESNET[rest]}"
    raise ValueError(f"{path} is not a module of the original layout")
