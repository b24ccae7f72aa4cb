"""Reading and writing safetensors files: the only weights format that is ever opened.

A pickle (.ckpt, .pt, .bin) can run code when it is read, so none is. Writing streams: the header
is known before the first tensor is made, so a model of any size passes through one tensor at a
time.

Format: 8 bytes of header length, a JSON header (name to dtype, shape, byte range), the bytes.
Source: github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import UserError, shortened
from .paths import as_path

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_KEY = 300  # characters; the longest of a published model has 110
MOST_KEYS = 20_000  # a whole SDXL in one file has 2,500
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")


@dataclass(frozen=True)
class Entry:
    """One tensor to write, made only when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


def refuse_pickle(path: Path) -> None:
    """Raise UserError for a pickle, by its name or its first bytes, without opening it as one."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:  # which of a failed read does not say the name
        raise UserError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    # The length of a safetensors header may begin with the same bytes: a brace follows it.
    is_pickle = head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04") and head[8:] != b"{"
    if path.suffix.lower() in _PICKLES or is_pickle:
        raise UserError(
            f"{path} is a pickle file, which can run code when it is opened, so it is not: "
            "save it as .safetensors in the program that made it."
        )


@contextmanager
def opened(path: Path | str) -> Generator[Any]:
    """An open safetensors file (`keys`, `metadata`, `get_slice`, `get_tensor`), checked.

    Raises:
        UserError: no such file, a pickle, a file that is not safetensors, is cut short, whose
            header does not fit its bytes, or whose keys are too long to be names of layers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No file at {path}.")
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()
            if len(keys) > MOST_KEYS:
                raise UserError(f"{path} holds {len(keys)} tensors, more than any model has.")
            for key in keys:
                if len(key) > LONGEST_KEY:
                    raise UserError(
                        f"{path}: a key of {len(key)} characters is not a layer's name: "
                        f"{shortened(key)}"
                    )
            yield file
    except (SafetensorError, OSError, OverflowError, MemoryError) as error:
        line = shortened(error, 200)
        raise UserError(f"{path} is not a readable safetensors file ({line}).") from error


def read_tensors(path: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors and the metadata of an adapter's file.

    Raises:
        UserError: as `opened`, or a tensor that holds NaN or infinite values; its key is named.
    """
    with opened(path) as file:
        metadata = dict(file.metadata() or {})
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if not tensors:
        raise UserError(f"{path} holds no tensors.")
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.itemsize == 1:  # fp8, which few operations take
            tensors[key] = tensor = tensor.float()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {key} holds NaN or infinite values.")
    return tensors, metadata


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a safetensors file; {} of any other file, of a folder, and of none."""
    if not as_path(path).is_file():
        return {}
    try:
        with safe_open(as_path(path), "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def read_shapes(path: Path | str) -> dict[str, tuple[int, ...]]:
    """Key to shape, from the header alone."""
    with opened(path) as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def write_entries(
    entries: Iterable[Entry], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write entries one by one, each made when its turn comes. The same content is the same bytes,
    which safetensors' own writer does not promise: its metadata are in random order.

    Args:
        path: a file that `replace_whole` puts into place.

    Raises:
        ValueError: an entry that makes another shape or dtype than it announced.
    """
    # Wide dtypes first, as the format's own writer does, so that every tensor is aligned.
    entries = sorted(entries, key=lambda e: (-e.dtype.itemsize, e.name))
    header: dict[str, Any] = {
        "__metadata__": dict(sorted({"format": "pt", **(metadata or {})}.items()))
    }
    offset = 0
    for entry in entries:
        size = entry.dtype.itemsize
        for n in entry.shape:
            size *= n
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    if len(header) != len(entries) + 1:
        raise ValueError("two entries of one name")
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for entry in entries:
            tensor = entry.make().contiguous()
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                raise ValueError(f"{entry.name} announced {entry.shape}, made {tensor.shape}")
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def entries_of(tensors: Mapping[str, torch.Tensor]) -> list[Entry]:
    """Entries of tensors that are in memory already."""
    return [
        Entry(name, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    ]


def stored(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None, source: torch.dtype
) -> dict[str, torch.Tensor]:
    """Tensors in the dtype to write: `dtype`, or the source's if it loses nothing, else fp32.

    Raises:
        UserError: a number too large for `dtype`; its key is named.
    """
    if dtype is None:
        source = source if source in (torch.float16, torch.bfloat16) else torch.float32
        kept = {key: tensor.to(source) for key, tensor in tensors.items()}
        same = all(torch.equal(kept[key].float(), t.float()) for key, t in tensors.items())
        dtype = source if same else torch.float32
    cast = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    for key, tensor in cast.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{key} has numbers too large for {dtype}: choose --dtype fp32.")
    return cast
