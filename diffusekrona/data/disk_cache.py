"""Latents and text states kept on the disk from run to run, filed under what they were made from.

An entry is a safetensors file. Its key names everything that its numbers depend on: the picture's
bytes and how it is cut, or the prompt; the weights, by content; precision, device and library
versions. So nothing has to be cleared when something changes, and an entry that is damaged, or not
what its name says, is only made again. Any number of processes may share a folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import PIL
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..bases.loading import read_json_of
from ..bases.single_file_parts import SingleFile
from ..common.errors import UserError
from ..common.files import replace_whole, write_text
from ..common.json_files import read_json
from ..common.paths import as_path
from ..common.pictures import content_key
from .settings import DataSettings

log = logging.getLogger(__name__)

FORMAT = 5  # of the entries; raised when the same key would be given other numbers
MOST_BYTES = 4 * 2**30  # of all entries; those longest not used go first
_WEIGHTS = (".safetensors", ".bin")
_READ_ERRORS = (OSError, SafetensorError, ValueError, KeyError, RuntimeError)

KINDS = ("latents", "texts")
_reported: set[Path | None] = set()
_ENTRY_NAME = re.compile(r"[0-9a-f]{40}\.safetensors")

Shape = Sequence[int | None]  # None: any size


@dataclass
class Memo:
    """What is remembered of a large file.

    Attributes:
        state: size, time of change in ns, inode.
        check: a hash of the two others, since no reader would otherwise notice damage.
    """

    state: list[int]
    sha256: str
    check: str

    def own_check(self) -> str:
        return _hash(_text([self.state, self.sha256]))


def default_folder() -> Path:
    """Where the hub's client keeps what other libraries derive: beside its downloads, under HF_HOME
    (by default ~/.cache/huggingface/assets/diffusekrona)."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return Path(HF_ASSETS_CACHE) / "diffusekrona"


@dataclass
class DiskCache:
    """Entries in a folder; with `folder` None nothing is kept or found.

    Attributes:
        found: how many entries have been read.
    """

    folder: Path | None
    writable: bool = True
    found: int = 0

    def read(
        self, kind: str, key: Mapping[str, Any], shapes: Mapping[str, Shape]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
        """An entry's tensors, and the notes it was written with; None if there is none to trust.

        Args:
            kind: subfolder, one of `KINDS`.
            key: everything that the numbers depend on, as JSON can hold it.
            shapes: name to shape of the tensors that it must hold, neither more nor less.
        """
        path = self._path(kind, key)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                notes = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            _check(tensors, notes, _text(key), shapes)
        except _READ_ERRORS as error:
            log.warning("%s is not used (%s): made again", path, error)
            return None
        with suppress(OSError):
            os.utime(path)  # used now: `shrink` takes the others first
        self.found += 1
        return tensors, notes

    def write(
        self, kind: str, key: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], **notes: str
    ) -> None:
        """Keep an entry. A folder that cannot be written costs one warning and nothing else."""
        path = self._path(kind, key)
        if path is None or not self.writable:
            return
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        notes |= {"key": _text(key), "checksum": _checksum(tensors)}
        try:
            with replace_whole(path) as temporary:
                save_file(tensors, temporary, notes)
        except (OSError, UserError, SafetensorError) as error:
            self._give_up(error)

    def shrink(self, most: int = MOST_BYTES) -> None:
        """Delete the entries longest not used until they hold at most `most` bytes together.

        Only entries: other files in the folder are neither counted nor touched.
        """
        if self.folder is None:
            return
        entries = []
        for kind in KINDS:
            for path in (self.folder / kind).glob("*.safetensors"):
                with suppress(OSError):  # another process may have taken it away
                    status = path.lstat()
                    if _ENTRY_NAME.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
                        entries.append((status.st_mtime, status.st_size, path))
        held = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if held <= most:
                return
            if _is_entry(path):
                with suppress(OSError):
                    path.unlink()
                    held -= size

    def file_digest(self, path: Path) -> str:
        """SHA-256 of a file. Of a large one it is remembered until size or time of change differ;
        of the hub's downloads it is the name they are stored under."""
        real = path.resolve()
        if real.parent.name == "blobs" and len(real.name) == 64:
            return real.name
        status = real.stat()
        state = [status.st_size, status.st_mtime_ns, status.st_ino]
        if self.folder is None or status.st_size < 1 << 20:
            return content_key(real)
        memo = self.folder / "weights" / f"{_hash(str(real))}.json"
        if memo.is_file():
            try:
                known = read_json(memo, Memo)
                if known.state == state and known.check == known.own_check():
                    return known.sha256
            except UserError as error:
                log.warning("%s: computed again", error)
        digest = content_key(real)
        if self.writable:
            try:
                known = Memo(state, digest, "")
                known.check = known.own_check()
                write_text(memo, json.dumps(vars(known)))
            except (OSError, UserError) as error:
                self._give_up(error)
        return digest

    def fingerprint(
        self, base: str, subfolder: str, revision: str | None = None, weights: bool = True
    ) -> str | None:
        """A hash over all files of one part of a base; None while they are not on this machine.

        Args:
            weights: whether the part is only there if it has weights.
        """
        if isinstance(base, SingleFile) and weights:
            config = read_json_of(base, subfolder, "config.json")
            return _hash(_text([self.file_digest(Path(base)), config])) if self.folder else None
        folder = _part_folder(base, subfolder, revision)
        if self.folder is None or folder is None or not folder.is_dir():
            return None
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if not any(path.suffix in _WEIGHTS for path in files) and (weights or not files):
            return None
        return _hash(_text([[path.name, self.file_digest(path)] for path in files]))

    def weights_digest(
        self, base: str, subfolder: str, revision: str | None, variant: str | None
    ) -> str | None:
        """A hash over the weights that loading one part of a base reads; None while they are not
        on this machine. Other files of the part, and weights of other variants, do not count."""
        if isinstance(base, SingleFile):
            return self.file_digest(Path(base))
        folder = _part_folder(base, subfolder, revision)
        if folder is None or not folder.is_dir():
            return None
        files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)
        own = [path for path in files if variant and f".{variant}." in path.name]
        chosen = own or [path for path in files if path.name.count(".") == 1] or files
        safe = [path for path in chosen if path.suffix == ".safetensors"]
        digests = [self.file_digest(path) for path in safe or chosen]
        return _hash(_text(digests)) if digests else None

    def _path(self, kind: str, key: Mapping[str, Any]) -> Path | None:
        return self.folder and self.folder / kind / f"{_hash(_text(key))}.safetensors"

    def _give_up(self, error: Exception) -> None:
        self.writable = False
        if self.folder not in _reported:  # a run opens its cache more than once
            _reported.add(self.folder)
            log.warning("latents and text states are not cached: %s", error)


