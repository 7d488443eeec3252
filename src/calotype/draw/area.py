"""What a mask selects, for models that draw in latents: whole latents before the model, pixels again after it.

A pixel is decoded from its own latent and those around it: with the latents alone that a line a pixel wide touches, it
changes by half of what it does where all is drawn. So the latents next to them are drawn too. What is shown of it is
decided by pixels: all of what the mask selects, and less and less outside it.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from calotype.edit.masks import MaskSource, read_mask
from calotype.errors import UsageError


def whole_latents(mask: Tensor, factor: int, patch: int = 1) -> Tensor:
    """The latents that are drawn anew: all that a selected pixel touches, or one nearer to them than a latent's side.

    Args:
        mask: [H, W], above 0 for what is selected; pictures are padded at the bottom and the right.
        factor: pixels along a side that one latent stands for.
        patch: latents along a side that the model takes at once.

    Returns:
        [h, w] of the padded picture's latents, in units of patches: 1.0 where they are drawn, 0.0 elsewhere.
    """
    cell = factor * patch
    height, width = mask.shape
    selected = (mask > 0).float()[None, None]
    # what is added to a picture is drawn as its edge is
    padded = functional.pad(selected, (0, -width % cell, 0, -height % cell), mode="replicate")
    for kernel, reach in (((2 * factor + 1, 1), (factor, 0)), ((1, 2 * factor + 1), (0, factor))):
        padded = functional.max_pool2d(padded, kernel, 1, reach)
    return functional.max_pool2d(padded, cell)[0, 0]


def pasted(drawn: Image.Image, original: Image.Image, part: Tensor) -> Image.Image:
    """As much of what was drawn as `shown` says, over the original; exactly these at 1 and 0.

    Args:
        drawn, original: of one size and mode.
        part: [H, W] in [0, 1].
    """
    weight = part.numpy()[:, :, None]
    mixed = np.asarray(original) * (1 - weight) + np.asarray(drawn) * weight
    return Image.fromarray(np.floor(mixed + np.float32(0.5)).astype(np.uint8))


def thin(mask: Tensor, factor: int, patch: int = 1) -> str | None:
    """A sentence about a mask that is thinner than a latent wherever it is; None of others.

    Args:
        mask, factor, patch: as for `whole_latents`.
    """
    cell = factor * patch
    height, width = mask.shape
    left_out = (mask == 0).float()[None]
    window = min(cell, height), min(cell, width)
    if functional.max_pool2d(left_out, window, 1).min() == 0:
        return None
    return (
        f"The mask is nowhere as wide as a latent ({cell}x{cell} pixels), which is the least that is drawn: whole "
        f"latents were drawn around it, and what it selects is cut out of them; widen it if it shows too little."
    )


def levels_of(mask: MaskSource | Tensor) -> tuple[Tensor, list[str]]:
    """A mask's levels, uint8 [H, W], and what is to be said of it.

    Raises:
        PictureError, UsageError: as `read_mask`, or if a tensor is no mask.
    """
    if not isinstance(mask, Tensor):
        read = read_mask(mask)
        return read.levels, list(read.notices)
    if mask.ndim != 2:
        raise UsageError(f"A mask is [H, W], not {list(mask.shape)}.")
    mask = mask.detach().cpu()
    if mask.dtype == torch.uint8 and mask.max() > 1:
        return mask, []
    if not ((mask >= 0) & (mask <= 1)).all():
        raise UsageError("A mask holds numbers from 0, for what is kept, to 1, for what is redrawn, or uint8 levels.")
    return mask.float().mul(255).round().to(torch.uint8), []
