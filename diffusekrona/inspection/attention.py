"""Where in a picture each word of its prompt is read: cross-attention, without and with an adapter.

A place's attention to a word is the probability that cross-attention gives to the word's tokens,
averaged over heads, over the layers of one resolution and over denoising steps, as in Tang et al.,
"What the DAAM: Interpreting Stable Diffusion Using Cross Attention", 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image

from ..adapters.file import Adapter, put_adapter
from ..bases.families import denoiser_of, family_of_pipeline
from ..common.errors import UserError
from ..common.pages import Table
from ..common.pictures import to_image
from ..sampling.grids import Grid
from ..sampling.pipeline import generate
from .switched import Drawing, Shown

ALL_STEPS, THIRDS = "all steps", ("first third", "middle third", "last third")
_OPACITY = 0.65  # of the heat over the picture


@dataclass
class Record:
    """Attention to words while one picture is drawn.

    Attributes:
        sums: (call of the denoiser, places) to the sum of the layers' attention (words, places).
        layers: to how many layers were added.
    """

    sums: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    layers: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, call: int, attention: torch.Tensor) -> None:
        key = (call, attention.shape[-1])
        self.sums[key] = self.sums.get(key, 0) + attention.float().cpu()
        self.layers[key] = self.layers.get(key, 0) + 1


class _Recorder:
    """An attention processor that records the probabilities and lets another one compute."""

    def __init__(self, processor: Any, words: Sequence[Sequence[int]], record: Record) -> None:
        self.processor, self.words, self.record, self.calls = processor, words, record, 0

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        # With guidance, the last sample is the prompt's, the first that of the negative prompt.
        text = encoder_hidden_states[-1:]
        text = attn.norm_encoder_hidden_states(text) if attn.norm_cross else text
        query = attn.head_to_batch_dim(attn.to_q(hidden_states[-1:]))
        key = attn.head_to_batch_dim(attn.to_k(text))
        mask = None if attention_mask is None else attention_mask[-1:]
        mask = attn.prepare_attention_mask(mask, text.shape[1], 1)
        probabilities = attn.get_attention_scores(query, key, mask).mean(0)  # (places, tokens)
        words = [probabilities[:, list(tokens)].sum(1) for tokens in self.words]
        self.record.add(self.calls, torch.stack(words))
        self.calls += 1
        return self.processor(
            attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs
        )


@contextmanager
def recorded(pipeline: Any, words: Sequence[Sequence[int]]) -> Generator[Record]:
    """Record the attention to the tokens of each word while a single picture is drawn.

    The picture is the one that is drawn without it, bit for bit.

    Raises:
        UserError: the base has no cross-attention.
    """
    denoiser, family = denoiser_of(pipeline), family_of_pipeline(pipeline)
    if not family.cross_attention:
        raise UserError(no_maps(family.title))
    record, before = Record(), dict(denoiser.attn_processors)
    denoiser.set_attn_processor(
        {
            name: _Recorder(processor, words, record)
            if name.split(".")[-2] == family.cross_attention
            else processor
            for name, processor in before.items()
        }
    )
    try:
        yield record
    finally:
        denoiser.set_attn_processor(before)


def no_maps(title: str) -> str:
    """Why a family has no maps of words."""
    return f"{title} has no cross-attention: maps of single words are not drawn."


def tokens_of(pipeline: Any, prompt: str, words: Sequence[str]) -> list[list[int]]:
    """The positions of each word's tokens in the prompt's text states.

    Args:
        words: one or more words each, as they stand in the prompt.

    Raises:
        UserError: the prompt does not have a word, or the base does not read that far.
    """
    family = family_of_pipeline(pipeline)
    tokenizers = [getattr(pipeline, name) for name in family.tokenizers]
    ids = family.tokenize(tokenizers, [prompt])[0][0].tolist()
    found = []
    for word in words:
        own = tokenizers[0](word, add_special_tokens=False).input_ids
        starts = range(len(ids) - len(own) + 1)
        there = [start for start in starts if ids[start : start + len(own)] == own]
        if not own or not there:
            raise UserError(f"--words {word}: there is no such word in the prompt {prompt!r}.")
        found.append([start + i for start in there for i in range(len(own))])
    return found


def maps_of(record: Record, height: int, width: int) -> dict[str, torch.Tensor]:
    """Title to the maps (words, h, w) of the whole drawing, of its thirds, and, where the denoiser
    has attention at several resolutions, of each of them.

    Args:
        height, width: of the latents.
    """
    calls = 1 + max(call for call, _ in record.sums)
    largest = _sides(max(places for _, places in record.sums), height, width)

    def mean(keep: Callable[[int, int], bool]) -> torch.Tensor | None:
        """Over layers, then steps, then resolutions, each enlarged to the largest."""
        by_places: dict[int, list[torch.Tensor]] = {}
        for (call, places), total in record.sums.items():
            if keep(call, places):
                by_places.setdefault(places, []).append(total / record.layers[call, places])
        enlarged = []
        for places, steps in by_places.items():
            maps = torch.stack(steps).mean(0).unflatten(1, _sides(places, height, width))
            enlarged.append(F.interpolate(maps[None], largest, mode="bilinear")[0])
        return torch.stack(enlarged).mean(0) if enlarged else None

    sizes = sorted({places for _, places in record.sums}, reverse=True)
    kept: dict[str, Callable[[int, int], bool]] = {ALL_STEPS: lambda call, places: True}
    for size in sizes if len(sizes) > 1 else ():
        rows, columns = _sides(size, height, width)
        kept[f"at {columns}×{rows}"] = lambda call, places, size=size: places == size
    for number, title in enumerate(THIRDS):
        kept[title] = lambda call, places, number=number: call * 3 // calls == number
    maps = {title: mean(keep) for title, keep in kept.items()}
    return {title: each for title, each in maps.items() if each is not None}


def _sides(places: int, height: int, width: int) -> tuple[int, int]:
    """(h, w) of a map, which is that of the latents halved some times."""
    while height * width > places:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


@dataclass(frozen=True)
class Mapped:
    """A picture and the maps (words, h, w) of its words, by title."""

    seed: int
    adapted: bool
    image: Image.Image
    maps: dict[str, torch.Tensor]


def show_words(
    make_pipeline: Callable[[], Any],
    adapter: Adapter,
    label: str,
    drawing: Drawing,
    words: Sequence[str],
    photos: Sequence[Image.Image] = (),
) -> Shown:
    """`draw_maps`, with the subject's photos in the first column."""
    mapped = draw_maps(make_pipeline, adapter, drawing, words)
    grid = maps_grid(mapped, words, f"{label}: where words are read, {drawing.prompt}")
    numbers = {"words": maps_json(mapped, words)}
    return Shown("words", grid.with_photos(photos), maps_table(mapped, words), numbers)


