"""Pictures of the subject's class, drawn by the base itself, for prior preservation."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bases.families import family_of_pipeline
from ..bases.fingerprint import fingerprint_of
from ..common.errors import UserError, shortened
from ..common.pictures import PICTURE_SUFFIXES, content_key
from ..sampling.grids import read_recipe, save_png
from ..sampling.pipeline import generate, load_pipeline, place
from ..sampling.settings import steps_or
from .folder import find_pictures

log = logging.getLogger(__name__)


def missing_class_pictures(folder: Path, wanted: int) -> list[int]:
    """Numbers of the class pictures still to draw; a picture drawn before is never drawn again."""
    usable = {path.name for path in _usable(folder)[0]}
    free = (n for n in range(wanted + len(usable)) if _name(n) not in usable)
    return [next(free) for _ in range(max(0, wanted - len(usable)))]


def refuse_other_pictures(
    folder: Path, prompt: str, base: str, revision: str | None = None
) -> None:
    """See that no picture that a run drew into `folder` is of another prompt or base, or of an
    adapter.

    A base is known by its files or, where these are not on this machine, by the last part of its
    name: folders are moved. Pictures that carry no recipe, such as photographs, are the user's own
    and are used as they are.

    Raises:
        UserError: naming the first picture that differs.
    """
    if not folder.is_dir():
        return
    files = fingerprint_of(base)
    for path in sorted(folder.glob("*.png")):
        try:
            have = read_recipe(path) or {}
        except UserError:  # not a PNG: `find_pictures` says so
            continue
        other = _difference(have, prompt, base, files, revision)
        if other:
            raise UserError(
                f"{path} was drawn with {other}: give another --class_data_dir, or delete its "
                "pictures."
            )


def _difference(
    have: Mapping[str, Any], prompt: str, base: str, files: str | None, revision: str | None
) -> str | None:
    """In what a picture's recipe is not this run's, in words; None if in nothing."""
    if have.get("adapters"):
        return "an adapter, class pictures are the base's own"
    if (drawn := have.get("prompt", prompt)) != prompt:
        return f"prompt {shortened(repr(drawn))}, this run has {shortened(repr(prompt))}"
    drawn, drawn_files = str(have.get("base", base)), have.get("base_files")
    if files and drawn_files:
        if files != drawn_files:
            return f"base {shortened(repr(drawn))}, whose files are not those of {base!r}"
    elif Path(drawn).name != Path(base).name:
        return f"base {shortened(repr(drawn))}, this run has {base!r}"
    elif (other := have.get("revision", revision)) != revision:
        return f"revision {shortened(repr(other))}, this run has {revision!r}"
    return None


def refuse_pictures_of(subject: Iterable[Path], folder: Path) -> None:
    """See that no class picture is one of the subject's: preserved as the class, it would undo what
    is learned from it.

    Raises:
        UserError: naming the first.
    """
    subject = list(subject)
    sizes = {path.stat().st_size for path in subject}  # so that few files are read
    of_subject = {content_key(path): path for path in subject}
    entries = sorted(folder.iterdir()) if folder.is_dir() else ()
    for path in (p for p in entries if p.is_file() and p.stat().st_size in sizes):
        if (same := of_subject.get(content_key(path))) is not None:
            raise UserError(
                f"--class_data_dir {folder}: {path.name} is a picture of the subject ({same}); "
                "give a folder of pictures of the class alone, or one to draw them into."
            )


def draw_class_pictures(
    accelerator: Any,
    base: str,
    prompt: str,
    folder: Path,
    wanted: int,
    batch_size: int,
    low_vram: bool = False,
    **options: Any,
) -> list[Path]:
    """See that `folder` holds `wanted` pictures; the processes share what there is to draw.

    Each is saved as soon as it is drawn, so an interrupted run continues from there. Its seed
    is its number.

    Args:
        low_vram: one picture at once, and on a GPU no more than the model that is at work.
        options: dtype, VAE, revision and variant, as `load_pipeline` takes them.

    Returns:
        `wanted` pictures' paths, sorted.
    """
    revision = options.get("revision")
    refuse_other_pictures(folder, prompt, base, revision)
    numbers = missing_class_pictures(folder, wanted)
    accelerator.wait_for_everyone()  # all have counted before one adds to the folder
    if numbers:
        pipeline = load_pipeline(base, **options)
        defaults = family_of_pipeline(pipeline).drawing_defaults(base, revision)
        if low_vram:
            batch_size = 1
        place(pipeline, accelerator.device, low_vram)
        mine = numbers[accelerator.process_index :: accelerator.num_processes]
        from tqdm.auto import tqdm

        origin = {"base": base, "revision": revision, "base_files": fingerprint_of(base)}
        bar = tqdm(total=len(mine), desc="class pictures", unit="picture")
        for start in range(0, len(mine), batch_size):
            seeds = mine[start : start + batch_size]
            images = generate(
                pipeline,
                [prompt] * len(seeds),
                seeds,
                steps=steps_or(None, defaults),
                guidance=defaults.guidance,
                batch_size=batch_size,
                progress=False,
            )
            for seed, image in zip(seeds, images, strict=True):
                recipe = {"prompt": prompt, "seed": seed, **origin}
                save_png(image, folder / _name(seed), recipe)
                bar.update()
        bar.close()
        del pipeline
    accelerator.wait_for_everyone()
    found, skipped = _usable(folder)
    if accelerator.is_main_process:
        _report_origins(folder, found[:wanted], skipped, prompt)
    return found[:wanted]


def _report_origins(
    folder: Path, used: Sequence[Path], skipped: Sequence[str], prompt: str
) -> None:
    """Log which pictures are left out, and how many only their owner can vouch for."""
    for line in skipped:
        log.warning("skipped in %s: %s", folder, line)
    unknown = [path for path in used if not (path.suffix == ".png" and read_recipe(path))]
    if unknown:
        log.warning(
            "%d of %d class pictures in %s do not say what they were drawn with, such as %s: they "
            "are trained on as %r",
            len(unknown), len(used), folder, unknown[0].name, prompt,
        )  # fmt: skip


def class_pictures(folder: Path, wanted: int) -> list[Path]:
    """The class pictures in `folder` that a run uses: `wanted`, or fewer if there are fewer."""
    return _usable(folder)[0][:wanted]


def _usable(folder: Path) -> tuple[list[Path], list[str]]:
    """The usable pictures in `folder`, sorted, and a line for each that is not; hidden files and
    what is no picture by its name are neither."""
    entries = folder.iterdir() if folder.is_dir() else ()
    named = {path.name for path in entries if path.suffix.lower() in PICTURE_SUFFIXES}
    if not named:
        return [], []
    try:
        found, skipped = find_pictures(folder)
    except UserError as error:  # all of them are damaged
        return [], [str(error)]
    lines = [line for line in skipped if not line.startswith(".")]
    return found, [line for line in lines if line.partition(": ")[0] in named]


def _name(number: int) -> str:
    return f"class_{number:05d}.png"
