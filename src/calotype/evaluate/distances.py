"""Distances between two sets of pictures, seen through a network's features (`calotype.evaluate.features`).

What is called FID or KID is such a distance over features of one network: `features.load_extractor("inception")`.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calotype.errors import NonFiniteError, UsageError
from calotype.files import writing

_BLOCK = 1024  # pictures of either side whose kernel is computed at a time


class Gaussian:
    """Mean and covariance of features, in one pass and in float64.

    Parts are joined by the formulas of Chan, Golub & LeVeque (1979), so what the batches were, and on how many
    processes, changes only the last digits.

    Args:
        width: D, the number of dimensions.

    Attributes:
        count: the number of pictures so far.
        mean: float64 [D].
        scatter: float64 [D, D], the sum over pictures of (f - mean)(f - mean)^T.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    @property
    def width(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """[D, D], divided by count - 1, as numpy's cov.

        Raises:
            UsageError: for fewer than two pictures, which have none.
        """
        if self.count < 2:
            raise UsageError(f"a covariance needs the features of at least 2 pictures, not of {self.count}.")
        return self.scatter / (self.count - 1)

    def add(self, features: Tensor) -> None:
        """Takes in the features of N more pictures: [N, D].

        Raises:
            UsageError: for another shape.
            NonFiniteError: if they hold NaN or infinity; nothing is taken in.
        """
        _check(features, self.width)
        if len(features):
            part = Gaussian(self.width)
            rows = features.detach().to("cpu", torch.float64, copy=True)
            part.count = len(rows)
            part.mean = rows.mean(0)
            rows -= part.mean
            part.scatter = rows.T @ rows
            self.merge(part)

    def merge(self, other: Gaussian) -> None:
        """Takes in all that another one has seen.

        Raises:
            UsageError: if it is of another width.
        """
        if other.width != self.width:
            raise UsageError(f"statistics of {other.width} dimensions can't be merged into those of {self.width}.")
        total = self.count + other.count
        if not other.count:
            return
        apart = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + torch.outer(apart, apart) * (self.count * other.count / total)
        self.mean = self.mean + apart * (other.count / total)
        self.count = total

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an npz file with ``count``, ``mu`` and ``sigma``, the last two as pytorch-fid names them.

        Raises:
            UsageError: for fewer than two pictures, or a folder that is not there.
            StorageError: the disk refuses it.
        """
        mean, covariance = self.mean.numpy(), self.covariance.numpy()
        with writing(path) as file:
            np.savez(file, count=np.int64(self.count), mu=mean, sigma=covariance)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Gaussian:
        """Reads what `save` wrote.

        Raises:
            UsageError: if there is no such file, or it holds something else.
        """
        keys = ("count", "mu", "sigma")
        try:
            with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays: dict[str, npt.NDArray[Any]] = {key: file[key] for key in keys if key in file.files}
        except FileNotFoundError:
            raise UsageError(f"{path}: there is no such file; give statistics that were saved.") from None
        except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile):
            raise UsageError(f"{path}: this is no whole npz file of statistics; make it again.") from None
        for key in keys:
            if key not in arrays:
                raise UsageError(f"{path}: these statistics hold no {key}; a file with {', '.join(keys)} is needed.")
        return cls._of(arrays, path)

    @classmethod
    def _of(cls, arrays: dict[str, npt.NDArray[Any]], path: str | os.PathLike[str]) -> Gaussian:
        count, mean, covariance = arrays["count"], arrays["mu"], arrays["sigma"]
        whole = (
            count.shape == ()
            and np.issubdtype(count.dtype, np.integer)
            and int(count) >= 2
            and mean.ndim == 1
            and covariance.shape == (len(mean), len(mean))
            and all(np.issubdtype(x.dtype, np.floating) and np.isfinite(x).all() for x in (mean, covariance))
            and np.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-9)
        )
        if not whole:
            raise UsageError(
                f"{path}: statistics must be a count of at least 2, mu [D] and a symmetric sigma [D, D] of finite "
                f"numbers; make them again."
            )
        gaussian = cls(len(mean))
        gaussian.count = int(count)
        gaussian.mean = torch.from_numpy(mean.astype(np.float64))
        gaussian.scatter = torch.from_numpy(covariance.astype(np.float64)) * (gaussian.count - 1)
        return gaussian


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2), never below 0: Dowson & Landau 1982; FID by Heusel et al. 2017, eq. 6.

    A and B are covariances divided by N - 1. (A B)^1/2 itself is not computed: its trace is that of
    (A^1/2 B A^1/2)^1/2, the sum of the singular values of A^1/2 B^1/2. These are real and at least 0 whatever the
    rounding, where a matrix root of A B is neither, and an error of 1e-16 in them stays one: it does not pass through a
    root. All in float64.

    The estimate is too large by about 1/N of something that depends on the pictures and the network, so two figures
    can be compared only at one N (Chong & Forsyth 2020, arXiv:1911.07023). With at most D pictures a covariance is
    singular and the bias larger than most distances: refused. `kernel_distance` has no such bias.

    Args:
        a, b: statistics of at least D + 1 pictures each.

    Raises:
        UsageError: if the widths differ, or there are too few pictures.
    """
    if a.width != b.width:
        raise UsageError(f"features to compare must be of one width, not {a.width} and {b.width}.")
    for gaussian in (a, b):
        if gaussian.count <= gaussian.width:
            raise UsageError(
                f"a Fréchet distance over {a.width} dimensions needs at least {a.width + 1} pictures on either side, "
                f"not {gaussian.count}; use the kernel distance, which needs few."
            )
    first, second = a.covariance, b.covariance
    trace = torch.linalg.svdvals(_root(first) @ _root(second)).sum()
    distance = (a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2.0 * trace
    return max(0.0, float(distance))


def _root(matrix: Tensor) -> Tensor:
    """A square root of a symmetric matrix; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    return root


@dataclass(frozen=True)
class KernelDistance:
    """What `kernel_distance` gives.

    Attributes:
        value: over all pictures; None if it was not wanted. It is unbiased, so it can be below 0.
        mean, std: of the estimates over random subsets (std divided by their number), as KID is usually published;
            None if either side has fewer pictures than a subset.
        subsets, size: their number, and how many pictures of either side are in each.
    """

    value: float | None
    mean: float | None
    std: float | None
    subsets: int
    size: int


def kernel_distance(
    x: Tensor, y: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0, whole: bool = True
) -> KernelDistance:
    """KID: squared maximum mean discrepancy with the kernel (f . g / D + 1)^3, its unbiased estimate.

    Binkowski et al. 2018, arXiv:1801.01401, section 4 and appendix D; the estimate is that of Gretton et al. 2012,
    equation 3. Subsets are drawn without replacement. In float64, on the features' device; over all pictures the time
    grows with (M + N)^2 D.

    The estimate is unbiased for two sets that are independent. Pictures and their own reconstructions are not, and
    their value is too low by 2 / N times what the kernel of such a pair is above that of two different pictures.

    Args:
        x, y: features, [M, D] and [N, D], at least two of each.
        subsets, size: at least one subset, of at least two pictures.
        seed: of the subsets.
        whole: also over all pictures where there are enough for subsets.

    Raises:
        UsageError: for other shapes, too few pictures or subsets.
        NonFiniteError: if features hold NaN or infinity.
    """
    for features in (x, y):
        _check(features, x.shape[-1] if x.ndim else 0)
        if len(features) < 2:
            raise UsageError(f"a kernel distance needs at least 2 pictures on either side, not {len(features)}.")
    if subsets < 1 or size < 2:
        raise UsageError(f"a kernel distance needs at least 1 subset of 2 pictures, not {subsets} of {size}.")
    x, y = x.detach(), y.detach()
    value = mean = std = None
    if min(len(x), len(y)) >= size:
        generator = np.random.default_rng(seed)
        drawn = ([torch.from_numpy(generator.permutation(len(z))[:size]) for z in (x, y)] for _ in range(subsets))
        values = np.array([_discrepancy(x[i.to(x.device)].double(), y[j.to(y.device)].double()) for i, j in drawn])
        mean, std = float(values.mean()), float(values.std())
    if whole or mean is None:
        value = _discrepancy(x.double(), y.double())
    return KernelDistance(value, mean, std, subsets, size)


def _discrepancy(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy."""
    m, n = len(x), len(y)
    return _within(x) / (m * (m - 1)) + _within(y) / (n * (n - 1)) - 2.0 * _between(x, y) / (m * n)


def _within(x: Tensor) -> float:
    """The kernel's sum over all pairs of different pictures of one set."""
    total = 0.0
    for start in range(0, len(x), _BLOCK):
        block = x[start : start + _BLOCK]
        total += _between(block, block) - _kernel(block.square().sum(1), x.shape[1])
        total += 2.0 * _between(block, x[start + _BLOCK :])
    return total


def _between(x: Tensor, y: Tensor) -> float:
    """The kernel's sum over all pairs of two sets."""
    blocks = (
        x[i : i + _BLOCK] @ y[j : j + _BLOCK].T for i in range(0, len(x), _BLOCK) for j in range(0, len(y), _BLOCK)
    )
    return sum((_kernel(block, x.shape[1]) for block in blocks), start=0.0)


def _kernel(products: Tensor, width: int) -> float:
    return (products / width + 1.0).pow(3).sum().item()


def _check(features: Tensor, width: int) -> None:
    if features.ndim != 2 or features.shape[1] != width or not width or not features.is_floating_point():
        raise UsageError(
            f"features must be floating-point [N, {width or 'D'}], not {features.dtype} {list(features.shape)}."
        )
    if not features.isfinite().all():
        raise NonFiniteError("features hold NaN or infinity; a distance over them would mean nothing.")
