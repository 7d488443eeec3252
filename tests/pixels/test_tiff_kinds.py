"""Kinds of TIFF: each is read right, or refused by what it holds."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from filekit import encoded, levels, tiff, unit
from PIL import Image
from support import one_sentence

from calotype.errors import PictureError
from calotype.pixels import read_picture

pytest.importorskip("imagecodecs")
tifffile = pytest.importorskip("tifffile")

Array = npt.NDArray[Any]
H, W = 20, 32


def stored(dtype: Any, channels: int, seed: int = 0) -> Array:
    """Random values over the whole range: [H, W, C]."""
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return ends(random.random((H, W, channels)).astype(kind), 1.0)
    top = int(np.iinfo(kind).max)
    array = random.integers(0, top, (H, W, channels), dtype=kind, endpoint=True)
    return ends(array, top)


def ends(array: Array, top: float) -> Array:
    array[0, 0], array[0, 1] = 0, top
    return array


def scaled(array: Array) -> npt.NDArray[np.float64]:
    top = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
    return array.astype(np.float64) / top


def written(array: Array, **options: Any) -> bytes:
    """A TIFF by tifffile; planar=True puts the channels after each other."""
    planar = options.pop("planar", False)
    file = io.BytesIO()
    data = np.ascontiguousarray(array.transpose(2, 0, 1)) if planar else array
    if array.shape[2] > 1:
        options["planarconfig"] = "separate" if planar else "contig"
    elif not planar:
        data = array[..., 0]
    tifffile.imwrite(file, data, metadata=None, **options)
    return file.getvalue()


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"compression": "deflate", "byteorder": ">"},
    {"byteorder": ">"},
    {"bigtiff": True},
    {"tile": (16, 16)},
    {"rowsperstrip": 3},
    {"compression": "deflate"},
    {"compression": "deflate", "predictor": True},
    {"compression": "lzw", "predictor": True, "byteorder": ">"},
    {"compression": "lzw", "tile": (16, 16)},
    {"compression": "packbits"},
    {"compression": "zstd", "predictor": True, "bigtiff": True, "byteorder": ">"},
    {"compression": "lzma"},
]
IDS = ["-".join(f"{key}={value}" for key, value in layout.items()) or "plain" for layout in LAYOUTS]


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("planar", [False, True], ids=["chunky", "planar"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f2", "f4", "f8"])
def test_rgb(dtype: str, planar: bool, layout: dict[str, Any]) -> None:
    if "compression" in layout and dtype == "f2" and layout.get("predictor"):
        layout = {**layout, "predictor": 3}
    array = stored(dtype, 3)
    picture = read_picture(written(array, photometric="rgb", planar=planar, **layout))
    assert np.abs(unit(picture) - scaled(array)).max() < 1e-6
    assert picture.notices == ()


@pytest.mark.parametrize("layout", LAYOUTS[::3], ids=IDS[::3])
@pytest.mark.parametrize("planar", [False, True], ids=["chunky", "planar"])
@pytest.mark.parametrize("meaning", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_alpha(dtype: str, colours: int, meaning: str, planar: bool, layout: dict[str, Any]) -> None:
    array = stored(dtype, colours + 1)
    if meaning == "assocalpha":
        alpha = scaled(array[..., -1:])
        product = scaled(array[..., :-1]) * alpha
        top = 1.0 if dtype == "f4" else float(np.iinfo(dtype).max)
        array[..., :-1] = product * top if dtype == "f4" else np.rint(product * top).astype(dtype)
    photometric = "rgb" if colours == 3 else "minisblack"
    data = written(array, photometric=photometric, extrasamples=[meaning], planar=planar, **layout)
    picture = read_picture(data, alpha="keep", background=(0, 0, 0))
    opacity = scaled(array[..., -1])
    if meaning == "unspecified":
        assert picture.alpha is None
        assert picture.notices == ("A further channel without a meaning was left out.",)
        assert np.abs(unit(picture) - scaled(array[..., :-1])).max() < 1e-6
        return
    assert picture.alpha is not None
    assert np.abs(picture.alpha.numpy() - opacity).max() < 1e-5
    assert picture.notices == ("Fully transparent pixels were given the background's colour (0, 0, 0).",)
    want = scaled(array[..., :-1])
    if meaning == "assocalpha":
        # Pillow undoes it in whole levels, where it is the one that reads
        enough = opacity > (0.2 if dtype == "u1" else 0.01)
        want = want / np.maximum(opacity, 1e-9)[..., None]
        tolerance = 1.01 / 255 if dtype == "u1" else 0.01 if dtype == "u2" else 1e-5
        assert np.abs(unit(picture) - np.clip(want, 0, 1))[enough].max() < tolerance
    else:
        visible = opacity > 0
        assert np.abs(unit(picture) - want)[visible].max() < 1e-6


def test_alpha_over_the_background_is_deep() -> None:
    array = stored("u2", 4)
    picture = read_picture(written(array, photometric="rgb", extrasamples=["unassalpha"]), background=(10, 200, 30))
    values, weight = scaled(array[..., :3]), scaled(array[..., 3:])
    expected = weight * values + (1 - weight) * np.array([10, 200, 30]) / 255
    assert np.abs(unit(picture) - expected).max() < 1e-6


# Grey


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f2", "f4", "f8"])
def test_grey(dtype: str, white_is_zero: bool, layout: dict[str, Any]) -> None:
    array = stored(dtype, 1)
    photometric = "miniswhite" if white_is_zero else "minisblack"
    if dtype == "f2" and layout.get("predictor"):
        layout = {**layout, "predictor": 3}
    picture = read_picture(written(array, photometric=photometric, **layout))
    expected = 1 - scaled(array) if white_is_zero else scaled(array)
    assert np.abs(unit(picture) - expected).max() < 1e-6
    assert picture.notices == ()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_12_bit_grey(order: str, photometric: int) -> None:
    values = np.array([[0, 2048, 4095, 1]])
    data = bytes((0x00, 0x08, 0x00, 0xFF, 0xF0, 0x01))
    picture = read_picture(
        tiff(np.zeros((1, 4, 1), np.uint16), photometric, order=order, bits=[12], data=data, more=[(279, 4, [6])])
    )
    expected = values / 4095 if photometric else 1 - values / 4095
    assert np.abs(unit(picture)[..., 0] - expected).max() < 1e-6


@pytest.mark.parametrize("bits", range(2, 16))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fill_order", [1, 2])
def test_numbers_of_any_bits(fill_order: int, channels: int, bits: int) -> None:
    array = stored("u2", channels)[:, :31] >> (16 - bits)
    rows = (array[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).reshape(H, -1)
    data = np.packbits(rows, axis=-1)
    if fill_order == 2:
        data = np.packbits(np.unpackbits(data, axis=-1, bitorder="little"), axis=-1)
    more = [(266, 3, [fill_order]), (279, 4, [data.size])]
    content = tiff(array, 1 if channels == 1 else 2, bits=[bits] * channels, data=data.tobytes(), more=more)
    assert np.abs(unit(read_picture(content)) - array / (2**bits - 1)).max() < 1e-5


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("planar", [False, True])
def test_rgb_of_few_bits(bits: int, planar: bool) -> None:
    array = stored("u1", 3) >> (8 - bits)
    rows = np.unpackbits(array, axis=-1).reshape(H, W, 3, 8)[..., 8 - bits :]
    bodies = [rows[:, :, i] for i in range(3)] if planar else [rows]
    data = b"".join(np.packbits(body.reshape(H, -1), axis=-1).tobytes() for body in bodies)
    size = len(data) // len(bodies)
    offsets = [8 + i * size for i in range(len(bodies))]
    content = tiff(array, 2, bits=[bits] * 3, data=data, more=[
        (273, 4, offsets), (279, 4, [size] * len(bodies)), (284, 3, [2 if planar else 1])
    ])  # fmt: skip
    picture = read_picture(content)
    assert np.abs(unit(picture) - array / (2**bits - 1)).max() < 1e-5


def test_16_bit_numbers_in_32_bits_say_so() -> None:
    array = np.arange(H * W, dtype=np.uint32).reshape(H, W, 1) * 100
    picture = read_picture(tiff(array, 1))
    assert np.abs(unit(picture) - array / 65535).max() < 1e-6
    assert picture.notices == ("Whole numbers were taken for 16-bit grey: 0 is black and 65535 is white.",)


# Palettes


@pytest.mark.parametrize("step", [257, 256, 1, 0])
@pytest.mark.parametrize("bits", [8, 16])
def test_palettes(bits: int, step: int) -> None:
    random = np.random.default_rng(3)
    size = 2**bits
    table = random.integers(0, 256, (3, size)) * (step or 1) if step else random.integers(0, 65536, (3, size))
    array = random.integers(0, size, (H, W, 1)).astype(np.uint16 if bits == 16 else np.uint8)
    if bits == 16 and step in (257, 256):
        table[0, 0] += 1  # so that not all of them are levels
    picture = read_picture(tiff(array, 3, more=[(320, 3, table.reshape(-1).tolist())]))
    colours = table.T[array[..., 0]] / (255 if step == 1 else 65280 if step == 256 and bits == 8 else 65535)
    assert np.abs(unit(picture) - colours).max() < 1e-5
    taken = ("The palette was taken for levels from 0 to 255, as it holds none above.",)
    assert picture.notices == (taken if step == 1 else ())


# Inks and Lab


@pytest.mark.parametrize("layout", LAYOUTS[::2], ids=IDS[::2])
@pytest.mark.parametrize("planar", [False, True], ids=["chunky", "planar"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_cmyk(dtype: str, planar: bool, layout: dict[str, Any]) -> None:
    array = stored(dtype, 4)
    picture = read_picture(written(array, photometric="separated", planar=planar, **layout))
    paper = 1 - scaled(array)
    expected = paper[..., :3] * paper[..., 3:]
    assert np.abs(unit(picture) - expected).max() < (1.01 / 255 if dtype == "u1" else 2e-5)
    assert picture.notices == ("CMYK was converted without a profile, so its colours are approximate.",)


def lab_colour(lab: Array) -> npt.NDArray[np.float64]:
    """CIELAB with D50 -> sRGB, by the formulas and the matrix of Lindbloom."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f**3 > 216 / 24389, f**3, (116 * f - 16) * 27 / 24389) * [0.96422, 1.0, 0.82521]
    turn = np.array([[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540],
                     [0.0719453, -0.2289914, 1.4052427]])  # fmt: skip
    return encoded(xyz @ turn.T)


