"""What the last scan of a cache's pictures found, and what its manifest says of itself. No torch."""

from __future__ import annotations

import json
from typing import Any

from calotype.cache.store import MANIFEST, SCAN, Store
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


def summarised(store: Store) -> dict[str, Any]:
    """The summary that the manifest holds (`manifest.summary`); empty where it can't be read."""
    try:
        told = json.loads(metadata(store.path(MANIFEST)).get("summary", ""))
    except ValueError:  # the end of the file, where it stands, has no checksum
        return {}
    return told if isinstance(told, dict) else {}
