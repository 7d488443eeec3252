"""Tables that are too large for memory, read and written a part at a time. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.cache.tables import GROUP, arrow, checked, schema_of, unreadable

PART = 2**13
"""Rows of a part: a few megabytes, also as Python's objects."""

_BUFFER = 2**18  # bytes of a column that are read at a time


class Parted:
    """A file of a table.

    Args:
        path: of the file.
        kinds: columns that it has, as in `tables`.

    Raises:
        StorageError: it can't be read, or lacks columns.
    """

    def __init__(self, path: Path, kinds: Mapping[str, str]) -> None:
        pa, pq = arrow()
        self._path, self._kinds = path, kinds
        try:
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER, page_checksum_verification=True)
            told = self._file.metadata
            rows = [told.row_group(number).num_rows for number in range(told.num_row_groups)]
            checked(self._file.schema_arrow.empty_table(), path, kinds)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise unreadable(path, error) from None
        self._starts = np.cumsum([0, *rows])

    def __enter__(self) -> Parted:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def groups(self) -> NDArray[np.int64]:
        """The first row of each of its groups, and the number of rows: int64 [N + 1]."""
        return self._starts

    def parts(self, *columns: str, group: int | None = None) -> Iterator[Any]:
        """All rows in order, or those of a group, as pyarrow Tables of some columns, or of all.

        Raises:
            StorageError: it can't be read.
        """
        pa, _ = arrow()
        kinds = {name: self._kinds[name] for name in columns} if columns else self._kinds
        groups = range(len(self._starts) - 1) if group is None else [group]
        try:
            for batch in self._file.iter_batches(PART, row_groups=list(groups), columns=list(kinds), use_threads=False):
                yield checked(pa.table(batch), self._path, kinds)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise unreadable(self._path, error) from None

    def group(self, number: int, *columns: str) -> Any:
        """The rows of a group, as one pyarrow Table whose columns are of one piece.

        Raises:
            StorageError: it can't be read.
        """
        pa, _ = arrow()
        return pa.concat_tables(self.parts(*columns, group=number)).combine_chunks()

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def taken(self, rows: NDArray[np.integer[Any]], *columns: str) -> Any:
        """Some rows, a pyarrow Table; only groups that have one are read.

        Args:
            rows: numbers, ascending.
            columns: some; none for all.

        Raises:
            StorageError: it can't be read.
        """
        pa, _ = arrow()
        kinds = {name: self._kinds[name] for name in columns} if columns else self._kinds
        found = [schema_of(kinds).empty_table()]
        for group in np.unique(np.searchsorted(self._starts, rows, side="right") - 1).tolist():
            start = int(self._starts[group])
            for part in self.parts(*kinds, group=group):
                first, last = np.searchsorted(rows, [start, start + len(part)])
                if last > first:
                    found.append(part.take(pa.array(rows[first:last] - start)))
                start += len(part)
        return pa.concat_tables(found)


def write(file: Any, kinds: Mapping[str, str], parts: Iterable[Any], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tables, one after another, as `tables.parquet` gives all of them as one.

    Args:
        file: to write to, binary.
        kinds: columns of each.
    """
    _, pq = arrow()
    schema = schema_of(kinds).with_metadata(dict(metadata or {}))
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        for part in _grouped(parts, schema):
            writer.write_table(part, row_group_size=GROUP)
            del part  # before there is the next one


def _grouped(parts: Iterable[Any], schema: Any) -> Iterator[Any]:
    """The same rows in tables of a group each."""
    pa, _ = arrow()
    waiting, count, none = [], 0, True
    for part in parts:
        waiting.append(part)
        count += len(part)
        del part  # as below: each may be of tens of megabytes
        while count >= GROUP:
            joined = pa.concat_tables(waiting)
            waiting, count, none = [joined.slice(GROUP)], count - GROUP, False
            group = joined.slice(0, GROUP).combine_chunks()
            del joined
            yield group
            del group
    if count or none:
        yield pa.concat_tables([schema.empty_table(), *waiting]).combine_chunks()


def release() -> None:
    """Has pyarrow give back what it keeps of freed memory, for those who need it for something else."""
    arrow()[0].default_memory_pool().release_unused()
