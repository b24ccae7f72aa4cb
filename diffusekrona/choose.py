"""The checkpoint and the weight of a run to keep: `diffusekrona choose RUN`.

Every checkpoint at a few weights draws the evaluation's prompts with the same seeds. The rule of
`evaluation.choice` picks one of them by its scores; it is written to `best.safetensors` in the
run's folder with its weight, beside `choice.json` and the page `choice/index.html`. Pictures and
scores are kept in `choice/`: a run that is killed goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .adapters.layout import WEIGHT_KEY
from .common.devices import process_state
from .common.errors import exit_on_user_error
from .evaluation.choice_settings import BEST, CHOICE, CHOICE_FOLDER, parse_settings

if TYPE_CHECKING:
    from .evaluation.choice_report import Row


def write_best(run: Path, chosen: Row | None) -> Path | None:
    """`best.safetensors`: the chosen adapter, with its weight for inference. Without a choice, an
    earlier one is removed."""
    from .adapters.file import read_adapter, write_adapter
    from .common.own_files import keep_foreign
    from .evaluation.choice_report import relative

    path = run / BEST
    if chosen is None or chosen.file is None:
        keep_foreign(path)
        path.unlink(missing_ok=True)
        return None
    adapter = read_adapter(chosen.file)
    more = {
        WEIGHT_KEY: f"{chosen.weight:g}",
        "steps": str(chosen.step),
        "chosen_from": relative(chosen.file, run),
    }
    return write_adapter(replace(adapter, metadata={**adapter.metadata, **more}), path)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: draw, score, choose, write."""
    settings = parse_settings(argv)
    from .bases.loading import quiet_libraries
    from .common.own_files import write_result
    from .evaluation.choice_page import choice_page
    from .evaluation.choice_report import as_json, print_choice
    from .training.choosing import choose_candidate

    quiet_libraries()
    state = process_state(settings.model.device)
    level = logging.INFO if state.is_main_process else logging.ERROR
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("diffusekrona").setLevel(level)
    try:
        report = choose_candidate(settings, state)
        if report is not None:
            run = settings.candidates.run
            page = run / CHOICE_FOLDER / "index.html"
            written = [write_best(run, report.chosen), run / CHOICE, page]
            write_result(run / CHOICE, json.dumps(as_json(report), indent=1))
            write_result(page, choice_page(report))
            print_choice(report)
            print("Written: " + ", ".join(str(path) for path in filter(None, written)))
    finally:
        state.destroy_process_group()


if __name__ == "__main__":
    exit_on_user_error(main)
