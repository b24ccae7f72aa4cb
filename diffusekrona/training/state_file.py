"""Nested state (optimizer, schedule, moving average) in a safetensors file, without pickle.

The tensors are stored by number. How they nest, and every other value, is in the metadata as
JSON: a dict as {"d": [[key, value], …]}, so that keys keep their type, a list as {"l": […]}, a
tuple as {"t": […]}, tensor n as {"n": n}; None, bool, int, float and str as they are. Reading such
a file can run no code, and gives back exactly what was written: floats travel by `repr`, tensors by
their bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..common.errors import UserError

_KEY = "state"
_MOST_DEPTH = 20
_PLAIN = (type(None), bool, int, float, str)


def save_state(state: Any, path: Path) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values.

    Raises:
        TypeError: a value of another kind.
    """
    tensors: dict[int, tuple[str, torch.Tensor]] = {}

    def encode(node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            # By identity: 8-bit optimizers share one code book among all parameters.
            name, _ = tensors.setdefault(id(node), (str(len(tensors)), node))
            return {"n": int(name)}
        if isinstance(node, dict):
            return {"d": [[encode(key), encode(value)] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return {"l" if isinstance(node, list) else "t": [encode(value) for value in node]}
        if type(node) in _PLAIN:
            return node
        raise TypeError(f"a training state cannot hold a {type(node).__name__}")

    structure = json.dumps(encode(state))
    flat = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.values()}
    save_file(flat, path, metadata={_KEY: structure})


def load_state(path: Path) -> Any:
    """What `save_state` wrote, tensors on the CPU.

    Raises:
        UserError: the file is missing or is not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            structure = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _decode(structure, tensors, 0)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not a training state that can be read ({reason})") from error


def _decode(node: Any, tensors: dict[str, torch.Tensor], depth: int) -> Any:
    if depth > _MOST_DEPTH:
        raise ValueError("nested too deep")
    if type(node) in _PLAIN:
        return node
    if not isinstance(node, dict) or len(node) != 1:
        raise ValueError("its structure is damaged")
    ((kind, content),) = node.items()
    if kind == "n":
        return tensors[str(content)]
    if kind == "d":
        pairs = [(_decode(k, tensors, depth + 1), v) for k, v in content]
        return {key: _decode(value, tensors, depth + 1) for key, value in pairs}
    if kind not in ("l", "t") or not isinstance(content, list):
        raise ValueError("its structure is damaged")
    values = [_decode(value, tensors, depth + 1) for value in content]
    return values if kind == "l" else tuple(values)
