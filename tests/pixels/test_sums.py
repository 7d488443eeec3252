"""Checksums: what was damaged is refused, whichever way a picture is decoded."""

from __future__ import annotations

import io
import itertools
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from filekit import Array, chrm, chunk, cicp, gama, png
from PIL import Image, ImageCms
from support import one_sentence

from calotype.errors import PictureError
from calotype.pixels import picture_size, read_picture, read_picture_rows

rng = np.random.default_rng(0)
LEVELS = rng.integers(0, 256, (12, 16, 4), dtype=np.uint8)
DEEP = rng.integers(0, 65536, (12, 16, 4), dtype=np.uint16)
PALETTE = (b"PLTE", rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
PROFILE = (b"iCCP", b"a\0\0" + zlib.compress(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()))
EXIF = (b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")


def levels(source: Any) -> Array:
    return np.asarray(read_picture_rows(source).levels)


def in_parts(array: Array, stream: bytes, parts: list[int]) -> bytes:
    """A PNG of another stream of data, cut into chunks at these places."""
    whole = png(array)
    at = whole.index(b"IDAT") - 4
    length = int.from_bytes(whole[at : at + 4])
    edges = [0, *parts, len(stream)]
    data = b"".join(chunk(b"IDAT", stream[a:b]) for a, b in itertools.pairwise(edges))
    return whole[:at] + data + whole[at + 12 + length :]


def packed(array: Array) -> bytes:
    """The stream of an array's rows."""
    whole = png(array)
    at = whole.index(b"IDAT")
    return whole[at + 4 : at + 4 + int.from_bytes(whole[at - 4 : at])]


def place(data: bytes, kind: bytes) -> int:
    """Of the first byte in a chunk, or of its checksum where it is empty."""
    return data.index(kind) + 4


@pytest.mark.parametrize("array", [LEVELS[..., :3], LEVELS, DEEP[..., :3], DEEP[..., 0]], ids=str)
def test_a_flipped_bit_is_found(array: Array) -> None:
    stream = packed(array)
    data = in_parts(array, stream, list(range(100, len(stream), 100)))
    whole, flips = levels(data), random.Random(4)
    for _ in range(400):
        damaged = bytearray(data)
        damaged[flips.randrange(len(data))] ^= 1 << flips.randrange(8)
        with pytest.raises(PictureError) as error:
            assert np.array_equal(levels(bytes(damaged)), whole)
            raise PictureError("It is read as it was.")
        one_sentence(str(error.value))


CHUNKS = {
    "IHDR": png(LEVELS),
    "PLTE": png(LEVELS[..., 0], PALETTE, palette=True),
    "tRNS": png(LEVELS[..., :3], (b"tRNS", b"\0\1\0\2\0\3")),
    "IDAT": png(LEVELS),
    "IEND": png(LEVELS),
    "iCCP": png(LEVELS, PROFILE),
    "sRGB": png(LEVELS, (b"sRGB", b"\0")),
    "gAMA": png(LEVELS, gama(0.3)),
    "cHRM": png(LEVELS, chrm(0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)),
    "cICP": png(LEVELS, cicp(12, 13)),
    "eXIf": png(LEVELS, after=[EXIF]),
    "prVt": png(LEVELS, (b"prVt", b"nobody knows")),
}


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_damaged_chunk_that_counts_is_refused(kind: str) -> None:
    data = bytearray(CHUNKS[kind])
    assert read_picture(bytes(data)).size[0] in (12, 16)
    data[place(data, kind.encode()) + (2 if kind == "IHDR" else 0)] ^= 1
    with pytest.raises(PictureError) as error:
        read_picture(bytes(data))
    assert str(error.value) == (
        f"The picture is damaged or cut off (the checksum of its chunk {kind} is wrong); make or download it again."
    )


def test_a_chunk_of_another_name_is_refused() -> None:
    data = CHUNKS["gAMA"].replace(b"gAMA", b"gAMB")
    with pytest.raises(PictureError, match="the checksum of its chunk gAMB is wrong"):
        read_picture(data)
    with pytest.raises(PictureError, match=r"there is no chunk at byte 33"):
        read_picture(CHUNKS["gAMA"].replace(b"gAMA", b"gA\xcdA"))


def test_damaged_chunks_that_do_not_count_are_skipped_with_a_notice() -> None:
    text, size = (b"tEXt", b"Title\0one"), (b"pHYs", struct.pack(">IIB", 1, 1, 0))
    whole = png(LEVELS[..., :3], text, text, size)
    one = bytearray(whole)
    one[place(one, b"pHYs")] ^= 1
    picture = read_picture(bytes(one))
    assert picture.notices == ("A chunk (pHYs) was skipped, because it is damaged; the pixels don't need it.",)
    assert np.array_equal(levels(bytes(one)), LEVELS[..., :3])
    one[place(one, b"tEXt")] ^= 1
    assert read_picture(bytes(one)).notices == (
        "2 chunks (pHYs, tEXt) were skipped, because they are damaged; the pixels don't need them.",
    )


def test_later_frames_are_not_looked_at() -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)) for _ in range(2)]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    data = bytearray(file.getvalue())
    data[place(data, b"fdAT") + 9] ^= 1
    assert np.array_equal(levels(bytes(data)), np.asarray(frames[0]))
    data[place(data, b"IDAT") + 9] ^= 1
    with pytest.raises(PictureError, match="the checksum of its chunk IDAT is wrong"):
        read_picture(bytes(data))


