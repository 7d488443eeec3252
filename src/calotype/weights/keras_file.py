"""h5 files of Keras as containers, and keras-hub's VAEs in them under diffusers' names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from calotype.damage import quoted
from calotype.errors import UsageError, WeightsError
from calotype.weights import keras_hub
from calotype.weights.h5 import BFLOAT16, read_h5
from calotype.weights.translated import Made, Translated, turned

if TYPE_CHECKING:
    from calotype.weights.container import Container

TITLE = "keras title of "  # what begins the keys of metadata that say what blocks are called
CONFIG = "keras config"  # the key of what an archive's config.json says


def require_h5py() -> None:
    """Checks that h5py is there.

    Raises:
        UsageError: it is not.
    """
    if find_spec("h5py") is None:
        raise UsageError("Keras h5 files need h5py; install it with: pip install 'calotype[keras]'")


class KerasFile:
    """An h5 file of Keras weights, or an archive (.keras) with one in it.

    Attributes:
        in_order: all arrays, if it is one of Keras 1 or 2, where they are known by their order; they are called "0",
            "1" and so on here. Of a file of Keras 3 those of a VAE are read, and the others' shapes.
    """

    def __init__(self, path: Path) -> None:
        require_h5py()
        content = read_h5(path)
        self.kind = "Keras h5"
        self.in_order = content.arrays if content.keys is None else None
        keys = map(str, range(len(content.arrays))) if content.keys is None else content.keys
        self._arrays = dict(zip(keys, content.arrays, strict=True))
        self.shapes: Mapping[str, tuple[int, ...]] = {
            **{key: tuple(array.shape) for key, array in self._arrays.items()},
            **{key: tuple(shape) for key, shape in content.others.items()},
        }
        told = {f"{TITLE}{place}": title for place, title in content.titles.items()}
        self.metadata: Mapping[str, str] = {**content.metadata, **told}
        if content.config:
            self.metadata = {**self.metadata, CONFIG: content.config}
        self.notices: tuple[str, ...] = ()

    def stored(self, key: str) -> str:
        if key not in self._arrays:
            return ""
        dtype = self._arrays[key].dtype
        return "bfloat16" if dtype == BFLOAT16 else dtype.name

    def read(self, key: str) -> Tensor:
        if key not in self._arrays:
            raise WeightsError(f"{quoted(key, 60)} is no array of a VAE, and was not read")
        array = self._arrays[key]
        if array.dtype == BFLOAT16:
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)


def from_keras_hub(container: Container) -> Container:
    """A VAE of keras-hub under diffusers' names, in torch's shapes; a container of others as it is.

    Raises:
        WeightsError: it is none that can be.
    """
    titles = {k.removeprefix(TITLE): title for k, title in container.metadata.items() if k.startswith(TITLE)}
    names = keras_hub.names(container.shapes, titles)
    if not names:
        return container
    made: dict[str, Made] = {}
    for key, shape in container.shapes.items():
        axes = (3, 2, 0, 1) if key in names and len(shape) == 4 else tuple(range(len(shape)))
        name = names.get(key, key.replace("/", "."))
        made[name] = turned(container, key, axes)
    metadata = {key: value for key, value in container.metadata.items() if not key.startswith(TITLE)}
    return Translated(made, kind=container.kind, metadata=metadata, notices=container.notices)
