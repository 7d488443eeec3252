"""Colour of more than 8 bits: PNG, portable pixmaps, JPEG 2000, AVIF; with alpha, orientation and profiles."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from filekit import P3_TO_SRGB, chunk, cicp, cmyk_profile, decoded, encoded, gama, levels, png, tiff, unit
from PIL import Image, ImageCms, features

from calotype.errors import PictureError
from calotype.pixels import picture_size, read_picture, read_picture_rows, to_uint8, values as stored_values

imagecodecs = pytest.importorskip("imagecodecs")
tifffile = pytest.importorskip("tifffile")

Array = npt.NDArray[Any]


def colours(channels: int = 3, dtype: Any = np.uint16, height: int = 20, width: int = 32) -> Array:
    top = np.iinfo(dtype).max
    array = np.random.default_rng(channels).integers(0, top, (height, width, channels), dtype=dtype, endpoint=True)
    array[0, 0], array[0, 1] = 0, top
    return array


def scaled(array: Array) -> npt.NDArray[np.float64]:
    return array / np.iinfo(array.dtype).max


# PNG


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_png(channels: int) -> None:
    array = colours(channels)
    picture = read_picture(png(array), alpha="keep", background=(0, 0, 0))
    opaque = scaled(array[..., -1]) if channels in (2, 4) else np.ones(array.shape[:2])
    want = scaled(array[..., : channels - (channels % 2 == 0)])
    assert np.abs(unit(picture) - want)[opaque > 0].max() < 1e-6
    if channels == 3:
        assert picture.alpha is None
        assert picture.notices == ()
    else:
        assert picture.alpha is not None
        assert np.abs(picture.alpha.numpy() - opaque).max() < 1e-6


def test_all_levels_of_16_bits_are_told_apart() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = read_picture(png(np.stack([ramp, ramp[::-1], ramp.T], axis=-1)))
    for channel in picture.pixels:
        assert len(channel.unique()) == 65536
    assert picture.pixels.min() == -1.0
    assert picture.pixels.max() == 1.0


def test_16_bit_alpha_over_a_background() -> None:
    array = colours(4)
    picture = read_picture(png(array), background=(10, 200, 30))
    weight = scaled(array[..., 3:])
    expected = weight * scaled(array[..., :3]) + (1 - weight) * np.array([10, 200, 30]) / 255
    assert np.abs(unit(picture) - expected).max() < 1e-6
    assert picture.notices == ("Alpha was composited over the background (10, 200, 30).",)


def test_opaque_16_bit_alpha_is_no_alpha() -> None:
    array = colours(4)
    array[..., 3] = 65535
    picture = read_picture(png(array), alpha="keep")
    assert picture.alpha is None
    assert picture.notices == ()
    array[3, 4, 3] = 65534
    assert read_picture(png(array), alpha="keep").alpha is not None


def test_a_transparent_colour_of_16_bits() -> None:
    array = colours(3)
    array[5, 6] = (0x0506, 0x0708, 0x090A)
    array[5, 7] = (0x0506, 0x0708, 0x090B)  # the same in 8 bits
    picture = read_picture(png(array, (b"tRNS", array[5, 6].astype(">u2").tobytes())), alpha="keep")
    assert picture.alpha is not None
    assert picture.alpha[5, 6] == 0
    assert picture.alpha[5, 7] == 1
    assert picture.alpha.sum() == picture.alpha.numel() - 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_16_bit_png(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    body = exif.tobytes()[6:]
    array = colours(4)
    array[..., 3] |= 256  # no alpha is 0 in 8 bits
    small = (array >> 8).astype(np.uint8)
    for place in ("before", "after"):
        chunks: dict[str, Any] = {"after": [(b"eXIf", body)]} if place == "after" else {}
        deep = read_picture(png(array, *([(b"eXIf", body)] if place == "before" else []), **chunks), alpha="keep")
        file = io.BytesIO()
        Image.fromarray(small).save(file, "PNG", exif=exif)
        turned = read_picture(file.getvalue(), alpha="keep")
        assert deep.size == turned.size
        assert (deep.pixels - turned.pixels).abs().max() < 2.1 / 255
        assert deep.alpha is not None
        assert turned.alpha is not None
        assert (deep.alpha - turned.alpha).abs().max() < 1.1 / 255


def test_interlaced_16_bit_png() -> None:
    array = colours(3, height=8, width=8)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for y, x, dy, dx in passes for row in array[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(unit(read_picture(data)) - scaled(array)).max() < 1e-6


def test_16_bit_png_cut_off_anywhere() -> None:
    data = png(colours(3))
    whole = read_picture(data).pixels
    for length in range(1, len(data), 37):
        try:
            picture = read_picture(data[:length])
        except PictureError:
            continue
        assert torch.equal(picture.pixels, whole), length
    with pytest.raises(PictureError, match="is damaged or cut off"):
        read_picture(data[: len(data) // 2])


# Portable pixmaps, which need no more packages


@pytest.mark.parametrize("largest", [65535, 1023, 256])
@pytest.mark.usefixtures("no_codecs")
def test_deep_pixmaps(largest: int) -> None:
    array = np.random.default_rng(0).integers(0, largest + 1, (6, 7, 3)).astype(">u2")
    array[0, 0], array[0, 1] = 0, largest
    picture = read_picture(b"P6\n# a comment\n7 6\n%d\n" % largest + array.tobytes())
    assert np.abs(unit(picture) - array / largest).max() < 1e-5
    assert picture.notices == ()
    grey = read_picture(b"P5 7 6 %d\n" % largest + array[..., 0].tobytes())
    assert np.abs(unit(grey) - array[..., :1] / largest).max() < 1e-5
    assert grey.notices == ()
    with pytest.raises(PictureError, match="is damaged or cut off"):
        read_picture((b"P6 7 6 %d\n" % largest + array.tobytes())[:-1])


def test_a_deep_pixmap_of_words_is_reduced_with_a_notice() -> None:
    picture = read_picture(b"P3 2 1 65535\n0 32768 65535 1 2 3\n")
    assert np.abs(levels(picture)[0, 0] - [0, 127.5, 255]).max() <= 1.0
    assert picture.notices == ("16-bit colour was reduced to 8 bits, because Pillow keeps no more.",)


# JPEG 2000


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow has no JPEG 2000")
@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_jpeg_2000(channels: int, bits: int, codec: str) -> None:
    array = (colours(channels) >> (16 - bits)).astype(np.uint16 if bits > 8 else np.uint8)
    data = bytes(
        imagecodecs.jpeg2k_encode(
            array[..., 0] if channels == 1 else array, reversible=True, codecformat=codec, bitspersample=bits
        )
    )
    picture = read_picture(data, alpha="keep", background=(0, 0, 0))
    top = 2**bits - 1
    n = 1 if channels < 3 else 3
    visible = array[..., -1] > 0 if channels in (2, 4) else np.ones(array.shape[:2], dtype=bool)
    assert np.abs(unit(picture) - array[..., :n] / top)[visible].max() < 1e-5
    if channels in (2, 4):
        assert picture.alpha is not None
        assert np.abs(picture.alpha.numpy() - array[..., -1] / top).max() < 1e-5


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow has no JPEG 2000")
@pytest.mark.usefixtures("no_codecs")
def test_deep_jpeg_2000_without_the_packages() -> None:
    data = bytes(imagecodecs.jpeg2k_encode(colours(3), reversible=True, codecformat="jp2"))
    with pytest.raises(PictureError, match=r"holds 16-bit colour in JPEG 2000, which needs more packages; pip install"):
        read_picture(data)
    grey = colours(1)[..., 0] >> 4
    data = bytes(imagecodecs.jpeg2k_encode(grey, reversible=True, codecformat="jp2", bitspersample=12))
    assert np.abs(unit(read_picture(data))[..., 0] - grey / 4095).max() < 1e-6


# AVIF


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_avif(channels: int, bits: int) -> None:
    array = (colours(channels) >> (16 - bits)).astype(np.uint16)
    data = bytes(
        imagecodecs.avif_encode(
            array[..., 0] if channels == 1 else array,
            level=100,
            bitspersample=bits,
            pixelformat="400" if channels == 1 else "444",
            speed=9,
        )
    )
    picture = read_picture(data, alpha="keep", background=(0, 0, 0))
    n = 1 if channels == 1 else 3
    visible = array[..., -1] > 0 if channels == 4 else np.ones(array.shape[:2], dtype=bool)
    assert np.abs(unit(picture) - array[..., :n] / (2**bits - 1))[visible].max() < 1e-5


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
@pytest.mark.usefixtures("no_codecs")
def test_avif_without_the_packages_is_reduced_with_a_notice() -> None:
    array = (colours(3) >> 6).astype(np.uint16)
    data = bytes(imagecodecs.avif_encode(array, level=100, bitspersample=10, pixelformat="444", speed=9))
    picture = read_picture(data)
    assert np.abs(unit(picture) - array / 1023).max() < 1.01 / 255
    (notice,) = picture.notices
    assert notice == (
        "10-bit colour was reduced to 8 bits, because Pillow keeps no more; pip install 'calotype[deep]' keeps all."
    )


# Profiles


def p3_profile() -> bytes:
    profile: bytes = imagecodecs.cms_profile(
        "rgb", whitepoint=(0.3127, 0.3290), primaries=[0.680, 0.320, 0.265, 0.690, 0.150, 0.060], gamma=2.2
    )
    return profile


def iccp(profile: bytes) -> tuple[bytes, bytes]:
    return b"iCCP", b"name\0\0" + zlib.compress(profile)


@pytest.mark.parametrize("kind", ["png", "png with alpha", "tiff", "floats"])
def test_a_profile_keeps_16_bits(kind: str) -> None:
    array = colours(4 if "alpha" in kind else 3) // 2 + 16384
    if kind == "floats":
        data = tiff((array / 65535).astype(np.float32), 2, more=[(34675, 7, p3_profile())])
    elif kind == "tiff":
        data = tiff(array, 2, more=[(34675, 7, p3_profile())])
    else:
        data = png(array, iccp(p3_profile()))
    picture = read_picture(data, alpha="keep")
    expected = encoded((scaled(array[..., :3]) ** 2.2) @ P3_TO_SRGB.T)
    inside = (encoded((scaled(array[..., :3]) ** 2.2) @ P3_TO_SRGB.T) > 0.05).all(axis=-1) & (expected < 0.99).all(
        axis=-1
    )
    assert inside.sum() > 300
    # profiles hold their numbers in 16 bits
    assert np.abs(unit(picture) - expected)[inside].max() < 0.15 / 255
    assert len(np.unique(picture.pixels[0].numpy())) > 600
    assert len(picture.notices) == 1
    assert picture.notices[0].endswith("was converted to sRGB.")


@pytest.mark.parametrize("kind", ["png", "png with alpha", "tiff"])
def test_a_profile_for_grey_keeps_16_bits(kind: str) -> None:
    profile = imagecodecs.cms_profile("gray", whitepoint=(0.3457, 0.3585), gamma=1.0)
    array = colours(2 if "alpha" in kind else 1)
    if kind == "tiff":
        data = tiff(array, 1, more=[(34675, 7, profile)])
    else:
        data = png(array if "alpha" in kind else array[..., 0], iccp(profile))
    picture = read_picture(data, alpha="keep")
    assert np.abs(unit(picture) - encoded(scaled(array[..., :1])))[3:].max() < 0.15 / 255


def test_a_profile_that_is_srgb_changes_no_bit() -> None:
    array = colours(3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = read_picture(png(array, iccp(profile)))
    assert torch.equal(picture.pixels, read_picture(png(array)).pixels)
    assert picture.notices == ()


def test_16_bit_cmyk_with_a_profile() -> None:
    # inks that a table takes to L*: white paper, black, and a third off for each colour
    array = np.array([[[0, 0, 0, 0], [0, 0, 0, 65535], [65535, 0, 0, 0], [65535, 65535, 0, 0]]], dtype=np.uint16)
    picture = read_picture(tiff(array, 5, more=[(34675, 7, cmyk_profile())]))
    star = np.array([100.0, 0.0, 200 / 3, 100 / 3])
    luminance = np.where(star > 8, ((star + 16) / 116) ** 3, star / 903.3)
    assert np.abs(levels(picture)[0] - 255 * encoded(luminance)[:, None]).max() <= 2.0


@pytest.mark.usefixtures("no_codecs")
def test_without_the_packages_a_profile_is_applied_in_8_bits() -> None:
    array = colours(3) // 2 + 16384
    picture = read_picture(png(array, iccp(p3_profile())))
    expected = encoded((scaled(array) ** 2.2) @ P3_TO_SRGB.T)
    inside = (expected > 0.05).all(axis=-1) & (expected < 0.99).all(axis=-1)
    assert np.abs(unit(picture) - expected)[inside].max() < 5 / 255
    assert len(picture.notices) == 2


def test_light_and_depth_together() -> None:
    array = colours(3) // 2 + 16384
    picture = read_picture(png(array, cicp(12, 13)))
    assert np.abs(unit(picture) - encoded(decoded(scaled(array)) @ P3_TO_SRGB.T)).max() < 1e-4
    assert len(np.unique(picture.pixels[0].numpy())) > 600


# By rows


def files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[274] = 6
    turned = [(b"eXIf", exif.tobytes()[6:])]
    return {
        "png": png(colours(3)),
        "png, turned": png(colours(4), *turned),
        "grey with alpha": png(colours(2)),
        "gamma": png(colours(4), gama(1.0), *turned),
        "profile": png(colours(3), iccp(p3_profile())),
        "floats": tiff(np.random.default_rng(0).random((20, 32, 4)).astype(np.float32), 2, extra=[2]),
        "planar": tiff(colours(3), 2, planar=True),
        "lab": tiff(colours(3), 8),
        "no data": tiff(np.full((20, 32, 1), -9999, dtype=np.float32), 1, more=[(42113, 2, b"-9999\0")]),
    }


@pytest.mark.parametrize("alpha", ["over", "keep"])
@pytest.mark.parametrize("kind", files())
def test_rows_are_those_of_the_whole(kind: str, alpha: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = files()[kind]
    whole = read_picture(data, alpha=alpha, background=(10, 200, 30))
    monkeypatch.setattr(stored_values, "STRIPE", 100)
    rows = read_picture_rows(data, alpha=alpha, background=(10, 200, 30))
    assert (rows.size, rows.notices) == (whole.size, whole.notices)
    assert picture_size(io.BytesIO(data)) in (rows.size, rows.size[::-1])
    height = rows.size[0]
    for step in (1, 7, height):
        parts = [rows.rows(top, min(top + step, height)) for top in range(0, height, step)]
        assert torch.equal(torch.cat(parts, dim=1), whole.pixels)
    assert (rows.alpha is None) == (whole.alpha is None)
    if rows.alpha is not None and whole.alpha is not None:
        assert rows.alpha.dtype == torch.uint8
        assert (rows.alpha.float() - whole.alpha * 255).abs().max() <= 0.501


def test_levels_of_16_bits_are_rounded_once() -> None:
    array = colours(3)
    assert torch.equal(
        to_uint8(read_picture(png(array)).pixels),
        torch.from_numpy(np.floor(array / 257 + 0.5).astype(np.uint8)).permute(2, 0, 1),
    )


PEAK = """
import re, sys
from pathlib import Path
from calotype.pixels import read_picture_rows

def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

read_picture_rows(sys.argv[1])
before = memory("VmRSS")
picture = read_picture_rows(sys.argv[2])
print(memory("VmHWM") - before, memory("VmRSS") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_reading_by_rows_takes_12_bytes_a_pixel_and_keeps_6(tmp_path: Path, kind: str) -> None:
    for side in (64, 2048):
        array = np.zeros((side, side, 3), dtype=np.uint16)
        data = png(array) if kind == "png" else b""
        path = tmp_path / f"{side}.{kind}"
        if kind == "png":
            path.write_bytes(data)
        else:
            tifffile.imwrite(path, array, photometric="rgb", compression="deflate", metadata=None)
    paths = [str(tmp_path / f"{side}.{kind}") for side in (64, 2048)]
    run = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, timeout=120, check=True)
    peak, kept = map(float, run.stdout.split())
    assert peak < 12 * 4 + 24
    assert kept < 6 * 4 + 16
