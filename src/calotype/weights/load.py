"""From a file or folder, in any layout, to a network with weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from calotype.config import AutoencoderConfig, NetworkConfig, TinyConfig
from calotype.errors import LatentFormatError, UsageError, WeightsError
from calotype.latents import (
    KNOWN,
    LatentFormat,
    PerChannel,
    ScaleShift,
    flux2,
    latent_format,
    latent_format_from_dict,
    same_as_model,
)
from calotype.networks import Network, make_network
from calotype.weights.container import H5_SIGNATURE, Container, open_container
from calotype.weights.detect import Layout, detect, listing
from calotype.weights.eight_bits import widened
from calotype.weights.groups import Choice, Weights, summary
from calotype.weights.keras import read_keras
from calotype.weights.presets import KNOWN_FILES
from calotype.weights.shards import Shards, in_folder, shards_of
from calotype.weights.sniff import audio_pipeline, in_folder as told_in_folder

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".h5")

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

TRAINING = "calotype_training_"  # what begins the keys of facts about a training

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
    metadata: Mapping[str, str] | None = None
    averaged: bool = False  # whether these are weights averaged over a training (EMA)
    twin: str | None = None  # the prefix of the raw weights beside averaged ones, or of the averaged beside raw ones
    beside: str = ""  # what else is in the file, for people
    notices: tuple[str, ...] = ()  # what a user should know of how the file was read

    def training(self) -> dict[str, Any]:
        """What `calotype train` wrote into the file about how its weights were made."""
        facts: dict[str, Any] = {}
        for key, value in sorted((self.metadata or {}).items()):
            if key.startswith(TRAINING):
                with suppress(ValueError):
                    facts[key.removeprefix(TRAINING)] = json.loads(value)
        return facts


def load_weights(
    path: str | os.PathLike[str],
    *,
    latent_format_name: str | None = None,
    prefix: str | None = None,
    weights: Weights | None = None,
) -> Loaded:
    """Loads the VAE in a file or folder; architecture and layout come from tensor names and shapes.

    Args:
        path: a safetensors, torch or h5 file (a VAE alone or a whole checkpoint), a diffusers folder (a VAE's or a
            pipeline's), or a folder with an encoder and a decoder file.
        latent_format_name: how raw and model latents differ, where the weights can't tell.
        prefix: what stands before the VAE's names in the file, where there are several VAEs.
        weights: "raw" or "ema" (averaged over a training), where both are there; "ema" where not given, if that is the
            whole VAE.

    Raises:
        WeightsError: if there is no whole, finite VAE in it; the message names the file and what is wrong.
        UsageError: if the latent format is unknown or for another number of channels, or there is no VAE under the
            prefix, or none averaged.
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"{path}: there is no such file or folder; give weights, or the name of a preset.")
    places, config_file, notices, weights = _locate(path, weights)
    pieces = []
    for file, *more in places:
        try:
            pieces.append(_read(file, more, config_file, prefix, weights))
        except (WeightsError, UsageError) as error:
            raise type(error)(f"{file}: {str(error).rstrip('.')}.") from None
        except PermissionError:
            raise WeightsError(f"{file}: this file may not be read; check its permissions.") from None
    files = tuple(file for place in places for file in place)
    piece = pieces[0] if len(pieces) == 1 else _join(path, *pieces)
    module = build(piece.config, piece.parts, piece.tensors, where=str(path))
    format_, source = _format(piece, config_file, files, latent_format_name)
    return Loaded(
        module=module,
        layout=piece.layout,
        parts=piece.parts,
        sha256=tensors_sha256(module.state_dict()),
        dtypes=piece.dtypes,
        files=files,
        prefix=piece.prefix,
        format=format_,
        format_source=source,
        metadata=piece.metadata,
        averaged=piece.choice is not None and piece.choice.group.averaged,
        twin=piece.choice.twin.prefix if piece.choice and piece.choice.twin else None,
        beside=summary(piece.choice.beside) if piece.choice else "",
        notices=(*notices, *piece.notices),
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
    dtypes: tuple[str, ...] = ()  # as stored
    choice: Choice | None = None
    notices: tuple[str, ...] = ()


def _locate(
    path: Path, weights: Weights | None
) -> tuple[tuple[tuple[Path, ...], ...], Path | None, tuple[str, ...], Weights | None]:
    """The weight files at `path`, each with its shards; the config.json that describes them, if any; notices; and which
    weights are still to be chosen in a file."""
    if path.is_file():
        beside = path.with_name("config.json")
        return (shards_of(path) or (path,),), beside if beside.is_file() else None, (), weights
    if (path / "vae").is_dir():
        if name := audio_pipeline(path):
            raise WeightsError(
                f"{path}: this is a pipeline for sound ({name}); its VAE is of spectrograms, not pictures."
            )
        path = path / "vae"
    config = path / "config.json"
    places, notices, weights = in_folder(path, weights, SUFFIXES)
    if not places and (said := told_in_folder(path)):
        raise WeightsError(f"{path}: this folder holds no weight files that can be read ({said}).")
    if len(places) not in (1, 2):
        names = ", ".join(file.name for file, *_ in places[:4]) + (", ..." if len(places) > 4 else "")
        raise WeightsError(
            f"{path}: this folder holds {len(places)} weight files; give one with a VAE in it "
            f"(or an encoder and a decoder), or name the file itself{f': {names}' if places else ''}."
        )
    return places, config if config.is_file() else None, notices, weights


def _read(
    file: Path,
    more: Sequence[Path],
    config_file: Path | None,
    prefix: str | None,
    weights: Weights | None,
) -> _Piece:
    with file.open("rb") as opened:
        head = opened.read(8)
    if head == H5_SIGNATURE:
        if prefix or weights:
            raise UsageError("an h5 file holds half a VAE and no more; leave --prefix and --weights out")
        config, side, tensors, metadata = read_keras(file)
        return _Piece(
            layout="keras", config=config, parts=frozenset({side}), tensors=tensors, metadata=metadata,
            dtypes=_names(tensors.values()),
        )  # fmt: skip
    container: Container = Shards([open_container(f) for f in (file, *more)]) if more else open_container(file)
    stored = _json(container.metadata.get("calotype_config"))
    sibling = _sibling(config_file)

    def same(a: str, b: str) -> bool:
        first, second = container.read(a), container.read(b)
        return first.dtype == second.dtype and torch.equal(first, second)

    found = detect(
        container.shapes,
        norm_groups=stored.get("norm_groups", sibling.get("norm_num_groups")),
        prefix=prefix,
        weights=weights,
        same=same,
    )
    stored_tensors = {ours: container.read(key) for ours, key in found.keys.items()}
    tensors, notice = widened(stored_tensors)
    return _Piece(
        layout=found.layout,
        config=found.config,
        parts=found.parts,
        tensors={ours: _conv_shape(ours, tensor) for ours, tensor in tensors.items()},
        prefix=found.prefix,
        statistics=tuple(container.read(key) for key in found.statistics) if found.statistics else None,  # type: ignore[arg-type]
        family=found.family,
        metadata=container.metadata,
        dtypes=_names(stored_tensors.values()),
        choice=found.choice,
        notices=(*container.notices, *(f"{file}: {said}" for said in (*_said(found.choice, weights), *notice))),
    )


def _names(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    return tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))


