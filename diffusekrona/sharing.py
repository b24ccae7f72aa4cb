"""A run's model card, and its upload to the Hugging Face hub.

    write_model_card(run_dir)           README.md beside adapter.safetensors
    push_to_hub(run_dir, "me/dog")      the adapter, the card, its grid; nothing else

Neither is ever needed. Only what a reader can use is uploaded: no training state, no logs, no
settings with this machine's paths. `HF_ENDPOINT` and the hub's login are huggingface_hub's own.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .files import write_text

if TYPE_CHECKING:
    from .formats.conversion import Report

ADAPTER = "adapter.safetensors"
CARD = "README.md"
SHARED = (ADAPTER, CARD, "validation/grid.png", "*.safetensors")
SCORES = ("results.md", "evaluation/results.md")


def write_model_card(
    run_dir: Path | str,
    *,
    title: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    scores: Path | str | None = None,
) -> Path:
    """Write `run_dir/README.md` from what the run left there; replaced whole if it is there.

    Args:
        title: by default the folder's name.
        repo_id: where it will lie on the hub, for the lines that load it; by default the title.
        license: an identifier such as "openrail++"; the owner's to choose, so none is made up.
        scores: a `results.md` of `diffusekrona.evaluate`; by default the one in the run's folder.

    Raises:
        UserError: no readable adapter in the folder.
    """
    folder = Path(run_dir)
    text = card_text(folder, title or folder.resolve().name, repo_id, license, scores)
    write_text(folder / CARD, text)
    return folder / CARD


def card_text(
    folder: Path,
    title: str,
    repo_id: str | None = None,
    license: str | None = None,
    scores: Path | str | None = None,
) -> str:
    """The card of a run's folder, Markdown with the hub's YAML head."""
    from .adapter_file import read_adapter

    adapter = read_adapter(folder)
    metadata = adapter.metadata
    counts = {
        name: (len(tensors := adapter.component_tensors(name)) // 2,
               sum(t.numel() for t in tensors.values()))
        for name in adapter.configs
    }  # fmt: skip
    size = (folder / ADAPTER).stat().st_size
    parts = [
        _head(metadata, license),
        f"# {_plain(title)}\n",
        _introduction(adapter, metadata),
        _facts(adapter, metadata, counts, size, _read_run(folder)),
        _how_to_load(repo_id or title, metadata),
    ]
    if (folder / "validation" / "grid.png").is_file():
        parts.append("## Pictures\n\n![validation pictures by step](validation/grid.png)\n")
    found = [Path(scores)] if scores else [folder / name for name in SCORES]
    table = next((p.read_text(encoding="utf-8") for p in found if p.is_file()), None)
    if table:
        parts.append(f"## Scores\n\n{table.strip()}\n")
    return "\n".join(parts)


def public_base(metadata: Mapping[str, str]) -> str | None:
    """The base's hub name; None for a folder of this machine, which a card must not show."""
    base = metadata.get("base_model", "")
    return base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not base.startswith(".") else None


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
    kind = "Kronecker adapter (DiffuseKronA)" if adapter.method == "krona" else "LoRA"
    text = f"A {kind}"
    text += f" for `{_plain(base)}`" if base else ""
    if prompt := metadata.get("instance_prompt"):
        text += f", trained by DreamBooth. Prompt it with `{_plain(prompt)}`"
    return text + ".\n"


def _facts(
    adapter: Any,
    metadata: Mapping[str, str],
    counts: Mapping[str, tuple[int, int]],
    size: int,
    run: Mapping[str, Any],
) -> str:
    rows = [("base family", metadata.get("base_family"))]
    for name, config in adapter.configs.items():
        layers, numbers = counts[name]
        rows.append((name, f"{layers} layers, {numbers:,} parameters, {_factors(config)}"))
    rows.append(("file", f"{size / 1e6:.2f} MB"))
    for key in ("steps", "learning_rate", "resolution", "seed"):
        rows.append((key.replace("_", " "), metadata.get(key)))
    rows.append(("trained in", _duration(run.get("seconds_training"))))
    rows.append(("on", run.get("device")))
    body = "\n".join(f"| {name} | {_plain(value)} |" for name, value in rows if value)
    return f"| | |\n|---|---|\n{body}\n"


