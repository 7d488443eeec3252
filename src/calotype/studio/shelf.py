"""What the studio was given on the command line; pages refer to it by number, so they can name no other file."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calotype.addresses import is_address
from calotype.errors import CalotypeError, CalotypeWarning, UsageError

if TYPE_CHECKING:
    from calotype.vae import VAE

BUILTIN = "builtin"  # of VAEs and of what draws


@dataclass(frozen=True)
class Given:
    """One argument.

    Attributes:
        shown: as it was given, and as commands that are shown have it.
        argument: as commands get it that run in another folder.
    """

    shown: str
    argument: str

    @classmethod
    def weights(cls, text: str) -> Given:
        """A path, or the name of a preset; which of them it is, is told as `calotype.load` tells it."""
        named = text == BUILTIN or not Path(text).exists()
        return cls(text, text if named else str(Path(text).resolve()))

    @classmethod
    def pictures(cls, text: str) -> Given:
        """A path of pictures, or their address."""
        return cls(text, text if is_address(text) else str(Path(text).resolve()))


@dataclass
class Shelf:
    """VAEs, folders of pictures and drawing models, and how to compute.

    Attributes:
        vaes: the first is the one that tabs with a single one begin with.
        folders: of pictures, for measuring and directions.
        models: that draw; the first is the built-in one.
        memory: at most so much for a command, as `--memory` has it.
        device: as `--device` has it.
    """

    vaes: Sequence[Given]
    folders: Sequence[Given] = ()
    models: Sequence[Given] = (Given(BUILTIN, BUILTIN),)
    memory: str | None = None
    device: str | None = None
    _loaded: dict[int, VAE] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def vae(self, index: object) -> Given:
        """By its number.

        Raises:
            UsageError: there is none of that number.
        """
        return _at(self.vaes, index, "VAE")

    def folder(self, index: object) -> Given:
        """Likewise."""
        return _at(self.folders, index, "folder")

    def model(self, index: object) -> Given:
        """Likewise."""
        return _at(self.models, index, "model")

    def load(self, index: int) -> VAE:
        """A VAE in this process, loaded once; for what is to answer at once.

        Raises:
            WeightsError, UsageError: as `calotype.load`.
        """
        from calotype.vae import load

        given = self.vae(index)
        with self._lock:
            if index not in self._loaded:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", CalotypeWarning)  # commands say them
                    self._loaded[index] = load(given.argument, device=self.device)
            return self._loaded[index]

    def facts(self) -> dict[str, Any]:
        """What pages show of it; a VAE that can't be loaded says why."""
        from calotype import __version__
        from calotype.evaluate.lpips import at_hand

        vaes: list[dict[str, Any]] = []
        for i, given in enumerate(self.vaes):
            try:
                vae = self.load(i)
            except CalotypeError as error:
                vaes.append({"name": given.shown, "error": str(error)})
                continue
            vaes.append(
                {
                    "name": given.shown, "label": vae.name.removeprefix("./"), "factor": vae.factor,
                    "channels": vae.latent_channels, "picture_channels": vae.picture_channels, "enlarges": vae.enlarges,
                    "format": vae.loaded.format.name if vae.loaded.format else None,
                    "parts": sorted(vae.loaded.parts), "device": str(vae.device), "sha256": vae.sha256,
                }
            )  # fmt: skip
        return {
            "version": __version__, "vaes": vaes, "folders": [one.shown for one in self.folders],
            "models": [one.shown for one in self.models], "memory": self.memory,
            "lpips": [net for net in ("alex", "vgg") if at_hand(net)],
        }  # fmt: skip


def _at(things: Sequence[Given], index: object, what: str) -> Given:
    if type(index) is not int or not 0 <= index < len(things):
        raise UsageError(f"There is no {what} number {index!r} here; {len(things)} were given on the command line.")
    return things[index]
