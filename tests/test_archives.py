"""Zips and tars that are damaged, or claim more than they hold: a sentence that names the member, and no memory."""

from __future__ import annotations

import io
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import one_sentence

from calotype import archives
from calotype.errors import PictureError, UsageError
from calotype.sources import Stored, open_source

LEVELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def encoded(format_: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(LEVELS).save(file, format_)
    return file.getvalue()


def zip_of(path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def refused(source: Stored, i: int) -> str:
    """What is said when a picture is read, which is the same when its side is."""
    with pytest.raises(PictureError) as reading:
        source.read(i)
    with pytest.raises(PictureError) as looking:
        source.side(i)
    one_sentence(str(reading.value))
    assert str(reading.value) == str(looking.value)
    return str(reading.value)


def with_size(path: Path, size: int) -> Path:
    """A zip of one member whose headers claim another size, unpacked."""
    content = bytearray(path.read_bytes())
    for at in (content.index(b"PK\3\4") + 22, content.index(b"PK\1\2") + 24):
        struct.pack_into("<I", content, at, size)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_that_claims_more_than_its_bytes_can_become(packing: int, tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"a.png": encoded()}, packing)
    packed = zipfile.ZipFile(path).infolist()[0].compress_size
    message = refused(open_source(with_size(path, 300_000_000)), 0)
    assert message == (
        f"{path}: a.png: it claims 300,000,000 bytes, but there are only {packed:,} to unpack; make or download the "
        "zip again."
    )


@pytest.mark.parametrize(("more", "reason"), [(1, "it claims"), (-1, "Bad CRC-32 for file 'a.png'.")])
def test_a_member_of_another_size_than_it_claims(more: int, reason: str, tmp_path: Path) -> None:
    content = encoded()
    path = with_size(zip_of(tmp_path / "a.zip", {"a.png": content}), len(content) + more)
    assert reason in refused(open_source(path), 0)


def test_a_member_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_of(tmp_path / "a.zip", {"a.png": encoded() + bytes(2**24), "b.png": encoded()})
    assert path.stat().st_size < 2**17
    source = open_source(path)
    assert np.array_equal(source.read(0), LEVELS)
    monkeypatch.setattr(archives, "MOST", 2**20)
    tracemalloc.start()
    try:
        message = refused(source, 0)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert "bytes, and of a zip at most 1,048,576 are unpacked into memory; unpack the zip, and give the" in message
    assert np.array_equal(source.read(1), LEVELS)


def test_what_is_unpacked_at_most_leaves_room() -> None:
    assert archives.MOST == 2**29


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("format_", ["BMP", "PNG"])
def test_damage_anywhere_in_a_member_is_found(packing: int, format_: str, tmp_path: Path) -> None:
    """Formats without checksums too: the zip has one."""
    path = zip_of(tmp_path / "a.zip", {"a.bmp": encoded(format_)}, packing)
    content = path.read_bytes()
    start, end = content.index(b"a.bmp") + 5, content.index(b"PK\1\2")
    for at in range(start, end, 7):
        damaged = bytearray(content)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        source = open_source(path)
        try:
            levels = source.read(0)
        except PictureError:
            assert refused(source, 0).startswith(f"{path}: a.bmp: ")
        else:
            assert packing == zipfile.ZIP_LZMA  # whose version and dictionary's size change nothing
            assert np.array_equal(levels, LEVELS)


def test_a_name_that_would_break_the_line(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"a\nb.png": b"no picture"})
    assert refused(open_source(path), 0).startswith(f"{path}: a\\nb.png: ")


def test_a_member_without_a_name(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"x": encoded(), "b.png": encoded()})
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\1\2")
    struct.pack_into("<HH", content, at + 28, 0, 1)  # its name is an extra field instead
    path.write_bytes(content)
    assert open_source(path).names == ["b.png"]


def test_pictures_in_tars_are_read_where_they_lie(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {"a.bmp": encoded("BMP") + bytes(2**24), "b.tif": encoded("TIFF")})
    source = open_source(path)
    tracemalloc.start()
    try:
        assert np.array_equal(source.read(0), LEVELS)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert np.array_equal(source.read(1), LEVELS)
    assert source.side(1) == 20


def test_a_tar_whose_last_member_claims_too_much(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {"a.png": encoded(), "b.png": encoded()})
    changed_header(path, "b.png", b"%011o\0" % (2**30))
    with pytest.raises(UsageError, match=r"this tar is damaged \(.*\); make or download it again\.$"):
        open_source(path)


def test_a_tar_with_a_size_below_zero(tmp_path: Path) -> None:
    """Which leads back to a member that was there before."""
    path = tar_of(tmp_path / "a.tar", {"a.png": encoded(), "b.png": encoded()})
    changed_header(path, "b.png", (-1024).to_bytes(12, "big", signed=True))
    with pytest.raises(UsageError, match=r"this tar is damaged \(a header leads back to byte \d+\)"):
        open_source(path)


def changed_header(path: Path, name: str, size: bytes) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(name.encode())
    content[at + 124 : at + 136] = size
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    path.write_bytes(content)
