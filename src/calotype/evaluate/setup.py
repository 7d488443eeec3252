"""What an evaluation is to be, in words, and everything loaded that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.engine.budget import parse_memory
from calotype.errors import UsageError
from calotype.evaluate import features
from calotype.evaluate.alpha import APART
from calotype.evaluate.compare import Evaluation, Pictures
from calotype.evaluate.decoders import half_sha256, require_decodes
from calotype.evaluate.lpips import load_lpips
from calotype.evaluate.measure import METRICS, TONES, Box, Tools
from calotype.evaluate.protocol import Protocol
from calotype.evaluate.sets import DISTANCES, require_enough
from calotype.families import require_as_large
from calotype.pixels import require_channels
from calotype.texts import COUNT, TextError, is_whole, json_of, plain, shown
from calotype.vae import VAE, load, pick_device
from calotype.weights.load import tensors_sha256
from calotype.weights.places import OTHER_SUFFIXES, SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is evaluated and how, in words: small, and the same on every machine.

    Attributes:
        vaes: presets or paths, as `calotype.load` takes them.
        decoders: likewise, which decode the latents of the one VAE that there is then, beside its own.
        any_vae: also decoders of which nothing tells that they are of its latent space.
        metrics: keys of `measure.ALL_METRICS`; in which order, and how often each, is no matter. None: `METRICS`, those
            of alpha where a VAE has it; and `TONES` where there are decoders.
        features: names of extractors that distances are over; likewise. "dinov2=FOLDER" says where its weights are (see
            `features.load_extractor`).
        distances: of `sets.DISTANCES`; in which order is no matter.
        boxes: subset -> picture's name -> boxes (left, top, right, bottom).
        device, memory: of the VAEs.
        threads: of torch, which decide the last bits of some figures; 0: as they are.
    """

    vaes: tuple[str, ...]
    protocol: Protocol
    decoders: tuple[str, ...] = ()
    any_vae: bool = False
    metrics: tuple[str, ...] | None = None
    features: tuple[str, ...] = ()
    distances: tuple[str, ...] = tuple(DISTANCES)
    boxes: Mapping[str, Mapping[str, Sequence[Box]]] = field(default_factory=dict)
    device: str | None = None
    memory: int | str | None = None
    threads: int = 0

    def build(self, pictures: Pictures, count: int | None = None) -> Evaluation:
        """Loads everything.

        Args:
            count: of the pictures that will be measured, where it is known: too few for a distance over inception or
                efficientnet-lite0 are refused before weights are looked for.

        Raises:
            UsageError: for an unknown metric or distance or none, a metric of alpha that no VAE has, two places for one
                extractor, too few pictures, what is no amount of memory, boxes that the protocol moves, boxes of no
                picture, the same weights under two names, a VAE whose pictures are neither grey, RGB nor RGBA, decoders
                of several VAEs, or one of another latent space.
            WeightsError: if weights of a VAE or of a metric are not there, or half a VAE is.
        """
        if not self.vaes:
            raise UsageError("no VAE was given; give a preset, a file or a folder.")
        if self.decoders and len(self.vaes) > 1:
            raise UsageError(
                f"--decoder decodes the latents of one VAE, and --vae names {len(self.vaes)}; give one, and the others "
                f"as decoders."
            )
        known = METRICS | TONES
        asked = tuple(known if self.decoders else METRICS) if self.metrics is None else self.metrics
        if unknown := [key for key in asked if key not in known]:
            raise UsageError(f"there is no metric {unknown[0]!r}; choose among {', '.join(known)}.")
        metrics = tuple(key for key in known if key in asked)
        if not metrics:
            raise UsageError(f"no metric was given; choose among {', '.join(known)}.")
        if unknown := [one for one in self.distances if one not in DISTANCES] or ([""] if not self.distances else []):
            raise UsageError(f"there is no distance {unknown[0]!r}; choose among {', '.join(DISTANCES)}.")
        if self.memory is not None:
            parse_memory(self.memory)
        if self.boxes and self.protocol.resize not in ("none", "exact"):
            raise UsageError(
                f"boxes are of pictures as they are, and the protocol {self.protocol.name} resizes them; leave the "
                f"boxes out, or give the protocol whole."
            )
        names = set(pictures.names)
        if strange := [name for of in self.boxes.values() for name in of if name not in names]:
            raise UsageError(
                f"boxes: there is no picture {strange[0]!r}; give names as the pictures have them, "
                f"such as {pictures.names[0]!r}."
            )
        places = self._places()
        if count is not None:
            widths = {name: features.WIDTHS[name] for name in places if name in features.WIDTHS}
            require_enough(widths, self.distances, count)
        if self.threads:
            torch.set_num_threads(self.threads)
        device = pick_device(self.device)
        lpips = {
            key: load_lpips(key.removeprefix("lpips_")).to(device)  # type: ignore[arg-type]
            for key in metrics
            if "lpips" in key
        }
        extractors = {name: features.load_extractor(name, path).to(device) for name, path in places.items()}
        networks: dict[str, nn.Module] = {**lpips, **extractors}
        tools = Tools(
            metrics=metrics, lpips=lpips, extractors=extractors,
            sha256={name: tensors_sha256(network.state_dict()) for name, network in networks.items()},
            distances=tuple(one for one in DISTANCES if one in self.distances), memory=self.memory,
        )  # fmt: skip
        dtype = getattr(torch, self.protocol.dtype)
        vaes, notices = self._load(device, dtype)
        rgba = any(vae.picture_channels == 4 for vae in vaes.values())
        if self.metrics is not None and not rgba and (idle := [key for key in metrics if key in APART]):
            raise UsageError(
                f"the metric {idle[0]} is of VAEs of RGBA pictures, and there is none among these; leave it out."
            )
        return Evaluation(
            vaes=vaes, pictures=pictures, protocol=self.protocol, tools=tools, boxes=self.boxes,
            encoder=next(iter(vaes.values())) if self.decoders else None, notices=notices,
        )  # fmt: skip

    def _load(self, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, VAE], tuple[str, ...]]:
        """VAEs and decoders by their labels, and what is to be said of these.

        Raises:
            UsageError, WeightsError: see `build`.
        """
        vaes: dict[str, VAE] = {}
        given: dict[str, str] = {}
        notices: list[str] = []
        for label, spec in labels(self.vaes, self.decoders).items():
            option = "--decoder" if spec in self.decoders else "--vae"
            vae = vaes[label] = load(spec, device=device, dtype=dtype, encode_dtype=dtype)
            require_channels(vae.picture_channels)
            if option == "--vae":
                vae.require("encoder", "decoder")
                require_as_large(vae.config, "An evaluation")
            else:
                vae.require("decoder")
                notices += self._said(label, spec, vaes)
            sha256 = half_sha256(vae) if self.decoders else vae.sha256
            same = given.setdefault(sha256, f"{option} {spec}")
            if same != f"{option} {spec}":
                what = "have the same decoder" if self.decoders else "are the same weights"
                raise UsageError(f"{same} and {option} {spec} {what} (sha256 {sha256[:12]}...); give one of them.")
        return vaes, tuple(notices)

    def _said(self, label: str, spec: str, vaes: Mapping[str, VAE]) -> list[str]:
        """What is to be said of a decoder, in sentences."""
        notice = require_decodes(next(iter(vaes.values())), vaes[label], spec, self.any_vae)
        found = [notice] if notice else []
        if (n := vaes[label].enlarges) != 1:
            found.append(
                f"{label} makes pictures {n} times as large along each side: it is compared after each {n} x {n} of "
                f"their pixels were averaged, so what it adds beyond the picture's size does not count."
            )
        return found

    def _places(self) -> dict[str, str | None]:
        """Extractors, and where the weights of each are; None: where they usually are."""
        found: dict[str, str | None] = {}
        for one in sorted(set(self.features)):
            name, named, path = one.partition("=")
            if named and not path:
                raise UsageError(f"{one!r} names no place; give {name}=PATH, or {name} alone.")
            if name in found:
                raise UsageError(f"{name} is given with two places; give one of {found[name] or 'none'} and {path}.")
            found[name] = path or None
        return found


