"""What all measurements share: the VAE, the pictures in a fixed order, and how pictures are compared."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calotype.engine.executor import Progress
from calotype.errors import PictureError, UsageError
from calotype.evaluate.lpips import LEAST, LPIPS
from calotype.latents import LatentFormat
from calotype.pixels import from_array, luma, to_channels, to_uint8
from calotype.posterior import Posterior

FEW = 8  # pictures that costly measurements take
LEAST_LATENTS = 8  # a side
LEAST_PIXELS = 16  # a side, for SSIM
LEAST_LPIPS = 8 * -(-max(LEAST.values()) // 8)  # pixels a side for any of its networks, as a multiple of 8

_Item = TypeVar("_Item", covariant=True)


class Items(Protocol[_Item]):
    """What has a length and can be gone through: a list, or pictures that are read one by one."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[_Item]: ...


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
        levels: uint8 [3, S, S]; three times the same where a VAE's pictures are grey.
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


class Given(Protocol):
    """Pictures by number: a list, or what reads a picture when it is asked for (more than once) and keeps none."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> tuple[str, NDArray[np.uint8]]:
        """Name and picture, uint8 [H, W, 3].

        Raises:
            PictureError: it can't be read; the message names it.
        """


class Samples:
    """Pictures, cut to squares around their middles and sorted by content, so that their order does not matter.

    The side is that asked for, or that of the smallest picture where this is less, rounded down to a multiple of 2 f.
    No picture is kept: each is read once to be sorted, and again whenever it is asked for.

    Args:
        pictures, labels: see `probe`.
        factor: f of the VAE.
        side: in pixels, at most.
        grey: pictures become their luma.

    Attributes:
        side: of the squares, in pixels.
        names: in the order of the samples.
        labelled: how many of them have a label.
        unread: what was said of each picture that can't be read; there is no sample of it.

    Raises:
        UsageError: no pictures, one that is none or too small, or more or fewer labels than pictures.
        PictureError: none of them can be read.
    """

    def __init__(
        self, pictures: Given, labels: Sequence[str | None] | None, factor: int, side: int, *, grey: bool = False
    ) -> None:
        least = max(LEAST_PIXELS, LEAST_LATENTS * factor)
        if side < least:
            raise UsageError(f"A probe at f{factor} needs pictures of at least {least} pixels a side, not {side}.")
        if not len(pictures):
            raise UsageError("A probe needs at least one picture.")
        if labels is not None and len(labels) != len(pictures):
            raise UsageError(
                f"There are {len(labels)} labels for {len(pictures)} pictures; give one for each, in their order."
            )
        self._pictures, self._labels, self._least, self._grey = pictures, labels, least, grey
        unread = []
        found: dict[int, tuple[str, str, int]] = {}  # name, digest, and the side that was cut for it
        self.side = side - side % (2 * factor)
        for i in range(len(pictures)):
            try:
                name, array = pictures[i]
            except PictureError as error:
                unread.append(str(error))
                continue
            self._check(name, array, factor)
            smaller = min(array.shape[:2])
            self.side = min(self.side, smaller - smaller % (2 * factor))
            found[i] = name, _digest(self._square(array)), self.side
        if not found:
            more = f" (and so are {len(unread) - 1} more)" if len(unread) > 1 else ""
            raise PictureError(f"No picture to probe with can be read{more}: {unread[0]}")
        for i, (name, _, cut) in found.items():
            if cut != self.side:  # a smaller picture came later
                found[i] = name, _digest(self._square(pictures[i][1])), self.side
        self.unread = tuple(unread)
        self._found = sorted((digest, name, i) for i, (name, digest, _) in found.items())
        self.names = tuple(name for _, name, _ in self._found)
        self.labelled = sum(labels[i] is not None for i in found) if labels is not None else 0

    def _check(self, name: str, array: NDArray[np.uint8], factor: int) -> None:
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise UsageError(f"{name}: pictures to probe with are uint8 [H, W, 3], not {array.dtype} {array.shape}.")
        if min(array.shape[:2]) < self._least:
            raise UsageError(
                f"{name}: this picture is {array.shape[1]}x{array.shape[0]}, and a probe at f{factor} needs at least "
                f"{self._least}x{self._least}; leave it out."
            )

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, i: int, /) -> Sample:
        """Raises PictureError if the picture is another one by now, or can't be read any more."""
        digest, name, which = self._found[i]
        array = self._pictures[which][1]
        if min(array.shape[:2]) < self.side or _digest(levels := self._square(array)) != digest:
            raise PictureError(f"{name}: this picture was changed while it was probed; start again.")
        return Sample(name, torch.from_numpy(levels), self._labels[which] if self._labels is not None else None, digest)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def _square(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The middle of a picture: uint8 [H, W, 3] -> [3, side, side]."""
        top, left = ((n - self.side) // 2 for n in array.shape[:2])
        cut = array[top : top + self.side, left : left + self.side]
        if self._grey:
            return to_uint8(luma(from_array(cut))).expand(3, -1, -1).contiguous().numpy()
        return np.ascontiguousarray(cut.transpose(2, 0, 1))


def _digest(levels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(levels.data).hexdigest()


class Bench:
    """A VAE with pictures, all of them RGB to those who measure.

    A VAE of grey pictures gets their luma, and what it decodes is repeated; one of RGBA gets them opaque, and what it
    decodes is seen over white.

    Attributes:
        channels: of the VAE's pictures: 1, 3 or 4.
        few: the pictures that costly measurements take.
        latents, reconstructions: theirs: the posterior's mode, [C, h, w], and pixels; there after the first pass.
        mean, std: of latents over all pictures, float32 [C, 1, 1] (a std of zero is 1); there after the first pass.
    """

    latents: list[Tensor]
    reconstructions: list[Tensor]
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vae: Coder,
        samples: Samples,
        seed: int,
        lpips: LPIPS | None,
        progress: Progress | None,
        channels: int = 3,
    ) -> None:
        self.vae = vae
        self.channels = channels
        self.samples = samples
        self.few = [samples[i] for i in range(min(FEW, len(samples)))]
        self.side = samples.side
        self.seed = seed
        self.progress = progress
        self._lpips = lpips

    @property
    def measures(self) -> dict[str, str]:
        """How steps between pictures are measured: key -> name with unit."""
        return {"rmse": "RMSE (levels)"} | ({"lpips": f"LPIPS ({self._lpips.net})"} if self._lpips else {})

    def encode(self, pixels: Tensor) -> Posterior:
        """Pixels [3, H, W] -> their posterior, [1, C, h, w], on the CPU."""
        posterior = self.vae.encode(to_channels(pixels, self.channels)[None])
        return type(posterior)(posterior.moments.cpu().float())

    def mode(self, pixels: Tensor) -> Tensor:
        """Pixels [3, H, W] -> latents [C, h, w]."""
        return self.encode(pixels).mode()[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [C, h, w] -> pixels [3, H, W] in [-1, 1], on the CPU."""
        return to_channels(self.vae.decode(latents[None])[0].cpu(), 3)

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

    def over(self, items: Items[_Item]) -> Iterator[_Item]:
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
