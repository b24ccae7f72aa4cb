"""How the models of a run are spread over its processes.

Plain data parallel: each process holds everything, accelerate (DDP) averages the gradients. With
`--shard_base` (or accelerate configured for FSDP) each process holds a share of the frozen base,
gathered block by block when it is needed (PyTorch's FSDP2). The factors, a thousandth of the base,
stay whole on each process: so the adapter file, checkpoints and clipping are what they always are,
and one all-reduce per step averages the gradients.

accelerate's own FSDP would shard the factors too and put the whole base into each checkpoint, so a
run takes from it only the number of processes and the precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..bases.components import denoiser_name
from ..bases.settings import PrecisionSettings
from ..common.errors import UserError


def shards_base(precision: PrecisionSettings, accelerator: Any) -> bool:
    """Whether the base is to be shared out: asked for by flag or by accelerate's configuration.

    Raises:
        UserError: together with a quantised base; with DeepSpeed's ZeRO 3.
    """
    from accelerate import DistributedType

    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        if _deepspeed_config(accelerator)["zero_optimization"]["stage"] == 3:
            raise UserError(
                "DeepSpeed's ZeRO 3 would shard the factors with the base: use stage 2, or "
                "--shard_base with accelerate's multi-GPU configuration."
            )
        return False
    wanted = precision.shard_base or kind == DistributedType.FSDP
    if wanted and precision.quantize_base != "none":
        raise UserError("--quantize_base and a sharded base cannot be combined: use one of them.")
    return wanted and accelerator.num_processes > 1


def take_over(accelerator: Any, batch_size: int) -> None:
    """Change accelerate's state to what `distribute` needs of it, once `shards_base` has read it.

    DeepSpeed reads the batch size off a dataloader, which the loop does not have. Of FSDP only the
    processes are used.
    """
    from accelerate import DistributedType

    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _deepspeed_config(accelerator)["train_micro_batch_size_per_gpu"] = batch_size
    elif accelerator.distributed_type == DistributedType.FSDP:
        accelerator.state.distributed_type = DistributedType.MULTI_GPU


def _deepspeed_config(accelerator: Any) -> dict[str, Any]:
    return accelerator.state.deepspeed_plugin.deepspeed_config


def distribute(
    accelerator: Any,
    models: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    trained: Sequence[nn.Parameter],
    shard: bool,
) -> tuple[dict[str, Any], Any]:
    """Spread models and optimizer over the processes.

    Args:
        models: component name to model; the denoiser is the one that is sharded.
        trained: the factors of all models.

    Returns:
        The models to call, by name, and the optimizer to step.
    """
    if not shard:
        # In one call, which DeepSpeed needs.
        *wrapped, stepped = accelerator.prepare(
            *(model.train() for model in models.values()), optimizer
        )
        return dict(zip(models, wrapped, strict=True)), stepped
    shard_frozen(
        models[denoiser_name(models)], trained, accelerator.device, accelerator.num_processes
    )
    # "Evaluation" is accelerate's word for: its precision, but no data-parallel wrapper.
    wrapped = {
        name: accelerator.prepare_model(model.train(), device_placement=False, evaluation_mode=True)
        for name, model in models.items()
    }
    return wrapped, accelerator.prepare(optimizer)


def shard_frozen(
    model: nn.Module, whole: Sequence[nn.Parameter], device: torch.device, processes: int
) -> None:
    """Share the parameters of `model` out over all processes, in place, but for those in `whole`.

    A unit, gathered at once, is a module that the model says is not to be split.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (processes,)),
        "ignored_params": set(whole),
    }
    units: set[str] = set(getattr(model, "_no_split_modules", None) or ())
    for module in reversed(list(model.modules())):  # inner ones first
        if type(module).__name__ in units:
            fully_shard(module, **options)
    fully_shard(model, **options)


def average_gradients(trained: Sequence[nn.Parameter]) -> None:
    """Replace the gradients of `trained` by their mean over all processes, in one all-reduce."""
    gradients = [p.grad for p in trained if p.grad is not None]
    joined = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(joined)
    joined /= torch.distributed.get_world_size()
    for gradient, mean in zip(gradients, joined.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
