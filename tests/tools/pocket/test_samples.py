"""Pictures drawn ahead, and the samples that the UNets learn from."""

import numpy as np
import pytest
import torch

from tools.pocket import data, measure, samples, vae
from tools.pocket.render import coverage
from tools.pocket.tokens import build_tokenizer

ROWS = 6


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", ROWS)
    data.draw_pictures(tmp_path, "train", ROWS)
    return tmp_path


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return vae.new_vae().requires_grad_(False).eval()


def test_a_file_holds_pictures_masks_and_captions(work):
    arrays = np.load(work / "data" / "train_0000000.npz")
    assert arrays["images"].shape == (ROWS, 128, 128, 3)
    pixels = arrays["images"][0, :2, :2].reshape(4, 3).mean(0)
    assert np.abs(arrays["small"][0, 0, 0] - pixels).max() <= 0.5
    picture = data.training_picture(3)
    covered = coverage(picture)[2:4, 4:6].sum()
    assert arrays["masks"][3, 1, 2] == covered
    assert arrays["masks"].max() == 4
    tokenizer = build_tokenizer()
    for text in tokenizer.batch_decode(arrays["captions"][3].astype(int)):
        assert picture.identity.noun in text


def test_samples_belong_together_and_new_pictures_join(work, autoencoder, monkeypatch):
    found = samples.Samples(work, autoencoder, cropped=3)
    latents, masks, _captions, time_ids = found.parts
    assert latents.shape == (ROWS, vae.CHANNELS, 16, 16)
    plain = (time_ids == torch.tensor(samples.PLAIN_TIME_IDS)).all(1)
    whole = torch.arange(ROWS) % 3 != 0
    assert plain[whole].all()
    assert (masks[~whole] == samples.CROPPED_COVER).all()
    monkeypatch.setattr(samples, "CAPTION_DROPOUT", 0.5)
    batch = found.draw(200)
    assert (batch.ids[batch.said == 0] == found.empty).all()
    assert 60 < batch.said.sum() < 140
    known = found.parts[0].float()
    row = int((known - batch.latents[0]).abs().flatten(1).sum(1).argmin())
    assert torch.equal(known[row], batch.latents[0])
    assert torch.equal(masks[row].float(), batch.masks[0, 0])
    data.draw_pictures(work, "train", 2 * ROWS)
    found.grow()
    assert [len(part) for part in found.parts] == [2 * ROWS] * 4
    assert torch.equal(found.parts[0][:ROWS], latents)


def test_a_gap_ends_what_is_read_and_no_pictures_are_an_error(work, autoencoder):
    path = work / "data" / "train_0000000.npz"
    path.rename(work / "data" / f"train_{ROWS:07d}.npz")
    assert not list(data.files_of(work, "train"))
    with pytest.raises(FileNotFoundError, match="data stage"):
        samples.Samples(work, autoencoder)


def test_the_loss_on_held_out_things_is_the_trained_bases_lowest(tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline

    monkeypatch.setattr(data, "CHUNK", ROWS)
    monkeypatch.setattr(measure, "LOSS_BATCH", 12)
    data.draw_pictures(tmp_path, "test", ROWS)
    for name in ("pocket", "pocket-sdxl"):
        pipeline = DiffusionPipeline.from_pretrained(measure.MODELS / name)
        loss = measure.held_out_loss(pipeline, tmp_path, batches=1)
        assert loss == measure.held_out_loss(pipeline, tmp_path, batches=1)
        for values in pipeline.unet.conv_out.parameters():
            values.data.zero_()
        assert 0.1 < loss < measure.held_out_loss(pipeline, tmp_path, batches=1) / 2
