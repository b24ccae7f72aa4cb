"""The reader: predicts class, place, colours, pattern, accessory, proportions, pose of a picture.

A small convolutional network with one head for each label of the pocket world. It was trained on
rendered pictures with exact labels and knows nothing of the text encoder that conditions the base
models, so it judges identity and obedience independently of them. Its own error is in its config.

    reader = load_reader(folder)
    readings = reader.read(pictures)          # PIL images of any size
    readings[0].best("class"), readings[0].yaw
    likeness(readings[0], average(readings_of_photos))
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..common.errors import UserError, shortened
from ..common.json_files import read_json

SIZE, LOOKS, HIDDEN = 64, 16, 256
#: What makes an identity, with its weight in `likeness`.
IDENTITY_WEIGHTS = {
    "main_colour": 3.0,
    "second_colour": 2.0,
    "pattern": 1.5,
    "accessory": 1.5,
    "accessory_colour": 0.5,
    "variant": 1.0,
    "proportions": 1.5,
}
PROPORTION_TOLERANCE = 0.5
_READ_ERRORS = (UserError, OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError)


@dataclass
class _Config:
    """What is read of a reader's config.json; as `Reader` takes it."""

    values: dict[str, list[str]]
    widths: Annotated[
        list[Annotated[int, Field(ge=8, le=4096, multiple_of=8)]], Field(max_length=6)
    ]
    blocks: list[Annotated[int, Field(ge=0, le=64)]]
    phrases: dict[str, str]


@dataclass(frozen=True)
class Reading:
    """What was read from one picture, or the average over several.

    `chances` holds for each label a probability for each of its values.
    """

    chances: dict[str, dict[str, float]]
    proportions: tuple[float, ...]  # -1..1: build, height, head, detail
    main_rgb: tuple[float, float, float]  # 0..1
    yaw: float  # radians; 0 faces the camera, pi/2 faces right

    def best(self, label: str) -> str:
        """The likeliest value of a label."""
        return max(self.chances[label], key=self.chances[label].__getitem__)