def _said(choice: Choice | None, weights: Weights | None) -> list[str]:
    """What a user should know of what was taken from a file."""
    if choice is None:
        return []
    said = []
    if choice.twin and weights is None:
        taken, left = ("averaged", "raw") if choice.group.averaged else ("raw", "averaged")
        way = "raw" if left == "raw" else "ema"
        why = f" and are {choice.note}" if choice.note else f": --weights {way} takes them"
        said.append(
            f"the {taken} weights were taken, under {choice.group.prefix!r}; the {left} ones stand under "
            f"{choice.twin.prefix!r}{why}."
        )
    said += [f"left out: under {other.prefix!r} is {other.other}." for other in choice.others]
    return said


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
        decoder_ch = second.decoder_channels[0]
        config: NetworkConfig = replace(first, decoder_ch=decoder_ch if decoder_ch != first.ch else None)
    elif a.config != b.config:
        raise WeightsError(f"{path}: encoder and decoder differ: {a.config} and {b.config}.")
    else:
        config = a.config
    return replace(
        a,
        config=config,
        parts=a.parts | b.parts,
        tensors={**a.tensors, **b.tensors},
        dtypes=tuple(sorted({*a.dtypes, *b.dtypes})),
        notices=(*a.notices, *b.notices),
    )


def _format(
    piece: _Piece, config_file: Path | None, files: tuple[Path, ...], name: str | None
) -> tuple[LatentFormat | None, str]:
    """The latent format and how it is known: the user's word, the file's, a known file, config.json, its company."""
    channels = piece.config.z_channels
    if name is not None:
        return _named(name, channels, piece), "--latent-format"
    if stored := (piece.metadata or {}).get("calotype_latent_format"):
        return _readable(files[0], lambda: latent_format_from_dict(json.loads(stored))), "the file's metadata"
    if piece.statistics is not None:
        mean, var = (tuple(t.double().flatten().tolist()) for t in piece.statistics)
        eps = _sibling(config_file).get("batch_norm_eps", 1e-4)
        packed = _readable(files[0], lambda: flux2(mean, var, eps))
        if packed.channels != channels:
            raise WeightsError(
                f"{files[0]}: its {len(mean)} batch-norm statistics do not fit {channels} latent channels."
            )
        return packed, "batch-norm statistics in the weights"
    if isinstance(piece.config, TinyConfig) and piece.config.pool:
        return same_as_model("flux2", channels), "the architecture (TAEF2)"
    if piece.layout == "keras" and channels == 4 and "calotype_config" not in (piece.metadata or {}):
        return KNOWN["sd1"], "the layout (only Stable Diffusion 1 and 2 exist as h5)"
    # big checkpoints are told by their company below; hashing them would read them whole
    if not piece.prefix and (known := KNOWN_FILES.get(file_sha256(files[0]))):
        return _named(known, channels, piece), "the sha256 of a known file"
    if config_file and (format_ := _readable(config_file, lambda: _from_config(_sibling(config_file), piece))):
        return format_, "config.json"
    if isinstance(piece.config, TinyConfig):
        return same_as_model("taesd", channels), "the architecture (a TAESD's latents are model latents)"
    if piece.family:
        return _named(piece.family, channels, piece), "the other tensors of the checkpoint"
    return None, ""


