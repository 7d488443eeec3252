"""Tensors alone, of which nothing tells the space."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from calotype.damage import quoted
from calotype.latent_files.found import Found, Item
from calotype.latent_files.own import no_latents
from calotype.latent_files.torch_files import item
from calotype.weights.container import SafetensorsFile
from calotype.weights.stored import Stored

_NAMES = ("latents", "latent", "latent_tensor", "samples")  # in what people save; ComfyUI's nodes say "samples"


def _find(items: Mapping[str, Item], what: str) -> Found:
    """Which of a file's tensors is latents: that which is called so, or the only one."""
    names = [name for name in _NAMES if name in items]
    if not names and len(items) == 1:
        names = [name for name in items if not name.endswith(("weight", "bias"))]
    if not names:
        shown = ", ".join(quoted(name, 40) for name in list(items)[:3]) + (", ..." if len(items) > 3 else "")
        raise no_latents(f"{what} ({shown})")
    return Found(program="", items=[items[names[0]]], left_out=tuple(name for name in items if name != names[0]))


def of_arrays(arrays: Mapping[str, Item]) -> Found:
    """Of numpy's arrays."""
    return _find(arrays, "an archive of numpy arrays")


def of_safetensors(container: SafetensorsFile) -> Found:
    """Of a safetensors file."""
    items = {
        name: Item(name, shape, container.stored(name), partial(container.read, name))
        for name, shape in container.shapes.items()
    }
    return _find(items, f"a safetensors file of {len(items)} tensors")


def of_torch(tensors: Mapping[str, Stored]) -> Found:
    """Of a torch file. A list holds one picture's latents after another's."""
    items = {name: item(name, tensor) for name, tensor in tensors.items()}
    if all(name.isdecimal() for name in items):
        return Found(program="", items=list(items.values()))
    return _find(items, f"a torch file of {len(items)} tensors")
