"""Class pictures: those of another prompt or base are not trained as this one's."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffusekrona.common.errors import UserError
from diffusekrona.data.class_images import refuse_other_pictures
from diffusekrona.sampling.grids import save_png


def test_pictures_of_another_prompt_or_base_are_refused(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16))
    image.save(tmp_path / "photo.png")  # somebody's own
    (tmp_path / "odd.png").write_text("not a picture")
    save_png(image, tmp_path / "class_00000.png", {"prompt": "a dog", "base": "/old/place/sd15"})
    refuse_other_pictures(tmp_path, "a dog", "/new/place/sd15")
    refuse_other_pictures(tmp_path / "nowhere", "a dog", "x")
    with pytest.raises(UserError, match=r"class_00000\.png was drawn with prompt 'a dog'"):
        refuse_other_pictures(tmp_path, "a cat", "sd15")
    with pytest.raises(UserError, match="give another --class_data_dir"):
        refuse_other_pictures(tmp_path, "a dog", "stabilityai/sdxl")
