"""Any number of VAEs on the same pictures: measured, and kept in a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from calotype import __version__
from calotype.engine.memory import give_back
from calotype.errors import PictureError, UsageError
from calotype.evaluate.alpha import APART
from calotype.evaluate.decoders import rows_key
from calotype.evaluate.measure import Box, Original, Taken, Tools, measure, pixels_sha256, reference
from calotype.evaluate.protocol import Protocol
from calotype.evaluate.sets import require_enough
from calotype.evaluate.store import REFERENCE, Store
from calotype.pixels.channels import NAMES
from calotype.steps import Direction
from calotype.vae import VAE

Array = NDArray[np.uint8]  # a picture: [H, W, P], levels


DIRECTIONS: tuple[Direction, ...] = ("encode", "decode")  # in the order in which they are timed
KEPT = 2**21  # pixels of a picture at most of which features are kept for several VAEs
LISTED = 5  # names at most in a sentence


class Pictures(Interface):
    """Pictures by number, uint8 [H, W, 3] or with alpha [H, W, 4]; see `calotype.sources.Pictures`."""

    @property
    def names(self) -> Sequence[str]:
        """What they are called."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> Array:
        """The picture with number `i`: [H, W, P], uint8."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, on what, and how.

    Attributes:
        vaes: by their labels, in the order in which they are shown; where there is an encoder, the decoders.
        encoder: the VAE whose latents all of `vaes` decode, of which it is the first; None: each its own.
        notices: what is to be said of the VAEs.
        pictures: all of them.
        protocol, tools: how it is measured, and with what.
        boxes: subset -> picture's name -> parts of it, in pixels of the picture as prepared.
    """

    vaes: Mapping[str, VAE]
    pictures: Pictures
    protocol: Protocol
    tools: Tools
    boxes: Mapping[str, Mapping[str, Sequence[Box]]] = field(default_factory=dict)
    encoder: VAE | None = None
    notices: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """In what pictures are compared: what all VAEs have, grey (1), RGB (3) or RGBA (4)."""
        return min(vae.picture_channels for vae in self.vaes.values())

    @cached_property
    def keys(self) -> dict[str, str]:
        """Under what rows of each VAE are kept, by label: they differ where figures do."""
        return {label: rows_key(self.encoder or vae, vae) for label, vae in self.vaes.items()}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of `tools` that any of the VAEs can have."""
        rgba = any(vae.picture_channels == 4 for vae in self.vaes.values())
        return tuple(key for key in self.tools.metrics if rgba or key not in APART)

    @property
    def text(self) -> str:
        """The protocol in words, and in what pictures are compared where that is not RGB."""
        compared = {1: ", in grey (luma)", 4: ", RGBA over white and over black"}
        through = (
            "" if self.encoder is None else f"latents of {next(iter(self.vaes))} through {len(self.vaes)} decoders, "
        )
        return f"{through}{self.protocol}{compared.get(self.channels, '')}"

    def settings(self) -> dict[str, Any]:
        """What decides the figures, beside VAEs, pictures and what else is measured of them."""
        return {
            "calotype": __version__,
            "protocol": self.protocol.to_dict(),
            "channels": self.channels,
            "metrics": list(self.tools.metrics),
            "weights": {key: self.tools.sha256[key] for key in self.tools.metrics if key in self.tools.sha256},
            "boxes": {subset: {k: list(map(list, v)) for k, v in of.items()} for subset, of in self.boxes.items()},
        }  # fmt: skip

    def require(self, numbers: Sequence[int]) -> None:
        """Checks, before pictures of these `numbers` are measured, that they are enough, and that sizes and boxes fit.

        Raises:
            UsageError: they do not.
        """
        widths = {name: extractor.width for name, extractor in self.tools.extractors.items()}
        require_enough(widths, self.tools.distances, len(numbers))
        names = self.pictures.names
        for i in numbers:
            parts = [(subset, box) for subset, of in self.boxes.items() for box in of.get(names[i], ())]
            if not parts and self.protocol.resize != "exact":
                continue
            try:
                picture = self.pictures.read(i)
            except PictureError:  # which is said when its turn comes
                continue
            self.protocol.require(picture, names[i])
            height, width = picture.shape[:2]
            for subset, box in parts:
                if box[2] > width or box[3] > height:
                    raise UsageError(
                        f"{names[i]} is {width} x {height} pixels, and the box {list(box)} of {subset} reaches beyond; "
                        f"give [left, top, right, bottom] inside it."
                    )

    def original(self, i: int, picture: Array) -> Original:
        """Picture `i`, [H, W, P], uint8, as prepared.

        Raises:
            UsageError: its size does not fit the protocol.
        """
        pixels = self.protocol.prepare(picture, self.pictures.names[i])
        return Original(pixels, self.channels, keep=len(self.vaes) > 1 and pixels[0].numel() <= KEPT)

    def task(self, label: str, i: int, original: Original) -> Taken:
        """Picture `i` through the VAE that is called `label`, or ("") its own features."""
        try:
            if label == REFERENCE:
                return reference(original, self.tools)
            return measure(self.vaes[label], original, self.protocol, self.tools, self._parts(i), self.encoder)
        finally:
            give_back()  # a large picture's maps are not to lie beside what the next one takes

    def key(self, i: int, sha256: str) -> str:
        """Under what rows of picture `i` are kept: a hash of its pixels' `sha256` and of parts compared alone."""
        parts = self._parts(i)
        return hashlib.sha256(f"{sha256} {json.dumps(parts)}".encode()).hexdigest() if parts else sha256

    def _parts(self, i: int) -> dict[str, Sequence[Box]]:
        name = self.pictures.names[i]
        return {subset: of[name] for subset, of in self.boxes.items() if name in of}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Pictures of a run, by their numbers.

    Attributes:
        hashes: of those that could be read.
        unread: why others could not.
        enlarged: width and height of those that the protocol makes larger.
    """

    hashes: Mapping[int, str]
    unread: Mapping[int, str] = field(default_factory=dict)
    enlarged: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def numbers(self) -> list[int]:
        """All, in their order."""
        return sorted({*self.hashes, *self.unread})

    def warnings(self, evaluation: Evaluation, store: Store) -> list[str]:
        """What a reader of the figures should know, in sentences."""
        found, names, protocol = [*evaluation.notices], evaluation.pictures.names, evaluation.protocol
        kinds = {label: NAMES[vae.picture_channels] for label, vae in evaluation.vaes.items()}
        if len(set(kinds.values())) > 1:
            least = NAMES[evaluation.channels]
            fewest = ", ".join(label for label, kind in kinds.items() if kind == least)
            found.append(
                f"All VAEs are compared in {least}, for the pictures of {fewest} have no more: figures of the others "
                f"say nothing of the rest of theirs."
            )
            if 4 in (vae.picture_channels for vae in evaluation.vaes.values()):
                found.append(
                    "VAEs of RGBA got the same pictures as the others, over white and opaque: their errors of alpha "
                    "say how far from opaque it came back."
                )
        if self.enlarged:
            sizes = [f"{names[i]} ({w} x {h})" for i, (w, h) in sorted(self.enlarged.items())]
            found.append(
                f"The protocol {protocol.name} enlarged {len(sizes):,} of {len(self.numbers):,} pictures, "
                f"which have a side shorter than {protocol.size} pixels: {_listed(sizes)}."
            )
        originals = store.rows(REFERENCE) if evaluation.tools.extractors else {}
        errors = {i: originals.get(evaluation.key(i, key), {}).get("error") for i, key in self.hashes.items()}
        if failed := [f"{names[i]} ({error.rstrip('.')})" for i, error in errors.items() if error]:
            many = f"{len(failed):,} of {len(self.numbers):,} pictures"
            found.append(f"Distances leave out {many}, whose own features failed: {_listed(failed)}.")
        return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")


Engine = Callable[[Evaluation, Iterable[tuple[str, int, Array]]], Iterator[tuple[str, int, Taken]]]
"""Does tasks (label, number and pixels of a picture) in any order, anywhere."""


def here(evaluation: Evaluation, tasks: Iterable[tuple[str, int, Array]]) -> Iterator[tuple[str, int, Taken]]:
    """Does `tasks` one after the other, here: a VAE's label, a picture's number, the picture [H, W, P], uint8."""
    at, original = -1, None
    for label, i, picture in tasks:
        if original is None or i != at:
            at, original = i, evaluation.original(i, picture)
        yield label, i, evaluation.task(label, i, original)


def run(
    evaluation: Evaluation,
    store: Store,
    numbers: Sequence[int],
    *,
    engine: Engine = here,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[str, int, Taken], None] = lambda label, i, taken: None,
) -> Seen:
    """Measures what is not there yet, of these pictures; what failed before is tried again.

    Args:
        numbers: of the pictures.
        progress: told how many of how many pairs of a VAE and a picture are there.
        watch: gets the label, the picture's number, and what was measured now.

    Raises:
        UsageError: a picture's size does not fit the protocol.
    """
    keys = {REFERENCE: REFERENCE} if evaluation.tools.extractors else {}
    keys |= evaluation.keys
    there = {label: _there(evaluation, store, key) for label, key in keys.items()}
    hashes: dict[int, str] = {}
    unread: dict[int, str] = {}
    enlarged: dict[int, tuple[int, int]] = {}
    done, total = 0, len(keys) * len(numbers)

    def tasks() -> Iterator[tuple[str, int, Array]]:
        nonlocal done
        for i in numbers:
            try:
                picture = evaluation.pictures.read(i)
            except PictureError as error:
                unread[i] = str(error)
                done += len(keys)
                progress(done, total)
                continue
            evaluation.protocol.require(picture, evaluation.pictures.names[i])
            hashes[i] = pixels_sha256(picture)
            if evaluation.protocol.enlarges(picture):
                enlarged[i] = picture.shape[1], picture.shape[0]
            for label in keys:
                if evaluation.key(i, hashes[i]) in there[label]:
                    done += 1
                    progress(done, total)
                else:
                    yield label, i, picture

    for label, i, taken in engine(evaluation, tasks()):
        store.put(keys[label], evaluation.key(i, hashes[i]), taken)
        watch(label, i, taken)
        done += 1
        progress(done, total)
    return Seen(hashes=hashes, unread=unread, enlarged=enlarged)


def _there(evaluation: Evaluation, store: Store, key: str) -> set[str]:
    """Pictures of which all that is asked for was measured, without an error."""
    found = {picture for picture, row in store.rows(key).items() if "error" not in row}
    tools = evaluation.tools
    return found.intersection(*(store.pictures(key, tools.kept(name)) for name in tools.extractors))
