"""DreamBooth fine-tuning with a Kronecker adapter: parse, build, loop.

    accelerate launch -m diffusekrona.train_dreambooth --help

The batch of a step, its crops, noise and timesteps are pure functions of (seed, step): a run that
is killed and resumed ends with the same factors, and two processes see what one with twice the
batch would.
"""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common.errors import UserError, exit_on_user_error
from .training.flags import low_vram_in_words, parse_args

if TYPE_CHECKING:
    from .data.cache import Data, Item
    from .training.plan import Plan

log = logging.getLogger("diffusekrona")
ADAPTER_NAME = "default"


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the process's exit code (130 or 143 after a signal)."""
    args = parse_args(argv)
    if not log.handlers:  # only ours: the libraries' loggers have handlers of their own
        log.addHandler(logging.StreamHandler(sys.stderr))
    log.setLevel(logging.INFO)
    return train(args)


def train(args: argparse.Namespace) -> int:
    """One training run, from checked arguments to adapter.safetensors in `args.output_dir`."""
    from .data.folder import read_folder
    from .training.plan import make_plan

    plan = make_plan(args)
    if args.low_vram:
        log.info("--low_vram: %s", low_vram_in_words(args))
    pictures, captions = read_folder(args.instance_data_dir, args.instance_prompt)
    if args.dry_run:  # answered before anything slow is imported
        from .training.dry_run import print_plan

        print_plan(plan, args, pictures, captions)
        return 0
    import_libraries()
    import torch

    from .training.setup import claim_output, refuse_to_overwrite

    lock = claim_output(args)
    try:
        refuse_to_overwrite(args)
        return run(args, plan, pictures, captions)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "Out of GPU memory: try --low_vram, --train_batch_size 1, --sample_batch_size 1 (class "
            "pictures), or a smaller --resolution; --dry_run tells what training needs."
        ) from error
    finally:
        if lock is not None:
            lock.release()


@functools.cache  # once a process: what lies there later may be garbage of another run
def import_libraries() -> None:
    """Import what every run needs, with the garbage collector asleep.

    Imports make a great many objects and hardly any garbage, and the collector would look through
    all of them again and again: about an eighth of the time that the imports take. They stay for as
    long as the process, so it need not look at them later either (a third of a second each time).
    """
    from .bases.backbones import quiet_libraries

    gc.disable()
    try:
        quiet_libraries()  # before the imports below, which load what it quiets
        from diffusers import UNet2DConditionModel  # noqa: F401

        from .training import log as run_log  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


