"""Latents on disk: calotype's own files, and those of other programs, one module for each.

A reader finds tensors in a file and what is told of them (`found.Found`): the program and the model say whether they
are raw or scaled and in which latent format (`models`), and what they do not say is asked. `telling` finds the reader.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from calotype.errors import LatentsError, UsageError
from calotype.files import write_bytes
from calotype.latent_files import comfyui, own, sd_scripts, telling
from calotype.latent_files.found import CacheError, LatentFile, named, require_agreement, settle
from calotype.latents import Latents, Space
from calotype.texts import shown

Program = Literal["comfyui", "sd-scripts"]  # whose files `save_latents` writes

__all__ = [
    "CacheError",
    "LatentFile",
    "Program",
    "file_name",
    "is_own",
    "load_latents",
    "open_latents",
    "save_latents",
    "stored_space",
]


def open_latents(
    path: str | os.PathLike[str], *, latent_format: str | None = None, space: Space | None = None
) -> LatentFile:
    """The latents in a file, which may be several: of `calotype encode`, or of another program (docs/latents.md).

    Args:
        latent_format: name of the format of another program's latents, where the file does not tell: ``sd1``, ``sdxl``,
            ...; ``none`` are those of the VAE that decodes them; ``model:NAME`` are a tiny autoencoder's, whose raw
            latents are NAME's model latents.
        space: whether they are raw or scaled (model), where the file does not tell.

    Raises:
        LatentsError: there is no such file, it is damaged, or holds no latents that are read.
        UsageError: the file tells otherwise.
    """
    path = Path(path)
    if space is not None and space not in get_args(Space):
        raise UsageError(f"Latents are raw or model, not {space!r}.")
    if latent_format is not None and not isinstance(latent_format, str):
        raise UsageError(f"A latent format is given by its name, not by {shown(latent_format)}.")
    if path.is_dir():
        raise LatentsError(f"{path}: this is a folder; give one of the files with latents in it.")
    if not path.is_file():
        raise LatentsError(f"{path}: there is no such file; give latents that `calotype encode` wrote.")
    with named(path):
        found = telling.find(path)
    return _own(path, latent_format, space) if found is None else settle(found, path, latent_format, space)


def is_own(path: Path) -> bool:
    """Whether a file is of calotype's own kind, which tells all."""
    return path.is_file() and bool(telling.own_version(telling.header(path)))


def load_latents(
    path: str | os.PathLike[str],
    *,
    latent_format: str | None = None,
    space: Space | None = None,
    index: int | None = None,
) -> Latents:
    """One picture's latents from a file that `save_latents` or another program wrote.

    Args:
        latent_format, space: as for `open_latents`.
        index: which, in a file with several.

    Raises:
        LatentsError: as `open_latents`, and if the file holds several and none is named.
        UsageError: nothing tells in which space they are; the message says what to say. Or there is none of that index.
    """
    file = open_latents(path, latent_format=latent_format, space=space)
    if index is not None and index < 0:
        raise UsageError(f"{path}: latents are counted from 0, and {index} was given.")
    if index is None and len(file) != 1:
        raise LatentsError(f"{path}: there are {len(file)} latents in it; say which with index=0 to {len(file) - 1}.")
    try:
        return file[index or 0]
    except IndexError:
        raise UsageError(f"{path}: there is no latent {index}, for it holds {len(file)}, counted from 0.") from None


def save_latents(path: str | os.PathLike[str], latents: Latents, *, to: Program | None = None) -> Path:
    """Writes one picture's latents, so that they can be decoded with no more than the file.

    Args:
        path: of the file; the same is returned.
        to: None: calotype's own kind, safetensors with everything in its metadata. ``comfyui``: a ``.latent``, raw
            (of FLUX.2 packed and normalised). ``sd-scripts``: a ``.npz``, in the space that it keeps them in;
            `file_name` says what it is called.

    Raises:
        LatentsError: if the file can't be written.
        UsageError: if its folder does not exist, or the program does not know such latents.
    """
    if to is None:
        return own.write(path, latents)
    stored_space(to, latents.format.name)
    content = comfyui.content(latents) if to == "comfyui" else sd_scripts.content(Path(path), latents)
    return write_bytes(path, content, LatentsError)


def stored_space(to: Program, latent_format: str) -> Space:
    """In which space another program keeps latents.

    Args:
        to: which program.
        latent_format: the name of their format.

    Raises:
        UsageError: it has no such latents.
    """
    if to not in get_args(Program):
        raise UsageError(f"Latents are written for {' or '.join(get_args(Program))}, not {to!r}.")
    return comfyui.space_of(latent_format) if to == "comfyui" else sd_scripts.space_of(latent_format)


def file_name(stem: str, latents: Latents, to: Program) -> str:
    """What another program calls the latents of a picture that is called `stem`."""
    return f"{stem}.latent" if to == "comfyui" else sd_scripts.file_name(stem, latents)


def _own(path: Path, latent_format: str | None, space: Space | None) -> LatentFile:
    """A file of calotype's, which tells all; what is damaged of it is said when it is read."""
    header = telling.header(path)
    if not header and path.suffix.lower() != ".safetensors":
        with named(path):
            raise own.no_latents()
    entry = header.get("latents")
    shape = entry.get("shape") if isinstance(entry, dict) else None
    metadata = header.get("__metadata__")
    says, format_ = own.told(metadata if isinstance(metadata, dict) else {})
    name = format_.name if format_ else None
    require_agreement(path, "latents of calotype", "", (latent_format, name), (space, says))
    return LatentFile(
        path=path, program="calotype", model="", space=says, format=format_, drawn="",
        dtype="", left_out=(), question="", shape=tuple(shape) if isinstance(shape, list) else (), _counts=1,
        _read=partial(_read_own, path),
    )  # fmt: skip


def _read_own(path: Path, item: int, within: int) -> Latents:
    with named(path):
        return own.read(path)
