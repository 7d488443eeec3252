"""Memory and temporary files of one run."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calotype.engine.blocks import aligned
from calotype.errors import MemoryLimitError
from calotype.steps import Map
from calotype.temporaries import temporary_file

PLENTY = 2**33
"""Bytes that must be free for memory to be held to save time."""


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated now: what the system has free, or the device, or the container's limit leaves."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return max(0, int(torch.mps.recommended_max_memory()) - torch.mps.current_allocated_memory())
    limits = [_available()]
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            texts = [Path(folder, name).read_text() for name in (limit, used, "memory.stat")]
            files = re.search(r"^(?:total_)?inactive_file (\d+)", texts[2], re.MULTILINE)  # given back when asked for
            limits.append(int(texts[0]) - int(texts[1]) + int(files[1] if files else 0))
        except (OSError, ValueError):
            continue  # no such limit, or "max"
    return max(0, min(limits))


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    if sys.platform == "win32":
        status = (ctypes.c_ulonglong * 8)()
        ctypes.cast(status, ctypes.POINTER(ctypes.c_ulong))[0] = ctypes.sizeof(status)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(status)
        return int(status[2])
    try:  # macOS tells the whole only; half of it is a cautious guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError):
        return 2**62


IDLE = 8 * 2**30  # bytes at most that stay mapped for the next run


class Memory:
    """One block of memory on a device.

    On the CPU a block of moderate size stays mapped when it is closed, for the next run: touching new pages costs more
    than a tenth of a decode. The system is told that it may take them whenever it likes.

    Args:
        size: in bytes.
        device: where it is.

    Attributes:
        bytes: all of it, uint8 [size] or a little longer; empty once it is closed.
        address: of its first byte, on the device.

    Raises:
        MemoryLimitError: if there is not so much.
    """

    _idle: ClassVar[list[mmap.mmap]] = []  # of one size, as many as runs were under way at once

    def __init__(self, size: int, device: torch.device) -> None:
        self._map: mmap.mmap | None = None
        try:
            if device.type == "cpu":
                self._map = self._reused(size) or _mapped(size)
                self.bytes = torch.from_numpy(np.frombuffer(self._map, dtype=np.uint8))
            else:
                self.bytes = torch.empty(max(size, 1), dtype=torch.uint8, device=device)
        except (OSError, ValueError, OverflowError, torch.OutOfMemoryError):
            raise MemoryLimitError(
                f"{size / 1e9:.2f} GB of memory can't be allocated; allow less with --memory (memory=)."
            ) from None
        self.address = self.bytes.data_ptr()

    @classmethod
    def _reused(cls, size: int) -> mmap.mmap | None:
        try:
            idle = cls._idle.pop()  # atomic: runs in several threads never share one
        except IndexError:
            return None
        return idle if size <= len(idle) <= 1.125 * size + 2**22 else None

    def close(self) -> None:
        """Lets go of it; views of it may be overwritten from now on."""
        self.bytes = torch.empty(0, dtype=torch.uint8)
        if self._map is not None and len(self._map) <= IDLE and hasattr(mmap, "MADV_FREE"):
            with suppress(OSError):
                self._map.madvise(mmap.MADV_FREE)
                kept = [self._map, *(one for one in self._others() if len(one) == len(self._map))]
                self._idle.extend(kept[: IDLE // len(self._map)])
        self._map = None

    @classmethod
    def _others(cls) -> Iterator[mmap.mmap]:
        """Takes all that are idle, one by one, so that each has one owner at any time."""
        with suppress(IndexError):
            while True:
                yield cls._idle.pop()

    def view(self, offset: int, rows: int, width: int, channels: int, dtype: torch.dtype) -> Tensor:
        """[rows, width, channels] of a `dtype`, from `offset` (bytes) on."""
        size = rows * width * channels * dtype.itemsize
        return self.bytes[offset : offset + size].view(dtype).view(rows, width, channels)


def room(scratch: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A tensor of this shape and `dtype` at the beginning of some bytes, and the bytes after it."""
    size = math.prod(shape) * dtype.itemsize
    return scratch[:size].view(dtype).view(*shape), scratch[aligned(size) :]


def _mapped(size: int) -> mmap.mmap:
    """Memory straight from the system, in large pages: the allocator's would be faulted in one by one."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    mapped = mmap.mmap(-1, max(size, mmap.PAGESIZE), **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def trim() -> None:
    """Has glibc give back what it keeps of freed memory, which no plan counts: up to 64 MB, or all (`keep_freed`)."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)


def keep_freed(least: int = 0) -> None:
    """Has glibc keep what is freed from now on, in the whole process; `trim` and `give_back` empty what is kept.

    Where the same work comes again and again, as in training or with picture after picture, new pages, which the
    system zeroes, take a good part of its time. The most that is held grows, too.

    Args:
        least: bytes that must be free, or nothing changes.
    """
    if free_memory(torch.device("cpu")) < least:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
        mallopt(m_trim_threshold, -1)
        mallopt(m_mmap_max, 0)


