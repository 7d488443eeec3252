"""musubi-tuner's ``NAME_0096x0064_qi.safetensors`` (dataset/cache_io.py): ``latents_1x64x96_bfloat16``, one picture.

`architecture` in the metadata tells the model; `width` and `height` there are of the picture before it was cropped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor

from calotype.errors import UsageError
from calotype.latent_files.found import Found, Item, told
from calotype.latent_files.models import MUSUBI
from calotype.tensor_files import safetensors_parts
from calotype.weights.container import SafetensorsFile
from calotype.weights.mapped import dtype_name

LATENTS = re.compile(r"latents_(\d+x)?\d+x\d+_\w+")  # not those of control pictures: latents_control_0_...


class Model(NamedTuple):
    """How latents of an architecture are written (dataset/architectures.py, dataset/cache_io.py of 30c658c).

    Attributes:
        short: what ends the file's name.
        video: they are one frame of a video, [C, 1, h, w].
        counted: frames stand in the tensor's name.
    """

    short: str
    video: bool
    counted: bool = True


MODELS: Mapping[str, Model] = {
    "wan": Model("wan", True),
    "qwen_image": Model("qi", True),
    "krea2": Model("kr2", True),
    "z_image": Model("zi", False),
    "ideogram4": Model("i4", False),
    "flux_2_dev": Model("f2d", False, False),
    "flux_2_klein_4b": Model("f2k4b", False, False),
    "flux_2_klein_9b": Model("f2k9b", False, False),
}
"""Architectures that are trained on pictures alone; others want latents of control pictures or layers beside."""

VERSION = "1.0.1"


def require_model(model: str | None, format_: str) -> str:
    """An architecture that is trained on latents of a format; where only one is, it need not be named.

    Raises:
        UsageError: there is none, or which is meant is not said.
    """
    fits = [name for name in MODELS if told(MUSUBI[name], "", name)[0] == format_]
    if not fits:
        raise UsageError(
            f"musubi-tuner has no pictures' latents of format {format_!r}; take a VAE of those of {', '.join(MODELS)}."
        )
    if model is None and len(fits) > 1:
        raise UsageError(
            f"musubi-tuner keeps latents of format {format_!r} for several models; say which with --model "
            f"{'|'.join(fits)}."
        )
    if model is not None and model not in fits:
        raise UsageError(f"--model {model}: musubi-tuner keeps latents of format {format_!r} for {', '.join(fits)}.")
    return model or fits[0]


def file_name(stem: str, size: tuple[int, int], model: str) -> str:
    """What such a file is called, of a picture of (width, height) pixels in its file."""
    return f"{stem}_{size[0]:04d}x{size[1]:04d}_{MODELS[model].short}.safetensors"


def content(model: str, tensor: Tensor, original: tuple[int, int]) -> bytes:
    """Such a file of one picture's latents, [C, h, w], in the space that musubi-tuner keeps this model's in.

    Args:
        original: (width, height) of the picture in its file.
    """
    kind = MODELS[model]
    if model == "ideogram4":
        tensor = _pack(tensor)
    height, width = tensor.shape[1:]
    name = f"latents_{'1x' if kind.counted else ''}{height}x{width}_{dtype_name(tensor.dtype)}"
    metadata = {
        "architecture": model, "width": str(original[0]), "height": str(original[1]), "format_version": VERSION,
    }  # fmt: skip
    file = io.BytesIO()
    for part in safetensors_parts({name: tensor[:, None] if kind.video else tensor}, metadata):
        file.write(part)
    return file.getvalue()


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


def _pack(raw: Tensor) -> Tensor:
    channels, height, width = raw.shape
    parts = raw.reshape(channels, height // 2, 2, width // 2, 2).permute(2, 4, 0, 1, 3)
    return parts.reshape(4 * channels, height // 2, width // 2)
