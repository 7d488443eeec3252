"""PNGs with more text, or larger profiles, than Pillow reads."""

from __future__ import annotations

import io
import json
import struct
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from filekit import chunk, gama, png
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from calotype.errors import PictureError
from calotype.pixels import from_array, read_picture

ARRAY = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
TEXT = json.dumps({str(i): "node" * 50 for i in range(9000)}).encode()
PACKED = zlib.compress(TEXT)

Chunks = list[tuple[bytes, bytes]]

LARGE: dict[str, Chunks] = {
    "zTXt": [(b"zTXt", b"workflow\0\0" + PACKED)],
    "iTXt": [(b"iTXt", b"workflow\0\1\0\0\0" + PACKED)],
    "iTXt with a language": [(b"iTXt", b"workflow\0\1\0en\0Ablauf\0" + PACKED)],
    "tEXt": [(b"tEXt", b"workflow\0" + bytes(1) * (PngImagePlugin.MAX_TEXT_MEMORY + 1))],
    "XMP": [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + PACKED)],
    "an unknown compression": [(b"zTXt", b"workflow\0\7" + PACKED)],
}
SKIPPED = "A text chunk of the file was skipped, because it is too large or can't be inflated."


@pytest.mark.parametrize("after", [False, True], ids=["before the pixels", "after them"])
@pytest.mark.parametrize("kind", LARGE)
def test_large_text_is_skipped(kind: str, after: bool) -> None:
    data = png(ARRAY, after=LARGE[kind]) if after else png(ARRAY, *LARGE[kind])
    with pytest.raises((ValueError, SyntaxError, UnidentifiedImageError)), Image.open(io.BytesIO(data)) as image:
        image.load()  # so that the test says when Pillow changes
    picture = read_picture(data)
    assert torch.equal(picture.pixels, from_array(ARRAY))
    assert picture.notices == (SKIPPED,)


def test_many_of_them_and_what_stands_between_counts() -> None:
    chunks = [*LARGE["zTXt"], gama(1.0), *LARGE["iTXt"], (b"tEXt", b"a\0b"), *LARGE["XMP"]]
    picture = read_picture(png(ARRAY, *chunks, after=LARGE["zTXt"]))
    plain = read_picture(png(ARRAY, gama(1.0)))
    assert torch.equal(picture.pixels, plain.pixels)
    assert picture.notices == (
        "4 text chunks were skipped, because they are too large or can't be inflated.",
        *plain.notices,
    )


def test_many_small_texts_that_are_large_together() -> None:
    one = (b"zTXt", b"part\0\0" + zlib.compress(b"x" * 1_000_000))
    picture = read_picture(png(ARRAY, *[one] * 100))
    assert torch.equal(picture.pixels, from_array(ARRAY))
    (notice,) = picture.notices
    assert notice.startswith("33 text chunks were skipped")  # 67 of a million bytes are less than 64 MiB


@pytest.mark.slow
def test_a_bomb_stays_harmless() -> None:
    bomb = zlib.compress(bytes(200_000_000))
    chunks = [(b"zTXt", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb)]
    tracemalloc.start()
    picture = read_picture(png(ARRAY, *chunks))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40_000_000
    assert torch.equal(picture.pixels, from_array(ARRAY))
    assert picture.notices == (
        "2 text chunks were skipped, because they are too large or can't be inflated.",
        "The ICC profile was ignored, because it can't be used: it has more than 16,777,216 bytes.",
    )


def test_small_text_is_no_notice() -> None:
    exif = Image.Exif()
    exif[274] = 6
    hexed = exif.tobytes().hex()
    profile = f"\nexif\n{len(hexed) // 2:>8}\n{hexed}\n".encode()
    picture = read_picture(
        png(ARRAY, (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)), (b"tEXt", b"a\0b"))
    )
    assert picture.size == (40, 30)
    assert picture.notices == ()


