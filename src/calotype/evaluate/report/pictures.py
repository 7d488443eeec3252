"""Pictures inside a page: parts of the originals and their reconstructions, as data URIs."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calotype.errors import UsageError

Bytes = NDArray[np.uint8]

BUDGET = 8 * 2**20  # bytes of all pictures of a page, of which base64 makes 11 MB; 4 MB of 15 are for the rest

_QUALITIES = (97, 92, 85, 75, 60, 45, 30)  # of JPEG, where lossless pictures take more than the budget
_PEAK = 255.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """A part of a picture, before and after.

    Attributes:
        picture: name of the picture as in the results.
        box: top, left, height and width in the prepared picture, in pixels.
        original: uint8 [H, W, 3].
        reconstructions: by the VAE's label; as large as the original.
        latents: as RGB, uint8 [h, w, 3] of any size, by the label of the VAE that made them.

    Raises:
        UsageError: arrays that are not uint8 [H, W, 3], or but for latents of other sizes than the box.
    """

    picture: str
    box: tuple[int, int, int, int]
    original: Bytes
    reconstructions: Mapping[str, Bytes]
    latents: Mapping[str, Bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = (*self.box[2:], 3)
        for what, image in (("the original", self.original), *self.reconstructions.items()):
            if image.dtype != np.uint8 or image.shape != wanted:
                raise UsageError(
                    f"a crop of {self.picture} holds {image.dtype} {list(image.shape)} for {what}; it must be uint8 "
                    f"{list(wanted)}, as its box says."
                )
        for what, image in self.latents.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise UsageError(
                    f"a crop of {self.picture} holds {image.dtype} {list(image.shape)} for latents of {what}; it must "
                    f"be uint8 [h, w, 3]."
                )


@dataclass(frozen=True)
class Encoded:
    """Pictures as data URIs.

    Attributes:
        uris: in the order in which they were given.
        quality: of JPEG; 0 if they are lossless.
        psnr: of all pictures together against what was given, in dB; infinite if they are lossless.
        size: bytes, before base64.
    """

    uris: list[str]
    quality: int
    psnr: float
    size: int


def encode(images: Sequence[Bytes], budget: int = BUDGET) -> Encoded:
    """Lossless where that fits: differences of a few levels are what a page is looked at for.

    Otherwise JPEG without subsampled colours, of the highest quality from 97 to 30 that fits, or the lowest.

    Args:
        images: uint8 [H, W, 3].
        budget: bytes, for all.
    """
    files = _all(images, budget, _file, "WEBP", lossless=True, quality=50, method=2)
    if files is not None:
        return Encoded([_uri("webp", file) for file in files], 0, math.inf, sum(map(len, files)))
    for quality in _QUALITIES:
        least = math.inf if quality == _QUALITIES[-1] else budget
        files = _all(images, least, _jpeg, quality)
        if files is not None:
            break
    assert files is not None
    return Encoded([_uri("jpeg", file) for file in files], quality, _psnr(images, files), sum(map(len, files)))


def packed(grouped: Mapping[int, Sequence[Crop]], budget: int = BUDGET) -> tuple[dict[int, Sequence[Crop]], Encoded]:
    """Crops by picture and, in the order of these numbers, encoded.

    Pictures are left out, the last given first, where even the lowest quality takes more than the budget.
    """
    kept = dict(grouped)
    encoded = encode(_images(kept), budget)
    if encoded.size > budget:
        sizes = [sum(len(_jpeg(image, _QUALITIES[-1])) for image in _images({0: crops})) for crops in kept.values()]
        fit = int((np.cumsum(sizes) <= budget).sum())
        kept = dict(list(kept.items())[:fit])
        encoded = encode(_images(kept), budget)
    return kept, encoded


def _images(grouped: Mapping[int, Sequence[Crop]]) -> list[Bytes]:
    crops = [crop for i in sorted(grouped) for crop in grouped[i]]
    return [
        image for crop in crops for image in (crop.original, *crop.reconstructions.values(), *crop.latents.values())
    ]


def png_uri(image: Bytes) -> str:
    """A small picture, [H, W, 3] or [H, W, 4], unchanged."""
    return _uri("png", _file(image, "PNG", optimize=True))


def _all(
    images: Iterable[Bytes], budget: float, make: Callable[..., bytes], *how: Any, **options: Any
) -> list[bytes] | None:
    """Files; None as soon as they are larger than the budget."""
    files: list[bytes] = []
    size = 0
    for image in images:
        files.append(make(image, *how, **options))
        size += len(files[-1])
        if size > budget:
            return None
    return files


def _jpeg(image: Bytes, quality: int) -> bytes:
    return _file(image, "JPEG", quality=quality, subsampling=0)


def _file(image: Bytes, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def _uri(kind: str, file: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def _psnr(images: Sequence[Bytes], files: Sequence[bytes]) -> float:
    squares, n = 0.0, 0
    for image, file in zip(images, files, strict=True):
        again = np.asarray(Image.open(BytesIO(file)), dtype=np.float64)
        squares += float(np.square(again - image).sum())
        n += image.size
    return 10 * math.log10(_PEAK**2 * n / squares) if squares else math.inf
