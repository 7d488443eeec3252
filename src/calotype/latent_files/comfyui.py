"""ComfyUI's ``.latent``, of the nodes SaveLatent and LoadLatent (nodes.py): raw latents of any VAE, in batches.

A file without ``latent_format_version_0`` is of early 2023: its numbers are Stable Diffusion 1's model latents, and
LoadLatent divides them by 0.18215. FLUX.2's latents are packed and normalised to ComfyUI, whose VAE undoes both.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch
from torch import Tensor

from calotype.errors import LatentsError, UsageError
from calotype.latent_files.found import Found, Item
from calotype.latent_files.spaces import as_published
from calotype.latents import Latents, Space
from calotype.tensor_files import safetensors_parts
from calotype.weights.container import SafetensorsFile
from calotype.weights.mapped import dtype_name

TENSOR = "latent_tensor"
_VERSION = "latent_format_version_0"
_OLD = 1.0 / 0.18215

_FRAMES = {
    "sd1": False, "sdxl": False, "playground": False, "sd3": False, "flux": False, "flux2": False,
    "hunyuan-image": False, "wan2.1": True, "wan2.2": True, "qwen-image-2.1": False,
}  # fmt: skip
"""Formats that ComfyUI has (comfy/latent_formats.py): whether its latents of them are a video's, [N, C, 1, h, w]."""


def find(container: SafetensorsFile) -> Found:
    """The latents of such a file."""
    shape = container.shapes[TENSOR]
    old = _VERSION not in container.shapes

    def read() -> Tensor:
        tensor = container.read(TENSOR)
        if not tensor.is_floating_point():
            raise LatentsError(f"latents must be floats, not {dtype_name(tensor.dtype)}.")
        return tensor.float() * _OLD if old else tensor

    channels = shape[1] if len(shape) > 3 else 0
    packed = len(shape) == 4 and channels == 128
    return Found(
        program="ComfyUI",
        model="a ComfyUI of before latent_format_version_0" if old else "",
        items=[Item(TENSOR, shape, container.stored(TENSOR), read)],
        format="flux2" if packed else "sd1" if old and channels == 4 else None,
        space="model" if packed else "raw",
        batches=True,
        left_out=tuple(name for name in container.shapes if name not in (TENSOR, _VERSION)),
    )


def space_of(format_: str) -> Space:
    """In which space ComfyUI keeps latents of a format.

    Raises:
        UsageError: it does not.
    """
    if format_ not in _FRAMES:
        raise UsageError(
            f"ComfyUI has no latents of format {format_!r}, only those of {', '.join(_FRAMES)}; leave out --to "
            f"(to=), or take a VAE of these."
        )
    return "model" if format_ == "flux2" else "raw"


def content(latents: Latents) -> bytes:
    """Such a file with the latents of one picture, as float32."""
    name = latents.format.name
    tensor = as_published(latents, space_of(name)).float()
    tensor = tensor[None, :, None] if _FRAMES[name] else tensor[None]
    file = io.BytesIO()
    tensors: Mapping[str, Tensor] = {TENSOR: tensor, _VERSION: torch.empty(0)}
    for part in safetensors_parts(tensors):
        file.write(part)
    return file.getvalue()
