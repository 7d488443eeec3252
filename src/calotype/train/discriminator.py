"""Adversarial training: a PatchGAN discriminator, its losses and regularisers, and the generator's weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from calotype.errors import UsageError

Norm = Literal["batch", "group", "spectral", "none"]
Reduce = Callable[[Tensor], Tensor]  # averages a tensor over processes


class PatchDiscriminator(nn.Module):
    """Tells real patches from reconstructed ones: pixels [N, C, H, W] in [-1, 1] -> logits [N, 1, h, w].

    pix2pix's PatchGAN (Isola et al. 2017, arXiv:1611.07004) as latent-diffusion and taming-transformers have it, under
    their keys (``main.0.weight``): convolutions of kernel 4, LeakyReLU 0.2, weights from N(0, 0.02). With the defaults
    it has 2,765,633 parameters, sees patches of 70 x 70 pixels, and gives 30 x 30 logits for 256 x 256 pixels.

    Args:
        in_channels: of the pictures.
        ndf: channels after the first convolution; they double with each one up to eightfold.
        layers: convolutions of stride 2.
        norm: between convolutions. ``batch`` is the published form; it takes statistics from the batch, so that at a
            batch of one or two it can't see a picture's colour and contrast, and the gradient of one picture's logits
            reaches the others. ``group`` does neither; ``spectral`` is a norm of the weights (arXiv:1802.05957).

    Attributes:
        least: shortest side of a picture that leaves one logit, in pixels.
    """

    def __init__(self, in_channels: int = 3, ndf: int = 64, layers: int = 3, norm: Norm = "batch") -> None:
        super().__init__()
        self.least = 3 * 2**layers
        widths = [in_channels, *(ndf * min(2**i, 8) for i in range(layers + 1))]
        modules: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            between = _norm(norm, after) if i else []
            bias = not any(isinstance(m, nn.BatchNorm2d) for m in between)  # which would take it out again
            modules.append(nn.Conv2d(before, after, 4, stride=2 if i < layers else 1, padding=1, bias=bias))
            modules += [*between, nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if norm == "spectral":
                    spectral_norm(module)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each patch, above 0 for real.

        Raises:
            UsageError: if a side is shorter than `least`.
        """
        if min(x.shape[2:]) < self.least:
            raise UsageError(
                f"this discriminator needs crops of at least {self.least} x {self.least} pixels, not {x.shape[2]} x "
                f"{x.shape[3]}; train on larger ones, or give it fewer layers."
            )
        logits: Tensor = self.main(x)
        return logits


def _norm(kind: Norm, channels: int) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm2d(channels)]
    return [nn.GroupNorm(math.gcd(32, channels), channels)] if kind == "group" else []


def discriminator_loss(real: Tensor, fake: Tensor, kind: Literal["hinge", "vanilla"] = "hinge") -> Tensor:
    """The discriminator's loss, a scalar; its pictures must be detached from the generator.

    hinge: (mean relu(1 - real) + mean relu(1 + fake)) / 2 (arXiv:1705.02894). vanilla: (mean softplus(-real) + mean
    softplus(fake)) / 2 (arXiv:1406.2661). The half is latent-diffusion's.

    Args:
        real, fake: logits, of any shape.

    Raises:
        UsageError: for another kind.
    """
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    if kind == "vanilla":
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    raise UsageError(f"a discriminator's loss must be hinge or vanilla, not {kind!r}.")


def generator_loss(fake: Tensor) -> Tensor:
    """-mean(logits of reconstructions), a scalar, as in latent-diffusion for either kind of discriminator's loss."""
    return -fake.float().mean()


class LeCam(nn.Module):
    """LeCam regularisation (Tseng et al. 2021, arXiv:2104.03310), for little data.

    Keeps logits near the moving average of the other side's: mean relu(real - average of fake)^2 + mean
    relu(average of real - fake)^2, the one-sided form of the authors' code (google/lecam-gan). The averages start as
    the first logits' means.

    Args:
        decay: of the averages, a call.
    """

    anchors: Tensor
    updates: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("anchors", torch.zeros(2))  # of real and fake logits
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor, reduce: Reduce | None = None) -> Tensor:
        """Moves the averages by these logits, and gives the penalty, a scalar.

        Args:
            real, fake: logits, of any shape.
            reduce: averages over processes, so that all have the same averages.
        """
        real, fake = real.float(), fake.float()
        with torch.no_grad():
            means = torch.stack([real.mean(), fake.mean()])
            if reduce is not None:
                means = reduce(means)
            rate = torch.where(self.updates == 0, 1.0, 1.0 - self.decay)
            self.anchors.lerp_(means, rate)
            self.updates += 1
            of_real, of_fake = self.anchors.clone()
        return F.relu(real - of_fake).square().mean() + F.relu(of_real - fake).square().mean()


def r1_penalty(logits: Tensor, real: Tensor) -> Tensor:
    """|gradient|^2 / 2 of a real picture's logits by its pixels, mean over pictures: a scalar, to be taken times gamma.

    Mescheder et al. 2018 (arXiv:1801.04406), equation 9. A picture's logits are summed over its patches. With batch
    norm the gradient has other pictures' logits in it: take another norm.

    Args:
        logits: of `real`.
        real: [N, C, H, W], with requires_grad.
    """
    (gradient,) = torch.autograd.grad(logits.float().sum(), real, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean()


def adaptive_weight(
    nll: Tensor,
    g: Tensor,
    last_layer: Tensor,
    *,
    maximum: float = 1e4,
    reduce: Reduce | None = None,
) -> Tensor:
    """clamp(|gradient of nll| / (|gradient of g| + 1e-4), 0, maximum), a scalar without gradient.

    Esser et al. 2021 (arXiv:2012.09841), equation 7, with the constants of their code and of latent-diffusion's. The
    1e-4 and the maximum are absolute, so the size of `nll` matters: there it is a sum over C, H and W, divided by N.

    Args:
        nll: the loss that sets the measure, a scalar.
        g: the loss that is weighed, a scalar.
        last_layer: the weight by which both gradients are taken; both graphs are kept.
        reduce: averages a gradient over processes, before its norm is taken.
    """
    norms = []
    for loss in (nll, g):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        gradient = gradient.float()
        norms.append((gradient if reduce is None else reduce(gradient)).norm())
    weight: Tensor = (norms[0] / (norms[1] + 1e-4)).clamp(0.0, maximum)
    return weight
