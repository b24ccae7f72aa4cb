"""DreamBooth fine-tuning with a Kronecker adapter: parse, build, loop.

    accelerate launch -m diffusekrona.train_dreambooth --help

The batch of a step, its crops, noise and timesteps are pure functions of (seed, step): a run that
is killed and resumed ends with the same factors, and two processes see what one with twice the
batch would.
"""

from __future__ import annotations

import functools
import gc
import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .common.errors import UserError, exit_on_user_error
from .common.run_record import RUN_SETTINGS
from .common.settings import with_values
from .common.settings_files import write_settings_file
from .training.settings import (
    TrainSettings,
    low_vram_in_words,
    parse_settings,
    shared_settings,
    unused_class_flags,
)

if TYPE_CHECKING:
    from .data.examples import Example
    from .training.requests import Requests
    from .training.resolved_run import ResolvedRun

log = logging.getLogger("diffusekrona")


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the process's exit code (130 or 143 after a signal)."""
    settings = parse_settings(argv)
    from .training.resolved_run import family_defaults  # after --help

    if defaults := family_defaults(settings.base, settings.precision.low_vram):
        settings = parse_settings(argv, defaults)
    if not log.handlers:  # only ours: the libraries' loggers have handlers of their own
        log.addHandler(logging.StreamHandler(sys.stderr))
    log.setLevel(logging.INFO)
    return train(settings)


def train(settings: TrainSettings) -> int:
    """One training run, from settings to adapter.safetensors in the output folder."""
    from .data.examples import read_examples
    from .data.holdout import split_held_out
    from .training.resolved_run import check_loss_settings, resolve_run

    resolved = resolve_run(settings.base, settings.adapter, settings.data.resolution)
    check_loss_settings(settings, resolved.family)
    if settings.precision.low_vram:
        log.info("--low_vram: %s", low_vram_in_words(settings.precision, settings.optimisation))
    if unused := unused_class_flags(settings.prior):
        log.warning("%s: no effect without --with_prior_preservation", " and ".join(unused))
    seed = settings.optimisation.seed
    examples, held_out = split_held_out(read_examples(settings.data, seed), settings.data, seed)
    if settings.output.dry_run:  # answered before anything slow is imported
        from .training.dry_run import print_run

        print_run(
            settings.base, settings.data, settings.prior, settings.optimisation,
            settings.precision, settings.validation, settings.output, resolved, examples,
        )  # fmt: skip
        return 0
    started = time.time()
    import_libraries()
    import torch

    from .training.output import claim_output, delete_old_run, refuse_to_overwrite
    from .training.requests import listening
    from .training.setup import make_accelerator, start_trackers

    output = settings.output
    accelerator = make_accelerator(settings.optimisation, settings.precision, output, resolved)
    # So that run.yaml repeats the run where accelerate is configured otherwise.
    settings = with_values(settings, mixed_precision=accelerator.mixed_precision)
    is_main, can_draw = accelerator.is_main_process, bool(settings.validation.validation_prompt)
    try:
        if settings.optimisation.lr_find:
            from .training.lr_find import find_rate

            find_rate(settings, resolved, accelerator, examples)
            return 0
        with (
            claim_output(output.output_dir, is_main),
            listening(output.output_dir, is_main, can_draw) as requests,
        ):
            refuse_to_overwrite(output)
            accelerator.wait_for_everyone()
            if output.overwrite_output_dir and is_main:
                delete_old_run(output.output_dir)
            start_trackers(accelerator, output, shared_settings(settings))
            return run(settings, resolved, accelerator, examples, held_out, requests, started)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "Out of GPU memory: try --low_vram, --train_batch_size 1, --sample_batch_size 1 (class "
            "pictures), or a smaller --resolution; --dry_run prints what training needs."
        ) from error


@functools.cache  # once per process: later contents may belong to another run
def import_libraries() -> None:
    """Import what every run needs, with the garbage collector asleep.

    Imports make a great many objects and hardly any garbage, and the collector would look through
    all of them again and again: about an eighth of the time that the imports take. They stay for as
    long as the process, so it need not look at them later either (a third of a second each time).
    """
    from .bases.loading import quiet_libraries

    gc.disable()
    try:
        quiet_libraries()  # before the imports below, which load what it quiets
        from .bases import families  # noqa: F401
        from .training import log as run_log  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


