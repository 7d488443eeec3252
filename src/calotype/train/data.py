"""Training pictures: decoded once into memory, and cut into crops by a pure function of the place in the run.

Because batch n depends on the seed and on n alone, a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from calotype.errors import PictureError, UsageError
from calotype.pixels import from_array, pad, read_picture, to_uint8

Array = NDArray[np.uint8]

SUFFIXES = {".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def read_source(
    path: Path, track: Callable[[Sequence[Path | str]], Iterable[Path | str]]
) -> tuple[list[Array], list[str]]:
    """Decodes every picture of a folder or zip, over white: (uint8 [H, W, 3] in the order of names, what was skipped).

    Hidden files are no pictures: macOS puts a ``._photo.jpg`` beside every ``photo.jpg``.

    Args:
        path: a folder, searched in depth, or a .zip.
        track: wraps the list of names to show progress.

    Raises:
        UsageError: if there is no such folder or zip, or no picture can be read.
    """
    if path.is_dir():
        files: list[Path | str] = sorted(p for p in path.rglob("*") if _is_picture(p) and p.is_file())
        return _decode(lambda name: Path(name).read_bytes(), files, track, path)
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path}: there is no such folder or zip of pictures; see --data.")
    with zipfile.ZipFile(path) as archive:
        names = (entry.filename for entry in archive.infolist() if not entry.is_dir())
        members: list[Path | str] = sorted(name for name in names if _is_picture(PurePosixPath(name)))
        return _decode(lambda name: archive.read(str(name)), members, track, path)


def _is_picture(path: PurePath) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _decode(
    read: Callable[[Path | str], bytes],
    names: Sequence[Path | str],
    track: Callable[[Sequence[Path | str]], Iterable[Path | str]],
    path: Path,
) -> tuple[list[Array], list[str]]:
    def decode(name: Path | str) -> Array | str:
        try:
            return to_uint8(read_picture(read(name)).pixels).permute(1, 2, 0).numpy()
        # what a folder's file, a zip's damaged member, and one with a password give
        except (PictureError, OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            return f"{name}: {error}"

    pictures, skipped = [], []
    with ThreadPoolExecutor() as pool:
        for result, _ in zip(pool.map(decode, names), track(names), strict=True):
            if isinstance(result, str):
                skipped.append(result)
            else:
                pictures.append(result)
    if not pictures:
        raise UsageError(f"{path}: no picture in it can be read.")
    return pictures, skipped


class Crops:
    """Batches of random square crops, flipped and enlarged at random.

    Every picture comes once an epoch, in an order that depends on the seed and the epoch; what is cut from it depends
    on the seed and the position (the number of crops before it).

    Args:
        pictures: uint8 [H, W, 3]; a picture smaller than the crop is enlarged.
        crop: side in pixels.
        zoom: half of the crops are cut smaller by a factor of up to `zoom` and enlarged (bicubic).
        seed: of everything.
    """

    def __init__(self, pictures: Sequence[Array], *, crop: int, zoom: float, seed: int) -> None:
        self.pictures, self.crop, self.zoom, self.seed = pictures, crop, zoom, seed
        self._epoch, self._order = -1, np.arange(0)

    def batch(self, step: int, size: int) -> Array:
        """The crops of one step: uint8 [size, crop, crop, 3]."""
        return np.stack([self._one(step * size + i) for i in range(size)])

    def _one(self, position: int) -> Array:
        epoch, place = divmod(position, len(self.pictures))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.pictures))
            self._epoch = epoch
        picture = self.pictures[self._order[place]]
        rng = np.random.default_rng([self.seed, 1, position])
        zoom = rng.uniform(1.0, self.zoom) if rng.random() < 0.5 else 1.0
        side = min(round(self.crop / zoom), *picture.shape[:2])
        top, left = (int(rng.integers(0, n - side + 1)) for n in picture.shape[:2])
        crop: Array = picture[top : top + side, left : left + side]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        if side != self.crop:
            image = Image.fromarray(np.ascontiguousarray(crop))
            crop = np.asarray(image.resize((self.crop, self.crop), Image.Resampling.BICUBIC))
        return crop


def ahead(make: Callable[[int], Array], first: int, last: int) -> Iterator[Array]:
    """make(first), ..., make(last - 1), each prepared by a thread while the one before is used.

    The thread must not call torch: a second thread would start a second pool of OpenMP workers, and both would wait.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(make, first)
        for step in range(first, last):
            batch = future.result()
            if step + 1 < last:
                future = pool.submit(make, step + 1)
            yield batch


def centre_crop(picture: Array, multiple: int, most: int = 256) -> Tensor:
    """The middle of a picture, at most `most` pixels a side and a multiple of `multiple`: [1, 3, h, w] in [-1, 1].

    A side shorter than `multiple` is padded to it.
    """
    height, width = (min(n, max(min(n, most) // multiple, 1) * multiple) for n in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return pad(from_array(picture[top : top + height, left : left + width])[None], multiple)[0]


def noise_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step's posterior samples."""
    return torch.Generator().manual_seed(int(np.random.default_rng([seed, 2, step]).integers(2**62)))