@pytest.mark.parametrize("array", [LEVELS[..., :3], DEEP[..., :3]], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("parts", [[], [50], [-4], [-9, -5], list(range(9, 300, 9))], ids=str)
@pytest.mark.parametrize("flushed", [False, True])
def test_the_sum_of_the_data_counts_too(array: Array, parts: list[int], flushed: bool) -> None:
    """With right CRCs, so that it was damaged before it was written."""
    rows = zlib.decompress(packed(array))
    packer = zlib.compressobj()
    stream = (
        packer.compress(rows) + b"".join(packer.flush(zlib.Z_FULL_FLUSH) for _ in range(3 * flushed)) + packer.flush()
    )
    places = [part % len(stream) for part in parts if part < len(stream)]
    assert np.array_equal(levels(in_parts(array, stream, places)), levels(png(array)))
    wrong = stream[:-1] + bytes([stream[-1] ^ 1])
    with pytest.raises(PictureError, match="is damaged or cut off"):
        read_picture(in_parts(array, wrong, places))


def test_too_little_data_is_refused() -> None:
    rows = zlib.decompress(packed(LEVELS))
    for short in (rows[:-1], rows[: len(rows) // 2], b""):
        for parts in ([], [10]):
            with pytest.raises(PictureError, match="is damaged or cut off"):
                read_picture(in_parts(LEVELS, zlib.compress(short), parts))


@pytest.mark.parametrize("array", [LEVELS, DEEP], ids=["8 bits", "16 bits"])
def test_what_is_cut_off_is_refused_and_what_follows_is_not_looked_at(array: Array) -> None:
    data = png(array, after=[EXIF])
    for length in range(1, len(data)):
        with pytest.raises(PictureError):
            read_picture(data[:length])
    with pytest.raises(PictureError, match=r"\(its end is missing\)"):
        read_picture(data[:-12])
    with pytest.raises(PictureError, match=r"\(it ends within a chunk IDAT of"):
        read_picture(data[: data.index(b"IDAT") + 30])
    assert np.array_equal(levels(data + b"more"), levels(data))


def test_sizes_are_told_without_looking_at_the_data() -> None:
    data = bytearray(CHUNKS["IDAT"])
    data[place(data, b"IDAT") + 9] ^= 1
    assert picture_size(io.BytesIO(bytes(data))) == (12, 16)


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["ICO", "ICNS"])
def test_icons_hold_pngs(format_: str) -> None:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)).save(file, format_)
    data = bytearray(file.getvalue())
    read_picture(bytes(data))
    for at in [i for i in range(len(data)) if data.startswith(b"IDAT", i)]:
        damaged = bytearray(data)
        damaged[at + 40] ^= 1
        with pytest.raises(PictureError, match="the checksum of its chunk IDAT is wrong"):
            read_picture(bytes(damaged))


def test_an_image_that_was_opened_and_not_loaded() -> None:
    data = bytearray(CHUNKS["IDAT"])
    data[place(data, b"IDAT") + 9] ^= 1
    with pytest.raises(PictureError, match="the checksum of its chunk IDAT is wrong"):
        read_picture(Image.open(io.BytesIO(bytes(data))))
    whole = Image.open(io.BytesIO(CHUNKS["IDAT"]))
    assert np.array_equal(levels(whole), levels(CHUNKS["IDAT"]))


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_adobe_deflate"}, {"deep": True}], ids=str)
def test_deflated_tiffs_have_a_sum_of_each_strip(options: dict[str, Any]) -> None:
    file = io.BytesIO()
    if options.get("deep"):
        pytest.importorskip("imagecodecs")
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(file, DEEP[..., :3], photometric="rgb", compression="deflate")
    else:
        Image.fromarray(LEVELS[..., :3]).save(file, "TIFF", compression="tiff_adobe_deflate")
    data = bytearray(file.getvalue())
    tags = Image.open(file).tag_v2 if not options.get("deep") else None
    if tags is not None:
        end = tags[273][-1] + tags[279][-1]
    else:
        with tifffile.TiffFile(io.BytesIO(data)) as opened:
            end = opened.pages[0].dataoffsets[-1] + opened.pages[0].databytecounts[-1]
    read_picture(bytes(data))
    data[end - 1] ^= 1
    with pytest.raises(PictureError, match="is damaged or cut off"):
        read_picture(bytes(data))
