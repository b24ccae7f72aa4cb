"""`--lr_find`: a short sweep over learning rates, and the rate to begin with.

The rate rises geometrically over a hundred steps of ordinary training (L. N. Smith, arXiv
1506.01186). The loss of a step mostly shows which timestep was drawn, so each is divided by the
loss of the untrained adapter on the same batch: the same pictures, noise and timesteps. The curve
is the geometric moving average of these ratios: it begins at 1, falls where training works, and
rises where the rate is too high. A tenth of the rate at its lowest point is the one to begin with,
since a run stays at its rate far longer than the sweep does.

Nothing is trained for keeps: the sweep writes one chart.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..common.charts import GREY, chart_png, colour, new_chart
from ..common.errors import UserError
from ..common.own_files import write_result
from ..common.settings import with_values
from ..data.cache import prepare_data
from . import setup
from .batch import make_batch, training_loss
from .optimizer import backward_and_step
from .optimizer_records import OPTIMIZERS
from .sharded import distribute

if TYPE_CHECKING:
    from ..data.examples import Example
    from .resolved_run import ResolvedRun
    from .settings import TrainSettings

log = logging.getLogger("diffusekrona")

CHART = "lr_find.png"
STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
_SMOOTHING = 0.9  # of the moving average of log ratios
_TOO_HIGH = 1.5  # ratio at which the sweep ends
_LEARNED = 0.99  # a lowest ratio above this is not a fall
_BACK = 10  # the rate to begin with is this much below that of the lowest point
_WIDTH, _EVERY = 40, 5  # of the printed curve: characters, steps per line


@dataclass(frozen=True)
class Sweep:
    """The curve of a sweep.

    Attributes:
        rates: learning rate of each step that has a loss; ratios: smoothed, of the loss to the
            untrained one's.
    """

    rates: list[float]
    ratios: list[float]

    @property
    def lowest(self) -> int | None:
        """Number of the step with the lowest ratio; None if the loss did not fall."""
        if not self.ratios:
            return None
        number = min(range(len(self.ratios)), key=self.ratios.__getitem__)
        return number if self.ratios[number] < _LEARNED else None

    @property
    def rate(self) -> float | None:
        """The learning rate to begin with, to two digits; None if the loss did not fall."""
        lowest = self.lowest
        return None if lowest is None else float(f"{self.rates[lowest] / _BACK:.1e}")


def rate_at(step: int) -> float:
    """The learning rate of step 0, 1 … of the sweep."""
    return LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))


def smoothed(ratios: Sequence[float]) -> list[float]:
    """The geometric moving average, unbiased at its beginning."""
    mean, found = 0.0, []
    for number, ratio in enumerate(ratios, 1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * math.log(ratio)
        found.append(math.exp(mean / (1 - _SMOOTHING**number)))
    return found


def sweep(
    settings: TrainSettings, resolved: ResolvedRun, accelerator: Any, examples: Sequence[Example]
) -> Sweep:
    """Train with rising rates until the loss is far above that of the untrained adapter.

    Class pictures take no part. Every process calls it.

    Raises:
        UserError: an optimizer that chooses its own rate; pictures without any loss; whatever a run
            is refused for.
    """
    optimisation = settings.optimisation
    if OPTIMIZERS[optimisation.optimizer].finds_rate:
        raise UserError(
            f"--lr_find: {optimisation.optimizer} chooses its learning rate itself; give it a rate "
            "of 1."
        )
    settings = with_values(settings, with_prior_preservation=False)
    data = prepare_data(
        settings.base, settings.data, settings.prior, settings.precision, resolved, accelerator,
        examples, seed=optimisation.seed,
        train_text_encoder=settings.adapter.train_text_encoder, validation_prompts=(),
    )  # fmt: skip
    parts = setup.build(settings, resolved, data, accelerator)
    trained, regulariser, objective = parts.trained, parts.regulariser, parts.objective
    wrapped, optimizer = distribute(
        accelerator, parts.models, parts.optimizer, trained, parts.shard
    )
    own = [group["lr"] / optimisation.learning_rate for group in optimizer.param_groups]

    def loss_of(step: int, learn: bool) -> float:
        """The mean loss of a step's batches."""
        total, moved = torch.zeros((), device=accelerator.device), False
        for micro in range(optimisation.gradient_accumulation_steps):
            number = step * optimisation.gradient_accumulation_steps + micro
            batch = make_batch(optimisation, settings.loss, data, accelerator, objective, number)
            gathered = accelerator.accumulate(*wrapped.values()) if learn else torch.no_grad()
            with gathered, regulariser.dropping(number):
                loss = training_loss(settings.loss, resolved, data, wrapped, objective, batch)
                total += loss.detach().float() / optimisation.gradient_accumulation_steps
                if learn:
                    moved = backward_and_step(
                        loss, accelerator, optimizer, trained, optimisation.max_grad_norm,
                        parts.shard,
                    )  # fmt: skip
        if moved:
            regulariser.limit_norms()
        return accelerator.reduce(total, reduction="mean").item()

    untrained = [loss_of(step, learn=False) for step in range(STEPS)]
    if not any(untrained):
        raise UserError(
            "--lr_find: every loss is 0: look at the masks and weights of the pictures."
        )
    rates: list[float] = []
    ratios: list[float] = []
    for step in range(STEPS):
        if untrained[step] == 0:  # such as a batch of pictures without weight: it shows nothing
            continue
        for group, factor in zip(optimizer.param_groups, own, strict=True):
            group["lr"] = rate_at(step) * factor
        ratio = loss_of(step, learn=True) / untrained[step]
        if not (math.isfinite(ratio) and ratio > 0):
            break
        rates.append(rate_at(step))
        ratios.append(ratio)
        if smoothed(ratios)[-1] > _TOO_HIGH:
            break
    return Sweep(rates, smoothed(ratios))