@pytest.mark.parametrize("planar", [False, True], ids=["chunky", "planar"])
@pytest.mark.parametrize("kind", ["8 signed", "8 with an offset", "16 signed", "16 with an offset", "floats"])
def test_lab(kind: str, planar: bool) -> None:
    random = np.random.default_rng(5)
    lab = np.stack([random.uniform(20, 90, (H, W)), *random.uniform(-10, 10, (2, H, W))], axis=-1)
    lab = np.rint(lab)
    lightness, opponents = lab[..., :1], lab[..., 1:]
    if kind == "8 signed":
        parts, photometric = np.concatenate([np.rint(lightness * 2.55), opponents % 256], -1).astype(np.uint8), 8
    elif kind == "8 with an offset":
        parts, photometric = np.concatenate([np.rint(lightness * 2.55), opponents + 128], -1).astype(np.uint8), 9
    elif kind == "16 signed":
        values = np.concatenate([lightness * 655.35, (opponents * 256) % 65536], -1)
        parts, photometric = np.rint(values).astype(np.uint16), 8
    elif kind == "16 with an offset":
        values = np.concatenate([lightness * 652.8, (opponents + 128) * 256], -1)
        parts, photometric = np.rint(values).astype(np.uint16), 9
    else:
        parts, photometric = lab.astype(np.float32), 8
    picture = read_picture(tiff(parts, photometric, planar=planar))
    assert np.abs(levels(picture) - 255 * lab_colour(lab)).max() < (3.0 if kind.startswith("8") else 0.2)
    assert picture.notices == ()


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_lab_of_white_and_black(dtype: str) -> None:
    top = np.iinfo(dtype).max
    array = np.array([[[top, 0, 0], [0, 0, 0]]]).astype(dtype)
    assert np.abs(levels(read_picture(tiff(array, 8))) - [[[255] * 3, [0] * 3]]).max() < 1.0


