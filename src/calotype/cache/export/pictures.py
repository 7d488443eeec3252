"""A file for each picture, called after it: what sd-scripts and musubi-tuner have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from calotype.cache.buckets import Size
from calotype.cache.export.rows import Row, Rows
from calotype.errors import UsageError
from calotype.files import make_folder, write_bytes
from calotype.texts import plain

_LONGEST = 255  # bytes of a file's name


def write(
    rows: Rows, folder: Path, name: Callable[[str, Size], str], content: Callable[[Row], bytes], title: str
) -> None:
    """Writes one file a sample, in folders as the pictures lie in.

    Args:
        name: of a file, of the picture's stem and its size in its file.
        content: of a file.
        title: of the program.

    Raises:
        UsageError: two pictures would have one file, a name leads out of the folder, or another file is there already.
        StorageError: the disk refuses it.
    """
    seen: dict[str, str] = {}
    stored = (rows.samples[column].to_pylist() for column in ("name", "stored_width", "stored_height"))
    for told, width, height in zip(*stored, strict=True):
        path = PurePosixPath(told)
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(
                f"{plain(told)}: this picture's name leads out of its folder, so there is no place for its file."
            )
        own = str(path.parent / (file := name(path.stem, (width, height))))
        if not path.name or "\0" in told or len(os.fsencode(file)) > _LONGEST:
            raise UsageError(f"{plain(told)}: no file can be called after this picture; rename it, and run make again.")
        if own in seen:
            raise UsageError(
                f"{plain(seen[own])} and {plain(told)} would have one file, for {title} calls it after the picture "
                "without its suffix; rename one of them, and make the cache anew."
            )
        seen[own] = told
    for row in rows:
        path = PurePosixPath(row.told["name"])
        target = folder / path.parent / name(path.stem, row.stored)
        made = content(row)
        there = os.path.lexists(target)
        if there and not target.is_symlink() and target.is_file() and target.read_bytes() == made:
            continue
        if there:
            raise UsageError(
                f"{target}: this file is there already, and is another one; remove it, or give another DEST. What was "
                "written before it is kept."
            )
        make_folder(target.parent)
        write_bytes(target, made)
