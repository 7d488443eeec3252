"""VAE: what `calotype.load` returns. Tensors in, tensors out; or pictures in, pictures out."""

from calotype.vae.loading import load, load_as_stored, locate, name_for, pick_device
from calotype.vae.pictures import VAE, PictureSource
from calotype.vae.tensors import enough_memory, picture_generator, posterior_of
from calotype.weights.presets import BUILTIN

__all__ = [
    "BUILTIN",
    "VAE",
    "PictureSource",
    "enough_memory",
    "load",
    "load_as_stored",
    "locate",
    "name_for",
    "pick_device",
    "picture_generator",
    "posterior_of",
]
