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
    """A new folder to write to, which becomes `path` when the block ends well.

    A folder that is there, and must be empty, stays: what is written is moved into it then.

    Raises:
        StorageError: the disk refuses it.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():  # it may be a place of its own: the root of a disk, or within what others own
        with _filled(target) as made:
            yield made
        return
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
            made.rename(target)
    except OSError as error:
        if inside:  # it is about something else
            raise
        raise StorageError(refusal(path, error)) from None


@contextmanager
def _filled(target: Path) -> Iterator[Path]:
    inside = False
    try:
        with temporary_folder(target) as within:
            inside = True
            yield within
            inside = False
            for one in sorted(within.iterdir()):
                one.rename(target / one.name)
    except OSError as error:
        if inside:  # it is about something else
            raise
        raise StorageError(refusal(target, error)) from None
