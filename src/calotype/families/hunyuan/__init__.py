"""The autoencoder of HunyuanImage 2.1."""

from __future__ import annotations

from calotype.families.face import Family
from calotype.families.hunyuan.config import HunyuanImageConfig
from calotype.families.hunyuan.diffusers import DIFFUSERS
from calotype.families.hunyuan.factors import FACTORS
from calotype.families.hunyuan.presets import FORMATS, PRESETS, SPACES
from calotype.families.hunyuan.steps import program
from calotype.families.hunyuan.telling import SIGN, taken, tell

FAMILY = Family(
    config=HunyuanImageConfig,
    network="HunyuanImageVAE",
    program=program,
    signs=(SIGN,),
    tell=tell,
    presets=PRESETS,
    formats=FORMATS,
    known_spaces=SPACES,
    factors=FACTORS,
    space=lambda config: "hunyuan-image" if config == HunyuanImageConfig() else None,
    diffusers=DIFFUSERS,
    taken=taken,
)
