"""What an adapter has learned, and where: `python -m diffusekrona.inspect --help`.

Per layer and block the size of delta W, its singular values and effective rank, which projections,
attentions and blocks carry it, and to what smaller factors it could be reduced. Several adapters
are shown side by side. A table in the terminal and one HTML page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common.command_line import parse
from .common.errors import exit_on_user_error
from .common.paths import as_path
from .common.settings import COUNTS, SEEDS, SIDES, setting
from .common.weights import split_name
from .sampling.settings import GUIDANCE_HELP

if TYPE_CHECKING:
    from .inspection.facts import Facts
    from .inspection.switched import Shown


STEPS = 20  # denoising steps, if neither the user nor the base asks for another number


@dataclass(frozen=True)
class InspectedSettings:
    """What is inspected, and what is shown of it."""

    adapter: tuple[str, ...] = setting(
        positional=True,
        metavar="ADAPTER",
        help="Adapter files or run folders; several are compared. NAME=PATH gives one a name.",
    )
    base: str | None = setting(
        None,
        metavar="NAME_OR_PATH",
        aliases=("--pretrained_model_name_or_path",),
        help="Base model: report sizes relative to its weights; by default the adapter's own, if "
        "it is bundled or a folder.",
    )
    output: Path | None = setting(
        None, metavar="FILE", help="Write the page here; by default beside the adapter."
    )
    json: Path | None = setting(None, metavar="FILE", help="Write every number to a JSON file.")
    layers: bool = setting(False, help="Print every layer, not only blocks.")
    factors: int = setting(3, minimum=0, help="Draw the factors of this many layers.")
    layer: tuple[str, ...] = setting(
        (),
        append=True,
        metavar="NAME",
        help="Draw this layer's factors; repeat the flag for several.",
    )


@dataclass(frozen=True)
class SheetSettings:
    """Pictures."""

    draw: str | None = setting(
        None,
        metavar="PROMPT",
        help="Draw the prompt with each projection, attention and block alone and off, with each "
        "row of A alone and off, and with fewer singular terms: one sheet, with the scores that "
        "are lost. And show where in the picture its words are read, without and with the adapter.",
    )
    words: tuple[str, ...] = setting(
        (),
        metavar="WORD",
        help="Show where these words of the prompt are read; by default those that name the "
        "subject, or all.",
    )
    photos: Path | None = setting(
        None, metavar="FOLDER", help="The subject's photos, to score CLIP-I."
    )
    seeds: tuple[int, ...] = setting((0, 1), **SEEDS, help="Draw each variant with these seeds.")
    num_inference_steps: int | None = setting(
        None, **COUNTS, help="Denoising steps; by default 20, or fewer on distilled models."
    )
    guidance_scale: float | None = setting(None, help=GUIDANCE_HELP)
    resolution: int | None = setting(
        None,
        metavar="PIXELS",
        **SIDES,
        multiple_of=8,
        help="Sides of the pictures; by default the base's own.",
    )
    clip: str = setting(
        "auto",
        metavar="NAME_OR_PATH",
        help="CLIP model that scores; auto: ViT-B/32, or the bundled one on a bundled base.",
    )
    device: str | None = setting(
        None, help="Device, such as cuda or cpu; by default the best available."
    )


@dataclass(frozen=True)
class InspectSettings:
    """All settings of the inspection, by group."""

    inspected: InspectedSettings
    sheets: SheetSettings


def read(texts: Sequence[str]) -> list[Facts]:
    """Every adapter's facts, each under a unique name.

    Raises:
        UserError: an adapter that is missing or damaged.
    """
    from .adapters.file import read_adapter
    from .adapters.mixing import parse_adapter, run_name
    from .inspection.facts import facts_of

    named = [(split_name(text)[0], _path_of(text)) for text in texts]
    adapters = [read_adapter(path) for _, path in named]
    files = [parse_adapter(str(path))[0] for _, path in named]
    runs = [
        name or run_name(file, adapter)
        for (name, _), file, adapter in zip(named, files, adapters, strict=True)
    ]
    labels = runs if len(set(runs)) == len(runs) else _distinct(named)
    return [facts_of(adapter, label) for adapter, label in zip(adapters, labels, strict=True)]


def _path_of(text: str) -> Path:
    """The path in NAME=PATH."""
    return as_path(split_name(text)[1])


def _distinct(named: Sequence[tuple[str, Path]]) -> list[str]:
    """The names given; else as many last parts of the paths as distinguish them."""
    parts = [p.absolute().parts for _, p in named]
    parts = [p[:-1] if p[-1].endswith(".safetensors") else p for p in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = [name or "/".join(p[-depth:]) for (name, _), p in zip(named, parts, strict=True)]
        if len(set(labels)) == len(labels):
            return labels
    return [name or str(path) for name, path in named]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: read, print, write the page."""
    settings = parse(
        InspectSettings,
        argv,
        prog="diffusekrona.inspect",
        description="What KronA and LoRA adapters change in each layer, from their factors.",
    )
    from .bases.loading import quiet_libraries
    from .common.own_files import check_names, write_result
    from .inspection.facts import add_base_norms
    from .inspection.lowered import lowered
    from .inspection.page import inspection_page
    from .inspection.tables import as_json, print_tables

    quiet_libraries()
    inspected = settings.inspected
    check_names(inspected.output, inspected.json)
    facts = read(inspected.adapter)
    path = inspected.output or _beside(_path_of(inspected.adapter[0]))
    if base := inspected.base or _base_at_hand(facts):
        configs = {one.metadata.get("single_file_config") for one in facts}
        add_base_norms(facts, base, configs.pop() if len(configs) == 1 else None)
    results = [lowered(one) for one in facts]
    print_tables(facts, results, inspected.layers)
    drawn = draw_sheets(inspected, settings.sheets, facts, path) if settings.sheets.draw else []
    shown = [part for parts in drawn for part in parts]
    page = inspection_page(facts, results, inspected.factors, inspected.layer, shown)
    write_result(path, page)
    if inspected.json:
        numbers = [[part.numbers for part in parts] for parts in drawn]
        write_result(inspected.json, json.dumps(as_json(facts, results, numbers), indent=1))
    print(f"The page: {path}")


