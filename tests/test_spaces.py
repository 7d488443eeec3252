"""Latent spaces: what is listed, which VAEs understand each other's latents, and what is said of the others."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import taekit
import torch
from PIL import Image
from support import kl, one_sentence, tiny, write
from torch import Tensor
from wankit import theirs

import calotype
from calotype.errors import CalotypeWarning, LatentsError
from calotype.families import FORMATS, PRESETS, SPACES
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.latent_spaces import fitting, spaces
from calotype.latents import (
    KNOWN,
    LatentFormat,
    Latents,
    Packed,
    PerChannel,
    ScaleShift,
    carried,
    flux2,
    latent_format_from_dict,
    same_as_model,
    same_space,
    space_of,
)
from calotype.pixels import Padding
from calotype.vae import VAE, load, name_for
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

F8 = AutoencoderConfig(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
NARROW = replace(F8, decoder_ch=4)
PACKED = flux2(tuple(x / 9 for x in range(16)), tuple(1 + x / 9 for x in range(16)))
OWN = PerChannel(name="mine", channels=4, mean=(0.1, 0.2, 0.3, 0.4), std=(1.0, 2.0, 3.0, 4.0))


# --- what is listed ---


def test_every_format_is_a_space_with_a_title_and_a_factor() -> None:
    names = [one.name for one in spaces()]
    assert len(names) == len(set(names))
    assert set(names) == {values["name"] for values in FORMATS} | {"flux2", "builtin"}
    assert all(one.title and one.factor and one.channels for one in spaces())
    assert all(source for one in spaces() for source in one.models.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_among_the_decoders_of_its_space(name: str) -> None:
    preset = PRESETS[name]
    space = next(one for one in spaces() if one.name == preset.space)
    assert name in [one.name for one in space.decoders]
    assert preset.config.factor == space.factor
    assert preset.config.z_channels == space.channels
    one = next(one for one in space.decoders if one.name == name)
    assert one.enlarges == (2 if "upscale2x" in name else 1)
    assert one.alpha == (preset.config.picture_channels == 4)
    assert one.tiny == ("tae" in name)


def test_numbers_are_those_that_latents_are_scaled_by() -> None:
    for space in spaces():
        if space.name == "flux2":
            assert space.format is None
            assert (space.channels, space.patch) == (32, 2)
            continue
        assert space.format is not None
        format_ = latent_format_from_dict(space.format)
        expected = load(device="cpu").latent_format if space.name == "builtin" else KNOWN[space.name]
        assert format_ == expected
        assert format_.channels == space.channels


def test_scaling_in_words() -> None:
    said = {one.name: one.scaling for one in spaces()}
    assert said["sdxl"] == "scale 0.13025"
    assert said["flux"] == "scale 0.3611, shift 0.1159"
    assert said["movq"] == "as they are"
    assert said["wan2.1"] == "mean -0.757 ... -0.292, std 2.82 ... 1.92"
    assert said["playground"].endswith("scale 0.5")
    assert said["flux2"] == "2x2 packed to 128, mean and std in the weights"


def test_presets_for_previews_are_named_last() -> None:
    assert fitting("sana") == "sana-dc-ae, taesana"
    assert fitting("wan2.1", 2) == "wan2.1-vae, qwen-image-vae and 3 more of `calotype spaces`"
    assert fitting("builtin") == "builtin"
    assert fitting("vq-f8") == fitting(None) == fitting("nothing") == ""


def test_it_is_public_and_needs_no_torch() -> None:
    assert calotype.spaces() == spaces()
    assert set(SPACES) == {one.name for one in calotype.spaces()}
    code = "import sys, calotype; assert len(calotype.spaces()) > 12; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- which formats are of one space ---


def changed(mean: float = 0.0, var: float = 1.0, eps: float = 1e-4) -> Packed:
    means = tuple(x + mean for x in PACKED.running_mean)
    return replace(PACKED, running_mean=means, running_var=tuple(x * var for x in PACKED.running_var), eps=eps)


def rounded() -> Packed:
    """As weights in bfloat16 have it."""
    both = [tuple(torch.tensor(values).bfloat16().tolist()) for values in (PACKED.running_mean, PACKED.running_var)]
    return replace(PACKED, running_mean=both[0], running_var=both[1])


ALIKE: dict[str, tuple[LatentFormat, LatentFormat]] = {
    "sd1": (KNOWN["sd1"], KNOWN["sd1"]),
    "sd1, a TAESD": (KNOWN["sd1"], same_as_model("sd1", 4)),
    "wan2.1, a TAEHV": (same_as_model("wan2.1", 16), KNOWN["wan2.1"]),
    "vq-f4": (KNOWN["vq-f4"], KNOWN["vq-f4"]),
    "flux2": (PACKED, replace(PACKED)),
    "flux2, rounded": (PACKED, rounded()),
    "flux2, another eps": (PACKED, changed(eps=1e-5)),
    "flux2, a TAEF2": (PACKED, same_as_model("flux2", 4)),
    "one's own": (OWN, replace(OWN)),
    "one's own, imitated": (same_as_model("mine", 4), OWN),
}
OTHERS: dict[str, tuple[LatentFormat | None, LatentFormat | None]] = {
    "names": (KNOWN["sd1"], KNOWN["sdxl"]),
    "names, the same channels": (KNOWN["sd3"], KNOWN["flux"]),
    "TAESDs": (same_as_model("sd3", 16), same_as_model("flux", 16)),
    "custom": (replace(KNOWN["sd1"], name="custom"), replace(KNOWN["sd1"], name="custom")),
    "none": (same_as_model("none", 4), same_as_model("none", 4)),
    "a TAESD that imitates no one knows what": (same_as_model("taesd", 4), same_as_model("taesd", 4)),
    "a known name, other numbers": (KNOWN["sd1"], replace(KNOWN["sd1"], scaling_factor=0.2)),
    "a known name, the same other numbers": (replace(KNOWN["sd1"], scaling_factor=0.2),) * 2,
    "a known name, other channels": (same_as_model("sd1", 16), same_as_model("sd1", 16)),
    "flux2, other means": (PACKED, changed(mean=0.05)),
    "flux2, other variances": (PACKED, changed(var=1.1)),
    "flux2, other channels": (PACKED, same_as_model("flux2", 32)),
    "one's own, other numbers": (OWN, replace(OWN, mean=(0.0, 0.2, 0.3, 0.4))),
    "one unknown": (KNOWN["sd1"], None),
    "both unknown": (None, None),
}


@pytest.mark.parametrize("case", ALIKE)
def test_formats_of_one_space(case: str) -> None:
    a, b = ALIKE[case]
    assert same_space(a, b)
    assert same_space(b, a)
    assert space_of(a) == space_of(b) == a.name


@pytest.mark.parametrize("case", OTHERS)
def test_formats_of_no_common_space(case: str) -> None:
    a, b = OTHERS[case]
    assert not same_space(a, b)
    assert not same_space(b, a)


@pytest.mark.parametrize("case", ALIKE)
@pytest.mark.parametrize("size", [(4, 6), (3, 5)])
def test_latents_are_carried_through_model_space(case: str, size: tuple[int, int]) -> None:
    """Sides may be odd where what is packed is scaled one by one."""
    a, b = ALIKE[case]
    raw = torch.randn(1, a.channels, *size)
    there = carried(raw, a, b)
    assert there.shape == raw.shape
    assert torch.allclose(carried(there, b, a), raw, atol=1e-5)
    if not any(side % 2 for side in size):
        assert torch.allclose(b.to_model(there), a.to_model(raw), atol=0.05 if "rounded" in case else 1e-4)


def test_raw_latents_of_rounded_statistics_pass_as_they_are() -> None:
    raw = torch.randn(1, 4, 4, 4)
    assert carried(raw, PACKED, rounded()) is raw


# --- VAEs ---


def make(
    folder: Path, format_: LatentFormat | None, seed: int = 0, *, small: bool = False, narrow: bool = False
) -> VAE:
    pool = isinstance(format_, Packed)
    module = tiny(TinyConfig(pool=pool), seed) if small else kl(NARROW if narrow else F8, seed)
    name = f"vae{seed}"
    (path,) = save_weights(module, folder / f"{name}.safetensors", layout="ldm", format_=format_)
    return VAE(load_weights(path), name=name)


def image(width: int = 19, height: int = 16, mode: str = "RGB") -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(levels)


def picture_of(pixels: Tensor, size: tuple[int, int]) -> np.ndarray:
    return (127.5 * pixels + 127.5).permute(1, 2, 0).numpy()[: size[1], : size[0]]


def near(made: Image.Image, pixels: Tensor) -> bool:
    return bool(np.abs(np.asarray(made) - picture_of(pixels, made.size)).max() < 1)


Make = Callable[[Path], VAE]
PAIRS: dict[str, tuple[Make, Make]] = {
    "sd1's decoders": (lambda p: make(p, KNOWN["sd1"]), lambda p: make(p, KNOWN["sd1"], 1)),
    "sd1 by TAESD": (
        lambda p: make(p, KNOWN["sd1"]),
        lambda p: make(p, same_as_model("sd1", 4), 1, small=True),
    ),
    "TAESD by sd1": (
        lambda p: make(p, same_as_model("sd1", 4), 1, small=True),
        lambda p: make(p, KNOWN["sd1"]),
    ),
    "flux2 by the small decoder": (lambda p: make(p, PACKED), lambda p: make(p, rounded(), 1, narrow=True)),
    "flux2 by TAEF2": (
        lambda p: make(p, PACKED),
        lambda p: make(p, same_as_model("flux2", 4), 1, small=True),
    ),
    "one's own": (lambda p: make(p, OWN), lambda p: make(p, OWN, 1)),
}


@pytest.mark.parametrize("space", ["raw", "model"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_decoder_of_the_space_decodes_and_says_so_once(pair: str, space: str, tmp_path: Path) -> None:
    maker, other = (one(tmp_path) for one in PAIRS[pair])
    latents = maker.encode_image(image(), space=space)  # type: ignore[arg-type]
    with pytest.warns(CalotypeWarning) as said:
        made = other.decode_image(latents)
    name = space_of(maker.loaded.format)
    assert [str(one.message) for one in said] == [
        f"{maker.name} made these latents and {other.name} decodes them: both are of the space {name!r}."
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = other.decode_image(latents)
    assert np.array_equal(np.asarray(made), np.asarray(again))
    if "small decoder" in pair:  # whose statistics are rounded
        expected = latents.to_raw().tensor[None]
    else:
        expected = other.latent_format.to_raw(latents.to_model().tensor[None])
    assert near(made, other.decode(expected)[0])
    with warnings.catch_warnings():  # nor where any VAE was asked for
        warnings.simplefilter("error")
        again = VAE(other.loaded, name=other.name).decode_image(latents, any_vae=True)
    assert np.array_equal(np.asarray(made), np.asarray(again))
    adopted = other.adopt(latents)
    assert (adopted.vae, adopted.vae_name, adopted.space) == (other.sha256, other.name, "raw")
    assert (adopted.format, adopted.padding) == (other.latent_format, latents.padding)
    assert torch.equal(other.own(adopted), adopted.tensor)


@pytest.mark.slow
def test_its_own_latents_are_decoded_without_a_word(tmp_path: Path) -> None:
    for format_ in (KNOWN["sd1"], replace(KNOWN["sd1"], name="custom"), same_as_model("none", 4), OWN):
        vae = make(tmp_path, format_)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            vae.decode_image(vae.encode_image(image()))


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wan's, Qwen's with the same encoder, and the decoder that enlarges."""
    root = tmp_path_factory.mktemp("wan")
    found = {}
    for seed, variant in enumerate(("wan-2.1", "qwen-image", "wan-2.1-larger", "wan-2.2")):
        theirs(variant, seed).save_pretrained(root / variant)
        found[variant] = root / variant
    return found


