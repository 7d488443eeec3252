"""Pictures written row by row: the pixels of pictures written whole, in little memory, and whole or not at all."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image, features
from skimage import data as skimage_data, io as skimage_io
from support import names, one_sentence, pictures, room
from torch import Tensor

from calotype import rows as module
from calotype.errors import NonFiniteError, PictureError, UsageError
from calotype.pixels import from_array, write_picture
from calotype.rows import require_rows_writable, write_rows

data: Any = skimage_data  # scikit-image is not typed
imread: Any = skimage_io.imread
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def stripes(pixels: Tensor, *heights: int) -> Iterator[Tensor]:
    """Stripes of these heights, of which the last is repeated."""
    top, i = 0, 0
    while top < pixels.shape[1]:
        n = heights[min(i, len(heights) - 1)]
        yield pixels[:, top : top + n]
        top, i = top + n, i + 1


def written(path: Path, pixels: Tensor, *heights: int, alpha: Tensor | None = None) -> npt.NDArray[np.uint8]:
    """What Pillow reads after `write_rows`."""
    height, width = pixels.shape[1:]
    assert write_rows(path, stripes(pixels, *heights), width=width, height=height, alpha=alpha) == path
    with Image.open(path) as image:
        assert image.mode == ("RGB" if alpha is None else "RGBA")
        return np.array(image)


def whole(path: Path, pixels: Tensor, alpha: Tensor | None = None) -> npt.NDArray[np.uint8]:
    """What Pillow reads after `write_picture`."""
    with Image.open(write_picture(path, pixels, alpha=alpha)) as image:
        return np.array(image)


def noise(height: int, width: int) -> Tensor:
    """Beyond [-1, 1] too."""
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(height * width))


def chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """Of a PNG, their checksums checked."""
    content, at, found = path.read_bytes(), 8, []
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        body = content[at + 4 : at + 8 + length]
        assert struct.unpack_from(">I", content, at + 8 + length) == (zlib.crc32(body),)
        found.append((body[:4], body[4:]))
        at += 12 + length
    return found


def filters(path: Path) -> list[int]:
    """The filter of each line of a PNG in RGB."""
    parts = chunks(path)
    lines = zlib.decompress(b"".join(body for kind, body in parts if kind == b"IDAT"))
    return list(lines[:: 1 + 3 * struct.unpack_from(">I", parts[0][1])[0]])


# The same pixels


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".PNG", ".TIFF"])
@pytest.mark.parametrize("opaque", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 77), (63, 1), (2, 3), (45, 61), (128, 96)])
def test_the_pixels_are_those_of_a_picture_written_whole(
    tmp_path: Path, size: tuple[int, int], opaque: bool, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 1000)  # so that there are many
    pixels, alpha = noise(*size), None if opaque else torch.rand(*size)
    expected = whole(tmp_path / f"whole{suffix}", pixels, alpha)
    for heights in ((1,), (3, 1, 7, 2), (1000,)):
        assert np.array_equal(written(tmp_path / f"rows{suffix}", pixels, *heights, alpha=alpha), expected)
    if suffix != ".webp":
        assert np.array_equal(imread(tmp_path / f"rows{suffix}"), expected)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", pytest.param(".avif", marks=needs_avif)])
def test_formats_that_need_all_of_the_picture_give_the_same_file(tmp_path: Path, suffix: str) -> None:
    pixels = pictures(0, 1, 45, 61)[0]
    write_picture(tmp_path / f"whole{suffix}", pixels)
    write_rows(tmp_path / f"rows{suffix}", stripes(pixels, 7), width=61, height=45)
    assert (tmp_path / f"rows{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    pixels = noise(20, 31).to(dtype)
    assert np.array_equal(written(tmp_path / f"a{suffix}", pixels, 4), whole(tmp_path / f"b{suffix}", pixels))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("opaque", [True, False])
def test_levels_are_written_as_they_are(tmp_path: Path, suffix: str, opaque: bool) -> None:
    levels = torch.randint(0, 256, (4, 20, 31), dtype=torch.uint8)
    alpha = None if opaque else levels[3]
    expected = levels[: 3 if opaque else 4].permute(1, 2, 0).numpy()
    assert np.array_equal(written(tmp_path / f"out{suffix}", levels[:3], 3, alpha=alpha), expected)


def test_heights_do_not_show_in_the_file(tmp_path: Path) -> None:
    pixels = pictures(0, 1, 300, 401)[0]
    for suffix in (".png", ".tif"):
        files = [tmp_path / f"{n}{suffix}" for n in (1, 128, 300)]
        for file, n in zip(files, (1, 128, 300), strict=True):
            written(file, pixels, n)
        assert len({file.read_bytes() for file in files}) == 1


# PNG


def test_png_is_made_of_what_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 2**14)
    written(tmp_path / "out.png", noise(200, 300), 10)
    parts = chunks(tmp_path / "out.png")
    kinds = [kind for kind, _ in parts]
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    assert set(kinds[1:-1]) == {b"IDAT"}
    assert len(kinds) > 5
    assert parts[0][1] == struct.pack(">IIBBBBB", 300, 200, 8, 2, 0, 0, 0)
    assert set(filters(tmp_path / "out.png")) <= set(range(5))


def test_png_filters_lines_by_what_is_in_them(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    line = generator.integers(0, 256, (1, 200, 3), dtype=np.uint8)
    ramp = (np.arange(200, dtype=np.uint8) * np.ones((1, 3, 1), np.uint8)).transpose(0, 2, 1)
    flat = np.full((1, 200, 3), 90, np.uint8)
    few = np.zeros((1, 200, 3), np.uint8)
    few[0, ::9] = 1
    # a plane that rises along both axes and is rough along the one: what Paeth was made for
    steps = (generator.integers(0, 40, 200).cumsum() % 200).astype(np.uint8)[None, :, None].repeat(3, 2)
    picture = np.concatenate([few, line, line, ramp, flat, steps, steps + 9])
    path = tmp_path / "out.png"
    assert np.array_equal(written(path, from_array(picture), 3), picture)
    none, _, up, sub, _, _, rising = filters(path)
    assert (none, up, sub, rising) == (0, 2, 1, 4)


def test_every_filter_is_used_and_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = data.astronaut()
    path = tmp_path / "out.png"
    assert np.array_equal(written(path, from_array(photo), 50), photo)
    used = filters(path)
    assert {1, 2, 3, 4} <= set(used)
    # A line knows the one above it in another block too.
    monkeypatch.setattr(module, "_BLOCK", 1)
    assert np.array_equal(written(path, from_array(photo), 50), photo)
    assert filters(path) == used


def test_files_are_about_as_large_as_pillows(tmp_path: Path) -> None:
    for suffix in (".png", ".tif"):
        pixels = from_array(data.astronaut())
        written(tmp_path / f"rows{suffix}", pixels, 32)
        whole(tmp_path / f"whole{suffix}", pixels)
        sizes = [(tmp_path / f"{name}{suffix}").stat().st_size for name in ("rows", "whole")]
        assert sizes[0] < 1.1 * sizes[1]


# TIFF


@pytest.mark.parametrize("size", [(1, 1), (6, 5), (400, 301)])
@pytest.mark.parametrize("opaque", [True, False])
@pytest.mark.parametrize("big", [False, True])
def test_tiff(tmp_path: Path, size: tuple[int, int], opaque: bool, big: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if big:
        monkeypatch.setattr(module, "_CLASSIC_TIFF", 0)
    pixels, alpha = noise(*size), None if opaque else torch.rand(*size)
    expected = whole(tmp_path / "whole.tif", pixels, alpha)
    path = tmp_path / "rows.tif"
    assert np.array_equal(written(path, pixels, 3, alpha=alpha), expected)
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff is big
        (page,) = file.pages
        assert isinstance(page, tifffile.TiffPage)
        assert np.array_equal(page.asarray(), expected)
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert page.predictor == tifffile.PREDICTOR.HORIZONTAL
        assert page.extrasamples == (() if opaque else (tifffile.EXTRASAMPLE.UNASSALPHA,))
        assert len(page.dataoffsets) == -(-size[0] // page.rowsperstrip)


def test_tiff_is_big_where_its_offsets_need_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(100, 100)
    path = tmp_path / "out.tif"
    written(path, pixels, 10)
    monkeypatch.setattr(module, "_CLASSIC_TIFF", path.stat().st_size - 1)
    written(path, pixels, 10)
    assert path.read_bytes()[:4] == b"II\x2b\0"
    monkeypatch.setattr(module, "_CLASSIC_TIFF", path.stat().st_size + 2000)
    written(path, pixels, 10)
    assert path.read_bytes()[:4] == b"II\x2a\0"


# Memory


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_the_picture_is_never_held(tmp_path: Path, suffix: str) -> None:
    """50 MB as 8 bits, 200 MB as floats."""
    code = """
