"""KronA, the method that this package is about."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..bases.components import denoiser_name, is_text_encoder
from ..common.errors import UserError, shortened
from .method import (
    Method,
    Shape,
    Targets,
    Tensors,
    norm_of_products,
    valid_scale,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

    from .deltas import Delta


def _krona_config(settings: Any, targets: Targets) -> PeftConfig:
    from ..krona import KronAConfig

    a1, a2, pairs = settings.a1, settings.a2, {}
    if not is_text_encoder(targets.component):
        pairs = parse_factors(settings.factors)
        chosen = [k for k, ends in targets.letters.items() if {*ends} <= {*targets.names}]
        extra = [letter for letter in pairs if letter not in chosen]
        if extra:
            raise UserError(
                f"--factors gives {extra[0]!r}, but --attn_update_unet is {''.join(chosen)!r}."
            )
    else:
        a1, a2 = settings.text_encoder_a1 or a1, settings.text_encoder_a2 or a2
    return KronAConfig(
        a1=a1,
        a2=a2,
        target_modules=list(targets.names),
        factor_pattern={end: pairs[k] for k in pairs for end in targets.letters[k]},
        scale=settings.krona_scale,
        terms=settings.terms,
        init_weights=settings.init_weights,
        output_order=settings.output_order,
    )


def parse_factors(text: str | None) -> dict[str, tuple[int, int]]:
    """Parse "k=8x64,o=2x64" to {"k": (8, 64), "o": (2, 64)}.

    Raises:
        UserError: anything else, naming the piece.
    """
    pairs: dict[str, tuple[int, int]] = {}
    for piece in filter(None, re.split(r"[,;\s]+", text or "")):
        match = re.fullmatch(r"([kqvo])[=:]([0-9]{1,9})[x×]([0-9]{1,9})", piece)
        if not match or int(match[2]) < 1 or int(match[3]) < 1:
            raise UserError(
                f"--factors: cannot read {shortened(piece)!r}; write letters of kqvo with their "
                "a1 x a2, as in --factors k=8x64,o=2x64"
            )
        pairs[match[1]] = (int(match[2]), int(match[3]))
    return pairs


def _krona_delta(tensors: Tensors, config: Any, layer: str) -> Delta:
    from .deltas import KronDelta

    a, b = tensors["krona_a"].float(), tensors["krona_b"].float()
    if a.shape[:-2] != b.shape[:-2]:
        raise UserError(f"{layer}: krona_a and krona_b differ in their number of terms.")
    a, b = (a, b) if a.dim() == 3 else (a[None], b[None])
    return KronDelta(a, b, valid_scale(config.scale, layer), config.output_order)


def _krona_words(config: Any) -> str:
    text = f"A ({config.a1}, {config.a2})"
    own = {f"{k} ({a}, {b})" for k, (a, b) in config.factor_pattern.items()}
    text += f", {len(own)} patterns of their own" if own else ""
    text += f", {config.terms} terms" if config.terms > 1 else ""
    return text + (f", {config.output_order} rows" if config.output_order != "kron" else "")


def _krona_size(shapes: Mapping[str, Shape]) -> str:
    (*terms, a1, a2), (b1, b2) = shapes["krona_a"], shapes["krona_b"][-2:]
    return f"{a1}x{a2} (x) {b1}x{b2}" + "".join(f" x{n}" for n in terms)


def _krona_multiplications(shapes: Mapping[str, Shape]) -> int:
    from ..krona.factors import multiplications

    (*terms, a1, a2), (b1, b2) = shapes["krona_a"], shapes["krona_b"][-2:]
    return multiplications(a1, a2, b1, b2, math.prod(terms))


def _krona_norm(layer: Any, name: str) -> torch.Tensor:
    a, b = (factor[name].float() for factor in (layer.krona_a, layer.krona_b))
    a, b = (t.flatten(-2).reshape(-1, t.shape[-2] * t.shape[-1]) for t in (a, b))
    return norm_of_products(a, b) * abs(layer.scaling[name])


def _krona_fit(config: Any, layers: Mapping[str, Tensors]) -> Any:
    from ..krona.model import factors_of

    for name, tensors in layers.items():
        pair = tuple(tensors["krona_a"].shape[-2:])
        if factors_of(config, name) != pair:
            config.factor_pattern = {name: pair, **config.factor_pattern}
    return config


def _krona_fill(own: Tensors, delta: Delta | None, config: Any) -> dict[str, torch.Tensor]:
    """The delta in the first terms; the others are zero."""
    from .deltas import KronDelta

    a, b = own["krona_a"].clone(), own["krona_b"].clone()
    terms_a, terms_b = (a, b) if a.dim() == 3 else (a[None], b[None])
    terms_b.zero_()
    if delta is not None:
        if not isinstance(delta, KronDelta):
            raise UserError("it is not a Kronecker product: use --adapter_type lora.")
        if delta.output_order != config.output_order and delta.a.shape[1] > 1:
            raise UserError(f"it needs --output_order {delta.output_order}.")
        terms, a1, a2 = delta.a.shape
        if (a1, a2) != tuple(terms_a.shape[1:]) or delta.b.shape[1:] != terms_b.shape[1:]:
            raise UserError(
                f"it has factors a1={a1}, a2={a2}: set them with --a1, --a2 or --factors."
            )
        if terms > len(terms_a):
            raise UserError(f"it has {terms} terms: give --terms {terms}.")
        terms_a[:terms] = delta.a
        terms_b[:terms] = delta.b * (delta.scale / config.scale)
    return {"krona_a": a, "krona_b": b}


def _krona_from_file(
    values: Mapping[str, Any], layers: Mapping[str, Tensors], where: object
) -> PeftConfig:
    from .file_config import krona_config

    shapes = {}
    for name, own in layers.items():
        a, b = own["krona_a"].shape, own["krona_b"].shape
        if a[:-2] != b[:-2]:
            raise UserError(f"{where}: {name}'s krona_a and krona_b differ in number of terms.")
        shapes[name] = (a[0] if len(a) == 3 else 1, a[-2], a[-1])
    return krona_config(values, shapes, where)


def _krona_merging_code(configs: Mapping[str, Any], file: str) -> str:
    """W += scale * sum of kron(A, B)."""
    parts = sorted(configs, key=len, reverse=True)
    scales = {name: config.scale for name, config in configs.items()}
    delta = "torch.kron(a_i, b_i)"
    if {config.output_order for config in configs.values()} == {"interleaved"}:
        # rows counted as the published code counts them
        delta += ".view(len(a_i), len(b_i), -1).transpose(0, 1).reshape(layer.weight.shape)"
    return f"""import torch
