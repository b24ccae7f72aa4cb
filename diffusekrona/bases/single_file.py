"""Base models in one file: SD 1.x, SD 2.x and SDXL in their original (LDM, SGM) layout.

Family, noise schedule and sizes are read from the file's header; configs are those of the published
models, or of a folder that the user names. `single_file_parts.py` loads the weights.

Source: huggingface/diffusers `loaders/single_file_utils.py`; the marks of v-prediction are those
that comfyanonymous/ComfyUI `supported_models.py` reads.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.paths import as_path
from ..common.tensor_files import opened, read_shapes
from .base import Family
from .families import FAMILIES
from .loading import read_json_of
from .published import FAMILY_FILES
from .schedulers import to_zero_snr
from .single_file_parts import UNET, VAE, SingleFile, write_configs

_CONV_IN = UNET + "input_blocks.0.0.weight"
_REFINER_TEXT = "conditioner.embedders.0.model."
_REFINER_UNET = {"cross_attention_dim": 1280, "projection_class_embeddings_input_dim": 2560}
_SCALES = (".scale_weight", ".weight_scale", ".comfy_quant", ".absmax")
_EDM = ("edm_mean", "edm_vpred.sigma_max")  # Playground 2.5, CosXL
_UNET_TENSORS = {"sd1": 686, "sd2": 686, "sdxl": 1680}  # of the published models

Shapes = Mapping[str, tuple[int, ...]]


def family_of_keys(keys: Iterable[str]) -> Family | None:
    """The family whose text encoders a whole model has where that family's files have them."""
    keys, found = list(keys), None
    for family in FAMILIES.values():
        prefixes = family.files.text_prefixes if family.files else ()
        if prefixes and all(any(key.startswith(p) for key in keys) for p in prefixes):
            found = found or family
    return found


@cache
def open_single_file(path: str, configs: str | None = None) -> SingleFile:
    """A single file as a base: what `loading.load_part` and `read_json_of` take.

    Args:
        configs: folder or hub name of a diffusers pipeline whose configs and tokenizers fit it, as
            `resolve.resolve_base` returns it; those of the published models by default.

    Raises:
        UserError: a pickle, a file that is damaged, holds no whole model, or one that its configs
            do not fit.
    """
    file = as_path(path)
    if file.suffix.lower() == ".ckpt":
        raise UserError(
            f"Base model {file} is a .ckpt file, a pickle, which can run code when it is opened: "
            "use the .safetensors file of the same model, or save it as one in the program that "
            "made it (in A1111: Checkpoint Merger, No interpolation, safetensors)."
        )
    shapes = read_shapes(file)
    refuse_quantised(file, shapes)
    with opened(file) as content:
        metadata = dict(content.metadata() or {})
    family, refiner = _family(file, shapes)
    files = {name: dict(_config(family, configs, name)) for name in FAMILY_FILES[family.name]}
    files["model_index.json"].pop("_name_or_path", None)
    for part, kind in ((family.denoiser, family.denoiser_class), ("vae", family.vae_class)):
        files[f"{part}/config.json"] = _with_defaults(kind, files[f"{part}/config.json"])
    unet = files["unet/config.json"]
    if configs is None and refiner:
        unet |= _REFINER_UNET
    if _CONV_IN in shapes:
        unet["in_channels"] = shapes[_CONV_IN][1]
    if not refiner:
        _check_fit(file, family, unet, shapes, configs)
    marks = schedule_of(shapes, metadata)
    _add_schedule(files, marks)
    assumed = None
    files_say = family.files and family.files.architecture != family.files.v_architecture
    if configs is None and files_say and "prediction_type" not in marks:
        assumed = (
            f"{file} does not say what it predicts: v_prediction is assumed, as SD 2.x at 768 px "
            "has it; give --prediction_type epsilon for a model trained at 512 px."
        )
    prefixes = {family.denoiser: UNET}
    if family.files and not refiner:
        prefixes |= zip(family.text_encoders, family.files.text_prefixes, strict=True)
    if any(key.startswith(VAE) for key in shapes):
        prefixes["vae"] = VAE
    tokenizers = configs or family.default_base
    return SingleFile(str(file), write_configs(files), tokenizers, prefixes, assumed)


