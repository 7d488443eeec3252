"""Pictures as a VAE takes and gives them: of one channel (grey), three (RGB) or four (RGBA).

Pictures are read as RGB, with alpha aside. Grey is the luma of ITU-R BT.601-7, as in Pillow's ``convert("L")`` and
torchvision's ``rgb_to_grayscale``, with which networks of grey pictures are trained; here it is not rounded. The fourth
channel is alpha from -1 (transparent) to 1 (opaque), beside colours that are not multiplied by it, as in AlphaVAE (Wang
et al. 2025, arXiv:2507.09308) and in what diffusers' QwenImageLayeredPipeline gives its VAE.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from calotype.errors import UsageError
from calotype.pixels.geometry import Rows
from calotype.pixels.picture import Picture, PictureRows

NAMES = {1: "grey", 3: "RGB", 4: "RGBA"}
"""What pictures of so many channels are called; there are no others."""

LUMA = (0.299, 0.587, 0.114)  # of R', G' and B'

AlphaMode = Literal["over", "keep"]  # composited over a background, or kept aside


def require_channels(channels: int) -> None:
    """Checks that pictures can have so many channels.

    Raises:
        UsageError: if they can't.
    """
    if channels not in NAMES:
        known = ", ".join(f"{n} ({name})" for n, name in NAMES.items())
        raise UsageError(
            f"This VAE's pictures have {channels} channels, and files and images hold {known}; call its encode and "
            f"decode with tensors."
        )


def require_rgb(channels: int, name: str, what: str) -> None:
    """Checks that a VAE's pictures are RGB, where nothing else will do.

    Args:
        channels: of its pictures.
        name: of the VAE.
        what: is to be done with it, as in "drawing".

    Raises:
        UsageError: if they are not.
    """
    if channels != 3:
        kind = f", {NAMES[channels]}" if channels in NAMES else ""
        raise UsageError(
            f"{name or 'This VAE'} has pictures of {channels} channel{'s' * (channels > 1)}{kind}, and {what} takes a "
            f"VAE of RGB pictures (3 channels); give one."
        )


def alpha_mode(channels: int, alpha: AlphaMode | None) -> AlphaMode:
    """How pictures for a VAE of so many channels are read, see `read_picture`.

    Args:
        alpha: what the user asked for. None composites over the background for grey and RGB, and takes alpha along for
            RGBA; "over" makes pictures opaque for any of them.

    Raises:
        UsageError: alpha is to be kept aside of a VAE that takes it itself, or no picture has so many channels.
    """
    require_channels(channels)
    if alpha not in ("over", "keep", None):
        raise UsageError(f'alpha must be "over" or "keep", not {alpha!r}.')
    if channels < 4:
        return alpha or "over"
    if alpha == "keep":
        raise UsageError(
            '--alpha keep (alpha="keep"): this VAE takes RGBA, so alpha goes through it and is not kept aside; leave '
            "it out, or give over, which makes pictures opaque."
        )
    return alpha or "keep"


def luma(pixels: Tensor) -> Tensor:
    """RGB [..., 3, H, W] in any range -> grey [..., 1, H, W]; where R = G = B it is exactly that value."""
    red, green, blue = pixels.unbind(-3)
    return (green + LUMA[0] * (red - green) + LUMA[2] * (blue - green)).unsqueeze(-3)


def over(pixels: Tensor, background: float = 1.0) -> Tensor:
    """RGBA [..., 4, H, W] in [-1, 1] -> RGB [..., 3, H, W], composited over a grey (white) background.

    Alpha beyond [-1, 1], as networks give it, counts as -1 or 1.
    """
    opacity = pixels[..., 3:, :, :].clamp(-1.0, 1.0).add(1.0).div(2.0)
    return torch.lerp(pixels.new_full((), background).expand_as(opacity), pixels[..., :3, :, :], opacity)


def to_channels(pixels: Tensor, channels: int) -> Tensor:
    """Grey, RGB or RGBA pixels [..., C, H, W] -> [..., channels, H, W].

    RGBA is composited over white where alpha goes; RGB becomes grey as its luma. Grey becomes RGB by repetition, and
    both become opaque RGBA.
    """
    given = pixels.shape[-3]
    if given == channels:
        return pixels
    if given == 4:
        return to_channels(over(pixels), channels)
    if channels == 1:
        return luma(pixels)
    rgb = pixels.expand(*pixels.shape[:-3], 3, -1, -1) if given == 1 else pixels
    return rgb if channels == 3 else torch.cat([rgb, torch.ones_like(rgb[..., :1, :, :])], dim=-3)


def seen(pixels: Tensor) -> Tensor:
    """What of pixels is compared: RGBA [..., 4, H, W] -> [..., 6, H, W], its RGB over white and over black.

    Together these two say all of a picture but the colours of what is fully transparent; of an opaque one they are its
    colours twice. Grey and RGB are compared as they are.

    Args:
        pixels: floats in [-1, 1], or uint8, which is rounded half up.
    """
    if pixels.shape[-3] != 4:
        return pixels
    if pixels.dtype != torch.uint8:
        return torch.cat([over(pixels, 1.0), over(pixels, -1.0)], dim=-3)
    levels = pixels.float()
    colours, opacity = levels[..., :3, :, :], levels[..., 3:, :, :] / 255.0
    both = torch.cat([255.0 + (colours - 255.0) * opacity, colours * opacity], dim=-3)
    return both.add_(0.5).floor_().to(torch.uint8)


def for_channels(picture: Picture | PictureRows, channels: int) -> Rows:
    """A picture's rows as a VAE of so many channels takes them: [channels, n, W] in [-1, 1].

    Where it is RGBA, alpha is that which the picture kept, and 1 where it has none.

    Raises:
        UsageError: if pictures can't have so many channels.
    """
    require_channels(channels)
    if channels == 3:
        return picture.rows
    if channels == 1:
        return lambda top, bottom: luma(picture.rows(top, bottom))

    def rgba(top: int, bottom: int) -> Tensor:
        colours = picture.rows(top, bottom)
        if isinstance(picture, PictureRows):
            opacity = picture.weight(top, bottom) if picture.keep else None
        else:
            opacity = None if picture.alpha is None else picture.alpha[top:bottom]
        alpha = torch.ones_like(colours[:1]) if opacity is None else opacity[None].to(colours) * 2.0 - 1.0
        return torch.cat([colours, alpha])

    return rgba
