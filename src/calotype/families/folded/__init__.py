"""The built-in network's."""

from __future__ import annotations

from calotype.families.face import Family
from calotype.families.folded.config import FoldedConfig
from calotype.families.folded.presets import SPACES
from calotype.families.folded.steps import program
from calotype.families.folded.telling import SIGN, tell

FAMILY = Family(
    config=FoldedConfig,
    network="FoldedAutoencoder",
    program=program,
    signs=(SIGN,),
    tell=tell,
    known_spaces=SPACES,
)
