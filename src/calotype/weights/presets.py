"""Weights by name: where they are published, under which licence, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from calotype.config import AutoencoderConfig, NetworkConfig, TinyConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published VAE."""

    repo: str  # repository on the Hugging Face hub, or on GitHub where `sha256` is given
    files: tuple[str, ...]  # what is fetched from it
    latent_format: str
    config: NetworkConfig  # its architecture, which is known without its weights
    licence: str
    about: str
    gated: bool = False  # the hub asks for a login and consent
    sha256: tuple[str, ...] = ()  # of the files, for what is not on the hub (whose client checks what it fetches)


KL_F8 = AutoencoderConfig()  # Stable Diffusion 1, 2 and XL
KL_F8_16 = AutoencoderConfig(z_channels=16, quant_conv=False)  # Stable Diffusion 3 and FLUX.1
KL_F8_32 = AutoencoderConfig(z_channels=32)  # FLUX.2


def _diffusers(folder: str = "") -> tuple[str, ...]:
    return tuple(f"{folder}{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors"))


PRESETS: Mapping[str, Preset] = {
    "sd-vae-ft-mse": Preset(
        repo="stabilityai/sd-vae-ft-mse",
        files=_diffusers(),
        latent_format="sd1",
        config=KL_F8,
        licence="MIT",
        about="Stable Diffusion 1 and 2; decoder finetuned on MSE + 0.1 LPIPS: smooth",
    ),
    "sd-vae-ft-ema": Preset(
        repo="stabilityai/sd-vae-ft-ema",
        files=_diffusers(),
        latent_format="sd1",
        config=KL_F8,
        licence="MIT",
        about="Stable Diffusion 1 and 2; decoder finetuned on L1 + LPIPS: sharper",
    ),
    "sdxl-vae": Preset(
        repo="stabilityai/sdxl-vae",
        files=_diffusers(),
        latent_format="sdxl",
        config=KL_F8,
        licence="MIT",
        about="Stable Diffusion XL; overflows in float16",
    ),
    "sdxl-vae-fp16-fix": Preset(
        repo="madebyollin/sdxl-vae-fp16-fix",
        files=_diffusers(),
        latent_format="sdxl",
        config=KL_F8,
        licence="MIT",
        about="Stable Diffusion XL, finetuned to stay in float16's range",
    ),
    "sd3-vae": Preset(
        repo="stabilityai/stable-diffusion-3-medium-diffusers",
        files=_diffusers("vae/"),
        latent_format="sd3",
        config=KL_F8_16,
        licence="Stability AI Community",
        about="Stable Diffusion 3",
        gated=True,
    ),
    "flux-vae": Preset(
        repo="black-forest-labs/FLUX.1-schnell",
        files=_diffusers("vae/"),
        latent_format="flux",
        config=KL_F8_16,
        licence="Apache-2.0",
        about="FLUX.1",
        gated=True,
    ),
    "flux2-vae": Preset(
        repo="black-forest-labs/FLUX.2-klein-4B",
        files=_diffusers("vae/"),
        latent_format="flux2",
        config=KL_F8_32,
        licence="Apache-2.0",
        about="FLUX.2",
    ),
    "taesd": Preset(
        repo="madebyollin/taesd",
        files=_diffusers(),
        latent_format="sd1",
        config=TinyConfig(),
        licence="MIT",
        about="tiny, for Stable Diffusion 1 and 2's latents",
    ),
    "taesdxl": Preset(
        repo="madebyollin/taesdxl",
        files=_diffusers(),
        latent_format="sdxl",
        config=TinyConfig(),
        licence="MIT",
        about="tiny, for Stable Diffusion XL's latents",
    ),
    "taesd3": Preset(
        repo="madebyollin/taesd3",
        files=_diffusers(),
        latent_format="sd3",
        config=TinyConfig(z_channels=16),
        licence="MIT",
        about="tiny, for Stable Diffusion 3's latents",
    ),
    "taef1": Preset(
        repo="madebyollin/taef1",
        files=_diffusers(),
        latent_format="flux",
        config=TinyConfig(z_channels=16),
        licence="MIT",
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
        about="tiny, for FLUX.2's latents",
    ),
}


def is_preset(name: str) -> bool:
    """Whether this is a preset's name, and not that of a file or folder which is there."""
    return name in PRESETS and not Path(name).exists()


# sha256 of single files in circulation -> latent format, where shapes can't tell it
KNOWN_FILES: Mapping[str, str] = {
    # vae-ft-mse-840000-ema-pruned.safetensors
    "735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75": "sd1",
    # stabilityai/sd-vae-ft-mse, diffusion_pytorch_model.safetensors
    "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815": "sd1",
    # stabilityai/sdxl-vae, sdxl_vae.safetensors
    "63aeecb90ff7bc1c115395962d3e803571385b61938377bc7089b36e81e92e2e": "sdxl",
    # madebyollin/sdxl-vae-fp16-fix, sdxl.vae.safetensors
    "235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1": "sdxl",
    # FLUX.1, ae.safetensors
    "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38": "flux",
}
