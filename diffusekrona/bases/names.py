"""How layers are called in other programs' files: those of a family's denoiser, and CLIP's.

diffusers names them as its modules; a publisher's own code has names of its own, and may compute in
one layer what are several in diffusers. Layers that a family splits for training (`split_fused`)
are whole in every file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

Slices = tuple[slice, slice]
_TEXT_MODEL = "text_model."  # around CLIP's text encoder; newer versions of transformers have none
_IN_TEXT_MODEL = ("encoder.", "embeddings.", "final_layer_norm.")


def with_text_model(name: str) -> str:
    """A layer's or tensor's name in a CLIP text encoder, with `text_model.` where that belongs."""
    return _TEXT_MODEL + name if name.startswith(_IN_TEXT_MODEL) else name


def without_text_model(name: str) -> str:
    """The same name without `text_model.`."""
    return name.removeprefix(_TEXT_MODEL)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerNames:
    """Names of layers; a path is `transformer_blocks.0.attn.to_q`, without the component.

    Attributes:
        denoiser: component name in a pipeline.
        block_layers: lists of blocks to the layers in each that other programs' files may hold, by
            diffusers' names; for families whose files have these names.
        other_names: lists of blocks as the publisher's own code calls them, to the list's name here
            and the names of its layers there and here. A list of the same name may leave layers of
            the same name out.
        joint_layers: layers of the publisher's code that are several here: the last part of their
            name, as `other_names` has it, to the parts' last names. Their rows are shared equally.
        toolkit_has_publisher_names: whether ai-toolkit trains the publisher's modules, not
            diffusers'.
    """

    denoiser: str
    block_layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    other_names: Mapping[str, tuple[str, Mapping[str, str]]] = field(
        default_factory=dict[str, tuple[str, Mapping[str, str]]]
    )
    joint_layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    toolkit_has_publisher_names: bool = False

    def read_layer(self, stem: str) -> str | None:
        """A layer's path in the denoiser from its name in another program's file, without its
        tensor's own name; None for one that this family does not have (`block_layers`,
        `other_names`)."""
        text = stem.replace(".", "_").removeprefix("base_model_model_")
        heads = ("", "lora_unet_", "lycoris_", "diffusion_model_", f"{self.denoiser}_")
        own = {
            blocks: (blocks, {n: n for n in names}) for blocks, names in self.block_layers.items()
        }
        for named in (own, self.other_names):
            for theirs, (blocks, layers) in named.items():
                match = re.fullmatch(rf"(?:{'|'.join(heads)}){theirs}_(\d{{1,3}})_(\w+)", text)
                for there, layer in layers.items() if match else ():
                    if match and match[2] == there.replace(".", "_"):
                        return f"{blocks}.{match[1]}.{layer}"
        return None

    def publisher_name(self, path: str) -> str | None:
        """A whole layer's path in the publisher's own code; None for one that it does not have."""
        match = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", path)
        for theirs, (blocks, layers) in self.other_names.items():
            if match and match[1] == blocks:
                names = {ours: there for there, ours in layers.items()}
                same = theirs == blocks and match[3] in self.block_layers[blocks]
                there = names.get(match[3]) or (match[3] if same else None)
                return there and f"{theirs}.{match[2]}.{there}"
        return None

    def file_name(self, path: str) -> str:
        """A layer's path as other programs' files may have it, which `read_layer` reads."""
        return path

    # --- layers in one of another's -------------------------------------------------------------

    def fused_part(self, path: str) -> tuple[str, str] | None:
        """Of a layer that `split_fused` made: the layer that it is a slice of, and which part."""
        return None

    def fused_shape(self, part: str, shape: tuple[int, int]) -> tuple[int, int]:
        """(out, in) of that layer, from a part's name and (out, in)."""
        return shape

    def joint_part(self, path: str) -> tuple[str, str] | None:
        """Of a layer that the publisher's code computes with others: that layer, and which part."""
        head, _, last = path.rpartition(".")
        for joint, parts in self.joint_layers.items():
            if last in parts and self.publisher_name(f"{head}.{joint}"):
                return f"{head}.{joint}", last
        return None

    def joint_shape(self, path: str, shape: tuple[int, int]) -> tuple[int, int]:
        """(out, in) of that layer, from its path and a part's (out, in)."""
        return len(self.joint_layers[path.rpartition(".")[2]]) * shape[0], shape[1]

    def fused_slices(self, path: str, shape: tuple[int, int]) -> dict[str, Slices]:
        """Part to its rows and columns in a layer of (out, in) that is several layers in training;
        {} for any other."""
        parts = self.joint_layers.get(path.rpartition(".")[2], ())
        height, every = shape[0] // max(len(parts), 1), slice(None)
        return {name: (slice(n * height, (n + 1) * height), every) for n, name in enumerate(parts)}

    def part_name(self, path: str, part: str) -> str:
        """The name of a part of `fused_slices`, a layer of the denoiser as training has it."""
        head, _, last = path.rpartition(".")
        return f"{head}.{part}" if last in self.joint_layers else f"{path}.{part}"
