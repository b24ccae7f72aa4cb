"""The training loop of both UNets: AdamW, averaged weights, a picture to look at after every save.

Two processes with one thread each beat one with two threads on a shared machine; gradients are
averaged over gloo.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from .training import (
    Clock,
    agree,
    average_gradients,
    ema_update,
    progress_bar,
    rank,
    save_atomic,
    show,
)

BatchLoss = Callable[[random.Random], torch.Tensor]
Preview = Callable[[UNet2DConditionModel, int], None]


def train_denoiser(
    path: Path,
    unet: UNet2DConditionModel,
    batch_loss: BatchLoss,
    preview: Preview,
    minutes: float,
    save_every: float,
    *,
    peak_lr: float,
    warmup_steps: int,
    ema_decay: float,
) -> None:
    """Trains `unet` for `minutes` over all runs; state in `path` every `save_every` seconds.

    Args:
        batch_loss: draws a batch from the generator (and torch's own), and returns its loss.
        preview: is given the averaged weights and the step after every save.
    """
    name, clock = path.stem, Clock(minutes * 60)
    ema = copy.deepcopy(unet).requires_grad_(False)
    parameters = list(unet.parameters())
    optimizer = torch.optim.AdamW(parameters, peak_lr, (0.9, 0.99), weight_decay=0.01, fused=True)
    if path.exists():
        state = torch.load(path, weights_only=False)
        unet.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        clock.spent, clock.step = state["spent"], state["step"]
    seed = clock.step * 2 + rank()
    rng = random.Random(seed)
    torch.manual_seed(seed)
    bar, mean_loss, last_save = progress_bar(clock, name), math.nan, clock.spent
    clock.tick()
    while clock.done < 1:
        loss = batch_loss(rng)
        loss.backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = clock.lr(peak_lr, warmup_steps)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
        clock.spent = agree(clock.spent)
        if rank() != 0:
            continue
        ema_update(ema, unet, ema_decay, clock.step)
        mean_loss = loss.item() if math.isnan(mean_loss) else mean_loss * 0.99 + loss.item() * 0.01
        show(bar, clock, loss=f"{mean_loss:.4f}")
        if clock.spent - last_save > save_every or clock.done >= 1:
            last_save = clock.spent
            state = {"model": unet.state_dict(), "ema": ema.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "loss": mean_loss}
            save_atomic(state | {"spent": clock.spent, "step": clock.step}, path)
            bar.write(f"{name} step {clock.step}: loss {mean_loss:.4f}")
            preview(ema, clock.step)
    bar.close()