def _factors(config: Any) -> str:
    if hasattr(config, "a1"):
        text = f"A ({config.a1}, {config.a2})"
        own = {f"{k} ({a}, {b})" for k, (a, b) in config.factor_pattern.items()}
        text += f", {len(own)} patterns of their own" if own else ""
        text += f", {config.terms} terms" if config.terms > 1 else ""
        return text + (f", {config.output_order} rows" if config.output_order != "kron" else "")
    return f"rank {config.r}"


def _how_to_load(name: str, metadata: Mapping[str, str]) -> str:
    base = public_base(metadata) or "BASE"
    prompt = json.dumps(metadata.get("instance_prompt") or "a photo", ensure_ascii=False)
    return f"""## Use it

With [DiffuseKronA](https://diffusekrona.github.io) installed:

```python
from diffusers import DiffusionPipeline
from diffusekrona import load_adapter

pipe = DiffusionPipeline.from_pretrained({json.dumps(base)})
load_adapter(pipe, {json.dumps(ADAPTER)})  # downloaded from {_plain(name)}
image = pipe({prompt}).images[0]
```

Without it, as a LoRA that is exactly equal, once converted:

```sh
python -m diffusekrona.convert {ADAPTER} lora.safetensors --to lora
```

```python
pipe.load_lora_weights("lora.safetensors")  # plain diffusers
```

For ComfyUI, Forge, A1111 and InvokeAI: `--to lokr`, or `--to merged --base BASE` for a whole model.
"""


def push_to_hub(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    patterns: Sequence[str] = SHARED,
) -> str:
    """Upload a run's adapter, card and grid; returns the repository's address.

    Args:
        repo_id: "name" or "user/name" on the hub; made if it is not there.
        endpoint: another hub than the usual one (else `HF_ENDPOINT`).
        patterns: what of the folder goes along.

    Raises:
        UserError: no such name possible, no login, no network; told in one line.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    folder = Path(folder)
    if not any(folder.glob("*.safetensors")) and not (folder / "model_index.json").is_file():
        raise UserError(f"{folder} holds nothing to share: no .safetensors file and no model.")
    try:
        validate_repo_id(repo_id)
        api = HfApi(endpoint=endpoint, token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repo.repo_id,
            allow_patterns=list(patterns),
            ignore_patterns=["checkpoint*", ".*"],
            commit_message="Upload with DiffuseKronA",
        )
    except Exception as error:  # the hub's client raises some twenty kinds
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"Cannot upload to {repo_id!r}: {line} ({folder} is kept).") from error
    return str(repo)


def push_conversion(report: Report, repo_id: str, *, private: bool = False) -> str:
    """Upload what a conversion wrote, with a short card. Raises UserError."""
    facts = "\n".join(f"- {line}" for line in report.lines() if not line.startswith("error"))
    facts = facts.replace(str(report.destination), report.destination.name)
    card = (
        "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\ntags:\n- text-to-image\n"
        f"- diffusekrona\n---\n\n# {_plain(report.destination.stem)}\n\n"
        f"{report.target} for {report.family or 'Stable Diffusion'}, converted with DiffuseKronA:"
        f"\n\n{facts}\n"
    )
    if report.destination.is_dir():
        if not (report.destination / CARD).exists():
            write_text(report.destination / CARD, card)
        return push_to_hub(report.destination, repo_id, private=private, patterns=("*",))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(report.destination, Path(folder) / report.destination.name)
        write_text(Path(folder) / CARD, card)
        return push_to_hub(folder, repo_id, private=private, patterns=("*",))


def _read_run(folder: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _duration(seconds: Any) -> str | None:
    if not isinstance(seconds, int | float):
        return None
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _plain(text: object) -> str:
    """One line that ends no table cell, code span or heading."""
    return " ".join(str(text).split()).replace("|", "/").replace("`", "'")
