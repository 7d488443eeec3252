"""Parquet files that ``datasets.load_dataset("parquet", data_dir=DEST)`` reads, one row a sample.

``latents`` (and ``latents_flip``) is a list of numbers, row by row of [C, h, w], which ``shape`` gives: sizes may
differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from calotype.cache.export.face import Wants
from calotype.cache.export.rows import Row, Rows
from calotype.cache.job import Job
from calotype.cache.tables import arrow
from calotype.files import writing

FILE_BYTES = 2**28
GROUP_BYTES = 2**24

_COLUMNS = (
    "name", "caption", "label", "width", "height", "resized_width", "resized_height", "crop_x", "crop_y",
    "bucket_width", "bucket_height",
)  # fmt: skip


class Parquet:
    """See the module."""

    name, title, upright, beside = "diffusers-parquet", "A data set of Parquet files", True, False

    def wants(self, job: Job, model: str | None) -> Wants:
        """See `face.Format`."""
        return Wants()

    def write(self, rows: Rows, folder: Path) -> None:
        """See `face.Format`."""
        _, pq = arrow()
        most = max(rows.row_bytes(bucket) for bucket in rows.buckets)
        group = max(1, GROUP_BYTES // most)
        each = max(1, FILE_BYTES // most)
        files = -(-len(rows) // each)
        schema = _schema(rows)
        for number in range(files):
            part = rows.samples.slice(number * each, each)
            with (
                writing(folder / f"train-{number:05d}-of-{files:05d}.parquet") as file,
                pq.ParquetWriter(file, schema, compression="zstd") as writer,
            ):
                waiting: list[Row] = []
                for row in rows.read(part):
                    waiting.append(row)
                    if len(waiting) == group:
                        writer.write_table(_table(waiting, schema))
                        waiting = []
                if waiting:
                    writer.write_table(_table(waiting, schema))
        rows.write_about(folder)


def _schema(rows: Rows) -> Any:
    pa, _ = arrow()
    numbers = pa.list_(pa.float16() if rows.dtype == "float16" else pa.float32())
    own = [rows.samples.schema.field(name) for name in _COLUMNS]
    return pa.schema(
        [
            pa.field("sha256", pa.string()),
            *own,
            pa.field("shape", pa.list_(pa.int32())),
            pa.field("latents", numbers),
            *([pa.field("latents_flip", numbers)] if rows.flips else []),
        ]
    )


def _table(rows: list[Row], schema: Any) -> Any:
    pa, _ = arrow()
    columns: dict[str, Any] = {name: [row.told[name] for row in rows] for name in _COLUMNS}
    columns["sha256"] = [row.told["key"].hex() for row in rows]
    columns["shape"] = [list(row.latents.shape) for row in rows]
    made: dict[str, list[Tensor | None]] = {
        "latents": [row.latents for row in rows],
        "latents_flip": [row.flip for row in rows],
    }
    arrays = []
    for one in schema:
        if one.name in made:
            tensors = [tensor.reshape(-1).numpy() for tensor in made[one.name] if tensor is not None]
            ends = np.cumsum([0, *(len(numbers) for numbers in tensors)]).astype(np.int32)
            values = pa.array(np.concatenate(tensors), type=one.type.value_type)
            arrays.append(pa.ListArray.from_arrays(pa.array(ends), values).cast(one.type))
        else:
            arrays.append(pa.array(columns[one.name], type=one.type))
    return pa.table(arrays, schema=schema)
