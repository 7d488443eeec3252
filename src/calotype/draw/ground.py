"""The plain ground of pictures, which drawings come near to and do not quite hit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from calotype.draw.sampler import Network
from calotype.vae import VAE


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """What is known of pictures that stand on white.

    Attributes:
        latents: model latents of nothing but white, [1, C, h, w].
        std: what a drawing's latents are off by where its picture is white.
    """

    latents: Tensor
    std: float

    def settled(self, clean: Tensor) -> Tensor:
        """An estimate of a drawing, [N, C, h, w], moved to the ground where it is likelier ground than anything else.

        Its latents are taken for one of two, as likely as each other beforehand: ground, and normal about it with
        `std`; or something else, and normal about it with a std of 1, which latents have. What is given is the mean
        of both by Bayes' rule, which is one or the other but for a narrow seam. (Estimates under a prior
        that is an atom and something broad: Johnstone & Silverman 2004, Annals of Statistics 32, 1594, section 2.)
        """
        off = self.latents.to(clean) - clean
        far = off.square().sum(1, keepdim=True)
        odds = off.shape[1] * -math.log(self.std) - far / 2 * (1 / self.std**2 - 1)
        return clean + odds.sigmoid() * off

    def held(self, network: Network) -> Network:
        """A network that predicts the velocity of a rectified flow, its estimates of the drawing `settled`."""

        def settling(x: Tensor, t: Tensor) -> Tensor:
            velocity, at = network(x, t), t[:, None, None, None]
            clean = x - at * velocity
            return velocity + (clean - self.settled(clean)) / at

        return settling


@torch.no_grad()
def white_ground(vae: VAE, std: float, height: int, width: int) -> Ground:
    """The ground of pictures of so many pixels in a VAE's latents; both sides are multiples of its factor."""
    white = torch.ones(1, 3, height, width)
    return Ground(latents=vae.latent_format.to_model(vae.encode(white).mode().float()), std=std)
