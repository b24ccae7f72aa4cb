"""Pictures of the subject's class, drawn by the base itself, for prior preservation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..bases.families import family_of_pipeline
from ..common.errors import UserError
from ..common.pictures import PICTURE_SUFFIXES, why_not
from ..sampling.grids import read_recipe, save_png
from ..sampling.pipeline import generate, load_pipeline, place
from ..sampling.settings import steps_or
from .folder import find_pictures


def missing_class_pictures(folder: Path, wanted: int) -> list[int]:
    """Numbers of the class pictures still to draw; a picture drawn before is never drawn again."""
    have = []
    if folder.is_dir():
        have = [p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES]
    usable = {p.name for p in have if why_not(p) is None}
    free = (n for n in range(wanted + len(have)) if _name(n) not in usable)
    return [next(free) for _ in range(max(0, wanted - len(usable)))]


def refuse_other_pictures(folder: Path, prompt: str, base: str) -> None:
    """See that no picture that a run drew into `folder` is of another prompt or base.

    A base is known by the last part of its name: folders are moved. Pictures that carry no recipe,
    such as photographs, are the user's own and are used as they are.

    Raises:
        UserError: naming the first picture that differs.
    """
    if not folder.is_dir():
        return
    want = {"prompt": prompt, "base": Path(base).name}
    for path in sorted(folder.glob("*.png")):
        try:
            have = read_recipe(path) or {}
        except UserError:  # not a PNG: `find_pictures` says so
            continue
        for key, value in want.items():
            drawn = have.get(key, value)
            if (Path(str(drawn)).name if key == "base" else drawn) != value:
                raise UserError(
                    f"{path} was drawn with {key} {drawn!r}, this run has {value!r}: give another "
                    "--class_data_dir, or delete its pictures."
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
    refuse_other_pictures(folder, prompt, base)
    numbers = missing_class_pictures(folder, wanted)
    accelerator.wait_for_everyone()  # all have counted before one adds to the folder
    if numbers:
        pipeline = load_pipeline(base, **options)
        defaults = family_of_pipeline(pipeline).drawing_defaults(base, options.get("revision"))
        if low_vram:
            batch_size = 1
        place(pipeline, accelerator.device, low_vram)
        mine = numbers[accelerator.process_index :: accelerator.num_processes]
        from tqdm.auto import tqdm

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
                recipe = {"prompt": prompt, "seed": seed, "base": base}
                save_png(image, folder / _name(seed), recipe)
                bar.update()
        bar.close()
        del pipeline
    accelerator.wait_for_everyone()
    return class_pictures(folder, wanted)


def class_pictures(folder: Path, wanted: int) -> list[Path]:
    """The class pictures in `folder` that a run uses: `wanted`, or fewer if there are fewer."""
    have = folder.is_dir() and any(p.suffix.lower() in PICTURE_SUFFIXES for p in folder.iterdir())
    return find_pictures(folder)[0][:wanted] if have else []


def _name(number: int) -> str:
    return f"class_{number:05d}.png"
