"""What torch is going to allocate, counted on shapes alone.

Models on torch's `meta` device, where tensors have shapes and no contents, are run while every
allocation and every release is noted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...bases.base import Family, blocks_of
from ...bases.components import denoiser_name
from ..gradient_checkpointing import checkpoint_with
from ..losses import dreambooth_loss


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive; `peak` is the most there were at once.

    Works on any device. Tensors `known` beforehand, such as weights, are left out with their views.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


class FusedAttention(TorchFunctionMode):
    """Attention as CPUs and GPUs compute it; on the meta device torch would form the scores."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def without_gradients(run: Callable[..., Any], *inputs: torch.Tensor) -> int:
    """The most bytes that `run` holds at once, its inputs included, weights left out."""
    model: Any = getattr(run, "__self__", None)
    tracker = LiveBytes([*model.parameters(), *model.buffers()])
    with torch.no_grad(), FusedAttention(), tracker:
        run(*[tensor.clone() for tensor in inputs])
    return tracker.peak


def step_peak(
    family: Family,
    models: Mapping[str, nn.Module],
    batch: int,
    side: int,
    checkpoints: str = "none",
) -> int:
    """The most bytes that a forward and backward pass hold beside weights and gradients.

    Args:
        models: with adapters, on the meta device; changed.
        batch: samples, those of prior preservation included.
        side: of the latents.
        checkpoints: "none", or where gradient checkpointing keeps the blocks' inputs: "device" or
            "host".
    """
    name = denoiser_name(models)
    denoiser: Any = models[name]
    if checkpoints != "none":
        hooks = _released if checkpoints == "host" else _kept
        # The backward pass recomputes outside of the modes around it.
        contexts = {"context_fn": lambda: (nullcontext(), FusedAttention())}
        denoiser.enable_gradient_checkpointing(checkpoint_with(hooks, **contexts))
        for encoder in models.keys() - {name}:
            text_encoder: Any = models[encoder]
            text_encoder.gradient_checkpointing_enable({"use_reentrant": False, **contexts})
    repeats = _keep_one_of_equal_blocks(denoiser, family)
    known = [t for m in models.values() for t in (*m.parameters(), *m.buffers())]
    tracker = LiveBytes([*known, *(t.grad for t in known if t.grad is not None)])
    held = {} if checkpoints == "host" else _watch(denoiser, repeats, tracker)
    for model in models.values():
        model.train()
    with FusedAttention(), tracker:
        _step(family, models, batch, side)
    return tracker.peak + sum(repeats[name] * size for name, size in held.items())


def _step(family: Family, models: Mapping[str, nn.Module], batch: int, side: int) -> None:
    """Forward, loss and backward as in the training loop, on shapes alone."""
    denoiser: Any = models[family.denoiser]
    config = denoiser.config

    def empty(*shape: int, dtype: torch.dtype = denoiser.dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    if len(models) > 1:
        encoders: list[Any] = [model for name, model in models.items() if name != family.denoiser]
        places = [getattr(e.config, "max_position_embeddings", family.tokens) for e in encoders]
        tokens = min(family.tokens, *places)  # a small base's have fewer
        ids = [empty(batch, tokens, dtype=torch.int64) for _ in family.tokenizers]
        text = family.encode_text(models, ids)
    else:
        text = {n: empty(batch, *shape) for n, shape in family.text_shapes(config).items()}
    latents = family.latent_shape(config, side)
    noisy, target = (empty(batch, *latents, dtype=torch.float32) for _ in range(2))
    time_ids, timesteps = empty(batch, 6), empty(batch, dtype=torch.int64)
    noisy = noisy.to(denoiser.dtype)
    prediction = family.predict(denoiser, noisy, timesteps, text, time_ids)
    dreambooth_loss(prediction, target).backward()


def _keep_one_of_equal_blocks(denoiser: nn.Module, family: Family) -> dict[str, int]:
    """Cut every list of equal transformer blocks down to one; how many were cut, by that one's
    name.

    SDXL has up to ten in a row. Each holds as much as the next, so one is traced and counted as
    often as it is there.
    """
    cut = {}
    for name, blocks in blocks_of(denoiser, family.block_lists).items():
        if len(blocks) > 1:
            cut[f"{name}.0"] = len(blocks) - 1
            denoiser.set_submodule(name, blocks[:1])
    return cut


def _watch(denoiser: nn.Module, names: Iterable[str], tracker: LiveBytes) -> dict[str, int]:
    """What each of these blocks holds after its forward pass; filled while it runs."""
    before: dict[str, int] = {}
    held: dict[str, int] = {}
    for name in names:

        def enter(*_: Any, name: str = name) -> None:
            before[name] = tracker.live

        def leave(*_: Any, name: str = name) -> None:
            held.setdefault(name, tracker.live - before[name])  # not again when recomputed

        block = denoiser.get_submodule(name)
        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)
    return held


def _kept() -> AbstractContextManager[Any]:
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)


def _released() -> AbstractContextManager[Any]:
    """Saved tensors that leave the device and come back when they are needed."""
    return torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.shape, t.dtype),
        lambda saved: torch.empty(saved[0], dtype=saved[1], device="meta"),
    )
