"""Where a cache lies: the one place that knows how its files are named, listed, read and put. No torch.

All names are relative to the cache's folder and have forward slashes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from calotype.addresses import require_local
from calotype.errors import StorageError
from calotype.files import atomic_path, make_folder, refusal, write_bytes, writing
from calotype.temporaries import is_temporary

JOB = "cache.json"
SCAN = "scan.parquet"
LOOKED = "looked"  # what a scan that is under way, or was killed, has found so far
MANIFEST = "manifest.parquet"
RECEIPTS, SAMPLES, SHARDS = "receipts", "samples", "shards"
CLAIMS, RUNS = "claims", "runs"  # locks

_STEP = 2**20
_UNIT = r"[0-9a-f]{32}"
_OWN = re.compile(
    rf"cache\.json|(scan|manifest)\.parquet|looked/\d{{6,}}\.parquet|receipts/{_UNIT}\.json"
    rf"|samples/{_UNIT}\.parquet"
    rf"|shards/\d+x\d+/{_UNIT}\.safetensors|(runs/|claims/)?\.(?!alone\.)[^/]*\.lock"
)


class Store:
    """A folder that holds a cache, or will.

    Args:
        root: the folder.

    Raises:
        UsageError: it is an address.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        require_local(root, "A cache at")
        self.root = Path(root)

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        """Where a file lies, for what reads from or locks it."""
        return self.root / name

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            OSError: it can't be read.
        """
        return self.path(name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Puts a file, whole or not at all; its folder is made if need be.

        Raises:
            StorageError: the disk refuses it.
        """
        make_folder(self.path(name).parent)
        write_bytes(self.path(name), data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write to, which is put when the block ends well.

        Raises:
            StorageError: the disk refuses it.
        """
        make_folder(self.path(name).parent)
        with writing(self.path(name)) as file:
            yield file

    @contextmanager
    def attempt(self, name: str) -> Iterator[Path]:
        """A path of its own, in the same folder, for what is to be that file; it becomes so when the block ends well.

        Raises:
            StorageError: the disk refuses it.
        """
        make_folder(self.path(name).parent)
        try:
            with atomic_path(self.path(name)) as path:
                yield path
        except OSError as error:
            raise StorageError(refusal(self.path(name), error)) from None

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none.

        Raises:
            StorageError: it can't be looked at, which is no reason to think that it is gone.
        """
        try:
            return self.path(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(unreadable(self.path(name), error)) from None

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names of a folder's files that end so, without the ending, sorted; none where there is no folder."""
        found = []
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.path(folder)) as entries:
            found = [entry.name for entry in entries]
        return sorted(name.removesuffix(suffix) for name in found if name.endswith(suffix) and name[0] != ".")

    def files(self, folder: str) -> list[str]:
        """Names of all files below a folder, hidden ones too, sorted.

        Raises:
            StorageError: they can't be looked at.
        """
        top = self.path(folder)
        try:
            return sorted(path.relative_to(self.root).as_posix() for path in top.rglob("*") if path.is_file())
        except OSError as error:
            raise StorageError(unreadable(Path(error.filename or top), error)) from None

    def remove(self, name: str) -> None:
        """Removes a file, if it is there.

        Raises:
            StorageError: it can't be.
        """
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self.path(name)} can't be removed ({error.strerror or error}).") from None

    def sha256(self, name: str) -> str:
        """Of a file's bytes.

        Raises:
            OSError: it can't be read.
        """
        digest = hashlib.sha256()
        with self.path(name).open("rb") as file:
            while part := file.read(_STEP):
                digest.update(part)
        return digest.hexdigest()


def of_cache(name: str) -> bool:
    """Whether a file is called as those that caches write: others may lie among them, which are nobody's to remove."""
    return bool(_OWN.fullmatch(name)) or is_temporary(name.rpartition("/")[2])


def unreadable(path: Path, error: OSError) -> str:
    """That a file can't be looked at, though it may be there."""
    return f"{path} can't be read ({error.strerror or error}); look at the disk and its permissions."


def looked_name(number: int) -> str:
    """A file of what a scan has found, which is the one after those of lower numbers."""
    return f"{LOOKED}/{number:06d}.parquet"


def receipt_name(unit: str) -> str:
    """The file of a unit's receipt."""
    return f"{RECEIPTS}/{unit}.json"


def samples_name(unit: str) -> str:
    """The file of a unit's samples."""
    return f"{SAMPLES}/{unit}.parquet"


def shard_name(unit: str, bucket: tuple[int, int]) -> str:
    """The file of a unit's tensors, whose bucket is (width, height)."""
    return f"{SHARDS}/{bucket[0]}x{bucket[1]}/{unit}.safetensors"
