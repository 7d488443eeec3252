"""AsymmetricAutoencoderKL, against diffusers: decoded without a mask and with one, and its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    assert_close,
    fill,
    import_diffusers,
    kl,
    one_sentence,
    pictures,
    same_tensors,
    taken_over,
    tensors_of,
    write,
)
from torch import Tensor

from calotype.errors import LatentsError, UsageError, WeightsError
from calotype.families import make_network
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.network import AutoencoderKL
from calotype.families.kl.presets import PRESETS
from calotype.vae import VAE, load
from calotype.weights.load import Loaded, load_weights
from calotype.weights.save import save_weights

# like the published ones, at an eighth of their width; and whose decoder is as wide at every size
NARROW = AutoencoderConfig(
    ch=16, norm_groups=8, num_res_blocks=1, decoder_ch=24, decoder_num_res_blocks=2, condition=True
)
EVEN = AutoencoderConfig(ch=16, ch_mult=(1, 1, 1, 1), norm_groups=8, num_res_blocks=1, z_channels=3, condition=True)
CONFIGS = {"narrow": NARROW, "even": EVEN, "steep": replace(EVEN, ch_mult=(1, 2, 4, 8), decoder_num_res_blocks=2)}
SIZES = ((5, 3), (2, 6), (1, 1))


def theirs(config: AutoencoderConfig, seed: int = 0, **more: Any) -> Any:
    levels = len(config.channels)
    options = {
        "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels,
        "down_block_out_channels": config.channels, "up_block_out_channels": config.decoder_channels,
        "layers_per_down_block": config.num_res_blocks, "layers_per_up_block": config.decoder_blocks,
        "latent_channels": config.z_channels, "norm_num_groups": config.norm_groups,
        "in_channels": config.in_channels, "out_channels": config.in_channels, **more,
    }  # fmt: skip
    return fill(import_diffusers().AsymmetricAutoencoderKL(**options), seed)


@pytest.fixture(scope="module", params=CONFIGS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Loaded]:
    """diffusers' network and ours, with the same random weights."""
    module, folder = theirs(CONFIGS[request.param]), tmp_path_factory.mktemp(request.param)
    module.save_pretrained(folder)
    loaded = load_weights(folder)
    assert loaded.module.config == CONFIGS[request.param]
    return module, loaded


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> VAE:
    folder = tmp_path_factory.mktemp("vae")
    theirs(NARROW).save_pretrained(folder)
    return load(folder, device="cpu")


def mask_of(n: int, height: int, width: int, soft: bool = False) -> Tensor:
    """Random, 0 and 1, or all between."""
    drawn = torch.rand(n, 1, height, width, generator=torch.Generator().manual_seed(height))
    return drawn if soft else (drawn > 0.5).float()


def test_without_a_mask_it_agrees_with_diffusers(both: tuple[Any, Loaded]) -> None:
    module, loaded = both
    for seed, (h, w) in enumerate(SIZES):
        x, z = pictures(seed, 2, 8 * h, 8 * w), torch.randn(2, loaded.module.config.z_channels, h, w)
        with torch.inference_mode():
            assert_close(loaded.module.encode(x).moments, module.encode(x).latent_dist.parameters)
            assert_close(loaded.module.decode(z), module.decode(z).sample)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_with_a_mask_it_agrees_with_diffusers(both: tuple[Any, Loaded], soft: bool) -> None:
    module, loaded = both
    for seed, (h, w) in enumerate(SIZES):
        x, z = pictures(seed, 2, 8 * h, 8 * w), torch.randn(2, loaded.module.config.z_channels, h, w)
        mask = mask_of(2, 8 * h, 8 * w, soft)
        with torch.inference_mode():
            expected = module.decode(z, image=x, mask=mask).sample
            assert_close(loaded.module.decode_masked(z, x, mask), expected)
            assert (expected - module.decode(z).sample).abs().max() > 0.1


def test_where_all_is_decoded_the_picture_does_not_count(vae: VAE) -> None:
    z, x = torch.randn(1, 4, 2, 3), pictures(0, 1, 16, 24)
    with torch.inference_mode():
        assert_close(vae.decode_masked(z, x, torch.ones(1, 1, 16, 24)), vae.decode(z))
        kept = vae.decode_masked(z, x, torch.zeros(1, 1, 16, 24))
        assert torch.equal(kept, vae.decode_masked(5 - z, x, torch.zeros(1, 1, 16, 24)))


def test_pictures_of_any_size_are_padded_and_cropped_back(vae: VAE) -> None:
    x, mask = pictures(1, 2, 21, 33), mask_of(1, 21, 33)
    z = vae.encode(x).mode()
    made = vae.decode_masked(z, x, mask)
    assert made.shape == x.shape
    assert made.abs().max() <= 1
    padded = [torch.nn.functional.pad(one, (0, 7, 0, 3), mode="reflect") for one in (x, mask)]
    with torch.inference_mode():
        expected = theirs(NARROW).decode(z, image=padded[0], mask=padded[1].expand(2, -1, -1, -1)).sample
    assert_close(vae.decode_masked(z, x, mask, clamp=False), expected[:, :, :21, :33])


