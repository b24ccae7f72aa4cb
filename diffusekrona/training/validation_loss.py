"""The validation loss: of the same pictures, timesteps and noise every time.

A training step's loss mostly shows which timestep was drawn. This one shows what was learned: the
loss of held-out pictures, or else of training pictures, at four timesteps that stand for equal
parts of those that the objective draws, with noise that depends on nothing but the picture's place
in the list. It is the plain loss whatever is trained with, so that runs compare.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import FiniteFloat
from torch import nn

from ..bases.base import Objective
from ..common.devices import main_works_alone
from ..common.errors import shortened
from ..common.files import write_text
from ..common.json_files import parse_json
from ..common.own_files import keep_foreign
from ..common.seeds import seed_for
from ..data.cache import Data
from ..data.examples import Example
from ..data.latents import Item
from .resume import hash_of
from .settings import ValidationSettings
from .trackers import log_to_trackers

log = logging.getLogger("diffusekrona")

VALIDATION_LOSS = "validation_loss.jsonl"
TIMESTEPS = 4
MOST_PICTURES = 4
DEFAULT_STEPS = 100
_DRAWS = 4096  # of timesteps, for the quantiles of their distribution


@dataclass(frozen=True)
class LossLine:
    """One line of validation_loss.jsonl.

    Attributes:
        step: steps done; 0 is before the first.
        loss: the mean over pictures and timesteps.
        timesteps, losses: the fixed timesteps, and the mean over pictures at each.
        pictures: "held out" or "training".
        content: hash of the pictures and captions measured; "" in lines of older versions.
    """

    step: int
    loss: FiniteFloat
    timesteps: list[FiniteFloat]
    losses: list[FiniteFloat]
    pictures: str
    content: str = ""


class ValidationLoss:
    """Measures every so many steps, and keeps validation_loss.jsonl and the trackers up to date.

    It draws from generators of its own and leaves the models as they were: training with it on is
    training with it off, bit for bit.
    """

    def __init__(
        self,
        validation: ValidationSettings,
        folder: Path,
        accelerator: Any,
        data: Data,
        objective: Objective,
        models: Mapping[str, nn.Module],
        loss_of: Callable[[dict[str, Any]], torch.Tensor] | None,
        first: int,
        examples: Sequence[Example],
        as_used: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """
        Args:
            models: component name to unwrapped model, for evaluation mode while it measures.
            loss_of: the mean loss of a batch as `fixed_batches` makes it; None: no process can.
            first: the steps done already; lines of later steps are dropped, and those of other
                pictures, which a resumed run may have: their losses do not compare.
            examples: those that are measured, or more.
            as_used: within it the models hold what a result of this step would, such as an average.
        """
        asked = validation.validation_loss_steps
        self.every = (DEFAULT_STEPS if data.held_out else 0) if asked is None else asked
        if loss_of is None and self.every:
            log.warning("no validation loss: the base is sharded over the processes")
            self.every = 0
        self.path, self.accelerator, self.models = folder / VALIDATION_LOSS, accelerator, models
        self.loss_of, self.as_used = loss_of, as_used
        self.lines: list[LossLine] = []
        self.pictures = "held out" if data.held_out else "training"
        self.content = ""
        self.batches: list[dict[str, Any]] = []
        if self.every and accelerator.is_main_process:
            self.content = hash_of(one.content() for one in examples[:MOST_PICTURES])
            there = [line for line in read_losses(self.path) if 0 < first >= line.step]
            self.lines = [line for line in there if line.content in ("", self.content)]
            if len(self.lines) < len(there):
                log.warning("the validation loss starts again: it was measured on other pictures")
            self.batches = fixed_batches(data.held_out or data.instance, objective)

    def is_due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def step(self, step: int) -> None:
        """Measure after `step` steps, on the main process. A failure costs no training."""
        if not self.every:
            return
        with main_works_alone(self.accelerator, "validation loss"):
            if self.accelerator.is_main_process and all(line.step != step for line in self.lines):
                try:
                    self._measure(step)
                except Exception as error:
                    if step == 0:  # it would repeat every time
                        raise
                    log.warning("no validation loss at step %d: %s", step, shortened(error, 300))

    @torch.no_grad()
    def _measure(self, step: int) -> None:
        assert self.loss_of is not None
        device = self.accelerator.device
        found: dict[float, list[float]] = {}
        with self.as_used(), _evaluating(self.models.values()):
            for batch in self.batches:
                there = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
                found.setdefault(batch["timesteps"].item(), []).append(self.loss_of(there).item())
        losses = [sum(each) / len(each) for each in found.values()]
        loss = sum(losses) / len(losses)
        if not math.isfinite(loss):
            log.warning("the validation loss at step %d is not finite", step)
            return
        self.lines.append(LossLine(step, loss, list(found), losses, self.pictures, self.content))
        keep_foreign(self.path)
        write_text(self.path, "".join(json.dumps(asdict(line)) + "\n" for line in self.lines))
        values = {f"validation_loss/t{t:g}": one for t, one in zip(found, losses, strict=True)}
        log_to_trackers(self.accelerator, {"validation_loss": loss, **values}, step)

    def report(self) -> None:
        """Log what the curve says: where it began, its lowest point, where it ended."""
        if self.lines:
            log.info("%s", in_words(self.lines))


@contextmanager
def _evaluating(models: Any) -> Generator[None]:
    """Models in evaluation mode, and afterwards as they were."""
    before = [(module, module.training) for model in models for module in model.modules()]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def read_losses(path: Path) -> list[LossLine]:
    """The lines of a validation_loss.jsonl that are whole; none if there is no such file."""
    if not path.is_file():
        return []
    lines: list[LossLine] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            lines.append(parse_json(line, LossLine))
        except ValueError:  # damaged, or the empty end
            continue
    return sorted(lines, key=lambda line: line.step)


def turning_point(lines: Sequence[LossLine]) -> LossLine | None:
    """The lowest line, if the loss has risen since; None while it falls."""
    if not lines:
        return None
    lowest = min(lines, key=lambda line: line.loss)
    return None if lowest is lines[-1] else lowest


def in_words(lines: Sequence[LossLine]) -> str:
    """One line about a curve."""
    first, last, turn = lines[0], lines[-1], turning_point(lines)
    text = f"validation loss ({last.pictures} pictures): {first.loss:.4f} at step {first.step}, "
    if turn is None:
        return text + f"{last.loss:.4f} at step {last.step}, its lowest"
    return text + (
        f"lowest {turn.loss:.4f} at step {turn.step}, where it turned, {last.loss:.4f} at step "
        f"{last.step}"
    )


def fixed_timesteps(objective: Objective, shape: tuple[int, ...]) -> torch.Tensor:
    """Timesteps (4,) in ascending order: the middles of four equally likely parts of those that the
    objective draws for latents of `shape` (c, h, w)."""
    generator = torch.Generator().manual_seed(0)
    drawn = [objective.draw_timestep(generator, shape) for _ in range(_DRAWS)]
    places = [(2 * part + 1) * _DRAWS // (2 * TIMESTEPS) for part in range(TIMESTEPS)]
    return torch.stack(drawn).sort().values[places]


def fixed_batches(items: Sequence[Item], objective: Objective) -> list[dict[str, Any]]:
    """One batch per picture, of the first four, and timestep, on the CPU; the latents are their
    mean. As the training's: "moments" (1, 2c, h, w), "posterior" and "noise" (1, c, h, w),
    "timesteps" (1,), "time_ids" (1, 6), "mask" (1, 1, h, w) where there is one, "captions" (1).
    """
    batches: list[dict[str, Any]] = []
    for number, item in enumerate(items[:MOST_PICTURES]):
        variant = next(iter(item.variants.values()))[0]
        channels, *size = variant.moments.shape
        shape = (channels // 2, *size)
        mask = {} if variant.mask is None else {"mask": variant.mask[None]}
        for part, timestep in enumerate(fixed_timesteps(objective, shape)):
            seed = seed_for("validation loss", number, part)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            batches.append(
                {
                    "moments": variant.moments[None],
                    "posterior": torch.zeros_like(noise)[None],
                    "noise": noise[None],
                    "timesteps": timestep[None],
                    "time_ids": variant.time_ids[None],
                    "captions": [item.captions[0]],
                    **mask,
                }
            )
    return batches