def labels(specs: Sequence[str], decoders: Sequence[str] = ()) -> dict[str, str]:
    """A short name for each VAE or decoder: its preset's or folder's, or its file's without the ending of weights.

    Those that would be called alike are called as they were given.

    Raises:
        UsageError: one is given twice, or has no name.
    """
    names: dict[str, str] = {}
    for i, spec in enumerate((*specs, *decoders)):
        option = "--decoder" if i >= len(specs) else "--vae"
        if not spec.strip():
            raise UsageError(f"{option} {spec!r} names nothing; give a preset, a file or a folder.")
        if spec in names:
            before = " as --vae, whose own decoder is compared too" if option != "--vae" and spec in specs else " twice"
            raise UsageError(f"{option} {spec} is given{before}; give each once.")
        names[spec] = _short(spec)
    while alike := [spec for spec, name in names.items() if name != spec and list(names.values()).count(name) > 1]:
        names |= {spec: spec for spec in alike}
    return {name: spec for spec, name in names.items()}


def _short(spec: str) -> str:
    path = Path(spec)
    if path.is_dir():
        return (path if path.name not in ("", "..") else path.resolve()).name or spec  # "." has a name too
    return path.stem if path.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES) else path.name


def read_boxes(path: Path) -> dict[str, dict[str, list[Box]]]:
    """Boxes from JSON: {"faces": {"a.png": [[left, top, right, bottom], ...]}}.

    Raises:
        UsageError: if the file holds something else.
    """
    wanted = 'boxes must be JSON like {"faces": {"a.png": [[left, top, right, bottom]]}}, in pixels'
    try:
        loaded = json_of(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; give boxes as JSON.") from None
    except OSError as error:
        raise UsageError(f"{path}: boxes can't be read there ({error.strerror}); give a file with JSON.") from None
    except TextError as error:
        raise UsageError(f"{path}: {wanted}, and this is no JSON of that kind ({error}).") from None
    for value in (loaded, *(loaded.values() if isinstance(loaded, dict) else ())):
        if not isinstance(value, dict) or not value:
            raise UsageError(f"{path}: {wanted}, not {shown(value)} where names belong.")
    return {
        subset: {name: [_box(f"{path}: {plain(subset)}, {plain(name)}", one) for one in _parts(path, name, parts)]
                 for name, parts in of.items()}
        for subset, of in loaded.items()
    }  # fmt: skip


def _parts(path: Path, name: str, parts: Any) -> list[Any]:
    if not isinstance(parts, list) or not parts:
        raise UsageError(f"{path}: {plain(name)} must have a list of boxes, not {shown(parts)}.")
    return parts


def _box(place: str, values: Any) -> Box:
    if isinstance(values, list) and len(values) == 4 and all(is_whole(n) and n <= COUNT for n in values):
        left, top, right, bottom = values
        if 0 <= left < right and 0 <= top < bottom:
            return left, top, right, bottom
    raise UsageError(
        f"{place}: a box must be [left, top, right, bottom] in whole pixels, with left < right and top < bottom, not "
        f"{shown(values)}."
    )
