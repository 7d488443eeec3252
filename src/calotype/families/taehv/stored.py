"""Tensors as they stand in files, and as the network has them. No torch: only what any array can."""

from __future__ import annotations

import re
from typing import Any

from calotype.families.taehv.config import GROWN, GROWS, TaehvConfig

LEVEL = 6  # layers of a level of the decoder
FIRST_GROW = 7


def taken(config: TaehvConfig, key: str, tensor: Any) -> Any:
    """The part of a file's tensor that a layer here is, in the file's memory.

    Of a block's first kernel the part for its own frame or for the one before; of those from frames to one and from one
    to frames the part of each frame. What is a part already stays as it is.
    """
    if match := re.fullmatch(r"(encoder|decoder)\.([0-9]+)\.conv\.([0-9]+)\.weight", key):
        side, at, i = match[1], int(match[2]), int(match[3])
        if tuple(tensor.shape[2:]) == (3, 3):
            return _columns(tensor, 0) if i == 0 and tensor.shape[1] == 2 * tensor.shape[0] else tensor
        if side == "encoder" and tensor.shape[1] > tensor.shape[0]:
            return _columns(tensor, i)
        level = (at - FIRST_GROW) // LEVEL
        if side == "decoder" and tensor.shape[0] > tensor.shape[1]:
            rows = tensor.shape[1]
            i += GROWS[level] - GROWN[level]  # the last ones
            return tensor[i * rows : (i + 1) * rows]
    if key.endswith(".past.weight") and tensor.shape[1] == 2 * tensor.shape[0]:
        return _columns(tensor, 1)
    return tensor


def _columns(tensor: Any, i: int) -> Any:
    """The part of a kernel for the i-th of the frames that it sees."""
    n = tensor.shape[0]
    return tensor[:, i * n : (i + 1) * n]
