"""Sources at addresses: folders, zips and tars, as they are here.

Pictures are listed once, with what tells later whether they changed. Each is fetched in one request whenever it is
read, a picture of a tar or a zip by its place in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import IO

from calotype import archives
from calotype.addresses import RemoteFile, at_once, listed, look_up, look_up_all
from calotype.errors import PictureError, RemoteError, UsageError
from calotype.sources.local import stamp_in_tars
from calotype.sources.stored import MOST_TEXT, TEXTS, Beside, Sorting, Stored, require_distinct

_ZIP, _TAR = re.compile(r"\.zip$", re.IGNORECASE), re.compile(r"\.(tar(\.\w+)?|tgz)$", re.IGNORECASE)
_BEGINS_A_ZIP = (b"PK\3\4", b"PK\5\6")


def at_address(address: str) -> Stored:
    """Lists the pictures at an address.

    Raises:
        UsageError: there are none, or they may not be listed, or an archive is damaged.
        RemoteError: the server does not answer.
    """
    if archives.RANGE.search(address):
        shards = archives.expanded(address)
        found = look_up_all(shards)
        names = [one.rpartition("/")[2] for one in shards]
        archives.require_all(address, names, [one is not None for one in found])
        require_distinct(address, names)
        return _tars(address, [one for one in found if one is not None], Sorting())
    file = look_up(address) if not address.endswith("/") else None
    if file is None:
        return _folder(address)
    if _TAR.search(file.name):
        return _tars(address, [file], Sorting())
    if _ZIP.search(file.name) or file.fetch(0, min(4, file.size)) in _BEGINS_A_ZIP:
        return _zip(address, file)
    raise UsageError(f"{address}: this is a file, and no zip or tar; give the folder that the pictures are in.")


def _folder(address: str) -> Stored:
    files, sorting = dict(sorted(listed(address), key=lambda one: one[0].split("/"))), Sorting()
    if not files:
        raise UsageError(f"{address}: there is no such folder, zip or tar of pictures; give one that is there.")
    shards = [file for path, file in files.items() if path.lower().endswith(".tar") and "/" not in path]

    def takes(path: str) -> bool:
        return sorting.takes(PurePosixPath(path), files[path].head)

    # those whose name does not tell are asked for
    unsure = [path for path in files if not sorting.knows(PurePosixPath(path))]
    looked = dict(zip(unsure, at_once(takes, unsure), strict=True))
    names = [path for path in files if (looked[path] if path in looked else takes(path))]
    if shards and names:
        raise UsageError(f"{address}: both pictures and .tar are in it; give a folder with one of them.")
    if shards:
        return _tars(address, shards, sorting)
    pictures = [files[name] for name in names]
    texts = {path: partial(_text, file) for path, file in files.items() if PurePosixPath(path).suffix.lower() in TEXTS}
    return _stored(address, names, partial(_nth, pictures), sorting, partial(_beside_folder, pictures, texts),
                   head=partial(_head_of_nth, pictures))  # fmt: skip


def _zip(address: str, file: RemoteFile) -> Stored:
    sorting = Sorting()
    names, open_ = archives.of_zip(file, sorting.takes)
    return _stored(address, names, open_, sorting, partial(_beside_zip, file))


def _tars(address: str, shards: Sequence[RemoteFile], sorting: Sorting) -> Stored:
    names, open_, texts = archives.with_texts(shards, sorting.takes, TEXTS, MOST_TEXT)
    return _stored(address, names, open_, sorting, partial(_beside_tars, shards, names, texts))


def _stored(
    address: str,
    names: Sequence[str],
    open_: Callable[[int], IO[bytes]],
    sorting: Sorting,
    beside: Callable[[], Beside],
    head: Callable[[int], IO[bytes]] | None = None,
) -> Stored:
    return Stored(address, names, open_, sorting.left_out, beside=beside, head=head, far=True)


def _nth(files: Sequence[RemoteFile], i: int) -> IO[bytes]:
    return files[i].whole()


def _head_of_nth(files: Sequence[RemoteFile], i: int) -> IO[bytes]:
    return files[i].head()


def _beside_folder(pictures: Sequence[RemoteFile], texts: Mapping[str, Callable[[], bytes]]) -> Beside:
    return Beside(lambda i: pictures[i].stamp, texts)


def _beside_zip(file: RemoteFile) -> Beside:
    texts = archives.texts_of_zip(file, TEXTS, MOST_TEXT)
    return Beside(lambda i: file.stamp and f"{file.stamp} {i}", texts)


def _beside_tars(
    shards: Sequence[RemoteFile], names: Sequence[str], texts: Mapping[str, Callable[[], bytes]]
) -> Beside:
    return Beside(partial(stamp_in_tars, {shard.name: shard.stamp for shard in shards}, names), texts)


def _text(file: RemoteFile) -> bytes:
    try:
        return file.fetch(0, min(file.size, MOST_TEXT))
    except PictureError as error:
        raise RemoteError(f"{file}: {error}") from error
