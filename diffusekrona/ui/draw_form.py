"""The contents of the drawing form: read, drawn, and filled from a picture's recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..adapters.layout import ADAPTER_FILE, default_weight
from ..common.errors import UserError
from ..common.settings import options_of, with_values
from ..sampling.grids import read_recipe
from ..sampling.settings import InferenceSettings
from .drawing import (
    Stopped,
    Variant,
    command_of,
    draw,
    settings_from,
    usable,
    values_of_recipe,
    variants,
    weighted,
)
from .filling import Answer
from .form import field_values, label_of, read_form
from .places import Workspace, adapter_files, inside, run_folders
from .scoring import score_pictures
from .views import say, view

ROWS = 3  # adapters at once
OPTIONS = options_of(InferenceSettings)
FIRST = ("prompt", "negative_prompt", "seeds", "num_inference_steps", "guidance_scale")
MORE = ("pretrained_model_name_or_path", "scheduler", "height", "width", "adapter_steps", "vae",
        "mixed_precision", "batch_size", "low_vram")  # fmt: skip
NAMES = (*FIRST, *MORE)
SWITCHES = {
    "projections": ["q", "k", "v", "o", "ff"],
    "attention": ["self", "cross", "text", "feed-forward"],
    "blocks": [],
}
FILLED = (  # by a picture's recipe
    *(f"adapter {number}" for number in range(ROWS)),
    *(f"weight {number}" for number in range(ROWS)),
    *SWITCHES,
    *NAMES,
)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the result: pictures from the workspace on, one per row."""

    label: str
    pictures: tuple[str, ...]
    command: str
    scores: tuple[str, ...] = ()


def newest_adapter(workspace: Workspace) -> str:
    """The adapter of the newest run, else the newest file that is one; "" if there is none."""
    files = adapter_files(workspace)
    runs = [workspace.relative(folder) + f"/{ADAPTER_FILE}" for folder in run_folders(workspace)]
    return next((name for name in [*runs, *files] if name in files), "")


def new_blocks(workspace: Workspace, name: str | None, known: Sequence[str]) -> tuple[Any, Any]:
    """The blocks of the first adapter, all of them on; the same ones stay as they are."""
    blocks = _blocks(workspace, name)
    if blocks == list(known):
        return gr.skip(), gr.skip()
    return tuple(blocks), gr.CheckboxGroup(choices=blocks, value=blocks)


def _blocks(workspace: Workspace, name: str | None) -> list[str]:
    """The blocks that the first adapter has; none if it cannot be read."""
    from ..adapters.file import read_adapter
    from ..adapters.groups import places_of

    try:
        places = places_of(read_adapter(workspace.root / usable(workspace, name or "")))
    except UserError:
        return []
    return sorted({place.block for place in places})


def weight_of(workspace: Workspace, row: int, name: str | None, before: str) -> tuple[str, Answer]:
    """The adapter chosen in a row, and what fills its weight: that which its file names.

    Args:
        before: the adapter that the weight was filled for.
    """
    from ..common.tensor_files import read_metadata

    if not name or name == before:
        return name or "", {}
    try:
        metadata = read_metadata(inside(workspace, name, ("outputs",)))
    except UserError:
        return name, {}
    return name, {f"weight {row}": default_weight(metadata)}


# --- drawing --------------------------------------------------------------------------------------


def _read(workspace: Workspace, given: Sequence[Any]) -> tuple[list[Variant], str]:
    """What is to be drawn, and the subject to score against. Raises UserError."""
    given = list(given)
    names, weights = given[:ROWS], given[ROWS : 2 * ROWS]
    kinds, rest = given[2 * ROWS : 2 * ROWS + 3], given[2 * ROWS + 3 :]
    base_too, grid, checkpoints, photos = rest[:4]
    typed: dict[str, Any] = dict(zip(NAMES, rest[4:], strict=True))
    values, mistakes = read_form(InferenceSettings, typed)
    if mistakes:
        raise UserError("; ".join(f"{label_of(OPTIONS[n])} {what}" for n, what in mistakes.items()))
    files = [usable(workspace, name) if name else None for name in names]
    values["adapter"] = weighted(list(zip(files, weights, strict=True)))
    if values["adapter"]:
        values |= _switched(workspace, files, dict(zip(SWITCHES, kinds, strict=True)))
    elif not values.get("pretrained_model_name_or_path"):
        raise UserError("Choose an adapter, or a base model under More settings.")
    try:
        several = [float(word) for word in str(grid or "").replace(",", " ").split()]
    except ValueError:
        raise UserError("weights must be numbers, such as 0.5 0.8 1") from None
    settings = settings_from(workspace, values)
    columns = variants(
        workspace, settings, base_too=base_too, weights=several, checkpoints=checkpoints
    )
    return columns, str(photos or "")


