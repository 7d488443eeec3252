"""From a file or folder, in any layout, to a network with weights."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from calotype.config import AutoencoderConfig, NetworkConfig, TinyConfig
from calotype.errors import LatentFormatError, UsageError, WeightsError
from calotype.latents import (
    KNOWN,
    LatentFormat,
    Packed,
    PerChannel,
    ScaleShift,
    flux2,
    latent_format,
    latent_format_from_dict,
    same_as_model,
)
from calotype.networks import Network, make_network
from calotype.weights.container import H5_SIGNATURE, open_container
from calotype.weights.detect import EDM, Detected, Layout, detect, listing
from calotype.weights.diffusers_config import (
    FLUX2,
    LATENTS,
    MEANS,
    SCALED_MEANS,
    Said,
    Scales,
    described,
    norm_groups_of,
    parse_config,
    read_said,
    readings,
    scales_of,
    unused,
)
from calotype.weights.keras import read_keras
from calotype.weights.presets import KNOWN_FILES

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".h5")

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# The files diffusers looks for in a folder, best first.
DIFFUSERS_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
)


TRAINING = "calotype_training_"  # what begins the keys of facts about a training
KEPT_FIELDS = "calotype_diffusers_config"  # the key of what a config.json said beside network and latent format

F = TypeVar("F", LatentFormat, LatentFormat | None)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A network with its weights, and where they came from."""

    module: Network
    layout: Layout
    parts: frozenset[str]  # "encoder", "decoder" or both
    sha256: str  # of the tensors under our keys, so the same in every layout
    dtypes: tuple[str, ...]  # as stored
    files: tuple[Path, ...]
    prefix: str = ""
    format: LatentFormat | None = None  # None: the weights do not say
    format_source: str = ""  # how the format is known, for people
    question: str = ""  # why it is not, where more can be said than that nothing tells
    notes: tuple[str, ...] = ()  # sentences for people: what was assumed, and what was not read
    kept: Mapping[str, Any] = field(default_factory=dict)  # fields of a config.json that a conversion keeps
    metadata: Mapping[str, str] | None = None

    def training(self) -> dict[str, Any]:
        """What `calotype train` wrote into the file about how its weights were made."""
        facts: dict[str, Any] = {}
        for key, value in sorted((self.metadata or {}).items()):
            if key.startswith(TRAINING):
                with suppress(ValueError):
                    facts[key.removeprefix(TRAINING)] = json.loads(value)
        return facts


