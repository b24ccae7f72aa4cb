"""The tuner: which layers get a Kronecker adapter, and the check that its factors fit them."""

# PEFT's tuners narrow the arguments of their hooks to their own configuration.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn

from .config import ATTENTION_PROJECTIONS, PEFT_TYPE, KronAConfig
from .factors import check_pairs
from .layer import ONE_ADAPTER_SET, KronALinear

PREFIX = "krona_"


def factors_of(config: KronAConfig, layer_name: str) -> tuple[int, int]:
    """The (a1, a2) that `config` gives to a layer, by its full name in the model."""
    exact = config.factor_pattern.get(layer_name)
    if exact is not None:  # without trying hundreds of regular expressions
        return exact
    key = get_pattern_key(list(config.factor_pattern), layer_name)
    return config.factor_pattern.get(key, (config.a1, config.a2))


def with_targets(config: PeftConfig) -> PeftConfig:
    """The config, or where it names no target modules a copy with those of diffusers' attention."""
    if getattr(config, "target_modules", None) is not None:
        return config
    config = copy.copy(config)
    setattr(config, "target_modules", set(ATTENTION_PROJECTIONS))  # noqa: B010, not in PeftConfig
    return config


def target_layers(config: PeftConfig, model: nn.Module) -> dict[str, nn.Module]:
    """Name to module of every layer that `config` would adapt in `model` (without wrapping it)."""
    config = with_targets(config)
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name and check_target_module_exists(config, name):
            layers[name] = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return layers


def check_factors(config: KronAConfig, shapes: Iterable[tuple[str, int, int]]) -> None:
    """Refuse factors that do not divide a layer: `factors.check_pairs` for a config."""
    check_pairs(lambda name: factors_of(config, name), shapes)


class KronAModel(BaseTuner):
    """Puts `KronALinear` in the place of the targeted `nn.Linear`s, as PEFT's tuners do."""

    prefix = PREFIX
    tuner_layer_cls = KronALinear

    @staticmethod
    def _prepare_adapter_config(peft_config: KronAConfig, model_config: object) -> KronAConfig:
        peft_config.target_modules = peft_config.target_modules or set(ATTENTION_PROJECTIONS)
        return peft_config

    def _prepare_model(self, peft_config: KronAConfig, model: nn.Module) -> None:
        # Before the first layer is wrapped, so that a refused config leaves the model untouched.
        try:
            layers = {n: _linear(n, m) for n, m in target_layers(peft_config, model).items()}
            shapes = ((n, m.out_features, m.in_features) for n, m in layers.items())
            check_factors(peft_config, shapes)
        except ValueError:
            # diffusers notes an adapter as loaded before it asks PEFT for it.
            if getattr(model, "_hf_peft_config_loaded", False) and not hasattr(
                model, "peft_config"
            ):
                model.__dict__["_hf_peft_config_loaded"] = False
            raise

    def _create_and_replace(
        self,
        peft_config: KronAConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        a1, a2 = factors_of(peft_config, current_key)
        if isinstance(target, KronALinear):
            target.update_layer(adapter_name, peft_config, a1, a2)
            return
        linear = _linear(current_key, target)  # "all-linear" is resolved after the first check
        layer = KronALinear(linear, adapter_name, peft_config, a1, a2)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # an additional adapter is not trainable by itself
        self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if (
            not autocast_adapter_dtype
        ):  # PEFT's other methods are in the base's dtype from the start
            for layer in self._layers():
                layer.cast_factors(adapter_name)

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """As in every PEFT method; with `safe_merge`, no layer is merged when one cannot be.

        Raises:
            ValueError: what `KronALinear.merge` refuses.
        """
        if safe_merge:
            self._check_merge(adapter_names)
        super().merge_adapter(adapter_names)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge and safe_merge:
            self._check_merge(adapter_names)
        base = super()._unload_and_optionally_merge(merge, progressbar, False, adapter_names)
        return cast(nn.Module, base)  # which PEFT declares as None

    def _check_merge(self, adapter_names: list[str] | None) -> None:
        for layer in self._layers():
            layer.check_merge(adapter_names)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Generator[None]:
        """PeftModel enters this around a forward call, and then drops `adapter_names`."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(ONE_ADAPTER_SET)
        yield

    def _layers(self) -> Iterator[KronALinear]:
        return (module for module in self.model.modules() if isinstance(module, KronALinear))


def _linear(name: str, layer: nn.Module) -> nn.Linear:
    """The layer, which another adapter may wrap, as a linear one. Raises ValueError."""
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    if not isinstance(base, nn.Linear):
        kind = type(base).__name__
        raise ValueError(f"KronA adapts nn.Linear layers only; {name!r} is a {kind}.")
    return cast(nn.Linear, layer)


def register_krona() -> None:
    """Enter the method into PEFT's tables, so that diffusers and PEFT drive it as their own.

    PEFT's `register_peft_method` takes only names in its own enumeration, hence the tables that it
    fills.
    """
    from peft import mapping

    name = cast(PeftType, PEFT_TYPE)
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[name] = KronAConfig
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[name] = KronAModel
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[name] = PREFIX


def merge_and_unload(model: nn.Module) -> nn.Module:
    """Merge the active adapters of `model` for good and leave plain layers behind.

    Works on any PEFT adapter that diffusers or transformers hold (KronA and LoRA alike), layer by
    layer; KronA merges in place, with no copy of a weight. Returns the same model, without PEFT.
    """
    return unload(model, merge=True)


def unload(model: nn.Module, merge: bool = False) -> nn.Module:
    """Take the adapters off `model`: its layers are the base's again, bit for bit, or with `merge`
    what `merge_and_unload` makes of them. Returns the same model, without PEFT."""
    # Where two methods adapt one layer, one wraps the other: the inner one first.
    for name, module in reversed(list(model.named_modules())):
        if not isinstance(module, BaseTunerLayer):
            continue
        if merge and isinstance(module, KronALinear):
            module.merge(keep_base=False)
        elif merge:
            module.merge()
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    if hasattr(model, "_hf_peft_config_loaded"):
        model.__dict__["_hf_peft_config_loaded"] = False
    return model
