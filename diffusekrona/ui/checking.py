"""What training would make of a subject's pictures, before it is started."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..common.own_files import write_result
from .form import without_flags
from .jobs import settings_from
from .libraries import wait_for_libraries
from .places import Workspace, inside
from .tools import new_folder
from .views import say, view


def check_pictures(workspace: Workspace, values: Mapping[str, Any]) -> str:
    """The problems, remarks and contact sheet of `diffusekrona data`, for a run's settings.

    Raises:
        UserError: no pictures, some outside data/ and outputs/, a base that cannot be read, or a
            disk that is full.
    """
    from ..bases.loading import quiet_libraries
    from ..check_data import target_of
    from ..data.survey import survey
    from ..data.survey_page import SHOWN, summary, survey_page

    wait_for_libraries()
    quiet_libraries()
    settings = settings_from(values)
    data, base = settings.data, settings.base
    target = target_of(base.pretrained_model_name_or_path, data.resolution, base.single_file_config)
    found = survey(data, target, settings.optimisation.seed, SHOWN)
    found = dataclasses.replace(found, notes=[without_flags(line) for line in found.notes])
    for one in found.pictures:
        inside(workspace, one.example.path)
    page = new_folder(workspace, "data") / "index.html"
    write_result(page, survey_page(str(data.instance_data_dir), found, target.resolution))
    wrong = [*found.wrong, *(f"{p.name}: {line}" for p in found.pictures for line in p.wrong)]
    remarks = len(found.notes) + sum(len(one.notes) for one in found.pictures)
    note = f"{summary(found)}, {remarks or 'no'} remark{'s' * (remarks != 1)}."
    said = say(mistakes=[f"Training would stop: {line}" for line in wrong], note=note)
    return said + view("report", pages=[workspace.relative(page)], files=[], text="")
