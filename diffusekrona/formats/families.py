"""How the neighbours' files tell the families of base models apart: the one table for it.

Width of the text states, naming, and the metadata that trainers write and loaders read: kohya's
`ss_*` and Stability AI's modelspec.

Source: kohya-ss/sd-scripts `library/model_util.py`, `library/sai_model_spec.py`;
github.com/Stability-AI/ModelSpec.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..bases.backbones import FAMILIES
from ..common.errors import UserError


@dataclass(frozen=True)
class FamilyNames:
    """What a family's files look like.

    Attributes:
        context: width of the text states, in_features of a cross-attention's to_k.
        sgm: its UNet is trained and shared under the original's block names.
        numbered: its text encoders are `lora_te1_` and `lora_te2_`.
        linear_projection: the UNet's proj_in and proj_out are linear, not 1x1 convolutions.
        version: `ss_base_model_version`.
        architecture: `modelspec.architecture`.
        text_layouts: layout of each text encoder in a single-file model: "clip" or "open_clip".
        text_prefixes: where each text encoder lies in a single-file model.
    """

    context: int
    sgm: bool
    numbered: bool
    linear_projection: bool
    version: str
    architecture: str
    text_layouts: tuple[str, ...]
    text_prefixes: tuple[str, ...]


FAMILY_NAMES = {
    "sd1": FamilyNames(
        context=768,
        sgm=False,
        numbered=False,
        linear_projection=False,
        version="sd_v1",
        architecture="stable-diffusion-v1",
        text_layouts=("clip",),
        text_prefixes=("cond_stage_model.transformer.",),
    ),
    "sd2": FamilyNames(
        context=1024,
        sgm=False,
        numbered=False,
        linear_projection=True,
        version="sd_v2",
        architecture="stable-diffusion-v2",
        text_layouts=("open_clip",),
        text_prefixes=("cond_stage_model.model.",),
    ),
    "sdxl": FamilyNames(
        context=2048,
        sgm=True,
        numbered=True,
        linear_projection=True,
        version="sdxl_base_v1-0",
        architecture="stable-diffusion-xl-v1-base",
        text_layouts=("clip", "open_clip"),
        text_prefixes=("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    ),
}


def family_from_metadata(metadata: Mapping[str, str]) -> str | None:
    """The family that a file's metadata names, if any."""
    if metadata.get("base_family") in FAMILY_NAMES:
        return metadata["base_family"]
    version = metadata.get("ss_base_model_version", "").lower()
    for name, known in FAMILY_NAMES.items():
        # "sd_v2_v" and "sdxl_base_v0-9" are variants of the same family.
        if version and re.match(re.escape(known.version[:5]), version):
            return name
    architecture = metadata.get("modelspec.architecture", "").lower()
    for name, known in FAMILY_NAMES.items():
        if architecture.startswith(known.architecture.removesuffix("-v1-base")):
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
    for name, known in FAMILY_NAMES.items():
        if known.context in widths:
            return name
    stems = list(stems)
    several = [n for n, known in FAMILY_NAMES.items() if known.numbered]
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
    known, facts = FAMILY_NAMES[family], FAMILIES[family]
    v_prediction = source.get("prediction_type", "") == "v_prediction"
    architecture = known.architecture
    if family == "sd2":
        architecture += "-768-v" if v_prediction else "-512"
    arguments: dict[str, Any] = {"algo": "lokr", "full_matrix": "True"} if kind == "lokr" else {}
    metadata = {
        "ss_base_model_version": known.version + ("_v" if v_prediction and family == "sd2" else ""),
        "ss_v2": str(family == "sd2"),
        "ss_network_module": "lycoris.kohya" if kind == "lokr" else "networks.lora",
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models"
        if known.sgm
        else "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
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
