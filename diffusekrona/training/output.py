"""The output folder of a run: one run at a time, and no result lost by mistake."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..adapters.layout import ADAPTER_FILE
from ..common.errors import UserError, writing
from ..common.own_files import keep_foreign
from ..common.run_record import RUN_RECORD, read_run_record
from ..evaluation.choice_settings import BEST, CHOICE
from .checkpoint import (
    checkpoints_in,
    continues,
    remove_checkpoint,
    remove_leftovers,
)
from .early_stop import LOWEST
from .resume import check_agreement
from .settings import OutputSettings
from .validation import remove_validation
from .validation_loss import VALIDATION_LOSS

log = logging.getLogger("diffusekrona")

PATIENCE = 10.0  # seconds that a run which was killed may take to leave the system


@contextmanager
def claim_output(folder: Path, is_main_process: bool = True) -> Generator[None]:
    """Keep other runs out of `folder` for as long as the block runs, or this process lives.

    Args:
        is_main_process: of several processes of one run, only this one takes the lock.

    Raises:
        UserError: another run is writing there, or nothing can be written there.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is a file: give a folder.")
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:  # bytes of another encoding: safetensors opens no such file
        raise UserError(f"--output_dir {folder}: its name is not UTF-8; choose another.") from None
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    if is_main_process:
        with writing(folder):
            _acquire(lock, folder)
        remove_leftovers(folder)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise UserError(
            f"another run is writing to {folder}: choose another --output_dir, or wait for it."
        ) from None
    except NotImplementedError:
        log.warning("%s is on a file system without locks: start only one run in it", folder)


def refuse_to_overwrite(output: OutputSettings) -> None:
    """Keep an earlier run's result from being lost, unless its user says so.

    Raises:
        UserError: `output_dir` holds a result or an unfinished run, and no flag says what to do, or
            a checkpoint of another folder is resumed from.
    """
    folder, wanted = output.output_dir, output.resume_from_checkpoint
    if output.overwrite_output_dir or (wanted and continues(folder, wanted)):
        return
    for found in (*folder.glob(ADAPTER_FILE), *checkpoints_in(folder)):
        what = f"{folder} already holds {found.name}"
        if wanted:
            raise UserError(f"{what}, of another run than {wanted}: choose another --output_dir.")
        raise UserError(
            f"{what}: choose another --output_dir, resume with --resume_from_checkpoint latest, or "
            "replace it with --overwrite_output_dir."
        )


def delete_old_run(folder: Path) -> None:
    """Delete what an earlier run left in `folder`, for `--overwrite_output_dir`. Its adapter stays
    until the new one replaces it. Files of the same names that no run wrote are set aside."""
    # With an older run's record there, the new run's checkpoints would be refused.
    for name in (VALIDATION_LOSS, LOWEST, CHOICE, BEST, RUN_RECORD):
        keep_foreign(folder / name)
        (folder / name).unlink(missing_ok=True)
    for old in checkpoints_in(folder):
        remove_checkpoint(old)
    remove_validation(folder / "validation")


def already_finished(
    output: OutputSettings, steps: int, fixed: Mapping[str, Any], early_stop: int | None = None
) -> bool:
    """Whether a run that would be resumed has nothing left to do: its result is there.

    Args:
        fixed: what must agree, as `resume.fixed_settings` gives it.
        early_stop: as asked for now; without it a run that it ended has steps left.

    Raises:
        UserError: the result is there, but was trained otherwise.
    """
    adapter = output.output_dir / ADAPTER_FILE
    if output.resume_from_checkpoint != "latest" or not adapter.is_file():
        return False
    try:
        run = read_run_record(output.output_dir)
    except UserError as error:
        log.warning("%s; looking for a checkpoint instead", error)
        return False
    if run is None:
        return False
    check_agreement(output.output_dir, run.fixed_settings, fixed)
    ended = run.stopped_early and early_stop is not None
    if run.steps is None or (run.steps < steps and not ended):
        return False
    log.info("%s is trained already (%d steps)", adapter, run.steps)
    return True


def write_card_and_upload(output: OutputSettings, accelerator: Any) -> None:
    """Write the run's model card and, if asked for, upload it with the adapter and the grid."""
    if accelerator.is_main_process:
        from ..hub.card import write_model_card

        try:
            write_model_card(output.output_dir, repo_id=output.hub_model_id)
        except (UserError, OSError) as error:  # the result is there, and worth more than its card
            log.warning("no model card: %s", error)
        if output.push_to_hub:
            from ..hub.upload import push_to_hub

            name = output.hub_model_id or output.output_dir.resolve().name
            address = push_to_hub(output.output_dir, name, token=output.hub_token)
            log.info("uploaded to %s", address)
