"""Reading base models, whatever their family: names to places, configs, and single components.

Every way in which that fails is one line for the user.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..common.errors import UserError

BUNDLED = Path(__file__).parents[1] / "pocket" / "models"


def quiet_libraries() -> None:
    """For entry points: only errors of the libraries, and no bars for files loaded.

    What else they would print is reported by us, in one line, or does not concern the user.
    """
    import warnings

    # bitsandbytes, where it is installed, warns on import of kernels that only a CPU would want.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
    warnings.filterwarnings("ignore", message="Could not find a config file")
    warnings.filterwarnings("ignore", module="huggingface_hub")


def bundled_models() -> list[str]:
    """Names of the base models that ship with the package."""
    if not BUNDLED.is_dir():
        return []
    return sorted(p.name for p in BUNDLED.iterdir() if (p / "model_index.json").is_file())


def resolve_base(name_or_path: str) -> str:
    """A bundled model's name to its folder; a folder or a hub name to itself.

    Raises:
        UserError: a path that does not exist, or a folder that holds no diffusers pipeline.
    """
    if name_or_path in bundled_models():
        return str(BUNDLED / name_or_path)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UserError(
                f"Base model {path} is a folder without model_index.json: give the folder of a "
                "diffusers pipeline, a hub name, or one of: " + ", ".join(bundled_models()) + "."
            )
        return str(path)
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") != 1
    if looks_local or path.exists():
        raise UserError(
            f"No base model at {name_or_path!r}: give a diffusers folder, a hub name like "
            "stabilityai/stable-diffusion-xl-base-1.0, or one of: "
            + ", ".join(bundled_models())
            + "."
        )
    return name_or_path


def load_part(base: str, kind: str, subfolder: str, **options: Any) -> Any:
    """One component of a base model, by class name from diffusers or transformers.

    Args:
        base: what `resolve_base` returned.
        kind: class name, such as "AutoencoderKL" or "CLIPTextModel".
        options: `torch_dtype`, `revision`, `variant` …, as `from_pretrained` takes them.

    Raises:
        UserError: the base or the component cannot be loaded.
    """
    import diffusers
    import transformers

    cls = getattr(diffusers, kind, None) or getattr(transformers, kind)
    if "torch_dtype" in options:  # the name that both libraries have moved to
        options["dtype"] = options.pop("torch_dtype")
    options = {key: value for key, value in options.items() if value is not None}
    load = functools.partial(cls.from_pretrained, base, subfolder=subfolder or None)
    try:
        return or_of_fp16_files(load, **options)
    except (OSError, ValueError) as error:
        raise _unreadable(base, subfolder, error) from error


def or_of_fp16_files(load: Callable[..., Any], **options: Any) -> Any:
    """What `load` gives; where that fails and no variant was asked for, of the fp16 files, which
    are all that some bases have.

    Raises:
        OSError, ValueError: as `load` raised them the first time.
    """
    try:
        return load(**options)
    except (OSError, ValueError):
        if "variant" in options:
            raise
        try:
            loaded = load(**options, variant="fp16")
        except Exception:
            loaded = None
        if loaded is None:
            raise
        return loaded


def read_part_config(base: str, subfolder: str, revision: str | None = None) -> dict[str, Any]:
    """One component's config.json, without its weights.

    Raises:
        UserError: the base or the component cannot be read.
    """
    return read_json_of(base, subfolder, "config.json", revision)


def read_json_of(
    base: str, subfolder: str, name: str, revision: str | None = None
) -> dict[str, Any]:
    """A small JSON file of a base model, from its folder or the hub.

    Raises:
        UserError: the base or the file cannot be read.
    """
    from huggingface_hub import hf_hub_download

    folder = Path(base)
    try:
        if folder.is_dir():
            path = folder / subfolder / name
        else:
            path = Path(hf_hub_download(base, name, subfolder=subfolder or None, revision=revision))
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"its {name} is not a JSON object")
        return config
    except (OSError, ValueError) as error:
        raise _unreadable(base, subfolder or name, error) from error


def load_sampler(base: str, revision: str | None = None) -> Any:
    """The scheduler that the base's pipeline draws with.

    Raises:
        UserError: it cannot be loaded.
    """
    index = read_json_of(base, "", "model_index.json", revision)
    try:
        kind = str(index["scheduler"][1])
    except (LookupError, TypeError) as error:
        raise _unreadable(base, "scheduler", error) from error
    return load_part(base, kind, "scheduler", revision=revision)


def _unreadable(base: str, subfolder: str, error: Exception) -> UserError:
    """One line for what from_pretrained raises; its own often names a file nobody asked for."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {type(link).__name__ for link in chain}
    what = f"Cannot read {subfolder or 'the weights'} of base model {base!r}: "
    if "GatedRepoError" in kinds:
        return UserError(what + "its authors want their licence accepted on the hub, and a login.")
    if "RepositoryNotFoundError" in kinds:
        return UserError(what + "the hub has no model of that name (or it is private: log in).")
    if kinds & {
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
        "ConnectError",
        "ConnectionError",
    }:
        return UserError(
            what + "it is not on this machine and the hub cannot be reached: check the network, or "
            "give a local diffusers folder."
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return UserError(f"{what}{first_line}: check the folder, or give another base.")
