"""One picture that shows whether a fine-tuning worked: `python -m diffusekrona.quickstart --help`.

Beside each other, a row for each place that is in none of the subject's photos: a photo, what the
base draws for the plain class ("a dog in the forest"), and what the merged adapter draws for the
identifier ("a sks dog in the forest") with the same seed. The plain class is the honest baseline:
what the base draws for an identifier that it does not know is worse than the best it can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common.command_line import parse
from .common.errors import exit_on_user_error
from .common.own_files import check_names
from .common.settings import COUNTS, SEEDS, setting
from .sampling.settings import GUIDANCE_HELP, guidance_or

if TYPE_CHECKING:
    from .evaluation.encoders import ClipEncoder

PLACES = ("in the forest", "on the beach", "in the snow", "in front of mountains")


@dataclass(frozen=True)
class Scores:
    """Means over pictures: CLIP-I to the subject's photos, CLIP-T to the plain class prompts."""

    clip_i: float
    clip_t: float


@dataclass(frozen=True)
class QuickstartSettings:
    """What the picture shows."""

    adapter: str = setting(metavar="PATH[:WEIGHT]", help="Adapter file or run folder.")
    photos: Path = setting(metavar="FOLDER", help="The subject's pictures.")
    class_word: str = setting(metavar="WORD", help="What the subject is, such as dog.")
    identifier: str = setting("sks", metavar="WORD", help="The subject's name in prompts.")
    places: tuple[str, ...] = setting(PLACES, help="What follows the subject in prompts.")
    pretrained_model_name_or_path: str | None = setting(
        None,
        metavar="NAME_OR_PATH",
        aliases=("--base",),
        help="Base model; by default the adapter's own.",
    )
    clip: str | None = setting(
        None, metavar="NAME_OR_PATH", help="CLIP model that scores; by default pocket-clip."
    )
    seeds: tuple[int, ...] = setting(
        (0, 1, 2, 3), **SEEDS, help="Score pictures of all these seeds, and show the first two."
    )
    num_inference_steps: int = setting(25, **COUNTS, help="Denoising steps.")
    guidance_scale: float | None = setting(None, help=GUIDANCE_HELP)
    output: Path = setting(
        Path("outputs/quickstart.png"), metavar="FILE", help="Write the picture here."
    )


def prompts_for(name: str, places: Sequence[str]) -> list[str]:
    """ "sks dog" to "a sks dog in the forest" …"""
    from .evaluation.prompts import article

    return [f"{article(name)} {name} {place}" for place in places]


def compare(
    pipeline: Any, adapters: Sequence[Any], settings: QuickstartSettings, guidance: float
) -> tuple[dict[tuple[str, int], Any], dict[tuple[str, int], Any]]:
    """Pictures before and after the adapters are merged, by (place, seed): the same seeds."""
    from .adapters.mixing import apply_adapters
    from .sampling.pipeline import generate

    jobs = [(place, seed) for place in settings.places for seed in settings.seeds]
    pictures = []
    for name in (settings.class_word, f"{settings.identifier} {settings.class_word}"):
        if pictures:
            apply_adapters(pipeline, adapters)
        images = generate(
            pipeline,
            prompts_for(name, [place for place, _ in jobs]),
            [seed for _, seed in jobs],
            steps=settings.num_inference_steps,
            guidance=guidance,
            batch_size=4,
        )
        pictures.append(dict(zip(jobs, images, strict=True)))
    return pictures[0], pictures[1]


def score(
    clip: ClipEncoder, pictures: dict[tuple[str, int], Any], photos: Sequence[Any], class_word: str
) -> Scores:
    """CLIP-T too is measured against the plain class: a scorer does not know the identifier."""
    from .evaluation.scoring import agreement, similarity

    features = clip.images(list(pictures.values()))
    texts = clip.texts(prompts_for(class_word, [place for place, _ in pictures]))
    return Scores(
        similarity(features, clip.images(photos)).mean().item(),
        agreement(features, texts).mean().item(),
    )


