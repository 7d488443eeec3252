"""What the last scan of a cache's pictures found, and what its manifest says of itself. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from calotype.cache.parts import Parted
from calotype.cache.store import MANIFEST, SCAN, Store
from calotype.cache.tables import SCAN as COLUMNS, metadata
from calotype.files import same_file


def scanned(store: Store) -> Parted:
    """What the last scan found.

    Raises:
        StorageError: there is none, or it can't be read.
    """
    return Parted(store.path(SCAN), COLUMNS)


@contextmanager
def scanned_now(store: Store) -> Iterator[Parted]:
    """The same, which stays as it is when another run writes its own: on NFS what was open would be gone.

    Raises:
        StorageError: there is none, or it can't be read.
    """
    path = store.path(SCAN)
    with same_file(path, path) as kept, Parted(kept, COLUMNS) as scan:
        yield scan


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
