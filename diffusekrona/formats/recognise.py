"""Which format a source is in, from its files, keys and metadata alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..adapters.foreign import PEFT_HEAD
from ..adapters.layout import ADAPTER_FILE, LORA_WEIGHTS
from ..common.errors import UserError
from ..common.paths import as_path
from ..common.tensor_files import opened, refuse_pickle
from . import adapter_layers, krona_file, ldm_layout, peft_folder, published
from .delta_set import DeltaSet, Hints
from .layer_parts import part_of

READERS: dict[str, Callable[[Path, Hints], DeltaSet]] = {
    "krona": krona_file.read,
    "published": published.read,
    "lokr": adapter_layers.read,
    "lora": adapter_layers.read,
    "peft": peft_folder.read,
}
# Own names that a folder's adapter may have, the first that is there.
_USUAL = (ADAPTER_FILE, LORA_WEIGHTS)
# Substring of a key to the kind of file it betrays, and what to do about it.
_MERGE = "merge it with the program that made it, and convert the whole model"
_STRANGERS = (
    (".oft_", "an OFT", _MERGE),
    (".on_input", "an (IA)^3", _MERGE),
    (".lambda_layer", "a T-LoRA", "its rank depends on the noise level; draw where it was made"),
    ("emb_params", "a textual inversion", "load it beside the model"),
    ("double_blocks", "an adapter for FLUX.1", "its base is not supported"),
    ("single_blocks", "an adapter for FLUX.1", "its base is not supported"),
    ("transformer.", "an adapter for a diffusion transformer", "its base is not supported"),
)


def recognise(source: Path | str, wanted: str | None = None) -> tuple[str, Path]:
    """The format's name and the file or folder to read.

    Args:
        wanted: a format's name that the user gave; only the file is then looked for.

    Raises:
        UserError: nothing there, or nothing known; a key is named.
    """
    path = as_path(source)
    if wanted is not None:
        inside = _only_file(path) if path.is_dir() and wanted not in ("peft", "full") else path
        if not inside.exists():
            raise UserError(f"No file or folder at {path}.")
        return wanted, inside
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"No file or folder at {path}.")
    with opened(path) as file:
        keys, metadata = list(file.keys()), dict(file.metadata() or {})
    if not keys:
        raise UserError(f"{path} holds no tensors.")
    if "diffusekrona" in metadata:
        return "krona", path
    if any(key.startswith(PEFT_HEAD) for key in keys):
        return "peft", path
    if any(key.endswith((".krona_a", ".krona_b")) for key in keys):
        return "krona", path
    kinds = {part_of(key) for key in keys}
    if any(found and found[1].startswith("lokr") for found in kinds):
        return "lokr", path
    if any(key.startswith(ldm_layout.UNET) and "lora" not in key for key in keys):
        return "full", path
    pairs = [key for key in keys if not key.endswith(".alpha")]
    if pairs and published.is_candidate(pairs):
        return "published", path
    if any(found and found[1] != "alpha" for found in kinds):
        return "lora", path
    for mark, kind, advice in _STRANGERS:
        found = next((key for key in keys if mark in key), None)
        if found:
            raise UserError(f"{path} is {kind} ({found}), which cannot be converted: {advice}.")
    odd = min((key for key in keys if part_of(key) is None), default=min(keys))
    raise UserError(f"{path} has an unknown format; its first unknown key is {odd}.")


def _folder(path: Path) -> tuple[str, Path]:
    if peft_folder.folders_of(path):
        return "peft", path
    if (path / "model_index.json").is_file():
        return "full", path
    return recognise(_only_file(path))


def _only_file(folder: Path) -> Path:
    """The adapter's file in a folder: of a usual name, or the only one. Raises UserError."""
    for name in _USUAL:
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    for pickle in sorted(folder.glob("*.bin")):
        refuse_pickle(pickle)
    what = "several .safetensors files: name one" if files else "no adapter and no model"
    raise UserError(f"{folder} holds {what}.")
