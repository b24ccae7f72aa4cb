"""A run's model card: README.md beside its adapter, as the hub shows it.

It contains base, prompt, factors, parameters, how to load the adapter with and without the package,
and shows the validation grid and scores where there are some. No path of this machine gets in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters.layout import ADAPTER_FILE
from ..common.own_files import without_mark, write_result
from ..common.paths import is_local
from ..common.run_record import RunRecord, read_run_record_or_none
from ..common.text_files import read_text
from ..evaluation.prompts import article
from ..formats.targets import targets_of

CARD = "README.md"
GRID = "validation/grid.png"
SCORES = ("results.md", "evaluation/results.md")


def write_model_card(
    run_dir: Path | str,
    *,
    repo_id: str | None = None,
    license: str | None = None,
) -> Path:
    """Write `run_dir/README.md` from what the run left there; replaced whole if it is there.

    Args:
        repo_id: where it will be on the hub, for the lines that load it; by default the folder's
            name.
        license: an identifier such as "openrail++"; the owner's to choose, so none is made up.

    Raises:
        UserError: no readable adapter in the folder.
    """
    folder = Path(run_dir)
    text = card_text(folder, repo_id, license)
    return write_result(folder / CARD, text)


def card_text(folder: Path, repo_id: str | None = None, license: str | None = None) -> str:
    """The card of a run's folder, Markdown with the hub's YAML head."""
    from ..adapters.file import read_adapter

    adapter = read_adapter(folder)
    metadata, title = adapter.metadata, folder.resolve().name
    counts = {
        name: (len(adapter.method.by_layer(tensors := adapter.component_tensors(name))),
               sum(t.numel() for t in tensors.values()))
        for name in adapter.configs
    }  # fmt: skip
    size = (folder / ADAPTER_FILE).stat().st_size
    parts = [
        _head(metadata, license),
        f"# {plain(title)}\n",
        _introduction(adapter, metadata),
        _facts(adapter, metadata, counts, size, read_run_record_or_none(folder)),
        _how_to_load(repo_id or title, adapter),
    ]
    if (folder / GRID).is_file():
        parts.append(f"## Pictures\n\n![validation pictures by step]({GRID})\n")
    table = next((read_text(folder / n) for n in SCORES if (folder / n).is_file()), None)
    if table:
        parts.append(f"## Scores\n\n{without_mark(table).strip()}\n")
    return "\n".join(parts)


def public_base(metadata: Mapping[str, str]) -> str | None:
    """The base's hub name; None for a folder of this machine, which a card must not show."""
    base = metadata.get("base_model", "")
    return base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not is_local(base) else None


def _head(metadata: Mapping[str, str], license: str | None) -> str:
    # JSON strings are YAML strings, so that no prompt can end the head early.
    lines = ["---"]
    if base := public_base(metadata):
        lines += [f"base_model: {json.dumps(base)}", "base_model_relation: adapter"]
    if license:
        lines.append(f"license: {json.dumps(license)}")
    if prompt := metadata.get("instance_prompt"):
        lines.append(f"instance_prompt: {json.dumps(prompt, ensure_ascii=False)}")
    lines += ["library_name: diffusers", "pipeline_tag: text-to-image", "tags:"]
    lines += [f"- {tag}" for tag in ("text-to-image", "diffusers", "dreambooth", "diffusekrona")]
    return "\n".join([*lines, "---", ""])


def _introduction(adapter: Any, metadata: Mapping[str, str]) -> str:
    base = public_base(metadata) or Path(metadata.get("base_model", "")).name
    title = adapter.method.title
    text = f"{article(title).capitalize()} {title} adapter"
    text += f" for `{plain(base)}`" if base else ""
    if prompt := metadata.get("instance_prompt"):
        text += f", trained by DreamBooth. Prompt it with `{plain(prompt)}`"
    return text + ".\n"


