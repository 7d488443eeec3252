"""sd-scripts' ``NAME_0096x0064_flux.npz`` (library/strategy_base.py, LatentsCachingStrategy): float32, one picture.

The end of the name tells the model; old files of Stable Diffusion and SDXL have none, are raw, and one can't be told
from the other. Models that are trained at several resolutions have one array for each, its size ``_{h}x{w}`` at the end
of every key.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.nn import functional

from calotype.errors import UsageError
from calotype.latent_files.found import Found, Item, told
from calotype.latent_files.models import SD_SCRIPTS, Space
from calotype.latent_files.spaces import as_published
from calotype.latents import Latents

_LATENTS = re.compile(r"latents(_\d+x\d+)?")
_BESIDE = ("original_size", "crop_ltrb")
_BY_FORMAT = {stored.format: suffix for suffix, stored in SD_SCRIPTS.items() if suffix != "lumina"}  # flux's, too
_ONE_SIZE = ("sd", "sdxl")  # whose keys have no size


def is_cache(path: Path, names: Mapping[str, Item]) -> bool:
    """Whether arrays of these names are such a cache; ``latents`` alone may be anybody's."""
    latents = [name for name in names if _LATENTS.fullmatch(name)]
    return bool(latents) and (
        _suffix(path) in SD_SCRIPTS
        or any(name != "latents" for name in latents)
        or any(name in names for name in _BESIDE)
    )


def find(path: Path, arrays: Mapping[str, Item]) -> Found:
    """The latents of such a file: one for each resolution; those of the mirrored picture are left out."""
    items = [arrays[name] for name in arrays if _LATENTS.fullmatch(name)]
    suffix = _suffix(path)
    format_, space, drawn = told(SD_SCRIPTS.get(suffix), "sd-scripts", suffix)
    if format_ is None and items[0].shape[:1] == (4,):  # all that it trains in four channels is kept raw
        space, drawn = "raw", "sample"
    return Found(
        program="sd-scripts", model=suffix if suffix in SD_SCRIPTS else "", items=items, format=format_, space=space,
        drawn=drawn, batches=False, left_out=tuple(name for name in arrays if not _LATENTS.fullmatch(name)),
    )  # fmt: skip


def _suffix(path: Path) -> str:
    return path.stem.rpartition("_")[2]


def suffix_of(format_: str) -> str:
    """What ends the names of files with latents of a format: "sdxl".

    Raises:
        UsageError: sd-scripts has no such latents.
    """
    if format_ not in _BY_FORMAT:
        raise UsageError(
            f"sd-scripts has no latents of format {format_!r}, only those of {', '.join(_BY_FORMAT)}; leave out --to "
            f"(to=), or take a VAE of these."
        )
    return _BY_FORMAT[format_]


def space_of(format_: str) -> Space:
    """In which space it keeps latents of a format."""
    return SD_SCRIPTS[suffix_of(format_)].space


def file_name(stem: str, latents: Latents) -> str:
    """What such a file is called, of a picture that is called `stem`."""
    return f"{stem}_{latents.padding.width:04d}x{latents.padding.height:04d}_{suffix_of(latents.format.name)}.npz"


def content(path: Path, latents: Latents) -> bytes:
    """Such a file with the latents of one picture; alpha that was kept aside is its mask.

    Raises:
        UsageError: the path does not end as sd-scripts knows such latents by.
    """
    suffix = suffix_of(latents.format.name)
    if not path.name.endswith(f"_{suffix}.npz"):
        raise UsageError(
            f"{path}: sd-scripts tells latents of format {latents.format.name!r} by the end of the file's name; let it "
            f"end with _{suffix}.npz."
        )
    tensor = as_published(latents, space_of(latents.format.name)).float()
    height, width = latents.padding.height, latents.padding.width
    arrays = {"latents": tensor.numpy(), "original_size": np.array([width, height]),
              "crop_ltrb": np.array([0, 0, width, height])}  # fmt: skip
    if latents.alpha is not None:  # as large as the bucket, for a batch is stacked; nothing is learnt of padding
        added = (0, latents.padding.right, 0, latents.padding.bottom)
        arrays["alpha_mask"] = functional.pad(latents.alpha.float(), added).numpy()
    size = "" if suffix in _ONE_SIZE else f"_{tensor.shape[1]}x{tensor.shape[2]}"
    file = io.BytesIO()
    np.savez(file, **{name + size: array for name, array in arrays.items()})  # type: ignore[arg-type]
    return file.getvalue()
