"""The pictures to be scored: drawn once, kept with their recipes, drawn again only if need be."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..adapters.mixing import WeightedAdapter, apply_adapters
from ..bases.families import family_of_pipeline
from ..bases.fingerprint import fingerprint_of
from ..bases.precision import DTYPE_NAMES
from ..bases.resolve import drawing_defaults
from ..bases.schedulers import set_scheduler
from ..common.errors import UserError, shortened
from ..common.files import slug
from ..common.pictures import open_png
from ..sampling.grids import read_recipe, save_png
from ..sampling.settings import guidance_or, precision_or, steps_or
from .prompts import Prompt

if TYPE_CHECKING:
    import torch

    from ..sampling.settings import DrawSettings
    from .settings import EvaluatedModelSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn; all of it is in their recipes.

    Attributes:
        size: (height, width) in pixels; None: the base's own.
        batch_size, low_vram: pictures at once, and on a GPU no more than the model at work; they
            are in no recipe, since they change the last bit at most.
    """

    base: str
    steps: int = 50
    guidance: float = 7.0
    scheduler: str | None = None
    size: tuple[int, int] | None = None
    negative_prompt: str | None = None
    dtype: str = "float32"
    vae: str | None = None
    batch_size: int = 4
    low_vram: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def recipe(self, variant: Variant) -> dict[str, Any]:
        """What all pictures of a variant share."""
        names = "base steps guidance scheduler negative_prompt dtype vae"
        shared = {name: getattr(self, name) for name in names.split()}
        adapters = [mixed.recipe() for mixed in variant.adapters]
        shared |= {name: value for name, value in self.options.items() if value}
        files = {"base_files": fingerprint_of(self.base), "vae_files": fingerprint_of(self.vae)}
        size = list(self.size) if self.size else None
        return {**shared, "size": size, **files, "adapters": adapters}


def drawing_of(
    drawing: DrawSettings,
    model: EvaluatedModelSettings,
    base: str,
    device: torch.device,
    reading: Mapping[str, Any],
) -> Drawing:
    """The settings that all pictures share; `reading` is how the base is read."""
    defaults = drawing_defaults(base, model.revision, reading.get("single_file_config"))
    return Drawing(
        base=base,
        steps=steps_or(drawing.num_inference_steps, defaults),
        guidance=guidance_or(drawing.guidance_scale, defaults),
        scheduler=drawing.scheduler,
        size=drawing.size,
        negative_prompt=drawing.negative_prompt,
        dtype=DTYPE_NAMES[precision_or(model.mixed_precision, defaults, device)],
        vae=model.vae,
        batch_size=model.batch_size,
        low_vram=model.low_vram,
        options={"revision": model.revision, "variant": model.variant, **reading},
    )


@dataclass(frozen=True)
class Variant:
    """One row of the comparison: a name, and the adapters that are merged into the base.

    Attributes:
        subject: what the subject is called in its prompts: "sks dog", of the bare base "dog".
    """

    name: str
    subject: str
    adapters: tuple[WeightedAdapter, ...] = ()

    @property
    def folder(self) -> str:
        return slug(self.name, 60)


@dataclass(frozen=True)
class Job:
    """One picture: its place in the variant's grid, its file and recipe."""

    row: int
    seed: int
    path: Path
    recipe: dict[str, Any]


def jobs_of(
    variant: Variant,
    drawing: Drawing,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    folder: Path,
) -> list[Job]:
    """Every picture of a variant, prompt by prompt, under `folder`/<variant>/."""
    shared = drawing.recipe(variant)
    jobs = []
    for row, prompt in enumerate(prompts):
        words = prompt.text(variant.subject)
        for seed in seeds:
            # Not the prompt's place in its list: others may be put in before it.
            name = f"{slug(words)}_{hashlib.sha256(words.encode()).hexdigest()[:8]}_seed{seed}.png"
            path = folder / variant.folder / name
            jobs.append(Job(row, seed, path, {"prompt": words, "seed": seed, **shared}))
    return jobs


def is_there(job: Job) -> bool:
    """Whether the picture was drawn already, whole and by this very recipe."""
    return what_is_wrong(job) is None


def what_is_wrong(job: Job) -> str | None:
    """Why the picture on disk is not this one; None if it is."""
    if not job.path.is_file():
        return "is missing"
    try:
        have = read_recipe(job.path) or {}
        with open_png(job.path) as image:
            image.load()
    except Exception:  # Pillow meets damaged files with errors of many kinds
        return "is broken"  # pictures of ours are written whole, but disks fail
    want = json.loads(json.dumps(job.recipe))
    for key in want | have:  # an option that is not set has no entry
        value, found = want.get(key), have.get(key)
        # An adapter is its content and weight; its file may have been moved.
        same = _without_files(found) == _without_files(value) if key == "adapters" else False
        if not same and found != value:
            return f"was drawn with {key} {shortened(found)}, not {shortened(value)}"
    return None


