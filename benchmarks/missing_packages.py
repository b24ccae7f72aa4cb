"""Print what this Python lacks of gpu-requirements.txt: absent, or of a version that does not suit.

    python benchmarks/missing_packages.py     (gpu.sh calls it)

What suits is said by pyproject.toml and by the packages that are there, in their own requirements;
it is run again after an installation, since a package that is new may need others in turn.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = ("pytest",)  # beside what the package depends on


def missing() -> list[str]:
    """The pins, "name==version" each, that are to be installed."""
    lines = (HERE / "gpu-requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = {_plain(line.partition("==")[0]): line for line in lines if "==" in line}
    try:
        from packaging.requirements import Requirement
    except ImportError:  # with it the rest can be told
        return [pins["packaging"]]
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    todo = [*project["project"]["dependencies"], *PROGRAMS]
    wanted, seen = {}, set()
    while todo:
        need = Requirement(todo.pop())
        name = _plain(need.name)
        if name not in pins or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue  # torch is there, and stays; what has no pin is not needed
        try:
            found = distribution(name)
        except PackageNotFoundError:
            wanted[name] = pins[name]
            continue
        if not need.specifier.contains(found.version, prereleases=True):
            wanted[name] = pins[name]
        if name not in seen:
            seen.add(name)
            todo += found.requires or []
    return sorted(wanted.values())


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    print("\n".join(missing()))
