"""The worker: takes a unit, reads its pictures, ahead of the VAE or by its threads, writes its shard and commits it.

It knows of no engine: whoever has units calls `run` with one after another.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from calotype import __version__
from calotype.addresses import AT_ONCE
from calotype.cache.attempt import Attempt
from calotype.cache.job import Job
from calotype.cache.receipts import Bad, Receipt
from calotype.cache.rules import Placed, Rules
from calotype.cache.scan import reason, unnamed
from calotype.cache.store import Store
from calotype.cache.units import Sample, Unit
from calotype.engine.budget import parse_memory
from calotype.engine.run import Compute, Engine
from calotype.errors import CalotypeError, NonFiniteError, PictureError, RemoteError
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
_LIBRARIES = 2**25  # bytes of a limit, an eighth at most, that are left for what is loaded as it begins, pyarrow first
_NAMED, _LISTED = 64, 1000  # bytes that are held of each picture: of a source whose names are packed, and of others

_TURNS = 8, 32  # of the engine's threads, for what is encoded together: after so many they wait for the last
_LASTS = 2.0  # seconds of these, before it is told how far they are
_TOGETHER = 2**26  # bytes of their pixels at most

Array = NDArray[np.uint8]  # a picture: [H, W, P], levels
_Read = tuple[Sample, Placed, Array | Bad | None]
"""A picture, as it was read, or why it could not be; None where it was not read yet."""


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
        if limit is not None:
            limit -= min(_LIBRARIES, limit // 8)
        self._reading = _READING if limit is None else min(_READING, limit // 4)
        self._memory = None if limit is None else limit - self._reading
        if limit is not None:  # what encodes has no less for it, or pictures could be too many for one to be encoded
            known = len(source) * (_NAMED if isinstance(source.names, Names) else _LISTED)
            self._reading = max(0, self._reading - known)
        self._room = _Room(self._reading)
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
            for sample, placed, result in self._results(unit):
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

    def encode(self, levels: Array, key: bytes) -> dict[str, Tensor] | NonFiniteError:
        """The tensors of a picture, [C, h, w] each, in the type that is stored; or why there are none.

        Args:
            levels: uint8 [H, W, 3 or 4], of the bucket's size.
            key: sha256 of the picture's encoded bytes, of which a sample's noise depends.

        Raises:
            MemoryLimitError: there is not memory enough.
        """
        try:
            return self._stored(self._posteriors(self._ways(levels)), key)
        except NonFiniteError as error:
            return error

    def _results(self, unit: Unit) -> Iterator[tuple[Sample, Placed, dict[str, Tensor] | Bad]]:
        """Pictures of a unit in order, with their tensors, or why there are none."""
        at_once = self._at_once(unit)
        if at_once == 1:
            for sample, placed, levels in self._read(unit, max(_AHEAD, 2 * self._threads)):
                yield sample, placed, self._alone(sample, levels)
            return
        least, most = (min(turns * at_once, self._most(unit)) for turns in _TURNS)
        # threads that read beside those that encode would hold these up
        far = self.source.far
        pictures: Iterator[_Read] = self._read(unit, max(2 * most, 2 * self._threads)) if far else self._unread(unit)
        size = least
        while group := list(islice(pictures, size)):
            begin = time.monotonic()
            for (sample, placed, _), result in zip(group, self._together(unit, group), strict=True):
                yield sample, placed, result
            size = max(least, min(most, int(_LASTS * len(group) / (time.monotonic() - begin))))

    def _alone(self, sample: Sample, levels: Array | Bad) -> dict[str, Tensor] | Bad:
        result = levels if isinstance(levels, Bad) else self.encode(levels, sample.key)
        return Bad(sample.name, sample.key.hex(), str(result)) if isinstance(result, NonFiniteError) else result

    def _together(self, unit: Unit, group: Sequence[_Read]) -> list[dict[str, Tensor] | Bad]:
        """What each picture gives, a thread each, which reads it too where it was not."""
        found: dict[int, dict[str, Tensor] | Array | Bad] = {}
        engine, (width, height) = self.vae.engine_of("encode"), unit.bucket
        target = engine.program("encode").target

        def one(i: int, compute: Compute) -> None:
            sample, placed, levels = group[i]
            if levels is None:
                with self._room.of(_cost(sample)):
                    levels = picture(self.source, sample, self.job.rules, placed, self._alpha)
            found[i] = levels
            if isinstance(levels, Bad):
                return
            posteriors = []
            with suppress(NonFiniteError):  # it is encoded once more, by itself
                for x in self._ways(levels):
                    moments = torch.empty(1, target.channels, *target.size(height, width))
                    compute(x, moments[0])
                    posteriors.append(posterior_of(self.vae.config, moments))
                found[i] = self._stored(posteriors, sample.key)

        with torch.no_grad(), enough_memory((len(group), self.vae.picture_channels, height, width)):
            engine.each("encode", height, width, len(group), one, memory=self._memory)
        results = [found[i] for i in range(len(group))]
        return [
            result if isinstance(result, dict) else self._alone(sample, result)
            for (sample, *_), result in zip(group, results, strict=True)
        ]

    def _ways(self, levels: Array) -> list[Tensor]:
        """Pixels [C, H, W] of a picture, and of the mirrored one if that is kept."""
        return [self._pixels(levels[:, ::-1] if flip else levels) for flip in (False, True)[: 1 + self.job.rules.flip]]

    def _pixels(self, levels: Array) -> Tensor:
        pixels = from_array(levels)
        return luma(pixels) if self.vae.picture_channels == 1 else pixels

    def _stored(self, posteriors: Sequence[Posterior | NonFiniteError], key: bytes) -> dict[str, Tensor]:
        dtype: torch.dtype = getattr(torch, self.job.store)
        stored = {}
        for posterior, way in zip(posteriors, ("", "_flip"), strict=False):
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
        """Pictures that the engine computes at the same time."""
        width, height = unit.bucket
        return self.vae.engine_of("encode").at_once("encode", height, width, self._memory)

    def _most(self, unit: Unit) -> int:
        """Pictures that are encoded together at most."""
        (width, height), ways = unit.bucket, 2 if self.job.rules.flip else 1
        return max(1, _TOGETHER // (4 * ways * self.vae.picture_channels * width * height))

    def _read(self, unit: Unit, ahead: int) -> Iterator[tuple[Sample, Placed, Array | Bad]]:
        """Pictures of a unit in order, cropped to its bucket; threads are a little ahead, in bounded memory."""
        waiting: deque[tuple[Sample, Placed, int, Future[Array | Bad]]] = deque()
        taken, rest = 0, deque(unit.samples)
        known = _known(unit)
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                while rest or waiting:
                    while rest and len(waiting) < ahead:
                        cost = _cost(rest[0])
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

    def _unread(self, unit: Unit) -> Iterator[_Read]:
        """Pictures of a unit in order, that are still to be read."""
        known = _known(unit)
        for sample in unit.samples:
            placed = self.job.rules.place(*sample.upright, sample.key)
            yield sample, placed, known.get((sample.name, sample.key.hex()))


class _Room:
    """Bytes for pictures that are being read; one that is alone always has room."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken, self._changed = limit, 0, threading.Condition()

    @contextmanager
    def of(self, cost: int) -> Iterator[None]:
        """Waits until there is so much."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + cost <= self._limit)
            self._taken += cost
        try:
            yield
        finally:
            with self._changed:
                self._taken -= cost
                self._changed.notify_all()


def _cost(sample: Sample) -> int:
    """Bytes that a picture takes while it is read."""
    return _PIXEL_BYTES * sample.upright[0] * sample.upright[1]


def _known(unit: Unit) -> dict[tuple[str, str], Bad]:
    """Pictures of which it was found before that they are bad, by name and key."""
    return {(one.name, one.key): one for one in unit.bad}


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