def _readable(file: Path, make: Callable[[], F]) -> F:
    try:
        return make()
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WeightsError(f"{file}: what it says about its latents is damaged; fetch or convert it again.") from None


def _named(name: str, channels: int, piece: _Piece) -> LatentFormat:
    if isinstance(piece.config, TinyConfig):
        return same_as_model(name, channels)
    return latent_format(name, channels)


def _from_config(config: Mapping[str, Any], piece: _Piece) -> LatentFormat | None:
    channels = piece.config.z_channels
    if (mean := config.get("latents_mean")) and (std := config.get("latents_std")):
        return PerChannel(
            name=config.get("latent_format", "custom"), channels=channels, mean=tuple(mean), std=tuple(std)
        )
    scale, shift = config.get("scaling_factor"), config.get("shift_factor") or 0.0
    if scale is None:  # old files leave out what was diffusers' default; ours leave out what is not known
        old = config.get("_class_name") == "AutoencoderKL" and "calotype_config" not in (piece.metadata or {})
        return KNOWN["sd1"] if old and channels == 4 else None
    for known in KNOWN.values():
        if (known.scaling_factor, known.shift_factor, known.channels) == (scale, shift, channels):
            return known
    return ScaleShift(name="custom", channels=channels, scaling_factor=scale, shift_factor=shift)


def _sibling(config_file: Path | None) -> dict[str, Any]:
    return _json(config_file.read_text(encoding="utf-8", errors="replace") if config_file else None)


def _json(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        raise WeightsError("its config.json, or its own metadata, is not valid JSON; fetch it again") from None
    return value if isinstance(value, dict) else {}


def require_format(loaded: Loaded) -> LatentFormat:
    """The latent format of a VAE.

    Raises:
        LatentFormatError: if nothing tells it.
    """
    if loaded.format is None:
        channels = loaded.module.config.z_channels
        fitting = [f.name for f in KNOWN.values() if f.channels == channels] or ["none"]
        raise LatentFormatError(
            f"{loaded.files[0]}: VAEs with {channels} latent channels look alike whatever the scale of their latents; "
            f"say which this is with --latent-format {'|'.join(fitting)}."
        )
    return loaded.format
