"""An attempt at a unit: its shard as it grows, under a name of its own, and what puts it where it belongs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from calotype.cache.job import Job
from calotype.cache.receipts import Bad, Receipt, Sums
from calotype.cache.rules import Placed
from calotype.cache.shards import Row, Writer, look
from calotype.cache.store import Store, receipt_name, samples_name, shard_name
from calotype.cache.tables import SAMPLES, parquet, table
from calotype.cache.units import Sample, Unit
from calotype.errors import StorageError
from calotype.files import refusal


class Attempt:
    """A unit that is made, and that nothing knows of yet.

    Attributes:
        bad: pictures that could not be cached.
    """

    def __init__(self, job: Job, unit: Unit, store: Store) -> None:
        self._job, self._unit, self._store = job, unit, store
        self.bad: list[Bad] = []
        self._rows: list[tuple[Sample, Placed, Row]] = []
        self._began = time.monotonic()
        self._name = shard_name(unit.id, unit.bucket)
        self._context = store.attempt(self._name)
        self._path = self._context.__enter__()
        try:
            self._writer = Writer(self._path, job, unit.bucket, len(unit.samples))
        except BaseException as error:
            self._end(error)
            raise

    def add(self, sample: Sample, placed: Placed, tensors: Mapping[str, Tensor]) -> None:
        """Writes a picture's tensors, each [C, h, w], by their names.

        Raises:
            StorageError: the disk refuses it.
        """
        try:
            row = self._writer.add(tensors)
        except OSError as error:
            raise StorageError(refusal(self._store.path(self._name), error)) from None
        self._rows.append((sample, placed, row))

    def drop(self) -> None:
        """Leaves nothing of it."""
        self._writer.close()
        self._end(_Dropped())

    def _end(self, error: BaseException | None) -> None:
        self._context.__exit__(type(error) if error else None, error, None)

    def commit(self, made: Mapping[str, Any]) -> Receipt:
        """See `Worker.commit`.

        Args:
            made: by what.

        Raises:
            StorageError: the disk refuses it, or what came back from it is not what was written.
        """
        count, digest, size = self._writer.count, "", 0
        if count:
            try:
                self._writer.finish()
                digest, size = look(self._path, self._job, self._unit.bucket, count)
            except OSError as error:
                self.drop()
                raise StorageError(refusal(self._store.path(self._name), error)) from None
            except StorageError as error:
                self.drop()
                raise StorageError(
                    f"{self._store.path(self._name)}: the disk did not keep what was written: {error}; look at the "
                    f"disk."
                ) from None
            self._end(None)
        else:
            self.drop()
        samples = parquet(table(samples_columns(self._rows), SAMPLES))
        self._store.write(samples_name(self._unit.id), samples)
        writer, shape = self._writer, self._job.shape(self._unit.bucket)
        receipt = Receipt(
            unit=self._unit.id,
            fingerprint=self._job.fingerprint,
            bucket=self._unit.bucket,
            count=count,
            shard_bytes=size,
            shard_sha256=digest,
            samples_bytes=len(samples),
            samples_sha256=hashlib.sha256(samples).hexdigest(),
            sums=Sums(
                count * shape[1] * shape[2],
                tuple(map(float, writer.sum)),
                tuple(map(float, writer.squares)),
                tuple(map(float, writer.variance)) if self._job.value == "moments" else (),
            ),
            bad=tuple(self.bad),
            made={
                **made,
                "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
                "seconds": round(time.monotonic() - self._began, 3),
            },
        )
        self._store.write(receipt_name(self._unit.id), receipt.to_bytes())
        return receipt


class _Dropped(Exception):
    """Tells what holds a temporary that it is not to be kept."""


def samples_columns(rows: Sequence[tuple[Sample, Placed, Row]]) -> dict[str, list[Any]]:
    """Columns of samples/UNIT.parquet, by their names, from the rows that a shard got."""
    columns: dict[str, list[Any]] = {name: [] for name in SAMPLES}
    for number, (sample, placed, row) in enumerate(rows):
        values = (
            sample.key, sample.name, *sample.stored, *sample.upright, *placed.resized, *placed.corner, *placed.bucket,
            sample.caption, sample.label, number, row.least, row.most, row.crc32,
        )  # fmt: skip
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return columns
