"""WebDataset: tars with ``KEY.npy``, ``KEY.json`` and ``KEY.txt`` of each sample, for `webdataset` and `datasets`.

Keys are numbers, since both cut a member's name at its first dot. `datasets` tells the members from the first five
samples, and their types from these samples' JSON: all have the same members, and no value is null.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from calotype.cache.export.face import Wants
from calotype.cache.export.rows import Row, Rows
from calotype.cache.job import Job
from calotype.files import writing

SHARD_BYTES = 2**28
_MEMBER = 1024  # bytes that a member takes beside its own, about


class WebDataset:
    """See the module."""

    name, title, upright, beside = "webdataset", "WebDataset's .npy", True, False

    def wants(self, job: Job, model: str | None) -> Wants:
        """See `face.Format`."""
        return Wants()

    def write(self, rows: Rows, folder: Path) -> None:
        """See `face.Format`."""
        captions = rows.samples["caption"].null_count < len(rows)
        latent_format = rows.format.name
        shards = _Shards(folder)
        with shards.closing():
            for number, row in enumerate(rows):
                members = {"npy": _npy(row.latents)}
                if row.flip is not None:
                    members["flip.npy"] = _npy(row.flip)
                members["json"] = json.dumps(_told(rows, row, latent_format), ensure_ascii=False).encode()
                if captions:
                    members["txt"] = (row.told["caption"] or "").encode()
                shards.add(f"{number:09d}", members)
        rows.write_about(folder)


class _Shards:
    """Tars, one after another, none much larger than `SHARD_BYTES`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number, self.size = folder, 0, 0
        self._open: Any = None
        self._tar: tarfile.TarFile | None = None

    @contextmanager
    def closing(self) -> Iterator[None]:
        """The last one is finished when the block ends well, and dropped otherwise."""
        try:
            yield
        except BaseException as error:
            if self._tar is not None:
                self._open.__exit__(type(error), error, None)
            raise
        self._finish()

    def add(self, key: str, members: dict[str, bytes]) -> None:
        size = sum(len(content) + _MEMBER for content in members.values())
        if self._tar is not None and self.size + size > SHARD_BYTES:
            self._finish()
        if self._tar is None:
            self._open = writing(self.folder / f"{self.number:06d}.tar")
            self._tar = tarfile.open(fileobj=self._open.__enter__(), mode="w")  # noqa: SIM115
        for name, content in members.items():
            told = tarfile.TarInfo(f"{key}.{name}")
            told.size = len(content)
            self._tar.addfile(told, io.BytesIO(content))
        self.size += size

    def _finish(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._open.__exit__(None, None, None)
            self._tar, self.number, self.size = None, self.number + 1, 0


def _npy(tensor: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, tensor.numpy(), allow_pickle=False)
    return file.getvalue()


def _told(rows: Rows, row: Row, latent_format: str) -> dict[str, Any]:
    told = row.told
    return {
        "name": told["name"],
        "sha256": told["key"].hex(),
        "label": told["label"] or "",
        "original_size": [told["width"], told["height"]],
        "resized_size": [told["resized_width"], told["resized_height"]],
        "crop": [told["crop_x"], told["crop_y"]],
        "bucket": list(row.bucket),
        "value": rows.value,
        "space": rows.space,
        "latent_format": latent_format,
        "vae_sha256": rows.cache.job.vae.sha256,
    }
