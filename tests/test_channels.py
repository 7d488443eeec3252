"""VAEs of grey (1), RGBA (4) and other numbers of picture channels, as the library has them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from support import SMALL, assert_close, fill, import_diffusers, network, one_sentence, same_tensors, write
from torch import Tensor

from calotype.engine.budget import parse_memory
from calotype.engine.run import Engine, EngineName
from calotype.errors import LatentsError, MemoryLimitError, PictureError, UsageError, WeightsError
from calotype.families.face import NetworkConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.latents import KNOWN, LatentFormat, same_as_model
from calotype.pixels import (
    Picture,
    alpha_mode,
    for_channels,
    from_array,
    luma,
    read_picture,
    read_picture_rows,
    seen,
    to_channels,
    to_pil,
    to_uint8,
    write_picture,
)
from calotype.rows import write_rows
from calotype.steps import Direction
from calotype.vae import VAE
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

GREY, RGBA = replace(SMALL, in_channels=1), replace(SMALL, in_channels=4)
TINY_GREY, TINY_RGBA = TinyConfig(in_channels=1), TinyConfig(in_channels=4)
CONFIGS = [GREY, RGBA, TINY_GREY, TINY_RGBA]


def names_of(config: NetworkConfig) -> str:
    return f"{type(config).__name__}-{config.picture_channels}"


def format_of(config: NetworkConfig) -> LatentFormat:
    return same_as_model("sd1", config.z_channels) if isinstance(config, TinyConfig) else KNOWN["sd1"]


def vae_of(folder: Path, config: NetworkConfig, seed: int = 0, **options: Any) -> VAE:
    """A small VAE that went through a file."""
    path = folder / f"{names_of(config)}-{seed}.safetensors"
    save_weights(network(config, seed), path, layout="ldm", format_=format_of(config))
    return VAE(load_weights(path), name=names_of(config), **options)


def drawn(channels: int = 4, width: int = 40, height: int = 32, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth levels with a little noise, [H, W, channels]; alpha has all values but 0."""
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([x * 5, y * 6, 3 * x + 2 * y, 20 + x * 5 + y], axis=-1)
    levels = (planes + np.random.default_rng(seed).integers(0, 16, planes.shape)) % 256
    levels[..., 3] = np.maximum(levels[..., 3], 1)
    return levels[..., :channels].astype(np.uint8)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# --- what goes in and comes out ---


def test_luma_is_that_of_rec_601_and_grey_is_exact() -> None:
    levels = drawn(3)
    pillow = np.asarray(Image.fromarray(levels).convert("L"), dtype=np.float64)
    ours = luma(from_array(levels))
    assert np.abs((ours[0].double().numpy() + 1) * 127.5 - pillow).max() <= 0.51  # Pillow rounds
    ramp = torch.linspace(-1, 1, 4001)[None, None]
    assert torch.equal(luma(ramp.expand(3, -1, -1)), ramp)
    primaries = torch.eye(3)[:, :, None].transpose(1, 2)  # [3, 1, 3]: pure red, green, blue
    assert torch.allclose(luma(primaries), torch.tensor([[[0.299, 0.587, 0.114]]]))


@pytest.mark.parametrize("config", CONFIGS, ids=names_of)
def test_pictures_go_through_as_the_plain_module_has_them(tmp_path: Path, config: NetworkConfig) -> None:
    vae, levels = vae_of(tmp_path, config), drawn()
    given = from_array(levels)
    given = luma(given[:3]) if vae.picture_channels == 1 else given
    with torch.no_grad():
        posterior = vae.module.encode(given[None])
        expected = vae.module.decode(posterior.mode())[0]
    picture = Image.fromarray(levels if vae.picture_channels == 4 else levels[..., :3])
    latents = vae.encode_image(picture)
    assert_close(latents.tensor, posterior.mode()[0])
    assert latents.alpha is None
    assert_close(vae.decode(posterior.mode(), clamp=False)[0], expected)
    image = vae.decode_image(latents)
    assert (image.mode, image.size) == ({1: "L", 4: "RGBA"}[vae.picture_channels], picture.size)
    values = np.asarray(image).reshape(32, 40, -1)
    assert np.abs(values.astype(int) - to_uint8(expected).permute(1, 2, 0).numpy()).max() <= 1
    drawn_latents = vae.encode_image(picture, seed=3)
    assert torch.equal(drawn_latents.tensor, vae.encode_images([picture, picture], seed=3)[1].tensor)
    assert torch.equal(torch.cat(list(vae.decode_rows(latents.tensor)), 1), vae.decode(latents.tensor[None])[0])


