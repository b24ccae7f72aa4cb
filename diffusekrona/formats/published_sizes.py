"""Whether an adapter's layers are those of a family's published models, by names and sizes.

Other bases have layers of the same names: FLUX.1 and FLUX.2-dev those of FLUX.2-klein.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from ..adapters.deltas import Delta
from ..bases.base import Family
from ..bases.meta import linear_layers
from ..bases.published import REPOSITORIES
from ..common.errors import UserError
from .needs_base import NeedsBase

Shape = tuple[int, int]


@functools.cache
def published_layers(family: Family) -> tuple[Mapping[str, Shape], ...]:
    """Layer to (out, in) of each published model of a family, largest first."""
    found = []
    for files in REPOSITORIES.values():
        config = files.get(f"{family.denoiser}/config.json", {})
        if family.resembles(config) and config not in found:
            found.append(config)
    layers = [linear_layers(family.empty_denoiser(config)) for config in found]
    return tuple(sorted(layers, key=len, reverse=True))


def check_published(layers: Mapping[str, Delta | NeedsBase], family: Family, where: object) -> None:
    """Refuse an adapter whose layers are in none of a family's published models.

    Raises:
        UserError: the layer is named.
    """
    shapes = dict[str, Shape]()
    for name, delta in layers.items():
        path = name.partition(".")[2]
        slices = family.fused_slices(path, delta.shape) or {"": (slice(None), slice(None))}
        for part, (rows, columns) in slices.items():
            own = family.part_name(path, part) if part else path
            height, width = (
                len(range(*cut.indices(size)))
                for cut, size in zip((rows, columns), delta.shape, strict=True)
            )
            shapes[own] = (height, width)
    strangers = [
        [(name, shape) for name, shape in shapes.items() if known.get(name) != shape]
        for known in published_layers(family)
    ]
    if all(strangers):
        name, (rows, columns) = min(strangers, key=len)[0]
        raise UserError(
            f"{where}: {name} of {rows}x{columns} is a layer of no published {family.title} model, "
            "and of no other supported base. If it is for a model of another size, give "
            f"--family {family.name}."
        )
