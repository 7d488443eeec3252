"""What a scan finds, kept in files as it goes on, since there may be millions; and what was found before. No torch."""

from __future__ import annotations

import hashlib
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calotype.cache.parts import Parted, write
from calotype.cache.store import LOOKED, SCAN, Store, looked_name
from calotype.cache.tables import GROUP, SCAN as COLUMNS, table
from calotype.errors import StorageError

NOTHING = b"\0" * 32
"""The key of what can't be read."""

KEEP = 60.0  # seconds of a scan that are lost with it at most
_PART = 2**12  # rows that are Python's objects; a million of such would take a gigabyte
_OPEN = 2  # groups of rows found before that lie in memory
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
        self._first = self._number = max(map(int, _kept(store)), default=0) + 1  # after those of one that was killed
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
        if time.monotonic() >= self._next or len(self._parts) * _PART >= GROUP:
            self._keep()

    def write(self, data: str) -> None:
        """Puts them all as the scan, and forgets what was kept.

        Args:
            data: what the source was opened by.

        Raises:
            StorageError: the disk refuses it.
        """
        digest = _Digest()
        write(digest, COLUMNS, map(_what_counts, self._every()))
        with self._store.writing(SCAN) as file:
            write(file, COLUMNS, self._every(), {"data": data, "digest": digest.hexdigest()})
        forget(self._store)

    def _every(self) -> Iterator[Any]:
        """All rows as pyarrow Tables."""
        for number in range(self._first, self._number):
            with Parted(self._store.path(looked_name(number)), COLUMNS) as kept:
                yield from kept.parts()
        self._fold()
        yield from self._parts

    def _keep(self) -> None:
        self._fold()
        with self._store.writing(looked_name(self._number)) as file:
            write(file, COLUMNS, self._parts)
        self._number += 1
        self._parts = []
        self._next = time.monotonic() + KEEP

    def _fold(self) -> None:
        if self._rows:
            columns = dict(zip(COLUMNS, zip(*self._rows, strict=True), strict=True))
            self._parts.append(table(columns, COLUMNS))
            self._rows = []


class _Digest:
    """A file that is only hashed."""

    closed = False

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.hexdigest = self._sha256.hexdigest

    def write(self, data: Any) -> int:
        self._sha256.update(data)
        return len(data)

    def flush(self) -> None:
        pass


def _what_counts(rows: Any) -> Any:
    """Without stamps: a picture that is looked at once more may get another one, or its first."""
    place = rows.schema.get_field_index("stamp")
    return rows.set_column(place, rows.schema.field(place), [[""] * len(rows)])


def _kept(store: Store) -> list[str]:
    """Numbers of the files that scans have kept, in their order."""
    return [name for name in store.names(LOOKED, ".parquet") if name.isdecimal()]


def forget(store: Store) -> None:
    """Removes what scans have kept.

    Raises:
        StorageError: it can't be removed.
    """
    for number in _kept(store):
        store.remove(looked_name(int(number)))
    with suppress(OSError):  # what others have put there stays
        store.path(LOOKED).rmdir()


class Known:
    """What was found before, by name and stamp: of the last scan, and of those after it that were killed.

    Of rows only hashes are held; they are read when they are asked for, which any thread may do.
    """

    def __init__(self, store: Store) -> None:
        self._groups: list[tuple[Path, int]] = []
        self._open: OrderedDict[int, tuple[Any, ...]] = OrderedDict()
        self._lock = threading.Lock()
        hashes, starts = array("q"), [0]
        for name in (*map(looked_name, map(int, _kept(store))), SCAN):
            path = store.path(name)
            try:
                with Parted(path, COLUMNS) as file:
                    for part in file.parts("name", "stamp"):
                        names, stamps = (part[column].to_pylist() for column in ("name", "stamp"))
                        hashes.extend(map(hash, zip(names, stamps, strict=True)))
                    groups = file.groups
            except StorageError:
                del hashes[starts[-1] :]
                continue
            self._groups += [(path, group) for group in range(len(groups) - 1)]
            starts += (starts[-1] + groups[1:]).tolist()
        self._starts = np.array(starts)
        every = np.array(hashes, dtype=np.int64)
        self._order = np.argsort(every, kind="stable").astype(np.int32)
        self._hashes = every[self._order]

    def get(self, name: str, stamp: str) -> Found | None:
        """What was found of a picture, if nothing tells that it changed since."""
        if not stamp:
            return None
        start, end = (np.searchsorted(self._hashes, hash((name, stamp)), side) for side in ("left", "right"))
        for place in self._order[start:end].tolist():
            group = int(np.searchsorted(self._starts, place, side="right")) - 1
            try:
                columns = self._columns(group)
            except StorageError:  # it was damaged, which its hashes did not tell
                continue
            values = [column[place - int(self._starts[group])].as_py() for column in columns]
            key, there, told, size, *sides, reason = values
            if (there, told) == (name, stamp) and key != NOTHING:
                return Found(key, size, (sides[0], sides[1]), (sides[2], sides[3]), reason)
        return None

    def _columns(self, group: int) -> tuple[Any, ...]:
        """A group's columns: asked for in order, mostly."""
        with self._lock:
            if group not in self._open:
                path, number = self._groups[group]  # of a long scan there are more than a process may have open
                with Parted(path, COLUMNS) as file:
                    rows = file.group(number, *_TOLD)
                self._open[group] = tuple(rows[column].chunk(0) for column in _TOLD)
                if len(self._open) > _OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(group)
            return self._open[group]
