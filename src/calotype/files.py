"""Files written whole or not at all: the one place that writes them, and that says why one can't be written.

A file is written beside its place, its bytes are forced to the disk (fsync), and then it is renamed. So there is the
old file or the new one, also after a crash or a power cut; the rename itself may be lost with the power, and then it
is the old one.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from calotype.errors import CalotypeError, StorageError, UsageError
from calotype.temporaries import temporary_folder, temporary_path

StrPath = str | os.PathLike[str]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # nothing more fits

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, or give another place"),
    errno.EFBIG: "files can be no larger there, so give another place",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "give another place, or get the right to write there"),
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EISDIR: "give the name of a file",
}
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of file systems that have none


def as_text(name: str) -> str:
    """A file's name, where bytes of it that are no text stand as escape sequences: what is stored must be text."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def text_path(path: Path) -> Iterator[Path]:
    """A path to the same file whose name is text, for libraries that open no other."""
    if as_text(str(path)) == str(path):
        yield path
        return
    with temporary_folder(Path(tempfile.gettempdir())) as folder:
        link = folder / "link"
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


def refusal(path: StrPath, error: OSError) -> str:
    """The sentence about a file (or folder) that can't be written: which, why, and what to do."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{os.fspath(path)} can't be written: {reason}; {_ADVICE.get(error.errno or 0, 'give another place')}."


@contextmanager
def writing(path: StrPath, error: type[CalotypeError] = StorageError) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when the block ends well; see `writing_all`."""
    with writing_all([path], error) as [file]:
        yield file


@contextmanager
def writing_all(paths: Sequence[StrPath], error: type[CalotypeError] = StorageError) -> Iterator[list[IO[bytes]]]:
    """Files to write to, which take their places when the block ends well, the first one first.

    Each is whole and on the disk before the first takes its place, so that nothing but a rename can fail between two of
    them. If one does, or the block raises, all are what they were before. A process that is killed between two renames
    leaves the first ones new and the others old.

    Args:
        error: what is raised of what the disk refuses.

    Raises:
        UsageError: as `atomic_path`.
        error: the disk refuses one; whatever an encoder made of that on its way.
    """
    files: list[_File] = []
    with ExitStack() as stack:
        if len(paths) > 1:
            stack.enter_context(_all_or_none(paths, error))
        beside = [stack.enter_context(_beside(path, error)) for path in reversed(paths)][::-1]
        try:
            for path, temporary in zip(paths, beside, strict=True):
                with _refusals(path, error):
                    files.append(_File(_Raw(path, temporary, error)))
            try:
                yield list(files)
            except Exception as raised:
                _raise_refused(files, raised)
                raise
            _raise_refused(files)
            for file in files:
                file.finish()
        finally:
            for file in files:
                with suppress(Exception):  # of what was buffered, when it was refused already
                    file.close()


def write_bytes(path: StrPath, data: bytes | memoryview, error: type[CalotypeError] = StorageError) -> Path:
    """Writes a file; what was there is replaced only by a whole one.

    Raises:
        UsageError, error: as `writing_all`.
    """
    with writing(path, error) as file:
        file.write(data)
    return Path(path)


def write_text(path: StrPath, text: str, error: type[CalotypeError] = StorageError) -> Path:
    """`write_bytes` of text in UTF-8; what is no text (in names of files) stands as escape sequences."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"), error)


def append_text(path: StrPath, text: str) -> None:
    """Adds text in UTF-8 at the end of a file, which is made if it is not there.

    Raises:
        StorageError: the disk refuses it; a part may stand there.
    """
    with _refusals(path, StorageError), Path(path).open("a", encoding="utf-8") as file:
        file.write(text)


def make_folder(path: StrPath, error: type[CalotypeError] = StorageError) -> Path:
    """Makes a folder, and those above it, where they are not there.

    Raises:
        error: the disk refuses it.
    """
    with _refusals(path, error):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


class _Raw(io.FileIO):
    """Raises what the disk refuses as the project's error, about the file that was asked for, and remembers it."""

    def __init__(self, path: StrPath, temporary: Path, error: type[CalotypeError]) -> None:
        super().__init__(temporary, "wb")
        self.path, self.error = path, error
        self.refused: CalotypeError | None = None

    def write(self, data: Any) -> int:
        with self._telling():
            written = super().write(data)
        return written

    def sync(self) -> None:
        """What was written is on the disk."""
        with self._telling():
            try:
                os.fsync(self.fileno())
            except OSError as error:
                if error.errno not in _NO_SYNC:
                    raise

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            with _refusals(self.path, self.error):
                yield
        except self.error as refused:
            self.refused = refused
            raise


class _File(io.BufferedWriter):
    raw: _Raw

    def finish(self) -> None:
        """Everything is on the disk, and the file is closed."""
        self.flush()
        self.raw.sync()
        self.close()


def _raise_refused(files: Sequence[_File], raised: Exception | None = None) -> None:
    """What a disk refused, where an encoder in C made something else of it, or nothing."""
    for file in files:
        if file.raw.refused is not None and file.raw.refused is not raised:
            raise file.raw.refused from None


@contextmanager
def _refusals(path: StrPath, error: type[CalotypeError]) -> Iterator[None]:
    """Turns what the system refuses into one sentence about a path."""
    try:
        yield
    except OSError as refused:
        raise error(refusal(path, refused)) from None


@contextmanager
def _beside(path: StrPath, error: type[CalotypeError]) -> Iterator[Path]:
    """`atomic_path`, whose own troubles are about the path and not about the temporary."""
    inside: list[BaseException] = []
    try:
        with atomic_path(path) as temporary:
            try:
                yield temporary
            except BaseException as raised:
                inside.append(raised)
                raise
    except OSError as refused:
        if refused in inside:
            raise
        raise error(refusal(path, refused)) from None


@contextmanager
def _all_or_none(paths: Sequence[StrPath], error: type[CalotypeError]) -> Iterator[None]:
    """If the block raises, files that it replaced become what they were before, and those that it made go away."""
    with ExitStack() as stack:
        copies: dict[Path, Path] = {}
        for path in paths:
            target = Path(os.path.realpath(path))
            if target.is_file():
                copies[target] = stack.enter_context(same_file(target, path, error))
        before = {target: target.stat() for target in copies}
        try:
            yield
        except BaseException:
            for path in paths:
                target = Path(os.path.realpath(path))
                if target not in copies:
                    if target.is_file():
                        target.unlink()
                elif not target.is_file() or not os.path.samestat(before[target], target.stat()):
                    copies[target].replace(target)
            raise


@contextmanager
def same_file(target: Path, path: StrPath, error: type[CalotypeError] = StorageError) -> Iterator[Path]:
    """The same file under another name in its folder, or else a copy of it; it goes away.

    Args:
        path: what the file is called in messages.

    Raises:
        error: the disk refuses it.
    """
    with temporary_path(target.parent, target.suffix) as copy:
        with _refusals(path, error):
            try:
                os.link(target, copy)
            except OSError:  # not every file system has such links
                shutil.copy2(target, copy)
        yield copy
