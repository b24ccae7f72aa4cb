"""The place of an adapted layer in its model, as groups of layers are weighted and reported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """The position of a layer.

    Attributes:
        block: "down.0", "mid", "up.1" of a UNet, "layers.3" of a transformer, or the text
            encoder's name.
        position: the layer's numbers inside its block, such as "0.1".
        attention: "self", "cross", "joint", "text" (a text encoder's), "feed-forward" or "other".
        projection: "q", "k", "v", "o" or "ff".
    """

    block: str
    position: str
    attention: str
    projection: str

    def group(self, kind: str) -> str:
        """The layer's group of a kind: "blocks", "projections" or "attention"."""
        return {"blocks": self.block, "projections": self.projection}.get(kind, self.attention)


def projection_of(name: str, letters: Mapping[str, tuple[str, ...]]) -> str:
    """The letter whose layers' names end as this one's; "ff" if there is none."""
    for letter, ends in letters.items():
        if any(name == end or name.endswith(f".{end}") for end in ends):
            return letter
    return "ff"


def transformer_place(name: str, letters: Mapping[str, tuple[str, ...]], attention: str) -> Place:
    """The place of a layer of a transformer whose numbered blocks are listed in its top level.

    Args:
        letters: k, q, v, o to the ends of layer names.
        attention: kind of the model's attention, such as "joint".
    """
    match = re.match(r"(\w+\.\d+)\.", name)
    projection = projection_of(name, letters)
    kind = "feed-forward" if projection == "ff" else attention
    return Place(match[1] if match else name.partition(".")[0], "", kind, projection)
