"""LightningDiT: ``latents_rank00_shard000.safetensors`` and ``latents_stats.pt`` (extract_features.py and
datasets/img_latent_dataset.py of hustvl/LightningDiT 2725fed): raw samples in float32 of one size, those of mirrored
pictures, and a class for each; its reader normalises by the statistics.

A label that is no number becomes the number of its place among all labels, sorted, as torchvision's ImageFolder has
them; ``classes.json`` tells which is which.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.cache.export.face import Wants
from calotype.cache.export.rows import Rows
from calotype.cache.job import Job
from calotype.errors import UsageError
from calotype.files import write_bytes, write_text, writing
from calotype.tensor_files import safetensors_parts
from calotype.texts import plain

SHARD = 10_000  # pictures, as extract_features.py has them


class LightningDiT:
    """See the module."""

    name, title, upright, beside = "lightningdit", "LightningDiT", True, False

    def wants(self, job: Job, model: str | None) -> Wants:
        """See `face.Format`."""
        return Wants(value="sample", space="raw", fixed=True, dtype="float32", flips="needed", one_size=True)

    def write(self, rows: Rows, folder: Path) -> None:
        """See `face.Format`."""
        labels, classes = _labels(rows)
        sums = _Sums(rows.shape(next(iter(rows.buckets)))[0])
        for number, start in enumerate(range(0, len(rows), SHARD)):
            part = labels[start : start + SHARD]
            _shard(rows, start, part, folder / f"latents_rank00_shard{number:03d}.safetensors", sums)
        file = io.BytesIO()
        torch.save(sums.told(), file)
        write_bytes(folder / "latents_stats.pt", file.getvalue())
        write_text(folder / "classes.json", json.dumps(classes, ensure_ascii=False, indent=1) + "\n")
        rows.write_about(folder)


def _shard(rows: Rows, start: int, labels: Tensor, path: Path, sums: _Sums) -> None:
    """Writes a shard, row by row where it belongs."""
    bucket = next(iter(rows.buckets))
    shape = (len(labels), *rows.shape(bucket))
    tensors = {
        "latents": torch.empty(shape, device="meta"),
        "latents_flip": torch.empty(shape, device="meta"),
        "labels": labels.to("meta"),
    }
    metadata = {"total_size": str(len(labels)), "dtype": "torch.float32", "device": "cpu"}
    header = bytes(next(safetensors_parts(tensors, metadata)))
    starts = {
        name: len(header) + one["data_offsets"][0] for name, one in json.loads(header[8:]).items() if name in tensors
    }
    with writing(path) as file:

        def put(at: int, data: bytes) -> None:
            file.seek(at)
            file.write(data)

        put(0, header)
        put(starts["labels"], labels.numpy().tobytes())
        for i, row in enumerate(rows.read(rows.samples.slice(start, len(labels)))):
            assert row.flip is not None
            for name, tensor in (("latents", row.latents), ("latents_flip", row.flip)):
                put(starts[name] + i * tensor.nbytes, tensor.numpy().tobytes())
            sums.add(row.latents)


def _labels(rows: Rows) -> tuple[Tensor, list[str]]:
    """A class for each sample, [N] int64, and what each class is called.

    Raises:
        UsageError: a picture has none.
    """
    told = rows.samples["label"].to_pylist()
    if None in told:
        name = rows.samples["name"][told.index(None)].as_py()
        raise UsageError(
            f"LightningDiT reads a class for each picture, and {told.count(None):,} have no label, such as "
            f"{plain(name)}; run calotype cache make again, with --folders where their folders are classes."
        )
    distinct = sorted(set(told))
    numeric = all(label.isdecimal() and len(label) < 10 for label in distinct)
    if numeric and len({int(label) for label in distinct}) == len(distinct):  # and not both 1 and 01
        return torch.tensor([int(label) for label in told]), sorted(distinct, key=int)
    numbers = {label: i for i, label in enumerate(distinct)}
    return torch.tensor([numbers[label] for label in told]), distinct


class _Sums:
    """Mean and standard deviation of each channel, in float64."""

    def __init__(self, channels: int) -> None:
        self.count, self.sum, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def add(self, latents: Tensor) -> None:
        values: Any = latents.double().numpy()
        self.count += values.shape[1] * values.shape[2]
        self.sum += values.sum(axis=(1, 2))
        self.squares += np.square(values).sum(axis=(1, 2))

    def told(self) -> dict[str, Tensor]:
        """As latents_stats.pt has them, [1, C, 1, 1] each."""
        mean = self.sum / self.count
        variance = np.maximum(0.0, self.squares - self.count * mean**2) / max(1, self.count - 1)
        return {name: torch.from_numpy(one).float().reshape(1, -1, 1, 1)
                for name, one in (("mean", mean), ("std", np.sqrt(variance)))}  # fmt: skip
