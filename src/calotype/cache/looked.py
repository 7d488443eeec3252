"""What a scan finds, in columns, since there may be millions; and what was found before. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calotype.cache.store import LOOKED, SCAN, Store
from calotype.cache.tables import SCAN as COLUMNS, arrow, parquet, read, table
from calotype.errors import StorageError

NOTHING = b"\0" * 32
"""The key of what can't be read."""

KEEP = 60.0  # seconds of a scan that are lost with it at most
_SHARE = 20  # of its time a scan spends on keeping what it found at most: one part of so many
_PART = 2**14  # rows that are Python's objects; a million of such would take a gigabyte
_TOLD = ("key", "name", "stamp", "bytes", "stored_width", "stored_height", "width", "height", "reason")


@dataclass(frozen=True)
class Found:
    """One picture as it was found."""

    key: bytes
    size: int
    stored: tuple[int, int]  # (width, height)
    upright: tuple[int, int]
    reason: str | None


class Rows:
    """Rows of a scan that is under way; what was found is kept from time to time, and a scan that was killed goes on.

    Args:
        store: of the cache.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parts: list[Any] = []
        self._rows: list[Sequence[Any]] = []
        self._next = time.monotonic() + KEEP

    def add(self, row: Sequence[Any]) -> None:
        """A row more, of values in the order of `tables.SCAN`.

        Raises:
            StorageError: the disk refuses what is kept.
        """
        self._rows.append(row)
        if len(self._rows) >= _PART:
            self._fold()
        if time.monotonic() >= self._next:
            began = time.monotonic()
            self._store.write(LOOKED, parquet(self.table()))
            self._next = time.monotonic() + max(KEEP, _SHARE * (time.monotonic() - began))

    def table(self) -> Any:
        """All rows, a pyarrow Table."""
        self._fold()
        pa, _ = arrow()
        self._parts = (
            [pa.concat_tables(self._parts).combine_chunks()] if self._parts else [table(_columns([]), COLUMNS)]
        )
        return self._parts[0]

    def _fold(self) -> None:
        if self._rows:
            self._parts.append(table(_columns(self._rows), COLUMNS))
            self._rows = []


def _columns(rows: Sequence[Sequence[Any]]) -> dict[str, Sequence[Any]]:
    every = zip(*rows, strict=True) if rows else ((),) * len(COLUMNS)
    return dict(zip(COLUMNS, every, strict=True))


class Known:
    """What was found before, by name and stamp: of the last scan, and of one after it that was killed."""

    def __init__(self, store: Store) -> None:
        self._columns: list[tuple[Any, ...]] = []
        hashes = []
        for name in (LOOKED, SCAN):
            try:
                rows = read(store.path(name), COLUMNS, _TOLD)
            except StorageError:
                continue
            hashes += [np.fromiter(_hashes(rows), dtype=np.int64, count=rows.num_rows)]
            self._columns.append(tuple(rows[column].combine_chunks() for column in _TOLD))
        joined = np.concatenate([*hashes, np.empty(0, dtype=np.int64)])
        self._order = np.argsort(joined, kind="stable")
        self._hashes = joined[self._order]
        self._first = len(hashes[0]) if hashes else 0

    def get(self, name: str, stamp: str) -> Found | None:
        """What was found of a picture, if nothing tells that it changed since."""
        if not stamp:
            return None
        start, end = np.searchsorted(self._hashes, [hash((name, stamp)), hash((name, stamp)) + 1])
        for place in self._order[start:end].tolist():
            which = int(place >= self._first)
            values = [column[place - which * self._first].as_py() for column in self._columns[which]]
            key, there, told, size, *sides, reason = values
            if (there, told) == (name, stamp) and key != NOTHING:
                return Found(key, size, (sides[0], sides[1]), (sides[2], sides[3]), reason)
        return None


def _hashes(rows: Any) -> Iterator[int]:
    for part in rows.to_batches(_PART):
        yield from map(hash, zip(part["name"].to_pylist(), part["stamp"].to_pylist(), strict=True))
