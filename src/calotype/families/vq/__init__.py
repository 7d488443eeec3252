"""The VQ autoencoders of latent-diffusion, and Kandinsky's MoVQ."""

from __future__ import annotations

from calotype.families.face import Family
from calotype.families.vq.config import VqConfig
from calotype.families.vq.diffusers import DIFFUSERS
from calotype.families.vq.presets import FORMATS, PRESETS, SPACES, space
from calotype.families.vq.steps import program
from calotype.families.vq.telling import SIGN, tell

FAMILY = Family(
    config=VqConfig,
    network="VQModel",
    program=program,
    signs=(SIGN,),
    tell=tell,
    presets=PRESETS,
    formats=FORMATS,
    known_spaces=SPACES,
    space=space,
    diffusers=DIFFUSERS,
    choices=("quantize",),
    trains=("decoder",),  # a codebook takes losses of its own
)
