"""What the user chose about a conversion, and the report of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

#: Above this share of a layer's change, what merging rounds away is worth a line.
ROUNDED_AWAY = 0.02


@dataclass(frozen=True)
class Options:
    """What the user chose about the target; None where left to the source.

    Attributes:
        rank: most a LoRA layer may have; None writes it exactly.
        a1, a2, terms: Kronecker factors, where the source is to be approximated.
        dtype: of the tensors written.
        drop_convolutions: leave convolutions out that the target has no place for.
        skip_unsupported: leave out whatever cannot be read or held by the target.
    """

    rank: int | None = None
    a1: int | None = None
    a2: int | None = None
    terms: int | None = None
    dtype: torch.dtype | None = None
    drop_convolutions: bool = False
    skip_unsupported: bool = False

    @property
    def has_factors(self) -> bool:
        """Whether layers are to be approximated with Kronecker factors of the user's choice."""
        return not (self.a1 is None and self.a2 is None)

    @property
    def without_convolutions(self) -> bool:
        """Whether convolutions may be left out, by name or with all that is unsupported."""
        return self.drop_convolutions or self.skip_unsupported


@dataclass
class Report:
    """What was read, what was written, and how exactly.

    Attributes:
        largest, relative: largest absolute difference of delta W over layers, and the largest
            Frobenius difference relative to its layer's delta W, of the written file, read back;
            likewise of changes of norms and biases. worst_layer: that of the second.
        parameters_written: numbers in the adapter's factors; 0 for a merged model.
        errors: layer name to relative Frobenius error, for an approximation; else empty.
    """

    source: str
    family: str | None
    layers: int
    parameters: int
    bytes_read: int
    target: str
    destination: Path
    bytes_written: int
    parameters_written: int
    largest: float
    relative: float
    worst_layer: str
    errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for people, one fact per line."""
        numbers = f"{self.parameters_written:,} numbers, " if self.parameters_written else ""
        where = f", largest relative {self.relative:.3g} ({self.worst_layer})"
        where = where if self.largest else " in every layer"
        lines = [
            f"read    {self.source}, {self.family or 'family unknown'}: {self.layers} layers, "
            f"{self.parameters:,} numbers, {self.bytes_read / 1e6:.2f} MB",
            f"wrote   {self.target}: {self.destination}, {numbers}"
            f"{self.bytes_written / 1e6:.2f} MB",
            f"checked largest absolute difference of delta W {self.largest:.3g}{where}; "
            "read back from what was written",
        ]
        if self.target == "merged" and self.relative > ROUNDED_AWAY:
            lines.append(
                f"note    rounded to the base's precision, up to {self.relative:.0%} of a layer's "
                "change is lost: --dtype fp32 keeps it"
            )
        lines += [f"error   {error:.6f}  {name}" for name, error in self.errors.items()]
        return lines + [f"note    {note}" for note in self.notes]
