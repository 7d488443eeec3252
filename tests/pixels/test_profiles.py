"""Damaged profiles, EXIF and XMP hide no picture: a notice, and the pixels as they would be without."""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from filekit import Array, cmyk_profile, png
from PIL import Image, ImageCms

from calotype.pixels import read_picture, read_picture_rows

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
DEEP = rng.integers(0, 65536, (6, 8, 3), dtype=np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def in_png(array: Array, profile: bytes) -> bytes:
    return png(array, (b"iCCP", b"a\0\0" + zlib.compress(profile)))


HOLDERS: dict[str, Callable[[bytes], bytes]] = {
    "8-bit PNG": lambda profile: in_png(RGB, profile),
    "16-bit PNG": lambda profile: in_png(DEEP, profile),
    "16-bit grey PNG": lambda profile: in_png(DEEP[..., 0], profile),
    "JPEG": lambda profile: saved(Image.fromarray(RGB), "JPEG", icc_profile=profile),
    "CMYK TIFF": lambda profile: saved(Image.fromarray(RGB).convert("CMYK"), "TIFF", icc_profile=profile),
    "WebP": lambda profile: saved(Image.fromarray(RGB), "WEBP", lossless=True, icc_profile=profile),
}


def with_bytes(profile: bytes, at: int, new: bytes) -> bytes:
    return profile[:at] + new + profile[at + len(new) :]


BAD = {
    "colour space of no ASCII": with_bytes(SRGB, 16, b"\xff\xfe\xfd\xfc"),
    "colour space of control characters": with_bytes(SRGB, 16, b"\1\n\r\0"),
    "unknown colour space": with_bytes(SRGB, 16, b"5CLR"),
    "unknown class": with_bytes(SRGB, 12, b"\xff\xff\xff\xff"),
    "connection space of no ASCII": with_bytes(SRGB, 20, b"\x80\x81\x82\x83"),
    "no signature": with_bytes(SRGB, 36, b"\0\0\0\0"),
    "too many tags": with_bytes(SRGB, 128, b"\xff\xff\xff\xff"),
    "no tags": with_bytes(SRGB, 128, b"\0\0\0\0"),
    "tags elsewhere": with_bytes(SRGB, 132, b"\x7f\xff\xff\xff" * 3 * SRGB[131]),
    "size of nothing": with_bytes(SRGB, 0, b"\0\0\0\0"),
    "cut off": SRGB[:200],
    "a header alone": SRGB[:128],
    "one byte": b"\xff",
    "for CIELAB": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    "noise": rng.integers(0, 256, 3000, dtype=np.uint8).tobytes(),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("profile", BAD)
def test_a_profile_that_can_not_be_used_is_a_notice(holder: str, profile: str) -> None:
    data = HOLDERS[holder](BAD[profile])
    picture = read_picture_rows(data)
    ignored = [notice for notice in picture.notices if notice.startswith("The ICC profile was ignored, because it")]
    assert len(ignored) == 1 and ignored[0].isprintable() and ignored[0].endswith(".")
    if holder != "JPEG":  # of which each is packed anew
        without = read_picture_rows(saved_without(holder))
        assert np.array_equal(picture.levels, without.levels)


def saved_without(holder: str) -> bytes:
    arrays = {"8-bit PNG": RGB, "16-bit PNG": DEEP, "16-bit grey PNG": DEEP[..., 0]}
    if holder in arrays:
        return png(arrays[holder])
    image = Image.fromarray(RGB)
    return saved(image, "WEBP", lossless=True) if holder == "WebP" else saved(image.convert("CMYK"), "TIFF")


@pytest.mark.slow
def test_profiles_with_noise_in_them_are_used_or_told() -> None:
    noise = random.Random(5)
    for number in range(300):
        profile = bytearray(noise.choice((SRGB, cmyk_profile())))
        for _ in range(3):
            at = noise.randrange(noise.choice((128, len(profile) - 8)))
            profile[at : at + 4] = noise.choice((noise.randbytes(4), b"\xff" * 4, bytes(4)))
        for holder in ("8-bit PNG", "16-bit PNG", "CMYK TIFF"):
            picture = read_picture(HOLDERS[holder](bytes(profile)))
            assert picture.size == (6, 8), number
            assert all(notice.isprintable() for notice in picture.notices)


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "TIFF", "PNG"])
def test_exif_and_xmp_that_are_none(format_: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    whole = exif.tobytes()
    image = Image.fromarray(RGB)
    damaged = [b"Exif\0\0" + body for body in (b"", b"II", b"II*\0\xff\xff\xff\xff", b"MM\0*" + b"\xff" * 40, b"x" * 9)]
    damaged += [whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :] for at in range(6, len(whole) - 4, 2)]
    for body in damaged:
        options = {"exif": body} if format_ != "TIFF" else {}
        picture = read_picture(saved(image, format_, xmp=b"\xff<x:xmpmeta", **options))
        assert picture.size == (6, 8)
        assert all(notice.isprintable() for notice in picture.notices)