import re, sys, torch
from pathlib import Path
from calotype.rows import write_rows

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

width, height = 16384, 1024
noise = torch.rand(3, 16, width) * 2 - 1
write_rows(sys.argv[1], [noise], width=width, height=16)
before = peak()
write_rows(sys.argv[1], (noise.roll(top, 2) for top in range(0, height, 16)), width=width, height=height)
print(peak() - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / f"out{suffix}")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert float(run.stdout) < 30.0
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.size == (16384, 1024)


# Errors


def failing(error: BaseException) -> Iterator[Tensor]:
    yield torch.zeros(3, 4, 6)
    raise error


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("boom"), OSError("of the rows"), PictureError("of the rows.")]
)
def test_interrupted(tmp_path: Path, suffix: str, error: BaseException) -> None:
    path = tmp_path / f"out{suffix}"
    with pytest.raises(type(error)) as caught:
        write_rows(path, failing(error), width=6, height=8)
    assert caught.value is error
    assert not names(tmp_path)
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write_rows(path, failing(error), width=6, height=8)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ([4, 3], "only 7 rows came, and its height is 8"),
        ([], "only 0 rows came"),
        ([4, 4, 1], "more rows came than its height of 8"),
        ([9], "more rows came"),
    ],
)
def test_another_number_of_rows(tmp_path: Path, suffix: str, heights: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        write_rows(tmp_path / f"out{suffix}", (torch.zeros(3, n, 6) for n in heights), width=6, height=8)
    one_sentence(str(caught.value))
    assert not names(tmp_path)


@pytest.mark.parametrize("shape", [(3, 8, 5), (4, 8, 6), (8, 6), (1, 3, 8, 6)])
def test_rows_of_another_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=re.escape(f"its rows must be [3, n, 6], not {list(shape)}.")):
        write_rows(tmp_path / "out.png", [torch.zeros(shape)], width=6, height=8)
    assert not names(tmp_path)


