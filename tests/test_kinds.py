"""Kinds of files: which are pictures of a folder, and what those are called that can't be read."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image
from support import one_sentence

from calotype.errors import PictureError, UsageError
from calotype.pixels import kinds, plugins, read_picture
from calotype.pixels.kinds import Listing
from calotype.sources import LeftOut, open_source

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))


def encoded(format_: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    PHOTO.convert(mode).save(file, format_, **options)
    return file.getvalue()


def box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def ftyp(major: bytes, *others: bytes) -> bytes:
    return box(b"ftyp", major + bytes(4) + b"".join(others)) + bytes(200)


TIFF = b"II*\0\x08\0\0\0" + bytes(100)

# what is left out by its name, or refused by its first bytes: suffix, content, words of the message
UNREAD: dict[str, tuple[str, bytes, str]] = {
    "dng": (".dng", TIFF, "camera raw"),
    "nef": (".nef", TIFF, "camera raw"),
    "arw": (".arw", TIFF, "camera raw"),
    "orf": (".orf", b"IIRO\x08\0\0\0" + bytes(100), "camera raw"),
    "rw2": (".rw2", b"IIU\0\x18\0\0\0" + bytes(100), "camera raw"),
    "raf": (".raf", b"FUJIFILMCCD-RAW 0201" + bytes(100), "camera raw"),
    "cr2": (".cr2", b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "camera raw"),
    "cr3": (".cr3", ftyp(b"crx ", b"crx ", b"isom"), "camera raw"),
    "x3f": (".x3f", b"FOVb" + bytes(100), "camera raw"),
    "svg": (".svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "xml svg": (".svg", b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a -->\n<svg/>', "SVG"),
    "pdf": (".pdf", b"%PDF-1.7\n", "PDF"),
    "eps": (".eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
    "dos eps": (".eps", b"\xc5\xd0\xd3\xc6" + bytes(60), "PostScript"),
    "wmf": (".wmf", b"\xd7\xcd\xc6\x9a" + bytes(60), "metafile"),
    "emf": (".emf", b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(60), "metafile"),
    "exr": (".exr", b"v/1\1\2\0\0\0" + bytes(60), "OpenEXR"),
    "hdr": (".hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "Radiance"),
    "psb": (".psb", b"8BPS\0\2" + bytes(60), "PSB"),
    "xcf": (".xcf", b"gimp xcf v011\0" + bytes(60), "layers"),
    "jxr": (".jxr", b"II\xbc\1" + bytes(60), "JPEG XR"),
    "djvu": (".djvu", b"AT&TFORM\0\0\0\0DJVU", "DjVu"),
    "dicom": (".dcm", bytes(128) + b"DICM" + bytes(60), "DICOM"),
    "bpg": (".bpg", b"BPG\xfb" + bytes(60), "BPG"),
    "mp4": (".mp4", ftyp(b"isom", b"mp42"), "video"),
    "mov": (".mov", ftyp(b"qt  "), "video"),
    "webm": (".webm", b"\x1aE\xdf\xa3" + bytes(60), "video"),
    "avi": (".avi", b"RIFF\0\0\0\0AVI LIST" + bytes(60), "video"),
    "mpeg": (".mpg", b"\0\0\1\xb3" + bytes(60), "video"),
}


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where they are not installed."""
    for name in plugins.PLUGINS:
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    first = plugins.importlib.import_module

    def missing(name: str, *rest: object) -> object:
        if name in ("pillow_heif", "pillow_jxl"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return first(name)

    monkeypatch.setattr(plugins.importlib, "import_module", missing)
    yield


# By name


def test_what_pillow_decodes_is_taken() -> None:
    """Every suffix that Pillow can write a picture to which it reads again, but for programs and data."""
    Image.init()
    found = kinds.suffixes()
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".avif", ".tif", ".tiff", ".bmp"} <= found
    assert {".jp2", ".j2k", ".ppm", ".pgm", ".tga", ".ico", ".psd", ".qoi", ".dds", ".mpo", ".apng"} <= found
    assert not found & {
        ".eps",
        ".ps",
        ".wmf",
        ".emf",
        ".pdf",
        ".mpg",
        ".mpeg",
        ".h5",
        ".hdf",
        ".grib",
        ".bufr",
        ".fits",
    }
    forms = {name for suffix, name in Image.registered_extensions().items() if suffix in found}
    assert forms <= set(Image.OPEN) | {"MPO"}
    assert not forms & kinds.REFUSED_FORMATS


