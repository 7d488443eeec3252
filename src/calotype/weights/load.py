"""From a file or folder, in any layout, to a network with weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calotype.damage import damage, quoted
from calotype.errors import LatentFormatError, UsageError, WeightsError
from calotype.families import family_of, make_network
from calotype.families.face import Layout, NetworkConfig, listing
from calotype.families.network import Network
from calotype.hollow import hollow
from calotype.latents import (
    KNOWN,
    LatentFormat,
)
from calotype.texts import TextError, json_of, shown
from calotype.weights.container import DAMAGED, Container
from calotype.weights.detect import EDM, Detected, detect
from calotype.weights.diffusers_config import (
    MEANS,
    SCALED_MEANS,
    Said,
    described,
    norm_groups_of,
    parse_config,
    read_said,
    unused,
)
from calotype.weights.eight_bits import unpacked, widened
from calotype.weights.formats import DIFFUSERS_LAYOUTS, Piece, format_of
from calotype.weights.groups import Choice, Weights, summary
from calotype.weights.keras import read_keras
from calotype.weights.keras_file import KerasFile
from calotype.weights.mapped import dtype_name
from calotype.weights.places import find, locate, open_place

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # what weights are computed in

TRAINING = "calotype_training_"  # what begins the keys of facts about a training


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Where a file has all that a video's network needs.

    Attributes:
        files: one, or its shards.
        keys: our key -> the key in the file.
    """

    files: tuple[Path, ...]
    keys: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A network with its weights, and where they came from."""

    module: Network  # for inference, on the CPU; without the half that is not there
    layout: Layout  # whose names the tensors had
    parts: frozenset[str]  # "encoder", "decoder" or both
    sha256: str  # of the tensors under our keys, so the same in every layout
    dtypes: tuple[str, ...]  # as stored: torch's names, or those of the file's own types
    files: tuple[Path, ...]  # what was read, a half after the other
    container: str = ""  # the kind of file, for people
    prefix: str = ""  # what stood before the VAE's names
    format: LatentFormat | None = None  # None: the weights do not say
    format_source: str = ""  # how the format is known, for people
    question: str = ""  # why it is not, where more can be said than that nothing tells
    notes: tuple[str, ...] = ()  # sentences for people: what was assumed, and what was not read
    kept: Mapping[str, Any] = field(default_factory=dict)  # fields of a config.json that a conversion keeps
    said: Mapping[str, Any] = field(default_factory=dict)  # all fields of the config.json that was read beside them
    metadata: Mapping[str, str] | None = None  # texts by name, as the file has them beside its tensors
    averaged: bool = False  # whether these are weights averaged over a training (EMA)
    twin: str | None = None  # the prefix of the raw weights beside averaged ones, or of the averaged beside raw ones
    beside: str = ""  # what else is in the file, for people
    notices: tuple[str, ...] = ()  # what a user should know of how the file was read
    whole: tuple[Whole, ...] = ()  # where what frames need is, if it is there: see `weights.video`

    def training(self) -> dict[str, Any]:
        """What `calotype train` wrote into the file about how its weights were made."""
        facts: dict[str, Any] = {}
        for key, value in sorted((self.metadata or {}).items()):
            if key.startswith(TRAINING):
                with suppress(TextError):
                    facts[key.removeprefix(TRAINING)] = json_of(value, finite=False, names=True)
        return facts


def load_weights(
    path: str | os.PathLike[str],
    *,
    latent_format_name: str | None = None,
    prefix: str | None = None,
    weights: Weights | None = None,
    choices: Mapping[str, bool] | None = None,
) -> Loaded:
    """Loads the VAE in a file or folder; architecture and layout come from tensor names and shapes.

    Args:
        path: a weight file of any kind that `open_container` opens (a VAE alone or a whole checkpoint), a folder of
            diffusers, mflux or keras-hub (a VAE's or a pipeline's), or a folder with an encoder and a decoder file.
        latent_format_name: how raw and model latents differ, where the weights can't tell.
        prefix: what stands before the VAE's names in the file, where there are several VAEs.
        weights: "raw" or "ema" (averaged over a training), where both are there; "ema" where not given, if that is the
            whole VAE.
        choices: flags of its configuration that no weights tell, where it has any: `quantize` of VQ autoencoders.

    Raises:
        WeightsError: if there is no whole, finite VAE in it; the message names the file and what is wrong.
        UsageError: if the latent format is unknown or for another number of channels, or there is no VAE under the
            prefix, or none averaged, or nothing to choose of that name.
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"{path}: there is no such file or folder; give weights, or the name of a preset.")
    places, config_file, notices, weights = locate(path, weights)
    pieces = []
    for file, *more in places:
        try:
            with damage(WeightsError, DAMAGED):
                pieces.append(_read(file, more, config_file, prefix, weights))
        except (WeightsError, UsageError) as error:
            raise type(error)(f"{file}: {quoted(error, 2000)}.") from None
        except PermissionError:
            raise WeightsError(f"{file}: this file may not be read; check its permissions.") from None
    files = tuple(file for place in places for file in place)
    piece = pieces[0] if len(pieces) == 1 else _join(path, *pieces)
    if choices:
        piece = replace(piece, config=chosen(piece.config, choices))
    whole = tuple(Whole(files=place, keys=one.whole) for place, one in zip(places, pieces, strict=True))
    whole = whole if all(one.whole for one in pieces) else ()
    module = build(piece.config, piece.parts, piece.tensors, where=str(path))
    format_, source, question = format_of(piece, files, latent_format_name)
    return Loaded(
        module=module,
        layout=piece.layout,
        parts=piece.parts,
        sha256=tensors_sha256(module.state_dict()),
        dtypes=piece.dtypes,
        files=files,
        container=piece.container,
        prefix=piece.prefix,
        format=format_,
        format_source=source,
        question=question,
        notes=_notes(piece, source),
        kept=piece.kept,
        said=piece.said.values,
        metadata=piece.metadata,
        averaged=piece.choice is not None and piece.choice.group.averaged,
        twin=piece.choice.twin.prefix if piece.choice and piece.choice.twin else None,
        beside=summary(piece.choice.beside) if piece.choice else "",
        notices=(*notices, *piece.notices),
        whole=whole,
    )


