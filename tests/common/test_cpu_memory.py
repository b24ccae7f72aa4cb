"""How training on a CPU configures the C library's allocator, in separate processes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from diffusekrona.common import cpu_memory

FAULTS = """
import resource
from diffusekrona.common.cpu_memory import keep_freed_memory
import torch
if {kept}:
    assert keep_freed_memory("cpu")
def step():
    big, small = torch.zeros(2**24), [torch.zeros(2**18) for _ in range(32)]  # 64 MiB, 32 of 1
    return big.sum() + sum(part.sum() for part in small)
for _ in range(3):  # the heap finds its shape
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(kept: bool) -> int:
    command = [sys.executable, "-c", FAULTS.format(kept=kept)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_steps_take_no_memory_of_the_system_anew() -> None:
    fresh, kept = page_faults(kept=False), page_faults(kept=True)
    assert kept < fresh / 20, (kept, fresh)


def test_another_c_library_is_left_alone(monkeypatch) -> None:
    class Other:  # musl has no mallopt
        def __getattr__(self, name: str):
            raise AttributeError(name)

    monkeypatch.setattr(cpu_memory.ctypes, "CDLL", lambda _: Other())
    assert cpu_memory.keep_freed_memory("cpu") is False
    monkeypatch.setattr(cpu_memory.sys, "platform", "darwin")
    assert cpu_memory.keep_freed_memory("cpu") is False


def test_a_gpu_s_host_gets_its_memory_back(monkeypatch) -> None:
    monkeypatch.setattr(cpu_memory.ctypes, "CDLL", lambda _: pytest.fail("asked the C library"))
    assert cpu_memory.keep_freed_memory(torch.device("cuda", 0)) is False