@pytest.mark.slow
def test_it_goes_through_the_engine_without_a_mask(vae: VAE) -> None:
    z = torch.randn(1, 4, 5, 7)
    x = pictures(2, 1, 40, 56)
    with torch.inference_mode():
        pixels, moments = vae.module.decode(z), vae.module.encode(x).moments
    for engine in ("reference", "auto"):
        one = VAE(vae.loaded, engine=engine)  # type: ignore[arg-type]
        for memory in (None, one.engine.plan("decode", 40, 56).peak):
            assert_close(one.decode(z, clamp=False, memory=memory), pixels)
            assert_close(one.encode(x, memory=memory).moments, moments)


WRONG: dict[str, tuple[Callable[[VAE], object], str]] = {
    "pixels of another size": (
        lambda vae: vae.decode_masked(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 16, 24), torch.ones(1, 1, 16, 24)),
        r"latents \[1, 4, 2, 2\] are of, not \[1, 3, 16, 24\]",
    ),
    "pixels of one more picture": (
        lambda vae: vae.decode_masked(torch.zeros(1, 4, 2, 2), torch.zeros(2, 3, 16, 16), torch.ones(1, 1, 16, 16)),
        r"takes pixels \[1, 3, H, W\]",
    ),
    "no pixels": (
        lambda vae: vae.decode_masked(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 0, 16), torch.ones(1, 1, 0, 16)),
        r"not \[1, 3, 0, 16\]",
    ),
    "a mask of the latents' size": (
        lambda vae: vae.decode_masked(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 2, 2)),
        r"takes a mask \[1, 1, 16, 16\], not \[1, 1, 2, 2\]",
    ),
    "a mask of levels": (
        lambda vae: vae.decode_masked(
            torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 16, 16), 255 * torch.ones(1, 1, 16, 16)
        ),
        r"A mask must be float and in \[0, 1\]",
    ),
    "pixels that are not finite": (
        lambda vae: vae.decode_masked(
            torch.zeros(1, 4, 2, 2), torch.full((1, 3, 16, 16), torch.nan), torch.ones(1, 1, 16, 16)
        ),
        r"Pixels must be float and in \[-1, 1\]",
    ),
    "latents of other channels": (
        lambda vae: vae.decode_masked(torch.zeros(1, 5, 2, 2), torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16)),
        "4 latent channels",
    ),
    "a gradient": (
        lambda vae: vae.decode_masked(
            torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 16, 16, requires_grad=True), torch.ones(1, 1, 16, 16)
        ),
        r"call vae\.module\.decode_masked",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name: str, vae: VAE) -> None:
    call, pattern = WRONG[name]
    with pytest.raises((UsageError, LatentsError), match=pattern) as error:
        call(vae)
    one_sentence(str(error.value))


def test_other_decoders_take_no_picture(tmp_path: Path) -> None:
    other = load(write(tmp_path / "x.safetensors", tensors_of(kl())), device="cpu")
    with pytest.raises(UsageError, match="takes latents and nothing else") as error:
        other.decode_masked(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16))
    one_sentence(str(error.value))


# Files


@pytest.mark.slow
def test_every_layout_there_and_back(both: tuple[Any, Loaded], tmp_path: Path) -> None:
    module, loaded = both
    save_weights(loaded.module, tmp_path / "x.safetensors", layout="ldm", kept=loaded.kept)
    save_weights(loaded.module, tmp_path / "folder", layout="diffusers", format_=loaded.format, kept=loaded.kept)
    places = ["x.safetensors", "folder"]
    if loaded.module.config == NARROW:  # whose files a process of its own reads, which takes a while
        save_weights(loaded.module, tmp_path / "keras", layout="keras")
        places.append("keras")
    for place in places:
        again = load_weights(tmp_path / place)
        assert again.module.config == loaded.module.config
        assert same_tensors(again.module, loaded.module)
    own = import_diffusers().AsymmetricAutoencoderKL.from_pretrained(tmp_path / "folder")
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in own.state_dict().items())
    values = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert values["_class_name"] == "AsymmetricAutoencoderKL"
    assert {key: own.config[key] for key in values if not key.startswith("_")} == {
        key: value for key, value in values.items() if not key.startswith("_")
    }


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_the_original_names_are_read(prefix: str, tmp_path: Path) -> None:
    """Those of the project's own checkpoints, which have the decoder's levels twice."""
    module = fill(make_network(AutoencoderConfig(ch=32, decoder_ch=64, condition=True, num_res_blocks=1)), 0)
    tensors = {}
    for key, value in tensors_of(module).items():
        tensors[prefix + key.replace("decoder.condition_encoder.", "decoder.encoder.")] = value
        if key.startswith("decoder.up."):
            tensors[f"{prefix}decoder.up_layers.{key.removeprefix('decoder.up.')}"] = value.clone()
    loaded = load_weights(write(tmp_path / "x.safetensors", tensors))
    assert loaded.module.config == module.config
    assert same_tensors(loaded.module, module)