@pytest.mark.parametrize("suffix", sorted(kinds.suffixes()))
def test_a_folder_takes_what_is_read_alone(suffix: str, tmp_path: Path) -> None:
    """Wherever Pillow can also write it: the file is in the listing, and its picture is read."""
    format_ = Image.registered_extensions().get(suffix, "JPEG")
    if format_ not in Image.SAVE:
        pytest.skip(f"Pillow does not write {format_}")
    mode = {"MSP": "1", "XBM": "1", "BLP": "P", "FTEX": "RGB"}.get(format_, "P" if suffix == ".gif" else "RGB")
    mode = {".pbm": "1", ".pgm": "L", ".pfm": "F"}.get(suffix, mode)
    image = PHOTO.convert(mode)
    if mode == "F":
        image = image.point(lambda level: level / 255)
    image.save(tmp_path / f"a{suffix.upper()}", format_)
    pictures = open_source(tmp_path)
    assert (pictures.names, len(pictures.left_out)) == ([f"a{suffix.upper()}"], 0)
    read = pictures.read(0)
    assert read.shape[2] == 3
    if format_ not in ("ICO", "ICNS"):  # which are square
        assert (read.shape[:2], pictures.side(0)) == ((24, 32), 24)


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_counted_and_named(name: str, tmp_path: Path) -> None:
    suffix, content, words = UNREAD[name]
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    for number in range(2):
        (tmp_path / f"{number}{suffix.upper()}").write_bytes(content)
    pictures = open_source(tmp_path)
    assert pictures.names == ["a.png"]
    assert len(pictures.left_out) == 2
    assert pictures.left_out.sentence.startswith(f"2 files were left out: 2 {suffix} (")
    assert words in pictures.left_out.sentence
    one_sentence(pictures.left_out.sentence)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UsageError) as caught:
        open_source(tmp_path)
    assert f"no picture in it that can be read, but 2 {suffix} (" in str(caught.value)
    one_sentence(str(caught.value))


@pytest.mark.parametrize("name", UNREAD)
def test_one_alone_is_called_by_name(name: str, tmp_path: Path) -> None:
    """By its bytes whatever its suffix, but for raw files, which are TIFF, by both."""
    suffix, content, words = UNREAD[name]
    for file in (f"a{suffix}", "a", "a.jpg"):
        if content == TIFF and file != f"a{suffix}":
            continue
        (tmp_path / file).write_bytes(content)
        with pytest.raises(PictureError) as caught:
            read_picture(tmp_path / file)
        said = str(caught.value).removeprefix(str(tmp_path / file))
        assert words in said
        assert "; " in said, "what to do"
        one_sentence(said)


@pytest.mark.parametrize("suffix", [".dng", ".heic", ".mov", ".pdf", ".exr"])
def test_a_picture_with_the_suffix_of_another_kind_is_read(suffix: str, tmp_path: Path) -> None:
    for format_ in ("JPEG", "PNG"):
        (tmp_path / f"a{suffix}").write_bytes(encoded(format_))
        assert read_picture(tmp_path / f"a{suffix}").size == (24, 32)