OFF = DiskCache(None)


def cache_of(data: DataSettings) -> DiskCache:
    """The cache that a run uses."""
    if data.no_latents_cache:
        return DiskCache(None)
    return DiskCache(data.latents_cache_dir or default_folder())


def report_other_base(base: str, adapters: Sequence[Any]) -> None:
    """Say it in one line if a single-file base is not the one that an adapter was trained on.

    Args:
        base: as the user named it.
        adapters: `adapters.mixing.WeightedAdapter`s.
    """
    path = as_path(base)
    trained_on = {mixed.adapter.metadata.get("base_sha256") for mixed in adapters} - {None}
    if (
        trained_on
        and path.is_file()
        and {DiskCache(default_folder()).file_digest(path)} != trained_on
    ):
        names = {Path(mixed.adapter.metadata.get("base_model", "")).name for mixed in adapters}
        log.warning(
            "%s is another checkpoint than the one that the adapter was trained on (%s).",
            path.name,
            ", ".join(sorted(names)),
        )


def origin(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What numbers depend on beside weights and input, down to their last bit."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        where = f"{device.type} {capability}, {torch.get_num_threads()} threads"
    libraries = (torch, diffusers, transformers, PIL)
    versions = {library.__name__: library.__version__ for library in libraries}
    return {"format": FORMAT, "device": where, "dtype": str(dtype), **versions}


def _part_folder(base: str, subfolder: str, revision: str | None) -> Path | None:
    """The folder of one part: a local base's, or that of the hub's files on this machine."""
    if isinstance(base, SingleFile):
        base = base.tokenizers  # of its models the file itself counts
    if Path(base).is_dir():
        return Path(base) / subfolder
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "tokenizer_config.json"):
        inside = f"{subfolder}/{name}" if subfolder else name
        found = try_to_load_from_cache(base, inside, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _is_entry(path: Path) -> bool:
    """Whether a file was written by us: its name is the hash of the key inside it."""
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
    except _READ_ERRORS:
        return False
    return "checksum" in notes and path.stem == _hash(notes.get("key", ""))


def _check(
    tensors: Mapping[str, torch.Tensor],
    notes: Mapping[str, str],
    key: str,
    shapes: Mapping[str, Shape],
) -> None:
    """Raise ValueError, with the reason, for an entry that cannot be trusted."""
    if notes.get("key") != key:
        raise ValueError("it belongs to something else")
    if tensors.keys() != shapes.keys():
        raise ValueError("it holds other tensors")
    for name, tensor in tensors.items():
        fits = [want in (None, have) for want, have in zip(shapes[name], tensor.shape, strict=True)]
        if not all(fits) or not torch.isfinite(tensor).all():
            raise ValueError(f"its {name} has a wrong shape or is not finite")
    if notes.get("checksum") != _checksum(tensors):
        raise ValueError("it is damaged")


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _text(key: Any) -> str:
    return json.dumps(key, sort_keys=True, ensure_ascii=True)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]