# Further channels, frames, orientation


def test_further_channels_are_told() -> None:
    array = stored("u2", 5)
    picture = read_picture(tiff(array, 2, extra=[2, 0]), alpha="keep")
    assert picture.alpha is not None
    assert np.abs(picture.alpha.numpy() - scaled(array[..., 3])).max() < 1e-5
    assert picture.notices[0] == "A further channel without a meaning was left out."
    array = stored("u1", 6)
    picture = read_picture(tiff(array, 2, extra=[0, 0, 0]))
    assert np.abs(unit(picture) - scaled(array[..., :3])).max() < 1e-6
    assert picture.notices == ("3 further channels without a meaning were left out.",)


def test_alpha_may_stand_after_another_channel() -> None:
    array = stored("u2", 5)
    picture = read_picture(tiff(array, 2, extra=[0, 2]), alpha="keep")
    assert picture.alpha is not None
    assert np.abs(picture.alpha.numpy() - scaled(array[..., 4])).max() < 1e-5


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_the_first_of_several_frames(dtype: str) -> None:
    first, second = stored(dtype, 3), stored(dtype, 3, seed=1)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for frame in (first, second):
            writer.write(frame, photometric="rgb", metadata=None)
    picture = read_picture(file.getvalue())
    assert np.abs(unit(picture) - scaled(first)).max() < 1e-6
    assert picture.notices == ("Only frame 1 of 2 was used.",)


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(("dtype", "planar"), [("u2", False), ("u2", True), ("f4", False), ("u1", True), ("u1", False)])
def test_orientation(dtype: str, planar: bool, orientation: int) -> None:
    array = stored(dtype, 4)
    picture = read_picture(
        tiff(array, 2, planar=planar, extra=[2], more=[(274, 3, [orientation])]), alpha="keep", background=(0, 0, 0)
    )
    turned = TURNED[orientation](scaled(array))
    assert picture.size == turned.shape[:2]
    assert picture.alpha is not None
    assert np.abs(picture.alpha.numpy() - turned[..., 3]).max() < 1e-5
    visible = turned[..., 3] > 0
    assert np.abs(unit(picture) - turned[..., :3])[visible].max() < 1e-6


