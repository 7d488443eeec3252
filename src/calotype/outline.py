"""Networks without their weights: what they compute, and what that takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calotype.engine.run import Engine
from calotype.families import PRESETS, make_network
from calotype.families.face import NetworkConfig
from calotype.hollow import hollow
from calotype.vae import VAE, pick_device


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A VAE as far as its architecture tells.

    Attributes:
        name: as of `VAE`.
        parts: "encoder", "decoder" or both.
        engine, encoding: plans and programs only, of decodes and encodes; there need not be weights to compute with.
    """

    name: str
    parts: frozenset[str]
    engine: Engine
    encoding: Engine

    @property
    def config(self) -> NetworkConfig:
        """The network's architecture."""
        return self.engine.module.config


def outline_of(vae: VAE) -> Outline:
    """That of a VAE which is loaded."""
    encoding = Engine(vae.module, vae.device, vae.encode_dtype, vae.engine.asked)
    return Outline(name=vae.name, parts=vae.loaded.parts, engine=vae.engine, encoding=encoding)


def outline_of_preset(
    name: str,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    encode_dtype: torch.dtype | None = None,
) -> Outline:
    """That of a preset, whose architecture is known: nothing is fetched or read.

    Args:
        device, dtype, encode_dtype: as `calotype.load` takes them.

    Raises:
        UsageError: there is no such device.
    """
    with hollow():
        module = make_network(PRESETS[name].config)
    place = pick_device(device)
    return Outline(
        name=name,
        parts=frozenset({"encoder", "decoder"}),
        engine=Engine(module.to(dtype), place, dtype),
        encoding=Engine(module, place, encode_dtype or torch.float32),
    )
