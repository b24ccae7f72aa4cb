"""Bring downloaded subjects into the layout that the scripts read: data/<subject>/input/.

    python -m diffusekrona.format_datasets ~/Downloads/dreambooth
    python -m diffusekrona.format_datasets ~/Pictures/my_cat --dry_run

SOURCE is a folder with a folder of pictures for each subject (the public DreamBooth dataset's
layout), or one subject's folder. Pictures, and captions that belong to them, are copied; hidden
files, `generated` folders and whatever is not a readable picture are left out and listed.
All is checked before anything is written, and running it twice changes nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffusekrona.common.command_line import parse
from diffusekrona.common.errors import UserError, exit_on_user_error, writing
from diffusekrona.common.files import replace_whole
from diffusekrona.common.paths import as_path
from diffusekrona.common.pictures import PICTURE_SUFFIXES, content_key
from diffusekrona.common.settings import setting
from diffusekrona.data.caption_files import CAPTION_SUFFIXES
from diffusekrona.data.folder import find_pictures

_NO_SUBJECTS = ("generated", "__MACOSX")
_REMOVED_FOLDERS = (*_NO_SUBJECTS, ".ipynb_checkpoints")
_DESCRIPTIONS = (".json", ".jsonl", ".toml", ".yaml", ".yml")  # of what to train on, and captions
# Credits have to stay with the pictures, whatever --clean thinks of them.
_DOCUMENTS = ("license", "licence", "notice", "credit", "readme", "references", "attribution")


@dataclass
class SubjectFiles:
    """What is to be done for one subject; made before anything is touched."""

    name: str
    target: Path
    pictures: int = 0
    transfers: list[tuple[Path, Path]] = field(default_factory=list)  # from, to
    there_already: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FormatSettings:
    """What is brought where."""

    source: Path = setting(
        positional=True, metavar="SOURCE", help="Folder of subjects, or one subject's folder."
    )
    data_dir: Path = setting(
        Path("data"), metavar="FOLDER", help="Copy the subjects to this folder."
    )
    subjects: tuple[str, ...] = setting((), metavar="NAME", help="Copy only these.")
    dry_run: bool = setting(False, help="List the changes without making them.")
    move: bool = setting(False, help="Move the files instead of copying them.")
    overwrite: bool = setting(False, help="Replace files there that differ from the source's.")
    clean: bool = setting(
        False,
        help="Delete from data/<subject>/ hidden files, 'generated' folders and files other than "
        "pictures, captions, JSON, YAML, TOML and credits; pictures that cannot be read stay.",
    )


def find_subjects(source: Path, names: Sequence[str] = ()) -> list[tuple[str, Path]]:
    """The subjects in `source`: (name, folder that holds the pictures), sorted by name.

    Raises:
        UserError: `source` is missing, is a file, or has no pictures; a name is not in it.
    """
    if not source.is_dir():
        reason = "is a file: unpack it first, if it is an archive" if source.exists() else "missing"
        raise UserError(f"no folder {source} ({reason}): give the folder that was downloaded")
    nested = source / "dataset"  # where a clone of the public dataset's repository keeps them
    if not _holds_pictures(source) and nested.is_dir():
        source = nested
    own = source.resolve()
    own_name = own.parent.name if own.name == "input" else own.name
    if list(names) in ([], [own_name]):
        for folder in (source, source / "input"):
            if _holds_pictures(folder):
                return [(own_name, folder)]
    subjects = {}
    for child in sorted(source.iterdir()):
        if child.name.startswith(".") or child.name in _NO_SUBJECTS:
            continue
        for folder in (child / "input", child):  # the latter, if both
            if _holds_pictures(folder):
                subjects[child.name] = folder
    if not subjects:
        raise UserError(f"no pictures in {source} or in the folders directly in it")
    missing = [name for name in names if name not in subjects]
    if missing:
        there = ", ".join(subjects)
        raise UserError(f"no pictures of {', '.join(missing)} in {source}; it has {there}")
    return [(name, folder) for name, folder in subjects.items() if not names or name in names]


def _holds_pictures(folder: Path) -> bool:
    """Whether `folder` has a file with a picture's name; a quick look that decodes nothing."""
    if not folder.is_dir():
        return False
    return any(
        child.suffix.lower() in PICTURE_SUFFIXES and not child.name.startswith(".")
        for child in folder.iterdir()
        if child.is_file()
    )


