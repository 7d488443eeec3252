"""Regularisers of latents: what transforms do to pictures and latents alike, and losses by hand."""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import one_sentence, pictures
from torch import Tensor, nn

from calotype.errors import FetchError, UsageError, WeightsError
from calotype.evaluate.lpips import LPIPS
from calotype.train.regularisers import Alignment, Equivariance, Transform, features, shift_loss, shifted

# --- EQ-VAE ---


def transforms(count: int = 2000, probability: float = 0.5, low: float = 0.25) -> list[Transform]:
    draw = Equivariance(probability, low, 8)
    return [draw(np.random.default_rng([7, step])) for step in range(count)]


def kind(transform: Transform) -> str:
    if transform.scale == 1.0:
        return "none"
    return "low" if transform.low else "latents"


def test_transforms_have_eq_vaes_frequencies() -> None:
    drawn = transforms()
    counts = Counter(map(kind, drawn))
    assert counts["latents"] / 2000 == pytest.approx(0.5, abs=0.04)
    assert counts["low"] / 2000 == pytest.approx(0.125, abs=0.03)
    assert {t.scale * 32 for t in drawn if kind(t) != "none"} == set(range(8, 32))
    assert {t.turns for t in drawn if kind(t) == "latents"} == {1, 2, 3}
    assert {t.turns for t in drawn if kind(t) != "latents"} == {0}
    assert transforms(50) == drawn[:50]  # a draw depends on its generator and on nothing else
    assert set(map(kind, transforms(50, probability=0.0, low=0.0))) == {"none"}


@pytest.mark.parametrize("side", [64, 96, 256])
@pytest.mark.parametrize("factor", [4, 8, 16])
def test_latents_and_pictures_keep_fitting(side: int, factor: int) -> None:
    draw = Equivariance(0.5, 0.5, factor)
    x = torch.zeros(1, 3, side, side + 2 * factor)
    for step in range(60):
        transform = draw(np.random.default_rng(step))
        seen = transform.input(x)
        assert seen.shape[2] % factor == 0 == seen.shape[3] % factor
        z = torch.zeros(1, 4, seen.shape[2] // factor, seen.shape[3] // factor)
        read, wanted = transform.latents(z), transform.pixels(seen)
        assert min(read.shape) > 0
        assert [factor * n for n in read.shape[2:]] == list(wanted.shape[2:])


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_latents_and_pictures_turn_the_same_way(turns: int) -> None:
    x = pictures(0, 1, 32, 48)
    z = x[:, :, ::8, ::8]
    transform = Transform(factor=8, turns=turns)
    expected = {
        0: x,
        1: x.mT.flip(-2),
        2: x.flip((-2, -1)),
        3: x.mT.flip(-1),
    }[turns]
    assert torch.equal(transform.pixels(x), expected)
    small = {0: z, 1: z.mT.flip(-2), 2: z.flip((-2, -1)), 3: z.mT.flip(-1)}[turns]
    assert torch.equal(transform.latents(z), small)


def test_scaling_is_that_of_eq_vae() -> None:
    x, z = pictures(0, 2, 256, 256), torch.randn(2, 4, 32, 32)
    transform = Transform(factor=8, scale=9 / 32)
    for given, found in ((x, transform.pixels(x)), (z, transform.latents(z))):
        expected = nn.functional.interpolate(given, scale_factor=9 / 32, mode="bilinear", align_corners=False)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-6)


def test_a_low_transform_scales_the_picture_once() -> None:
    x, z = pictures(0, 1, 64, 64), torch.randn(1, 4, 4, 4)
    transform = Transform(factor=8, scale=0.5, low=True)
    seen = transform.input(x)
    assert seen.shape[2:] == (32, 32)
    assert transform.pixels(seen) is seen
    assert transform.latents(z) is z
    other = Transform(factor=8, scale=0.5)
    assert other.input(x) is x
    assert torch.equal(other.pixels(x), seen)


