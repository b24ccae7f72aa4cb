"""Every adapter method that the package knows, one file each.

Adding a method that PEFT has, or that is registered with PEFT as KronA is, means writing a record
(`method.py`) in a file of its own, naming it here, and adding its settings, if it needs new ones,
to the training settings.

Importing this module imports neither torch nor PEFT, so that `--help` stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..bases.components import is_text_encoder
from ..common.errors import UserError
from .krona_method import KRONA
from .lokr_method import LOKR
from .lora_method import LORA
from .method import Method, Targets
from .oft_method import OFT

if TYPE_CHECKING:
    from peft import PeftConfig

METHODS: dict[str, Method] = {method.name: method for method in (KRONA, LORA, LOKR, OFT)}


def is_second_factor(parameter: str) -> bool:
    """Whether a model's parameter, by its name, is the factor of an adapter that starts at 0."""
    return any(method.starts_at_zero(parameter) for method in METHODS.values())


def register(method: Method) -> Method:
    """Add a method to those that the package knows. Raises ValueError for a name that is taken."""
    if method.name in METHODS:
        raise ValueError(f"There is already an adapter method named {method.name!r}.")
    METHODS[method.name] = method
    return method


def method_of(config: PeftConfig) -> Method:
    """The record of a PEFT configuration's method. Raises LookupError for an unknown one."""
    return METHODS[str(getattr(config.peft_type, "value", config.peft_type)).lower()]


def targets_of(
    letters: str,
    names: Mapping[str, tuple[str, ...]],
    component: str,
    feed_forward: Sequence[str] = (),
) -> Targets:
    """The layers that letters of kqvo name, and the feed-forward layers given beside them.

    Raises:
        UserError: a letter that is none of kqvo, or nothing at all.
    """
    unknown = [letter for letter in letters if letter not in names]
    if unknown or not (letters or feed_forward):
        flag = "--attn_update_text" if is_text_encoder(component) else "--attn_update_unet"
        raise UserError(f"{flag} {letters!r}: give some of the letters k, q, v, o, such as kqvo.")
    projections = (end for letter in dict.fromkeys(letters) for end in names[letter])
    return Targets((*projections, *feed_forward), names, component)
