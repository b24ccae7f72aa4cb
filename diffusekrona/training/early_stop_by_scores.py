"""`--early_stop_by scores`: end a run whose checkpoints no longer get better, with the best one.

After each checkpoint the choice of `diffusekrona choose` is made among those that there are, at
weight 1. Pictures and scores are kept in the run's folder `choice/`: a resumed run decides as it
would have, and `choose` afterwards draws only the other weights.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..adapters.file import Adapter, read_adapter
from ..adapters.layout import ADAPTER_FILE
from ..bases.bundled import is_bundled
from ..common.devices import from_main
from ..common.settings import build
from ..evaluation.choice_settings import ChooseSettings
from ..evaluation.encoders import choose_names, load_clip_encoder
from .choosing import choose_candidate
from .early_stop import EarlyStop, put_back
from .finished_run import read_subject
from .training_state import TrainingState

log = logging.getLogger("diffusekrona")


def choose_settings(folder: Path) -> ChooseSettings:
    """Those of `diffusekrona choose`, for the run in `folder` at weight 1."""
    return build(ChooseSettings, {"run": folder, "weights": (1.0,)})


class EarlyStopByScores(EarlyStop):
    """Watches likeness and obedience of the checkpoints' pictures."""

    def __init__(
        self,
        patience: int,
        every: int,
        folder: Path,
        base: str,
        accelerator: Any,
        state: TrainingState,
    ) -> None:
        """
        Args:
            patience: `--early_stop`; every: steps between checkpoints.
            folder: the run's, with its run.yaml; base: name or path of the base model.

        Raises:
            UserError: a scorer cannot be loaded, or the subject's name cannot be read off the
                prompt: found here rather than at the first checkpoint.
        """
        self.patience, self.every, self.folder = patience, every, folder
        self.accelerator, self.state = accelerator, state
        self.settings = choose_settings(folder)
        self.best: int | None = None
        accelerator.wait_for_everyone()  # run.yaml is there
        read_subject(folder, self.settings.subject, Adapter({}, {}))
        encoders = self.settings.encoders
        names, _ = choose_names(encoders, is_bundled(base))
        load_clip_encoder(names.clip, names.clip_backend, "cpu")

    def is_due(self, step: int) -> bool:
        return step > 0 and step % self.every == 0

    def after(self, step: int) -> bool:
        """As above; a failure costs no training, unless processes would wait for one another."""
        if not self.is_due(step):
            return False
        try:
            report = choose_candidate(self.settings, self.accelerator, with_result=False)
        except Exception as error:
            if self.accelerator.num_processes > 1:
                raise
            log.warning("the checkpoint of step %d was not scored: %s", step, error)
            return False
        stop = False
        if report is not None and report.chosen is not None:
            self.best = report.chosen.step
            log.info("best so far: the checkpoint of step %d", self.best)
            stop = sum(row.step > self.best for row in report.rows) >= self.patience
        return from_main(self.accelerator, stop)

    def restore(self, done: int, ended: bool) -> int | None:
        """As above; a run that is not stopped early has the adapter of its last step."""
        if not ended or self.best is None or not self.accelerator.is_main_process:
            return None
        put_back(self.state, read_adapter(self.folder / f"checkpoint-{self.best}" / ADAPTER_FILE))
        log.info(
            "stopped early at step %d; the result is the checkpoint of step %d", done, self.best
        )
        return self.best
