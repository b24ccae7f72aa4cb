"""Untrained parts of every stage fit together, export, and load again in diffusers."""

import copy
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from diffusekrona.evaluation.reader import Reader, average, likeness, load_reader
from tools.pocket import build, export, reader_training, restore, training, unet, unet_sdxl, vae
from tools.pocket.clip import new_clip
from tools.pocket.data import training_picture
from tools.pocket.dino import new_dino
from tools.pocket.tokens import build_tokenizer, tokenize

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    autoencoder = vae.new_vae()
    autoencoder.register_to_config(scaling_factor=1.0)
    parts = {"clip": new_clip(tokenizer), "tokenizer": tokenizer, "vae": autoencoder}
    parts |= {"unet": unet.new_unet(), "unet_sdxl": unet_sdxl.new_unet_sdxl()}
    parts |= {"dino": new_dino(), "reader": reader_training.new_reader()}
    folder = tmp_path_factory.mktemp("models")
    export.export_all(folder, parts)
    return folder


@pytest.mark.parametrize(
    ("kind", "name"),
    [(StableDiffusionPipeline, "pocket"), (StableDiffusionXLPipeline, "pocket-sdxl")],
)
def test_exported_bases_draw(models, kind, name):
    pipeline = kind.from_pretrained(models / name)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a dog", num_inference_steps=1).images[0]
    assert picture.size == (vae.PIXELS, vae.PIXELS)
    assert not any(path.is_symlink() for path in models.rglob("*"))


def test_the_whole_is_small_and_attention_divides_by_64(models):
    total = sum(path.stat().st_size for path in models.rglob("*") if path.is_file())
    assert total < 60e6
    for net in (unet.new_unet(), unet_sdxl.new_unet_sdxl()):
        layers = [m for n, m in net.named_modules() if n.endswith(("to_q", "to_k", "to_v"))]
        assert layers
        assert all(m.in_features % 64 == 0 and m.in_features >= 192 for m in layers)
        assert all(m.out_features % 64 == 0 for m in layers)


def test_training_goes_on_from_exported_weights_alone(models, tmp_path):
    restore.restore(models, tmp_path)
    restored = unet.load_unet(tmp_path).state_dict()
    exported = StableDiffusionPipeline.from_pretrained(models / "pocket").unet.state_dict()
    assert all(torch.allclose(restored[k], v.float(), atol=1e-6) for k, v in exported.items())
    assert unet.load_final_vae(tmp_path).config.scaling_factor == 1.0
    assert set(restore.trained_parts(tmp_path)) >= {"clip", "unet", "unet_sdxl", "vae"}


def test_training_resumes_where_it_stopped(tmp_path):
    def loss(model, step, done):
        return model(torch.ones(1, 2)).pow(2).sum()

    recipe = training.Recipe(peak_lr=1e-2)
    path = tmp_path / "stage.pt"
    training.train(path, torch.nn.Linear(2, 1), loss, 0.002, recipe)
    first = torch.load(path, weights_only=True)
    training.train(path, torch.nn.Linear(2, 1), loss, 0.002, recipe)  # its time is spent
    assert torch.load(path, weights_only=True)["step"] == first["step"] > 0
    training.train(path, torch.nn.Linear(2, 1), loss, 0.004, recipe)
    assert torch.load(path, weights_only=True)["step"] > first["step"]


def test_standardising_changes_latents_not_pictures():
    torch.manual_seed(0)
    autoencoder, x = vae.new_vae().eval(), torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = autoencoder.encode(x).latent_dist.mode()
        picture = autoencoder.decode(before).sample
        mean, std = before.mean((0, 2, 3)), before.std((0, 2, 3))
        vae.standardise(autoencoder, mean, std)
        after = autoencoder.encode(x).latent_dist.mode()
        assert after.mean((0, 2, 3)).abs().max() < 1e-3
        assert torch.allclose(after.std((0, 2, 3)), torch.ones(vae.CHANNELS), atol=1e-2)
        assert torch.allclose(autoencoder.decode(after).sample, picture, atol=1e-3)


def test_the_reader_learns_labels_saves_and_loads(tmp_path):
    torch.manual_seed(0)
    reader = reader_training.new_reader()
    labels = reader_training.labels_of([training_picture(row) for row in range(8)])
    assert labels["class"][0] == labels["class"][1]
    outputs = reader(torch.zeros(8, 3, 64, 64))
    assert torch.isfinite(reader_training.reader_loss(outputs, labels))
    export.save_reader(reader, tmp_path, {"class": 0.5})
    loaded = load_reader(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["errors"] == {"class": 0.5}
    picture = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    one, other = loaded.read([picture, picture])
    assert one.best("class") in reader_training.VALUES["class"]
    assert likeness(one, other) == pytest.approx(1.0, abs=1e-4)
    assert likeness(one, average([one, other])) == pytest.approx(1.0, abs=1e-4)
    assert isinstance(loaded, Reader)


def test_an_empty_caption_gives_zeros_to_sdxl():
    tokenizer = build_tokenizer()
    encoder = export.projected_encoder_of(new_clip(tokenizer))
    ids = tokenize(tokenizer, ["", "a dog"])
    states, pooled = unet_sdxl.encode_ids(encoder, ids, torch.tensor([0.0, 1.0]))
    assert states[0].abs().max() == 0 and pooled[0].abs().max() == 0
    assert states[1].abs().max() > 0 and states.shape == (2, 32, 384)


def test_minutes_need_one_stage():
    assert build.parse_args(["--stage", "unet", "--minutes", "5"]).minutes == 5
    with pytest.raises(SystemExit):
        build.parse_args(["--minutes", "5"])


def test_muon_moves_matrices_in_place_and_resumes(tmp_path):
    def build():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.GroupNorm(4, 32))

    recipe = training.Recipe(peak_lr=1e-2, muon=True)
    model = build()
    optimizers = training.Optimizers(model, recipe)
    assert [len(group) for group in (optimizers.matrices, optimizers.all)] == [1, 2]

    def step(net, states):
        net(torch.ones(1, 32, 4, 4) * torch.arange(32).view(1, 32, 1, 1)).square().sum().backward()
        states.step(1e-2)
        net.zero_grad()

    before = [p.clone() for p in model.parameters()]
    step(model, optimizers)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    resumed = build()
    resumed.load_state_dict(model.state_dict())
    again = training.Optimizers(resumed, recipe)
    again.load_state_dict(copy.deepcopy(optimizers.state_dict()))
    step(model, optimizers)
    step(resumed, again)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True)
    )