@pytest.mark.slow
def test_qwens_latents_by_wans_decoders_and_their_imitation(wan: dict[str, Path], tmp_path: Path) -> None:
    qwen = load(wan["qwen-image"], device="cpu")
    latents = qwen.encode_image(image(16, 8))
    path = write(tmp_path / "tae.safetensors", taekit.tensors("taew2_1"))
    for other, times in ((wan["wan-2.1"], 1), (wan["wan-2.1-larger"], 2)):
        vae = load(other, device="cpu")
        with pytest.warns(CalotypeWarning, match=r"qwen-image made these latents and .* of the space 'wan2\.1'"):
            made = vae.decode_image(latents)
        assert made.size == (16 * times, 8 * times)
        assert near(made, vae.decode(latents.tensor[None])[0])
    for name in ("wan2.1", "model:wan2.1"):  # whose f is another one than that of the tiny networks above
        vae = load(path, latent_format=name, device="cpu")
        f8 = replace(latents, padding=Padding(height=16, width=32, bottom=0, right=0, mode="reflect"))
        with pytest.warns(CalotypeWarning, match="both are of the space"):
            raw = vae.own(f8)
        expected = latents.tensor if name == "wan2.1" else KNOWN["wan2.1"].to_model(latents.tensor)
        assert torch.allclose(raw, expected, atol=1e-5)


