"""Whose latents a file holds that `calotype encode` did not write, told from its bytes; nothing in it is decoded.

The layouts are those of ComfyUI (``SaveLatent``), sd-scripts, musubi-tuner, ai-toolkit, SimpleTuner, OneTrainer and
diffusion-pipe, as their code writes them.
"""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path
from typing import Any

from calotype.damage import LONGEST_HEADER, quoted
from calotype.texts import TextError, json_of

_TORCH = "a torch file, as SimpleTuner and OneTrainer cache latents"

_STARTS = {
    b"\x93NUMPY": "a bare numpy array",
    b"\x1f\x8b": "compressed with gzip, as SimpleTuner can cache latents",
    b"\x80": _TORCH,
    b"SQLite f": "a SQLite database, as diffusion-pipe keeps beside the latents that it caches",
}


def describe(path: Path) -> str | None:
    """What the file is instead of calotype's latents, as in "a latent that ComfyUI saved"; None if nothing tells.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        head = file.read(9)
        # safetensors begin with the length of a JSON header, in eight bytes; the first may be that of another kind
        if head[4:] == b"\0\0\0\0{":
            length = min(struct.unpack("<Q", head[:8])[0], LONGEST_HEADER)
            return _safetensors(head[8:] + file.read(length - 1))
    if head.startswith(b"PK"):
        return _zip(path)
    return next((what for start, what in _STARTS.items() if head.startswith(start)), None)


def _zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # whatever zipfile raises over a damaged one
        return None
    arrays = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    if any(re.fullmatch(r"latents(_\d+x\d+)?", name) for name in arrays):
        return "latents that sd-scripts cached"
    if arrays:
        first = ", ".join(quoted(name, 40) for name in arrays[:3])
        return f"an archive of numpy arrays ({first}{', ...' if len(arrays) > 3 else ''})"
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return _TORCH
    return "a zip archive"


def _safetensors(text: bytes) -> str | None:
    try:
        header: Any = json_of(text)
    except TextError:
        return None
    if not isinstance(header, dict):
        return None
    metadata = header.get("__metadata__")
    names = sorted(header.keys() - {"__metadata__"})
    version = metadata.get("calotype") if isinstance(metadata, dict) else None
    if isinstance(version, str) and re.fullmatch(r"latents/\d+", version) and version != "latents/1":
        return f"{version}, of a newer calotype than this one"
    if "latent_tensor" in names:
        return "a latent that ComfyUI saved"
    if any(re.fullmatch(r"latents_(\d+x)?\d+x\d+_\w+", name) for name in names):
        model = metadata.get("architecture") if isinstance(metadata, dict) else None
        return f"latents that musubi-tuner cached{f' for {model}' if isinstance(model, str) else ''}"
    if "latent" in names:
        return "a latent that ai-toolkit cached" if isinstance(metadata, dict) else "a bare tensor named latent"
    if names == ["latents"]:
        return "a bare tensor named latents"
    return f"a safetensors file of {len(names)} tensors{f', {quoted(names[0], 60)} the first' if names else ''}"