def _without_files(adapters: Any) -> Any:
    if not (isinstance(adapters, list) and all(isinstance(one, dict) for one in adapters)):
        return adapters
    return [{k: v for k, v in adapter.items() if k != "file"} for adapter in adapters]


def refuse_others(jobs: Iterable[Job]) -> None:
    """Raises UserError for the first picture that is not there as its recipe says."""
    for job in jobs:
        if wrong := what_is_wrong(job):
            raise UserError(
                f"{job.path} {wrong}: use the flags that it was drawn with, or draw it again "
                "without --score_only."
            )


class KeptBase:
    """A base that draws one variant after the other: loaded once, when the first picture is to be
    drawn, and kept in CPU memory.

    Args:
        keep: False to load it for each variant, in half the CPU memory, as with `low_vram`.
    """

    def __init__(self, drawing: Drawing, keep: bool = True) -> None:
        self.drawing = drawing
        self._keep = keep and not drawing.low_vram
        self._pipeline: Any = None

    def with_adapters(self, adapters: Sequence[WeightedAdapter]) -> Any:
        """A pipeline on the CPU with the adapters merged; the same as a newly loaded one, bit for
        bit. It has copies of the models that they change, and of the denoiser, which moves to the
        device."""
        pipeline = self._pipeline
        if pipeline is None:
            pipeline = _load(self.drawing)
            if not self._keep:
                apply_adapters(pipeline, adapters)
                return pipeline
            self._pipeline = pipeline
        pipeline = copy.copy(pipeline)
        changed = {name for mixed in adapters for name in mixed.adapter.configs}
        for name in changed | {family_of_pipeline(pipeline).denoiser}:
            setattr(pipeline, name, copy.deepcopy(getattr(pipeline, name)))
        apply_adapters(pipeline, adapters)
        return pipeline


def _load(drawing: Drawing) -> Any:
    import torch

    from ..sampling.pipeline import load_pipeline

    dtype = getattr(torch, drawing.dtype)
    pipeline = load_pipeline(drawing.base, dtype, "cpu", drawing.vae, **drawing.options)
    if drawing.scheduler:
        set_scheduler(pipeline, drawing.scheduler)
    return pipeline


def draw_missing(
    variant: Variant,
    kept: KeptBase,
    jobs: Sequence[Job],
    state: Any,
    device: torch.device | str,
    progress: bool = True,
) -> int:
    """Draw this process's share of what is not there yet; returns how many all draw.

    Batches are those of the whole list, whatever is missing and whoever draws: a picture can differ
    in its last bit with the other pictures of its batch, so a run that was killed, or shared by
    two, would else not be quite the run that was not. At most a batch is drawn twice for it.

    Args:
        kept: the base, and how it draws.
        state: accelerate's PartialState, or anything with its `process_index`, `num_processes`,
            `is_main_process` and `wait_for_everyone`.
        device: to draw on.

    Raises:
        UserError: an adapter does not fit the base, or the disk is full.
    """
    missing = {job.path for job in jobs if not is_there(job)}
    state.wait_for_everyone()  # all have looked before one draws
    size = kept.drawing.batch_size
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    wanted = [batch for batch in batches if any(job.path in missing for job in batch)]
    mine = [job for batch in wanted[state.process_index :: state.num_processes] for job in batch]
    if mine:
        words = list(dict.fromkeys(job.recipe["prompt"] for job in jobs))
        for job, image in zip(
            mine,
            _draw(variant, kept, words, mine, device, progress and state.is_main_process),
            strict=True,
        ):
            if job.path in missing:
                save_png(image, job.path, job.recipe)
    state.wait_for_everyone()
    return len(missing)


def _draw(
    variant: Variant,
    kept: KeptBase,
    words: Sequence[str],
    jobs: Sequence[Job],
    device: torch.device | str,
    progress: bool,
) -> Iterator[Image.Image]:
    """The pictures of `jobs`, one by one; `words` are all prompts, encoded together."""
    from ..common.cpu_memory import keep_freed_memory
    from ..sampling.pipeline import encode, iter_pictures, place

    keep_freed_memory(device)
    drawing, pipeline = kept.drawing, kept.with_adapters(variant.adapters)
    place(pipeline, device, drawing.low_vram)
    yield from iter_pictures(
        pipeline,
        encode(pipeline, words, drawing.negative_prompt),
        [(words.index(job.recipe["prompt"]), job.seed) for job in jobs],
        steps=drawing.steps,
        guidance=drawing.guidance,
        size=drawing.size,
        batch_size=drawing.batch_size,
        progress=progress,
    )


def load_rows(jobs: Sequence[Job]) -> list[list[Image.Image]]:
    """The pictures as [prompt][seed].

    Raises:
        UserError: one is not there.
    """
    rows: dict[int, list[Image.Image]] = {}
    for job in jobs:
        try:
            with open_png(job.path) as image:
                rows.setdefault(job.row, []).append(image.convert("RGB"))
        except Exception as error:  # as above
            raise UserError(
                f"{job.path} is missing or broken: run without --score_only to draw it."
            ) from error
    return [rows[row] for row in sorted(rows)]
