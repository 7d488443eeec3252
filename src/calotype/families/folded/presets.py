"""The space of the built-in network's latents. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from calotype.families.face import Space

SPACES: Mapping[str, Space] = {
    "builtin": Space(
        title="the weights that ship",
        factor=8,
        channels=16,
        models={"calotype's own drawing model": "calotype draw"},
    ),
}
