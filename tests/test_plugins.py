"""HEIC and JPEG XL, read through Pillow's plugins as every other picture is."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms
from support import one_sentence

from calotype.errors import PictureError
from calotype.pixels import jxl, opening, picture_size, read_picture, read_picture_rows
from calotype.pixels.light import encoded
from calotype.pixels.plugins import PLUGINS, lacking
from calotype.sources import open_source

for name in PLUGINS:
    if why := lacking(name):
        pytest.skip(f"{PLUGINS[name].title}: {why}", allow_module_level=True)

pillow_heif: Any = importlib.import_module("pillow_heif")


def ramp(width: int = 60, height: int = 40) -> np.ndarray:
    """Red grows to the right, green downwards: no two turns look alike."""
    levels = np.full((height, width, 3), 64, dtype=np.uint8)
    levels[..., 0] = np.linspace(0, 255, width)[None]
    levels[..., 1] = np.linspace(0, 255, height)[:, None]
    return levels


def saved(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **{**({"quality": -1} if format_ == "HEIF" else {"lossless": True}), **options})
    return file.getvalue()


def levels_of(content: bytes, **options: Any) -> np.ndarray:
    picture = read_picture(content, **options)
    return ((picture.pixels + 1) * 127.5).permute(1, 2, 0).numpy()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def upright(orientation: int) -> np.ndarray:
    """What is seen of `ramp` stored with this orientation."""
    file = io.BytesIO()
    Image.fromarray(ramp()).save(file, "PNG", exif=turned(orientation))
    return levels_of(file.getvalue())


@pytest.mark.parametrize(("format_", "near"), [("HEIF", 6), ("JXL", 0.01)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_pixels_and_alpha(format_: str, near: float, mode: str) -> None:
    image = Image.fromarray(ramp()).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(np.linspace(1, 255, 2400).astype(np.uint8).reshape(40, 60)))
    content = saved(image, format_)
    expected = np.asarray(image.convert("RGB"), dtype=np.float64)
    picture = read_picture(content, alpha="keep")
    assert np.abs(levels_of(content, alpha="keep") - expected).max() <= near
    if "A" in mode:
        assert picture.alpha is not None
        assert np.abs(picture.alpha.numpy() * 255 - np.asarray(image.getchannel("A"))).max() <= 1
    else:
        assert picture.alpha is None
    assert picture_size(io.BytesIO(content)) == (40, 60)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_turned_once(orientation: int) -> None:
    """By the decoder, which says in EXIF that nothing is left to be done."""
    content = saved(Image.fromarray(ramp()), "HEIF", exif=turned(orientation))
    expected = upright(orientation)
    read = levels_of(content)
    assert read.shape == expected.shape
    assert np.abs(read - expected).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_xl_is_turned_once(orientation: int) -> None:
    expected = upright(orientation)
    # by EXIF alone, as the plugin writes it
    content = saved(Image.fromarray(ramp()), "JXL", exif=turned(orientation))
    picture = read_picture(content)
    assert picture.size == expected.shape[:2]
    assert np.abs(levels_of(content) - expected).max() < 0.01
    said = ["The picture was turned by its EXIF data, of which JPEG XL's own header is silent."]
    assert list(picture.notices) == (said if orientation != 1 else [])


@pytest.mark.filterwarnings("ignore:Using JPEG reconstruction")
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_jpeg_inside_jpeg_xl_is_turned_once(orientation: int, tmp_path: Path) -> None:
    """As it was, and decoded anew where what it was has been thrown away: then the header says how it is turned."""
    Image.fromarray(ramp()).save(tmp_path / "a.jpg", quality=95, subsampling=0, exif=turned(orientation))
    expected = levels_of((tmp_path / "a.jpg").read_bytes())
    with Image.open(tmp_path / "a.jpg") as image:
        file = io.BytesIO()
        image.save(file, "JXL")
    content = file.getvalue()
    found = jxl.header(io.BytesIO(content))
    assert found is not None
    assert (found.width, found.height, found.orientation) == (60, 40, orientation)
    kept, at = b"", 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big") or len(content) - at
        if content[at + 4 : at + 8] != b"jbrd":
            kept += content[at : at + length]
        at += length
    for one in (content, kept):
        read = levels_of(one)
        assert read.shape == expected.shape
        assert np.abs(read - expected).max() <= 5


def test_a_profile_is_converted() -> None:
    """The same as of a PNG with it."""
    linear = _linear_rgb()
    image = Image.fromarray(ramp() // 2 + 80)
    png = io.BytesIO()
    image.save(png, "PNG", icc_profile=linear)
    content = saved(image, "HEIF", icc_profile=linear, chroma=444)
    assert any("ICC profile" in notice for notice in read_picture(content).notices)
    assert np.abs(levels_of(content) - levels_of(png.getvalue())).max() <= 6
    assert np.abs(levels_of(content) - np.asarray(image)).max() > 40


def _linear_rgb() -> bytes:
    """sRGB's profile, whose curves are lines instead."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(int.from_bytes(content[128:132], "big")):
        entry = 132 + 12 * i
        if content[entry : entry + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            at = int.from_bytes(content[entry + 4 : entry + 8], "big")
            assert content[at : at + 4] == b"para"
            content[at + 8 : at + 12] = bytes(4)  # gamma alone
            content[at + 12 : at + 16] = (1 << 16).to_bytes(4, "big")
    return bytes(content)


def test_ten_bits_of_heic_are_kept() -> None:
    deep = np.repeat(np.linspace(0, 1023, 60).round().astype(np.uint16)[None, :, None] << 6, 40, 0).repeat(3, 2)
    made = pillow_heif.from_bytes(mode="RGB;16", size=(60, 40), data=deep.tobytes())
    file = io.BytesIO()
    made.save(file, quality=-1, chroma=444, matrix_coefficients=0)
    picture = read_picture(file.getvalue())
    assert not [notice for notice in picture.notices if "8 bits" in notice]
    values = ((picture.pixels + 1) / 2 * 1023).numpy()
    assert np.abs(values - (deep >> 6).transpose(2, 0, 1)).max() <= 1.01
    assert len(np.unique(values.round(2))) > 50
    assert picture.pixels.max() == 1.0


def test_deep_grey_of_jpeg_xl() -> None:
    """The encoder says that what has more than 8 bits is linear light."""
    pytest.importorskip("imagecodecs")  # which applies profiles to more than 8 bits
    grey = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    floats = grey / np.float32(65535)
    expected = encoded(grey / 65535)
    for array, near in ((grey, 2 / 65535), (floats, 2 / 65535)):
        picture = read_picture(saved(Image.fromarray(array), "JXL"))
        assert any("was converted to sRGB" in notice for notice in picture.notices)
        assert np.abs((picture.pixels[0].numpy() + 1) / 2 - expected).max() < near


@pytest.mark.parametrize("there", [True, False])
def test_deep_colour_of_jpeg_xl(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept with imagecodecs, else 8 bits of linear light and a notice."""
    codecs = pytest.importorskip("imagecodecs")
    if not there:
        monkeypatch.setattr("calotype.pixels.deep.imagecodecs", lambda: None)
    deep = (ramp(64, 64).astype(np.uint16) << 8) + np.arange(64, dtype=np.uint16)[:, None, None]
    for depth, values in ((16, deep), (12, deep >> 4), (10, deep >> 6), (32, deep / np.float32(65535))):
        options = {"bitspersample": depth} if depth in (10, 12) else {}
        picture = read_picture(codecs.jpegxl_encode(values, lossless=True, **options))
        full = 1.0 if depth == 32 else 2.0**depth - 1.0
        expected = encoded(values / full).transpose(2, 0, 1)
        apart = np.abs((picture.pixels.numpy() + 1) / 2 - expected)
        # lcms interpolates the curve; 8 bits of linear light would be 0.05 apart where it is dark
        assert apart.max() < 0.0015 if there else apart[expected > 0.5].max() < 2 / 255
        notice = f"{depth}-bit {'floats were' if depth == 32 else 'colour was'} reduced to 8 bits, because its plugin"
        assert any(one.startswith(notice) for one in picture.notices) != there


@pytest.mark.parametrize("format_", ["HEIF", "JXL"])
def test_what_is_damaged_or_cut_off_is_called_by_name(format_: str) -> None:
    content = saved(Image.fromarray(ramp()), format_)
    for length in (40, len(content) // 2, len(content) - 3):
        with pytest.raises(PictureError) as caught:
            read_picture(content[:length])
        one_sentence(str(caught.value))
        if format_ == "JXL":
            assert str(caught.value) == "The picture is JPEG XL, but damaged or cut off; make or download it again."
    with pytest.raises(PictureError, match=r"HEIC \(HEIF\)|JPEG XL"):
        read_picture(content[:24] + bytes(40))


def test_the_header_of_jpeg_xl() -> None:
    for size in ((8, 8), (64, 64), (256, 8), (160, 120), (192, 108), (37, 99), (300, 20), (21, 700)):
        content = saved(Image.fromarray(ramp(*size)), "JXL", effort=1)
        assert jxl.header(io.BytesIO(content)) == jxl.Header(*size)
    exif = saved(Image.fromarray(ramp()), "JXL", exif=turned(6), use_container=True)
    assert exif.startswith(b"\0\0\0\x0cJXL ")
    assert jxl.header(io.BytesIO(exif)) == jxl.Header(60, 40)  # EXIF is beside it
    found = jxl.header(io.BytesIO(saved(Image.fromarray(np.zeros((8, 8), np.uint16)), "JXL")))
    assert (found.depth, found.floats) == (16, False)
    found = jxl.header(io.BytesIO(saved(Image.fromarray(np.zeros((8, 8), np.float32)), "JXL")))
    assert (found.depth, found.floats) == (32, True)
    for broken in (
        b"",
        b"\xff\x0a",
        b"\xff\x0a\0",
        b"\0\0\0\x0cJXL \r\n\x87\n",
        b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\2ftyp",
        b"PNG",
    ):
        assert jxl.header(io.BytesIO(broken)) is None


def test_jpeg_xl_that_claims_too_much_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_PIXELS", 2000)
    monkeypatch.setattr(opening, "identify", lambda file, name: pytest.fail("it was decoded"))
    with pytest.raises(PictureError, match="claims to have 60 x 40 pixels"):
        read_picture(saved(Image.fromarray(ramp()), "JXL"))


def test_a_folder_of_them(tmp_path: Path) -> None:
    image = Image.fromarray(ramp())
    for name, format_ in {"a.HEIC": "HEIF", "b.heif": "HEIF", "c.jxl": "JXL", "d.jpg": "HEIF", "e": "JXL"}.items():
        (tmp_path / name).write_bytes(saved(image, format_))
    pictures = open_source(tmp_path)
    assert (pictures.names, len(pictures.left_out)) == (["a.HEIC", "b.heif", "c.jxl", "d.jpg", "e"], 0)
    found: dict[int, np.ndarray] = {}

    def read(i: int) -> None:
        found[i] = pictures.read(i)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.abs(found[i].astype(int) - ramp()).max() <= 6 for i in range(5))
    assert [pictures.side(i) for i in range(5)] == [40] * 5


@pytest.mark.slow
def test_plugins_are_loaded_when_they_are_needed_and_by_one_thread(tmp_path: Path) -> None:
    """In a process of its own: here they are loaded already."""
    image = Image.fromarray(ramp())
    image.save(tmp_path / "a.png")
    for i in range(8):
        (tmp_path / f"{i}.x").write_bytes(saved(image, "HEIF" if i % 2 else "JXL"))
    code = """if True:
        import sys, threading
        from pathlib import Path
        from calotype.pixels import read_picture
        folder = Path(sys.argv[1])
        read_picture(folder / "a.png")
        assert not {"pillow_heif", "pillow_jxl"} & set(sys.modules)
        found, start = [], threading.Barrier(8)
        def read(i):
            start.wait()
            found.append(read_picture(folder / f"{i}.x").size)
        threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
        for one in threads: one.start()
        for one in threads: one.join()
        assert found == [(40, 60)] * 8, found
        from PIL import Image
        assert [Image.ID.count(name) for name in ("HEIF", "JXL")] == [1, 1]
    """
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_memory_as_of_other_pictures() -> None:
    """Eight bits stay eight bits."""
    for format_ in ("HEIF", "JXL"):
        assert read_picture_rows(saved(Image.fromarray(ramp()), format_)).levels.dtype == np.uint8
