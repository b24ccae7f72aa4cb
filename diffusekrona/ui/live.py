"""The base that the page draws with, kept in memory, and the adapters on it: swapped, live or
merged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import inference
from ..adapters.groups import GroupWeights, enable_adapters, set_group_weights
from ..adapters.mixing import WeightedAdapter, apply_adapters, merge_for_now, read_adapters
from ..bases.families import components_of
from ..bases.loading import quiet_libraries
from ..common.devices import process_state
from ..common.settings import build
from ..krona import unload
from ..sampling.settings import InferenceSettings

Files = tuple[tuple[str, int], ...]  # adapters by path and time of change


@dataclass
class Live:
    """A base with adapters live, or merged for now.

    Attributes:
        scheduler: the base's own.
        files: the adapters on it; None if putting them on it failed.
        weights: of the last picture that was not the base's.
        undo: makes merged adapters live again.
    """

    pipeline: Any
    scheduler: Any
    files: Files | None
    weights: Any = None
    undo: Callable[[], None] | None = None

    def carry(self, adapters: Sequence[WeightedAdapter], files: Files) -> None:
        """Put these adapters on the base in place of those that are on it.

        Raises:
            UserError: one does not fit the base.
        """
        if files == self.files:
            return
        self.live()
        self.files = self.weights = None
        for part in components_of(self.pipeline).values():
            unload(part)
        apply_adapters(self.pipeline, adapters, merge=False)
        self.files = files

    def weigh(self, adapters: Sequence[WeightedAdapter], merges: bool) -> bool:
        """Set the adapters' weights, and merge those that are drawn with a second time; whether
        they are merged."""
        weights = [(one.weight, str(one.groups or "")) for one in adapters]
        left_alone, bare = weights == self.weights, not any(one.weight for one in adapters)
        if self.undo and merges and left_alone:
            return True
        self.live()
        for number, one in enumerate(adapters):
            groups = one.groups or GroupWeights()
            name = f"adapter_{number}"
            set_group_weights(self.pipeline, name, groups, one.weight, allow_unknown=True)
        for part in components_of(self.pipeline).values():
            enable_adapters(part, not bare)
        if not bare:
            self.weights = weights
            if merges and left_alone:
                with contextlib.suppress(ValueError):  # quantised weights: they stay live
                    self.undo = merge_for_now(self.pipeline)
        return self.undo is not None

    def live(self) -> None:
        """The adapters beside the base again, whose weights come back bit for bit."""
        if self.undo:
            self.undo()
        self.undo = None


Named = tuple[tuple[str, Any], ...]  # settings by name
_loaded: dict[tuple[str, Files, Named, Named], Live] = {}  # one base at a time is in memory


def loaded(base: str, files: Files, reading: Named, options: Named) -> Live:
    """The base with adapters live: the one in memory, or loaded after that has been freed."""
    key = (base, files, reading, options)
    if key not in _loaded:
        forget()
        _loaded[key] = _load(*key)
    return _loaded[key]


def forget() -> None:
    """Free the base in memory."""
    from diffusers.training_utils import free_memory

    _loaded.clear()
    free_memory()


def _load(base: str, files: Files, reading: Named, options: Named) -> Live:
    quiet_libraries()
    adapters = read_adapters([path for path, _ in files])
    settings = build(InferenceSettings, {**dict(options), "no_merge": True})
    state = process_state(None)
    pipeline, _ = inference.build(
        settings.model, settings.machine, base, adapters, state, None, dict(reading)
    )
    return Live(pipeline, pipeline.scheduler, files)
