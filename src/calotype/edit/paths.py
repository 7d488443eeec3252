"""Ways from one picture's latents to another's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from calotype.errors import UsageError
from calotype.latents import LatentFormat

Kind = Literal["lerp", "slerp"]

EASINGS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cosine": lambda t: (1.0 - math.cos(math.pi * t)) / 2.0,
    "smoothstep": lambda t: t * t * (3.0 - 2.0 * t),
    "in": lambda t: t * t,
    "out": lambda t: t * (2.0 - t),
}
"""How time passes on a way: [0, 1] -> [0, 1], rising, 0 to 0 and 1 to 1."""

_ONE_LINE = 1e-9  # the sine below which two vectors lie on one line


def times(count: int, easing: str = "linear") -> list[float]:
    """Where on a way its frames lie: `count` numbers from exactly 0 to exactly 1.

    Raises:
        UsageError: fewer than two frames, or an unknown easing.
    """
    if count < 2:
        raise UsageError(f"A way has at least its two ends as frames, not {count}.")
    if easing not in EASINGS:
        raise UsageError(f"There is no easing {easing!r}; choose one of {', '.join(EASINGS)}.")
    ease = EASINGS[easing]
    return [0.0, *(ease(i / (count - 1)) for i in range(1, count - 1)), 1.0]


def between(a: Tensor, b: Tensor, t: float, kind: Kind, format_: LatentFormat) -> Tensor:
    """Raw latents at `t` on the way from `a` to `b`, all [C, h, w]; at 0 and 1 the ends themselves.

    Slerp turns around the origin, so it is done in model latents, which are centred there.

    Args:
        t: from 0 to 1.
        format_: of the latents.

    Raises:
        UsageError: latents of two shapes, or an unknown kind.
    """
    if a.shape != b.shape:
        raise UsageError(f"A way leads between latents of one shape, not {list(a.shape)} and {list(b.shape)}.")
    if kind not in ("lerp", "slerp"):
        raise UsageError(f"There is no way of the kind {kind!r}; choose lerp or slerp.")
    if t in (0.0, 1.0):
        return b if t else a
    if kind == "lerp":
        return torch.lerp(a, b, t)
    return format_.to_raw(slerp(format_.to_model(a[None]), format_.to_model(b[None]), t))[0]


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation of directions, linear interpolation of norms; a and b are each taken as one vector.

    (Directions: Shoemake, SIGGRAPH 1985, section 3.3, in the orthonormal basis of the two.) Computed in float64.
    Vectors of the same direction are interpolated linearly, which is the limit. Opposite ones have many arcs between
    them: the one taken leads over a direction of fixed noise. Where one is zero, which has no direction, it is linear
    too.

    Args:
        a, b: of one shape.
        t: from 0, where the result is exactly `a`, to 1, where it is exactly `b`.
    """
    if t in (0.0, 1.0):
        return b if t else a
    x, y = a.double().flatten(), b.double().flatten()
    lengths = float(x.norm()), float(y.norm())
    if not all(lengths):
        return torch.lerp(a, b, t)
    u, v = x / lengths[0], y / lengths[1]
    angle = 2.0 * math.atan2(float((u - v).norm()), float((u + v).norm()))
    across = v - (u @ v) * u
    if float(across.norm()) < _ONE_LINE:
        if angle < 1.0 or len(u) == 1:
            return torch.lerp(a, b, t)
        # of two noises one at least does not lie on the line as well
        noises = torch.randn(2, len(u), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(u)
        across = max((noise - (u @ noise) * u for noise in noises), key=lambda one: float(one.norm()))
    direction: Tensor = math.cos(t * angle) * u + math.sin(t * angle) * (across / across.norm())
    return (direction * ((1.0 - t) * lengths[0] + t * lengths[1])).to(a.dtype).view_as(a)
