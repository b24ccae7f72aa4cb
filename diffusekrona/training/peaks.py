"""The memory that a run has held, phase by phase, and the device that held it."""

from __future__ import annotations

import platform

import torch

from ..common.cpu_memory import peak_resident


class Peaks:
    """The most memory that this process has held, phase by phase: on the GPU where there is one.

    Of resident memory the system keeps one peak for the whole process: there a phase's is that
    until its end.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: dict[str, int] = {}

    def end(self, phase: str) -> None:
        """The phase that began with the last call, or with the process, is over."""
        self.bytes[phase] = max(self.bytes.get(phase, 0), self._now())
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident()

    def total(self) -> str:
        """The largest so far, for people."""
        return self._words(max(self._now(), *self.bytes.values(), 0))

    def in_words(self) -> dict[str, str]:
        return {phase: self._words(peak) for phase, peak in self.bytes.items()}

    def _words(self, peak: int) -> str:
        kind = "GPU memory" if self.device.type == "cuda" else "memory"
        return f"{peak / 2**30:.2f} GiB of {kind}"


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} {platform.machine()}, {threads} thread{'s' * (threads != 1)}"
