"""calotype: the latent images of Stable Diffusion-style models.

    import calotype

    vae = calotype.load()                        # or a preset's name, or a path to weights
    latents = vae.encode_image("photo.jpg")
    vae.decode_image(latents).save("again.png")

Nothing heavy is imported until one of these names is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calotype.errors import CalotypeError
    from calotype.evaluate.reconstruct import Reconstruction, reconstruct
    from calotype.families.folded.config import FoldedConfig
    from calotype.families.kl.config import AutoencoderConfig
    from calotype.families.tiny.config import TinyConfig
    from calotype.latent_files import load_latents, open_latents, save_latents
    from calotype.latent_spaces import LatentSpace, spaces
    from calotype.latents import LatentFormat, Latents
    from calotype.pixels import Picture, read_picture, write_picture
    from calotype.posterior import DiagonalGaussian
    from calotype.vae import VAE, load
    from calotype.weights.save import save_weights

__version__ = "0.1.0"

_HOMES = {
    "AutoencoderConfig": "calotype.families.kl.config",
    "CalotypeError": "calotype.errors",
    "DiagonalGaussian": "calotype.posterior",
    "FoldedConfig": "calotype.families.folded.config",
    "LatentFormat": "calotype.latents",
    "LatentSpace": "calotype.latent_spaces",
    "Latents": "calotype.latents",
    "Picture": "calotype.pixels",
    "Reconstruction": "calotype.evaluate.reconstruct",
    "TinyConfig": "calotype.families.tiny.config",
    "VAE": "calotype.vae",
    "load": "calotype.vae",
    "load_latents": "calotype.latent_files",
    "open_latents": "calotype.latent_files",
    "read_picture": "calotype.pixels",
    "reconstruct": "calotype.evaluate.reconstruct",
    "save_latents": "calotype.latent_files",
    "save_weights": "calotype.weights.save",
    "spaces": "calotype.latent_spaces",
    "write_picture": "calotype.pixels",
}

__all__ = [
    "VAE",
    "AutoencoderConfig",
    "CalotypeError",
    "DiagonalGaussian",
    "FoldedConfig",
    "LatentFormat",
    "LatentSpace",
    "Latents",
    "Picture",
    "Reconstruction",
    "TinyConfig",
    "load",
    "load_latents",
    "open_latents",
    "read_picture",
    "reconstruct",
    "save_latents",
    "save_weights",
    "spaces",
    "write_picture",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'calotype' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
