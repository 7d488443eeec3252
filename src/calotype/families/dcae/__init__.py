"""The deep-compression autoencoder of SANA and others."""

from __future__ import annotations

from calotype.families.dcae.config import DcaeConfig
from calotype.families.dcae.diffusers import DIFFUSERS
from calotype.families.dcae.presets import FORMATS, PRESETS, SPACES
from calotype.families.dcae.steps import program
from calotype.families.dcae.telling import DIFFUSERS as THEIR_SIGN, ORIGINAL, joined, tell
from calotype.families.face import Family

FAMILY = Family(
    config=DcaeConfig,
    network="DcAutoencoder",
    program=program,
    signs=(ORIGINAL, THEIR_SIGN),
    tell=tell,
    presets=PRESETS,
    formats=FORMATS,
    known_spaces=SPACES,
    diffusers=DIFFUSERS,
    join=joined,
)
