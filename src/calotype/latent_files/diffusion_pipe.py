"""diffusion-pipe's caches (utils/cache.py): ``metadata.db``, in SQLite, and ``shard_0.bin``, ... beside it.

A shard is torch files one after another; where each begins, and how long it is, stands in the database. The model's
name is that of a folder above: ``cache/flux/cache_.../latents/metadata.db``. Latents are always scaled.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, overload

from torch import Tensor

from calotype.damage import quoted
from calotype.latent_files.found import CacheError, Found, Item, told
from calotype.latent_files.models import DIFFUSION_PIPE
from calotype.latent_files.torch_files import item, read, tensors
from calotype.temporaries import temporary_folder

DATABASE = "metadata.db"
SHARD = re.compile(r"shard_(\d{1,9})\.bin")
TENSOR = "latents"
_MOST = 10_000_000  # rows of a table
_STEPS = 100_000_000  # of SQLite's machine, for one database


class _Place(NamedTuple):
    shard: int
    start: int
    size: int


class _Items(Sequence[Item]):
    """The items of a cache, each read when it is asked for."""

    def __init__(self, folder: Path, places: list[_Place]) -> None:
        self._folder, self._places = folder, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return _Items(self._folder, self._places[index])
        place = self._places[index]
        path = self._folder / f"shard_{place.shard}.bin"
        if not path.is_file():
            raise CacheError(f"its item {index} lies in {path.name}, which is not beside it.")
        if place.start + place.size > path.stat().st_size:
            raise CacheError(
                f"its item {index} ends at byte {place.start + place.size:,} of {path.name}, which has "
                f"{path.stat().st_size:,}; cache it again."
            )
        with path.open("rb") as file, temporary_folder(Path(tempfile.gettempdir())) as folder:
            file.seek(place.start)
            alone = folder / "item.pt"
            alone.write_bytes(file.read(place.size))
            found = tensors(read(alone))
            if TENSOR not in found:
                names = ", ".join(quoted(name, 40) for name in list(found)[:3])
                raise CacheError(f"this cache of diffusion-pipe holds {names}, and no latents.")
            whole = item(TENSOR, found[TENSOR])
            values: Tensor = whole.read().clone()  # the file goes
        return whole._replace(read=lambda: values)


def find(path: Path) -> Found:
    """The latents of a cache.

    Args:
        path: of the database, or of one shard, whose items alone are meant.
    """
    shard = SHARD.fullmatch(path.name)
    database = path.with_name(DATABASE) if shard else path
    if not database.is_file():
        raise CacheError(
            f"this is a shard of diffusion-pipe, and {DATABASE}, which says where items begin in it, is not beside it."
        )
    with _opened(database) as connection:
        places = [place for place in _places(connection) if shard is None or place.shard == int(shard[1])]
    model = _model(path)
    known = "ltx-video" if model.startswith("ltx") else model  # called after the checkpoint's file
    format_, _, drawn = told(DIFFUSION_PIPE.get(known), "diffusion-pipe", model)
    return Found(
        program="diffusion-pipe", model=model, items=_Items(path.parent, places), format=format_, space="model",
        drawn=drawn, batches=False,
    )  # fmt: skip


def _model(path: Path) -> str:
    """The name of the model in .../cache/MODEL/...; "" if there is none."""
    parts = path.absolute().parts[:-1]
    return next((after for before, after in zip(parts[::-1][1:], parts[::-1], strict=False) if before == "cache"), "")


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, read only, and no longer than one of its size takes."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        left = _STEPS // 10_000

        def stop() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        connection.set_progress_handler(stop, 10_000)
        try:
            yield connection
        except sqlite3.Error as error:
            raise CacheError(
                f"this database is no whole cache of diffusion-pipe ({quoted(error)}); cache again."
            ) from None


def _places(connection: sqlite3.Connection) -> list[_Place]:
    names = [str(name) for (name,) in _rows(connection, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    tables = {int(match[1]): name for name in names if (match := re.fullmatch(r"shard_(\d{1,9})", name))}
    if "items" not in names:
        raise CacheError("this database is no cache of diffusion-pipe: it has no table of items.")
    inside = {
        shard: list(_rows(connection, f"SELECT offset, size FROM {name} ORDER BY rowid"))
        for shard, name in tables.items()
    }
    found: list[_Place] = []
    for shard, index in _rows(connection, "SELECT shard, shard_index FROM items ORDER BY rowid"):
        rows = inside.get(shard, []) if type(shard) is int else []
        row = rows[index] if type(index) is int and 0 <= index < len(rows) else ()
        place = [n for n in (shard, *row) if type(n) is int and n >= 0]
        if len(place) != 3:
            raise CacheError(
                f"this cache of diffusion-pipe is damaged: its item {len(found)} lies nowhere; cache again."
            )
        found.append(_Place(*place))
    return found


def _rows(connection: sqlite3.Connection, query: str) -> Iterator[tuple[object, ...]]:
    for count, row in enumerate(connection.execute(query)):
        if count == _MOST:
            raise CacheError(f"this database has more than {_MOST:,} rows, which no cache of diffusion-pipe has.")
        yield row
