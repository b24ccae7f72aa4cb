"""PEFT configs as files hold them: the few fields that say what the tensors mean, checked.

A file may come from anybody, so nothing in it reaches PEFT or a regular expression unchecked.
Names are literal; what the tensors show themselves (layers, ranks, factors) is taken from them, and
a config that says otherwise is refused.

Source: huggingface/peft `tuners/lora/config.py`, `utils/other.py` (`get_pattern_key`).
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from peft import LoraConfig, PeftConfig

from ..common.errors import UserError, shortened
from ..common.tensor_files import LONGEST_KEY
from ..krona import KronAConfig

T = TypeVar("T")
LARGEST_COUNT = 2**27  # of a factor's rows or a rank; no model's layer has as many
LARGEST_SCALE = 1e6
_NAME = re.compile(r"[A-Za-z0-9_.\-]+")
# Initialisations of PEFT's LoRA that leave the base model's weights as they are.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "lycoris")

# Fields that leave a LoRA's meaning as it is, or that are read; and others that change it.
_PLAIN_FIELDS = (
    *("use_rslora", "use_dora", "runtime_config", "megatron_config"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # of the initialisation
)
_OTHER_VARIANTS = ("fan_in_fan_out", "layer_replication", "alora_invocation_tokens")


def number(value: Any, where: object, what: str = "scale") -> float:
    """A finite number from a file's settings. Raises UserError for anything else."""
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not abs(value) < LARGEST_SCALE:  # also false for NaN
        raise _damaged(where, f"{what} is {shortened(repr(value))}")
    return float(value)


def count(value: Any, where: object, what: str) -> int:
    """A whole number of at least 1 from a file's settings. Raises UserError."""
    fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits or not 1 <= value <= LARGEST_COUNT:
        raise _damaged(where, f"{what} is {shortened(repr(value))}")
    return value


def choice(value: object, known: Iterable[object], where: object, what: str) -> Any:
    """One of the known values. Raises UserError."""
    for item in known:
        if value == item and type(value) is type(item):
            return item
    raise _damaged(where, f"{what} is {shortened(repr(value))}")


def pattern(
    values: Mapping[str, Any], field: str, where: object, check: Callable[[object, object, str], T]
) -> dict[str, T]:
    """A field such as `rank_pattern`: plain name to its checked value.

    Raises:
        UserError: the field is not a mapping, or a key is a regular expression and not a name.
    """
    given = values.get(field)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise _damaged(where, f"{field} is {shortened(repr(given))}")
    return {literal(key, where, field): check(v, where, field) for key, v in given.items()}


def literal(key: Any, where: object, field: str) -> str:
    r"""A key of a pattern as the name it denotes: `to\.k$` is to.k, and `^to\.k` is ^to.k, which is
    the whole path of one layer.

    Raises:
        UserError: any other regular expression; PEFT and diffusers write names with these marks.
    """
    start = "^" if isinstance(key, str) and key.startswith("^") else ""
    name = key.removeprefix("^").removesuffix("$") if isinstance(key, str) else ""
    name = re.sub(r"\\([.\-_])", r"\1", name[: 2 * LONGEST_KEY])
    if len(name) > LONGEST_KEY or not _NAME.fullmatch(name):
        raise UserError(
            f"{where}: {field} has {shortened(repr(key))}, and of files only names of layers are "
            "read, no regular expressions: write the layers' names instead, or merge with PEFT's "
            "merge_and_unload and convert the whole model that this gives."
        )
    return start + name


def lookup(patterns: Mapping[str, T], path: str, default: T) -> T:
    """The value for a layer: of the first name that is its path or the end of it, as in PEFT."""
    if not patterns:
        return default
    ends = {path, "^" + path, *(path[found.end() :] for found in re.finditer(r"\.", path))}
    return next((value for name, value in patterns.items() if name in ends), default)