def curve_in_lines(found: Sweep) -> list[str]:
    """The curve for a terminal: rate, ratio, a bar."""
    shown = range(0, len(found.ratios), _EVERY)
    lines = ["learning rate   loss / untrained"]
    for number in shown:
        bar = "█" * min(_WIDTH, round(found.ratios[number] * _WIDTH / _TOO_HIGH))
        lines.append(f"{found.rates[number]:>13.1e}   {found.ratios[number]:5.3f} {bar}")
    return lines


def words_of(found: Sweep, own: float) -> str:
    """What the curve says.

    Args:
        own: the learning rate of the settings.
    """
    if found.lowest is None:
        return (
            "The loss did not fall at any rate: look at the pictures and captions, or sweep with a "
            "larger --train_batch_size."
        )
    rate = found.rates[found.lowest]
    return (
        f"The loss is lowest at {rate:.1e}. Begin with --learning_rate {found.rate:g}, a tenth of "
        f"it; these settings have {own:g}."
    )


def draw_curve(found: Sweep) -> bytes:
    """The curve as a PNG file."""
    figure, axes = new_chart(6.0, 3.6)
    axis = axes[0, 0]
    axis.plot(found.rates, found.ratios, lw=1.5, color=colour(0))
    axis.axhline(1, color=GREY, lw=0.8)
    if found.rate is not None:
        axis.axvline(found.rate, color=colour(2), ls="--", lw=1.2)
        axis.annotate(
            f" {found.rate:g}", (found.rate, max(found.ratios)), color=colour(2), fontsize=9,
            va="top",
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlabel("learning rate", fontsize=8)
    axis.set_ylabel("loss, relative to the untrained adapter", fontsize=8)
    axis.grid(alpha=0.3)
    return chart_png(figure)


def find_rate(
    settings: TrainSettings, resolved: ResolvedRun, accelerator: Any, examples: Sequence[Example]
) -> None:
    """Sweep, print the curve and the rate, and write the chart into the output folder."""
    found = sweep(settings, resolved, accelerator, examples)
    if not accelerator.is_main_process:
        return
    if not found.ratios:
        raise UserError("--lr_find: the loss is not finite at the lowest rate: train without fp16.")
    print("\n".join(curve_in_lines(found)))
    print(words_of(found, settings.optimisation.learning_rate))
    path = Path(settings.output.output_dir) / CHART
    write_result(path, draw_curve(found))
    print(f"Written: {path}")
