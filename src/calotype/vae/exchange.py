"""How latents pass from one VAE to another: one rule for all who read them (`latents.same_space`)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from calotype.damage import quoted
from calotype.errors import LatentsError
from calotype.latent_spaces import fitting
from calotype.latents import (
    KNOWN,
    NAMELESS,
    LatentFormat,
    Latents,
    Packed,
    PackedUntold,
    alike,
    carried,
    is_model,
    same_space,
    space_of,
)
from calotype.pixels import Padding
from calotype.vae.tensors import Coder


def adopted(vae: Coder, latents: Latents, any_vae: bool = False) -> tuple[Latents, str]:
    """Latents as raw latents of a VAE, and a notice where another one made them.

    Args:
        any_vae: also those of which nothing tells that they are of its space.

    Raises:
        LatentsError: they are of another space, or nothing tells that they are of this one, or they are damaged.
    """
    if latents.vae == vae.sha256:
        raw, notice = latents.to_raw(), ""
    elif (tensor := _untold(vae, latents)) is not None:
        raw, notice = _named(vae, latents, tensor), ""
    else:
        ours, name = vae.loaded.format, vae.name or "this VAE"
        shared = same_space(latents.format, ours)
        if not shared:
            notice = _require_wanted(vae, latents, any_vae)
        elif latents.vae and not any_vae:  # who asked for any VAE knows
            maker = latents.vae_name or "an unnamed VAE"
            notice = f"{maker} made these latents and {name} decodes them: both are of the space {space_of(ours)!r}."
        else:
            notice = ""
        format_ = ours or latents.format  # where nothing tells how it scales, raw ones are taken as they are
        if latents.space == "model" and not alike(latents.format, format_):
            tensor = format_.to_raw(latents.tensor[None])[0]
        else:
            tensor = carried(latents.to_raw().tensor[None], latents.format, format_)[0]
        raw = _named(vae, latents, tensor)
    _require_whole(vae, raw)
    return raw, notice


def _named(vae: Coder, latents: Latents, tensor: Tensor) -> Latents:
    """Raw latents as those of a VAE; where they named none, the picture is as large as it makes of all of them."""
    format_, padding = vae.loaded.format or latents.format, latents.padding
    if not latents.vae:
        height, width = (vae.factor * side for side in tensor.shape[1:])
        padding = Padding(height, width, 0, 0, "replicate")
    return replace(
        latents, tensor=tensor, space="raw", format=format_, vae=vae.sha256, vae_name=vae.name, padding=padding
    )


def _untold(vae: Coder, latents: Latents) -> Tensor | None:
    """Raw latents of a VAE, of such that name no VAE and leave their scale to it; None if these do not.

    Of format ``none`` are latents of whichever VAE decodes them, and FLUX.2's without statistics have those of its own.
    """
    theirs, ours = latents.format, vae.loaded.format
    flux2 = isinstance(theirs, PackedUntold) and isinstance(ours, Packed) and ours.name == theirs.name
    if latents.vae or not (theirs.name == "none" or flux2):
        return None
    if latents.space == "raw":
        if flux2 and ours is not None and is_model(ours):
            name = vae.name or "this VAE"
            raise LatentsError(
                f"These are raw latents of FLUX.2's VAE, and {name} decodes them scaled by statistics in that one's "
                f"weights; load flux2-vae, or say model:flux2 of {name}'s own (--latent-format, latent_format=)."
            )
        fits, tensor = len(latents.tensor) == vae.latent_channels, latents.tensor
    else:
        ours = vae.latent_format  # which asks where nothing tells it
        fits = ours.fits(latents.tensor)
        tensor = ours.to_raw(latents.tensor[None])[0] if fits else latents.tensor
    if not fits:
        raise LatentsError(
            f"These latents have {len(latents.tensor)} channels, and {vae.name or 'this VAE'} decodes such with "
            f"{vae.latent_channels}; load one of their kind."
        )
    return tensor


def _require_wanted(vae: Coder, latents: Latents, any_vae: bool) -> str:
    """Checks that latents of no common space can be decoded and are to be; what to say of it then.

    Raises:
        LatentsError: if not.
    """
    ours, theirs, name = vae.loaded.format, latents.format, vae.name or "this VAE"
    presets = fitting(space_of(theirs))
    kind = f"load one of their kind{f' ({presets})' if presets else ''}"
    channels = vae.latent_channels if ours is None else ours.channels * ours.patch**2
    fits = channels == theirs.channels * (1 if ours is None else theirs.patch**2)
    if not fits:
        own = f"those of {ours.name!r}, with {vae.latent_channels}" if ours else f"such with {vae.latent_channels}"
        raise LatentsError(
            f"These latents are of format {quoted(theirs.name, 60)!r}, with {theirs.channels} channels, and {name} "
            f"decodes {own}; {kind}."
        )
    other = ""
    if ours is not None and space_of(theirs) and space_of(ours) and space_of(ours) != space_of(theirs):
        other = f"These latents are of format {theirs.name!r}, and {name} decodes those of {ours.name!r}"
    if any_vae and ours is None:
        return f"Nothing tells how {name} scales its latents, so it decodes the raw ones as they are."
    if any_vae:
        return f"{other}, so what comes out is no picture of them." if other else ""
    way = "decode them all the same with --any-vae (any_vae=True)"
    if other:
        raise LatentsError(f"{other}; {kind}, or {way}.")
    why = _why_not_shared(ours, theirs, name)
    if not latents.vae:
        raise LatentsError(f"These latents name no VAE, and {why}; {kind if presets else 'give their own'}, or {way}.")
    raise LatentsError(
        f"These latents were made by another VAE ({latents.vae_name or 'unnamed'}, {latents.vae[:12]}) than this one "
        f"({vae.name or 'unnamed'}, {vae.sha256[:12]}), and {why}; load that one{f' or {presets}' if presets else ''}, "
        f"or {way}."
    )


def _why_not_shared(ours: LatentFormat | None, theirs: LatentFormat, name: str) -> str:
    """Why nothing tells that two formats are of one space, in part of a sentence."""
    if space_of(theirs) is None:
        given = quoted(theirs.name, 60)
        if theirs.name in NAMELESS:
            return f"their format {given!r} names no space that both could be of"
        return f"the numbers of their format {given!r} are not those that it is published with"
    if ours is None:
        say = f"; say so with --latent-format {theirs.name} if it does" if theirs.name in KNOWN else ""
        return f"nothing tells whether {name} decodes those of format {theirs.name!r}{say}"
    if space_of(ours) is None:
        return f"format {ours.name!r} of {name} names no space that both could be of"
    return f"the numbers of their format {theirs.name!r} are others than this VAE's"


def _require_whole(vae: Coder, latents: Latents) -> None:
    """Checks that raw latents are of a size that the VAE can decode to the picture they are of.

    Raises:
        LatentsError: if not.
    """
    tensor, padding, f = latents.tensor, latents.padding, vae.factor
    if len(tensor) != vae.latent_channels:
        raise LatentsError(
            f"These latents have {len(tensor)} channels and name this VAE, whose latents have {vae.latent_channels}: "
            f"they are damaged; make them again."
        )
    padded = (padding.height + padding.bottom, padding.width + padding.right)
    _, rows, columns = tensor.shape
    if padded != (rows * f, columns * f):
        raise LatentsError(
            f"These latents are of a picture padded to {padded[0]}x{padded[1]}, and {rows}x{columns} of them make "
            f"{rows * f}x{columns * f} at f{f}: they are damaged, or for a VAE of another f."
        )