@pytest.mark.parametrize("packed", [b"no zlib at all", PACKED[: len(PACKED) // 20]])
def test_damaged_text_hides_nothing(packed: bytes) -> None:
    picture = read_picture(png(ARRAY, (b"zTXt", b"a\0\0" + packed), (b"iTXt", b"a\0\1\0\0\0" + packed)))
    assert torch.equal(picture.pixels, from_array(ARRAY))


# Profiles


def padded_profile(size: int) -> bytes:
    """sRGB with red and green exchanged, and zeros after it, which its header counts."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", profile, 128)[0]
    for i in range(count):
        name = bytes(profile[132 + 12 * i : 136 + 12 * i])
        profile[132 + 12 * i : 136 + 12 * i] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(name, name)
    profile += np.random.default_rng(0).bytes(size - len(profile))
    struct.pack_into(">I", profile, 0, len(profile))
    return bytes(profile)


def test_a_large_profile_is_used() -> None:
    profile = padded_profile(2_000_000)
    picture = read_picture(png(ARRAY, (b"iCCP", b"large\0\0" + zlib.compress(profile))))
    assert torch.allclose(picture.pixels, from_array(ARRAY[..., [1, 0, 2]]), atol=1.1 / 127.5)
    assert len(picture.notices) == 1
    assert picture.notices[0].endswith("was converted to sRGB.")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"zeros\0\0" + zlib.compress(bytes(2_000_000)), ""),
        (b"name\0\0" + b"no zlib at all", "it is damaged"),
        (b"name\0\5" + zlib.compress(bytes(100)), "its compression is unknown"),
        (b"name", "its compression is unknown"),
        (b"huge\0\0" + zlib.compress(bytes(2**24 + 1)), "it has more than 16,777,216 bytes"),
    ],
)
def test_an_impossible_profile_is_told(body: bytes, reason: str) -> None:
    picture = read_picture(png(ARRAY, (b"iCCP", body)))
    assert torch.equal(picture.pixels, from_array(ARRAY))
    assert len(picture.notices) == 1
    assert picture.notices[0].startswith(f"The ICC profile was ignored, because it can't be used: {reason}")


# Others


def test_large_exif() -> None:
    exif = Image.Exif()
    exif[274] = 6
    exif[0x9286] = "x" * 3_000_000
    picture = read_picture(png(ARRAY, (b"eXIf", exif.tobytes()[6:])))
    assert picture.size == (40, 30)
    assert picture.notices == ()


def test_an_animation_with_large_text() -> None:
    frames = [Image.fromarray(ARRAY), Image.new("RGB", (40, 30))]
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", TEXT.decode(), zip=True)
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], pnginfo=info)
    picture = read_picture(file.getvalue())
    assert torch.equal(picture.pixels, from_array(ARRAY))
    assert picture.notices == (SKIPPED, "Only frame 1 of 2 was used.")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_kind_of_png_with_large_text(dtype: Any) -> None:
    if dtype == np.uint16:
        pytest.importorskip("imagecodecs")
    top = np.iinfo(dtype).max
    for channels in (1, 2, 3, 4):
        array = np.random.default_rng(0).integers(0, top, (5, 6, channels), endpoint=True).astype(dtype)
        array = array[..., 0] if channels == 1 else array
        plain = read_picture(png(array), alpha="keep")
        picture = read_picture(png(array, *LARGE["zTXt"], *LARGE["XMP"]), alpha="keep")
        assert torch.equal(picture.pixels, plain.pixels)
        assert (picture.alpha is None) == (plain.alpha is None)
        assert picture.notices[1:] == plain.notices


def test_the_limits_are_left_as_they_are_by_threads() -> None:
    before = (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    data = png(ARRAY, *LARGE["zTXt"])
    start = threading.Barrier(4)

    def read(_: int) -> bool:
        start.wait(timeout=10)
        return all(torch.equal(read_picture(data).pixels, from_array(ARRAY)) for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_a_large_text_in_a_file_cut_off() -> None:
    data = png(ARRAY, *LARGE["zTXt"])
    for length in (40, 100, len(data) - 3000, len(data) - 30):
        with pytest.raises(PictureError, match="cut off"):
            read_picture(data[:length])


def test_a_file_is_read_like_its_bytes(tmp_path: Any) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png(ARRAY, *LARGE["zTXt"], after=LARGE["iTXt"]))
    assert torch.equal(read_picture(path).pixels, from_array(ARRAY))


def test_a_damaged_chunk_is_still_damage() -> None:
    whole = png(ARRAY, *LARGE["zTXt"])
    at = whole.index(b"IDAT") + 20
    with pytest.raises(PictureError, match="is damaged or cut off"):
        read_picture(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    assert chunk(b"IEND", b"") == whole[-12:]