def _switched(
    workspace: Workspace, files: Sequence[str | None], on: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The groups of layers that are switched off, of those that the adapters have."""
    from ..adapters.file import read_adapter
    from ..adapters.groups import places_of

    there = {
        place for file in files if file for place in places_of(read_adapter(workspace.root / file))
    }
    off: dict[str, tuple[str, ...]] = {}
    for kind, known in SWITCHES.items():
        groups = {place.group(kind) for place in there}
        shown = groups & set(known) if known else (groups if on[kind] else set())
        if left := sorted(shown - set(on[kind])):
            off[kind] = tuple(f"{name}=0" for name in left)
    return off


def drawn(workspace: Workspace, given: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Notes and the result so far, column by column."""
    try:
        columns, photos = _read(workspace, given)
        done: list[Column] = []
        rows: list[str] = []
        unscored: list[str] = []
        for number, variant in enumerate(columns):
            yield (
                say(note=f"Drawing {variant.label} ({number + 1} of {len(columns)}) …"),
                (view("draw", columns=done, rows=rows) if done else ""),
            )
            paths = draw(variant.settings)
            if not rows:
                rows = _labels(paths)
            scores: tuple[str, ...] = ()
            try:
                scores = score_pictures(workspace, paths, photos) if photos else ()
            except UserError as error:  # such as a CLIP model that is not on this machine
                unscored, photos = [str(error)], ""
            pictures = tuple(workspace.relative(path.resolve()) for path in paths)
            merged = bool((read_recipe(paths[0]) or {}).get("merged"))
            command = command_of(with_values(variant.settings, no_merge=not merged))
            done.append(Column(variant.label, pictures, command, scores))
        yield say(mistakes=unscored), view("draw", columns=done, rows=rows)
    except Stopped:
        return
    except UserError as error:
        yield say(mistakes=[str(error)]), gr.skip()


def _labels(paths: Sequence[Path]) -> list[str]:
    """Prompt and seed of each row, from the pictures' own recipes."""
    recipes = [read_recipe(path) or {} for path in paths]
    return [f"{recipe.get('prompt', '')} · seed {recipe.get('seed', '')}" for recipe in recipes]


def restored(workspace: Workspace, path: str | None) -> tuple[Any, ...]:
    """A message, the accordion of more adapters, each row's adapter, the first one's blocks, and
    what fills the fields in FILLED as a picture was drawn with them."""
    same = (*[gr.skip()] * (ROWS + 3), {})
    if not path:
        return gr.skip(), *same
    try:
        recipe = read_recipe(Path(path))
    except UserError as error:
        return say(mistakes=[str(error)]), *same
    if recipe is None:
        return say(mistakes=["This picture has no recipe: it was not drawn here."]), *same
    values, adapters, missing = values_of_recipe(workspace, recipe)
    padded = [*adapters, *[("", 1.0)] * ROWS][:ROWS]
    blocks = _blocks(workspace, padded[0][0])
    first = next((a for a in recipe.get("adapters") or [] if isinstance(a, dict)), {})
    off = {kind: [n for n, w in (first.get(kind) or {}).items() if w == 0] for kind in SWITCHES}
    filled = [
        *(name for name, _ in padded),
        *(weight for _, weight in padded),
        *([n for n in known or blocks if n not in off[kind]] for kind, known in SWITCHES.items()),
        *(field_values(InferenceSettings, values)[name] for name in NAMES),
    ]
    return (
        say(mistakes=missing) if missing else say(note="The form holds this picture's recipe."),
        gr.Accordion(open=True) if len(adapters) > 1 else gr.skip(),
        *(name for name, _ in padded),
        tuple(blocks),
        gr.CheckboxGroup(choices=blocks),
        dict(zip(FILLED, filled, strict=True)),
    )
