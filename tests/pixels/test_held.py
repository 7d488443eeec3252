"""What headers claim, held against what files have; and pictures that are whole, and take very little."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from filekit import chunk, tiff
from PIL import Image, features
from support import one_sentence

from calotype.errors import PictureError
from calotype.pixels import picture_size, read_picture, read_picture_rows
from calotype.pixels.kinds import suffixes

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
N = 30_000  # a side that none of these files can hold


def saved(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def noise(mode: str = "RGB", side: int = 24) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (side, side, 4), dtype=np.uint8)
    return Image.fromarray(levels).convert(mode)


def put(data: bytes, at: int, layout: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, at, *values)
    return bytes(changed)


def png(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(3000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def jpeg(**options: Any) -> bytes:
    data = saved(noise(), "JPEG", **options)
    return put(data, data.index(b"\xff\xc2\0" if options else b"\xff\xc0\0") + 5, ">HH", N, N)


def gif(both: bool) -> bytes:
    data = put(saved(noise("P"), "GIF"), 6, "<HH", N, N)
    return put(data, data.index(b",\0\0\0\0") + 5, "<HH", N, N) if both else data


def canvas() -> bytes:
    data = saved(noise(), "WEBP", save_all=True, append_images=[noise().rotate(90)], lossless=True)
    return put(data, data.index(b"VP8X") + 12, "<HBHB", N, 0, N, 0)


def jpeg_2000() -> bytes:
    data = saved(noise(side=200), "JPEG2000", num_resolutions=2)
    at = data.index(b"\xff\x51")
    data = put(put(data, at + 6, ">II", N, N), at + 22, ">II", N, N)
    return put(data[: at + 3000] + b"\xff\xd9", data.index(b"ihdr") + 4, ">II", N, N)


def text(data: bytes, old: bytes) -> bytes:
    assert old in data
    return data.replace(old, old.replace(b"24", b"%d" % N))


def sgi() -> bytes:
    head = struct.pack(">HBBHHHHII", 474, 1, 1, 2, N, N, 1, 0, 255).ljust(512, b"\0")
    return head + bytes(500)


CLAIMS: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: png(N, N),
    "JPEG": jpeg,
    "progressive JPEG": lambda: jpeg(progressive=True),
    "arithmetic JPEG": lambda: put(data := jpeg(), data.index(b"\xff\xc0\0") + 1, ">B", 0xC9),
    "GIF": lambda: gif(True),
    "screen of a GIF": lambda: gif(False),
    "BMP": lambda: put(saved(noise(), "BMP"), 18, "<ii", N, N),
    "PCX": lambda: put(put(saved(noise(), "PCX"), 4, "<HHHH", 0, 0, N - 1, N - 1), 66, "<H", N),
    "TGA": lambda: put(saved(noise(), "TGA"), 12, "<HH", N, N),
    "RLE TGA": lambda: put(saved(noise(), "TGA", compression="tga_rle"), 12, "<HH", N, N),
    "SGI": lambda: put(saved(noise(), "SGI"), 6, ">HH", N, N),
    "RLE SGI": sgi,
    "DDS": lambda: put(saved(noise("RGBA"), "DDS"), 12, "<II", N, N),
    "DXT": lambda: put(saved(noise("RGBA"), "DDS", pixel_format="DXT5"), 12, "<II", N, N),
    "QOI": lambda: put(saved(noise(), "QOI"), 4, ">II", N, N),
    "lossy WebP": lambda: put(saved(noise(), "WEBP"), 26, "<HH", 16383, 16383),
    "canvas of a WebP": canvas,
    "JPEG 2000": jpeg_2000,
    "PPM": lambda: text(saved(noise(), "PPM"), b"24 24"),
    "PGM": lambda: text(saved(noise("L"), "PPM"), b"24 24"),
    "PBM": lambda: text(saved(noise("1"), "PPM"), b"24 24"),
    "PFM": lambda: text(saved(noise("F"), "PPM"), b"24 24"),
    "plain PPM": lambda: b"P3 %d %d 255\n1 2 3 4 5 6" % (N, N),
    "16-bit PPM": lambda: b"P6 %d %d 65535\n" % (N, N) + bytes(600),
    "XBM": lambda: text(text(saved(noise("1"), "XBM"), b"width 24"), b"height 24"),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_claim_that_the_file_can_not_hold(kind: str) -> None:
    data = CLAIMS[kind]()
    with pytest.raises(PictureError, match=r"its header claims \d+ x \d+ pixels, which take at least") as error:
        read_picture(data)
    one_sentence(str(error.value))
    with pytest.raises(PictureError, match="its header claims"):
        picture_size(io.BytesIO(data))


LEVELS = np.random.default_rng(1).integers(0, 256, (60, 40, 3), dtype=np.uint8)


def with_tags(data: bytes, **changed: int) -> bytes:
    """A TIFF with other values of its tags: height, rows (of a strip)."""
    numbers = {"width": 256, "height": 257, "rows": 278}
    at = struct.unpack_from("<I", data, 4)[0]
    for i in range(struct.unpack_from("<H", data, at)[0]):
        for name, value in changed.items():
            if struct.unpack_from("<H", data, at + 2 + 12 * i)[0] == numbers[name]:
                data = put(data, at + 4 + 12 * i, "<HII", 4, 1, value)
    return data


PACKINGS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd")


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"height": 61},
            r"40 x 61 pixels(, of which one of the strips takes| in 5 strips, but there are 4)|"
            "a part of 40 x 13 pixels, but there are 40 x 12",
        ),
        ({"height": N, "width": N}, r"30000 x 30000 pixels in [\d,]+ strips, but there are \d"),
        ({"height": N, "width": N, "rows": N}, r"of which one of the strips takes at least [\d,]+ bytes, but there"),
        ({"height": N, "rows": 2**32 - 1}, r"of which one of the strips takes at least|cut off"),
    ],
    ids=str,
)
def test_a_tiff_that_claims_more_rows_than_it_holds(packing: str, changed: dict[str, int], message: str) -> None:
    data = saved(Image.fromarray(LEVELS), "TIFF", compression=packing, strip_size=40 * 3 * 15)
    if packing == "raw":  # for which Pillow has one strip
        data = tiff(LEVELS, 2, more=[(278, 4, [15]), (273, 4, [8 + 1800 * i for i in range(4)]), (279, 4, [1800] * 4)])
    assert read_picture(data).size == (60, 40)
    with pytest.raises(PictureError, match=message) as error:
        read_picture(with_tags(data, **changed))
    one_sentence(str(error.value))


@pytest.mark.parametrize("packing", ["group3", "group4", "tiff_ccitt"])
def test_fax_that_claims_far_more_rows_than_it_holds(packing: str) -> None:
    data = saved(Image.fromarray(LEVELS).convert("1"), "TIFF", compression=packing)
    with pytest.raises(PictureError, match=r"of which one of the strips takes at least [\d,]+ bytes, but there"):
        read_picture(with_tags(data, height=N, rows=N))


@pytest.mark.parametrize("deep", [False, True])
def test_parts_of_a_tiff_outside_the_file(deep: bool) -> None:
    array = LEVELS.astype(np.uint16) if deep else LEVELS
    size = array.nbytes // 2
    for offsets, sizes in (([8], [2 * size]), ([8, 2**31], [size, size]), ([8, 0], [size, size * 2])):
        data = tiff(array, 2, more=[(278, 4, [30]), (273, 4, offsets), (279, 4, sizes)])
        with pytest.raises(PictureError, match="claims 40 x 60 pixels" if offsets[-1] else "cut off|parts"):
            read_picture(data)
            raise PictureError("parts of it are anywhere")


def test_a_tiff_without_any_of_its_parts() -> None:
    data = tiff(LEVELS, 2, more=[(278, 4, [30]), (273, 4, [0, 0]), (279, 4, [0, 0])])
    with pytest.raises(PictureError, match="claims 40 x 60 pixels, but there are none"):
        read_picture(data)


def test_parts_that_are_not_there_are_told_for_8_bits_too() -> None:
    pytest.importorskip("tifffile")
    data = tiff(LEVELS, 2, more=[(278, 4, [30]), (273, 4, [8, 0]), (279, 4, [3600, 0])])
    rows = read_picture_rows(data)
    assert np.array_equal(rows.levels[:30] // 257 if rows.levels.dtype == np.uint16 else rows.levels[:30], LEVELS[:30])
    assert rows.notices == ("1 of the 2 parts of the picture are not in the file; they were filled.",)


def test_a_tiff_whose_writer_says_no_sizes() -> None:
    for sizes in ([0], [1]):
        data = tiff(LEVELS, 2, more=[(279, 4, sizes)])
        assert np.array_equal(read_picture_rows(data).levels, LEVELS)


# Whole pictures, of one colour, in the ways that pack it the most


WHOLE: list[Any] = [
    *(("TIFF", {"compression": packing}, "RGB") for packing in PACKINGS),
    ("TIFF", {"compression": "group4"}, "1"),
    ("TIFF", {"compression": "group3"}, "1"),
    ("PNG", {"compress_level": 9}, "L"),
    ("PNG", {"compress_level": 9}, "1"),
    ("GIF", {}, "P"),
    ("JPEG", {"quality": 1, "optimize": True}, "L"),
    ("JPEG", {"quality": 1, "progressive": True, "subsampling": 2}, "RGB"),
    ("MPO", {"quality": 1}, "RGB"),
    ("WEBP", {"quality": 0}, "RGB"),
    ("WEBP", {"lossless": True}, "RGB"),
    ("JPEG2000", {}, "RGB"),
    ("JPEG2000", {"irreversible": True, "quality_layers": [4000]}, "L"),
    ("PCX", {}, "RGB"),
    ("PCX", {}, "1"),
    ("TGA", {"compression": "tga_rle"}, "RGBA"),
    ("TGA", {"compression": "tga_rle"}, "L"),
    ("QOI", {}, "RGB"),
    ("DDS", {"pixel_format": "DXT1"}, "RGBA"),
    ("BMP", {}, "1"),
    ("PPM", {}, "1"),
    ("SGI", {}, "L"),
    ("XBM", {}, "1"),
    ("MSP", {}, "1"),
    pytest.param("AVIF", {"quality": 0, "speed": 10}, "RGB", marks=needs_avif),
]


@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize(("format_", "options", "mode"), WHOLE)
def test_a_picture_of_one_colour_is_read(format_: str, options: dict[str, Any], mode: str, grey: int) -> None:
    image = Image.new("L", (800, 600), grey).convert(mode)
    assert read_picture_rows(saved(image, format_, **options)).size == (600, 800)


@pytest.mark.slow
@pytest.mark.skipif(".jxl" not in suffixes(), reason="needs pillow-jxl-plugin")
def test_jpeg_xl_of_one_colour_is_read() -> None:
    assert read_picture_rows(saved(Image.new("RGB", (1600, 1200)), "JXL")).size == (1200, 1600)


@pytest.mark.slow
def test_a_large_jpeg_2000_of_one_colour_is_read() -> None:
    """It is tried in a small size first."""
    data = saved(Image.new("L", (6400, 5600), 77), "JPEG2000")
    rows = read_picture_rows(data)
    assert rows.size == (5600, 6400) and (rows.levels == 77).all()
    with pytest.raises(PictureError, match="is damaged or cut off"):
        read_picture_rows(data[:-300])


def test_rows_that_are_all_the_same_in_the_file() -> None:
    """SGI's rows may be one."""
    side = 300
    row = bytes((127, 9, 127, 9, 46, 9, 0))
    start = 512 + 8 * side
    head = struct.pack(">HBBHHHHII", 474, 1, 1, 2, side, side, 1, 0, 255).ljust(512, b"\0")
    data = head + struct.pack(">I", start) * side + struct.pack(">I", len(row)) * side + row
    assert (read_picture_rows(data).levels == 9).all()


