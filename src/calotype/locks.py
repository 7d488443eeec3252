"""Locks on what only one process may write at a time: a run's folder, a store.

A lock is a file beside what it guards, which names its holder while there is one. The system's own lock on that file
decides (flock, which Linux carries over NFS too; on Windows that of the C library): it ends with its holder, however
that ends, so a dead one's is simply taken over. Where a file system has no such locks (Lustre, as it is often mounted),
the name in the file decides, and of two that begin in the same instant both may go on.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calotype.errors import StorageError, UsageError
from calotype.processes import Process, is_dead, this
from calotype.texts import json_table, whole

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_FAR = 1 << 30  # the byte that is locked on Windows, where others can't read locked ones


@contextmanager
def lock(path: Path, doing: str, advice: str) -> Iterator[None]:
    """Holds a lock until the block ends; the file is gone then, and so are folders that were made for it and are empty.

    Args:
        path: of the lock's file; its folder is made if need be.
        doing: what others do who hold it, as in "a training".
        advice: half a sentence, what to do instead of waiting for them.

    Raises:
        UsageError: another process holds it, or another thread.
        StorageError: the file can't be made.
    """
    with ExitStack() as folder:
        try:
            folder.enter_context(_folder(path.parent))
            descriptor, locked = _taken(path, doing, advice)
        except OSError as error:
            raise StorageError(f"{path.parent}: nothing can be written there ({error.strerror}); {advice}.") from None
        try:
            yield
        finally:
            if sys.platform == "win32":  # where open files can't be removed
                os.close(descriptor)
                with suppress(OSError):  # the next holder has it open already
                    path.unlink(missing_ok=True)
            else:
                path.unlink(missing_ok=True)
                if locked:  # forked processes have the file open too
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # the first that is not empty
            for one in made:
                one.rmdir()


def _taken(path: Path, doing: str, advice: str) -> tuple[int, bool]:
    """The file, opened, and whether it is the system that keeps others out."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _locked(descriptor)
            if locked is None:  # by the name in it
                holder = _holder(path)
                if holder and not is_dead(_process(holder)):
                    raise UsageError(_refusal(path, doing, advice, holder, f"; if that has ended, delete {path}"))
            elif not locked:
                raise UsageError(_refusal(path, doing, advice, _holder(path)))
            if _is(descriptor, path):  # and not one that its holder has just removed
                try:
                    _sign(descriptor)
                except OSError:  # a full disk
                    path.unlink(missing_ok=True)
                    raise
                return descriptor, bool(locked)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _locked(descriptor: int) -> bool | None:
    """Whether this has the lock now; None: there are no locks here."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _is(descriptor: int, path: Path) -> bool:
    """Whether a path still names the opened file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = json.dumps({"name": platform.node(), "since": now, **asdict(this())})
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text.encode())


def _holder(path: Path) -> dict[str, Any]:
    """What the file tells of who holds it; nothing where that has not signed yet."""
    with suppress(OSError, ValueError):
        told = json_table(path.read_bytes(), names=True)
        if all(isinstance(told.get(key), str) for key in ("name", "since", "host", "start")):
            whole(told.get("pid"), "pid")
            return told
    return {}


def _process(holder: dict[str, Any]) -> Process:
    return Process(str(holder["host"]), holder["pid"], str(holder["start"]))


def _refusal(path: Path, doing: str, advice: str, holder: dict[str, Any], more: str = "") -> str:
    who = "another process"
    if holder:
        who = f"process {holder['pid']} on {holder['name']} since {holder['since']}"
    return f"{path.parent}: {doing} is under way there, by {who}; wait for it, or {advice}{more}."
