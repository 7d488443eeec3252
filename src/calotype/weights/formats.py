"""How the latents of weights in a file are scaled, and how that is known."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from calotype.errors import UsageError, WeightsError
from calotype.families import KNOWN_FILES, family_of
from calotype.families.face import Layout, NetworkConfig
from calotype.latents import (
    KNOWN,
    MODEL,
    LatentFormat,
    Packed,
    PerChannel,
    ScaleShift,
    flux2,
    latent_format,
    latent_format_from_dict,
    same_as_model,
)
from calotype.texts import TextError, json_of
from calotype.weights.detect import EDM
from calotype.weights.diffusers_config import (
    LATENTS,
    MEANS,
    SCALED_MEANS,
    Said,
    Scales,
    parse_config,
    readings,
    scales_of,
)
from calotype.weights.groups import Choice

DIFFUSERS_LAYOUTS: tuple[Layout, ...] = ("diffusers", "diffusers-2d")  # which have a config.json

KEPT_FIELDS = "calotype_diffusers_config"  # the key of what a config.json said beside network and latent format

F = TypeVar("F", LatentFormat, LatentFormat | None)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one weight file gave."""

    layout: Layout
    config: NetworkConfig
    parts: frozenset[str]
    tensors: dict[str, Tensor]
    prefix: str = ""
    statistics: tuple[Tensor, Tensor] | None = None
    family: str | None = None
    metadata: Mapping[str, str] | None = None
    dtypes: tuple[str, ...] = ()  # as stored
    container: str = ""
    choice: Choice | None = None
    notices: tuple[str, ...] = ()
    said: Said = field(default_factory=Said)
    edm: Mapping[str, Tensor] = field(default_factory=dict)  # means and stds of Playground's latents
    groups_assumed: bool = False
    assumed: str = ""  # what nothing told
    whole: Mapping[str, str] = field(default_factory=dict)  # as `Told.whole`

    def __post_init__(self) -> None:
        _fields(self.metadata)  # damaged ones are refused where it is known whose they are

    @property
    def kept(self) -> dict[str, Any]:
        """What a config.json said beside network and latent format: this one, or that of before a conversion."""
        written, said = _fields(self.metadata), self.said.kept
        return (said or written) if self.layout in DIFFUSERS_LAYOUTS else (written or said)


