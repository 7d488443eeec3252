"""What all measurements share: the VAE, the pictures in a fixed order, and how pictures are compared."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calotype.engine.executor import Progress
from calotype.errors import UsageError
from calotype.evaluate.lpips import LPIPS
from calotype.latents import LatentFormat
from calotype.pixels import from_array, to_uint8
from calotype.posterior import Posterior

FEW = 8  # pictures that costly measurements take
LEAST_LATENTS = 8  # a side
LEAST_PIXELS = 16  # a side, for SSIM
LEAST_LPIPS = 32  # pixels a side

_Item = TypeVar("_Item")


class Coder(Protocol):
    """What is probed: a `calotype.VAE`, or anything that encodes and decodes as it does."""

    name: str
    sha256: str

    @property
    def factor(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def latent_format(self) -> LatentFormat: ...

    def encode(self, pixels: Tensor) -> Posterior: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture, cut to a square.

    Attributes:
        levels: uint8 [3, S, S].
        digest: of the levels.
    """

    name: str
    levels: Tensor
    label: str | None
    digest: str

    @property
    def pixels(self) -> Tensor:
        """[3, S, S] in [-1, 1]."""
        return from_array(self.levels.permute(1, 2, 0).numpy())


def read_samples(
    pictures: Iterable[tuple[str, NDArray[np.uint8]]], labels: Sequence[str] | None, factor: int, side: int
) -> list[Sample]:
    """Pictures, cut to squares around their middles and sorted by content, so that their order does not matter.

    The side is that asked for, or that of the smallest picture where this is less, rounded down to a multiple of 2 f.

    Raises:
        UsageError: no pictures, one that is none or too small, or more or fewer labels than pictures.
    """
    least = max(LEAST_PIXELS, LEAST_LATENTS * factor)
    if side < least:
        raise UsageError(f"A probe at f{factor} needs pictures of at least {least} pixels a side, not {side}.")
    cut: list[tuple[str, NDArray[np.uint8]]] = []
    for name, array in pictures:
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise UsageError(f"{name}: pictures to probe with are uint8 [H, W, 3], not {array.dtype} {array.shape}.")
        smaller = min(array.shape[:2])
        if smaller < least:
            raise UsageError(
                f"{name}: this picture is {array.shape[1]}x{array.shape[0]}, and a probe at f{factor} needs at least "
                f"{least}x{least}; leave it out."
            )
        side = min(side, smaller)
        # sides that differ by an even number have one middle, whatever is cut off later
        cut.append((name, _middle(array, *(side + (n - side) % 2 for n in array.shape[:2]))))
    if not cut:
        raise UsageError("A probe needs at least one picture.")
    if labels is not None and len(labels) != len(cut):
        raise UsageError(f"There are {len(labels)} labels for {len(cut)} pictures; give one for each, in their order.")
    side -= side % (2 * factor)
    found = []
    for i, (name, array) in enumerate(cut):
        levels = np.ascontiguousarray(_middle(array, side, side).transpose(2, 0, 1))
        digest = hashlib.sha256(levels.data).hexdigest()
        found.append(Sample(name, torch.from_numpy(levels), labels[i] if labels else None, digest))
    return sorted(found, key=lambda sample: (sample.digest, sample.name))


def _middle(array: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
    return array[top : top + height, left : left + width].copy()


class Bench:
    """A VAE with pictures.

    Attributes:
        few: the pictures that costly measurements take.
        latents, reconstructions: theirs: the posterior's mode, [C, h, w], and pixels; there after the first pass.
        mean, std: of latents over all pictures, float32 [C, 1, 1] (a std of zero is 1); there after the first pass.
    """

    latents: list[Tensor]
    reconstructions: list[Tensor]
    mean: Tensor
    std: Tensor

    def __init__(
        self, vae: Coder, samples: Sequence[Sample], seed: int, lpips: LPIPS | None, progress: Progress | None
    ) -> None:
        self.vae = vae
        self.samples = samples
        self.few = samples[:FEW]
        self.side = samples[0].levels.shape[-1]
        self.seed = seed
        self.progress = progress
        self._lpips = lpips

    @property
    def measures(self) -> dict[str, str]:
        """How steps between pictures are measured: key -> name with unit."""
        return {"rmse": "RMSE (levels)"} | ({"lpips": f"LPIPS ({self._lpips.net})"} if self._lpips else {})

    def encode(self, pixels: Tensor) -> Posterior:
        """Pixels [3, H, W] -> their posterior, [1, C, h, w], on the CPU."""
        posterior = self.vae.encode(pixels[None])
        return type(posterior)(posterior.moments.cpu().float())

    def mode(self, pixels: Tensor) -> Tensor:
        """Pixels [3, H, W] -> latents [C, h, w]."""
        return self.encode(pixels).mode()[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [C, h, w] -> pixels [3, H, W] in [-1, 1], on the CPU."""
        return self.vae.decode(latents[None])[0].cpu()

    def lpips(self, a: Tensor, b: Tensor) -> float:
        """Between pictures [3, H, W]; there must be an LPIPS."""
        assert self._lpips is not None
        device = self._lpips.shift.device
        with torch.no_grad():
            return float(self._lpips(a[None].to(device), b[None].to(device)))

    def distances(self, a: Tensor, b: Tensor) -> dict[str, float]:
        """Between pictures [3, H, W], by each of `measures`."""
        found = {"rmse": rmse(a, b)}
        return found | ({"lpips": self.lpips(a, b)} if self._lpips else {})

    def generator(self, *what: object) -> torch.Generator:
        """For noise that belongs to the seed and to this."""
        digest = hashlib.sha256(repr((self.seed, *what)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def over(self, items: Sequence[_Item]) -> Iterator[_Item]:
        """The items, with progress after each."""
        for i, item in enumerate(items):
            yield item
            if self.progress is not None:
                self.progress((i + 1) / len(items))


def rmse(a: Tensor, b: Tensor) -> float:
    """Root mean square difference of pixels in [-1, 1], in levels (of 255)."""
    return 127.5 * math.sqrt((a.double() - b.double()).square().mean().item())


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of pixels in [-1, 1] that are not rounded to levels; infinite for equal ones."""
    error = rmse(a, b)
    return 20.0 * math.log10(255.0 / error) if error else math.inf


def shown(pixels: Tensor) -> NDArray[np.uint8]:
    """Pixels [3, H, W] in [-1, 1] -> what a figure holds, uint8 [H, W, 3]."""
    return array(to_uint8(pixels).permute(1, 2, 0))


def grey(values: Tensor, top: float) -> NDArray[np.uint8]:
    """A map [h, w] of values from 0 to `top` -> grey [h, w, 3], uint8."""
    levels = (values.double() / (top or 1.0)).clamp(0, 1).mul(255).round().to(torch.uint8)
    return array(levels[..., None].expand(-1, -1, 3))


def array(values: Tensor) -> NDArray[Any]:
    """As a NumPy array that owns its memory."""
    return values.detach().cpu().contiguous().numpy().copy()


def enlarged(values: Tensor, times: int) -> Tensor:
    """A map [..., h, w] with each value repeated along both sides."""
    return values.repeat_interleave(times, -2).repeat_interleave(times, -1)
