"""What a source says of its pictures: captions and labels. No torch.

In this order: a line of ``metadata.jsonl`` in the picture's folder or above (with ``file_name``, as Hugging Face's
imagefolder has it); a ``.txt`` or ``.caption`` of the picture's name; a ``.json`` of its name, as in WebDataset's
samples, where a ``.cls`` is a label; columns of a dataset. Without a label of its own, a picture has the name of the
folder it lies in, if that was asked for.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from calotype.errors import UsageError
from calotype.sources import MOST_TEXT, Beside
from calotype.texts import TextError, json_table

Words = tuple[str | None, str | None]
"""Caption and label."""

CAPTIONS = ("caption", "text", "prompt", "txt", "description")  # keys and columns, the first that there is
LABELS = ("label", "class", "cls")
_TAR = re.compile(r"\.(tar(\.\w+)?|tgz)$", re.IGNORECASE)


def words(names: Sequence[str], beside: Beside, *, folders: bool = False) -> Callable[[int], Words]:
    """What gives the caption and the label of each picture; threads may ask it.

    Args:
        names: of all pictures.
        folders: a picture without a label has the name of the folder it lies in.
    """
    if not beside.texts:
        captions, labels = (_column(beside, keys) for keys in (CAPTIONS, LABELS))
        if captions is not None or labels is not None:
            return lambda i: (_text(captions[i]) if captions else None, _text(labels[i]) if labels else None)
    lines = _Lines(beside.texts)

    def of(i: int) -> Words:
        caption, label = _beside(PurePosixPath(names[i]), beside.texts, lines)
        if label is None and folders:
            label = _folder(PurePosixPath(names[i]))
        return caption, label

    return of


def _folder(name: PurePosixPath) -> str | None:
    """The folder that a picture lies in; a tar among several is none."""
    above = name.parent
    return None if len(above.parts) == 1 and _TAR.search(above.name) else above.name or None


def _column(beside: Beside, keys: Sequence[str]) -> Sequence[Any] | None:
    return next((found for key in keys if (found := beside.column(key)) is not None), None)


def _beside(name: PurePosixPath, texts: Mapping[str, Callable[[], bytes]], lines: _Lines) -> Words:
    caption, label = lines.of(name)
    first = name.with_name(name.name.partition(".")[0] or name.name)  # as WebDataset names what belongs together
    for stem in dict.fromkeys((name.with_suffix(""), first)):
        for suffix in (".txt", ".caption"):
            if caption is None and (read := texts.get(f"{stem}{suffix}")):
                caption = _plain(read())
        if label is None and (read := texts.get(f"{stem}.cls")):
            label = _plain(read())
        if (caption is None or label is None) and (read := texts.get(f"{stem}.json")):
            told = _of_table(_table(read()))
            caption, label = (told[0] if caption is None else caption), (told[1] if label is None else label)
    return caption, label


class _Lines:
    """What metadata.jsonl of folders say, each read once."""

    def __init__(self, texts: Mapping[str, Callable[[], bytes]]) -> None:
        self._files = {PurePosixPath(name).parent: texts[name] for name in texts
                       if name.rpartition("/")[2] == "metadata.jsonl"}  # fmt: skip
        self._read: dict[PurePosixPath, dict[str, Words]] = {}
        self._lock = threading.Lock()

    def of(self, name: PurePosixPath) -> Words:
        if self._files:
            for folder in name.parents:
                if folder in self._files:
                    with self._lock:  # threads ask, and one of them reads
                        lines = self._of(folder)
                    if found := lines.get(str(name.relative_to(folder))):
                        return found
        return None, None

    def _of(self, folder: PurePosixPath) -> dict[str, Words]:
        if folder not in self._read:
            content = self._files[folder]()
            if len(content) >= MOST_TEXT:  # it was cut
                raise UsageError(
                    f"{folder / 'metadata.jsonl'}: this file has more than the {MOST_TEXT:,} bytes that are read of "
                    "one; give each folder of pictures a metadata.jsonl of its own."
                )
            found = self._read[folder] = {}
            for line in content.splitlines():
                told = _table(line)
                if isinstance(file := told.get("file_name"), str):
                    found[str(PurePosixPath(file))] = _of_table(told)
        return self._read[folder]


def _of_table(told: Mapping[str, Any]) -> Words:
    caption, label = (
        next((text for key in keys if (text := _text(told.get(key))) is not None), None) for keys in (CAPTIONS, LABELS)
    )
    return caption, label


def _table(content: bytes) -> dict[str, Any]:
    """Of a JSON object; nothing of what is none, since other programs' files may stand beside pictures."""
    try:
        return json_table(content, finite=False)
    except TextError:
        return {}


def _text(value: Any) -> str | None:
    """A text, or a number as one; of several texts the first. NaN, as tables have it where there is none, is none."""
    if isinstance(value, list | tuple):
        value = next(iter(value), None)
    if isinstance(value, bytes):
        return _plain(value)
    if isinstance(value, bool) or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value) if isinstance(value, str | int | float) else None


def _plain(content: bytes) -> str:
    return content.decode("utf-8-sig", "replace").strip()
