"""Prompts as other programs write them: what this one would take literally."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

log = logging.getLogger(__name__)

_SYNTAX = (
    (re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,200}>"), "names of adapters"),
    (re.compile(r"[(\[][^()\[\]]{1,200}:\s*[+-]?\d+(?:\.\d+)?\s*[)\]]"), "weights"),
    (re.compile(r"\(\([^()]{1,200}\)\)"), "weights"),
    (re.compile(r"\b[a-z][^\s()]{1,80}[+-]{2,}(?=[\s,.]|$)"), "weights"),
    (re.compile(r"\([^()]{1,200}\)\s?[+-]?\d*\.\d+"), "weights"),
    (re.compile(r"\[[^\[\]|]{1,200}\|[^\[\]]{1,200}\]"), "alternatives"),
    (re.compile(r"\bembedding:[\w.-]{1,80}"), "embeddings"),
    (re.compile(r"(?:^|\s)(?:BREAK|AND)(?=\s|$)"), "the separators BREAK and AND"),
)


def literal_syntax(prompt: str) -> str | None:
    """One line if a prompt uses another program's syntax, such as `(word:1.3)`; None if not."""
    for pattern, what in _SYNTAX:
        if found := pattern.search(prompt[:10_000]):
            return (
                f"{what} in prompts are not supported, {found[0].strip()!r} is read as plain text "
                f"in {prompt[:80]!r}"
            )
    return None


def warn_of_syntax(prompts: Iterable[str]) -> None:
    """Warn once, of the first of `prompts` that uses another program's syntax."""
    for line in filter(None, map(literal_syntax, prompts)):
        log.warning("%s", line)
        return
