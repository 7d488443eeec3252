"""Video autoencoders written with all that frames need: every tensor of the file, renamed, and no bit changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import import_diffusers, one_sentence, same_tensors, write
from torch import Tensor
from wankit import FULL, VARIANTS, originals, theirs

from calotype.errors import UsageError, WeightsError
from calotype.families.wan.config import WanConfig
from calotype.weights.container import open_container
from calotype.weights.detect import detect
from calotype.weights.load import Loaded, load_weights
from calotype.weights.save import save_weights
from calotype.weights.video import whole_tensors

TOLD = [name for name in VARIANTS if name != "wan-2.2-no-time"]  # whose original file does not tell what it is


def stored(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of diffusers' folder."""
    container = open_container(path / "diffusion_pytorch_model.safetensors" if path.is_dir() else path)
    return {key: container.read(key) for key in container.shapes}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape), key
        assert torch.equal(a[key], b[key]), key


def tensors_of(module: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def convert(loaded: Loaded, path: Path, layout: Any, **more: Any) -> Path:
    save_weights(
        loaded.module, path, layout=layout, format_=loaded.format, kept=loaded.kept, whole=whole_tensors(loaded), **more
    )
    return path


@pytest.mark.parametrize("prefix", ["", "vae."])
@pytest.mark.parametrize("variant", TOLD)
def test_original_names_become_those_of_diffusers_and_again_the_original(
    variant: str, prefix: str, tmp_path: Path
) -> None:
    module, config = theirs(variant), VARIANTS[variant][2]
    before = originals(module, config)
    first = load_weights(write(tmp_path / "a.safetensors", {f"{prefix}{key}": value for key, value in before.items()}))
    folder = convert(first, tmp_path / "folder", "diffusers")
    same(stored(folder), tensors_of(module))
    second = load_weights(folder)
    assert (second.layout, second.sha256, second.format) == ("diffusers", first.sha256, first.format)
    same(stored(convert(second, tmp_path / "b.safetensors", "ldm")), before)
    assert load_weights(tmp_path / "b.safetensors").sha256 == first.sha256


@pytest.mark.parametrize("variant", TOLD)
def test_diffusers_reads_what_is_written(variant: str, tmp_path: Path) -> None:
    name, numbers, config = VARIANTS[variant]
    module = theirs(variant)
    loaded = load_weights(write(tmp_path / "a.safetensors", originals(module, config)))
    folder = convert(loaded, tmp_path / "folder", "diffusers")
    again, info = getattr(import_diffusers(), name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    same(tensors_of(again), tensors_of(module))
    for key, value in numbers.items():
        assert again.config[key] == value, key
    frames = torch.rand(1, again.config.get("input_channels", 4 if "2.1" in name else 3), 5, 16, 16) * 2 - 1
    if "attention" not in variant and not name.endswith("21"):  # which takes one frame
        if config.picture_channels == 4:
            frames = torch.rand(1, 4, 5, 16, 16) * 2 - 1
        with torch.inference_mode():
            assert torch.equal(again.encode(frames).latent_dist.mean, module.encode(frames).latent_dist.mean)


def test_the_class_is_one_that_can_hold_it(tmp_path: Path) -> None:
    for variant, name in (
        ("wan-2.1", "AutoencoderKLWan"),
        ("qwen-image-layered", "AutoencoderKLQwenImage"),
        ("wan-2.2", "AutoencoderKLWan"),
        ("qwen-image-2.1", "AutoencoderKLQwenImage21"),
    ):
        theirs(variant).save_pretrained(tmp_path / variant)
        folder = convert(load_weights(tmp_path / variant), tmp_path / "out", "diffusers")
        said = json.loads((folder / "config.json").read_text())
        assert said["_class_name"] == name
        assert said["temperal_downsample"] == [False, True]


@pytest.mark.parametrize("times", [[True, False], [True, True], [False, False]])
def test_levels_that_take_two_frames_are_told_by_the_file(times: list[bool], tmp_path: Path) -> None:
    """Of a network without shortcuts nothing in its configuration says it."""
    from wankit import SMALL_21, random

    module = random(import_diffusers().AutoencoderKLWan(**{**SMALL_21, "temperal_downsample": times}), 0)
    loaded = load_weights(write(tmp_path / "a.safetensors", originals(module, VARIANTS["wan-2.1"][2])))
    folder = convert(loaded, tmp_path / "folder", "diffusers")
    assert json.loads((folder / "config.json").read_text())["temperal_downsample"] == times
    same(tensors_of(import_diffusers().AutoencoderKLWan.from_pretrained(folder)), tensors_of(module))
    half = {k: v for k, v in originals(module, VARIANTS["wan-2.1"][2]).items() if k.startswith(("decoder", "conv2"))}
    folder = convert(load_weights(write(tmp_path / "b.safetensors", half)), tmp_path / "half", "diffusers")
    assert json.loads((folder / "config.json").read_text())["temperal_downsample"] == times
    assert stored(folder).keys() == {k for k in tensors_of(module) if k.startswith(("decoder", "post_quant"))}


def test_kernels_of_one_slice_become_those_of_the_class(tmp_path: Path) -> None:
    module = theirs("qwen-image-2.1")
    deep = {
        k: v[:, :, None] if v.ndim == 4 and "resample" not in k and "to_qkv" not in k and "gamma" not in k else v
        for k, v in originals(module, VARIANTS["qwen-image-2.1"][2]).items()
    }
    loaded = load_weights(write(tmp_path / "a.safetensors", deep))
    same(stored(convert(loaded, tmp_path / "folder", "diffusers")), tensors_of(module))


def test_halves_in_two_files_become_one(tmp_path: Path) -> None:
    module = theirs("wan-2.2")
    for side, more in (("encoder", "quant_conv."), ("decoder", "post_quant_conv.")):
        half = {key: value for key, value in tensors_of(module).items() if key.startswith((f"{side}.", more))}
        write(tmp_path / "halves" / f"{side}.safetensors", half)
    loaded = load_weights(tmp_path / "halves")
    same(stored(convert(loaded, tmp_path / "folder", "diffusers")), tensors_of(module))


def test_a_type_may_be_asked_for(tmp_path: Path) -> None:
    module = theirs("wan-2.1")
    module.save_pretrained(tmp_path / "theirs")
    folder = convert(load_weights(tmp_path / "theirs"), tmp_path / "folder", "diffusers", dtype=torch.bfloat16)
    same(stored(folder), {key: value.to(torch.bfloat16) for key, value in tensors_of(module).items()})


@pytest.mark.slow
def test_a_network_of_one_picture_keeps_its_layouts(tmp_path: Path) -> None:
    """Of two dimensions it stays where frames need no more, and where the layout is of two dimensions."""
    module = theirs("wan-2.1")
    module.save_pretrained(tmp_path / "theirs")
    first = load_weights(tmp_path / "theirs")
    flat = load_weights(convert(first, tmp_path / "flat", "diffusers-2d"))
    assert not flat.whole
    assert not whole_tensors(flat)
    assert max(value.ndim for value in stored(tmp_path / "flat").values()) == 4
    assert max(value.ndim for value in stored(convert(flat, tmp_path / "b.safetensors", "ldm")).values()) == 4
    assert same_tensors(load_weights(tmp_path / "b.safetensors").module, first.module)


@pytest.mark.parametrize("variant", ["wan-2.1", "wan-2.2", "qwen-image-2.1"])
def test_what_is_gone_can_not_be_written(variant: str, tmp_path: Path) -> None:
    theirs(variant).save_pretrained(tmp_path / "theirs")
    flat = load_weights(convert(load_weights(tmp_path / "theirs"), tmp_path / "flat", "diffusers-2d"))
    with pytest.raises(UsageError, match="only the original file has: the other slices") as caught:
        convert(flat, tmp_path / "out", "diffusers")
    one_sentence(str(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_half_a_convolution_over_time_is_refused(leaf: str, tmp_path: Path) -> None:
    tensors = tensors_of(theirs("wan-2.1"))
    del tensors[next(key for key in tensors if key.startswith("decoder") and key.endswith(f"time_conv.{leaf}"))]
    with pytest.raises(WeightsError, match=rf"missing tensor decoder\.up\.0\.upsample\.time_conv\.{leaf}") as caught:
        load_weights(write(tmp_path / "a.safetensors", tensors))
    one_sentence(str(caught.value))


def test_what_is_over_time_elsewhere_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of(theirs("wan-2.1")) | {"decoder.mid_block.time_conv.weight": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"unexpected tensor decoder\.mid_block\.time_conv\.weight"):
        load_weights(write(tmp_path / "a.safetensors", tensors))


def test_what_no_picture_meets_must_be_finite_too(tmp_path: Path) -> None:
    tensors = tensors_of(theirs("wan-2.1"))
    tensors["encoder.conv_in.weight"][0, 0, 0] = torch.nan
    loaded = load_weights(write(tmp_path / "a.safetensors", tensors))
    with pytest.raises(WeightsError, match=r"NaN or infinity in the tensor encoder\.conv_in\.weight") as caught:
        convert(loaded, tmp_path / "out", "diffusers")
    one_sentence(str(caught.value))
    assert not (tmp_path / "out").exists()


def test_every_tensor_has_a_name_in_both_layouts() -> None:
    from calotype.families.wan import FAMILY

    assert FAMILY.video is not None
    for config in (WanConfig(), *(config for _, _, config in VARIANTS.values())):
        ldm, diffusers = (FAMILY.video.named(config, layout) for layout in ("ldm", "diffusers"))  # type: ignore[arg-type]
        assert ldm.keys() == diffusers.keys()
        assert len(set(ldm.values())) == len(set(diffusers.values())) == len(ldm)


def test_names_of_wan_are_those_that_diffusers_own_converter_gives() -> None:
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    from calotype.families.wan import FAMILY

    with torch.device("meta"):
        module = import_diffusers().AutoencoderKLWan()
    told = detect({key: tuple(value.shape) for key, value in module.state_dict().items()})
    assert FAMILY.video is not None
    original = FAMILY.video.named(told.config, "ldm")
    converted = convert_wan_vae_to_diffusers({original[ours]: ours for ours in told.whole})
    assert converted == {name: ours for ours, name in told.whole.items()}


@pytest.mark.parametrize("variant", FULL)
def test_every_published_tensor_is_kept(variant: str) -> None:
    name, numbers = FULL[variant]
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in getattr(import_diffusers(), name)(**numbers).state_dict().items()}
    told = detect(shapes)
    assert sorted(told.whole.values()) == sorted(shapes)
    assert told.keys.items() < told.whole.items()
