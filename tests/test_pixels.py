"""Pictures of all kinds against the pixels that they must give, and back."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageCms, ImageFile, features
from support import room
from torch import Tensor

from calotype.errors import NonFiniteError, PictureError, UsageError
from calotype.pixels import (
    Padding,
    Picture,
    crop,
    from_array,
    opening,
    pad,
    pad_rows,
    read_picture,
    read_picture_rows,
    to_pil,
    to_uint8,
    values as stored_values,
    write_picture,
    writing,
)

Bytes = npt.NDArray[np.uint8]
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


# Pictures made by hand


def colours(height: int = 12, width: int = 20, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int = 48, width: int = 64) -> Bytes:
    """A picture that lossy formats keep within a few levels."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([60 + x * 2, 40 + y * 3, 200 - x - y], axis=-1).astype(np.uint8)


def encoded(image: Image.Image | npt.NDArray[Any], format_: str, **options: Any) -> bytes:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def levels(picture: Picture | Tensor) -> npt.NDArray[np.float64]:
    """Pixels [3, H, W] on the scale of 0..255, not rounded: [H, W, 3]."""
    tensor = picture.pixels if isinstance(picture, Picture) else picture
    return ((tensor.double() + 1.0) * 127.5).permute(1, 2, 0).numpy()


def png(width: int, height: int, colour_type: int, depth: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG; `rows` come with their filter bytes, chunks go before the data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    extra = b"".join(chunk(kind.encode(), body) for kind, body in chunks.items())
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(
    width: int, height: int, bits: tuple[int, ...], photometric: int, data: bytes, sample_format: int = 1
) -> bytes:
    """An uncompressed little-endian TIFF of one strip."""
    after = 8 + 2 + 12 * 10 + 4
    values = struct.pack(f"<{len(bits)}H", *bits)
    inline = len(values) <= 4
    bits_field = values.ljust(4, b"\0") if inline else struct.pack("<I", after)
    offset = after if inline else after + len(values)
    tags = [
        (256, 4, 1, struct.pack("<I", width)),
        (257, 4, 1, struct.pack("<I", height)),
        (258, 3, len(bits), bits_field),
        (259, 3, 1, struct.pack("<HH", 1, 0)),
        (262, 3, 1, struct.pack("<HH", photometric, 0)),
        (273, 4, 1, struct.pack("<I", offset)),
        (277, 3, 1, struct.pack("<HH", len(bits), 0)),
        (278, 4, 1, struct.pack("<I", height)),
        (279, 4, 1, struct.pack("<I", len(data))),
        (339, 3, 1, struct.pack("<HH", sample_format, 0)),
    ]
    directory = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in tags)
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + struct.pack("<I", 0)
    return header + (b"" if inline else values) + data


# ICC profiles made by hand, and what they mean

D50 = np.array([0.9642, 1.0, 0.8249])
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3_PRIMARIES = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def to_d50(primaries: tuple[tuple[float, float], ...]) -> npt.NDArray[np.float64]:
    """Linear RGB with white D65 -> XYZ, adapted to D50 by Bradford."""

    def xyz(x: float, y: float) -> npt.NDArray[np.float64]:
        return np.array([x / y, 1.0, (1.0 - x - y) / y])

    columns = np.stack([xyz(*primary) for primary in primaries], axis=1)
    white = xyz(0.3127, 0.3290)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ D50) / (bradford @ white)) @ bradford
    matrix: npt.NDArray[np.float64] = adapt @ (columns * np.linalg.solve(columns, white))
    return matrix


