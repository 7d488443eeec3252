"""Folders that are complete or not there. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calotype.errors import StorageError
from calotype.files import make_folder, refusal
from calotype.temporaries import temporary_folder


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new folder to write to, which becomes `path` when the block ends well; what is there must be empty.

    Raises:
        StorageError: the disk refuses it.
    """
    target = Path(os.path.realpath(path))
    nearest = next(above for above in target.parents if above.exists())
    inside = False
    try:
        with temporary_folder(nearest) as beside:
            made = beside / "made"  # with the rights that a folder has
            made.mkdir()
            inside = True
            yield made
            inside = False
            make_folder(target.parent)
            if target.is_dir():
                target.rmdir()
            made.rename(target)
    except OSError as error:
        if inside:  # it is about something else
            raise
        raise StorageError(refusal(path, error)) from None