def test_grey_of_sixteen_bits_goes_in_exactly(tmp_path: Path) -> None:
    vae = vae_of(tmp_path, GREY)
    levels = np.random.default_rng(0).integers(0, 65536, (32, 40)).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    exact = torch.from_numpy(levels.astype(np.float32) / np.float32(65535)) * 2 - 1
    assert torch.equal(for_channels(read_picture_rows(tmp_path / "deep.png"), 1)(0, 32)[0], exact)
    assert torch.equal(vae.encode_image(tmp_path / "deep.png").tensor, vae.encode(exact[None, None]).mode()[0])
    for mode in ("L", "RGB"):  # the same grey, stored in two ways
        picture = Image.fromarray(levels.astype(np.uint8)).convert(mode)
        assert torch.equal(
            for_channels(read_picture_rows(picture), 1)(0, 32),
            from_array(np.asarray(picture.convert("L"))[..., None]),
        )


def test_alpha_is_opaque_where_a_picture_has_none(tmp_path: Path) -> None:
    vae = vae_of(tmp_path, RGBA)
    levels = drawn(3)
    opaque = np.dstack([levels, np.full(levels.shape[:2], 255, np.uint8)])
    expected = vae.encode(from_array(opaque)[None]).mode()[0]
    for picture in (Image.fromarray(levels), Image.fromarray(opaque), read_picture(png(Image.fromarray(levels)))):
        assert torch.equal(vae.encode_image(picture).tensor, expected)


def test_alpha_over_makes_pictures_opaque_and_keep_is_refused(tmp_path: Path) -> None:
    vae, levels = vae_of(tmp_path, RGBA), drawn()
    picture = Image.fromarray(levels)
    flat = read_picture(picture, background=(10, 20, 30)).pixels
    opaque = torch.cat([flat, torch.ones(1, *flat.shape[1:])])
    made = vae.encode_image(picture, alpha="over", background=(10, 20, 30))
    assert torch.equal(made.tensor, vae.encode(opaque[None]).mode()[0])
    with pytest.raises(UsageError, match=r"--alpha keep .*this VAE takes RGBA") as error:
        vae.encode_image(picture, alpha="keep")
    one_sentence(str(error.value))
    assert alpha_mode(3, None) == alpha_mode(1, None) == "over"
    assert alpha_mode(4, None) == alpha_mode(1, "keep") == "keep"
    with pytest.raises(UsageError, match="alpha must be"):
        alpha_mode(3, "other")  # type: ignore[arg-type]


def test_colours_under_alpha_0_are_the_backgrounds(tmp_path: Path) -> None:
    vae = vae_of(tmp_path, RGBA)
    levels = drawn()
    levels[:16, :, 3] = 0
    other = levels.copy()
    other[:16, :, :3] = 77  # which nobody sees
    a, b = (vae.encode_image(Image.fromarray(one), background=(1, 2, 3)) for one in (levels, other))
    assert torch.equal(a.tensor, b.tensor)
    levels[:16, :, :3] = (1, 2, 3)
    assert torch.equal(a.tensor, vae.encode(from_array(levels)[None]).mode()[0])


def test_grey_keeps_alpha_aside_where_asked(tmp_path: Path) -> None:
    vae, levels = vae_of(tmp_path, GREY), drawn()
    latents = vae.encode_image(Image.fromarray(levels), alpha="keep")
    image = vae.decode_image(latents)
    assert image.mode == "LA"
    assert np.array_equal(np.asarray(image)[..., 1], levels[..., 3])
    for suffix, mode in ((".png", "LA"), (".tiff", "LA"), (".webp", "RGBA")):
        with Image.open(vae.write_image(tmp_path / f"a{suffix}", latents)) as written:
            assert written.mode == mode
            assert np.array_equal(np.asarray(written.convert("LA")), np.asarray(image))
    with pytest.raises(UsageError, match="JPEG has no alpha"):
        vae.write_image(tmp_path / "a.jpg", latents)


