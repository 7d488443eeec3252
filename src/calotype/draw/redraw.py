"""A picture changed by words, and put back exactly where nothing was to change."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from calotype.draw.area import thin, whole_latents
from calotype.draw.pipeline import Drawer, OnStep, Settings
from calotype.errors import CalotypeWarning, NonFiniteError, UsageError
from calotype.latents import Latents
from calotype.pixels import PictureRows, to_uint8
from calotype.rows import write_rows
from calotype.vae import VAE


def latent_mask(vae: VAE, mask: Tensor) -> Tensor:
    """A mask of pixels as one of model latents: see `area.whole_latents`. Warns of one thinner than a latent.

    Args:
        mask: [H, W], above 0 for what is selected, as in `edit.masks.Mask.levels`.

    Returns:
        [h, w] of the padded picture's model latents, 1.0 for those that are drawn anew and 0.0 for those that are kept.
    """
    notice = thin(mask, vae.factor, vae.latent_format.patch)
    if notice is not None:
        warnings.warn(notice, CalotypeWarning, stacklevel=2)
    return whole_latents(mask, vae.factor, vae.latent_format.patch)


def redrawn(
    drawer: Drawer,
    source: Latents,
    prompts: Sequence[str],
    seed: int,
    settings: Settings | None = None,
    *,
    strength: float = 0.6,
    mask: Tensor | None = None,
    on_step: Callable[[int], OnStep] | None = None,
) -> Iterator[Latents]:
    """Stages of a picture: each prompt changes the latents that the one before left, which were never decoded.

    So what a prompt does not touch is as it was, and the picture does not wear out by round trips through pixels.

    Args:
        settings: those that are usual for the model where none are given.
        mask: of latents, see `latent_mask`.
        on_step: stage, from 0 -> what is called after its steps.
        seed: of the first stage; the others count on.

    Raises:
        UsageError: no prompts, or as `Drawer.redraw`.
    """
    if not prompts:
        raise UsageError("There is no prompt; give at least one.")
    for stage, prompt in enumerate(prompts):
        source = drawer.redraw(
            source, prompt, seed + stage, settings,
            strength=strength, mask=mask, on_step=on_step(stage) if on_step else None,
        )  # fmt: skip
        yield source


def write_redrawn(
    vae: VAE,
    latents: Latents,
    original: PictureRows,
    part: Tensor,
    out: Path,
    *,
    text: Mapping[str, str] | None = None,
    memory: int | str | None = None,
) -> Path:
    """Writes what was redrawn, as much of it as is to be shown; where that is 0 the file holds the original's levels.

    Args:
        latents: of the original's size.
        part: [H, W] in [0, 1], as `edit.feather.shown` gives it: 1 for what was decoded, 0 for the original's bytes.
        out: its suffix names the format; .jpg and .avif do not keep levels.
        text: written beside the picture, where its format has a place for it.
        memory: as for `VAE.decode`.

    Raises:
        UsageError: if sizes differ, or the suffix is unknown.
        PictureError: if the disk or the encoder refuses it.
    """
    height, width = original.size
    if (latents.padding.height, latents.padding.width) != (height, width) or tuple(part.shape) != (height, width):
        raise UsageError(f"The picture is {width}x{height}; its mask and latents must be of that size.")

    def mixed() -> Iterator[Tensor]:
        top = 0
        for rows in vae.decode_rows(vae.own(latents), memory=memory):
            bottom = min(top + rows.shape[1], height)
            if bottom > top:  # the last rows may all be padding
                decoded = rows[:, : bottom - top, :width].float().cpu()
                yield to_uint8(original.rows(top, bottom).lerp(decoded, part[top:bottom]))
            top = bottom

    if vae.may_widen:
        with suppress(NonFiniteError):
            return write_rows(out, mixed(), width=width, height=height, text=text)
        vae.widen()
    return write_rows(out, mixed(), width=width, height=height, text=text)