def make_grid(
    photos: Sequence[Any],
    before: dict[tuple[str, int], Any],
    after: dict[tuple[str, int], Any],
    settings: QuickstartSettings,
    method: str,
    title: str,
) -> Any:
    """One row per place: a photo, then base and fine-tuned base for each of the first two seeds."""
    from .sampling.grids import labelled_grid

    columns = ["the subject's photos"]
    for seed in settings.seeds[:2]:
        columns.append(f"base: {prompts_for(settings.class_word, ['…'])[0]} · seed {seed}")
        name = f"{settings.identifier} {settings.class_word}"
        columns.append(f"{method}: {prompts_for(name, ['…'])[0]} · seed {seed}")
    rows = []
    for number, place in enumerate(settings.places):
        row = [photos[number] if number < len(photos) else None]
        for seed in settings.seeds[:2]:
            row += [before[place, seed], after[place, seed]]
        rows.append(row)
    return labelled_grid(
        rows, [f"… {place}" for place in settings.places], columns, title, cell=192
    )


def table(
    before: Scores, after: Scores, settings: QuickstartSettings, method: str, clip_name: str
) -> str:
    """The scores as a table in plain text."""
    subject = f"{settings.identifier} {settings.class_word}"
    lines = (
        (f"before: the base, {prompts_for(settings.class_word, ['…'])[0]!r}", before),
        (f"after: {method}, {prompts_for(subject, ['…'])[0]!r}", after),
    )
    width = max(len(name) for name, _ in lines)
    count = len(settings.places) * len(settings.seeds)
    return "\n".join(
        [f"{'':{width}}  CLIP-I  CLIP-T   ({count} pictures each, by {clip_name})"]
        + [f"{name:{width}}  {s.clip_i:6.3f}  {s.clip_t:6.3f}" for name, s in lines]
        + ["CLIP-I: likeness to the subject's photos. CLIP-T: obedience to the prompt."]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: read, draw before and after, score, and make the picture."""
    settings = parse(
        QuickstartSettings,
        argv,
        prog="diffusekrona.quickstart",
        description="A subject's photos, the base and the fine-tuned base in one labelled picture.",
    )
    check_names(settings.output)
    from .adapters.mixing import choose_base, read_adapters
    from .bases.loading import quiet_libraries
    from .bases.resolve import drawing_defaults
    from .common.pictures import load_picture, load_square
    from .data.folder import find_pictures
    from .data.photographs import report_photographs
    from .evaluation.encoders import BUNDLED_CLIP, load_clip_encoder
    from .sampling.grids import save_png
    from .sampling.pipeline import load_pipeline

    quiet_libraries()
    adapters = read_adapters([settings.adapter])
    paths, _ = find_pictures(settings.photos)
    photos = [load_picture(path) for path in paths]
    base = choose_base(settings.pretrained_model_name_or_path, adapters)
    guidance = guidance_or(settings.guidance_scale, drawing_defaults(base))
    report_photographs(base, paths)
    clip = load_clip_encoder(settings.clip or BUNDLED_CLIP)
    pipeline = load_pipeline(base)
    before, after = compare(pipeline, adapters, settings, guidance)
    scores = [score(clip, pictures, photos, settings.class_word) for pictures in (before, after)]
    squares = [load_square(path) for path in paths[: len(settings.places)]]
    method = adapters[0].adapter.method.title
    title = (
        f"{method} on {Path(base).name}: CLIP-I {scores[0].clip_i:.2f} -> {scores[1].clip_i:.2f}, "
    )
    title += f"CLIP-T {scores[0].clip_t:.2f} -> {scores[1].clip_t:.2f}"
    recipe = {"seeds": settings.seeds, "steps": settings.num_inference_steps, "base": base}
    recipe |= {"guidance": guidance, "adapters": [m.recipe() for m in adapters]}
    save_png(make_grid(squares, before, after, settings, method, title), settings.output, recipe)
    print(table(scores[0], scores[1], settings, method, clip.name))
    print(f"The picture: {settings.output}")


if __name__ == "__main__":
    exit_on_user_error(main)
