"""The tensors of one layer in other programs' adapter files, and what they make of its weight.

    LoRA     scale * up @ down; with a third factor "mid" for convolutions
    LoKr     scale * kron(w1, w2), each factor whole or a product; a Tucker core t2
    LoHa     scale * (w1_a @ w1_b) * (w2_a @ w2_b), elementwise; Tucker cores t1, t2
    GLoRA    scale * (W a1 @ a2 + b1 @ b2), W the base's weight
    full     the difference itself ("diff", "diff_b")
    norm     differences of a norm's weight and bias ("w_norm", "b_norm")

The scale is alpha / rank. Where both factors of a LoKr are whole it is 1, whatever `alpha` says;
PEFT alone always scales by its config's alpha / r. A DoRA magnitude m beside any of them makes
m * (W + delta W) / ||W + delta W||, the norm per row or per column.

Source: KohakuBlueleaf/LyCORIS `lycoris/modules`; kohya-ss/sd-scripts `networks/lora.py`; ComfyUI
`comfy/weight_adapter`; huggingface/peft `tuners/lora`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..adapters.deltas import Delta, DenseDelta, KronDelta, LowRankDelta
from ..common.errors import UserError
from .needs_base import Load, NeedsBase, weight_decomposed

Parts = dict[str, torch.Tensor]
Where = Path | str
Scale = float | None  # None for alpha / rank
Kernel = tuple[int, ...]  # (kh, kw); () of a linear layer
# The two ends of a LoRA under every name that trainers give them.
_LORA = re.compile(
    r"(?P<stem>.+?)[._](?:lora_|lora\.|lora_linear_layer\.|lora_layer\.)"
    r"(?P<which>down|up|mid|A|B)(?:\.(?!weight|bias)\w+)?\.(?P<kind>weight|bias)"
)
_LORA_PARTS = {"A": "down", "B": "up"}
_OTHER = re.compile(
    r"(?P<stem>.+)\.(?P<part>lokr_w[12](?:_[ab])?|lokr_t2|hada_w[12]_[ab]|hada_t[12]|[ab][12]|diff(?:_b)?"
    r"|[wb]_norm|dora_scale|lora_magnitude_vector|alpha)(?:\.(?!weight)\w+)?(?:\.weight)?"
)
_BUNDLED = "bundle_emb."
KINDS = {
    "LoRA": ("down", "up", "mid", "bias"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "GLoRA": ("a1", "a2", "b1", "b2"),
    "full difference": ("diff", "diff_b"),
    "norm": ("w_norm", "b_norm"),
}
_KIND_OF = {part: kind for kind, parts in KINDS.items() for part in parts}


@dataclass
class Grouped:
    """A file's tensors by layer.

    Attributes:
        stems: stem to part to tensor.
        bundled: textual inversions that the file carries along (`bundle_emb.…`), by key.
        unknown: keys of which nothing is known.
    """

    stems: dict[str, Parts] = field(default_factory=dict)
    bundled: Parts = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


@dataclass
class LayerChange:
    """What a file does to one layer: its weight's delta, and additions to its vectors."""

    delta: Delta | NeedsBase | None = None
    vectors: dict[str, torch.Tensor] = field(default_factory=dict)  # "weight" or "bias"


def part_of(key: str) -> tuple[str, str] | None:
    """A key to (stem, part), or None for one of which nothing is known."""
    found = _LORA.fullmatch(key)
    if found:
        which = _LORA_PARTS.get(found["which"], found["which"])
        if found["kind"] == "bias":
            return (found["stem"], "bias") if which == "up" else None
        return found["stem"], which
    found = _OTHER.fullmatch(key)
    if not found:
        return None
    if found["part"] == "alpha":
        stem = re.sub(r"(_|\.)lora(_linear_layer|_layer)?$", "", found["stem"])
        return stem, "alpha"
    return found["stem"], found["part"]


