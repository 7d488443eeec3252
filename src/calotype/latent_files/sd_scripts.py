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
from torch import Tensor
from torch.nn import functional

from calotype.errors import UsageError
from calotype.latent_files.arrays import Archive
from calotype.latent_files.found import Found, Item, named, told
from calotype.latent_files.models import SD_SCRIPTS, Space
from calotype.latent_files.spaces import as_published
from calotype.latents import Latents

_LATENTS = re.compile(r"latents(_\d+x\d+)?")
_FLIPPED = re.compile(r"latents_flipped(_\d+x\d+)?")
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
    return name_of(stem, (latents.padding.width, latents.padding.height), suffix_of(latents.format.name))


def name_of(stem: str, size: tuple[int, int], suffix: str) -> str:
    """What such a file is called, of a picture of (width, height) pixels in its file."""
    return f"{stem}_{size[0]:04d}x{size[1]:04d}_{suffix}.npz"


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
    tensor = as_published(latents, space_of(latents.format.name))
    height, width = latents.padding.height, latents.padding.width
    alpha = None
    if latents.alpha is not None:  # as large as the bucket, for a batch is stacked; nothing is learnt of padding
        alpha = functional.pad(latents.alpha, (0, latents.padding.right, 0, latents.padding.bottom))
    return packed(suffix, tensor, (width, height), (0, 0, width, height), alpha=alpha)


def packed(
    suffix: str,
    tensor: Tensor,
    original: tuple[int, int],
    crop: tuple[float, float, float, float],
    *,
    flipped: Tensor | None = None,
    alpha: Tensor | None = None,
) -> bytes:
    """Such a file of one picture's latents, [C, h, w], in the space that sd-scripts keeps them in; they become float32.

    Args:
        suffix: that ends the file's name.
        original: (width, height) of the picture in its file.
        crop: left, top, right and bottom; see `letterbox`.
        flipped: latents of the mirrored picture.
        alpha: of the bucket's pixels, [H, W].
    """
    arrays = {"latents": tensor.float().numpy(), "original_size": np.array(original), "crop_ltrb": np.array(crop)}
    if flipped is not None:
        arrays["latents_flipped"] = flipped.float().numpy()
    if alpha is not None:
        arrays["alpha_mask"] = alpha.float().numpy()
    size = "" if suffix in _ONE_SIZE else f"_{tensor.shape[1]}x{tensor.shape[2]}"
    file = io.BytesIO()
    np.savez(file, **{name + size: array for name, array in arrays.items()})  # type: ignore[arg-type]
    return file.getvalue()


def letterbox(original: tuple[int, int], bucket: tuple[int, int]) -> tuple[float, float, float, float]:
    """What sd-scripts keeps as the crop of a picture (library/train_util.py, get_crop_ltrb): left, top, right, bottom.

    It is where the whole picture would lie, were it fitted into the bucket, wherever it was cropped.
    """
    width, height = float(bucket[0]), float(bucket[1])
    shape = original[0] / original[1]
    if width / height > shape:
        width = height * shape
    else:
        height = width / shape
    left, top = (bucket[0] - width) // 2, (bucket[1] - height) // 2
    return left, top, left + width, top + height


def mirrored(path: Path) -> Tensor | None:
    """The latents of the mirrored picture in such a file, of one resolution; None where there are none.

    Raises:
        LatentsError: they are damaged.
    """
    with named(path):
        arrays = Archive(path)
        name = next((name for name in arrays if _FLIPPED.fullmatch(name)), None)
        return None if name is None else arrays[name].read()
