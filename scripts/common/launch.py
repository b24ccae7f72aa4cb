"""`accelerate launch`, with the flags and the saved configuration of accelerate's own.

Three things differ. A single process replaces the launcher instead of running under it: Ctrl-C and
SIGTERM reach the program, and its exit code is the command's. Several processes that fail leave
with the exit code of the first one and without the launcher's traceback. Where accelerate would
guess (no saved configuration, more processes than the saved one has), the answer is given.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import psutil
from accelerate import PartialState
from accelerate.commands import launch
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.utils import DistributedType
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# Kinds of a saved configuration that start several processes in a way of their own.
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def physical_cores() -> int:
    """Cores that this process may use; the hardware threads of a core count once.

    Two threads on one core train a small model slower than one does.
    """
    try:
        topology = Path("/sys/devices/system/cpu")
        cores = {
            (topology / f"cpu{number}/topology/thread_siblings_list").read_text()
            for number in os.sched_getaffinity(0)
        }
        return len(cores)
    except (AttributeError, OSError):  # not Linux, or a container that hides it
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Set what accelerate would otherwise guess or take from a configuration for one GPU."""
    file = args.config_file or (
        default_config_file if os.path.isfile(default_config_file) else None
    )
    saved = load_config_from_file(file) if file else None
    if saved is None:
        args.num_processes = args.num_processes or 1
        args.num_machines = args.num_machines or 1
        args.mixed_precision = args.mixed_precision or "no"
        args.dynamo_backend = args.dynamo_backend or "no"
    if (args.num_processes or 1) > 1 and (saved is None or saved.distributed_type not in SHARDED):
        args.multi_gpu = True
        if PartialState().device.type == "cpu":
            os.environ["ACCELERATE_USE_CPU"] = "true"  # or each process would think it is alone
    if args.num_cpu_threads_per_process is None and "OMP_NUM_THREADS" not in os.environ:
        args.num_cpu_threads_per_process = max(1, physical_cores() // (args.num_processes or 1))
    return args


def replace_process(args: argparse.Namespace) -> NoReturn:
    """Become the program, in the environment that accelerate prepares for it."""
    command, environment = launch.prepare_simple_launcher_cmd_env(args)
    os.execvpe(command[0], command, environment)


def main() -> None:
    """Entry point: accelerate's command line."""
    args = complete(launch.launch_command_parser().parse_args())
    launch.simple_launcher = replace_process
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch.launch_command(args)
    except ChildFailedError as error:
        sys.exit(max(1, error.get_first_failure()[1].exitcode))
    except SignalException as signal:
        sys.exit(128 + signal.sigval)
    except ValueError as error:  # flags or a saved configuration that contradict each other
        print(f"error: accelerate launch: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
