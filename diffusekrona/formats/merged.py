"""The whole personalised model: a diffusers folder, or one file in the original layout.

Weights stream: each tensor is read, changed, cast and written before the next is read, so merging
into SDXL takes the memory of its largest tensor, not of the model.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..adapters.deltas import Delta
from ..bases.families import FAMILIES
from ..common.errors import UserError
from ..common.json_files import read_json
from ..common.tensor_files import Entry, read_metadata, write_entries
from . import ldm_layout
from .delta_set import DeltaSet
from .destination import MARK
from .full_model import WEIGHTS, FullModel, Index, refs_of
from .metadata import metadata_for, names_in_files
from .refs import Ref

Add = Callable[[torch.Tensor], object]
Edits = Mapping[Ref, list[tuple[Index, Add, str]]]


def edits_of(source: DeltaSet, base: FullModel) -> Edits:
    """What is added to which tensors of the base: rows, a function that adds in place, a name.

    Raises:
        UserError: a layer that the base lacks or has in another size; another base family.
    """
    if source.family and base.family and source.family != base.family:
        raise UserError(
            f"The adapter is for {source.family}, the base {base.root} is {base.family}: "
            "use a base of the adapter's family."
        )
    base.check_layers({name: d.shape for name, d in source.layers.items()}, source.title)
    edits: dict[Ref, list[tuple[Index, Add, str]]] = defaultdict(list)
    if source.additions:  # of a whole model: they hold its layers' changes too
        for ref, make in source.additions.items():
            edits[ref].append((slice(None), lambda t, make=make: t.add_(make()), ref.key))
        return edits
    for name, delta in source.layers.items():
        ref, rows = base.find(name)

        def add(weight: torch.Tensor, delta: Delta = delta) -> None:
            delta.add_to(weight.view(delta.shape))

        edits[ref].append((rows, add, name))
    for name, (ref, rows, vector) in vector_places(source, base).items():
        edits[ref].append((rows, lambda t, vector=vector: t.add_(vector), name))
    return edits


def vector_places(source: DeltaSet, base: FullModel) -> dict[str, tuple[Ref, slice, torch.Tensor]]:
    """`<layer>.weight` or `.bias` to the base's tensor, its rows, and what is added to them.

    Raises:
        UserError: the base has no such vector, or one of another length.
    """
    places = {}
    for name, vector in source.vectors.items():
        layer, _, parameter = name.rpartition(".")
        found = base.locate(layer, parameter)
        if found is None:
            raise UserError(f"{source.title} changes {name}, which the base {base.root} lacks.")
        ref, rows = found
        assert isinstance(rows, slice)  # parts of a fused layer have no vectors
        length = len(range(*rows.indices(ref.shape[0])))
        if len(ref.shape) != 1 or length != len(vector):
            raise UserError(
                f"{source.title} does not fit the base {base.root}: {name} has {length} numbers, "
                f"its change {len(vector)}."
            )
        places[name] = (ref, rows, vector)
    return places


def merged_tensor(base: FullModel, ref: Ref, edits: Edits, dtype: torch.dtype) -> torch.Tensor:
    """One tensor of the base with what is added to it, in fp32, rounded once to `dtype`.

    Raises:
        UserError: the result is not finite (numbers too large for fp16); the layer is named.
    """
    tensor = base.load(ref)
    if ref in edits:
        tensor = tensor.to(torch.float32, copy=True)  # what was read may be in the mapped file
    for rows, add, _ in edits.get(ref, ()):
        add(tensor[rows])
    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
    if ref in edits and not torch.isfinite(tensor.float() if dtype.itemsize == 1 else tensor).all():
        raise UserError(
            f"{edits[ref][0][2]} does not fit in {dtype} once merged: use --dtype fp32."
        )
    return tensor


def write_folder(
    source: DeltaSet, base: FullModel, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Fill a folder with the base's own files and the weights of every part written again.

    Raises:
        UserError: the base is a single file.
    """
    if base.is_single_file:
        raise UserError(
            f"{base.root} is one file: a diffusers folder is made from a base that is one; "
            "name a destination that ends in .safetensors instead."
        )
    edits = edits_of(source, base)
    _copy_others(base, folder)
    for component, tensors in base.parts.items():
        entries = [_entry(k, base, ref, edits, dtype) for k, ref in tensors.items()]
        (folder / component).mkdir(exist_ok=True)
        name = WEIGHTS.get(component, "model") + ".safetensors"
        write_entries(entries, folder / component / name, MARK)


