"""Protocols: what becomes of a picture, against definitions written out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import fill, one_sentence

from calotype.errors import UsageError
from calotype.evaluate import measure as measuring
from calotype.evaluate.lpips import LPIPS, Net
from calotype.evaluate.measure import Original, Tools, measure
from calotype.evaluate.protocol import PRESETS, Protocol, preset
from calotype.pixels import from_array, to_uint8


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_whole_pictures_stay_as_they_are() -> None:
    one = picture(37, 53)
    assert torch.equal(preset("whole").prepare(one), from_array(one))


@pytest.mark.parametrize(("height", "width"), [(300, 401), (401, 300), (64, 200), (256, 256)])
def test_pillows_filters_and_the_middle(height: int, width: int) -> None:
    one = picture(height, width)
    short = min(height, width)
    wide, high = (256 if n == short else int(256 * n / short) for n in (width, height))
    image = Image.fromarray(one).resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - 256) / 2), round((high - 256) / 2)
    expected = np.asarray(image)[top : top + 256, left : left + 256]
    assert np.array_equal(to_uint8(preset("crop256").prepare(one)).permute(1, 2, 0).numpy(), expected)


def test_adms_crop_halves_first() -> None:
    one = picture(1_000, 1_300)  # halved once to 500 x 650, then bicubic to 256 x 333, and the middle
    image = Image.fromarray(one).reduce(2).resize((333, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(image)[:, 38 : 38 + 256].astype(int)
    found = to_uint8(preset("dc-ae").prepare(one)).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - expected).max() <= 2  # Pillow's two ways to halve may differ by 1


def test_tensors_are_resized_as_floats() -> None:
    one = picture(512, 700)
    found = preset("lightningdit").prepare(one)
    assert found.shape == (3, 256, 256)
    assert (found * 127.5 + 127.5 - to_uint8(found)).abs().max() > 0.2  # no whole numbers
    near = np.asarray(Image.fromarray(one).resize((350, 256), Image.Resampling.BILINEAR))[:, 47 : 47 + 256]
    assert (found - from_array(near)).abs().max() < 1.01 / 127.5  # the same filter, rounded twice


@pytest.mark.parametrize(
    ("values", "given"),
    [
        ({"on_floats": True}, "on_floats = True"),
        ({"ssim_range": 2.0}, "ssim_range = 2"),
        ({"on_floats": True, "ssim_range": 2.0}, "on_floats = True"),
    ],
)
def test_ssim_of_uint8_takes_neither_floats_nor_a_range(values: dict[str, Any], given: str) -> None:
    with pytest.raises(UsageError, match=f"compares uint8 by their own range, not with {given}; leave") as error:
        Protocol(ssim="gaussian", **values)
    one_sentence(str(error.value))
    assert "floats" in str(Protocol(ssim="reflect", on_floats=True))
    assert "range x 2" in str(Protocol(ssim="uniform", ssim_range=2.0))


def test_an_exact_size_is_required() -> None:
    exact = Protocol(name="mine", resize="exact", size=64)
    assert exact.prepare(picture(64, 64)).shape == (3, 64, 64)
    with pytest.raises(
        UsageError, match=r"a\.png is 65 x 64 pixels, and the protocol mine takes 64 x 64 only"
    ) as error:
        exact.prepare(picture(64, 65), "a.png")
    one_sentence(str(error.value))


@pytest.mark.parametrize(("resize", "size"), [("none", 256), ("bicubic", 0), ("exact", 0)])
def test_a_size_belongs_to_what_resizes(resize: str, size: int) -> None:
    with pytest.raises(UsageError, match=f"resize = {resize} needs"):
        Protocol(resize=resize, size=size)  # type: ignore[arg-type]


def test_presets_say_what_they_are() -> None:
    assert {"stability-card", "lightningdit", "dc-ae", "llamagen"} <= PRESETS.keys()
    for name, one in PRESETS.items():
        assert one.name == name
        assert one.note.endswith(".")
        assert str(one).startswith(f"{name}: ")
        assert Protocol(**one.to_dict()) == one
    assert len({str(one).partition(":")[2] for one in PRESETS.values()}) == len(PRESETS)
    with pytest.raises(UsageError, match="there is no protocol 'fid'; choose one of whole, ") as error:
        preset("fid")
    one_sentence(str(error.value))


def test_protocols_can_be_changed() -> None:
    seeded = dataclasses.replace(preset("llamagen"), seed=3)
    assert "sample (seed 3)" in str(seeded)
    assert "range x 2" in str(seeded)


class Given:
    """In place of a VAE: whatever is encoded, this picture is decoded."""

    device = torch.device("cpu")
    picture_channels = 3

    def __init__(self, y: torch.Tensor) -> None:
        self.y = y

    def encode(self, x: torch.Tensor, **options: object) -> Given:
        return self

    def mode(self) -> torch.Tensor:
        return self.y[None]

    def decode(self, z: torch.Tensor, size: tuple[int, int], **options: object) -> torch.Tensor:
        return z


def test_lightningdits_floats_are_clamped_for_ssim_and_not_for_lpips() -> None:
    lpips: LPIPS = fill(LPIPS("alex"), seed=1, gain=1.4)
    tools = Tools(metrics=("ssim", "lpips_alex"), lpips={"lpips_alex": lpips}, extractors={})
    protocol = dataclasses.replace(preset("lightningdit"), latent="mode")
    x = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = 1.5 * x
    beyond, inside = (
        measure(Given(one), Original(x), protocol, tools, {}).row  # type: ignore[arg-type]
        for one in (y, y.clamp(-1, 1))
    )
    assert beyond["ssim"] == inside["ssim"] < 1
    with torch.no_grad():
        assert beyond["lpips_alex"] == pytest.approx(float(lpips(x[None], y[None])), rel=1e-5)
    assert beyond["lpips_alex"] != pytest.approx(inside["lpips_alex"], rel=1e-3)
    assert "clamped for SSIM, and not for LPIPS" in preset("lightningdit").note


@pytest.mark.parametrize("net", ["vgg", "alex"])
@pytest.mark.parametrize("name", ["whole", "lightningdit"])
def test_lpips_is_the_same_whether_pictures_are_looked_at_together_or_apart(
    net: Net, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit: of one VAE, of several that share the original's features, and of pictures too large for both."""
    network = fill(LPIPS(net), seed=1, gain=1.4)
    key = f"lpips_{net}"
    tools = Tools(metrics=(key,), lpips={key: network}, extractors={})
    protocol = preset(name)
    x, *others = torch.rand(3, 3, 50, 37, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together, shared, apart = Original(x), Original(x, keep=True), Original(x)
    for y in others:
        expected = network(*((one if protocol.on_floats else to_uint8(one) / 127.5 - 1)[None] for one in (x, y)))
        found = together.lpips(key, y, tools, protocol)
        assert found == pytest.approx(float(expected), rel=1e-5)
        assert shared.lpips(key, y, tools, protocol) == found
        with monkeypatch.context() as patch:
            patch.setattr(measuring, "TOGETHER", 0)
            assert apart.lpips(key, y, tools, protocol) == found
