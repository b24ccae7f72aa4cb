"""The record of an adapter method: everything that the rest of the package wants to know of it.

The layers, shapes and counts of a method come from PEFT itself (`layers.py`), so a record holds
only what PEFT does not know.

Importing this module imports neither torch nor PEFT, so that `--help` stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from ..bases.bundled import is_bundled
from ..common.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

    from .deltas import Delta

Shape = tuple[int, ...]
Tensors = Mapping[str, "torch.Tensor"]  # one layer's, by the names in `Method.tensor_names`
ConfigReader = Callable[[Mapping[str, Any], Mapping[str, Tensors], object], "PeftConfig"]


@dataclass(frozen=True)
class Targets:
    """The layers of one component that get an adapter.

    Attributes:
        names: ends of the layers' names, such as "to_q".
        letters: of k, q, v, o, each to the name endings that it selects.
        component: as the base's pipeline names it.
    """

    names: tuple[str, ...]
    letters: Mapping[str, tuple[str, ...]]
    component: str


@dataclass(frozen=True)
class Method:
    """One adapter method.

    Attributes:
        name: in files and on the command line; PEFT's type in lower case.
        title: as people write it.
        config_path: "module:class" of its PEFT configuration.
        tensor_names: ends of the keys of one layer's tensors in a file.
        settings: the training settings that it reads.
        make_config: (settings, targets) to the PEFT configuration. Raises UserError.
        delta: (tensors, configuration, layer name) to delta W with the scale in it. Raises
            UserError for a configuration that makes no sense. None for a method that changes the
            base's weights otherwise than by adding to them: its adapters have no weight, and are
            neither converted nor inspected.
        describe: the configuration in a few words, for the model card.
        size: the shapes of a layer's tensors in a few words, for the dry run.
        multiplications: the shapes of a layer's tensors to the multiplications that one token costs
            beside the base's own; None where delta W itself is computed.
        fill: (a layer's tensors, delta or None for none, configuration) to tensors of these shapes
            that have exactly that delta W, to start a run from; None where this is not possible.
            Raises UserError for a delta that they cannot hold.
        norm: (layer, adapter name) to ||delta W||, a scalar, where that needs no delta W.
        read_config: (settings from a file, layer to tensors, where) to a configuration of which
            nothing is left unchecked; by default its plain numbers. Raises UserError.
        fit: (configuration, layer name to tensors) to the configuration under which PEFT makes
            tensors of these shapes; by default the same one.
        formats: kinds of the converter's targets (`Target.kind`) that hold the method exactly.
        merging_code: (configurations by component, file name) to Python lines for the model card,
            which merge the file into `pipe` with torch and safetensors alone.
        autocast: whether its layers need autocast in mixed precision; without it they cast by
            themselves.
        learning_rate: the default of the training program and of the scripts.
        pocket_learning_rate: of the scripts and of the page on the bundled bases, from the studies
            on them.
        variants: the sets of names that make up a layer, where layers differ in their tensors.
        zero_tensors: names of those that start at 0; by default the second of `tensor_names`.
        merge_without_copy: arguments of its layers' `merge` under which they keep no copy of the
            base's weight, for callers that keep one themselves.
    """

    name: str
    title: str
    config_path: str
    tensor_names: tuple[str, ...]
    settings: tuple[str, ...]
    make_config: Callable[[Any, Targets], PeftConfig]
    delta: Callable[[Tensors, Any, str], Delta] | None
    describe: Callable[[Any], str]
    size: Callable[[Mapping[str, Shape]], str]
    multiplications: Callable[[Mapping[str, Shape]], int] | None = None
    fill: Callable[[Tensors, Delta | None, Any], dict[str, torch.Tensor]] | None = None
    norm: Callable[[Any, str], torch.Tensor] | None = None
    read_config: ConfigReader | None = None
    fit: Callable[[Any, Mapping[str, Tensors]], Any] = lambda config, layers: config
    formats: tuple[str, ...] = ("merged",)
    merging_code: Callable[[Mapping[str, Any], str], str] | None = None
    autocast: bool = True
    learning_rate: float = 1e-4
    pocket_learning_rate: float = 2e-3
    variants: tuple[tuple[str, ...], ...] = ()
    zero_tensors: tuple[str, ...] = ()
    merge_without_copy: Mapping[str, Any] = field(default_factory=dict)

    def usual_rate(self, base: str) -> float:
        """The learning rate that the scripts and the page begin with on a base, by its name or
        folder."""
        return self.pocket_learning_rate if is_bundled(base) else self.learning_rate

    @property
    def config_class(self) -> Callable[..., PeftConfig]:
        return resolve_name(self.config_path)

    def config_from_file(
        self, values: Mapping[str, Any], layers: Mapping[str, Tensors], where: object
    ) -> PeftConfig:
        """The configuration that a file holds, checked. Raises UserError."""
        from .file_config import plain_config

        if self.read_config is not None:
            return self.read_config(values, layers, where)
        return plain_config(self.config_class, values, layers, where)

    def delta_of(self, tensors: Tensors, config: Any, layer: str) -> Delta:
        """`delta`. Raises UserError as well for a method that has none."""
        if self.delta is None:
            raise UserError(
                f"{self.title} does not add to the base's weights: its adapters can be trained and "
                "drawn with, but not converted, inspected or continued with another method."
            )
        return self.delta(tensors, config, layer)

    def check_weight(self, weight: float) -> None:
        """Raises UserError for a weight at which its adapters cannot be drawn."""
        if self.delta is None and weight != 1:
            raise UserError(
                f"{self.title} does not add to the base's weights: its adapters are drawn at "
                f"weight 1 and whole, not at {weight:g}."
            )

    def set_weight(self, layer: Any, adapter_name: str, weight: float) -> None:
        """Set what one layer's change is multiplied by, after `check_weight`."""
        if self.delta is not None:
            layer.set_scale(adapter_name, weight)

    def delta_norm(self, layer: Any, adapter_name: str) -> torch.Tensor:
        """||delta W|| of one layer of a model, a Frobenius norm and a scalar."""
        if self.norm is not None:
            return self.norm(layer, adapter_name)
        return layer.get_delta_weight(adapter_name).float().norm()

    def starts_at_zero(self, parameter: str) -> bool:
        """Whether a model's parameter, by its name, is a tensor of this method that starts at 0."""
        names = self.zero_tensors or self.tensor_names[1:2]
        return not {name.split(".")[0] for name in names}.isdisjoint(parameter.split("."))

    def missing_from(self, names: set[str]) -> str | None:
        """A tensor that a layer with tensors of these names lacks; None where it lacks none."""
        lacking = [sorted({*own} - names) for own in self.variants or (self.tensor_names,)]
        return None if [] in lacking else min(lacking, key=len)[0]

    def layer_of(self, key: str) -> tuple[str, str] | None:
        """(layer, tensor name) of a key; None for a key that is not one of this method's."""
        for end in self.tensor_names:
            if key.endswith("." + end):
                return key[: -len(end) - 1], end
        return None

    def by_layer(self, tensors: Tensors) -> dict[str, dict[str, torch.Tensor]]:
        """Tensors grouped by layer; keys that are not this method's are left out."""
        layers: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if found := self.layer_of(key):
                layers.setdefault(found[0], {})[found[1]] = tensor
        return layers


def norm_of_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """||sum_i a_i ⊗ b_i|| of the rows of two matrices, a scalar: the root of
    sum_ij <a_i, a_j> <b_i, b_j>. The shape in which each product is written does not matter."""
    return ((a @ a.t()) * (b @ b.t())).sum().clamp(min=0).sqrt()


def valid_scale(value: object, where: object) -> float:
    """A scale from a file's configuration.

    Raises:
        UserError: not a number, or not between -1e6 and 1e6; `where` is named.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6:
        return float(value)
    raise UserError(f"{where} has a damaged config: a scale of {value!r}.")  # also for NaN
