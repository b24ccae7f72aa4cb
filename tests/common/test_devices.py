"""Processes that wait for one another."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import run_two, wait_until

from diffusekrona.common import devices


def test_what_takes_long_is_in_the_log(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, "diffusekrona")
    monkeypatch.setattr(devices, "HEARTBEAT", 0.02)
    state = SimpleNamespace(is_main_process=True, num_processes=1)
    with devices.main_works_alone(state, "validation pictures"):
        wait_until(lambda: len(caplog.messages) >= 2)
    assert caplog.messages[:2] == ["validation pictures: at work for 0 min"] * 2
    told = len(caplog.messages)
    time.sleep(0.05)
    assert len(caplog.messages) == told
    with (
        pytest.raises(ZeroDivisionError),
        devices.main_works_alone(state, "validation pictures"),
    ):
        raise ZeroDivisionError


def test_no_process_gives_up_waiting_for_one_that_works(tmp_path: Path) -> None:
    said = run_two("long_alone", "0.5", said=tmp_path / "said")  # works 5 s, the limit is 3
    assert said.count("together again") == 2 and "pictures: at work" in said
