"""Which label each picture has: by a file, by one that lies with the pictures, or by the folders they lie in."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from calotype.errors import UsageError
from calotype.texts import TextError, json_table, plain, shown, text_of

INSIDE = ("labels.jsonl", "labels.json")
FORM = 'a .json like {"a.png": "cat", "b.png": "dog"}, or a .jsonl with a line {"file": "a.png", "label": "cat"} each'


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Labels of pictures.

    Attributes:
        labels: one for each picture, None for one without; None where there are no labels at all.
        source: where they are from, in words.
        strange: what has a label and is not among the pictures.
        why: there are none, although there is a file for them; a sentence.
    """

    labels: tuple[str | None, ...] | None = None
    source: str = ""
    strange: tuple[str, ...] = ()
    why: str = ""


def labelling(
    names: Sequence[str],
    data: str | Path,
    file: Path | None = None,
    texts: Mapping[str, Callable[[], bytes]] | None = None,
) -> Labelling:
    """Labels for all pictures of a source.

    They are in `file`; or else in labels.jsonl or labels.json, which lies with the pictures; or else each picture's
    label is a folder it lies in, where there are at least two (the layout of torchvision's ImageFolder): the outermost
    that not all pictures share, or the innermost where the same name stands in several folders, so that in train/cat,
    train/dog and val/cat it is cat and dog. A file names pictures by their path, or by their name alone where only one
    has it.

    Args:
        names: as `sources.open_source` has them.
        data: the folder or archive they are in, or its address.
        file: one that is there, or the name of one in `data`; it must be right, while one that nobody named may be
            something else.
        texts: files that may hold labels, by name, where `data` is an address.

    Raises:
        UsageError: `file` is not there, is none of labels, or has none for these pictures; or nobody named one, and an
            archive holds several.
    """
    inside = partial(_among, texts, str(data)) if texts is not None else partial(_inside, Path(data))
    if file is not None:
        text = _text(file) if file.is_file() else inside(file.as_posix(), named=True)
        if text is None:
            raise UsageError(f"{file}: there is no such file, and none in {data}; give labels as {FORM}.")
        return _matched(names, _parsed(str(file), text, file.suffix), str(file))
    for name in INSIDE:
        if (text := inside(name)) is not None:
            title = f"{name} in {data}"
            try:
                return _matched(names, _parsed(title, text, Path(name).suffix), title)
            except UsageError as error:
                return Labelling(why=str(error))
    folders = _folders(names)
    if len(set(folders) - {None}) > 1:
        return Labelling(labels=folders, source="the folders that the pictures lie in")
    return Labelling()


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: this file can't be read ({error.strerror}); check its permissions.") from None


def _among(texts: Mapping[str, Callable[[], bytes]], data: str, name: str, *, named: bool = False) -> bytes | None:
    """One of the texts at an address; in a zip it may lie in an outermost folder."""
    zipped = data.lower().endswith(".zip")
    found = [one for one in texts if one == name or (zipped and one.split("/", 1)[-1] == name)]
    return texts[_one_of(found, data, name if named else "")]() if found else None


def _one_of(found: Sequence[str], data: str | Path, named: str) -> str:
    if len(found) > 1 and named not in found:
        raise UsageError(f"{data}: {' and '.join(sorted(found)[:2])} are both in it; name one with --labels.")
    return min(found, key=len)


def _inside(data: Path, name: str, *, named: bool = False) -> bytes | None:
    """A file of a folder or a zip, or of an outermost folder in a zip; a path that people named is only itself."""
    if data.is_dir():
        return _text(data / name) if (data / name).is_file() else None
    if not zipfile.is_zipfile(data):
        return None
    with zipfile.ZipFile(data) as archive:
        found = [one for one in archive.namelist() if one == name or one.split("/", 1)[-1] == name]
        if not found:
            return None
        member = _one_of(found, data, name if named else "")
        try:
            return archive.read(member)
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:
            raise UsageError(f"{data}: {name} in it can't be read ({error}); give --labels.") from None


def _parsed(title: str, content: bytes, suffix: str) -> dict[str, str]:
    """Labels by picture."""
    try:
        text = text_of(content)
        pairs: list[tuple[Any, Any]] = []
        if suffix == ".jsonl":
            rows = [json_table(line) for line in text.splitlines() if line.strip()]
            pairs = [(row.get("file"), row.get("label")) for row in rows]
        else:
            pairs = list(json_table(text).items())
        if not pairs:
            raise TextError("there is none")
        if wrong := [pair for pair in pairs if not _is_pair(*pair)]:
            raise TextError(f"{shown(wrong[0][0])} has the label {shown(wrong[0][1])}")
    except TextError as error:
        raise UsageError(f"{title}: labels must be JSON: {FORM} ({error}).") from None
    found: dict[str, str] = {}
    for name, label in pairs:
        if found.setdefault(name, str(label)) != str(label):
            raise UsageError(
                f"{title}: {plain(name)} has two labels, {plain(found[name])} and {plain(str(label))}; give it one."
            )
    return found


def _is_pair(name: Any, label: Any) -> bool:
    return isinstance(name, str) and isinstance(label, str | int) and not isinstance(label, bool) and label != ""


def _matched(names: Sequence[str], known: dict[str, str], title: str) -> Labelling:
    paths = set(names)
    short = Counter(PurePosixPath(name).name for name in names)
    used: set[str] = set()
    labels: list[str | None] = []
    for name in names:
        key = name if name in known else PurePosixPath(name).name
        if key not in known or (key != name and key in paths):
            labels.append(None)
            continue
        if key != name and short[key] > 1:
            raise UsageError(f"{title}: {key} is the name of {short[key]} pictures; give their paths, as in {name}.")
        used.add(key)
        labels.append(known[key])
    if not used:
        raise UsageError(
            f"{title}: none of the pictures has a label there; its names must be those of the pictures, such as "
            f"{names[0]}."
        )
    return Labelling(labels=tuple(labels), source=title, strange=tuple(key for key in known if key not in used))


def _folders(names: Sequence[str]) -> tuple[str | None, ...]:
    """For each picture one of its folders, as `labelling` says; None for those in no folder."""
    # a shard of several is no class
    paths = [[part for part in PurePosixPath(name).parts[:-1] if not part.lower().endswith(".tar")] for name in names]
    while paths and all(paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    inner = Counter(name for *_, name in {tuple(path) for path in paths if path})
    which = -1 if any(times > 1 for times in inner.values()) else 0
    return tuple(path[which] if path else None for path in paths)