def examine(
    name: str, folder: Path, pictures: list[Path], skipped: list[str], settings: FormatSettings
) -> SubjectFiles:
    """See where a subject's pictures, as `find_pictures(folder)` gave them, would go.

    Raises:
        UserError: a different file is already in the place of one.
    """
    subject = SubjectFiles(name, settings.data_dir / name / "input", len(pictures))
    beside = _same(folder, subject.target.parent)
    subject.notes = [line for line in skipped if not (beside and line.startswith("input: "))]
    files, stems = list(pictures), {picture.stem for picture in pictures}
    for entry in sorted(folder.iterdir()):
        if entry.suffix.lower() in CAPTION_SUFFIXES and not entry.name.startswith("."):
            if entry.name == "metadata.jsonl" or entry.stem in stems:
                files.append(entry)
            else:
                subject.notes.append(f"{entry.name}: not a picture's caption")
    if _same(folder, subject.target):
        subject.there_already = len(files)
        return subject
    if beside and not settings.move:
        subject.notes.insert(
            0, f"{_count(len(files), 'file')} beside input/: add --move to bring them in"
        )
        return subject
    for file in files:
        target = subject.target / file.name
        if not os.path.lexists(target):
            subject.transfers.append((file, target))
        elif target.is_file() and content_key(target) == content_key(file):
            subject.there_already += 1
        elif settings.overwrite and target.is_file():
            subject.transfers.append((file, target))
        else:
            raise UserError(
                f"{target} is already there and differs from {file}: "
                "add --overwrite to replace it, or choose another --data_dir; nothing was changed"
            )
    return subject


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def bring(source: Path, target: Path, move: bool, overwrite: bool) -> None:
    """Copy or move one file atomically.

    Raises:
        UserError: the file cannot be written; another file was created there since it was examined.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Two names that differ in case alone are one file on many disks.
        if os.path.lexists(target) and not overwrite:
            raise UserError(f"{target} is already there: add --overwrite to replace it")
        if move and not source.is_symlink():  # a moved link may lead nowhere
            try:
                os.replace(source, target)
                return
            except OSError as error:
                if error.errno != errno.EXDEV:  # another disk: copy, then remove
                    raise
        with replace_whole(target) as temporary:
            shutil.copyfile(source, temporary)
        if move:
            source.unlink()


def clean(subject: Path, dry_run: bool) -> list[str]:
    """Delete what is neither picture, caption nor credit from a subject's folder and its input/.

    Of folders only `generated` and system leftovers go. Returns the paths deleted.
    """
    removed = []
    for folder in (subject, subject / "input"):
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        stems = {e.stem for e in entries if e.suffix.lower() in PICTURE_SUFFIXES}
        for entry in entries:
            is_folder = entry.is_dir() and not entry.is_symlink()
            is_caption = entry.suffix.lower() in CAPTION_SUFFIXES and entry.stem in stems
            is_junk = not entry.is_dir() and not is_caption and _is_junk(entry)
            if not is_junk and entry.name not in _REMOVED_FOLDERS:
                continue
            removed.append(f"{entry}{os.sep if is_folder else ''}")
            if not dry_run:
                with writing(entry):
                    shutil.rmtree(entry) if is_folder else entry.unlink()
    return removed


def _is_junk(file: Path) -> bool:
    if file.name.startswith("."):
        return not file.name.startswith(".git")
    if file.name.lower().startswith(_DOCUMENTS):
        return False
    return file.suffix.lower() not in (*PICTURE_SUFFIXES, *_DESCRIPTIONS)


def report(subject: SubjectFiles, settings: FormatSettings) -> None:
    """Print what was done (or would be) for one subject."""
    verb = "moved" if settings.move else "copied"
    verb = f"would be {verb}" if settings.dry_run else verb
    done = (
        f"{_count(len(subject.transfers), 'file')} {verb}" if subject.transfers else "nothing to do"
    )
    there = f", {subject.there_already} already there" if subject.there_already else ""
    print(
        f"{subject.name}: {_count(subject.pictures, 'picture')}; {done}{there} -> {subject.target}"
    )
    for line in subject.notes:
        print(f"    left out  {line}")


def main(argv: list[str] | None = None) -> int:
    """Examine every subject, then act; prints what it did. Returns 0.

    Raises:
        UserError: nothing to bring, a file in the way, or a disk that refuses; see the functions.
    """
    settings = parse(
        FormatSettings, argv, prog="diffusekrona.format_datasets", description=__doc__ or ""
    )
    settings = replace(
        settings, source=as_path(settings.source), data_dir=as_path(settings.data_dir)
    )
    found, unusable = [], []
    for name, folder in find_subjects(settings.source, settings.subjects):
        try:
            pictures, skipped = find_pictures(folder)
        except UserError as error:
            if settings.subjects:
                raise
            unusable.append(f"{name}: {error}")
            continue
        found.append(examine(name, folder, pictures, skipped, settings))
    if not found:
        raise UserError("; ".join(unusable))
    transfers = [transfer for subject in found for transfer in subject.transfers]
    # Links first: what they point to may be on the list too, and gone after it was moved.
    transfers.sort(key=lambda transfer: not transfer[0].is_symlink())
    for old, new in [] if settings.dry_run else transfers:
        bring(old, new, settings.move, settings.overwrite)
    for subject in found:
        report(subject, settings)
        for path in clean(subject.target.parent, settings.dry_run) if settings.clean else []:
            print(f"    {'would delete' if settings.dry_run else 'deleted'}  {path}")
    for line in unusable:
        print(line)
    if settings.dry_run:
        print("dry run: nothing was changed")
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
