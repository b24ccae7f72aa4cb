"""Whole models on disk, read tensor by tensor: a diffusers folder, or one original-layout file.

Only headers are read until a weight is asked for. A folder's index file may name files, but only
plain names inside its own folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..bases.families import FAMILIES, denoiser_names, resembling
from ..bases.names import with_text_model, without_text_model
from ..bases.resolve import resolve_base
from ..bases.single_file import family_of_keys, refuse_quantised
from ..common.errors import UserError, reason_of
from ..common.json_files import read_json
from ..common.paths import as_path
from ..common.tensor_files import DTYPES, opened, read_shapes, refuse_pickle
from . import ldm_layout
from .refs import Ref

WEIGHTS = dict.fromkeys((*denoiser_names(), "vae"), "diffusion_pytorch_model")
PROJECTION = re.compile(r"attn[12]\.to_(q|k|v|out\.0)$|self_attn\.(q|k|v|out)_proj$")


Index = slice | tuple[slice, slice]  # of a layer in a tensor


@dataclass
class _Index:
    """What is read of the index of a model in several files: key to file."""

    weight_map: dict[str, str]


@dataclass
class FullModel:
    """A model's tensors by component and key; a single file has them all under "file".

    Attributes:
        root: the folder or the file.
        unet_config: of the folder's UNet; {} for a single file.
    """

    root: Path
    parts: dict[str, dict[str, Ref]]
    family: str | None
    unet_config: dict[str, Any] = field(default_factory=dict)
    layers_per_block: int = 2
    _handles: dict[Path, Any] = field(default_factory=dict)

    @property
    def is_single_file(self) -> bool:
        return "file" in self.parts

    def places(self) -> set[Path]:
        """Its folder or file, and its weights' files, which may be links to elsewhere."""
        return {self.root, *(r.path for part in self.parts.values() for r in part.values())}

    def metadata(self) -> dict[str, str]:
        """What a single file notes of itself."""
        with opened(self.root) as file:
            return dict(file.metadata() or {})

    def load(self, ref: Ref) -> torch.Tensor:
        """One tensor, not to be written to: it may be in the mapped file."""
        if ref.path not in self._handles:
            self._handles[ref.path] = safe_open(ref.path, framework="pt")
        return self._handles[ref.path].get_tensor(ref.key)

    def locate(self, name: str, parameter: str = "weight") -> tuple[Ref, Index] | None:
        """A layer's weight or bias and its rows and columns in it (a fused q, k, v has three
        layers' rows)."""
        component, _, path = name.partition(".")
        if self.is_single_file:
            keys, layers = self.parts["file"], self.layers_per_block
            found = ldm_layout.locate(name, self.family, layers, keys, parameter)
            ref = keys.get(found[0])
            if ref is None or found[1] is None:
                return ref and (ref, slice(None))
            third = ref.shape[0] // 3
            return ref, slice(found[1] * third, (found[1] + 1) * third)
        tensors = self.parts.get(component, {})
        for key in (path, without_text_model(path), with_text_model(path)):
            if f"{key}.{parameter}" in tensors:
                return tensors[f"{key}.{parameter}"], slice(None)
        family = FAMILIES.get(self.family or "")
        found = family.fused_part(path) if family else None
        ref = tensors.get(f"{found[0]}.{parameter}") if found else None
        if family is None or found is None or ref is None:
            return None
        rows, columns = ref.shape
        return ref, family.fused_slices(found[0], (rows, columns))[found[1]]

    def find(self, name: str) -> tuple[Ref, Index]:
        """A layer's weight, and its rows and columns in it. Raises UserError: no such layer."""
        found = self.locate(name)
        if found is None:
            raise UserError(f"{self.root} has no layer {name}.")
        return found

    def weight(self, name: str) -> torch.Tensor:
        """A layer's weight as the matrix (out, in), fp32. Raises UserError: no such layer."""
        ref, index = self.find(name)
        return self.load(ref)[index].float().flatten(1)

    def need_family(self) -> str:
        """The family, or a UserError that says how to name it."""
        if self.family is None:
            raise UserError(
                f"{self.root} does not show which family of base models it belongs to: add "
                f"--family {'|'.join(FAMILIES)}."
            )
        return self.family

    def projections(self) -> Iterator[str]:
        """Names of the attention projections that this model has."""
        for component, tensors in self.parts.items():
            for key in tensors:
                if component == "file":
                    yield from ldm_layout.projections(key, self.family, self.layers_per_block)
                elif key.endswith(".weight") and PROJECTION.search(key.removesuffix(".weight")):
                    yield f"{component}.{with_text_model(key.removesuffix('.weight'))}"

    def check_layers(self, shapes: dict[str, tuple[int, int]], what: str) -> None:
        """Raise UserError for the first layer that this model lacks or has in another size."""
        for name, (rows, columns) in shapes.items():
            found = self.locate(name)
            if found is None:
                raise UserError(f"{what} adapts {name}, which the base {self.root} lacks.")
            out, width = torch.empty(found[0].shape, device="meta")[found[1]].flatten(1).shape
            if (out, width) != (rows, columns):
                raise UserError(
                    f"{what} does not fit the base {self.root}: {name} is {out}x{width}, "
                    f"its factors make {rows}x{columns}."
                )


