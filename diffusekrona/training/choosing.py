"""Drawing and scoring the checkpoints of a run, and the choice among them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..adapters.mixing import WeightedAdapter, choose_base, reading_options
from ..common.devices import choose_device, from_main, main_works_alone
from ..common.errors import UserError
from ..evaluation.choice_settings import (
    CHOICE_FOLDER,
    CandidatesSettings,
    ChooseSettings,
    seconds_of,
)

if TYPE_CHECKING:
    from ..evaluation.candidates import CandidateScorer
    from ..evaluation.choice_report import ChoiceReport, Row
    from ..evaluation.gallery import Gallery
    from .finished_run import Subject

log = logging.getLogger("diffusekrona.choose")


def coarse_to_fine(count: int) -> Iterator[int]:
    """The numbers below `count`: the last, then the middles of the gaps, the widest first."""
    if count:
        yield count - 1
    gaps = [(0, count - 1)]
    while gaps:
        low, high = gaps.pop(0)
        if low < high:
            middle = (low + high) // 2
            yield middle
            gaps += [(low, middle), (middle + 1, high)]


def within(began: float, budget: float | None, state: Any) -> bool:
    """Whether there is time for one more candidate; the main process's clock counts."""
    return from_main(state, budget is None or time.monotonic() - began < budget)


@dataclass(frozen=True)
class Work:
    """What there is to draw and to score with.

    Attributes:
        weighted: (step, weight) to the adapter at that weight, one per candidate.
        settings: base, scorers and drawing, for the reports.
        missing: why a scorer is left out; "" if none is.
    """

    subject: Subject
    weighted: dict[tuple[int, float], WeightedAdapter]
    texts: list[str]
    scorer: CandidateScorer
    gallery: Gallery
    settings: dict[str, Any]
    missing: str


def prepare(settings: ChooseSettings, state: Any, with_result: bool = True) -> Work:
    """Read the run, and load the scorers: one that cannot be loaded is found before drawing.

    Args:
        with_result: compare the run's result too, not its checkpoints alone.

    Raises:
        UserError: whatever is missing or damaged.
    """
    from ..adapters.file import read_adapter
    from ..bases.bundled import is_bundled
    from ..data.photographs import report_photographs
    from ..evaluation.candidates import make_candidate_scorer
    from ..evaluation.encoders import choose_names, load_scorers
    from ..evaluation.gallery import Gallery
    from ..evaluation.pictures import drawing_of
    from ..evaluation.prompts import choose_list, get_prompts
    from ..evaluation.scoring import scored_texts
    from .finished_run import find_checkpoints, read_subject

    asked, about, encoders = settings.candidates, settings.subject, settings.encoders
    checkpoints = find_checkpoints(asked.run, asked.every, with_result)
    adapters = {step: read_adapter(file) for step, file in checkpoints.items()}
    subject = read_subject(asked.run, about, adapters[max(adapters)])
    weighted = {
        (step, weight): WeightedAdapter(checkpoints[step], weight, adapter)
        for step, adapter in adapters.items()
        for weight in (asked.weights if adapter.method.delta else (1.0,))
    }
    everyone = list(weighted.values())
    reading = reading_options(everyone, settings.reading.options())
    base = choose_base(
        about.pretrained_model_name_or_path,
        everyone,
        settings.model.revision,
        reading.get("single_file_config"),
    )
    report_photographs(base, subject.training)
    bundled = is_bundled(base)
    prompts = get_prompts(choose_list(about.prompts, bundled))
    if len(prompts) * len(about.seeds) < 2:
        raise UserError(
            "With one picture per candidate there is no confidence interval: give more --seeds or "
            "prompts."
        )
    names, missing = choose_names(encoders, bundled)
    device = choose_device(settings.model.device, state.device)
    scorers = load_scorers(names, device)
    texts = scored_texts(prompts, subject.class_word)
    drawing = drawing_of(settings.drawing, settings.model, base, device, reading)
    return Work(
        subject,
        weighted,
        texts,
        make_candidate_scorer(scorers, texts, subject.training, subject.held_out),
        Gallery(
            asked.run / CHOICE_FOLDER,
            drawing,
            prompts,
            about.seeds,
            subject.class_word,
            state,
            device,
        ),
        {
            "base": base,
            **scorers.names,
            "steps": drawing.steps,
            "guidance": drawing.guidance,
        },
        missing,
    )