def write_single(
    source: DeltaSet, base: FullModel, path: Path, title: str, dtype: torch.dtype | None = None
) -> None:
    """One .safetensors file in the original layout, from a base of either layout.

    Raises:
        UserError: as `edits_of`; a family that has no such layout.
    """
    known = FAMILIES.get(base.family or "")
    if known and known.files is None:
        raise UserError(
            f"A merged {known.title} is written as a diffusers folder: name a destination without "
            ".safetensors."
        )
    edits = edits_of(source, base)
    widths = [
        ref.shape[-1]
        for encoder in ldm_layout.ENCODERS
        for key, ref in base.parts.get(encoder, {}).items()
        if key.endswith("position_embedding.weight")
    ]
    if len(widths) > len(set(widths)):
        source.notes.append(
            "the base's two text encoders are equally wide, which no published model's are: "
            "diffusers distinguishes them by that, so from_single_file will confuse them"
        )
    if base.is_single_file:
        tensors = base.parts["file"].items()
        entries = [_entry(key, base, ref, edits, dtype) for key, ref in tensors]
    else:
        entries = original_entries(base, edits, dtype)
    family = source.family or base.family
    metadata = {}
    if base.is_single_file:
        metadata = base.metadata()
    elif family:
        kind = _schedule(base).get("prediction_type")
        noted = {"prediction_type": str(kind or "")} | source.metadata
        metadata = metadata_for(family, title, "lora", noted)
        metadata = {k: v for k, v in metadata.items() if k.startswith("modelspec.")}
        architecture = metadata["modelspec.architecture"].removesuffix("/lora")
        metadata["modelspec.architecture"] = architecture
    write_entries(entries, path, metadata | MARK)


