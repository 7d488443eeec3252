"""A picture changed by words, and put back exactly where nothing was to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from calotype.draw.pipeline import Drawer, OnStep, Settings
from calotype.edit.blend import pasted
from calotype.errors import NonFiniteError, UsageError
from calotype.latents import Latents
from calotype.pixels import PictureRows, pad
from calotype.rows import write_rows
from calotype.vae import VAE


def latent_mask(vae: VAE, soft: Tensor) -> Tensor:
    """A mask of pixels as one of latents: what touches a pixel that is to change, is drawn.

    Args:
        soft: [H, W] in [0, 1], as `edit.blend.feathered` gives it.

    Returns:
        [h, w] of the padded picture's latents, each the largest value of its pixels.
    """
    padded, _ = pad(soft[None], vae.factor * vae.latent_format.patch)
    return functional.max_pool2d(padded, vae.factor)[0]


def redrawn(
    drawer: Drawer,
    source: Latents,
    prompts: Sequence[str],
    seed: int,
    settings: Settings = Settings(),
    *,
    strength: float = 0.6,
    mask: Tensor | None = None,
    on_step: Callable[[int], OnStep] | None = None,
) -> Iterator[Latents]:
    """Stages of a picture: each prompt changes the latents that the one before left, which were never decoded.

    So what a prompt does not touch is as it was, and the picture does not wear out by round trips through pixels.

    Args:
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
    soft: Tensor,
    out: Path,
    *,
    text: Mapping[str, str] | None = None,
    memory: int | str | None = None,
) -> Path:
    """Writes what was redrawn with a mask; where that is 0 the file holds the original's levels, byte by byte.

    Where it is 1/2 and more it holds what was decoded, and a straight mixture between, so that there is no edge.

    Args:
        latents: of the original's size.
        soft: [H, W] in [0, 1], as `edit.blend.feathered` gives it.
        out: its suffix names the format; .jpg and .avif do not keep levels.
        text: written beside the picture, where its format has a place for it.
        memory: as for `VAE.decode`.

    Raises:
        UsageError: if sizes differ, or the suffix is unknown.
        PictureError: if the disk or the encoder refuses it.
    """
    height, width = original.size
    if (latents.padding.height, latents.padding.width) != (height, width) or tuple(soft.shape) != (height, width):
        raise UsageError(f"The picture is {width}x{height}; its mask and latents must be of that size.")

    def rows() -> Iterator[Tensor]:
        top = 0
        for part in vae.decode_rows(vae.own(latents), memory=memory):
            bottom = min(top + part.shape[1], height)
            if bottom > top:  # the last rows may all be padding
                decoded = part[:, : bottom - top, :width].cpu()
                yield pasted(decoded, original.rows(top, bottom), decoded, soft[top:bottom])
            top = bottom

    if vae.may_widen:
        with suppress(NonFiniteError):
            return write_rows(out, rows(), width=width, height=height, text=text)
        vae.widen()
    return write_rows(out, rows(), width=width, height=height, text=text)
