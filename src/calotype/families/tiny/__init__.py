"""TAESD and its like."""

from __future__ import annotations

from calotype.families.face import Family
from calotype.families.tiny.config import TinyConfig
from calotype.families.tiny.diffusers import DIFFUSERS
from calotype.families.tiny.presets import PRESETS
from calotype.families.tiny.steps import program
from calotype.families.tiny.telling import BARE, WHOLE, tell

FAMILY = Family(
    config=TinyConfig,
    network="TinyAutoencoder",
    program=program,
    signs=(WHOLE, BARE),
    tell=tell,
    presets=PRESETS,
    diffusers=DIFFUSERS,
)
