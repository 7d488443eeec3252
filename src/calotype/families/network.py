"""What all networks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from calotype.errors import UsageError
from calotype.families.face import NetworkConfig
from calotype.posterior import Posterior
from calotype.steps import Direction, Program


class Network(nn.Module, ABC):
    """An autoencoder of pictures; its submodules are called encoder and decoder.

    Attributes:
        config: the numbers that it follows from.
        blocks: kinds of submodules that most of it is made of; training may compute each once more, to save memory.
        sides: submodules that belong to encoder and decoder beside these two -> which.
        unused: submodules that `decode(encode(x))` computes no gradients for, so that training leaves them as they are.
    """

    config: NetworkConfig
    encoder: nn.Module
    decoder: nn.Module
    blocks: tuple[type[nn.Module], ...] = ()
    sides: dict[str, str] = {}  # noqa: RUF012
    unused: tuple[str, ...] = ()

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def encode(self, pixels: Tensor) -> Posterior:
        """Pixels [N, P, H, W] in [-1, 1], H and W multiples of f -> the posterior over raw latents."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents [N, z_channels, h, w] -> pixels [N, P, h * f, w * f], about [-1, 1], not clamped."""

    def decode_masked(self, latents: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
        """As `decode` where the mask [N, 1, H, W] is 1; where it is 0, what the decoder makes of pixels [N, P, H, W].

        Raises:
            UsageError: by networks whose decoder takes latents alone, as most.
        """
        raise UsageError(
            "This VAE's decoder takes latents and nothing else; one of an AsymmetricAutoencoderKL takes a picture and "
            "a mask too."
        )

    @abstractmethod
    def program(self, direction: Direction) -> Program:
        """What it computes, as steps."""
