"""The configuration of the Kronecker adapter, as PEFT knows configurations."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from peft import PeftConfig

from .functional import OUTPUT_ORDERS


class KronAType(str, Enum):  # noqa: UP042, behaves as `peft.PeftType` does, which is not a StrEnum
    """PEFT's name of the method; `peft.PeftType` itself cannot be extended."""

    KRONA = "KRONA"


PEFT_TYPE = KronAType.KRONA
ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
INITIALISATIONS = ("paper", "normal", "kaiming_uniform", "both")
PAPER_STD = 1 / 64


@dataclass
class KronAConfig(PeftConfig):
    """delta W = scale * sum of `terms` products kron(A, B), A (a1, a2), B (out/a1, in/a2).

    Attributes:
        a1: divides out_features; rows of A.
        a2: divides in_features; columns of A. (4, 64) is the paper's best on SDXL. The code
            published with the paper calls its factors the other way round for the same setting.
        target_modules: names or a regular expression, as in every PEFT method; by default the
            query, key, value and output projections of every attention of diffusers' models.
        factor_pattern: different factors for some modules, `{"to_k": (8, 64)}`; keys are module
            names or regular expressions, as in PEFT's `rank_pattern`.
        scale: multiplies delta W; fixed, not trained.
        terms: how many Kronecker products are summed.
        init_weights: "paper": A ~ N(0, std 1/64) whatever a2, B = 0, so that Adam's first step at
            one learning rate is as long for every pair; "normal": the std is 1/a2;
            "kaiming_uniform": A Kaiming-uniform, B = 0; "both": A and B normal with std 1/a2 and
            1/b2, so the start is not the base model.
            As in PEFT's other methods, True is the default and False a start that is not the base
            model: "paper" and "both".
        output_order: row order of delta W; "interleaved" is what the published code computes.
        layers_to_transform, layers_pattern, modules_to_save: as in every PEFT method.

    Raises:
        ValueError: for a value out of range, naming the field.
    """

    a1: int = field(default=4, metadata={"help": "Rows of A; divides out_features."})
    a2: int = field(default=64, metadata={"help": "Columns of A; divides in_features."})
    target_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "Modules to adapt; default: the attention's q, k, v, o."}
    )
    exclude_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "Modules to leave alone although they match."}
    )
    factor_pattern: dict[str, tuple[int, int]] = field(
        default_factory=dict, metadata={"help": "Module name or regex to its own (a1, a2)."}
    )
    scale: float = field(default=1.0, metadata={"help": "Multiplies delta W."})
    terms: int = field(default=1, metadata={"help": "Number of Kronecker products summed."})
    init_weights: bool | str = field(
        default="paper", metadata={"help": f"One of {', '.join(INITIALISATIONS)}, or a bool."}
    )
    output_order: str = field(default="kron", metadata={"help": " or ".join(OUTPUT_ORDERS)})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the layers to adapt; default: all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the module list that the indices count in."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules to train and save whole beside the adapter."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if isinstance(self.target_modules, list | tuple):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform, the indices to adapt.")
        if isinstance(self.init_weights, bool):
            self.init_weights = "paper" if self.init_weights else "both"
        self.factor_pattern = {k: (int(p[0]), int(p[1])) for k, p in self.factor_pattern.items()}
        for name, (a1, a2) in {"(a1, a2)": (self.a1, self.a2), **self.factor_pattern}.items():
            if a1 < 1 or a2 < 1:
                raise ValueError(f"Kronecker factors must be positive: {name} is ({a1}, {a2}).")
        if self.terms < 1:
            raise ValueError(f"terms must be at least 1, not {self.terms}.")
        if self.init_weights not in INITIALISATIONS:
            known = ", ".join(INITIALISATIONS)
            raise ValueError(f"init_weights must be one of {known}, not {self.init_weights!r}.")
        if self.output_order not in OUTPUT_ORDERS:
            known = " or ".join(OUTPUT_ORDERS)
            raise ValueError(f"output_order must be {known}, not {self.output_order!r}.")
