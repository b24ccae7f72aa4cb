"""What the metadata of other programs' files says about base models: kohya's `ss_*`, Stability AI's
modelspec. Which family writes what, the families say themselves (`bases.base.FileNames`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..bases.base import FileNames
from ..bases.families import FAMILIES
from ..common.errors import UserError
from ..common.paths import is_local


def names_in_files(family: str) -> FileNames:
    """How other programs' files name a family's layers.

    Raises:
        UserError: no such family, or one whose names no converter knows.
    """
    known = FAMILIES.get(family)
    if known is None:
        raise UserError(f"--family {family}: choose one of {', '.join(FAMILIES)}.")
    if known.files is None:
        raise UserError(
            f"{known.title} has no layers under kohya's names: write --to lora, --to lokr or --to "
            "merged, or --to krona."
        )
    return known.files


def linear_projection(family: str | None) -> bool:
    """Whether a family's proj_in and proj_out are linear layers: all but SD 1.x's."""
    known = FAMILIES.get(family or "")
    return known.files.linear_projection if known and known.files else True


def _known() -> dict[str, FileNames]:
    return {name: family.files for name, family in FAMILIES.items() if family.files}


def family_from_metadata(metadata: Mapping[str, str]) -> str | None:
    """The family that a file's metadata names, if any."""
    if metadata.get("base_family") in FAMILIES:
        return metadata["base_family"]
    version = metadata.get("ss_base_model_version", "").lower()
    for name, known in _known().items():
        if version.startswith(known.version_prefix):
            return name
    architecture = metadata.get("modelspec.architecture", "").lower()
    for name, known in _known().items():
        if architecture.startswith(known.architecture_prefix):
            return name
    return None


def families_of_layers(
    shapes: Mapping[str, tuple[int, int]], stems: Iterable[str], where: object
) -> list[str]:
    """The families that a file's layers may belong to, by their names and widths.

    Args:
        shapes: layer name to (out, in) of its weight.

    Raises:
        UserError: layers of different families; two of them are named.
    """
    possible, first = list(_known()), ""
    widths: dict[int, str] = {}
    for name, (rows, columns) in shapes.items():
        if name.startswith("unet.") and re.search(r"\.attn2\.to_[kv]$", name):
            widths.setdefault(columns, name)
        if len(widths) > 1:
            (one, a), (other, b) = widths.items()
            raise UserError(
                f"{where} mixes base models: {a} reads text states {one} wide, {b} reads {other}."
            )
        own = _families_with(name, rows, columns)
        if not set(own) & set(possible):
            raise UserError(
                f"{where} mixes base models: {first} is of {' or '.join(possible)}, {name} of "
                f"{' or '.join(own)}."
            )
        if set(possible) - set(own):
            possible, first = [f for f in possible if f in own], name
    numbered = [s for s in stems if s.startswith(("lora_te1_", "lora_te2_"))]
    single = [s for s in stems if s.startswith("lora_te_")]
    for family, known in _known().items():
        if family in possible and (single if known.numbered else numbered):
            possible.remove(family)
    if not possible:
        stem = (numbered or single)[0]
        raise UserError(f"{where} mixes base models: {first} and {stem} are of different ones.")
    return possible


def _families_with(name: str, rows: int, columns: int) -> list[str]:
    """The families that have such a layer; all of them if the layer does not show it."""
    numbered = [n for n, known in _known().items() if known.numbered]
    if name.startswith("text_encoder_2.") or ".transformer_blocks.2." in name:
        return numbered
    if re.search(r"\.attn2\.to_[kv]$", name):
        found = [n for n, known in _known().items() if known.context == columns]
        return found or list(_known())
    place = re.match(r"unet\.(down_blocks\.\d|up_blocks\.\d)\.attentions\.", name)
    if place and re.search(r"attn\d\.to_(q|out\.0)$", name) and rows in (320, 640, 1280):
        width = {n: known.widths.get(place[1]) for n, known in _known().items()}
        return [n for n, own in width.items() if own == rows] or list(_known())
    if re.match(r"text_encoder\..+self_attn\.", name) and rows == columns:
        found = [n for n, known in _known().items() if known.text_width == rows]
        return found or list(_known())
    return list(_known())


def metadata_for(family: str, title: str, kind: str, source: Mapping[str, str]) -> dict[str, str]:
    """`ss_*` and modelspec entries of an adapter file for other programs.

    Args:
        kind: "lokr" or "lora".
        source: the adapter's own metadata; prompt, base and prediction type are taken over.
    """
    known, resolution = names_in_files(family), FAMILIES[family].resolution
    v_prediction = source.get("prediction_type", "") == "v_prediction"
    architecture = known.v_architecture if v_prediction else known.architecture
    arguments: dict[str, Any] = {"algo": "lokr", "full_matrix": "True"} if kind == "lokr" else {}
    metadata = {
        "ss_base_model_version": known.v_version if v_prediction else known.version,
        "ss_v2": str(known.v2),
        "ss_network_module": "lycoris.kohya" if kind == "lokr" else "networks.lora",
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models"
        if known.sgm
        else "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution}x{resolution}",
    }
    if known.sgm:
        metadata["ss_sdxl_model_version"] = known.version
    if source.get("prediction_type"):
        metadata["modelspec.prediction_type"] = "v" if v_prediction else "epsilon"
    if source.get("instance_prompt"):
        metadata["modelspec.trigger_phrase"] = source["instance_prompt"]
    if source.get("base_model"):
        # Of a folder of this machine, only its name: the file is made to be passed on.
        name = re.split(r"[/\\]", source["base_model"].rstrip("/\\"))[-1]
        local = is_local(source["base_model"])
        metadata["ss_sd_model_name"] = name if local else source["base_model"]
    return metadata
