"""Networks that are no VAE of calotype's are told by what they are, with what to do."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SMALL, kl, one_sentence, tensors_of, write

from calotype.errors import WeightsError
from calotype.families import make_network
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.families.wan.config import WanConfig
from calotype.weights.detect import detect
from calotype.weights.load import load_weights
from calotype.weights.others import other_autoencoder, quantised

Shapes = dict[str, tuple[int, ...]]
NARROW = {"block_out_channels": (32, 64)}

# (diffusers' class, its module, arguments, what it is)
CLASSES: list[tuple[str, str, dict[str, Any], str]] = [
    ("ConsistencyDecoderVAE", "consistency_decoder_vae", {}, "a VAE with a consistency decoder"),
    ("AutoencoderKLKVAE", "autoencoder_kl_kvae", {}, r"a KVAE \(Kandinsky's image VAE\)"),
    ("AutoencoderRAE", "autoencoder_rae", {}, "an RAE"),
    ("AutoencoderKLHunyuanVideo", "autoencoder_kl_hunyuan_video", {}, "a video VAE of HunyuanVideo"),
    ("AutoencoderKLHunyuanVideo15", "autoencoder_kl_hunyuanvideo15", {}, r"a video VAE of HunyuanVideo 1\.5"),
    ("AutoencoderKLHunyuanImageRefiner", "autoencoder_kl_hunyuanimage_refiner", {}, "a video VAE of .*refiner"),
    ("AutoencoderKLCogVideoX", "autoencoder_kl_cogvideox", {}, "a video VAE of CogVideoX"),
    ("AutoencoderKLLTXVideo", "autoencoder_kl_ltx", {}, "a video VAE of LTX"),
    ("AutoencoderKLLTX2Video", "autoencoder_kl_ltx2", {}, "a video VAE of LTX"),
    ("AutoencoderKLMochi", "autoencoder_kl_mochi", {}, "a video VAE of Mochi"),
    ("AutoencoderKLCosmos", "autoencoder_kl_cosmos", {}, "a video VAE of Cosmos"),
    ("AutoencoderKLAllegro", "autoencoder_kl_allegro", {}, "a video VAE of Allegro"),
    ("AutoencoderKLMagvit", "autoencoder_kl_magvit", {}, "a video VAE of MAGVIT's kind"),
    ("AutoencoderKLTemporalDecoder", "autoencoder_kl_temporal_decoder", {}, "a VAE of Stable Video Diffusion"),
    ("AutoencoderVidTok", "autoencoder_vidtok", {}, "a video VAE of VidTok"),
    ("AutoencoderKLKVAEVideo", "autoencoder_kl_kvae_video", {}, "a KVAE for video"),
    ("AutoencoderKLMiniMaxH3", "autoencoder_kl_minimax_h3", {}, "a video VAE of MiniMax"),
    ("Kandinsky6SRVAE", "autoencoder_kandinsky6_sr", {}, "a video upscaler's VAE"),
    ("AutoencoderOobleck", "autoencoder_oobleck", {}, "an audio VAE"),
    ("AutoencoderKLLTX2Audio", "autoencoder_kl_ltx2_audio", {}, "an audio VAE"),
    ("AutoencoderKLKVAEAudio", "autoencoder_kl_kvae_audio", {}, "an audio VAE"),
    ("AutoencoderKLMiniMaxH3Audio", "autoencoder_kl_minimax_h3_audio", {}, "an audio VAE"),
    ("AutoencoderSAME", "autoencoder_same", {}, "an audio autoencoder"),
    ("MMAudioVAE", "autoencoder_mmaudio", {}, "an audio VAE"),
]


def shapes_of(module: str, name: str, arguments: Mapping[str, Any]) -> Shapes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = importlib.import_module(f"diffusers.models.autoencoders.{module}")
        with torch.device("meta"):
            made = getattr(found, name)(**arguments)
    return {key: tuple(value.shape) for key, value in made.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module", "arguments", "what"), CLASSES)
def test_autoencoders_of_diffusers_are_named(name: str, module: str, arguments: dict[str, Any], what: str) -> None:
    shapes = shapes_of(module, name, arguments)
    denoiser = {"model.diffusion_model.x_embedder.proj.weight": (4, 4), "text_model.embeddings.x": (2,)}
    for found in (
        shapes,
        {f"vae.{key}": shape for key, shape in shapes.items()},
        {f"module.{key}": shape for key, shape in shapes.items()},
        {**{f"first_stage_model.{key}": shape for key, shape in shapes.items()}, **denoiser},
    ):
        with pytest.raises(WeightsError, match=rf"{what}.*, which is not read; ") as caught:
            detect(found)
        assert "unexpected" not in str(caught.value)
        assert re.search(r"diffusers' \w+|give a VAE of images", str(caught.value))


def names(text: str, rank: int = 4) -> Shapes:
    """Names, each of one rank; a number after a colon is another rank."""
    return {
        name.partition(":")[0]: (8,) * (int(name.partition(":")[2]) if ":" in name else rank) for name in text.split()
    }


# Names as their own projects have them, with the ranks that tell them apart
ORIGINALS = {
    "a Paella VQGAN": names("vquantizer.codebook.weight:2 in_block.1.weight down_blocks.0.weight"),
    "the image encoder or previewer of Stable Cascade": names("backbone.1.0.block.0.1.num_batches_tracked:0"),
    "a VQ autoencoder": names("encoder.conv_in.weight decoder.conv_in.weight quantize.embedding.weight:2"),
    "a VAE of Stable Video Diffusion": names(
        "encoder.conv_in.weight decoder.conv_in.weight decoder.mid.block_1.time_stack.in_layers.2.weight:5"
    ),
    "a KVAE (Kandinsky's image VAE), which is not read; load it with diffusers' AutoencoderKLKVAE": names(
        "encoder.conv_in.weight encoder.down.0.downsample.linear.weight decoder.conv_in.weight "
        "decoder.mid.block_1.norm1.norm_layer.weight:1 decoder.norm_out.conv_y.weight decoder.norm_out.conv_b.weight"
    ),
    "a KVAE for video (Kandinsky), which is not read; load it with diffusers' AutoencoderKLKVAEVideo": names(
        "encoder.conv_in.weight:5 encoder.down.0.block.0.conv1.weight:5 decoder.conv_in.weight:5 "
        "decoder.norm_out.norm_layer.weight:1 decoder.norm_out.conv_y.weight:5 decoder.norm_out.conv_b.weight:5"
    ),
    "Qwen-Image's VAE in MLX's layout": names("encoder.conv_in.conv3d.weight:5 decoder.conv_in.conv3d.weight:5"),
    "the decoder of keras-hub's first presets": names("layers.vae_image_decoder.layers.conv2d.vars.0"),
    "an audio VAE (a VAE of spectrograms, with its vocoder)": names(
        "encoder.conv_in.weight decoder.conv_in.weight vocoder.conv_pre.weight:3"
    ),
    "a VAE with weight or spectral norm": names(
        "encoder.conv_in.parametrizations.weight.original0 encoder.conv_in.bias:1 decoder.conv_in.weight"
    ),
    "a VAE with LoRA layers": names("encoder.conv_in.base_layer.weight encoder.conv_in.lora_A.default.weight "
                                    "decoder.conv_in.weight"),
}  # fmt: skip


@pytest.mark.parametrize("what", ORIGINALS)
@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
def test_autoencoders_are_named_by_their_projects_names(what: str, prefix: str) -> None:
    shapes = {f"{prefix}{key}": shape for key, shape in ORIGINALS[what].items()}
    shapes["model.diffusion_model.blocks.0.cross_attn.k.weight"] = (4, 4)
    with pytest.raises(WeightsError, match=re.escape(what)) as caught:
        detect(shapes)
    one_sentence(f"{caught.value}.")


def test_kernels_with_their_axes_in_another_order(tmp_path: Path) -> None:
    tensors = tensors_of(kl(AutoencoderConfig(ch=32, ch_mult=(1,))))
    turned = {k: v.permute(2, 3, 1, 0).contiguous() if v.ndim == 4 else v for k, v in tensors.items()}
    with pytest.raises(WeightsError, match="whose kernels have their axes in another order"):
        load_weights(write(tmp_path / "x.safetensors", turned))


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        AutoencoderConfig(),
        AutoencoderConfig(ch_mult=(1, 2, 4, 4, 4, 4), z_channels=64),
        AutoencoderConfig(z_channels=32, decoder_ch=96),
        AutoencoderConfig(attn_levels=(0, 3), mid_attention=False),
        TinyConfig(z_channels=16),
        TinyConfig(z_channels=32, pool=True),
        FoldedConfig(),
        WanConfig(),
    ],
)
def test_our_own_networks_are_none_of_the_others(config: Any) -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in make_network(config).state_dict().items()}
    assert other_autoencoder(shapes) is None
    assert other_autoencoder({f"vae.{key}": shape for key, shape in shapes.items()}, anywhere=True) is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.hada_w1_a", "a LoRA"),
        ("input_hint_block.0.weight zero_convs.0.0.weight", "a ControlNet"),
        ("image_proj.proj.weight ip_adapter.1.to_k_ip.weight", "an IP-Adapter"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", "a motion module"),
        ("string_to_param.* string_to_token", "a textual inversion embedding"),
        ("emb_params", "a textual inversion embedding"),
        ("clip_l clip_g", "a textual inversion embedding"),
        ("<cat-toy>", "a textual inversion embedding"),
        ("vision_model.encoder.layers.0.mlp.fc1.weight", "a vision encoder"),
        ("model.layers.0.self_attn.q_proj.weight model.embed_tokens.weight", "a text encoder"),
        ("model.0.weight model.1.sub.0.RDB1.conv1.0.weight", "an upscaler"),
        ("conv_first.weight body.0.rdb1.conv1.weight", "an upscaler"),
        ("double_blocks.0.img_attn.qkv.weight", "a denoiser"),
        ("conv_pre.weight_v ups.0.0.weight", "a vocoder"),
        ("features.0.weight classifier.6.weight", "a classifier"),
    ],
)
def test_other_models_are_named(text: str, what: str) -> None:
    with pytest.raises(WeightsError, match=f"the file holds {what}.*, not a VAE$"):
        detect(names(text, 2))


# Eight bits


def float8(dtype: torch.dtype) -> torch.Tensor:
    """Every number of the type that is finite."""
    numbers = torch.arange(256).to(torch.uint8).view(dtype)
    return numbers[numbers.float().isfinite()]


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
)
def test_plain_float8_is_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = float8(dtype)
    assert torch.equal(numbers.half().float(), numbers.float())
    tensors = tensors_of(kl(AutoencoderConfig(ch=32, ch_mult=(1,))))
    narrow = {k: v.to(dtype) if k.endswith("conv1.weight") else v for k, v in tensors.items()}
    path = tmp_path / "x.pt"
    torch.save(narrow, path)
    loaded = load_weights(path)
    state = loaded.module.state_dict()
    for key, value in narrow.items():
        assert state[key].dtype == (torch.float16 if value.dtype == dtype else torch.float32)
        assert torch.equal(state[key].float(), value.float())
    assert loaded.dtypes == ("float32", str(dtype).removeprefix("torch."))
    (notice,) = loaded.notices
    assert re.search(r"x\.pt: 9 of \d+ tensors are stored in float8_\w+ and were widened to float16, exactly", notice)


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("decoder.conv_9.weight_scale", "float8 or int8 with scales"),
        ("decoder.conv_9.scale_weight", "ComfyUI's scaled float8"),
        ("decoder.conv_9.comfy_quant", "ComfyUI's quantisation"),
        ("decoder.conv_in.weight.absmax", "bitsandbytes' four bits"),
        ("decoder.mid.attn_1.q.SCB", "bitsandbytes' int8"),
        ("decoder.mid.attn_1.q.scales", "GPTQ's, AWQ's or MLX's"),
        ("encoder.conv_9.weight_scale_inv", "float8 or int8 with scales"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "vae."])
def test_other_scales_are_refused_by_name(tmp_path: Path, name: str, whose: str, prefix: str) -> None:
    tensors = {**tensors_of(kl(AutoencoderConfig(ch=32, ch_mult=(1,)))), name: torch.ones(())}
    path = write(tmp_path / "x.safetensors", {f"{prefix}{key}": value for key, value in tensors.items()})
    with pytest.raises(WeightsError, match=rf"quantised \({whose}.*{name}\), which is not read; get them as they were"):
        load_weights(path)


def test_scales_of_other_networks_are_of_no_account(tmp_path: Path) -> None:
    tensors = {f"vae.{key}": value for key, value in tensors_of(kl(AutoencoderConfig(ch=32, ch_mult=(1,)))).items()}
    tensors["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    tensors["model.diffusion_model.x.scale_weight"] = torch.ones(())
    assert load_weights(write(tmp_path / "x.safetensors", tensors)).notices == ()
    assert quantised(["decoder.conv_in.weight", "vae_scale"]) is None