@pytest.mark.parametrize("config", [GREY, RGBA], ids=names_of)
def test_files_hold_what_is_decoded(tmp_path: Path, config: AutoencoderConfig) -> None:
    vae = vae_of(tmp_path, config)
    picture = Image.fromarray(drawn(width=43, height=27))
    latents = vae.encode_image(picture, alpha="over" if config.in_channels == 1 else None)
    image = vae.decode_image(latents)
    for suffix in (".png", ".tif", ".webp", ".avif"):
        with Image.open(vae.write_image(tmp_path / f"a{suffix}", latents)) as written:
            assert written.size == (43, 27)
            if suffix in (".png", ".tif"):
                assert written.mode == image.mode
            if suffix != ".avif":
                assert np.array_equal(np.asarray(written.convert(image.mode)), np.asarray(image))
    if config.in_channels == 1:
        with Image.open(vae.write_image(tmp_path / "a.jpg", latents)) as written:
            assert written.mode == "L"
            assert np.abs(np.asarray(written).astype(int) - np.asarray(image)).mean() < 3
    else:
        with pytest.raises(UsageError, match="JPEG has no alpha"):
            vae.write_image(tmp_path / "a.jpg", latents)
    assert not list(tmp_path.glob("*.jpg.*"))


def test_alpha_kept_aside_and_alpha_decoded_are_not_mixed(tmp_path: Path) -> None:
    rgb, rgba = vae_of(tmp_path, SMALL), vae_of(tmp_path, RGBA)
    kept = rgb.encode_image(Image.fromarray(drawn()), alpha="keep")
    for call in (rgba.decode_image, lambda one, **more: rgba.write_image(tmp_path / "a.png", one, **more)):
        with pytest.raises(LatentsError, match="makes alpha itself") as error:
            call(kept, any_vae=True)
        one_sentence(str(error.value))
    plain = rgb.encode_image(Image.fromarray(drawn()))
    assert rgba.decode_image(plain, any_vae=True).mode == "RGBA"
    assert rgb.decode_image(rgba.encode_image(Image.fromarray(drawn())), any_vae=True).mode == "RGB"


# --- pixels ---


def test_to_channels() -> None:
    rgba = from_array(drawn())
    white = rgba.clone()
    white[3] = -1.0
    assert torch.equal(to_channels(white, 3), torch.ones(3, 32, 40))
    opaque = to_channels(rgba[:3], 4)
    assert torch.equal(opaque[:3], rgba[:3])
    assert torch.equal(opaque[3], torch.ones(32, 40))
    assert_close(to_channels(opaque, 3), rgba[:3], 1e-6)
    grey = luma(rgba[:3])
    assert torch.equal(to_channels(grey, 3), grey.expand(3, -1, -1))
    assert torch.equal(to_channels(to_channels(grey, 4), 1), grey)
    assert torch.equal(to_channels(rgba[None], 1)[0], luma(to_channels(rgba, 3)))


def test_seen_is_over_white_and_over_black() -> None:
    levels = torch.from_numpy(drawn()).permute(2, 0, 1)
    picture = Image.fromarray(drawn())
    for i, colour in enumerate(((255, 255, 255), (0, 0, 0))):
        flat = to_uint8(read_picture(picture, background=colour).pixels)
        assert (seen(levels)[3 * i : 3 * i + 3].int() - flat.int()).abs().max() <= 1
        part = seen(from_array(drawn()))[3 * i : 3 * i + 3]
        assert (to_uint8(part).int() - flat.int()).abs().max() <= 1
    assert torch.equal(seen(levels[:3]), levels[:3])
    opaque = levels.clone()
    opaque[3] = 255
    assert torch.equal(seen(opaque), torch.cat([levels[:3], levels[:3]]))


@pytest.mark.slow
def test_rows_of_any_channels_are_written(tmp_path: Path) -> None:
    levels = torch.from_numpy(drawn(width=333, height=200)).permute(2, 0, 1)
    alpha = levels[3]
    for channels, beside, mode in ((1, None, "L"), (1, alpha, "LA"), (3, None, "RGB"), (3, alpha, "RGBA"),
                                   (4, None, "RGBA")):  # fmt: skip
        rows = [levels[:channels, :70], levels[:channels, 70:]]
        whole = levels[:channels] if beside is None else torch.cat([levels[:channels], beside[None]])
        expected = whole.permute(1, 2, 0).numpy()
        for suffix in ("png", "tif", "webp"):
            path = write_rows(tmp_path / f"a.{suffix}", rows, width=333, height=200, channels=channels, alpha=beside)
            with Image.open(path) as image:
                image.load()
                if suffix != "webp":
                    assert image.mode == mode
                assert np.array_equal(np.asarray(image.convert(mode)).reshape(expected.shape), expected)
    with pytest.raises(UsageError, match="of 1, 3 or 4 channels, not of 4 and alpha beside them"):
        write_rows(tmp_path / "b.png", [levels], width=333, height=200, channels=4, alpha=alpha)
    with pytest.raises(UsageError, match="not of 2"):
        write_rows(tmp_path / "b.png", [levels[:2]], width=333, height=200, channels=2)
    with pytest.raises(UsageError, match=r"rows must be \[1, n, 333\], not \[3, 200, 333\]"):
        write_rows(tmp_path / "b.png", [levels[:3]], width=333, height=200, channels=1)
    with pytest.raises(UsageError, match="JPEG has no alpha"):
        write_rows(tmp_path / "b.jpg", [levels], width=333, height=200, channels=4)
    assert not list(tmp_path.glob("b.*"))