def _facts(
    adapter: Any,
    metadata: Mapping[str, str],
    counts: Mapping[str, tuple[int, int]],
    size: int,
    run: RunRecord | None,
) -> str:
    rows = [("base family", metadata.get("base_family"))]
    for name, config in adapter.configs.items():
        layers, numbers = counts[name]
        rows.append(
            (name, f"{layers} layers, {numbers:,} parameters, {adapter.method.describe(config)}")
        )
    rows.append(("file", f"{size / 1e6:.2f} MB"))
    for key in ("steps", "learning_rate", "resolution", "seed"):
        rows.append((key.replace("_", " "), metadata.get(key)))
    if run is not None:
        rows.append(("trained in", _duration(run.seconds_training)))
        rows.append(("on", run.device))
    body = "\n".join(f"| {name} | {plain(value)} |" for name, value in rows if value)
    return f"| | |\n|---|---|\n{body}\n"


def _how_to_load(name: str, adapter: Any) -> str:
    from ..bases.families import FAMILIES

    metadata = adapter.metadata
    base = public_base(metadata) or "BASE"
    prompt = json.dumps(metadata.get("instance_prompt") or "a photo", ensure_ascii=False)
    text = f"""## Use it

With DiffuseKronA installed:

```python
from diffusers import DiffusionPipeline
from diffusekrona import load_adapter

pipe = DiffusionPipeline.from_pretrained({json.dumps(base)})
load_adapter(pipe, {json.dumps(ADAPTER_FILE)})  # downloaded from {plain(name)}
image = pipe({prompt}).images[0]
```
"""
    if adapter.method.merging_code and not _has_slices(adapter):
        text += f"""
Without it, merged into the pipeline's weights:

```python
{adapter.method.merging_code(adapter.configs, ADAPTER_FILE)}
```
"""
    formats = _formats(adapter)
    if "merged" in formats:
        text += f"""
As a whole model, for any other program:
`python -m diffusekrona.convert {ADAPTER_FILE} {_merged_name(metadata)} --to merged --base BASE`.
"""
    family = FAMILIES.get(adapter.base_family or "")
    if family and not (family.files or family.block_layers):
        return text  # whose layers no other program's file names
    if "lora" in formats:
        text += "As an exactly equal LoRA, for plain `pipe.load_lora_weights`: `--to lora`.\n"
    if _is_transformer(metadata):
        text += "For ComfyUI: `--to lokr`.\n" if "lokr" in formats else ""
        toolkit = "For ai-toolkit: `--to lora-ai-toolkit`.\n"
        return text + (toolkit if "lora-ai-toolkit" in formats else "")
    others = " or ".join(f"`--to {name}`" for name in ("lokr", "lora-kohya") if name in formats)
    return text + (f"For ComfyUI, Forge, A1111 and InvokeAI: {others}.\n" if others else "")


def _formats(adapter: Any) -> list[str]:
    """Targets of the converter that hold the adapter exactly: LoKr has one product per layer, in
    torch.kron's order."""
    from ..krona import KronAConfig

    kinds = set(adapter.method.formats)
    for config in adapter.configs.values():
        if isinstance(config, KronAConfig) and (config.terms > 1 or config.output_order != "kron"):
            kinds.discard("lokr")
    return targets_of(*kinds)


def _has_slices(adapter: Any) -> bool:
    """Whether layers are slices of the base's, which only `load_adapter` finds there."""
    from ..bases.families import FAMILIES

    family = FAMILIES.get(adapter.base_family or "")
    names = adapter.method.by_layer(adapter.tensors)
    return family is not None and any(family.fused_part(name) for name in names)


def _merged_name(metadata: Mapping[str, str]) -> str:
    """A folder for a family that is not written as one file."""
    from ..bases.families import FAMILIES

    family = FAMILIES.get(metadata.get("base_family", ""))
    return "merged" if family and family.files is None else "model.safetensors"


def _is_transformer(metadata: Mapping[str, str]) -> bool:
    """Whether other programs' files name the base's layers as diffusers does."""
    from ..bases.families import FAMILIES

    family = FAMILIES.get(metadata.get("base_family", ""))
    return family is not None and bool(family.block_layers)


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def plain(text: object) -> str:
    """One line that ends no table cell, code span or heading."""
    return " ".join(str(text).split()).replace("|", "/").replace("`", "'")
