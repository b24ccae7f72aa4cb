"""DiffuseKronA: DreamBooth fine-tuning of Stable Diffusion and SDXL with Kronecker adapters."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# Looked up on first use, so that `--help` and `--dry_run` need not wait for torch.
_HOMES = {
    "KronAConfig": "diffusekrona.krona",
    "merge_and_unload": "diffusekrona.krona",
    "save_adapter": "diffusekrona.adapters.file",
    "load_adapter": "diffusekrona.adapters.file",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
