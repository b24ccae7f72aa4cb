"""The names of a pipeline's components. Importable without torch."""

from __future__ import annotations

from collections.abc import Iterable


def is_text_encoder(component: str) -> bool:
    """Whether a component of a pipeline is a text encoder, by diffusers' naming."""
    return component.startswith("text_encoder")


def denoiser_name(components: Iterable[str]) -> str:
    """Of a run's or an adapter's components, the one that denoises; "" if there is none."""
    return next((name for name in components if not is_text_encoder(name)), "")
