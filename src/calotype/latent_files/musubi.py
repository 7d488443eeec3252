"""musubi-tuner's ``NAME_0096x0064_qi.safetensors`` (dataset/cache_io.py): ``latents_1x64x96_bfloat16``, one picture.

`architecture` in the metadata tells the model; `width` and `height` there are of the picture before it was cropped.
"""

from __future__ import annotations

import re
from functools import partial

from torch import Tensor

from calotype.latent_files.found import Found, Item, told
from calotype.latent_files.models import MUSUBI
from calotype.weights.container import SafetensorsFile

LATENTS = re.compile(r"latents_(\d+x)?\d+x\d+_\w+")  # not those of control pictures: latents_control_0_...


def find(container: SafetensorsFile) -> Found:
    """The latents of such a file."""
    names = [name for name in container.shapes if LATENTS.fullmatch(name)]
    model = container.metadata.get("architecture", "")
    format_, space, drawn = told(MUSUBI.get(model), "musubi-tuner", model)
    if model == "ideogram4":
        items = [
            Item(name, _unpacked(container.shapes[name]), container.stored(name), partial(_unpack, container, name))
            for name in names
        ]
    else:
        items = [
            Item(name, container.shapes[name], container.stored(name), partial(container.read, name)) for name in names
        ]
    return Found(
        program="musubi-tuner", model=model, items=items, format=format_, space=space, drawn=drawn, batches=False,
        left_out=tuple(name for name in container.shapes if name not in names),
    )  # fmt: skip


def _unpacked(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0] // 4, 2 * shape[1], 2 * shape[2]) if len(shape) == 3 else shape


def _unpack(container: SafetensorsFile, name: str) -> Tensor:
    """Ideogram's raw latents: packed channel 32(2i + j) + c is raw channel c at row i and column j of its 2x2 patch."""
    packed = container.read(name)
    if packed.ndim != 3 or packed.shape[0] % 4:
        return packed  # which is refused
    channels, height, width = packed.shape
    parts = packed.reshape(2, 2, channels // 4, height, width).permute(2, 3, 0, 4, 1)
    return parts.reshape(channels // 4, 2 * height, 2 * width)