def refuse_quantised(file: Path, keys: Iterable[str]) -> None:
    """Raise UserError for weights that mean nothing without scales in tensors of their own."""
    scale = next((key for key in keys if key.endswith(_SCALES)), None)
    if scale is not None:
        raise UserError(
            f"{file} holds quantised weights ({scale}): give the same model in fp16, bf16 or fp32; "
            "--quantize_base quantises it in training."
        )


def _family(file: Path, shapes: Shapes) -> tuple[Family, bool]:
    """The family of a file, and whether it is a refiner's."""
    if not any(key.startswith(UNET) for key in shapes):
        raise UserError(
            f"{file} is not a whole model in the original layout (no key begins with {UNET}): "
            "give a checkpoint with its text encoders, or a diffusers folder."
        )
    if edm := [mark for mark in _EDM if mark in shapes]:
        raise UserError(f"Base model {file} has an EDM noise schedule ({edm[0]}): not supported.")
    family = family_of_keys(shapes)
    if family is not None and family.name in FAMILY_FILES:
        return family, False
    if any(key.startswith(_REFINER_TEXT) for key in shapes):
        return FAMILIES["sdxl"], True
    raise UserError(
        f"{file} holds a denoiser without the text encoders of "
        f"{', '.join(FAMILIES[name].title for name in FAMILY_FILES)}: give a whole checkpoint, or "
        "a diffusers folder."
    )


def _config(family: Family, source: str | None, name: str) -> Mapping[str, Any]:
    if source is None:
        return FAMILY_FILES[family.name][name]
    folder, _, end = name.rpartition("/")
    return read_json_of(source, folder, end)


def _with_defaults(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with what its class in diffusers takes for keys that are left out: the converters of
    single files look for them."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return {**defaults, **config}


def _check_fit(
    file: Path, family: Family, unet: Mapping[str, Any], shapes: Shapes, source: str | None
) -> None:
    """Raise UserError if the denoiser of the file is not of these sizes."""
    widths = unet.get("block_out_channels", (320,))
    tensors = sum(key.startswith(UNET) for key in shapes)
    fits = shapes.get(_CONV_IN, (0,))[0] == widths[0]
    texts = {shapes[key][-1] for key in shapes if key.endswith("attn2.to_k.weight")}
    fits = fits and texts == {unet.get("cross_attention_dim", 1280)}
    if source is None:
        fits = fits and tensors == _UNET_TENSORS[family.name]
    if not fits:
        raise UserError(
            f"The layers of {file} are not those of {source or family.title}: give "
            "--single_file_config, the folder of a diffusers pipeline with its configs."
        )


# --- noise schedule ------------------------------------------------------------------------------


def schedule_of(shapes: Iterable[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the marks in a file say of its noise schedule; {} where there are none.

    The keys `v_pred` and `ztsnr` (NoobAI-XL and its fine-tunes), kohya's `ss_v_parameterization`
    and `ss_zero_terminal_snr`, and ModelSpec's `prediction_type` and `architecture`.
    """
    keys, found = set(shapes), {}
    kind = metadata.get("modelspec.prediction_type", "").lower()
    architecture = metadata.get("modelspec.architecture", "")
    parameterization = metadata.get("ss_v_parameterization", "").lower()
    names = [family.files for family in FAMILIES.values() if family.files]
    is_epsilon = any(architecture == known.architecture != known.v_architecture for known in names)
    if kind in ("epsilon", "eps") or parameterization == "false" or is_epsilon:
        found["prediction_type"] = "epsilon"
    is_v = parameterization == "true" or architecture.endswith("-v")
    zero_snr = "ztsnr" in keys or metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    if "v_pred" in keys or kind in ("v", "v_prediction", "v-prediction") or is_v:
        found["prediction_type"] = "v_prediction"
    if zero_snr:
        found["rescale_betas_zero_snr"] = True
    return found


def _add_schedule(files: dict[str, dict[str, Any]], marks: Mapping[str, Any]) -> None:
    """Write the marks into the scheduler's config, under a sampler that heeds them."""
    config = files["scheduler/scheduler_config.json"]
    if marks.get("rescale_betas_zero_snr"):
        kind, changes = to_zero_snr(config["_class_name"], config)
        config |= {**changes, "_class_name": kind}
        files["model_index.json"]["scheduler"] = ["diffusers", kind]
    config |= marks