def chosen(config: NetworkConfig, choices: Mapping[str, bool]) -> NetworkConfig:
    """A configuration with flags as somebody chose them.

    Raises:
        UsageError: if the network has no such choice.
    """
    family = family_of(config)
    for name in choices:
        if name not in family.choices:
            known = f"; it has {', '.join(family.choices)}" if family.choices else ""
            raise UsageError(f"A network of the kind {config.kind} has no choice {shown(name)}{known}.")
    return replace(config, **choices)  # type: ignore[type-var]


def load_tensors(tensors: Mapping[str, Tensor], fields: Mapping[str, Any], *, where: str) -> Loaded:
    """A VAE of diffusers, from what it holds in memory, which is shared and not copied where it can be.

    Args:
        tensors: its `state_dict`.
        fields: what its config.json says, `_class_name` among it.
        where: what it is, for messages.

    Raises:
        WeightsError: if these are not the tensors and fields of a whole VAE of a known kind.
    """
    values = {key: value for key, value in fields.items() if key == "_class_name" or not key.startswith("_")}
    said = Said(values=parse_config(json.dumps(values)))  # as from a file: lists, and no tuples
    try:
        found = detect({key: tuple(value.shape) for key, value in tensors.items()}, norm_groups=norm_groups_of(said))
        config = described(found.config, said, found.parts, {})
    except (WeightsError, UsageError) as error:
        raise WeightsError(f"{where}: {error}.") from None
    known = family_of(config)
    own = {ours: known.taken(config, ours, tensors[key].detach()) for ours, key in found.keys.items()}
    own |= {ours: torch.cat([tensors[key].detach() for key in keys]) for ours, keys in found.joined.items()}
    own = {ours: _conv_shape(config, ours, tensor) for ours, tensor in own.items()}
    return Loaded(
        module=build(config, found.parts, own, where=where),
        layout=found.layout,
        parts=found.parts,
        sha256="",
        dtypes=_names(own.values()),
        files=(Path(where),),
        kept=said.kept,
    )


