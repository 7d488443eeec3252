"""The posterior q(z|x): a diagonal Gaussian over the latents, held as moments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from calotype.errors import UsageError


class DiagonalGaussian:
    """Diagonal Gaussian over latents, from the moments an encoder gives.

    Follows ``DiagonalGaussianDistribution`` of CompVis/latent-diffusion (ldm/modules/distributions).

    Args:
        moments: [N, 2C, h, w]; the first C channels are the mean, the others the log-variance. The
            log-variance is clamped to [-30, 20].

    Raises:
        UsageError: they have another shape.
    """

    def __init__(self, moments: Tensor) -> None:
        if moments.ndim != 4 or moments.shape[1] % 2:
            raise UsageError(f"moments must be [N, 2C, h, w], not {list(moments.shape)}.")
        self.moments = moments  # [N, 2C, h, w]
        self.mean = moments.chunk(2, dim=1)[0]  # [N, C, h, w]

    def float(self) -> DiagonalGaussian:
        """The same posterior in float32."""
        return DiagonalGaussian(self.moments.float())

    @cached_property
    def logvar(self) -> Tensor:
        """Log-variance, clamped: [N, C, h, w]. Made when it is first asked for, as a mode does without."""
        return self.moments.chunk(2, dim=1)[1].clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        """Standard deviation, [N, C, h, w]."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """Variance, [N, C, h, w]."""
        return torch.exp(self.logvar)

    def mode(self) -> Tensor:
        """The most likely latents, which is the mean: [N, C, h, w]."""
        return self.mean

    def sample(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """Latents drawn by the reparameterisation z = mean + std * eps, eps ~ N(0, I): [N, C, h, w].

        (Kingma & Welling 2013, arXiv:1312.6114, section 2.4.) Gradients reach both mean and log-variance.

        Args:
            generator: one generator for the whole batch, or one for each picture; with the latter a picture's
                draw does not depend on its neighbours. Noise is drawn on the generator's device in float32, so
                the same seed gives the same latents on every device.

        Raises:
            UsageError: there are not as many generators as pictures.
        """
        return self.mean + self.std * self._noise(generator)

    def _noise(self, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
        if generator is None:
            return torch.randn_like(self.mean)
        if isinstance(generator, torch.Generator):
            eps = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        else:
            if len(generator) != len(self.mean):
                raise UsageError(f"{len(generator)} generators were given for {len(self.mean)} pictures.")
            shape = self.mean.shape[1:]
            eps = torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generator])
        return eps.to(self.mean)

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL(self || other) in nats, summed over latents: [N]. Without `other`, against N(0, I)."""
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            terms = (
                (self.mean - other.mean).square() / other.var
                + torch.exp(self.logvar - other.logvar)
                - 1.0
                - self.logvar
                + other.logvar
            )
        return 0.5 * terms.flatten(1).sum(1)

    def nll(self, latents: Tensor) -> Tensor:
        """Negative log-likelihood of latents [N, C, h, w] in nats, summed over latents: [N]."""
        terms = math.log(2.0 * math.pi) + self.logvar + (latents - self.mean).square() / self.var
        return 0.5 * terms.flatten(1).sum(1)


class Point:
    """The posterior of an encoder that gives latents and no variance (TAESD): all mass on one point.

    Args:
        latents: [N, C, h, w].
    """

    def __init__(self, latents: Tensor) -> None:
        self.moments = self.mean = latents  # [N, C, h, w]

    def float(self) -> Point:
        """The same posterior in float32."""
        return Point(self.mean.float())

    @property
    def std(self) -> Tensor:
        """Zeros, [N, C, h, w]."""
        return torch.zeros_like(self.mean)

    def mode(self) -> Tensor:
        """The latents, [N, C, h, w]."""
        return self.mean

    def sample(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """The latents again; nothing is drawn: [N, C, h, w]."""
        return self.mean


Posterior = DiagonalGaussian | Point  # what encoders give