def draw_and_score(
    asked: CandidatesSettings, work: Work, state: Any
) -> tuple[list[Row], list[Row], list[str]]:
    """The base's rows, with the plain class and with the identifier; the candidates' rows, empty on
    other than the main process; the names of those that the budget left out."""
    from ..evaluation.choice_report import Row, candidate_name
    from ..evaluation.pictures import Variant

    began, budget = time.monotonic(), seconds_of(asked.budget)
    subject, scorer, gallery = work.subject, work.scorer, work.gallery
    bases, rows, left = [], [], []
    pictures = len(gallery.prompts) * len(gallery.seeds)
    log.info("choosing among %d candidates, %d pictures each", len(work.weighted), pictures)
    for variant in (
        Variant("base", subject.class_word),
        Variant("base with the identifier", subject.name),
    ):
        gallery.draw(variant)
        with main_works_alone(state, "scores"):
            if state.is_main_process:
                bases.append(Row(variant.name, 0, 0.0, None, *gallery.score(variant, scorer)))
    steps = sorted({step for step, _ in work.weighted})
    weights = dict.fromkeys(weight for _, weight in work.weighted)
    order = [(steps[n], weight) for weight in weights for n in coarse_to_fine(len(steps))]
    for number, (step, weight) in enumerate(order):
        name, adapter = candidate_name(step, weight), work.weighted[step, weight]
        if number and not within(began, budget, state):
            left.append(name)
            continue
        variant = Variant(name, subject.name, (adapter,))
        gallery.draw(variant)
        with main_works_alone(state, "scores"):
            if state.is_main_process:
                rows.append(Row(name, step, weight, adapter.path, *gallery.score(variant, scorer)))
                log.info("%d of %d candidates done", len(rows), len(order))
    return bases, sorted(rows, key=lambda row: (row.step, -row.weight)), left


def choose_candidate(
    settings: ChooseSettings, state: Any, with_result: bool = True
) -> ChoiceReport | None:
    """Draw, score and choose; None on other than the main process. Arguments as of `prepare`."""
    from ..evaluation.choice import choose
    from ..evaluation.choice_report import NO_HOLDOUT, ChoiceReport, baseline_of
    from .validation_loss import VALIDATION_LOSS, read_losses, turning_point

    asked = settings.candidates
    work = prepare(settings, state, with_result)
    bases, rows, left = draw_and_score(asked, work, state)
    if not state.is_main_process:
        return None
    subject, candidates = work.subject, [row.candidate() for row in rows]
    notes = [note for note in (work.missing, "" if subject.held_out else NO_HOLDOUT) if note]
    if left:
        notes.append(f"The budget left out {len(left)} of {len(left) + len(rows)} candidates.")
    losses = read_losses(asked.run / VALIDATION_LOSS)
    turn = turning_point(losses)
    return ChoiceReport(
        run=asked.run,
        subject=subject.name,
        class_word=subject.class_word,
        prefer=asked.prefer,
        choice=choose(candidates, baseline_of(*bases), asked.prefer, asked.bootstrap_seed),
        rows=rows,
        base=bases[0],
        texts=work.texts,
        seeds=settings.subject.seeds,
        training=subject.training,
        held_out=subject.held_out,
        closeness=work.scorer.baseline,
        settings=work.settings,
        not_drawn=left,
        notes=notes,
        losses=[(line.step, line.loss) for line in losses],
        turned=turn.step if turn else None,
    )
