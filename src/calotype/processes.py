"""Which process this is, and whether another one is dead: what names and locks on a disk tell of who made them."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

UNKNOWN = "0"  # in the place of a start, where the system doesn't tell it
_FIRST_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of Linux's proc_ns.h


@dataclass(frozen=True)
class Process:
    """A process, as others can know it again.

    Attributes:
        host: 12 hexadecimal digits: of this machine, and of the container where numbers of processes are its own.
        pid: its number.
        start: 8 hexadecimal digits: of when it began, since numbers are used again; "0" where that is not known.
    """

    host: str
    pid: int
    start: str


def this() -> Process:
    """This process."""
    return _this(os.getpid())


def is_dead(one: Process) -> bool:
    """Whether a process has certainly ended: never of another host, and never where the system doesn't tell."""
    if one.host != _host():
        return False
    if sys.platform == "win32":
        return not _runs_on_windows(one.pid)
    try:
        os.kill(one.pid, 0)  # sends nothing
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's, or no number of a process
        pass
    start, ended = _stat(one.pid)
    return ended or (UNKNOWN not in (start, one.start) and start != one.start)


@lru_cache(maxsize=1)  # a forked process asks anew
def _this(pid: int) -> Process:
    return Process(_host(), pid, _stat(pid)[0])


@lru_cache(maxsize=1)
def _host() -> str:
    """Of what has its own numbers of processes; other machines may have the same name, and containers the same all."""
    parts = [platform.node(), _text("/etc/machine-id")]
    if sys.platform == "linux":
        try:
            namespace = str(Path("/proc/self/ns/pid").readlink())
        except OSError:
            namespace = f"not told to {os.getpid()}"
        if namespace != _FIRST_NAMESPACE:  # its number may come again, but not before the machine is started again
            parts += [namespace, _text("/proc/sys/kernel/random/boot_id")]
    return _digest(*parts)[:12]


def _stat(pid: int) -> tuple[str, bool]:
    """When a process began, and whether it has ended and only waits for its parent to look (Linux's proc(5))."""
    text = _text(f"/proc/{pid}/stat") if sys.platform == "linux" else ""
    fields = text.rpartition(")")[2].split()  # its name, in brackets, may hold anything
    if len(fields) < 20:
        return UNKNOWN, False
    return _digest(_text("/proc/sys/kernel/random/boot_id"), fields[19])[:8], fields[0] in "ZX"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return ""


if sys.platform == "win32":

    def _runs_on_windows(pid: int) -> bool:
        """By OpenProcess and GetExitCodeProcess; os.kill would end it."""
        import ctypes
        from ctypes import wintypes

        query_limited_information, access_denied, still_active = 0x1000, 5, 259
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = wintypes.HANDLE
        handle = wintypes.HANDLE(kernel.OpenProcess(query_limited_information, False, wintypes.DWORD(pid)))
        if not handle:
            return ctypes.get_last_error() == access_denied
        code = wintypes.DWORD()
        told = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return not told or code.value == still_active
