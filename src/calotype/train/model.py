"""What one training step computes: everything with a gradient in one forward pass, as DDP and FSDP want it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from calotype.families import FAMILIES, network_class
from calotype.families.network import Network
from calotype.latents import LatentFormat
from calotype.pixels import seen
from calotype.posterior import DiagonalGaussian, Point, Posterior
from calotype.train import family
from calotype.train.discriminator import PatchDiscriminator
from calotype.train.family import Autoencoder
from calotype.train.recipe import Recipe
from calotype.train.regularisers import Alignment, Transform, shift_loss

# what is computed again where gradient_checkpointing is set, and whose activations a range is for
BLOCKS = (*(block for one in FAMILIES for block in network_class(one).blocks), family.Pair)


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The products' type that a recipe asks for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


class Output(NamedTuple):
    """Of one forward pass.

    Attributes:
        moments: [N, 2C, h, w], or latents [N, C, h, w] where the network has no posterior.
        latents: [N, C, h, w], drawn from it.
        reconstruction: [N, P, H, W], of transformed latents where they are transformed.
        logvar: of the reconstruction, a scalar.
        alignment, shift, excess: what the recipe's regularisers cost, scalars; zero where it has none.
    """

    moments: Tensor
    latents: Tensor
    reconstruction: Tensor
    logvar: Tensor
    alignment: Tensor
    shift: Tensor
    excess: Tensor


class Model(nn.Module):
    """A network with what is trained beside it.

    Args:
        network: half of it may be frozen already; that half is run without gradients.
        recipe: of the run.
        features: channels of the features that latents are aligned to.
    """

    def __init__(self, network: Autoencoder, recipe: Recipe, features: int = 0) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.logvar = nn.Parameter(torch.zeros(1), requires_grad=recipe.logvar == "learned")
        if recipe.alignment:
            channels = recipe.network.z_channels
            self.alignment = Alignment(channels, features, margins=recipe.alignment.margins)
        if recipe.gradient_checkpointing:
            for module in network.modules():
                if isinstance(module, BLOCKS):
                    module.forward = partial(checkpoint, module.forward, use_reentrant=False)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        transform: Transform | None = None,
        features: Tensor | None = None,
        shift: Tensor | None = None,
        given: Tensor | None = None,
    ) -> Output:
        """Encodes pixels [N, P, H, W] and decodes a sample of what comes out.

        Args:
            noise: [N, C, h, w], standard normal, of the sample.
            transform: of latents before they are decoded; its `input` is in x already.
            features: [N, D, h', w'] to align to.
            shift: (rows, columns) in pixels, of the alias-free loss.
            given: [N, C, h, w], decoded instead of the sample.
        """
        with autocast(self.recipe, x.device):
            return self._forward(x, noise, transform, features, shift, given)

    def _forward(
        self,
        x: Tensor,
        noise: Tensor,
        transform: Transform | None,
        features: Tensor | None,
        shift: Tensor | None,
        given: Tensor | None,
    ) -> Output:
        nothing = x.new_zeros(())
        with self._watched() as excess:
            with torch.set_grad_enabled(torch.is_grad_enabled() and _trained(self.network.encoder)):
                posterior = self.network.encode(x).float()
            latents = posterior.mode()
            if self.recipe.latent == "sample" and isinstance(posterior, DiagonalGaussian):
                latents = posterior.mean + posterior.std * noise
            read = latents if given is None else given
            if transform is not None:
                read = transform.latents(read)
            reconstruction = self.network.decode(read)
        return Output(
            moments=posterior.moments,
            latents=latents,
            reconstruction=reconstruction.float(),
            logvar=self.logvar.sum(),
            alignment=self.alignment(latents, features) if features is not None else nothing,
            shift=self._shifted(x, latents, shift) if shift is not None else nothing,
            excess=torch.stack(excess).mean() if excess else nothing,
        )

    def _shifted(self, x: Tensor, latents: Tensor, shift: Tensor) -> Tensor:
        def encode(pixels: Tensor) -> Tensor:
            return self.network.encode(pixels).mode()

        return shift_loss(encode, self.network.decode, x, latents, shift)

    @contextmanager
    def _watched(self) -> Iterator[list[Tensor]]:
        """What blocks give meanwhile: the mean square of what is above the recipe's range, in units of it."""
        found: list[Tensor] = []
        limits = self.recipe.activation_range
        if limits is None:
            yield found
            return

        def look(module: nn.Module, given: Any, made: Tensor) -> None:
            found.append(((made.float().abs() - limits.limit) / limits.limit).clamp(min=0).square().mean())

        handles = [m.register_forward_hook(look) for m in self.network.modules() if isinstance(m, BLOCKS)]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