def profile(space: bytes, pcs: bytes, device: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2.4."""
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 81
    text = b"text\0\0\0\0none\0\0\0\0"
    tags = {b"desc": description, b"cprt": text, b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50)} | tags
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for kind, value in tags.items():
        table += kind + struct.pack(">II", start + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    header = struct.pack(">I4xI4s4s4s", start + len(body), 0x02400000, device, space, pcs)
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + fixed(*D50)
    return header.ljust(128, b"\0") + table + body


def rgb_profile(primaries: tuple[tuple[float, float], ...]) -> bytes:
    """Matrix and the tone curve of sRGB."""
    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    columns = to_d50(primaries).T
    tags = {
        name: b"XYZ \0\0\0\0" + fixed(*column)
        for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)
    }
    return profile(b"RGB ", b"XYZ ", b"mntr", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def linear_grey_profile() -> bytes:
    return profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">I", 0)})


def cmyk_profile() -> bytes:
    """A table that makes greys of all inks alike: L* falls by a third for each of C, M and Y, and K is black."""
    ramp = bytes(range(256))
    grid = b""
    for corner in np.ndindex(2, 2, 2, 2):
        lightness = 0 if corner[3] else round(255 * (1 - sum(corner[:3]) / 3))
        grid += bytes((lightness, 128, 128))
    identity = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    start = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4
    # A2B0 is the perceptual table; the colorimetric one is all red, so that it can't be mistaken.
    perceptual, colorimetric = start + grid + ramp * 3, start + bytes((138, 208, 195)) * 16 + ramp * 3
    return profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": perceptual, b"A2B1": colorimetric})


def linear(encoded_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    low = encoded_values / 12.92
    return np.where(encoded_values <= 0.04045, low, ((encoded_values + 0.055) / 1.055) ** 2.4)


def srgb_encoded(linear_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    clipped = np.clip(linear_values, 0.0, 1.0)
    return np.where(clipped <= 0.0031308, clipped * 12.92, 1.055 * clipped ** (1 / 2.4) - 0.055)


# Reading: formats


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("PPM", {}),
        ("TGA", {}),
    ],
)
def test_lossless_formats_give_exactly_the_pixels(format_: str, options: dict[str, Any]) -> None:
    array = colours()
    picture = read_picture(encoded(array, format_, **options))
    assert torch.equal(picture.pixels, from_array(array))
    assert picture.pixels.dtype == torch.float32
    assert picture.pixels.is_contiguous()
    assert picture.size == (12, 20)
    assert picture.alpha is None
    assert picture.notices == ()


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("WEBP", {"quality": 95}),
        pytest.param("AVIF", {"quality": 95}, marks=needs_avif),
    ],
)
def test_lossy_formats_give_nearly_the_pixels(format_: str, options: dict[str, Any]) -> None:
    picture = read_picture(encoded(smooth(), format_, **options))
    assert np.abs(levels(picture) - smooth()).mean() < 2.0
    assert picture.size == (48, 64)
    assert picture.notices == ()


def test_paths_strings_bytes_and_images_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(colours(), "PNG"))
    with Image.open(path) as opened:
        pictures = [read_picture(source) for source in (path, str(path), path.read_bytes(), opened)]
    assert all(torch.equal(picture.pixels, from_array(colours())) for picture in pictures)


def test_open_files_are_read_from_their_beginning(tmp_path: Path) -> None:
    data = encoded(colours(6, 7), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    with (tmp_path / "a.png").open("rb") as file:
        file.seek(9)
        assert torch.equal(read_picture(file).pixels, read_picture(data).pixels)
        assert not file.closed
    with pytest.raises(TypeError):
        read_picture(7)  # type: ignore[arg-type]


def test_an_image_is_left_as_it_is() -> None:
    image = Image.open(io.BytesIO(png(4, 1, 0, 2, b"\0\x1b", tRNS=struct.pack(">H", 1))))
    exif = Image.Exif()
    exif[274] = 6
    image.info["exif"] = exif.tobytes()
    first = read_picture(image)
    assert (image.size, image.mode, image.info["transparency"]) == ((4, 1), "L", 1)
    assert first.size == (4, 1)
    image.save(io.BytesIO(), "PNG")


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
def test_grey_and_bilevel(background: tuple[int, int, int]) -> None:
    grey = colours()[..., 0]
    picture = read_picture(encoded(grey, "PNG"), background=background)
    assert np.allclose(levels(picture), grey[..., None], atol=1e-4)
    bits = grey > 100
    assert np.allclose(levels(read_picture(encoded(bits, "PNG"))), 255.0 * bits[..., None], atol=1e-4)


def test_palette() -> None:
    image = Image.fromarray(smooth()).quantize(16)
    picture = read_picture(encoded(image, "PNG"))
    assert torch.equal(picture.pixels, from_array(np.asarray(image.convert("RGB"))))
    assert picture.notices == ()


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_models(mode: str) -> None:
    image = Image.fromarray(smooth()).convert(mode)
    assert np.abs(levels(read_picture(image)) - smooth()).max() <= 8.0


def test_ycbcr_tiff() -> None:
    image = Image.fromarray(smooth()).convert("YCbCr")
    assert np.abs(levels(read_picture(encoded(image, "TIFF"))) - smooth()).max() <= 4.0


def test_lab() -> None:
    # L* 53.24, a* 80.09, b* 67.20 with D65 is sRGB's red; with D50, which Lab in pictures has, 54.29, 80.81, 69.89.
    stored = (round(54.29 * 2.55), 128 + 81, 128 + 70)
    image = Image.new("LAB", (4, 3), stored)
    for source in (image, encoded(image, "TIFF")):
        assert levels(read_picture(source))[0, 0] == pytest.approx([255, 0, 0], abs=6)
    # Lab says by itself what its colours are.
    image.info["icc_profile"] = rgb_profile(P3_PRIMARIES)
    assert levels(read_picture(image))[0, 0] == pytest.approx([255, 0, 0], abs=6)
    assert read_picture(image).notices == ()


# Reading: more than 8 bits


def test_16_bit_grey_png_keeps_all_its_levels() -> None:
    array = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = read_picture(encoded(array, "PNG"))
    assert picture.pixels.shape == (3, 256, 256)
    assert len(np.unique(picture.pixels[0].numpy())) == 65536
    assert torch.allclose(picture.pixels[1].double().flatten(), torch.linspace(-1, 1, 65536).double(), atol=1e-6)
    assert picture.pixels.min() == -1.0
    assert picture.pixels.max() == 1.0
    assert picture.notices == ()


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_adobe_deflate"}])
def test_16_bit_grey_tiff(options: dict[str, Any]) -> None:
    array = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    assert np.allclose(levels(read_picture(encoded(array, "TIFF", **options)))[..., 0], array / 257.0, atol=1e-4)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_16_bit_modes(mode: str) -> None:
    order = ">u2" if mode == "I;16B" else "<u2"
    array = np.array([[0, 1, 256], [30000, 65534, 65535]], dtype=order)
    image = Image.frombytes(mode, (3, 2), array.tobytes())
    assert np.allclose(levels(read_picture(image))[..., 2], array / 257.0, atol=1e-4)


def test_mode_i_is_read_as_16_bit_and_says_so() -> None:
    array = np.array([[0, 1000, 65535]], dtype=np.int32)
    picture = read_picture(Image.fromarray(array))
    assert np.allclose(levels(picture)[..., 0], array / 257.0, atol=1e-4)
    assert picture.notices == ("Whole numbers were taken for 16-bit grey: 0 is black and 65535 is white.",)


@pytest.mark.parametrize("values", [[0, 65536], [-1, 5]])
def test_mode_i_out_of_range(values: list[int]) -> None:
    with pytest.raises(PictureError, match=rf"from {values[0]} to {values[1]} where 0 to 65535 are expected"):
        read_picture(Image.fromarray(np.array([values], dtype=np.int32)))


def test_tiff_with_0_for_white() -> None:
    data = struct.pack("<4H", 0, 1, 30000, 65535)
    dark_is_high = levels(read_picture(tiff(4, 1, (16,), 0, data)))[0, :, 0]
    light_is_high = levels(read_picture(tiff(4, 1, (16,), 1, data)))[0, :, 0]
    assert light_is_high == pytest.approx(np.array([0, 1, 30000, 65535]) / 257, abs=1e-4)
    assert dark_is_high == pytest.approx(255 - light_is_high, abs=1e-4)
    # The 8-bit kind is inverted by Pillow, which must not happen twice.
    assert levels(read_picture(tiff(3, 1, (8,), 0, b"\x00\x64\xff")))[0, :, 0] == pytest.approx([255, 155, 0], abs=1e-4)


def test_12_bit_grey_tiff() -> None:
    data = bytes((0x00, 0x08, 0x00, 0xFF, 0xF0, 0x01))  # 0, 2048, 4095, 1
    got = levels(read_picture(tiff(4, 1, (12,), 1, data)))[0, :, 0]
    assert got == pytest.approx(np.array([0, 2048, 4095, 1]) / 4095 * 255, abs=1e-4)


@pytest.mark.parametrize(
    "data",
    [
        png(2, 1, 2, 16, b"\0" + struct.pack(">6H", 0, 0x80FF, 65535, 0x1234, 0x5678, 0x9ABC)),
        tiff(2, 1, (16, 16, 16), 2, struct.pack("<6H", 0, 0x80FF, 65535, 0x1234, 0x5678, 0x9ABC)),
    ],
    ids=["png", "tiff"],
)
def test_16_bit_colour_is_reduced_with_a_notice(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)  # as if it were not installed
    picture = read_picture(data)
    expected = np.array([[[0, 0x80, 255], [0x12, 0x56, 0x9A]]])
    assert np.abs(levels(picture) - expected).max() <= 1.0
    hint = "because Pillow keeps no more; pip install 'calotype[deep]' keeps all."
    assert picture.notices == (f"16-bit colour was reduced to 8 bits, {hint}",)


def test_16_bit_colour_key_is_ignored_with_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    rows = b"\0" + struct.pack(">6H", 0x0500, 0x0600, 0x0700, 65535, 0, 0)  # 5, 6, 7 once reduced
    picture = read_picture(png(2, 1, 2, 16, rows, tRNS=struct.pack(">3H", 5, 6, 7)), alpha="keep")
    assert picture.alpha is None
    assert "The transparent colour was ignored" in picture.notices[1]


@pytest.mark.parametrize("photometric", [0, 1])
def test_float_tiff(photometric: int) -> None:
    array = np.array([[0.0, 0.1, 1.0 / 3.0, 1.0]], dtype=np.float32)
    picture = read_picture(tiff(4, 1, (32,), photometric, array.tobytes(), sample_format=3))
    expected = array if photometric else 1.0 - array
    assert torch.allclose(picture.pixels, torch.from_numpy(expected * 2 - 1).expand(3, 1, 4), atol=1e-7)


@pytest.mark.parametrize("values", [[0.0, 1.5], [-0.1, 0.5], [0.0, 255.0], [0.0, float("nan")], [0.0, float("inf")]])
def test_float_out_of_range(tmp_path: Path, values: list[float]) -> None:
    path = tmp_path / "deep.tif"
    path.write_bytes(encoded(np.array([values], dtype=np.float32), "TIFF"))
    with pytest.raises(PictureError, match=r"deep\.tif holds grey values .* where 0 to 1 are expected"):
        read_picture(path)


# Reading: orientation

UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize(
    ("format_", "options", "atol"),
    [
        ("PNG", {}, 1e-4),
        ("TIFF", {}, 1e-4),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, 1e-4),
        ("WEBP", {"lossless": True}, 1e-4),
        ("JPEG", {"quality": 95}, 8.0),
        pytest.param("AVIF", {"quality": 95}, 12.0, marks=needs_avif),
    ],
)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int, format_: str, options: dict[str, Any], atol: float) -> None:
    stored = smooth()
    stored[:16, :16] = 255  # a corner, so that all eight differ
    exif = Image.Exif()
    exif[274] = orientation
    picture = read_picture(encoded(stored, format_, exif=exif.tobytes(), **options))
    expected = UPRIGHT[orientation](stored)
    assert picture.size == expected.shape[:2]
    assert np.abs(levels(picture) - expected).mean() < max(atol / 4, 1e-4)
    assert np.abs(levels(picture)[2:-2:10, 2:-2:10] - expected[2:-2:10, 2:-2:10]).max() <= atol * 2
    assert picture.notices == ()


def test_alpha_is_turned_with_the_colours() -> None:
    array = np.dstack([colours(), colours(seed=1)[..., :1]])
    exif = Image.Exif()
    exif[274] = 6
    picture = read_picture(encoded(array, "PNG", exif=exif.tobytes()), alpha="keep")
    assert picture.alpha is not None
    assert np.allclose(picture.alpha.numpy() * 255, np.rot90(array[..., 3], -1), atol=1e-4)


def test_damaged_exif_is_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> None:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    picture = read_picture(encoded(colours(), "PNG"))
    assert torch.equal(picture.pixels, from_array(colours()))
    assert picture.notices == ("The EXIF data can't be read, so the picture was left the way it is stored.",)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage, no TIFF", b"Exif\0\0MM\0*\xff\xff\xff\xff"])
def test_damaged_exif_does_not_hide_the_picture(exif: bytes) -> None:
    picture = read_picture(encoded(smooth(), "JPEG", quality=95, exif=exif))
    assert np.abs(levels(picture) - smooth()).mean() < 2.0


# Reading: colour profiles


def test_a_wide_profile_is_converted() -> None:
    array = colours(64, 64)
    picture = read_picture(encoded(array, "PNG", icc_profile=rgb_profile(P3_PRIMARIES)))
    turn = np.linalg.inv(to_d50(SRGB_PRIMARIES)) @ to_d50(P3_PRIMARIES)
    expected = 255 * srgb_encoded(linear(array / 255.0) @ turn.T)
    assert np.abs(expected - array).max() > 30
    assert np.abs(levels(picture) - expected).max() < 0.6
    assert picture.notices == ("The ICC profile 'test' was converted to sRGB.",)


def test_swapped_primaries_swap_the_channels() -> None:
    red, green, blue = SRGB_PRIMARIES
    array = colours()
    picture = read_picture(encoded(array, "PNG", icc_profile=rgb_profile((green, red, blue))))
    assert np.abs(levels(picture) - array[..., [1, 0, 2]]).max() <= 1.0


@pytest.mark.parametrize("build", [lambda: rgb_profile(SRGB_PRIMARIES), lambda: _pillows_srgb()])
def test_a_profile_that_is_srgb_changes_nothing(build: Any) -> None:
    picture = read_picture(encoded(colours(), "PNG", icc_profile=build()))
    assert torch.equal(picture.pixels, from_array(colours()))
    assert picture.notices == ()


def _pillows_srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_profiles_are_found_in_all_formats(format_: str) -> None:
    options = {"compression": "tiff_lzw"} if format_ == "TIFF" else {"quality": 95}
    picture = read_picture(encoded(smooth(), format_, icc_profile=rgb_profile(P3_PRIMARIES), **options))
    assert picture.notices == ("The ICC profile 'test' was converted to sRGB.",)


def test_alpha_survives_a_profile() -> None:
    array = np.dstack([colours(), colours(seed=1)[..., :1]])
    array[..., 3] |= 1
    plain = read_picture(encoded(array[..., :3], "PNG", icc_profile=rgb_profile(P3_PRIMARIES)))
    picture = read_picture(encoded(array, "PNG", icc_profile=rgb_profile(P3_PRIMARIES)), alpha="keep")
    assert torch.equal(picture.pixels, plain.pixels)
    assert picture.alpha is not None
    assert np.allclose(picture.alpha.numpy() * 255, array[..., 3], atol=1e-4)


def test_grey_profile() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = read_picture(encoded(ramp, "PNG", icc_profile=linear_grey_profile()))
    assert np.abs(levels(picture) - 255 * srgb_encoded(ramp[..., None] / 255.0)).max() <= 1.0
    assert picture.notices == ("The ICC profile 'test' was converted to sRGB.",)


def test_grey_with_a_colour_profile() -> None:
    grey = colours()[..., 0]
    picture = read_picture(encoded(grey, "PNG", icc_profile=rgb_profile(P3_PRIMARIES)))
    assert np.abs(levels(picture) - grey[..., None]).max() <= 1.0  # its tone curve is that of sRGB
    assert picture.notices == ("The ICC profile 'test' was converted to sRGB.",)


@pytest.mark.parametrize("junk", [b"junk", b"\0" * 200], ids=["short", "zeros"])
def test_an_unreadable_profile_is_a_notice(junk: bytes) -> None:
    picture = read_picture(encoded(colours(), "PNG", icc_profile=junk))
    assert torch.equal(picture.pixels, from_array(colours()))
    assert len(picture.notices) == 1
    assert picture.notices[0].startswith("The ICC profile was ignored, because it can't be used: ")


def test_a_profile_for_another_kind_of_colour_is_a_notice() -> None:
    picture = read_picture(encoded(colours(), "PNG", icc_profile=linear_grey_profile()))
    assert torch.equal(picture.pixels, from_array(colours()))
    assert picture.notices == (
        "The ICC profile was ignored, because it can't be used: it is for GRAY, the picture is RGB.",
    )


def test_16_bit_grey_ignores_a_profile_with_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    array = np.array([[0, 1000, 65535]], dtype=np.uint16)
    picture = read_picture(encoded(array, "PNG", icc_profile=linear_grey_profile()))
    assert np.allclose(levels(picture)[..., 0], array / 257.0, atol=1e-4)
    reason = "because Pillow applies none to more than 8 bits; pip install 'calotype[deep]'."
    assert picture.notices == (f"The ICC profile was ignored, {reason}",)


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk_without_a_profile(format_: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    options = {"quality": 95} if format_ == "JPEG" else {}
    picture = read_picture(encoded(image, format_, **options))
    assert np.abs(levels(picture) - [255, 0, 0]).max() <= 3.0
    assert picture.notices == ("CMYK was converted without a profile, so its colours are approximate.",)


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("inks", "lightness"),
    [((0, 0, 0, 0), 1.0), ((0, 0, 0, 255), 0.0), ((255, 0, 0, 0), 2 / 3), ((255, 255, 0, 0), 1 / 3)],
)
def test_cmyk_with_a_profile(inks: tuple[int, int, int, int], lightness: float, format_: str) -> None:
    image = Image.new("CMYK", (16, 16), inks)
    options = {"quality": 95} if format_ == "JPEG" else {}
    picture = read_picture(encoded(image, format_, icc_profile=cmyk_profile(), **options))
    star = 100 * lightness
    luminance = ((star + 16) / 116) ** 3 if star > 8 else star / 903.3
    assert np.abs(levels(picture) - 255 * srgb_encoded(np.array(luminance))).max() <= 3.0
    assert picture.notices == ("The ICC profile 'test' was converted to sRGB.",)


# Reading: alpha


def rgba() -> Bytes:
    array = np.dstack([colours(), colours(seed=1)[..., :1]])
    array[0, 0, 3], array[0, 1, 3] = 0, 255
    return array


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
def test_alpha_over_a_background(background: tuple[int, int, int], format_: str) -> None:
    array = rgba()
    options = {"lossless": True, "exact": True} if format_ == "WEBP" else {}
    picture = read_picture(encoded(array, format_, **options), background=background)
    weight = array[..., 3:] / 255.0
    assert np.allclose(levels(picture), weight * array[..., :3] + (1 - weight) * np.array(background), atol=1e-3)
    assert picture.alpha is None
    assert picture.notices == (f"Alpha was composited over the background {background}.",)


def test_alpha_kept() -> None:
    array = rgba()
    picture = read_picture(encoded(array, "PNG"), alpha="keep", background=(1, 2, 3))
    expected = np.where(array[..., 3:] == 0, np.array([1, 2, 3]), array[..., :3])
    assert np.allclose(levels(picture), expected, atol=1e-4)
    assert picture.alpha is not None
    assert picture.alpha.shape == (12, 20)
    assert picture.alpha.dtype == torch.float32
    assert np.allclose(picture.alpha.numpy() * 255, array[..., 3], atol=1e-4)
    assert picture.notices == ("Fully transparent pixels were given the background's colour (1, 2, 3).",)


def test_alpha_kept_without_clear_pixels_needs_no_notice() -> None:
    array = rgba()
    array[..., 3] = 200
    picture = read_picture(encoded(array, "PNG"), alpha="keep")
    assert torch.equal(picture.pixels, from_array(array[..., :3]))
    assert picture.notices == ()


@pytest.mark.parametrize("alpha", ["over", "keep"])
def test_opaque_alpha_is_no_alpha(alpha: Any) -> None:
    array = rgba()
    array[..., 3] = 255
    picture = read_picture(encoded(array, "PNG"), alpha=alpha)
    assert torch.equal(picture.pixels, from_array(array[..., :3]))
    assert picture.alpha is None
    assert picture.notices == ()


def test_a_single_pixel_just_below_opaque_counts() -> None:
    array = rgba()
    array[..., 3] = 255
    array[5, 5, 3] = 254
    assert read_picture(encoded(array, "PNG")).notices
    assert read_picture(encoded(array, "PNG"), alpha="keep").alpha is not None


def test_grey_with_alpha() -> None:
    array = rgba()[..., [0, 3]]
    picture = read_picture(encoded(Image.frombytes("LA", (20, 12), array.tobytes()), "PNG"), alpha="keep")
    expected = np.where(array[..., 1:] == 0, 255, array[..., :1])
    assert np.allclose(levels(picture), expected, atol=1e-4)
    assert picture.alpha is not None
    assert np.allclose(picture.alpha.numpy() * 255, array[..., 1], atol=1e-4)


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_rare_modes_with_alpha(mode: str) -> None:
    if mode == "PA":
        image = Image.fromarray(np.full((2, 2, 4), (200, 200, 200, 128), np.uint8)).convert("PA")
    else:
        image = Image.new(
            {"La": "LA", "RGBa": "RGBA"}[mode], (2, 2), (200, 128) if mode == "La" else (200,) * 3 + (128,)
        )
        image = image.convert(mode)
    picture = read_picture(image, alpha="keep")
    assert picture.alpha is not None
    assert np.allclose(picture.alpha.numpy(), 128 / 255, atol=1e-6)
    assert np.abs(levels(picture) - 200).max() <= 2.0


def test_palette_with_transparency() -> None:
    palette = bytes((255, 0, 0, 0, 255, 0, 0, 0, 255))
    data = png(3, 1, 3, 8, b"\0\0\1\2", PLTE=palette, tRNS=bytes((0, 128)))
    kept = read_picture(data, alpha="keep", background=(9, 9, 9))
    assert kept.alpha is not None
    assert kept.alpha[0].tolist() == pytest.approx([0, 128 / 255, 1])
    assert levels(kept)[0].tolist() == pytest.approx(np.array([[9, 9, 9], [0, 255, 0], [0, 0, 255]]), abs=1e-4)
    over = levels(read_picture(data, background=(0, 0, 0)))[0]
    assert over == pytest.approx(np.array([[0, 0, 0], [0, 128, 0], [0, 0, 255]]), abs=1e-3)


def test_gif_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    picture = read_picture(encoded(image, "GIF", transparency=0), alpha="keep")
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("depth", "row", "key", "clear"),
    [
        (1, 0b10100000, 1, [1, 0, 1, 0]),
        (2, 0b00011011, 1, [0, 1, 0, 0]),
        (2, 0b00011011, 3, [0, 0, 0, 1]),
    ],
)
def test_a_transparent_grey_level(depth: int, row: int, key: int, clear: list[int]) -> None:
    picture = read_picture(png(4, 1, 0, depth, bytes((0, row)), tRNS=struct.pack(">H", key)), alpha="keep")
    assert picture.alpha is not None
    assert picture.alpha[0].tolist() == [1 - c for c in clear]


def test_a_transparent_level_of_4_8_and_16_bits() -> None:
    cases = {4: bytes((0, 0x5A)), 8: bytes((0, 5, 10)), 16: b"\0" + struct.pack(">2H", 5, 10)}
    for depth, rows in cases.items():
        picture = read_picture(png(2, 1, 0, depth, rows, tRNS=struct.pack(">H", 10)), alpha="keep")
        assert picture.alpha is not None
        assert picture.alpha.tolist() == [[1.0, 0.0]], depth


def test_a_transparent_colour() -> None:
    rows = bytes((0, 1, 2, 3, 4, 5, 6))
    picture = read_picture(png(2, 1, 2, 8, rows, tRNS=struct.pack(">3H", 4, 5, 6)), alpha="keep")
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("alpha", ["under", "", None])
def test_an_unknown_alpha(alpha: Any) -> None:
    with pytest.raises(UsageError, match='"over" or "keep"'):
        read_picture(b"", alpha=alpha)


@pytest.mark.parametrize("background", [(0, 0), (0, 0, 256), (-1, 0, 0), (0.5, 0, 0)])
def test_an_impossible_background(background: Any) -> None:
    with pytest.raises(UsageError, match="from 0 to 255"):
        read_picture(b"", background=background)


# Reading: frames


@pytest.mark.parametrize(("format_", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_the_first_of_several_frames(format_: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    picture = read_picture(data)
    assert np.abs(levels(picture) - [255, 0, 0]).max() < 1e-4
    assert picture.notices == ("Only frame 1 of 3 was used.",)


def test_the_current_frame_of_an_image() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    image = Image.open(io.BytesIO(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    picture = read_picture(image)
    assert np.abs(levels(picture) - [0, 255, 0]).max() < 1e-4
    assert picture.notices == ("Only frame 2 of 2 was used.",)


# Reading: errors


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"nothing\.png does not exist; check the path"):
        read_picture(tmp_path / "nothing.png")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="is a folder; give a picture file"):
        read_picture(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(PictureError, match=r"empty\.png is empty"):
        read_picture(path)
    with pytest.raises(PictureError, match="The picture is empty"):
        read_picture(b"")


@pytest.mark.parametrize("text", ["This is no picture.\n", "Ceci n'est pas une image : é" * 9, "<html>", "日本語" * 50])
def test_text_named_png(tmp_path: Path, text: str) -> None:
    path = tmp_path / "text.png"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PictureError, match=r"text\.png is no picture that can be read: it holds text; give"):
        read_picture(path)


def test_unknown_bytes() -> None:
    with pytest.raises(PictureError, match=r"starts with the bytes b'\\x00\\x01\\xfe\\xff"):
        read_picture(b"\x00\x01\xfe\xff" * 50)


@pytest.mark.parametrize("length", [12, 20, 30])
def test_a_header_cut_off(length: int) -> None:
    with pytest.raises(PictureError, match=r"starts like TIFF, but its header is cut off|is damaged or cut off"):
        read_picture(tiff(4, 1, (16,), 1, bytes(8))[:length])


def test_a_codec_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Image.OPEN, "AVIF", (Image.OPEN["PNG"][0], lambda prefix: "AVIF support is not installed"))
    with pytest.raises(PictureError, match="starts like AVIF, but AVIF support is not installed"):
        read_picture(b"\0\0\0\x20ftypavif" + bytes(50))


def test_postscript_is_not_run() -> None:
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(PictureError, match="is PostScript"):
        read_picture(program)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(encoded(colours(), "PNG"))

    def refuse(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PictureError, match=r"locked\.png may not be read; check its permissions"):
        read_picture(path)


def test_a_name_that_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="can't be opened"):
        read_picture("null\0byte.png")
    with pytest.raises(PictureError, match="can't be opened"):
        read_picture(tmp_path / ("x" * 5000))


CUTTABLE = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    pytest.param("AVIF", {}, marks=needs_avif),
]


@pytest.mark.parametrize("tolerant", [False, True], ids=["strict process", "tolerant process"])
@pytest.mark.parametrize(("format_", "options"), CUTTABLE)
def test_a_picture_cut_off_anywhere(
    format_: str, options: dict[str, Any], tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = encoded(colours(40, 50), format_, **options)
    whole = read_picture(data).pixels
    for length in [*range(1, len(data), max(1, len(data) // 40)), len(data) - 20]:
        try:
            picture = read_picture(data[:length])
        except PictureError as error:
            assert str(error).startswith("The picture is "), length
        else:
            assert torch.equal(picture.pixels, whole), length
    message = "is damaged or cut off|starts like TIFF, but its header is cut off"  # a TIFF may end with its header
    with pytest.raises(PictureError, match=message):
        read_picture(data[: len(data) * 9 // 10])
    assert tolerant == ImageFile.LOAD_TRUNCATED_IMAGES


def test_flipped_bytes_give_picture_errors_only() -> None:
    random = np.random.default_rng(3)
    for format_ in ("PNG", "JPEG", "WEBP", "TIFF", "GIF"):
        whole = np.frombuffer(encoded(smooth(24, 24), format_), dtype=np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[random.integers(0, min(len(damaged), 300), 4)] = random.integers(0, 256, 4)
            try:
                read_picture(damaged.tobytes())
            except PictureError as error:
                assert "\n" not in str(error)


# Reading: size


@pytest.mark.parametrize("limit", [None, 1, 89478485], ids=["none", "tiny", "default"])
def test_a_header_that_claims_too_much(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    bomb = png(100_000, 100_000, 2, 8, b"")
    with pytest.raises(
        PictureError, match=r"claims to have 10,000,000,000 pixels, but at most 1,073,741,824 \(32768 x"
    ):
        read_picture(bomb)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_nothing_is_decoded_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        pytest.fail("decoded")

    monkeypatch.setattr(opening, "MAX_PIXELS", 100)
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(PictureError, match="claims to have 110 pixels"):
        read_picture(encoded(colours(10, 11), "PNG"))
    with pytest.raises(PictureError, match="claims to have 11 x 10 pixels"):
        read_picture(Image.fromarray(colours(10, 11)))


@pytest.mark.parametrize("pillows", [1, 40, 99])
def test_the_limit_is_ours_and_without_warnings(pillows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_PIXELS", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    filters = list(warnings.filters)
    assert read_picture(encoded(colours(10, 10), "PNG")).size == (10, 10)
    assert pillows == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)


def test_the_limit_itself() -> None:
    assert opening.MAX_PIXELS == 2**30


def test_no_pixels() -> None:
    with pytest.raises(PictureError, match="has no pixels: its size is 0 x 5"):
        read_picture(Image.new("RGB", (0, 5)))


def test_threads_leave_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    filters = list(warnings.filters)
    inside, leave = threading.Barrier(3), threading.Event()

    def hold(number: int) -> None:
        with opening.strict_pillow():
            inside.wait(timeout=10)
            if number:
                leave.wait(timeout=10)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(hold, 0), pool.submit(hold, 1)
        inside.wait(timeout=10)
        first.result(timeout=10)
        assert ImageFile.LOAD_TRUNCATED_IMAGES is False  # the second still reads
        leave.set()
        second.result(timeout=10)
    assert Image.MAX_IMAGE_PIXELS == 7
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert filters == list(warnings.filters)


# Reading by rows


def kinds() -> dict[str, Any]:
    """Files of all kinds."""
    turned = Image.Exif()
    turned[274] = 6
    grey16 = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    photo, glass = Image.fromarray(smooth()), np.dstack([smooth(), smooth()[..., :1]])
    glass[:3, :5, 3] = 0
    return {
        "rgb": encoded(photo, "PNG"),
        "jpeg": encoded(photo, "JPEG"),
        "grey": encoded(photo.convert("L"), "PNG"),
        "bilevel": encoded(photo.convert("1"), "PNG"),
        "palette": encoded(photo.quantize(16), "PNG"),
        "palette with alpha": encoded(Image.fromarray(glass).quantize(16), "PNG"),
        "rgba": encoded(glass, "PNG"),
        "rgba, turned": encoded(glass, "PNG", exif=turned.tobytes()),
        "grey with alpha": encoded(Image.fromarray(glass).convert("LA"), "PNG"),
        "colour key": encoded(photo, "PNG", transparency=tuple(map(int, smooth()[5, 6]))),
        "profile": encoded(photo, "PNG", icc_profile=rgb_profile(P3_PRIMARIES)),
        "profile, turned": encoded(photo, "PNG", icc_profile=rgb_profile(P3_PRIMARIES), exif=turned.tobytes()),
        "grey with a colour profile": encoded(photo.convert("L"), "PNG", icc_profile=rgb_profile(P3_PRIMARIES)),
        "grey with a profile": encoded(photo.convert("L"), "PNG", icc_profile=linear_grey_profile()),
        "cmyk": encoded(photo.convert("CMYK"), "TIFF"),
        "cmyk with a profile": encoded(photo.convert("CMYK"), "TIFF", icc_profile=cmyk_profile()),
        "lab": encoded(Image.new("LAB", (64, 48), (100, 120, 140)), "TIFF"),
        "16-bit grey": encoded(grey16, "PNG"),
        "16-bit grey, turned": encoded(grey16, "PNG", exif=turned.tobytes()),
        "16-bit grey with a key": encoded(Image.fromarray(grey16), "PNG", transparency=int(grey16[5, 6])),
        "floats": encoded(grey16.astype(np.float32) / 65535, "TIFF"),
        "an image": Image.fromarray(glass).convert("RGBa"),
    }


@pytest.mark.parametrize("alpha", ["over", "keep"])
@pytest.mark.parametrize("kind", kinds())
def test_rows_are_those_of_the_whole(kind: str, alpha: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = kinds()[kind]
    whole = read_picture(source, alpha=alpha, background=(10, 200, 30))
    monkeypatch.setattr(stored_values, "STRIPE", 1000)  # so that there are many
    rows = read_picture_rows(source, alpha=alpha, background=(10, 200, 30))
    assert (rows.size, rows.notices) == (whole.size, whole.notices)
    height = rows.size[0]
    for step in (1, 7, 16, height):
        parts = [rows.rows(top, min(top + step, height)) for top in range(0, height, step)]
        assert torch.equal(torch.cat(parts, dim=1), whole.pixels)
    assert (rows.alpha is None) == (whole.alpha is None)
    if rows.alpha is not None and whole.alpha is not None:
        assert rows.alpha.dtype == torch.uint8
        assert torch.equal(rows.alpha.float().div(255.0), whole.alpha)


def test_rows_belong_to_the_caller() -> None:
    for source in (encoded(colours(), "PNG"), encoded(np.full((4, 5), 900, np.uint16), "PNG")):
        rows = read_picture_rows(source)
        before = rows.rows(0, 2).clone()
        rows.rows(0, 2).zero_()
        assert torch.equal(rows.rows(0, 2), before)


def test_reading_by_rows_refuses_what_reading_does() -> None:
    with pytest.raises(UsageError, match="alpha must be"):
        read_picture_rows(Image.new("RGB", (2, 2)), alpha="lose")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="background must be"):
        read_picture_rows(Image.new("RGB", (2, 2)), background=(0, 0, 256))
    with pytest.raises(PictureError, match="does not exist"):
        read_picture_rows("nowhere.png")


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
@pytest.mark.parametrize("orientation", [1, 6])
def test_reading_by_rows_takes_7_bytes_a_pixel_and_keeps_3(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    for side in (64, 4096):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png", exif=exif.tobytes())
    paths = [str(tmp_path / f"{side}.png") for side in (64, 4096)]
    run = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, timeout=120, check=True)
    peak, kept = map(float, run.stdout.split())
    assert peak < 7 * 16 + 16
    assert kept < 3 * 16 + 16


# Arrays and rounding


def test_from_array_by_hand() -> None:
    array = np.array([[[0, 255, 51], [1, 2, 3]]], dtype=np.uint8)
    pixels = from_array(array)
    assert pixels.shape == (3, 1, 2)
    assert pixels[:, 0, 0].tolist() == pytest.approx([-1.0, 1.0, -0.6])
    assert pixels[:, 0, 1].tolist() == pytest.approx([1 / 127.5 - 1, 2 / 127.5 - 1, 3 / 127.5 - 1])


def test_from_array_of_a_batch_and_of_views() -> None:
    batch = np.stack([colours(seed=seed) for seed in range(3)])
    assert from_array(batch).shape == (3, 3, 12, 20)
    assert torch.equal(from_array(batch)[2], from_array(batch[2]))
    assert torch.equal(from_array(batch[0, ::-1, :, ::-1]), from_array(batch[0, ::-1, :, ::-1].copy()))
    batch.flags.writeable = False
    assert torch.equal(from_array(batch)[0], from_array(colours()))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5, 3), np.uint16),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 2), np.uint8),
        np.zeros((1, 1, 4, 5, 3), np.uint8),
    ],
)
def test_from_array_refuses(array: npt.NDArray[Any]) -> None:
    with pytest.raises(UsageError, match="an array of pixels must be uint8"):
        from_array(array)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_levels_return(dtype: torch.dtype) -> None:
    array = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert torch.equal(to_uint8(from_array(array).to(dtype)), torch.from_numpy(array).permute(2, 0, 1))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
@settings(deadline=None, max_examples=50)
def test_arrays_return(seed: int, height: int, width: int, count: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    assert torch.equal(to_uint8(from_array(array)), torch.from_numpy(array).permute(0, 3, 1, 2))


def column(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype).expand(3, 1, -1)


def test_half_is_rounded_up() -> None:
    # 0 lies exactly between 127 and 128; level + 0.5 elsewhere is approached from both sides.
    between = [(level + 0.5) / 127.5 - 1 for level in range(255)]
    below = to_uint8(column(*(value - 1e-6 for value in between)))[0, 0]
    above = to_uint8(column(*(value + 1e-6 for value in between)))[0, 0]
    assert to_uint8(column(0.0, -0.0))[0, 0].tolist() == [128, 128]
    assert below.tolist() == list(range(255))
    assert above.tolist() == list(range(1, 256))


def test_nothing_is_truncated() -> None:
    assert to_uint8(column(0.9999, -0.9999, 1 / 127.5 - 1 - 1e-4))[0, 0].tolist() == [255, 0, 1]


def test_values_are_clamped() -> None:
    assert to_uint8(column(-1.0, 1.0, -1.5, 1.5, 3e38, -3e38))[0, 0].tolist() == [0, 255, 0, 255, 255, 0]
    assert to_uint8(column(1e300, dtype=torch.float64))[0, 0].tolist() == [255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_rounded_in_float32(dtype: torch.dtype) -> None:
    values = torch.linspace(-1.1, 1.1, 3 * 500).view(3, 5, 100).to(dtype)
    assert torch.equal(to_uint8(values), to_uint8(values.float()))
    assert to_uint8(torch.zeros(2, 5, 3, 4, 6, dtype=dtype)).shape == (2, 5, 3, 4, 6)


def test_to_uint8_leaves_its_argument_alone() -> None:
    values = torch.full((3, 2, 2), 5.0, requires_grad=True)
    assert not to_uint8(values).requires_grad
    assert values.tolist() == torch.full((3, 2, 2), 5.0).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_to_uint8_refuses_what_is_not_finite(bad: float) -> None:
    values = torch.zeros(3, 4, 5)
    values[1, 2, 3] = bad
    with pytest.raises(NonFiniteError, match="1 of 60 values of pixels are NaN or infinite"):
        to_uint8(values)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(5, 4, 3), torch.zeros(3, 4), torch.zeros(2, 4, 5)]
)
def test_to_uint8_refuses(pixels: Tensor) -> None:
    with pytest.raises(UsageError, match=r"floats \[\.\.\., 1, 3 or 4, H, W\]"):
        to_uint8(pixels)


# Padding


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    factor=st.sampled_from([1, 2, 3, 8, 16, 32]),
    leading=st.sampled_from([(3,), (1,), (2, 3), (2, 2, 3)]),
)
@settings(deadline=None, max_examples=200)
def test_padding_is_undone(height: int, width: int, factor: int, leading: tuple[int, ...]) -> None:
    pixels = torch.rand(*leading, height, width)
    padded, padding = pad(pixels, factor)
    assert padded.shape[:-2] == leading
    assert padded.shape[-2] % factor == padded.shape[-1] % factor == 0
    assert 0 <= padding.bottom < factor
    assert 0 <= padding.right < factor
    assert (padding.height, padding.width) == (height, width)
    assert padded.shape[-2:] == (height + padding.bottom, width + padding.right)
    assert padding.mode == ("reflect" if padding.bottom < height and padding.right < width else "replicate")
    assert torch.equal(crop(padded, padding), pixels)
    rows, columns = np.arange(padded.shape[-2]), np.arange(padded.shape[-1])
    if padding.mode == "reflect":
        rows = np.where(rows < height, rows, 2 * (height - 1) - rows)
        columns = np.where(columns < width, columns, 2 * (width - 1) - columns)
    else:
        rows, columns = rows.clip(max=height - 1), columns.clip(max=width - 1)
    assert torch.equal(padded, pixels[..., rows, :][..., columns])


@pytest.mark.parametrize(
    ("size", "expected", "mode"),
    [
        ((1, 1), (8, 8), "replicate"),
        ((7, 13), (8, 16), "reflect"),
        ((1, 4000), (8, 4000), "replicate"),
        ((4000, 3), (4000, 8), "replicate"),
        ((8, 16), (8, 16), "reflect"),
        ((5, 9), (8, 16), "reflect"),
        ((4, 9), (8, 16), "replicate"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_padding_of_odd_sizes(size: tuple[int, int], expected: tuple[int, int], mode: str, dtype: torch.dtype) -> None:
    pixels = torch.rand(2, 3, *size).to(dtype)
    padded, padding = pad(pixels, 8)
    assert padded.shape == (2, 3, *expected)
    assert padded.dtype == dtype
    assert padding.mode == mode
    assert torch.equal(crop(padded, padding), pixels)


@pytest.mark.slow
@given(height=st.integers(1, 40), width=st.integers(1, 40), factor=st.sampled_from([1, 2, 3, 8, 16, 32]))
@settings(deadline=None, max_examples=200)
def test_padding_by_rows_is_the_same(height: int, width: int, factor: int) -> None:
    pixels = torch.rand(3, height, width)
    expected, padding = pad(pixels, factor)

    def rows(top: int, bottom: int) -> Tensor:
        assert 0 <= top < bottom <= height
        return pixels[:, top:bottom]

    padded, done = pad_rows(rows, height, width, factor)
    assert done == padding
    for top in range(expected.shape[1]):
        for bottom in range(top + 1, expected.shape[1] + 1):
            assert torch.equal(padded(top, bottom), expected[:, top:bottom])


def test_padding_by_rows_refuses() -> None:
    with pytest.raises(UsageError, match="at least 1, not 0"):
        pad_rows(lambda top, bottom: torch.zeros(3, bottom - top, 5), 4, 5, 0)
    with pytest.raises(UsageError, match="at least 1 x 1 pixels, not 0 x 5"):
        pad_rows(lambda top, bottom: torch.zeros(3, bottom - top, 5), 0, 5, 8)


def test_padding_carries_gradients() -> None:
    pixels = torch.rand(3, 7, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(pad(pixels, 8)[0].sum(), pixels)
    assert gradient.sum() == 3 * 8 * 8


def test_padding_refuses() -> None:
    with pytest.raises(UsageError, match="at least 1, not 0"):
        pad(torch.zeros(3, 4, 5), 0)
    with pytest.raises(UsageError, match=r"not empty, not \[3, 0, 5\]"):
        pad(torch.zeros(3, 0, 5), 8)
    with pytest.raises(UsageError, match=r"\[4, 5\]"):
        pad(torch.zeros(4, 5), 8)


def test_crop_refuses_another_size() -> None:
    padding = Padding(height=7, width=13, bottom=1, right=3, mode="reflect")
    with pytest.raises(UsageError, match=r"\[\.\.\., 8, 16\], not \[3, 8, 8\]"):
        crop(torch.zeros(3, 8, 8), padding)


# Writing


def test_to_pil() -> None:
    image = to_pil(from_array(colours()))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), colours())


def test_to_pil_with_alpha() -> None:
    alpha = torch.tensor([[0.0, 1.0, 0.5, 1 / 255, 0.0019, 0.0020, -1.0, 2.0]])
    image = to_pil(torch.zeros(3, 1, 8), alpha)
    assert image.mode == "RGBA"
    assert np.asarray(image)[0, :, 3].tolist() == [0, 255, 128, 1, 0, 1, 0, 255]
    assert np.asarray(image)[0, :, :3].tolist() == [[128] * 3] * 8


def test_to_pil_refuses() -> None:
    with pytest.raises(UsageError, match=r"\[1, 3 or 4, H, W\], not \[1, 3, 4, 5\]"):
        to_pil(torch.zeros(1, 3, 4, 5))
    with pytest.raises(UsageError, match=r"alpha must be floats \[4, 5\]"):
        to_pil(torch.zeros(3, 4, 5), torch.zeros(5, 4))
    with pytest.raises(UsageError, match=r"alpha must be floats \[4, 5\], like the pixels, not torch.uint8"):
        to_pil(torch.zeros(3, 4, 5), torch.zeros(4, 5, dtype=torch.uint8))
    with pytest.raises(NonFiniteError, match="of alpha"):
        to_pil(torch.zeros(3, 4, 5), torch.full((4, 5), float("nan")))
    with pytest.raises(NonFiniteError, match="of pixels"):
        to_pil(torch.full((3, 4, 5), float("nan")))


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".webp", ".tif", ".tiff"])
def test_lossless_files_return(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    pixels = from_array(colours())
    assert write_picture(path, pixels) == path
    assert torch.equal(read_picture(path).pixels, pixels)
    alpha = from_array(rgba()[..., [3, 3, 3]])[0].add(1).div(2)
    write_picture(str(path), pixels, alpha=alpha)
    with Image.open(path) as image:
        # the colours under alpha 0 too
        assert np.array_equal(np.asarray(image), rgba())


@pytest.mark.parametrize(
    ("suffix", "format_"), [(".jpg", "JPEG"), (".jpeg", "JPEG"), pytest.param(".avif", "AVIF", marks=needs_avif)]
)
def test_lossy_files_nearly_return(tmp_path: Path, suffix: str, format_: str) -> None:
    path = write_picture(tmp_path / f"out{suffix}", from_array(smooth()))
    assert np.abs(levels(read_picture(path)) - smooth()).mean() < 1.5
    with Image.open(path) as image:
        assert image.format == format_


@pytest.mark.parametrize("suffix", [".jpg", pytest.param(".avif", marks=needs_avif)])
def test_lossy_files_keep_the_full_resolution_of_colour(tmp_path: Path, suffix: str) -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    stripes[:, 1::2] = (0, 0, 255)
    path = write_picture(tmp_path / f"out{suffix}", from_array(stripes))
    assert np.abs(levels(read_picture(path)) - stripes).mean() < 12.0


def test_jpeg_quality(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "out.jpg", Image.fromarray(smooth()))
    assert path.read_bytes() == encoded(smooth(), "JPEG", quality=95, subsampling=0)


def test_tiff_is_deflated(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "out.tif", torch.zeros(3, 200, 200))
    with Image.open(path) as image:
        assert image.info["compression"] == "tiff_adobe_deflate"


@needs_avif
def test_avif_with_alpha(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "out.avif", torch.zeros(3, 32, 32), alpha=torch.full((32, 32), 0.5))
    alpha = read_picture(path, alpha="keep").alpha
    assert alpha is not None
    assert alpha.mean() == pytest.approx(0.5, abs=0.02)


def test_16_bit_grey_is_written_whole(tmp_path: Path) -> None:
    array = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for suffix in (".png", ".tif"):
        path = write_picture(tmp_path / f"out{suffix}", Image.fromarray(array))
        assert np.allclose(levels(read_picture(path))[..., 0], array / 257.0, atol=1e-4)
    with pytest.raises(UsageError, match="JPEG can't hold mode I;16; convert to one of L, RGB, CMYK"):
        write_picture(tmp_path / "out.jpg", Image.fromarray(array))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif", ".tif"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F", "I;16"])
def test_every_writable_mode_is_written(tmp_path: Path, mode: str, suffix: str) -> None:
    if mode not in writing._WRITERS[suffix][1] or (suffix == ".avif" and not features.check("avif")):
        return
    path = write_picture(tmp_path / f"out{suffix}", Image.new(mode, (16, 16)))
    with Image.open(path) as image:
        assert image.size == (16, 16)
        assert image.mode == mode or (suffix in (".webp", ".avif") and mode == "L")


@pytest.mark.parametrize("name", ["out.heic", "out", "out.xyz"])
def test_an_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"use one of \.png, \.jpg, \.jpeg, \.webp, \.avif, \.tif, \.tiff"):
        write_picture(tmp_path / name, torch.zeros(3, 4, 5))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_jpeg_has_no_alpha(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (4, 4))
    if mode in ("P", "L"):
        image.info["transparency"] = 0
    message = r"JPEG has no alpha; use \.png, \.webp, \.avif, \.tif, \.tiff, or drop the alpha first"
    with pytest.raises(UsageError, match=message):
        write_picture(tmp_path / "out.jpg", image)
    with pytest.raises(UsageError, match=message):
        write_picture(tmp_path / "out.jpeg", torch.zeros(3, 4, 4), alpha=torch.zeros(4, 4))
    assert not list(tmp_path.iterdir())


def test_alpha_goes_with_pixels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="alpha goes with pixels only"):
        write_picture(tmp_path / "out.png", Image.new("RGB", (4, 4)), alpha=torch.zeros(4, 4))


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        write_picture(tmp_path / "missing" / "out.png", torch.zeros(3, 4, 5))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_a_full_disk(suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"old")
    with room(20), pytest.raises(PictureError, match=f"out{suffix} can't be written: File too large; "):
        write_picture(path, torch.zeros(3, 4, 5))
    assert capfd.readouterr().err == ""  # of libtiff
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("name", "size"), [("out.webp", (1, 16384)), ("out.jpg", (1, 65536))])
def test_a_picture_too_large_for_its_format(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    with pytest.raises(PictureError, match="can't be written"):
        write_picture(tmp_path / name, torch.zeros(3, *size))
    assert not list(tmp_path.iterdir())


def test_pixels_that_are_not_finite_leave_the_old_file(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "out.png", torch.zeros(3, 4, 5))
    before = path.read_bytes()
    with pytest.raises(NonFiniteError):
        write_picture(path, torch.full((3, 4, 5), float("nan")))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]


def test_an_interrupted_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Image.Image, target: IO[bytes], **options: Any) -> None:
        target.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_picture(tmp_path / "out.png", torch.zeros(3, 4, 5))
    assert not list(tmp_path.iterdir())
