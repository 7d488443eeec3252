"""Who wrote a file with latents, told from its first bytes, its names and its metadata."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from calotype.damage import LONGEST_HEADER
from calotype.errors import LatentsError
from calotype.latent_files import ai_toolkit, bare, comfyui, diffusion_pipe, musubi, onetrainer, sd_scripts, simpletuner
from calotype.latent_files.arrays import Archive, item as array
from calotype.latent_files.found import CacheError, Found
from calotype.latent_files.own import VERSION, no_latents
from calotype.latent_files.torch_files import read, tensors, unpacked
from calotype.temporaries import temporary_folder
from calotype.texts import TextError, json_of
from calotype.weights.container import SafetensorsFile


def find(path: Path) -> Found | None:
    """The latents of another program in a file; None if it is one of calotype's, or of a kind that has none.

    Raises:
        LatentsError, WeightsError: it holds none that can be read.
        Exception: whatever damage makes of it.
    """
    with path.open("rb") as file:
        head = file.read(16)
    # safetensors begin with the length of a JSON header, in eight bytes; the first may be that of another kind
    if head[4:9] == b"\0\0\0\0{":
        return _safetensors(path)
    if diffusion_pipe.SHARD.fullmatch(path.name) or head == b"SQLite format 3\0":
        return diffusion_pipe.find(path)
    if head.startswith(b"\x93NUMPY"):
        return bare.of_arrays({"the array": array(path)})
    if head.startswith(b"PK"):
        return _zip(path)
    if head.startswith(b"\x80"):
        return _torch(path)
    if head.startswith(b"\x1f\x8b"):
        return _gzip(path)
    return None


def header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file; empty if it has none that can be read."""
    with path.open("rb") as file:
        start = file.read(9)
        if start[4:] != b"\0\0\0\0{":
            return {}
        text = b"{" + file.read(min(int.from_bytes(start[:8], "little"), LONGEST_HEADER) - 1)
    try:
        found = json_of(text)
    except TextError:
        return {}
    return found if isinstance(found, dict) else {}


def own_version(of: dict[str, Any]) -> str:
    """Which version of calotype's own latents a header is of; "" if of none."""
    metadata = of.get("__metadata__")
    version = metadata.get("calotype") if isinstance(metadata, dict) else None
    return version if isinstance(version, str) and re.fullmatch(r"latents/\d+", version) else ""


def _safetensors(path: Path) -> Found | None:
    read_header = header(path)
    if not read_header:  # which is said as of calotype's own
        return None
    if version := own_version(read_header):
        if version != VERSION:
            raise CacheError(f"these are {version}, of a newer calotype than this one, which decodes them.")
        return None
    container = SafetensorsFile(path)
    if comfyui.TENSOR in container.shapes:
        return comfyui.find(container)
    if any(musubi.LATENTS.fullmatch(name) for name in container.shapes):
        return musubi.find(container)
    return ai_toolkit.find(container) if ai_toolkit.is_cache(container) else bare.of_safetensors(container)


def _zip(path: Path) -> Found:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        arrays = Archive(path)
        return sd_scripts.find(path, arrays) if sd_scripts.is_cache(path, arrays) else bare.of_arrays(arrays)
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return _torch(path)
    raise no_latents("a zip archive")


def _torch(path: Path, *, packed: bool = False) -> Found:
    content = read(path)
    onetrainer.require_no_aggregate(content)
    found = tensors(content)
    if onetrainer.TENSOR in found:
        return onetrainer.find(found)
    if packed or simpletuner.is_cache(path, found):
        return simpletuner.find(found)
    return bare.of_torch(found)


def _gzip(path: Path) -> Found:
    """Of what SimpleTuner packed; it is unpacked again when it is read."""
    with _unpacked(path) as alone:
        found = _torch(alone, packed=True)
    items = [one._replace(read=partial(_read_packed, path, i)) for i, one in enumerate(found.items)]
    return replace(found, items=items)


def _read_packed(path: Path, item: int) -> Tensor:
    with _unpacked(path) as alone:
        return _torch(alone, packed=True).items[item].read().clone()  # the file goes


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    with temporary_folder(Path(tempfile.gettempdir())) as folder:
        alone = folder / "item.pt"
        unpacked(path, alone)
        with alone.open("rb") as file:
            if file.read(1) not in (b"P", b"\x80"):
                raise LatentsError(
                    "this is compressed with gzip, and no torch file is in it, as SimpleTuner caches latents."
                )
        yield alone
