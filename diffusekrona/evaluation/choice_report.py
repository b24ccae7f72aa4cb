"""What a choice leaves: choice.json, and the table in the terminal.

`choice.json` in the run's folder, for programs that show it:

    layout          1; it changes when a field changes its meaning or goes
    sentences       what was chosen and why, one or more lines for people
    chosen          {name, step, weight, file}; null where nothing was chosen
    best_file       "best.safetensors", relative to the run; null where nothing was chosen
    undecided       names of the other candidates that cannot be distinguished from the best
    repeats         whether other random numbers of the bootstrap give the same choice
    prefer, rule    the preference, and what it maximised in words
    subject, class_word, texts, seeds   "sks dog", "dog", what CLIP-T compares with, the seeds
    training, held_out      file names of the photos; held_out is [] where there are none
    settings        {base, clip, dino, steps, guidance}; dino may be null
    base            scores of the base with the plain class word, as a candidate's
    candidates      one per checkpoint and weight, by step and then weight, the largest first:
        name, step, weight, file    file is relative to the run
        chosen, tied, learned, eligible     true or false, as `choice.Verdict` says
        gain, kept, behind  {mean, low, high}: likeness above the base's with the same words,
                            obedience above the base's, how far behind the best; behind may be null
        value               what the preference maximises
        scores              metric to {mean, std, low, high, count}: likeness, clip_i, dino, clip_t,
                            right_prompt, copy_risk, diversity, drift; those that there are
        closest             the largest of the pictures' copy risks; null where unknown
        pictures            paths relative to the run, [prompt][seed]
    not_drawn       names of candidates that the budget left out
    notes           what the reader must know
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..common.tables import show_table
from .candidates import CandidateScores
from .choice import Baseline, Candidate, Choice
from .choice_settings import BEST
from .statistics import Summary, summarise

LAYOUT = 1
NAMES = {
    "likeness": ("likeness", "mean of CLIP-I and DINO, to the held-out or the training pictures"),
    "clip_t": ("obedience", "CLIP-T, agreement with the prompt"),
    "identity": ("identity", "agreement with the photos' attributes, as the reader sees them"),
    "place": ("place", "share of pictures in the place that the prompt names, by the reader"),
    "right_prompt": ("right prompt", "share of pictures whose own prompt CLIP ranks first"),
    "diversity": ("diversity", "distance between pictures of one prompt"),
    "copy_risk": ("copy risk", "nearer to a training picture than real photos are, if above 0"),
    "drift": ("drift", "how far the plain class word moved from the base's pictures"),
}
NO_HOLDOUT = (
    "No pictures were held out: likeness is to the training pictures, and a copy of one of them "
    "scores highest. Train with --holdout 1, or give --holdout_data_dir."
)
NOTHING = (
    "Nothing is chosen: no candidate is measurably more like the subject than the base with the "
    "same words. Train longer or with a higher learning rate, or draw more --seeds."
)


def candidate_name(step: int, weight: float) -> str:
    return f"step {step} at {weight:g}"


@dataclass(frozen=True)
class Row:
    """One candidate, or the base (step 0, weight 0): its file, scores, and pictures' paths
    [prompt][seed]."""

    name: str
    step: int
    weight: float
    file: Path | None
    scores: CandidateScores
    pictures: list[list[Path]]

    def candidate(self) -> Candidate:
        clip_t = self.scores.level("clip_t")
        return Candidate(self.step, self.weight, self.scores.likeness(), clip_t)


@dataclass(frozen=True)
class ChoiceReport:
    """Everything that the reports show.

    Attributes:
        base: the base with the plain class word.
        closeness: of real photos to their nearest training picture; None of a single photo.
        losses: (step, validation loss) where the run measured it, and the step where it turned.
    """

    run: Path
    subject: str
    class_word: str
    prefer: str
    choice: Choice
    rows: list[Row]
    base: Row
    texts: Sequence[str]
    seeds: Sequence[int]
    training: Sequence[Path]
    held_out: Sequence[Path]
    closeness: float | None
    settings: dict[str, Any]
    not_drawn: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    turned: int | None = None

    @property
    def chosen(self) -> Row | None:
        return None if self.choice.chosen is None else self.rows[self.choice.chosen]

    def levels(self, row: Row) -> dict[str, np.ndarray]:
        """Metric to the array to summarise: (prompts, seeds), or one of the two."""
        scores = row.scores
        found = {"likeness": scores.likeness()}
        found |= {name: scores.level(name) for name in scores.pictures}
        if self.closeness is not None:
            found["copy_risk"] = np.array(scores.nearest) - self.closeness
        if scores.diversity is not None:
            found["diversity"] = np.array(scores.diversity)
        return {**found, "drift": np.array(scores.drift)}

    def summaries(self, row: Row) -> dict[str, Summary]:
        return {name: summarise(values) for name, values in self.levels(row).items()}


def baseline_of(base: Row, with_identifier: Row) -> Baseline:
    """What candidates are compared with."""
    scores = base.scores
    return Baseline(
        with_identifier.scores.likeness(), scores.level("clip_t"), np.array(scores.floor)
    )


def sentences(report: ChoiceReport) -> list[str]:
    """What was chosen and why."""
    choice, chosen = report.choice, report.chosen
    if chosen is None:
        return [NOTHING]
    lines = [f"Chosen: {chosen.name}, {choice.rule}."]
    if choice.undecided:
        names = ", ".join(report.rows[n].name for n in choice.undecided)
        lines.append(
            f"It cannot be distinguished from {names}: the earliest checkpoint among them is taken."
        )
    if not choice.repeats:
        lines.append(
            "With other seeds of the intervals (--bootstrap_seed) another of these is chosen."
        )
    risk = report.summaries(chosen).get("copy_risk")
    if risk and risk.low is not None and risk.low > 0:
        lines.append(
            f"Its pictures are nearer to the training pictures than real photos are ({risk}): it "
            "may copy them."
        )
    return lines


def as_json(report: ChoiceReport) -> dict[str, Any]:
    """The content of choice.json; see this module."""
    choice, chosen = report.choice, report.chosen
    return {
        "layout": LAYOUT,
        "sentences": sentences(report),
        "chosen": _place(report, chosen) if chosen else None,
        "best_file": BEST if chosen else None,
        "undecided": [report.rows[n].name for n in choice.undecided],
        "repeats": choice.repeats,
        "prefer": report.prefer,
        "rule": choice.rule,
        "subject": report.subject,
        "class_word": report.class_word,
        "texts": list(report.texts),
        "seeds": list(report.seeds),
        "training": [path.name for path in report.training],
        "held_out": [path.name for path in report.held_out],
        "settings": report.settings,
        "base": {**_place(report, report.base), **_scores(report, report.base)},
        "candidates": [_candidate(report, number) for number in range(len(report.rows))],
        "not_drawn": report.not_drawn,
        "notes": report.notes,
    }


def _candidate(report: ChoiceReport, number: int) -> dict[str, Any]:
    row, verdict = report.rows[number], report.choice.verdicts[number]
    return {
        **_place(report, row),
        "chosen": number == report.choice.chosen,
        **asdict(verdict),
        **_scores(report, row),
    }


def _place(report: ChoiceReport, row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "step": row.step,
        "weight": row.weight,
        "file": row.file and relative(row.file, report.run),
    }


def _scores(report: ChoiceReport, row: Row) -> dict[str, Any]:
    levels = report.levels(row)
    return {
        "scores": {name: s.as_dict() for name, s in report.summaries(row).items()},
        "closest": float(levels["copy_risk"].max()) if "copy_risk" in levels else None,
        "pictures": [[relative(path, report.run) for path in line] for line in row.pictures],
    }


def relative(path: Path, run: Path) -> str:
    return path.relative_to(run).as_posix()


def choice_table(report: ChoiceReport, intervals: bool) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the base, then every candidate; means, or means with intervals."""
    summaries = [report.summaries(row) for row in (report.base, *report.rows)]
    names = [name for name in NAMES if name in summaries[0]]
    rows = []
    for row, scores in zip((report.base, *report.rows), summaries, strict=True):
        cells = [str(scores[m]) if intervals else f"{scores[m].mean:.3f}" for m in names]
        rows.append([row.name, *cells])
    return ["", *(NAMES[name][0] for name in names)], rows


def marked_row(report: ChoiceReport) -> list[int]:
    """The chosen candidate's row in `choice_table`."""
    return [] if report.choice.chosen is None else [report.choice.chosen + 1]


def caption(report: ChoiceReport) -> str:
    """What the scores are of, and which models gave them."""
    by = report.settings["clip"]
    by += f" and {report.settings['dino']}" if report.settings["dino"] else ""
    count = len(report.texts) * len(report.seeds)
    return (
        f"“{report.subject}”: {len(report.texts)} prompts × {len(report.seeds)} seeds = {count} "
        f"pictures each, scored by {by}"
    )


def print_choice(report: ChoiceReport) -> None:
    """The terminal's view: means, so that it fits 80 columns."""
    show_table(caption(report), *choice_table(report, False), marked=marked_row(report))
    for line in (*sentences(report), *report.notes):
        print(line)
