"""What an evaluation is to be, in words, and everything loaded that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from calotype.errors import UsageError
from calotype.evaluate.compare import Evaluation, Pictures
from calotype.evaluate.lpips import load_lpips
from calotype.evaluate.measure import METRICS, Box, Tools
from calotype.evaluate.protocol import Protocol
from calotype.vae import VAE, load, pick_device
from calotype.weights.load import SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is evaluated and how, in words: small, and the same on every machine.

    Attributes:
        vaes: presets or paths, as `calotype.load` takes them.
        metrics: keys of `measure.METRICS`; in which order, and how often each, is no matter.
        features: names of extractors that Fréchet and kernel distances are over; likewise.
        boxes: subset -> picture's name -> boxes (left, top, right, bottom).
        device, memory: of the VAEs.
        threads: of torch, which decide the last bits of some figures; 0: as they are.
    """

    vaes: tuple[str, ...]
    protocol: Protocol
    metrics: tuple[str, ...] = tuple(METRICS)
    features: tuple[str, ...] = ()
    boxes: Mapping[str, Mapping[str, Sequence[Box]]] = field(default_factory=dict)
    device: str | None = None
    memory: int | str | None = None
    threads: int = 0

    def build(self, pictures: Pictures) -> Evaluation:
        """Loads everything.

        Raises:
            UsageError: for an unknown metric or none, boxes that the protocol moves, boxes of no picture, or the same
                weights under two names.
            WeightsError: if weights of a VAE or of a metric are not there.
        """
        if unknown := [key for key in self.metrics if key not in METRICS]:
            raise UsageError(f"there is no metric {unknown[0]!r}; choose among {', '.join(METRICS)}.")
        metrics = tuple(key for key in METRICS if key in self.metrics)
        if not metrics:
            raise UsageError(f"no metric was given; choose among {', '.join(METRICS)}.")
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
        if self.threads:
            torch.set_num_threads(self.threads)
        device = pick_device(self.device)
        lpips = {
            key: load_lpips(key.removeprefix("lpips_")).to(device)  # type: ignore[arg-type]
            for key in metrics
            if "lpips" in key
        }
        extractors = {}
        if self.features:
            from calotype.evaluate.features import load_extractor

            extractors = {name: load_extractor(name).to(device) for name in sorted(set(self.features))}
        tools = Tools(metrics=metrics, lpips=lpips, extractors=extractors, memory=self.memory)
        dtype = getattr(torch, self.protocol.dtype)
        vaes: dict[str, VAE] = {}
        given: dict[str, str] = {}
        for label, spec in labels(self.vaes).items():
            vaes[label] = load(spec, device=device, dtype=dtype)
            same = given.setdefault(vaes[label].sha256, spec)
            if same != spec:
                raise UsageError(
                    f"--vae {same} and --vae {spec} are the same weights (sha256 {vaes[label].sha256[:12]}...); "
                    f"give one of them."
                )
        return Evaluation(vaes=vaes, pictures=pictures, protocol=self.protocol, tools=tools, boxes=self.boxes)


def labels(specs: Sequence[str]) -> dict[str, str]:
    """A short name for each VAE: its preset's or folder's, or its file's without the ending of weights.

    Those that would be called alike are called as they were given.

    Raises:
        UsageError: one is given twice, or has no name.
    """
    names: dict[str, str] = {}
    for spec in specs:
        if not spec.strip():
            raise UsageError(f"--vae {spec!r} names nothing; give a preset, a file or a folder.")
        if spec in names:
            raise UsageError(f"--vae {spec} is given twice; give each once.")
        names[spec] = _short(spec)
    while alike := [spec for spec, name in names.items() if name != spec and list(names.values()).count(name) > 1]:
        names |= {spec: spec for spec in alike}
    return {name: spec for spec, name in names.items()}


def _short(spec: str) -> str:
    path = Path(spec)
    if path.is_dir():
        return (path if path.name not in ("", "..") else path.resolve()).name or spec  # "." has a name too
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def read_boxes(path: Path) -> dict[str, dict[str, list[Box]]]:
    """Boxes from JSON: {"faces": {"a.png": [[left, top, right, bottom], ...]}}.

    Raises:
        UsageError: if the file holds something else.
    """
    wanted = 'boxes must be JSON like {"faces": {"a.png": [[left, top, right, bottom]]}}, in pixels'
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; give boxes as JSON.") from None
    except ValueError as error:
        raise UsageError(f"{path}: {wanted}, and this is no JSON ({error}).") from None
    for value in (loaded, *(loaded.values() if isinstance(loaded, dict) else ())):
        if not isinstance(value, dict) or not value:
            raise UsageError(f"{path}: {wanted}, not {_brief(value)} where names belong.")
    return {
        subset: {name: [_box(f"{path}: {subset}, {name}", one) for one in _parts(path, name, parts)]
                 for name, parts in of.items()}
        for subset, of in loaded.items()
    }  # fmt: skip


def _parts(path: Path, name: str, parts: Any) -> list[Any]:
    if not isinstance(parts, list) or not parts:
        raise UsageError(f"{path}: {name} must have a list of boxes, not {_brief(parts)}.")
    return parts


def _box(place: str, values: Any) -> Box:
    if isinstance(values, list) and len(values) == 4 and all(type(n) is int for n in values):
        left, top, right, bottom = values
        if 0 <= left < right and 0 <= top < bottom:
            return left, top, right, bottom
    raise UsageError(f"{place}: a box must be [left, top, right, bottom] in whole pixels, not {_brief(values)}.")


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