def load_weights(path: str | os.PathLike[str], *, latent_format_name: str | None = None) -> Loaded:
    """Loads the VAE in a file or folder; architecture and layout come from tensor names and shapes.

    Args:
        path: a safetensors, torch or h5 file (a VAE alone or a whole checkpoint), a diffusers folder (a VAE's or a
            pipeline's), or a folder with an encoder and a decoder file.
        latent_format_name: how raw and model latents differ, where the weights can't tell.

    Raises:
        WeightsError: if there is no whole, finite VAE in it; the message names the file and what is wrong.
        UsageError: if the latent format is unknown or for another number of channels.
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"{path}: there is no such file or folder; give weights, or the name of a preset.")
    files, config_file = _locate(path)
    pieces = []
    for file in files:
        try:
            pieces.append(_read(file, config_file))
        except WeightsError as error:
            raise WeightsError(f"{file}: {str(error).rstrip('.')}.") from None
        except PermissionError:
            raise WeightsError(f"{file}: this file may not be read; check its permissions.") from None
    piece = pieces[0] if len(pieces) == 1 else _join(path, *pieces)
    module = build(piece.config, piece.parts, piece.tensors, where=str(path))
    format_, source, question = _format(piece, files, latent_format_name)
    return Loaded(
        module=module,
        layout=piece.layout,
        parts=piece.parts,
        sha256=tensors_sha256(module.state_dict()),
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in piece.tensors.values()})),
        files=files,
        prefix=piece.prefix,
        format=format_,
        format_source=source,
        question=question,
        notes=_notes(piece, source),
        kept=piece.kept,
        metadata=piece.metadata,
    )


def build(config: NetworkConfig, parts: frozenset[str], tensors: Mapping[str, Tensor], *, where: str) -> Network:
    """The network of `config`, holding exactly these tensors; a half VAE loses the other half's modules.

    Raises:
        WeightsError: if any tensor is missing, unexpected, of another shape, or not finite; all are listed.
    """
    with torch.device("meta"):
        module = make_network(config)
    sides = {"encoder": "encoder", "quant_conv": "encoder", "decoder": "decoder", "post_quant_conv": "decoder"}
    for name, side in sides.items():
        if side not in parts and hasattr(module, name):
            delattr(module, name)
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    problems = []
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append(listing("missing", missing))
    if unexpected := sorted(tensors.keys() - expected.keys()):
        problems.append(listing("unexpected", unexpected))
    if misshapen := [
        f"{key} {list(tensors[key].shape)} instead of {list(expected[key])}"
        for key in sorted(expected.keys() & tensors.keys())
        if tuple(tensors[key].shape) != expected[key]
    ]:
        problems.append(listing("misshapen", misshapen))
    if integers := sorted(key for key, value in tensors.items() if value.dtype not in FLOATS):
        kinds = ", ".join(sorted({str(tensors[key].dtype).removeprefix("torch.") for key in integers}))
        problems.append(f"{kinds}, which no network computes in, in {listing('the', integers)}")
    if not problems and (bad := sorted(key for key, value in tensors.items() if not torch.isfinite(value).all())):
        problems.append(f"NaN or infinity in {listing('the', bad)}")
    if problems:
        raise WeightsError(f"{where}: these are not the weights of a whole VAE: {'; '.join(problems)}.")
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What one file gave."""

    layout: Layout
    config: NetworkConfig
    parts: frozenset[str]
    tensors: dict[str, Tensor]
    prefix: str = ""
    statistics: tuple[Tensor, Tensor] | None = None
    family: str | None = None
    metadata: Mapping[str, str] | None = None
    said: Said = field(default_factory=Said)
    edm: Mapping[str, Tensor] = field(default_factory=dict)  # means and stds of Playground's latents
    groups_assumed: bool = False

    @property
    def kept(self) -> dict[str, Any]:
        """What a config.json said beside network and latent format: this one, or that of before a conversion."""
        written, said = _fields(self.metadata), self.said.kept
        return (said or written) if self.layout == "diffusers" else (written or said)


def _locate(path: Path) -> tuple[tuple[Path, ...], Path | None]:
    """The weight files at `path`, and the config.json that describes them, if there is one."""
    if path.is_file():
        beside = path.with_name("config.json")
        return (path,), beside if beside.is_file() else None
    if (path / "vae").is_dir():
        path = path / "vae"
    config = path / "config.json"
    for name in DIFFUSERS_FILES:
        if (path / name).is_file():
            return (path / name,), config if config.is_file() else None
    files = tuple(sorted(file for file in path.iterdir() if file.suffix in SUFFIXES))
    if len(files) not in (1, 2):
        raise WeightsError(
            f"{path}: this folder holds {len(files)} weight files; give one with a VAE in it "
            f"(or an encoder and a decoder), or name the file itself."
        )
    return files, config if config.is_file() else None


def _read(file: Path, config_file: Path | None) -> _Piece:
    with file.open("rb") as opened:
        head = opened.read(8)
    if head == H5_SIGNATURE:
        given, side, tensors, metadata = read_keras(file)
        part = frozenset({side})
        said = read_said(config_file, file.parent)
        return _Piece(layout="keras", config=given, parts=part, tensors=tensors, metadata=metadata, said=said)
    container = open_container(file)
    said = read_said(config_file, file.parent)
    stored = container.metadata.get("calotype_config")
    own = parse_config(stored) if stored is not None else {}
    try:
        groups = own.get("norm_groups", norm_groups_of(said))
        found = detect(container.shapes, norm_groups=groups)
        config, said = _described(found, own, said)
    except UsageError as error:
        raise WeightsError(str(error)) from None
    return _Piece(
        layout=found.layout,
        config=config,
        parts=found.parts,
        tensors={ours: _conv_shape(ours, container.read(key)) for ours, key in found.keys.items()},
        prefix=found.prefix,
        statistics=tuple(container.read(key) for key in found.statistics) if found.statistics else None,  # type: ignore[arg-type]
        family=found.family,
        metadata=container.metadata,
        said=said,
        edm={key: container.read(key) for key in EDM if key in container.shapes},
        groups_assumed=groups is None and isinstance(config, AutoencoderConfig),
    )