def _fields(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Fields of a config.json that a conversion kept in a file's own metadata."""
    text = (metadata or {}).get(KEPT_FIELDS)
    return parse_config(text) if text is not None else {}


def format_of(piece: Piece, files: tuple[Path, ...], name: str | None) -> tuple[LatentFormat | None, str, str]:
    """The latent format, how it is known, and what to ask where it is not.

    The user's word comes first, then the file's, a known file, config.json, and the file's company.
    """
    channels, said, metadata = piece.config.z_channels, piece.said, piece.metadata or {}
    if name in (MEANS, SCALED_MEANS):
        return *_scaled(piece, files[0], name)[:2], ""
    if name is not None:
        return _named(name, channels, piece), "--latent-format", ""
    if stored := metadata.get("calotype_latent_format"):
        own = _readable(files[0], lambda: latent_format_from_dict(json_of(stored)))
        if not _edited(piece, own):
            return own, "the file's metadata", ""
    if piece.statistics is not None:
        mean, var = (tuple(t.double().flatten().tolist()) for t in piece.statistics)
        eps = said.values.get("batch_norm_eps", 1e-4)
        packed = _readable(files[0], lambda: flux2(mean, var, eps))
        if packed.channels != channels:
            raise WeightsError(
                f"{files[0]}: its {len(mean)} batch-norm statistics do not fit {channels} latent channels."
            )
        return packed, "batch-norm statistics in the weights", ""
    if imitated := piece.config.imitated:
        return same_as_model(imitated, channels), "the architecture (its latents are model latents)", ""
    if piece.layout == "keras" and channels == 4 and "calotype_config" not in metadata:
        return KNOWN["sd1"], "the layout (only Stable Diffusion 1 and 2 exist as h5)", ""
    if piece.edm:
        if lacking := [key for key in EDM if key not in piece.edm]:
            return None, "", f"it holds {', '.join(piece.edm)} and not {lacking[0]}, which only Playground v2.5 has"
        return _playground(piece.edm, channels, files[0]), "edm_mean and edm_std in the checkpoint", ""
    # the same weights may stand in models whose latents are normalised otherwise, and then the config.json says how
    means = said.values.get("latents_mean") is not None
    # known files hold a VAE alone; to hash one with much else (a whole checkpoint, an optimiser) would read all of it
    alone = not piece.prefix and files[0].stat().st_size < 2 * sum(one.nbytes for one in piece.tensors.values())
    if alone and not means and (known := KNOWN_FILES.get(file_sha256(files[0]))):
        return _named(known, channels, piece), "the sha256 of a known file", ""
    format_, source, question = _scaled(piece, files[0], None)
    if format_ or question:
        return format_, source, question
    if piece.config.in_model_space:
        return same_as_model(piece.config.kind, channels), "the architecture (its latents are model latents)", ""
    if space := family_of(piece.config).space(piece.config):
        return _named(space, channels, piece), "the architecture", ""
    if piece.family:
        return _named(piece.family, channels, piece), "the other tensors of the checkpoint", ""
    if said.of.packs:
        return None, "", f"its config.json says {said.network}, and the batch-norm statistics are not among its tensors"
    return None, "", ""


def _scaled(piece: Piece, file: Path, meaning: str | None) -> tuple[LatentFormat | None, str, str]:
    """The latent format that config.json means, or what a conversion kept of one."""
    said = piece.said
    known = family_of(piece.config).diffusers
    if meaning is None and known is not None and not known.scaled(piece.config):
        return None, "", ""
    if not said.values and piece.kept:
        said = replace(said, file=file, values=piece.kept)
    channels = piece.config.z_channels
    told = (
        any(said.values.get(key) for key in LATENTS) or said.values.get("scaling_factor") is not None
    )  # 0 is told, too
    if "calotype_config" in (piece.metadata or {}) and not told:
        return None, "", ""  # written by calotype, which leaves out what is not known
    if meaning is not None and not said.values:
        raise UsageError(f"{file}: latent format {meaning!r} reads a config.json, and there is none beside it.")
    try:
        scales, source, question = scales_of(said, channels, meaning)
        if scales is None:
            return None, source, question
        name = said.values.get("latent_format")
        return as_format(scales, channels, name if isinstance(name, str) else "custom"), source, ""
    except (WeightsError, UsageError) as error:
        raise WeightsError(
            f"{said.file}: what it says about its latents is damaged: {str(error).rstrip('.')}; mend it, or say with "
            f"--latent-format how they are scaled."
        ) from None


def _edited(piece: Piece, stored: LatentFormat) -> bool:
    """Whether a diffusers folder's config.json says otherwise about latents than when calotype wrote it."""
    values = piece.said.values
    if isinstance(stored, Packed):
        return piece.layout in DIFFUSERS_LAYOUTS and values.get("batch_norm_eps", stored.eps) != stored.eps
    said = any(values.get(key) is not None for key in LATENTS)
    return piece.layout in DIFFUSERS_LAYOUTS and said and not can_mean(piece.said.kept, stored)


def can_mean(kept: Mapping[str, Any], format_: LatentFormat) -> bool:
    """Whether the fields about latents of a config.json are those of a format, read in some pipeline's way."""
    if isinstance(format_, Packed):  # its numbers are among the weights
        return True
    try:
        made = [as_format(scales, format_.channels) for scales in readings(kept)]
    except (TypeError, UsageError):
        return False
    return any(replace(one, name=format_.name) == format_ for one in made)


def _readable(file: Path, make: Callable[[], F]) -> F:
    try:
        return make()
    except (TextError, UsageError) as error:
        reason = str(error).rstrip(".")
        raise WeightsError(
            f"{file}: what it says about its latents is damaged ({reason}); fetch or convert it again."
        ) from None


def _named(name: str, channels: int, piece: Piece) -> LatentFormat:
    if piece.config.in_model_space:
        return same_as_model(name.removeprefix(MODEL), channels)
    return latent_format(name, channels)


def as_format(scales: Scales, channels: int, name: str = "custom") -> ScaleShift | PerChannel:
    """The format of these numbers, by its name if it is a known one."""
    made: ScaleShift | PerChannel
    if scales.mean is not None and scales.std is not None:
        made = PerChannel(name=name, channels=channels, mean=scales.mean, std=scales.std, scaling_factor=scales.factor)
    else:
        made = ScaleShift(name=name, channels=channels, scaling_factor=scales.factor, shift_factor=scales.shift)
    if isinstance(made, ScaleShift) and (made.scaling_factor, made.shift_factor) == (1.0, 0.0):  # of whomever
        return made
    return next((known for known in KNOWN.values() if replace(made, name=known.name) == known), made)


def _playground(edm: Mapping[str, Tensor], channels: int, file: Path) -> PerChannel:
    """Playground v2.5's format, of the means and stds in its single file, as diffusers' single_file_utils.py reads it.

    Numbers that are the published ones, rounded, count as those.
    """
    mean, std = (tuple(edm[key].double().flatten().tolist()) for key in EDM)
    published = KNOWN["playground"]
    assert isinstance(published, PerChannel)
    try:
        made = replace(published, channels=channels, mean=mean, std=std)
        rounding = max(torch.finfo(edm[key].dtype).eps for key in EDM)
    except (TypeError, UsageError):
        raise WeightsError(
            f"{file}: {' and '.join(EDM)} in it are no means and standard deviations of {channels} latent channels; "
            f"fetch it again, or say with --latent-format how its latents are scaled."
        ) from None
    pairs = zip((*mean, *std), (*published.mean, *published.std), strict=False)
    same = channels == published.channels and all(math.isclose(a, b, rel_tol=rounding) for a, b in pairs)
    return published if same else made


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
