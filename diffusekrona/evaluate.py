"""Scores of fine-tuned subjects: `accelerate launch -m diffusekrona.evaluate --help`.

Prompts times seeds by DreamBooth's protocol, for any number of adapters and the bare base, scored
by CLIP-I, CLIP-T, DINO and diversity. Pictures are drawn once and kept: a run that is killed goes
on where it stopped, `--score_only` scores again without drawing, processes share the drawing.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adapters.mixing import WeightedAdapter, choose_base, parse_adapter, run_name
from .bases.precision import DTYPE_NAMES, MIXED
from .common.devices import choose_device, process_state
from .common.errors import UserError, exit_on_user_error
from .sampling.inference_args import check_drawing
from .sampling.schedulers import SCHEDULERS

if TYPE_CHECKING:
    from .evaluation.pictures import Drawing, Variant
    from .evaluation.report import Evaluation

log = logging.getLogger("diffusekrona.evaluate")  # also where this is __main__


def build_parser() -> argparse.ArgumentParser:
    """Every flag with its default and what it is for."""
    parser = argparse.ArgumentParser(
        prog="diffusekrona.evaluate",
        description="CLIP-I, CLIP-T, DINO and diversity of fine-tuned subjects, with intervals.",
    )
    add = parser.add_argument_group("what is compared").add_argument
    add(
        "--pretrained_model_name_or_path",
        metavar="NAME_OR_PATH",
        help="Base; default: the adapters' own.",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]PATH[:WEIGHT]",
        help="Adapter file or run folder, KronA or LoRA; none: the bare base. Repeat to compare.",
    )
    add("--subject_dir", type=Path, required=True, metavar="FOLDER", help="The subject's photos.")
    add("--class_word", required=True, metavar="WORD", help="What the subject is, such as dog.")
    add("--identifier", default="sks", metavar="WORD", help="Its name in prompts (sks).")
    add(
        "--prompts",
        default="auto",
        metavar="LIST|FILE",
        help="object, live, pocket or a file of templates; auto: object, pocket on a bundled base.",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], metavar="N", help="Of every prompt.")
    add = parser.add_argument_group("drawing").add_argument
    add("--num_inference_steps", type=int, default=50, help="Denoising steps (50).")
    add("--guidance_scale", type=float, default=7.0, help="Classifier-free guidance (7).")
    add("--scheduler", choices=tuple(SCHEDULERS), help="Sampler; default: the base's own.")
    add("--negative_prompt", metavar="TEXT", help="What the pictures should not be.")
    add("--height", type=int, metavar="PIXELS", help="With --width; default: the base's own.")
    add("--width", type=int, metavar="PIXELS", help=argparse.SUPPRESS)
    add("--batch_size", type=int, default=4, help="Pictures at once (4).")
    add("--mixed_precision", choices=MIXED, help="Default: fp16 on a GPU, no on a CPU.")
    add("--low_vram", action="store_true", help="Only the model at work on the GPU, tiled VAE.")
    add("--vae", metavar="NAME_OR_PATH", help="Another VAE.")
    add("--revision", help="Revision of the base on the hub.")
    add("--variant", help="Variant of the base's files, such as fp16.")
    add("--device", help="cuda, cuda:1, cpu …; default: what accelerate gives.")
    add = parser.add_argument_group("scoring").add_argument
    add(
        "--clip",
        default="auto",
        metavar="NAME_OR_PATH",
        help="auto: ViT-B/32, the bundled one on a bundled base.",
    )
    add(
        "--clip_backend",
        choices=("transformers", "openai"),
        default="transformers",
        help="What runs it.",
    )
    add(
        "--dino",
        default="auto",
        metavar="NAME_OR_PATH",
        help="DINO, DINOv2 …; auto: ViT-S/16; none: left out.",
    )
    add(
        "--clip_t_text",
        choices=("class", "full"),
        default="class",
        help="CLIP-T against the prompt with the plain class (default) or with the identifier too.",
    )
    add("--score_only", action="store_true", help="Score the pictures that are there; draw none.")
    add("--output_dir", type=Path, required=True, help="Pictures, results and the page.")
    add("--shown_seeds", type=int, default=2, metavar="N", help="Of each prompt, on the page (2).")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError for a value out of range, naming the flag."""
    check_drawing(args)
    if args.shown_seeds < 1:
        raise UserError(f"--shown_seeds must be at least 1, not {args.shown_seeds}.")
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError("--seeds must be different numbers.")
    if not args.adapter:
        raise UserError("Nothing to compare: give --adapter PATH, or --adapter none for the base.")


def read_variants(args: argparse.Namespace) -> list[Variant]:
    """What `--adapter` names, each read and checked, under names of their own.

    Raises:
        UserError: one that is missing or damaged, or two of the same name.
    """
    from .adapters.file import read_adapter
    from .evaluation.pictures import Variant

    variants = []
    for text in args.adapter:
        name, path = _split_name(text)
        if path == "none":
            variants.append(Variant(name or "base", args.class_word))
            continue
        file, weight = parse_adapter(path)
        mixed = WeightedAdapter(file, weight, read_adapter(file))
        default = f"{mixed.adapter.method.name} {run_name(file, mixed.adapter)}"
        default += f" at {weight:g}" if weight != 1 else ""
        subject = f"{args.identifier} {args.class_word}"
        variants.append(Variant(name or default, subject, (mixed,)))
    folders = [variant.folder for variant in variants]
    for variant, folder in zip(variants, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"Two adapters are called {variant.name!r}: write --adapter NAME=PATH.")
    return variants


