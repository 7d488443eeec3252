"""Distances between pictures and their reconstructions as two sets, over features that were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.errors import UsageError
from calotype.evaluate.distances import Gaussian, frechet_distance, kernel_distance
from calotype.evaluate.measure import Tools
from calotype.evaluate.store import REFERENCE, Store


@dataclass(frozen=True)
class Distance:
    """One between sets of pictures.

    Attributes:
        key: what its results begin with.
        title: in a sentence.
    """

    key: str
    title: str

    def least(self, width: int) -> int:
        """Pictures that it needs over so many features."""
        return width + 1 if self.key == "fid" else 2


DISTANCES = {"frechet": Distance("fid", "Fréchet distance"), "kernel": Distance("kid", "kernel distance")}


def require_enough(widths: Mapping[str, int], names: Sequence[str], count: int) -> None:
    """Checks that there are pictures enough for all distances.

    Args:
        widths: features of each extractor.
        names: of distances.

    Raises:
        UsageError: there are not.
    """
    for name, width in widths.items():
        for distance in (DISTANCES[one] for one in names):
            if count < (least := distance.least(width)):
                alone = "" if distance.key == "kid" else "ask for the kernel distance alone (--distances kernel), "
                raise UsageError(
                    f"A {distance.title} over {name} needs at least {least:,} pictures, not {count:,}; give more, "
                    f"{alone}or leave {name} out."
                )


def distances(tools: Tools, store: Store, vae: str, measured: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A VAE's, by key and extractor, such as fid_inception: `value`, `n` pictures, for kernel distances also `std`.

    Where too many pictures failed `value` is None, and `why` says it.

    Args:
        measured: keys of pictures.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, extractor in tools.extractors.items():
        x, y = _sets(store, vae, tools.kept(name), measured, extractor.width)
        for distance in (DISTANCES[one] for one in tools.distances):
            told: dict[str, Any] = {"value": None, "n": len(x)}
            found[f"{distance.key}_{name}"] = told
            if len(x) < (least := distance.least(extractor.width)):
                told["why"] = f"needs {least:,} pictures, and only {len(x):,} did not fail"
            elif distance.key == "fid":
                told["value"] = frechet_distance(_gaussian(x), _gaussian(y))
            else:
                kernel = kernel_distance(x, y, whole=False)
                told["value"] = kernel.value if kernel.mean is None else kernel.mean
                told |= {} if kernel.std is None else {"std": kernel.std}
    return found


def _sets(store: Store, vae: str, kept: str, measured: Sequence[str], width: int) -> tuple[Tensor, Tensor]:
    """Features of pictures and of their reconstructions, [N, width] each, of those that have both."""
    before, after = (store.features(key, kept) for key in (REFERENCE, vae))
    both = [key for key in measured if key in before and key in after]
    empty = np.empty((0, width), np.float32)
    x, y = (torch.from_numpy(np.stack([of[key] for key in both]) if both else empty) for of in (before, after))
    return x, y


def _gaussian(features: Tensor) -> Gaussian:
    gaussian = Gaussian(features.shape[1])
    gaussian.add(features)
    return gaussian