def _entry(
    name: str,
    base: FullModel,
    ref: Ref,
    edits: Edits,
    dtype: torch.dtype | None,
    transposed: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Entry:
    kind = dtype if dtype is not None and ref.dtype.is_floating_point else ref.dtype
    made = shape or (ref.shape[::-1] if transposed else ref.shape)

    def make() -> torch.Tensor:
        tensor = merged_tensor(base, ref, edits, kind)
        return (tensor.t() if transposed else tensor).reshape(made)

    return Entry(name, kind, made, make)


def original_entries(
    base: FullModel, edits: Edits | None = None, dtype: torch.dtype | None = None
) -> list[Entry]:
    """A folder's tensors under the names and in the shapes of the original layout."""
    family = FAMILIES[base.need_family()]
    known = names_in_files(family.name)
    entry = partial(_entry, base=base, edits=edits or {}, dtype=dtype)
    entries = [
        entry(ldm_layout.unet_key(key, base.unet_config), ref=ref)
        for key, ref in base.parts[family.denoiser].items()
    ]
    vae = base.parts.get("vae", {})
    for key, ref in vae.items():
        name, convolution = ldm_layout.vae_key(key, ldm_layout.up_blocks(vae))
        shape = (*ref.shape, 1, 1) if convolution and len(ref.shape) == 2 else ref.shape
        entries.append(entry(name, ref=ref, shape=shape))
    for component, layout, prefix in zip(
        ldm_layout.ENCODERS, known.text_layouts, known.text_prefixes, strict=False
    ):
        entries += _text_entries(base, base.parts.get(component, {}), layout, prefix, entry)
    return entries + (_prediction_marks(base) if known.sgm else [])


def _text_entries(
    base: FullModel,
    tensors: Mapping[str, Ref],
    layout: str,
    prefix: str,
    entry: Callable[..., Entry],
) -> list[Entry]:
    """A text encoder's entries; q, k and v of OpenCLIP become one tensor."""
    entries: list[Entry] = []
    fused: dict[str, dict[int, Entry]] = defaultdict(dict)
    for key, ref in tensors.items():
        place = ldm_layout.text_key(key, layout, prefix)
        if place is None:
            continue
        name, part, transposed = place
        made = entry(name, ref=ref, transposed=transposed)
        if part is None:
            entries.append(made)
        else:
            fused[name][part] = made
    for name, parts in fused.items():
        if len(parts) != 3:
            raise UserError(f"{base.root}: a text encoder lacks a part of {name}.")
        three = [parts[i] for i in range(3)]
        shape = (sum(e.shape[0] for e in three), *three[0].shape[1:])
        entries.append(
            Entry(
                name,
                three[0].dtype,
                shape,
                lambda three=three: torch.cat([e.make() for e in three]),
            )
        )
    return entries


def _schedule(base: FullModel) -> dict[str, Any]:
    """A folder's noise schedule; {} where it has none."""
    try:
        return read_json(base.root / "scheduler" / "scheduler_config.json", dict[str, Any])
    except UserError:
        return {}


def _prediction_marks(base: FullModel) -> list[Entry]:
    """The empty tensors by which ComfyUI knows a v-predicting model that its layout hides."""
    scheduler = _schedule(base)
    if scheduler.get("prediction_type") != "v_prediction":
        return []
    names = ["v_pred"] + ["ztsnr"] * bool(scheduler.get("rescale_betas_zero_snr"))
    return [Entry(n, torch.float32, (0,), lambda: torch.zeros(0)) for n in names]


def _copy_others(base: FullModel, folder: Path) -> None:
    """Everything that is not written again: configs, tokenizers, scheduler, and the weights of
    parts that no adapter changes, such as a safety checker."""
    weights = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".h5")
    for path in _files(base.root):
        inside = path.relative_to(base.root)
        rewritten = inside.parts[0] in base.parts and len(inside.parts) > 1
        if path.suffix in weights and (rewritten or len(inside.parts) == 1):
            continue
        if rewritten and path.name.endswith((".index.json", ".index.fp16.json")):
            continue
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            _copy_weights(base, path, folder / inside)
        else:
            shutil.copyfile(path, folder / inside)


def _copy_weights(base: FullModel, path: Path, to: Path) -> None:
    """The same tensors, and MARK, by which the next merge into the folder knows them."""
    entries = [_entry(key, base, ref, {}, None) for key, ref in refs_of(path).items()]
    write_entries(entries, to, read_metadata(path) | MARK)


def _files(root: Path) -> Iterator[Path]:
    """The files of a model, hidden ones left out; its parts may be links to another's."""
    seen = set()
    for place, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [f for f in folders if not f.startswith(".")] if real not in seen else []
        seen.add(real)
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def compare(
    source: DeltaSet, base: FullModel, written: FullModel
) -> dict[str, tuple[float, float]]:
    """Name of a layer, or of a norm's weight or a bias, to (largest absolute, relative) difference
    of written - base from its change."""
    found = {
        name: _difference(written.weight(name) - base.weight(name), delta.weight())
        for name, delta in source.layers.items()
    }
    there = vector_places(source, written)
    for name, (ref, rows, vector) in vector_places(source, base).items():
        made, own = there[name][0], there[name][1]
        change = written.load(made)[own].float() - base.load(ref)[rows].float()
        found[name] = _difference(change, vector)
    return found


def _difference(change: torch.Tensor, want: torch.Tensor) -> tuple[float, float]:
    gap, norm = change - want, want.double().norm().item()
    return gap.abs().max().item(), gap.double().norm().item() / norm if norm else 0.0
