"""Which linear layers a base model has, read off its config: no weights, no torch, milliseconds.

The layers that adapters go on follow from a few numbers of the config. Where a config asks for
anything that is not described here, the model itself is built without memory and looked at; that
takes seconds, most of them for the imports. Either way the answer is the same (tests compare them).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Shapes = dict[str, tuple[int, int]]  # module name to (out_features, in_features), in model order

# What diffusers' UNet2DConditionModel takes for a key that a config leaves out.
UNET_DEFAULTS: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
}
_PLAIN_BLOCKS = ("DownBlock2D", "UpBlock2D")
_ATTENTION_BLOCKS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
# Keys that would add or change linear layers of attention, unless they have one of these values.
_UNET_MUST_BE: dict[str, tuple[Any, ...]] = {
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": (False,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
    "reverse_transformer_layers_per_block": (None,),
    "num_attention_heads": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "class_embed_type": (None,),
    "addition_embed_type": (None, "text_time"),
}
# Keys of its other parts: convolutions, norms, embeddings of time and size.
_UNET_ELSEWHERE = (
    "sample_size in_channels out_channels center_input_sample flip_sin_to_cos freq_shift "
    "downsample_padding mid_block_scale_factor dropout act_fn norm_num_groups norm_eps "
    "use_linear_projection addition_time_embed_dim num_class_embeds upcast_attention "
    "resnet_time_scale_shift resnet_skip_time_act resnet_out_scale_factor time_embedding_type "
    "time_embedding_dim time_embedding_act_fn timestep_post_act time_cond_proj_dim conv_in_kernel "
    "conv_out_kernel projection_class_embeddings_input_dim class_embeddings_concat "
    "addition_embed_type_num_heads"
)
CLIP_DEFAULTS = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}


def linear_layers(kind: str, config: Mapping[str, Any]) -> Shapes:
    """The linear layers of a component that an adapter can go on.

    Args:
        kind: class name, such as "UNet2DConditionModel" or "CLIPTextModel".
        config: as its config.json has it.
    """
    known = _clip_layers(kind, config)
    if kind == "UNet2DConditionModel":
        known = unet_layers(config)
    return _layers_of_model(kind, config) if known is None else known


def _layers_of_model(kind: str, config: Mapping[str, Any]) -> Shapes:
    """The same from the model itself, for any config that the library knows."""
    from torch import nn

    from .backbones import build_empty, quiet_libraries

    quiet_libraries()
    modules = build_empty(kind, config).named_modules()
    return {
        name: (module.out_features, module.in_features)
        for name, module in modules
        if isinstance(module, nn.Linear)
    }


def unet_layers(config: Mapping[str, Any]) -> Shapes | None:
    """Attention and feed-forward of a UNet of SD's or SDXL's kind; None for any other."""
    known = {*UNET_DEFAULTS, *_UNET_MUST_BE, *_UNET_ELSEWHERE.split()}
    if any(key not in known and not key.startswith("_") for key in config):
        return None
    if any(config.get(key, allowed[0]) not in allowed for key, allowed in _UNET_MUST_BE.items()):
        return None
    config = {**UNET_DEFAULTS, **config}
    down, up = config["down_block_types"], config["up_block_types"]
    if config["mid_block_type"] != "UNetMidBlock2DCrossAttn" or len(down) != len(up):
        return None
    if not {*down, *up} <= {*_PLAIN_BLOCKS, *_ATTENTION_BLOCKS}:
        return None
    numbers = (
        "block_out_channels layers_per_block transformer_layers_per_block attention_head_dim "
        "cross_attention_dim"
    )
    columns = [_each(config[name], len(down)) for name in numbers.split()]
    if None in columns:
        return None
    blocks = list(zip(*columns, strict=True))  # from the outermost in
    layers: Shapes = {}
    for i, (channels, depth, transformers, heads, text) in enumerate(blocks):
        if down[i] in _ATTENTION_BLOCKS:
            parts = (f"down_blocks.{i}", depth, transformers, channels, heads, text)
            layers.update(_block_layers(*parts))
    for i, (channels, depth, transformers, heads, text) in enumerate(reversed(blocks)):
        if up[i] in _ATTENTION_BLOCKS:
            parts = (f"up_blocks.{i}", depth + 1, transformers, channels, heads, text)
            layers.update(_block_layers(*parts))
    channels, _, transformers, heads, text = blocks[-1]
    layers.update(_block_layers("mid_block", 1, transformers, channels, heads, text))
    return layers


def _each(value: Any, blocks: int) -> list[int] | None:
    """One positive number a block, from one for all or a list; None if it is neither."""
    values = list(value) if isinstance(value, list | tuple) else [value] * blocks
    positive = all(type(v) is int and v > 0 for v in values)
    return values if positive and len(values) == blocks else None


def _block_layers(
    block: str, depth: int, transformers: int, channels: int, heads: int, text: int
) -> Iterator[tuple[str, tuple[int, int]]]:
    """The layers of one block: `depth` attentions of `transformers` transformer blocks each."""
    inner = heads * (channels // heads)
    for i in range(depth):
        for j in range(transformers):
            here = f"{block}.attentions.{i}.transformer_blocks.{j}"
            for attention, source in (("attn1", inner), ("attn2", text)):
                yield f"{here}.{attention}.to_q", (inner, inner)
                yield f"{here}.{attention}.to_k", (inner, source)
                yield f"{here}.{attention}.to_v", (inner, source)
                yield f"{here}.{attention}.to_out.0", (inner, inner)
            yield f"{here}.ff.net.0.proj", (8 * inner, inner)  # GEGLU: value and gate
            yield f"{here}.ff.net.2", (inner, 4 * inner)


def _clip_layers(kind: str, config: Mapping[str, Any]) -> Shapes | None:
    """Every layer of a CLIP text encoder's transformer; None for any other model."""
    # transformers 5 nests the transformer in the one class and not in the other.
    inside = {"CLIPTextModel": "", "CLIPTextModelWithProjection": "text_model."}
    if kind not in inside or config.get("model_type") != "clip_text_model":
        return None
    width, hidden, depth = (config.get(key, value) for key, value in CLIP_DEFAULTS.items())
    layers = {}
    for i in range(depth):
        here = f"{inside[kind]}encoder.layers.{i}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            layers[f"{here}.self_attn.{projection}"] = (width, width)
        layers[f"{here}.mlp.fc1"] = (hidden, width)
        layers[f"{here}.mlp.fc2"] = (width, hidden)
    return layers
