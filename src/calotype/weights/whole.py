"""A file's VAE with all that its network for one picture leaves behind, and a network's numbers put into it again.

Of a video's VAE a network for one picture holds the last slice in time of each kernel, and no convolution over time.
What else the file has is read from it again where it is to be written as a video's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from calotype.damage import damage
from calotype.errors import WeightsError
from calotype.families.network import Network
from calotype.weights.container import DAMAGED, H5_SIGNATURE
from calotype.weights.groups import Weights
from calotype.weights.places import find, locate, open_place


def read_whole(
    path: str | os.PathLike[str], module: Network, *, prefix: str | None = None, weights: Weights | None = None
) -> dict[str, Tensor]:
    """All tensors of a VAE as its file has them, by our keys; {} where the network holds all of their numbers.

    Those of a safetensors file are read when they are looked at.

    Args:
        path, prefix, weights: as they were given to `load_weights`.
        module: the network that it gave.

    Raises:
        WeightsError, UsageError: as `load_weights`.
    """
    places, config_file, _, weights = locate(Path(path), weights)
    held = module.state_dict()
    found: dict[str, Tensor] = {}
    more = False
    for file, *rest in places:
        with file.open("rb") as opened:
            if opened.read(len(H5_SIGNATURE)) == H5_SIGNATURE:
                return {}
        with damage(WeightsError, DAMAGED):
            container = open_place(file, rest)
            told, _, _ = find(container, file, config_file, prefix, weights)
            sizes = {ours: math.prod(container.shapes[key]) for ours, key in told.keys.items()}
            if told.beside or any(size > held[ours].numel() for ours, size in sizes.items()):
                more = True
            elif not more:
                continue
            found |= {ours: container.read(key) for ours, key in {**told.keys, **told.beside}.items()}
    return found


def grafted(tensors: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors in the place of those of a file: for one picture the file is the network then.

    Other slices of kernels, and what stands beside, are the file's.

    Args:
        tensors: of the network by our keys, as files have them but for time; those that are in no file stay.
        whole: as `read_whole` gives it.
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