def _split_name(text: str) -> tuple[str, str]:
    name, sign, rest = text.partition("=")
    named = sign and "/" not in name and not Path(text).expanduser().exists()
    return (name, rest) if named else ("", text)


def relative_norm(variant: Variant) -> float | None:
    """The median of ||delta W|| / ||W|| as the adapter's file has it, times its weight."""
    from .adapters.norms import norms_in

    found = [(one.weight, norms_in(one.adapter.metadata)) for one in variant.adapters]
    norms = [abs(weight) * norms["median"] for weight, norms in found if norms]
    return norms[0] if len(norms) == 1 else None


def drawing_of(args: argparse.Namespace, base: str, device: Any) -> Drawing:
    """The settings that all pictures share."""
    from .evaluation.pictures import Drawing

    precision = args.mixed_precision or ("no" if device.type == "cpu" else "fp16")
    return Drawing(
        base=base,
        steps=args.num_inference_steps,
        guidance=args.guidance_scale,
        scheduler=args.scheduler,
        size=(args.height, args.width) if args.height else None,
        negative_prompt=args.negative_prompt,
        dtype=DTYPE_NAMES[precision],
        vae=args.vae,
        batch_size=args.batch_size,
        low_vram=args.low_vram,
        options={"revision": args.revision, "variant": args.variant},
    )


def evaluate(args: argparse.Namespace, state: Any) -> Evaluation | None:
    """Draw what is missing and score it all; None on other than the main process."""
    from .bases.loading import bundled_models
    from .data.folder import find_pictures
    from .evaluation.encoders import choose_names, load_clip_encoder, load_dino_encoder
    from .evaluation.pictures import draw_missing, jobs_of, load_rows, refuse_others
    from .evaluation.prompts import get_prompts
    from .evaluation.report import Evaluation, Row
    from .evaluation.scoring import read_reference, score, scored_texts

    variants = read_variants(args)
    photos, skipped = find_pictures(args.subject_dir)
    for line in skipped:
        log.warning("skipped in %s: %s", args.subject_dir, line)
    everyone = [mixed for variant in variants for mixed in variant.adapters]
    base = choose_base(args.pretrained_model_name_or_path, everyone, args.revision)
    bundled = base in bundled_models()
    prompts = get_prompts(
        args.prompts if args.prompts != "auto" else "pocket" if bundled else "object"
    )
    clip_name, dino_name, missing = choose_names(args.clip, args.dino, bundled)
    # Before anything is drawn: a scorer that cannot be had should not show after hours.
    device = choose_device(args.device, state.device)
    clip = load_clip_encoder(clip_name, args.clip_backend, device)
    dino = load_dino_encoder(dino_name, device) if dino_name else None
    drawing = drawing_of(args, base, device)
    folder = args.output_dir / "pictures"
    jobs = [jobs_of(v, drawing, prompts, args.seeds, folder) for v in variants]
    if args.score_only:
        refuse_others(job for its_jobs in jobs for job in its_jobs)
    else:
        for variant, its_jobs in zip(variants, jobs, strict=True):
            drawn = draw_missing(variant, drawing, its_jobs, state, device)
            log.info("%s: %d pictures drawn, %d kept", variant.name, drawn, len(its_jobs) - drawn)
    if not state.is_main_process:
        return None
    reference = read_reference(photos, clip, dino)
    name = args.class_word
    name = name if args.clip_t_text == "class" else f"{args.identifier} {name}"
    texts = scored_texts(prompts, name)
    rows = []
    for variant, its_jobs in zip(variants, jobs, strict=True):
        images = load_rows(its_jobs)
        scores = score(images, texts, reference, clip, dino)
        rows.append(Row(variant.name, images, scores, relative_norm(variant)))
    notes = [missing] if missing else []
    return Evaluation(
        args.class_word, prompts, texts, args.seeds, photos, rows, reference.own_scores(),
        {"base": base, "clip": clip.name, "dino": dino.name if dino else None,
         "steps": args.num_inference_steps, "guidance": args.guidance_scale}, notes,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: draw, score, write."""
    args = build_parser().parse_args(argv)
    check_arguments(args)
    from .bases.loading import quiet_libraries
    from .evaluation.page import write_results
    from .evaluation.report import print_results

    quiet_libraries()
    state = process_state(args.device)
    level = logging.INFO if state.is_main_process else logging.ERROR
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("diffusekrona").setLevel(level)
    try:
        evaluation = evaluate(args, state)
        if evaluation is not None:
            print_results(evaluation)
            written = write_results(evaluation, args.output_dir, args.shown_seeds)
            print("Written: " + ", ".join(str(path) for path in written))
    finally:
        state.destroy_process_group()


if __name__ == "__main__":
    exit_on_user_error(main)
