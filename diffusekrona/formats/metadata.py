"""What the metadata of other programs' files says about base models: kohya's `ss_*`, Stability AI's
modelspec. Which family writes what, the families say themselves (`bases.base.FileNames`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..bases.base import FileNames
from ..bases.families import FAMILIES
from ..common.errors import UserError


def names_in_files(family: str) -> FileNames:
    """How other programs' files name a family's layers.

    Raises:
        UserError: no such family, or one whose names no converter knows.
    """
    known = FAMILIES.get(family)
    if known is None:
        raise UserError(f"--family {family}: choose one of {', '.join(FAMILIES)}.")
    if known.files is None:
        raise UserError(f"Files of {known.title} are not written in other programs' formats yet.")
    return known.files


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


def family_from_layers(
    shapes: Mapping[str, tuple[int, int]], stems: Iterable[str], where: object
) -> str | None:
    """The family that layer names and shapes show, or None where they show none.

    Args:
        shapes: layer name to (out, in) of its weight.

    Raises:
        UserError: cross-attentions of two widths, which no model has: a mixture of families.
    """
    widths = Counter()
    first: dict[int, str] = {}
    for name, (_, columns) in shapes.items():
        if name.startswith("unet.") and re.search(r"\.attn2\.to_[kv]$", name):
            widths[columns] += 1
            first.setdefault(columns, name)
    if len(widths) > 1:
        one, other = widths.most_common()[0][0], widths.most_common()[-1][0]
        raise UserError(
            f"{where} mixes base models: {first[one]} reads text states {one} wide, "
            f"{first[other]} reads {other}."
        )
    for name, known in _known().items():
        if known.context in widths:
            return name
    stems = list(stems)
    several = [n for n, known in _known().items() if known.numbered]
    if any(s.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")) for s in stems):
        return several[0]
    if any(".transformer_blocks.2." in name for name in shapes):
        return several[0]
    return None


def metadata_for(family: str, title: str, kind: str, source: Mapping[str, str]) -> dict[str, str]:
    """`ss_*` and modelspec entries of an adapter file for the neighbours.

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
        local = source["base_model"].startswith((".", "/", "~")) or "\\" in source["base_model"]
        name = re.split(r"[/\\]", source["base_model"].rstrip("/\\"))[-1]
        metadata["ss_sd_model_name"] = name if local else source["base_model"]
    return metadata
