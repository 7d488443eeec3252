"""Two pictures in one, by a mask: blended in latents, and put back where nothing was to change."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from calotype.edit.feather import FEATHER, softened, washed_out
from calotype.engine.executor import Progress
from calotype.engine.run import share
from calotype.errors import CalotypeWarning, NonFiniteError, UsageError
from calotype.families import require_as_large
from calotype.pixels import PictureRows, for_channels, pad, to_uint8
from calotype.rows import require_rows_writable, write_rows
from calotype.vae import VAE


def blended(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Latents of the first where the mask is 0, of the second where it is 1, and on the straight way between.

    Args:
        first, second: [C, h, w].
        mask: [H, W] in [0, 1], H and W the same multiple of h and w; a latent gets the mean over its pixels.
    """
    factor = mask.shape[0] // first.shape[1]
    return first.lerp(second, functional.avg_pool2d(mask[None].double(), factor).to(first))


def blend(
    vae: VAE,
    first: PictureRows,
    second: PictureRows,
    mask: Tensor,
    out: Path,
    *,
    feather: int = FEATHER,
    paste_back: bool = True,
    text: Mapping[str, str] | None = None,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the first picture with the second where the mask is white; it is written by rows.

    Both are taken as the VAE's pictures are: in grey, RGB, or with the alpha that they kept in RGBA.

    With `paste_back` the VAE changes only what is blended: let m be the mask as `feather.softened` makes it. Where it
    is 0 the file holds the first picture's levels, where it is 1 the second's, byte by byte; at 1/2 what was decoded;
    and in between a straight mixture of what was decoded with the nearer picture, so that there is no edge. Without it
    everything is as decoded.

    Args:
        first, second: of one size.
        mask: uint8 [H, W], of that size, as `masks.read_mask` gives it; parts too thin for the feather are warned of.
        out: its suffix names the format; .jpg and .avif do not keep levels.
        feather: radius of the mask's soft edges, in pixels.
        text: as for `pixels.write_picture`.
        memory, progress: as for `VAE.encode`.

    Raises:
        UsageError: if sizes differ, or for a suffix, size or radius that can't be.
        PictureError: if the disk or the encoder refuses it.
    """
    height, width = first.size
    for what, (h, w) in (("second picture", second.size), ("mask", (mask.shape[0], mask.shape[1]))):
        if (h, w) != (height, width):
            raise UsageError(f"The {what} is {w}x{h} and the first picture {width}x{height}; bring them to one size.")
    require_as_large(vae.config, "A blend")
    channels = vae.picture_channels
    require_rows_writable(out, width, height, alpha=channels == 4)
    pictures = [for_channels(one, channels) for one in (first, second)]
    soft = softened(mask, feather)
    if (notice := washed_out(mask, soft, feather)) is not None:
        warnings.warn(notice, CalotypeWarning, stacklevel=2)
    a = vae.encode_image(first, memory=memory, progress=share(progress, 0, 3))
    b = vae.encode_image(second, memory=memory, progress=share(progress, 1, 3))
    padded, _ = pad(soft[None], vae.factor * vae.latent_format.patch)
    mixed = blended(a.tensor, b.tensor, padded[0])

    def rows() -> Iterator[Tensor]:
        top = 0
        for part in vae.decode_rows(mixed, memory=memory, progress=share(progress, 2, 3)):
            bottom = min(top + part.shape[1], height)
            decoded = part[:, : bottom - top, :width]
            if bottom > top:  # the last rows may all be padding
                kept = [rows(top, bottom) for rows in pictures]
                yield pasted(decoded, kept[0], kept[1], soft[top:bottom]) if paste_back else to_uint8(decoded)
            top = bottom

    if vae.may_widen:
        with suppress(NonFiniteError):
            return write_rows(out, rows(), width=width, height=height, channels=channels, text=text)
        vae.widen()
    return write_rows(out, rows(), width=width, height=height, channels=channels, text=text)


def pasted(decoded: Tensor, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Levels uint8 [C, H, W]: the first picture's at mask 0, decoded ones at 1/2, the second's at 1; see `blend`.

    Args:
        decoded, first, second: [C, H, W] in [-1, 1].
        mask: [H, W] in [0, 1].
    """
    near, part = torch.where(mask < 0.5, first, second), (2.0 * mask - 1.0).abs()
    levels = to_uint8(decoded.lerp(near, part))
    for end, picture in ((0.0, first), (1.0, second)):
        levels = torch.where(mask == end, to_uint8(picture), levels)
    return levels