# Nothing but the sentence


def damaged_tiff() -> bytes:
    data = bytearray(saved(noise(side=200), "TIFF", compression="tiff_lzw"))
    data[500:900] = bytes(400)
    return bytes(data)


def test_nothing_is_printed_beside_the_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PictureError, match="is damaged or cut off"):
        read_picture(damaged_tiff())
    assert capfd.readouterr() == ("", "")


def test_others_hear_of_their_own_tiffs(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PictureError):
        read_picture(damaged_tiff())
    with pytest.raises(OSError):
        Image.open(io.BytesIO(damaged_tiff())).load()
    assert "LZW" in capfd.readouterr().err


def test_sizes_come_without_warnings() -> None:
    data = saved(Image.fromarray(LEVELS), "TIFF")
    at = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, at)[0]
    junk = struct.pack("<HHII", 0xFFF0, 2, 5000, 2**31)  # text beyond the end of the file
    data = put(data[: at + 2 + 12 * entries] + junk + data[at + 2 + 12 * entries :], at, "<H", entries + 1)
    large = png(12_000, 10_000)  # Pillow alone warns of so many pixels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for content in (data, large):
            with pytest.raises(PictureError):
                picture_size(io.BytesIO(content))
                raise PictureError("It was read.")


def test_memory_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        raise MemoryError

    data = saved(noise(), "BMP")
    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(PictureError, match="needs more memory than there is; cut it into parts, or free some"):
        read_picture(data)


def test_what_readers_raise_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        raise ZeroDivisionError("one\n\x1b[31mtwo.")

    data = saved(noise(), "BMP")
    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(PictureError) as error:
        read_picture(data)
    assert str(error.value) == "The picture is damaged or cut off (one [31mtwo); make or download it again."
    assert isinstance(error.value.__cause__, ZeroDivisionError)
