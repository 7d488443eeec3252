"""What a format of another program is to the rest: what it wants of a cache, and how it writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from calotype.cache.export.rows import Rows
from calotype.cache.job import Job, Stored
from calotype.latents import Space

Value = Literal["mode", "sample"]


@dataclass(frozen=True, kw_only=True)
class Wants:
    """What a reader wants of latents.

    Attributes:
        value: the posterior's mode, or a sample.
        space: raw, or scaled as a diffusion model has them.
        fixed: the space and the type can't be chosen otherwise.
        dtype: that numbers are written in; None: that of the cache.
        bfloat16: whether it can hold that.
        flips: whether latents of mirrored pictures are kept, must be there, or have no place.
        one_size: whether all must be of one size.
        published: name of the latent format with whose published numbers they are scaled; "" for the VAE's own.
    """

    value: Value = "mode"
    space: Space = "raw"
    fixed: bool = False
    dtype: Stored | None = None
    bfloat16: bool = False
    flips: Literal["kept", "needed", "left out"] = "kept"
    one_size: bool = False
    published: str = ""


class Format(Protocol):
    """A format.

    Attributes:
        name: on the command line.
        title: of its reader, for messages.
        upright: whether the reader turns pictures upright as their EXIF tells; those that don't know them by the sizes
            that stand in the file.
        beside: whether there is a file for each picture, which may be put among files that are there already.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def upright(self) -> bool: ...
    @property
    def beside(self) -> bool: ...

    def wants(self, job: Job, model: str | None) -> Wants:
        """What it wants of a cache.

        Args:
            model: of those that the program trains, where it has several with such latents.

        Raises:
            UsageError: it has no such latents, or no such model.
        """

    def write(self, rows: Rows, folder: Path) -> None:
        """Writes all into a folder.

        Raises:
            UsageError: it can't hold them.
            StorageError: the disk refuses it.
        """
