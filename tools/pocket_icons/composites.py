"""Pictures for training: icons rendered from public icon sets, pasted on backgrounds.

Sprites are square RGBA `PIL` images of 128 px, composites RGB of 64 x 64.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from .backgrounds import SIZE
from .concepts import CONCEPTS

SPRITE = 128
#: icon set prefix -> npm package; the first is the style that the UNet learns to draw.
STYLES = {
    "noto": "@iconify-json/noto",
    "twemoji": "@iconify-json/twemoji",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat",
}


def render_icon(icons: dict, name: str, size: int = SPRITE) -> Image.Image:
    """Renders icon `name` of a parsed Iconify `icons.json`: RGBA, cropped, in a square of `size`.

    Raises `KeyError` if the set has no such icon.
    """
    import resvg_py

    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="256" height="256">{icon["body"]}</svg>'
    )
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    return fit_square(image, size)


def fit_square(image: Image.Image, size: int = SPRITE) -> Image.Image:
    """Crops the transparent border and fits the RGBA `image`, centred, into `size` x `size`."""
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    scale = size / max(image.size)
    image = image.resize([max(1, round(s * scale)) for s in image.size], Image.LANCZOS)
    square = Image.new("RGBA", (size, size))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


def load_sprites(icons_dir: Path) -> dict[tuple[str, str], Image.Image]:
    """All sprites, keyed by (style, concept), from `<icons_dir>/<style>/icons.json`."""
    sprites = {}
    for style in STYLES:
        icons = json.loads((icons_dir / style / "icons.json").read_text())
        for concept, name in CONCEPTS.items():
            sprites[style, concept] = render_icon(icons, name)
    return sprites


def recolour(sprite: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A new individual of the same class: hue, contrast and perhaps a pattern are changed.

    The scorer must tell a subject from its class, so it has to see a class in many colours.
    """
    rgba = np.asarray(sprite, np.float32) / 255
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    angle, axis = rng.uniform(0, 2 * math.pi), np.full(3, 3**-0.5)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotate = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    rgb = rgb @ rotate.T.astype(np.float32)
    if rng.random() < 0.3:  # a tint: most of the object in one colour
        grey = rgb.mean(-1, keepdims=True)
        tint = rng.uniform(0, 1, 3).astype(np.float32)
        rgb = 0.25 * rgb + 0.75 * (0.3 + grey) * tint
    if rng.random() < 0.4:
        ys, xs = np.mgrid[:SPRITE, :SPRITE] / SPRITE
        turn, period = rng.uniform(0, math.pi), rng.uniform(0.12, 0.35)
        u = xs * math.cos(turn) + ys * math.sin(turn)
        v = ys * math.cos(turn) - xs * math.sin(turn)
        stripes, dots = np.sin(2 * math.pi * u / period), np.sin(2 * math.pi * v / period)
        mask = stripes > 0 if rng.random() < 0.5 else stripes * dots > 0.3
        colour = rng.uniform(0, 1, 3).astype(np.float32)
        rgb = np.where(mask[..., None], 0.3 * rgb + 0.7 * colour, rgb)
    rgb = np.clip((rgb - 0.5) * rng.uniform(0.8, 1.15) + 0.5 + rng.uniform(-0.1, 0.1), 0, 1)
    return Image.fromarray((np.concatenate([rgb, alpha], -1) * 255).astype(np.uint8))


def compose(
    sprite: Image.Image,
    background: Image.Image,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.64, 0.72),
    jitter: float = 2.5,
    rotation: float = 4.0,
    flip: bool = False,
    size: int = SIZE,
    fixed: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Pastes `sprite` on `background`, RGB `size` x `size`.

    `scale` is the object's extent as a share of the frame, `jitter` the largest shift from the
    centre in 64ths of the frame, `rotation` the largest turn in degrees. The narrow defaults are
    the ones that the UNet learns: free geometry was far slower to learn. `fixed` gives extent,
    shift right and down, and turn instead of drawing them.
    """
    unit = size / SIZE
    extent, x, y, turn = fixed or (
        float(rng.uniform(*scale)),
        *rng.uniform(-jitter, jitter, 2),
        float(rng.uniform(-rotation, rotation)),
    )
    if flip and rng.random() < 0.5:
        sprite = sprite.transpose(Image.FLIP_LEFT_RIGHT)
    width = sprite.width
    sprite = sprite.rotate(turn, Image.BICUBIC, expand=True)
    side = round(size * extent * sprite.width / width)
    # Premultiplied alpha ("RGBa") keeps dark fringes off the edges when shrinking.
    sprite = sprite.convert("RGBa").resize((side, side), Image.LANCZOS).convert("RGBA")
    middle = (size - side) / 2
    corner = (round(middle + x * unit), round(middle + (2 + y) * unit))
    picture = background.resize((size, size), Image.BICUBIC).convert("RGB")
    shadow = Image.new("L", picture.size)
    shadow.paste(sprite.getchannel("A"), (corner[0], corner[1] + round(1.5 * unit)))
    shadow = shadow.filter(ImageFilter.GaussianBlur(2 * unit)).point(lambda a: int(a * 0.3))
    picture.paste((0, 0, 0), mask=shadow)  # a soft rim keeps white objects apart from snow
    picture.paste(sprite, corner, sprite)
    return picture