class Judge(nn.Module):
    """Both of a discriminator's passes in one: batch statistics are of each alone, and DDP sees a single forward."""

    def __init__(self, discriminator: PatchDiscriminator, recipe: Recipe) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.recipe = recipe

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self.recipe, real.device):
            return self.discriminator(real).float(), self.discriminator(fake).float()


class Scaled:
    """A network seen through its latent format: it encodes to model latents, and decodes them."""

    def __init__(self, network: Autoencoder, format_: LatentFormat) -> None:
        self.network, self.format = network, format_

    def encode(self, pixels: Tensor) -> Point:
        """Pixels -> model latents; of the mode."""
        return Point(self.format.to_model(self.network.encode(pixels).mode()))

    def decode(self, latents: Tensor) -> Tensor:
        """Model latents -> pixels."""
        return self.network.decode(self.format.to_raw(latents))


def _trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def posterior_by_width(moments: Tensor, channels: int) -> Posterior:
    """The posterior that these moments are of, told by how many they are."""
    return DiagonalGaussian(moments) if moments.shape[1] == 2 * channels else Point(moments)


def last_layer(network: Autoencoder, half: str) -> nn.Parameter:
    """The weight of the last convolution of a half, where losses' gradients are weighed against each other."""
    weights: Callable[[nn.Module], list[nn.Parameter]] = lambda m: [p for p in m.parameters() if p.ndim > 1]  # noqa: E731
    return weights(getattr(network, half))[-1]


def freeze(network: Autoencoder, train: str) -> None:
    """Keeps all but the half that is trained as it is; what stands beside the two belongs to the half it names."""
    sides = {"encoder": "encoder", "decoder": "decoder", **(network.sides if isinstance(network, Network) else {})}
    for name, part in network.named_children():
        if train not in ("all", sides.get(name)):
            part.requires_grad_(False)


def freeze_unused(network: Autoencoder) -> None:
    """Keeps what no gradient reaches as it is: processes that train together would wait for it."""
    for name in network.unused if isinstance(network, Network) else ():
        for path, part in network.named_modules():
            if path == name:
                part.requires_grad_(False)


@torch.no_grad()
def quieten(network: Autoencoder) -> None:
    """Begins with little posterior noise (std about 0.007): with much, a decoder has nothing to learn from for long."""
    weights = [p for p in network.encoder.parameters() if p.ndim > 1]
    biases = [p for p in network.encoder.parameters() if p.ndim == 1]
    quant = getattr(network, "quant_conv", None)
    weight, bias = (quant.weight, quant.bias) if quant is not None else (weights[-1], biases[-1])
    half = network.config.z_channels
    if len(weight) == 2 * half:  # networks without a posterior give latents only
        weight[half:].mul_(0.1)
        bias[half:].fill_(-10.0)


@contextmanager
def measured(*modules: nn.Module) -> Iterator[None]:
    """Batch norms use the statistics that they have, and take none."""
    training = [module for module in modules if module.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()


def triples(pixels: Tensor) -> Tensor:
    """Pixels [N, C, H, W] as networks for RGB see them: RGB as it is, RGBA over white and over black, [2N, 3, H, W].

    So do metrics: together the two say all of a picture but the colours of what is fully transparent.
    """
    return pixels if pixels.shape[1] == 3 else seen(pixels).reshape(-1, 3, *pixels.shape[2:])
