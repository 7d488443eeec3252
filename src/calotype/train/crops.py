"""Batches of crops: pure functions of the place in the run, made ahead of time by threads.

Because batch n depends on the seed and on n alone, a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import os
import threading
import warnings
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from calotype.errors import PictureError, UsageError
from calotype.pixels import from_array, pad
from calotype.sources import Array, Pictures, open_source
from calotype.sources.looking import looked
from calotype.train.recipe import Source

Rule = Literal["random", "resized", "centre"]

Batch = tuple[Array, list[str]]
"""Crops, uint8 [N, crop, crop, 3 or 4], and the names of the pictures they were cut from."""

SKIP_LIMIT = 0.01  # share of pictures that may be unreadable
A_FEW = 3  # so many may be in any case


# Sets of pictures


class Joined:
    """Pictures of several sources, one after the other."""

    def __init__(self, parts: Sequence[Pictures]) -> None:
        self.parts = parts
        self.names = [name for part in parts for name in part.names]
        self._starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, i: int) -> Array:
        """See `Pictures`."""
        part, inner = self._at(i)
        return part.read(inner)

    def side(self, i: int) -> int:
        """See `Pictures`."""
        part, inner = self._at(i)
        return part.side(inner)

    def _at(self, i: int) -> tuple[Pictures, int]:
        number = bisect_right(self._starts, i) - 1
        return self.parts[number], i - self._starts[number]


class Picked:
    """Some of the pictures, in the order of `indices`, which may name one several times."""

    def __init__(self, pictures: Pictures, indices: Sequence[int]) -> None:
        self.pictures, self.indices = pictures, indices
        self.names = [pictures.names[i] for i in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, i: int) -> Array:
        """See `Pictures`."""
        return self.pictures.read(self.indices[i])

    def side(self, i: int) -> int:
        """See `Pictures`."""
        return self.pictures.side(self.indices[i])

    def once(self) -> Picked:
        """The same without repeats."""
        return Picked(self.pictures, list(dict.fromkeys(self.indices)))


class Decoded:
    """Pictures of which the first to be read stay decoded in memory, and the bad ones are remembered.

    None is ever put out: each comes once an epoch, so whichever are kept save the same.

    Args:
        pictures: what to read.
        cache: bytes of memory for decoded pictures.
        notice: is told of each bad picture once, by whichever thread found it.
    """

    def __init__(self, pictures: Pictures, *, cache: int, notice: Callable[[str], None]) -> None:
        self.pictures, self.names, self._notice = pictures, pictures.names, notice
        self._room = cache
        self._kept: dict[int, Array] = {}
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, i: int) -> Array:
        """See `Pictures`.

        Raises:
            PictureError: it can't be read.
            UsageError: with it, more than 1% can't be read, and more than three.
        """
        if (kept := self._kept.get(i)) is not None:
            return kept
        if i in self._bad:
            raise PictureError(self._bad[i])
        try:
            picture = self.pictures.read(i)
        except PictureError as error:
            self._set_aside(i, str(error))
            raise
        with self._lock:
            if picture.nbytes <= self._room and i not in self._kept:
                self._room -= picture.nbytes
                self._kept[i] = picture
        return picture

    def side(self, i: int) -> int:
        """See `Pictures`."""
        return self.pictures.side(i)

    def _set_aside(self, i: int, reason: str) -> None:
        with self._lock:
            if i in self._bad:
                return
            self._bad[i] = reason
            self._notice(reason)
            bad, total = len(self._bad), len(self)
            if bad > max(A_FEW, SKIP_LIMIT * total):
                first = next(iter(self._bad.values())).rstrip(".")
                raise UsageError(
                    f"{bad} of {total} pictures can't be read, more than 1%; mend the data, beginning with {first}."
                )


def gather(
    sources: Sequence[Source], data: str | Path, *, cache: int, notice: Callable[[str], None], alpha: bool = False
) -> tuple[Picked, Picked]:
    """The pictures of a recipe's sources: (to train on, repeated as it says; held out).

    Args:
        data: the folder or address that paths of sources are relative to.
        cache, notice: see `Decoded`.
        alpha: pictures are RGBA, opaque where they have no alpha, and not over white.

    Raises:
        UsageError: a source is missing, damaged or empty, or all pictures are held out.
    """
    parts = [open_source(source.path, data) for source in sources]
    if alpha:
        parts = [part.with_alpha() for part in parts]
    for part in parts:
        if part.left_out:
            notice(f"{part.title}: {part.left_out.sentence}")
    training: list[int] = []
    held_out: list[int] = []
    start = 0
    for source, part in zip(sources, parts, strict=True):
        numbers = range(start, start + len(part))
        held = numbers[:: source.hold_out] if source.hold_out else numbers[:0]
        held_out += held
        training += [i for i in numbers if i not in held] * source.repeat
        start = numbers.stop
    if not training:
        raise UsageError(f"{data}: no picture is left to train on; raise hold_out of the sources, or set it to 0.")
    decoded = Decoded(Joined(parts), cache=cache, notice=notice)
    return Picked(decoded, training), Picked(decoded, held_out)


def spread(pictures: Picked, most: int) -> Picked:
    """At most so many of the pictures, evenly from first to last."""
    if len(pictures) <= most:
        return pictures
    return Picked(pictures.pictures, [pictures.indices[i * len(pictures) // most] for i in range(most)])


def readable(pictures: Pictures) -> Iterator[tuple[str, Array]]:
    """Name and pixels of each picture in order, without those that can't be read."""
    for i, name in enumerate(pictures.names):
        try:
            picture = pictures.read(i)
        except PictureError:
            continue  # `Decoded` has told
        yield name, picture


