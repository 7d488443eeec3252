"""Pictures with names: what a drawing model is trained on, and how a prompt is made of a name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from calotype.addresses import at_once, is_address, listed, local_path
from calotype.errors import PictureError, StorageError, UsageError
from calotype.files import refusal
from calotype.pixels import from_array, read_picture, to_pil
from calotype.temporaries import temporary_folder
from calotype.texts import TextError, is_file_name, json_table, made, shown
from calotype.vae import VAE

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
    path = folder / "captions.jsonl"
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; it has a line for each picture, with its file and its name.")
    content = path.read_bytes().rstrip()
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


@contextmanager
def at_hand(data: str | Path, folder: Path) -> Iterator[Path]:
    """The folder with captions.jsonl; what lies at an address is in a folder of its own, as long as the block goes.

    Args:
        data: a folder, or its address.
        folder: where what is fetched lies.

    Raises:
        UsageError: if there are no captions at the address, or pictures are missing there.
        RemoteError: if its server does not answer.
    """
    here = local_path(str(data)) if is_address(data) else Path(data)
    if here is not None:
        yield here
        return
    files = dict(listed(str(data)))
    with temporary_folder(folder) as fetched:

        def fetch(name: str) -> None:
            if name not in files:
                raise UsageError(f"{data}: {name} is not there; a drawing model needs captions.jsonl and its pictures.")
            try:
                (fetched / name).parent.mkdir(parents=True, exist_ok=True)
                with files[name].whole() as file:
                    (fetched / name).write_bytes(file.read())
            except PictureError as error:
                raise UsageError(f"{data}: {name}: {error}") from error
            except OSError as error:
                raise StorageError(refusal(folder, error)) from None

        fetch("captions.jsonl")
        for _ in at_once(fetch, [one.file for one in read_captions(fetched)]):
            pass
        yield fetched


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


def latents_of(vae: VAE, folder: Path, captions: list[Caption], size: int, track: Any) -> Tensor:
    """The model latents (of the posterior's mode) of all pictures, made `size` pixels wide and high: [N, C, h, w].

    Transparent pictures are laid on white.

    Raises:
        PictureError: if a picture is missing or damaged.
    """
    made = []
    for caption in track(captions):
        small = shown_small(folder / caption.file, size)
        raw = vae.encode(from_array(np.asarray(small)[None])).mode()
        made.append(vae.latent_format.to_model(raw.float()))
    return torch.cat(made)


def shown_small(path: Path, size: int) -> Image.Image:
    """A picture on white, scaled (Lanczos) to a square of `size` pixels a side.

    Raises:
        PictureError: if it is missing or damaged.
    """
    picture = to_pil(read_picture(path).pixels)
    return picture.resize((size, size), Image.Resampling.LANCZOS)
