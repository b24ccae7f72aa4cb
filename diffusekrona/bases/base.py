"""What a family of base models is: one object that holds everything in which families differ.

A family is a subclass of `Family` in a file of its own and a line in `families.FAMILIES`; nothing
else in the package knows its names (docs/architecture.md, "A family of base models").
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from ..common.errors import UserError
from .bundled import BUNDLED_TRAINING, USUAL_TRAINING, is_bundled
from .loading import load_part
from .meta import build_empty
from .names import LayerNames
from .places import Place, transformer_place
from .vae import denormalise, encode_pictures, load_vae, normalise, vae_scale

log = logging.getLogger(__name__)

TextStates = dict[str, torch.Tensor]


class Objective(Protocol):
    """Noise, target and weight of one denoising step; pure functions of their arguments."""

    def draw_timestep(self, generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
        """One timestep () for latents of `shape` (c, h, w), drawn on the CPU."""
        ...

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Noisy latents (n, c, h, w) at timesteps (n,)."""
        ...

    def target(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What the denoiser is to predict (n, c, h, w)."""
        ...

    def weight(
        self, timesteps: torch.Tensor, snr_gamma: float | None, weighting_scheme: str | None
    ) -> torch.Tensor | None:
        """Weight of each sample's loss (n,), as the settings of the loss ask for; None for ones."""
        ...


@dataclass(frozen=True, kw_only=True)
class FileNames:
    """How other programs' files identify a family and name its layers.

    Attributes:
        context: width of the text states, in_features of a cross-attention's to_k.
        sgm: its denoiser is trained and shared under the original's (SGM's) block names.
        numbered: its text encoders are `lora_te1_` and `lora_te2_`.
        linear_projection: the denoiser's proj_in and proj_out are linear, not 1x1 convolutions.
        version, v_version: kohya's `ss_base_model_version`, of noise- and velocity-predicting
            bases.
        version_prefix: what every variant of `version` begins with.
        v2: kohya's `ss_v2`.
        architecture, v_architecture: `modelspec.architecture`, likewise.
        architecture_prefix: what every variant of `architecture` begins with.
        text_layouts: layout of each text encoder in a single-file model: "clip" or "open_clip".
        text_prefixes: where each text encoder is in a single-file model.
        text_width: width of the first text encoder.
        widths: of the denoiser's blocks that have attentions, in the published models.

    Source: kohya-ss/sd-scripts `library/model_util.py`, `library/sai_model_spec.py`;
    github.com/Stability-AI/ModelSpec.
    """

    context: int
    sgm: bool
    numbered: bool
    linear_projection: bool
    version: str
    v_version: str
    version_prefix: str
    v2: bool = False
    architecture: str
    v_architecture: str
    architecture_prefix: str
    text_layouts: tuple[str, ...]
    text_prefixes: tuple[str, ...]
    text_width: int
    widths: Mapping[str, int]


@dataclass(frozen=True)
class DrawingDefaults:
    """How a base draws unless asked otherwise.

    Attributes:
        guidance: classifier-free guidance, on the scale of its pipeline.
        steps: denoising steps, more than which its publisher does not recommend.
        precision: on a GPU, "fp16" or "bf16".
    """

    guidance: float = 7.0
    steps: int = 50
    precision: str = "fp16"


#: Of the bundled bases: stronger guidance blurs what they were fine-tuned to, and more steps change
#: nothing (identity .90 of the photos' with 25, .89 with 50; 48 pictures each of three subjects).
BUNDLED_DRAWING = DrawingDefaults(guidance=3.0, steps=25)


@dataclass(frozen=True, kw_only=True, eq=False)
class Family(LayerNames, ABC):
    """A family of base models; how other programs name its layers is `LayerNames`'.

    Attributes:
        name: as adapter files note it.
        title: for people.
        pipeline: diffusers' text-to-image pipeline class.
        denoiser_class: class in diffusers of the component `denoiser`, with its `PeftAdapterMixin`,
            which most have.
        text_encoders: component name to class in transformers, in the order of their states.
        tokenizers: component name to class, one per text encoder.
        tokens: that the text encoders read.
        text_states: names of the text states that condition the denoiser, to their dimensions.
        host_states: text states that stay in host memory, because shapes depend on what they hold.
        channels: of the latents, where the denoiser's config leaves them out.
        resolution: pixels per side that the published models were trained at.
        default_base: a public base that exists today.
        letters: k, q, v, o to the ends of the denoiser's layer names.
        feed_forward: ends of the names of its feed-forward layers.
        text_letters: k, q, v, o to the ends of the text encoders' layer names.
        large: too large for small GPUs: with --low_vram the layers of its text encoders and, where
            pictures are drawn, the denoiser's blocks are on the GPU one at a time, and training
            keeps the base in fp8 where no library quantises it.
        block_lists: names of the denoiser's lists of transformer blocks.
        cross_attention: end of the names of the denoiser's attentions from picture to text alone;
            "" where it has none.
        loss_settings: settings of the loss and of the noise schedule that `load_objective` and the
            objective read, of those that not every family has.
        drawing: how it draws; distilled: likewise, of its few-step models.
        defaults: of training settings, in place of the program's.
        usual: training settings of a usual run on a GPU, as the scripts have them.
        files: of UNets, what marks other programs' files; None of any other family.
    """

    name: str
    title: str
    pipeline: str
    denoiser_class: str
    vae_class: str = "AutoencoderKL"
    text_encoders: Mapping[str, str]
    tokenizers: Mapping[str, str]
    tokens: int
    text_states: Mapping[str, int]
    host_states: tuple[str, ...] = ()
    channels: int = 4
    resolution: int
    default_base: str
    letters: Mapping[str, tuple[str, ...]]
    feed_forward: tuple[str, ...]
    text_letters: Mapping[str, tuple[str, ...]]
    large: bool = False
    block_lists: tuple[str, ...] = ("transformer_blocks",)
    cross_attention: str = ""
    loss_settings: tuple[str, ...] = ("snr_gamma", "prediction_type", "rescale_betas_zero_snr")
    drawing: DrawingDefaults = DrawingDefaults()
    distilled: DrawingDefaults | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    usual: Mapping[str, Any] = field(default_factory=lambda: USUAL_TRAINING)
    files: FileNames | None = None

    # --- recognising a base ---------------------------------------------------------------------

    @abstractmethod
    def resembles(self, config: Mapping[str, Any]) -> bool:
        """Whether a denoiser with this config.json has this family's layers."""

    def refusal(self, config: Mapping[str, Any], index: Mapping[str, Any]) -> str | None:
        """What a base is that resembles this family but is not one of it; None if it is.

        Args:
            config: of the denoiser.
            index: the pipeline's model_index.json; {} where there is none.
        """
        return None

    def schedule_refusal(self, config: Mapping[str, Any]) -> str | None:
        """What a base's noise schedule is that `load_objective` cannot train on; None if it can.

        Args:
            config: the base's scheduler_config.json.
        """
        return None

    def check_loss_settings(self, names: Iterable[str]) -> None:
        """Refuse settings of the loss and of the noise schedule that no objective of this family
        reads.

        Args:
            names: of the settings that are given.

        Raises:
            UserError: naming the flag.
        """
        for name in names:
            if name not in self.loss_settings:
                raise UserError(f"--{name} does not apply to {self.title}: leave it out.")

    def place(self, name: str) -> Place:
        """The place of one of the denoiser's layers, by its name."""
        return transformer_place(name, self.letters, "joint")

    def drawing_defaults(self, base: str, revision: str | None = None) -> DrawingDefaults:
        """How this base draws unless asked otherwise."""
        if is_bundled(base):
            return BUNDLED_DRAWING
        if self.distilled and self.is_distilled(base, revision):
            return self.distilled
        return self.drawing

    def usual_training(self, base: str) -> Mapping[str, Any]:
        """Training settings that a run on this base usually has, by name."""
        return BUNDLED_TRAINING if is_bundled(base) else self.usual

    def is_distilled(self, base: str, revision: str | None) -> bool:
        """Whether a base is a few-step model, for families that have some (`distilled`)."""
        return False

    # --- sizes ----------------------------------------------------------------------------------

    def latent_scale(self, vae_config: Mapping[str, Any]) -> int:
        """Pixels per latent that the denoiser sees, along one side."""
        return vae_scale(vae_config)

    def side_step(self, config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> int:
        """What the sides of any picture must be multiples of, in pixels."""
        return self.latent_scale(vae_config)

    def pixel_step(self, config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> int:
        """What picture sides must be multiples of in buckets, in pixels."""
        return self.side_step(config, vae_config)

    def native_resolution(self, config: Mapping[str, Any], vae_config: Mapping[str, Any]) -> int:
        """Pixels per side that this base was trained at."""
        size = config.get("sample_size")
        return int(size) * self.latent_scale(vae_config) if size else self.resolution

    def latent_shape(self, config: Mapping[str, Any], side: int) -> tuple[int, int, int]:
        """(c, h, w) of square latents that the denoiser takes, `side` latents per side."""
        return config.get("in_channels", self.channels), side, side

    @abstractmethod
    def text_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Shape of each of `text_states` of one prompt, without the batch dimension."""

    # --- loading --------------------------------------------------------------------------------

    def load_denoiser(self, base: str, **options: Any) -> Any:
        """The denoiser. Raises UserError if it cannot be loaded; options as `load_part`'s."""
        denoiser = load_part(base, self.denoiser_class, self.denoiser, **options)
        return self.split_fused(denoiser)

    def empty_denoiser(self, config: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
        """The denoiser without memory; arguments and errors as `meta.build_empty`'s."""
        return self.split_fused(build_empty(self.denoiser_class, config, dtype))

    def split_fused(self, denoiser: Any) -> Any:
        """Split layers that hold several projections in one weight, so that every letter names
        layers of its own; changed in place and returned. A denoiser that is split already stays
        as it is, and its output is the same either way."""
        return denoiser

    def load_vae(self, base: str, other: str | None = None, **options: Any) -> Any:
        """The frozen VAE, the base's or another; options as `vae.load_vae`'s."""
        return load_vae(base, other, kind=self.vae_class, **options)

    def load_text_encoders(self, base: str, **options: Any) -> dict[str, Any]:
        """The frozen text encoders, by component name."""
        return {
            name: load_part(base, kind, name, **options).requires_grad_(False).eval()
            for name, kind in self.text_encoders.items()
        }

    def load_tokenizers(self, base: str, **options: Any) -> list[Any]:
        """The tokenizers, in order."""
        return [load_part(base, kind, name, **options) for name, kind in self.tokenizers.items()]

    @abstractmethod
    def load_objective(self, base: str, **options: Any) -> Objective:
        """Noise, target and weight, by the base's own noise schedule."""

    # --- text -----------------------------------------------------------------------------------

    def tokenize(self, tokenizers: Sequence[Any], prompts: Sequence[str]) -> list[torch.Tensor]:
        """`token_ids`, and a warning about words past the last token of each distinct prompt."""
        lost = (self.words_lost(tokenizers, prompt) for prompt in dict.fromkeys(prompts))
        for line in filter(None, lost):
            log.warning("%s", line)
        return self.token_ids(tokenizers, prompts)

    @abstractmethod
    def token_ids(self, tokenizers: Sequence[Any], prompts: Sequence[str]) -> list[torch.Tensor]:
        """Tensors (n, tokens) that `encode_text` takes, filled up or cut to what the base reads."""

    @abstractmethod
    def words_lost(self, tokenizers: Sequence[Any], prompt: str) -> str | None:
        """One line about the words past the last token that the base reads (`end_not_read`); None
        if there are none."""

    @abstractmethod
    def encode_text(
        self, encoders: Mapping[str, Any], tokens: Sequence[torch.Tensor]
    ) -> TextStates:
        """Tokens to the denoiser's conditions: each of `text_states`, (n, …)."""

    def stack_text(self, states: Sequence[Mapping[str, torch.Tensor]]) -> TextStates:
        """Join the text states of single prompts into a batch."""
        return {name: torch.cat([state[name] for state in states]) for name in states[0]}

    # --- pictures and latents -------------------------------------------------------------------

    def encode_pictures(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, H, W) in [-1, 1] to the latents' mean and std (n, 2c, h, w), fp32."""
        return encode_pictures(vae, pixels)

    def sample_latents(
        self, moments: torch.Tensor, noise: torch.Tensor, vae_config: Mapping[str, Any]
    ) -> torch.Tensor:
        """Draw the latents (n, c, h, w) that the denoiser is trained on.

        Args:
            moments: of `encode_pictures`, (n, 2c, h, w).
            noise: standard normal, (n, c, h, w).
        """
        mean, std = moments.chunk(2, dim=1)
        return normalise(mean + std * noise, vae_config)

    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Latents (n, c, h, w) as `draw` gives them to pictures (n, 3, H, W) in [-1, 1]."""
        pixels: torch.Tensor = vae.decode(denormalise(latents, vae.config), return_dict=False)[0]
        return pixels

    # --- training and drawing -------------------------------------------------------------------

    @abstractmethod
    def predict(
        self,
        denoiser: Any,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: Mapping[str, torch.Tensor],
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Call the denoiser; its prediction (n, c, h, w), to be compared with the target.

        Args:
            noisy: (n, c, h, w).
            timesteps: (n,), of the objective.
            text: of `encode_text`, each (n, …).
            time_ids: (n, 6): original height, width, crop top, left, target height, width, in
                pixels; for families that take sizes as conditions.
        """

    def pipeline_parts(self) -> dict[str, Any]:
        """Parts that the pipeline is made with beside the models, such as no safety checker."""
        return {}

    def build_pipeline(self, **parts: Any) -> Any:
        """diffusers' pipeline of loaded parts; parts that are left out are None."""
        import diffusers

        names = ("vae", self.denoiser, "scheduler", *self.text_encoders, *self.tokenizers)
        missing = dict.fromkeys(names)
        return getattr(diffusers, self.pipeline)(**{**missing, **self.pipeline_parts(), **parts})

    def draw(self, pipeline: Any, text: Mapping[str, torch.Tensor], **options: Any) -> torch.Tensor:
        """Latents (n, c, h, w) of the pictures of these text states, by the pipeline.

        Args:
            text: `text_states` of the prompts, and with "negative_" before the name of theirs.
            options: the pipeline's: height, width, num_inference_steps, guidance_scale, generator …
        """
        latents: torch.Tensor = pipeline(**text, output_type="latent", **options).images
        return latents


def end_not_read(
    tokenizer: Any, ids: Sequence[int], length: int, end_marks: int, unit: str = "tokens"
) -> str | None:
    """One line about the end of a prompt that has more tokens than the base reads; None for any
    other.

    Args:
        ids: of the whole prompt.
        length: tokens that the base reads.
        end_marks: how many of `ids`, at their end, mark the end and are read in any case.
        unit: what `ids` are, for the line.
    """
    if len(ids) <= length:
        return None
    lost = tokenizer.decode(ids[length - end_marks : len(ids) - end_marks])
    return f"prompt of {len(ids)} {unit}, the base reads {length}; not seen by it: {lost!r}"


def empty_part(family: Family, component: str, config: Mapping[str, Any]) -> Any:
    """A component that can be adapted, without memory. Raises UserError as `meta.build_empty`."""
    if component == family.denoiser:
        return family.empty_denoiser(config)
    return build_empty(family.text_encoders[component], config)


def blocks_of(model: nn.Module, block_lists: Sequence[str]) -> dict[str, nn.ModuleList]:
    """A denoiser's lists of transformer blocks, by module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in block_lists and isinstance(module, nn.ModuleList)
    }
