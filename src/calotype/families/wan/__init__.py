"""The video autoencoders of Wan and Qwen-Image, for one picture."""

from __future__ import annotations

from calotype.families.face import Family, Video
from calotype.families.wan.config import WanConfig
from calotype.families.wan.diffusers import DIFFUSERS
from calotype.families.wan.factors import FACTORS
from calotype.families.wan.presets import FORMATS, PRESETS, SPACES, space
from calotype.families.wan.steps import program
from calotype.families.wan.stored import given, shaped, taken
from calotype.families.wan.telling import (
    DIFFUSERS as NAMED,
    ORIGINAL,
    all_keys_of,
    joined,
    keys_of,
    tell,
    told_by_time,
)

FAMILY = Family(
    config=WanConfig,
    network="WanAutoencoder",
    program=program,
    signs=(ORIGINAL, NAMED),
    tell=tell,
    presets=PRESETS,
    formats=FORMATS,
    known_spaces=SPACES,
    factors=FACTORS,
    space=space,
    diffusers=DIFFUSERS,
    original=lambda key, config: keys_of("ldm", config)[key],
    taken=taken,
    given=given,
    copies=True,
    video=Video(named=all_keys_of, shaped=shaped, fields=told_by_time),
    join=joined,
    clamps=True,
    enlarges=lambda config: config.enlarges,
)
