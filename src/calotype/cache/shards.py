"""Shards: safetensors files of one bucket, written row by row and looked at before they count.

Rows are written where they belong in the file, and not into mapped memory: what is mapped counts as the process's own
memory, and a full disk would end the process by a signal instead of an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calotype.cache.job import Job
from calotype.errors import StorageError
from calotype.tensor_files import safetensors_parts

_STEP = 2**20  # bytes, a multiple of any number's
_EXPONENTS = {"float16": (np.uint16, 0x7C00), "bfloat16": (np.uint16, 0x7F80), "float32": (np.uint32, 0x7F800000)}


@dataclass(frozen=True)
class Layout:
    """Where what lies in a shard.

    Attributes:
        header: the file's beginning.
        starts: of each tensor, by name, in bytes from the file's beginning.
        row: bytes of one row of one tensor.
        size: of the file in bytes.
    """

    header: bytes
    starts: Mapping[str, int]
    row: int
    size: int


def layout(job: Job, bucket: tuple[int, int], count: int) -> Layout:
    """Of a shard with so many rows."""
    dtype: torch.dtype = getattr(torch, job.store)
    shape = (count, *job.shape(bucket))
    empty = {name: torch.empty(shape, dtype=dtype, device="meta") for name in job.tensors}
    metadata = {
        "format": "calotype cache", "space": "raw", "value": job.value, "vae": job.vae.sha256,
        "fingerprint": job.fingerprint, "bucket": f"{bucket[0]}x{bucket[1]}",
    }  # fmt: skip
    header = bytes(next(safetensors_parts(empty, metadata)))
    offsets = {name: one["data_offsets"] for name, one in json.loads(header[8:]).items() if name != "__metadata__"}
    starts = {name: len(header) + offsets[name][0] for name in job.tensors}
    row = job.sample_bytes(bucket) // len(job.tensors)
    return Layout(header, starts, row, len(header) + count * row * len(job.tensors))


@dataclass(frozen=True)
class Row:
    """What is known of a row that was written."""

    least: float
    most: float
    crc32: int


class Writer:
    """A shard while it is made.

    Args:
        path: where to write; the file is there and empty.
        count: rows at most.

    Attributes:
        count: rows so far.
        sum, squares, variance: see `receipts.Sums`; float64 [C].
    """

    def __init__(self, path: Path, job: Job, bucket: tuple[int, int], count: int) -> None:
        self.path, self.job, self.bucket, self.count = path, job, bucket, 0
        self._layout = layout(job, bucket, count)
        self._most = count
        self._file = path.open("r+b", buffering=0)
        channels = job.vae.channels
        self.sum, self.squares, self.variance = (np.zeros(channels) for _ in range(3))

    def add(self, tensors: Mapping[str, Tensor]) -> Row:
        """Writes a row: of each tensor [C, h, w], in the type that is stored, and finite.

        Raises:
            OSError: the disk refuses it.
        """
        crc, least, most = 0, float("inf"), -float("inf")
        for name in self.job.tensors:
            tensor = tensors[name].contiguous()
            data = tensor.view(torch.uint8).numpy().tobytes()
            self._put(data, self._layout.starts[name] + self.count * self._layout.row)
            crc = zlib.crc32(data, crc)
            least, most = min(least, float(tensor.min())), max(most, float(tensor.max()))
        self._sum(tensors)
        self.count += 1
        return Row(least, most, crc)

    def _sum(self, tensors: Mapping[str, Tensor]) -> None:
        values: NDArray[np.float64] = tensors[self.job.point].double().numpy()
        self.sum += values.sum(axis=(1, 2))
        self.squares += np.square(values).sum(axis=(1, 2))
        if self.job.value == "moments":
            self.variance += np.exp(tensors["logvar"].double().numpy()).sum(axis=(1, 2))

    def finish(self) -> None:
        """Makes it a file of as many rows as there are, forced to the disk.

        Raises:
            OSError: the disk refuses it.
        """
        final = layout(self.job, self.bucket, self.count)
        if self.count < self._most:  # rows of each tensor move up, where nothing unread lies
            for name in sorted(self.job.tensors, key=self._layout.starts.__getitem__):
                self._move(self._layout.starts[name], final.starts[name], self.count * self._layout.row)
        self._put(final.header, 0)
        self._file.truncate(final.size)
        os.fsync(self._file.fileno())
        self._file.close()

    def _move(self, start: int, target: int, size: int) -> None:
        for at in range(0, size, _STEP):
            self._file.seek(start + at)
            self._put(self._file.read(min(_STEP, size - at)), target + at)

    def _put(self, data: bytes, at: int) -> None:
        self._file.seek(at)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) or 0 :]

    def close(self) -> None:
        """Ends it, finished or not."""
        self._file.close()


def look(path: Path, job: Job, bucket: tuple[int, int], count: int) -> tuple[str, int]:
    """Reads a shard as it lies on the disk: its sha256, and its bytes.

    Raises:
        OSError: it can't be read.
        StorageError: it is not as it must be; says what is wrong in part of a sentence.
    """
    expected = layout(job, bucket, count)
    kind, exponent = _EXPONENTS[job.store]
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        if (size := os.fstat(file.fileno()).st_size) != expected.size:
            raise StorageError(f"it has {size:,} bytes, not {expected.size:,}")
        header = _exactly(file, len(expected.header))
        if header != expected.header:
            raise StorageError("its header is not that of its job, bucket and number of rows")
        digest.update(header)
        left = size - len(header)
        while left:
            data = _exactly(file, min(_STEP, left))
            digest.update(data)
            bits = np.frombuffer(data, dtype=kind)
            if ((bits & exponent) == exponent).any():
                raise StorageError("it holds NaN or infinity")
            left -= len(data)
    return digest.hexdigest(), size


def _exactly(file: Any, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = file.read(size - len(parts))
        if not part:
            raise StorageError("it ends too early")
        parts += part
    return parts
