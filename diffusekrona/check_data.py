"""What would be trained on, before training: `diffusekrona data FOLDER`.

Every picture as training would cut it, with its captions and its mask, and what is worth changing:
pictures that are too small, blurred or nearly the same, colour profiles, captions that are missing
or too long. A table in the terminal, a page with a contact sheet, JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .common.command_line import parse
from .common.errors import exit_on_user_error
from .common.settings import SEEDS, flat, setting
from .data.settings import DataSettings, TreatmentSettings

if TYPE_CHECKING:
    from .data.survey import Target

RESOLUTION = 512  # without a base and a resolution


@dataclass(frozen=True)
class CheckedSettings:
    """What is looked at, and where the result goes."""

    folder: Path = setting(
        positional=True,
        metavar="FOLDER|FILE",
        help="Folder of the pictures, or a YAML or TOML file that names several.",
    )
    pretrained_model_name_or_path: str | None = setting(
        None,
        metavar="NAME_OR_PATH",
        aliases=("--base",),
        help="Take the resolution, the sizes of buckets and the length of captions from this base "
        f"model; without it the resolution is {RESOLUTION} by default.",
    )
    single_file_config: str | None = setting(
        None, metavar="FOLDER", help="Of a single-file base: the folder with its configs."
    )
    caption_with: str | None = setting(
        None,
        metavar="NAME_OR_PATH",
        help="Write a .txt file for each picture without a caption, by this image-to-text model of "
        "transformers (BLIP, GIT, LLaVA ...); with --trigger it begins with [trigger].",
    )
    make_masks: str | None = setting(
        None,
        metavar="NAME",
        help="Write photo.mask.png for each picture without a mask, by this model of rembg, such "
        "as isnet-general-use; pip install rembg[cpu].",
    )
    output: Path = setting(
        Path("data_report.html"), metavar="FILE", help="Write the page with the contact sheet here."
    )
    json: Path | None = setting(None, metavar="FILE", help="Write everything to a JSON file.")
    seed: int = setting(
        0, **SEEDS, help="Seed of the run: of random crops, shuffled tags, held-out pictures."
    )


@dataclass(frozen=True)
class CheckDataSettings:
    """All settings of the check, by group."""

    checked: CheckedSettings
    treatment: TreatmentSettings


def target_of(
    base: str | None, resolution: int | None, single_file_config: str | None = None
) -> Target:
    """What the pictures are cut to: by the base's configs, if there is one.

    Raises:
        UserError: no such base, or no family claims it.
    """
    from .data.survey import Target

    if base is None:
        return Target(resolution or RESOLUTION)
    from .bases.families import identify
    from .bases.resolve import resolve_base
    from .bases.vae import read_vae_config

    place = resolve_base(base, single_file_config)
    family, config = identify(place)
    vae_config = read_vae_config(place)
    tokenizers = family.load_tokenizers(place)
    return Target(
        resolution or family.native_resolution(config, vae_config),
        family.pixel_step(config, vae_config),
        lambda caption: family.words_lost(tokenizers, caption),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: look, print, write; returns 1 if training would stop with an error."""
    settings = parse(
        CheckDataSettings,
        argv,
        prog="diffusekrona.check_data",
        description="What a folder would be trained on, and what is wrong with it.",
    )
    from .bases.loading import quiet_libraries
    from .common.own_files import check_names, write_result
    from .data.photographs import report_photographs
    from .data.sources import sources_of
    from .data.survey import survey
    from .data.survey_page import SHOWN, print_survey, survey_page

    quiet_libraries()
    checked = settings.checked
    check_names(checked.output, checked.json)
    data = DataSettings(instance_data_dir=checked.folder, **flat(settings.treatment))
    if checked.caption_with:
        from .data.auto_captions import write_captions

        sources = sources_of(data)
        triggers = {one.path: None if one.regularisation else one.trigger for one in sources}
        written = write_captions(triggers, checked.caption_with)
        print(f"Captions written: {len(written)}")
    if checked.make_masks:
        from .data.auto_masks import make_masks

        folders = [one.path for one in sources_of(data) if not one.regularisation]
        print(f"Masks written: {len(make_masks(folders, checked.make_masks))}")
    base = checked.pretrained_model_name_or_path
    target = target_of(base, data.resolution, checked.single_file_config)
    found = survey(data, target, checked.seed, SHOWN)
    paths = [one.example.path for one in found.pictures]
    report_photographs(base or "", paths)
    title = str(checked.folder)
    print_survey(title, found)
    write_result(checked.output, survey_page(title, found, target.resolution))
    if checked.json:
        write_result(checked.json, json.dumps(found.as_json(), indent=1, ensure_ascii=False))
    print(f"The page: {checked.output}")
    return int(found.stops)


if __name__ == "__main__":
    exit_on_user_error(main)
