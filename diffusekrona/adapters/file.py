"""The adapter file: one safetensors file that says by itself what it is.

Tensors have PEFT's names, `<module path>.<name>`, with the path in the denoiser; those of a text
encoder begin with its name (`text_encoder.`, `text_encoder_2.`). KronA's are `krona_a` (a1, a2) and
`krona_b` (b1, b2), with a leading dimension for more terms than one; LoRA's are `lora_A.weight`
(r, in) and `lora_B.weight` (out, r).

Metadata (strings, as the format wants them):

    diffusekrona   version of this layout, "1"
    method         its name in `methods.METHODS`, such as "krona" or "lora"
    base_family    its name in `families.FAMILIES`, such as "sdxl"
    config         JSON, component to its PEFT config: factors, pattern of factors, scale, terms …
    and whatever the writer adds: base_model, instance_prompt, steps, learning_rate …
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..bases.base import Family
from ..bases.components import denoiser_name, is_text_encoder
from ..bases.families import FAMILIES, components_of, denoiser_names, resembling
from ..bases.names import with_text_model, without_text_model
from ..common.errors import UserError, shortened
from ..common.files import replace_whole
from ..common.json_files import parse_json
from ..common.own_files import keep_foreign
from ..common.paths import as_path
from ..common.tensor_files import entries_of, read_tensors, write_entries
from ..krona import target_layers
from .foreign import component_folders, in_own_layout, read_component_folders
from .layers import tensor_shapes
from .layout import ADAPTER_FILE, FILES, LAYOUT_VERSION, default_weight, metadata_head
from .methods import METHODS, Method, method_of


@dataclass
class Adapter:
    """An adapter file's content: tensors by full key, one PEFT config per component, metadata."""

    tensors: dict[str, torch.Tensor]
    configs: dict[str, PeftConfig]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        return METHODS[self.metadata.get("method", "krona")]

    @property
    def base_family(self) -> str | None:
        return self.metadata.get("base_family")

    def split(self, key: str) -> tuple[str, str]:
        """Full key to (component, key inside it); the denoiser's keys need no prefix."""
        head, _, rest = key.partition(".")
        if head in self.configs or is_text_encoder(head):
            return head, rest
        return denoiser_name(self.configs), key

    def component_tensors(self, component: str) -> dict[str, torch.Tensor]:
        """The tensors of one component, keys without its prefix."""
        split = ((self.split(key), tensor) for key, tensor in self.tensors.items())
        return {inner: tensor for (of, inner), tensor in split if of == component}


