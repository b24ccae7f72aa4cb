"""What a run is going to do, resolved and counted before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..adapters.layers import AdaptedLayer, adapted_layers
from ..adapters.methods import METHODS, Method, targets_of
from ..adapters.settings import AdapterSettings
from ..bases.base import Family, empty_part
from ..bases.bundled import is_bundled
from ..bases.components import is_text_encoder
from ..bases.families import FAMILIES, check_schedule, identify
from ..bases.loading import (
    read_json_of,
    read_part_config,
    report_assumed,
)
from ..bases.meta import linear_layers, trusting_no_config
from ..bases.resolve import resolve_base
from ..bases.schedulers import check_zero_snr
from ..bases.settings import BaseSettings
from ..bases.single_file_parts import SingleFile
from ..bases.vae import read_vae_config
from ..common.errors import UserError
from ..common.settings import flat
from ..data.examples import Example, count_batches
from .settings import OptimisationSettings, TrainSettings, ValidationSettings

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass
class ResolvedRun:
    """A resolved run.

    Attributes:
        base: folder or hub name of the base model.
        family: its family.
        method: the adapter method.
        configs: component to the PEFT configuration of what is put on it.
        layers: every layer that is adapted, with its factors and parameter count.
        resolution: pixels per side.
        pixel_step: what picture sides must be multiples of, in pixels.
        vae_config: of the VAE that makes the latents.
        denoiser_config: of the base's denoiser.
    """

    base: str
    family: Family
    method: Method
    configs: dict[str, PeftConfig]
    layers: list[AdaptedLayer]
    resolution: int
    pixel_step: int
    vae_config: Mapping[str, Any]
    denoiser_config: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def trains_text_encoders(self) -> bool:
        return any(map(is_text_encoder, self.configs))


def resolve_run(
    base: BaseSettings, adapter: AdapterSettings, resolution: int | None
) -> ResolvedRun:
    """Read the base's configs, and check that the adapter fits them. No weights are loaded.

    Args:
        resolution: pixels per side; None for the base's own.

    Raises:
        UserError: a missing base, or one that no family claims; factors that fit no layer; a
            resolution that it cannot take.
    """
    place, family, config = _identified(base)
    report_assumed(place, base.prediction_type)
    check_schedule(family, place, base.revision)
    if base.rescale_betas_zero_snr:
        file = read_json_of(place, "scheduler", "scheduler_config.json", base.revision)
        check_zero_snr(place, file | base.schedule())
    if adapter.train_text_encoder and not family.text_letters:
        raise UserError(f"--train_text_encoder: the text encoder of {family.title} stays frozen.")
    method = METHODS[adapter.adapter_type]
    more = family.feed_forward if adapter.train_feed_forward else ()
    targets = [targets_of(adapter.attn_update_unet, family.letters, family.denoiser, more)]
    parts = {family.denoiser: config}
    if adapter.train_text_encoder:
        for name in family.text_encoders:
            targets.append(targets_of(adapter.attn_update_text, family.text_letters, name))
            parts[name] = read_part_config(place, name, base.revision)
    configs = {each.component: method.make_config(adapter, each) for each in targets}
    empty = {name: empty_part(family, name, part) for name, part in parts.items()}
    sizes = {name: linear_layers(model) for name, model in empty.items()}
    layers = adapted_layers(configs, sizes)
    other = base.pretrained_vae_model_name_or_path
    try:
        vae_config = read_vae_config(place, other, base.revision)
    except UserError as error:
        if other is None:
            raise
        raise UserError(f"--pretrained_vae_model_name_or_path {other}: {error}") from error
    with trusting_no_config(f"the configs of {place}"):
        scale = family.side_step(config, vae_config)
        pixel_step = family.pixel_step(config, vae_config)
        resolution = resolution or family.native_resolution(config, vae_config)
        # Annotated as whole numbers, but a config may hold anything.
        sizes_read = cast("list[Any]", [scale, pixel_step, resolution])
        if not all(isinstance(n, int) and n > 0 for n in sizes_read):
            raise ValueError("a size is not a positive whole number")
    if resolution % scale or resolution < pixel_step:
        raise UserError(
            f"--resolution {resolution}: this base takes multiples of {scale}, at least "
            f"{pixel_step}."
        )
    return ResolvedRun(
        place, family, method, configs, layers, resolution, pixel_step, vae_config, config
    )


def _identified(base: BaseSettings) -> tuple[str, Family, dict[str, Any]]:
    """Where a base is, its family, and its denoiser's config. Raises UserError: it cannot be read,
    or no family claims it."""
    place = resolve_base(base.pretrained_model_name_or_path, base.single_file_config)
    return place, *identify(place, base.revision)


def family_defaults(base: BaseSettings, low_vram: bool = False) -> dict[str, Any]:
    """Defaults of training settings that the base's family has in place of the program's.

    {} for a base that cannot be read: `resolve_run` says why.

    Args:
        low_vram: with `--low_vram`, whose own settings (`low_vram_recipe`) come first.
    """
    try:
        place, family, _ = _identified(base)
    except UserError:
        return {}
    drawing = family.drawing_defaults(place, base.revision)
    own = ValidationSettings()
    found = {
        "validation_guidance_scale": drawing.guidance,
        "validation_inference_steps": min(own.validation_inference_steps, drawing.steps),
    }
    changed = {name: value for name, value in found.items() if value != getattr(own, name)}
    small = {"quantize_base": "fp8"} if low_vram and family.large else {}
    return {**changed, **family.defaults, **small}


def usual_settings(base: BaseSettings, method: Method = METHODS["krona"]) -> dict[str, Any]:
    """Training settings that a run of a method on this base usually has, by name, as the scripts
    have them; {} for a base that cannot be read."""
    try:
        place, family, config = _identified(base)
        vae = read_vae_config(place, base.pretrained_vae_model_name_or_path, base.revision)
        with trusting_no_config(f"the configs of {place}"):
            resolution = family.native_resolution(config, vae)
    except UserError:
        return {}
    rate = method.usual_rate(place)
    return {**family.usual_training(place), "learning_rate": rate, "resolution": resolution}


# Of text encoders that are trained, which not every family's can be.
TEXT_SETTINGS = (
    "train_text_encoder", "text_encoder_a1", "text_encoder_a2", "attn_update_text",
    "text_encoder_lr",
)  # fmt: skip


def inapplicable_settings(base: BaseSettings) -> set[str]:
    """Training settings that runs on this base do not read, by name; none for a base that cannot
    be read."""
    try:
        place, family, _ = _identified(base)
    except UserError:
        return set()
    names = {name for name in _loss_settings() if name not in family.loss_settings}
    if not family.text_letters:
        names |= {*TEXT_SETTINGS}
    single = isinstance(place, SingleFile)
    if not single:
        names.add("single_file_config")
    if single or is_bundled(place):
        names.add("variant")
    if Path(place).exists():
        names.add("revision")
    return names


def _loss_settings() -> list[str]:
    """Settings of the loss and the noise schedule that not every family's objective reads."""
    return list(dict.fromkeys(n for family in FAMILIES.values() for n in family.loss_settings))


def check_loss_settings(settings: TrainSettings, family: Family) -> None:
    """Refuse settings that the family's objective would not read.

    Raises:
        UserError: naming the flag.
    """
    values = flat(settings)
    family.check_loss_settings(name for name in _loss_settings() if values[name])


def max_train_steps(
    optimisation: OptimisationSettings,
    examples: Sequence[Example],
    resolved: ResolvedRun,
    processes: int = 1,
) -> int:
    """Optimizer steps of the run.

    Args:
        examples: those that are trained on; only `--num_train_epochs` looks at them.

    Raises:
        UserError: as `data.examples.count_batches`.
    """
    if optimisation.num_train_epochs is None:
        return optimisation.max_train_steps or 1000
    together = optimisation.train_batch_size * processes
    batches = count_batches(examples, together, resolved.resolution, resolved.pixel_step)
    return -(-batches * optimisation.num_train_epochs // optimisation.gradient_accumulation_steps)
