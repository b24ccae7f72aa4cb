"""Pictures and scores of the candidates of a choice, kept in one folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .candidates import (
    CandidateScorer,
    CandidateScores,
    keep_scores,
    kept_scores,
    score_candidate,
    scores_key,
)
from .pictures import Drawing, Job, KeptBase, Variant, draw_missing, jobs_of, load_rows
from .prompts import Prompt

log = logging.getLogger(__name__)

PLAIN = Prompt("{subject}")


class Gallery:
    """Draws a variant's pictures, scores them, and keeps both."""

    def __init__(
        self,
        folder: Path,
        drawing: Drawing,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        class_word: str,
        state: Any,
        device: Any,
    ) -> None:
        self.folder, self.kept, self.prompts = folder, KeptBase(drawing), prompts
        self.seeds, self.class_word = seeds, class_word
        self.state, self.device = state, device
        self.plain_of_base: torch.Tensor | None = None
        self.plain_paths: list[Path] = []

    def jobs(self, variant: Variant) -> tuple[list[Job], list[Job]]:
        """Its pictures of the prompts, and of the plain class word."""
        folder = self.folder / "pictures"
        plain = replace(variant, subject=self.class_word)
        return (
            jobs_of(variant, self.kept.drawing, self.prompts, self.seeds, folder),
            jobs_of(plain, self.kept.drawing, (PLAIN,), self.seeds, folder),
        )

    def draw(self, variant: Variant) -> None:
        """Every process draws its share of what is missing."""
        own, plain = self.jobs(variant)
        everything = list({job.path: job for job in (*own, *plain)}.values())
        drawn = draw_missing(variant, self.kept, everything, self.state, self.device)
        log.info("%s: %d pictures drawn, %d kept", variant.name, drawn, len(everything) - drawn)

    def score(
        self, variant: Variant, scorer: CandidateScorer
    ) -> tuple[CandidateScores, list[list[Path]]]:
        """Scores on the main process, kept or computed, and the pictures' paths [prompt][seed].

        The base's own must be scored before any other's.
        """
        own, plain = self.jobs(variant)
        rows: dict[int, list[Path]] = {}
        for job in own:
            rows.setdefault(job.row, []).append(job.path)
        paths = [rows[row] for row in sorted(rows)]
        if self.plain_of_base is None:
            self.plain_of_base = scorer.scorers.clip.images(load_rows(plain)[0])
            self.plain_paths = [job.path for job in plain]
        files = [*self.plain_paths, *(job.path for job in (*own, *plain))]
        file = self.folder / "scores" / f"{variant.folder}.json"
        key = scores_key(scorer, files)
        scores = kept_scores(file, key)
        if scores is None:
            images, words = load_rows(own), load_rows(plain)[0]
            scores = score_candidate(scorer, images, words, self.plain_of_base)
            keep_scores(file, key, scores)
        return scores, paths
