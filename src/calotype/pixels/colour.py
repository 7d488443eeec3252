"""Bringing colours to sRGB: by an ICC profile, or by the light that the file says its values stand for."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from calotype.pixels import deep
from calotype.pixels.light import Light
from calotype.pixels.values import Convert, Model

# Without this lcms works in tables and short integers; it is slower, but rounds once.
_FLAGS = ImageCms.Flags.NOOPTIMIZE


def srgb(
    mode: str, profile: bytes | None, light: Light | None, notices: list[str]
) -> Callable[[Image.Image], Image.Image]:
    """What takes an image of this mode (L, RGB or CMYK) to RGB in sRGB.

    Args:
        profile: the picture's ICC profile.
        light: what counts without a profile that can be used.
        notices: what is done is added to them.
    """
    found = _profile(mode, profile, notices)
    if found is not None:
        coded, transform, description = found
        if transform is not None:
            notices.append(f"The ICC profile {description!r} was converted to sRGB.")
            return lambda image: _transformed(transform, in_mode(image, coded))
    elif mode == "CMYK":
        notices.append("CMYK was converted without a profile, so its colours are approximate.")
    elif convert := _of_light(light, np.uint8, notices):
        return lambda image: Image.fromarray(convert(np.asarray(in_mode(image, "RGB"))))
    return lambda image: in_mode(image, "RGB")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in this mode; itself where it is, of which Pillow would make a copy."""
    return image if image.mode == mode else image.convert(mode)


def deep_srgb(
    model: Model, floats: bool, profile: bytes | None, light: Light | None, notices: list[str]
) -> Convert | None:
    """What takes values of this model, uint16 or float32 in [0, 1], to sRGB; None where nothing needs to be done.

    Args:
        floats: they are float32.
        profile, light, notices: as for `srgb`.
    """
    if model == "LAB":  # which says by itself what its colours are
        return None
    library = deep.imagecodecs()
    if profile and library is None:
        notices.append(f"The ICC profile was ignored, because Pillow applies none to more than 8 bits; {deep.INSTALL}.")
        profile = None
    found = _profile(model, profile, notices)
    dtype = np.float32 if floats else np.uint16
    if found is not None:
        coded, transform, description = found
        if transform is None:
            return None
        notices.append(f"The ICC profile {description!r} was converted to sRGB.")
        space = {"L": "gray", "RGB": "rgb", "CMYK": "cmyk"}[coded]
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

        def by_profile(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            if coded == "RGB" and values.shape[-1] == 1:
                values = np.repeat(values, 3, axis=-1)
            assert library is not None
            source = np.ascontiguousarray(values[..., 0] if coded == "L" else values)
            result: npt.NDArray[Any] = library.cms_transform(
                source,
                profile,
                target,
                colorspace=space,
                outcolorspace="rgb",
                outdtype=dtype,
                intent=library.CMS.INTENT.PERCEPTUAL,
                flags=library.CMS.FLAGS.NOOPTIMIZE,
            )
            return np.clip(result, 0.0, 1.0) if floats else result

        return by_profile
    if model == "CMYK":
        notices.append("CMYK was converted without a profile, so its colours are approximate.")
        return _without_inks
    return _of_light(light, dtype, notices)


def _of_light(light: Light | None, dtype: npt.DTypeLike, notices: list[str]) -> Convert | None:
    if light is None:
        return None
    if light.notice:
        notices.append(light.notice)
    if light.is_srgb:
        return None
    notices.append(f"The colours ({light.words}) were converted to sRGB.")
    return light.converter(dtype)


def _without_inks(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """CMYK -> RGB as Pillow does it in 8 bits: each ink takes its part of what black leaves."""
    paper = 1.0 - values.astype(np.float64) / 65535.0
    return np.rint(paper[..., :3] * paper[..., 3:] * 65535.0).astype(np.uint16)


def _profile(
    mode: str, profile: bytes | None, notices: list[str]
) -> tuple[str, ImageCms.ImageCmsTransform | None, str] | None:
    """The mode that a profile is for, its transform to sRGB, or None if that changes nothing, and its description.

    None without a profile, or with one that can't be used.
    """
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        coded = "RGB" if space == "RGB" and mode == "L" else mode
        if space != {"L": "GRAY"}.get(coded, coded):
            named = space if space.isprintable() else "nothing that is known"
            raise ImageCms.PyCMSError(f"it is for {named}, the picture is {coded}")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            coded,
            "RGB",
            renderingIntent=ImageCms.Intent.PERCEPTUAL,
            flags=_FLAGS,
        )
        description = ImageCms.getProfileDescription(source).strip()
        return coded, None if _changes_nothing(transform, coded) else transform, description
    except Exception as error:  # almost any over a damaged one; the pixels are whole all the same
        reason = str(error).rstrip(".") if isinstance(error, ImageCms.PyCMSError | OSError) else "it is damaged"
        notices.append(f"The ICC profile was ignored, because it can't be used: {reason}.")
        return None


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
