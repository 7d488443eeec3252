"""Which VAE is best by a metric, as far as the pictures tell."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from calotype.evaluate.bootstrap import mean_interval

Standing = Literal["best", "tied", ""]

RESAMPLES = 2000
LEAST = 6  # pictures: of two equal VAEs one is better on all of n pictures with chance 2^(1 - n), 3% of 6 and 50% of 2
STANDINGS = {
    "best": "better than each other VAE on the same pictures: the 95% interval of the mean difference excludes 0",
    "tied": "can't be told from the best on these pictures",
}


def unmarked(results: dict[str, Any]) -> str:
    """Why no VAE stands out by any metric, where it is for the number of pictures; else nothing."""
    count = len(results["pictures"])
    if len(results["vaes"]) < 2 or count >= LEAST:
        return ""
    given = f"{count} picture{'' if count == 1 else 's'}"
    return f"No VAE is marked best: {given} may favour one by chance; give {LEAST} or more"


def values(vae: dict[str, Any], key: str, pictures: int) -> list[float | None]:
    """A VAE's figure of each picture; None where there is none."""
    found: list[float | None] = [None] * pictures
    for row in vae["rows"]:
        found[row["picture"]] = row.get(key)
    return found


def standings(results: dict[str, Any], key: str, higher: bool, ideal: float | None = None) -> list[Standing]:
    """One for each VAE, by the pictures for which all that have figures have one.

    The VAE with the best mean of these is "best" if its mean difference to each other one has a 95% interval without 0;
    if an interval holds 0, both are "tied". Intervals of the means themselves would not do: pictures differ more from
    each other than VAEs do, so that they overlap where one VAE is better on every picture.

    None stands out where there are fewer than two VAEs with figures, or fewer than `LEAST` pictures in common.

    Args:
        ideal: how far from it a figure is counts, and less is better, whatever `higher` says.
    """
    figures = [values(vae, key, len(results["pictures"])) for vae in results["vaes"]]
    if ideal is not None:
        figures = [[None if value is None else abs(value - ideal) for value in column] for column in figures]
        higher = False
    known = [i for i, column in enumerate(figures) if any(v is not None for v in column)]
    found: list[Standing] = [""] * len(figures)
    rows = zip(*(figures[i] for i in known), strict=True)
    common = np.array([row for row in rows if all(v is not None and math.isfinite(v) for v in row)], dtype=np.float64)
    if len(known) < 2 or len(common) < LEAST:
        return found
    means = common.mean(axis=0)
    first = int(means.argmax() if higher else means.argmin())
    for i in range(len(known)):
        if i == first:
            continue
        interval = mean_interval((common[:, first] - common[:, i]).tolist(), resamples=RESAMPLES)
        if interval.low <= 0 <= interval.high:
            found[known[i]] = "tied"
    found[known[first]] = "tied" if "tied" in found else "best"
    return found
