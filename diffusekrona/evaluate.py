"""Scores of fine-tuned subjects: `accelerate launch -m diffusekrona.evaluate --help`.

Prompts times seeds by DreamBooth's protocol, for any number of adapters and the bare base, scored
by CLIP-I, CLIP-T, DINO and diversity. Pictures are drawn once and kept: a run that is killed goes
on where it stopped, `--score_only` scores again without drawing, processes share the drawing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .adapters.mixing import choose_base, read_weighted, reading_options, run_name
from .common.devices import choose_device, process_state
from .common.errors import UserError, exit_on_user_error
from .common.weights import split_name
from .evaluation.settings import ComparedSettings, EvaluateSettings, parse_settings

if TYPE_CHECKING:
    from .evaluation.pictures import Variant
    from .evaluation.report import Evaluation

log = logging.getLogger("diffusekrona.evaluate")  # also where this is __main__


def read_variants(compared: ComparedSettings) -> list[Variant]:
    """What `--adapter` names, each read and checked, under names of their own.

    Raises:
        UserError: one that is missing or damaged, or two of the same name.
    """
    from .evaluation.pictures import Variant

    variants = []
    for text in compared.adapter:
        name, path = split_name(text)
        if path == "none":
            variants.append(Variant(name or "base", compared.class_word))
            continue
        mixed = read_weighted(path)
        default = f"{mixed.adapter.method.name} {run_name(mixed.path, mixed.adapter)}"
        default += f" at {mixed.weight:g}" if mixed.weight != 1 else ""
        subject = f"{compared.identifier} {compared.class_word}"
        variants.append(Variant(name or default, subject, (mixed,)))
    folders = [variant.folder for variant in variants]
    for variant, folder in zip(variants, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"Two adapters are called {variant.name!r}: write --adapter NAME=PATH.")
    return variants


def relative_norm(variant: Variant) -> float | None:
    """The median of ||delta W|| / ||W|| as the adapter's file has it, times its weight."""
    from .adapters.norms import norms_in

    found = [(one.weight, norms_in(one.adapter.metadata)) for one in variant.adapters]
    norms = [abs(weight) * norms["median"] for weight, norms in found if norms]
    return norms[0] if len(norms) == 1 else None


def evaluate(settings: EvaluateSettings, state: Any) -> Evaluation | None:
    """Draw what is missing and score it all; None on other than the main process."""
    from .bases.bundled import is_bundled
    from .data.disk_cache import report_other_base
    from .data.folder import find_pictures
    from .data.photographs import report_photographs
    from .evaluation.encoders import choose_names, load_scorers
    from .evaluation.pictures import (
        KeptBase,
        draw_missing,
        drawing_of,
        jobs_of,
        load_rows,
        refuse_others,
    )
    from .evaluation.prompts import choose_list, get_prompts
    from .evaluation.report import Evaluation, Row
    from .evaluation.scoring import read_reference, score, scored_texts

    compared, scoring, encoders = settings.compared, settings.scoring, settings.encoders
    variants = read_variants(compared)
    photos, skipped = find_pictures(compared.subject_dir)
    for line in skipped:
        log.warning("skipped in %s: %s", compared.subject_dir, line)
    held_out = find_pictures(compared.holdout_data_dir)[0] if compared.holdout_data_dir else []
    everyone = [mixed for variant in variants for mixed in variant.adapters]
    reading = reading_options(everyone, settings.reading.options())
    base = choose_base(
        compared.pretrained_model_name_or_path,
        everyone,
        settings.model.revision,
        reading.get("single_file_config"),
    )
    report_other_base(base, everyone)
    report_photographs(base, photos)
    bundled = is_bundled(base)
    prompts = get_prompts(choose_list(compared.prompts, bundled))
    names, missing = choose_names(encoders, bundled)
    # Before anything is drawn: a scorer that cannot be loaded should not be found after hours.
    device = choose_device(settings.model.device, state.device)
    scorers = load_scorers(names, device)
    drawing = drawing_of(settings.drawing, settings.model, base, device, reading)
    folder = scoring.output_dir / "pictures"
    jobs = [jobs_of(v, drawing, prompts, compared.seeds, folder) for v in variants]
    if scoring.score_only:
        refuse_others(job for its_jobs in jobs for job in its_jobs)
    else:
        kept = KeptBase(drawing)
        for variant, its_jobs in zip(variants, jobs, strict=True):
            drawn = draw_missing(variant, kept, its_jobs, state, device)
            log.info("%s: %d pictures drawn, %d kept", variant.name, drawn, len(its_jobs) - drawn)
    if not state.is_main_process:
        return None
    reference = read_reference(held_out or photos, scorers)
    name = compared.class_word
    name = name if scoring.clip_t_text == "class" else f"{compared.identifier} {name}"
    texts = scored_texts(prompts, name)
    rows = []
    for variant, its_jobs in zip(variants, jobs, strict=True):
        images = load_rows(its_jobs)
        scores = score(images, texts, reference, scorers)
        rows.append(Row(variant.name, images, scores, relative_norm(variant)))
    notes = [missing] if missing else []
    if held_out:
        notes.append(f"Similarity is to held-out photos, those in {compared.holdout_data_dir}.")
    return Evaluation(
        compared.class_word, prompts, texts, compared.seeds, photos, rows, reference.own_scores(),
        {"base": base, **scorers.names, "steps": drawing.steps, "guidance": drawing.guidance},
        notes,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: draw, score, write."""
    settings = parse_settings(argv)
    scoring = settings.scoring
    from .bases.loading import quiet_libraries
    from .evaluation.page import write_results
    from .evaluation.report import print_results

    quiet_libraries()
    state = process_state(settings.model.device)
    level = logging.INFO if state.is_main_process else logging.ERROR
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("diffusekrona").setLevel(level)
    try:
        evaluation = evaluate(settings, state)
        if evaluation is not None:
            print_results(evaluation)
            written = write_results(evaluation, scoring.output_dir, scoring.shown_seeds)
            print("Written: " + ", ".join(str(path) for path in written))
    finally:
        state.destroy_process_group()


if __name__ == "__main__":
    exit_on_user_error(main)
