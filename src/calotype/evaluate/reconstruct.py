"""One picture through a VAE and back: what came out, how far it is from what went in, and a picture to see it by."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from calotype.errors import UsageError
from calotype.evaluate.metrics import psnr, ssim
from calotype.pixels import Picture, crop, pad, to_uint8
from calotype.posterior import DiagonalGaussian
from calotype.vae import VAE, picture_generator

LABEL_HEIGHT = 24


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """A picture before and after, with figures.

    Attributes:
        original, reconstruction: [3, H, W], uint8.
        psnr: in dB, over all values.
        ssim: gaussian window, RGB; None for pictures smaller than its window.
        numbers_per_pixel: latent numbers for each pixel (a pixel itself is 3).
        bits_per_pixel: of the latents stored as float16 (a pixel itself is 24).
        kl_bits_per_pixel: KL(posterior || N(0, I)), the rate of the variational bound; None without a posterior.
    """

    original: Tensor
    reconstruction: Tensor
    psnr: float
    ssim: float | None
    numbers_per_pixel: float
    bits_per_pixel: float
    kl_bits_per_pixel: float | None

    def image(self) -> Image.Image:
        """The reconstruction, RGB."""
        return _image(self.reconstruction)

    def panel(self, amplify: float = 4.0) -> Image.Image:
        """Original, reconstruction and their difference (amplified around mid-grey), side by side with labels."""
        difference = 128 + amplify * (self.reconstruction.float() - self.original.float())
        parts = [_image(self.original), self.image(), _image(difference.clamp(0, 255).to(torch.uint8))]
        height, width = self.original.shape[1:]
        ssim_text = "" if self.ssim is None else f", SSIM {self.ssim:.3f}"
        labels = [
            f"original {width}x{height}",
            f"reconstruction {self.psnr:.2f} dB{ssim_text}",
            f"difference x{amplify:g}",
        ]
        panel = Image.new("RGB", (3 * width, height + LABEL_HEIGHT), "white")
        draw = ImageDraw.Draw(panel)
        font = ImageFont.load_default(14)
        for i, (part, label) in enumerate(zip(parts, labels, strict=True)):
            panel.paste(part, (i * width, LABEL_HEIGHT))
            if draw.textlength(label, font) <= width:
                draw.text((i * width + 4, 4), label, "black", font)
        return panel


def reconstruct(vae: VAE, picture: Picture, *, seed: int | None = None) -> Reconstruction:
    """Encodes and decodes one picture.

    Args:
        picture: its alpha, if it was kept, is not part of the comparison.
        seed: None decodes the posterior's mode, a seed a sample of it.
    """
    padded, padding = pad(picture.pixels, vae.factor)
    posterior = vae.encode(padded[None])
    latents = posterior.mode() if seed is None else posterior.sample([picture_generator(seed, padded)])
    decoded = crop(vae.decode(latents)[0].cpu(), padding)
    before, after = to_uint8(picture.pixels), to_uint8(decoded)
    n = padding.height * padding.width
    numbers = latents.numel() / n
    try:
        similarity = ssim(before, after)
    except UsageError:
        similarity = None
    return Reconstruction(
        original=before,
        reconstruction=after,
        psnr=psnr(before, after),
        ssim=similarity,
        numbers_per_pixel=numbers,
        bits_per_pixel=16 * numbers,
        kl_bits_per_pixel=posterior.kl().item() / n / log(2) if isinstance(posterior, DiagonalGaussian) else None,
    )


def _image(values: Tensor) -> Image.Image:
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
