"""A tracker that fails costs its curves, not the run."""

from __future__ import annotations

from typing import Any

from diffusekrona.training.trackers import end_trackers, log_to_trackers


class Accelerator:
    """Of which the trackers write to a full disk."""

    def __init__(self) -> None:
        self.trackers: list[Any] = ["tensorboard"]
        self.ended = False

    def log(self, values: dict[str, float], step: int) -> None:
        if self.trackers:
            raise OSError(28, "No space left on device")

    def end_training(self) -> None:
        if self.trackers:
            raise OSError(28, "No space left on device")
        self.ended = True


def test_a_full_disk_is_a_warning(caplog) -> None:
    accelerator = Accelerator()
    for step in (1, 2):
        log_to_trackers(accelerator, {"loss": 0.5}, step)
    assert caplog.text.count("nothing more is shown in the trackers") == 1
    assert "No space left on device" in caplog.text
    late = Accelerator()
    end_trackers(late)
    assert late.ended
