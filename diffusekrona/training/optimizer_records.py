"""The optimizers that `--optimizer` names, a record each.

Importing this module imports neither torch nor an optimizer's package, so that `--help` stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LIBRARY = "pytorch-optimizer"


@dataclass(frozen=True)
class OptimizerRecord:
    """What the package knows of an optimizer.

    Attributes:
        values: values that its state holds per trained parameter, at most.
        package: that implements it, as pip names it; None for torch.
        group: keys of its parameter groups that it has beside torch's.
        arguments: of it, in place of its own defaults.
        finds_rate: it finds the learning rate by itself, one for all parameters.
        averages: what it leaves is an average of the factors that were trained.
        in_bytes: a large parameter's state is kept in bytes, not in fp32.
    """

    values: int
    package: str | None = LIBRARY
    group: Mapping[str, Any] = field(default_factory=dict[str, Any])
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    finds_rate: bool = False
    averages: bool = False
    in_bytes: bool = False

    @property
    def of_library(self) -> bool:
        """Whether it takes `--optimizer_args`, and not the --adam_ flags but for weight decay."""
        return self.package == LIBRARY

    def state_bytes(self, count: int) -> int:
        """Bytes of the state of one fp32 parameter of `count` values, at most.

        In bytes are states of 4096 values or more, with an fp32 scale for every 256.
        """
        if self.in_bytes and count >= 4096:
            return self.values * (count + 4 * -(-count // 256))
        return self.values * count * 4


# Of pytorch-optimizer: those that resume exactly from a state of tensors and plain values, and need
# neither a closure nor the whole model. tests/training/test_optimizer.py tries each.
OPTIMIZERS = {
    "adamw": OptimizerRecord(2, package=None),
    "adamw8bit": OptimizerRecord(2, package="bitsandbytes", in_bytes=True),
    "prodigy": OptimizerRecord(4, package="prodigyopt", finds_rate=True),
    "adabelief": OptimizerRecord(2),
    # Its default ignores the learning rate.
    "adafactor": OptimizerRecord(1, arguments={"relative_step": False}),
    "adamp": OptimizerRecord(2),
    "adan": OptimizerRecord(4),
    "ademamix": OptimizerRecord(3),
    "adopt": OptimizerRecord(2),
    "came": OptimizerRecord(2),
    "grams": OptimizerRecord(2),
    "lamb": OptimizerRecord(2),
    "laprop": OptimizerRecord(2),
    "lion": OptimizerRecord(1),
    "mars": OptimizerRecord(3),
    "muon": OptimizerRecord(1, group={"use_muon": True}),  # which parameters are matrices
    "nadam": OptimizerRecord(2),
    "radam": OptimizerRecord(2),
    "ranger": OptimizerRecord(3),
    "rmsprop": OptimizerRecord(1),
    "schedulefreeadamw": OptimizerRecord(2, averages=True),
    "schedulefreeradam": OptimizerRecord(2, averages=True),
    "schedulefreesgd": OptimizerRecord(1, averages=True),
    "sgdw": OptimizerRecord(0),
    "stableadamw": OptimizerRecord(2),
    "tiger": OptimizerRecord(1),
}
