"""Which files the page may list, serve and write: those in data/ and outputs/, and no others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError
from ..common.files import slug
from ..common.pictures import PICTURE_SUFFIXES
from ..common.run_record import RUN_SETTINGS, STATE_FILE, TRAIN_LOG

ROOMS = ("data", "outputs")
SERVED = (*PICTURE_SUFFIXES, ".safetensors", ".yaml", ".json", ".jsonl", ".html", ".md")
_DEEPEST = 5  # folders below outputs/ that are searched for runs and adapters
_MARKS = (RUN_SETTINGS, TRAIN_LOG)  # of a run's folder


@dataclass(frozen=True)
class Workspace:
    """The folder that holds data/ and outputs/."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    def relative(self, path: Path) -> str:
        """A path as users write it, from the workspace on."""
        return path.relative_to(self.root).as_posix()


def inside(workspace: Workspace, name: str | Path, rooms: tuple[str, ...] = ROOMS) -> Path:
    """The path that `name`, from the workspace on, leads to, if it stays in one of `rooms`.

    Links are followed first, so none leads out.

    Raises:
        UserError: it leads elsewhere.
    """
    try:
        path = (workspace.root / name).resolve()
        homes = [(workspace.root / room).resolve() for room in rooms]
    except (OSError, ValueError, RuntimeError):  # null characters, loops of links
        path, homes = Path("/"), []
    if not any(path == home or home in path.parents for home in homes):
        raise UserError(f"{name} is not in {' or '.join(f'{room}/' for room in rooms)}.")
    return path


def unreadable(workspace: Workspace, room: str) -> str:
    """That data/ or outputs/ is there and cannot be read; "" if it can."""
    try:
        with os.scandir(workspace.root / room) as entries:
            next(entries, None)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{room}/ cannot be read: {error.strerror}."
    return ""


def served(workspace: Workspace, name: str) -> Path | None:
    """The file that the page serves under `name`; None if it serves none."""
    try:
        path = inside(workspace, name)
    except UserError:
        return None
    hidden = any(part.startswith(".") for part in path.relative_to(workspace.root.resolve()).parts)
    return path if os.path.isfile(path) and path.suffix.lower() in SERVED and not hidden else None


def safe_name(text: str) -> str:
    """A folder's name from any text: lower-case words joined by hyphens.

    Raises:
        UserError: no letter or digit is left.
    """
    if not any(character.isalnum() for character in text):
        raise UserError("subject: type a name with letters or digits.")
    return slug(text)


def subjects(workspace: Workspace) -> list[str]:
    """The folders of data/ that hold pictures of a subject, in their folder input/."""
    return sorted(path.name for path in _folders(workspace.data) if os.path.isdir(path / "input"))


def first_subject(workspace: Workspace) -> str:
    """The subject that the page begins with; a name for the first one, so that dropping pictures is
    enough."""
    return next(iter(subjects(workspace)), "thing")


def run_folders(workspace: Workspace) -> list[Path]:
    """The runs in outputs/, newest first."""
    found = [path for path, names in _walk(workspace.outputs) if set(_MARKS) & set(names)]
    return sorted(found, key=_changed, reverse=True)


def adapter_files(workspace: Workspace) -> list[str]:
    """Every .safetensors file in outputs/ but training states, from the workspace on; newest
    first."""
    files = [
        path / name
        for path, names in _walk(workspace.outputs)
        for name in names
        if name.endswith(".safetensors") and name != STATE_FILE
    ]
    files = [file for file in files if not file.is_symlink()]
    return [workspace.relative(file) for file in sorted(files, key=_changed, reverse=True)]


def _folders(folder: Path) -> list[Path]:
    try:
        entries = list(folder.iterdir())
    except OSError:
        return []
    return [e for e in entries if os.path.isdir(e) and not e.is_symlink() and e.name[:1] != "."]


def _walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of their files; neither hidden folders nor links are entered."""
    for folder, folders, names in os.walk(top):
        path = Path(folder)
        deep = len(path.relative_to(top).parts) >= _DEEPEST
        folders[:] = [] if deep else [f for f in folders if f[:1] != "."]
        yield path, names


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