def collect_adapter(
    model: Any,
    adapter_name: str = "default",
    base_family: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Adapter:
    """Read the adapter out of a model, a pipeline or a mapping of components, onto the CPU.

    Raises:
        ValueError: no component carries an adapter of that name.
    """
    tensors: dict[str, torch.Tensor] = {}
    configs: dict[str, PeftConfig] = {}
    parts: dict[str, Any] = dict(components_of(model))
    for component, part in parts.items():
        config = getattr(part, "peft_config", {}).get(adapter_name)
        if config is None:
            continue
        configs[component] = config
        prefix = f"{component}." if is_text_encoder(component) else ""
        for key, tensor in get_peft_model_state_dict(part, adapter_name=adapter_name).items():
            tensors[prefix + key] = tensor.detach().to("cpu", dtype).contiguous()
    if not configs:
        raise ValueError(f"The model carries no adapter named {adapter_name!r}.")
    denoiser = parts.get(denoiser_name(parts))
    if base_family is None and denoiser is not None:
        family = resembling(denoiser.config)
        base_family = family and family.name
    method = method_of(next(iter(configs.values()))).name
    values = {name: config_to_json(config) for name, config in configs.items()}
    head = metadata_head(method, values, base_family)
    layers_per_block = getattr(denoiser, "config", {}).get("layers_per_block")
    if isinstance(layers_per_block, int):
        head["layers_per_block"] = str(layers_per_block)  # the original block names count with it
    extra = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    return Adapter(tensors, configs, {**extra, **head})


def write_adapter(adapter: Adapter, path: Path | str) -> Path:
    """Write an adapter file atomically. Raises OSError (a full disk, no permission)."""
    keep_foreign(Path(path))
    with replace_whole(path) as temporary:
        write_entries(entries_of(adapter.tensors), temporary, adapter.metadata)
    return Path(path)


def save_adapter(
    model: Any,
    path: Path | str,
    adapter_name: str = "default",
    base_family: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Save one adapter of a denoiser, a pipeline or a mapping of components to a safetensors file.

    Args:
        model: what carries the adapter; text encoders in it are saved too if they carry it.
        path: the file to write; its folder is made. Replaced only whole.
        base_family: such as "sdxl"; read from the denoiser's config if not given.
        metadata: more to note in the file; values that are not strings become JSON.
        dtype: of the tensors in the file; as they are by default.

    Raises:
        ValueError: no such adapter in the model.
    """
    return write_adapter(collect_adapter(model, adapter_name, base_family, metadata, dtype), path)


def adapter_file(path: str | Path) -> Path:
    """Where an adapter is: of a folder the file in it, or the folder itself where PEFT saved the
    adapters of several components in it. Any other path stays as it is."""
    path = as_path(path)
    if not path.is_dir():
        return path
    found = next((path / name for name in FILES if (path / name).is_file()), None)
    return found or (path if component_folders(path) else path / ADAPTER_FILE)


def read_adapter(path: Path | str) -> Adapter:
    """Read and check an adapter file; nothing in it is trusted.

    Raises:
        UserError: no such file, not safetensors, not this package's adapter, a factor without its
            partner, a tensor of a wrong shape or with values that are not finite; the key is named.
    """
    path = adapter_file(path)
    if path.is_dir():
        tensors, metadata = read_component_folders(component_folders(path))
    elif not path.is_file():
        raise UserError(f"No adapter file at {path}: give the path of an {ADAPTER_FILE}.")
    else:
        tensors, metadata = read_tensors(path)
        if "diffusekrona" not in metadata:
            tensors, metadata = in_own_layout(tensors, metadata, path)
    if metadata["diffusekrona"] != LAYOUT_VERSION:
        raise UserError(
            f"{path} has layout version {shortened(repr(metadata['diffusekrona']))}, this program "
            f"reads {LAYOUT_VERSION!r}: update DiffuseKronA."
        )
    method = METHODS.get(metadata.get("method", ""))
    if method is None:
        name = shortened(repr(metadata.get("method")))
        raise UserError(f"{path} holds an unknown adapter method {name}.")
    try:
        values = parse_json(metadata.get("config", ""), dict[str, dict[str, Any]])
    except ValueError as error:
        raise UserError(f"{path} has a damaged config in its metadata ({error}).") from error
    return checked_adapter(method, tensors, values, metadata, path)


def checked_adapter(
    method: Method,
    tensors: Mapping[str, torch.Tensor],
    values: Mapping[str, Mapping[str, Any]],
    metadata: Mapping[str, str],
    where: Path | str,
) -> Adapter:
    """An adapter of tensors and settings from a file, each checked against the other.

    Args:
        values: component to its PEFT config as the file holds it.

    Raises:
        UserError: naming the key or the setting.
    """
    adapter = Adapter(dict(tensors), dict.fromkeys(values, PeftConfig()), dict(metadata))
    for component in values:
        if component not in denoiser_names() and not is_text_encoder(component):
            raise UserError(f"{where} has a config of an unknown part {shortened(component)!r}.")
    _check_tensors(adapter, method, where)
    for component, own in values.items():
        layers = method.by_layer(adapter.component_tensors(component))
        if not layers:
            raise UserError(f"{where} has a config of {component}, but no tensors of it.")
        adapter.configs[component] = method.config_from_file(own, layers, where)
    return adapter


def load_adapter(
    model_or_pipeline: Any,
    path: Path | str,
    adapter_name: str = "default",
    weight: float | None = None,
) -> Adapter:
    """Put the adapter of a file on a denoiser, a pipeline or a mapping of parts, and activate it.

    Adapters that were active stay so: loading two mixes them, each with its weight.

    Args:
        weight: what the adapter's delta is multiplied by; None: the default weight in the file's
            metadata, as `diffusekrona choose` writes it into best.safetensors, or else 1.

    Raises:
        UserError: what `read_adapter` refuses; an adapter for another base family; a layer that
            the base does not have or has in another size. The model is then as it was.
        ValueError: the model already carries an adapter of that name.
    """
    adapter = read_adapter(path)
    weight = default_weight(adapter.metadata) if weight is None else weight
    put_adapter(model_or_pipeline, adapter, adapter_name, weight, source=str(path))
    return adapter


def put_adapter(
    model: Any,
    adapter: Adapter,
    adapter_name: str = "default",
    weight: float = 1.0,
    source: str = "the adapter",
) -> None:
    """`load_adapter` for an adapter already in memory."""
    parts: dict[str, Any] = dict(components_of(model))
    denoiser = parts.get(denoiser_name(parts))
    if denoiser is not None:
        family = resembling(denoiser.config)
        check_family(adapter, family, source)
        if family is not None:
            family.split_fused(denoiser)
    # Everything is checked before the first layer is touched.
    adapter.method.check_weight(weight)
    plan = []
    for component, config in adapter.configs.items():
        if component not in parts:
            raise UserError(f"{source} adapts {component}, which the given model does not have.")
        if adapter_name in getattr(parts[component], "peft_config", {}):
            raise ValueError(f"An adapter named {adapter_name!r} is already loaded.")
        tensors = named_as_in(parts[component], adapter.component_tensors(component))
        fitted = _fit_config(config, tensors, parts[component], component, source)
        plan.append((parts[component], fitted, tensors))
    for part, config, tensors in plan:
        active = _active_adapters(part)
        part.add_adapter(config, adapter_name)
        set_peft_model_state_dict(part, tensors, adapter_name=adapter_name)
        part.set_adapter([*active, adapter_name])
        set_adapter_weight(part, adapter_name, weight)


def check_family(adapter: Adapter, family: Family | None, source: str = "the adapter") -> None:
    """Raises UserError if the adapter was trained for another family than this one."""
    name = family.name if family else "of none of " + ", ".join(FAMILIES)
    if adapter.base_family and name != adapter.base_family:
        raise UserError(
            f"{source} was trained for {adapter.base_family}, but the base model is {name}: "
            "use a base of the adapter's family."
        )


def set_adapter_weight(model: nn.Module, adapter_name: str, weight: float) -> None:
    """Set the weight that one adapter is mixed in with, and leave the others alone.

    Raises:
        UserError: another weight than 1 for a method that has none.
    """
    method = method_of(cast(Any, model).peft_config[adapter_name])
    method.check_weight(weight)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and carries(module, adapter_name):
            method.set_weight(module, adapter_name, weight)


def carries(layer: BaseTunerLayer, adapter_name: str) -> bool:
    """Whether a PEFT layer holds an adapter of this name."""
    return any(adapter_name in getattr(layer, names) for names in layer.adapter_layer_names)


def _active_adapters(model: Any) -> list[str]:
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            return [name for name in module.active_adapters if name in model.peft_config]
    return []


def named_as_in(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys with or without CLIP's `text_model.`, as this model has it: transformers dropped it."""
    wrapped = hasattr(model, "text_model")
    if not (wrapped or hasattr(model, "encoder")):  # not a text encoder
        return dict(tensors)
    renamed = with_text_model if wrapped else without_text_model
    return {renamed(key): tensor for key, tensor in tensors.items()}


def _check_tensors(adapter: Adapter, method: Method, where: Path | str) -> None:
    tensors = adapter.tensors
    if not tensors:
        raise UserError(f"{where} holds no tensors.")
    names: dict[str, set[str]] = defaultdict(set)
    for key, tensor in tensors.items():
        found = method.layer_of(key)
        if found is None:
            raise UserError(f"{where} holds a key that is not a {method.title} tensor: {key}.")
        names[found[0]].add(found[1])
        if tensor.dim() not in (2, 3) or tensor.numel() == 0 or not tensor.is_floating_point():
            raise UserError(
                f"{where}: {key} of shape {tuple(tensor.shape)}, {tensor.dtype}, is not a valid "
                "factor."
            )
        if adapter.split(key)[0] not in adapter.configs:
            raise UserError(f"{where}: {key} belongs to a component that the config leaves out.")
    for layer, own in names.items():
        if lacking := method.missing_from(own):
            raise UserError(f"{where} holds {layer}.{min(own)} without its {lacking}.")


def _fit_config(
    config: PeftConfig,
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module,
    component: str,
    source: str,
) -> PeftConfig:
    """The config under which PEFT builds exactly the layers and shapes that the file holds."""
    method = method_of(config)
    layers = method.by_layer(tensors)
    modules = dict(model.named_modules())
    sizes = {}
    for name in sorted(layers):
        module = modules.get(name)
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if not isinstance(base, nn.Linear):
            raise UserError(f"{source} adapts {component} layer {name}, which this base lacks.")
        sizes[name] = (base.out_features, base.in_features)
        made = method.delta(layers[name], config, name).shape if method.delta else sizes[name]
        if made != sizes[name]:
            raise UserError(
                f"{source} does not fit this base: layer {name} is {_by(sizes[name])}, its factors "
                f"make {_by(made)}."
            )
    # A copy, so that two models given one Adapter share nothing.
    config = config_from_json(method.name, config_to_json(config))
    if set(target_layers(config, model)) != set(layers):
        vars(config).update(target_modules=set(layers), exclude_modules=None)
    config = method.fit(config, layers)
    for name, shapes in tensor_shapes(config, sizes).items():
        for end, shape in shapes.items():
            have = tuple(layers[name][end].shape)
            if have != shape:
                raise UserError(
                    f"{source}: {name}.{end} is {_by(have)}, but its config asks for {_by(shape)}."
                )
    return config


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def config_to_json(config: PeftConfig) -> dict[str, Any]:
    """What the file keeps of a PEFT config: what describes the adapter, not how it was run."""
    default = method_of(config).config_class(target_modules=["_"])
    values = {}
    for key, value in config.to_dict().items():
        if key in ("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode"):
            continue
        if isinstance(value, set):
            value = sorted(value)
        if key in ("a1", "a2", "r", "target_modules") or value != getattr(default, key, None):
            values[key] = value
    return json.loads(json.dumps(values, default=str))


def config_from_json(method: str, values: Mapping[str, Any]) -> PeftConfig:
    kind = METHODS[method].config_class
    known = {field.name for field in fields(cast(Any, kind))}
    return kind(**{name: value for name, value in values.items() if name in known})
