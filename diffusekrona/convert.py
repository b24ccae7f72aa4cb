"""Adapters between formats: `python -m diffusekrona.convert --help`.

    convert pytorch_lora_weights.safetensors dog.safetensors --to krona    the published code's
    convert outputs/dog dog.safetensors --to lokr                          for ComfyUI, Forge, A1111
    convert outputs/dog dog_lora.safetensors --to lora                     for diffusers, exact
    convert outputs/dog dog_model.safetensors --to merged --base BASE      one whole model

It reports what it read and wrote, with the largest difference of delta W that reading the written
file back shows. Nothing is written when anything is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .bases.precision import STORED, dtype_of
from .common.command_line import parse
from .common.errors import exit_on_user_error
from .common.settings import setting
from .common.weights import given_weight
from .formats.targets import SOURCES, TARGETS


@dataclass(frozen=True)
class ConvertSettings:
    """What is converted to what."""

    source: str = setting(
        positional=True,
        metavar="SOURCE[:WEIGHT]",
        help="File or folder; append :0.8 to convert it at weight 0.8.",
    )
    destination: str = setting(
        positional=True, metavar="DESTINATION", help="File or folder to write."
    )
    to: str = setting(
        choices={name: target.help for name, target in TARGETS.items()},
        metavar="FORMAT",
        help="Format to write.",
    )
    source_format: str | None = setting(
        None,
        flag="from",
        choices=SOURCES,
        metavar="FORMAT",
        help=f"Format of the source, instead of recognising it: {', '.join(SOURCES)}.",
    )
    adapter: tuple[str, ...] = setting(
        (), append=True, metavar="PATH[:WEIGHT]", help="Mix another adapter in; repeat for several."
    )
    base: str | None = setting(
        None,
        aliases=("--pretrained_model_name_or_path",),
        help="Base model: folder, bundled or hub name, or one file; for a merged model by default "
        "the one that the adapter names.",
    )
    family: str | None = setting(
        None, metavar="NAME", help="Family (sd1, sd2, sdxl …), if the file does not show it."
    )
    rank: int | None = setting(
        None, minimum=1, help="LoRA: at most this rank, by SVD. By default exact."
    )
    a1: int | None = setting(
        None, minimum=1, help="Nearest Kronecker factors: rows of A, must divide out_features."
    )
    a2: int | None = setting(
        None, minimum=1, help="Nearest Kronecker factors: columns of A, must divide in_features."
    )
    terms: int | None = setting(
        None,
        minimum=1,
        help="Keep this many Kronecker products per layer; by default the source's.",
    )
    dtype: str | None = setting(
        None, choices=STORED, help="Write in this precision; by default the source's, if exact."
    )
    drop_convolutions: bool = setting(
        False, help="Leave out convolutions where the target cannot hold them, as KronA."
    )
    skip_unsupported: bool = setting(False, help="Leave out what the target cannot hold.")
    overwrite: bool = setting(False, help="Replace what convert did not write.")
    push_to_hub: str | None = setting(
        None, metavar="REPO_ID", help="Upload what was written, with a model card."
    )
    private: bool = setting(False, help="Make the hub repository private.")


def description() -> str:
    """What `--help` says of the program."""
    targets = "\n".join(f"  {name:<16} {target.help}" for name, target in TARGETS.items())
    return (
        "Convert an adapter, or a fine-tuned model, from one format to another.\n"
        "Of a fine-tuned whole model as SOURCE, its change relative to --base is converted.\n\n"
        f"formats to write:\n{targets}"
    )


def _source(text: str) -> tuple[str, float]:
    """`PATH[:WEIGHT]`; without a weight, the one that this package's adapter file names, or 1."""
    from .adapters.file import adapter_file
    from .adapters.layout import default_weight
    from .common.tensor_files import read_metadata

    path, weight = given_weight(text)
    if weight is None:
        weight = default_weight(read_metadata(adapter_file(path)))
    return path, weight


def _base(settings: ConvertSettings, source: str) -> str | None:
    """The base asked for, or for a merged model that which our adapter file names."""
    from .adapters.file import adapter_file
    from .common.tensor_files import read_metadata

    if settings.base or settings.to != "merged":
        return settings.base
    return read_metadata(adapter_file(source)).get("base_model")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Raises UserError for whatever is wrong with the request or its files."""
    settings = parse(ConvertSettings, argv, prog="diffusekrona.convert", description=description())
    from .formats.conversion import Options, convert

    source, weight = _source(settings.source)
    options = Options(
        rank=settings.rank,
        a1=settings.a1,
        a2=settings.a2,
        terms=settings.terms,
        dtype=dtype_of(settings.dtype) if settings.dtype else None,
        drop_convolutions=settings.drop_convolutions,
        skip_unsupported=settings.skip_unsupported,
    )
    report = convert(
        source,
        settings.destination,
        settings.to,
        source_format=settings.source_format,
        base=_base(settings, source),
        family=settings.family,
        weight=weight,
        adapters=[_source(text) for text in settings.adapter],
        options=options,
        overwrite=settings.overwrite,
    )
    print("\n".join(report.lines()))
    if settings.push_to_hub:
        from .hub.upload import push_conversion

        print("shared ", push_conversion(report, settings.push_to_hub, private=settings.private))
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
