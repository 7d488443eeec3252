"""Parquet files of a cache: samples of a unit, the manifest, the scan. The same rows give the same bytes. No torch."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from calotype.errors import StorageError, UsageError

KEY = "binary32"  # a sha256

GROUP = 2**17
"""Rows of a file that lie together."""

SAMPLES: Mapping[str, str] = {
    "key": KEY,
    "name": "string",
    "stored_width": "int32",
    "stored_height": "int32",
    "width": "int32",
    "height": "int32",
    "resized_width": "int64",
    "resized_height": "int64",
    "crop_x": "int64",
    "crop_y": "int64",
    "bucket_width": "int32",
    "bucket_height": "int32",
    "caption": "string",
    "label": "string",
    "row": "int32",
    "min": "float32",
    "max": "float32",
    "crc32": "uint32",
}
"""Columns of samples/UNIT.parquet. `key` is the sha256 of the picture's encoded bytes; `stored_*` its size in the file
and `width`, `height` the size once it is upright; `resized_*` what it was resized to, of which `bucket_*` pixels from
(`crop_x`, `crop_y`) were encoded; `min` and `max` are of all its tensors, and `crc32` of their bytes in the shard, one
tensor after another in the order of cache.json."""

MANIFEST: Mapping[str, str] = {**SAMPLES, "unit": "words"}
"""Columns of manifest.parquet: those of the samples, and the unit whose shard has the row."""

SCAN: Mapping[str, str] = {
    "key": KEY,
    "name": "string",
    "stamp": "string",
    "bytes": "int64",
    "stored_width": "int32",
    "stored_height": "int32",
    "width": "int32",
    "height": "int32",
    "reason": "string",
    "caption": "string",
    "label": "string",
}
"""Columns of scan.parquet: every picture of the data in its order; `reason` says why one is bad, whose sizes are 0."""

_NULLS = ("caption", "label", "reason")  # what a row may lack


@cache
def arrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        UsageError: they are not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(
            "Caches of latents need the package pyarrow; install it with: pip install 'calotype[cache]'."
        ) from None


def schema_of(kinds: Mapping[str, str]) -> Any:
    """The pyarrow Schema of columns of these kinds."""
    return _schema(tuple(kinds.items()))


@cache
def _schema(columns: tuple[tuple[str, str], ...]) -> Any:
    pa, _ = arrow()
    types = {
        KEY: pa.binary(32),
        "string": pa.string(),
        "words": pa.dictionary(pa.int32(), pa.string()),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "uint32": pa.uint32(),
        "float32": pa.float32(),
    }
    return pa.schema([pa.field(name, types[kind]) for name, kind in columns])


def table(columns: Mapping[str, Sequence[Any]], kinds: Mapping[str, str]) -> Any:
    """A pyarrow Table of columns of these kinds."""
    pa, _ = arrow()
    schema = schema_of(kinds)
    return pa.table([pa.array(columns[one.name], type=one.type) for one in schema], schema=schema)


def parquet(rows: Any, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a file of a pyarrow Table."""
    _, pq = arrow()
    target = io.BytesIO()
    pq.write_table(
        rows.replace_schema_metadata(dict(metadata or {})), target,
        compression="zstd", row_group_size=GROUP, write_page_checksum=True,
    )  # fmt: skip
    return target.getvalue()


def read(path: Path, kinds: Mapping[str, str], columns: Sequence[str] | None = None) -> Any:
    """A pyarrow Table of a file's columns, all or some.

    Raises:
        StorageError: it can't be read, or its columns are others.
    """
    pa, pq = arrow()
    try:
        # read_table would import pandas
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            found = file.read(columns=list(columns or kinds))
        return checked(found, path, {name: kind for name, kind in kinds.items() if columns is None or name in columns})
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def checked(found: Any, path: Path, kinds: Mapping[str, str]) -> Any:
    """A pyarrow Table that was read of a file, with columns of these kinds and no others.

    Raises:
        StorageError: it lacks some.
        ValueError, pyarrow.ArrowException: what is in them is of other kinds, no text, or nothing where there must be.
    """
    found.validate(full=True)  # texts are such
    if nothing := next((name for name in found.column_names if name not in _NULLS and found[name].null_count), ""):
        raise ValueError(f"{nothing} is null in a row")
    schema = schema_of(kinds)
    if not set(found.column_names) >= set(schema.names):
        lacking = ", ".join(sorted(set(schema.names) - set(found.column_names)))
        raise StorageError(f"{path}: this file lacks {lacking}; calotype cache repair makes it anew.")
    return found.select(schema.names).cast(schema)


def metadata(path: Path) -> dict[str, str]:
    """What a file of a table says of itself; nothing where it can't be read."""
    pa, pq = arrow()
    try:
        told = pq.read_schema(path).metadata or {}
    except (OSError, ValueError, pa.ArrowException):
        return {}
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in told.items()}


def count(path: Path) -> int:
    """Rows of a file, from its end.

    Raises:
        StorageError: it can't be read.
    """
    pa, pq = arrow()
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> StorageError:
    """That a file of a table can't be read."""
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return StorageError(f"{path}: this file can't be read ({reason}); calotype cache repair makes it anew.")
