"""How much memory a run is going to need, printed before any weights are loaded.

What torch allocates follows from shapes alone, so it is counted on the real modules without their
weights (`count`). Left out is what shapes do not show: the CUDA context and the scratch space that
kernels take inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..optimizer_records import OPTIMIZERS
from .count import count
from .sizes import Sizes

if TYPE_CHECKING:
    from ...bases.settings import BaseSettings, PrecisionSettings
    from ...data.settings import PriorSettings
    from ..resolved_run import ResolvedRun
    from ..settings import OptimisationSettings, ValidationSettings


@dataclass(frozen=True)
class Phase:
    """A part of a run: its name, and bytes by what they are for; their sum is its peak."""

    name: str
    parts: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def estimate(
    base: BaseSettings,
    optimisation: OptimisationSettings,
    precision: PrecisionSettings,
    prior: PriorSettings,
    validation: ValidationSettings,
    resolved: ResolvedRun,
) -> list[Phase]:
    """The phases of a run in order, each with its peak.

    Args:
        precision: with `mixed_precision` None counted as "no".

    Raises:
        UserError: a component's config cannot be read.
    """
    sizes = count(base, optimisation, precision, prior, resolved)
    return phases(optimisation, precision, prior, validation, resolved, sizes)


def phases(
    optimisation: OptimisationSettings,
    precision: PrecisionSettings,
    prior: PriorSettings,
    validation: ValidationSettings,
    resolved: ResolvedRun,
    sizes: Sizes,
) -> list[Phase]:
    """The same from known sizes: what is held at once in each part of a run."""
    tensors = [values for layer in resolved.layers for values in layer.tensors]
    factors = 4 * sum(tensors)
    kept = {"base": sizes.base}
    if resolved.trains_text_encoders:
        kept["text encoders"] = sizes.text_encoders
    kept |= {
        "factors": factors * (2 if optimisation.use_ema else 1),
        "gradients": factors,
        "optimizer": sum(map(OPTIMIZERS[optimisation.optimizer].state_bytes, tensors)),
    }
    if sizes.dequantised:
        kept["weights dequantised"] = sizes.dequantised
    text = sizes.text_layer or sizes.text_encoders
    result = [
        Phase("pictures to latents", {"VAE": sizes.vae, "activations": sizes.encoding}),
        Phase("captions to text states", {"text encoders": text}),
        Phase("training", {**kept, "activations": sizes.step}),
    ]
    if prior.with_prior_preservation:
        # Drawn by the base as it is, if they are not there yet.
        parts = {"base": sizes.drawn_base, "activations": sizes.drawing}
        if not precision.low_vram:  # which has only the model on the card that is at work
            parts |= {"text encoders": sizes.text_encoders, "VAE": sizes.vae}
        result.insert(0, Phase("class pictures", parts))
    if validation.validation_prompt:
        parts = {**kept, "VAE": sizes.vae, "activations": sizes.drawing}
        result.append(Phase("validation pictures", parts))
    return result


def in_words(phases: Sequence[Phase]) -> str:
    """The estimate for people: the highest peak, what it is made of, and the other phases."""
    worst = max(phases, key=lambda phase: phase.peak)
    parts = ", ".join(f"{name} {gib(size)}" for name, size in worst.parts.items())
    others = "; ".join(f"{p.name} {gib(p.peak)}" for p in phases if p is not worst)
    return (
        f"about {gib(worst.peak)} GiB, in {worst.name} ({parts})\n    other phases: {others}\n"
        "    not counted: the CUDA context and the kernels' own scratch space"
    )


def gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
