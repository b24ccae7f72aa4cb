"""What a run reports and writes: progress, losses, summary, the adapter."""

from __future__ import annotations

import json
import logging
import math
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..adapters.file import collect_adapter, write_adapter
from ..adapters.layout import ADAPTER_FILE
from ..adapters.norms import NORMS_KEY, relative_norms, summarise_norms
from ..bases.precision import dtype_of
from ..bases.settings import BaseSettings
from ..bases.single_file_parts import SingleFile
from ..common.errors import UserError
from ..common.files import write_text
from ..common.json_files import parse_json
from ..common.own_files import keep_foreign, write_result
from ..common.run_record import RUN_RECORD, TRAIN_LOG, LogLine
from ..data.captions import TRIGGER, with_trigger
from ..data.disk_cache import cache_of
from ..data.settings import DataSettings
from .checkpoint import checkpoints_in
from .peaks import Peaks, device_name
from .resolved_run import ResolvedRun
from .settings import OptimisationSettings, OutputSettings
from .stopping import send_to_host
from .trackers import log_to_trackers

log = logging.getLogger("diffusekrona")


# A step's number, its loss on the host, the event after which it is there, and its learning rate.
Pending = tuple[int, torch.Tensor, torch.cuda.Event | None, float]


class RunLog:
    """The run's voice and memory: progress bar, train_log.jsonl, trackers, run.json.

    A loss is sent to the host as soon as it is computed and read one step late: the loop waits for
    the step before at most, and the device always has the next one to work on.
    """

    def __init__(
        self,
        output: OutputSettings,
        optimisation: OptimisationSettings,
        resolved: ResolvedRun,
        accelerator: Any,
        trained: Sequence[torch.nn.Parameter],
        first: int,
        steps: int,
        record: Mapping[str, Any],
        started: float,
        peaks: Peaks,
    ) -> None:
        """Begin or continue the log in the output folder.

        Args:
            trained: all trained parameters.
            first: number of steps already done; steps: of the whole run.
            record: what run.json states beside what was measured.
            started: `time.time()` when the program began.
        """
        self.output, self.optimisation = output, optimisation
        self.resolved, self.accelerator = resolved, accelerator
        self.first, self.steps, self.started = first, steps, started
        self.record, self.peaks = record, peaks
        self.trained = sum(p.numel() for p in trained)
        self.pending: Pending | None = None
        self.last_loss = math.nan
        self.incomplete = False
        self.path = output.output_dir / TRAIN_LOG
        self.main = accelerator.is_main_process
        if self.main:
            log.info(
                "training %s parameters in %d layers of %s with %s, %d steps; memory so far: %s",
                f"{self.trained:,}", len(resolved.layers), resolved.family.title,
                resolved.method.name, steps, peaks.total(),
            )  # fmt: skip
            self._forget_after(first)
        # Each line at once: others watch the file grow.
        self.file = open(self.path, "a", buffering=1, encoding="utf-8") if self.main else None  # noqa: SIM115
        self.bar = tqdm(
            total=steps, initial=first, desc="train", unit="step", disable=not self.main
        )
        self.loop_started = time.time()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.file:
            with suppress(OSError):  # a full disk, of which `_write` has warned
                self.file.close()

    def _forget_after(self, step: int) -> None:
        """Drop the lines of steps that will be done again, and those that are damaged."""
        keep_foreign(self.path)
        if not self.path.is_file():
            return
        lines = [(line, _read_line(line)) for line in self.path.read_bytes().split(b"\n")]
        kept = [(line, read) for line, read in lines if read and read.step <= step]
        write_text(self.path, "".join(line.decode() + "\n" for line, _ in kept))
        if kept:
            self.last_loss = kept[-1][1].loss

    def step(self, done: int, loss: torch.Tensor, lr: float) -> None:
        """Note the loss of step `done`, and log that of the step before.

        Args:
            loss: the step's mean on this process; logged is the mean over all.
            lr: the learning rate that the step was done with.

        Raises:
            UserError: a loss that is not finite.
        """
        if self.accelerator.num_processes > 1:
            loss = self.accelerator.reduce(loss, reduction="mean")
        before, self.pending = self.pending, (done, *send_to_host(loss), lr)
        self._report(before)
        self.bar.update()
        if done == self.first + 1 and self.main:
            log.info("peak memory after the first step: %s", self.peaks.total())

    def flush_and_check(self, trained: Sequence[torch.nn.Parameter]) -> None:
        """Report the pending loss, and check that losses and factors are finite before saving.

        Raises:
            UserError: a loss or a factor is not finite.
        """
        before, self.pending = self.pending, None
        self._report(before)
        # The device is asked once, not once per factor.
        if not torch.stack([torch.isfinite(p).all() for p in trained]).all():
            raise self._diverged("a factor", self.bar.n)

    def _report(self, pending: Pending | None) -> None:
        if pending is None:
            return
        done, arrived, copied, lr = pending
        if copied is not None:
            copied.synchronize()
        loss = arrived.item()
        if not math.isfinite(loss):
            raise self._diverged("the loss", done)
        self.last_loss = loss
        if self.file:
            seconds = round(time.time() - self.loop_started, 3)
            line = {"step": done, "loss": loss, "lr": lr, "seconds": seconds}
            self._write(json.dumps(line) + "\n")
            self.bar.set_postfix(loss=f"{loss:.4f}", lr=f"{lr:.2g}", refresh=False)
            log_to_trackers(self.accelerator, {"loss": loss, "lr": lr}, done)

    def _write(self, line: str) -> None:
        """Add a line to the log; one that the disk refuses costs no training."""
        assert self.file is not None
        try:
            self.file.write(line)
        except OSError as error:
            if not self.incomplete:
                log.warning("lines are missing from %s: %s", self.path, error.strerror or error)
            self.incomplete = True

    def _diverged(self, what: str, step: int) -> UserError:
        good = checkpoints_in(self.output.output_dir)
        kept = f"the last good checkpoint is {good[0]}" if good else "no checkpoint was due yet"
        rate = self.optimisation.learning_rate
        return UserError(
            f"{what} became NaN or infinite at step {step} (learning rate {rate:g}): lower "
            f"--learning_rate, or train without fp16; {kept}."
        )

    def stopped(self, done: int, folder: Path | None, caught: Sequence[int]) -> int:
        """Report that a signal ended the run; returns the exit code."""
        self.bar.close()  # before the line below, which it would overwrite
        where = f"saved {folder}" if folder else "and nothing could be saved"
        log.warning(
            "stopped at step %d, %s; resume with --resume_from_checkpoint latest", done, where
        )
        return 128 + (caught[0] if caught else signal.SIGTERM)

    def save_result(
        self,
        models: Mapping[str, torch.nn.Module],
        origin: Mapping[str, Any],
        adapter_name: str,
        done: int,
        kept: int | None,
        ended: bool,
    ) -> None:
        """Write adapter.safetensors and run.json. A trained adapter is not lost to a full disk.

        Args:
            done: the steps that were trained; ended: before the last, by `--early_stop`.
            kept: the step that the adapter is of, if not `done`.

        Raises:
            UserError: the disk refuses; the line says where the adapter was put instead.
        """
        if not self.main:
            return
        self.bar.close()
        path = self.output.output_dir / ADAPTER_FILE
        norms = summarise_norms(relative_norms(models, adapter_name))
        metadata = {**origin, "steps": done if kept is None else kept}
        metadata |= {NORMS_KEY: norms} if norms else {}
        dtype = dtype_of(self.output.save_precision)
        adapter = collect_adapter(models, adapter_name, self.resolved.family.name, metadata, dtype)
        try:
            write_adapter(adapter, path)
        except UserError as error:
            rescue = Path(tempfile.mkdtemp(prefix="diffusekrona-")) / ADAPTER_FILE
            write_adapter(adapter, rescue)
            raise UserError(f"{error}; the trained adapter was saved to {rescue}") from error
        early = {"stopped_early": ended, "kept_step": kept} if ended or kept is not None else {}
        summary = _finite({**self.summary(path), "steps": done, **early, NORMS_KEY: norms})
        write_result(
            self.output.output_dir / RUN_RECORD, json.dumps(summary, indent=1, allow_nan=False)
        )
        log.info("saved %s (%.2f MB)", path, path.stat().st_size / 1e6)

    def summary(self, path: Path) -> dict[str, Any]:
        """What run.json keeps: settings, counts, times, memory, versions."""
        packages = ("torch", "diffusers", "transformers", "peft", "accelerate")
        return {
            **self.record,
            "base_family": self.resolved.family.name,
            "resolution": self.resolved.resolution,
            "layers": len(self.resolved.layers),
            "trained_parameters": self.trained,
            "adapter_bytes": path.stat().st_size,
            "last_loss": self.last_loss,
            "seconds_until_training": round(self.loop_started - self.started, 2),
            "seconds_training": round(time.time() - self.loop_started, 2),
            "peak_memory": self.peaks.total(),
            "peak_memory_by_phase": self.peaks.in_words(),
            "processes": self.accelerator.num_processes,
            "device": device_name(self.accelerator.device),
            "versions": {name: version(name) for name in packages},
        }


def origin_of(
    base: BaseSettings,
    data: DataSettings,
    optimisation: OptimisationSettings,
    resolved: ResolvedRun,
) -> dict[str, Any]:
    """Where a run's adapter files come from, as their metadata states it; checkpoints' too."""
    reading, prompt = base.options(), data.instance_prompt or ""
    if TRIGGER in prompt and not data.trigger:
        prompt = ""  # only folders have triggers, and each a prompt of its own with it
    if isinstance(resolved.base, SingleFile):
        reading["base_sha256"] = cache_of(data).file_digest(Path(resolved.base))
    return {
        "base_model": base.pretrained_model_name_or_path,
        **reading,
        "instance_prompt": with_trigger(prompt, data.trigger),
        "learning_rate": optimisation.learning_rate,
        "seed": optimisation.seed,
        "resolution": resolved.resolution,
    }


def _read_line(line: bytes) -> LogLine | None:
    """A line of the log; None if it is damaged, such as one cut short by a kill."""
    try:
        return parse_json(line, LogLine)
    except ValueError:
        return None


def _finite(value: Any) -> Any:
    """`value` as JSON can hold it: None for a number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
