"""Where training pictures lie: folders, zips, tar shards and Hugging Face datasets, here or at an address, all read in
the same way.

Opening a source lists its pictures and decodes none of them; then any thread may read any picture at any time. A source
may be sent to other processes, or be there after a fork.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath

from calotype import archives
from calotype.addresses import flat_address, is_address, local_path
from calotype.errors import UsageError
from calotype.sources.datasets import HUB, is_saved, named_dataset
from calotype.sources.local import files_in, folder, opened, tars, zipped
from calotype.sources.remote import at_address
from calotype.sources.stored import (
    MOST_TEXT,
    TEXTS,
    Array,
    Beside,
    LeftOut,
    Pictures,
    Sorting,
    Stored,
    require_distinct,
    rgb_levels,
    rgba_levels,
)

__all__ = [
    "HUB",
    "MOST_TEXT",
    "TEXTS",
    "Array",
    "Beside",
    "LeftOut",
    "Pictures",
    "Stored",
    "files_of",
    "open_source",
    "rgb_levels",
    "rgba_levels",
]


def open_source(spec: str | Path, root: str | Path = Path()) -> Stored:
    """Lists the pictures of a source.

    Files are pictures by their suffixes, of what Pillow and its plugins decode (see `pixels.kinds`), or by their first
    bytes where they have no suffix. What else seems to be one is counted in `Stored.left_out`. Hidden files are no
    pictures: macOS puts a ``._photo.jpg`` beside every ``photo.jpg``.

    Args:
        spec: one of

            - a folder, searched in depth; its pictures in the order of their paths;
            - a .zip; in the order of its members' names;
            - a .tar, a folder of .tar, or a range of them such as ``train-{000..010}.tar``, as WebDataset has them; in
              the order of their members;
            - a folder that Hugging Face's `datasets` saved;
            - ``hf:NAME[:SPLIT][:COLUMN]``, a dataset of its hub, or such a folder; without more, the split "train" and
              the first column of pictures;
            - a text that is an address of a folder, .zip or .tar, or of a range of .tar, such as ``s3://bucket/folder``
              (see `calotype.addresses`).
        root: the folder or address that paths are relative to.

    Raises:
        UsageError: there is no such source, it is damaged, or no picture is in it.
        RemoteError: it is at an address, where a server does not answer.
    """
    if str(spec).startswith(HUB):
        pictures = named_dataset(str(spec), Path(root))
    elif isinstance(place := _place(spec, root), str):
        pictures = at_address(place)
    else:
        pictures = _here(place)
    if not len(pictures):
        if pictures.left_out:
            raise UsageError(f"{pictures.title}: there is no picture in it that can be read, but {pictures.left_out}.")
        raise UsageError(
            f"{pictures.title}: there is no picture in it; those of files end in .jpg, .png, .webp, .tif and others "
            f"that `calotype doctor` lists."
        )
    return pictures


def _place(spec: str | Path, root: str | Path) -> str | Path:
    """A source's address, or its path."""
    if is_address(spec):
        return local_path(str(spec)) or str(spec)
    if not is_address(root) or Path(spec).is_absolute():
        return Path(root) / spec
    below = PurePath(spec).as_posix()
    return _place(str(root) if below == "." else f"{str(root).rstrip('/')}/{below}", Path())


def _here(path: Path) -> Stored:
    if path.is_dir():
        return folder(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return zipped(path)
    if path.is_file() and re.search(r"\.(tar(\.\w+)?|tgz)$", path.name, re.IGNORECASE):
        return tars(str(path), [path])
    if zipfile.is_zipfile(path):
        return zipped(path)
    if not path.exists() and archives.RANGE.search(str(path)):
        shards = archives.shards(str(path))
        require_distinct(str(path), [shard.name for shard in shards])
        return tars(str(path), shards)
    if path.is_file():
        raise UsageError(f"{path}: this is a file, and no zip or tar; give the folder that the pictures are in.")
    if address := flat_address(path):
        raise UsageError(f"{path}: there is no such folder; if an address is meant, give it as a text, {address}.")
    raise UsageError(f"{path}: there is no such folder, zip, tar or dataset of pictures; give one that is there.")


def files_of(spec: str | Path, root: str | Path = Path()) -> Iterator[Path]:
    """Files that `open_source` reads of a source, as far as they are there; of what lies elsewhere none.

    Args:
        spec, root: as for `open_source`.
    """
    text = str(spec)
    path = Path(root) / text.removeprefix(HUB).partition(":")[0] if text.startswith(HUB) else _place(spec, root)
    if isinstance(path, str):
        return
    if path.is_dir():
        saved, sorting = is_saved(path), Sorting()
        for file in files_in(path):
            if saved or file.suffix.lower() == ".tar" or sorting.takes(file, partial(opened, path / file)):
                yield path / file
    elif path.is_file():
        yield path
    elif archives.RANGE.search(str(path)):
        with suppress(UsageError):  # which `open_source` raises
            yield from archives.shards(str(path))
