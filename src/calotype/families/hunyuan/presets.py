"""Published weights of HunyuanImage 2.1's VAE, and the format of its latents. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calotype.families.face import Preset, Space, on_the_hub
from calotype.families.hunyuan.config import HunyuanImageConfig

PRESETS: Mapping[str, Preset] = {
    "hunyuan-image-vae": Preset(
        repo="hunyuanvideo-community/HunyuanImage-2.1-Diffusers",
        files=on_the_hub("vae/"),
        latent_format="hunyuan-image",
        config=HunyuanImageConfig(),
        licence="Tencent Hunyuan Community",
        about="HunyuanImage 2.1",
    ),
}

FORMATS: tuple[Mapping[str, Any], ...] = (
    # diffusers' scripts/convert_hunyuan_image_to_diffusers.py
    {"kind": "scale_shift", "name": "hunyuan-image", "channels": 64, "scaling_factor": 0.75289},
)

SPACES: Mapping[str, Space] = {
    "hunyuan-image": Space(
        title="HunyuanImage 2.1",
        factor=32,
        models={"HunyuanImage 2.1": "diffusers 0.42.1, pipelines/hunyuan_image"},
    ),
}
