"""The parts of a base model in one file: the configs that they have, and their weights.

    model.diffusion_model.…          the denoiser
    first_stage_model.…              the VAE, in most files
    cond_stage_model.…, conditioner.…  the text encoders: `FileNames.text_prefixes`
    model_ema.…                      an average of the denoiser that some files have; not read

diffusers and its converters load the weights, which stay mapped from the file.

Source: huggingface/diffusers `loaders/single_file_utils.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError, shortened
from ..common.files import temporary_folder
from .names import with_text_model

if TYPE_CHECKING:
    import torch

UNET = "model.diffusion_model."
VAE = "first_stage_model."


class SingleFile(str):
    """The path of a base model in one file, as `single_file.open_single_file` makes it.

    Attributes:
        configs: folder with the JSON files that a diffusers folder of this model would have.
        tokenizers: folder or hub name that has its tokenizers.
        prefixes: component to what the names of its tensors begin with; a file without a VAE has
            none for it.
        assumed: what had to be assumed of its prediction type, in one line; None if nothing.
    """

    configs: Path
    tokenizers: str
    prefixes: Mapping[str, str]
    assumed: str | None

    def __new__(
        cls,
        path: str,
        configs: Path,
        tokenizers: str,
        prefixes: Mapping[str, str],
        assumed: str | None = None,
    ) -> SingleFile:
        self = super().__new__(cls, path)
        self.configs, self.tokenizers = configs, tokenizers
        self.prefixes, self.assumed = prefixes, assumed
        return self


# --- the configs, where the libraries look for them ----------------------------------------------

_folders = contextlib.ExitStack()
atexit.register(_folders.close)


def write_configs(files: Mapping[str, Mapping[str, Any]]) -> Path:
    """The JSON files of a base in a folder that lasts as long as the program."""
    root = _folders.enter_context(temporary_folder())
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(content), encoding="utf-8")
    return root


# --- weights -------------------------------------------------------------------------------------


def load_single_file_part(
    base: SingleFile, kind: str, subfolder: str, dtype: torch.dtype | None = None
) -> Any:
    """A model of a single file, by class name; fp32 unless `dtype` is given.

    Raises:
        UserError: the file lacks it, or some of its tensors.
    """
    import diffusers
    import torch
    import transformers

    from ..common.tensor_files import opened

    prefix = base.prefixes.get(subfolder)
    if prefix is None:
        raise no_vae(base) if subfolder == "vae" else UserError(f"{base} holds no {subfolder}.")
    with opened(base) as file:
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
        tensors = {key: file.get_tensor(key) for key in keys}  # mapped, not read yet
    options: dict[str, Any] = {
        "config": str(base.configs),
        "subfolder": subfolder,
        "local_files_only": True,
    }
    try:
        if hasattr(diffusers, kind):
            cls = getattr(diffusers, kind)
            model = cls.from_single_file(tensors, torch_dtype=dtype or torch.float32, **options)
        else:
            from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

            if prefix.endswith(".transformer."):  # transformers' names, some without `text_model.`
                bare = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
                tensors = {prefix + with_text_model(key): tensor for key, tensor in bare.items()}
            model = create_diffusers_clip_model_from_ldm(
                getattr(transformers, kind),
                tensors,
                torch_dtype=dtype or torch.float32,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        line = shortened(error, 200)
        raise UserError(f"Cannot read {subfolder} of model {base}: {line}") from error
    missing = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if missing:
        raise UserError(
            f"Base model {base} lacks {len(missing)} tensors of its {subfolder}, such as "
            f"{missing[0]}: the file is incomplete, or --single_file_config does not fit it."
        )
    return model


def no_vae(base: str) -> UserError:
    """What to do about a file without a VAE."""
    return UserError(
        f"Base model {base} holds no VAE: give one with --pretrained_vae_model_name_or_path "
        "(drawing programs: --vae)."
    )
