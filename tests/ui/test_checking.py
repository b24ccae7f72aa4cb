"""The check of a subject's pictures on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffusekrona.common.errors import UserError
from diffusekrona.ui.checking import check_pictures
from diffusekrona.ui.places import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    for number, side in enumerate((64, 8)):
        path = tmp_path / f"data/dog/input/0{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((side, side), 50).convert("RGB").save(path)
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path)


def values(base: Path) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": str(base),
        "instance_data_dir": Path("data/dog/input"),
        "instance_prompt": "a sks dog",
        "output_dir": Path("outputs/dog/one"),
    }


def test_remarks_and_the_contact_sheet(workspace: Workspace, tiny_sd1: Path) -> None:
    text = check_pictures(workspace, values(tiny_sd1))
    assert "2 pictures, " in text and "remark" in text
    assert "/files/outputs/reports/data-1/index.html" in text
    page = (workspace.outputs / "reports/data-1/index.html").read_text()
    assert "01.png" in page and "too small: enlarged" in page


def test_problems_and_a_refusing_disk_are_one_line(workspace: Workspace, tiny_sd1: Path) -> None:
    mask = workspace.data / "dog/input/00.mask.png"
    Image.new("L", (64, 32)).save(mask)
    masked = {**values(tiny_sd1), "masked_loss": True}
    assert "Training would stop: 00.png" in check_pictures(workspace, masked)
    (workspace.root / "elsewhere").mkdir()
    Image.new("RGB", (64, 64)).save(workspace.root / "elsewhere/00.png")
    with pytest.raises(UserError, match="is not in data/ or outputs/"):
        check_pictures(workspace, {**values(tiny_sd1), "instance_data_dir": Path("elsewhere")})
    (workspace.outputs / "reports").rename(workspace.outputs / "old")
    (workspace.outputs / "reports").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        check_pictures(workspace, values(tiny_sd1))
