"""PNG and TIFF by hand, and colours computed by other means than calotype's."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from calotype.pixels import Picture

Array = npt.NDArray[Any]


def levels(picture: Picture | Tensor) -> npt.NDArray[np.float64]:
    """Pixels on the scale of 0..255, not rounded: [H, W, 3]."""
    tensor = picture.pixels if isinstance(picture, Picture) else picture
    return ((tensor.double() + 1.0) * 127.5).permute(1, 2, 0).numpy()


def unit(picture: Picture) -> npt.NDArray[np.float64]:
    """Pixels on the scale of 0..1: [H, W, 3]."""
    return levels(picture) / 255.0


# PNG


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    array: Array, *chunks: tuple[bytes, bytes], after: Sequence[tuple[bytes, bytes]] = (), palette: bool = False
) -> bytes:
    """A PNG of uint8 or uint16 [H, W] (grey, or indices of a palette) or [H, W, 2, 3 or 4].

    Args:
        chunks: kinds and bodies, between the header and the data.
        after: others, after the data.
    """
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    colour_type = 3 if palette else {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    depth = 8 * array.dtype.itemsize
    rows = array.astype(array.dtype.newbyteorder(">")).reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))]
    parts += [chunk(*one) for one in (*chunks, (b"IDAT", zlib.compress(data)), *after, (b"IEND", b""))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gama(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(gamma * 100_000))


def chrm(*values: float) -> tuple[bytes, bytes]:
    """x and y of white, red, green and blue."""
    return b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values))


def cicp(primaries: int, transfer: int, matrix: int = 0, full: int = 1) -> tuple[bytes, bytes]:
    return b"cICP", bytes((primaries, transfer, matrix, full))


# TIFF


def tiff(
    array: Array,
    photometric: int,
    *,
    order: str = "<",
    big: bool = False,
    planar: bool = False,
    extra: Sequence[int] | None = None,
    bits: Sequence[int] | None = None,
    data: bytes | None = None,
    more: Sequence[tuple[int, int, Sequence[int] | bytes]] = (),
) -> bytes:
    """An uncompressed TIFF of one strip, or of one a plane.

    Args:
        array: [H, W, C], of the numbers that are stored.
        order: "<" or ">".
        bits, data: instead of what follows from the array.
        more: further tags, as number, type and values.
    """
    height, width, channels = array.shape
    stored = array.astype(array.dtype.newbyteorder(order))
    bodies = [stored[..., i].tobytes() for i in range(channels)] if planar else [data or stored.tobytes()]
    start = 16 if big else 8
    offsets = [start + sum(map(len, bodies[:i])) for i in range(len(bodies))]
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[array.dtype.kind]
    entries: dict[int, tuple[int, Sequence[int] | bytes]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, list(bits or [8 * array.dtype.itemsize] * channels)),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, offsets),
        277: (3, [channels]),
        278: (4, [height]),
        279: (4, [len(body) for body in bodies]),
        284: (3, [2 if planar else 1]),
        339: (3, [kind] * channels),
    }
    if extra is not None:
        entries[338] = (3, list(extra))
    entries.update({tag: (type_, values) for tag, type_, values in more})
    codes = {1: "B", 2: "s", 3: "H", 4: "I", 7: "s"}
    word, size = ("Q", 8) if big else ("I", 4)
    pool, directory = b"", b""
    pool_at = start + sum(map(len, bodies))
    for tag, (type_, values) in sorted(entries.items()):
        code = codes[type_]
        packed = values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > size:
            place = pool_at + len(pool)
            pool += packed + bytes(len(packed) % 2)
            packed = struct.pack(order + word, place)
        directory += struct.pack(f"{order}HH{word}", tag, type_, len(values)) + packed.ljust(size, b"\0")
    at = pool_at + len(pool)
    mark = b"II" if order == "<" else b"MM"
    head = mark + (struct.pack(f"{order}HHHQ", 43, 8, 0, at) if big else struct.pack(f"{order}HI", 42, at))
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    return head + b"".join(bodies) + pool + count + directory + bytes(size)


# Colours, computed with matrices that others publish


def decoded(values: Array) -> npt.NDArray[np.float64]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(light: Array) -> npt.NDArray[np.float64]:
    clipped = np.clip(light, 0.0, 1.0)
    return np.where(clipped <= 0.0031308, clipped * 12.92, 1.055 * clipped ** (1 / 2.4) - 0.055)


XYZ_TO_SRGB = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
)
"""Of D65, from Lindbloom's tables."""

ADOBE_TO_XYZ = np.array(
    [[0.5767309, 0.1855540, 0.1881852], [0.2973769, 0.6273491, 0.0752741], [0.0270343, 0.0706872, 0.9911085]]
)
"""From Lindbloom's tables."""

P3_TO_SRGB = np.array(
    [
        [1.2249401763, -0.2249401763, 0.0],
        [-0.0420569547, 1.0420569547, 0.0],
        [-0.0196375546, -0.0786360456, 1.0982736002],
    ]
)
"""From CSS Color 4, multiplied out."""

BT2020_TO_SRGB = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
)
"""From ITU-R BT.2087."""


# A profile for inks


def cmyk_profile() -> bytes:
    """An ICC profile whose table makes L* fall by a third for each of C, M and Y; K is black."""
    d50 = struct.pack(">3i", *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))
    ramp = bytes(range(256))
    grid = b""
    for corner in np.ndindex(2, 2, 2, 2):
        grid += bytes((0 if corner[3] else round(255 * (1 - sum(corner[:3]) / 3)), 128, 128))
    identity = struct.pack(">9i", *(65536 * value for value in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + grid + ramp * 3
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(81),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": b"XYZ \0\0\0\0" + d50,
        b"A2B0": table,
    }
    listing, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        listing += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4xI4s4s4s", start + len(body), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + d50
    return head.ljust(128, b"\0") + listing + body