def _described(found: Detected, own: Mapping[str, Any], said: Said) -> tuple[NetworkConfig, Said]:
    """The whole configuration; a config.json beside a file that describes itself may be about another one."""
    try:
        return described(found.config, said, found.parts, own), said
    except WeightsError:
        if not own or found.layout == "diffusers":
            raise
        said = said.without(f"{said.file} is about another VAE and was not read.")
        return described(found.config, said, found.parts, own), said


def _notes(piece: _Piece, source: str) -> tuple[str, ...]:
    notes = [*piece.said.notes, *(unused(piece.said) if source.startswith("config.json") else ())]
    if piece.groups_assumed and not piece.family and source != "the sha256 of a known file":
        notes.append(
            "Its norms are taken to have 32 groups, as is usual: shapes can't tell, and neither a config.json nor the "
            "file's metadata says."
        )
    return tuple(notes)


def _conv_shape(key: str, tensor: Tensor) -> Tensor:
    """Attention projections are linear layers in newer diffusers files, and 1x1 convolutions everywhere else."""
    if tensor.ndim == 2 and key.endswith((".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")):
        return tensor[:, :, None, None]
    return tensor


def _join(path: Path, a: _Piece, b: _Piece) -> _Piece:
    if a.parts & b.parts or a.layout != b.layout:
        raise WeightsError(
            f"{path}: its two weight files are not the encoder and the decoder of one VAE; name the file itself."
        )
    if isinstance(a.config, AutoencoderConfig) and isinstance(b.config, AutoencoderConfig):
        first, second = (a.config, b.config) if "encoder" in a.parts else (b.config, a.config)
        decoder_ch, post = second.decoder_channels[0], second.decoder_quant_conv
        config: NetworkConfig = replace(
            first,
            decoder_ch=decoder_ch if decoder_ch != first.ch else None,
            post_quant_conv=post if post != first.quant_conv else None,
        )
    elif a.config != b.config:
        raise WeightsError(f"{path}: encoder and decoder differ: {a.config} and {b.config}.")
    else:
        config = a.config
    return replace(a, config=config, parts=a.parts | b.parts, tensors={**a.tensors, **b.tensors})


def _format(piece: _Piece, files: tuple[Path, ...], name: str | None) -> tuple[LatentFormat | None, str, str]:
    """The latent format, how it is known, and what to ask where it is not.

    The user's word comes first, then the file's, a known file, config.json, and the file's company.
    """
    channels, said, metadata = piece.config.z_channels, piece.said, piece.metadata or {}
    if name in (MEANS, SCALED_MEANS):
        return *_scaled(piece, files[0], name)[:2], ""
    if name is not None:
        return _named(name, channels, piece), "--latent-format", ""
    if stored := metadata.get("calotype_latent_format"):
        own = _readable(files[0], lambda: latent_format_from_dict(json.loads(stored)))
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
    if isinstance(piece.config, TinyConfig) and piece.config.pool:
        return same_as_model("flux2", channels), "the architecture (TAEF2)", ""
    if piece.layout == "keras" and channels == 4 and "calotype_config" not in metadata:
        return KNOWN["sd1"], "the layout (only Stable Diffusion 1 and 2 exist as h5)", ""
    if piece.edm:
        if lacking := [key for key in EDM if key not in piece.edm]:
            return None, "", f"it holds {', '.join(piece.edm)} and not {lacking[0]}, which only Playground v2.5 has"
        return _playground(piece.edm, channels, files[0]), "edm_mean and edm_std in the checkpoint", ""
    # the same weights may stand in models whose latents are normalised otherwise, and then the config.json says how
    means = said.values.get("latents_mean") is not None
    # big checkpoints are told by their company below; hashing them would read them whole
    if not piece.prefix and not means and (known := KNOWN_FILES.get(file_sha256(files[0]))):
        return _named(known, channels, piece), "the sha256 of a known file", ""
    format_, source, question = _scaled(piece, files[0], None)
    if format_ or question:
        return format_, source, question
    if isinstance(piece.config, TinyConfig):
        return same_as_model("taesd", channels), "the architecture (a TAESD's latents are model latents)", ""
    if piece.family:
        return _named(piece.family, channels, piece), "the other tensors of the checkpoint", ""
    if said.network == FLUX2:
        return None, "", f"its config.json says {FLUX2}, and FLUX.2's batch-norm statistics are not among its tensors"
    return None, "", ""