def build(config: NetworkConfig, parts: frozenset[str], tensors: Mapping[str, Tensor], *, where: str) -> Network:
    """The network of `config`, holding exactly these tensors; a half VAE loses the other half's modules.

    Raises:
        WeightsError: if any tensor is missing, unexpected, of another shape, or not finite; all are listed.
    """
    try:
        module = without_weights(config, parts)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # torch's, of sizes
        raise WeightsError(f"{where}: these are the weights of no network that can be ({quoted(error)}).") from None
    state = module.state_dict()
    expected = {key: tuple(value.shape) for key, value in state.items()}
    counts = {key for key, value in state.items() if not value.is_floating_point()}
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
    if integers := sorted(
        key for key, value in tensors.items() if value.dtype not in ((torch.int64,) if key in counts else FLOATS)
    ):
        kinds = ", ".join(sorted({dtype_name(tensors[key].dtype) for key in integers}))
        problems.append(f"{kinds}, which no network computes in, in {listing('the', integers)}")
    if not problems and (bad := sorted(key for key, value in tensors.items() if not torch.isfinite(value).all())):
        problems.append(f"NaN or infinity in {listing('the', bad)}")
    if problems:
        raise WeightsError(f"{where}: these are not the weights of a whole VAE: {'; '.join(problems)}.")
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def without_weights(config: NetworkConfig, parts: frozenset[str]) -> Network:
    """The network of `config`, on the device "meta"; a half VAE lacks the other half's modules."""
    with hollow():
        module = make_network(config)
    for name, side in {"encoder": "encoder", "decoder": "decoder", **module.sides}.items():
        if side not in parts and hasattr(module, name):
            delattr(module, name)
    return module


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(
    file: Path,
    more: Sequence[Path],
    config_file: Path | None,
    prefix: str | None,
    weights: Weights | None,
) -> Piece:
    container = open_place(file, more)
    if config_file is None and (beside := file.with_name("config.json")).is_file():  # of a half in a folder of its own
        config_file = beside
    if isinstance(container, KerasFile) and container.in_order is not None:
        if prefix or weights:
            raise UsageError("such an h5 file holds half a VAE and no more; leave --prefix and --weights out")
        given, side, tensors = read_keras(container.in_order, container.metadata)
        return Piece(
            layout="keras", config=given, parts=frozenset({side}), tensors=tensors, metadata=container.metadata,
            said=read_said(config_file, file.parent), dtypes=_names(tensors.values()), container=container.kind,
        )  # fmt: skip
    found, said, own = find(container, file, config_file, prefix, weights)
    try:
        config, said = _described(found, own, said)
    except UsageError as error:
        raise WeightsError(str(error)) from None
    family = family_of(config)
    stored_tensors = {ours: family.taken(config, ours, container.read(key)) for ours, key in found.keys.items()}
    if family.copies:
        stored_tensors = {
            ours: tensor.clone(memory_format=torch.contiguous_format) for ours, tensor in stored_tensors.items()
        }
    for ours, keys in found.joined.items():
        rows = [container.read(key) for key in keys]
        if len({one.dtype for one in rows}) > 1:
            raise WeightsError(f"{listing('the', keys)} are of different types, and must be of one")
        stored_tensors[ours] = torch.cat(rows)
    tensors, narrow = widened(stored_tensors)
    used = [*found.keys.values(), *(key for keys in found.joined.values() for key in keys)]
    notices = (*_said(found.choice, weights), *narrow, *unpacked(container, used))
    return Piece(
        layout=found.layout,
        config=config,
        parts=found.parts,
        tensors={ours: _conv_shape(config, ours, tensor) for ours, tensor in tensors.items()},
        prefix=found.prefix,
        statistics=tuple(container.read(key) for key in found.statistics) if found.statistics else None,  # type: ignore[arg-type]
        family=found.family,
        metadata=container.metadata,
        said=said,
        edm=_edm(container),
        groups_assumed=found.groups_assumed,
        assumed="" if own or said.values else found.assumed,
        whole=found.whole,
        dtypes=_stored(container, used),
        container=container.kind,
        choice=found.choice,
        notices=(*container.notices, *(f"{file}: {said}" for said in notices)),
    )


