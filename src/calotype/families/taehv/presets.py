"""Published weights of TAEHVs. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from calotype.families.face import Preset
from calotype.families.taehv.config import TaehvConfig

TAEW_21 = "d26151e76cdc2c9424bef988de874b33d9a53f30ef3060cd556c429c469c797e"
TAEW_22 = "d053e216ca50e2bb837bbcd79b85f0366bea00e5938025572382a773b74c559a"

# madebyollin's take and give model latents, LightTAE's the raw ones of Wan's own VAEs
PRESETS: Mapping[str, Preset] = {
    "taew2_1": Preset(
        repo="madebyollin/taehv",
        files=("taew2_1.pth",),
        sha256=(TAEW_21,),
        latent_format="model:wan2.1",
        config=TaehvConfig(),
        licence="MIT",
        tiny=True,
        about="tiny, for Wan 2.1's and Qwen-Image's latents",
    ),
    "taew2_2": Preset(
        repo="madebyollin/taehv",
        files=("taew2_2.pth",),
        sha256=(TAEW_22,),
        latent_format="model:wan2.2",
        config=TaehvConfig(z_channels=48),
        licence="MIT",
        tiny=True,
        about="tiny, for Wan 2.2's latents",
    ),
    "lighttaew2_1": Preset(
        repo="lightx2v/Autoencoders",
        files=("lighttaew2_1.safetensors",),
        latent_format="wan2.1",
        config=TaehvConfig(),
        licence="Apache-2.0",
        tiny=True,
        about="tiny, for Wan 2.1's and Qwen-Image's latents; TAEW2.1 trained further",
    ),
    "lighttaew2_2": Preset(
        repo="lightx2v/Autoencoders",
        files=("lighttaew2_2.safetensors",),
        latent_format="wan2.2",
        config=TaehvConfig(z_channels=48),
        licence="Apache-2.0",
        tiny=True,
        about="tiny, for Wan 2.2's latents; TAEW2.2 trained further",
    ),
}

KNOWN_FILES: Mapping[str, str] = {
    TAEW_21: "model:wan2.1",
    TAEW_22: "model:wan2.2",
    # lightx2v/Autoencoders, taew2_2.safetensors and lighttaew2_2.safetensors
    "5243c5c9d77ecf2d74800d672bac3678c0d72462899f1b3b10aa1bbc11eae461": "model:wan2.2",
    "10124099e0c9864db4e6bcd0f09d822282753e553d344fcf2748cf50140ba16a": "wan2.2",
}


def spaces(config: TaehvConfig) -> tuple[str, ...]:
    """The latent formats that published networks of this architecture have."""
    name = {16: "wan2.1", 48: "wan2.2"}[config.z_channels]
    return f"model:{name}", name