def _scaled(piece: _Piece, file: Path, meaning: str | None) -> tuple[LatentFormat | None, str, str]:
    """The latent format that config.json means, or what a conversion kept of one."""
    said = piece.said
    if not said.values and piece.kept:
        said = replace(said, file=file, values=piece.kept)
    channels = piece.config.z_channels
    if "calotype_config" in (piece.metadata or {}) and not any(said.values.get(key) for key in LATENTS):
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


def _edited(piece: _Piece, stored: LatentFormat) -> bool:
    """Whether a diffusers folder's config.json says otherwise about latents than when calotype wrote it."""
    values = piece.said.values
    if isinstance(stored, Packed):
        return piece.layout == "diffusers" and values.get("batch_norm_eps", stored.eps) != stored.eps
    said = any(values.get(key) is not None for key in LATENTS)
    return piece.layout == "diffusers" and said and not can_mean(piece.said.kept, stored)


def can_mean(kept: Mapping[str, Any], format_: LatentFormat) -> bool:
    """Whether the fields about latents of a config.json are those of a format, read in some pipeline's way."""
    if isinstance(format_, Packed):  # its numbers are among the weights
        return True
    try:
        made = [as_format(scales, format_.channels) for scales in readings(kept)]
    except (TypeError, UsageError):
        return False
    return any(replace(one, name=format_.name) == format_ for one in made)


def _fields(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Fields of a config.json that a conversion kept in a file's own metadata."""
    text = (metadata or {}).get(KEPT_FIELDS)
    return parse_config(text) if text is not None else {}


def _readable(file: Path, make: Callable[[], F]) -> F:
    try:
        return make()
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WeightsError(f"{file}: what it says about its latents is damaged; fetch or convert it again.") from None


def _named(name: str, channels: int, piece: _Piece) -> LatentFormat:
    if isinstance(piece.config, TinyConfig):
        return same_as_model(name, channels)
    return latent_format(name, channels)


def as_format(scales: Scales, channels: int, name: str = "custom") -> ScaleShift | PerChannel:
    """The format of these numbers, by its name if it is a known one."""
    made: ScaleShift | PerChannel
    if scales.mean is not None and scales.std is not None:
        made = PerChannel(name=name, channels=channels, mean=scales.mean, std=scales.std, scaling_factor=scales.factor)
    else:
        made = ScaleShift(name=name, channels=channels, scaling_factor=scales.factor, shift_factor=scales.shift)
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


def require_format(loaded: Loaded) -> LatentFormat:
    """The latent format of a VAE.

    Where a config.json can be read in two ways, ``means`` is (raw - latents_mean) / latents_std, and ``scaled-means``
    that times its scaling_factor.

    Raises:
        LatentFormatError: if nothing tells it.
    """
    if loaded.format is None:
        channels = loaded.module.config.z_channels
        fitting = [f.name for f in KNOWN.values() if f.channels == channels] or ["none"]
        reason = f"VAEs with {channels} latent channels look alike whatever the scale of their latents"
        if loaded.question:
            reason = loaded.question
            fitting = ([MEANS, SCALED_MEANS] if loaded.kept.get("latents_mean") else []) + fitting
        raise LatentFormatError(
            f"{loaded.files[0]}: {reason}; say which this is with --latent-format {'|'.join(fitting)}."
        )
    return loaded.format
