"""Several decoders of one VAE's latents: which may be compared, and how each is known again."""

from __future__ import annotations

import hashlib
import json

from calotype.errors import UsageError
from calotype.latent_spaces import fitting
from calotype.latents import LatentFormat, same_space, space_of
from calotype.vae import VAE
from calotype.weights.load import tensors_sha256


def require_decodes(encoder: VAE, decoder: VAE, given: str, any_vae: bool) -> str:
    """Checks that a decoder takes the latents of an encoder.

    Args:
        given: what the decoder was asked for as.
        any_vae: also where nothing tells that they are of one latent space.

    Returns:
        A notice, where they are of two spaces all the same, or nothing tells; else nothing.

    Raises:
        UsageError: it does not.
    """
    theirs, ours = encoder.loaded.format, decoder.loaded.format
    name = encoder.name or "the VAE"
    presets = fitting(space_of(theirs))
    wanted = f"give decoders of that space ({presets})" if presets else "give decoders of its latents"
    if decoder.latent_channels != encoder.latent_channels or decoder.factor != encoder.factor:
        raise UsageError(f"--decoder {given} decodes {_kind(decoder)}, and {name} makes {_kind(encoder)}; {wanted}.")
    if same_space(theirs, ours):
        return ""
    known = space_of(theirs) is not None and space_of(ours) is not None
    if known and space_of(theirs) != space_of(ours):
        why = f"{given} decodes latents of the space {space_of(ours)!r}, and {name} makes those of {space_of(theirs)!r}"
    else:
        why = f"nothing tells that {given} decodes the latents of {name} ({_said(ours)}, and {_said(theirs)})"
    if not any_vae:
        raise UsageError(f"--decoder: {why}; {wanted}, or compare it all the same with --any-vae.")
    return f"{why[0].upper()}{why[1:]}."


def _kind(vae: VAE) -> str:
    """What latents a VAE has, in words."""
    space = space_of(vae.loaded.format)
    of = f" of the space {space!r}" if space else ""
    return f"latents{of} of {vae.latent_channels} channels at f{vae.factor}"


def _said(format_: LatentFormat | None) -> str:
    return "no format is known of its own" if format_ is None else f"format {format_.name!r}"


def half_sha256(vae: VAE) -> str:
    """A hash of the decoder's tensors alone: the same of a whole VAE and of a file with its decoder."""
    sides = {"encoder": "encoder", **vae.module.sides}
    tensors = vae.module.state_dict()
    return tensors_sha256(
        {key: one.cpu() for key, one in tensors.items() if sides.get(key.partition(".")[0]) != "encoder"}
    )


def rows_key(encoder: VAE, decoder: VAE) -> str:
    """Under what rows of a decoder are kept: by the weights of both, and by what their latents pass through."""
    if decoder is encoder:
        return encoder.sha256
    formats = [None if vae.loaded.format is None else vae.loaded.format.to_dict() for vae in (encoder, decoder)]
    return hashlib.sha256(json.dumps([encoder.sha256, half_sha256(decoder), formats]).encode()).hexdigest()
