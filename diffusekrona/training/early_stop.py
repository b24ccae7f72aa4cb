"""`--early_stop`: end a run whose validation loss no longer falls, with the adapter of the lowest.

The lowest measurement's adapter is kept in `lowest_loss.safetensors` until the run ends and it
becomes the result. What is decided depends on validation_loss.jsonl alone, which a resumed run
continues, so a run that was killed ends where it would have ended.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..adapters.file import Adapter, read_adapter, save_adapter
from ..adapters.layout import ADAPTER_FILE
from ..common.devices import from_main
from ..common.errors import UserError
from .training_state import TrainingState, as_used, put_back
from .validation_loss import LossLine, ValidationLoss

log = logging.getLogger("diffusekrona")

LOWEST = "lowest_loss.safetensors"


def lowest_of(lines: Sequence[LossLine]) -> LossLine | None:
    """The lowest measurement after training began, the earliest of equals; None before it."""
    return min((line for line in lines if line.step), key=lambda line: line.loss, default=None)


def should_stop(lines: Sequence[LossLine], patience: int) -> bool:
    """Whether the last `patience` measurements, or more, are all above an earlier one."""
    lowest = lowest_of(lines)
    return lowest is not None and sum(line.step > lowest.step for line in lines) >= patience


class EarlyStop:
    """No early stop; what ends runs early is derived from it."""

    def is_due(self, step: int) -> bool:
        """Whether `after` is to be called after `step` steps."""
        return False

    def after(self, step: int) -> bool:
        """Whether the run ends after `step` steps, the same on every process."""
        return False

    def restore(self, done: int, ended: bool) -> int | None:
        """Put the best adapter into the models of the main process, which hold that of the last
        step as a result has it; its step, or None where the result is that of the last step.

        Args:
            done: the steps that were trained; ended: before the last.
        """
        return None

    def forget(self) -> None:
        """Delete what was kept for the result, which has been saved."""


class EarlyStopByLoss(EarlyStop):
    """Watches the validation loss."""

    def __init__(
        self,
        patience: int,
        measured: ValidationLoss,
        folder: Path,
        state: TrainingState,
        trained: Sequence[nn.Parameter],
    ) -> None:
        """
        Args:
            patience: `--early_stop`; folder: the run's.
            trained: the factors of all models in `state`.

        Raises:
            UserError: the validation loss cannot be measured.
        """
        if not measured.every:
            raise UserError(
                "--early_stop needs the validation loss, which is not measured with a sharded base."
            )
        self.patience, self.measured, self.state, self.trained = patience, measured, state, trained
        self.folder, self.accelerator = folder, measured.accelerator

    def is_due(self, step: int) -> bool:
        return self.measured.is_due(step)

    def after(self, step: int) -> bool:
        """As above. Keeps the adapter if the loss was measured now and is the lowest so far."""
        stop = False
        if self.accelerator.is_main_process:
            lowest = lowest_of(self.measured.lines)
            if lowest is not None and lowest.step == step:
                self._keep(step)
            stop = should_stop(self.measured.lines, self.patience)
        return from_main(self.accelerator, stop)

    def _keep(self, step: int) -> None:
        state = self.state
        metadata = {**state.origin, "steps": step}
        try:
            with as_used(state, self.trained):
                save_adapter(
                    state.models, self.folder / LOWEST, state.adapter_name, metadata=metadata
                )
        except (UserError, OSError) as error:
            log.warning("the adapter of step %d is not kept: %s", step, error)

    def restore(self, done: int, ended: bool) -> int | None:
        lowest = lowest_of(self.measured.lines)
        if lowest is None or not self.accelerator.is_main_process:
            return None
        if lowest.step != done:  # else it is in the models
            adapter = self._adapter_of(lowest.step)
            if adapter is None:
                log.warning("the result is the adapter of the last step: that of step %d, where "
                            "the validation loss is lowest, is not in %s",
                            lowest.step, self.folder)  # fmt: skip
                return None
            put_back(self.state, adapter)
        words = f"stopped early at step {done}; " if ended else ""
        log.info("%sthe result is the adapter of step %d, where the validation loss is lowest",
                 words, lowest.step)  # fmt: skip
        return lowest.step

    def _adapter_of(self, step: int) -> Adapter | None:
        """The adapter of `step`, as it was kept or, where a run that had ended is continued, as its
        result, which has not been replaced yet; None if neither is of this step."""
        for path in filter(Path.is_file, (self.folder / LOWEST, self.folder / ADAPTER_FILE)):
            try:
                adapter = read_adapter(path)
            except UserError as error:
                log.warning("%s", error)
                continue
            if adapter.metadata.get("steps") == str(step):
                return adapter
        return None

    def forget(self) -> None:
        if self.accelerator.is_main_process:
            (self.folder / LOWEST).unlink(missing_ok=True)
