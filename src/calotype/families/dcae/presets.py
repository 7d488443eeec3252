"""Published weights of DC-AEs, and formats of their latents. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calotype.families.dcae.config import DcaeConfig
from calotype.families.face import Preset, Space, on_the_hub

PRESETS: Mapping[str, Preset] = {
    "sana-dc-ae": Preset(
        repo="mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers",
        files=on_the_hub(),
        latent_format="sana",
        config=DcaeConfig(),
        licence="not known here: see its page",
        about="SANA and SANA-Sprint; 32 times smaller along each side",
    ),
}

FORMATS: tuple[Mapping[str, Any], ...] = (
    # the config.json of mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers and -1.1-diffusers
    {"kind": "scale_shift", "name": "sana", "channels": 32, "scaling_factor": 0.41407},
)

SPACES: Mapping[str, Space] = {
    "sana": Space(
        title="SANA",
        factor=32,
        models=dict.fromkeys(("SANA", "SANA-Sprint"), "diffusers 0.42.1, pipelines/sana"),
    ),
}
