"""The pictures and scores of one point of a cell."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..adapters.file import read_adapter
from ..adapters.layout import ADAPTER_FILE
from ..adapters.mixing import WeightedAdapter
from ..bases.precision import DTYPE_NAMES
from ..bases.resolve import drawing_defaults
from ..common.devices import choose_device, process_state
from ..common.files import replace_whole
from ..data.folder import find_pictures
from ..evaluation.encoders import ScorerNames, load_scorers
from ..evaluation.pictures import Drawing, KeptBase, Variant, draw_missing, jobs_of, load_rows
from ..evaluation.prompts import parse_prompts
from ..evaluation.scoring import read_reference, score, scored_texts
from ..sampling.settings import precision_or
from .cell import READING, Cell

#: Kept from cell to cell of a worker.
_scorers = functools.lru_cache(maxsize=2)(load_scorers)


def score_point(cell: Cell, folder: Path, adapter: Path | None, step: int | None) -> dict[str, Any]:
    """Draw and score one point into `folder`; CLIP's features of its pictures are kept there."""
    scoring = cell.scoring
    state: Any = process_state(cell.device)
    device = choose_device(cell.device, state.device)
    prompts = parse_prompts(cell.texts, "the study")
    trained_with = dict(scoring.reading) | (cell.flags or {})
    revision = trained_with.get("revision", scoring.revision)
    config = trained_with.get("single_file_config")
    defaults = drawing_defaults(scoring.base, revision, config)
    drawing = Drawing(
        scoring.base,
        scoring.steps,
        scoring.guidance,
        scheduler=scoring.scheduler,
        size=(scoring.resolution, scoring.resolution) if scoring.resolution else None,
        dtype=DTYPE_NAMES[precision_or(scoring.precision, defaults, device)],
        vae=trained_with.get("pretrained_vae_model_name_or_path", scoring.vae),
        batch_size=scoring.batch_size,
        low_vram=scoring.low_vram,
        options={
            "revision": revision,
            "variant": trained_with.get("variant", scoring.variant),
            **{name: trained_with.get(name) for name in READING},
        },
    )
    point = f"step {step}" if step else "end"
    variant = _variant(cell, adapter, point)
    jobs = jobs_of(variant, drawing, prompts, scoring.seeds, folder / "pictures")
    draw_missing(variant, KeptBase(drawing, keep=False), jobs, state, device, progress=False)
    names = ScorerNames(scoring.clip, scoring.dino, scoring.reader, scoring.clip_backend)
    scorers = _scorers(names, device)
    photos, _ = find_pictures(Path(cell.subject.held_out or cell.subject.folder))
    scores = score(
        load_rows(jobs),
        scored_texts(prompts, cell.subject.class_word),
        read_reference(photos, scorers),
        scorers,
    )
    with replace_whole(folder / f"features_{variant.folder}.safetensors") as temporary:
        save_file({"clip": scores.features.contiguous()}, temporary)
    return {
        "point": point,
        "step": step,
        "scores": {name: values.tolist() for name, values in scores.pictures.items()},
        "diversity": scores.diversity.tolist() if len(scoring.seeds) > 1 else None,
        "pictures": [str(job.path.relative_to(folder)) for job in jobs],
        "features": f"features_{variant.folder}.safetensors",
    }


def _variant(cell: Cell, adapter: Path | None, point: str) -> Variant:
    subject = cell.subject
    if adapter is None:
        return Variant("base", subject.class_word)
    path = adapter / ADAPTER_FILE
    mixed = (WeightedAdapter(path, 1.0, read_adapter(path)),)
    return Variant(point, f"{subject.identifier} {subject.class_word}", mixed)
