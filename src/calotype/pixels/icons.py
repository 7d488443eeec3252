"""The PNGs inside icons (ICO, CUR, ICNS): whether they are whole.

As in Microsoft's description of ICO and Apple's of ICNS ("icns" and blocks of a kind and a length).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import IO

from calotype.pixels import png

SIGNATURES = (b"\0\0\1\0", b"\0\0\2\0", b"icns")


def require_pngs(file: IO[bytes]) -> None:
    """Checks all of them; which one is read, Pillow chooses, and reads it as soon as it opens it.

    Raises:
        png.DamagedError: one is not as it was written.
    """
    for begin in sorted(set(_places(file))):
        file.seek(begin)
        if file.read(len(png.SIGNATURE)) == png.SIGNATURE:
            said = png.examine(file, begin)
            if said is not None:
                png.require_data(file, said)
                png.require_stream(file, said)


def _places(file: IO[bytes]) -> Iterator[int]:
    """Where the pictures in a file begin."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(8)
    if head.startswith(b"icns"):
        at = 8
        while at + 8 <= size:
            file.seek(at)
            yield at + 8
            (length,) = struct.unpack(">4xI", file.read(8))
            at += max(length, 8)
    else:
        for entry in range(int.from_bytes(head[4:6], "little")):
            file.seek(6 + 16 * entry)
            header = file.read(16)
            if len(header) == 16:
                yield struct.unpack("<12xI", header)[0]
