"""A cache as a torch Dataset: what a diffusion model is trained on.

from torch.utils.data import DataLoader
from calotype.cache import BucketBatchSampler, LatentDataset

dataset = LatentDataset("latents/")
sampler = BucketBatchSampler(dataset, 64)
for epoch in range(10):
    sampler.set_epoch(epoch)
    for batch in DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=2):
        batch["latents"], batch["caption"]    # [N, C, h, w], and N texts
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, NotRequired, TypedDict, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from calotype.cache.buckets import Size
from calotype.cache.job import Job
from calotype.cache.reader import Cache, Shard
from calotype.cache.seen import summarised
from calotype.cache.store import RECEIPTS, shard_name
from calotype.errors import CalotypeWarning, LatentsError, StorageError, UsageError
from calotype.latents import LatentFormat, latent_format_from_dict

Shape = tuple[int, int, int]  # [C, h, w]

_OPEN = 2**13  # shards that stay mapped: Linux gives a process 65,530 mappings
_NUMBERS = (
    "row", "width", "height", "resized_width", "crop_x", "crop_y", "bucket_width", "bucket_height",
)  # fmt: skip


class LatentSample(TypedDict):
    """One sample, as torch's `default_collate` takes it.

    `time_ids` are what SDXL is told of a picture (arXiv:2307.01952, section 2.2), by diffusers' name and in its order:
    height and width of the upright picture; top and left of the crop in the resized picture, mirrored with it; height
    and width of the crop; in pixels.
    """

    latents: Tensor  # float32 [C, h, w]
    caption: str  # empty where there is none
    label: NotRequired[str]  # where every sample of the cache has one
    name: str
    key: str  # sha256 of the picture's encoded bytes, in hexadecimal digits
    index: int  # in the manifest
    flipped: bool
    time_ids: Tensor  # int64 [6]


class LatentBatch(TypedDict):
    """Samples of one bucket; see `LatentSample`."""

    latents: Tensor  # float32 [N, C, h, w]
    caption: list[str]
    label: NotRequired[list[str]]
    name: list[str]
    key: list[str]
    index: Tensor  # int64 [N]
    flipped: Tensor  # bool [N]
    time_ids: Tensor  # int64 [N, 6]


@dataclass(frozen=True)
class _Place:
    """Where the latents of a sample come from."""

    shape: Shape
    stored: tuple[Tensor, ...]  # the mean or the latents, and the log-variance where a sample is drawn, mapped
    seed: int
    told: dict[str, Any]  # the rest of the sample


@dataclass(frozen=True)
class _Opened:
    """What a process holds of the manifest."""

    cache: Cache
    state: dict[str, Any]  # the manifest's summary
    numbers: NDArray[np.int32]  # [N, 8], see `_NUMBERS`
    units: NDArray[np.int32]  # of each sample, its number in `names`
    names: list[str]  # of units
    key: Any  # pyarrow columns
    name: Any
    caption: Any
    label: Any
    labelled: bool


class LatentDataset(Dataset[LatentSample]):
    """Samples of a cache, in the order of its manifest.

    A sample drawn from the posterior is another one each epoch, and depends on `seed`, the epoch and the picture's
    bytes alone: not on its batch, the worker, the process or how many there are. Each process maps shards into memory
    when it first needs them, and leaves no file open; what is read of them keeps nothing else alive.

    Args:
        path: of the cache's folder.
        value: what latents are. "sample" is drawn from the posterior, "mode" its mean; by default what the cache
            keeps, and samples where that is moments.
        scaled: gives model latents, by the VAE's latent format, and not raw ones.
        flip: gives the mirrored picture's latents half the time, where the cache has them.
        seed: of samples and flips.

    Raises:
        UsageError: there is no finished cache, it has no samples, not this value, or its latent format is unknown.
        StorageError: it is damaged, or units of its manifest are gone.

    Warns:
        CalotypeWarning: pictures of the data were not cached yet.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        value: Literal["sample", "mode"] | None = None,
        scaled: bool = True,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        self.path, self.seed = os.fspath(path), seed
        self._process = os.getpid()
        self._shards: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._opened: _Opened | None = _open(self.path)
        self._state, job = self._opened.state, self.job
        _require_complete(self._opened)
        self._drawn, self._point = _drawn(self.path, job, value), job.point
        self._flip = flip and job.rules.flip
        self._format = _format(self.path, job, self.buckets) if scaled else None
        # in shared memory: workers that a DataLoader keeps from epoch to epoch see it change
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def job(self) -> Job:
        """What the cache is of: VAE, value, rules, types."""
        return self._here.cache.job

    @property
    def latent_format(self) -> LatentFormat | None:
        """That of the latents; None where they are raw."""
        return self._format

    @property
    def captions(self) -> list[str | None]:
        """Of all samples."""
        found: list[str | None] = self._here.caption.to_pylist()
        return found

    @property
    def labels(self) -> list[str | None]:
        """Of all samples."""
        found: list[str | None] = self._here.label.to_pylist()
        return found

    @property
    def bucket(self) -> NDArray[np.int64]:
        """The bucket of each sample, a number in `buckets`: [N]."""
        return self._buckets()[1]

    @property
    def buckets(self) -> list[Size]:
        """(width, height) in pixels of all buckets that have samples, sorted."""
        return self._buckets()[0]

    def _buckets(self) -> tuple[list[Size], NDArray[np.int64]]:
        width, height = self._here.numbers[:, -2:].T.astype(np.int64)
        joined = width << 32 | height
        found, inverse = np.unique(joined, return_inverse=True)
        return [(int(one) >> 32, int(one) & 0xFFFFFFFF) for one in found], inverse.astype(np.int64)

    @property
    def epoch(self) -> int:
        """Of which samples and flips are drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Has samples and flips drawn anew; `BucketBatchSampler.set_epoch` calls it.

        Workers see it too. What they have read ahead stays as it was, so call it before an epoch's iterator is made.
        """
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._here.units)

    @overload
    def __getitem__(self, i: int) -> LatentSample: ...

    @overload
    def __getitem__(self, i: Sequence[int]) -> LatentBatch: ...

    def __getitem__(self, i: int | Sequence[int]) -> LatentSample | LatentBatch:
        """A sample; of several numbers the batch of `read_batch`.

        Raises:
            IndexError: there is no such sample.
            StorageError: its shard is missing or damaged.
        """
        return self.__getitems__([i])[0] if isinstance(i, int | np.integer) else self.read_batch(i)

    def __getitems__(self, indices: Sequence[int]) -> list[LatentSample]:
        """Samples of a batch, read in the order in which they lie on the disk; a DataLoader calls it.

        Raises:
            as `__getitem__`.
        """
        found: list[Any] = [None] * len(indices)
        room: dict[Shape, tuple[Tensor, Tensor]] = {}
        for at, place in self._places(indices):
            latents = torch.empty(place.shape)
            self._fill(latents, place, room)
            found[at] = {"latents": self._scaled(latents[None])[0], **place.told}
        return found

    def read_batch(self, indices: Sequence[int]) -> LatentBatch:
        """Samples of one bucket, stacked: what torch's `default_collate` makes of `__getitems__`, with a copy less.

        ``DataLoader(dataset, sampler=sampler, batch_size=None)`` has it called, as ``dataset[indices]``, with each list
        of a `BucketBatchSampler`.

        Raises:
            UsageError: they are of several buckets, or there are none.
            LatentsError: as `__getitem__`.
        """
        places = list(self._places(indices))
        shapes = {place.shape for _, place in places}
        if len(shapes) != 1:
            raise UsageError(
                f"A batch has samples of one bucket, and these are of {len(shapes)}; BucketBatchSampler gives such."
            )
        latents = torch.empty(len(places), *shapes.pop())
        room: dict[Shape, tuple[Tensor, Tensor]] = {}
        for at, place in places:
            self._fill(latents[at], place, room)
        told: Any = default_collate([place.told for _, place in sorted(places, key=itemgetter(0))])
        return cast("LatentBatch", {"latents": self._scaled(latents), **told})

    def _places(self, indices: Sequence[int]) -> Iterator[tuple[int, _Place]]:
        """Where each sample lies, in the order of the disk, with its number among `indices`."""
        here, epoch = self._here, self.epoch
        for i in indices:
            if not -len(here.units) <= i < len(here.units):
                raise IndexError(f"there are {len(here.units)} samples, and no number {i}")
        numbers = np.asarray(indices, dtype=np.int64) % len(here.units)
        for at in np.lexsort((here.numbers[numbers, 0], here.units[numbers])).tolist():
            yield at, self._place(here, epoch, int(numbers[at]))

    def _place(self, here: _Opened, epoch: int, i: int) -> _Place:
        key: bytes = here.key[i].as_py()
        chosen = hashlib.sha256(f"{self.seed} {epoch} ".encode() + key).digest()
        flipped = self._flip and bool(chosen[8] & 1)
        row, width, height, resized, left, top, bucket_width, bucket_height = here.numbers[i].tolist()
        if flipped:
            left = resized - left - bucket_width
        told = {
            "caption": here.caption[i].as_py() or "",
            "name": here.name[i].as_py(),
            "key": key.hex(),
            "index": i,
            "flipped": flipped,
            # from an array, which takes a tenth of the time that a list takes
            "time_ids": torch.from_numpy(np.array([height, width, top, left, bucket_height, bucket_width])),
        }
        if here.labelled:
            told["label"] = here.label[i].as_py()
        bucket, end = (bucket_width, bucket_height), "_flip" if flipped else ""
        tensors = self._mapped(here, int(here.units[i]), bucket, row)
        names = (self._point, "logvar") if self._drawn else (self._point,)
        stored = tuple(tensors[f"{name}{end}"][row] for name in names)
        return _Place(here.cache.job.shape(bucket), stored, int.from_bytes(chosen[:8], "little") >> 1, told)

    def _fill(self, latents: Tensor, place: _Place, room: dict[Shape, tuple[Tensor, Tensor]]) -> None:
        """Writes raw latents of one sample.

        One by one: what a vector of many gives for a number may depend on its place in it.

        Args:
            room: what is used again for all samples of a call, by their shape; new memory costs as much as arithmetic.
        """
        latents.copy_(place.stored[0])
        if self._drawn:  # as `DiagonalGaussian.sample`, to the bit, without its copies, which took twice as long
            if place.shape not in room:
                room[place.shape] = torch.empty(place.shape), torch.empty(place.shape)
            std, noise = room[place.shape]
            std.copy_(place.stored[1]).clamp_(-30.0, 20.0).mul_(0.5).exp_()
            torch.randn(place.shape, generator=torch.Generator().manual_seed(place.seed), out=noise)
            latents += std.mul_(noise)

    def _scaled(self, raw: Tensor) -> Tensor:
        return raw if self._format is None else self._format.to_model(raw)

    def _mapped(self, here: _Opened, unit: int, bucket: Size, row: int) -> dict[str, Tensor]:
        """Tensors of a unit, as they lie in the file, with this row."""
        if unit not in self._shards:
            job, store = here.cache.job, here.cache.store
            shard = Shard(store.path(shard_name(here.names[unit], bucket)), job.tensors)
            tensors = {name: shard.mapped(name) for name in job.tensors}
            expected, dtype = job.shape(bucket), getattr(torch, job.store)
            for name, tensor in tensors.items():
                if tuple(tensor.shape[1:]) != expected or tensor.dtype != dtype:
                    raise StorageError(
                        f"{shard.path}: {name} is {tensor.dtype} {list(tensor.shape)}, and of this cache expected is "
                        f"{dtype} [N, {', '.join(map(str, expected))}]; calotype cache repair mends it."
                    )
            self._shards[unit] = tensors
            if len(self._shards) > _OPEN:
                self._shards.popitem(last=False)
        self._shards.move_to_end(unit)
        tensors = self._shards[unit]
        if not 0 <= row < (count := len(tensors[self._point])):
            raise StorageError(
                f"{here.cache.store}: the manifest has row {row} of unit {here.names[unit]}, whose shard has {count} "
                "rows; calotype cache repair mends it."
            )
        return tensors

    @property
    def _here(self) -> _Opened:
        """The manifest, opened again in a process that got the dataset from another one."""
        if self._process != os.getpid():  # it was forked
            self._shards, self._process = OrderedDict(), os.getpid()
        if self._opened is None:
            opened = _open(self.path)
            if opened.state != self._state:
                raise StorageError(f"{self.path}: this cache was changed since the dataset was made; make it anew.")
            self._opened = opened
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_shards": OrderedDict()}


