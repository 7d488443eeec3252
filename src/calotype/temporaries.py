"""Temporary files and folders that do not outlive who made them.

Their names say which process that was. What a killed process left (SIGKILL, a power cut) is removed by the next one
that makes a temporary in the same folder; what this one has is removed at its end, whatever interrupts it before.
"""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from calotype.processes import Process, is_dead, this

_NAME = re.compile(r"\.calotype-([0-9a-f]{12})-([0-9]{1,10})-(0|[0-9a-f]{8})-")
_mine: set[Path] = set()
_swept: set[Path] = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mine.clear)  # they are the parent's


@contextmanager
def temporary_path(folder: Path, suffix: str = "") -> Iterator[Path]:
    """A path in `folder` that nothing else has; the file made there is removed at the end, if it still has that name.

    Raises:
        OSError: it can't be removed.
    """
    sweep(folder)
    path = folder / f"{_prefix()}{secrets.token_hex(4)}{suffix}"
    _mine.add(path)  # before there is a file: an interrupt may come between any two lines
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        _mine.discard(path)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, removed at the end with all that is in it.

    Raises:
        OSError: it can't be made.
    """
    sweep(folder)
    path = folder / f"{_prefix()}{secrets.token_hex(4)}"
    _mine.add(path)
    try:
        path.mkdir(mode=0o700)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            _mine.discard(path)


def temporary_file(folder: str | None, buffering: int = -1) -> IO[bytes]:
    """A file that has no name, where the system has such: nothing is left of it however the process ends.

    Args:
        folder: where it lies; None: the system's folder for temporaries.
        buffering: as for `open`.

    Raises:
        OSError: it can't be made.
    """
    folder = folder or tempfile.gettempdir()
    sweep(Path(folder))
    return tempfile.TemporaryFile(buffering=buffering, prefix=_prefix(), dir=folder)


def is_temporary(name: str) -> bool:
    """Whether a file or folder is called as those here are."""
    return bool(_NAME.match(name))


def sweep(folder: Path, *, again: bool = False) -> None:
    """Removes what dead processes of this host left in a folder; a process looks into a folder once.

    Args:
        again: also where it has looked before.
    """
    folder = Path(os.path.realpath(folder))
    if folder in _swept and not again:
        return
    _swept.add(folder)
    left = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            told = _NAME.match(entry.name)
            if told and is_dead(Process(told[1], int(told[2]), told[3])):
                left.append(Path(entry.path))
    for path in left:
        _remove(path)


def _prefix() -> str:
    me = this()
    return f".calotype-{me.host}-{me.pid}-{me.start}-"


def _remove(path: Path) -> None:
    """Whether a file, a link or a folder; what can't be removed is another user's, and stays."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@atexit.register
def _remove_mine() -> None:
    for path in list(_mine):
        _remove(path)
