"""Trains pocket-dino: an image encoder that has seen no words and no classes, for the DINO score.

Self-supervised by instance discrimination: two views of one thing must be nearer to each other
than to anything else in the batch (a softmax cross-entropy over cosines, as SimCLR has it). A thing
is an icon in one colouring; a view is that thing turned, mirrored, scaled, shifted, on another
background, perhaps blurred. Every icon is in a batch in two colourings, so likeness means this very
thing and not its outline. No projection head: the views differ in just what a score of subjects
should not see, so the loss acts on the feature that is used, the first token after the last norm.

It learns from all icons of the three sets, not only from the 46 that the captions name. Every tenth
icon is kept back for a test, and what the sample subjects show is left out.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import Dinov2Config, Dinov2Model

from .backgrounds import SIZE, draw_background
from .clip import augment
from .composites import STYLES, render_icon
from .concepts import BACKGROUNDS
from .training import Clock, ema_update, progress_bar, save_atomic, show
from .vae import to_tensor

WIDTH, LAYERS = 128, 5
PEAK_LR, TEMPERATURE, EMA_DECAY = 1e-3, 0.1, 0.999
ICONS_A_BATCH = 40  # times two colourings, times two views each
SPRITE = 56  # px; a view shows it at half to all of this, so that two-tap sampling is smooth
BACKGROUND_COUNT = 4000
EXTENT, SHIFT, TURN = (0.42, 0.92), 0.25, math.radians(20)  # as `data.FREE`, a little wider
#: Icons that are left out: near-copies, and what the sample subjects show.
LEFT_OUT = ("skin-tone", "flag", "facing-right", "keycap", "poodle", "black-cat", "teapot")


def new_dino() -> Dinov2Model:
    """An untrained encoder: 5 layers of 128 on 8 x 8 patches of 64 x 64 pictures."""
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
    )
    # On CPU in bf16 the fused attention's backward pass is far slower than the plain one.
    config._attn_implementation = "eager"
    return Dinov2Model(config)


def features(model: Dinov2Model, pixels: torch.Tensor) -> torch.Tensor:
    """Unit-length features (N, 128) of pictures (N, 3, 64, 64) in -1..1."""
    first = model(pixel_values=pixels).last_hidden_state[:, 0]
    return F.normalize(first.float(), dim=-1)


def held_back(name: str) -> bool:
    """Whether icon `name` is kept out of training for the test: every tenth, in every style."""
    return zlib.crc32(name.encode()) % 10 == 0


def load_sprites(work_dir: Path, held_out: bool = False) -> np.ndarray:
    """Icons (N, 56, 56, 4) uint8 RGBA of all styles, rendered once into `<work_dir>/data`."""
    path = work_dir / "data" / f"dino_{'held_out' if held_out else 'sprites'}.npy"
    if not path.exists():
        sprites = []
        for style in STYLES:
            icons = json.loads((work_dir / "icons" / style / "icons.json").read_text())
            names = [n for n in sorted(icons["icons"]) if not any(w in n for w in LEFT_OUT)]
            names = [n for n in names if held_back(n) == held_out]
            for name in tqdm(names, desc=style, mininterval=5):
                sprites.append(np.asarray(render_icon(icons, name, SPRITE)))
        np.save(path, np.stack(sprites))
    return np.load(path, mmap_mode="r")


def draw_backgrounds(count: int = BACKGROUND_COUNT, seed: int = 0) -> torch.Tensor:
    """A stock of backgrounds, (count, 3, 64, 64) in 0..1, every kind equally often."""
    rng, places = np.random.default_rng(seed), list(BACKGROUNDS)
    drawn = [np.asarray(draw_background(places[i % len(places)], rng)) for i in range(count)]
    return to_tensor(np.stack(drawn)) / 2 + 0.5


def _uniform(low: float, high: float, *shape: int) -> torch.Tensor:
    return low + (high - low) * torch.rand(*shape)


def turn_hue(rgb: torch.Tensor) -> torch.Tensor:
    """Each of (N, 3, H, W) turned by its own random angle about the grey axis."""
    angle = _uniform(0, 2 * math.pi, len(rgb), 1, 1)
    a = 3**-0.5
    cross = torch.tensor([[0, -a, a], [a, 0, -a], [-a, a, 0]])
    turn = torch.eye(3) + angle.sin() * cross + (1 - angle.cos()) * cross @ cross
    return torch.einsum("nij,njhw->nihw", turn, rgb)


def recolour(rgba: torch.Tensor) -> torch.Tensor:
    """A new individual of each sprite (N, 4, S, S): hue turned, half tinted, half with a pattern.

    The same changes as `composites.recolour`, for a batch.
    """
    rgb, alpha = turn_hue(rgba[:, :3]), rgba[:, 3:]
    n, size = len(rgb), rgb.shape[-1]
    tinted = 0.25 * rgb + 0.75 * (0.3 + rgb.mean(1, keepdim=True)) * torch.rand(n, 3, 1, 1)
    rgb = torch.where(torch.rand(n, 1, 1, 1) < 0.5, tinted, rgb)
    y, x = torch.meshgrid(*[torch.arange(size) / size] * 2, indexing="ij")
    turn, wave = _uniform(0, math.pi, n, 1, 1), 2 * math.pi / _uniform(0.12, 0.35, n, 1, 1)
    stripes = (wave * (x * turn.cos() + y * turn.sin())).sin()
    dots = (wave * (y * turn.cos() - x * turn.sin())).sin()
    mask = torch.where(torch.rand(n, 1, 1) < 0.5, stripes > 0, stripes * dots > 0.3)
    mask &= torch.rand(n, 1, 1) < 0.5
    rgb = torch.where(mask[:, None], 0.3 * rgb + 0.7 * torch.rand(n, 3, 1, 1), rgb)
    rgb = (rgb - 0.5) * _uniform(0.8, 1.15, n, 1, 1, 1) + 0.5 + _uniform(-0.1, 0.1, n, 1, 1, 1)
    return torch.cat([rgb.clamp(0, 1), alpha], 1)


def paste(rgba: torch.Tensor, backgrounds: torch.Tensor) -> torch.Tensor:
    """Views (N, 3, 64, 64) in -1..1: sprites (N, 4, S, S) at random places on `backgrounds`."""
    n = len(rgba)
    size, angle = _uniform(*EXTENT, n), _uniform(-TURN, TURN, n)
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() / size, angle.sin() / size
    turn = torch.stack([mirror * cos, mirror * sin, -sin, cos], -1).view(n, 2, 2)
    shift = turn @ _uniform(-SHIFT, SHIFT, n, 2, 1)
    grid = F.affine_grid(torch.cat([turn, shift], -1), (n, 4, SIZE, SIZE), align_corners=False)
    alpha = rgba[:, 3:]  # colours times alpha keep dark fringes off the edges
    rgba = F.grid_sample(torch.cat([rgba[:, :3] * alpha, alpha], 1), grid, align_corners=False)
    alpha = rgba[:, 3:]
    shadow = F.avg_pool2d(F.avg_pool2d(alpha, 5, 1, 2), 5, 1, 2).roll(2, -2)
    picture = backgrounds * (1 - 0.3 * shadow)
    return (picture * (1 - alpha) + rgba[:, :3]) * 2 - 1


def draw_batch(sprites: np.ndarray, backgrounds: torch.Tensor, icons: int) -> torch.Tensor:
    """Four views of each icon (N, 3, 64, 64) in -1..1; those of one individual are neighbours.

    Takes `icons` icons, or all if there are fewer. An icon's first individual has its own colours
    in half of the cases, its second never.
    """
    rows = torch.randperm(len(sprites))[:icons].numpy()
    own = torch.from_numpy(sprites[rows]).permute(0, 3, 1, 2).float() / 255
    first = torch.where(torch.rand(len(own), 1, 1, 1) < 0.5, own, recolour(own))
    things = torch.stack([first, recolour(own)], 1).flatten(0, 1).repeat_interleave(2, 0)
    behind = backgrounds[torch.randint(len(backgrounds), (len(things),))]
    strange = torch.rand(len(things), 1, 1, 1) < 0.3
    behind = torch.where(strange, turn_hue(behind).clamp(0, 1), behind)
    return paste(things, behind)


def partner_logits(vectors: torch.Tensor) -> torch.Tensor:
    """Cosines of unit-length (N, d) over the temperature, none with itself."""
    itself = torch.eye(len(vectors), dtype=torch.bool)
    return (vectors @ vectors.T / TEMPERATURE).masked_fill(itself, -1e4)


@torch.no_grad()
def partner_found(model: Dinov2Model, pixels: torch.Tensor) -> float:
    """Share of views whose nearest view in `pixels` is the other one of the same individual."""
    vectors = torch.cat([features(model.eval(), part) for part in pixels.split(128)])
    nearest = partner_logits(vectors).argmax(1)
    return (nearest == torch.arange(len(pixels)) ^ 1).float().mean().item()


def train_dino(work_dir: Path, minutes: float) -> None:
    """Trains for `minutes` over all runs; state in `<work_dir>/dino.pt`. Needs the icons."""
    path, clock = work_dir / "dino.pt", Clock(minutes * 60)
    sprites, backgrounds = load_sprites(work_dir), draw_backgrounds()
    torch.manual_seed(1)
    test = draw_batch(load_sprites(work_dir, held_out=True), draw_backgrounds(400, 1), 128)
    model, ema = new_dino(), new_dino().requires_grad_(False)
    ema.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LR, (0.9, 0.98), weight_decay=0.05)
    if path.exists():
        state = torch.load(path, weights_only=False)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        clock.spent, clock.step = state["spent"], state["step"]
        torch.manual_seed(clock.step)
    bar = progress_bar(clock, "dino")
    while clock.done < 1:
        pixels = augment(draw_batch(sprites, backgrounds, ICONS_A_BATCH))
        for group in optimizer.param_groups:
            group["lr"] = clock.lr(PEAK_LR, 300)
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            vectors = features(model, pixels)
        loss = F.cross_entropy(partner_logits(vectors), torch.arange(len(pixels)) ^ 1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema_update(ema, model, EMA_DECAY, clock.step)
        clock.tick()
        show(bar, clock, loss=f"{loss.item():.3f}")
        if clock.step % 200 == 0 or clock.done >= 1:
            bar.write(f"dino step {clock.step}: partner found {partner_found(ema, test):.3f}")
            state = {"model": model.state_dict(), "ema": ema.state_dict()}
            state |= {"optimizer": optimizer.state_dict()}
            save_atomic(state | {"spent": clock.spent, "step": clock.step}, path)
    bar.close()


def load_dino(work_dir: Path) -> Dinov2Model:
    """The trained encoder (its averaged weights)."""
    model = new_dino().requires_grad_(False)
    model.load_state_dict(torch.load(work_dir / "dino.pt", weights_only=False)["ema"])
    return model.eval()
