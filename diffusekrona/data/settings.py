"""What is trained on: the subject's pictures, and pictures of its class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.settings import COUNTS, SIDES, setting


@dataclass(frozen=True)
class _Folder:
    instance_data_dir: Path = setting(
        metavar="FOLDER|FILE",
        may_change_on_resume=True,  # the pictures' content is compared
        help="Folder of the subject's pictures, or what names several folders: a YAML file, a "
        "dataset config of kohya's scripts, or a folder that holds them as 10_sks dog.",
    )


@dataclass(frozen=True)
class TreatmentSettings:
    """How pictures and captions are read and prepared."""

    instance_prompt: str | None = setting(
        None,
        may_change_on_resume=True,  # the captions are compared
        help='Prompt with the identifier: "a sks dog". A picture.txt beside picture.jpg, or a '
        "metadata.jsonl, gives single pictures captions of their own.",
    )
    trigger: str | None = setting(
        None,
        metavar="WORDS",
        may_change_on_resume=True,  # the captions are compared
        help='Words that replace [trigger] in captions and prompts, such as "sks dog".',
    )
    caption_lines: bool = setting(
        False,
        help="Take each line of a caption file as a caption of its own, one at random each time, "
        "instead of joining them.",
    )
    shuffle_caption: bool = setting(
        False, help="Shuffle the tags of captions, which are separated by commas."
    )
    keep_tokens: int = setting(
        0, minimum=0, help="Keep this many first tags in place when shuffling."
    )
    caption_dropout: float = setting(
        0.0, minimum=0, maximum=1, help="Train without a caption with this probability."
    )
    resolution: int | None = setting(
        None,
        **SIDES,
        may_change_on_resume=True,  # its outcome, with the base's own, may not
        help="Train at this many pixels per side; by default the base's own.",
    )
    center_crop: bool = setting(False, help="Crop the middle instead of random places.")
    random_flip: bool = setting(False, help="Add mirrored pictures.")
    aspect_ratio_buckets: bool = setting(
        False,
        help="Keep pictures' shapes: train at sizes of equal area instead of cropping squares.",
    )
    masked_loss: bool = setting(
        False,
        help="Learn the masked part of the pictures: white in photo.mask.png or "
        "photo-masklabel.png, or the alpha channel; see --unmasked_weight.",
    )
    holdout: int = setting(
        0,
        minimum=0,
        metavar="N",
        may_change_on_resume=True,  # the pictures' content is compared
        help="Keep this many pictures of each folder out of training, chosen by the seed, to "
        "measure with.",
    )
    holdout_data_dir: Path | None = setting(
        None,
        metavar="FOLDER",
        may_change_on_resume=True,  # not trained on
        help="Measure with the pictures in this folder, instead of --holdout.",
    )


@dataclass(frozen=True)
class _Cache:
    latents_cache_dir: Path | None = setting(
        None,
        metavar="FOLDER",
        may_change_on_resume=True,
        help="Cache latents and text states here for later runs; by default beside the hub's "
        "downloads, ~/.cache/huggingface/assets/diffusekrona.",
    )
    no_latents_cache: bool = setting(
        False, may_change_on_resume=True, help="Neither read nor write that cache."
    )


@dataclass(frozen=True)
class DataSettings(_Cache, TreatmentSettings, _Folder):
    """The subject's pictures."""


@dataclass(frozen=True)
class PriorSettings:
    """Prior preservation."""

    with_prior_preservation: bool = setting(False, help="Train on class pictures as well.")
    class_data_dir: Path | None = setting(
        None,
        metavar="FOLDER",
        may_change_on_resume=True,  # the pictures' content is compared
        help="Folder of class pictures; missing ones are generated here.",
    )
    class_prompt: str | None = setting(None, help='Prompt without the identifier: "a dog".')
    preserve_class: bool = setting(
        False,
        help="Keep what the base predicts for --class_prompt, without class pictures: its own "
        "prediction, on the subject's pictures, is the target.",
    )
    num_class_images: int = setting(
        100, minimum=1, maximum=100_000, help="Use this many class pictures."
    )
    sample_batch_size: int = setting(
        4, **COUNTS, may_change_on_resume=True, help="Generate this many of them at once."
    )

    @property
    def doubles_batch(self) -> bool:
        """Whether each sample of the subject comes with one of the class."""
        return self.with_prior_preservation or self.preserve_class