def test_a_decoder_without_its_other_half(tmp_path: Path) -> None:
    theirs(NARROW).save_pretrained(tmp_path)
    tensors = {key: value for key, value in theirs(NARROW).state_dict().items() if key.startswith(("decoder", "post"))}
    write(tmp_path / "diffusion_pytorch_model.safetensors", tensors)
    loaded = load_weights(tmp_path)
    assert loaded.parts == {"decoder"}
    vae = load(tmp_path, device="cpu")
    with pytest.raises(WeightsError, match="holds only the decoder"):
        vae.encode(torch.zeros(1, 3, 16, 16))
    z, x, mask = torch.randn(1, 4, 2, 2), pictures(0, 1, 16, 16), mask_of(1, 16, 16)
    with torch.inference_mode():
        expected = theirs(NARROW).decode(z, image=x, mask=mask).sample
    assert_close(vae.decode_masked(z, x, mask, clamp=False), expected)


@pytest.mark.slow
def test_two_halves_are_joined(tmp_path: Path) -> None:
    module = fill(make_network(replace(NARROW, ch=32, norm_groups=32, decoder_ch=64)), 0)
    for side in ("encoder", "decoder"):
        own = ("decoder", "post_quant") if side == "decoder" else ("encoder", "quant")
        write(tmp_path / f"{side}.safetensors", {k: v for k, v in tensors_of(module).items() if k.startswith(own)})
    loaded = load_weights(tmp_path)
    assert loaded.module.config == module.config
    assert same_tensors(loaded.module, module)


def changed(tmp_path: Path, **fields: Any) -> Path:
    about = tmp_path / "config.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **fields}))
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"_class_name": "AutoencoderKL"}, r"_class_name 'AutoencoderKL', .* 'AsymmetricAutoencoderKL'"),
        ({"up_block_out_channels": [24, 48, 96, 48]}, "up_block_out_channels"),
        ({"layers_per_up_block": 1}, "layers_per_up_block 1, and its tensors are of 2"),
        ({"layers_per_down_block": 2}, "layers_per_down_block 2, and its tensors are of 1"),
        ({"down_block_out_channels": [24, 48, 96, 96]}, "down_block_out_channels"),
        ({"norm_num_groups": 5}, "can't be split into 5 groups|groups"),
        ({"use_quant_conv": True}, "use_quant_conv"),
    ],
)
def test_a_config_that_says_otherwise_is_refused(fields: dict[str, Any], pattern: str, tmp_path: Path) -> None:
    theirs(NARROW).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=pattern) as error:
        load_weights(changed(tmp_path, **fields))
    one_sentence(str(error.value))


def test_the_class_of_another_network_is_refused(tmp_path: Path) -> None:
    import_diffusers().AutoencoderKL(block_out_channels=(32,), norm_num_groups=32).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"_class_name 'AsymmetricAutoencoderKL', .* 'AutoencoderKL'"):
        load_weights(changed(tmp_path, _class_name="AsymmetricAutoencoderKL"))


def test_decoders_of_other_sizes_are_refused(tmp_path: Path) -> None:
    """For those diffusers has no maps of a picture, and stops at the first mask."""
    with pytest.raises(UsageError, match="four levels, of c, 2c and 4c channels") as error:
        replace(NARROW, ch_mult=(1, 2, 4))
    one_sentence(str(error.value))
    theirs(AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="four levels"):
        load_weights(tmp_path)


@pytest.mark.slow
def test_what_diffusers_can_not_hold_is_written_to_one_file(tmp_path: Path) -> None:
    deeper = kl(replace(AutoencoderConfig(ch=32), decoder_num_res_blocks=3))
    without = fill(make_network(replace(NARROW, quant_conv=False)), 0)
    assert isinstance(without, AutoencoderKL)
    for i, (module, pattern) in enumerate(((deeper, "as many residual blocks"), (without, "1x1 convolutions"))):
        with pytest.raises(UsageError, match=pattern) as error:
            save_weights(module, tmp_path / "folder", layout="diffusers")
        one_sentence(str(error.value))
        save_weights(module, tmp_path / f"{i}.safetensors", layout="ldm")
        again = load_weights(tmp_path / f"{i}.safetensors")
        assert again.module.config == module.config
        assert same_tensors(again.module, module)


@pytest.mark.slow
def test_full_size() -> None:
    module = theirs(PRESETS["asymmetric-vae-x-2"].config)
    ours: Any = taken_over(module)
    assert ours.config == PRESETS["asymmetric-vae-x-2"].config
    z, x, mask = torch.randn(1, 4, 5, 3), pictures(0, 1, 40, 24), mask_of(1, 40, 24)
    with torch.inference_mode():
        assert_close(ours.decode(z), module.decode(z).sample)
        assert_close(ours.decode_masked(z, x, mask), module.decode(z, image=x, mask=mask).sample)
