"""What the last scan of a cache's pictures found. No torch."""

from __future__ import annotations

from typing import Any

from calotype.cache.store import SCAN, Store
from calotype.cache.tables import SCAN as COLUMNS, metadata, read


def scanned(store: Store) -> Any:
    """What the last scan found, a pyarrow Table.

    Raises:
        StorageError: there is none, or it can't be read.
    """
    return read(store.path(SCAN), COLUMNS)


def scanned_data(store: Store) -> str:
    """What the last scan was of: a folder, archive or dataset as it was given."""
    return metadata(store.path(SCAN)).get("data", "")


def scanned_digest(store: Store) -> str:
    """What tells one scan's result from another's; empty where there was none."""
    return metadata(store.path(SCAN)).get("digest", "")
