"""calotype in diffusers' pipelines: a class for each autoencoder that it knows, and all of it in one call.

accelerate(pipe)                                     # the pipeline's own weights, computed by calotype
pipe.vae = AutoencoderKL(calotype.load("sdxl-vae-fp16-fix"))    # other weights
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from calotype.errors import UsageError, WeightsError
from calotype.vae import VAE

try:
    import diffusers
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
    from diffusers.models.autoencoders.vae import EncoderOutput

    from calotype.integrations.drop_in import DropIn
    from calotype.integrations.frames import OfFrames
except ImportError:
    raise UsageError(
        "Pipelines need diffusers 0.42 or later; install it with: pip install 'calotype[diffusers]'"
    ) from None

Pipeline = TypeVar("Pipeline")  # any of diffusers' pipelines


class AutoencoderKL(DropIn, diffusers.AutoencoderKL):
    """diffusers' AutoencoderKL, computed by a `VAE`: ``pipe.vae = AutoencoderKL(calotype.load(...))``; see `DropIn`.

    It holds a copy of the weights, so moving a pipeline leaves `vae` alone.

    Args:
        vae: an AutoencoderKL of SD1, SD2, SDXL, SD3 or FLUX.1; its device and dtype are where this starts.

    Raises:
        UsageError: for other networks (FLUX.2, TAESD, the built-in one), which pipelines use differently.
        LatentFormatError: if the weights do not say how latents are scaled; give `latent_format` to `calotype.load`.
    """

    _known_as = "those of SD1, SD2, SDXL, SD3 and FLUX.1 are"


class AutoencoderKLFlux2(DropIn, diffusers.AutoencoderKLFlux2):
    """diffusers' AutoencoderKLFlux2, computed by a `VAE`; see `DropIn`.

    `encode` and `decode` are of raw latents, which the pipeline packs, and normalises by the statistics in ``bn``.

    Args:
        vae: a FLUX.2's.

    Raises:
        UsageError: for other networks.
    """

    _known_as = "those of FLUX.2 are"


class AutoencoderKLWan(OfFrames, diffusers.AutoencoderKLWan):
    """diffusers' AutoencoderKLWan, computed by a `VAE` where it is given one frame; see `OfFrames`.

    Args:
        vae: that of Wan 2.1 or 2.2, or another of their kind.

    Raises:
        UsageError: for other networks.
        LatentFormatError: as `AutoencoderKL`.
    """

    _known_as = "those of Wan 2.1, Wan 2.2 and their kin are"


class AutoencoderKLQwenImage(OfFrames, diffusers.AutoencoderKLQwenImage):
    """diffusers' AutoencoderKLQwenImage, computed by a `VAE`; see `OfFrames`.

    Args:
        vae: that of Qwen-Image or Wan 2.1, which are one network.

    Raises:
        UsageError: for other networks.
        LatentFormatError: as `AutoencoderKL`.
    """

    _known_as = "those of Qwen-Image and Wan 2.1 are"

    @classmethod
    def _fields(cls, vae: VAE) -> dict[str, Any]:
        return {**super()._fields(vae), "input_channels": vae.picture_channels}


class AutoencoderKLQwenImage21(OfFrames, diffusers.AutoencoderKLQwenImage21):
    """diffusers' AutoencoderKLQwenImage21, computed by a `VAE`; see `OfFrames`. Its pictures are RGBA.

    Args:
        vae: that of Qwen-Image 2.1.

    Raises:
        UsageError: for other networks.
        LatentFormatError: as `AutoencoderKL`.
    """

    _known_as = "that of Qwen-Image 2.1 is"


class AutoencoderDC(DropIn, diffusers.AutoencoderDC):
    """diffusers' AutoencoderDC, computed by a `VAE`; see `DropIn`. It has no posterior: `encode` gives ``latent``.

    Args:
        vae: a DC-AE, as SANA's.

    Raises:
        UsageError: for other networks.
        LatentFormatError: as `AutoencoderKL`.
    """

    _known_as = "DC-AEs, as SANA's, are"

    def _encoded(self, moments: Tensor) -> Any:
        return EncoderOutput(latent=moments)


class AutoencoderKLHunyuanImage(DropIn, diffusers.AutoencoderKLHunyuanImage):
    """diffusers' AutoencoderKLHunyuanImage, computed by a `VAE`; see `DropIn`.

    Args:
        vae: that of HunyuanImage 2.1.

    Raises:
        UsageError: for other networks.
        LatentFormatError: as `AutoencoderKL`.
    """

    _known_as = "that of HunyuanImage 2.1 is"
    _tiles_are_moments = True


class AutoencoderTiny(DropIn, diffusers.AutoencoderTiny):
    """diffusers' AutoencoderTiny, computed by a `VAE`; see `DropIn`. It has no posterior: `encode` gives ``latents``.

    Args:
        vae: a TAESD. Its latents are model latents of the VAE that it was distilled from.

    Raises:
        UsageError: for other networks, TAEF2 among them, whose blocks that class does not have.
    """

    _known_as = "TAESD, TAESDXL, TAESD3 and TAEF1 are"

    @classmethod
    def _fields(cls, vae: VAE) -> dict[str, Any]:
        pixels = vae.picture_channels
        return {"in_channels": pixels, "out_channels": pixels, "latent_channels": vae.latent_channels}

    def _encoded(self, moments: Tensor) -> Any:
        return AutoencoderTinyOutput(latents=moments)

    def decode(self, x: Tensor, generator: Any = None, return_dict: bool = True) -> Any:  # their order
        """As `DropIn.decode`."""
        return super().decode(x, return_dict=return_dict)

    def tiled_encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """As `encode`: that class has none of this name."""
        return self.encode(x, return_dict=return_dict)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """As `decode`: that class has none of this name."""
        return self.decode(z, return_dict=return_dict)


CLASSES: tuple[type[DropIn], ...] = (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLWan,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    AutoencoderDC,
    AutoencoderKLHunyuanImage,
    AutoencoderTiny,
)
"""Those that stand in the place of diffusers' classes."""


