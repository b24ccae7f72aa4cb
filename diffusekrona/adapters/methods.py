"""From what a user asks for (letters, factors, rank) to one PEFT config a component.

What is asked for is kept in plain values first: counting and checking it needs neither torch nor
PEFT, whose imports take seconds.

The letters are those of the published scripts: k, q, v, o for the attention's key, query, value and
output projections. Factors are (a1, a2) with a1 dividing out_features and a2 in_features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..bases.layer_shapes import Shapes
from ..common.errors import UserError
from ..krona.factors import Pair, check_pairs

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig
    from torch import nn

    from ..krona import KronAConfig

UNET_LETTERS = {"k": "to_k", "q": "to_q", "v": "to_v", "o": "to_out.0"}
TEXT_LETTERS = {"k": "k_proj", "q": "q_proj", "v": "v_proj", "o": "out_proj"}
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")


@dataclass(frozen=True)
class AdaptedLayer:
    """One layer of the plan: where it is, its size, its factors or rank in words, and how many
    values each of its trained tensors has."""

    component: str
    name: str
    out_features: int
    in_features: int
    factors: str
    tensors: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return sum(self.tensors)


@dataclass(frozen=True)
class KronAChoice:
    """KronA on one component, in plain values.

    Attributes:
        targets: ends of the names of the layers that are adapted.
        pairs: (a1, a2) of single targets; all others have (a1, a2).
        options: further fields of KronAConfig, such as `scale` and `init_weights`.
    """

    targets: tuple[str, ...]
    a1: int
    a2: int
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    terms: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def pair(self, name: str) -> Pair:
        """The (a1, a2) of a layer, by its full name."""
        own = (pair for target, pair in self.pairs.items() if _ends_with(name, target))
        return next(own, (self.a1, self.a2))

    def size(self, name: str, out: int, inside: int) -> tuple[str, tuple[int, int]]:
        """A layer's factors in words, and how many values A and B have."""
        a1, a2 = self.pair(name)
        b1, b2 = out // a1, inside // a2
        terms = f" x{self.terms}" if self.terms > 1 else ""
        return f"{a1}x{a2} (x) {b1}x{b2}{terms}", (self.terms * a1 * a2, self.terms * b1 * b2)

    def check(self, shapes: Shapes) -> None:
        """Refuse factors that do not divide a layer.

        Raises:
            UserError: naming the layer and the nearest pairs that would do.
        """
        try:
            check_pairs(self.pair, [(name, *shape) for name, shape in shapes.items()])
        except ValueError as error:
            raise UserError(str(error)) from error

    def config(self) -> KronAConfig:
        """PEFT's form of it."""
        from ..krona import KronAConfig

        return KronAConfig(
            a1=self.a1,
            a2=self.a2,
            target_modules=list(self.targets),
            factor_pattern=dict(self.pairs),
            terms=self.terms,
            **self.options,
        )


@dataclass(frozen=True)
class LoRAChoice:
    """PEFT's LoRA on one component, started as diffusers' DreamBooth scripts start it."""

    targets: tuple[str, ...]
    rank: int
    alpha: float | None = None

    def size(self, name: str, out: int, inside: int) -> tuple[str, tuple[int, int]]:
        """A layer's rank in words, and how many values A and B have."""
        return f"rank {self.rank}", (self.rank * inside, self.rank * out)

    def check(self, shapes: Shapes) -> None:
        """Any rank fits any layer."""

    def config(self) -> LoraConfig:
        """PEFT's form of it."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.rank if self.alpha is None else self.alpha,
            init_lora_weights="gaussian",
            target_modules=list(self.targets),
        )


Choice = KronAChoice | LoRAChoice


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")  # as PEFT matches a list of targets


def parse_factors(text: str | None) -> dict[str, Pair]:
    """ "k=8x64,o=2x64" to {"k": (8, 64), "o": (2, 64)}.

    Raises:
        UserError: anything else, naming the piece.
    """
    pairs: dict[str, Pair] = {}
    for piece in filter(None, re.split(r"[,;\s]+", text or "")):
        match = re.fullmatch(r"([kqvo])[=:](\d+)[x×](\d+)", piece)
        if not match or int(match[2]) < 1 or int(match[3]) < 1:
            raise UserError(
                f"--factors: cannot read {piece!r}; write letters of kqvo with their a1 x a2, "
                "as in --factors k=8x64,o=2x64"
            )
        pairs[match[1]] = (int(match[2]), int(match[3]))
    return pairs


def krona_choice(
    letters: str,
    a1: int,
    a2: int,
    factors: Mapping[str, Pair] | None = None,
    names: Mapping[str, str] = UNET_LETTERS,
    feed_forward: bool = False,
    terms: int = 1,
    **options: Any,
) -> KronAChoice:
    """KronA on the projections named by `letters`.

    Raises:
        UserError: a letter that is none of kqvo, none at all, or factors for one left out.
    """
    targets = _targets(letters, names, feed_forward)
    extra = [letter for letter in factors or {} if letter not in letters]
    if extra:
        raise UserError(f"--factors gives {extra[0]!r}, but --attn_update_unet is {letters!r}.")
    pairs = {names[letter]: pair for letter, pair in (factors or {}).items()}
    return KronAChoice(targets, a1, a2, pairs, terms, options)


def lora_choice(
    letters: str,
    rank: int,
    alpha: float | None = None,
    names: Mapping[str, str] = UNET_LETTERS,
    feed_forward: bool = False,
) -> LoRAChoice:
    """LoRA on the same projections. Raises UserError for letters or a rank that cannot be."""
    if rank < 1:
        raise UserError(f"--rank must be at least 1, not {rank}.")
    return LoRAChoice(_targets(letters, names, feed_forward), rank, alpha)


def _targets(letters: str, names: Mapping[str, str], feed_forward: bool) -> tuple[str, ...]:
    unknown = [letter for letter in letters if letter not in names]
    if unknown or not (letters or feed_forward):
        raise UserError(
            f"--attn_update_unet {letters!r}: give some of the letters k, q, v, o, such as kqvo."
        )
    projections = tuple(names[letter] for letter in dict.fromkeys(letters))
    return projections + FEED_FORWARD * feed_forward


def adapted_layers(
    choices: Mapping[str, Choice], shapes: Mapping[str, Shapes]
) -> list[AdaptedLayer]:
    """Every layer that `choices` would adapt.

    Args:
        shapes: component to its linear layers, as `layer_shapes.linear_layers` gives them.

    Raises:
        UserError: factors that do not divide a layer; a choice that matches no layer.
    """
    layers = []
    for component, choice in choices.items():
        found = {
            name: shape
            for name, shape in shapes[component].items()
            if any(_ends_with(name, target) for target in choice.targets)
        }
        if not found:
            raise UserError(f"No layer of {component} matches {', '.join(choice.targets)}.")
        choice.check(found)
        for name, (out, inside) in found.items():
            layers.append(
                AdaptedLayer(component, name, out, inside, *choice.size(name, out, inside))
            )
    return layers


def add_adapters(
    configs: Mapping[str, PeftConfig], models: Mapping[str, nn.Module], adapter_name: str
) -> list[nn.Parameter]:
    """Put the adapters on their models, everything else frozen; returns what is trained."""
    trained = []
    for component, config in configs.items():
        models[component].requires_grad_(False)
        models[component].add_adapter(config, adapter_name)
        trained += [p for p in models[component].parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()  # PEFT's LoRA takes the base's dtype
    return trained
