"""Latents as RGB: the linear map of their channels that comes nearest to the picture, for previews."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.errors import LatentFormatError
from calotype.evaluate.figures import Pictures
from calotype.evaluate.probe.bench import Bench, Sample, enlarged, shown
from calotype.evaluate.probe.finding import Finding, Number, said
from calotype.latents import LatentFormat
from calotype.previews import Colour, Factors, fitted_space

MAPS = 4  # pictures that are shown
RANK = 1e-9  # directions of less variance, as part of the largest, are none


class Comoments:
    """Mean and summed products of deviations of values that come in parts, in one pass and float64.

    Parts are merged as by Chan, Golub and LeVeque (1979, Stanford report STAN-CS-79-773).
    """

    def __init__(self, values: int) -> None:
        self.n = 0
        self.mean = torch.zeros(values, dtype=torch.float64)
        self.products = torch.zeros(values, values, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """More values, [V, n]."""
        values = values.double()
        mean = values.mean(1)
        apart = values - mean[:, None]
        self._merge(values.shape[1], mean, apart @ apart.T)

    def merged(self, other: Comoments) -> Comoments:
        """Those of both."""
        found = Comoments(len(self.mean))
        for one in (self, other):
            if one.n:
                found._merge(one.n, one.mean, one.products)
        return found

    def _merge(self, n: int, mean: Tensor, products: Tensor) -> None:
        both, apart = self.n + n, mean - self.mean
        self.products = self.products + products + torch.outer(apart, apart) * (self.n * n / both)
        self.mean = self.mean + apart * (n / both)
        self.n = both


def least_squares(moments: Comoments) -> tuple[Tensor, Tensor]:
    """The affine map from all values but the last three to those: ([C, 3], [3]).

    Where channels say the same, or nothing, it is the one of least norm for channels of variance 1.
    """
    c = len(moments.mean) - 3
    std = (moments.products.diagonal()[:c] / moments.n).sqrt()
    used = std > 0
    scale = torch.where(used, std, 1.0)
    correlations = moments.products[:c, :c] / moments.n / torch.outer(scale, scale)
    with_colours = moments.products[:c, c:] / moments.n / scale[:, None]
    weights = torch.linalg.pinv(correlations, rtol=RANK, hermitian=True) @ with_colours / scale[:, None]
    return weights, moments.mean[c:] - moments.mean[:c] @ weights


def squares(moments: Comoments, weights: Tensor, bias: Tensor) -> Tensor:
    """Summed squares of what an affine map leaves of the last three values, [3]."""
    c = len(weights)
    p = moments.products
    offset = moments.mean[c:] - moments.mean[:c] @ weights - bias
    left = p[c:, c:].diagonal() - 2 * (weights * p[:c, c:]).sum(0) + (weights * (p[:c, :c] @ weights)).sum(0)
    return (left + moments.n * offset**2).clamp(min=0)


class Previews:
    """Collects latents, and what of the picture they stand for."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.format: LatentFormat | None
        try:
            self.format = bench.vae.latent_format
        except LatentFormatError:
            self.format = None
        # every second picture, and the others: what is fitted to the ones is measured on the others
        self._halves = (Comoments(bench.vae.latent_channels + 3), Comoments(bench.vae.latent_channels + 3))
        self._count = 0
        self._shown: list[tuple[Tensor, Tensor]] = []

    def add(self, sample: Sample, latents: Tensor) -> None:
        """One more picture, and its raw latents [C, h, w]."""
        values = fitted_space(self.format, latents)
        colours = F.avg_pool2d(sample.pixels[None], sample.levels.shape[-1] // values.shape[-1])[0]
        self._halves[self._count % 2].add(torch.cat([values, colours]).flatten(1))
        self._count += 1
        if len(self._shown) < MAPS:
            self._shown.append((values, colours))

    def factors(self) -> Factors:
        """Fitted to all that was added."""
        vae, moments = self.bench.vae, self._halves[0].merged(self._halves[1])
        weights, bias = (_rounded(value) for value in least_squares(moments))
        left, spread = squares(moments, weights, bias), moments.products.diagonal()[-3:]
        rows = [_colour(row) for row in weights]
        return Factors(
            factors=tuple(rows), bias=_colour(bias), format=self.format.name if self.format else "none",
            space="model" if self.format else "raw", vae=vae.sha256, vae_name=vae.name, pictures=self._count,
            rmse=round(_levels(left, moments.n), 4), r2=round(_explained(left.sum(), spread.sum()), 5),
        )  # fmt: skip

    def finding(self) -> Finding:
        """Of all that was added."""
        found = self.factors()
        moments = self._halves[0].merged(self._halves[1])
        weights = torch.tensor(found.factors, dtype=torch.float64)
        left = squares(moments, weights, torch.tensor(found.bias, dtype=torch.float64))
        spread = moments.products.diagonal()[-3:]
        assert found.rmse is not None and found.r2 is not None
        psnr = _psnr(found.rmse)
        numbers = [
            Number(name="RMSE", value=found.rmse, unit="levels"),
            Number(name="PSNR", value=psnr, unit="dB"),
            Number(name="R²", value=found.r2),
            Number(name="R² of red, green, blue", value=tuple(map(_explained, left, spread))),
        ]
        beyond = ""
        if self._count > 1:
            rmse = self._held_out()
            numbers.append(Number(name="RMSE on pictures it was not fitted to", value=rmse, unit="levels"))
            beyond = f", {said(rmse)} on pictures it was not fitted to"
        numbers += [
            Number(name=f"factor of {name}", value=tuple(row[i] for row in found.factors))
            for i, name in enumerate(("red", "green", "blue"))
        ]
        numbers.append(Number(name="bias", value=found.bias))
        what = (
            f"model latents ({found.format})" if found.space == "model" else "raw latents (their format is not known)"
        )
        return Finding(
            key="preview",
            title="Latents as RGB",
            numbers=tuple(numbers),
            sentence=(
                f"Previews without a decoder: a linear map of the channels comes within {said(found.rmse, 'levels')} "
                f"RMS ({said(psnr, 'dB')}{beyond}) of the picture averaged to a pixel a latent, and explains "
                f"{100 * found.r2:.1f} % of its variance."
            ),
            method=(
                f"Least squares from {what}, the posterior's mode, to the mean colour of the pixels that each stands "
                f"for, over {moments.n:,} positions of {self._count} picture{'s' * (self._count != 1)}. For pictures "
                f"it was not fitted to, every second one is measured with what was fitted to the others. "
                f"factors.json has it for --factors; ComfyUI takes the lists below."
            ),
            figures=(self._pictures(found),),
            code=found.code(),
        )

    def _held_out(self) -> float:
        """RMSE in levels of each half by what was fitted to the other."""
        first, second = self._halves
        left = squares(first, *least_squares(second)) + squares(second, *least_squares(first))
        return _levels(left, first.n + second.n)

    def _pictures(self, found: Factors) -> Pictures:
        times = max(1, self.bench.side // self._shown[0][1].shape[-1])
        averaged = [shown(enlarged(colours, times)) for _, colours in self._shown]
        # these latents are unpacked, as the map is
        weights, bias = torch.tensor(found.factors), torch.tensor(found.bias)[:, None, None]
        maps = [torch.einsum("chw,cd->dhw", values, weights) + bias for values, _ in self._shown]
        return Pictures(
            title="Pictures averaged to a pixel a latent, and their latents as RGB",
            images=[*averaged, *(shown(enlarged(one, times)) for one in maps)],
            captions=["picture"] * len(averaged) + ["latents"] * len(maps),
            columns=len(averaged),
        )


def _rounded(values: Tensor) -> Tensor:
    """To six digits that count: they are written out, and these are what is measured."""
    return values.clone().apply_(lambda value: float(f"{value:.6g}"))


def _colour(values: Tensor) -> Colour:
    red, green, blue = values.tolist()
    return red, green, blue


def _levels(left: Tensor, n: int) -> float:
    return 127.5 * math.sqrt(float(left.sum()) / (3 * n))


def _psnr(rmse: float) -> float:
    return 20 * math.log10(255 / rmse) if rmse else math.inf


def _explained(left: Tensor, spread: Tensor) -> float:
    """The part of a variance that is explained; 1 of none."""
    return 1.0 - float(left) / float(spread) if float(spread) else 1.0