def require_size(pictures: Picked, crop: int) -> None:
    """Checks by their headers that no picture has to be enlarged to be cropped.

    Raises:
        UsageError: a picture's shorter side is below `crop` pixels.
    """
    pictures = pictures.once()

    def side(i: int) -> int:
        try:
            return pictures.side(i)
        except PictureError:  # it is told when it is read
            return crop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        small = [(i, found) for i, found in looked(range(len(pictures)), side) if found < crop]
    if small:
        first, pixels = small[0]
        raise UsageError(
            f"{len(small)} of {len(pictures)} pictures are smaller than the crop of {crop} pixels, the first of them "
            f"{pictures.names[first]}, {pixels} pixels; leave them out, crop smaller, or set enlarge = true."
        )


# Crops


class Crops:
    """Batches of square crops.

    Every picture comes as often an epoch as it stands in `pictures`, over all processes together, in an order that
    depends on the seed and the epoch; what is cut from it depends on the seed and the position (the number of crops
    before it). A picture that can't be read is replaced by the next one in the epoch's order.

    Args:
        pictures: what to cut from, RGB, or RGBA where `channels` is 4; a picture smaller than the crop is enlarged.
        crop: side in pixels.
        rule: how the square is chosen that becomes the crop, where `short` is the picture's shorter side:
            "random": anywhere, at full resolution; half of them have a side smaller by a factor of up to `zoom`.
            "resized": anywhere, with any side from crop / zoom to `short`, equally often an octave.
            "centre": `short` is resized to the crop, and the middle cut out; `zoom` changes nothing.
        flip: half of the crops are mirrored, left to right.
        zoom: the largest factor by which crops are enlarged, at least 1.
        seed: of everything.
        channels: of the pictures.

    What is resized is so by Pillow's bicubic filter, which is wider where it makes smaller (antialiased); of RGBA the
    colours are weighed by their alpha.
    """

    def __init__(
        self,
        pictures: Pictures,
        *,
        crop: int,
        rule: Rule = "random",
        flip: bool = True,
        zoom: float = 1.0,
        seed: int,
        channels: int = 3,
    ) -> None:
        self.pictures, self.crop, self.rule, self.flip, self.zoom, self.seed = pictures, crop, rule, flip, zoom, seed
        self.channels = channels
        self._order = lru_cache(maxsize=4)(self._shuffled)  # a batch and those ahead seldom touch more epochs

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Batch:
        """The crops of one process in one step.

        Args:
            step: of the run, from 0.
            size: crops of this process.
            rank, world: which process of how many this is; together they cut what one would with `world` times `size`.
        """
        crops, names = zip(*map(self.at, positions(step, size, rank, world)), strict=True)
        return np.stack(crops), list(names)

    def at(self, position: int) -> tuple[Array, str]:
        """The crop with so many before it, uint8 [crop, crop, channels], and the name of its picture.

        Raises:
            UsageError: no picture at all can be read.
        """
        epoch, place = divmod(position, len(self.pictures))
        picture, name = self._read(self._order(epoch), place)
        rng = np.random.default_rng([self.seed, 1, position])
        crop = self._centre(picture) if self.rule == "centre" else self._square(picture, rng)
        if self.flip and rng.random() < 0.5:
            crop = crop[:, ::-1]
        # mirrored first: the weights that ship were trained so, and the filter may round otherwise
        return (crop if len(crop) == self.crop else _resized(crop, (self.crop, self.crop))), name

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.pictures))

    def _read(self, order: NDArray[np.int64], place: int) -> tuple[Array, str]:
        for i in range(len(order)):
            index = int(order[(place + i) % len(order)])
            try:
                return self.pictures.read(index), self.pictures.names[index]
            except PictureError:
                continue
        raise UsageError(f"none of the {len(order)} pictures to train on can be read; mend the data.")

    def _square(self, picture: Array, rng: np.random.Generator) -> Array:
        short = min(picture.shape[:2])
        if self.rule == "random":
            zoom = rng.uniform(1.0, self.zoom) if rng.random() < 0.5 else 1.0
            side = min(round(self.crop / zoom), short)
        else:
            least = min(self.crop / self.zoom, short)
            side = max(1, round(least * (short / least) ** rng.random()))
        top, left = (int(rng.integers(0, n - side + 1)) for n in picture.shape[:2])
        return picture[top : top + side, left : left + side]

    def _centre(self, picture: Array) -> Array:
        short = min(picture.shape[:2])
        height, width = (n * self.crop // short for n in picture.shape[:2])
        if short != self.crop:
            picture = _resized(picture, (height, width))
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        return picture[top : top + self.crop, left : left + self.crop]


def positions(step: int, size: int, rank: int = 0, world: int = 1) -> range:
    """How many crops lie before each that one of `world` processes cuts in a step, where all steps have `size` each."""
    first = (step * world + rank) * size
    return range(first, first + size)


def _resized(picture: Array, size: tuple[int, int]) -> Array:
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))


