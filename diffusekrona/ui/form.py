"""Fields of a form from a settings class, and what is typed into them as its values."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_type_hints

from ..common.errors import UserError
from ..common.settings import Option, broken_limit, kind_in_words, options_of

Mistakes = dict[str, str]  # name of a setting to what is wrong with it; "" for the rest


def groups_of(cls: type) -> dict[str, tuple[str, list[Option]]]:
    """Each group of a settings class: its title, and its settings in order."""
    hints, found = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            title = (kind.__doc__ or field.name).strip().splitlines()[0].rstrip(".")
            found[field.name] = (title, list(options_of(kind).values()))
    return found


_LABELS = {
    "pretrained_model_name_or_path": "base model",
    "pretrained_vae_model_name_or_path": "VAE",
    "instance_prompt": "prompt",
    "instance_data_dir": "folder of the pictures",
    "holdout_data_dir": "folder of held-out pictures",
    "subject_dir": "photos of the subject",
    "adapter_type": "method",
    "attn_update_unet": "projections to adapt",
    "attn_update_text": "projections to adapt in text encoders",
    "max_train_steps": "steps",
    "num_train_epochs": "passes over the pictures",
    "lr_num_cycles": "cycles of the learning rate",
    "hub_model_id": "name on the hub",
    "output_dir": "folder of the run",
    "num_inference_steps": "denoising steps",
    "low_vram": "for small GPUs",
    "every": "every so many steps",
    "budget": "time to spend",
    "clip_t_text": "text for CLIP-T",
    "source": "adapter",
    "to": "format",
    "from": "format of the adapter",
    "dtype": "precision",
}
_WORDS = {
    "vae": "VAE", "snr": "SNR", "ema": "EMA", "cpu": "CPU", "8bit": "8-bit", "tf32": "TF32",
    "clip": "CLIP", "dino": "DINO", "adam": "Adam", "huber": "Huber", "lora": "LoRA", "oft": "OFT",
    "lr": "learning rate", "dir": "folder", "dtype": "precision", "num": "number of",
    "krona": "KronA", "xformers": "xFormers",
}  # fmt: skip


def label_of(option: Option) -> str:
    """ "learning_rate" as "learning rate"."""
    return _label(option.name if option.name in _LABELS else option.key)


def _label(name: str) -> str:
    return _LABELS.get(name) or " ".join(_WORDS.get(word, word) for word in name.split("_"))


def without_flags(text: str) -> str:
    """A text with the labels of fields where it has flags: a reader of the page sees no flag."""
    return re.sub(r"(?<![\w-])--([a-z]\w+)", lambda found: f'"{_label(found[1])}"', text)


def help_of(option: Option) -> str:
    """The setting's help, with what it is if it is left empty."""
    text = option.metadata["help"].replace("; repeat the flag for several", "; one per line")
    text = text.replace("Repeat the flag to compare several.", "Several are compared.")
    text = without_flags(text)
    if option.default is MISSING or option.kind is bool or option.choices:
        return text
    shown = str(field_value(option, option.default)).replace("\n", ", ")
    return f"{text} Default: {shown}." if shown and "by default" not in text else text


def field_value(option: Option, value: Any) -> Any:
    """A setting's value as its field shows it."""
    if value is MISSING or value is None:
        return False if option.kind is bool else ""
    if option.kind is bool:
        return value
    return "\n".join(map(str, value)) if option.many else str(value)


def field_values(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of all fields of a form, from values by name and the defaults."""
    options = options_of(cls).items()
    return {name: field_value(o, values.get(name, o.default)) for name, o in options}


def read_field(option: Option, typed: Any) -> Any:
    """What is typed into a field as the setting's value; MISSING if nothing is.

    Raises:
        UserError: it is not of the setting's type, or outside its limits.
    """
    if option.kind is bool:
        return bool(typed)
    lines = [line.strip() for line in str(typed or "").splitlines() if line.strip()]
    if not lines:
        return MISSING
    if not option.many:
        return _read_one(option, " ".join(lines))
    if option.kind in (int, float):
        lines = [word for line in lines for word in line.replace(",", " ").split()]
    return tuple(_read_one(option, line) for line in lines)


def _read_one(option: Option, text: str) -> Any:
    text = text.lower() if option.metadata.get("ignore_case") else text
    try:
        value = option.kind(text)
    except ValueError:
        raise UserError(f"must be {kind_in_words(option.kind)}") from None
    if limit := broken_limit(option, value):
        raise UserError(f"must be {limit}")
    return value


def read_form(
    cls: type, typed: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Mistakes]:
    """The values that differ from the defaults, by name, and the mistakes, each at its field.

    Args:
        defaults: in place of the settings' own.
    """
    defaults = defaults or {}
    values: dict[str, Any] = {}
    mistakes: Mistakes = {}
    for name, option in options_of(cls).items():
        if name not in typed:
            continue
        try:
            value = read_field(option, typed[name])
        except UserError as error:
            mistakes[name] = str(error)
            continue
        if value is MISSING and option.default is MISSING:
            mistakes[name] = "is required"
        elif value is not MISSING and value != defaults.get(name, option.default):
            values[name] = value
    return values, mistakes


def place_of(cls: type, message: str) -> str:
    """The setting that an error names first, as `--flag`; "" if it names none."""
    flags = {option.flag: name for name, option in options_of(cls).items()}
    named = re.findall(r"--\w+", message)
    return next((flags[flag] for flag in named if flag in flags), "")


def places_of(cls: type, message: str, values: Mapping[str, Any]) -> list[str]:
    """The settings that an error is about: named as `--flag`, else as `name=` or by a path or model
    that one of them holds."""
    if place := place_of(cls, message):
        return [place]
    named = [name for name in re.findall(r"\b(\w+)=", message) if name in options_of(cls)]
    held = (n for n, value in values.items() if isinstance(value, str) and f"'{value}'" in message)
    return named or list(held)


def paths_of(cls: type, values: Mapping[str, Any]) -> dict[str, Path]:
    """The values that are paths, by name."""
    options = options_of(cls)
    return {n: v for n, v in values.items() if options[n].kind is Path and not options[n].many}
