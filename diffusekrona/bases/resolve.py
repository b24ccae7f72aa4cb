"""The base model that a name means: a bundled one, a folder, a file, or a name on the hub."""

from __future__ import annotations

from ..common.errors import UserError
from ..common.paths import as_path, is_local
from .base import DrawingDefaults
from .bundled import BUNDLED, bundled_models
from .families import identify
from .single_file import open_single_file
from .single_file_parts import SingleFile


def resolve_base(name_or_path: str, single_file_config: str | None = None) -> str:
    """A bundled model's name to its folder; a single file to a `SingleFile`; a folder or a hub
    name to itself.

    Args:
        single_file_config: folder with the configs and tokenizers of a single file; no other base
            takes it.

    Raises:
        UserError: a path that does not exist, a folder that holds no diffusers pipeline, or what
            `open_single_file` refuses.
    """
    if isinstance(name_or_path, SingleFile):
        return name_or_path
    if name_or_path in bundled_models():
        return str(BUNDLED / name_or_path)
    path = as_path(name_or_path)
    if path.is_file():
        try:
            configs = resolve_base(single_file_config) if single_file_config else None
        except UserError as error:
            raise UserError(f"--single_file_config: {error}") from error
        return open_single_file(str(path), configs)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UserError(
                f"Base model {path} is a folder without model_index.json: give the folder of a "
                "diffusers pipeline, a hub name, or one of: " + ", ".join(bundled_models()) + "."
            )
        return str(path)
    if is_local(name_or_path):
        raise UserError(
            f"No base model at {name_or_path!r}: give a diffusers folder, a hub name like "
            "stabilityai/stable-diffusion-xl-base-1.0, or one of: "
            + ", ".join(bundled_models())
            + "."
        )
    return name_or_path


def drawing_defaults(
    base: str, revision: str | None = None, single_file_config: str | None = None
) -> DrawingDefaults:
    """How a base draws unless asked otherwise. Arguments and errors as of `resolve_base` and
    `identify`."""
    place = resolve_base(base, single_file_config)
    family, _ = identify(place, revision)
    return family.drawing_defaults(place, revision)
