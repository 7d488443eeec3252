"""Zips and tars of pictures, read as sources."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
from fuzzkit import Accepted, Case
from PIL import Image

from calotype.errors import PictureError
from calotype.sources import Array, open_source

HEIGHT, WIDTH = 20, 24
rng = np.random.default_rng(0)
PICTURES: list[Array] = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(5)]
WHOLE = {hashlib.sha256(picture.tobytes()).hexdigest() for picture in PICTURES}
NAMES = ("a.png", "folder/b.png", "c.bmp", "d", "e.tif")


def read(path: Path) -> Accepted:
    """All pictures; those of a zip and of PNG must be the whole ones, whatever was damaged."""
    return read_source(path, path)


def read_at_address(path: Path) -> Accepted:
    """The same, fetched part by part."""
    address = f"memory://fuzz{path.suffix}"
    fsspec.filesystem("memory").pipe(address, path.read_bytes())
    return read_source(path, address)


def read_source(path: Path, place: Path | str) -> Accepted:
    source = open_source(place)
    found, refused, pixels = [], 0, 0
    for i, name in enumerate(source.names):
        try:
            source.side(i)
            levels = source.read(i)
        except PictureError:
            refused += 1
            continue
        pixels = max(pixels, levels.shape[0] * levels.shape[1])
        digest = hashlib.sha256(levels.tobytes()).hexdigest()
        if path.suffix == ".zip":
            assert digest in WHOLE, f"other pixels in {name!r}"
        found.append(digest)
    if not found:
        raise PictureError(f"{path}: all {refused} pictures are damaged.")
    return Accepted(" ".join(found), 40 * pixels)


def content(picture: Array, name: str) -> bytes:
    file = io.BytesIO()
    format_ = {".bmp": "BMP", ".tif": "TIFF"}.get(Path(name).suffix, "PNG")
    Image.fromarray(picture).save(file, format_)
    return file.getvalue()


def cases(folder: Path) -> list[Case]:
    members = [(name, content(picture, name)) for name, picture in zip(NAMES, PICTURES, strict=True)]
    members.append(("notes.txt", b"none of them"))
    made = []
    for name, packing in (("stored", 0), ("deflated", 8), ("bzip2", 12), ("lzma", 14)):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", packing) as archive:
            for member, data in members:
                archive.writestr(zipfile.ZipInfo(member), data, packing)
        made.append(Case(f"{name}.zip", file.getvalue(), read))
    made.append(Case("address.zip", made[1].content, read_at_address))
    for name, format_ in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=format_) as tar:
            for member, data in members:
                info = tarfile.TarInfo(member if name == "ustar" else f"{'long/' * 30}{member}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        made.append(Case(f"{name}.tar", file.getvalue(), read))
    made.append(Case("address.tar", made[-1].content, read_at_address))
    return made
