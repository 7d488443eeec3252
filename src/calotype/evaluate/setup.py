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
from calotype.vae import load, pick_device


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is evaluated and how, in words: small, and the same on every machine.

    Attributes:
        vaes: presets or paths, as `calotype.load` takes them.
        metrics: keys of `measure.METRICS`.
        features: names of extractors that Fréchet and kernel distances are over.
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
            UsageError: for an unknown metric, boxes that the protocol moves, or boxes of no picture.
            WeightsError: if weights of a VAE or of a metric are not there.
        """
        if unknown := [key for key in self.metrics if key not in METRICS]:
            raise UsageError(f"there is no metric {unknown[0]!r}; choose among {', '.join(METRICS)}.")
        if self.boxes and self.protocol.resize not in ("none", "exact"):
            raise UsageError(f"boxes are of pictures as they are, and the protocol {self.protocol.name} resizes them.")
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
            for key in self.metrics
            if "lpips" in key
        }
        extractors = {}
        if self.features:
            from calotype.evaluate.features import load_extractor

            extractors = {name: load_extractor(name).to(device) for name in self.features}
        tools = Tools(metrics=self.metrics, lpips=lpips, extractors=extractors, memory=self.memory)
        dtype = getattr(torch, self.protocol.dtype)
        vaes = {label: load(spec, device=device, dtype=dtype) for label, spec in labels(self.vaes).items()}
        return Evaluation(vaes=vaes, pictures=pictures, protocol=self.protocol, tools=tools, boxes=self.boxes)


def labels(specs: Sequence[str]) -> dict[str, str]:
    """A short name for each VAE: its preset's, or its file's without what stands around it.

    Raises:
        UsageError: one is given twice.
    """
    found: dict[str, str] = {}
    for spec in specs:
        path = Path(spec)
        short = path.stem if path.suffix else path.name
        label = short if short not in found else spec
        if label in found:
            raise UsageError(f"--vae {spec} is given twice; give each once.")
        found[label] = spec
    return found


def read_boxes(path: Path) -> dict[str, dict[str, list[Box]]]:
    """Boxes from JSON: {"faces": {"a.png": [[left, top, right, bottom], ...]}}.

    Raises:
        UsageError: if the file holds something else.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(subset): {str(name): [_box(path, one) for one in parts] for name, parts in of.items()}
            for subset, of in loaded.items()
        }
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; give boxes as JSON.") from None
    except (ValueError, AttributeError, TypeError):
        raise UsageError(
            f'{path}: boxes must be JSON like {{"faces": {{"a.png": [[left, top, right, bottom]]}}}}, in pixels.'
        ) from None


def _box(path: Path, values: Any) -> Box:
    left, top, right, bottom = values
    if not all(isinstance(n, int) for n in values) or not (0 <= left < right and 0 <= top < bottom):
        raise UsageError(f"{path}: a box must be [left, top, right, bottom] in whole pixels, not {values!r}.")
    return left, top, right, bottom
