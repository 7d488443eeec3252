"""The numbers of the page. Pictures are pixels [N, 3, H, W] in [-1, 1]; latents are [N, C, h, w]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from calotype.evaluate import metrics
from calotype.pixels import to_uint8
from calotype.posterior import DiagonalGaussian, Posterior

DRAWS = 4  # sets of samples whose distances are averaged
FRAMES = 9  # of an interpolation, both ends included
_RARE = 20  # training pictures that a label must have, for the probe to learn it
_BATCH = 256


class Coder(Protocol):
    """A network, or principal components."""

    def encode(self, pixels: Tensor) -> Posterior: ...

    def decode(self, latents: Tensor) -> Tensor: ...


def encode(coder: Coder, pixels: Tensor) -> Posterior:
    """The posterior of many pictures."""
    parts = [coder.encode(part).moments for part in pixels.split(_BATCH)]
    return type(coder.encode(pixels[:1]))(torch.cat(parts))


def decode(coder: Coder, latents: Tensor) -> Tensor:
    """Pictures in [-1, 1]."""
    return torch.cat([coder.decode(part) for part in latents.split(_BATCH)]).clamp(-1, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures, in dB, of what is stored: 8 bits a value."""
    values = [metrics.psnr(x, y) for x, y in zip(to_uint8(a), to_uint8(b), strict=True)]
    return sum(values) / len(values)


def generator(seed: int) -> torch.Generator:
    """Of random numbers."""
    return torch.Generator().manual_seed(seed)


# --- 1: reconstruction ---


