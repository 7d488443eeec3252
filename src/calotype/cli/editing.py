"""What the commands that edit pictures share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calotype.addresses import require_local
from calotype.apart import require_apart
from calotype.cli.bars import shown
from calotype.cli.common import Dtype, complain, load_vae, make_folder, require_folder, size_of
from calotype.errors import LatentsError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from calotype.edit.masks import Selected
    from calotype.engine.executor import Progress
    from calotype.latents import Latents
    from calotype.pixels import PictureRows
    from calotype.vae import VAE

PICTURES = "Pictures, or latents that `calotype encode` or another program wrote."
EditVaeOption = Annotated[
    str | None,
    typer.Option(
        "--vae",
        help="Weights: a preset's name, or a file or folder in any layout.",
        show_default="those that latents name, else the built-in ones",
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", metavar="WxH", help="Scale pictures until they cover this, and cut them around the middle."),
]
InvertMaskOption = Annotated[bool, typer.Option("--invert-mask", help="Select what the mask leaves out instead.")]
StrengthOption = Annotated[float, typer.Option(help="How far to go: 0 not at all, 1 all the way, more beyond.")]


def sized(size: str | None) -> tuple[int, int] | None:
    """--size as (width, height)."""
    return None if size is None else size_of(size)


def read_sources(
    paths: Sequence[Path],
    sizes: Sequence[tuple[int, int] | None],
    background: tuple[int, int, int],
    vae: str | None,
    device: str | None,
    dtype: Dtype,
    encode_dtype: Dtype | None,
) -> tuple[list[PictureRows | Latents], VAE]:
    """Pictures and latents, and the VAE for them: that which was asked for, or made latents, or is built in.

    Latents are read first, for they name it, and then pictures as it takes them.
    """
    from calotype.edit.sources import is_latents
    from calotype.latents import Latents

    known = {i: read_source(path, sizes[i], background) for i, path in enumerate(paths) if is_latents(path)}
    if vae is None and known:
        vae = _named([(one, paths[i]) for i, one in known.items() if isinstance(one, Latents)])
    loaded = load_vae(vae, None, device, dtype, encode_dtype=encode_dtype)
    loaded.require("decoder")
    channels = loaded.picture_channels
    sources = [known.get(i) or read_source(path, sizes[i], background, channels) for i, path in enumerate(paths)]
    return sources, loaded


def _named(latents: Sequence[tuple[Latents, Path]]) -> str:
    """The VAE that any of these latents name: where they are of several of one space, each decodes them all.

    Raises:
        LatentsError: none of them names one that can be loaded.
    """
    from calotype.vae import name_for

    for one, path in latents:
        with suppress(LatentsError):
            return name_for(one, path)
    return name_for(*latents[0])  # which says what is wrong


def read_source(
    path: Path, size: tuple[int, int] | None, background: tuple[int, int, int], channels: int = 3
) -> PictureRows | Latents:
    """A picture, for a VAE whose pictures have so many channels, or latents; what reading did to it is said."""
    from calotype.edit.sources import read
    from calotype.pixels import PictureRows

    source = read(path, size=size, background=background, channels=channels)
    if isinstance(source, PictureRows):
        for notice in source.notices:
            complain(f"{path}: {notice}")
    return source


def read_rows(
    path: Path, size: tuple[int, int] | None, background: tuple[int, int, int], channels: int = 3
) -> PictureRows:
    """A picture, where latents do not do; what reading did to it is said.

    Raises:
        UsageError: for latents.
    """
    from calotype.latents import Latents

    source = read_source(path, size, background, channels)
    if isinstance(source, Latents):
        raise UsageError(f"{path}: these are latents; give the picture they were made from.")
    return source


def read_mask(path: Path, size: tuple[int, int], of: Path, *, alpha: Selected = "auto", invert: bool = False) -> Tensor:
    """A mask's levels, uint8 [H, W]; how it was understood is said.

    Args:
        size: (height, width) of the picture.
        of: its path.
        alpha, invert: as for `edit.masks.read_mask`.

    Raises:
        PictureError, UsageError: as there.
    """
    from calotype.edit import masks

    mask = masks.read_mask(path, alpha=alpha, invert=invert, size=size, of=str(of))
    for notice in mask.notices:
        complain(f"{path}: {notice}")
    return mask.levels


def output_file(out: Path, inputs: Iterable[Path], option: str = "--out") -> Path:
    """A file to write to; its folder is made by `make_folder(out.parent)` when nothing is refused any more.

    Raises:
        UsageError: if it is one of the inputs, or a folder, or would lie in a file, or is an address.
    """
    require_local(out, option)
    if out.is_dir():
        raise UsageError(f"{option} {out}: this is a folder; give the name of a file.")
    require_folder(out.parent, option)
    require_apart([out], inputs, option)
    return out


@contextmanager
def bar(doing: str, quiet: bool) -> Iterator[Progress]:
    """A progress bar on a terminal, moved by the part that is done, from 0 to 1."""
    with shown(doing, quiet=quiet) as move:
        yield lambda part: move(part, None)


def write_edited(
    vae: VAE,
    latents: Latents,
    out: Path,
    memory: str | None,
    progress: Progress | None,
    text: Mapping[str, str] | None = None,
) -> None:
    """Decodes what was edited to a file, whose folder is made."""
    from calotype.pixels import require_writable

    require_writable(out)
    make_folder(out.parent)
    vae.write_image(out, latents, text=text, memory=memory, progress=progress)
