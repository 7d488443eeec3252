"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calotype.errors import UsageError
from calotype.temporaries import temporary_path


def as_text(name: str) -> str:
    """A file's name, where bytes of it that are no text stand as escape sequences: what is stored must be text."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def text_path(path: Path) -> Iterator[Path]:
    """A path to the same file whose name is text, for libraries that open no other."""
    if as_text(str(path)) == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "link"
        link.symlink_to(path.absolute())
        yield link


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of `path` when the block ends well.

    The temporary lies in the same folder and has the same suffix. If the block raises, it is removed and `path` stays
    as it was; what killed processes left in the folder is removed too. A link is followed: the file it points to is
    replaced.

    Raises:
        UsageError: the folder does not exist, or `path` is there already and is no ordinary file.
        OSError: the temporary can't take the place of `path`.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise UsageError(f"{os.fspath(path)} can't be written: there is no folder {target.parent}; make it first.")
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "not an ordinary file"
        raise UsageError(f"{os.fspath(path)} can't be written: it is {kind}; give the name of a file.")
    with temporary_path(target.parent, target.suffix) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask wants it; some writers make files that only their owner can read
        yield temporary
        temporary.chmod(mode)
        temporary.replace(target)
