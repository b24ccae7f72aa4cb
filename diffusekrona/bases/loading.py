"""Reading base models, whatever their family: their configs and single components.

Every way in which that fails is one line for the user.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..common.errors import UserError, reason_of, shortened
from ..common.json_files import parse_json
from .published import published_json
from .single_file_parts import SingleFile, load_single_file_part, no_vae

log = logging.getLogger("diffusekrona")

MOST_TIMESTEPS = 100_000  # published models have 1000


def quiet_libraries() -> None:
    """For entry points: only errors of the libraries, and no bars for files loaded.

    What else they would print is reported by us, in one line, or does not concern the user.
    """
    import warnings

    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # its client prints two lines for every try
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
    warnings.filterwarnings("ignore", message="Could not find a config file")
    warnings.filterwarnings("ignore", module="huggingface_hub")


def load_part(base: str, kind: str, subfolder: str, **options: Any) -> Any:
    """One component of a base model, by class name from diffusers or transformers.

    Args:
        base: what `resolve.resolve_base` returned.
        kind: class name, such as "AutoencoderKL" or "CLIPTextModel".
        options: `torch_dtype`, `revision`, `variant` …, as `from_pretrained` takes them.

    Raises:
        UserError: the base or the component cannot be loaded.
    """
    import diffusers
    import torch
    import transformers

    from .meta import trusting_no_config

    cls = getattr(diffusers, kind, None) or getattr(transformers, kind)
    if "torch_dtype" in options:  # the name that both libraries have moved to
        options["dtype"] = options.pop("torch_dtype")
    options = {key: value for key, value in options.items() if value is not None}
    if isinstance(base, SingleFile):
        if issubclass(cls, torch.nn.Module):
            return aligned(load_single_file_part(base, kind, subfolder, options.get("dtype")))
        if subfolder != "scheduler":
            return _load_tokenizer(base, cls, subfolder)
        return cls.from_pretrained(base.configs, subfolder=subfolder, **options)
    if subfolder == "scheduler":
        check_timesteps(base, options.get("revision"))
    load = functools.partial(cls.from_pretrained, base, subfolder=subfolder or None)
    with trusting_no_config(f"{subfolder or 'the files'} of model {base!r}"):
        try:
            return aligned(or_of_fp16_files(load, **options))
        except (OSError, ValueError) as error:
            raise unreadable(base, subfolder, error) from error


def check_timesteps(base: str, revision: str | None = None) -> None:
    """Raise UserError for a noise schedule of more steps than any model has: each takes memory."""
    config = read_json_of(base, "scheduler", "scheduler_config.json", revision)
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= MOST_TIMESTEPS:
        raise UserError(
            f"Cannot read scheduler of model {base!r}: its num_train_timesteps is "
            f"{shortened(repr(steps))}."
        )


def aligned(part: Any) -> Any:
    """The part, with every weight in host memory at an address that vector instructions like.

    A weight that is mapped from a file lies wherever the file has it, and on some processors a
    product's last bit depends on that: the same model in two files would train apart. Where there
    is a GPU, weights are copied there anyway.
    """
    import torch

    if isinstance(part, torch.nn.Module) and not torch.cuda.is_available():
        for weight in part.parameters():
            if weight.device.type == "cpu" and weight.data_ptr() % 64:
                weight.data = weight.data.clone()
    return part


@contextmanager
def _errors_raised_only() -> Generator[None]:
    """diffusers logs an error for each file that it looks for in vain, and raises it as well."""
    logger = logging.getLogger("diffusers.models.modeling_utils")

    def drop(_: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)  # its own for each thread that loads: the level is one for all
    try:
        yield
    finally:
        logger.removeFilter(drop)


@_errors_raised_only()
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

    folder = base.configs if isinstance(base, SingleFile) else Path(base)
    known = published_json(base, f"{subfolder}/{name}" if subfolder else name)
    if known is not None and revision is None and not folder.is_dir():
        return dict(known)
    if isinstance(base, SingleFile) and subfolder == "vae" and "vae" not in base.prefixes:
        raise no_vae(base)
    try:
        if folder.is_dir():
            path = folder / subfolder / name
        else:
            path = Path(
                hf_hub_download(
                    base,
                    name,
                    subfolder=subfolder or None,
                    revision=revision,
                    local_files_only=not hub_reachable(base),
                )
            )
        try:
            return parse_json(path.read_bytes(), dict[str, Any])
        except ValueError as error:
            raise ValueError(f"its {name} is damaged ({error})") from error
    except (OSError, ValueError) as error:
        raise unreadable(base, subfolder or name, error) from error


# Of the hub's client and of what it sends requests by, whichever that is.
_NO_ANSWER = {"TransportError", "ConnectionError", "TimeoutError", "OfflineModeIsEnabled"}


@functools.cache
def hub_reachable(name: str) -> bool:
    """Whether the hub answers at all. Asked once, where its client would try for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # a refusal is an answer too: the download will say why
        kinds = {cls.__name__ for cls in type(error).__mro__}
        return not kinds & _NO_ANSWER
    return True


_FEWEST_TOKENS = 10  # of a tokenizer that has a vocabulary


def _load_tokenizer(base: SingleFile, cls: Any, subfolder: str) -> Any:
    """A single file's tokenizer: from a folder, the hub's files on this machine, or the hub."""

    def load(local: bool) -> Any:
        options = {"subfolder": subfolder, "local_files_only": local}
        tokenizer = cls.from_pretrained(base.tokenizers, **options)
        if len(tokenizer) < _FEWEST_TOKENS:  # transformers makes one of nothing without a word
            raise OSError("no vocabulary")
        return tokenizer

    try:
        with suppress(OSError, ValueError):
            return load(local=True)
        if Path(base.tokenizers).is_dir() or not hub_reachable(base.tokenizers):
            raise OSError("not on this machine")
        return load(local=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The {subfolder} of model {base} is not on this machine and cannot be loaded "
            f"from {base.tokenizers}: give --single_file_config, the folder of a diffusers "
            "pipeline of the same family with its JSON files and tokenizers (no weights needed)."
        ) from error


def report_assumed(base: str, prediction_type: str | None) -> None:
    """Warn if a base's prediction type had to be assumed and is not given."""
    if isinstance(base, SingleFile) and base.assumed and prediction_type is None:
        log.warning("%s", base.assumed)


def unreadable(base: str, subfolder: str, error: Exception) -> UserError:
    """One line for what from_pretrained raises; the error itself may name an unrelated file."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {type(link).__name__ for link in chain}
    what = f"Cannot read {subfolder or 'the weights'} of model {base!r}: "
    if "GatedRepoError" in kinds:
        return UserError(what + "accept its licence on the hub and log in.")
    if "RepositoryNotFoundError" in kinds:
        return UserError(what + "the hub has no model with that name (or it is private: log in).")
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
    first_line = reason_of(error).rstrip(".")
    return UserError(f"{what}{first_line}: check the folder, or give another base.")
