"""A run that is done, read again from its folder: its checkpoints, and what it was trained on."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..adapters.file import Adapter, read_adapter
from ..adapters.layout import ADAPTER_FILE
from ..common.errors import UserError
from ..common.paths import as_path
from ..common.run_record import RUN_SETTINGS
from ..common.settings_files import read_settings_file
from ..data.captions import with_trigger
from ..data.examples import read_examples
from ..data.holdout import split_held_out
from ..data.settings import DataSettings
from ..data.sources import Source, names_folders, sources_of
from ..evaluation.choice_settings import SubjectSettings, subject_of
from .checkpoint import checkpoints_in, read_settings, what_is_wrong
from .settings import TrainSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """What a run was trained on: photos, held-out ones apart, and what it is called."""

    training: list[Path]
    held_out: list[Path]
    identifier: str
    class_word: str

    @property
    def name(self) -> str:
        return f"{self.identifier} {self.class_word}"


def find_checkpoints(run: Path, every: int | None, with_result: bool = True) -> dict[int, Path]:
    """Step to adapter file, in order: the whole checkpoints, and the run's result.

    Args:
        with_result: whether the result counts; while a run trains it is an earlier one's.

    Raises:
        UserError: there is none, or a result that is damaged.
    """
    found: dict[int, Path] = {}
    for folder in checkpoints_in(run):
        if fault := what_is_wrong(folder):
            log.warning("%s is left out: %s", folder, fault)
        else:
            found[read_settings(folder)[0]] = folder / ADAPTER_FILE
    if with_result and (run / ADAPTER_FILE).is_file():
        # Rather than the checkpoint of its step: it may be an average.
        steps = read_adapter(run / ADAPTER_FILE).metadata.get("steps", "")
        known = re.fullmatch(r"[0-9]{1,18}", steps)
        found[int(steps) if known else max(found, default=0) + 1] = run / ADAPTER_FILE
    if not found:
        raise UserError(
            f"{run} holds no checkpoint and no adapter.safetensors: give the --output_dir of a "
            "training run; --checkpointing_steps says how often it saves one."
        )
    last = max(found)
    return {s: found[s] for s in sorted(found) if every is None or s % every == 0 or s == last}


def read_subject(run: Path, asked: SubjectSettings, adapter: Adapter) -> Subject:
    """The subject as the run's settings have it, or as asked.

    Raises:
        UserError: its pictures are gone, it is one of several and `asked` does not say which, or
            its name cannot be read off the instance prompt.
    """
    there = (run / RUN_SETTINGS).is_file()
    values = read_settings_file(TrainSettings, run / RUN_SETTINGS) if there else {}
    folder = values.get("instance_data_dir") or asked.subject_dir
    if folder is None:
        raise UserError(f"{run} has no {RUN_SETTINGS}: give --subject_dir, the training pictures.")
    own: dict[str, Any] = {f.name: values[f.name] for f in fields(DataSettings) if f.name in values}
    own.pop("masked_loss", None)  # photos are compared as they are
    prompt = values.get("instance_prompt") or adapter.metadata.get("instance_prompt") or ""
    place = Path(folder)
    if asked.subject_dir and not (names_folders(place) and place.exists()):
        place = asked.subject_dir
    own |= {"instance_data_dir": place, "instance_prompt": prompt or "a picture"}
    if asked.holdout_data_dir:
        own |= {"holdout_data_dir": asked.holdout_data_dir, "holdout": 0}
    data, seed = DataSettings(**own, masked_loss=False), values.get("seed", 0)
    trained, held = split_held_out(read_examples(data, seed), data, seed)
    if names_folders(place):  # which are held out depends on the whole run
        source = _one_of(sources_of(data), asked.subject_dir, place)
        trained = [e for e in trained if e.path.parent == source.path]
        held = held if data.holdout_data_dir else [e for e in held if e.path.parent == source.path]
        prompt = with_trigger(source.prompt or prompt, source.trigger)
    else:
        prompt = with_trigger(prompt, data.trigger)
    read = subject_of(prompt) or ("", "")
    identifier, word = asked.identifier or read[0], asked.class_word or read[1]
    if not (identifier and word):
        raise UserError(
            f"The instance prompt {prompt!r} is not of the form 'a sks dog': give --identifier and "
            "--class_word."
        )
    return Subject([e.path for e in trained], [e.path for e in held], identifier, word)


def _one_of(sources: Sequence[Source], asked: Path | None, place: Path) -> Source:
    """The folder of the subject to be measured."""
    folders = {one.path.resolve(): one for one in sources if not one.regularisation}
    if asked is None and len(folders) == 1:
        return next(iter(folders.values()))
    found = asked and folders.get(as_path(asked).resolve())
    if found is None:
        names = ", ".join(map(str, folders))
        raise UserError(f"{place} names several subjects: give --subject_dir, one of {names}.")
    return found
