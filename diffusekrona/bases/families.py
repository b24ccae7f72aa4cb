"""The families of base models that are supported, and how a base or a pipeline is recognised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..common.errors import UserError
from .base import Family
from .flux2_klein import FLUX2_KLEIN
from .loading import read_json_of, read_part_config
from .sd import SD1, SD2
from .sd35 import SD35
from .sdxl import SDXL
from .z_image import Z_IMAGE

# A new family is a line here and a file beside this one.
FAMILIES: dict[str, Family] = {
    family.name: family for family in (SD1, SD2, SDXL, FLUX2_KLEIN, Z_IMAGE, SD35)
}


def denoiser_names() -> list[str]:
    """Names that the families' denoisers have in pipelines."""
    return list(dict.fromkeys(family.denoiser for family in FAMILIES.values()))


def resembling(config: Mapping[str, Any]) -> Family | None:
    """The family whose layers a denoiser with this config.json has; None for any other model."""
    return next((family for family in FAMILIES.values() if family.resembles(config)), None)


def identify(base: str, revision: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The family of a base model, and its denoiser's config. No weights are loaded.

    Args:
        base: what `resolve.resolve_base` returned.

    Raises:
        UserError: the configs cannot be read, or no family claims this base: what it is is said.
    """
    index = read_json_of(base, "", "model_index.json", revision)
    named = [name for name in denoiser_names() if name in index]
    if not named and "_class_name" in index:
        raise _unsupported(base, f"a {index['_class_name']}")
    config = read_part_config(base, named[0] if named else denoiser_names()[0], revision)
    family = resembling(config)
    if family is None:
        raise _unsupported(base, f"a model with a {config.get('_class_name')} as its denoiser")
    refusal = family.refusal(config, index)
    if refusal is not None:
        raise _unsupported(base, refusal)
    return family, config


def check_schedule(family: Family, base: str, revision: str | None = None) -> None:
    """Refuse a base whose noise schedule its family cannot train on.

    Raises:
        UserError: it is of another kind, which is said, or cannot be read.
    """
    config = read_json_of(base, "scheduler", "scheduler_config.json", revision)
    refusal = family.schedule_refusal(config)
    if refusal is not None:
        raise _unsupported(base, f"a model with {refusal}", "trained")


def _unsupported(base: str, what: str, done: str = "used") -> UserError:
    titles = ", ".join(family.title for family in FAMILIES.values())
    return UserError(
        f"Base model {base!r} is {what}, which cannot be {done} here: give a text-to-image base of "
        f"{titles}."
    )


def family_of_pipeline(pipeline: Any) -> Family:
    """The family of a loaded pipeline. Raises ValueError for a pipeline of none."""
    family = resembling(denoiser_of(pipeline).config)
    if family is None:
        raise ValueError(f"{type(pipeline).__name__} belongs to no family of base models")
    return family


def denoiser_of(pipeline: Any) -> Any:
    """A pipeline's denoiser, whatever its component is called. Raises ValueError without one."""
    parts = (getattr(pipeline, name, None) for name in denoiser_names())
    found = next((part for part in parts if part is not None), None)
    if found is None:
        raise ValueError(f"{type(pipeline).__name__} has no {' or '.join(denoiser_names())}")
    return found


def family_name(model: Any) -> str | None:
    """The family's name of a pipeline, a mapping of parts or a denoiser; None without one."""
    parts = components_of(model)
    denoiser = next((parts[name] for name in denoiser_names() if name in parts), None)
    family = None if denoiser is None else resembling(getattr(denoiser, "config", {}))
    return family.name if family else None


def components_of(model: Any) -> dict[str, Any]:
    """The adaptable parts of a pipeline, a mapping of parts, or a single model, by name."""
    if isinstance(model, Mapping):
        parts: Mapping[str, Any] = model
    elif isinstance(model, nn.Module):
        parts = {_component_name(model): model}
    else:
        encoders = (name for family in FAMILIES.values() for name in family.text_encoders)
        names = dict.fromkeys([*denoiser_names(), *encoders])
        parts = {name: getattr(model, name, None) for name in names}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def _component_name(model: nn.Module) -> str:
    """What a single model is called in a pipeline: the denoiser whose class it is of, or else a
    text encoder."""
    classes = {cls.__name__ for cls in type(model).__mro__}  # sharding makes subclasses
    classes |= {cls.__name__ for cls in type(getattr(model, "base_model", model)).__mro__}
    for family in FAMILIES.values():
        if family.denoiser_class in classes:
            return family.denoiser
    return "text_encoder"