def group(tensors: Mapping[str, torch.Tensor], where: Where) -> Grouped:
    """A file's tensors by layer. Raises UserError for a part that is there twice."""
    stems: dict[str, Parts] = defaultdict(dict)
    keys: dict[tuple[str, str], str] = {}
    grouped = Grouped()
    for key, tensor in tensors.items():
        found = part_of(key)
        if key.startswith(_BUNDLED):
            grouped.bundled[key] = tensor
        elif found is None:
            grouped.unknown.append(key)
        elif found in keys:
            raise UserError(f"{where}: {key} and {keys[found]} are the same factor twice.")
        else:
            stems[found[0]][found[1]], keys[found] = tensor, key
    grouped.stems = dict(stems)
    return grouped


def kind_of(stem: str, parts: Parts, where: Where) -> str:
    """Which of KINDS a layer is. Raises UserError for none or several."""
    kinds = {_KIND_OF[part] for part in parts if part in _KIND_OF}
    if len(kinds) != 1:
        have = " and ".join(sorted(kinds)) or ", ".join(sorted(parts))
        raise UserError(f"{where}: layer {stem} holds {have}, which do not make one delta.")
    kind = kinds.pop()
    for part, tensor in parts.items():
        floating = tensor.is_floating_point() or part == "alpha"  # some write alpha as int
        if not floating or tensor.numel() == 0:
            raise UserError(
                f"{where}: {stem}.{part} of shape {tuple(tensor.shape)} is not a valid factor."
            )
        if part == "alpha" and tensor.numel() != 1:
            raise UserError(f"{where}: {stem}.alpha is not a single number.")
    return kind


def change_of(
    stem: str, parts: Parts, where: Where, scale: Scale, kernel: Kernel = ()
) -> LayerChange:
    """What the tensors of one layer do to it.

    Args:
        scale: PEFT's, where a config gives one; None for alpha / rank.
        kernel: (kh, kw) of the layer where its name says that it is a convolution.

    Raises:
        UserError: tensors that are missing, superfluous or do not fit each other.
    """
    kind = kind_of(stem, parts, where)
    make = {"LoRA": _lora, "LoKr": _lokr, "LoHa": _loha, "GLoRA": _glora}.get(kind, _difference)
    change = make(stem, parts, where, scale, kernel)
    magnitude = parts.get("lora_magnitude_vector", parts.get("dora_scale"))
    if magnitude is None:
        return change
    if change.delta is None or isinstance(change.delta, NeedsBase):
        raise UserError(f"{where}: {stem} has a DoRA magnitude without two factors beside it.")
    if "lora_magnitude_vector" in parts:  # PEFT's is per row, also where it is (1, out, 1, 1)
        magnitude = magnitude.reshape(-1, 1)
    return LayerChange(
        weight_decomposed(stem, change.delta, magnitude.float(), where), change.vectors
    )


def _need(stem: str, parts: Parts, names: tuple[str, ...], where: Where) -> None:
    for name in names:
        if name not in parts:
            have = next(iter(n for n in names if n in parts), next(iter(parts)))
            raise UserError(f"{where} holds {have} of {stem} without its {name}.")


def _scaled(parts: Parts, rank: int, scale: Scale) -> float:
    if scale is not None:
        return scale
    return float(parts["alpha"]) / rank if "alpha" in parts else 1.0