def run(args: argparse.Namespace, plan: Plan, pictures: list[Path], captions: list[str]) -> int:
    """Build everything, train, save; returns the exit code."""
    import torch

    from .adapters.layers import add_adapters
    from .common.cpu_memory import keep_freed_memory
    from .data.cache import prepare_data
    from .training import setup
    from .training.checkpoint import save_checkpoint
    from .training.log import RunLog, StopVote, origin_of, stop_signals
    from .training.lr_schedule import make_lr_scheduler
    from .training.plan import max_train_steps
    from .training.sharded import average_gradients, distribute, shards_base
    from .training.training_state import TrainingState

    started = time.time()
    accelerator = setup.make_accelerator(args)
    keep_freed_memory(accelerator.device)
    steps = max_train_steps(args, len(pictures), accelerator.num_processes)
    settings = setup.settings_to_keep(args, plan, accelerator, pictures, captions)
    if setup.already_finished(args, steps, settings):
        if args.push_to_hub:  # it may be what failed the last time
            setup.share(args, accelerator)
        return 0
    data = prepare_data(args, plan, accelerator, pictures, captions)
    unet = setup.load_denoiser(args, plan, accelerator)
    models = {"unet": unet, **data.text_encoders}
    torch.manual_seed(args.seed)  # for the factors' start
    trained = add_adapters(plan.configs, models, ADAPTER_NAME)
    setup.save_memory(args, models)

    plain_optimizer = setup.make_optimizer(args, models, accelerator.num_processes)
    lr_scheduler = make_lr_scheduler(args, plain_optimizer, steps)
    ema = setup.make_ema(args, trained, accelerator)
    noise_scheduler = setup.load_noise_schedule(args, plan)
    adapted = {name: models[name] for name in plan.configs}
    origin = origin_of(args, plan)
    shard = shards_base(args, accelerator)
    wrapped, optimizer = distribute(accelerator, models, plain_optimizer, trained, shard)
    # The schedule is not prepared: accelerate would step it once a process.
    state = TrainingState(adapted, optimizer, lr_scheduler, ema, origin, ADAPTER_NAME)
    first = setup.resume(args, accelerator, settings, steps, state)
    if shard and args.validation_prompt:
        log.warning("no validation pictures: the base is sharded over the processes")
        args.validation_prompt = None
    validate = functools.partial(setup.validate, args, plan, accelerator, unet, data)
    if first == 0:
        validate(0)
    run_log = RunLog(args, plan, accelerator, trained, first, steps, settings, started)
    stop_vote = StopVote(accelerator)
    with run_log, stop_signals() as caught:
        for step in range(first, steps):
            for micro in range(args.gradient_accumulation_steps):
                number = step * args.gradient_accumulation_steps + micro
                batch = make_batch(args, data, accelerator, noise_scheduler, number)
                with accelerator.accumulate(*wrapped.values()):
                    loss = training_loss(args, plan, data, wrapped, noise_scheduler, batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        if shard:
                            average_gradients(trained)
                        accelerator.clip_grad_norm_(trained, args.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            if not accelerator.optimizer_step_was_skipped:
                lr_scheduler.step()
                if ema is not None:
                    ema.step(trained)

            done = step + 1
            run_log.step(done, loss.detach(), lr_scheduler.get_last_lr()[0])
            stop = stop_vote(bool(caught))
            if done % args.checkpointing_steps == 0 or stop:
                run_log.settle(trained)
                folder = save_checkpoint(
                    accelerator,
                    args.output_dir,
                    done,
                    settings,
                    args.checkpoints_total_limit,
                    state,
                )
            if stop:
                return run_log.stopped(done, folder, caught)
            if done % args.validation_steps == 0 and done < steps:
                validate(done)

        # The result comes before anything else that could fail.
        run_log.settle(trained)
        if ema is not None:
            ema.copy_to(trained)
        run_log.save_result(adapted, origin, ADAPTER_NAME)
    validate(steps)
    setup.share(args, accelerator)
    # DDP's wrappers go before the process group: if theirs is the last hold on it, torch may wait
    # for ever, the group's thread for Python and Python for the thread.
    wrapped.clear()
    accelerator.free_memory()
    accelerator.end_training()
    return 0


def make_batch(
    args: argparse.Namespace, data: Data, accelerator: Any, noise_scheduler: Any, number: int
) -> dict[str, Any]:
    """This process's share of micro-step `number`, a pure function of (seed, number).

    Returns:
        "moments" (n, 2c, h, w), "posterior" and "noise" (n, c, h, w), "timesteps" (n,),
        "time_ids" (n, 6), on the device, and "captions" (n); class samples stand last.
    """
    import torch

    from .common.seeds import seed_for
    from .training.losses import draw

    per_device, processes = args.train_batch_size, accelerator.num_processes
    everyone = per_device * processes
    mine = slice(
        accelerator.process_index * per_device, (accelerator.process_index + 1) * per_device
    )
    torch.manual_seed(seed_for(args.seed, "model", number, accelerator.process_index))
    numbers = range(number * everyone, (number + 1) * everyone)[mine]
    size, chosen = pick(data.instance, everyone, args.seed, number)
    samples = [
        (item, seed_for(args.seed, "instance", n))
        for item, n in zip(chosen[mine], numbers, strict=True)
    ]
    if data.prior:
        _, chosen = pick(data.prior, everyone, args.seed, number)
        samples += [
            (item, seed_for(args.seed, "class", n))
            for item, n in zip(chosen[mine], numbers, strict=True)
        ]
    generators = [torch.Generator().manual_seed(seed) for _, seed in samples]
    variants = []
    for (item, _), generator in zip(samples, generators, strict=True):
        choices = item.variants[size]
        variants.append(choices[int(torch.randint(len(choices), (), generator=generator))])
    moments = torch.stack([variant.moments for variant in variants])
    channels = moments.shape[1] // 2
    posterior, noise, timesteps = draw(
        generators,
        (channels, *moments.shape[2:]),
        noise_scheduler.config.num_train_timesteps,
        args.noise_offset,
    )
    tensors = {
        "moments": moments,
        "posterior": posterior,
        "noise": noise,
        "timesteps": timesteps,
        "time_ids": torch.stack([variant.time_ids for variant in variants]),
    }
    batch = {name: to_device(tensor, accelerator.device) for name, tensor in tensors.items()}
    return {**batch, "captions": [item.caption for item, _ in samples]}


def to_device(tensor: Any, device: Any) -> Any:
    """A tensor on its way to `device`; only from pinned memory does a GPU's copy not hold us up."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def pick(
    items: list[Item], batch_size: int, seed: int, number: int
) -> tuple[tuple[int, int], list[Item]]:
    """The items of batch `number`, all of one size, and that size (height, width)."""
    sizes = tuple(next(iter(item.variants)) for item in items)
    epoch, place = divmod(number, len(epoch_batches(sizes, batch_size, seed, 0)))
    chosen = epoch_batches(sizes, batch_size, seed, epoch)[place]
    return sizes[chosen[0]], [items[i] for i in chosen]


@functools.lru_cache(maxsize=4)
def epoch_batches(sizes: tuple, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """`data.batches`, remembered for the epoch at hand."""
    from .data.folder import batches

    return batches(sizes, batch_size, seed, epoch)


def training_loss(
    args: argparse.Namespace,
    plan: Plan,
    data: Data,
    models: dict[str, Any],
    noise_scheduler: Any,
    batch: dict[str, Any],
) -> Any:
    """The loss of one batch, a scalar with gradients to the factors."""
    from .bases.backbones import denoiser_arguments, sample_latents
    from .training.losses import denoising_target, dreambooth_loss, snr_weight

    latents = sample_latents(batch["moments"], batch["posterior"], data.vae_config)
    noise, timesteps = batch["noise"], batch["timesteps"]
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    text = text_of(args, plan, data, models, batch["captions"], latents.device)
    text = {name: state.to(data.dtype) for name, state in text.items()}
    prediction = models["unet"](
        noisy.to(data.dtype), timesteps, **denoiser_arguments(plan.family, text, batch["time_ids"])
    ).sample
    return dreambooth_loss(
        prediction,
        denoising_target(noise_scheduler, latents, noise, timesteps),
        snr_weight(noise_scheduler, timesteps, args.snr_gamma) if args.snr_gamma else None,
        num_prior=len(noise) // 2 if data.prior else 0,
        prior_loss_weight=args.prior_loss_weight,
    )


def text_of(
    args: argparse.Namespace,
    plan: Plan,
    data: Data,
    models: dict[str, Any],
    captions: Sequence[str],
    device: Any,
) -> dict[str, Any]:
    """The batch's text states: from the cache, or through the encoders that are trained."""
    import torch

    from .bases.backbones import text_states
    from .data.cache import stack_states

    if not args.train_text_encoder:
        states = stack_states([data.states[caption] for caption in captions])
        return {name: to_device(state, device) for name, state in states.items()}
    ids = [
        to_device(torch.cat([data.ids[c][i] for c in captions]), device)
        for i in range(len(plan.family.text_encoders))
    ]
    return text_states(plan.family, models, ids)


if __name__ == "__main__":
    exit_on_user_error(main)
