"""numpy: an array ``1024x768.npy`` [N, C, h, w] of each size, and ``index.parquet``, which says what each row is of."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from calotype.cache.buckets import Size
from calotype.cache.export.face import Wants
from calotype.cache.export.rows import Rows
from calotype.cache.job import Job
from calotype.cache.tables import arrow, parquet
from calotype.files import write_bytes, writing_all

INDEX = "index.parquet"


class Numpy:
    """See the module."""

    name, title, upright, beside = "numpy", "numpy's .npy", True, False

    def wants(self, job: Job, model: str | None) -> Wants:
        """See `face.Format`."""
        return Wants()

    def write(self, rows: Rows, folder: Path) -> None:
        """See `face.Format`."""
        pa, _ = arrow()
        tables = []
        for bucket in rows.buckets:
            samples = rows.of(bucket)
            _array(rows, samples, bucket, folder)
            count, name = samples.num_rows, f"{bucket[0]}x{bucket[1]}.npy"
            tables.append(
                samples.drop_columns(["unit", "row", "min", "max", "crc32"])
                .append_column("file", pa.array([name] * count, type=pa.string()))
                .append_column("row", pa.array(np.arange(count), type=pa.int64()))
            )
        write_bytes(folder / INDEX, parquet(pa.concat_tables(tables)))
        rows.write_about(folder)


def _array(rows: Rows, samples: Any, bucket: Size, folder: Path) -> None:
    """Writes the array of a size, and that of the mirrored pictures, row by row."""
    stem = f"{bucket[0]}x{bucket[1]}"
    names = [f"{stem}.npy", *([f"{stem}-flip.npy"] if rows.flips else [])]
    head = io.BytesIO()
    told = {"descr": f"<f{2 if rows.dtype == 'float16' else 4}", "fortran_order": False,
            "shape": (samples.num_rows, *rows.shape(bucket))}  # fmt: skip
    npy.write_array_header_1_0(head, told)
    with writing_all([folder / name for name in names]) as files:
        for file in files:
            file.write(head.getvalue())
        for row in rows.read(samples):
            for file, tensor in zip(files, (row.latents, row.flip), strict=False):
                assert tensor is not None
                file.write(tensor.numpy().tobytes())
