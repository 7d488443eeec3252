"""Networks without their weights: what they compute, and what that takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calotype.engine.run import Engine
from calotype.families import PRESETS, make_network
from calotype.families.face import NetworkConfig
from calotype.vae import VAE, pick_device


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A VAE as far as its architecture tells.

    Attributes:
        name: as of `VAE`.
        parts: "encoder", "decoder" or both.
        engine: plans and programs only; there need not be weights to compute with.
    """

    name: str
    parts: frozenset[str]
    engine: Engine

    @property
    def config(self) -> NetworkConfig:
        """The network's architecture."""
        return self.engine.module.config


def outline_of(vae: VAE) -> Outline:
    """That of a VAE which is loaded."""
    return Outline(name=vae.name, parts=vae.loaded.parts, engine=vae.engine)


def outline_of_preset(
    name: str, *, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Outline:
    """That of a preset, whose architecture is known: nothing is fetched or read.

    Args:
        device, dtype: as `calotype.load` takes them.

    Raises:
        UsageError: there is no such device.
    """
    with torch.device("meta"):
        module = make_network(PRESETS[name].config)
    return Outline(
        name=name,
        parts=frozenset({"encoder", "decoder"}),
        engine=Engine(module.to(dtype), pick_device(device), dtype),
    )
