"""What has been measured so far, on disk: an evaluation that is stopped goes on where it was, and shards are joined."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.errors import CalotypeError, StorageError, UsageError
from calotype.evaluate.measure import Taken
from calotype.texts import TextError, is_number, json_table, number, plain, shown, whole

REFERENCE = ""  # in the place of a VAE: the pictures themselves
LARGEST = 1e30  # of figures that are computed with
_OTHERS = ("height", "width", "latents", "subsets", "where")  # keys of a row that are no figures
_OF_EACH = ("height", "width", "latents", "encode_seconds", "decode_seconds")  # what every measured one has
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
        self._files: dict[Path, sqlite3.Connection] = {}
        self.path = folder / (f"measured-{part}.sqlite" if part else "measured.sqlite")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in dict.fromkeys([self.path, *sorted(folder.glob("measured*.sqlite"))]):
                file = self._files[path] = sqlite3.connect(path, timeout=60)
                file.executescript(_TABLES)
            for path, file in self._files.items():
                known = file.execute("SELECT value FROM settings").fetchone()
                if known is None:
                    with file:
                        file.execute("INSERT INTO settings VALUES (?)", (text,))
                elif known[0] != text:
                    with _damaged(path):
                        other = _difference(json_table(known[0], names=True), json.loads(text))
                    raise UsageError(
                        f"{path}: this evaluation was made with {other}; give the same, or another --report."
                    )
        except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
            self.close()
            raise StorageError(
                f"{folder}: what was measured can't be kept there ({plain(str(error))}); give another --report."
            ) from None
        except CalotypeError:
            self.close()
            raise

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
        """What there is of a VAE, by picture; an error only where no file has figures. Files are read once.

        Raises:
            StorageError: a file is damaged.
        """
        if vae not in self._rows:
            found = self._rows[vae] = {}
            for path, file in self._files.items():
                with _damaged(path):
                    for picture, row in file.execute("SELECT picture, row FROM rows WHERE vae = ?", (vae,)):
                        if "error" in found.get(picture, {"error": ""}):
                            found[picture] = _row(row)
                    counted = {len(one["latents"]["mean"]) for one in found.values() if "latents" in one}
                    if len(counted) > 1:
                        raise TextError("rows of one VAE have latents of several channels")
        return self._rows[vae]

    def measured(self, vae: str) -> Mapping[str, dict[str, Any]]:
        """As `rows`, of a VAE whose figures are to be told.

        Raises:
            StorageError: a row lacks what every one has.
        """
        for row in self.rows(vae).values():
            if "error" not in row and (lacking := [key for key in _OF_EACH if key not in row]):
                raise StorageError(
                    f"{self.folder}: what was measured is damaged there (a row lacks {lacking[0]}); delete its "
                    f"measured*.sqlite, and the same command measures anew."
                )
        return self.rows(vae)

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
        with _damaged(path), closing(_open(path)) as file:
            return file.execute("SELECT 1 FROM finished WHERE work = ?", (work,)).fetchone() is not None

    def features(self, vae: str, extractor: str) -> dict[str, NDArray[np.float32]]:
        """Features of a VAE's reconstructions, by picture."""
        found: dict[str, NDArray[np.float32]] = {}
        question = "SELECT picture, numbers FROM features WHERE vae = ? AND extractor = ?"
        for path, file in self._files.items():
            with _damaged(path):
                for picture, numbers in file.execute(question, (vae, extractor)):
                    found[picture] = np.frombuffer(numbers, dtype=np.float32)
                if len({one.size for one in found.values()}) > 1:
                    raise TextError(f"features of {extractor} have several lengths")
        return found

    def pictures(self, vae: str, extractor: str) -> set[str]:
        """Pictures whose reconstructions' features there are."""
        question = "SELECT picture FROM features WHERE vae = ? AND extractor = ?"
        found: set[str] = set()
        for path, file in self._files.items():
            with _damaged(path):
                found.update(picture for (picture,) in file.execute(question, (vae, extractor)))
        return found

    def close(self) -> None:
        """Ends it; nothing is lost without."""
        for file in self._files.values():
            file.close()


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Says that a file is damaged where what is read from it can't be.

    Raises:
        StorageError: so.
    """
    try:
        yield
    except (sqlite3.Error, ValueError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise StorageError(
            f"{path}: what was measured is damaged there ({plain(str(error))}); delete this file, and the same command "
            f"measures anew."
        ) from None


def _row(text: str) -> dict[str, Any]:
    """A row as `measure` makes them.

    Raises:
        TextError: it is none.
    """
    row = json_table(text, finite=False)
    if "error" in row:
        return {"error": _text(row, "error")}
    for key in {"height", "width"} & row.keys():
        whole(row[key], key)
    if "latents" in row:
        latents = _table(row, "latents")
        whole(latents.get("count"), "latents.count")
        columns = [column for key in ("mean", "m2") if isinstance(column := latents.get(key), list)]
        if len(columns) < 2 or len(columns[0]) != len(columns[1]):
            raise TextError("latents.mean and latents.m2 must be lists of one length")
        for key, least, column in zip(("mean", "m2"), (-LARGEST, 0), columns, strict=True):
            for value in column:
                number(value, f"latents.{key}", least, LARGEST)
    for key in {"encode_seconds", "decode_seconds"} & row.keys():
        number(row[key], key, 0, LARGEST)
    if "where" in row:  # older ones don't tell it
        _text(row, "where")
    for key, value in row.items():
        if key not in _OTHERS and not (value is None and key == "kl_bits_per_pixel"):
            _figure(key, value)
    for subset, parts in _table(row, "subsets").items() if "subsets" in row else ():
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise TextError(f"{plain(subset)} must be a list of tables, not {shown(parts)}")
        for part in parts:
            for key, value in part.items():
                if key != "box":
                    _figure(f"{plain(subset)}.{plain(key)}", value)
    return row


def _figure(key: str, value: Any) -> None:
    if not isinstance(value, float) and not is_number(value):  # a PSNR may be infinite
        raise TextError(f"{plain(key)} must be a number, not {shown(value)}")


def _text(row: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := row.get(key), str):
        raise TextError(f"{key} must be a text, not {shown(value)}")
    return value


def _table(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(value := row[key], dict):
        raise TextError(f"{key} must be a table, not {shown(value)}")
    return value


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
