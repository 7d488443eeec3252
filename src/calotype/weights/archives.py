"""Zip archives of torch files: where their members lie, and what they hold, held against the sums in the archive.

A member's CRC-32 stands in the table of contents and once more at the member. Zero in both places is none:
torch.serialization.set_crc32_options(False) writes such files, and skip_data() such members (seen in torch 2.13; zip:
PKWARE's APPNOTE.TXT, 4.3 and 4.4).
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from calotype.damage import quoted
from calotype.errors import WeightsError

_LOCAL = b"PK\x03\x04"
_DESCRIPTOR = b"PK\x07\x08"


@dataclass(frozen=True)
class Member:
    """A member of an archive.

    Attributes:
        name: in the archive.
        start: where its bytes begin in the file.
        packed: how many they are there.
        size: how many it holds.
        deflated: whether they are packed.
        crc: CRC-32 of what it holds; None where the archive has none.
    """

    name: str
    start: int
    packed: int
    size: int
    deflated: bool
    crc: int | None

    def require(self, content: bytes | memoryview) -> None:
        """Checks what it holds against its sum.

        Raises:
            WeightsError: it does not fit.
        """
        if self.crc is not None and zlib.crc32(content) != self.crc:
            raise WeightsError(
                f"the file is damaged: {quoted(self.name, 60)} in it does not fit its checksum (CRC-32); fetch it again"
            )

    def read(self, file: IO[bytes]) -> bytes:
        """What it holds.

        Raises:
            WeightsError: it does not fit its sum, or its size.
            zlib.error: it can't be unpacked.
        """
        file.seek(self.start)
        content = file.read(self.packed)
        if self.deflated:
            unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
            content = unpacking.decompress(content, self.size + 1)
        if len(content) != self.size:
            raise WeightsError(
                f"the file is damaged: {quoted(self.name, 60)} in it does not hold the {self.size:,} bytes that its "
                f"table of contents says; fetch it again"
            )
        self.require(content)
        return content


def members(path: Path) -> dict[str, Member]:
    """The members of an archive by name, as its table of contents and they themselves say.

    Raises:
        WeightsError: the two do not fit together, or not into the file.
        Exception: whatever zipfile raises over a damaged table.
    """
    if not zipfile.is_zipfile(path):
        raise WeightsError(
            "the file is truncated: its table of contents, which stands at its end, is missing; fetch it again"
        )
    found: dict[str, Member] = {}
    end = path.stat().st_size
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise WeightsError(
                    f"{quoted(entry.filename, 60)} in it is packed as torch packs nothing; unpack it and save it anew"
                )
            member = _member(entry, file, end)
            if member is None or member.name in found:
                raise WeightsError(
                    f"the file is truncated or damaged (at {quoted(entry.filename, 60)}); fetch it again"
                )
            found[member.name] = member
    return found


def _member(entry: zipfile.ZipInfo, file: IO[bytes], end: int) -> Member | None:
    """A member; None if what stands at its place is not what the table of contents says."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != _LOCAL:
        return None
    name, extra = struct.unpack("<2H", header[26:])
    start = entry.header_offset + 30 + name + extra
    deflated = entry.compress_type == zipfile.ZIP_DEFLATED
    fits = (
        file.read(name) == entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
        and struct.unpack("<H", header[8:10]) == (entry.compress_type,)
        and (deflated or entry.file_size == entry.compress_size)
        and start + entry.compress_size <= end
    )
    if not fits:
        return None
    crc: int | None = entry.CRC
    if crc == 0:
        (crc,) = struct.unpack("<I", header[14:18])
        if entry.flag_bits & 8:  # it stands after the member
            file.seek(start + entry.compress_size)
            after = file.read(8)
            crc = int.from_bytes(after[4:] if after[:4] == _DESCRIPTOR else after[:4], "little")
    return Member(entry.filename, start, entry.compress_size, entry.file_size, deflated, crc or None)