def _edm(container: Container) -> dict[str, Tensor]:
    """The means and standard deviations of Playground's latents, wherever they stand in the file."""
    found = {name: key for key in container.shapes if (name := key.rpartition(".")[2]) in EDM}
    return {name: container.read(found[name]) for name in EDM if name in found}


def _described(found: Detected, own: Mapping[str, Any], said: Said) -> tuple[NetworkConfig, Said]:
    """The whole configuration; a config.json beside a file that describes itself may be about another one."""
    try:
        return described(found.config, said, found.parts, own), said
    except WeightsError:
        if not own or found.layout in DIFFUSERS_LAYOUTS:
            raise
        said = said.without(f"{said.file} is about another VAE and was not read.")
        return described(found.config, said, found.parts, own), said


def _notes(piece: Piece, source: str) -> tuple[str, ...]:
    notes = [*piece.said.notes, *(unused(piece.said) if source.startswith("config.json") else ())]
    if piece.assumed:
        notes.append(f"{piece.assumed}: shapes can't tell, and neither a config.json nor the file's metadata says.")
    if piece.groups_assumed and not piece.family and source != "the sha256 of a known file":
        notes.append(
            "Its norms are taken to have 32 groups, as is usual: shapes can't tell, and neither a config.json nor the "
            "file's metadata says."
        )
    return tuple(notes)


def _stored(container: Container, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({container.stored(key) for key in keys} - {"int64"}))  # of counts, which are no weights


def _names(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    return tuple(sorted({dtype_name(tensor.dtype) for tensor in tensors} - {"int64"}))


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
    if choice.unmatched and weights != "raw":
        said.append(
            f"the raw weights were taken: the averaged ones, under {choice.unmatched!r}, have no names and are not in "
            f"the order of the raw ones."
        )
    said += [f"left out: under {other.prefix!r} is {other.other}." for other in choice.others]
    return said


def _conv_shape(config: NetworkConfig, key: str, tensor: Tensor) -> Tensor:
    """What is a linear layer in newer diffusers files is a 1x1 convolution everywhere else."""
    diffusers = family_of(config).diffusers
    if tensor.ndim == 2 and diffusers is not None and diffusers.linear(key):
        return tensor[:, :, None, None]
    return tensor


def _join(path: Path, a: Piece, b: Piece) -> Piece:
    if a.parts & b.parts or a.layout != b.layout:
        raise WeightsError(
            f"{path}: its two weight files are not the encoder and the decoder of one VAE; name the file itself."
        )
    join = family_of(a.config).join
    if join is not None and type(a.config) is type(b.config):
        first, second = (a.config, b.config) if "encoder" in a.parts else (b.config, a.config)
        try:
            config = join(first, second)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}.") from None
    elif a.config != b.config:
        raise WeightsError(f"{path}: encoder and decoder differ: {a.config} and {b.config}.")
    else:
        config = a.config
    return replace(
        a,
        config=config,
        parts=a.parts | b.parts,
        said=a.said if a.said.values else b.said,
        tensors={**a.tensors, **b.tensors},
        dtypes=tuple(sorted({*a.dtypes, *b.dtypes})),
        notices=(*a.notices, *b.notices),
    )


def require_format(loaded: Loaded) -> LatentFormat:
    """The latent format of a VAE.

    Where a config.json can be read in two ways, ``means`` is (raw - latents_mean) / latents_std, and ``scaled-means``
    that times its scaling_factor.

    Raises:
        LatentFormatError: if nothing tells it.
    """
    if loaded.format is None:
        channels = loaded.module.config.z_channels
        family = family_of(loaded.module.config)
        known = [values["name"] for values in family.formats] or KNOWN
        fitting = list(family.spaces(loaded.module.config))
        fitting = fitting or [name for name in known if KNOWN[name].channels == channels] or ["none"]
        reason = f"VAEs with {channels} latent channels look alike whatever the scale of their latents"
        if loaded.question:
            reason = loaded.question
            fitting = ([MEANS, SCALED_MEANS] if loaded.kept.get("latents_mean") else []) + fitting
        raise LatentFormatError(
            f"{loaded.files[0]}: {reason}; say which this is with --latent-format {'|'.join(fitting)}."
        )
    return loaded.format