def test_gradients_reach_the_latents_through_a_transform() -> None:
    z = torch.randn(1, 4, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(Transform(factor=8, scale=0.75, turns=1).latents(z).square().sum(), z)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


# --- VA-VAE ---


def naive(p: Tensor, f: Tensor, margins: tuple[float, float]) -> float:
    """VA-VAE's loss of [N, D, h, w] maps, position by position."""

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    distances, cosines = [], []
    for one, other in zip(p.flatten(2), f.flatten(2), strict=True):
        n = one.shape[1]
        for i in range(n):
            cosines.append(max(0.0, 1 - margins[1] - cosine(one[:, i], other[:, i])))
            for j in range(n):
                gap = abs(cosine(one[:, i], one[:, j]) - cosine(other[:, i], other[:, j]))
                distances.append(max(0.0, gap - margins[0]))
    return sum(distances) / len(distances) + sum(cosines) / len(cosines)


@pytest.mark.parametrize("margins", [(0.0, 0.0), (0.25, 0.5)])
def test_alignment_by_its_formula(margins: tuple[float, float]) -> None:
    alignment = Alignment(4, 6, margins=margins)
    z, f = torch.randn(2, 4, 3, 2), torch.randn(2, 6, 3, 2)
    expected = naive(alignment.projection(z).detach(), f, margins)
    assert alignment(z, f).item() == pytest.approx(expected, rel=1e-5)


def test_aligned_latents_cost_nothing() -> None:
    alignment = Alignment(4, 6, margins=(0.0, 0.0))
    z = torch.randn(2, 4, 3, 3)
    assert alignment(z, 2.5 * alignment.projection(z).detach()).item() == pytest.approx(0.0, abs=1e-6)


def test_alignment_trains_latents_and_projection_in_float32() -> None:
    alignment = Alignment(4, 6, margins=(0.0, 0.0))
    z, f = torch.randn(2, 4, 4, 4, requires_grad=True), torch.randn(2, 6, 2, 2)
    expected = alignment(z, f)
    with torch.autocast("cpu", torch.bfloat16):
        found = alignment(z, f)
    assert torch.equal(found, expected)
    gradients = torch.autograd.grad(found, (z, alignment.projection.weight))
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
    nothing = torch.zeros(2, 4, 2, 2, requires_grad=True)  # a direction that does not exist
    (gradient,) = torch.autograd.grad(alignment(nothing, f), nothing)
    assert gradient.isfinite().all()


def test_features_are_resized_to_the_latents() -> None:
    alignment = Alignment(4, 6)
    z, f = torch.randn(1, 4, 8, 8), torch.randn(1, 6, 5, 5)
    resized = nn.functional.interpolate(f, size=(8, 8), mode="bilinear", align_corners=False)
    assert torch.equal(alignment(z, f), alignment(z, resized))


def test_features_of_vgg_are_lpipss_last_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lpips = LPIPS("vgg")
    save_file(lpips.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setenv("CALOTYPE_LPIPS", str(tmp_path / "weights.safetensors"))
    network = features("vgg")
    x = pictures(0, 2, 48, 64).requires_grad_()
    found = network(x)
    assert found.shape == (2, 512, 3, 4)
    assert not found.requires_grad
    assert not any(p.requires_grad for p in network.parameters())
    assert torch.equal(found, lpips.stages(x.detach())[-1])


@pytest.fixture(scope="module")
def transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        module: Any = pytest.importorskip("transformers")
        for name in ("AutoModel", "Dinov2Model", "Dinov2WithRegistersModel", "ViTModel"):
            getattr(module, name)
    return module


@pytest.mark.parametrize("registers", [False, True])
def test_features_of_dinov2_are_its_patches(tmp_path: Path, transformers: Any, registers: bool) -> None:
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    numbers = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**numbers)).eval()
    model.save_pretrained(tmp_path)
    network = features(str(tmp_path))
    x = pictures(0, 2, 64, 64).requires_grad_()
    found = network(x)
    assert found.shape == (2, 12, 16, 16)
    assert not found.requires_grad
    with torch.no_grad():
        large = nn.functional.interpolate(x, size=(224, 224), mode="bilinear", antialias=True) / 2 + 0.5
        mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        tokens = model((large - mean) / std).last_hidden_state
    first = 5 if registers else 1
    assert tokens.shape[1] == first + 256
    # the third row's fifth patch
    assert torch.allclose(found[:, :, 2, 4], tokens[:, first + 2 * 16 + 4], atol=1e-5)


def test_what_is_no_dinov2_is_refused(tmp_path: Path, transformers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="must be vgg, dinov2 or a folder with a DINOv2, not 'resnet'") as caught:
        features("resnet")
    one_sentence(str(caught.value))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="transformers can't read a DINOv2 from this folder") as caught_:
        features(str(tmp_path / "empty"))
    one_sentence(str(caught_.value))
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(WeightsError, match="this folder holds a vit; give one with a DINOv2"):
        features(str(tmp_path / "vit"))
    numbers = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**numbers))
    some = {key: value for key, value in model.state_dict().items() if "layer.1.attention" not in key}
    model.save_pretrained(tmp_path / "part", state_dict=some)
    with pytest.raises(WeightsError, match=r"layer\.1\.attention\S+ is missing, so this is no whole DINOv2") as part:
        features(str(tmp_path / "part"))
    one_sentence(str(part.value))

    def unreachable(name: str, **options: Any) -> None:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", unreachable)
    with pytest.raises(FetchError, match="facebook/dinov2-large is not in the local cache") as hub:
        features("dinov2")
    one_sentence(str(hub.value))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match="need transformers; install it with"):
        features("dinov2")


