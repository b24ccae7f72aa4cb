"""What a run is going to do, resolved and counted before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..adapters.layers import (
    FEED_FORWARD,
    TEXT_LETTERS,
    UNET_LETTERS,
    AdaptedLayer,
    adapted_layers,
)
from ..adapters.methods import METHODS, Method, targets_of
from ..adapters.settings import AdapterSettings
from ..bases import backbones
from ..bases.layer_shapes import linear_layers
from ..bases.settings import BaseSettings
from ..common.errors import UserError
from .settings import OptimisationSettings

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass
class Plan:
    """A resolved run.

    Attributes:
        base: folder or hub name of the base model.
        family: its family.
        method: the adapter method.
        configs: component to the PEFT configuration of what is put on it.
        layers: every layer that is adapted, with its factors and parameter count.
        resolution: pixels a side.
        pixel_step: what picture sides must be multiples of, in pixels.
        vae_config: of the VAE that makes the latents.
    """

    base: str
    family: backbones.Family
    method: Method
    configs: dict[str, PeftConfig]
    layers: list[AdaptedLayer]
    resolution: int
    pixel_step: int
    vae_config: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)


def make_plan(base: BaseSettings, adapter: AdapterSettings, resolution: int | None) -> Plan:
    """Read the base's configs, and check that the adapter fits them. No weights are loaded.

    Args:
        resolution: pixels per side; None for the base's own.

    Raises:
        UserError: a missing base, factors that fit no layer, a resolution the UNet cannot take.
    """
    place = backbones.resolve_base(base.pretrained_model_name_or_path)
    unet_config = backbones.read_unet_config(place, base.revision)
    family = backbones.family_of(unet_config)
    shapes = {"unet": linear_layers("UNet2DConditionModel", unet_config)}
    method = METHODS[adapter.adapter_type]
    feed_forward = FEED_FORWARD if adapter.train_feed_forward else ()
    targets = targets_of(adapter.attn_update_unet, UNET_LETTERS, "unet", feed_forward)
    configs = {"unet": method.make_config(adapter, targets)}
    if adapter.train_text_encoder:
        for name, kind in backbones.text_encoder_kinds(family).items():
            config = backbones.read_part_config(place, name, base.revision)
            shapes[name] = linear_layers(kind, config)
            targets = targets_of(adapter.attn_update_text, TEXT_LETTERS, name)
            configs[name] = method.make_config(adapter, targets)
    layers = adapted_layers(configs, shapes)
    vae_config = backbones.read_vae_config(
        place, base.pretrained_vae_model_name_or_path, base.revision
    )
    scale = backbones.vae_scale(vae_config)
    pixel_step = scale * 2 ** (len(unet_config["block_out_channels"]) - 1)
    native = unet_config.get("sample_size") or family.resolution // scale
    resolution = resolution or scale * native
    if resolution % scale or resolution < pixel_step:
        raise UserError(
            f"--resolution {resolution}: this base takes multiples of {scale} from {pixel_step} on."
        )
    return Plan(place, family, method, configs, layers, resolution, pixel_step, vae_config)


def max_train_steps(optimisation: OptimisationSettings, pictures: int, processes: int = 1) -> int:
    """Optimizer steps of the run."""
    if optimisation.max_train_steps is not None:
        return optimisation.max_train_steps
    if optimisation.num_train_epochs is None:
        return 1000
    batch = optimisation.train_batch_size * processes * optimisation.gradient_accumulation_steps
    return max(1, -(-pictures * optimisation.num_train_epochs // batch))
