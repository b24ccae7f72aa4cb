"""How much memory a run is going to need, counted before anything loads.

One training step is run on torch's `meta` device, where tensors have shapes and no contents, while
every allocation and every release is counted. So the figure holds for any base, resolution, batch,
precision and kind of checkpointing, and no formula has to be kept in step with the libraries. What
shapes do not tell is left out: the CUDA context and the scratch space that kernels take inside.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import backbones
from .adapters import add_adapters
from .cache import DTYPES
from .plan import Plan
from .small_cards import checkpoint_with, quantisable, quantised_bytes, tile_vae

TOKENS = 77  # that CLIP reads


@dataclass(frozen=True)
class Phase:
    """A part of a run: its name, and bytes by what they are for; their sum is its peak."""

    name: str
    parts: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


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


def estimate(args: argparse.Namespace, plan: Plan) -> list[Phase]:
    """The phases of a run in order, each with its peak.

    Args:
        args: the training program's, with `mixed_precision` None counted as "no".

    Raises:
        UserError: a component's config cannot be read.
    """
    dtype = DTYPES[args.mixed_precision or "no"]
    other, revision = args.pretrained_vae_model_name_or_path, args.revision
    vae_config = backbones.read_vae_config(plan.base, other, revision)
    vae = _empty("AutoencoderKL", vae_config, DTYPES[args.vae_dtype])
    encoders = {
        name: _empty(kind, backbones.read_part_config(plan.base, name, revision), dtype)
        for name, kind in backbones.text_encoder_kinds(plan.family).items()
    }
    text = sum(map(weight_bytes, encoders.values()))
    unet = _empty("UNet2DConditionModel", backbones.read_unet_config(plan.base, revision), dtype)
    side = plan.resolution // 2 ** (len(vae_config["block_out_channels"]) - 1)
    picture = torch.empty(1, 3, plan.resolution, plan.resolution, device="meta", dtype=vae.dtype)
    latent = picture.new_empty(1, vae_config["latent_channels"], side, side)
    encoding, drawing = without_gradients(vae.encode, picture), 0
    if args.vae_tiling:
        tile_vae(vae)
    if args.validation_prompt:
        drawing = without_gradients(vae.decode, latent)
    models = {"unet": unet, **(encoders if args.train_text_encoder else {})}
    train = training(args, plan, models, side)
    phases = [
        Phase("pictures to latents", {"VAE": weight_bytes(vae), "activations": encoding}),
        Phase("captions to text states", {"text encoders": text}),
        train,
    ]
    if args.validation_prompt:
        kept = {name: size for name, size in train.parts.items() if name != "activations"}
        parts = {**kept, "VAE": weight_bytes(vae), "activations": drawing}
        phases.append(Phase("validation pictures", parts))
    return phases


def _empty(kind: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    empty = backbones.build_empty(kind, config)
    return nn.Module.to(empty, dtype).requires_grad_(False)  # diffusers' own warns about nothing


def training(
    args: argparse.Namespace, plan: Plan, models: dict[str, nn.Module], side: int
) -> Phase:
    """The training loop's phase.

    Args:
        models: the UNet and the text encoders that are trained, without adapters, on the meta
            device, in the dtype that they compute in. They are changed.
        side: of the latents, which are square.
    """
    parts = {"base": weight_bytes(models["unet"], args.quantize_base)}
    if len(models) > 1:
        parts["text encoders"] = sum(weight_bytes(m) for n, m in models.items() if n != "unet")
    trained = add_adapters(plan.configs, models, "default")
    factors = sum(p.nbytes for p in trained)
    parts["factors"] = factors * (2 if args.use_ema else 1)
    parts["gradients"] = factors
    parts["optimizer"] = sum(state_bytes(args.optimizer, p) for p in trained)
    for parameter in trained:  # as in every later step of an accumulation; counted above
        parameter.grad = torch.empty_like(parameter)
    batch = args.train_batch_size * (2 if args.with_prior_preservation else 1)
    checkpoints = "none"
    if args.gradient_checkpointing:
        checkpoints = "host" if args.cpu_offload_checkpointing else "device"
    if args.quantize_base != "none":
        parts["one weight dequantised"] = max(
            layer.weight.nbytes for layer in quantisable(models["unet"]).values()
        )
    parts["activations"] = step_peak(plan.family, models, batch, side, checkpoints)
    return Phase("training", parts)


def weight_bytes(model: nn.Module, quantisation: str = "none") -> int:
    """Bytes of a model's weights and buffers, as `small_cards.quantise` keeps them."""
    tensors = [*model.parameters(), *model.buffers()]
    layers = quantisable(model).values() if quantisation != "none" else ()
    saved = sum(layer.weight.nbytes - quantised_bytes(layer, quantisation) for layer in layers)
    return sum(tensor.nbytes for tensor in tensors) - saved


