"""A calotype VAE where a diffusers pipeline expects diffusers' own AutoencoderKL."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from calotype.config import AutoencoderConfig
from calotype.errors import UsageError
from calotype.latents import Packed
from calotype.vae import VAE
from calotype.weights.save import diffusers_config, save_weights

try:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput
    from diffusers.utils.accelerate_utils import apply_forward_hook
except ImportError:
    raise UsageError(
        "Pipelines need diffusers 0.42 or later; install it with: pip install 'calotype[diffusers]'"
    ) from None


class AutoencoderKL(ModelMixin, ConfigMixin):
    """Gives a `VAE` the interface of diffusers' AutoencoderKL: ``pipe.vae = AutoencoderKL(calotype.load(...))``.

    For inference only: no gradients flow. It holds a copy of the weights, so moving a pipeline leaves `vae` alone.

    What `enable_tiling` and `enable_slicing` are for, a `VAE` does by itself and exactly: results are the same with
    and without them. ``StableDiffusionImg2ImgPipeline.from_pipe(pipe)`` takes over diffusers' own classes only; add
    ``vae=pipe.vae``.

    Args:
        vae: an AutoencoderKL of SD1, SD2, SDXL, SD3 or FLUX.1; its device and dtype are where this starts.

    Raises:
        UsageError: for other networks (FLUX.2, TAESD, the built-in one), which pipelines use differently.
        LatentFormatError: if the weights do not say how latents are scaled; give `latent_format` to `calotype.load`.
    """

    _supports_group_offloading = False  # its hooks sit on layers, and a VAE may compute without calling them

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        if not isinstance(vae, VAE):
            raise UsageError(f"AutoencoderKL takes what calotype.load returns, not {type(vae).__name__}.")
        if not isinstance(vae.config, AutoencoderConfig) or isinstance(vae.loaded.format, Packed):
            raise UsageError(
                f"{vae!r} is not what pipelines know as an AutoencoderKL; those of SD1, SD2, SDXL, SD3 and FLUX.1 are."
            )
        # some pipelines read these two without asking whether they are there
        values = {"latents_mean": None, "latents_std": None, **diffusers_config(vae.config, vae.latent_format)}
        # the pipeline need not go to float32: what overflows in float16, the VAE computes again
        values["force_upcast"] = False
        self.register_to_config(**{key: value for key, value in values.items() if not key.startswith("_")})
        # what a pipeline's save_pretrained writes into model_index.json: `save_pretrained` leaves diffusers' own files
        self.__module__ = "diffusers"
        own = replace(vae.loaded, module=copy.deepcopy(vae.loaded.module))
        self._hold(VAE(own, name=vae.name, device=vae.device, dtype=vae.dtype))

    def _hold(self, vae: VAE) -> None:
        self._vae = vae
        for name, part in vae.module.named_children():
            self.add_module(name, part)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AutoencoderKL:
        """What `to`, `half`, `cuda` and their like end in: another device or dtype is another VAE."""
        weight = next(self.parameters())
        target = fn(weight.new_empty(0))
        if (target.device, target.dtype) != (weight.device, weight.dtype):
            if target.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                raise UsageError(f"A VAE computes in float32, bfloat16 or float16, not {target.dtype}.")
            loaded = self._vae.loaded
            loaded.module.cpu()  # where it costs no memory of the device while a narrower copy computes there
            self._hold(VAE(loaded, name=self._vae.name, device=target.device, dtype=target.dtype))
        super()._apply(fn, recurse)
        return self

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Pixels [N, P, H, W] in [-1, 1] -> an output whose `latent_dist` is over raw latents; see `VAE.encode`.

        Its moments have the dtype of this module, and are diffusers' own class, so samples are drawn as there.
        """
        self._require_weights()
        posterior = DiagonalGaussianDistribution(self._vae.encode(x).moments.to(self.dtype))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Raw latents [N, C, h, w] -> an output whose `sample` is pixels [N, P, h*f, w*f], about [-1, 1], not clamped.

        Args:
            generator: some pipelines give one; nothing is drawn.
        """
        self._require_weights()
        pixels = self._vae.decode(z, clamp=False).to(self.dtype)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    def enable_tiling(self) -> None:
        """Changes nothing: memory is bounded already, and without seams."""

    def disable_tiling(self) -> None:
        """Changes nothing."""

    def enable_slicing(self) -> None:
        """Changes nothing: memory is bounded already."""

    def disable_slicing(self) -> None:
        """Changes nothing."""

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes a folder that diffusers' own AutoencoderKL loads, in the dtype of this module.

        Raises:
            UsageError: if only an encoder or a decoder was loaded.
        """
        if len(self._vae.loaded.parts) < 2:
            (part,) = self._vae.loaded.parts
            raise UsageError(
                f"This VAE has only the {part}, and diffusers' folder holds both; load the other half too."
            )
        save_weights(self._vae.module, save_directory, layout="diffusers", format_=self._vae.latent_format)

    def _require_weights(self) -> None:
        if self.device.type == "meta":
            raise UsageError(
                "The weights are not here: a VAE can't run while it is offloaded piece by piece "
                "(enable_sequential_cpu_offload); use enable_model_cpu_offload."
            )
