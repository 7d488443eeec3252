"""Networks that are no VAE of calotype's, told by the names and shapes of their tensors. No torch.

Names are those of diffusers 0.42 and of the projects that published the weights; ComfyUI's and
stable-diffusion.cpp's loaders know most of them by the same signs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from calotype.families import CLASSES

Shapes = Mapping[str, tuple[int, ...]]
Sign = str | tuple[str, int | Callable[[tuple[int, ...]], bool]]

IMAGES = f"give a VAE of images ({', '.join(CLASSES)})"


def _channels_last(kernel: tuple[int, ...]) -> bool:
    """Of a kernel of 3x3, HWIO or OHWI."""
    return len(kernel) == 4 and kernel[2:] != (3, 3) and (kernel[1:3] == (3, 3) or kernel[:2] == (3, 3))


@dataclass(frozen=True)
class Other:
    """A kind of autoencoder.

    Attributes:
        what: it is.
        signs: patterns, each of which some name must match whole; a pattern may stand with a rank, or with a question
            to the shape.
        loader: diffusers' class for it.
    """

    what: str
    signs: tuple[Sign, ...]
    loader: str | None = None
    advice: str = ""

    def sentence(self) -> str:
        """For a message, after what holds it."""
        advice = self.advice or (f"load it with diffusers' {self.loader}" if self.loader else IMAGES)
        return f"{self.what}, which is not read; {advice}"


SIDE = r"(encoder|decoder)"


def _over_frames(kernel: tuple[int, ...]) -> bool:
    """Of a kernel over more than one frame."""
    return len(kernel) == 5 and kernel[2] > 1


AUTOENCODERS: tuple[Other, ...] = (
    # sound, by kernels of one dimension, weight norm, or a mel spectrogram's few channels
    Other("a video VAE of VidTok", (r"encoder\.down_temporal\..*",), "AutoencoderVidTok"),
    Other("an audio autoencoder (SAME)", (r"encoder\.blocks\.\d+\.new_tokens",), "AutoencoderSAME"),
    Other("an audio VAE", ((rf"{SIDE}\..*(weight_v|original1)", 3),)),
    Other("an audio VAE (MMAudio)", ((rf"{SIDE}\.conv_in\.weight", 3),), "MMAudioVAE"),
    Other("an audio VAE (a VAE of spectrograms, with its vocoder)", (r"vocoder\..*",)),
    Other("an audio VAE (LTX-2)", (("encoder\\.conv_in\\.conv\\.weight", 4), r"encoder\.down\.0\..*\.conv\.weight")),
    Other("an audio VAE", ((r"encoder\..*\.(conv\d?|layers\.0)\.weight", 3),)),
    # convolutions that are not stored as they compute
    Other(
        "a VAE with LoRA layers that are not merged",
        (rf"{SIDE}\..*\.(base_layer\.weight|lora_[AB]\..*)",),
        advice="merge them (merge_and_unload() of peft) and save it anew",
    ),
    Other(
        "a VAE with weight or spectral norm (its kernels are stored in parts)",
        (rf"{SIDE}\..*(parametrizations\.weight\.original\d*|weight_(v|orig))",),
        advice="remove the parametrisation (torch.nn.utils.parametrize.remove_parametrizations) and save it anew",
    ),
    Other(
        "Qwen-Image's VAE in MLX's layout (mflux)", (rf"{SIDE}\.conv_in\.conv3d\.weight",),
        advice="get the weights that it was converted from",
    ),
    Other(
        "the decoder of keras-hub's first presets of Stable Diffusion 3", (r"layers[./]vae_image_decoder[./].*",),
        advice="get a newer preset, or Stable Diffusion 3's own VAE",
    ),
    Other(
        "a VAE whose kernels have their axes in another order (as TensorFlow has them)",
        ((rf"{SIDE}\.conv_(in|out)\.weight", _channels_last),),
        advice="get the weights that it was converted from",
    ),
    # quantised latents
    Other("a Paella VQGAN (stage A of Stable Cascade or Würstchen)", (r"vquantizer\..*",), "PaellaVQModel"),
    Other(
        "the image encoder or previewer of Stable Cascade's stage C",
        (r"(backbone\.1\.0\.block\.0\.1|blocks\.11)\.num_batches_tracked",),
    ),
    Other(
        "a VQ autoencoder (its latents are entries of a codebook)",
        (rf"(quantize|quantizer|vq|vq_layer|vector_quantiz\w*|{SIDE}\.quantiz\w*)\..*|codebooks?(\..*)?",),
        "VQModel",
    ),
    # images
    Other("an RAE (a decoder over a frozen vision transformer)", (r"decoder\.decoder_(pred|embed)\..*",),
          "AutoencoderRAE"),
    Other("a masked autoencoder of images (MAE)", (r"decoder_pred\..*", r"mask_token")),
    Other("a VAE with a consistency decoder", (r"decoder_unet\..*",), "ConsistencyDecoderVAE"),
    Other("a VAE of Stable Video Diffusion or another with a temporal decoder",
          (r"decoder\..*(temporal_res_block|time_conv_out|time_stack|time_mix_conv|mix_factor).*",),
          "AutoencoderKLTemporalDecoder"),
    Other("a video upscaler's VAE (Kandinsky 6)", (r"decoder\..*\.conv_b\..*", (rf"{SIDE}\..*\.gamma", 4)),
          "Kandinsky6SRVAE"),
    Other("a KVAE for video (Kandinsky)", (r"decoder\..*norm_layer\..*", r"decoder\..*conv_b\..*",
          (rf"{SIDE}\.down\.0\..*", 5)), "AutoencoderKLKVAEVideo"),
    Other("a video VAE of CogVideoX", ((r"decoder\..*\.conv_b\.conv\..*", 5),), "AutoencoderKLCogVideoX"),
    Other("a KVAE (Kandinsky's image VAE)", ((r"decoder\..*\.conv_b\..*", 4),), "AutoencoderKLKVAE"),
    # video
    Other("a video VAE of HunyuanVideo 1.5 or HunyuanImage's refiner",
          (rf"{SIDE}\..*\.gamma", (rf"{SIDE}\.conv_in\.conv\.weight", 5)), "AutoencoderKLHunyuanVideo15"),
    Other("a video VAE of Cosmos", (rf"{SIDE}\..*\.conv_(s|t)\..*",), "AutoencoderKLCosmos"),
    Other("a video VAE of Mochi", (rf"{SIDE}\.block_in\..*",), "AutoencoderKLMochi"),
    Other("a video VAE of LTX", ((rf"{SIDE}\.conv_in\.conv\.weight", 5),
          r"latents_(mean|std)|per_channel_statistics\..*"), "AutoencoderKLLTXVideo"),
    Other("the diffusion decoder of LTX-2", (r"decoder\.det_stages\..*",), "LTX2VideoDiffusionDecoderModel"),
    Other("a video VAE of Allegro", (rf"{SIDE}\.temp_conv_in\..*",), "AutoencoderKLAllegro"),
    Other("a video VAE of MAGVIT's kind (EasyAnimate)", (rf"{SIDE}\.(down|up)_blocks\.\d+\.convs\..*",),
          "AutoencoderKLMagvit"),
    Other("a video VAE of MiniMax", (r"decoder\.transformer_blocks\..*", (r"encoder\.conv_in\.weight", 5)),
          "AutoencoderKLMiniMaxH3"),
    Other("a video VAE of HunyuanVideo",
          ((rf"{SIDE}\.conv_in\.conv\.weight", 5), (r"(post_)?quant_conv\.weight", 5)), "AutoencoderKLHunyuanVideo"),
    Other("a video VAE (its kernels have three dimensions)", ((rf"{SIDE}\..*", _over_frames),)),
)  # fmt: skip

# What people give instead of a VAE: (a pattern some key must match, what the file is)
OTHERS = (
    (r".*(lora_(up|down|A|B)\b|\.lora\.|lora_unet_|lora_te|hada_w1|lokr_w).*", "a LoRA"),
    (r".*(control_model\.|controlnet_|control_net|input_hint_block).*", "a ControlNet"),
    (r"(.*\.)?(ip_adapter|image_proj)\..*", "an IP-Adapter"),
    (r".*motion_modules\..*", "a motion module (AnimateDiff)"),
    (r"(.*\.)?string_to_param.*|emb_params|clip_[lg]|<[^>]+>", "a textual inversion embedding"),
    (r"(.*\.)?(adapter|body)\.\d+\.(in_conv|resnets)\..*|adapter\.body\..*", "a T2I-Adapter"),
    (r".*(diffusion_model\.|time_embed(ding)?\.|transformer_blocks\.|x_embedder\.|t_embedder\.|double_blocks\.|"
     r"joint_blocks\.|time_in\.|patch_embedding\.).*", "a denoiser (U-Net or transformer)"),
    (r"(.*\.)?(vision_model|visual|visual_model)\..*", "a vision encoder (CLIP)"),
    (r".*(text_model\.|token_embedding|shared\.weight|embed_tokens|final_layer_norm\.|lm_head).*", "a text encoder"),
    (r"(conv_first|.*\.rdb1|.*\.RDB1|upconv1|model\.1\.sub|body\.0\.rdb).*|layers\.\d+\.residual_group\..*",
     "an upscaler of pictures (ESRGAN's kind)"),
    (r"(.*\.)?(conv_pre|conv_post|ups\.0\.0)\.(weight.*|bias)", "a vocoder"),
    (r"(.*\.)?(lin\d\.model\.1|net\.slice\d\.\d+)\.weight", "LPIPS"),
    (r"(features\.\d+\.|classifier\.\d+\.).*", "a classifier (VGG's kind)"),
    (r"main\.\d+\.(weight|bias)", "a discriminator"),
)  # fmt: skip


# Numbers that are not the weights until they are multiplied: (part of a key, whose they are)
SCALES = (
    (r"(^|\.)comfy_quant$", "ComfyUI's quantisation"),
    (r"(^|\.)scaled_fp8$|\.scale_weight$", "ComfyUI's scaled float8"),
    (r"\.(absmax|quant_map|quant_state\..*|nested_absmax)$", "bitsandbytes' four bits"),
    (r"\.(SCB|weight_format)$", "bitsandbytes' int8"),
    (r"\.(qweight|qzeros|scales)$", "GPTQ's, AWQ's or MLX's quantisation"),
    (r"(\.|_)(weight_scale|weight_scale_inv|weight_scale_2|input_scale|scale_inv)$", "float8 or int8 with scales"),
)


def quantised(keys: Iterable[str]) -> str | None:
    """How these weights are quantised, for a message; None if nothing says that they are."""
    keys = list(keys)
    for pattern, whose in SCALES:
        if found := next((key for key in keys if re.search(pattern, key)), None):
            return (
                f"its weights are quantised ({whose}: {found}), which is not read; get them as they were before, in "
                f"float16 or float32"
            )
    return None


def other_autoencoder(shapes: Shapes, *, anywhere: bool = False) -> str | None:
    """What autoencoder these tensors are, and what to do; None if none that is known.

    Args:
        shapes: by names within the network; or, with `anywhere`, under any prefix.
    """
    start = r"(?:.*\.)?" if anywhere else ""
    for other in AUTOENCODERS:
        if all(_has(shapes, start, sign) for sign in other.signs):
            return other.sentence()
    return None


def _has(shapes: Shapes, start: str, sign: Sign) -> bool:
    pattern, asked = sign if isinstance(sign, tuple) else (sign, None)
    compiled = re.compile(f"{start}(?:{pattern})")
    return any(
        (asked is None or (len(shape) == asked if isinstance(asked, int) else asked(shape))) and compiled.fullmatch(key)
        for key, shape in shapes.items()
    )


def other_model(shapes: Shapes) -> str | None:
    """What a file without an autoencoder holds; None if that is not known."""
    return next((what for pattern, what in OTHERS if any(re.fullmatch(pattern, key) for key in shapes)), None)
