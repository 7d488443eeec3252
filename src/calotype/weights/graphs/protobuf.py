"""Protocol buffers, as far as ONNX needs them: fields of a message in turn, and nothing read before it is asked for.

Google's own reader makes objects of all that is there, many times a hostile file's size, and reads no file beyond 2 GB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from calotype.errors import WeightsError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # ways in which a field is written
MOST_FIELDS = 500_000  # that are looked at in one file


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: which.
        way: how it is written.
        value: of a whole number; 0 else.
        start, end: where its bytes lie.
    """

    number: int
    way: int
    value: int
    start: int
    end: int


class Message:
    """A file of one message, whose fields and those of its parts are read from places in it."""

    def __init__(self, content: memoryview) -> None:
        self.content = content
        self._left = MOST_FIELDS

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message that lies between two places.

        Raises:
            WeightsError: a field does not end there, or too many were read of this file.
        """
        at = start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise WeightsError(f"its graph has more than {MOST_FIELDS:,} parts, and that of a VAE has far fewer")
            tag, at = self._varint(at, end)
            number, way = tag >> 3, tag & 7
            value, begin = 0, at
            if way == VARINT:
                value, at = self._varint(at, end)
            elif way == BYTES:
                length, begin = self._varint(at, end)
                at = begin + length
            elif way in (FIXED32, FIXED64):
                at += 4 if way == FIXED32 else 8
            else:
                raise damaged(begin)
            if at > end or number == 0:
                raise damaged(begin)
            yield Field(number, way, value, begin, at)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for i in range(10):
            if at + i >= end:
                break
            byte = self.content[at + i]
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                return value & (2**64 - 1), at + i + 1
        raise damaged(at)

    def bytes(self, field: Field) -> bytes:
        """What a field holds, copied."""
        return bytes(self.content[field.start : field.end])

    def text(self, field: Field, most: int = 4096) -> str:
        """A field's text; bytes that are none are shown as such."""
        if field.end - field.start > most:
            raise WeightsError(
                f"the file is damaged: a name in it has {field.end - field.start:,} bytes; fetch it again"
            )
        return self.bytes(field).decode("utf-8", "backslashreplace")

    def whole(self, field: Field) -> int:
        """A field's whole number, which may be below zero."""
        if field.way != VARINT:
            raise damaged(field.start)
        return signed(field.value)

    def wholes(self, field: Field, most: int) -> list[int]:
        """Whole numbers of a field that may stand once or packed.

        Raises:
            WeightsError: there are too many.
        """
        if field.way == VARINT:
            return [signed(field.value)]
        found: list[int] = []
        at = field.start
        while at < field.end and field.way == BYTES:
            value, at = self._varint(at, field.end)
            found.append(signed(value))
            if len(found) > most:
                raise WeightsError(f"the file is damaged: a list in it has more than {most:,} numbers; fetch it again")
        return found

    def real(self, field: Field) -> float:
        """A field's number of four bytes."""
        if field.way != FIXED32:
            raise damaged(field.start)
        return float(struct.unpack_from("<f", self.content, field.start)[0])


def signed(value: int) -> int:
    """Of 64 bits, the number that they are where the highest is a sign."""
    return value - 2**64 if value >= 2**63 else value


def damaged(at: int) -> WeightsError:
    """That no message can be so."""
    return WeightsError(f"the file is truncated or damaged (at byte {at:,}); fetch it again")


def packed_wholes(content: bytes) -> np.ndarray:
    """All whole numbers of a packed field.

    Raises:
        ValueError: they are none.
    """
    every = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(every < 128)
    if len(every) == 0 or not len(ends) or ends[-1] != len(every) - 1:
        if len(every) == 0:
            return np.zeros(0, np.int64)
        raise ValueError("its numbers are cut off")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > 10:
        raise ValueError("one of its numbers is too long")
    values = np.zeros(len(ends), np.uint64)
    for i in range(longest):
        there = lengths > i
        values[there] |= (every[starts[there] + i].astype(np.uint64) & np.uint64(127)) << np.uint64(7 * i)
    return values.view(np.int64)