def load(
    plan: Callable[[int], tuple[Crops, int]],
    first: int,
    last: int,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
) -> Iterator[Batch]:
    """The batches of steps `first` to before `last`, each prepared by threads while those before it are used.

    The threads must not let torch start threads: each would start a pool of its own, and all would wait.

    Args:
        plan: step -> what crops to take, and how many for each process.
        rank, world: see `Crops.batch`, whose batches these are.
        workers: threads; by default as many as there are cores, and at most 8.

    Raises:
        UsageError: too many pictures can't be read.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    queue: deque[tuple[Array, list[Future[str]]]] = deque()
    waiting, step = 0, first
    with ThreadPoolExecutor(workers) as pool:
        try:
            while queue or step < last:
                # one batch to give, two more behind it, and enough for every thread
                while step < last and (len(queue) < 3 or waiting < 2 * workers):
                    crops, size = plan(step)
                    pixels = np.empty((size, crops.crop, crops.crop, crops.channels), dtype=np.uint8)
                    places = enumerate(positions(step, size, rank, world))
                    queue.append((pixels, [pool.submit(_fill, pixels, i, crops, place) for i, place in places]))
                    waiting, step = waiting + size, step + 1
                pixels, futures = queue.popleft()
                waiting -= len(futures)
                yield pixels, [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)


def _fill(pixels: Array, i: int, crops: Crops, position: int) -> str:
    pixels[i], name = crops.at(position)
    return name


# For measuring, and for what else is drawn at random


def centre_crop(picture: Array, multiple: int, most: int = 256) -> Tensor:
    """The middle of a picture, at most `most` pixels a side and a multiple of `multiple`: [1, C, h, w] in [-1, 1].

    A side shorter than `multiple` is padded to it.
    """
    height, width = (min(n, max(min(n, most) // multiple, 1) * multiple) for n in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return pad(from_array(picture[top : top + height, left : left + width])[None], multiple)[0]


def noise_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step's posterior samples."""
    return torch.Generator().manual_seed(int(np.random.default_rng([seed, 2, step]).integers(2**62)))
