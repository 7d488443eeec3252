"""Video autoencoders with all that frames need, as their files have it; networks here hold what one picture needs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.families.face import listing
from calotype.weights.eight_bits import widened
from calotype.weights.load import Loaded
from calotype.weights.places import open_place


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
        container = open_place(part.files[0], part.files[1:])
        if gone := [key for key in part.keys.values() if key not in container.shapes]:
            raise WeightsError(f"{part.files[0]}: {quoted(gone[0])} is gone from it; it was changed while it was read.")
        found |= {ours: container.read(key) for ours, key in part.keys.items()}
    tensors, _ = widened(found)
    if bad := sorted(key for key, value in tensors.items() if not torch.isfinite(value).all()):
        raise WeightsError(f"{loaded.files[0]}: NaN or infinity in {listing('the', bad)}; fetch it again.")
    return tensors


def grafted(tensors: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors in the place of those of a file: for one picture the file is the network then.

    Other slices of kernels, and what stands beside, are the file's.

    Args:
        tensors: of the network, by our keys, as files have them but for time.
        whole: as `whole_tensors` gives it.
    """
    made = dict(tensors)
    for key, stored in whole.items():
        if key not in tensors:
            made[key] = stored.contiguous()
        elif tensors[key].numel() == stored.numel():
            made[key] = tensors[key].reshape(stored.shape)
        else:
            made[key] = stored.to(tensors[key].dtype, copy=True).contiguous()
            made[key][:, :, -1] = tensors[key]
    return made
