"""TAEHV and its like: tiny autoencoders for the latents of video VAEs, for one picture."""

from __future__ import annotations

from calotype.families.face import Family
from calotype.families.taehv.config import TaehvConfig
from calotype.families.taehv.presets import KNOWN_FILES, PRESETS, spaces
from calotype.families.taehv.steps import program
from calotype.families.taehv.stored import taken
from calotype.families.taehv.telling import SIGN, tell

FAMILY = Family(
    config=TaehvConfig,
    network="VideoTinyAutoencoder",
    program=program,
    signs=(SIGN,),
    tell=tell,
    presets=PRESETS,
    files=KNOWN_FILES,
    spaces=spaces,
    taken=taken,
    copies=True,
)
