"""Tables of sizes that pictures of many shapes are brought to, as trainers have them. No torch.

Presets, each as (width, height):

- ``sdxl``: the sizes of SDXL's multi-aspect training (Podell et al. 2023, arXiv:2307.01952, appendix I), all near
  1024 x 1024 pixels, with both orientations of each.
- ``sd1``, ``sd2``, ``sd3``, ``flux``: widths and heights in steps of 64 whose product is at most 512, 768, 1024 and
  1024 pixels squared, with sides from 256 (half the square's where that is less) to twice the square's. It is the rule
  of NovelAI's aspect ratio bucketing (2022), which kohya-ss/sd-scripts follows in make_bucket_resolutions
  (library/model_util.py), with these numbers for SD1.
- ``SIDE`` or ``SIDE/STEP``, as ``768`` or ``1024/16``: the same rule for any area and step.
"""

from __future__ import annotations

import re
from functools import lru_cache
from math import isqrt, log

from calotype.errors import UsageError

Size = tuple[int, int]
"""(width, height) in pixels."""

_SDXL = (
    *((512, side) for side in (2048, 1984, 1920, 1856)),
    *((576, side) for side in (1792, 1728, 1664)),
    *((640, side) for side in (1600, 1536)),
    *((704, side) for side in (1472, 1408, 1344)),
    *((768, side) for side in (1344, 1280)),
    *((832, side) for side in (1216, 1152)),
    *((896, side) for side in (1152, 1088)),
    *((960, side) for side in (1088, 1024)),
    (1024, 1024),
)
_SIDES = {"sd1": 512, "sd2": 768, "sd3": 1024, "flux": 1024}
_STEP, _LEAST, _MOST = 64, 256, 2**14


def table(name: str) -> tuple[Size, ...]:
    """The sizes of a preset, from the narrowest to the widest.

    Raises:
        UsageError: there is no such preset.
    """
    if name == "sdxl":
        return _sorted({*_SDXL, *((height, width) for width, height in _SDXL)})
    found = re.fullmatch(r"(\d{1,5})(?:/(\d{1,4}))?", name)
    if name not in _SIDES and not found:
        raise UsageError(
            f"--buckets {name}: there is no such table; give sdxl, {', '.join(_SIDES)}, or SIDE or SIDE/STEP in "
            "pixels, as in 768 or 1024/16."
        )
    side = int(found[1]) if found else _SIDES[name]
    step = int(found[2] or _STEP) if found else _STEP
    if not 0 < step <= side <= _MOST:
        raise UsageError(f"--buckets {name}: give a side of at most {_MOST} pixels, and a step of at most the side.")
    return _rule(side, step)


def _rule(side: int, step: int) -> tuple[Size, ...]:
    area, least, most = side * side, min(_LEAST, side // 2) // step * step or step, 2 * side
    square = isqrt(area) // step * step
    sizes = {(square, square)}
    for width in range(least, most + 1, step):
        height = min(most, area // width) // step * step
        if height >= least:
            sizes |= {(width, height), (height, width)}
    return _sorted(sizes)


def _sorted(sizes: set[Size]) -> tuple[Size, ...]:
    return tuple(sorted(sizes, key=lambda size: (size[0] / size[1], size)))


@lru_cache(maxsize=2**14)  # pictures of a data set have few sizes
def nearest(sizes: tuple[Size, ...], width: int, height: int) -> Size:
    """The size whose aspect ratio is nearest to a picture's, in logarithms; of equal ones the largest."""
    shape = log(width / height)
    return min(sizes, key=lambda one: (abs(log(one[0] / one[1]) - shape), -one[0] * one[1], one))
