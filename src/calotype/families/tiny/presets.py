"""Published weights of TAESDs. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from calotype.families.face import Preset, on_the_hub
from calotype.families.tiny.config import TinyConfig

PRESETS: Mapping[str, Preset] = {
    "taesd": Preset(
        repo="madebyollin/taesd",
        files=on_the_hub(),
        latent_format="sd1",
        config=TinyConfig(),
        licence="MIT",
        tiny=True,
        about="tiny, for Stable Diffusion 1 and 2's latents",
    ),
    "taesdxl": Preset(
        repo="madebyollin/taesdxl",
        files=on_the_hub(),
        latent_format="sdxl",
        config=TinyConfig(),
        licence="MIT",
        tiny=True,
        about="tiny, for Stable Diffusion XL's latents",
    ),
    "taesd3": Preset(
        repo="madebyollin/taesd3",
        files=on_the_hub(),
        latent_format="sd3",
        config=TinyConfig(z_channels=16),
        licence="MIT",
        tiny=True,
        about="tiny, for Stable Diffusion 3's latents",
    ),
    "taef1": Preset(
        repo="madebyollin/taef1",
        files=on_the_hub(),
        latent_format="flux",
        config=TinyConfig(z_channels=16),
        licence="MIT",
        tiny=True,
        about="tiny, for FLUX.1's latents",
    ),
    "taef2": Preset(
        repo="madebyollin/taesd",
        files=("taef2_encoder.pth", "taef2_decoder.pth"),
        sha256=(
            "10a4e1021e89d7551eaf161352da8dbd0b1aa83872ae28b150c1df1ce2f147b6",
            "0a44a31e1ae59eb9dbf9359d24942fd3ef5928162c1800d97a28c61d51be0ab5",
        ),
        latent_format="flux2",
        config=TinyConfig(z_channels=32, pool=True),
        licence="MIT",
        tiny=True,
        about="tiny, for FLUX.2's latents",
    ),
    "taeqi2_1": Preset(
        repo="madebyollin/taeqi2_1",
        files=("taeqi2_1.safetensors",),
        latent_format="qwen-image-2.1",
        config=TinyConfig(z_channels=64, in_channels=4, variant="f16"),
        licence="MIT",
        tiny=True,
        about="tiny, for Qwen-Image 2.1's latents; pictures with alpha",
    ),
    "taesana": Preset(
        repo="madebyollin/taesd",
        files=("taesana_encoder.pth", "taesana_decoder.pth"),
        sha256=(
            "858f4e4cc293f88efaf58107f4154b960b9ced0cb5d9c050dad11f926b618c1f",
            "3eb733ab918dd5840fa6e6309642edb49359bd1c7624d9e5884f92438aa07c36",
        ),
        latent_format="sana",
        config=TinyConfig(z_channels=32, variant="f32"),
        licence="MIT",
        tiny=True,
        about="tiny, for SANA's latents",
    ),
}
