"""What a VAE's latent space does: measurements of VAEs so simple that every answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from probekit import FACTOR, SIDE, Toy, exact, exact_times, named, pixels_of, pool, shuffle, unpool, unshuffle
from scipy import stats
from torch import Tensor, nn

from calotype.evaluate.figures import Lines
from calotype.evaluate.probe import probe
from calotype.latents import PerChannel, ScaleShift
from calotype.posterior import DiagonalGaussian, Posterior

# --- latents ---


def test_channels_by_hand() -> None:
    format_ = ScaleShift(name="mine", channels=3, scaling_factor=2.0, shift_factor=0.25)
    given = named(5)
    found = probe(Toy(latent_format=format_), given)["channels"]
    z = pool(pixels_of(probe(Toy(), given), given)).transpose(0, 1).flatten(1).numpy()  # [3, n]
    assert found.value("mean") == pytest.approx(z.mean(), abs=1e-6)
    assert found.value("std") == pytest.approx(z.std(), rel=1e-6)
    assert found.value("rms") == pytest.approx(math.sqrt((z**2).mean()), rel=1e-6)
    assert found.value("recommended shift") == pytest.approx(z.mean(), abs=1e-6)
    assert found.value("recommended scale") == pytest.approx(1 / z.std(), rel=1e-6)
    assert found.values("mean per channel") == pytest.approx(z.mean(1), abs=1e-6)
    assert found.values("recommended scale per channel") == pytest.approx(1 / z.std(1), rel=1e-6)
    apart = z - z.mean(1, keepdims=True)
    kurtosis = (apart**4).mean(1) / (apart**2).mean(1) ** 2 - 3
    assert found.values("excess kurtosis per channel") == pytest.approx(kurtosis, rel=1e-5)
    assert found.value("own scale") == 2.0
    assert found.value("own shift") == 0.25
    assert found.value("mean in the own format") == pytest.approx(2 * (z.mean() - 0.25), abs=1e-5)
    assert found.value("std in the own format") == pytest.approx(2 * z.std(), rel=1e-5)


def test_a_format_with_numbers_for_each_channel() -> None:
    format_ = PerChannel(name="mine", channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 2.0, 4.0))
    found = probe(Toy(latent_format=format_), named(3))["channels"]
    assert found.values("own scale per channel") == (2.0, 0.5, 0.25)
    assert found.values("own shift per channel") == (0.1, 0.2, 0.3)
    raw = found.values("std per channel")
    assert found.values("std per channel in the own format") == pytest.approx((2 * raw[0], raw[1] / 2, raw[2] / 4))


def test_moments_in_parts_lose_nothing_to_a_large_mean() -> None:
    from calotype.evaluate.probe.channels import Moments

    rng = np.random.default_rng(0)
    values = rng.exponential(size=(2, 3001)) + np.array([[0.0], [1e6]])
    moments = Moments(2)
    for part in np.split(values, [1, 10, 1000], axis=1):
        moments.add(torch.from_numpy(part))
    assert moments.mean.tolist() == pytest.approx(values.mean(1), rel=1e-12)
    assert moments.std.tolist() == pytest.approx(values.std(1), rel=1e-9)
    assert moments.kurtosis.tolist() == pytest.approx(stats.kurtosis(values, axis=1), rel=1e-7)
    pooled = moments.pooled()
    assert float(pooled.std) == pytest.approx(values.std(), rel=1e-12)
    assert float(pooled.kurtosis) == pytest.approx(stats.kurtosis(values, axis=None), rel=1e-9)


def test_without_a_format_there_is_none_of_its_numbers() -> None:
    found = probe(Toy(), named(2))
    assert not any("own" in number.name for number in found["channels"].numbers)
    assert not any("model latents" in number.name for number in found["prior"].numbers)


@pytest.mark.parametrize(("scale", "logvar"), [(1.0, -2.0), (0.5, 0.0), (0.01, -6.0)])
def test_kl_by_hand(scale: float, logvar: float) -> None:
    given = named(4)
    found = probe(Toy(lambda x: scale * pool(x), lambda z: unpool(z / scale), logvar=logvar), given)
    z = scale * pool(pixels_of(found, given)).numpy()  # [N, 3, h, w]
    terms = 0.5 * (z**2 + math.exp(logvar) - 1 - logvar)
    kl = found["kl"]
    assert kl.value("KL of a picture") == pytest.approx(terms.sum((1, 2, 3)).mean(), rel=1e-5)
    assert kl.values("KL per dimension of each channel") == pytest.approx(terms.mean((0, 2, 3)), rel=1e-5)
    active = z.var(0, ddof=1) > 0.01
    assert kl.value("active units") == active.sum()
    assert kl.value("units") == 3 * (SIDE / FACTOR) ** 2
    assert kl.values("share of active units per channel") == pytest.approx(active.mean((1, 2)))
    bits = terms.sum((1, 2, 3)).mean() / math.log(2) / SIDE**2
    assert found["rate"].value("KL rate") == pytest.approx(bits, rel=1e-5)


def test_one_channel_that_has_collapsed() -> None:
    def encode(x: Tensor) -> Tensor:
        return pool(x) * torch.tensor([1.0, 0.0, 1.0])[:, None, None]

    kl = probe(Toy(encode, logvar=0.0), named(6))["kl"]
    assert kl.values("share of active units per channel")[1] == 0.0
    assert kl.values("KL per channel")[1] == 0.0
    assert kl.values("KL per channel")[0] > 0.0


def test_a_posterior_that_is_as_wide_as_its_pixels_vary() -> None:
    class Wide(Toy):
        def encode(self, pixels: Tensor) -> Posterior:
            mean = pool(pixels)
            grey = (pixels + 1).mul(127.5).mean(1, keepdim=True)
            std = (pool(grey.square()) - pool(grey).square()).clamp(min=1e-6).sqrt() / 255 + 0.01
            return DiagonalGaussian(torch.cat([mean, (2 * std.log()).expand_as(mean)], 1))

    found = probe(Wide(), named(3))["posterior"]
    assert found.value("correlation with texture") == pytest.approx(1.0, abs=1e-3)
    assert found.value("rank correlation with texture") > 0.99
    assert found.value("texture over flat") > 1.5
    assert (
        found.value("std over the flattest fifth")
        < found.value("std")
        < found.value("std over the most textured fifth")
    )
    flat = probe(exact(logvar=-4.0), named(3))["posterior"]
    assert flat.value("std") == pytest.approx(math.exp(-2))
    assert flat.value("texture over flat") == pytest.approx(1.0)
    assert flat.value("correlation with texture") == pytest.approx(0.0, abs=1e-6)


# --- noise ---


def test_draws_of_a_known_width() -> None:
    logvar = 2 * math.log(0.01)
    found = probe(exact(logvar=logvar), named(8))["draws"]
    # each value of a pixel gets noise of std 0.01, of a range of 2
    to_mode = 20 * math.log10(2 / 0.01)
    assert found.value("PSNR to the mode") == pytest.approx(to_mode, abs=0.05)
    assert found.value("PSNR to each other") == pytest.approx(to_mode - 10 * math.log10(2), abs=0.05)
    assert found.value("PSNR of draws to the picture") == pytest.approx(to_mode, abs=0.05)
    assert found.value("PSNR of the mode to the picture") > 120


def test_the_response_of_a_linear_decoder_is_a_line() -> None:
    # a tenth of the contrast, so that noise of one and a half stds is not clamped
    def encode(x: Tensor) -> Tensor:
        return 0.1 * unshuffle(x)

    given = named(4)
    found = probe(Toy(encode, shuffle, channels=3 * FACTOR**2), given)["noise"]
    z = encode(pixels_of(probe(exact(), given), given)).transpose(0, 1).flatten(1)
    expected = 127.5 * z.std(1, correction=0).square().mean().sqrt().item()
    assert found.value("RMSE (levels) at 1 std") == pytest.approx(expected, rel=0.02)
    assert found.value("slope at the smallest noise") == pytest.approx(expected, rel=0.02)
    assert found.value("slope at the largest over that at the smallest") == pytest.approx(1.0, abs=1e-3)
    assert found.value("pictures whose error grows with every step") == 4


def test_a_response_that_is_not_monotone_is_told() -> None:
    found = probe(Toy(decoder=lambda z: unpool((40 * z).sin())), named(4))["noise"]
    assert found.value("pictures whose error grows with every step") < 4
    assert "the error grows with every step in 0 of 4 pictures." in found.sentence


def test_the_response_of_lpips_is_told_apart() -> None:
    """An LPIPS that falls where noise is strong, of a decoder whose error only grows."""

    class Falling(nn.Module):
        net, shift = "vgg", torch.zeros(1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            error = (x - y).square().mean().sqrt()
            return (error / (1 + (error / 0.01) ** 2))[None]

    given = named(4)
    linear = Toy(lambda x: 0.1 * unshuffle(x), shuffle, channels=3 * FACTOR**2)
    found = probe(linear, given, lpips=Falling())["noise"]  # type: ignore[arg-type]
    assert found.value("pictures whose error grows with every step") == 4
    assert found.value("pictures whose LPIPS grows with every step") < 4
    assert "the error grows with every step in all pictures and LPIPS grows with every step in" in found.sentence


def test_what_noise_decodes_to_in_both_spaces() -> None:
    format_ = ScaleShift(name="mine", channels=48, scaling_factor=10.0, shift_factor=0.2)
    found = probe(exact(latent_format=format_), named(4))["prior"]
    # model latents N(0, 1) are raw latents N(0.2, 0.1), which are the pixels
    assert found.value("mean of model latents") == pytest.approx(127.5 * 1.2, abs=0.5)
    assert found.value("std of model latents") == pytest.approx(12.75, rel=0.02)
    assert abs(found.value("neighbours' correlation of model latents")) < 0.02
    # raw ones are clamped to [-1, 1]
    clamped = math.erf(1 / math.sqrt(2)) - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) + math.erfc(1 / math.sqrt(2))
    assert found.value("std of raw latents") == pytest.approx(127.5 * math.sqrt(clamped), rel=0.02)
    assert found.value("neighbours' correlation of pictures") > 0.5
    assert "no picture" in found.sentence


# --- ways ---


def test_a_linear_vae_blends_as_a_cross_fade() -> None:
    found = probe(Toy(), named(5))["interpolation"]
    assert found.value("largest over mean step, lerp, RMSE (levels)") == pytest.approx(1.0, abs=1e-4)
    assert found.value("way over distance of the ends, lerp, RMSE (levels)") == pytest.approx(1.0, abs=1e-4)
    assert found.value("largest over mean step, cross-fade, RMSE (levels)") == pytest.approx(1.0, abs=1e-4)
    assert found.value("middle of lerp to middle of cross-fade, RMSE") == pytest.approx(0.0, abs=1e-3)
    assert found.value("way over distance of the ends, slerp, RMSE (levels)") > 1.001


def test_a_jump_between_pictures_is_found() -> None:
    # the decoder only knows whether the mean is above 0
    first = [("a", np.full((SIDE, SIDE, 3), 40, np.uint8)), ("b", np.full((SIDE, SIDE, 3), 200, np.uint8))]
    found = probe(Toy(decoder=lambda z: unpool(z.sign() * 0.5)), first)["interpolation"]
    assert found.value("largest over mean step, lerp, RMSE (levels)") == pytest.approx(8.0, rel=1e-3)
    assert "in jumps" in found.sentence


def test_slerp_keeps_norms_and_angles() -> None:
    from calotype.evaluate.probe.paths import slerp

    a, b = torch.tensor([2.0, 0.0, 0.0])[:, None, None], torch.tensor([0.0, 2.0, 0.0])[:, None, None]
    third = slerp(a, b, 1 / 3).flatten()
    assert third.tolist() == pytest.approx([2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6), 0.0], abs=1e-6)
    assert torch.equal(slerp(a, 3 * a, 0.5), 2 * a)
    assert slerp(a, -a, 0.25).flatten().tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_the_drift_of_a_contraction() -> None:
    found = probe(exact_times(0.9), named(3))
    x = pixels_of(found, named(3))
    drift = found["drift"]
    power = x.square().flatten(1).mean(1)

    def series(change: Callable[[int], float]) -> list[float]:
        return [float((10 * torch.log10(4 / (power * change(cycle) ** 2))).mean()) for cycle in range(1, 21)]

    assert drift.values("PSNR to the original by cycle") == pytest.approx(series(lambda n: 1 - 0.9**n), abs=1e-3)
    assert drift.values("PSNR to the cycle before") == pytest.approx(series(lambda n: 0.1 * 0.9 ** (n - 1)), abs=1e-3)
    assert "still drifts" in drift.sentence


def test_what_a_projection_keeps_does_not_drift() -> None:
    drift = probe(Toy(), named(3))["drift"]
    assert drift.value("lost") == pytest.approx(0.0, abs=1e-4)
    assert "hardly drifts" in drift.sentence
    assert min(drift.values("PSNR to the cycle before")[1:]) > 120


# --- symmetry ---


def test_pooling_moves_turns_and_scales_with_the_picture() -> None:
    found = probe(Toy(), named(4))
    shifts, transforms = found["shifts"], found["transforms"]
    assert shifts.value("latent error, 4 pixels (one latent)") < 1e-6
    assert shifts.value("PSNR lost, 4 pixels (one latent)") == pytest.approx(0.0, abs=1e-4)
    assert 0.01 < shifts.value("latent error, half a latent") < 0.5
    assert shifts.values("distances") == (1, 2, 3, 4)
    for name in ("left-right flip", "upside-down flip", "90 degrees", "half size"):
        assert transforms.value(f"latent error, {name}") < 1e-6
        assert transforms.value(f"PSNR lost, {name}") == pytest.approx(0.0, abs=1e-3)


def test_moving_is_in_the_picture_s_direction() -> None:
    # latents that are a plane: cubic convolution is exact for it at any distance
    rows, columns = np.mgrid[:SIDE, :SIDE]
    plane = np.repeat((64 + rows + 0.5 * columns)[..., None], 3, 2)
    found = probe(Toy(), [("plane", np.floor(plane).astype(np.uint8))])["shifts"]
    assert max(found.values("latent error by distance")) < 1e-4


def test_pixels_as_channels_neither_turn_nor_move_by_parts() -> None:
    found = probe(exact(), named(4))
    shifts, transforms = found["shifts"], found["transforms"]
    assert shifts.value("latent error, 4 pixels (one latent)") == 0.0
    assert shifts.value("latent error, half a latent") > 0.2
    assert "whole latents only" in shifts.sentence
    # a flip of latents leaves each block as it is: by hand
    given = named(4)
    z = unshuffle(pixels_of(found, given))
    mean = z.mean((0, 2, 3))[:, None, None]
    encoded = unshuffle(pixels_of(found, given).flip(-1))
    expected = (encoded - z.flip(-1)).norm() / (encoded - mean).norm()
    assert transforms.value("latent error, left-right flip") == pytest.approx(float(expected), rel=1e-4)
    assert transforms.value("PSNR lost, left-right flip") > 10


# --- colours ---


def test_a_known_grid_gives_its_peak() -> None:
    wave = 0.1 * torch.cos(2 * math.pi * torch.arange(SIDE) / FACTOR)  # along rows

    def decode(z: Tensor) -> Tensor:
        return unpool(0.5 * z) + wave[: z.shape[3] * FACTOR]

    found = probe(Toy(decoder=decode), named(2))["constants"]
    assert found.value("grid") == pytest.approx(127.5 * 0.1 / math.sqrt(2), rel=1e-4)
    assert found.values("strongest frequency") == (0.0, 1 / FACTOR)
    assert found.value("share of the residual on grid frequencies") == pytest.approx(1.0, abs=1e-6)
    assert found.value("mean error of a colour") > 10  # colours are halved: that is no grid


def test_a_pattern_of_another_period_is_no_grid() -> None:
    wave = 0.1 * torch.cos(2 * math.pi * torch.arange(SIDE) * 3 / 32)[:, None]

    found = probe(Toy(decoder=lambda z: unpool(0.5 * z) + wave[: z.shape[2] * FACTOR]), named(2))["constants"]
    assert found.value("grid") < 1e-3
    assert found.value("share of the residual on grid frequencies") < 1e-6
    assert found.values("strongest frequency") == (3 / 32, 0.0)


def test_constant_colours_by_hand() -> None:
    found = probe(exact_times(0.5), named(1))["constants"]
    # each of the 8 corners of the cube is half its size off, 63.75 levels; greys in proportion
    greys = [63.75 * abs(level / 127.5 - 1) for level in (0, 64, 128, 192, 255)]
    assert found.values("error of each colour") == pytest.approx([*greys, *[63.75] * 6], abs=1e-3)
    assert found.value("RMSE with the borders") > 0


def test_a_cast_is_found_as_it_is() -> None:
    cast = torch.tensor([5.0, -3.0, 0.0])[:, None, None] / 127.5
    given = named(4)
    found = probe(Toy(unshuffle, lambda z: shuffle(z) + cast, channels=48), given)["colour"]
    assert found.value("bias of R") == pytest.approx(5.0, abs=1e-4)
    assert found.value("bias of G") == pytest.approx(-3.0, abs=1e-4)
    assert found.value("bias of B") == pytest.approx(0.0, abs=1e-4)
    assert found.value("bias of luma") == pytest.approx(5 * 0.2126 - 3 * 0.7152, abs=1e-4)
    curve = found.figures[1]
    assert isinstance(curve, Lines)
    red = curve.series["red"]
    assert red[np.isfinite(red)] == pytest.approx(5.0, abs=1e-3)


def test_lost_saturation_is_found_as_it_is() -> None:
    def decode(z: Tensor) -> Tensor:
        x = shuffle(z)
        grey = x.mean(1, keepdim=True)
        return grey + 0.75 * (x - grey)

    found = probe(Toy(unshuffle, decode, channels=48), named(4))["colour"]
    assert found.value("chroma kept") == pytest.approx(0.75, abs=1e-5)


# --- rate ---


def test_rate_and_distortion_by_hand() -> None:
    cast = 4 / 127.5
    found = probe(Toy(unshuffle, lambda z: shuffle(z) + cast, channels=48), named(3))["rate"]
    assert found.value("MSE") == pytest.approx(16.0)
    assert found.value("PSNR") == pytest.approx(10 * math.log10(255**2 / 16))
    assert found.value("latent numbers") == 3.0
    assert found.value("bits as float16") == 48.0
    with pytest.raises(KeyError):
        found.value("KL rate")
