"""What can't be asked of any family: frames, latents of another space, the half that is not there. And odd sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clikit import Calotype, draw, files
from familykit import KINDS, NAMES
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import one_sentence

from calotype.errors import CalotypeWarning, LatentsError, UsageError, WeightsError
from calotype.latent_files import load_latents, save_latents
from calotype.latents import KNOWN, Latents
from calotype.vae import VAE, load
from calotype.weights.load import load_weights
from calotype.weights.save import diffusers_config


def picture(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, channels), dtype=np.uint8))


def refused(call: Any, *words: Any, error: type[Exception], **more: Any) -> str:
    with pytest.raises(error) as caught:
        call(*words, **more)
    one_sentence(str(caught.value))
    return str(caught.value)


# --- frames ---


@pytest.mark.parametrize("name", NAMES)
def test_one_frame_is_a_picture_and_more_are_none(folders: dict[str, Path], name: str) -> None:
    kind, vae = KINDS[name], load(folders[name], device="cpu")
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, kind.channels, 2, 2, generator=generator)
    x = torch.rand(1, kind.pictures, kind.factor, 2 * kind.factor, generator=generator) * 2 - 1
    assert torch.equal(vae.decode(z[:, :, None]), vae.decode(z))
    assert torch.equal(vae.encode(x[:, :, None]).mode(), vae.encode(x).mode())
    for call, tensor, what in ((vae.decode, z, "latents"), (vae.encode, x, "pixels")):
        for frames in (0, 2, 5):
            said = refused(call, tensor[:, :, None].expand(-1, -1, frames, -1, -1), error=UsageError)
            assert f"these are of {frames} frames" in said
            assert f"{what}[:, :, 0]" in said


def rewritten(path: Path, tensor: torch.Tensor) -> Path:
    """A file of latents with another tensor in it."""
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    out = path.with_name("other.latents.safetensors")
    save_file({"latents": tensor.contiguous()}, out, metadata)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan-2.1", "wan-2.2", "qwen-image-2.1"])
def test_a_file_with_latents_of_frames(calotype: Calotype, folders: dict[str, Path], name: str) -> None:
    draw("p.png", mode="RGBA")
    assert calotype("encode", "p.png", "--vae", folders[name]).code == 0
    path = Path("p.latents.safetensors")
    tensor = load_latents(path).tensor
    assert calotype("decode", path, "--vae", folders[name]).code == 0
    for shaped in (tensor[:, None], tensor[None, :, None]):
        done = calotype("decode", rewritten(path, shaped), "--vae", folders[name])
        assert done.code == 0, done.err
        assert Path("other-decoded.png").read_bytes() == Path("p-decoded.png").read_bytes()
    for shaped in (tensor[:, None].expand(-1, 3, -1, -1), tensor[None, :, None].expand(-1, -1, 3, -1, -1)):
        done = calotype("decode", rewritten(path, shaped), "--vae", folders[name], "--out", "o")
        assert (done.code, len(done.said)) == (1, 1)
        assert "these are of 3 frames of a video" in done.err
        assert not Path("o").exists()
    done = calotype("decode", rewritten(path, tensor[None]), "--vae", folders[name])  # a batch is not one picture
    assert (done.code, len(done.said)) == (1, 1)
    assert f"must be [{len(tensor)}, h, w]" in done.err


def test_model_latents_of_one_frame(folders: dict[str, Path], tmp_path: Path) -> None:
    vae = load(folders["wan-2.1"], device="cpu")
    model = vae.encode_image(picture(9, 5), space="model")
    again = replace(model, tensor=model.tensor[None, :, None])
    assert torch.equal(again.tensor, model.tensor)
    save_latents(tmp_path / "a.safetensors", again)
    assert load_latents(tmp_path / "a.safetensors").tensor.shape == model.tensor.shape


# --- sizes ---


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_any_size_come_back_in_it(folders: dict[str, Path], name: str) -> None:
    kind, vae = KINDS[name], load(folders[name], device="cpu")
    f = kind.factor
    for width, height in ((1, 1), (f + 1, 3), (f - 1, f), (2, f + 1))[: 4 if f < 32 else 2]:
        one = picture(width, height, kind.pictures)
        latents = vae.encode_image(one)
        made = vae.decode_image(latents)
        assert (made.size, made.mode) == (one.size, one.mode)
        x = torch.from_numpy(np.array(one)).permute(2, 0, 1)[None].float() / 127.5 - 1
        posterior = vae.encode(x)
        assert posterior.mode().shape[2:] == (-(-height // f), -(-width // f))
        assert vae.decode(posterior.mode(), (height, width)).shape == x.shape
        # what is there is not cut: the last row and column count
        other = x.clone()
        other[..., -1, -1] *= -1
        assert not torch.equal(vae.encode(other).mode(), posterior.mode())
    assert "can't be cropped" in refused(vae.decode, posterior.mode(), (9 * f, 2), error=UsageError)


# --- another space ---


def latents_of(format_: str, side: int, vae: VAE) -> Latents:
    """Latents of a published format, as another VAE would have made them of a picture that this one could make."""
    known = KNOWN[format_]
    padding = vae.encode_image(picture(side * vae.factor, side * vae.factor, vae.picture_channels)).padding
    return Latents(
        tensor=torch.zeros(known.channels, side, side), space="raw", format=known, vae="0" * 64, padding=padding,
        vae_name=format_,
    )  # fmt: skip


OTHER_SPACES = [
    ("wan-2.2", "wan2.2", "wan2.1"),
    ("wan-2.1", "wan2.1", "wan2.2"),
    ("hunyuan", "hunyuan-image", "sana"),
    ("hunyuan", "hunyuan-image", "qwen-image-2.1"),
    ("qwen-image-2.1", "qwen-image-2.1", "hunyuan-image"),
    ("wan-2.1", "wan2.1", "flux"),
    ("flux2", "flux2", "sd1"),
]


@pytest.mark.parametrize(("name", "own", "other"), OTHER_SPACES)
def test_latents_of_another_space_are_refused_by_both_names(
    calotype: Calotype, folders: dict[str, Path], name: str, own: str, other: str
) -> None:
    vae = load(folders[name], device="cpu")
    latents = latents_of(other, 2, vae)
    said = refused(vae.decode_image, latents, error=LatentsError)
    assert f"format '{other}'" in said
    assert f"'{own}'" in said
    save_latents("a.latents.safetensors", latents)
    done = calotype("decode", "a.latents.safetensors", "--vae", folders[name], "--out", "o")
    assert (done.code, len(done.said)) == (1, 1)
    assert f"'{other}'" in done.err
    assert f"'{own}'" in done.err
    assert not Path("o").exists()
    if own == "flux2" or KNOWN[own].channels != KNOWN[other].channels:
        assert f"'{other}'" in refused(vae.decode_image, latents, any_vae=True, error=LatentsError)
        return
    with pytest.warns(CalotypeWarning, match=f"format '{other}', and .* decodes those of '{own}', so what comes out"):
        assert vae.decode_image(latents, any_vae=True).size == (2 * vae.factor, 2 * vae.factor)


@pytest.mark.slow
def test_tensors_of_another_space_are_refused_by_their_channels(folders: dict[str, Path]) -> None:
    for path in folders.values():
        vae = load(path, device="cpu")
        said = refused(vae.decode, torch.zeros(1, vae.latent_channels + 1, 2, 2), error=UsageError)
        assert f"this VAE has {vae.latent_channels} latent channels" in said


def test_a_latent_format_of_another_space_is_refused(calotype: Calotype, folders: dict[str, Path]) -> None:
    done = calotype("inspect", folders["wan-2.2"], "--latent-format", "wan2.1")
    assert (done.code, len(done.said)) == (2, 1)
    assert "'wan2.1' is for 16 channels, and this VAE has 48" in done.err


# --- halves ---


HALVES = [("wan-2.1", "quant_conv"), ("wan-2.2", "quant_conv"), ("sana", ""), ("hunyuan", ""), ("flux2", "quant_conv")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), HALVES)
def test_half_a_vae_does_its_half(calotype: Calotype, folders: dict[str, Path], name: str, more: str) -> None:
    with safe_open(folders[name] / "diffusion_pytorch_model.safetensors", "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(folders[name] / "diffusion_pytorch_model.safetensors")
    about = (folders[name] / "config.json").read_text()
    for side, prefix in (("encoder", more), ("decoder", f"post_{more}")):
        Path(side).mkdir()
        own = tuple(filter(None, (f"{side}.", more and f"{prefix}.", "bn.")))
        save_file({k: v for k, v in tensors.items() if k.startswith(own)}, f"{side}/half.safetensors", metadata)
        Path(side, "config.json").write_text(about)
    draw("data/p.png", mode="RGBA" if KINDS[name].pictures == 4 else "RGB")
    before = files()
    done = calotype("encode", "data/p.png", "--vae", "encoder/half.safetensors", "--out", "l")
    assert done.code == 0, done.err
    done = calotype("decode", "l/p.latents.safetensors", "--vae", "decoder/half.safetensors", "--any-vae", "--out", "o")
    assert done.code == 0, done.err
    for words, lacks in (
        (["encode", "data/p.png", "--vae", "decoder/half.safetensors", "--out", "no"], "encoder"),
        (["reconstruct", "data/p.png", "--vae", "decoder/half.safetensors", "--out", "no"], "encoder"),
        (["evaluate", "data", "--vae", "decoder/half.safetensors", "--report", "no", "--metrics", "psnr"], "encoder"),
        (["plan", "decoder/half.safetensors", "64x64", "--encode"], "encoder"),
        (
            ["decode", "l/p.latents.safetensors", "--vae", "encoder/half.safetensors", "--any-vae", "--out", "no"],
            "decoder",
        ),
        (["reconstruct", "data/p.png", "--vae", "encoder/half.safetensors", "--out", "no"], "decoder"),
        (["evaluate", "data", "--vae", "encoder/half.safetensors", "--report", "no", "--metrics", "psnr"], "decoder"),
        (["plan", "encoder/half.safetensors", "64x64"], "decoder"),
    ):
        done = calotype(*words)
        other = "decoder" if lacks == "encoder" else "encoder"
        assert (done.code, len(done.said)) == (1, 1), (words, done.err)
        assert f"holds only the {other}" in done.err or f"holds no {lacks}" in done.err, words
        assert not Path("no").exists(), words
    assert set(files()) - set(before) == {"l/p.latents.safetensors", "o/p-decoded.png"}
    vae = load("decoder/half.safetensors", device="cpu")
    assert "holds only the decoder" in refused(vae.encode_image, picture(8, 8), error=WeightsError)


# --- what a config.json says ---


@pytest.mark.parametrize("name", NAMES)
def test_a_quantisation_of_a_pipeline_is_none_of_its_vae(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    """Where its tensors are plain; those that are quantised are told by themselves."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folders[name].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    said = json.loads((copy / "config.json").read_text())
    said["quantization_config"] = {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes", "llm_int8_skip_modules": [],
    }  # fmt: skip
    (copy / "config.json").write_text(json.dumps(said))
    a, b = load_weights(copy), load_weights(folders[name])
    assert (a.sha256, a.module.config, a.format) == (b.sha256, b.module.config, b.format)
    assert "quantization_config" not in diffusers_config(a.module.config, a.format, a.kept, a.said)
    weights = copy / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    key = next(
        key for key in tensors if key.startswith("decoder.") and key.endswith("weight") and tensors[key].ndim > 1
    )
    packed = tensors | {
        key: torch.zeros(tensors[key].numel() // 2, 1, dtype=torch.uint8),
        f"{key}.absmax": torch.ones(4),
        f"{key}.quant_map": torch.zeros(16),
        f"{key}.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=torch.uint8),
    }
    save_file(packed, weights)
    said_so = refused(load_weights, copy, error=WeightsError)
    assert "its weights are quantised (bitsandbytes' four bits" in said_so
    save_file({k: v.to(torch.uint8) if k == key else v for k, v in tensors.items()}, weights)
    assert "uint8, which no network computes in" in refused(load_weights, copy, error=WeightsError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("downsample_block_type", "pixel_unshufle"),
        ("downsample_block_type", "Pixel_Unshuffle"),
        ("downsample_block_type", ""),
        ("downsample_block_type", ["Conv"]),
        ("upsample_block_type", "interpolation"),
        ("upsample_block_type", "pixel_shuffel"),
        ("upsample_block_type", 2),
        ("encoder_block_types", "ResBlok"),
        ("decoder_block_types", ["ResBlock", "ResBlock", "ResBlock", "EfficientVit", "EfficientViTBlock", "x"]),
        ("decoder_norm_types", "rmsnorm"),
    ],
)
@pytest.mark.parametrize("name", ["sana", pytest.param("f64", marks=pytest.mark.slow)])
def test_a_block_that_is_none_is_refused_by_name(
    calotype: Calotype, folders: dict[str, Path], name: str, field: str, value: object
) -> None:
    Path("v").mkdir()
    for path in folders[name].iterdir():
        Path("v", path.name).write_bytes(path.read_bytes())
    said = json.loads(Path("v/config.json").read_text()) | {field: value}
    Path("v/config.json").write_text(json.dumps(said))
    done = calotype("inspect", "v")
    assert (done.code, len(done.said)) == (1, 1)
    assert f"its config.json says {field}" in done.err