from safetensors.torch import load_file

factors, scales = load_file("{file}"), {scales!r}
for key in [k for k in factors if k.endswith(".krona_a")]:
    name = key.removesuffix(".krona_a")
    part = next((p for p in {parts!r} if name.startswith(p + ".")), "{denoiser_name(parts)}")
    layer = getattr(pipe, part).get_submodule(name.removeprefix(part + "."))
    a, b = factors[key].float(), factors[name + ".krona_b"].float()
    terms = zip(a.view(-1, *a.shape[-2:]), b.view(-1, *b.shape[-2:]))
    delta = scales[part] * sum({delta} for a_i, b_i in terms)
    layer.weight.data += delta.to(layer.weight)"""


KRONA = Method(
    name="krona",
    title="KronA",
    config_path="diffusekrona.krona:KronAConfig",
    tensor_names=("krona_a", "krona_b"),
    settings=(
        "a1", "a2", "text_encoder_a1", "text_encoder_a2", "factors", "krona_scale", "terms",
        "init_weights", "output_order",
    ),
    make_config=_krona_config,
    delta=_krona_delta,
    describe=_krona_words,
    size=_krona_size,
    multiplications=_krona_multiplications,
    fill=_krona_fill,
    norm=_krona_norm,
    read_config=_krona_from_file,
    fit=_krona_fit,
    formats=("krona", "lokr", "lora", "merged"),
    merging_code=_krona_merging_code,
    autocast=False,  # its layers cast their factors themselves
    learning_rate=6e-4,  # the paper's optimum is 5e-4 to 6e-4
    pocket_learning_rate=6e-3,
    merge_without_copy={"keep_base": False},
)  # fmt: skip
