"""What can be asked of latents beside that they decode well: that they scale, turn, shift and group as pictures do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.errors import UsageError
from calotype.evaluate.features import dinov2
from calotype.evaluate.lpips import LPIPS, load_lpips

# --- EQ-VAE ---


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Scaling and turning, of latents and pictures alike: the same of both, to the pixel.

    A step is ``x = transform.input(x)``, then ``decode(transform.latents(z))`` is compared with
    ``transform.pixels(x)``. Sides are scaled as the latents' are, rounded down to whole ones: bilinearly, without
    antialiasing, as in zelaki/eqvae.

    Attributes:
        factor: spatial compression f.
        scale: at most 1.
        turns: quarters of a full turn.
        low: it is the picture that is scaled, before it is encoded, and latents are left alone.
    """

    factor: int
    scale: float = 1.0
    turns: int = 0
    low: bool = False

    def input(self, x: Tensor) -> Tensor:
        """What is to be encoded: pictures [N, C, H, W], with sides that are multiples of f."""
        return self._scaled(x, self.factor) if self.low else x

    def latents(self, z: Tensor) -> Tensor:
        """What is to be decoded: latents [N, C, h, w]."""
        return z if self.low else torch.rot90(self._scaled(z, 1), self.turns, (-2, -1))

    def pixels(self, x: Tensor) -> Tensor:
        """What is to come out: of what `input` gave."""
        return x if self.low else torch.rot90(self._scaled(x, self.factor), self.turns, (-2, -1))

    def _scaled(self, x: Tensor, unit: int) -> Tensor:
        if self.scale == 1.0:
            return x
        size = [unit * max(1, int(n // unit * self.scale)) for n in x.shape[2:]]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Equivariance:
    """EQ-VAE (Kouzelis et al. 2025, arXiv:2502.09509): which transform a step has.

    As in zelaki/eqvae: with `probability` latents are scaled by 8/32, ..., or 31/32 and turned by 90, 180 or 270
    degrees; otherwise, with the probability `low`, the picture is scaled so before it is encoded; otherwise nothing.

    Args:
        factor: spatial compression f.
    """

    probability: float
    low: float
    factor: int

    def __call__(self, rng: np.random.Generator) -> Transform:
        """Draws one."""
        if rng.random() < self.probability:
            return Transform(factor=self.factor, scale=_scale(rng), turns=int(rng.integers(1, 4)))
        if rng.random() < self.low:
            return Transform(factor=self.factor, scale=_scale(rng), low=True)
        return Transform(factor=self.factor)


def _scale(rng: np.random.Generator) -> float:
    return int(rng.integers(8, 32)) / 32


# --- VA-VAE ---


class Alignment(nn.Module):
    """VA-VAE's loss (Yao et al. 2025, arXiv:2501.01423, section 3.2): latents as a frozen network's features are.

    With P a learned 1x1 convolution: mean over pairs of positions of relu(|cos(Pz_i, Pz_j) - cos(f_i, f_j)| - m1), plus
    mean over positions of relu(1 - m2 - cos(Pz_i, f_i)). Computed in float32, under autocast too.

    Args:
        z_channels, feature_channels: of latents and features.
        margins: (m1, m2), differences below which nothing is lost.
    """

    def __init__(self, z_channels: int, feature_channels: int, *, margins: tuple[float, float] = (0.25, 0.5)) -> None:
        super().__init__()
        self.margins = margins
        self.projection = nn.Conv2d(z_channels, feature_channels, 1, bias=False)

    def forward(self, z: Tensor, features: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            z: [N, C, h, w].
            features: [N, D, h', w'], resized (bilinear) to the latents' size.
        """
        of_pairs, of_positions = self.margins
        with torch.autocast(z.device.type, enabled=False):
            features = features.float()
            if features.shape[2:] != z.shape[2:]:
                features = F.interpolate(features, size=z.shape[2:], mode="bilinear", align_corners=False)
            a = F.normalize(self.projection(z.float()).flatten(2), dim=1)
            b = F.normalize(features.flatten(2), dim=1)
            pairs = (a.mT @ a - b.mT @ b).abs()
            cosines = (a * b).sum(1)
            return F.relu(pairs - of_pairs).mean() + F.relu(1.0 - of_positions - cosines).mean()


def features(kind: str) -> nn.Module:
    """A frozen network: pixels [N, 3, H, W] in [-1, 1] -> features [N, D, h, w], without gradients.

    Args:
        kind: ``vgg``, the last stage of LPIPS's network (512 channels, a 16th of the sides); ``dinov2``, DINOv2-large
            from the Hugging Face hub (1024 channels, 16 x 16 positions), which needs transformers; or a folder with a
            DINOv2 of any size, as transformers saves it.

    Raises:
        UsageError: for another kind, or without transformers.
        WeightsError: if the weights can't be read, or (FetchError) can't be had.
    """
    if kind == "vgg":
        return _LastStage(load_lpips("vgg"))
    if kind != "dinov2" and not Path(kind).is_dir():
        raise UsageError(f"features must be vgg, dinov2 or a folder with a DINOv2, not {kind!r}.")
    return _Patches(dinov2(None if kind == "dinov2" else kind))


class _LastStage(nn.Module):
    def __init__(self, lpips: LPIPS) -> None:
        super().__init__()
        self.lpips = lpips

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.lpips.stages(x)[-1]


class _Patches(nn.Module):
    """The patches' tokens of a DINOv2 (arXiv:2304.07193), of pictures resized to 16 x 16 patches as in VA-VAE."""

    SIDE = 16
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        # ImageNet's
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        config: Any = self.model.config
        side = self.SIDE * config.patch_size
        x = F.interpolate(x.float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        tokens: Tensor = self.model((0.5 * x + 0.5 - self.mean) / self.std).last_hidden_state
        patches = tokens[:, -(self.SIDE**2) :]  # before them stand a class token and perhaps registers
        return patches.mT.reshape(len(x), -1, self.SIDE, self.SIDE)


# --- AF-LDM ---


def shift_loss(
    encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], x: Tensor, z: Tensor, shift: Tensor
) -> Tensor:
    """How far encoder and decoder are from shifting with what they are given (AF-LDM, arXiv:2503.09419), a scalar.

    |E(T x) - T z|^2 + |D(T z) - T D(z)|^2, means over what is still inside after the shift T. Gradients reach E and D
    through the left terms only, and none reach `z` (SingleZombie/AFLDM). T is exact for band-limited signals that are
    mirrored at the borders: a shift of the phases, since interpolation would blur.

    Args:
        encode: pixels -> latents. decode: latents -> pixels.
        x: pictures [N, 3, H, W].
        z: their latents [N, C, H/f, W/f].
        shift: [2], rows and columns in pixels, whole or not; latents are shifted by an f-th of it.
    """
    factor = x.shape[3] // z.shape[3]
    by = tuple(shift.tolist())
    latent_by = tuple(n / factor for n in by)
    moved = shifted(z.detach(), latent_by)
    encoded, decoded = encode(shifted(x.detach(), by)), decode(moved)
    with torch.no_grad():  # after those with gradients: autocast keeps the weights as they were first cast
        wanted = shifted(decode(z.detach()), by)
    return _apart(encoded, moved, latent_by) + _apart(decoded, wanted, by)


def shifted(x: Tensor, by: tuple[float, ...]) -> Tensor:
    """Maps [N, C, H, W] shifted down and right by (rows, columns), mirrored at the borders: float32 [N, C, H, W]."""
    x = x.float()
    for axis, distance in zip((-2, -1), by, strict=True):
        length = x.shape[axis]
        spectrum = torch.fft.rfft(torch.cat([x, x.flip(axis)], axis), dim=axis)
        angle = -2.0 * math.pi * distance * torch.fft.rfftfreq(2 * length, device=x.device)
        phase = torch.polar(torch.ones_like(angle), angle)
        spectrum = spectrum * (phase[:, None] if axis == -2 else phase)
        x = torch.fft.irfft(spectrum, n=2 * length, dim=axis).narrow(axis, 0, length)
    return x


def _apart(a: Tensor, b: Tensor, by: tuple[float, ...]) -> Tensor:
    """The mean square of a - b, without the rows and columns that came in from outside."""
    difference = a.float() - b
    for axis, distance in zip((-2, -1), by, strict=True):
        gone = math.ceil(abs(distance))
        difference = difference.narrow(axis, gone if distance > 0 else 0, difference.shape[axis] - gone)
    return difference.square().mean()
