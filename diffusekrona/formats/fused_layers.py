"""Layers that are several in training, whole as other programs' files hold them, and back.

A part's rows or columns of the whole layer are known from its name and size, so a LoRA of the whole
is exact: zeros stand where another part's rows or columns are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch

from ..adapters.deltas import Delta, KronDelta, LowRankDelta, to_low_rank
from ..bases.base import Family
from ..bases.families import FAMILIES
from ..common.errors import UserError


def _family(name: str | None) -> Family | None:
    return FAMILIES.get(name or "")


def fused_names(layers: Mapping[str, object], family: str | None) -> list[str]:
    """The layers that are parts of another."""
    known = _family(family)
    return [n for n in layers if known and known.fused_part(n.partition(".")[2])]


def joined(
    layers: Mapping[str, LowRankDelta], family: str | None, publisher: bool = False
) -> dict[str, LowRankDelta]:
    """LoRA layers with the parts of each whole layer put together; exact.

    Args:
        publisher: put together what the publisher's own code has in one layer, too.
    """
    known = _family(family)
    if known is None:
        return dict(layers)
    whole = _joined(layers, known, joint=False)
    return _joined(whole, known, joint=True) if publisher else whole


def _joined(
    layers: Mapping[str, LowRankDelta], family: Family, joint: bool
) -> dict[str, LowRankDelta]:
    whole: dict[str, LowRankDelta] = {}
    parts: dict[str, list[LowRankDelta]] = defaultdict(list)
    for name, delta in layers.items():
        component, _, path = name.partition(".")
        found = _place(path, delta.shape, family, joint)
        if found is None:
            whole[name] = delta
            continue
        owner, shape, (rows, columns) = found
        up, down = torch.zeros(shape[0], delta.rank), torch.zeros(delta.rank, shape[1])
        up[rows], down[:, columns] = delta.up, delta.down
        parts[f"{component}.{owner}"].append(LowRankDelta(up, down))
    for name, own in parts.items():
        whole[name] = _sum(own)
    return whole


def _place(
    path: str, shape: tuple[int, int], family: Family, joint: bool
) -> tuple[str, tuple[int, int], tuple[slice, slice]] | None:
    """Of a part: the whole layer, its (out, in), and the part's rows and columns in it."""
    found = family.joint_part(path) if joint else family.fused_part(path)
    if found is None:
        return None
    whole, part = found
    size = family.joint_shape(whole, shape) if joint else family.fused_shape(part, shape)
    return whole, size, family.fused_slices(whole, size)[part]


def _sum(parts: list[LowRankDelta]) -> LowRankDelta:
    """Parts that share a factor, as those that were split here do, keep their rank."""
    first = parts[0]
    if all(torch.equal(part.down, first.down) for part in parts):
        return LowRankDelta(sum((part.up for part in parts[1:]), first.up), first.down)
    if all(torch.equal(part.up, first.up) for part in parts):
        return LowRankDelta(first.up, sum((part.down for part in parts[1:]), first.down))
    up = torch.cat([part.up for part in parts], dim=1)
    down = torch.cat([part.down for part in parts])
    rows, columns = up.shape[0], down.shape[1]
    if len(down) < min(rows, columns):
        return LowRankDelta(up, down)
    weight = up @ down  # of full rank: the weight itself and the identity are smaller
    if columns <= rows:
        return LowRankDelta(weight, torch.eye(columns))
    return LowRankDelta(torch.eye(rows), weight)


def split(layers: Mapping[str, Delta], family: str | None) -> dict[str, Delta]:
    """Layers with those that the family splits in parts, as LoRA; parts that are zero are left
    out."""
    known, found = _family(family), dict[str, Delta]()
    for name, delta in layers.items():
        slices = known.fused_slices(name.partition(".")[2], delta.shape) if known else {}
        if known is None or not slices:
            found[name] = delta
            continue
        for part, (rows, columns) in slices.items():
            own = _slice(delta, rows, columns)
            if own is not None:
                component, _, path = name.partition(".")
                found[f"{component}.{known.part_name(path, part)}"] = own
    return found


def _slice(delta: Delta, rows: slice, columns: slice) -> Delta | None:
    """Rows and columns of a delta: a Kronecker product if they are whole blocks of it, else a LoRA;
    None if they are zero."""
    if isinstance(delta, KronDelta) and delta.output_order == "kron":
        (out, width), (_, b1, b2) = delta.shape, delta.b.shape
        (top, bottom, _), (left, right, _) = rows.indices(out), columns.indices(width)
        if not any((top % b1, bottom % b1, left % b2, right % b2)):
            a = delta.a[:, top // b1 : bottom // b1, left // b2 : right // b2]
            return replace(delta, a=a) if a.any() else None
    low = to_low_rank(delta)
    up, down = low.up[rows], low.down[:, columns]
    used = up.abs().amax(0).gt(0) & down.abs().amax(1).gt(0)
    return LowRankDelta(up[:, used], down[used]) if used.any() else None


def in_whole(path: str, delta: KronDelta, family: Family) -> tuple[str, KronDelta]:
    """A part's Kronecker product as one of the whole layer, with zeros in A.

    Raises:
        UserError: the part's place in the layer is not a whole number of A's blocks.
    """
    found = _place(path, delta.shape, family, joint=False)
    if found is None:
        return path, delta
    whole, (out, width), slices = found
    (_, b1, b2) = delta.b.shape
    top, left = (cut.indices(size)[0] for cut, size in zip(slices, (out, width), strict=True))
    if any((out % b1, width % b2, top % b1, left % b2)):
        raise UserError(
            f"{path}: its blocks of {b1}x{b2} do not fit into the base's layer of {out}x{width}: "
            "write --to lora."
        )
    a = torch.zeros(delta.terms, out // b1, width // b2)
    top, left = top // b1, left // b2
    a[:, top : top + delta.a.shape[1], left : left + delta.a.shape[2]] = delta.a
    return whole, replace(delta, a=a)
