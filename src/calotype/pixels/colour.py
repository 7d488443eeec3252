"""Bringing colours to sRGB."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms


def srgb(mode: str, profile: bytes | None, notices: list[str]) -> Callable[[Image.Image], Image.Image]:
    """What takes an image of this mode (L, RGB or CMYK), with its ICC profile if it has one, to RGB in sRGB."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            coded = "RGB" if space == "RGB" and mode == "L" else mode
            if space != {"L": "GRAY"}.get(coded, coded):
                raise ImageCms.PyCMSError(f"it is for {space}, the picture is {coded}")
            transform = ImageCms.buildTransform(
                source,
                ImageCms.createProfile("sRGB"),
                coded,
                "RGB",
                renderingIntent=ImageCms.Intent.PERCEPTUAL,
                # Without this lcms works in tables and short integers; it is slower, but rounds once.
                flags=ImageCms.Flags.NOOPTIMIZE,
            )
            if not _changes_nothing(transform, coded):
                description = ImageCms.getProfileDescription(source).strip()
                notices.append(f"The ICC profile {description!r} was converted to sRGB.")
                return lambda image: _transformed(transform, image.convert(coded))
        except (ImageCms.PyCMSError, OSError) as error:
            notices.append(f"The ICC profile was ignored, because it can't be used: {str(error).rstrip('.')}.")
    if mode == "CMYK":
        notices.append("CMYK was converted without a profile, so its colours are approximate.")
    return lambda image: image.convert("RGB")


def _transformed(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is None in place only
    return converted


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether the transform to sRGB moves no level by more than one: most embedded profiles are sRGB in other words."""
    if mode == "CMYK":
        return False
    if mode == "L":
        probe = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
        probe = Image.fromarray(cube.reshape(len(levels), -1, 3))
    before = np.asarray(probe.convert("RGB"), dtype=np.int16)
    after = np.asarray(ImageCms.applyTransform(probe, transform), dtype=np.int16)
    return bool(np.abs(after - before).max() <= 1)
