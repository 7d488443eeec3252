"""A tiny network of every family, in diffusers' folder or, where it has none such, in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dcaekit
import pytest
import wankit
from support import SMALL, import_diffusers, network

from calotype.families.hunyuan.config import HunyuanImageConfig
from calotype.latents import KNOWN, Packed
from calotype.weights.save import save_weights

HUNYUAN = HunyuanImageConfig(channels=(32, 64, 128), num_res_blocks=1, z_channels=64)
PACKED = Packed(name="flux2", channels=4, running_mean=(0.5, -1.0) * 8, running_var=(2.0, 0.5) * 8)


@dataclass(frozen=True)
class Kind:
    """A network.

    Attributes:
        make: writes it into a folder.
        layouts: that it is written in, whole; the first is that of `make`.
        flat: and in which one picture's part of it is, if that is not all.
    """

    make: Callable[[Path], Any]
    factor: int
    channels: int
    pictures: int = 3
    layouts: tuple[str, ...] = ("diffusers", "ldm")
    flat: str = ""


def _wan(variant: str) -> Callable[[Path], Any]:
    return lambda path: wankit.theirs(variant).save_pretrained(path)


def _dcae(name: str) -> Callable[[Path], Any]:
    return lambda path: dcaekit.reference(dcaekit.SMALL[name]).save_pretrained(path)


def _flux2(path: Path) -> None:
    save_weights(network(SMALL), path, layout="diffusers", format_=PACKED)


def _hunyuan(path: Path) -> None:
    import_diffusers()
    save_weights(network(HUNYUAN), path, layout="diffusers", format_=KNOWN["hunyuan-image"])


KINDS: dict[str, Kind] = {
    "flux2": Kind(_flux2, 2, 4),
    "wan-2.1": Kind(_wan("wan-2.1"), 4, 16, flat="diffusers-2d"),
    "qwen-image-layered": Kind(_wan("qwen-image-layered"), 4, 16, 4, flat="diffusers-2d"),
    "wan-2.2": Kind(_wan("wan-2.2"), 8, 48, flat="diffusers-2d"),
    "qwen-image-2.1": Kind(_wan("qwen-image-2.1"), 4, 64, 4, flat="diffusers-2d"),
    "sana": Kind(_dcae("sana"), 32, 4),
    "f64": Kind(_dcae("f64"), 64, 8),
    "f128": Kind(_dcae("f128"), 128, 32),
    "hunyuan": Kind(_hunyuan, 4, 64),
}

_SLOW = ("flux2", "qwen-image-layered", "f64", "f128")  # like others here, or padded to 64 and 128 pixels
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name for name in KINDS]
"""For tests of all."""
