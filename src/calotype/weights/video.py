"""Video autoencoders with all that frames need, as their files have it; networks here hold what one picture needs."""

from __future__ import annotations

import torch
from torch import Tensor

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.families.face import listing
from calotype.weights.eight_bits import widened
from calotype.weights.load import Loaded, opened_all


def whole_tensors(loaded: Loaded) -> dict[str, Tensor]:
    """Every tensor of the file or files that weights were loaded from: kernels with all their slices, convolutions over
    time. `save_weights` takes them as `whole`, and writes them under other names without a change of any number.

    Returns:
        By our key, in the shapes of the file; {} where the file has no more than one picture needs.

    Raises:
        WeightsError: a file can't be read any more, or holds NaN or infinity.
    """
    found: dict[str, Tensor] = {}
    for part in loaded.whole:
        container = opened_all(part.files)
        if gone := [key for key in part.keys.values() if key not in container.shapes]:
            raise WeightsError(f"{part.files[0]}: {quoted(gone[0])} is gone from it; it was changed while it was read.")
        found |= {ours: container.read(key) for ours, key in part.keys.items()}
    tensors, _ = widened(found)
    if bad := sorted(key for key, value in tensors.items() if not torch.isfinite(value).all()):
        raise WeightsError(f"{loaded.files[0]}: NaN or infinity in {listing('the', bad)}; fetch it again.")
    return tensors
