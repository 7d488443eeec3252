"""Many pictures in one: contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SIDE = 256  # pixels, the longest of a picture on a sheet
COLUMNS = 8
GAP = 4
LABEL = 20  # rows under a picture, where there are captions


def thumbnail(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The picture, RGB over white, no side longer than that; a smaller one as it is."""
    if image.mode in ("RGBA", "LA"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def sheet(images: Sequence[Image.Image], captions: Sequence[str] = (), columns: int = COLUMNS) -> Image.Image:
    """Pictures of one size in rows on white, with captions below them where given."""
    width, height = images[0].size
    columns = min(columns, len(images))
    down = height + GAP + (LABEL if captions else 0)
    rows = -(-len(images) // columns)
    whole = Image.new("RGB", (columns * (width + GAP) - GAP, rows * down - GAP), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(14)
    for i, image in enumerate(images):
        left, top = i % columns * (width + GAP), i // columns * down
        whole.paste(image, (left, top))
        if captions and draw.textlength(captions[i], font) <= width:
            draw.text((left, top + height + 1), captions[i], "black", font)
    return whole