def open_model(name_or_path: str | Path, family: str | None = None) -> FullModel:
    """A base or fine-tuned model: a folder, a bundled model's name, a hub name, or one file.

    Raises:
        UserError: it cannot be loaded, or its weights are pickles or unreadable.
    """
    path = as_path(name_or_path)
    if path.is_file():
        return _open_single(path, family)
    root = Path(resolve_base(str(name_or_path)))
    if not root.is_dir():
        root = _download(str(name_or_path))
    names = denoiser_names()
    denoiser = next((name for name in names if (root / name).is_dir()), names[0])
    config = read_json(root / denoiser / "config.json", dict[str, Any])
    per_block = config.get("layers_per_block", 2)
    if not isinstance(per_block, int):
        raise UserError(f"{root}: the UNet's blocks differ in depth, which no format can number.")
    parts = {}
    for component in (denoiser, "vae", "text_encoder", "text_encoder_2"):
        if (root / component).is_dir():
            parts[component] = _component(root / component, component)
    known = resembling(config)
    return FullModel(root, parts, family or (known and known.name), config, per_block)


def _component(folder: Path, component: str) -> dict[str, Ref]:
    stem = WEIGHTS.get(component, "model")
    names = (
        f"{stem}.safetensors",
        f"{stem}.safetensors.index.json",
        f"{stem}.fp16.safetensors",
        f"{stem}.safetensors.index.fp16.json",
        f"{stem}.fp16.safetensors.index.json",
    )
    for name in names:
        path = folder / name
        if path.is_file() and name.endswith(".json"):
            files = set(read_json(path, _Index).weight_map.values())
            odd = [f for f in files if Path(f).name != f]
            if odd or not files:
                raise UserError(f"{path} names weights outside its folder: {odd[:1]}.")
            return {k: r for f in sorted(files) for k, r in refs_of(folder / f).items()}
        if path.is_file():
            return refs_of(path)
    for path in sorted(folder.glob("*.bin")):
        refuse_pickle(path)
    raise UserError(f"{folder} holds no {names[0]}.")


def refs_of(path: Path) -> dict[str, Ref]:
    """Key to each tensor of a file of weights. Raises UserError as `opened`, or for a dtype."""
    refs = {}
    with opened(path) as file:
        for key in file.keys():  # noqa: SIM118
            part = file.get_slice(key)
            dtype = DTYPES.get(part.get_dtype())
            if dtype is None:
                raise UserError(f"{path}: {key} is of a dtype not supported: {part.get_dtype()}.")
            refs[key] = Ref(path, key, dtype, tuple(part.get_shape()))
    return refs


def _open_single(path: Path, family: str | None) -> FullModel:
    shapes = read_shapes(path)
    if not any(key.startswith(ldm_layout.UNET) for key in shapes):
        raise UserError(f"{path} is not a whole model: no key begins with {ldm_layout.UNET}.")
    refuse_quantised(path, shapes)
    known = family_of_keys(shapes)
    found = family or (known and known.name)
    per_block = ldm_layout.layers_per_block(shapes)
    return FullModel(path, {"file": refs_of(path)}, found, {}, per_block)


def needed_files(files: Iterable[str]) -> list[str]:
    """Of a repository's files, those that a model in diffusers' layout consists of.

    Not the single-file checkpoints beside the components' folders, other frameworks' weights, and
    variants (`model.fp16.safetensors`) of weights that are there plainly.
    """
    files = list(files)
    weights = [f for f in files if "/" in f and ".safetensors" in f]
    plain = [f for f in weights if re.search(r"/[^./]+\.safetensors(\.index\.json)?$", f)]
    have = {f.rpartition("/")[0] for f in plain}
    variants = [f for f in weights if f.rpartition("/")[0] not in have]
    texts = [f for f in files if f.endswith((".json", ".txt", ".model")) and f not in weights]
    return sorted({*plain, *variants, *texts})


def _download(name: str) -> Path:
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        files = needed_files(list_repo_files(name))
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # offline, above all: then what was downloaded before must do
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except Exception:
            raise UserError(f"Cannot get base model {name!r}: {reason_of(error)}") from error