def run(
    settings: TrainSettings,
    resolved: ResolvedRun,
    accelerator: Any,
    examples: list[Example],
    held_out: list[Example],
    requests: Requests,
    started: float,
) -> int:
    """Build everything, train, save; returns the exit code."""
    import torch

    from .common.cpu_memory import keep_freed_memory
    from .data.cache import prepare_data
    from .training import setup
    from .training.batch import make_batch, plain_loss, training_loss
    from .training.checkpoint import save_checkpoint
    from .training.log import RunLog, origin_of
    from .training.lr_schedule import make_lr_scheduler
    from .training.optimizer import backward_and_step, make_ema, set_mode
    from .training.output import already_finished, write_card_and_upload
    from .training.peaks import Peaks
    from .training.resolved_run import max_train_steps
    from .training.resume import fixed_settings, resume, with_content
    from .training.sharded import distribute
    from .training.stopping import Vote, stop_signals
    from .training.trackers import end_trackers
    from .training.training_state import TrainingState, as_used
    from .training.validation import validate
    from .training.validation_loss import ValidationLoss

    base, optimisation, precision = settings.base, settings.optimisation, settings.precision
    output, processes = settings.output, accelerator.num_processes
    keep_freed_memory(accelerator.device)
    peaks = Peaks(accelerator.device)
    steps = max_train_steps(optimisation, examples, resolved, processes)
    fixed = fixed_settings(settings, resolved, accelerator, examples)
    if already_finished(output, steps, fixed, settings.validation.early_stop):
        if output.push_to_hub:  # it may be what failed the last time
            write_card_and_upload(output, accelerator)
        return 0
    data = prepare_data(
        base, settings.data, settings.prior, precision, resolved, accelerator, examples,
        seed=optimisation.seed,
        train_text_encoder=settings.adapter.train_text_encoder,
        validation_prompts=settings.validation.validation_prompt,
        held_out=held_out,
    )  # fmt: skip
    peaks.end("data")
    parts = setup.build(settings, resolved, data, accelerator)
    models, trained, objective, shard = parts.models, parts.trained, parts.objective, parts.shard
    fixed = with_content(fixed, base, settings.data, settings.prior, resolved)
    # The schedule is not prepared: accelerate would step it once a process.
    lr_scheduler = make_lr_scheduler(optimisation, parts.optimizer, steps)
    ema = make_ema(optimisation, trained, accelerator)
    origin = origin_of(base, settings.data, optimisation, resolved)
    wrapped, optimizer = distribute(accelerator, models, parts.optimizer, trained, shard)
    state = TrainingState(parts.adapted, optimizer, lr_scheduler, ema, origin, setup.ADAPTER_NAME)
    first = resume(output, accelerator, fixed, steps, state)
    if accelerator.is_main_process:
        write_settings_file(settings, output.output_dir / RUN_SETTINGS)
    validation = settings.validation
    if shard and validation.validation_prompt:
        log.warning("no validation pictures: the base is sharded over the processes")
        validation = with_values(validation, validation_prompt=())
    show = functools.partial(
        validate, validation, base, precision, resolved, accelerator, parts.denoiser, data,
        output.output_dir / "validation", settings.data.instance_data_dir,
    )  # fmt: skip
    loss_of = functools.partial(plain_loss, resolved, data, models, objective)
    if shard:  # one process alone cannot call a sharded base
        loss_of = None
    measured = ValidationLoss(
        validation, output.output_dir, accelerator, data, objective, models, loss_of, first,
        held_out or examples, functools.partial(as_used, state, trained),
    )  # fmt: skip
    early = setup.make_early_stop(settings, measured, state, trained)
    peaks.end("loading")
    if measured.is_due(first):  # a run that was stopped leaves its last step to the next one
        measured.step(first)
    done, ended = first, first < steps and early.after(first)
    if first == 0:
        show(0)
        peaks.end("validation")
    record = {"settings": shared_settings(settings), "fixed_settings": fixed}
    run_log = RunLog(
        output, optimisation, resolved, accelerator, trained, first, steps, record, started, peaks
    )
    vote = Vote(accelerator)
    with run_log, stop_signals() as caught:
        for step in range(first, first if ended else steps):
            losses = []
            rate = lr_scheduler.get_last_lr()[0]
            for micro in range(optimisation.gradient_accumulation_steps):
                number = step * optimisation.gradient_accumulation_steps + micro
                batch = make_batch(
                    optimisation, settings.loss, data, accelerator, objective, number
                )
                dropping = parts.regulariser.dropping(number)
                with accelerator.accumulate(*wrapped.values()), dropping:
                    loss = training_loss(settings.loss, resolved, data, wrapped, objective, batch)
                    losses.append(loss.detach())
                    moved = backward_and_step(
                        loss, accelerator, optimizer, trained, optimisation.max_grad_norm, shard
                    )
            if moved:
                parts.regulariser.limit_norms()
                lr_scheduler.step()
                if ema is not None:
                    ema.step(trained)

            done = step + 1
            run_log.step(done, torch.stack(losses).mean(), rate)
            stop, save, draw = vote(bool(caught), *requests.take())
            if done % output.checkpointing_steps == 0 or stop or save:
                run_log.flush_and_check(trained)
                folder = save_checkpoint(
                    accelerator,
                    output.output_dir,
                    done,
                    fixed,
                    output.checkpoints_total_limit,
                    state,
                )
                if save and folder:
                    log.info("saved %s, as requested", folder)
            if stop:
                return run_log.stopped(done, folder, caught)
            if measured.is_due(done) and done < steps:
                peaks.end("training")
                measured.step(done)
                peaks.end("validation")
            if early.is_due(done) and done < steps:
                peaks.end("training")
                ended = early.after(done)
                peaks.end("validation")
                if ended:
                    break
            if (done % validation.validation_steps == 0 or draw) and done < steps:
                peaks.end("training")
                show(done)
                peaks.end("validation")

        peaks.end("training")
        measured.step(done)
        # The result comes before anything else that could fail.
        run_log.flush_and_check(trained)
        set_mode(optimizer, training=False)  # after the checkpoints, which training goes on from
        if ema is not None:
            ema.copy_to(trained)
        kept = early.restore(done, ended)
        run_log.save_result(parts.adapted, origin, setup.ADAPTER_NAME, done, kept, ended)
        early.forget()
    measured.report()
    show(done if kept is None else kept)
    write_card_and_upload(output, accelerator)
    # DDP's wrappers go before the process group: if theirs is the last hold on it, torch may wait
    # for ever, the group's thread for Python and Python for the thread.
    wrapped.clear()
    accelerator.free_memory()
    end_trackers(accelerator)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
