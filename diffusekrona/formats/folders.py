"""Settings files of the neighbours' folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.errors import UserError, shortened


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of settings. Raises UserError for one that cannot be read or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Cannot read {path}: {shortened(error, 200)}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold settings.")
    return content