def draw_maps(
    make_pipeline: Callable[[], Any], adapter: Adapter, drawing: Drawing, words: Sequence[str]
) -> list[Mapped]:
    """The prompt's pictures, for each seed by the base and with the adapter.

    Raises:
        UserError: as `recorded` and `tokens_of`.
    """
    pipeline = make_pipeline()
    tokens = tokens_of(pipeline, drawing.prompt, words)
    scale = family_of_pipeline(pipeline).latent_scale(pipeline.vae.config)
    found = []
    for adapted in (False, True):
        if adapted:
            put_adapter(pipeline, adapter)
        for seed in drawing.seeds:
            with recorded(pipeline, tokens) as record:
                (image,) = generate(
                    pipeline, [drawing.prompt], [seed], steps=drawing.steps,
                    guidance=drawing.guidance, size=drawing.size, progress=False,
                )  # fmt: skip
            maps = maps_of(record, image.height // scale, image.width // scale)
            found.append(Mapped(seed, adapted, image, maps))
    return sorted(found, key=lambda one: (drawing.seeds.index(one.seed), one.adapted))


def maps_grid(mapped: Sequence[Mapped], words: Sequence[str], title: str) -> Grid:
    """Two rows per word and seed: base and adapter, each map over its picture. The maps of one
    word and column share a colour scale."""
    columns = list(mapped[0].maps)
    rows = []
    for number, word in enumerate(words):
        ranges = {}
        for column in columns:
            every = torch.stack([one.maps[column][number] for one in mapped])
            ranges[column] = every.min().item(), every.max().item()
        for one in mapped:
            heat = [overlay(one.image, one.maps[c][number], *ranges[c]) for c in columns]
            rows.append((f"“{word}”, {_who(one)}, seed {one.seed}", (one.image, *heat)))
    return Grid(title, ("picture", *columns), tuple(rows))


def overlay(picture: Image.Image, heat: torch.Tensor, low: float, high: float) -> Image.Image:
    """A map (h, w) in colours over the picture in grey: dark at `low`, bright at `high`."""
    level = (heat - low) / max(high - low, 1e-12)
    level = F.interpolate(level[None, None], picture.size[::-1], mode="bilinear")[0, 0]
    colours = torch.tensor(colormaps["inferno"](level.numpy()))[..., :3].permute(2, 0, 1)
    return Image.blend(picture.convert("L").convert("RGB"), to_image(colours * 2 - 1), _OPACITY)


def maps_table(mapped: Sequence[Mapped], words: Sequence[str]) -> Table:
    """Head and rows: the share of attention that each word gets, the mean over places and seeds."""
    columns = list(mapped[0].maps)
    rows = []
    for number, word in enumerate(words):
        for adapted in (False, True):
            own = [one for one in mapped if one.adapted == adapted]
            shares = [[one.maps[c][number].mean().item() for one in own] for c in columns]
            rows.append([word, _who(own[0]), *(f"{sum(s) / len(s):.2%}" for s in shares)])
    return ["attention to", "drawn by", *columns], rows


def maps_json(mapped: Sequence[Mapped], words: Sequence[str]) -> list[dict[str, Any]]:
    """Every map, by word, seed and column."""
    return [
        {
            "word": word,
            "seed": one.seed,
            "adapter": one.adapted,
            "maps": {column: maps[number].tolist() for column, maps in one.maps.items()},
        }
        for number, word in enumerate(words)
        for one in mapped
    ]


def _who(one: Mapped) -> str:
    return "adapter" if one.adapted else "base"
