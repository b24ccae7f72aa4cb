"""What the documents say of results and files is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INTERVAL = re.compile(r"\[[-+]?\d\.\d+, [-+]?\d\.\d+\] \|")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    missing = [
        link
        for link in links
        if "://" not in link and not (document.parent / link).resolve().exists()
    ]
    assert missing == []


def test_tables_with_intervals_are_the_studies_own() -> None:
    told = [
        line
        for document in (ROOT / "README.md", ROOT / "docs" / "studies.md")
        for line in document.read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and INTERVAL.search(line)
    ]
    written = {
        line
        for results in (ROOT / "docs" / "studies").glob("*/results.md")
        for line in results.read_text(encoding="utf-8").splitlines()
    }
    assert len(told) > 50
    assert [line for line in told if line not in written] == []
