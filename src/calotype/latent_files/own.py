"""calotype's own latents: one picture's, with all that is needed to make it a picture again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import safe_open
from torch import Tensor

from calotype.damage import LONGEST_HEADER, damage
from calotype.errors import LatentsError, UsageError
from calotype.files import text_path
from calotype.latents import LatentFormat, Latents, Space, latent_format_from_dict
from calotype.pixels import Padding
from calotype.tensor_files import write_safetensors
from calotype.texts import COUNT, TextError, json_of, made, shown, whole
from calotype.weights.mapped import dtype_name

VERSION = "latents/1"


def write(path: str | os.PathLike[str], latents: Latents) -> Path:
    """Writes latents as safetensors: tensor ``latents`` (and ``alpha``), everything else as JSON in the metadata.

    Raises:
        LatentsError: if the file can't be written.
        UsageError: if its folder does not exist.
    """
    metadata = {
        "calotype": VERSION,
        "space": latents.space,
        "latent_format": json.dumps(latents.format.to_dict()),
        "vae_sha256": latents.vae,
        "vae_name": latents.vae_name,
        "padding": json.dumps(latents.padding.__dict__),
    }
    tensors = {"latents": latents.tensor}
    if latents.alpha is not None:
        tensors["alpha"] = latents.alpha.mul(255).round().to(torch.uint8)
    return write_safetensors(path, tensors, metadata, LatentsError)


def read(path: Path) -> Latents:
    """Reads what `write` wrote.

    Raises:
        LatentsError: if it is no safetensors file, or holds anything but calotype's latents.
    """
    with damage(LatentsError, "this is not a whole safetensors file ({why}); make the latents again."):
        tensor, alpha, metadata = _tensors(path)
    with damage(LatentsError, "its metadata is damaged ({why}); make the latents again."):
        return _latents(tensor, alpha, metadata)


def _tensors(path: Path) -> tuple[Tensor, Tensor | None, dict[str, str]]:
    """Latents, alpha and metadata in a file."""
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    if head[8:] == b"{" and length > LONGEST_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    with text_path(path) as named, safe_open(named, framework="pt") as opened:
        metadata = opened.metadata() or {}
        names = set(opened.keys())
        if metadata.get("calotype") != VERSION or "latents" not in names:
            raise no_latents()
        alpha = opened.get_tensor("alpha") if "alpha" in names else None
        return opened.get_tensor("latents"), alpha, metadata


def _latents(tensor: Tensor, alpha: Tensor | None, metadata: Mapping[str, str]) -> Latents:
    """What the metadata make of tensors."""
    if alpha is not None and alpha.dtype != torch.uint8:
        raise ValueError(f"alpha of {dtype_name(alpha.dtype)}")
    try:
        format_ = latent_format_from_dict(json_of(metadata["latent_format"]))
    except UsageError as error:
        raise ValueError(str(error)) from None
    return Latents(
        tensor=tensor,
        space=cast(Space, metadata["space"]),
        format=format_,
        vae=metadata["vae_sha256"],
        padding=_padding(json_of(metadata["padding"])),
        vae_name=metadata.get("vae_name", ""),
        alpha=None if alpha is None else alpha.float() / 255,
    )


def told(metadata: Mapping[str, Any]) -> tuple[Space | None, LatentFormat | None]:
    """Space and format in the metadata; None of what is damaged."""
    space, format_ = metadata.get("space"), metadata.get("latent_format")
    try:
        found = latent_format_from_dict(json_of(format_)) if isinstance(format_, str) else None
    except (TextError, UsageError):
        found = None
    return cast(Space, space) if space in get_args(Space) else None, found


def no_latents(what: str = "") -> LatentsError:
    """The refusal of a file with no latents that are read.

    Args:
        what: it is, as in "a zip archive".
    """
    return LatentsError(
        f"these are not latents with calotype's metadata{f', but {what}' if what else ''}; give what `calotype encode` "
        f"or a program in docs/latents.md wrote, or a tensor alone, [C, h, w]."
    )


def _padding(values: Mapping[str, Any]) -> Padding:
    padding = made(Padding, values, "padding")
    for name, least in (("height", 1), ("width", 1), ("bottom", 0), ("right", 0)):
        whole(getattr(padding, name), f"padding.{name}", least, COUNT)
    if not isinstance(padding.mode, str):  # older files name others
        raise TextError(f"padding.mode must be a text, not {shown(padding.mode)}")
    return padding
