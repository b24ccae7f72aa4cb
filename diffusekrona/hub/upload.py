"""A run's upload to the Hugging Face hub, with its model card.

    write_model_card(run_dir)           README.md beside adapter.safetensors
    push_to_hub(run_dir, "me/dog")      the adapter, the card, its grid; nothing else

Neither is ever needed. Only what a reader can use is uploaded: no training state, no logs, no
settings with this machine's paths. `HF_ENDPOINT` and the hub's login are huggingface_hub's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.layout import ADAPTER_FILE
from ..common.errors import UserError, reason_of
from ..common.files import temporary_folder
from ..common.own_files import write_result
from ..evaluation.choice_settings import BEST
from .card import CARD, GRID, plain, write_model_card

if TYPE_CHECKING:
    from ..formats.conversion import Report

__all__ = ["push_conversion", "push_to_hub", "write_model_card"]
SHARED = (CARD, GRID, ADAPTER_FILE, BEST)  # by name: the folder may hold files of others


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
        UserError: no such name possible, no login, no network; reported in one line.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    folder = Path(folder)
    if not any(folder.glob("*.safetensors")) and not (folder / "model_index.json").is_file():
        raise UserError(f"{folder} contains nothing to upload: no .safetensors file and no model.")
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
        reason = reason_of(error)
        raise UserError(f"Cannot upload to {repo_id!r}: {reason} ({folder} is kept).") from error
    return str(repo)


def push_conversion(report: Report, repo_id: str, *, private: bool = False) -> str:
    """Upload what a conversion wrote, with a short card. Raises UserError."""
    facts = "\n".join(f"- {line}" for line in report.lines() if not line.startswith("error"))
    facts = facts.replace(str(report.destination), report.destination.name)
    card = (
        "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\ntags:\n- text-to-image\n"
        f"- diffusekrona\n---\n\n# {plain(report.destination.stem)}\n\n"
        f"{report.target} for {report.family or 'Stable Diffusion'}, converted with DiffuseKronA:"
        f"\n\n{facts}\n"
    )
    if report.destination.is_dir():
        if not (report.destination / CARD).exists():
            write_result(report.destination / CARD, card)
        return push_to_hub(report.destination, repo_id, private=private, patterns=("*",))
    with temporary_folder() as folder:
        shutil.copyfile(report.destination, folder / report.destination.name)
        write_result(folder / CARD, card)
        return push_to_hub(folder, repo_id, private=private, patterns=("*",))
