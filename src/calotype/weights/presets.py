"""Weights by name."""

from __future__ import annotations

from pathlib import Path

from calotype.families import PRESETS

BUILTIN = Path(__file__).parent / "builtin" / "builtin.safetensors"  # the weights that ship


def is_preset(name: str) -> bool:
    """Whether this is a preset's name, and not that of a file or folder which is there."""
    return name in PRESETS and not Path(name).exists()
