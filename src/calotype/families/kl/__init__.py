"""The autoencoder of latent-diffusion and Stable Diffusion."""

from __future__ import annotations

from calotype.families.face import Family
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.diffusers import DIFFUSERS
from calotype.families.kl.factors import FACTORS
from calotype.families.kl.names import keras_layers
from calotype.families.kl.presets import FORMATS, KNOWN_FILES, PRESETS, SPACES
from calotype.families.kl.steps import program
from calotype.families.kl.telling import SIGN, joined, tell

FAMILY = Family(
    config=AutoencoderConfig,
    network="AutoencoderKL",
    program=program,
    signs=(SIGN,),
    tell=tell,
    presets=PRESETS,
    files=KNOWN_FILES,
    formats=FORMATS,
    known_spaces=SPACES,
    factors=FACTORS,
    diffusers=DIFFUSERS,
    keras=keras_layers,
    join=joined,
)
