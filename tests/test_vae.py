"""VAE, as users have it: tensors and pictures in and out, and what is refused."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import NARROW, SMALL, assert_close, kl, one_sentence, pictures, tensors_of, tiny, write
from torch import Tensor, nn

import calotype
from calotype.engine.run import Engine
from calotype.errors import (
    CalotypeWarning,
    LatentFormatError,
    LatentsError,
    MemoryLimitError,
    NonFiniteError,
    UsageError,
    WeightsError,
)
from calotype.families.face import NetworkConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.latents import KNOWN, LatentFormat, flux2, latent_format, same_as_model
from calotype.pixels import Picture
from calotype.posterior import DiagonalGaussian, Point
from calotype.vae import VAE, name_for, pick_device, picture_generator
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

F8 = AutoencoderConfig(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
PACKED = flux2(tuple(x / 9 for x in range(16)), tuple(1 + x / 9 for x in range(16)))


def make(
    tmp_path: Path,
    config: NetworkConfig = F8,
    seed: int = 0,
    *,
    format_: LatentFormat | None = KNOWN["sd1"],
    name: str = "test",
    **options: Any,
) -> VAE:
    """A small VAE that went through a file."""
    module = tiny(config, seed) if isinstance(config, TinyConfig) else kl(config, seed)  # type: ignore[arg-type]
    (path,) = save_weights(module, tmp_path / f"{name}-{seed}.safetensors", layout="ldm", format_=format_)
    return VAE(load_weights(path), name=name, **options)


@pytest.fixture
def vae(tmp_path: Path) -> VAE:
    return make(tmp_path)


def image(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    shape = (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


@pytest.fixture(autouse=True)
def _pillow() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'mode' parameter is deprecated", category=DeprecationWarning)
        yield


# Tensors


def test_tensors_go_through(vae: VAE) -> None:
    x = pictures(0, 2, 16, 24)
    posterior = vae.encode(x)
    assert isinstance(posterior, DiagonalGaussian)
    z = posterior.mode()
    assert (z.shape, z.dtype) == ((2, 4, 2, 3), torch.float32)
    assert_close(z, vae.module.encode(x).mode())
    y = vae.decode(z)
    assert (y.shape, y.dtype) == ((2, 3, 16, 24), torch.float32)
    assert_close(y, vae.module.decode(z).clamp(-1, 1))
    assert torch.equal(vae.decode(z, clamp=False).clamp(-1, 1), y)
    assert not y.requires_grad


def test_pixels_that_are_decoded_stay_in_range(vae: VAE) -> None:
    y = vae.decode(30 * torch.randn(1, 4, 4, 4))
    assert (y.min().item(), y.max().item()) == (-1.0, 1.0)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (1, 4000), (8, 8), (9, 8)])
def test_any_size_comes_back(vae: VAE, size: tuple[int, int]) -> None:
    height, width = size
    x = torch.rand(1, 3, height, width) * 2 - 1
    z = vae.encode(x).mode()
    assert z.shape == (1, 4, -(-height // 8), -(-width // 8))
    y = vae.decode(z, size=size)
    assert y.shape == x.shape
    assert torch.equal(y, vae.decode(z)[:, :, :height, :width])


@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), UsageError, r"float pixels .*, not torch\.uint8 \[1, 3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), UsageError, "from_array makes them from uint8"),
        (torch.zeros(3, 8, 8), UsageError, r"\[N, 3, H, W\] in \[-1, 1\], not torch\.float32 \[3, 8, 8\]"),
        (torch.zeros(1, 4, 8, 8), UsageError, r"not torch\.float32 \[1, 4, 8, 8\]"),
        (torch.zeros(1, 8, 8, 3), UsageError, r"\[1, 8, 8, 3\]"),
        (torch.zeros(0, 3, 8, 8), UsageError, r"\[0, 3, 8, 8\]"),
        (torch.zeros(1, 3, 0, 8), UsageError, r"\[1, 3, 0, 8\]"),
        (torch.full((1, 3, 8, 8), 255.0), UsageError, r"must be in \[-1, 1\], and these reach 255; .* maps 0\.\.255"),
        (torch.full((1, 3, 8, 8), -2.0), UsageError, "these reach 2;"),
        (torch.full((1, 3, 8, 8), float("nan")), NonFiniteError, "pixels to encode hold NaN or infinity"),
        (torch.full((1, 3, 8, 8), float("inf")), NonFiniteError, "pixels to encode hold NaN or infinity"),
    ],
)
def test_pixels_that_are_refused(vae: VAE, pixels: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        vae.encode(pixels)
    one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("latents", "error", "message"),
    [
        (
            torch.zeros(1, 16, 2, 2),
            UsageError,
            r"raw latents \[N, 4, h, w\], not \[1, 16, 2, 2\]: .* 4 latent channels",
        ),
        (torch.zeros(4, 2, 2), UsageError, r"not \[4, 2, 2\]"),
        (torch.zeros(0, 4, 2, 2), UsageError, r"not \[0, 4, 2, 2\]"),
        (torch.full((1, 4, 2, 2), float("nan")), LatentsError, "hold NaN or infinity; nothing was decoded"),
    ],
)
def test_latents_that_are_refused(vae: VAE, latents: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        vae.decode(latents)
    one_sentence(str(caught.value))


@pytest.mark.parametrize("size", [(17, 16), (16, 17), (0, 16), (16, -1)])
def test_a_size_that_the_latents_do_not_have(vae: VAE, size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"can't be cropped from latents of 2x2 at f8"):
        vae.decode(torch.zeros(1, 4, 2, 2), size=size)


# Pictures


@pytest.mark.slow
def test_pictures_of_mixed_sizes_together_equal_those_alone(vae: VAE) -> None:
    images = [image(h, w, i) for i, (h, w) in enumerate([(16, 24), (7, 13), (16, 24), (1, 1), (15, 23), (16, 24)])]
    together = vae.encode_images(images, seed=3)
    alone = [vae.encode_image(one, seed=3) for one in images]
    for a, b, one in zip(together, alone, images, strict=True):
        assert torch.equal(a.tensor, b.tensor)
        assert (a.space, a.format, a.vae, a.padding) == (b.space, b.format, b.vae, b.padding)
        assert (a.padding.height, a.padding.width) == one.size[::-1]
    decoded = vae.decode_images(together)
    for one, result, latents in zip(images, decoded, alone, strict=True):
        assert result.size == one.size
        assert result.mode == "RGB"
        assert np.array_equal(np.asarray(result), np.asarray(vae.decode_image(latents)))
    assert vae.encode_images([]) == vae.decode_images([]) == []


def test_a_picture_comes_from_a_path_bytes_or_pil(vae: VAE, tmp_path: Path) -> None:
    one = image(16, 16)
    path = tmp_path / "x.png"
    one.save(path)
    expected = vae.encode_image(one).tensor
    for source in (path, str(path), path.read_bytes(), calotype.read_picture(path)):
        assert torch.equal(vae.encode_image(source).tensor, expected)


def test_latents_know_where_they_come_from(vae: VAE) -> None:
    latents = vae.encode_image(image(16, 16))
    assert (latents.vae, latents.vae_name, latents.format, latents.space) == (vae.sha256, "test", KNOWN["sd1"], "raw")
    model = vae.encode_image(image(16, 16), space="model")
    assert model.space == "model"
    assert torch.allclose(model.tensor, latents.tensor * 0.18215)
    assert np.abs(np.asarray(vae.decode_image(model)).astype(int) - np.asarray(vae.decode_image(latents))).max() <= 1


def test_no_seed_is_the_mode_and_a_seed_is_a_draw_of_ones_own(vae: VAE) -> None:
    images = [image(16, 16, 1), image(16, 16, 2)]
    posterior = vae.encode(torch.stack([calotype.read_picture(one).pixels for one in images]))
    mode, drawn = vae.encode_images(images), vae.encode_images(images, seed=5)
    for i in range(2):
        assert torch.equal(mode[i].tensor, posterior.mode()[i])
        noise = torch.randn(4, 2, 2, generator=picture_generator(5, calotype.read_picture(images[i]).pixels))
        assert torch.allclose(drawn[i].tensor, posterior.mode()[i] + posterior.std[i] * noise, atol=1e-6)
    noises = [(drawn[i].tensor - mode[i].tensor) / posterior.std[i] for i in range(2)]
    assert (noises[0] - noises[1]).abs().max() > 0.1
    reversed_ = vae.encode_images(images[::-1], seed=5)
    assert torch.equal(reversed_[1].tensor, drawn[0].tensor)
    assert not torch.allclose(vae.encode_image(images[0], seed=6).tensor, drawn[0].tensor)


def test_alpha_is_composited_or_kept(vae: VAE) -> None:
    one = image(12, 20, mode="RGBA")
    over = vae.encode_image(one)
    assert over.alpha is None
    assert vae.decode_image(over).mode == "RGB"
    black = vae.encode_image(one, background=(0, 0, 0))
    assert not torch.allclose(black.tensor, over.tensor)
    kept = vae.encode_image(one, alpha="keep")
    assert kept.alpha is not None
    result = vae.decode_image(kept)
    assert (result.mode, result.size) == ("RGBA", (20, 12))
    assert np.array_equal(np.asarray(result)[..., 3], np.asarray(one)[..., 3])


def test_alpha_comes_through_a_file(vae: VAE, tmp_path: Path) -> None:
    one = image(12, 20, mode="RGBA")
    path = calotype.save_latents(tmp_path / "x.safetensors", vae.encode_image(one, alpha="keep"))
    assert np.array_equal(np.asarray(vae.decode_image(calotype.load_latents(path)))[..., 3], np.asarray(one)[..., 3])


def test_packed_latents_have_an_even_size(tmp_path: Path) -> None:
    vae = make(tmp_path, format_=PACKED)
    one = image(9, 33)
    latents = vae.encode_image(one)
    assert latents.tensor.shape == (4, 2, 6)
    model = vae.encode_image(one, space="model")
    assert model.tensor.shape == (16, 1, 3)
    assert torch.allclose(model.to_raw().tensor, latents.tensor, atol=1e-5)
    assert vae.decode_image(model).size == one.size


def test_a_vae_of_another_factor(tmp_path: Path) -> None:
    vae = make(tmp_path, SMALL)
    assert (vae.factor, vae.latent_channels) == (2, 4)
    latents = vae.encode_image(image(5, 7))
    assert latents.tensor.shape == (4, 3, 4)
    assert vae.decode_image(latents).size == (7, 5)


# Another VAE's latents


def test_another_vaes_latents_are_refused_unless_asked_for(tmp_path: Path) -> None:
    custom = replace(KNOWN["sd1"], name="custom")  # which is no space
    a, b = make(tmp_path, format_=custom, name="a"), make(tmp_path, seed=1, format_=custom, name="b")
    latents = a.encode_image(image(9, 9))
    with pytest.raises(
        LatentsError, match=r"made by another VAE \(a, .*\) than this one \(b, .*any_vae=True"
    ) as caught:
        b.decode_image(latents)
    one_sentence(str(caught.value))
    result = b.decode_image(latents, any_vae=True)
    expected = b.decode(latents.tensor[None], size=(9, 9))[0]
    assert np.abs(np.asarray(result) - (127.5 * expected + 127.5).permute(1, 2, 0).numpy()).max() < 1


@pytest.mark.slow
def test_latents_pass_through_model_space(tmp_path: Path) -> None:
    sd, taesd = make(tmp_path, name="sd"), make(tmp_path, TinyConfig(), format_=same_as_model("sd1", 4), name="taesd")
    latents = sd.encode_image(image(16, 16))
    with pytest.warns(CalotypeWarning, match="sd made these latents and taesd decodes them: both are of .* 'sd1'"):
        result = taesd.decode_image(latents)
    expected = taesd.decode(latents.tensor[None] * 0.18215)[0]
    assert np.abs(np.asarray(result) - (127.5 * expected + 127.5).permute(1, 2, 0).numpy()).max() < 1
    with pytest.warns(CalotypeWarning, match="taesd made these latents and sd decodes them"):
        back = sd.decode_image(taesd.encode_image(image(16, 16)))
    expected = sd.decode(taesd.encode_image(image(16, 16)).tensor[None] / 0.18215)[0]
    assert np.abs(np.asarray(back) - (127.5 * expected + 127.5).permute(1, 2, 0).numpy()).max() < 1


@pytest.mark.slow
def test_packed_latents_pass_through_model_space(tmp_path: Path) -> None:
    big = make(tmp_path, format_=PACKED, name="big")
    small = make(tmp_path, TinyConfig(pool=True), format_=same_as_model("flux2", 4), name="small")
    latents = big.encode_image(image(16, 16))
    normalised = torch.nn.functional.pixel_shuffle(PACKED.to_model(latents.tensor[None]), 2)
    expected = small.decode(normalised)[0]
    with pytest.warns(CalotypeWarning, match="both are of the space 'flux2'"):
        result = small.decode_image(latents)
    assert np.abs(np.asarray(result) - (127.5 * expected + 127.5).permute(1, 2, 0).numpy()).max() < 1


def test_latents_of_another_shape_can_not_be_decoded_by_any_vae(tmp_path: Path) -> None:
    a = make(tmp_path, replace(F8, z_channels=16), format_=KNOWN["sd3"], name="a")
    b = make(tmp_path, name="b")
    with pytest.raises(
        LatentsError, match=r"are of format 'sd3', with 16 channels, and b decodes those of 'sd1', with 4;"
    ):
        b.decode_image(a.encode_image(image(8, 8)), any_vae=True)


def test_latents_of_another_factor_can_not_be_decoded_by_any_vae(tmp_path: Path) -> None:
    a, b = make(tmp_path, SMALL, name="a"), make(tmp_path, name="b")
    with pytest.raises(LatentsError, match=r"for a VAE of another f"):
        b.decode_image(a.encode_image(image(8, 8)))


def test_the_name_of_latents_is_what_load_needs(vae: VAE) -> None:
    latents = vae.encode_image(image(8, 8))
    assert name_for(replace(latents, vae_name="taesd"), Path("x")) == "taesd"
    assert name_for(replace(latents, vae_name="builtin"), Path("x")) == "builtin"
    with pytest.raises(
        LatentsError, match=r"^x: these latents were made by test \(sha256 \w{12}\.\.\.\); give .* --vae\.$"
    ):
        name_for(latents, Path("x"))


# Numbers that do not fit


def overflowing(tmp_path: Path) -> Path:
    """Weights that float16 holds, and with which float16 overflows (in both directions) but float32 does not."""
    module = kl(F8, 2)
    for half in (module.encoder, module.decoder):
        for block in (half.mid.block_1, half.mid.block_2):
            nn.init.constant_(block.conv2.bias, 4e4)  # exact in float16, and twice that is more than it holds
    tensors = {key: value.half() for key, value in tensors_of(module).items()}
    return write(tmp_path / "x.safetensors", tensors, {"calotype_config": json.dumps(F8.to_dict())})


@pytest.mark.slow
def test_what_overflows_in_float16_is_computed_in_float32(tmp_path: Path) -> None:
    path = overflowing(tmp_path)
    half = torch.float16
    narrow = calotype.load(path, device="cpu", dtype=half, encode_dtype=half, latent_format="sd1")
    wide = calotype.load(path, device="cpu", latent_format="sd1")
    x, z = pictures(0, 1, 16, 16), torch.randn(1, 4, 2, 2)
    with pytest.warns(CalotypeWarning, match=r"^x\.safetensors gave NaN or infinity in float16; computing in float32"):
        posterior = narrow.encode(x)
    assert torch.equal(posterior.moments, wide.encode(x).moments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert torch.equal(narrow.decode(z), wide.decode(z))
        assert torch.equal(narrow.encode(x).mode(), wide.encode(x).mode())
    again = calotype.load(path, device="cpu", dtype=torch.float16, latent_format="sd1")
    with pytest.warns(CalotypeWarning, match="float16"):
        assert torch.equal(again.decode(z), wide.decode(z))


def test_float16_that_fits_stays_float16(vae: VAE, tmp_path: Path) -> None:
    narrow = make(tmp_path, dtype=torch.float16, encode_dtype=torch.float16)
    assert narrow.sha256 == vae.sha256
    x = pictures(0, 1, 16, 16)
    result = narrow.encode(x).mode()
    assert result.dtype == torch.float32
    assert not torch.equal(result, vae.encode(x).mode())
    assert torch.allclose(result, vae.encode(x).mode(), atol=0.05)
    assert next(narrow.module.parameters()).dtype == torch.float16


@pytest.mark.slow
def test_what_overflows_in_float32_too_is_an_error(vae: VAE) -> None:
    for half in (vae.module.encoder, vae.module.decoder):
        half.conv_out.bias.fill_(float("inf"))  # type: ignore[union-attr, operator]
    for run in (lambda: vae.encode(torch.zeros(1, 3, 8, 8)), lambda: vae.decode(torch.zeros(1, 4, 1, 1))):
        with pytest.raises(NonFiniteError, match="test gives NaN or infinity in float32 too") as caught:
            run()
        one_sentence(str(caught.value))


def test_what_overflows_in_both_warns_and_is_an_error(tmp_path: Path) -> None:
    vae = make(tmp_path, dtype=torch.float16, encode_dtype=torch.float16)
    for module in (vae.module, vae.loaded.module):
        module.encoder.conv_out.bias.fill_(float("inf"))  # type: ignore[union-attr, operator]
    with pytest.warns(CalotypeWarning), pytest.raises(NonFiniteError, match="float32 too"):
        vae.encode(torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
def test_dtypes_are_checked(vae: VAE, tmp_path: Path) -> None:
    assert vae.check_dtypes() == {"float32": True, "bfloat16": True, "float16": True}
    loaded = calotype.load(overflowing(tmp_path), device="cpu")
    assert loaded.check_dtypes() == {"float32": True, "bfloat16": True, "float16": False}


# Loading


@pytest.mark.slow
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_the_missing_half_is_told(tmp_path: Path, side: str) -> None:
    own = {"encoder": ("encoder", "quant"), "decoder": ("decoder", "post")}[side]
    tensors = {k: v for k, v in tensors_of(kl(NARROW)).items() if k.startswith(own)}
    vae = calotype.load(write(tmp_path / "half.safetensors", tensors), device="cpu", latent_format="sd1")
    if side == "encoder":
        assert vae.encode(torch.zeros(1, 3, 8, 8)).mode().shape == (1, 4, 1, 1)
        with pytest.raises(
            WeightsError, match=r"half\.safetensors holds only the encoder; put the decoder's file"
        ) as e:
            vae.decode(torch.zeros(1, 4, 1, 1))
    else:
        assert vae.decode(torch.zeros(1, 4, 1, 1)).shape == (1, 3, 8, 8)
        with pytest.raises(
            WeightsError, match=r"half\.safetensors holds only the decoder; put the encoder's file"
        ) as e:
            vae.encode(torch.zeros(1, 3, 8, 8))
    one_sentence(str(e.value))
    assert vae.check_dtypes()["float32"]


@pytest.mark.parametrize("device", ["cuda:77", "banana", "hip:3"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(UsageError, match=rf"There is no device '{device}' here; `calotype doctor` lists") as caught:
        pick_device(device)
    one_sentence(str(caught.value))


def test_the_cpu_is_there() -> None:
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    assert pick_device(None).type in ("cpu", "cuda", "mps")


def test_a_file_is_loaded_under_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.safetensors", tensors_of(kl(NARROW)))
    vae = calotype.load(str(path), device="cpu")
    assert (vae.name, vae.factor, vae.latent_channels, vae.config) == ("mine.safetensors", 8, 4, NARROW)
    assert repr(vae) == "VAE('mine.safetensors', f8, 4 channels, cpu, torch.float32)"
    with pytest.raises(LatentFormatError, match=r"--latent-format sd1\|sdxl"):
        vae.encode_image(image(8, 8))
    assert calotype.load(path, device="cpu", latent_format="none").latent_format == latent_format("none", 4)


def test_a_tiny_one_has_a_posterior_without_spread(tmp_path: Path) -> None:
    vae = make(tmp_path, TinyConfig(), format_=same_as_model("taesd", 4))
    posterior = vae.encode(pictures(0, 1, 16, 16))
    assert isinstance(posterior, Point)
    one = image(16, 16)
    assert torch.equal(vae.encode_image(one, seed=1).tensor, vae.encode_image(one).tensor)


def test_the_built_in_vae_reconstructs_a_picture() -> None:
    vae = calotype.load(device="cpu")
    assert vae.name == "builtin"
    assert vae.factor == 8
    assert vae.latent_channels == 16
    x = pictures(0, 1, 48, 64)
    smooth = torch.nn.functional.avg_pool2d(x, 9, 1, 4, count_include_pad=False)
    picture = Picture(smooth[0], None, ())
    latents = vae.encode_image(picture)
    result = calotype.read_picture(vae.decode_image(latents)).pixels
    assert result.shape == smooth[0].shape
    assert 10 * torch.log10(4 / (result - smooth[0]).square().mean()) > 25
    assert np.array_equal(np.asarray(vae.decode_image(latents)), np.asarray(vae.decode_image(latents.to_model())))


def test_what_is_too_large_for_the_narrow_type_itself_comes_back_from_the_stored_weights(tmp_path: Path) -> None:
    wide = make(tmp_path)
    wide.module.decoder.conv_out.weight[0, 0] = 1e5  # type: ignore[union-attr, operator, index]
    save_weights(wide.module, tmp_path / "big.safetensors", layout="ldm")
    narrow = calotype.load(tmp_path / "big.safetensors", device="cpu", dtype=torch.float16)
    z = torch.randn(1, 4, 2, 2)
    with pytest.warns(CalotypeWarning):
        result = narrow.decode(z)
    assert torch.equal(result, wide.decode(z))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory")]
)
def test_too_little_memory_is_one_sentence(vae: VAE, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(engine: Engine, direction: str, x: Tensor, **options: Any) -> None:
        raise error

    monkeypatch.setattr(Engine, "__call__", fail)
    for run in (lambda: vae.encode(torch.zeros(1, 3, 8, 8)), lambda: vae.decode(torch.zeros(1, 4, 1, 1))):
        with pytest.raises(MemoryLimitError, match="not enough memory") as caught:
            run()
        one_sentence(str(caught.value))


def test_a_type_to_compute_in_must_be_a_float() -> None:
    with pytest.raises(UsageError, match=r"float32, bfloat16 or float16, not torch\.int32"):
        calotype.load(dtype=torch.int32)


def test_padding_that_does_not_fit_is_refused(vae: VAE) -> None:
    latents = vae.encode_image(image(16, 16))
    with pytest.raises(LatentsError, match="padded to 24x16"):
        vae.decode_image(replace(latents, padding=replace(latents.padding, bottom=8)))
