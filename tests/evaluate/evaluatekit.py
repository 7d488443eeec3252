"""Helpers for tests of whole evaluations."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from calotype.evaluate.protocol import preset
from calotype.evaluate.setup import Setup

METRICS = ("psnr", "ssim")


def setup(vaes: tuple[str, ...], **values: Any) -> Setup:
    return Setup(**{"vaes": vaes, "protocol": preset("whole"), "metrics": METRICS, "device": "cpu", **values})


def sheet(report: Path) -> list[dict[str, str]]:
    """The rows of results.csv."""
    with (report / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def figures(found: dict[str, Any]) -> Any:
    """All but when and how fast."""
    assert found["device"]
    vaes = [{k: v for k, v in one.items() if k not in ("speed", "memory")} for one in found["vaes"]]
    return {"vaes": vaes, **{k: found[k] for k in ("protocol", "pictures", "metrics")}}


class Means:
    """Features that are simple: the mean of each colour, and of the picture's halves."""

    name, width = "means", 4
    weights, resize = "none", "as they are"

    def to(self, device: torch.device) -> Means:
        return self

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"one": torch.ones(1)}

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        values = pictures.float()
        half = values[..., : values.shape[3] // 2].mean((1, 2, 3))
        return torch.cat([values.mean((2, 3)), half[:, None]], dim=1)
