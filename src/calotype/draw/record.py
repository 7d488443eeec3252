"""How a picture was made, kept in it: a text chunk of PNG with one JSON object.

The chunk is an iTXt (W3C "PNG Specification (Third Edition)" 11.3.3.4), UTF-8 and not compressed, with the keyword
"calotype".
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calotype import __version__
from calotype.errors import PictureError, UsageError
from calotype.texts import TextError, json_table, shown

KEYWORD = "calotype"

_START = b"\x89PNG\r\n\x1a\n"
_HEAD = KEYWORD.encode() + bytes(5)  # not compressed, of no language, with no translated keyword
_MOST = 2**20  # bytes of a record that is read


def digest(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's bytes; of a folder, of the names and sha256 of all files in it.

    Raises:
        OSError: if it can't be read.
    """
    path = Path(path)
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted((one.relative_to(path).as_posix(), one) for one in path.rglob("*") if one.is_file())
    return hashlib.sha256("".join(f"{digest(one)}  {name}\n" for name, one in files).encode()).hexdigest()


def origin(path: str | os.PathLike[str]) -> dict[str, str]:
    """A file as records name it: its name, without folders, and sha256."""
    return {"name": Path(path).name, "sha256": digest(path)}


def record(kind: str, values: Mapping[str, Any]) -> dict[str, str]:
    """What `pixels.write_picture` and `rows.write_rows` take as text.

    Args:
        kind: the command that made the picture.
        values: what it was made of, as JSON has it.
    """
    text = json.dumps({"calotype": __version__, "kind": kind, **values}, ensure_ascii=False)
    return {KEYWORD: text.encode(errors="backslashreplace").decode()}  # names of files may hold what is no text


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a picture says of how it was made, under the names that `record` was given, with `calotype` and `kind`.

    Raises:
        PictureError: if there is no such file, it can't be read, or it or its record is damaged.
        UsageError: if it is no PNG, or has no record.
    """
    path = Path(path)
    if not path.is_file():
        raise PictureError(f"{path} does not exist; give a picture that `calotype draw` wrote.")
    try:
        text = _find(path)
    except OSError as error:
        raise PictureError(f"{path} can't be read: {error.strerror or error}.") from None
    if text is None:
        raise UsageError(
            f"{path} does not say how it was made: it has no text chunk {KEYWORD!r}; give a PNG as calotype wrote it."
        )
    try:
        record = json_table(text, names=True)
        if not isinstance(kind := record.get("kind"), str) or not kind.isidentifier():
            raise TextError(f"kind must be the name of a command, not {shown(kind)}")
    except TextError as error:
        raise PictureError(
            f"{path}: its text chunk {KEYWORD!r} is damaged ({error}); give the picture as calotype wrote it."
        ) from None
    return record


def _find(path: Path) -> bytes | None:
    """The text of the chunk, if there is one."""
    damaged = PictureError(f"{path} is damaged or cut off; give the picture as calotype wrote it.")
    with path.open("rb") as file:
        if file.read(len(_START)) != _START:
            raise UsageError(f"{path} is no PNG, so it can't say how it was made; give a PNG as calotype wrote it.")
        while True:
            head = file.read(8)
            if len(head) < 8:
                raise damaged
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IEND":
                return None
            if kind != b"iTXt" or length > _MOST:
                file.seek(length + 4, os.SEEK_CUR)
                continue
            data, check = file.read(length), file.read(4)
            if len(data) < length or check != struct.pack(">I", zlib.crc32(kind + data)):
                raise damaged
            if data.startswith(_HEAD):
                return data[len(_HEAD) :]