# Pixels without data


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("text", [b"-9999\0", b"nan\0", b"-3.4028234663852886e+38\0"])
def test_floats_without_data_are_transparent(text: bytes, channels: int) -> None:
    array = stored("f4", channels)
    array[3:5] = np.float32(text[:-1].decode())
    picture = read_picture(tiff(array, 1 if channels == 1 else 2, more=[(42113, 2, text)]), alpha="keep")
    assert picture.alpha is not None
    assert picture.alpha[3:5].max() == 0
    assert picture.alpha[5:].min() == 1
    assert np.abs(unit(picture) - scaled(array))[5:].max() < 1e-6
    assert picture.notices[0] == "Pixels without data are transparent."


def test_colours_marked_as_without_data_are_told() -> None:
    array = stored("u1", 3)
    picture = read_picture(tiff(array, 2, more=[(42113, 2, b"0\0")]))
    assert np.abs(unit(picture) - scaled(array)).max() < 1e-6
    assert picture.notices == ("Pixels that the file marks as without data, by the value 0, were read like others.",)


# What is refused


def dng() -> bytes:
    return tiff(stored("u1", 3), 2, more=[(50706, 1, [1, 4, 0, 0])])


REFUSED: dict[str, tuple[bytes, str]] = {
    "signed 8": (tiff(stored("i1", 1), 1), "holds signed 8-bit numbers"),
    "signed 16": (tiff(stored("i2", 1), 1), "holds signed 16-bit numbers"),
    "signed 16 RGB": (tiff(stored("i2", 3), 2), "holds signed 16-bit numbers"),
    "signed 32": (tiff(stored("i4", 1), 1), "holds grey values from 0 to 2.14748e"),
    "signed 32 RGB": (tiff(stored("i4", 3), 2), "holds signed 32-bit numbers"),
    "complex": (tiff(stored("f4", 1).astype(np.complex64), 1), "holds complex numbers"),
    "unlike bits": (
        tiff(stored("u2", 3), 2, bits=[5, 6, 5], data=bytes(2 * H * W), more=[(279, 4, [2 * H * W])]),
        "has channels of 5, 6 and 5 bits",
    ),
    "unlike numbers": (
        tiff(stored("u2", 3), 2, more=[(339, 3, [1, 2, 1])]),
        "has channels of different kinds of numbers",
    ),
    "many channels": (tiff(stored("u1", 13), 1), "has 13 grey channels"),
    "inks": (tiff(stored("u1", 5), 5, more=[(332, 3, [2])], extra=[0]), "holds inks other than CMYK"),
    "64 bits": (tiff(stored("u8", 1), 1, more=[(258, 3, [64])]), "holds 64-bit grey"),
    "24 bits": (tiff(stored("u4", 3), 2, bits=[24] * 3), "holds 24-bit RGB"),
    "floats of 24 bits": (tiff(stored("f4", 1), 1, bits=[24]), "holds 24-bit float grey"),
    "floats above 1": (tiff(stored("f4", 3) * 4, 2), "holds values from"),
    "NaN": (tiff(stored("f8", 3) * np.nan, 2), "holds values from nan"),
    "raw": (dng(), "holds camera raw data"),
    "raw mosaic": (tiff(stored("u2", 1), 32803), "holds camera raw data"),
    "a preview": (tiff(stored("u1", 3), 2, more=[(254, 4, [1]), (330, 4, [8])]), "starts with a small preview"),
    "LogLuv": (tiff(stored("u2", 3), 32845), "holds LogLuv colours"),
    "a volume": (tiff(stored("u1", 3), 2, more=[(32997, 4, [3])]), "holds a volume"),
    "subsampled YCbCr": (tiff(stored("u1", 3), 6, more=[(530, 3, [2, 2])]), "holds subsampled YCbCr"),
    "16-bit YCbCr": (tiff(stored("u2", 3), 6), "holds YCbCr in a layout"),
    "float CMYK": (tiff(stored("f4", 4), 5), "holds 32-bit float CMYK"),
    "Lab with alpha": (tiff(stored("u2", 4), 8, extra=[2]), "holds 16-bit CIELAB with alpha"),
    "a compression of its own": (tiff(stored("u2", 3), 2, more=[(259, 3, [34676])]), "is packed in a way"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_what_it_is(kind: str) -> None:
    data, message = REFUSED[kind]
    with pytest.raises(PictureError) as caught:
        read_picture(data)
    one_sentence(str(caught.value))
    assert str(caught.value).startswith(f"The picture {message}")
    assert "damaged" not in str(caught.value)
    assert "cut off" not in str(caught.value)


def test_a_preview_is_not_taken_for_the_picture_behind_it() -> None:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(np.zeros((10, 12, 3), np.uint8), photometric="rgb", subfiletype=1)
        writer.write(np.zeros((40, 48, 3), np.uint8), photometric="rgb")
    with pytest.raises(PictureError, match="starts with a small preview of its picture") as caught:
        read_picture(file.getvalue())
    one_sentence(str(caught.value))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_signed_numbers_within_16_bits_say_so(compression: str | None, byteorder: str) -> None:
    array = np.arange(H * W, dtype=np.int32).reshape(H, W, 1) * 100
    picture = read_picture(written(array, photometric="minisblack", compression=compression, byteorder=byteorder))
    assert np.abs(unit(picture) - array / 65535).max() < 1e-6
    assert picture.notices == ("Whole numbers were taken for 16-bit grey: 0 is black and 65535 is white.",)


# Without the packages

NEEDS = {
    "planar 16-bit RGB": tiff(stored("u2", 3), 2, planar=True),
    "planar 16-bit RGB with alpha": tiff(stored("u2", 4), 2, planar=True, extra=[2]),
    "planar 8-bit RGB with alpha": tiff(stored("u1", 4), 2, planar=True, extra=[1]),
    "planar 8-bit grey with alpha": tiff(stored("u1", 2), 1, planar=True, extra=[2]),
    "planar 8-bit CIELAB": tiff(stored("u1", 3), 8, planar=True),
    "planar 16-bit CMYK": tiff(stored("u2", 4), 5, planar=True),
    "16-bit grey with alpha": tiff(stored("u2", 2), 1, extra=[2]),
    "16-bit CIELAB": tiff(stored("u2", 3), 8),
    "32-bit float RGB": tiff(stored("f4", 3), 2),
    "64-bit float grey": tiff(stored("f8", 1), 1),
    "16-bit float grey": tiff(stored("f2", 1), 1),
    "32-bit grey": tiff(stored("u4", 1), 1),
    "32-bit RGB": tiff(stored("u4", 3), 2),
    "16-bit palette": tiff(stored("u2", 1), 3, more=[(320, 3, list(range(65536)) * 3)]),
    "8-bit RGB": tiff(stored("u1", 3), 2, order=">", big=True),
}


@pytest.mark.parametrize("kind", NEEDS)
@pytest.mark.usefixtures("no_codecs")
def test_without_the_packages_they_are_named(kind: str) -> None:
    with pytest.raises(PictureError) as caught:
        read_picture(NEEDS[kind])
    assert str(caught.value) == f"The picture holds {kind}, which needs more packages; pip install 'calotype[deep]'."


@pytest.mark.usefixtures("no_codecs")
def test_without_the_packages_a_palette_of_16_bits_is_reduced_with_a_notice() -> None:
    table = np.random.default_rng(0).integers(256, 65536, (3, 256))
    array = stored("u1", 1)
    picture = read_picture(tiff(array, 3, more=[(320, 3, table.reshape(-1).tolist())]))
    assert np.abs(unit(picture) - table.T[array[..., 0]] / 65535).max() < 1.0 / 255
    hint = "because Pillow keeps no more; pip install 'calotype[deep]'."
    assert picture.notices == (f"The palette was reduced to 8 bits, {hint}",)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.usefixtures("no_codecs")
def test_without_the_packages_8_bits_are_right(channels: int, planar: bool) -> None:
    array = stored("u2", channels)
    array[..., 3:] = 65535
    layout = {"compression": "deflate"} if planar else {}
    picture = read_picture(
        written(array, photometric="rgb", planar=planar, extrasamples=["unassalpha"][: channels - 3], **layout)
    )
    assert np.abs(unit(picture) - scaled(array[..., :3])).max() < 1.0 / 255
    hint = "because Pillow keeps no more; pip install 'calotype[deep]' keeps all."
    assert picture.notices == (f"16-bit colour was reduced to 8 bits, {hint}",)


# Damage, and images that Pillow opened


@pytest.mark.parametrize("kind", ["plain", "planar", "deflate", "lzw", "packbits", "tiles", "bigtiff"])
def test_cut_off_anywhere(kind: str) -> None:
    layout: dict[str, Any] = {
        "plain": {},
        "planar": {"planar": True},
        "tiles": {"tile": (16, 16), "compression": "deflate"},
        "bigtiff": {"bigtiff": True, "planar": True},
    }.get(kind, {"compression": kind, "predictor": kind != "packbits"})
    data = written(stored("u2", 3), photometric="rgb", **layout)
    whole = read_picture(data).pixels
    for length in [*range(1, len(data), max(1, len(data) // 60)), len(data) - 1]:
        try:
            picture = read_picture(data[:length])
        except PictureError as error:
            one_sentence(str(error))
        else:
            assert torch.equal(picture.pixels, whole), length


def test_flipped_bytes_give_picture_errors_only() -> None:
    random = np.random.default_rng(3)
    for layout in ({"planar": True}, {"compression": "deflate"}, {"compression": "lzw", "tile": (16, 16)}):
        whole = np.frombuffer(written(stored("u2", 4), photometric="rgb", **layout), dtype=np.uint8)
        for _ in range(20):
            damaged = whole.copy()
            damaged[random.integers(0, 300, 4)] = random.integers(0, 256, 4)
            try:
                read_picture(damaged.tobytes())
            except PictureError as error:
                one_sentence(str(error))


def test_a_loop_of_frames_ends() -> None:
    data = bytearray(tiff(stored("u2", 3), 2))
    at = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    struct.pack_into("<I", data, at + 2 + 12 * count, at)
    assert read_picture(bytes(data)).size == (H, W)


def test_a_claim_of_too_many_pixels() -> None:
    data = tiff(stored("f4", 3), 2, more=[(256, 4, [100_000]), (257, 4, [100_000])])
    with pytest.raises(PictureError, match=r"claims to have 100000 x 100000 pixels, but at most"):
        read_picture(data)


def test_parts_that_are_not_there_are_told() -> None:
    array = stored("u2", 3)
    picture = read_picture(tiff(array, 2, more=[(273, 4, [8, 0]), (278, 4, [H // 2]), (279, 4, [H * W * 3, 0])]))
    assert np.abs(unit(picture) - scaled(array))[: H // 2].max() < 1e-6
    assert picture.notices == ("1 of the 2 parts of the picture are not in the file; they were filled.",)


@pytest.mark.parametrize("loaded", [False, True])
def test_an_image_that_pillow_reads_wrong(loaded: bool) -> None:
    image = Image.open(io.BytesIO(NEEDS["planar 16-bit RGB"]))
    if loaded:
        image.load()
    with pytest.raises(
        PictureError, match="holds planar 16-bit RGB, which Pillow reads wrong; give the path of its file"
    ):
        read_picture(image)


def test_reading_says_nothing_by_itself(capfd: pytest.CaptureFixture[str]) -> None:
    data = written(stored("u2", 3), photometric="rgb", compression="deflate")
    with pytest.raises(PictureError):
        read_picture(data[: len(data) // 2])
    read_picture(tiff(stored("f4", 1), 1, more=[(42113, 2, b"garbage\0")]))
    assert capfd.readouterr() == ("", "")
