"""Reading a cache: its job, its samples, and latents from its shards. Torch comes with the first latents.

from calotype.cache import open_cache

cache = open_cache("latents/")
len(cache), cache.job.value, cache.samples["caption"][0]
cache.row(0)["mean"]                               # raw latents, [C, h, w]
cache.shard(cache.units[0]).rows("mean", 0, 64)    # [64, C, h, w]
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from calotype.cache.job import Job, job_from_dict
from calotype.cache.receipts import fingerprints, receipt_of
from calotype.cache.store import JOB, MANIFEST, Store, receipt_name, shard_name
from calotype.cache.tables import MANIFEST as COLUMNS, count, metadata, read
from calotype.errors import StorageError, UsageError
from calotype.texts import TextError, json_table

if TYPE_CHECKING:
    from torch import Tensor

_OPEN = 64  # shards that stay open


def open_cache(path: str | os.PathLike[str]) -> Cache:
    """Opens a cache for reading; a run may write it meanwhile, of which it sees nothing.

    Args:
        path: of the cache's folder.

    Raises:
        UsageError: there is no cache, or none that was finished.
        StorageError: it is damaged.
    """
    return Cache(path)


def job_in(store: Store) -> Job:
    """What a cache is of.

    Raises:
        UsageError: there is no cache.
        StorageError: cache.json is damaged.
    """
    try:
        return job_from_dict(json_table(store.read(JOB)))
    except (FileNotFoundError, NotADirectoryError):
        if any(fingerprints(store)):
            raise StorageError(
                f"{store}: this cache lost its {JOB}; calotype cache make writes it again, given what the cache was "
                "made of and with."
            ) from None
        raise UsageError(
            f"{store}: there is no cache here ({JOB} is missing); calotype cache make makes one."
        ) from None
    except OSError as error:
        raise StorageError(f"{store.path(JOB)} can't be read ({error.strerror or error}).") from None
    except TextError as error:
        raise StorageError(
            f"{store.path(JOB)} can't be used: {error}; remove it, and calotype cache make writes it again, given what "
            "the cache was made of and with."
        ) from None


class Cache:
    """A cache that is read.

    Latents are raw, as the encoder gave them: `job.vae.latent_format` scales them
    (`latents.latent_format_from_dict`).

    Args:
        path: of its folder.

    Attributes:
        store: where it lies.
        job: what it is of: VAE, value, rules, types.

    Raises:
        UsageError: there is no cache, or none that was finished.
        StorageError: it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.store = Store(path)
        self.job = job_in(self.store)
        manifest = self.store.path(MANIFEST)
        if not manifest.is_file():
            raise UsageError(
                f"{self.store}: this cache was never finished ({MANIFEST} is missing); the command that began it goes "
                "on, and calotype cache repair makes a manifest of what is there."
            )
        self._length = count(manifest)
        if metadata(manifest).get("fingerprint") != self.job.fingerprint:
            raise StorageError(f"{manifest} is of another cache than {JOB}; calotype cache repair makes it anew.")
        self._shards: OrderedDict[str, Shard] = OrderedDict()

    def __len__(self) -> int:
        return self._length

    @cached_property
    def samples(self) -> Any:
        """All samples: a pyarrow Table with the columns of `tables.MANIFEST`, in the order of the data."""
        return read(self.store.path(MANIFEST), COLUMNS)

    def columns(self, *names: str) -> Any:
        """Some columns of `samples`, read without the others.

        Raises:
            KeyError: there is no such column.
        """
        return read(self.store.path(MANIFEST), {name: COLUMNS[name] for name in names}, names)

    @cached_property
    def units(self) -> list[str]:
        """Ids of the units whose shards have samples, in the order of the first of each."""
        unit = self.columns("unit")["unit"].combine_chunks()
        return list(dict.fromkeys(unit.unique().to_pylist()))

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors: mean and logvar, or latents; and those that end in _flip."""
        return self.job.tensors

    def shard(self, unit: str) -> Shard:
        """The shard of a unit; the last ones stay open.

        Raises:
            StorageError: it is missing or damaged.
        """
        if unit not in self._shards:
            try:
                bucket = receipt_of(self.store.read(receipt_name(unit))).bucket
            except (OSError, TextError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise StorageError(
                    f"{self.store.path(receipt_name(unit))} can't be read ({why}); calotype cache repair mends it."
                ) from None
            self._shards[unit] = Shard(self.store.path(shard_name(unit, bucket)), self.job.tensors)
            if len(self._shards) > _OPEN:
                self._shards.popitem(last=False)
        self._shards.move_to_end(unit)
        return self._shards[unit]

    def row(self, i: int) -> dict[str, Any]:
        """Sample i of the manifest: its columns as plain values, and its tensors, [C, h, w] each, by their names.

        Raises:
            IndexError: there is no such sample.
            StorageError: its shard is missing or damaged.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"there are {len(self)} samples, and no number {i}")
        values = {name: self.samples[name][i % len(self)].as_py() for name in COLUMNS}
        return values | self.stored(values)

    def stored(self, told: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a row of `samples`, [C, h, w] each, by their names.

        Raises:
            StorageError: its shard is missing or damaged, or another one than the manifest tells of.
        """
        shard, row = self.shard(told["unit"]), told["row"]
        (count, *shape), expected = shard.shape, self.job.shape((told["bucket_width"], told["bucket_height"]))
        if not 0 <= row < count or tuple(shape) != expected:
            raise StorageError(
                f"{shard.path} has {count} rows of {shape}, and the manifest tells of row {row} and {list(expected)}; "
                "calotype cache repair mends it."
            )
        return {name: shard.rows(name, row, row + 1)[0] for name in self.tensors}


class Shard:
    """The tensors of a unit, mapped into memory: only rows that are asked for are read.

    Args:
        path: of the safetensors file.
        tensors: that it must have.

    Raises:
        StorageError: it is missing or damaged.
    """

    def __init__(self, path: Path, tensors: Sequence[str]) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            opened = cast("Any", safe_open(path, framework="pt"))
            self._slices = {name: opened.get_slice(name) for name in tensors}
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{path}: this shard can't be read ({' '.join(str(error).split())}); calotype cache repair drops it, "
                "and the next make makes it again."
            ) from None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, C, h, w] of each tensor."""
        n, c, h, w = next(iter(self._slices.values())).get_shape()
        return n, c, h, w

    def mapped(self, name: str) -> Tensor:
        """A tensor [rows, C, h, w] as it lies in the file, of which nothing is read yet; copy what is kept of it.

        Args:
            name: as for `rows`.
        """
        found: Tensor = self._slices[name][:]
        return found

    def rows(self, name: str, start: int, end: int) -> Tensor:
        """Rows from `start` to before `end` of a tensor: [end - start, C, h, w], in the type that is stored.

        They share nothing with other rows: what is kept of them keeps no more than them.

        Args:
            name: of the tensor: "mean", "logvar" or "latents", and the same with "_flip".

        Raises:
            IndexError: there are no such rows.
        """
        if not 0 <= start < end <= len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, and not {start} to {end - 1}")
        found: Tensor = self._slices[name][start:end]
        return found.clone()  # what safetensors gives is a view of the whole tensor
