"""Adapters between formats: `python -m diffusekrona.convert --help`.

    convert pytorch_lora_weights.safetensors dog.safetensors --to krona    the published code's
    convert outputs/dog dog.safetensors --to lokr                          for ComfyUI, Forge, A1111
    convert outputs/dog dog_lora.safetensors --to lora                     for diffusers, exact
    convert outputs/dog dog_model.safetensors --to merged --base BASE      one whole model

It reports what it read and wrote, with the largest difference of delta W that reading the written
file back shows. Nothing is written when anything is wrong.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .bases.precision import STORED, dtype_of
from .common.errors import UserError, exit_on_user_error

TARGETS = {
    "krona": "our adapter file",
    "lokr": "LoKr under kohya's names, for ComfyUI, Forge, A1111, InvokeAI",
    "lokr-diffusers": "LoKr under diffusers' names, for unet.load_lora_adapter (square factors)",
    "lokr-lycoris": "LoKr under LyCORIS' names, for its wrapper and SimpleTuner (square factors)",
    "lora": "LoRA for diffusers' pipe.load_lora_weights",
    "lora-kohya": "LoRA under kohya's names, for every user interface",
    "merged": "the whole model: DESTINATION.safetensors for one file in the original layout, "
    "else a diffusers folder",
    "peft": "PEFT folder of a KronA adapter",
    "peft-lora": "PEFT folder of a LoRA, for stock PEFT",
}
SOURCES = ("krona", "published", "lokr", "lora", "peft", "full")


def __getattr__(name: str) -> Any:
    # The library half, under this module's name too. It imports torch, which `--help` need not.
    if name in ("convert", "Options", "Report"):
        from .formats import conversion

        return getattr(conversion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_parser() -> argparse.ArgumentParser:
    """Every flag, with what it is for."""
    targets = "\n".join(f"  {name:<15} {what}" for name, what in TARGETS.items())
    parser = argparse.ArgumentParser(
        prog="diffusekrona.convert",
        description="Convert an adapter, or a fine-tuned model, from one format to another.",
        epilog=f"formats to write:\n{targets}\n\nThe source's format is recognised; --from "
        "overrides. A whole model as SOURCE, with --base, is read as what it changed there.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE[:WEIGHT]", help="File or folder; WEIGHT multiplies it (1).")
    add("destination", metavar="DESTINATION", help="File or folder to write.")
    add("--to", required=True, choices=tuple(TARGETS), metavar="FORMAT", help="See below.")
    add("--from", dest="source_format", choices=SOURCES, metavar="FORMAT", help=", ".join(SOURCES))
    add("--adapter", action="append", default=[], metavar="PATH[:WEIGHT]", help="Mix another in.")
    add("--base", metavar="BASE", help="Base model: folder, bundled or hub name, or one file.")
    add("--family", metavar="NAME", help="Of base models (sd1, sd2, sdxl), if the file hides it.")
    add("--rank", type=int, metavar="R", help="LoRA: at most this rank, by SVD. Default: exact.")
    add("--a1", type=int, metavar="N", help="Nearest Kronecker factors: rows of A, divides out.")
    add("--a2", type=int, metavar="N", help="Nearest Kronecker factors: columns of A, divides in.")
    add("--terms", type=int, metavar="R", help="Kronecker products kept per layer.")
    add("--dtype", choices=STORED, help="Default: the source's, if exact.")
    add("--drop_convolutions", action="store_true", help="Leave out what KronA has no place for.")
    add("--skip_unsupported", action="store_true", help="Leave out what the target cannot hold.")
    add("--overwrite", action="store_true", help="Replace what convert did not write.")
    add("--push_to_hub", metavar="REPO_ID", help="Upload what was written, with a model card.")
    add("--private", action="store_true", help="Make the hub repository private.")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Raises UserError for whatever is wrong with the request or its files."""
    args = build_parser().parse_args(argv)
    from .formats.conversion import Options, convert

    source, weight = parse_source(args.source)
    options = Options(
        rank=args.rank,
        a1=args.a1,
        a2=args.a2,
        terms=args.terms,
        dtype=dtype_of(args.dtype) if args.dtype else None,
        drop_convolutions=args.drop_convolutions,
        skip_unsupported=args.skip_unsupported,
    )
    report = convert(
        source,
        args.destination,
        args.to,
        source_format=args.source_format,
        base=args.base,
        family=args.family,
        weight=weight,
        adapters=[parse_source(text) for text in args.adapter],
        options=options,
        overwrite=args.overwrite,
    )
    print("\n".join(report.lines()))
    if args.push_to_hub:
        from .hub.upload import push_conversion

        print("shared ", push_conversion(report, args.push_to_hub, private=args.private))
    return 0


def parse_source(text: str) -> tuple[str, float]:
    """`PATH[:WEIGHT]` to path and weight. What exists as written is a path.

    Raises:
        UserError: a weight that is no finite number.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or Path(text).expanduser().exists():
        return text, 1.0
    try:
        weight = float(tail)
    except ValueError:
        return text, 1.0
    if not math.isfinite(weight):
        raise UserError(f"{text}: the weight must be a number.")
    return head, weight


if __name__ == "__main__":
    exit_on_user_error(main)