def accelerate(pipe: Pipeline) -> Pipeline:
    """Puts calotype's VAE in the place of a pipeline's, with the pipeline's own weights, and returns the pipeline.

    Nothing is read from files, and no weights are copied: the new `pipe.vae` holds those of the old one, on its device,
    in its dtype and with its configuration. Pictures are the same; see `DropIn` for when who computes. A pipeline
    whose VAE is calotype's already is returned as it is. Parts are offloaded (`enable_model_cpu_offload` and its like)
    after this, not before.

    Args:
        pipe: a pipeline of diffusers with a VAE of one of `CLASSES`.

    Raises:
        UsageError: if it is no pipeline, has no VAE or one of another class or of a type in which none computes, or
            parts of it are offloaded already.
        WeightsError: if the VAE has other tensors than its class (as with adapters).
    """
    name = type(pipe).__name__
    if not isinstance(pipe, diffusers.DiffusionPipeline):
        raise UsageError(
            f"accelerate takes a pipeline of diffusers, and this is of the type {name}; give the pipeline."
        )
    held: Any = pipe
    vae = getattr(held, "vae", None)
    if isinstance(vae, DropIn):
        return pipe
    if vae is None:
        raise UsageError(f"This {name} has no VAE (pipe.vae), and there is nothing to accelerate.")
    found = next((own for own in CLASSES if own._theirs() is type(vae)), None)
    if found is None:
        known = ", ".join(own.__name__ for own in CLASSES)
        raise UsageError(
            f"The VAE of this {name} is of the class {type(vae).__name__}, and those that can be accelerated are "
            f"{known}."
        )
    if hasattr(vae, "_hf_hook") or hasattr(vae, "_diffusers_hook") or vae.device.type == "meta":
        raise UsageError(
            f"Parts of this {name} are offloaded already; call accelerate(pipe) first, and offload them after it."
        )
    try:
        held.vae = found.of(vae)
    except WeightsError as error:
        raise WeightsError(f"The VAE of this {name} can't be taken over: {error}") from None
    return pipe
