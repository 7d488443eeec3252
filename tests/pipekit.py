"""Small random pipelines of diffusers, one for each autoencoder and way to use it; made in memory, without text."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import dcaekit
import torch
from PIL import Image
from support import fill, import_diffusers, pictures
from torch import Tensor
from wankit import random

from calotype.pixels import to_pil

WIDTH = 16  # of what stands for a text
SIZE = {"height": 64, "width": 96}

UNET: dict[str, Any] = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
    "sample_size": 8, "cross_attention_dim": WIDTH, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
HEADS: dict[str, Any] = {"attention_head_dim": 8, "num_attention_heads": 2}
VIDEO: dict[str, Any] = {"base_dim": 8, "num_res_blocks": 1, "dim_mult": [1, 1, 2, 2]}


def library() -> Any:
    """diffusers, whose pipelines warn when they are imported."""
    found = import_diffusers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PIPELINES.values():
            getattr(found, name)
    return found


# --- autoencoders ---


def narrow(module: Any) -> Any:
    """With a posterior that is narrow, as trained ones are."""
    last = getattr(module, "quant_conv", None) or module.encoder.conv_out
    with torch.no_grad():
        half = last.weight.shape[0] // 2
        last.weight[half:] = 0.0
        last.bias[half:] = -18.0
    return module


def kl(name: str = "AutoencoderKL", channels: int = 4, **more: Any) -> Any:
    levels = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return narrow(fill(getattr(library(), name)(**levels, **kinds, latent_channels=channels, **more), 3))


def wide(**more: Any) -> Any:
    return kl(channels=16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.36, shift_factor=0.11)


def video(name: str, **more: Any) -> Any:
    return narrow(random(getattr(library(), name)(**VIDEO | more), 3, 0.3))


def hunyuan() -> Any:
    config = {"in_channels": 3, "out_channels": 3, "latent_channels": 8, "layers_per_block": 1, "sample_size": 64}
    levels = {"block_out_channels": (32, 32, 64, 64, 64), "spatial_compression_ratio": 16}
    return narrow(fill(library().AutoencoderKLHunyuanImage(**config, **levels, scaling_factor=0.75), 3))


def dc(name: str) -> Any:
    return dcaekit.reference({**dcaekit.SMALL[name], "scaling_factor": 0.41}, 3)


VAES: dict[str, Callable[[], Any]] = {
    "AutoencoderKL": kl,
    "AutoencoderKLFlux2": lambda: kl("AutoencoderKLFlux2", sample_size=64),
    "AutoencoderKLWan": lambda: video("AutoencoderKLWan"),
    "AutoencoderKLQwenImage": lambda: video("AutoencoderKLQwenImage"),
    "AutoencoderKLQwenImage21": lambda: video("AutoencoderKLQwenImage21", dim_mult=[1, 1, 2, 2, 2]),
    "AutoencoderDC": lambda: dc("two-levels"),
    "AutoencoderKLHunyuanImage": hunyuan,
    "AutoencoderTiny": lambda: fill(library().AutoencoderTiny(), 3, 0.7),
}

# --- pipelines ---

PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "flux2": "Flux2Pipeline",
    "z-image": "ZImagePipeline",
    "qwen-image": "QwenImagePipeline",
    "qwen-image-edit": "QwenImageEditPipeline",
    "qwen-image-2.1": "QwenImage21Pipeline",
    "wan": "WanPipeline",
    "sana": "SanaPipeline",
    "hunyuan-image": "HunyuanImagePipeline",
    "sd1-tiny": "StableDiffusionPipeline",
    "sd1-img2img": "StableDiffusionImg2ImgPipeline",
}


def text(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or (1, 5, WIDTH)), generator=torch.Generator().manual_seed(seed))


def both(**more: Any) -> dict[str, Any]:
    """What stands for prompt and negative prompt."""
    return {"prompt_embeds": text(0), "negative_prompt_embeds": text(1), **more}


def masked(suffix: str = "") -> dict[str, Any]:
    """The same with masks, all of it seen."""
    seen = torch.ones(1, 5, dtype=torch.int64)
    return {
        f"prompt_embeds{suffix}": text(0), f"negative_prompt_embeds{suffix}": text(1),
        f"prompt_embeds_mask{suffix}": seen, f"negative_prompt_embeds_mask{suffix}": seen,
    }  # fmt: skip


def photo() -> Image.Image:
    return to_pil(pictures(4, 1, SIZE["height"], SIZE["width"])[0])


def transformer(name: str, **numbers: Any) -> Any:
    torch.manual_seed(2)
    return getattr(library(), name)(**numbers).eval().requires_grad_(False)


def qwen() -> Any:
    return transformer(
        "QwenImageTransformer2DModel", in_channels=64, out_channels=16, num_layers=1, **HEADS,
        joint_attention_dim=WIDTH, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


class Processor:
    """What Qwen-Image 2.1 asks of its processor when it is put together."""

    tokenizer = SimpleNamespace(encode=lambda _: [7])

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[1, 2, 3]]


def pipeline(kind: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline with diffusers' own autoencoder, and what to call it with."""
    diffusers = library()
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    no_text = {"text_encoder": None, "tokenizer": None}
    two = {**no_text, "text_encoder_2": None, "tokenizer_2": None}
    parts: dict[str, Any]
    call: dict[str, Any]
    if kind.startswith("sd1"):
        parts = {
            "unet": transformer("UNet2DConditionModel", **UNET), "vae": VAES["AutoencoderKL"](), **no_text,
            "scheduler": diffusers.DDIMScheduler(steps_offset=1, clip_sample=False), "safety_checker": None,
            "feature_extractor": None, "requires_safety_checker": False,
        }  # fmt: skip
        call = both(**SIZE)
        if kind == "sd1-tiny":
            parts["vae"] = VAES["AutoencoderTiny"]()
        if kind == "sd1-img2img":
            call = both(image=photo(), strength=0.6)
    elif kind == "sdxl":
        parts = {
            "unet": transformer(
                "UNet2DConditionModel", **UNET, addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + WIDTH,
            ),
            "vae": kl(scaling_factor=0.13), **two, "add_watermarker": False,
            "scheduler": diffusers.EulerDiscreteScheduler(),
        }  # fmt: skip
        pooled = {"pooled_prompt_embeds": text(2, 1, WIDTH), "negative_pooled_prompt_embeds": text(3, 1, WIDTH)}
        call = both(**SIZE, **pooled)
    elif kind == "sd3":
        parts = {
            "transformer": transformer(
                "SD3Transformer2DModel", sample_size=16, patch_size=2, num_layers=1, in_channels=16, out_channels=16,
                **HEADS, joint_attention_dim=WIDTH, caption_projection_dim=16, pooled_projection_dim=WIDTH,
                pos_embed_max_size=16,
            ),
            "vae": wide(), **two, "text_encoder_3": None, "tokenizer_3": None, "scheduler": flow(shift=3.0),
        }  # fmt: skip
        pooled = {"pooled_prompt_embeds": text(2, 1, WIDTH), "negative_pooled_prompt_embeds": text(3, 1, WIDTH)}
        call = both(**SIZE, **pooled)
    elif kind == "flux":
        parts = {
            "transformer": transformer(
                "FluxTransformer2DModel", in_channels=64, num_layers=1, num_single_layers=1, **HEADS,
                joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(2, 2, 4),
            ),
            "vae": wide(), **two, "scheduler": flow(),
        }  # fmt: skip
        call = {"prompt_embeds": text(0), "pooled_prompt_embeds": text(2, 1, WIDTH), **SIZE}
    elif kind == "flux2":
        parts = {
            "transformer": transformer(
                "Flux2Transformer2DModel", in_channels=16, num_layers=1, num_single_layers=1, **HEADS,
                joint_attention_dim=WIDTH, axes_dims_rope=(2, 2, 2, 2),
            ),
            "vae": VAES["AutoencoderKLFlux2"](), **no_text, "scheduler": flow(),
        }  # fmt: skip
        call = {"prompt_embeds": text(0), "image": photo(), **SIZE}
    elif kind == "z-image":
        parts = {
            "transformer": transformer(
                "ZImageTransformer2DModel", dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
                cap_feat_dim=WIDTH, axes_dims=[2, 2, 4], axes_lens=[64, 64, 64],
            ),
            "vae": wide(), **no_text, "scheduler": flow(),
        }  # fmt: skip
        call = {"prompt_embeds": [text(0)[0]], "negative_prompt_embeds": [text(1)[0]], **SIZE}
    elif kind in ("qwen-image", "qwen-image-edit"):
        parts = {"transformer": qwen(), "vae": VAES["AutoencoderKLQwenImage"](), **no_text, "scheduler": flow()}
        call = {**masked(), "true_cfg_scale": 2.0, **SIZE}
        if kind == "qwen-image-edit":
            parts["processor"] = None
            call["image"] = photo()
    elif kind == "qwen-image-2.1":
        parts = {
            "transformer": transformer(
                "QwenImage21Transformer2DModel", num_layers=1, **HEADS, context_in_dim=WIDTH, axes_dims_rope=(2, 2, 4)
            ),
            "vae": VAES["AutoencoderKLQwenImage21"](), "text_encoder": None, "processor": Processor(),
            "scheduler": flow(),
        }  # fmt: skip
        call = {**masked(), "true_cfg_scale": 2.0, **SIZE}
    elif kind == "wan":
        parts = {
            "transformer": transformer(
                "WanTransformer3DModel", num_layers=1, **HEADS, text_dim=WIDTH, freq_dim=16, ffn_dim=16
            ),
            "vae": VAES["AutoencoderKLWan"](), **no_text, "scheduler": flow(),
        }  # fmt: skip
        call = both(num_frames=1, **SIZE)
    elif kind == "sana":
        parts = {
            "transformer": transformer(
                "SanaTransformer2DModel", in_channels=4, out_channels=4, num_layers=1, **HEADS,
                num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
                caption_channels=WIDTH, sample_size=2,
            ),
            "vae": dc("sana"), **no_text, "scheduler": flow(),
        }  # fmt: skip
        seen = {"prompt_attention_mask": torch.ones(1, 5), "negative_prompt_attention_mask": torch.ones(1, 5)}
        call = both(**SIZE, **seen, negative_prompt=None, use_resolution_binning=False)
    else:
        parts = {
            "transformer": transformer(
                "HunyuanImageTransformer2DModel", in_channels=8, out_channels=8, num_layers=1, num_single_layers=1,
                num_refiner_layers=1, **HEADS, text_embed_dim=WIDTH, text_embed_2_dim=WIDTH, rope_axes_dim=(4, 4),
            ),
            "vae": VAES["AutoencoderKLHunyuanImage"](), **two, "scheduler": flow(),
        }  # fmt: skip
        call = {**masked(), **masked("_2"), **SIZE}
    pipe = getattr(diffusers, PIPELINES[kind])(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe, call


def drawn(pipe: Any, call: dict[str, Any]) -> Tensor:
    """The pictures that a pipeline draws, [N, P, H, W] in [0, 1] (of one that draws videos: [N, frames, P, H, W])."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        made = pipe(**call, num_inference_steps=2, generator=torch.Generator().manual_seed(5), output_type="pt")
    found: Tensor = made.frames if hasattr(made, "frames") else made.images
    return found
