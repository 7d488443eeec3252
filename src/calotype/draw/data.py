"""Captioned pictures as what a drawing model is trained on: listed in a file, or with texts beside them."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from calotype.addresses import is_address, listed, local_path, look_up
from calotype.cache.words import words
from calotype.draw.captions import LISTED, Caption, captions_of, read_captions, texts_sha256
from calotype.errors import PictureError, UsageError, WeightsError
from calotype.pixels import from_array, read_picture, to_pil
from calotype.sources import files_of, open_source
from calotype.tensor_files import write_safetensors
from calotype.vae import VAE
from calotype.weights.container import open_container

Track = Callable[[Iterable[Any]], Iterable[Any]]
TOGETHER, PIXELS = 32, 2**22  # pictures that are encoded at once, and pixels of them; each as if it were alone


class Captioned(ABC):
    """Pictures with captions.

    Attributes:
        captions: of all pictures, in their order.
        files: that are read.
        sha256: of what says the captions.
    """

    captions: list[Caption]
    files: Sequence[Path]
    sha256: str

    @abstractmethod
    def encoded(self, i: int) -> bytes:
        """The file of a picture.

        Raises:
            PictureError: it can't be read.
        """

    @abstractmethod
    def small(self, i: int, size: int) -> Image.Image:
        """A picture as `shown_small` makes it.

        Raises:
            PictureError: it is missing or damaged.
        """

    def latents(self, vae: VAE, size: int, track: Track = lambda items: items) -> Tensor:
        """Model latents (of the posterior's mode) of all pictures, `size` pixels wide and high: [N, C, h, w].

        Raises:
            PictureError: if a picture is missing or damaged.
        """
        return self.latents_of(range(len(self.captions)), vae, size, track)

    def latents_of(self, which: Sequence[int], vae: VAE, size: int, track: Track = lambda items: items) -> Tensor:
        """The same of some of them."""
        made: list[Tensor] = []
        together = max(1, min(TOGETHER, PIXELS // size**2))
        waiting: list[np.ndarray[Any, Any]] = []

        def encode() -> None:
            made.append(vae.latent_format.to_model(vae.encode(from_array(np.stack(waiting))).mode().float()))
            waiting.clear()

        for i in track(which):
            waiting.append(np.asarray(self.small(i, size)))
            if len(waiting) == together:
                encode()
        if waiting:
            encode()
        return torch.cat(made)

    def kept(self, vae: VAE, size: int, path: Path, track: Track) -> Tensor:
        """As `latents`, kept in a file and made again where that is of something else."""
        digest = hashlib.sha256(f"{vae.sha256} {size} {RULES}".encode())
        for i in range(len(self.captions)):
            digest.update(hashlib.sha256(self.encoded(i)).digest())
        key = digest.hexdigest()
        with suppress(WeightsError):  # a damaged file is made again
            if path.exists() and open_container(path).metadata.get("of") == key:
                return load_file(path)["latents"]
        latents = self.latents(vae, size, track)
        write_safetensors(path, {"latents": latents}, {"of": key})
        return latents


class Listed(Captioned):
    """Pictures that FOLDER/captions.jsonl names.

    Raises:
        UsageError: as `read_captions`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.captions = folder, read_captions(folder)
        listed = folder / LISTED
        self.files = (listed, *(folder / one.file for one in self.captions))
        self.sha256 = hashlib.sha256(listed.read_bytes()).hexdigest()

    def encoded(self, i: int) -> bytes:
        """See `Captioned`; nothing of a picture that is not there, as is told when it is read."""
        path = self.folder / self.captions[i].file
        return path.read_bytes() if path.is_file() else b""

    def small(self, i: int, size: int) -> Image.Image:
        """See `Captioned`."""
        return shown_small(self.folder / self.captions[i].file, size)


class ListedAt(Captioned):
    """The same of a folder at an address.

    Raises:
        UsageError: as `read_captions`, or a picture is not there.
        RemoteError: its server does not answer.
    """

    def __init__(self, address: str) -> None:
        self.files, files = (), dict(listed(address))
        with files[LISTED].whole() as file:
            content = file.read()
        self.captions = captions_of(content, f"{address}/{LISTED}")
        if missing := [one.file for one in self.captions if one.file not in files]:
            raise UsageError(
                f"{address}: {missing[0]} is not there, and {LISTED} names it; put it there, or leave it out."
            )
        self._address, self._pictures = address, [files[one.file] for one in self.captions]
        self.sha256 = hashlib.sha256(content).hexdigest()

    def encoded(self, i: int) -> bytes:
        """See `Captioned`."""
        with self._refusing(i), self._pictures[i].whole() as file:
            return file.read()

    def small(self, i: int, size: int) -> Image.Image:
        """See `Captioned`."""
        with self._refusing(i):
            return shown_small(io.BytesIO(self.encoded(i)), size)

    @contextmanager
    def _refusing(self, i: int) -> Iterator[None]:
        try:
            yield
        except PictureError as error:
            name = f"{self._address}/{self.captions[i].file}"
            raise PictureError(str(error) if name in str(error) else f"{name}: {error}") from error


class Beside(Captioned):
    """Pictures of any source with a caption each, as `calotype cache make` finds it: beside them, or in a column.

    Raises:
        UsageError: there is no such source, or a picture has no caption.
    """

    def __init__(self, data: str | Path) -> None:
        self._source = open_source(data)
        names = self._source.names
        said = words(names, self._source.beside)
        texts = [said(i)[0] for i in range(len(names))]
        if lacking := [name for name, text in zip(names, texts, strict=True) if not text]:
            raise UsageError(
                f"{data}: {len(lacking):,} of {len(names):,} pictures have no caption, such as {lacking[0]}; put a "
                f"text of the same name beside each (photo.jpg, photo.txt), or name all in {LISTED}."
            )
        self.captions = [Caption(file=name, name=text) for name, text in zip(names, texts, strict=True) if text]
        self.files = tuple(files_of(data))
        self.sha256 = texts_sha256(self.captions)

    def encoded(self, i: int) -> bytes:
        """See `Captioned`."""
        with self._source.opened(i) as file:
            return file.read()

    def small(self, i: int, size: int) -> Image.Image:
        """See `Captioned`."""
        with self._source.opened(i) as file:
            return shown_small(io.BytesIO(file.read()), size)


def captioned(data: str | Path) -> Captioned:
    """What a folder, archive, dataset or address holds: by its captions.jsonl where it has one.

    Raises:
        UsageError: there are no pictures, or not all have captions.
        RemoteError: it is at an address, whose server does not answer.
    """
    folder = local_path(str(data)) if is_address(data) else Path(data)
    if folder is None:
        return ListedAt(str(data)) if look_up(f"{str(data).rstrip('/')}/{LISTED}") else Beside(data)
    return Listed(folder) if (folder / LISTED).is_file() else Beside(data)


RULES = "square, centre, lanczos"
"""What `shown_small` does; another text makes latents anew."""


def shown_small(file: Path | IO[bytes], size: int) -> Image.Image:
    """A picture on white, its largest square in the middle, scaled (Lanczos) to `size` pixels a side.

    Raises:
        PictureError: if it is missing or damaged.
    """
    picture = to_pil(read_picture(file).pixels)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    # cropped first: a resampling of a box looks beyond its sides
    return picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
