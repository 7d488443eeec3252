"""Samples of a cache as they are handed over: one after another, in the value, space and type that a reader wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calotype.cache.buckets import Size
from calotype.cache.job import Stored
from calotype.cache.reader import Cache
from calotype.cache.worker import drawn
from calotype.errors import NonFiniteError
from calotype.files import write_text
from calotype.latent_files.spaces import as_published
from calotype.latents import LatentFormat, Latents, Space, latent_format_from_dict
from calotype.pixels import Padding
from calotype.posterior import DiagonalGaussian
from calotype.texts import plain

ABOUT = "config.json"  # which `datasets` does not take for data
_BATCH = 2**12  # rows of the manifest that are Python's objects at a time


@dataclass(frozen=True)
class Row:
    """A sample.

    Attributes:
        told: its columns in the manifest.
        latents: [C, h, w].
        flip: of the mirrored picture; None without.
    """

    told: Mapping[str, Any]
    latents: Tensor
    flip: Tensor | None

    @property
    def bucket(self) -> Size:
        """(width, height) in pixels."""
        return self.told["bucket_width"], self.told["bucket_height"]

    @property
    def stored(self) -> Size:
        """(width, height) of the picture in its file."""
        return self.told["stored_width"], self.told["stored_height"]


@dataclass(kw_only=True)
class Rows:
    """What is handed over of a cache.

    Attributes:
        cache: that is read.
        to: name of the format.
        model: of the program that reads it; "" where it has one.
        value: mode or sample; what a cache without moments keeps is taken as it is.
        space, published: see `face.Wants`.
        dtype: that numbers are written in.
        flips: whether latents of mirrored pictures come along.
        seed: of samples; that of the cache draws what `calotype cache make --value sample` would have.
        bucket: only samples of this one; None: all.
        tell: called with how many are done, and of how many.
    """

    cache: Cache
    to: str
    model: str
    value: Literal["mode", "sample"]
    space: Space
    published: str
    dtype: Stored
    flips: bool
    seed: int
    bucket: Size | None
    tell: Callable[[int, int], None]
    done: int = field(default=0, init=False)

    @cached_property
    def format(self) -> LatentFormat:
        """How raw and model latents of the cache differ."""
        return latent_format_from_dict(self.cache.job.vae.latent_format)

    @cached_property
    def samples(self) -> Any:
        """The samples' columns: a pyarrow Table, in the data's order."""
        found = self.cache.samples
        return found if self.bucket is None else found.filter(_is(found, self.bucket))

    def __len__(self) -> int:
        return int(self.samples.num_rows)

    @cached_property
    def buckets(self) -> dict[Size, int]:
        """How many samples each has, from the first to the last size."""
        sides = np.stack([np.asarray(self.samples[name]) for name in ("bucket_width", "bucket_height")], axis=1)
        sizes, counts = np.unique(sides, axis=0, return_counts=True)
        return {(int(w), int(h)): int(n) for (w, h), n in zip(sizes, counts, strict=True)}

    def shape(self, bucket: Size) -> tuple[int, int, int]:
        """[C, h, w] of what is handed over."""
        channels, height, width = self.cache.job.shape(bucket)
        patch = self.format.patch if self.space == "model" else 1
        return channels * patch**2, height // patch, width // patch

    def row_bytes(self, bucket: Size) -> int:
        """Of one sample, with its mirrored one."""
        return int(np.prod(self.shape(bucket))) * torch.empty(0, dtype=self.torch_dtype).itemsize * (1 + self.flips)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def __iter__(self) -> Iterator[Row]:
        return self.read(self.samples)

    def of(self, bucket: Size) -> Any:
        """The samples of a bucket, to be `read`."""
        return self.samples.filter(_is(self.samples, bucket))

    def read(self, samples: Any) -> Iterator[Row]:
        """Some of the samples, one after another.

        Raises:
            StorageError: a shard is missing or damaged.
            NonFiniteError: latents are beyond what the type holds.
        """
        for part in samples.to_batches(_BATCH):
            for told in part.to_pylist():
                yield self._row(told)
                self.done += 1
                self.tell(self.done, len(self))

    def _row(self, told: Mapping[str, Any]) -> Row:
        stored = {name: tensor.float() for name, tensor in self.cache.stored(told).items()}
        latents = self._made(told, stored, "")
        return Row(told, latents, self._made(told, stored, "_flip") if self.flips else None)

    def _made(self, told: Mapping[str, Any], stored: Mapping[str, Tensor], end: str) -> Tensor:
        if f"mean{end}" not in stored:
            raw = stored[f"latents{end}"]
        elif self.value == "mode":
            raw = stored[f"mean{end}"]
        else:
            moments = torch.cat([stored[f"mean{end}"], stored[f"logvar{end}"]])
            raw = drawn(DiagonalGaussian(moments[None]), self.seed, told["key"], mirrored=bool(end))
        made = self._scaled(raw, told).to(self.torch_dtype).contiguous()
        if not torch.isfinite(made).all():
            raise NonFiniteError(
                f"{plain(told['name'])}: its latents reach {float(raw.abs().max()):.3g}, more than {self.dtype} holds; "
                "give --dtype float32."
            )
        return made

    def _scaled(self, raw: Tensor, told: Mapping[str, Any]) -> Tensor:
        if not self.published:
            return raw if self.space == "raw" else self.format.to_model(raw[None])[0]
        padding = Padding(told["bucket_height"], told["bucket_width"], 0, 0, "replicate")
        latents = Latents(tensor=raw, space="raw", format=self.format, vae=self.cache.job.vae.sha256, padding=padding)
        return as_published(latents, self.space)

    def about(self) -> dict[str, Any]:
        """What tells a reader what is handed over."""
        vae = self.cache.job.vae
        return {
            "to": self.to,
            "samples": len(self),
            "buckets": {f"{w}x{h}": n for (w, h), n in self.buckets.items()},
            "value": self.value,
            **({"seed": self.seed} if self.value == "sample" and self.cache.job.value == "moments" else {}),
            "space": self.space,
            "dtype": self.dtype,
            "flips": self.flips,
            "latent_format": dict(vae.latent_format),
            "vae": {"name": vae.name, "sha256": vae.sha256, "factor": vae.factor, "channels": vae.channels},
            "rules": self.cache.job.rules.to_dict(),
        }

    def write_about(self, folder: Path) -> None:
        """Writes `about` beside what is handed over."""
        write_text(folder / ABOUT, json.dumps(self.about(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _is(samples: Any, bucket: Size) -> NDArray[np.bool_]:
    width, height = (np.asarray(samples[name]) for name in ("bucket_width", "bucket_height"))
    found: NDArray[np.bool_] = (width == bucket[0]) & (height == bucket[1])
    return found
