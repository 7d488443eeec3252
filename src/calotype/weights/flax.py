"""Flax weights: msgpack files as `flax.serialization` writes them, under the names of diffusers' Flax classes.

Those have torch's modules, with lists in their names ("down_blocks_0"), kernels as HWIO, linear layers as [in, out],
and "scale" for the weight of a norm (diffusers 0.31, vae_flax.py and modeling_flax_pytorch_utils.py). Their attention
is called as in torch before diffusers 0.17.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.weights import msgpack
from calotype.weights.mapped import bytes_of, map_file
from calotype.weights.translated import Made, Translated, turned

if TYPE_CHECKING:
    from calotype.weights.container import Container

WEIGHTS = "diffusion_flax_model.msgpack"  # diffusers' name of such a file

_LISTS = "down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|transformer_blocks"
_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


class FlaxFile:
    """A msgpack file of arrays, named by the way to them ("params/encoder/conv_in/kernel")."""

    kind = "Flax msgpack"

    def __init__(self, path: Path) -> None:
        self._whole = map_file(path)
        self._arrays: dict[str, msgpack.Piece | msgpack.Chunked] = {}
        for name, array in msgpack.arrays(msgpack.Nest(bytes_of(self._whole)).content):
            if name in self._arrays:
                raise WeightsError(f"the file is damaged: it names {quoted(name, 60)} twice; fetch it again")
            self._arrays[name] = array
        self.shapes: Mapping[str, tuple[int, ...]] = {name: array.shape for name, array in self._arrays.items()}
        self.metadata: Mapping[str, str] = {}
        self.notices: tuple[str, ...] = ()

    def stored(self, key: str) -> str:
        return quoted(self._arrays[key].dtype, 20)

    def read(self, key: str) -> Tensor:
        try:
            return msgpack.read(self._whole, self._arrays[key])
        except WeightsError as error:
            raise WeightsError(f"{quoted(key)}: {error}") from None


def from_flax(container: Container) -> Container:
    """Tensors of Flax's names under torch's, in torch's shapes; a container of other names as it is."""
    if not any(re.search(r"(^|/)kernel$", key) for key in container.shapes):
        return container
    made: dict[str, Made] = {}
    for key, shape in container.shapes.items():
        name = torch_name(key)
        axes = _axes(key, len(shape))
        if name in made:  # a module with a kernel and a scale: none that is known
            name = key.replace("/", ".")
        made[name] = turned(container, key, axes)
    return Translated(made, kind=container.kind, metadata=container.metadata, notices=container.notices)


def _axes(key: str, rank: int) -> tuple[int, ...]:
    """Which axes of an array are those of torch's tensor: outputs and inputs stand last in Flax."""
    if key.rpartition("/")[2] != "kernel" or rank < 2:
        return tuple(range(rank))
    return (rank - 1, rank - 2, *range(rank - 2))


def torch_name(name: str) -> str:
    """ "encoder/down_blocks_0/conv/kernel" -> "encoder.down_blocks.0.conv.weight"."""
    module, slash, leaf = re.sub(rf"(?<![^/])({_LISTS})_([0-9]+)(?![^/])", r"\1/\2", name).rpartition("/")
    return f"{module}{slash}{_LEAVES.get(leaf, leaf)}".replace("/", ".")


def flax_name(key: str, rank: int) -> str:
    """The name in a Flax file of a tensor of so many axes, by diffusers' key."""
    module, _, leaf = key.rpartition(".")
    for theirs, flax in _ATTENTION.items():
        module = re.sub(rf"(\.attentions\.[0-9]+\.){re.escape(theirs)}", rf"\1{flax}", module)
    module = re.sub(rf"(?<![^.])({_LISTS})\.([0-9]+)(?![^.])", r"\1_\2", module)
    leaf = leaf if leaf != "weight" else "scale" if rank == 1 else "kernel"
    return f"{module}.{leaf}".replace(".", "/")


def flax_parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a Flax file.

    Args:
        tensors: on the CPU, under diffusers' keys and in its shapes.
    """
    tree: dict[str, Any] = {}
    for key, tensor in tensors.items():
        *way, leaf = flax_name(key, tensor.ndim).split("/")
        inside = tree
        for step in way:
            inside = inside.setdefault(step, {})
        inside[leaf] = tensor.permute((*range(2, tensor.ndim), 1, 0)) if tensor.ndim > 1 else tensor
    yield from msgpack.written(tree)