def _open(path: str) -> _Opened:
    cache = Cache(path)
    state = summarised(cache.store)
    columns = cache.columns("unit", "key", "name", "caption", "label", *_NUMBERS)
    if not columns.num_rows:
        raise UsageError(f"{path}: this cache has no samples; calotype cache status says what became of its pictures.")
    unit = columns["unit"].combine_chunks()
    return _Opened(
        cache=cache,
        state=state,
        numbers=np.stack([columns[name].to_numpy().astype(np.int32) for name in _NUMBERS], axis=1),
        units=unit.indices.to_numpy(),
        names=unit.dictionary.to_pylist(),
        key=columns["key"],
        name=columns["name"],
        caption=columns["caption"],
        label=columns["label"],
        labelled=columns["label"].null_count == 0,
    )


def _require_complete(opened: _Opened) -> None:
    """Checks that every unit of the manifest is there, and says how many pictures were not cached yet."""
    store = opened.cache.store
    lost = set(opened.names) - set(store.names(RECEIPTS, ".json"))
    if lost:
        raise StorageError(
            f"{store}: {len(lost):,} units of the manifest have no receipt, such as {min(lost)}; calotype cache repair "
            "makes a manifest of what is there."
        )
    if missing := opened.state.get("missing", 0):
        warnings.warn(
            f"{store}: {missing:,} pictures are not cached yet, and training goes without them; calotype cache make "
            "makes them.",
            CalotypeWarning,
            stacklevel=3,
        )


