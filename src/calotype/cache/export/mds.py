"""MDS, which MosaicML's streaming reads: ``index.json`` and ``shard.00000.mds``, with the columns of micro_diffusion.

Of a shard (mosaicml/streaming, streaming/base/format/mds): the number of samples and where each begins, up to the last
one's end, as uint32; the columns, JSON; the samples. A sample: sizes of its columns as uint32, then their bytes, in the
order of the columns' names.

SonyResearch/micro_diffusion 900d7d4 (micro_diffusion/datasets) and mosaicml/diffusion read ``latents_512`` as bytes of
float16, scaled, of squares of that side, and ``caption``. Their ``caption_latents`` are of a text encoder, and are not
made here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from calotype.cache.buckets import Size
from calotype.cache.export.face import Wants
from calotype.cache.export.rows import Rows
from calotype.cache.job import Job
from calotype.files import write_bytes, write_text

SHARD_BYTES = 2**26  # MDSWriter's own


class Mds:
    """See the module."""

    name, title, upright, beside = "mds", "An MDS data set", True, False

    def wants(self, job: Job, model: str | None) -> Wants:
        """See `face.Format`."""
        return Wants(value="sample", space="model", dtype="float16", bfloat16=False, flips="left out", one_size=True)

    def write(self, rows: Rows, folder: Path) -> None:
        """See `face.Format`."""
        columns = {"caption": "str", "name": "str", column(next(iter(rows.buckets))): "bytes"}
        shards = _Shards(folder, columns)
        for row in rows:
            values = {"caption": row.told["caption"] or "", "name": row.told["name"]}
            data = {name: value.encode() for name, value in values.items()}
            data[column(row.bucket)] = row.latents.numpy().tobytes()
            shards.add([data[name] for name in sorted(columns)])
        shards.finish()
        rows.write_about(folder)


def column(bucket: Size) -> str:
    """What the latents' column is called."""
    return f"latents_{bucket[0]}" if bucket[0] == bucket[1] else f"latents_{bucket[0]}x{bucket[1]}"


class _Shards:
    """Shards, one after another, each written when it is full."""

    def __init__(self, folder: Path, columns: dict[str, str]) -> None:
        names = sorted(columns)
        self._folder = folder
        self._config: dict[str, Any] = {
            "version": 2, "format": "mds", "compression": None, "hashes": [], "size_limit": SHARD_BYTES,
            "column_names": names, "column_encodings": [columns[name] for name in names],
            "column_sizes": [None] * len(names),
        }  # fmt: skip
        self._head = json.dumps(self._config, sort_keys=True).encode()
        self._told: list[dict[str, Any]] = []
        self._samples: list[bytes] = []
        self._size = 0

    def add(self, values: list[bytes]) -> None:
        sample = b"".join([np.array([len(value) for value in values], dtype="<u4").tobytes(), *values])
        size = len(sample) + 4
        if self._samples and 8 + len(self._head) + self._size + size > SHARD_BYTES:
            self._write()
        self._samples.append(sample)
        self._size += size

    def finish(self) -> None:
        """Writes the last shard, and the index."""
        self._write()
        write_text(self._folder / "index.json", json.dumps({"version": 2, "shards": self._told}, sort_keys=True))

    def _write(self) -> None:
        count = len(self._samples)
        ends = np.cumsum([0, *map(len, self._samples)]) + 4 + 4 * (count + 1) + len(self._head)
        content = b"".join([np.array([count, *ends], dtype="<u4").tobytes(), self._head, *self._samples])
        name = f"shard.{len(self._told):05d}.mds"
        write_bytes(self._folder / name, content)
        raw = {"basename": name, "bytes": len(content), "hashes": {}}
        self._told.append({**self._config, "samples": count, "raw_data": raw, "zip_data": None})
        self._samples, self._size = [], 0