def reconstruction(coder: Coder, held_out: Tensor, training: Tensor) -> dict[str, float]:
    """PSNR of pictures never seen, and of as many that were trained on."""
    seen = training[:: max(1, len(training) // len(held_out))][: len(held_out)]
    return {
        "held_out": psnr(decode(coder, encode(coder, held_out).mode()), held_out),
        "training": psnr(decode(coder, encode(coder, seen).mode()), seen),
    }


def moved(pixels: Tensor, by: int) -> Tensor:
    """To the right; what leaves there comes back on the left."""
    return pixels.roll(by, 3)


def shift(coder: Coder, held_out: Tensor, by: int) -> dict[str, float]:
    """What moving the pictures does to their reconstructions.

    Returns:
        still, moved: PSNR of the reconstructions before and after.
        latents: where latents have places, PSNR of moved latents, decoded, against moved pictures.
    """
    latents = encode(coder, held_out).mode()
    found = {
        "still": psnr(decode(coder, latents), held_out),
        "moved": psnr(decode(coder, encode(coder, moved(held_out, by)).mode()), moved(held_out, by)),
    }
    if latents.shape[3] > 1:
        found["latents"] = psnr(
            decode(coder, moved(latents, by * latents.shape[3] // held_out.shape[3])), moved(held_out, by)
        )
    return found


# --- 2: samples ---


def statistics(pixels: Tensor) -> NDArray[np.float64]:
    """48 numbers of each picture [N, 3, 32, 32]: [N, 48].

    In each quarter of the picture, for brightness, red against blue, and green against both: the logarithm of the
    contrast of details of 1, 2 and 4 pixels (differences between a picture and its blocks' means), and the mean.
    """
    r, g, b = pixels.double().unbind(1)
    level = torch.stack([(r + g + b) / 3, r - b, g - (r + b) / 2], 1)
    found = []
    for _ in range(3):
        coarse = F.avg_pool2d(level, 2)
        detail = level - F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        contrast = F.adaptive_avg_pool2d(detail.square(), 2).sqrt()
        found.append((contrast + 0.003).log().flatten(1))  # a level of 255 is 0.008: what is below is nothing
        level = coarse
    found.append(F.adaptive_avg_pool2d(level, 2).flatten(1))
    return torch.cat(found, 1).numpy()


class Distance:
    """Fréchet distance between Gaussians fitted to `statistics` of some pictures and of the training pictures.

    Statistics are divided by their standard deviation over the training pictures, so 1 is about one standard deviation
    in one of the 48.
    """

    def __init__(self, training: Tensor) -> None:
        found = statistics(training)
        self.scale = found.std(0)
        found = found / self.scale
        self.mean, self.covariance = found.mean(0), np.cov(found.T)
        self.root = _root(self.covariance)

    def __call__(self, pixels: Tensor) -> float:
        found = statistics(pixels) / self.scale
        covariance = np.cov(found.T)
        middle = np.linalg.eigvalsh(self.root @ covariance @ self.root).clip(min=0)
        means = float(np.square(found.mean(0) - self.mean).sum())
        return means + float(np.trace(covariance) + np.trace(self.covariance) - 2 * np.sqrt(middle).sum())


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


Sampler = Callable[[int, torch.Generator], Tensor]


def standard(latents: Tensor) -> Sampler:
    """Draws latents of this shape from N(0, I)."""
    return lambda n, g: torch.randn(n, *latents.shape[1:], generator=g)


def per_channel(latents: Tensor) -> Sampler:
    """Draws from a Gaussian with the mean and the std of each channel."""
    mean, std = latents.mean((0, 2, 3), keepdim=True), latents.std((0, 2, 3), keepdim=True)
    return lambda n, g: mean + std * torch.randn(n, *latents.shape[1:], generator=g)


def full(latents: Tensor) -> Sampler:
    """Draws from a Gaussian with the mean and the covariance of all numbers."""
    rows = latents.flatten(1).double()
    mean, root = rows.mean(0), torch.from_numpy(_root(np.cov(rows.T.numpy())))

    def draw(n: int, g: torch.Generator) -> Tensor:
        noise = torch.randn(n, rows.shape[1], generator=g).double()
        return (mean + noise @ root).float().view(n, *latents.shape[1:])

    return draw


def sample_distance(coder: Coder, sampler: Sampler, distance: Distance, count: int) -> float:
    """The mean distance of a few sets of `count` samples."""
    return sum(distance(decode(coder, sampler(count, generator(i)))) for i in range(DRAWS)) / DRAWS


# --- 3: interpolations ---


def between(a: Tensor, b: Tensor) -> Tensor:
    """Straight from a to b in equal steps, [FRAMES, ...]."""
    steps = torch.linspace(0, 1, FRAMES).view(-1, *(1,) * a.ndim)
    return a + steps * (b - a)


def interpolation(coder: Coder, held_out: Tensor, distance: Distance) -> dict[str, float]:
    """Between each held-out picture and the next, in latents and by a cross-fade of their reconstructions.

    Returns:
        jump: the largest step between frames over the mean step (RMS difference), mean over pairs; a cross-fade has 1.
        middle, crossfade: distance of all middle frames to photographs.
        ends: distance of the reconstructions themselves.
    """
    latents = encode(coder, held_out).mode()
    ends = decode(coder, latents)
    jumps = []
    for a, b in zip(latents, latents.roll(-1, 0), strict=True):
        frames = decode(coder, between(a, b))
        steps = frames.diff(dim=0).square().flatten(1).mean(1).sqrt()
        jumps.append(float(steps.max() / steps.mean()))
    return {
        "jump": sum(jumps) / len(jumps),
        "jump_most": max(jumps),
        "middle": distance(decode(coder, (latents + latents.roll(-1, 0)) / 2)),
        "crossfade": distance((ends + ends.roll(-1, 0)) / 2),
        "ends": distance(ends),
    }


# --- 4 and 6: the posterior ---


def posterior(coder: Coder, held_out: Tensor) -> dict[str, Any]:
    """What a variational network does on pictures never seen.

    Returns:
        nats: KL to N(0, I) a pixel.
        mode, sample: PSNR from the posterior's mode and from samples of it.
        noise: median standard deviation of the posterior; noise_low, noise_high: 5% and 95% of them.
        spread: standard deviation of the modes, over all numbers together.
        used: share of the 192 numbers whose modes vary more than their noise.
    """
    found = encode(coder, held_out)
    assert isinstance(found, DiagonalGaussian)
    low, median, high = np.quantile(found.std.numpy(), (0.05, 0.5, 0.95))
    return {
        "nats": float(found.kl().mean()) / (held_out.shape[2] * held_out.shape[3]),
        "mode": psnr(decode(coder, found.mode()), held_out),
        "sample": psnr(decode(coder, found.sample(generator(0))), held_out),
        "noise": float(median),
        "noise_low": float(low),
        "noise_high": float(high),
        "spread": float(found.mean.std()),
        "used": float((found.mean.std(0) > found.std.square().mean(0).sqrt()).float().mean()),
    }


# --- 7: what latents tell about a picture ---


def probe(training: Tensor, held_out: Tensor, labels: Sequence[str], truth: Sequence[str]) -> dict[str, Any]:
    """A linear classifier (ridge regression to one-hot) on held-out pictures.

    Args:
        training, held_out: features [N, D].
        labels, truth: of these.

    Returns:
        right: for each held-out picture whose label is one that was learnt, whether it was named.
        classes: how many labels were learnt.
        commonest: accuracy of always naming the commonest, in %.
    """
    classes = sorted({label for label in set(labels) if labels.count(label) >= _RARE})
    chosen = [i for i, label in enumerate(labels) if label in classes]
    asked = [i for i, label in enumerate(truth) if label in classes]
    x, y = training[chosen], torch.tensor([classes.index(labels[i]) for i in chosen])
    of, answer = held_out[asked], torch.tensor([classes.index(truth[i]) for i in asked])
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x, of = (x - mean) / std, (of - mean) / std
    fit, choose = torch.arange(len(x)) % 10 > 0, torch.arange(len(x)) % 10 == 0

    def right(weights: Tensor, where: Tensor, what: Tensor) -> Tensor:
        return (_with_one(where) @ weights).argmax(1).eq(what)

    def best(strength: float) -> float:
        return float(right(_ridge(x[fit], y[fit], len(classes), strength), x[choose], y[choose]).float().mean())

    strength = max((10.0**n for n in range(-4, 2)), key=best)
    named = right(_ridge(x, y, len(classes), strength), of, answer)
    commonest = 100 * float(answer.eq(y.mode().values).double().mean())
    return {"right": named.int().tolist(), "classes": len(classes), "commonest": commonest}


def gain(right: Sequence[int], other: Sequence[int]) -> tuple[float, float]:
    """How many more % are right in the first of two, asked the same; and twice its standard error."""
    difference = 100 * (np.array(right) - np.array(other))
    return float(difference.mean()), 2 * float(difference.std(ddof=1)) / math.sqrt(len(difference))


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def _ridge(x: Tensor, y: Tensor, classes: int, strength: float) -> Tensor:
    x, wanted = _with_one(x), F.one_hot(y, classes).to(x)
    wide = x.shape[1] > x.shape[0]
    square = x @ x.T if wide else x.T @ x
    square.diagonal().add_(strength * len(x))
    return x.T @ torch.linalg.solve(square, wanted) if wide else torch.linalg.solve(square, x.T @ wanted)


def clusters(features: Tensor, labels: Sequence[str], seed: int = 0) -> float:
    """Normalised mutual information between k-means clusters, as many as there are labels, and the labels: 0 to 1."""
    names = sorted(set(labels))
    truth = torch.tensor([names.index(label) for label in labels])
    x = features.double()
    x = (x - x.mean(0)) / x.std()  # one scale for all: distances are as they were
    best, spread = torch.zeros(len(x), dtype=torch.long), math.inf
    for start in range(5):
        centres = x[torch.randperm(len(x), generator=generator(seed + start))[: len(names)]]
        for _ in range(50):
            near = torch.cdist(x, centres).argmin(1)
            sums = torch.zeros_like(centres).index_add_(0, near, x)
            centres = sums / near.bincount(minlength=len(names)).clamp(min=1)[:, None]
        cost = float(torch.cdist(x, centres).min(1).values.square().sum())
        if cost < spread:
            best, spread = near, cost
    table = torch.zeros(len(names), len(names), dtype=torch.float64)
    table.index_put_((best, truth), torch.ones(len(x), dtype=torch.float64), accumulate=True)
    return _nmi(table.numpy() / len(x))


def _nmi(joint: NDArray[np.float64]) -> float:
    a, b = joint.sum(1), joint.sum(0)
    inside = joint > 0
    mutual = float((joint[inside] * np.log(joint[inside] / np.outer(a, b)[inside])).sum())
    entropies = [-float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (a, b)]
    return mutual / max(math.sqrt(entropies[0] * entropies[1]), 1e-12)
