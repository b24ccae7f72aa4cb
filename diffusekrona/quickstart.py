"""One picture that shows whether a fine-tuning worked: `python -m diffusekrona.quickstart --help`.

Beside each other, a row for each place that is in none of the subject's photos: a photo, what the
base draws for the plain class ("a dog in the forest"), and what the merged adapter draws for the
identifier ("a sks dog in the forest") with the same seed. The plain class is the honest baseline:
what the base draws for an identifier that it does not know is worse than the best it can do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .common.errors import UserError, exit_on_user_error

PLACES = ("in the forest", "on the beach", "in the snow", "in front of mountains")


@dataclass(frozen=True)
class Scores:
    """Means over pictures: CLIP-I to the subject's photos, CLIP-T to the plain class prompts."""

    clip_i: float
    clip_t: float


def build_parser() -> argparse.ArgumentParser:
    """Every flag with its default and what it is for."""
    parser = argparse.ArgumentParser(
        prog="diffusekrona.quickstart",
        description="A subject's photos, the base and the fine-tuned base in one labelled picture.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--adapter", required=True, metavar="PATH[:WEIGHT]", help="Adapter file or run folder.")
    add("--photos", type=Path, required=True, metavar="FOLDER", help="The subject's pictures.")
    add("--class_word", required=True, metavar="WORD", help="What the subject is, such as dog.")
    add("--identifier", default="sks", metavar="WORD", help="The subject's name in prompts.")
    add("--places", nargs="+", default=PLACES, metavar="TEXT", help="What follows the subject.")
    add("--pretrained_model_name_or_path", metavar="NAME_OR_PATH", help="The adapter's own base.")
    add("--clip", metavar="NAME_OR_PATH", help="What scores; by default the bundled pocket-clip.")
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2, 3],
        metavar="N",
        help="All are scored, the first two shown.",
    )
    add("--num_inference_steps", type=int, default=25, help="Denoising steps.")
    add("--guidance_scale", type=float, default=5.0, help="5 suits the bundled base.")
    add("--output", type=Path, default=Path("outputs/quickstart.png"), help="The picture.")
    return parser


def prompts_for(name: str, places: Sequence[str]) -> list[str]:
    """ "sks dog" to "a sks dog in the forest" …"""
    from .evaluation.prompts import article

    return [f"{article(name)} {name} {place}" for place in places]


def compare(
    pipeline: Any, adapters: Sequence[Any], args: argparse.Namespace
) -> tuple[dict[tuple[str, int], Any], dict[tuple[str, int], Any]]:
    """Pictures before and after the adapters are merged, by (place, seed): the same seeds."""
    from .adapters.mixing import apply_adapters
    from .sampling.pipeline import generate

    jobs = [(place, seed) for place in args.places for seed in args.seeds]
    pictures = []
    for name in (args.class_word, f"{args.identifier} {args.class_word}"):
        if pictures:
            apply_adapters(pipeline, adapters)
        images = generate(
            pipeline,
            prompts_for(name, [place for place, _ in jobs]),
            [seed for _, seed in jobs],
            steps=args.num_inference_steps,
            guidance=args.guidance_scale,
            batch_size=4,
        )
        pictures.append(dict(zip(jobs, images, strict=True)))
    return pictures[0], pictures[1]


def score(
    clip: Any, pictures: dict[tuple[str, int], Any], photos: Sequence[Any], class_word: str
) -> Scores:
    """CLIP-T too is measured against the plain class: a scorer does not know the identifier."""
    from .evaluation.scores import clip_i, clip_t, image_features, text_features

    made = image_features(clip, list(pictures.values()))
    prompts = prompts_for(class_word, [place for place, _ in pictures])
    return Scores(
        clip_i(made, image_features(clip, photos)), clip_t(made, text_features(clip, prompts))
    )


def make_grid(
    photos: Sequence[Any],
    before: dict[tuple[str, int], Any],
    after: dict[tuple[str, int], Any],
    args: argparse.Namespace,
    method: str,
    title: str,
) -> Any:
    """A row a place: a photo, then base and fine-tuned base for each of the first two seeds."""
    from .sampling.grids import labelled_grid

    columns = ["the subject's photos"]
    for seed in args.seeds[:2]:
        columns.append(f"base: {prompts_for(args.class_word, ['…'])[0]} · seed {seed}")
        name = f"{args.identifier} {args.class_word}"
        columns.append(f"{method}: {prompts_for(name, ['…'])[0]} · seed {seed}")
    rows = []
    for number, place in enumerate(args.places):
        row = [photos[number] if number < len(photos) else None]
        for seed in args.seeds[:2]:
            row += [before[place, seed], after[place, seed]]
        rows.append(row)
    return labelled_grid(rows, [f"… {place}" for place in args.places], columns, title, cell=192)


def table(
    before: Scores, after: Scores, args: argparse.Namespace, method: str, clip_name: str
) -> str:
    """The scores in words and columns."""
    lines = (
        (f"before: the base, {prompts_for(args.class_word, ['…'])[0]!r}", before),
        (
            f"after: {method}, {prompts_for(f'{args.identifier} {args.class_word}', ['…'])[0]!r}",
            after,
        ),
    )
    width = max(len(name) for name, _ in lines)
    count = len(args.places) * len(args.seeds)
    return "\n".join(
        [f"{'':{width}}  CLIP-I  CLIP-T   ({count} pictures each, by {clip_name})"]
        + [f"{name:{width}}  {s.clip_i:6.3f}  {s.clip_t:6.3f}" for name, s in lines]
        + ["CLIP-I: likeness to the subject's photos. CLIP-T: obedience to the prompt."]
    )


def main() -> None:
    """Entry point: read, draw before and after, score, and make the picture."""
    args = build_parser().parse_args()
    if args.num_inference_steps < 1:
        raise UserError(
            f"--num_inference_steps must be at least 1, not {args.num_inference_steps}."
        )
    from .adapters.mixing import choose_base, read_adapters
    from .bases.loading import quiet_libraries
    from .common.pictures import fit_picture, load_picture
    from .data.folder import find_pictures
    from .evaluation.scores import load_clip
    from .sampling.grids import save_png
    from .sampling.pipeline import load_pipeline

    quiet_libraries()
    adapters = read_adapters([args.adapter])
    paths, _ = find_pictures(args.photos)
    photos = [load_picture(path) for path in paths]
    base = choose_base(args.pretrained_model_name_or_path, adapters)
    clip = load_clip(args.clip)
    pipeline = load_pipeline(base)
    before, after = compare(pipeline, adapters, args)
    scores = [score(clip, pictures, photos, args.class_word) for pictures in (before, after)]
    squares = [fit_picture(photo, (min(photo.size),) * 2)[0] for photo in photos]
    method = adapters[0].adapter.method.title
    title = (
        f"{method} on {Path(base).name}: CLIP-I {scores[0].clip_i:.2f} -> {scores[1].clip_i:.2f}, "
    )
    title += f"CLIP-T {scores[0].clip_t:.2f} -> {scores[1].clip_t:.2f}"
    recipe = {"seeds": args.seeds, "steps": args.num_inference_steps, "base": base}
    recipe |= {"guidance": args.guidance_scale, "adapters": [m.recipe() for m in adapters]}
    save_png(make_grid(squares, before, after, args, method, title), args.output, recipe)
    print(table(scores[0], scores[1], args, method, clip.name))
    print(f"The picture: {args.output}")


if __name__ == "__main__":
    exit_on_user_error(main)
