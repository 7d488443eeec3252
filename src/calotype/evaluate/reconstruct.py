"""One picture through a VAE and back: what came out, how far it is from what went in, and a picture to see it by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from calotype.engine.executor import Progress
from calotype.engine.memory import Spill
from calotype.engine.run import share
from calotype.errors import NonFiniteError, UsageError
from calotype.evaluate.alpha import Apart, ApartMetrics
from calotype.evaluate.metrics import RowMetrics
from calotype.families import require_as_large
from calotype.pixels import (
    Picture,
    PictureRows,
    Rows,
    crop,
    for_channels,
    pad,
    pad_rows,
    planes,
    seen,
    to_uint8,
)
from calotype.posterior import DiagonalGaussian, Posterior
from calotype.rows import require_rows_writable, write_rows
from calotype.steps import Map
from calotype.vae import VAE, picture_generator

LABEL_HEIGHT = 24  # pixels of the line of words above a panel

_BAND = 2**17  # pixels that are compared or drawn at a time


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How far a reconstruction is from its picture, and what it takes.

    Both are compared in the channels that the VAE has: grey, RGB, or RGBA as `pixels.seen` has it.

    Attributes:
        psnr: in dB, over all values.
        ssim: gaussian window, mean over channels; None for pictures smaller than its window.
        numbers_per_pixel: latent numbers for each pixel (a pixel itself has as many as channels).
        bits_per_pixel: of the latents stored as float16 (a pixel itself has 8 a channel).
        kl_bits_per_pixel: KL(posterior || N(0, I)), the rate of the variational bound; None without a posterior.
        apart: errors of colours and of alpha, each alone; None where pictures are not RGBA.
    """

    psnr: float
    ssim: float | None
    numbers_per_pixel: float
    bits_per_pixel: float
    kl_bits_per_pixel: float | None
    apart: Apart | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction(Figures):
    """A picture before and after, with figures.

    Attributes:
        original, reconstruction: [P, H, W], uint8; P is the VAE's `picture_channels`.
    """

    original: Tensor
    reconstruction: Tensor

    def image(self) -> Image.Image:
        """The reconstruction: L, RGB or RGBA."""
        return _image(self.reconstruction)

    def panel(self, amplify: float = 4.0) -> Image.Image:
        """Original, reconstruction and their difference, side by side with labels.

        Args:
            amplify: what the difference is multiplied by, around mid-grey.
        """
        height, width = self.original.shape[1:]
        before, after = _rows_of(self.original), _rows_of(self.reconstruction)
        return _image(torch.cat(list(_panel(self, before, after, height, width, amplify)), dim=1))