def test_images_of_pixels() -> None:
    pixels = from_array(drawn())
    for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        image = to_pil(pixels[:channels])
        assert image.mode == mode
        assert np.array_equal(np.asarray(image).reshape(32, 40, -1), drawn(channels))
    assert to_pil(pixels[:1], torch.ones(32, 40)).mode == "LA"
    with pytest.raises(UsageError, match="RGBA pixels have their alpha"):
        to_pil(pixels, torch.ones(32, 40))


def test_a_written_picture_of_grey_with_alpha(tmp_path: Path) -> None:
    image = Image.fromarray(drawn()).convert("LA")
    with Image.open(write_picture(tmp_path / "a.webp", image)) as written:
        assert np.array_equal(np.asarray(written.convert("LA")), np.asarray(image))


# --- the engine ---


@pytest.mark.slow
@pytest.mark.parametrize("config", [*CONFIGS, replace(SMALL, in_channels=5)], ids=names_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["winograd", "reference"])
def test_the_engine_equals_the_module(config: NetworkConfig, dtype: torch.dtype, name: EngineName) -> None:
    if name == "winograd" and dtype == torch.float16:
        pytest.skip("the kernels do not compute in it")
    module = network(config)
    x = torch.rand(1, config.picture_channels, 96, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = module.encode(x)
        y = module.decode(expected.mode())
    engine = Engine(network(config).to(dtype), torch.device("cpu"), dtype, name)
    tolerance = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.15}[dtype]
    little = least(engine, 96, 64)
    for memory in (None, little):
        assert_close(engine("encode", x, memory=memory), expected.moments, tolerance)
        assert_close(engine("decode", expected.mode(), memory=memory), y, tolerance)


def least(engine: Engine, height: int, width: int) -> str:
    """The least memory in which both directions can be computed, as the refusal of less names it."""
    found, directions = [], get_args(Direction)
    for direction in directions:
        with pytest.raises(MemoryLimitError) as error:
            engine.plan(direction, height, width, 1)
        found.append(str(error.value).split("give --memory ")[1].split(" ")[0])
    return max(found, key=parse_memory)


# --- weights ---


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_conversions_keep_the_channels(tmp_path: Path, channels: int) -> None:
    pytest.importorskip("h5py")
    config = AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, in_channels=channels)
    module = network(config)
    at = tmp_path / "a.safetensors"
    save_weights(module, at, layout="ldm", format_=KNOWN["sd1"])
    for layout in ("diffusers", "keras", "ldm"):
        to = tmp_path / f"{layout}{'.safetensors' if layout == 'ldm' else ''}"
        loaded = load_weights(at)
        save_weights(loaded.module, to, layout=layout, format_=loaded.format)  # type: ignore[arg-type]
        again = load_weights(to)
        assert again.module.config == config
        assert same_tensors(again.module, module)
        at = to
    described = json.loads((tmp_path / "diffusers" / "config.json").read_text())
    assert (described["in_channels"], described["out_channels"]) == (channels, channels)


@pytest.mark.parametrize("channels", [1, 4])
def test_diffusers_has_the_same_result(tmp_path: Path, channels: int) -> None:
    diffusers = import_diffusers()
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        in_channels=channels, out_channels=channels, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "vae")
    vae = VAE(load_weights(tmp_path / "vae"))
    x = from_array(drawn(channels))[None]
    with torch.no_grad():
        z = theirs.encode(x).latent_dist.mode()
        y = theirs.decode(z).sample
    assert_close(vae.encode(x).mode(), z)
    assert_close(vae.decode(z, clamp=False), y)


@pytest.mark.parametrize("channels", [1, 4])
def test_tiny_autoencoders_of_diffusers(tmp_path: Path, channels: int) -> None:
    diffusers = import_diffusers()
    torch.manual_seed(0)
    theirs = fill(diffusers.AutoencoderTiny(in_channels=channels, out_channels=channels), 0, gain=0.7)
    theirs.save_pretrained(tmp_path / "taesd")
    vae = VAE(load_weights(tmp_path / "taesd"))
    assert vae.config == TinyConfig(in_channels=channels)
    x = from_array(drawn(channels))[None]
    with torch.no_grad():
        z = theirs.encode(x).latents
        y = theirs.decode(z).sample
    assert_close(vae.encode(x).mode(), z)
    assert_close(vae.decode(z, clamp=False), y)