def _drawn(path: str, job: Job, value: str | None) -> bool:
    """Whether latents are drawn from moments."""
    if value not in (None, "sample", "mode"):
        raise UsageError(f"value={value!r}: give 'sample' or 'mode', or leave it out.")
    if job.value == "moments":
        return value != "mode"
    if value not in (None, job.value):
        raise UsageError(
            f"{path}: this cache keeps each posterior's {job.value}, which gives no {value}; leave out value, or make "
            "a cache of moments."
        )
    return False


def _format(path: str, job: Job, buckets: Sequence[Size]) -> LatentFormat:
    """The cache's latent format, which scales every bucket."""
    raw = "; give scaled=False for raw latents."
    try:
        found = latent_format_from_dict(job.vae.latent_format)
        for bucket in buckets:
            shape = job.shape(bucket)
            if shape[1] % found.patch or shape[2] % found.patch:
                raise UsageError(
                    f"Latents of {bucket[0]}x{bucket[1]} pixels are {shape[2]}x{shape[1]}, and {found.name} packs "
                    f"{found.patch}x{found.patch} of them"
                )
        found.to_model(torch.zeros(1, found.channels, found.patch, found.patch))
    except (UsageError, LatentsError) as error:
        raise UsageError(f"{path}: its latents can't be scaled: {str(error).rstrip('.')}{raw}") from None
    if found.channels != job.vae.channels:
        raise UsageError(
            f"{path}: its latents have {job.vae.channels} channels, and their format {found.name} is for "
            f"{found.channels}{raw}"
        )
    return found
