"""Trains the reader on rendered pictures, and measures its error on held-out ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from diffusekrona.evaluation.reader import Reader

from .clip import augment
from .data import load_pictures, test_picture, training_picture
from .records import ACCESSORIES, COLOURS, NOUNS, PATTERNS, PLACES, VARIANTS, Picture
from .training import Recipe, load_ema, train
from .unet import load_final_vae
from .vae import encode_means, to_tensor

VALUES = {
    "class": NOUNS,
    "place": tuple(PLACES),
    "main_colour": tuple(COLOURS),
    "second_colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "accessory": ACCESSORIES,
    "accessory_colour": tuple(COLOURS),
    "variant": tuple(str(v) for v in range(VARIANTS)),
}
BATCH, RECONSTRUCTED_COUNT = 48, 15_000
RECIPE = Recipe(peak_lr=2e-3, warmup_steps=200, weight_decay=0.05, save_every=120, muon=True)


def new_reader() -> Reader:
    """An untrained reader."""
    return Reader(VALUES, phrases=PLACES)


def labels_of(pictures: list[Picture]) -> dict[str, torch.Tensor]:
    """Exact labels: class indices (N,) for each of `VALUES`, and the numbers (N, k)."""
    rows = []
    for picture in pictures:
        one = picture.identity
        rows.append(
            {
                "class": one.noun,
                "place": picture.setting.place,
                "main_colour": one.main.name,
                "second_colour": one.second.name,
                "pattern": one.pattern,
                "accessory": one.accessory,
                "accessory_colour": one.accessory_paint.name,
                "variant": str(one.variant),
            }
        )
    labels = {
        name: torch.tensor([names.index(row[name]) for row in rows])
        for name, names in VALUES.items()
    }
    labels["proportions"] = torch.tensor([p.identity.proportions for p in pictures])
    labels["main_rgb"] = torch.tensor([p.identity.main.rgb for p in pictures])
    yaws = torch.tensor([p.pose.yaw for p in pictures])
    labels["yaw"] = torch.stack([yaws.sin(), yaws.cos()], 1)
    return labels


def reader_loss(outputs: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropies of the names and squared errors of the numbers, summed.

    The colour of an accessory counts only where there is one.
    """
    loss = torch.zeros(())
    worn = labels["accessory"] > 0
    for name in VALUES:
        weight = worn.float() if name == "accessory_colour" else torch.ones(len(worn))
        each = F.cross_entropy(outputs[name].float(), labels[name], reduction="none")
        loss = loss + (each * weight).sum() / weight.sum().clamp(min=1)
    for name, weight in (("proportions", 2.0), ("main_rgb", 4.0), ("yaw", 1.0)):
        loss = loss + weight * F.mse_loss(outputs[name].float(), labels[name])
    return loss


@torch.no_grad()
def errors_of(reader: Reader, images: np.ndarray, pictures: list[Picture]) -> dict[str, float]:
    """Of pictures (N, 64, 64, 3): shares read wrong, mean absolute errors of the numbers."""
    labels, worn = (
        labels_of(pictures),
        torch.tensor([p.identity.accessory != "none" for p in pictures]),
    )
    parts = [reader(to_tensor(part)) for part in np.array_split(images, max(1, len(images) // 64))]
    outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    errors = {}
    for name in VALUES:
        wrong = (outputs[name].argmax(1) != labels[name]).float()
        errors[name] = float((wrong[worn] if name == "accessory_colour" else wrong).mean())
    errors["proportions"] = float((outputs["proportions"] - labels["proportions"]).abs().mean())
    errors["main_rgb"] = float((outputs["main_rgb"] - labels["main_rgb"]).abs().mean())
    turn = torch.atan2(*outputs["yaw"].T) - torch.atan2(*labels["yaw"].T)
    away = torch.atan2(turn.sin(), turn.cos()).abs()
    errors["yaw_degrees_median"] = float(away.median() * 180 / np.pi)
    return {name: round(value, 4) for name, value in errors.items()}


@torch.no_grad()
def reconstructed(work_dir: Path, images: np.ndarray) -> np.ndarray:
    """The first pictures as the autoencoder gives them back; none where it is not trained yet."""
    path = work_dir / "data" / "reconstructed.npy"
    if path.exists():
        return np.load(path)
    if not (work_dir / "vae_final.pt").exists():
        return images[:0]
    vae, out = load_final_vae(work_dir), []
    for part in np.array_split(images[:RECONSTRUCTED_COUNT], RECONSTRUCTED_COUNT // 30):
        decoded = vae.decode(encode_means(vae, part).float()).sample
        out.append(((decoded + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
    np.save(path, np.concatenate(out))
    return np.concatenate(out)


def train_reader(work_dir: Path, minutes: float, device: torch.device) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/reader.pt`.

    A third of the pictures come through the autoencoder, since those to be judged will.
    """
    images = load_pictures(work_dir, "train", part="small")
    test = load_pictures(work_dir, "test", 500, "small")
    blurred = reconstructed(work_dir, images)
    known = labels_of([training_picture(row) for row in range(len(images))])
    tests = [test_picture(row) for row in range(len(test))]

    def batch_loss(reader: Reader, step: int, done: float) -> torch.Tensor:
        rng = np.random.default_rng(step)
        rows = rng.integers(0, len(images), BATCH)
        batch = images[rows]
        if len(blurred):
            rows[: BATCH // 3] = rng.integers(0, len(blurred), BATCH // 3)
            batch = np.concatenate([blurred[rows[: BATCH // 3]], images[rows[BATCH // 3 :]]])
        labels = {name: value[rows] for name, value in known.items()}
        pixels = augment(to_tensor(batch)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            outputs = reader(pixels)
        return reader_loss({name: out.cpu() for name, out in outputs.items()}, labels)

    def note(ema: Reader, step: int) -> str:
        errors = errors_of(ema.cpu(), test, tests)
        ema.to(device)
        return ", ".join(f"{name} {value:.3f}" for name, value in errors.items())

    train(work_dir / "reader.pt", new_reader().to(device), batch_loss, minutes, RECIPE, note)


def load_trained_reader(work_dir: Path) -> Reader:
    """The trained reader (averaged weights)."""
    return load_ema(work_dir / "reader.pt", new_reader())
