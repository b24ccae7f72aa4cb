"""Adapter files of other programs: LoRA, LoKr, LoHa, GLoRA and differences, mixed as they may be.

Names are any of `layer_names`. diffusers writes ranks and alphas into the metadata entry
`lora_adapter_metadata`, {"unet.r": 4, …} or, of a lone model, {"r": 4, …}.

kohya's KronA and CDKA networks (sd-scripts pull request 2370) write LoKr files with both factors
whole and their scale in lokr_w1. Its first drafts left the scale out; what they say of it in
`ss_network_args` is applied.

LyCORIS' DyLoRA draws k of its blocks of ranks for each call and scales them by alpha / k, while its
file holds all of them and neither k nor the size of a block. Other programs read alpha / rank.

Source: diffusers `loaders/lora_base.py`; kohya-ss/sd-scripts `networks/krona.py`, `cdka.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..adapters.file_config import lokr_scales, lora_scales, refuse_other_bases
from ..adapters.foreign import PEFT_HEAD, saved_configs
from ..common.errors import UserError
from ..common.json_files import parse_json
from ..common.tensor_files import read_tensors
from .delta_set import DeltaSet, Hints, find_family, named_layers
from .fused_layers import split
from .layer_names import is_convolution, kernel_of
from .layer_parts import Grouped, LayerChange, Parts, change_of, group, kind_of
from .needs_base import NeedsBase

Config = Mapping[str, Any]


def read(path: Path, hints: Hints) -> DeltaSet:
    """An adapter file of any of the programs. Raises UserError."""
    tensors, metadata = read_tensors(path)
    if any(key.startswith(PEFT_HEAD) for key in tensors):
        raise UserError(
            f"{path} has PEFT's names, so its scale is in an adapter_config.json: put "
            "that file into the same folder."
        )
    return from_tensors(tensors, metadata, path, hints, saved_configs(metadata, path))


def from_tensors(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    where: Path | str,
    hints: Hints,
    configs: Mapping[str, Config] | None = None,
) -> DeltaSet:
    """`read` for tensors in memory.

    Args:
        configs: component to the PEFT config that the file notes; "" for a lone model's.
    """
    grouped = group(tensors, where)
    notes = _leave_out_unknown(grouped, where, hints)
    if _is_dylora(grouped, metadata):
        notes.append(_read_dylora(where, hints))
    names, per_block = named_layers(list(grouped.stems), where, metadata, hints)
    scales = _scales(grouped, names, configs or {}, where) | _draft_scales(grouped, metadata)
    changes, kinds = {}, Counter()
    for stem, parts in grouped.stems.items():
        kernel = kernel_of(names[stem]) if is_convolution(names[stem]) else ()
        changes[names[stem]] = change_of(stem, parts, where, scales.get(stem), kernel)
        kinds[kind_of(stem, parts, where)] += 1
    layers = {n: c.delta for n, c in changes.items() if c.delta is not None}
    family = find_family(layers, list(grouped.stems), where, metadata, hints)
    result = DeltaSet(
        split({n: d for n, d in layers.items() if not isinstance(d, NeedsBase)}, family),
        " and ".join(sorted(kinds, key=lambda kind: (-kinds[kind], kind))),
        family,
        dict(metadata),
        per_block,
        _common_dtype(tensors),
        notes=notes,
    )
    result.need_base = {n: d for n, d in layers.items() if isinstance(d, NeedsBase)}
    result.vectors = _vectors(changes)
    result.bundled = grouped.bundled
    return result


def _leave_out_unknown(grouped: Grouped, where: Path | str, hints: Hints) -> list[str]:
    """Refuse keys of which nothing is known, or leave them out, as the user chose."""
    if not grouped.unknown:
        return []
    first, number = grouped.unknown[0], len(grouped.unknown)
    if not hints.skip_unsupported or not grouped.stems:
        raise UserError(
            f"{where}: {first} is not part of a LoRA, LoKr, LoHa, GLoRA or norm layer"
            + (f", nor are {number - 1} other tensors" if number > 1 else "")
            + ("." if not grouped.stems else ": --skip_unsupported leaves such tensors out.")
        )
    return [f"left out {number} tensors that are not supported, such as {first}"]


def _is_dylora(grouped: Grouped, metadata: Mapping[str, str]) -> bool:
    """Whether a file is LyCORIS' DyLoRA, by its metadata or by a convolution whose `up` is a
    matrix."""
    if metadata.get("ss_network_module", "").startswith("lycoris."):
        try:
            arguments = parse_json(metadata.get("ss_network_args", "{}"), dict[str, Any])
        except ValueError:
            arguments = {}
        if str(arguments.get("algo")).lower() == "dylora":
            return True
    loras = [parts for parts in grouped.stems.values() if {"up", "down"} <= parts.keys()]
    return any(parts["up"].dim() == 2 and parts["down"].dim() == 4 for parts in loras)


def _read_dylora(where: Path | str, hints: Hints) -> str:
    """The note of a DyLoRA that is read as a LoRA. Raises UserError unless that was asked for."""
    if not hints.as_lora:
        raise UserError(
            f"{where} is a DyLoRA of LyCORIS, which trains with random parts of its ranks at a "
            "scale that the file does not hold: --from lora reads all of them at alpha / rank, as "
            "other programs do."
        )
    return "a DyLoRA of LyCORIS, read as other programs do: all ranks, at alpha / rank"


def _scales(
    grouped: Grouped,
    names: Mapping[str, str],
    configs: Mapping[str, Config],
    where: Path | str,
) -> dict[str, float]:
    """Stem to the scale that a PEFT config gives it; stems with an alpha of their own have none.

    Args:
        names: stem to layer name, which shows the component where the stem has no prefix.
    """
    scales: dict[str, float] = {}
    for component, config in configs.items():
        head = f"{component}." if component else ""
        paths = {
            stem: (stem if stem.startswith(head) else names[stem]).removeprefix(head)
            for stem in grouped.stems
            if stem.startswith(head) or names[stem].startswith(head)
        }
        own = {s: grouped.stems[s] for s in paths if "alpha" not in grouped.stems[s]}
        if own:
            refuse_other_bases(config, where)
        ranks = {paths[s]: p["down"].shape[0] for s, p in own.items() if "down" in p}
        krons = [paths[s] for s, p in own.items() if any(n.startswith(("lokr", "hada")) for n in p)]
        if config.get("use_dora") and (plain := _without_magnitude(own)):
            raise UserError(
                f"{where}: the config says DoRA (use_dora), but {plain} has no magnitude: set "
                "use_dora to false there if it is a plain LoRA."
            )
        found = lora_scales(config, ranks, where) if ranks and "lora_alpha" in config else {}
        if krons and {"alpha", "r"} <= config.keys():
            found |= lokr_scales(config, krons, where)
        scales |= {stem: found[paths[stem]] for stem in own if paths[stem] in found}
    return scales


def _without_magnitude(stems: Mapping[str, Parts]) -> str | None:
    """The first LoRA layer that is not weight-decomposed."""
    marks = {"lora_magnitude_vector", "dora_scale"}
    return next(
        (s for s, parts in stems.items() if "down" in parts and not marks & set(parts)), None
    )


def _draft_scales(grouped: Grouped, metadata: Mapping[str, str]) -> dict[str, float]:
    """The scale krona_alpha / sqrt(columns of w1) that a draft of kohya's KronA left out."""
    if metadata.get("ss_network_module") != "networks.krona":
        return {}
    try:
        arguments = parse_json(metadata.get("ss_network_args", "{}"), dict[str, Any])
        alpha = float(arguments.get("krona_alpha") or "nan")
    except (TypeError, ValueError):
        return {}
    if str(arguments.get("use_cdka_scale")).lower() != "true" or not math.isfinite(alpha):
        return {}
    whole = {s: p["lokr_w1"] for s, p in grouped.stems.items() if "lokr_w1" in p}
    return {s: alpha / math.sqrt(w1.shape[-1]) for s, w1 in whole.items() if w1.dim() == 2}


def _vectors(changes: Mapping[str, LayerChange]) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{parameter}": vector
        for name, change in changes.items()
        for parameter, vector in change.vectors.items()
    }


def _common_dtype(tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
    dtypes = Counter(t.dtype for t in tensors.values() if t.dim() > 1 and t.is_floating_point())
    return dtypes.most_common(1)[0][0] if dtypes else torch.float32