def _base_at_hand(facts: Sequence[Facts]) -> str | None:
    """The base that all adapters were trained on, if it need not be fetched."""
    from .bases.bundled import bundled_models

    named = {one.metadata.get("base_model") for one in facts}
    base = named.pop() if len(named) == 1 else None
    return base if base and (base in bundled_models() or Path(base).exists()) else None


def draw_sheets(
    inspected: InspectedSettings, sheets: SheetSettings, facts: Sequence[Facts], page: Path
) -> list[list[Shown]]:
    """What each adapter draws, printed, and saved as PNG files beside the page.

    Raises:
        UserError: no base is known, a photo cannot be read, or the prompt lacks one of the words.
    """
    from .adapters.mixing import choose_base, read_adapters, reading_options
    from .bases.bundled import is_bundled
    from .bases.families import identify
    from .bases.precision import dtype_of
    from .bases.resolve import resolve_base
    from .common.devices import choose_device, process_state
    from .common.files import slugs
    from .common.pictures import load_square
    from .common.tables import show_table
    from .data.folder import find_pictures
    from .inspection.attention import no_maps, show_words
    from .inspection.switched import Drawing, show_groups
    from .sampling.grids import save_png
    from .sampling.pipeline import load_pipeline
    from .sampling.settings import guidance_or, precision_or, steps_or

    state: Any = process_state(sheets.device)
    device = choose_device(sheets.device, state.device)
    adapters = read_adapters([str(_path_of(text)) for text in inspected.adapter])
    photos = find_pictures(sheets.photos)[0] if sheets.photos else []
    squares = [load_square(path) for path in photos]
    drawn = []
    names = slugs(one.label for one in facts)
    for one, weighted, name in zip(facts, adapters, names, strict=True):
        reading = reading_options([weighted])
        config = reading.get("single_file_config")
        base = choose_base(inspected.base, [weighted], single_file_config=config)
        score = scorer(sheets, is_bundled(base), photos, device)
        place = resolve_base(base, config)
        family, _ = identify(place)
        defaults = family.drawing_defaults(place)
        dtype = dtype_of(precision_or(None, defaults, device))
        drawing = Drawing(
            sheets.draw or "",
            sheets.seeds,
            steps_or(sheets.num_inference_steps, defaults, STEPS),
            guidance_or(sheets.guidance_scale, defaults),
            (sheets.resolution, sheets.resolution) if sheets.resolution else None,
        )

        def load(base: str = base, dtype: Any = dtype, reading: dict[str, Any] = reading) -> Any:
            return load_pipeline(base, dtype, device, **reading)

        parts = [show_groups(load, weighted.adapter, one, drawing, score, squares)]
        if family.cross_attention:
            words = sheets.words or _subject_words(drawing.prompt, one.metadata)
            parts.append(show_words(load, weighted.adapter, one.label, drawing, words, squares))
        else:
            print(no_maps(family.title))
        for part in parts:
            show_table(part.grid.title, *part.table)
            save_png(part.grid.image(), page.with_name(f"{page.stem}_{name}_{part.kind}.png"))
        drawn.append(parts)
    return drawn


def _subject_words(prompt: str, metadata: Mapping[str, str]) -> list[str]:
    """The words of a prompt that name an adapter's subject: identifier and class; else all."""
    from .evaluation.choice_settings import subject_of

    named = subject_of(metadata.get("instance_prompt", "")) or ()
    return [word for word in named if word in prompt] or list(dict.fromkeys(prompt.split()))


def scorer(sheets: SheetSettings, bundled: bool, photos: Sequence[Path], device: Any) -> Any:
    """A function from pictures to their mean CLIP-T and, with photos, CLIP-I."""
    from .common.pictures import load_picture
    from .evaluation.encoders import choose_names, load_clip_encoder
    from .evaluation.scoring import similarity
    from .evaluation.settings import EncoderSettings

    names, _ = choose_names(EncoderSettings(clip=sheets.clip), bundled)
    clip = load_clip_encoder(names.clip, device=device)
    texts = clip.texts([sheets.draw or ""])
    reference = clip.images([load_picture(path) for path in photos]) if photos else None

    def score(images: Sequence[Any]) -> dict[str, float]:
        features = clip.images(images)
        scores = {"CLIP-T": similarity(features, texts).mean().item()}
        if reference is not None:
            scores = {"CLIP-I": similarity(features, reference).mean().item(), **scores}
        return scores

    return score


def _beside(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / "inspect.html"


if __name__ == "__main__":
    exit_on_user_error(main)