REFUSED: dict[str, tuple[Make, Make, str]] = {
    "another space": (
        lambda p: make(p, KNOWN["sd1"]),
        lambda p: make(p, KNOWN["sdxl"], 1),
        r"^These latents are of format 'sd1', and vae1 decodes those of 'sdxl'; load one of their kind "
        r"\(sd-vae-ft-mse, .*\), or decode them all the same with --any-vae",
    ),
    "a TAESD of another space": (
        lambda p: make(p, KNOWN["sd1"]),
        lambda p: make(p, same_as_model("sdxl", 4), 1, small=True),
        "of format 'sd1', and vae1 decodes those of 'sdxl'",
    ),
    "custom": (
        lambda p: make(p, replace(KNOWN["sd1"], name="custom")),
        lambda p: make(p, replace(KNOWN["sd1"], name="custom"), 1),
        r"made by another VAE \(vae0, .*\) than this one \(vae1, .*\), and their format 'custom' names no space that "
        r"both could be of; load that one, or decode them all the same with --any-vae \(any_vae=True\)\.$",
    ),
    "none": (
        lambda p: make(p, same_as_model("none", 4)),
        lambda p: make(p, same_as_model("none", 4), 1),
        "their format 'none' names no space",
    ),
    "custom by one of a space": (
        lambda p: make(p, replace(KNOWN["sd1"], name="custom")),
        lambda p: make(p, KNOWN["sd1"], 1),
        "their format 'custom' names no space",
    ),
    "of a space by custom": (
        lambda p: make(p, KNOWN["sd1"]),
        lambda p: make(p, replace(KNOWN["sd1"], name="custom"), 1),
        r"format 'custom' of vae1 names no space that both could be of; load that one or sd-vae-ft-mse, ",
    ),
    "by an unknown one": (
        lambda p: make(p, KNOWN["sdxl"]),
        lambda p: make(p, None, 1),
        r"nothing tells whether vae1 decodes those of format 'sdxl'; say so with --latent-format sdxl if it does",
    ),
    "flux2 with other statistics": (
        lambda p: make(p, PACKED),
        lambda p: make(p, changed(var=2.0), 1),
        "the numbers of their format 'flux2' are others than this VAE's",
    ),
    "a known name, other numbers": (
        lambda p: make(p, replace(KNOWN["sd1"], scaling_factor=0.2)),
        lambda p: make(p, KNOWN["sd1"], 1),
        "the numbers of their format 'sd1' are not those that it is published with",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_others_are_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    maker, other, words = REFUSED[case]
    vae = other(tmp_path)
    latents = maker(tmp_path).encode_image(image())
    with pytest.raises(LatentsError, match=words) as error:
        vae.decode_image(latents)
    one_sentence(str(error.value))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = vae.decode_image(latents, any_vae=True)
    assert made.size == (19, 16)
    notices = [str(one.message) for one in said]
    if "another space" in case:
        assert [text.endswith("so what comes out is no picture of them.") for text in notices] == [True]
    elif "unknown" in case:
        assert notices == ["Nothing tells how vae1 scales its latents, so it decodes the raw ones as they are."]
        assert near(made, vae.decode(latents.tensor[None])[0])
    else:
        assert notices == []


# --- latents that name no VAE ---


def nameless(format_: LatentFormat, side: int = 2) -> Latents:
    """As another program's file would be read."""
    padding = Padding(height=8 * side, width=8 * side, bottom=0, right=0, mode="")
    tensor = torch.linspace(-1, 1, format_.channels * side**2).view(format_.channels, side, side)
    return Latents(tensor=tensor, space="raw", format=format_, vae="", padding=padding)


@pytest.mark.slow
def test_any_vae_of_the_space_decodes_what_names_none(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format_, small in ((KNOWN["sd1"], False), (same_as_model("sd1", 4), True)):
            vae = make(tmp_path, format_, small=small)
            assert vae.decode_image(nameless(KNOWN["sd1"])).size == (16, 16)
    with pytest.raises(LatentsError, match=r"of format 'sd1', and vae1 decodes those of 'sdxl'"):
        make(tmp_path, KNOWN["sdxl"], 1).decode_image(nameless(KNOWN["sd1"]))
    other = make(tmp_path, KNOWN["sdxl"], 1)
    custom = nameless(ScaleShift(name="custom", channels=4, scaling_factor=0.5))
    with pytest.raises(LatentsError, match="name no VAE, and their format 'custom'") as error:
        other.decode_image(custom)
    one_sentence(str(error.value))
    assert other.decode_image(custom, any_vae=True).size == (16, 16)
    whose_ever = nameless(same_as_model("none", 4))
    assert torch.equal(other.own(whose_ever), whose_ever.tensor)
    model = replace(whose_ever, space="model")
    torch.testing.assert_close(other.own(model), other.latent_format.to_raw(model.tensor))


def test_what_is_asked_where_no_vae_is_given() -> None:
    sdxl = nameless(KNOWN["sdxl"])
    for latents, words in (
        (
            sdxl,
            r"x: these latents name no VAE; give one of the space 'sdxl' \(sdxl-vae, .* with --vae\.$",
        ),
        (nameless(same_as_model("none", 4)), r"name no VAE; give one that decodes them with --vae\.$"),
        (
            replace(sdxl, vae="a" * 64, vae_name="mine.safetensors"),
            r"were made by mine\.safetensors \(sha256 aaaaaaaaaaaa\.\.\.\); give its weights, or a preset of its "
            r"space 'sdxl' \(sdxl-vae, .*\), with --vae\.$",
        ),
        (
            replace(sdxl, vae="a" * 64, format=same_as_model("none", 4)),
            r"were made by an unnamed VAE \(sha256 aaaaaaaaaaaa\.\.\.\); give its weights with --vae\.$",
        ),
    ):
        with pytest.raises(LatentsError, match=words) as error:
            name_for(latents, Path("x"))
        one_sentence(str(error.value))
    assert name_for(replace(sdxl, vae="a" * 64, vae_name="sdxl-vae"), Path("x")) == "sdxl-vae"


def test_a_hostile_name_stays_on_one_line(tmp_path: Path) -> None:
    vae = make(tmp_path, KNOWN["sdxl"])
    bad = replace(KNOWN["sd1"], name="a\nb\x1b[31m" + "c" * 500)
    with pytest.raises(LatentsError) as error:
        vae.decode_image(nameless(bad))
    one_sentence(str(error.value))
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 900
