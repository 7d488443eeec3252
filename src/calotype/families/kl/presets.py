"""Published weights of AutoencoderKL, and formats of their latents. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calotype.families.face import Preset, Space, on_the_hub
from calotype.families.kl.config import AutoencoderConfig

KL_F8 = AutoencoderConfig()  # Stable Diffusion 1, 2 and XL
KL_F8_16 = AutoencoderConfig(z_channels=16, quant_conv=False)  # Stable Diffusion 3 and FLUX.1
KL_F8_32 = AutoencoderConfig(z_channels=32)  # FLUX.2


PRESETS: Mapping[str, Preset] = {
    "sd-vae-ft-mse": Preset(
        repo="stabilityai/sd-vae-ft-mse",
        files=on_the_hub(),
        latent_format="sd1",
        config=KL_F8,
        licence="MIT",
        about="Stable Diffusion 1 and 2; decoder finetuned on MSE + 0.1 LPIPS: smooth",
    ),
    "sd-vae-ft-ema": Preset(
        repo="stabilityai/sd-vae-ft-ema",
        files=on_the_hub(),
        latent_format="sd1",
        config=KL_F8,
        licence="MIT",
        about="Stable Diffusion 1 and 2; decoder finetuned on L1 + LPIPS: sharper",
    ),
    "sdxl-vae": Preset(
        repo="stabilityai/sdxl-vae",
        files=on_the_hub(),
        latent_format="sdxl",
        config=KL_F8,
        licence="MIT",
        about="Stable Diffusion XL; overflows in float16",
    ),
    "sdxl-vae-fp16-fix": Preset(
        repo="madebyollin/sdxl-vae-fp16-fix",
        files=on_the_hub(),
        latent_format="sdxl",
        config=KL_F8,
        licence="MIT",
        about="Stable Diffusion XL, finetuned to stay in float16's range",
    ),
    "sd3-vae": Preset(
        repo="stabilityai/stable-diffusion-3-medium-diffusers",
        files=on_the_hub("vae/"),
        latent_format="sd3",
        config=KL_F8_16,
        licence="Stability AI Community",
        about="Stable Diffusion 3",
        gated=True,
    ),
    "flux-vae": Preset(
        repo="black-forest-labs/FLUX.1-schnell",
        files=on_the_hub("vae/"),
        latent_format="flux",
        config=KL_F8_16,
        licence="Apache-2.0",
        about="FLUX.1",
        gated=True,
    ),
    "flux2-vae": Preset(
        repo="black-forest-labs/FLUX.2-klein-4B",
        files=on_the_hub("vae/"),
        latent_format="flux2",
        config=KL_F8_32,
        licence="Apache-2.0",
        about="FLUX.2",
    ),
    "asymmetric-vae-x-1.5": Preset(
        repo="cross-attention/asymmetric-autoencoder-kl-x-1-5",
        files=on_the_hub(),
        latent_format="sd1",
        config=AutoencoderConfig(decoder_ch=192, decoder_num_res_blocks=3, condition=True),
        licence="not known here: see its page",
        about="Stable Diffusion 1 and 2; a decoder 1.5 times as wide, which can keep a picture around what is decoded",
    ),
    "asymmetric-vae-x-2": Preset(
        repo="cross-attention/asymmetric-autoencoder-kl-x-2",
        files=on_the_hub(),
        latent_format="sd1",
        config=AutoencoderConfig(decoder_ch=256, decoder_num_res_blocks=5, condition=True),
        licence="not known here: see its page",
        about="the same, with a decoder twice as wide",
    ),
}

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

FORMATS: tuple[Mapping[str, Any], ...] = (
    # also SD2: the same VAE
    {"kind": "scale_shift", "name": "sd1", "channels": 4, "scaling_factor": 0.18215},
    {"kind": "scale_shift", "name": "sdxl", "channels": 4, "scaling_factor": 0.13025},
    {"kind": "scale_shift", "name": "sd3", "channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
    {"kind": "scale_shift", "name": "flux", "channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    # Playground v2.5: vae/config.json of playgroundai/playground-v2.5-1024px-aesthetic
    {
        "kind": "per_channel",
        "name": "playground",
        "channels": 4,
        "mean": (-1.6574, 1.886, -1.383, 2.5155),
        "std": (8.4927, 5.9022, 6.5498, 5.2299),
        "scaling_factor": 0.5,
    },
)

_COMFY = "ComfyUI of 2026-09, comfy/supported_models.py"
_DIFFUSERS = "diffusers 0.42.1, "

SPACES: Mapping[str, Space] = {
    "sd1": Space(
        title="Stable Diffusion 1 and 2",
        factor=8,
        models={
            **dict.fromkeys(
                ("Stable Diffusion 1", "Stable Diffusion 2", "Stable Video Diffusion", "Zero123", "PixArt-alpha"),
                _COMFY,
            ),
            "AnimateDiff": f"{_DIFFUSERS}pipelines/animatediff",
        },
    ),
    "sdxl": Space(
        title="Stable Diffusion XL",
        factor=8,
        models={
            **dict.fromkeys(
                ("Stable Diffusion XL", "SSD-1B", "Segmind Vega", "KOALA", "AuraFlow", "PixArt-Sigma", "HunyuanDiT"),
                _COMFY,
            ),
        },
    ),
    "sd3": Space(
        title="Stable Diffusion 3",
        factor=8,
        models=dict.fromkeys(("Stable Diffusion 3", "Stable Diffusion 3.5"), _COMFY),
    ),
    "flux": Space(
        title="FLUX.1",
        factor=8,
        models=dict.fromkeys(
            ("FLUX.1", "Chroma", "Lumina 2", "Z-Image", "HiDream-I1", "OmniGen2", "Boogu", "LongCat-Image",
             "Kandinsky 5 Image"),
            _COMFY,
        ),
    ),
    "flux2": Space(
        title="FLUX.2",
        factor=8,
        channels=32,
        patch=2,
        models={
            **dict.fromkeys(("FLUX.2", "Ideogram 4", "MageFlow", "Lens", "ERNIE-Image"), _COMFY),
            "FLUX.3": f"{_DIFFUSERS}modular_pipelines/flux3",
            "FIBO 2": f"{_DIFFUSERS}pipelines/bria_fibo2",
        },
    ),
    "playground": Space(title="Playground v2.5", factor=8, models={"Playground v2.5": _COMFY}),
}  # fmt: skip