def test_rows_that_are_neither_floats_nor_levels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be floats"):
        write_rows(tmp_path / "out.png", [torch.zeros(3, 8, 6, dtype=torch.int16)], width=6, height=8)
    assert not names(tmp_path)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_alpha_of_another_kind_than_the_rows(tmp_path: Path, dtype: torch.dtype) -> None:
    other = torch.float32 if dtype == torch.uint8 else torch.uint8
    with pytest.raises(UsageError, match=r"alpha must be (uint8|floats .*), like the pixels, not torch\.") as caught:
        write_rows(
            tmp_path / "out.png",
            [torch.zeros(3, 8, 6, dtype=dtype)],
            width=6,
            height=8,
            alpha=torch.ones(8, 6).to(other),
        )
    one_sentence(str(caught.value))
    assert not names(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("where", ["pixels", "alpha"])
def test_what_is_not_finite(tmp_path: Path, suffix: str, where: str) -> None:
    pixels, alpha = torch.zeros(3, 8, 6), torch.ones(8, 6)
    (pixels if where == "pixels" else alpha)[..., 5, 2] = float("nan")
    with pytest.raises(NonFiniteError, match=where):
        write_rows(tmp_path / f"out{suffix}", stripes(pixels, 2), width=6, height=8, alpha=alpha)
    assert not names(tmp_path)


def test_alpha_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"its alpha must be \[8, 6\], not \[6, 8\]"):
        write_rows(tmp_path / "out.png", [torch.zeros(3, 8, 6)], width=6, height=8, alpha=torch.ones(6, 8))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
def test_a_full_disk(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    with room(50), pytest.raises(PictureError, match=r"out\.\w+ can't be written: File too large; ") as caught:
        write_rows(path, [pictures(0, 1, 8, 6)[0]], width=6, height=8)
    one_sentence(str(caught.value))
    assert not names(tmp_path)


def test_a_missing_folder(tmp_path: Path) -> None:
    rows = iter([torch.zeros(3, 8, 6)])
    with pytest.raises(UsageError, match="there is no folder"):
        write_rows(tmp_path / "missing" / "out.png", rows, width=6, height=8)
    assert next(rows) is not None, "rows were computed in vain"


@pytest.mark.parametrize(
    ("name", "width", "height", "message"),
    [
        ("a.jpg", 65501, 1, "JPEG holds at most 65500 pixels a side, and this is 65501 x 1; use .png or .tif."),
        ("a.jpeg", 1, 65501, "JPEG holds at most 65500 pixels a side"),
        ("a.webp", 16384, 1, "WebP holds at most 16383 pixels a side"),
        ("a.avif", 1, 32769, "AVIF holds at most 32768 pixels a side"),
        ("a.avif", 16385, 16384, "AVIF holds at most 268,435,456 pixels"),
        ("a.png", 2**31, 1, "PNG holds at most 2147483647 pixels a side, and this is 2147483648 x 1; use .tif."),
        ("a.tif", 1, 2**32, "TIFF holds at most 4294967295 pixels a side, .*; cut it into parts."),
        ("a.png", 0, 5, "a picture has at least 1 x 1 pixels, not 0 x 5."),
        ("a.xyz", 5, 5, "'.xyz' is no known format"),
    ],
)
def test_too_large_for_its_format(tmp_path: Path, name: str, width: int, height: int, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        require_rows_writable(tmp_path / name, width, height)
    one_sentence(str(caught.value))
    rows = iter([torch.zeros(3, 1, 1)])
    with pytest.raises(UsageError, match=message):
        write_rows(tmp_path / name, rows, width=width, height=height)
    assert next(rows) is not None, "rows were computed in vain"
    assert not names(tmp_path)


@pytest.mark.parametrize(("name", "side"), [("a.jpg", 65500), ("a.webp", 16383), ("a.png", 70000), ("a.tif", 70000)])
def test_the_largest_are_written(tmp_path: Path, name: str, side: int) -> None:
    for size in ((1, side), (side, 1)):
        require_rows_writable(tmp_path / name, *size)
        assert written(tmp_path / name, torch.zeros(3, *size), 5000).shape[:2] == size


def test_jpeg_has_no_alpha(tmp_path: Path) -> None:
    require_rows_writable(tmp_path / "a.png", 5, 5, alpha=True)
    with pytest.raises(UsageError, match=r"JPEG has no alpha; use \.png or \.tif, or drop the alpha\."):
        require_rows_writable(tmp_path / "a.jpg", 5, 5, alpha=True)
