"""Light that is not sRGB's: cICP, gAMA and cHRM of PNG, nclx of AVIF, JPEG 2000's colour spaces, EXIF's Adobe RGB."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from filekit import (
    ADOBE_TO_XYZ,
    BT2020_TO_SRGB,
    P3_TO_SRGB,
    XYZ_TO_SRGB,
    chrm,
    cicp,
    decoded,
    encoded,
    gama,
    levels,
    png,
    unit,
)
from PIL import Image, ImageCms, features

from calotype.pixels import from_array, read_picture
from calotype.pixels.light import SRGB, lab_to_srgb, matrix, of_code_points

WHITE = (0.3127, 0.3290)
SRGB_CHRM = chrm(*WHITE, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_CHRM = chrm(*WHITE, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
P3_CHRM = chrm(*WHITE, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def colours(dtype: npt.DTypeLike = np.uint8, channels: int = 3) -> npt.NDArray[Any]:
    """Colours in the inner half of the cube, which stay within sRGB."""
    top = np.iinfo(np.dtype(dtype)).max
    return np.random.default_rng(1).integers(top // 4, 3 * top // 4, (12, 20, channels)).astype(dtype)


def values(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return array / np.iinfo(array.dtype).max


# sRGB in other words


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [(b"sRGB", b"\0")],
        [(b"sRGB", b"\0"), gama(1.0)],
        [gama(0.45455)],
        [gama(0.45)],
        [gama(0.4545), SRGB_CHRM],
        [SRGB_CHRM],
        [chrm(0.3127, 0.3291, 0.6399, 0.3300, 0.3000, 0.6001, 0.1500, 0.0600)],
        [cicp(1, 13)],
        [cicp(1, 13), gama(1.0), P3_CHRM],
        [cicp(2, 2)],
        [(b"mDCV", bytes(24)), (b"cLLI", bytes(8))],
        [(b"sRGB", b"\1"), P3_CHRM],
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_srgb_in_other_words_is_left_alone(chunks: Any, dtype: Any) -> None:
    if dtype == np.uint16:
        pytest.importorskip("imagecodecs")
    array = colours(dtype)
    plain, picture = read_picture(png(array)), read_picture(png(array, *chunks))
    assert torch.equal(picture.pixels, plain.pixels)
    assert picture.notices == ()


# Gamma


@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8, 0.5, 1 / 2.6])
@pytest.mark.parametrize("kind", ["RGB", "grey", "grey with alpha", "RGBA", "palette"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gamma(gamma: float, kind: str, dtype: Any) -> None:
    if dtype == np.uint16:
        pytest.importorskip("imagecodecs")
        if kind == "palette":
            return
    stored = round(gamma * 100_000) / 100_000
    array = colours(dtype, {"RGB": 3, "grey": 1, "grey with alpha": 2, "RGBA": 4, "palette": 1}[kind])
    chunks = [gama(gamma)]
    want = array[..., :1] if kind.startswith("grey") else array[..., :3]
    if kind == "palette":
        table = colours()[..., :3].reshape(-1, 3)
        chunks.append((b"PLTE", table.tobytes()))
        array = array % len(table)
        want = table[array[..., 0]]
    data = png(array[..., 0] if array.shape[-1] == 1 else array, *chunks, palette=kind == "palette")
    picture = read_picture(data, alpha="keep")
    expected = encoded(values(want) ** (1 / stored))
    tolerance = 0.51 / 255 if dtype == np.uint8 else 0.6 / 65535
    assert np.abs(unit(picture) - expected).max() < tolerance
    assert picture.notices == (f"The colours (gAMA {stored:g}) were converted to sRGB.",)


@pytest.mark.parametrize("gamma", [0.0, 20.0, 40_000.0])
def test_an_impossible_gamma_is_told(gamma: float) -> None:
    array = colours()
    picture = read_picture(png(array, gama(gamma)))
    assert torch.equal(picture.pixels, from_array(array))
    assert len(picture.notices) == 1
    assert "was ignored, because no picture can have it" in picture.notices[0]


# Primaries


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_adobe_rgb_by_chromaticities(dtype: Any) -> None:
    if dtype == np.uint16:
        pytest.importorskip("imagecodecs")
    array = colours(dtype)
    picture = read_picture(png(array, gama(0.45455), ADOBE_CHRM))
    expected = encoded((values(array) ** (1 / 0.45455)) @ (XYZ_TO_SRGB @ ADOBE_TO_XYZ).T)
    # the tables have white at 0.95047, 1, 1.08883, and cHRM at 0.3127, 0.3290, which is nearly that
    assert np.abs(unit(picture) - expected).max() < 0.7 / 255
    assert np.abs(levels(picture) - 255 * values(array)).max() > 5
    assert picture.notices == ("The colours (gAMA 0.45455 and the primaries of its cHRM) were converted to sRGB.",)


def test_foreign_primaries_without_a_gamma_have_srgbs_curve() -> None:
    array = colours()
    picture = read_picture(png(array, P3_CHRM))
    assert np.abs(unit(picture) - encoded(decoded(values(array)) @ P3_TO_SRGB.T)).max() < 0.6 / 255
    assert picture.notices == ("The colours (the primaries of its cHRM) were converted to sRGB.",)


def test_grey_keeps_its_white_whatever_the_primaries() -> None:
    grey = colours(channels=1)[..., 0]
    picture = read_picture(png(grey, chrm(0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)))
    assert np.abs(levels(picture) - grey[..., None]).max() <= 1.0


@pytest.mark.parametrize("white", [(0.3457, 0.3585), (0.310, 0.316), (0.314, 0.351), (1 / 3, 1 / 3)])
def test_white_stays_white(white: tuple[float, float]) -> None:
    array = np.full((2, 2, 3), 255, dtype=np.uint8)
    array[0, 0] = 128
    picture = read_picture(png(array, chrm(*white, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)))
    assert np.abs(levels(picture) - array).max() <= 1.0


def test_white_is_adapted_with_bradford() -> None:
    # Lindbloom's matrix of sRGB adapted to D50, inverted, is what takes D50's XYZ to sRGB
    from_d50 = np.array([[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540],
                         [0.0719453, -0.2289914, 1.4052427]])  # fmt: skip
    prophoto = np.array([[0.7976749, 0.1351917, 0.0313534], [0.2880402, 0.7118741, 0.0000857], [0.0, 0.0, 0.8252100]])
    got = matrix((0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001))
    assert np.abs(got - from_d50 @ prophoto).max() < 3e-3
    assert np.allclose(matrix(SRGB), np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    "values_", [(0.3, 0.3, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3), (0.3, 0.0, 0.6, 0.3, 0.3, 0.6, 0.1, 0.1), (0.0,) * 8]
)
def test_impossible_primaries_are_told(values_: Any) -> None:
    array = colours()
    picture = read_picture(png(array, chrm(*values_)))
    assert torch.equal(picture.pixels, from_array(array))
    assert picture.notices == ("The cHRM of the picture was ignored, because the chromaticities span no colours.",)


# cICP


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("points", "curve", "turn", "words"),
    [
        ((12, 13), decoded, P3_TO_SRGB, "Display P3"),
        ((12, 8), lambda v: v, P3_TO_SRGB, "Display P3, linear light"),
        ((1, 8), lambda v: v, np.eye(3), "linear light"),
        ((1, 4), lambda v: v**2.2, np.eye(3), "a gamma of 2.2"),
        ((9, 13), decoded, BT2020_TO_SRGB, "BT.2020"),
        ((9, 14), decoded, BT2020_TO_SRGB, "BT.2020, BT.2020's curve taken for sRGB's"),
    ],
)
def test_code_points(points: tuple[int, int], curve: Any, turn: Any, words: str, dtype: Any) -> None:
    if dtype == np.uint16:
        pytest.importorskip("imagecodecs")
    array = colours(dtype)
    picture = read_picture(png(array, cicp(*points)))
    expected = encoded(curve(values(array)) @ np.asarray(turn).T)
    assert np.abs(unit(picture) - expected).max() < (0.6 / 255 if dtype == np.uint8 else 8e-5)
    assert picture.notices == (f"The colours ({words}) were converted to sRGB.",)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_narrow_range(dtype: Any) -> None:
    if dtype == np.uint16:
        pytest.importorskip("imagecodecs")
    shift = 256 if dtype == np.uint16 else 1
    array = (np.array([[[0, 16, 126], [235, 255, 60]]]) * shift).astype(dtype)
    picture = read_picture(png(array, cicp(1, 13, full=0)))
    expected = np.clip((array / shift - 16) / 219, 0, 1)
    assert np.abs(unit(picture) - expected).max() < 0.51 / 255
    assert picture.notices == ("The colours (narrow range) were converted to sRGB.",)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
@pytest.mark.parametrize("full", [0, 1])
def test_hdr_is_left_as_it_is_and_told(transfer: int, name: str, full: int) -> None:
    array = colours()
    picture = read_picture(png(array, cicp(9, transfer, full=full), (b"iCCP", icc(ImageCms.createProfile("LAB")))))
    assert torch.equal(picture.pixels, from_array(array))
    assert len(picture.notices) == 1
    assert picture.notices[0].startswith(f"The picture is HDR ({name}, BT.2020): its values were taken as they are, ")


def test_bt_709_is_shown_as_srgb() -> None:
    array = colours()
    picture = read_picture(png(array, cicp(1, 1)))
    assert torch.equal(picture.pixels, from_array(array))
    assert picture.notices == ("The curve of BT.709 was taken for that of sRGB, as displays do.",)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ((1, 13, 1, 1), "matrix 1"),
        ((77, 13, 0, 1), "primaries 77"),
        ((1, 99, 0, 1), "transfer function 99"),
    ],
)
def test_unknown_code_points_leave_it_to_the_next_chunk(body: Any, reason: str) -> None:
    array = colours()
    picture = read_picture(png(array, cicp(*body), gama(1.0)))
    assert np.abs(unit(picture) - encoded(values(array))).max() < 0.51 / 255
    assert reason in picture.notices[0]
    assert picture.notices[1:] == ("The colours (gAMA 1) were converted to sRGB.",)


# Precedence


def icc(profile: Any) -> bytes:
    return b"name\0\0" + zlib.compress(ImageCms.ImageCmsProfile(profile).tobytes())


def test_cicp_counts_before_a_profile_and_a_profile_before_gamma() -> None:
    array = colours()
    srgb = icc(ImageCms.createProfile("sRGB"))
    both = read_picture(png(array, cicp(12, 13), (b"iCCP", srgb), gama(1.0)))
    assert torch.equal(both.pixels, read_picture(png(array, cicp(12, 13))).pixels)
    profile = read_picture(png(array, (b"iCCP", srgb), gama(1.0), P3_CHRM))
    assert torch.equal(profile.pixels, from_array(array))
    assert profile.notices == ()


def test_without_a_usable_profile_gamma_counts() -> None:
    array = colours()
    picture = read_picture(png(array, (b"iCCP", b"name\0\0" + zlib.compress(b"junk" * 50)), gama(1.0)))
    assert np.abs(unit(picture) - encoded(values(array))).max() < 0.51 / 255
    assert picture.notices[0].startswith("The ICC profile was ignored, because it can't be used: ")
    assert picture.notices[1] == "The colours (gAMA 1) were converted to sRGB."


def test_chunks_after_the_pixels_say_nothing() -> None:
    array = colours()
    picture = read_picture(png(array, after=[gama(1.0), cicp(12, 13)]))
    assert torch.equal(picture.pixels, from_array(array))
    assert picture.notices == ()


def test_a_pil_image_says_what_its_file_does() -> None:
    array = colours()
    for chunks in ([gama(1.0)], [P3_CHRM], [cicp(12, 13)], [gama(1.0), (b"sRGB", b"\0")]):
        data = png(array, *chunks)
        whole = read_picture(data)
        opened = read_picture(Image.open(io.BytesIO(data)))
        assert torch.equal(opened.pixels, whole.pixels)
        assert opened.notices == whole.notices
    loaded = Image.open(io.BytesIO(png(array, gama(1.0))))
    loaded.load()
    assert read_picture(loaded).notices == ("The colours (gAMA 1) were converted to sRGB.",)


def test_alpha_is_not_converted() -> None:
    array = colours(channels=4)
    picture = read_picture(png(array, gama(1.0)), alpha="keep")
    assert picture.alpha is not None
    assert np.allclose(picture.alpha.numpy() * 255, array[..., 3], atol=1e-4)
    over = read_picture(png(array, gama(1.0)), background=(0, 0, 0))
    expected = encoded(values(array[..., :3])) * values(array[..., 3:])
    assert np.abs(unit(over) - expected).max() < 0.51 / 255


# Other files


def nclx(data: bytes, primaries: int, transfer: int) -> bytes:
    """An AVIF with other code points."""
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


def avif() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), (150, 100, 60), dtype=np.uint8)).save(file, "AVIF", quality=100)
    return file.getvalue()


@needs_avif
def test_nclx_of_avif() -> None:
    data = avif()
    plain = read_picture(data)
    assert plain.notices == ()
    assert read_picture(nclx(data, 1, 13)).notices == ()
    assert read_picture(nclx(data, 2, 2)).notices == ()
    turned = read_picture(nclx(data, 12, 13))
    assert turned.notices == ("The colours (Display P3) were converted to sRGB.",)
    assert np.abs(unit(turned) - encoded(decoded(unit(plain)) @ P3_TO_SRGB.T)).max() < 0.6 / 255
    hdr = read_picture(nclx(data, 9, 16))
    assert torch.equal(hdr.pixels, plain.pixels)
    assert hdr.notices[0].startswith("The picture is HDR (PQ, BT.2020)")


@needs_avif
def test_a_profile_counts_before_nclx() -> None:
    file = io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(np.full((16, 16, 3), 100, dtype=np.uint8)).save(file, "AVIF", quality=100, icc_profile=profile)
    data = file.getvalue()
    if b"colrnclx" in data:
        data = nclx(data, 9, 16)
    assert read_picture(data).notices == ()


def jpeg_2000(space: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), (150, 100, 60), dtype=np.uint8)).save(file, "JPEG2000")
    data = file.getvalue()
    at = data.index(b"colr") + 7
    return data[:at] + struct.pack(">I", space) + data[at + 4 :]


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow has no JPEG 2000")
def test_colour_spaces_of_jpeg_2000() -> None:
    plain = read_picture(jpeg_2000(16))
    assert plain.notices == ()
    assert np.abs(levels(plain) - [150, 100, 60]).max() < 1.0
    other = read_picture(jpeg_2000(20))
    assert other.notices == ("JPEG 2000's colour space e-sRGB can't be converted; sRGB was assumed.",)
    romm = read_picture(jpeg_2000(21))
    prophoto = np.array([[2.0343, -0.7274, -0.3068], [-0.2289, 1.2318, -0.0029], [-0.0086, -0.1533, 1.1618]])
    assert (
        np.abs(unit(romm) - encoded(values(np.array([150, 100, 60], np.uint8)) ** 1.8 @ prophoto.T)).max() < 1.5 / 255
    )
    assert romm.notices == ("The colours (ROMM RGB) were converted to sRGB.",)


@pytest.mark.parametrize("said", ["ColorSpace 2", "R03"])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_adobe_rgb_by_exif(said: str, format_: str) -> None:
    array = np.full((16, 16, 3), (150, 100, 60), dtype=np.uint8)
    exif = Image.Exif()
    exif[271] = "a camera"
    exif.get_ifd(0x8769)[0xA001] = 2 if said == "ColorSpace 2" else 0xFFFF
    if said == "R03":
        exif.get_ifd(0x8769)[0xA005] = {1: "R03", 2: b"0100"}
    file = io.BytesIO()
    options: dict[str, Any] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format_, {})
    Image.fromarray(array).save(file, format_, exif=exif, **options)
    picture = read_picture(file.getvalue())
    expected = 255 * encoded((array[0, 0] / 255.0) ** (563 / 256) @ (XYZ_TO_SRGB @ ADOBE_TO_XYZ).T)
    assert np.abs(levels(picture) - expected).max() < 2.0
    assert picture.notices == ("The colours (Adobe RGB, as its EXIF data say) were converted to sRGB.",)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = io.BytesIO()
    Image.fromarray(array).save(file, format_, exif=exif, icc_profile=profile, **options)
    assert read_picture(file.getvalue()).notices == ()


def test_exif_that_says_srgb_is_silent() -> None:
    exif = Image.Exif()
    exif[271] = "a camera"
    exif.get_ifd(0x8769)[0xA001] = 1
    file = io.BytesIO()
    Image.fromarray(colours()).save(file, "PNG", exif=exif)
    assert read_picture(file.getvalue()).notices == ()


def test_lab_against_lcms() -> None:
    lab = np.array([[50, 20, -30], [80, -40, 60], [20, 5, 5], [100, 0, 0]], dtype=np.float64)
    lightness, opponents = np.rint(lab[:, :1] * 2.55).astype(np.uint8), lab[:, 1:].astype(np.int8)
    image = Image.frombytes("LAB", (4, 1), np.hstack([lightness, opponents.view(np.uint8)]).tobytes())
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )  # fmt: skip
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    exact = np.hstack([lightness / 2.55, opponents])
    assert np.abs(lab_to_srgb(exact) * 255 - np.asarray(converted)[0]).max() <= 1.6


def test_code_points_of_h273_are_all_told_or_converted() -> None:
    for primaries in range(256):
        for transfer in (1, 2, 4, 5, 6, 7, 8, 13, 14, 15, 16, 17, 18, 200):
            try:
                light = of_code_points(primaries, transfer)
            except ValueError as error:
                assert str(error).split()[-1] in (str(primaries), str(transfer))
                continue
            if light is None:
                assert (primaries, transfer) == (2, 2)
            elif light.is_srgb:
                assert light.notice or (primaries in (1, 2) and transfer in (2, 13))
            else:
                white = light.converter(np.uint8)(np.full((1, 1, 3), 255, dtype=np.uint8))
                assert np.abs(white.astype(int) - 255).max() <= 1
