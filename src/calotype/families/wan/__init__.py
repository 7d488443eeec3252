"""The video autoencoders of Wan and Qwen-Image, for one picture."""

from __future__ import annotations

from calotype.families.face import Family
from calotype.families.wan.config import WanConfig
from calotype.families.wan.diffusers import DIFFUSERS
from calotype.families.wan.presets import FORMATS, PRESETS, space
from calotype.families.wan.steps import program
from calotype.families.wan.stored import given, taken
from calotype.families.wan.telling import DIFFUSERS as NAMED, ORIGINAL, joined, original, tell

FAMILY = Family(
    config=WanConfig,
    network="WanAutoencoder",
    program=program,
    signs=(ORIGINAL, NAMED),
    tell=tell,
    presets=PRESETS,
    formats=FORMATS,
    space=space,
    diffusers=DIFFUSERS,
    original=original,
    taken=taken,
    given=given,
    join=joined,
    clamps=True,
)
