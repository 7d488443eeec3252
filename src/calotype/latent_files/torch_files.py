"""Tensors in what torch.save and pickle wrote, read without running anything in it (`weights.pickles`)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from calotype.damage import quoted, require_held
from calotype.errors import LatentsError
from calotype.latent_files.found import Item
from calotype.weights.mapped import dtype_name
from calotype.weights.pickles import Array, Stand, read_pickle
from calotype.weights.stored import Stored

_MOST = 2**28  # bytes that a small file may unpack to
_DENSEST = 8  # and how many for each byte of a larger one: latents hardly pack


def read(path: Path) -> Any:
    """What a file holds: nests of dictionaries and lists with `Stored` tensors.

    Raises:
        WeightsError: it is truncated or damaged.
        ValueError: its tensors claim more than it can hold.
        Exception: whatever damage makes of it.
    """
    content = read_pickle(path)
    require_held(sum(tensor.claimed for tensor in _all(content, 0)), path.stat().st_size)
    return content


def _all(content: Any, depth: int) -> Iterator[Stored]:
    if isinstance(content, Stored):
        yield content
    elif depth < 4 and isinstance(content, dict | list | tuple):
        for member in dict.values(content) if isinstance(content, dict) else content:
            yield from _all(member, depth + 1)


def tensors(content: Any) -> Mapping[str, Stored]:
    """The tensors of a file that holds one, or a table or a list of them; "" is the name of one that stands alone.

    Raises:
        LatentsError: it holds none.
    """
    if (alone := _stored(content)) is not None:
        return {"": alone}
    members: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        members = list(dict.items(content))
    elif isinstance(content, list | tuple):
        members = list(enumerate(content))
    found = {str(key): tensor for key, value in members if (tensor := _stored(value)) is not None}
    if not found:
        kind = content.named if isinstance(content, Stand) else type(content).__name__
        raise LatentsError(f"this torch file holds a {quoted(kind, 60)} without tensors, and no latents.")
    return found


def _stored(value: Any) -> Stored | None:
    if isinstance(value, Stored):
        return value
    return value.stored() if isinstance(value, Array) else None


def item(name: str, tensor: Stored) -> Item:
    """A tensor of such a file."""
    return Item(name or "the tensor", tensor.shape, dtype_name(tensor.dtype or torch.uint8), tensor.read)


def unpacked(path: Path, to: Path) -> None:
    """Unpacks what gzip packed.

    Raises:
        LatentsError: it is truncated, or holds far more than latents that are packed can.
        zlib.error: it is damaged.
    """
    most = max(_MOST, _DENSEST * path.stat().st_size)
    unpacking, done = zlib.decompressobj(16 + zlib.MAX_WBITS), 0
    with path.open("rb") as source, to.open("wb") as target:
        while not unpacking.eof:
            block = unpacking.unconsumed_tail or source.read(2**20)
            if not block:
                raise LatentsError("this gzip file is truncated; make the latents again.")
            part = unpacking.decompress(block, 2**20)
            done += len(part)
            if done > most:
                raise LatentsError(f"this gzip file unpacks to more than {most:,} bytes, and latents hardly pack.")
            target.write(part)