def krona_config(
    values: Mapping[str, Any], shapes: Mapping[str, tuple[int, int, int]], where: object
) -> KronAConfig:
    """The config of a KronA adapter.

    Args:
        values: the file's settings.
        shapes: layer to (terms, a1, a2), as its tensors show them.

    Raises:
        UserError: settings of a wrong type or out of range, or unlike the tensors.
    """
    terms = count(values.get("terms", 1), where, "terms")
    for path, (own, _, _) in shapes.items():
        if own != terms:
            raise UserError(
                f"{where} has a damaged config: terms is {terms}, but {path} holds {own}."
            )
    given = pattern(values, "factor_pattern", where, _pair)
    common = (
        count(values.get("a1", 4), where, "a1"),
        count(values.get("a2", 64), where, "a2"),
    )
    differing = {
        path: (a1, a2)
        for path, (_, a1, a2) in shapes.items()
        if lookup(given, path, common) != (a1, a2)
    }
    known = KronAConfig.__dataclass_fields__
    try:
        return KronAConfig(
            a1=common[0],
            a2=common[1],
            target_modules=targets(values, shapes),
            # The layers' own names first: PEFT takes the first that matches.
            factor_pattern={**differing, **given},
            scale=number(values.get("scale", 1.0), where),
            terms=terms,
            init_weights=values.get("init_weights", known["init_weights"].default),
            output_order=values.get("output_order", known["output_order"].default),
        )
    except (TypeError, ValueError) as error:
        raise _damaged(where, shortened(error, 120)) from error


def lora_config(values: Mapping[str, Any], ranks: Mapping[str, int], where: object) -> LoraConfig:
    """The config of a plain LoRA: its ranks from the tensors, its alphas from the file.

    Args:
        ranks: layer to its rank, as its tensors show it.

    Raises:
        UserError: settings of a wrong type, unlike the tensors, or of a LoRA that is more than
            two factors per layer.
    """
    refuse_other_bases(values, where)
    refuse_variants(values, where)
    for field in ("use_dora", "lora_bias"):
        if values.get(field):
            raise UserError(f"{where}: a LoRA with {field} cannot be loaded as two plain factors.")
    alphas = _alphas(values, ranks, where)
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return LoraConfig(
        r=rank,
        lora_alpha=cast(Any, alpha),  # a number; PEFT's own annotation is narrower
        target_modules=targets(values, ranks),
        rank_pattern={f"^{re.escape(p)}": r for p, r in ranks.items() if r != rank},
        alpha_pattern={f"^{re.escape(p)}": a for p, a in alphas.items() if a != alpha},
        use_rslora=_flag(values, "use_rslora", where),
        init_lora_weights=values.get("init_lora_weights", True) in (True, "gaussian"),
    )


def plain_config(
    kind: Callable[..., PeftConfig], values: Mapping[str, Any], layers: Iterable[str], where: object
) -> PeftConfig:
    """The config of any other method: its plain numbers and flags, of the types of its defaults.

    Raises:
        UserError: a field of another type, an initialisation that changes the base model, or a
            value that the method refuses.
    """
    refuse_other_bases(values, where)
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, kind)):
        default, value = field.default, values.get(field.name, field.default)
        if value == default or field.name.startswith("init_") or default is dataclasses.MISSING:
            continue
        if isinstance(default, bool):
            plain[field.name] = choice(value, (True, False), where, field.name)
        elif isinstance(default, float) or field.name == "alpha":  # by default a whole number
            plain[field.name] = number(value, where, field.name)
        elif isinstance(default, int):
            plain[field.name] = count(value, where, field.name)
    try:
        return kind(target_modules=targets(values, layers), **plain)
    except (TypeError, ValueError) as error:
        raise _damaged(where, shortened(error, 120)) from error


def lora_scales(
    values: Mapping[str, Any], ranks: Mapping[str, int], where: object
) -> dict[str, float]:
    """What PEFT multiplies each LoRA layer by: alpha / r, or alpha / sqrt(r). Raises UserError."""
    refuse_other_bases(values, where)
    refuse_variants(values, where)
    root = _flag(values, "use_rslora", where)
    alphas = _alphas(values, ranks, where)
    return {p: alphas[p] / (r**0.5 if root else r) for p, r in ranks.items()}


