"""Latent formats by name, for latents that come without a VAE."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from calotype.errors import UsageError
from calotype.families import SPACES
from calotype.latents import (
    KNOWN,
    MODEL,
    LatentFormat,
    Latents,
    PackedUntold,
    Space,
    carried,
    is_model,
    latent_format,
    same_as_model,
    space_of,
)

FLUX2 = PackedUntold(name="flux2", channels=32)


def _formats() -> Iterator[LatentFormat]:
    yield from KNOWN.values()
    yield FLUX2


def called(name: str, channels: int) -> LatentFormat:
    """The latent format of that name; ``model:NAME`` is of raw latents that are NAME's model latents, as a TAESD's.

    Args:
        channels: of the latents, which ``none`` takes as they are.

    Raises:
        UsageError: there is none.
    """
    if name == "none":
        return latent_format(name, channels)
    found = next((one for one in _formats() if one.name == name.removeprefix(MODEL)), None)
    if found is None:
        names = ", ".join([*(one.name for one in _formats()), "none"])
        raise UsageError(f"There is no latent format {name!r}; choose one of {names}.")
    return same_as_model(found.name, found.channels) if name.startswith(MODEL) else found


def as_published(latents: Latents, space: Space) -> Tensor:
    """Latents [C, h, w], raw or model, with the numbers that their format is published with, as other programs have it.

    A TAESD's raw latents are model latents already.

    Raises:
        UsageError: the format is called after a published one and has other numbers.
    """
    if space == "model":
        return latents.to_model().tensor
    format_ = latents.format
    if space_of(format_) is None:
        raise UsageError(
            f"These latents are of a format called {format_.name!r} with other numbers than those it is published "
            f"with, which another program could not know; leave out --to (to=)."
        )
    known = KNOWN.get(format_.name)
    if known is None and is_model(format_):  # FLUX.2's statistics stand among its VAE's weights alone
        raise UsageError(
            f"Raw latents of format {format_.name!r} are asked for, and these are scaled by statistics among another "
            "VAE's weights; take that one."
        )
    return carried(latents.to_raw().tensor[None], format_, known or format_)[0]


def factor(name: str) -> int:
    """How many pixels a raw latent of a format stands for, along each side."""
    known = SPACES.get(name)
    return known.factor if known else 8  # "none" is of the VAE that decodes them, which knows its own


def fitting(channels: int, space: Space | None) -> list[str]:
    """Names of the formats whose latents have so many channels.

    Args:
        space: of the latents; None: either.
    """
    return [
        one.name
        for one in _formats()
        if (space != "model" and one.channels == channels)
        or (space != "raw" and one.channels * one.patch**2 == channels)
    ]
