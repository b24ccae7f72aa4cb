"""The folders of one run: one, or those that a YAML file, a dataset config of kohya's or, in
kohya's manner, their own names describe.

    folders:
      - folder: dog
        trigger: sks dog
        prompt: a photo of [trigger]
        repeats: 2
      - folder: teapot
        prompt: a zwx teapot
        resolution: 768

What an entry leaves out is as the file's own top level has it, or else as the flags have it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..common.errors import UserError
from ..common.json_files import check_value
from ..common.paths import as_path
from ..common.settings import did_you_mean
from ..common.yaml_files import read_mapping
from .folder import first_pictures
from .kohya import read_dataset_config, read_folder_names
from .settings import DataSettings

_KOHYAS = (".toml", ".json")
_SUFFIXES = (".yaml", ".yml", *_KOHYAS)


@dataclass(frozen=True)
class Source:
    """A folder of pictures, and how they are trained on; what flags have too is as they say.

    Attributes:
        prompt: caption of pictures that have none.
        caption_extension: of caption files; None for .txt, then .caption.
        caption_prefix, caption_suffix: joined to each caption by a space.
        first_line: take only the first line of a caption file.
        wildcards: replace `{red|green}` in captions by one of the words.
        keep_tokens_separator: what is before it, and after a second one, is not shuffled.
        secondary_separator: joins tags that are shuffled as one; replaced by a comma.
        metadata: kohya's JSON of captions and tags; pictures that it does not name are left out.
        resolution: pixels per side; None for the run's.
        repeats: how often each picture occurs in an epoch.
        weight: factor of the loss of each picture.
        regularisation: pictures of the class: weighted with --prior_loss_weight, and repeated until
            they are as many as the others.
        dataset: of kohya's config: regularisation is as many as the others of the same one.
    """

    folder: str
    prompt: str | None = None
    trigger: str | None = None
    caption_lines: bool = False
    shuffle_caption: bool = False
    keep_tokens: Annotated[int, Field(ge=0)] = 0
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    caption_extension: str | None = None
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    first_line: bool = False
    wildcards: bool = False
    keep_tokens_separator: str | None = None
    secondary_separator: str | None = None
    metadata: str | None = None
    resolution: Annotated[int, Field(ge=1, le=16_384)] | None = None
    aspect_ratio_buckets: bool = False
    center_crop: bool = False
    random_flip: bool = False
    masked_loss: bool = False
    repeats: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    weight: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 1.0
    regularisation: bool = False
    dataset: int = 0

    @property
    def path(self) -> Path:
        return as_path(self.folder)

    def options(self) -> str:
        """What a resumed run must agree in, beside pictures, captions and masks."""
        names = (
            "caption_dropout", "resolution", "aspect_ratio_buckets", "center_crop", "random_flip",
            "repeats", "weight", "regularisation",
        )  # fmt: skip
        return " ".join(f"{name} {getattr(self, name)}" for name in names)


def names_folders(place: Path) -> bool:
    """Whether `--instance_data_dir` is a file that names folders, or a folder of folders named in
    kohya's manner, rather than a folder of pictures."""
    if as_path(place).is_dir():
        return bool(read_folder_names(place)[0])
    return place.suffix.lower() in _SUFFIXES


def sources_of(data: DataSettings) -> list[Source]:
    """The folders that a run trains on.

    Raises:
        UserError: the file cannot be read, or an entry in it is not valid.
    """
    place = data.instance_data_dir
    if not names_folders(place):
        return [Source(str(place), **_defaults(data))]
    if as_path(place).is_dir():
        # The first line of a caption file alone, as kohya's scripts take it.
        common: Mapping[str, Any] = {"first_line": not data.caption_lines}
        entries: Sequence[Mapping[str, Any]] = read_folder_names(place)[0]
    elif place.suffix.lower() in _KOHYAS:
        common, entries = {}, read_dataset_config(place)
    else:
        common, entries = _read_yaml(place)
    base = {**_defaults(data), **common}
    return [
        _source(f"{place}, folder {number}", {**base, **entry})
        for number, entry in enumerate(entries, 1)
    ]


def some_photos(place: Path, count: int) -> list[Path]:
    """At most `count` pictures of the subjects in `--instance_data_dir`, as many of each; none if
    it is gone."""
    if not names_folders(place):
        return first_pictures(place, count)
    try:
        sources = sources_of(DataSettings(instance_data_dir=place))
    except UserError:
        return []
    folders = [source.path for source in sources if not source.regularisation]
    share = -(-count // max(1, len(folders)))
    return [path for folder in folders for path in first_pictures(folder, share)][:count]


def _defaults(data: DataSettings) -> dict[str, Any]:
    """What the flags say, under an entry's names; the resolution is the run's."""
    own = {field.name for field in dataclasses.fields(Source)} - {"resolution"}
    same = {f.name: getattr(data, f.name) for f in dataclasses.fields(data) if f.name in own}
    return {"prompt": data.instance_prompt, **same}


def _read_yaml(path: Path) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """The top level, and the entries with their folders as seen from the file."""
    content = read_mapping(path)
    entries = content.pop("folders", None)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} names no folders: write `folders:` and a list under it.")
    found: list[Mapping[str, Any]] = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("folder"), str):
            raise UserError(f"{path}, folder {number}: needs `folder: PATH`.")
        entry = dict(entry)
        for name in ("folder", "metadata"):
            if isinstance(entry.get(name), str):
                entry[name] = str(as_path(path).parent / as_path(entry[name]))
        found.append(entry)
    return content, found


def _source(where: str, values: Mapping[str, Any]) -> Source:
    known = [field.name for field in dataclasses.fields(Source)]
    for name in values:
        if name not in known:
            raise UserError(f"{where}: {name} is not a setting{did_you_mean(str(name), known)}.")
    try:
        return check_value(dict(values), Source)
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from None
