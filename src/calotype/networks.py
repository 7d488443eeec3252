"""Every network there is, behind its configuration."""

from __future__ import annotations

from calotype.autoencoder import AutoencoderKL
from calotype.config import AutoencoderConfig, FoldedConfig, NetworkConfig
from calotype.folded import FoldedAutoencoder
from calotype.tiny import TinyAutoencoder

Network = AutoencoderKL | FoldedAutoencoder | TinyAutoencoder


def make_network(config: NetworkConfig) -> Network:
    """A network of this configuration, freshly initialised."""
    if isinstance(config, AutoencoderConfig):
        return AutoencoderKL(config)
    return FoldedAutoencoder(config) if isinstance(config, FoldedConfig) else TinyAutoencoder(config)
