"""The worker: takes a unit, reads its pictures ahead of the VAE, writes its shard and commits it.

It knows of no engine: whoever has units calls `run` with one after another.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from calotype import __version__
from calotype.addresses import AT_ONCE
from calotype.cache.job import Job
from calotype.cache.receipts import Bad, Receipt, Sums
from calotype.cache.rules import Placed, Rules
from calotype.cache.scan import reason, unnamed
from calotype.cache.shards import Row, Writer, look
from calotype.cache.store import Store, receipt_name, samples_name, shard_name
from calotype.cache.tables import SAMPLES, parquet, table
from calotype.cache.units import Sample, Unit
from calotype.engine.budget import parse_memory
from calotype.engine.run import Engine
from calotype.errors import CalotypeError, NonFiniteError, PictureError, RemoteError, StorageError
from calotype.files import refusal
from calotype.names import Names
from calotype.pixels import AlphaMode, alpha_mode, from_array, luma, read_picture_rows
from calotype.posterior import DiagonalGaussian, Posterior
from calotype.sources import Stored, rgb_levels, rgba_levels
from calotype.vae import VAE, enough_memory, posterior_of
from calotype.vae.encoding import encoding_network

THREADS = 3  # that read ahead
FINISH = 5.0  # seconds that a unit in hand may still take when its process is told to stop
_PACKAGES = ("torch", "pillow", "numpy")
_AHEAD = 8  # pictures at least, small ones
_PIXEL_BYTES = 10  # of a pixel while its picture is read and made smaller
_READING = 400 * 10**6  # bytes that pictures which are being read take at most, but for one that alone takes more
_NAMED, _LISTED = 64, 1000  # bytes that are held of each picture: of a source whose names are packed, and of others

_TURNS = 8  # of the engine's threads, for what is encoded together: at the end of each they wait for the last
_TOGETHER = 2**26  # bytes of pixels of these at most

Array = NDArray[np.uint8]  # a picture: [H, W, P], levels
_T = TypeVar("_T")


@dataclass(frozen=True)
class Step:
    """One picture of a unit that is done.

    Attributes:
        bad: why it could not be cached; None where it was.
    """

    bad: Bad | None


class Worker:
    """Makes units of one cache.

    Args:
        job: of the cache.
        vae: the one that `job` names; see `job_of`.
        source: the pictures.
        store: where the cache lies.
        memory: at most so much memory beside the weights, in bytes or words; None: what is fast, and free.
        threads: that read pictures; None: a few, and more where each waits for a server.
    """

    def __init__(
        self,
        job: Job,
        vae: VAE,
        source: Stored,
        store: Store,
        *,
        memory: int | str | None = None,
        threads: int | None = None,
    ) -> None:
        self.job, self.vae, self.source, self.store = job, vae, source, store
        self._threads = threads or (AT_ONCE if source.far else THREADS)
        limit = None if memory is None else parse_memory(memory)
        self._reading = _READING if limit is None else min(_READING, limit // 4)
        self._memory = None if limit is None else limit - self._reading
        if limit is not None:  # what encodes has no less for it, or pictures could be too many for one to be encoded
            known = len(source) * (_NAMED if isinstance(source.names, Names) else _LISTED)
            self._reading = max(0, self._reading - known)
        self._alpha: AlphaMode = alpha_mode(vae.picture_channels, None)
        self._wide: Engine | None = None

    def run(self, unit: Unit, tell: Callable[[Step], None] = lambda step: None) -> Receipt:
        """Makes a unit, from its pictures to its receipt.

        Args:
            tell: called after each picture; what it raises ends the unit, of which nothing is left.

        Raises:
            StorageError: the disk refuses it.
            MemoryLimitError: there is not memory enough.
            RemoteError: pictures are on a server, which does not answer.
        """
        return self.commit(self.make(unit, tell))

    def make(self, unit: Unit, tell: Callable[[Step], None] = lambda step: None) -> Attempt:
        """Makes a unit's shard, under a name of its own; `commit` or `Attempt.drop` ends it.

        Args, Raises:
            as `run`.
        """
        attempt = Attempt(self.job, unit, self.store)
        try:
            at_once = self._at_once(unit)
            for group in _groups(self._read(unit, max(_AHEAD, 2 * at_once, 2 * self._threads)), at_once):
                made = iter(self.encode([(levels, one.key) for one, _, levels in group if not isinstance(levels, Bad)]))
                for sample, placed, levels in group:
                    result = levels if isinstance(levels, Bad) else next(made)
                    if isinstance(result, NonFiniteError):
                        result = Bad(sample.name, sample.key.hex(), str(result))
                    if isinstance(result, Bad):
                        attempt.bad.append(result)
                        tell(Step(result))
                    else:
                        attempt.add(sample, placed, result)
                        tell(Step(None))
        except BaseException:
            attempt.drop()
            raise
        return attempt

    def commit(self, attempt: Attempt) -> Receipt:
        """Puts a unit where it belongs: shard, samples and last the receipt; each whole, and looked at before.

        Raises:
            StorageError: the disk refuses it, or did not keep what was written.
        """
        return attempt.commit({"device": self.vae.device.type, **(self.job.versions or {})})

    def encode(self, pictures: Sequence[tuple[Array, bytes]]) -> list[dict[str, Tensor] | NonFiniteError]:
        """The tensors of each picture, [C, h, w] each, in the type that is stored; or why there are none.

        Args:
            pictures: uint8 [H, W, 3 or 4], of the bucket's size; and the sha256 of the picture's encoded bytes, of
                which a sample's noise depends.

        Raises:
            MemoryLimitError: there is not memory enough.
        """
        ways = ("", "_flip") if self.job.rules.flip else ("",)
        seen = [levels[:, ::-1] if way else levels for levels, _ in pictures for way in ways]
        posteriors = iter(self._posteriors([self._pixels(levels) for levels in seen]))
        found: list[dict[str, Tensor] | NonFiniteError] = []
        for _, key in pictures:
            of_ways = [next(posteriors) for _ in ways]
            try:
                found.append(self._stored(of_ways, ways, key))
            except NonFiniteError as error:
                found.append(error)
        return found

    def _pixels(self, levels: Array) -> Tensor:
        pixels = from_array(levels)
        return luma(pixels) if self.vae.picture_channels == 1 else pixels

    def _stored(
        self, posteriors: Sequence[Posterior | NonFiniteError], ways: Sequence[str], key: bytes
    ) -> dict[str, Tensor]:
        dtype: torch.dtype = getattr(torch, self.job.store)
        stored = {}
        for posterior, way in zip(posteriors, ways, strict=True):
            if isinstance(posterior, NonFiniteError):
                raise posterior
            for name, tensor in self._tensors(posterior, key, way).items():
                stored[f"{name}{way}"] = tensor.to(dtype).cpu()
                if not torch.isfinite(stored[f"{name}{way}"]).all():
                    raise NonFiniteError(
                        f"its latents reach {float(tensor.abs().max()):.3g}, more than {self.job.store} holds; give "
                        "--store float32."
                    )
        return stored

    def _tensors(self, posterior: Posterior, key: bytes, way: str) -> dict[str, Tensor]:
        if self.job.value == "moments":
            assert isinstance(posterior, DiagonalGaussian)
            return {"mean": posterior.mean[0], "logvar": posterior.logvar[0]}
        if self.job.value == "mode":
            return {"latents": posterior.mode()[0]}
        return {"latents": drawn(posterior, self.job.rules.seed, key, mirrored=bool(way))}

    def _posteriors(self, pictures: Sequence[Tensor]) -> list[Posterior | NonFiniteError]:
        """Of each picture [C, H, W]; in float32 where the type asked for is too narrow for it, whatever came before.

        `VAE.encode` computes in float32 from such a picture on, and then bytes would depend on the order.
        """
        if not pictures:
            return []
        engine = self.vae.engine_of("encode")
        try:
            moments = self._moments(engine, pictures)
        except NonFiniteError as error:
            if len(pictures) > 1:  # which of them?
                return [self._posteriors([one])[0] for one in pictures]
            if self.vae.encode_dtype == torch.float32:
                return [NonFiniteError("the VAE gives NaN or infinity for it.")]
            if self._wide is None:
                network = encoding_network(self.vae.loaded.module, self.vae.device, torch.float32)
                self._wide = Engine(network, self.vae.device, torch.float32)
            try:
                moments = self._moments(self._wide, pictures)
            except NonFiniteError:
                return [error]
        return [posterior_of(self.vae.config, moments[i : i + 1].float()) for i in range(len(pictures))]

    def _moments(self, engine: Engine, pictures: Sequence[Tensor]) -> Tensor:
        pixels = torch.stack(list(pictures)).to(self.vae.device)
        with torch.no_grad(), enough_memory(pixels.shape):
            return engine("encode", pixels, memory=self._memory)

    def _at_once(self, unit: Unit) -> int:
        """Pictures that are encoded together: several where the engine computes some at the same time."""
        width, height = unit.bucket
        together = self.vae.engine_of("encode").at_once("encode", height, width, self._memory)
        if together == 1:
            return 1
        ways = 2 if self.job.rules.flip else 1
        return max(1, min(_TURNS * together, _TOGETHER // (4 * ways * self.vae.picture_channels * width * height)))

    def _read(self, unit: Unit, ahead: int) -> Iterator[tuple[Sample, Placed, Array | Bad]]:
        """Pictures of a unit in order, cropped to its bucket; threads are a little ahead, in bounded memory."""
        waiting: deque[tuple[Sample, Placed, int, Future[Array | Bad]]] = deque()
        taken, rest = 0, deque(unit.samples)
        known = {(one.name, one.key): one for one in unit.bad}
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                while rest or waiting:
                    while rest and len(waiting) < ahead:
                        cost = _PIXEL_BYTES * rest[0].upright[0] * rest[0].upright[1]
                        if waiting and taken + cost > self._reading:
                            break
                        sample = rest.popleft()
                        placed = self.job.rules.place(*sample.upright, sample.key)
                        future: Future[Array | Bad] = Future()
                        if bad := known.get((sample.name, sample.key.hex())):
                            future.set_result(bad)
                        else:
                            future = pool.submit(picture, self.source, sample, self.job.rules, placed, self._alpha)
                        waiting.append((sample, placed, cost, future))
                        taken += cost
                    sample, placed, cost, future = waiting.popleft()
                    levels = future.result()
                    taken -= cost
                    yield sample, placed, levels
            finally:
                pool.shutdown(cancel_futures=True)


def versions() -> dict[str, str]:
    """Of what makes units here."""
    told = {"calotype": __version__}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            told[package] = version(package)
    return told


def drawn(posterior: Posterior, seed: int, key: bytes, *, mirrored: bool) -> Tensor:
    """A sample [C, h, w] of one picture's posterior, which depends on nothing else.

    Args:
        seed: of all draws of a cache.
        key: sha256 of the picture's encoded bytes.
        mirrored: whether the posterior is that of the mirrored picture, which has noise of its own.
    """
    digest = hashlib.sha256(f"sample {seed} {key.hex()}{' flip' if mirrored else ''}".encode()).digest()
    return posterior.sample([torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)])[0]


def _groups(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """So many at a time, and at last what is left."""
    waiting = iter(items)
    while group := list(islice(waiting, size)):
        yield group


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


def picture(source: Stored, sample: Sample, rules: Rules, placed: Placed, alpha: AlphaMode) -> Array | Bad:
    """Reads a picture and makes it what is encoded: uint8 [H, W, 3], or 4 where alpha is kept; or why it can't be."""

    def bad(why: str, again: bool = False) -> Bad:
        return Bad(sample.name, sample.key.hex(), why, again)

    try:
        with source.opened(sample.place) as file:
            content = file.read()
    except RemoteError:  # the next run goes on
        raise
    except (CalotypeError, IndexError) as error:
        return bad(f"it could be read before, and now not: {reason(source, sample.place, error)}", again=True)
    if hashlib.sha256(content).digest() != sample.key:
        return bad("it changed while the cache was made; run the same command again.", again=True)
    try:
        read = read_picture_rows(io.BytesIO(content), alpha=alpha, background=rules.background)
        if read.size != (sample.upright[1], sample.upright[0]):
            said = "x".join(map(str, sample.upright))
            return bad(f"it has {read.size[1]}x{read.size[0]} pixels, and its header says {said}.")
        levels = rgba_levels(read) if alpha == "keep" else rgb_levels(read)
    except PictureError as error:
        return bad(unnamed(str(error)))
    return resized(levels, placed)


def resized(levels: Array, placed: Placed) -> Array:
    """A picture's crop: uint8 [H, W, C]; only what is kept is computed. Of RGBA, colours are weighed by their alpha."""
    height, width = levels.shape[:2]
    if (width, height) == placed.resized:
        (x, y), (w, h) = placed.corner, placed.bucket
        return levels[y : y + h, x : x + w]
    across, down = width / placed.resized[0], height / placed.resized[1]
    box = (
        placed.corner[0] * across,
        placed.corner[1] * down,
        min(width, (placed.corner[0] + placed.bucket[0]) * across),
        min(height, (placed.corner[1] + placed.bucket[1]) * down),
    )
    image = Image.fromarray(np.ascontiguousarray(levels))
    return np.asarray(image.resize(placed.bucket, Image.Resampling.BICUBIC, box=box))