@pytest.mark.parametrize("config", [GREY, TINY_RGBA], ids=names_of)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_half_a_vae(tmp_path: Path, config: NetworkConfig, side: str) -> None:
    tensors = {key: value for key, value in network(config).state_dict().items() if key.startswith(side)}
    if isinstance(config, AutoencoderConfig):
        name = "quant_conv" if side == "encoder" else "post_quant_conv"
        tensors |= {key: value for key, value in network(config).state_dict().items() if key.startswith(name)}
    header = {"calotype_config": json.dumps(config.to_dict())}
    loaded = load_weights(write(tmp_path / "half.safetensors", tensors, header))
    assert loaded.parts == {side}
    assert loaded.module.config.picture_channels == config.picture_channels


def unlike(config: NetworkConfig, other: NetworkConfig, tmp_path: Path) -> Path:
    """The encoder of one and the decoder of the other, in one file."""
    tensors = {
        key: value
        for one, names in ((config, ("encoder", "quant")), (other, ("decoder", "post")))
        for key, value in network(one).state_dict().items()
        if key.startswith(names)
    }
    header = {"calotype_config": json.dumps(config.to_dict())}
    return write(tmp_path / "unlike.safetensors", tensors, header)


@pytest.mark.parametrize(("taken", "made"), [(3, 4), (4, 3), (1, 3), (3, 1), (9, 3)])
@pytest.mark.parametrize("config", [SMALL, TinyConfig()], ids=names_of)
def test_other_channels_out_than_in_are_told(
    tmp_path: Path, config: AutoencoderConfig | TinyConfig, taken: int, made: int
) -> None:
    path = unlike(replace(config, in_channels=taken), replace(config, in_channels=made), tmp_path)
    with pytest.raises(
        WeightsError, match=f"takes pictures of {taken} channels? and its decoder makes {made}"
    ) as error:
        load_weights(path)
    one_sentence(str(error.value))
    assert "1 for grey, 3 for RGB, 4 for RGBA" in str(error.value)


@pytest.mark.parametrize("channels", [2, 5])
def test_other_numbers_of_channels_are_networks_but_no_pictures(tmp_path: Path, channels: int) -> None:
    vae = vae_of(tmp_path, replace(SMALL, in_channels=channels))
    x = torch.rand(1, channels, 16, 16) * 2 - 1
    z = vae.encode(x).mode()
    assert_close(vae.decode(z, clamp=False), vae.module.decode(z))
    calls: list[Any] = [
        lambda: vae.encode_image(Image.fromarray(drawn(3))),
        lambda: vae.encode_image(Picture(torch.zeros(3, 16, 16), None, ())),
        lambda: vae.decode_image(latents),
        lambda: vae.write_image(tmp_path / "a.png", latents),
    ]
    latents = replace(vae_of(tmp_path, SMALL).encode_image(Image.fromarray(drawn(3))), vae=vae.sha256)
    for call in calls:
        with pytest.raises(UsageError, match=rf"have {channels} channels.*1 \(grey\), 3 \(RGB\), 4 \(RGBA\)") as error:
            call()
        one_sentence(str(error.value))
    assert vae.check_dtypes()["float32"]


def test_tensors_of_other_channels_are_refused(tmp_path: Path) -> None:
    vae = vae_of(tmp_path, GREY)
    with pytest.raises(UsageError, match=r"\[N, 1, H, W\] in \[-1, 1\], not torch.float32 \[1, 3, 16, 16\]"):
        vae.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(UsageError, match=r"encode_rows takes rows \[1, n, 16\], not \[3, "):
        vae.encode_rows(lambda top, bottom: torch.zeros(3, bottom - top, 16), 16, 16)
    with pytest.raises(PictureError):
        vae.encode_image(tmp_path / "missing.png")


def test_a_channel_is_not_lost_on_the_way(tmp_path: Path) -> None:
    """What is decoded depends on every channel that went in."""
    vae = vae_of(tmp_path, RGBA)
    x = from_array(drawn())[None]
    before: Tensor = vae.encode(x).mode()
    for channel in range(4):
        other = x.clone()
        other[:, channel] = -other[:, channel]
        assert (vae.encode(other).mode() - before).abs().max() > 1e-3