def lokr_scales(values: Mapping[str, Any], paths: Iterable[str], where: object) -> dict[str, float]:
    """What PEFT multiplies each LoKr layer by, alpha / r, even whole factors. Raises UserError."""
    rank, alpha = count(values.get("r"), where, "r"), number(values.get("alpha"), where, "alpha")
    ranks = pattern(values, "rank_pattern", where, count)
    alphas = pattern(values, "alpha_pattern", where, number)
    return {p: lookup(alphas, p, alpha) / lookup(ranks, p, rank) for p in paths}


def refuse_other_bases(values: Mapping[str, Any], where: object) -> None:
    """Refuse an adapter whose initialisation changed the weights of its base model.

    PiSSA, OLoRA, CorDA, LoftQ and their kin move a part of each weight into the adapter and train
    on what remains, so the factors mean nothing beside the base as it is published.

    Raises:
        UserError: naming PEFT's own way to make a plain LoRA of it.
    """
    start = values.get("init_lora_weights", values.get("init_weights", True))
    if not any(start is plain or start == plain for plain in _PLAIN_STARTS):
        raise UserError(
            f"{where}: initialised with {shortened(repr(start))}, which changes the base model's "
            "weights, so it fits no other base: save it as a plain LoRA with PEFT's "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…) and convert that."
        )


def refuse_variants(values: Mapping[str, Any], where: object) -> None:
    """Refuse a LoRA whose factors mean something else than scale * up @ down, by the fields that
    say so; those of variants to come will be called as today's are.

    Raises:
        UserError: naming the field and PEFT's own way to a whole model.
    """
    for field, value in values.items():
        named = field.startswith("use_") or field.endswith("_config") or field in _OTHER_VARIANTS
        if named and field not in _PLAIN_FIELDS and value not in (None, False, {}, []):
            raise UserError(
                f"{where}: a LoRA with {shortened(field)} is not two plain factors: merge it with "
                "PEFT's merge_and_unload and convert the whole model that this gives."
            )


def targets(values: Mapping[str, Any], layers: Iterable[str]) -> list[str]:
    """Target names for PEFT: the file's, where they are plain names that cover the layers."""
    layers, given = list(layers), values.get("target_modules")
    if isinstance(given, list | set | tuple) and len(given) <= 32:
        names = [n for n in given if isinstance(n, str) and _NAME.fullmatch(n[:LONGEST_KEY])]
        known = dict.fromkeys(names, True)
        if len(names) == len(given) and all(lookup(known, path, False) for path in layers):
            return sorted(names)
    return sorted(layers)


def _alphas(values: Mapping[str, Any], ranks: Mapping[str, int], where: object) -> dict[str, float]:
    alphas = pattern(values, "alpha_pattern", where, number)
    given = pattern(values, "rank_pattern", where, count)
    for path, rank in ranks.items():
        noted = lookup(given, path, count(values["r"], where, "r") if "r" in values else rank)
        if noted != rank:
            raise UserError(
                f"{where} has a damaged config: r is {noted}, but the factors of {path} have "
                f"rank {rank}."
            )
    usual = values.get("lora_alpha", 8)  # PEFT's default
    alpha = number(usual, where, "lora_alpha")
    return {path: lookup(alphas, path, alpha) for path in ranks}


def _flag(values: Mapping[str, Any], field: str, where: object) -> bool:
    return bool(choice(values.get(field), (True, False, None), where, field))


def _pair(value: Any, where: object, what: str) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _damaged(where, f"{what} is {shortened(repr(value))}")
    return count(value[0], where, what), count(value[1], where, what)


def _damaged(where: object, what: str) -> UserError:
    return UserError(f"{where} has a damaged config: {what}.")
