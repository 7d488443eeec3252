"""What is edited: picture files and latents on disk, as latents of one VAE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from calotype.engine.executor import Progress
from calotype.errors import UsageError
from calotype.latent_files import open_latents
from calotype.latents import Latents
from calotype.pixels import PictureRows, alpha_mode, read_picture_rows, to_pil
from calotype.vae import VAE

_LATENTS = (".safetensors", ".latent", ".npz", ".npy", ".pt")


def is_latents(path: Path) -> bool:
    """Whether `read` takes a file for latents, by its suffix."""
    return path.suffix.lower() in _LATENTS


def read(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
    channels: int = 3,
) -> PictureRows | Latents:
    """A picture over the background, or latents of `calotype encode` or another program (see `is_latents`).

    Args:
        size: (width, height) that pictures are brought to; see `fit`.
        channels: of the pictures of the VAE that it is for: one of RGBA (4) gets a picture with its alpha.

    Raises:
        PictureError, LatentsError: if it can't be read.
        UsageError: if latents are to be brought to a size, or nothing tells of which space they are or which are meant.
    """
    if not is_latents(path):
        picture = read_picture_rows(path, alpha=alpha_mode(channels, None), background=background)
        return picture if size is None else fit(picture, size)
    if size is not None:
        raise UsageError(f"{path}: latents can't be scaled; give the picture they were made from, or no size.")
    file = open_latents(path)
    asked = []
    if file.question:
        asked += [f"{name}=..." for name, told in (("latent_format", file.format), ("space", file.space)) if not told]
        why = "nothing tells of which space these latents are"
    if len(file) != 1:
        asked.append("index=...")
        why = f"there are {len(file)} latents in it, and one picture's are edited"
    if asked:
        raise UsageError(
            f"{path}: {why}; say so once, for a file of their own: calotype.save_latents(FILE, "
            f"calotype.load_latents({str(path)!r}, {', '.join(asked)}))."
        )
    return file[0]


def fit(picture: PictureRows, size: tuple[int, int]) -> PictureRows:
    """The picture scaled (Lanczos) until it covers a size, and cut to it around its middle; with the alpha it kept.

    Args:
        size: (width, height) in pixels.
    """
    height, width = picture.size
    if (width, height) == size:
        return picture
    image = to_pil(picture.rows(0, height))
    if (alpha := picture.alpha) is not None:
        image.putalpha(Image.fromarray(alpha.numpy()))
    fitted = np.array(ImageOps.fit(image, size, Image.Resampling.LANCZOS))
    opacity = None if alpha is None else fitted[..., 3]
    return PictureRows(fitted[..., :3], opacity, opacity is not None, picture.background, picture.notices)


def latents_of(
    vae: VAE, source: PictureRows | Latents, *, memory: int | str | None = None, progress: Progress | None = None
) -> Latents:
    """Raw latents: the posterior's mode of a picture, or the latents themselves.

    Args:
        memory, progress: as for `VAE.encode`.

    Raises:
        LatentsError: if the latents are of another space; see `VAE.adopt`.
        MemoryLimitError, LatentFormatError: as `VAE.encode_image`.
    """
    if isinstance(source, Latents):
        return vae.adopt(source)
    return vae.encode_image(source, memory=memory, progress=progress)