def state_bytes(optimizer: str, parameter: nn.Parameter) -> int:
    """Bytes of an optimizer's state of one fp32 parameter.

    AdamW: two moments. In 8 bit: one byte each from 4096 values on, and a scale for every 256.
    Prodigy: two moments, the start and a sum.
    """
    count = parameter.numel()
    if optimizer == "adamw8bit" and count >= 4096:
        return 2 * (count + 4 * -(-count // 256))
    return count * 4 * (4 if optimizer == "prodigy" else 2)


def without_gradients(run: Callable[..., Any], *inputs: torch.Tensor) -> int:
    """The most bytes that `run` holds at once, its inputs included, weights left out."""
    model: Any = getattr(run, "__self__", None)
    tracker = LiveBytes([*model.parameters(), *model.buffers()])
    with torch.no_grad(), FusedAttention(), tracker:
        run(*[tensor.clone() for tensor in inputs])
    return tracker.peak


def step_peak(
    family: backbones.Family,
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
    unet: Any = models["unet"]
    if checkpoints != "none":
        hooks = _released if checkpoints == "host" else _kept
        # The backward pass recomputes outside of the modes around it.
        contexts = {"context_fn": lambda: (nullcontext(), FusedAttention())}
        unet.enable_gradient_checkpointing(checkpoint_with(hooks, **contexts))
        for name in models.keys() - {"unet"}:
            models[name].gradient_checkpointing_enable()
    repeats = _keep_one_of_equal_blocks(unet)
    known = [t for m in models.values() for t in (*m.parameters(), *m.buffers())]
    tracker = LiveBytes([*known, *(t.grad for t in known if t.grad is not None)])
    held = {} if checkpoints == "host" else _watch(unet, repeats, tracker)
    for model in models.values():
        model.train()
    with FusedAttention(), tracker:
        _step(family, models, batch, side)
    return tracker.peak + sum(repeats[name] * size for name, size in held.items())


def _step(family: backbones.Family, models: Mapping[str, nn.Module], batch: int, side: int) -> None:
    """Forward, loss and backward as in the training loop, on shapes alone."""
    from .losses import dreambooth_loss

    unet: Any = models["unet"]
    config = unet.config

    def empty(*shape: int, dtype: torch.dtype = unet.dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    if len(models) > 1:
        ids = [empty(batch, TOKENS, dtype=torch.int64) for _ in family.text_encoders]
        text = backbones.text_states(family, models, ids)
    else:
        text = {"prompt_embeds": empty(batch, TOKENS, config.cross_attention_dim)}
        if family.size_conditioned:
            times = 6 * config.addition_time_embed_dim
            pooled = config.projection_class_embeddings_input_dim - times
            text["pooled_prompt_embeds"] = empty(batch, pooled)
    noisy, target = (
        empty(batch, config.in_channels, side, side, dtype=torch.float32) for _ in range(2)
    )
    time_ids, timesteps = empty(batch, 6), empty(batch, dtype=torch.int64)
    arguments = backbones.denoiser_arguments(family, text, time_ids)
    prediction = unet(noisy.to(unet.dtype), timesteps, **arguments).sample
    dreambooth_loss(prediction, target).backward()


def _keep_one_of_equal_blocks(unet: nn.Module) -> dict[str, int]:
    """Cut every row of equal transformer blocks down to one; how many were cut, by that one's name.

    SDXL has up to ten in a row. Each holds as much as the next, so one is traced and counted as
    often as it is there.
    """
    cut = {}
    for name, module in unet.named_modules():
        blocks = getattr(module, "transformer_blocks", None)
        if isinstance(blocks, nn.ModuleList) and len(blocks) > 1:
            cut[f"{name}.transformer_blocks.0"] = len(blocks) - 1
            module.transformer_blocks = blocks[:1]
    return cut


def _watch(unet: nn.Module, names: Iterable[str], tracker: LiveBytes) -> dict[str, int]:
    """What each of these blocks holds after its forward pass; filled while it runs."""
    before: dict[str, int] = {}
    held: dict[str, int] = {}
    for name in names:

        def enter(*_: Any, name: str = name) -> None:
            before[name] = tracker.live

        def leave(*_: Any, name: str = name) -> None:
            held.setdefault(name, tracker.live - before[name])  # not again when recomputed

        block = unet.get_submodule(name)
        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)
    return held


def _kept() -> AbstractContextManager:
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)


def _released() -> AbstractContextManager:
    """Saved tensors that leave the device and come back when they are needed."""
    return torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.shape, t.dtype),
        lambda saved: torch.empty(saved[0], dtype=saved[1], device="meta"),
    )


def in_words(phases: Sequence[Phase]) -> str:
    """The estimate for people: the highest peak, what it is made of, and the other phases."""
    worst = max(phases, key=lambda phase: phase.peak)
    parts = ", ".join(f"{name} {gib(size)}" for name, size in worst.parts.items())
    others = "; ".join(f"{p.name} {gib(p.peak)}" for p in phases if p is not worst)
    return (
        f"about {gib(worst.peak)} GiB, in {worst.name} ({parts})\n    other phases: {others}\n"
        "    not counted: the CUDA context and the kernels' own scratch space"
    )


def gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
