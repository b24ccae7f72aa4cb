"""Run by two processes: the main one works for longer than the other waits for it."""

from __future__ import annotations

import datetime
import logging
import sys
import time

from accelerate import PartialState

from diffusekrona.common import devices

logging.basicConfig(format="%(message)s", level="INFO")
devices.HEARTBEAT = float(sys.argv[1])
state = PartialState(cpu=True, timeout=datetime.timedelta(seconds=3))
with devices.main_works_alone(state, "pictures"):
    if state.is_main_process:
        time.sleep(5)
state.wait_for_everyone()
print("together again")
