"""What an adapter has learned, and where: `python -m diffusekrona.inspect --help`.

Per layer and block the size of delta W, its singular values and effective rank, which projections,
attentions and blocks carry it, and with what smaller factors it could be told. Several adapters
stand side by side. A table in the terminal and one HTML page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common.errors import UserError, exit_on_user_error

if TYPE_CHECKING:
    from .inspection.facts import Facts


def build_parser() -> argparse.ArgumentParser:
    """Every flag with its default and what it is for."""
    parser = argparse.ArgumentParser(
        prog="diffusekrona.inspect",
        description="What KronA and LoRA adapters change in each layer, from their factors.",
    )
    add = parser.add_argument
    add(
        "adapter",
        nargs="+",
        metavar="ADAPTER",
        help="Adapter file or run folder; several are compared. NAME=PATH gives it a name.",
    )
    add("--base", metavar="NAME_OR_PATH", help="Base model: sizes are then told relative to W.")
    add("--output", type=Path, metavar="FILE", help="The page; default: inspect.html beside it.")
    add("--json", type=Path, metavar="FILE", help="Every number, for programs.")
    add("--layers", action="store_true", help="Print every layer, not only blocks.")
    add("--factors", type=int, default=3, metavar="N", help="Layers whose factors are drawn (3).")
    add("--layer", action="append", default=[], metavar="NAME", help="Draw these layers' factors.")
    return parser


def read(texts: Sequence[str]) -> list[Facts]:
    """Every adapter's facts, each under a name of its own.

    Raises:
        UserError: an adapter that is missing or damaged.
    """
    from .adapters.file import read_adapter
    from .inspection.facts import facts_of

    named = [_split_name(text) for text in texts]
    labels = _distinct(named)
    pairs = zip(labels, named, strict=True)
    return [facts_of(read_adapter(path), label) for label, (_, path) in pairs]


def _split_name(text: str) -> tuple[str, Path]:
    """NAME=PATH, or a path that may hold an equals sign itself."""
    name, sign, rest = text.partition("=")
    if sign and "/" not in name and not Path(text).expanduser().exists():
        return name, Path(rest).expanduser()
    return "", Path(text).expanduser()


def _distinct(named: Sequence[tuple[str, Path]]) -> list[str]:
    """The names given; else as many last parts of the paths as tell them apart."""
    parts = [p.absolute().parts for _, p in named]
    parts = [p[:-1] if p[-1].endswith(".safetensors") else p for p in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = [name or "/".join(p[-depth:]) for (name, _), p in zip(named, parts, strict=True)]
        if len(set(labels)) == len(labels):
            return labels
    return [name or str(path) for name, path in named]


def add_base_norms(facts: Sequence[Facts], base: str) -> None:
    """Fill in ||W|| of every adapted layer from the base model.

    Raises:
        UserError: no such base, another family, or a layer that it lacks.
    """
    import torch

    from .bases import backbones

    place = backbones.resolve_base(base)
    family = backbones.family_of(backbones.read_unet_config(place))
    kinds = {"unet": "UNet2DConditionModel", **backbones.text_encoder_kinds(family)}
    for one in facts:
        if one.metadata.get("base_family", family.name) != family.name:
            trained_for = one.metadata["base_family"]
            raise UserError(f"{one.label} was trained for {trained_for}, {base} is {family.name}.")
    layers = [layer for one in facts for layer in one.layers]
    for component in dict.fromkeys(layer.component for layer in layers):
        # In half precision: a norm needs no more, and the largest UNet would be 10 GB.
        kind = kinds[component]
        model = backbones.load_part(place, kind, component, torch_dtype=torch.float16)
        modules = dict(model.named_modules())
        for layer in (each for each in layers if each.component == component):
            module = modules.get(layer.name) or modules.get(layer.name.removeprefix("text_model."))
            if module is None or tuple(module.weight.shape) != layer.shape:
                raise UserError(f"{base} has no {component} layer {layer.name} of {layer.shape}.")
            layer.base_norm = module.weight.detach().to(torch.float32).norm().item()


def as_json(facts: Sequence[Facts], results: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Every number of every layer."""
    from .adapters.groups import KINDS
    from .inspection.facts import effective_rank, shares

    def layer(x: Any) -> dict[str, Any]:
        names = "component name shape factors parameters norm base_norm"
        values = {name: getattr(x, name) for name in names.split()} | asdict(x.place)
        for name in ("singular", "singular_a", "singular_b"):
            spectrum = getattr(x, name)
            values[name] = None if spectrum is None else spectrum.tolist()
            values[f"effective_rank_{name}"] = effective_rank(spectrum)
        return values

    return {
        one.label: {
            "method": one.method,
            "parameters": one.parameters,
            "norm": one.norm,
            "shares": {a: shares(one.layers, a) for a in KINDS},
            "layers": [layer(x) for x in one.layers],
            "lowered": [asdict(r) for r in outcome],
        }
        for one, outcome in zip(facts, results, strict=True)
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: read, print, write the page."""
    args = build_parser().parse_args(argv)
    from .bases.backbones import quiet_libraries
    from .common.files import write_text
    from .inspection.lowered import lowered
    from .inspection.page import inspection_page
    from .inspection.tables import print_tables

    quiet_libraries()
    facts = read(args.adapter)
    if args.base:
        add_base_norms(facts, args.base)
    results = [lowered(one) for one in facts]
    print_tables(facts, results, args.layers)
    page = inspection_page(facts, results, args.factors, args.layer)
    path = args.output or _beside(_split_name(args.adapter[0])[1])
    write_text(path, page)
    if args.json:
        write_text(args.json, json.dumps(as_json(facts, results), indent=1))
    print(f"The page: {path}")


def _beside(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / "inspect.html"


if __name__ == "__main__":
    exit_on_user_error(main)