def _lora(stem: str, parts: Parts, where: Where, scale: Scale, kernel: Kernel) -> LayerChange:
    _need(stem, parts, ("down", "up"), where)
    up, down, mid = parts["up"].float(), parts["down"].float(), parts.get("mid")
    whole = up.dim() in (2, 4) and down.dim() in (2, 4)  # DyLoRA's up is (out, rank) beside any
    if not whole or tuple(up.shape[2:]) not in ((), (1, 1)):
        raise UserError(
            f"{where}: the factors of {stem}, {tuple(up.shape)} and {tuple(down.shape)}, "
            "are not a LoRA's."
        )
    if mid is not None:
        fits = mid.dim() == 4 and mid.shape[1] == down.shape[0] and down.shape[2:] == (1, 1)
        if not fits:
            raise UserError(f"{where}: lora_mid of {stem}, {tuple(mid.shape)}, fits no factors.")
        down = torch.einsum("pqkl,qi->pikl", mid.float(), down.flatten(1))
    if up.shape[1] != down.shape[0]:
        raise UserError(
            f"{where}: the factors of {stem} differ in rank: {up.shape[1]} and {down.shape[0]}."
        )
    factor = _scaled(parts, up.shape[1], scale)
    delta = LowRankDelta(up.flatten(1) * factor, down.flatten(1), tuple(down.shape[2:]))
    return LayerChange(delta, {"bias": parts["bias"].float() * factor} if "bias" in parts else {})


def _lokr(stem: str, parts: Parts, where: Where, scale: Scale, kernel: Kernel) -> LayerChange:
    a, rank_a = _lokr_factor(stem, parts, "lokr_w1", where)
    b, rank_b = _lokr_factor(stem, parts, "lokr_w2", where)
    rank = rank_a or rank_b  # LyCORIS gives both products one rank
    if scale is None:
        scale = _scaled(parts, rank, None) if rank else 1.0
    return LayerChange(KronDelta(a[None], b.flatten(1)[None], scale, kernel=tuple(b.shape[2:])), {})


def _lokr_factor(
    stem: str, parts: Parts, name: str, where: Where
) -> tuple[torch.Tensor, int | None]:
    """One factor, fp32, and the rank of its product (None where it is whole)."""
    product = [part in parts for part in (f"{name}_a", f"{name}_b")]
    if (name in parts) == any(product) or any(product) != all(product):
        raise UserError(
            f"{where} holds a LoKr of {stem} without a whole {name}: "
            f"one of {name} and {name}_a with {name}_b is needed."
        )
    if name in parts:
        whole = parts[name].float()
        if name == "lokr_w2" and "lokr_t2" in parts:
            core = tuple(parts["lokr_t2"].shape)
            raise UserError(f"{where}: {stem}.lokr_t2 {core} fits no factors.")
        if whole.dim() != 2 and not (whole.dim() == 4 and name == "lokr_w2"):
            raise UserError(
                f"{where}: {stem}.{name} of shape {tuple(whole.shape)} is not a valid factor."
            )
        return whole, None
    left, right = parts[f"{name}_a"].double(), parts[f"{name}_b"].double()
    core = parts.get("lokr_t2") if name == "lokr_w2" else None
    if core is not None:
        if core.dim() != 4 or core.shape[:2] != (left.shape[0], right.shape[0]):
            raise UserError(f"{where}: {stem}.lokr_t2 {tuple(core.shape)} fits no factors.")
        return torch.einsum("ijkl,ip,jr->prkl", core.double(), left, right).float(), right.shape[0]
    if left.dim() != 2 or right.dim() not in (2, 4) or left.shape[1] != right.shape[0]:
        raise UserError(
            f"{where}: {stem}.{name}_a {tuple(left.shape)} and _b {tuple(right.shape)} "
            "do not multiply."
        )
    made = left @ right.flatten(1)
    return made.reshape(left.shape[0], *right.shape[1:]).float(), left.shape[1]