# --- AF-LDM ---


@pytest.mark.parametrize("by", [(0.3, -2.7), (1.0, 0.0), (-0.5, 3.25)])
def test_a_shift_moves_waves_by_fractions_of_a_pixel(by: tuple[float, float]) -> None:
    height, width = 24, 20

    def wave(y: Tensor, x: Tensor) -> Tensor:
        """Waves that are even around both borders, as a mirrored picture is."""
        u, v = (y + 0.5) * math.pi / height, (x + 0.5) * math.pi / width
        return torch.cos(3 * u) * torch.cos(5 * v) + torch.cos(9 * v) + 0.5 * torch.cos(17 * u)

    rows, columns = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    found = shifted(wave(rows, columns)[None, None], by)
    assert found.dtype == torch.float32
    assert torch.allclose(found[0, 0].double(), wave(rows - by[0], columns - by[1]), atol=1e-5)


def test_whole_shifts_move_pixels() -> None:
    x = torch.randn(2, 3, 9, 12)
    found = shifted(x, (2.0, -3.0))
    assert torch.allclose(found[:, :, 2:, :9], x[:, :, :7, 3:], atol=1e-5)
    assert torch.allclose(found[:, :, :2, :9], x[:, :, :2, 3:].flip(2), atol=1e-5)  # mirrored
    assert torch.allclose(shifted(x, (0.0, 0.0)), x, atol=1e-5)


def encode(x: Tensor) -> Tensor:
    """f2, and it shifts with its picture as far as averages do."""
    return nn.functional.avg_pool2d(x, 2)


def decode(z: Tensor) -> Tensor:
    return nn.functional.interpolate(z, scale_factor=2.0, mode="bilinear", align_corners=False)


def test_what_shifts_with_its_picture_costs_nothing() -> None:
    x = pictures(0, 2, 32, 32)
    z = encode(x)
    for by in ([2.0, -4.0], [0.0, 6.0]):  # whole latents
        loss = shift_loss(encode, lambda z: z.repeat_interleave(2, -1).repeat_interleave(2, -2), x, z, torch.tensor(by))
        assert loss.item() == pytest.approx(0.0, abs=1e-9)
    uneven = shift_loss(encode, decode, x, z, torch.tensor([1.0, 0.0]))
    assert uneven.item() > 1e-4

    def positions(x: Tensor) -> Tensor:
        """Latents that depend on the place as well."""
        return encode(x) + torch.arange(x.shape[3] // 2)

    with_place = shift_loss(positions, decode, x, positions(x), torch.tensor([0.0, 2.0]))
    assert with_place.item() == pytest.approx(1.0, abs=0.6)  # off by one latent


def test_gradients_reach_both_halves_through_the_shifted_side_only() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)
    x = pictures(0, 2, 16, 16)
    z = first(x)
    shift = torch.tensor([0.75, -1.5])
    loss = shift_loss(first, second, x, z, shift)
    of_z, of_first, of_second = torch.autograd.grad(
        loss, (z, first.weight, second.weight), allow_unused=True, retain_graph=True
    )
    assert of_z is None
    assert of_first is not None
    assert of_second is not None
    # by hand: the right terms are constants
    with torch.no_grad():
        moved_x, moved_z = shifted(x, (0.75, -1.5)), shifted(z, (0.375, -0.75))
        wanted = shifted(second(z), (0.75, -1.5))
    left = (first(moved_x) - moved_z)[:, :, 1:, :-1].square().mean()
    right = (second(moved_z) - wanted)[:, :, 1:, :-2].square().mean()
    assert loss.item() == pytest.approx((left + right).item(), rel=1e-5)
    assert torch.allclose(torch.autograd.grad(left, first.weight)[0], of_first, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(right, second.weight)[0], of_second, atol=1e-6)


def test_gradients_survive_autocast() -> None:
    """Autocast keeps narrow weights, and what it first made of them without gradients would have none."""
    first, second = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)
    x = pictures(0, 1, 16, 16)
    z = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = shift_loss(first, second, x, z, torch.tensor([1.0, 1.0]))
    gradients = torch.autograd.grad(loss, [*first.parameters(), *second.parameters()])
    assert loss.dtype == torch.float32
    assert all(g.abs().sum() > 0 for g in gradients)
