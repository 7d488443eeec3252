"""Sources that are datasets of Hugging Face."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from calotype.errors import UsageError
from calotype.names import Names
from calotype.sources.stored import Beside, Stored

HUB = "hf:"


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved it: one dataset, or several splits."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def named_dataset(spec: str, root: Path) -> Stored:
    """A dataset as hf:NAME:SPLIT:COLUMN."""
    # colons also stand in slices, as in train[:90%]
    name, split, column, *more = [*re.split(r":(?![^\[]*\])", spec.removeprefix(HUB)), "", ""]
    if not name or any(more):
        raise UsageError(f"{spec} names no dataset; give {HUB}NAME, {HUB}NAME:SPLIT or {HUB}NAME:SPLIT:COLUMN.")
    return dataset(spec, root / name if is_saved(root / name) else name, split, column)


def dataset(title: str, place: Path | str, split: str, column: str) -> Stored:
    """A saved dataset (a path), or one of the hub (a name)."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise UsageError(
            f"{title}: to read it, the package datasets is needed; install it with: pip install 'calotype[train]'."
        ) from None
    try:
        if isinstance(place, Path):
            loaded = datasets.load_from_disk(str(place))
        else:
            loaded = datasets.load_dataset(place, split=split or "train")
    except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise UsageError(f"{title}: this dataset can't be loaded ({first}); check its name and split.") from error
    rows = _split(title, loaded, split) if isinstance(place, Path) else loaded
    columns = [key for key, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise UsageError(f"{title}: no column of this dataset holds pictures; give another dataset.")
    if column and column not in columns:
        raise UsageError(f"{title}: there are no pictures in a column {column}; give one of {', '.join(columns)}.")
    column = column or columns[0]
    # undecoded, so that orientation, profiles and alpha are treated as they are everywhere
    encoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return Stored(
        title, Names(f"row {i}" for i in range(len(rows))), partial(_row, encoded, column),
        beside=partial(_beside, rows, column),
    )  # fmt: skip


def _row(rows: Any, column: str, i: int) -> IO[bytes]:
    value = rows[i][column]
    if value is None:
        raise EOFError("there is no picture in this row")
    return io.BytesIO(value["bytes"]) if value["bytes"] is not None else Path(value["path"]).open("rb")


def _beside(rows: Any, column: str) -> Beside:
    told = str(getattr(rows, "_fingerprint", ""))

    def values(name: str) -> Sequence[Any] | None:
        if name == column or name not in rows.features:
            return None
        return cast("Sequence[Any]", rows.with_format(None).select_columns([name])[name][:])

    return Beside(lambda i: told and f"{told} {i}", column=values)


def _split(title: str, saved: Any, split: str) -> Any:
    """One split of what `load_from_disk` gave."""
    if not isinstance(saved, dict):
        if split:
            raise UsageError(f"{title}: this dataset was saved without splits; leave {split} out.")
        return saved
    split = split or ("train" if len(saved) > 1 else next(iter(saved), "train"))
    if split not in saved:
        raise UsageError(f"{title}: there is no split {split} in this dataset; give one of {', '.join(saved)}.")
    return saved[split]