def give_back() -> None:
    """Trims where more is kept than a quarter of what is free besides: plans count what the system has free only."""
    if _kept() > free_memory(torch.device("cpu")) // 4:
        trim()


class _Mallinfo2(ctypes.Structure):
    """Of malloc.h."""

    _fields_ = (("before", ctypes.c_size_t * 8), ("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t))


def _kept() -> int:
    """Bytes that glibc keeps of what was freed, those that were trimmed inside the heap among them."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
    if mallinfo2 is None:  # glibc before 2.33 has none, and other systems keep nothing
        return sys.maxsize
    mallinfo2.restype = _Mallinfo2
    return int(mallinfo2().fordblks)


@dataclass(eq=False)
class Rows:
    """Rows of a map in memory: all of them, or a window that moves down.

    Attributes:
        map: whose rows they are.
        tensor: [rows, width, channels].
        first: which row of the map the first one is.
        end: the row after the last that is there.
    """

    map: Map
    tensor: Tensor
    first: int = 0
    end: int = 0

    def make_room(self, end: int, drop: int) -> None:
        """Room for rows before `end`, if need be over those before `drop`."""
        if end - self.first > len(self.tensor):
            drop = min(drop, self.end)
            kept = self.end - drop
            if kept:
                held = self.tensor[drop - self.first : self.end - self.first]
                if self.tensor.device.type == "cpu":
                    ctypes.memmove(self.tensor.data_ptr(), held.data_ptr(), held.numel() * held.element_size())
                else:
                    self.tensor[:kept] = held.clone()
            self.first = drop
        self.end = max(self.end, end)

    def __getitem__(self, rows: slice) -> Tensor:
        """Rows by their number in the map, a view."""
        return self.tensor[rows.start - self.first : rows.stop - self.first]

    @property
    def address(self) -> int:
        """Of the first row that is there."""
        return self.tensor.data_ptr()


def spill_folder() -> str | None:
    """Where maps are spilled: TMPDIR, or else a folder that is hardly ever in memory itself, as /tmp may be."""
    if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK):
        return "/var/tmp"
    return None


@dataclass(eq=False)
class Spill:
    """Maps in temporary files that have no name any more, so that nothing is left of them however the process ends."""

    folder: str | None = None  # where the files are; None: where the system has temporary files
    _files: dict[str, IO[bytes]] = field(default_factory=dict)

    def write(self, one: Map, row: int, rows: Tensor) -> None:
        """Puts rows [n, width, channels] into a map from a row on.

        Raises:
            MemoryLimitError: if the disk is full, or there is no place for files.
        """
        data = _bytes(rows)
        try:
            if one.name not in self._files:
                self._files[one.name] = temporary_file(self.folder, buffering=0)
            self._move(one.name, row * len(data) // len(rows), data, "write")
        except OSError as error:
            raise MemoryLimitError(
                f"A temporary file can't be written in {self.folder or tempfile.tempdir or 'any folder'} "
                f"({error.strerror}); give more --memory, or a TMPDIR with more room."
            ) from None

    def read(self, one: Map, row: int, rows: Tensor) -> None:
        """Fills rows [n, width, channels] with those of a map from a row on.

        Raises:
            MemoryLimitError: if the disk does not give them back.
        """
        data = _bytes(rows) if rows.device.type == "cpu" else memoryview(bytearray(rows.numel() * rows.element_size()))
        try:
            self._move(one.name, row * len(data) // len(rows), data, "readinto")
        except OSError as error:
            raise MemoryLimitError(
                f"A temporary file can't be read back ({error.strerror}); give more --memory, or another TMPDIR."
            ) from None
        if rows.device.type != "cpu":
            rows.copy_(torch.frombuffer(data, dtype=rows.dtype).view(rows.shape))

    def _move(self, name: str, at: int, data: memoryview, how: Literal["write", "readinto"]) -> None:
        """Moves all bytes; the system may move fewer than it was asked to."""
        file = self._files[name]
        file.seek(at)
        while len(data):
            moved = getattr(file, how)(data)
            if not moved:
                raise OSError(0, "it ends too early")
            data = data[moved:]

    def forget(self, one: str) -> None:
        """Gives the room on the disk back of one map, by its name."""
        if one in self._files:
            self._files.pop(one).close()

    def close(self) -> None:
        """Gives back all of it."""
        for name in list(self._files):
            self.forget(name)


def _bytes(rows: Tensor) -> memoryview:
    flat: npt.NDArray[np.uint8] = rows.contiguous().cpu().view(torch.uint8).numpy().reshape(-1)
    return flat.data
