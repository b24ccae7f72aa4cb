"""Masks follow their picture through crop, mirror and scale to the latents, and weight the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from diffusekrona.common.errors import UserError
from diffusekrona.common.pictures import fit_picture, to_tensor
from diffusekrona.data.examples import read_examples
from diffusekrona.data.folder import find_pictures
from diffusekrona.data.masks import cut_masks, find_mask
from diffusekrona.data.settings import DataSettings
from diffusekrona.train_dreambooth import main
from diffusekrona.training.losses import dreambooth_loss


def photo(folder: Path, name: str, size: tuple[int, int] = (48, 32)) -> Path:
    path = folder / name
    Image.new("RGB", size, "navy").save(path)
    return path


def box_mask(path: Path, box: tuple[int, int, int, int], size: tuple[int, int] = (48, 32)) -> Path:
    """White inside `box`, black elsewhere."""
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    mask.save(path)
    return path


@pytest.mark.parametrize("ending", [".mask.png", "-masklabel.png"])
def test_masks_beside_pictures_are_found_and_not_trained_on(tmp_path: Path, ending: str) -> None:
    one, two = photo(tmp_path, "one.jpg"), photo(tmp_path, "two.png")
    mask = box_mask(tmp_path / f"one{ending}", (0, 0, 9, 9))
    box_mask(tmp_path / f"gone{ending}", (0, 0, 9, 9))
    pictures, skipped = find_pictures(tmp_path)
    assert pictures == [one, two]
    assert skipped == [f"gone{ending}: a mask, but no picture is called gone"]
    assert find_mask(one) == mask and find_mask(two) is None


def test_an_alpha_channel_is_a_mask_if_it_says_something(tmp_path: Path) -> None:
    image = Image.new("RGBA", (40, 40), (9, 9, 9, 255))
    image.save(tmp_path / "whole.png")
    assert find_mask(tmp_path / "whole.png") is None
    image.paste((9, 9, 9, 0), (0, 0, 20, 40))
    image.save(tmp_path / "half.png")
    assert find_mask(tmp_path / "half.png") == tmp_path / "half.png"
    (cells,) = cut_masks(
        tmp_path / "half.png", tmp_path / "half.png", (40, 40), (40, 40), [(0, 0)], False, (2, 4)
    )
    assert torch.equal(cells, torch.tensor([[[0.0, 0, 1, 1], [0, 0, 1, 1]]]))


def test_a_mask_is_cut_as_its_picture_is(tmp_path: Path) -> None:
    """The picture is its own mask in grey, so its pixels say what the mask must be."""
    ramp = Image.linear_gradient("L").resize((96, 64)).rotate(90)
    path, mask = tmp_path / "ramp.png", tmp_path / "ramp.mask.png"
    ramp.convert("RGB").save(path)
    ramp.resize((48, 32)).save(mask)  # of another size, but the same shape
    crops = [(0.0, 0.0), (0.3, 0.9)]
    cells = cut_masks(mask, path, (64, 96), (32, 32), crops, True, (4, 4))
    assert len(cells) == 4 and all(one.shape == (1, 4, 4) for one in cells)
    for number, crop in enumerate(crops):
        pixels = (to_tensor(fit_picture(ramp.convert("RGB"), (32, 32), crop)[0])[:1] + 1) / 2
        expected = torch.nn.functional.avg_pool2d(pixels, 8)
        torch.testing.assert_close(cells[2 * number], expected, atol=0.03, rtol=0)
        assert torch.equal(cells[2 * number + 1], cells[2 * number].flip(-1))


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = photo(tmp_path, "one.jpg")
    mask = box_mask(tmp_path / "one.mask.png", (0, 0, 9, 9), (32, 48))
    with pytest.raises(UserError, match="shape of its picture"):
        cut_masks(mask, path, (32, 48), (32, 32), [(0, 0)], False, (4, 4))


def test_masks_that_are_asked_for_and_missing(tmp_path: Path, caplog) -> None:
    photo(tmp_path, "one.jpg")
    settings = DataSettings(instance_data_dir=tmp_path, instance_prompt="a dog", masked_loss=True)
    with pytest.raises(UserError, match="has a mask"):
        read_examples(settings, 0)
    box_mask(tmp_path / "one.mask.png", (0, 0, 9, 9))
    photo(tmp_path, "two.jpg")
    assert [e.mask and e.mask.name for e in read_examples(settings, 0)] == ["one.mask.png", None]
    assert "without a mask, so trained on as a whole: two.jpg" in caplog.text
    caplog.clear()
    read_examples(DataSettings(instance_data_dir=tmp_path, instance_prompt="a dog"), 0)
    assert "1 masks in" in caplog.text and "--masked_loss" in caplog.text


def test_the_masked_loss_by_hand() -> None:
    prediction, target = torch.zeros(2, 2, 1, 2), torch.ones(2, 2, 1, 2)
    target[0, :, 0, 1] = 3.0  # an error of 9 in the right half of the first sample
    mask = torch.tensor([[[[1.0, 0.1]]], [[[1.0, 1.0]]]])
    loss = dreambooth_loss(prediction, target, mask=mask)
    assert loss.item() == pytest.approx(((1 * 1 + 9 * 0.1) / 1.1 + 1) / 2)
    ones = torch.ones(2, 1, 1, 2)
    assert dreambooth_loss(prediction, target, mask=ones).item() == pytest.approx((5 + 1) / 2)
    nothing = torch.zeros(2, 1, 1, 2)
    assert dreambooth_loss(prediction, target, mask=nothing).item() == 0


def flags(base: Path, pictures: Path, out: Path, *more: str) -> list[str]:
    return [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(pictures),
        "--instance_prompt", "a sks dog", "--output_dir", str(out), "--a2", "16",
        "--max_train_steps", "3", "--resolution", "16", "--report_to", "none", "--cpu", *more,
    ]  # fmt: skip


def test_a_run_with_white_masks_is_one_without_and_black_ones_change_it(
    tiny_sd1, tmp_path: Path
) -> None:
    (data := tmp_path / "data").mkdir()
    photo(data, "one.jpg"), photo(data, "two.jpg")

    def run(name: str, *more: str) -> dict[str, torch.Tensor]:
        assert main(flags(tiny_sd1, data, tmp_path / name, "--random_flip", *more)) == 0
        return load_file(tmp_path / name / "adapter.safetensors")

    plain = run("plain")
    box_mask(data / "one.mask.png", (0, 0, 47, 31))
    white = run("white", "--masked_loss")
    for name in plain:
        torch.testing.assert_close(white[name], plain[name], atol=2e-5, rtol=1e-3)
    box_mask(data / "one.mask.png", (0, 0, 15, 31))
    black = run("black", "--masked_loss", "--unmasked_weight", "0")
    assert any(not torch.allclose(black[name], plain[name], atol=1e-4) for name in plain)
