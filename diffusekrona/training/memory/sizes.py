"""What a base takes in a run, in bytes; and the settings that decide it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...bases.settings import PrecisionSettings
    from ...data.settings import PriorSettings
    from ..settings import OptimisationSettings


@dataclass(frozen=True)
class Sizes:
    """What a base takes in a run, in bytes.

    Attributes:
        vae, text_encoders, base: weights, as they are kept; base is the denoiser.
        encoding, drawing: activations while the VAE encodes a picture and decodes one.
        dequantised: weights of a quantised base that are whole at once; 0 if it is not quantised.
        step: activations of a forward and backward pass.
        drawn_base: the denoiser's weights on the GPU while class pictures are drawn, unquantised.
        text_layer: the largest layer of text encoders that are on the GPU layer by layer; 0 if they
            are there whole.
    """

    vae: int
    text_encoders: int
    base: int
    encoding: int
    drawing: int
    dequantised: int
    step: int
    drawn_base: int
    text_layer: int = 0


def samples(optimisation: OptimisationSettings, prior: PriorSettings) -> int:
    """In a forward pass, those of prior preservation included."""
    return optimisation.train_batch_size * (2 if prior.doubles_batch else 1)


def checkpoints(precision: PrecisionSettings) -> str:
    """Where gradient checkpointing keeps the blocks' inputs: "device", "host", or "none"."""
    if not precision.gradient_checkpointing:
        return "none"
    return "host" if precision.cpu_offload_checkpointing else "device"
