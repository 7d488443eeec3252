"""What has been measured so far, on disk: an evaluation that is stopped goes on where it was, and shards are joined."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.errors import StorageError, UsageError
from calotype.evaluate.measure import Taken

REFERENCE = ""  # in the place of a VAE: the pictures themselves
_SHA256 = re.compile("[0-9a-f]{64}")
_TABLES = """
CREATE TABLE IF NOT EXISTS settings (value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (
    vae TEXT NOT NULL, picture TEXT NOT NULL, row TEXT NOT NULL, PRIMARY KEY (vae, picture)
);
CREATE TABLE IF NOT EXISTS finished (work TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS features (
    vae TEXT NOT NULL, picture TEXT NOT NULL, extractor TEXT NOT NULL, numbers BLOB NOT NULL,
    PRIMARY KEY (vae, picture, extractor)
);
"""


class Store:
    """Rows and features by VAE and picture (keys of both); each is written whole or not at all.

    Args:
        folder: that holds the evaluation; every file ``measured*.sqlite`` in it is read.
        settings: what decides the figures; a folder of others is refused.
        part: of how many this process measures, as in "1-of-4"; it writes a file of its own.

    Attributes:
        path: of the file that is written.

    Raises:
        UsageError: the folder holds an evaluation with other settings.
        StorageError: it can't be read or written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], part: str = "") -> None:
        self.folder = folder
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}  # of each VAE that was asked for
        text = json.dumps(settings, sort_keys=True)
        self.path = folder / (f"measured-{part}.sqlite" if part else "measured.sqlite")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._files = {
                path: _open(path) for path in dict.fromkeys([self.path, *sorted(folder.glob("measured*.sqlite"))])
            }
            for path, file in self._files.items():
                known = file.execute("SELECT value FROM settings").fetchone()
                if known is None:
                    with file:
                        file.execute("INSERT INTO settings VALUES (?)", (text,))
                elif known[0] != text:
                    raise UsageError(
                        f"{path}: this evaluation was made with {_difference(json.loads(known[0]), json.loads(text))}; "
                        f"give the same, or another --report."
                    )
        except (OSError, sqlite3.Error) as error:
            raise StorageError(
                f"{folder}: what was measured can't be kept there ({error}); give another --report."
            ) from None

    def put(self, vae: str, picture: str, taken: Taken) -> None:
        """Keeps what one picture gave.

        Raises:
            StorageError: the disk refuses it.
        """
        try:
            with self._files[self.path] as file:
                file.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", (vae, picture, json.dumps(taken.row)))
                for name, numbers in taken.features.items():
                    data = np.ascontiguousarray(numbers, dtype=np.float32).tobytes()
                    file.execute("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", (vae, picture, name, data))
        except sqlite3.Error as error:
            raise StorageError(
                f"{self.path}: what was measured can't be kept ({error}); make room, and the same command goes on."
            ) from None
        if "error" in taken.row:
            self._rows.pop(vae, None)  # another file may have figures
        elif vae in self._rows:
            self._rows[vae][picture] = taken.row

    def rows(self, vae: str) -> Mapping[str, dict[str, Any]]:
        """What there is of a VAE, by picture; an error only where no file has figures. Files are read once."""
        if vae not in self._rows:
            found = self._rows[vae] = {}
            for file in self._files.values():
                for picture, row in file.execute("SELECT picture, row FROM rows WHERE vae = ?", (vae,)):
                    if "error" in found.get(picture, {"error": ""}):
                        found[picture] = json.loads(row)
        return self._rows[vae]

    def finish(self, work: str) -> None:
        """Notes that some work came to its end, whatever failed in it.

        Raises:
            StorageError: the disk refuses it.
        """
        try:
            with self._files[self.path] as file:
                file.execute("INSERT OR REPLACE INTO finished VALUES (?)", (work,))
        except sqlite3.Error as error:
            raise StorageError(
                f"{self.path}: what was measured can't be kept ({error}); make room, and the same command goes on."
            ) from None

    def finished(self, part: str, work: str) -> bool:
        """Whether a part, as in "1-of-4", has noted that it did this work."""
        path = self.folder / f"measured-{part}.sqlite"
        if not path.is_file():
            return False
        with closing(_open(path)) as file:
            return file.execute("SELECT 1 FROM finished WHERE work = ?", (work,)).fetchone() is not None

    def features(self, vae: str, extractor: str) -> dict[str, NDArray[np.float32]]:
        """Features of a VAE's reconstructions, by picture."""
        found: dict[str, NDArray[np.float32]] = {}
        question = "SELECT picture, numbers FROM features WHERE vae = ? AND extractor = ?"
        for file in self._files.values():
            for picture, numbers in file.execute(question, (vae, extractor)):
                found[picture] = np.frombuffer(numbers, dtype=np.float32)
        return found

    def pictures(self, vae: str, extractor: str) -> set[str]:
        """Pictures whose reconstructions' features there are."""
        question = "SELECT picture FROM features WHERE vae = ? AND extractor = ?"
        return {picture for file in self._files.values() for (picture,) in file.execute(question, (vae, extractor))}

    def close(self) -> None:
        """Ends it; nothing is lost without."""
        for file in self._files.values():
            file.close()


def _open(path: Path) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=60)
    file.executescript(_TABLES)
    return file


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What it was made with, and what was given now."""
    told = []
    for key in sorted(now.keys() | then.keys()):
        before, after = then.get(key), now.get(key)
        if before == after:
            continue
        if not isinstance(before, dict) or not isinstance(after, dict):
            told.append(f"{key} {_said(before)}, not {_said(after)}")
            continue
        fields = [one for one in sorted(before.keys() | after.keys()) if before.get(one) != after.get(one)]
        if "name" in fields:  # which stands for the others, but for what is given beside it
            fields = [one for one in fields if one in ("name", "seed")]
        pairs = [(f"{key} {one}", _said(before.get(one)), _said(after.get(one))) for one in fields]
        told += [f"{name} {a}, not {b}" for name, a, b in pairs if a != b] or [f"other {key}"]
    return " and ".join(told)


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return f"of {len(value)} picture{'' if len(value) == 1 else 's'}"
    return f"{value[:12]}..." if isinstance(value, str) and _SHA256.fullmatch(value) else str(value)
