"""Pictures with names: what a drawing model is trained on, and how a prompt is made of a name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from calotype.errors import UsageError
from calotype.texts import TextError, is_file_name, json_table, made, shown

LISTED = "captions.jsonl"
ARTICLES = ("a ", "the ")


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A picture and the words for it.

    Attributes:
        file: where it lies, from the folder of the captions on.
        name: what it is called.
        synonyms: other names of just this picture.
        keywords: words that have to do with it, and with others too.
        base: what it is a variant of; itself where it is none. Variants are seen less often.
    """

    file: str
    name: str
    synonyms: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    base: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)


def read_captions(folder: Path) -> list[Caption]:
    """Reads FOLDER/captions.jsonl: a JSON object a line, with `file`, `name` and what else a `Caption` has.

    Raises:
        UsageError: if the file is missing or empty, or a line lacks something.
    """
    path = folder / LISTED
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; it has a line for each picture, with its file and its name.")
    return captions_of(path.read_bytes(), str(path))


def captions_of(content: bytes, path: str) -> list[Caption]:
    """The lines of a captions.jsonl.

    Args:
        path: of it, for messages.

    Raises:
        UsageError: as `read_captions`.
    """
    content = content.rstrip()
    if not content:
        raise UsageError(f"{path} is empty; it has a line for each picture, with its file and its name.")
    captions = []
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            captions.append(_caption(json_table(line)))
        except TextError as error:
            raise UsageError(
                f"{path}, line {number}: expected is a JSON object with file and name, each a text, and where there are"
                f" any with synonyms and keywords, each a list of texts ({error})."
            ) from None
    return captions


def _caption(values: dict[str, Any]) -> Caption:
    known = {field.name for field in fields(Caption)}
    caption = made(Caption, {key: value for key, value in values.items() if key in known}, "it")
    for key in ("synonyms", "keywords"):
        if not isinstance(texts := getattr(caption, key), tuple) or not all(isinstance(one, str) for one in texts):
            raise TextError(f"{key} must be a list of texts, not {shown(values[key])}")
    for key in ("file", "name", "base"):
        if not isinstance(text := getattr(caption, key), str):
            raise TextError(f"{key} must be a text, not {shown(text)}")
    if not is_file_name(caption.file):
        raise TextError(f"file must be the name of a picture, not {shown(caption.file)}")
    return caption


def texts_sha256(captions: Sequence[Caption]) -> str:
    """Of all names, in their order."""
    return hashlib.sha256(json.dumps([one.name for one in captions]).encode()).hexdigest()


def is_variant(caption: Caption) -> bool:
    """Whether a picture is another one's variant, as a skin tone makes it."""
    return bool(caption.base) and caption.base != Path(caption.file).stem


def held_out(captions: list[Caption], share: float) -> list[Caption]:
    """The variants that training never sees: those whose file's sha256 begins below `share`.

    The picture they are variants of stays, and so do most of its other variants; so what is asked of the model is a
    combination of what it knows.
    """
    return [
        one
        for one in captions
        if is_variant(one) and int.from_bytes(hashlib.sha256(one.file.encode()).digest()[:4]) < share * 2**32
    ]


def weights_of(captions: list[Caption], variants: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """How often each picture is seen: once, and all variants of one picture together `variants` times; sums to 1."""
    counts: dict[str, int] = {}
    for one in captions:
        if is_variant(one):
            counts[one.base] = counts.get(one.base, 0) + 1
    often = np.array([variants / counts[one.base] if is_variant(one) else 1.0 for one in captions])
    shares: np.ndarray[tuple[int], np.dtype[np.float64]] = often / often.sum()
    return shares


def prompt_for(caption: Caption, choose: np.random.Generator) -> str:
    """A prompt for a picture, as somebody may type it.

    Half are the name, a quarter one of its synonyms, an eighth the name with a keyword, an eighth keywords alone;
    some have an article before them.
    """
    kind = choose.random()
    keywords = list(caption.keywords)
    if kind < 0.75 or not keywords:
        names = caption.synonyms if kind >= 0.5 and caption.synonyms else (caption.name,)
        prompt = names[choose.integers(len(names))]
    elif kind < 0.875:
        prompt = f"{caption.name}, {keywords[choose.integers(len(keywords))]}"
    else:
        count = min(len(keywords), int(choose.integers(1, 4)))
        prompt = " ".join(keywords[i] for i in choose.choice(len(keywords), count, replace=False))
    article = choose.random()
    return f"{ARTICLES[0 if article < 0.15 else 1]}{prompt}" if article < 0.2 else prompt