def test_other_files_are_silent(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    for name in (
        "a.txt",
        "a.json",
        "labels.jsonl",
        "Thumbs.db",
        ".DS_Store",
        "LICENSE",
        "a.npy",
        "a.xyz",
        "a.h5",
        "a.grib",
    ):
        (tmp_path / name).write_bytes(b"GRIB" if name == "a.grib" else b"some text")
    (tmp_path / "._b.heic").write_bytes(ftyp(b"heic"))
    (tmp_path / "empty").touch()
    pictures = open_source(tmp_path)
    assert (pictures.names, pictures.left_out.sentence) == (["a.png"], "")


def test_names_that_do_not_tell(tmp_path: Path) -> None:
    """Without a suffix the first bytes do; with a strange one they are told of."""
    for name, content in {
        "0123abcd": encoded("JPEG"), "again": encoded("PNG"), "film": ftyp(b"isom"), "b.jpg_large": encoded("JPEG"),
        "c.png~": encoded("PNG"), "d.rgb": encoded("SGI"), "e.jpg": encoded("PNG"), "f.PNG": encoded("WEBP"),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    pictures = open_source(tmp_path)
    assert pictures.names == ["0123abcd", "again", "e.jpg", "f.PNG"]
    assert [pictures.read(i).shape for i in range(4)] == [(24, 32, 3)] * 4
    assert pictures.left_out.to_dict() == [
        {"suffix": "", "count": 1, "why": "a video"},
        {"suffix": ".jpg_large", "count": 1, "why": "JPEG by the content, not by the name"},
        {"suffix": ".png~", "count": 1, "why": "PNG by the content, not by the name"},
        {"suffix": ".rgb", "count": 1, "why": "SGI by the content, not by the name"},
    ]


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    import os

    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no pipes in folders here")
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    assert open_source(tmp_path).names == ["a.png"]


@pytest.mark.parametrize("kind", ["zip", "tar", "folder of tars"])
def test_archives_are_as_folders(kind: str, tmp_path: Path) -> None:
    members = {
        "a.jfif": encoded("JPEG"), "b.ppm": encoded("PPM"), "bare": encoded("GIF", "P"), "c.mov": ftyp(b"qt  "),
        "d.cr3": ftyp(b"crx "), "e.txt": b"words", "f.large": encoded("JPEG"), "__MACOSX/._a.jfif": b"x",
    }  # fmt: skip
    path = tmp_path / ("a.zip" if kind == "zip" else "a.tar")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as shard:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    pictures = open_source(tmp_path if kind == "folder of tars" else path)
    assert pictures.names == ["a.jfif", "b.ppm", "bare"]
    assert [pictures.read(i).shape for i in range(3)] == [(24, 32, 3)] * 3
    assert str(pictures.left_out) == (
        "1 .cr3 (a camera raw file), 1 .large (JPEG by the content, not by the name), 1 .mov (a video)"
    )


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for suffix in (".gif", ".png", ".webp", ".avif", ".tif"):
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    pictures = open_source(tmp_path)
    assert len(pictures) == 5
    for i in range(5):
        assert np.abs(pictures.read(i).reshape(-1, 3).mean(0) - (255, 0, 0)).max() < 4


def test_what_is_left_out_as_words() -> None:
    assert not LeftOut()
    assert LeftOut().sentence == ""
    many = LeftOut({(".heic", "pip install x"): 1200, ("", "a video"): 1})
    assert many.sentence == "1,201 files were left out: 1,200 .heic (pip install x), 1 without a suffix (a video)."
    assert LeftOut({(".mov", "a video"): 1}).sentence == "1 file was left out: 1 .mov (a video)."


# Plugins that are not there


@pytest.mark.usefixtures("no_plugins")
def test_without_plugins_the_packages_are_named(tmp_path: Path) -> None:
    for name, content in {"a.heic": ftyp(b"heic", b"mif1"), "b.JXL": b"\xff\x0a" + bytes(50)}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        open_source(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: there is no picture in it that can be read, but 1 .heic (pip install pillow-heif), 1 .jxl "
        f"(pip install pillow-jxl-plugin)."
    )
    with pytest.raises(PictureError) as heic:
        read_picture(tmp_path / "a.heic")
    assert str(heic.value).endswith("is HEIC (HEIF), which needs the package pillow-heif; pip install pillow-heif.")
    for content in (b"\xff\x0a" + bytes(50), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50)):
        (tmp_path / "c.jpg").write_bytes(content)  # by the bytes, whatever the name
        with pytest.raises(PictureError, match=r"is JPEG XL, which needs the package pillow-jxl-plugin"):
            read_picture(tmp_path / "c.jpg")
    (tmp_path / "d.jpg").write_bytes(ftyp(b"mif1", b"mif1", b"heic"))
    with pytest.raises(PictureError, match=r"is HEIC \(HEIF\)"):
        read_picture(tmp_path / "d.jpg")


def test_a_broken_plugin_is_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)

    def broken(name: str) -> None:
        raise OSError("libheif.so.1: cannot open shared object file\nno such file.")

    monkeypatch.setattr(plugins.importlib, "import_module", broken)
    why = "pillow-heif is installed, but can't be loaded (libheif.so.1: cannot open shared object file no such file); "
    assert plugins.lacking("HEIF") == f"{why}install it again"
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "b.heic").write_bytes(ftyp(b"heic"))
    assert read_picture(tmp_path / "a.png").size == (24, 32)
    assert why in open_source(tmp_path).left_out.sentence
    with pytest.raises(PictureError) as caught:
        read_picture(tmp_path / "b.heic")
    one_sentence(str(caught.value))
    assert ".heic" not in Listing()._read


def test_a_listing_asks_each_suffix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing()
    monkeypatch.setattr(kinds, "lacking", lambda name: pytest.fail("asked again"))
    for name in ("a.png", "b.PNG", "c.txt", "d.mov"):
        listing.of_name(PurePosixPath(name))
    assert listing.of_name(PurePosixPath("e.png")).picture