class Reader(nn.Module):
    """The network: residual blocks, maps of where to look, and one head for each label.

    A pattern or an accessory shows in a few pixels of the thing, wherever it stands: each of
    `LOOKS` maps weighs the features of all positions by softmax, and the heads see the sums.

    Args:
        values: each label's possible values, in the order of its head.
        widths, blocks: channels of the levels, each at half the size of the one before, and the
            residual blocks of each.
        phrases: each place as prompts name it, such as {"snow": "in the snow"}.

    Raises:
        ValueError: widths and blocks differ in number.
    """

    def __init__(
        self,
        values: Mapping[str, Sequence[str]],
        widths: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (1, 2, 2),
        phrases: Mapping[str, str] | None = None,
    ):
        super().__init__()
        self.phrases = dict(phrases or {})
        self.values = {label: tuple(names) for label, names in values.items()}
        self.widths, self.blocks = tuple(widths), tuple(blocks)
        layers: list[nn.Module] = []
        before = 3
        for width, count in zip(widths, blocks, strict=True):
            layers += [nn.Conv2d(before, width, 3, 2, 1), *(_Block(width) for _ in range(count))]
            before = width
        side = SIZE >> len(widths)
        self.body = nn.Sequential(*layers)
        self.position = nn.Parameter(torch.zeros(1, before, side, side))
        self.norm = nn.GroupNorm(8, before)
        self.look = nn.Linear(before, LOOKS)
        self.mix = nn.Sequential(nn.Linear(before * LOOKS, HIDDEN), nn.SiLU())
        self.heads = nn.ModuleDict({n: nn.Linear(HIDDEN, len(v)) for n, v in self.values.items()})
        self.heads["proportions"] = nn.Linear(HIDDEN, 4)
        self.heads["main_rgb"] = nn.Linear(HIDDEN, 3)
        self.heads["yaw"] = nn.Linear(HIDDEN, 2)  # sine, cosine

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixels (N, 3, 64, 64) in -1..1 -> for each head its raw outputs (N, k)."""
        seen = F.silu(self.norm(self.body(pixels) + self.position))
        seen = seen.flatten(2).transpose(1, 2)  # (N, positions, channels)
        weights = self.look(seen).softmax(1)
        hidden = self.mix((weights.transpose(1, 2) @ seen).flatten(1))
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: Sequence[Image.Image], batch: int = 64) -> list[Reading]:
        """Readings of pictures of any size."""
        out: list[Reading] = []
        device = next(self.parameters()).device
        for start in range(0, len(pictures), batch):
            arrays = [
                np.asarray(p.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
                for p in pictures[start : start + batch]
            ]
            pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
            raw = {name: value.float().cpu() for name, value in self(pixels.to(device)).items()}
            out += [self._reading(raw, i) for i in range(len(arrays))]
        return out

    def place_in(self, prompt: str) -> str | None:
        """The place that a prompt names, or None."""
        named = [place for place, phrase in self.phrases.items() if phrase in prompt]
        return max(named, key=lambda place: len(self.phrases[place]), default=None)

    def colour_in(self, prompt: str) -> str | None:
        """The colour that a prompt gives its subject, the first that it names; or None."""
        for phrase in self.phrases.values():  # "on a blue background" is a place
            prompt = prompt.replace(phrase, "")
        colours = self.values.get("main_colour", ())
        return next((word for word in re.findall(r"\w+", prompt) if word in colours), None)

    def _reading(self, raw: dict[str, torch.Tensor], row: int) -> Reading:
        chances = {
            label: dict(zip(names, raw[label][row].softmax(0).tolist(), strict=True))
            for label, names in self.values.items()
        }
        sine, cosine = raw["yaw"][row].tolist()
        return Reading(
            chances,
            tuple(raw["proportions"][row].clamp(-1, 1).tolist()),
            tuple(raw["main_rgb"][row].clamp(0, 1).tolist()),
            float(np.arctan2(sine, cosine)),
        )


class _Block(nn.Module):
    """Two normalised 3 x 3 convolutions beside an identity."""

    def __init__(self, width: int):
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.before, self.between = nn.GroupNorm(8, width), nn.GroupNorm(8, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(F.silu(self.between(self.one(F.silu(self.before(x))))))


def average(readings: Sequence[Reading]) -> Reading:
    """The mean reading of several pictures of one thing."""
    chances = {
        label: {name: float(np.mean([r.chances[label][name] for r in readings])) for name in names}
        for label, names in readings[0].chances.items()
    }
    proportions = tuple(np.mean([r.proportions for r in readings], 0).tolist())
    rgb = tuple(np.mean([r.main_rgb for r in readings], 0).tolist())
    turn = np.mean([np.exp(1j * r.yaw) for r in readings])
    return Reading(chances, proportions, rgb, float(np.angle(turn)))


def turned(readings: Sequence[Reading]) -> list[float]:
    """How far each picture's subject is turned from the mean direction of all, 0 to 180 degrees."""
    turns = np.exp(1j * np.array([one.yaw for one in readings]))
    return np.degrees(np.abs(np.angle(turns * np.conj(turns.mean())))).tolist()


def likeness(one: Reading, other: Reading) -> float:
    """How far two readings agree on who it is, 0 to 1; place and pose do not count.

    For each attribute the overlap of the two distributions, for proportions a fall with their
    distance; their weighted mean, times the overlap of the classes.
    """
    total = 0.0
    for name, weight in IDENTITY_WEIGHTS.items():
        if name == "proportions":
            away = np.abs(np.subtract(one.proportions, other.proportions))
            agreement = float(np.exp(-away / PROPORTION_TOLERANCE).mean())
        else:
            agreement = _overlap(one.chances[name], other.chances[name])
        total += weight * agreement
    share = total / sum(IDENTITY_WEIGHTS.values())
    return share * _overlap(one.chances["class"], other.chances["class"])


def _overlap(one: dict[str, float], other: dict[str, float]) -> float:
    return sum(min(chance, other[name]) for name, chance in one.items())


def load_reader(folder: str | Path) -> Reader:
    """The reader of a folder that `tools/pocket/export.py` wrote, in float32, for use.

    Raises:
        UserError: the folder holds no reader, or a damaged one.
    """
    folder = Path(folder)
    try:
        config = read_json(folder / "config.json", _Config)
        weights = load_file(folder / "model.safetensors")
        with torch.device("meta"):  # sizes in a file may be any: nothing is allocated for them
            reader = Reader(config.values, config.widths, config.blocks, config.phrases)
        floats = {name: value.float() for name, value in weights.items()}
        reader.load_state_dict(floats, assign=True)
    except _READ_ERRORS as error:
        raise UserError(
            f"Cannot load the reader {folder} ({shortened(error, 200)}): give the folder of one, "
            "or install the package again for its own."
        ) from error
    return reader.eval().requires_grad_(False)