def _loha(stem: str, parts: Parts, where: Where, scale: Scale, kernel: Kernel) -> LayerChange:
    names, cores = KINDS["LoHa"][:4], [parts[n] for n in ("hada_t1", "hada_t2") if n in parts]
    _need(stem, parts, KINDS["LoHa"] if cores else names, where)
    one_a, one_b, two_a, two_b = (parts[name].float() for name in names)
    if cores:  # (rank, rank, kh, kw), and the first factor lies the other way round
        one_a, two_a, kernel = one_a.mT, two_a.mT, tuple(cores[0].shape[2:])
    rank, shape = one_b.shape[0], (one_a.shape[0], one_b.shape[-1])
    ranks = {one_a.shape[-1], rank, two_a.shape[-1], two_b.shape[0]}
    fits = len(ranks) == 1 and (two_a.shape[0], two_b.shape[-1]) == shape
    fits = fits and all(core.shape == (rank, rank, *kernel) for core in cores) and len(kernel) < 3
    if not fits or any(parts[name].dim() != 2 for name in names):
        raise UserError(f"{where}: the factors of {stem} do not make one LoHa.")
    factor = _scaled(parts, rank, scale)
    if not cores:
        return LayerChange(
            DenseDelta(lambda: (one_a @ one_b) * (two_a @ two_b) * factor, shape, kernel)
        )

    def make() -> torch.Tensor:
        one, two = (
            torch.einsum("pi,ijkl,jr->prkl", a, core.float(), b)
            for a, core, b in ((one_a, cores[0], one_b), (two_a, cores[1], two_b))
        )
        return (one * two * factor).flatten(1)

    return LayerChange(DenseDelta(make, (shape[0], shape[1] * math.prod(kernel)), kernel))


def _glora(stem: str, parts: Parts, where: Where, scale: Scale, kernel: Kernel) -> LayerChange:
    _need(stem, parts, KINDS["GLoRA"], where)
    a1, a2, b1, b2 = (parts[name].float().flatten(1) for name in KINDS["GLoRA"])
    if not a1.shape[1] == a2.shape[0] == b1.shape[1] == b2.shape[0]:
        # LyCORIS before 2.0 named the two the other way round.
        a1, a2, b1, b2 = a2, a1, b2, b1
    rank = a1.shape[1]
    fits = rank == a2.shape[0] == b1.shape[1] == b2.shape[0] and a1.shape[0] == a2.shape[1]
    kernel = tuple(parts["b2"].shape[2:]) or kernel
    area = math.prod(kernel)
    if not fits or b2.shape[1] != a2.shape[1] * area:
        raise UserError(f"{where}: the factors of {stem} do not make one GLoRA.")
    factor = _scaled(parts, rank, scale)
    if area > 1:  # W a1 a2 mixes channels alone, at each place of the kernel
        shape = (b1.shape[0], b2.shape[1])

        def change(weight: torch.Tensor) -> torch.Tensor:
            channels = weight.view(shape[0], -1, area)
            moved = torch.einsum("oik,ir,rj->ojk", channels, a1, a2).reshape(shape)
            return (moved + b1 @ b2) * factor

        return LayerChange(
            NeedsBase(
                "GLoRA",
                shape,
                lambda load: DenseDelta(lambda: change(load()), shape, kernel),
                kernel,
            )
        )

    def make(load: Load) -> Delta:
        up = torch.cat([load() @ a1, b1], dim=1)
        return LowRankDelta(up * factor, torch.cat([a2, b2]), kernel)

    return LayerChange(NeedsBase("GLoRA", (b1.shape[0], a2.shape[1]), make, kernel))


def _difference(stem: str, parts: Parts, where: Where, scale: Scale, kernel: Kernel) -> LayerChange:
    change = LayerChange()
    for part, parameter in (("w_norm", "weight"), ("b_norm", "bias"), ("diff_b", "bias")):
        if part in parts:
            change.vectors[parameter] = parts[part].float()
    diff = parts.get("diff")
    if diff is not None and diff.dim() == 1:  # of a norm
        change.vectors["weight"] = diff.float()
    elif diff is not None:
        matrix = diff.flatten(1)
        rows, columns = matrix.shape
        change.delta = DenseDelta(matrix.float, (rows, columns), tuple(diff.shape[2:]))
    if any(vector.dim() != 1 for vector in change.vectors.values()):
        raise UserError(f"{where}: {stem} holds a difference that is not a vector.")
    return change