def reconstruct(
    vae: VAE,
    picture: Picture,
    *,
    seed: int | None = None,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> Reconstruction:
    """Encodes and decodes one picture.

    Args:
        picture: its alpha, if it was kept, goes through a VAE of RGBA; else it is not part of the comparison.
        seed: None decodes the posterior's mode, a seed a sample of it.
        memory, progress: as for `VAE.encode`.

    Raises:
        UsageError: for a VAE whose pictures are neither grey, RGB nor RGBA.
    """
    require_as_large(vae.config, "A reconstruction")
    pixels = for_channels(picture, vae.picture_channels)(0, picture.size[0])
    padded, padding = pad(pixels, vae.factor)
    posterior = vae.encode(padded[None], memory=memory, progress=share(progress, 0, 2))
    latents = posterior.mode() if seed is None else posterior.sample([picture_generator(seed, padded)])
    decoded = vae.decode(latents, memory=memory, progress=share(progress, 1, 2))[0].cpu()
    before, after = to_uint8(pixels), to_uint8(crop(decoded, padding))
    size = padding.height, padding.width
    metrics = _Compared(*size)
    for top, bottom in _bands(*size):
        metrics.add(before[:, top:bottom], after[:, top:bottom])
    figures = _figures(metrics, size, latents.numel(), _rate(posterior))
    return Reconstruction(original=before, reconstruction=after, **vars(figures))


def reconstruct_files(
    vae: VAE,
    picture: PictureRows,
    *,
    reconstruction: Path,
    panel: Path,
    amplify: float = 4.0,
    seed: int | None = None,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> Figures:
    """Encodes and decodes one picture as `reconstruct` does, and writes what came out and the panel, all by rows.

    Beside the picture and its latents only a few rows are in memory. What is decoded waits in a temporary file, of a
    byte for each channel of a pixel, that has no name.

    Args:
        picture: its alpha, if it was kept, goes through a VAE of RGBA. Else it is that of the reconstruction, and not
            part of the comparison.
        reconstruction, panel: where to write to; PNG or TIFF, for other formats need the picture whole.
        amplify: how much the panel's difference is amplified.
        seed: None decodes the posterior's mode, a seed a sample of it.
        memory, progress: as for `VAE.encode`.

    Raises:
        UsageError: a picture that the files can't hold, or a VAE whose pictures are neither grey, RGB nor RGBA.
        PictureError: the disk refuses them.
        MemoryLimitError: it can't be done in so much memory, or there is no room for the temporary file.
        NonFiniteError: what is decoded is not finite in float32 either.
    """
    height, width = picture.size
    require_rows_writable(panel, 3 * width, height + LABEL_HEIGHT)
    require_as_large(vae.config, "A reconstruction")
    channels = vae.picture_channels
    alpha = picture.alpha if channels < 4 else None
    whole = for_channels(picture, channels)
    require_rows_writable(reconstruction, width, height, alpha=alpha is not None or channels == 4)
    rows, padding = pad_rows(whole, height, width, vae.factor)
    padded = (height + padding.bottom, width + padding.right)
    posterior = vae.encode_rows(rows, *padded, memory=memory, progress=share(progress, 0, 4))
    rate = _rate(posterior)
    drawn = posterior.mode() if seed is None else posterior.sample([picture_generator(seed, planes(rows, *padded))])
    latents = drawn[0].clone()
    del posterior, drawn  # which hold more than twice as much

    spool = _Spool(width, channels)
    try:
        told = share(progress, 1, 4)
        finite = True
        try:
            spool.fill(vae.decode_rows(latents, memory=memory, progress=told), height)
        except NonFiniteError:
            if vae.dtype == torch.float32:
                raise
            finite = False
        if not finite:  # out here, where the error holds the first run's memory no longer
            vae.widen(stacklevel=3)
            spool.fill(vae.decode_rows(latents, memory=memory, progress=told), height)

        metrics = _Compared(height, width)

        def before(top: int, bottom: int) -> Tensor:
            return to_uint8(whole(top, bottom))

        def compared() -> Iterator[Tensor]:
            for top, bottom in _bands(height, width, share(progress, 2, 4)):
                after = spool.rows(top, bottom)
                metrics.add(before(top, bottom), after)
                yield after

        write_rows(reconstruction, compared(), width=width, height=height, channels=channels, alpha=alpha)
        figures = _figures(metrics, picture.size, latents.numel(), rate)
        panel_rows = _panel(figures, before, spool.rows, height, width, amplify, share(progress, 3, 4))
        write_rows(panel, panel_rows, width=3 * width, height=height + LABEL_HEIGHT)
    finally:
        spool.close()
    return figures


class _Spool:
    """Levels of a picture in a temporary file: uint8 rows, which can be read in any order."""

    def __init__(self, width: int, channels: int) -> None:
        self._width = width
        self._spill = Spill()
        self._map = Map("picture", channels=channels, factor=1)

    def fill(self, rows: Iterator[Tensor], height: int) -> None:
        """Takes pixels [C, n, W'] from the top down, cropped to `height` rows and the width."""
        top = 0
        for part in rows:
            levels = to_uint8(part[:, : height - top, : self._width])
            if levels.shape[1]:  # the last rows may all be padding
                self._spill.write(self._map, top, levels.permute(1, 2, 0))
            top += levels.shape[1]

    def rows(self, top: int, bottom: int) -> Tensor:
        """[C, bottom - top, W], uint8."""
        levels = torch.empty(bottom - top, self._width, self._map.channels, dtype=torch.uint8)
        self._spill.read(self._map, top, levels)
        return levels.permute(2, 0, 1)

    def close(self) -> None:
        self._spill.close()


def _bands(height: int, width: int, progress: Progress | None = None) -> Iterator[tuple[int, int]]:
    """(top, bottom) of some rows after others, the same for all that is compared: sums of floats depend on them."""
    step = max(1, _BAND // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        yield top, bottom
        if progress is not None:
            progress(bottom / height)


class _Compared:
    """What is measured of a picture that comes in rows.

    Args:
        height, width: of the whole picture.
    """

    def __init__(self, height: int, width: int) -> None:
        self.seen = RowMetrics(height, width)
        self._apart: ApartMetrics | None = None

    def add(self, before: Tensor, after: Tensor) -> None:
        """The next rows of either, from the top: uint8 [C, n, W]."""
        self.seen.add(seen(before), seen(after))
        if len(before) == 4:
            self._apart = self._apart or ApartMetrics()
            self._apart.add(before, after)

    def apart(self) -> Apart | None:
        """Of RGBA."""
        return self._apart.figures() if self._apart else None


def _figures(metrics: _Compared, size: tuple[int, int], numbers: int, nats: float | None) -> Figures:
    n = size[0] * size[1]
    try:
        similarity = metrics.seen.ssim()
    except UsageError:
        similarity = None
    return Figures(
        psnr=metrics.seen.psnr(),
        ssim=similarity,
        numbers_per_pixel=numbers / n,
        bits_per_pixel=16 * numbers / n,
        kl_bits_per_pixel=None if nats is None else nats / n / log(2),
        apart=metrics.apart(),
    )


def _rate(posterior: Posterior) -> float | None:
    """KL(posterior || N(0, I)) in nats, a few rows at a time; None without a posterior."""
    if not isinstance(posterior, DiagonalGaussian):
        return None
    moments = posterior.moments
    return sum(DiagonalGaussian(moments[:, :, top:bottom]).kl().item() for top, bottom in _bands(*moments.shape[2:]))


def _panel(
    figures: Figures,
    before: Rows,
    after: Rows,
    height: int,
    width: int,
    amplify: float,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """The panel by rows, from the labels down: uint8 [3, n, 3 W].

    RGBA is shown over white; its difference is that over white or over black, whichever is larger.
    """
    ssim_text = "" if figures.ssim is None else f", SSIM {figures.ssim:.3f}"
    labels = [
        f"original {width}x{height}",
        f"reconstruction {figures.psnr:.2f} dB{ssim_text}",
        f"difference x{amplify:g}",
    ]
    strip = Image.new("RGB", (3 * width, LABEL_HEIGHT), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(14)
    for i, label in enumerate(labels):
        if draw.textlength(label, font) <= width:
            draw.text((i * width + 4, 4), label, "black", font)
    yield torch.from_numpy(np.array(strip)).permute(2, 0, 1)
    for top, bottom in _bands(height, width, progress):
        a, b = (seen(rows(top, bottom)) for rows in (before, after))
        apart = b.float() - a.float()
        if len(a) == 6:
            apart = torch.where(apart[:3].abs() >= apart[3:].abs(), apart[:3], apart[3:])
        difference = (128 + amplify * apart).clamp(0, 255).to(torch.uint8)
        yield torch.cat([part[:3].expand(3, -1, -1) for part in (a, b, difference)], dim=2)


def _rows_of(levels: Tensor) -> Rows:
    return lambda top, bottom: levels[:, top:bottom]


def _image(values: Tensor) -> Image.Image:
    levels = values.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
