"""What latents cost, against how near the picture they come; and which colours change."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calotype.evaluate import metrics
from calotype.evaluate.figures import Bars, Figure, Lines, Scatter
from calotype.evaluate.probe.bench import Bench, Sample, array
from calotype.evaluate.probe.finding import Finding, LeftOut, Number, mean, said
from calotype.pixels import to_uint8
from calotype.posterior import DiagonalGaussian, Posterior

BINS = 16  # of the curve of colour errors by level
LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709's weights of R', G' and B'


class Rate:
    """Collects the rate-distortion point of each picture."""

    def __init__(self, bench: Bench) -> None:
        self.pixels = bench.side**2
        self.itself = 8 * bench.channels  # bits of a pixel
        self.numbers = bench.vae.latent_channels / bench.vae.factor**2
        self._names: list[str] = []
        self._bits: list[float] = []
        self._psnr: list[float] = []
        self._ssim: list[float] = []
        self._mse: list[float] = []

    def add(self, sample: Sample, posterior: Posterior, reconstruction: Tensor) -> None:
        """One more picture, its posterior [1, C, h, w], and pixels [3, H, W]."""
        after = to_uint8(reconstruction)
        self._names.append(sample.name)
        self._psnr.append(metrics.psnr(sample.levels, after))
        self._ssim.append(metrics.ssim(sample.levels, after))
        self._mse.append((sample.levels.double() - after.double()).square().mean().item())
        if isinstance(posterior, DiagonalGaussian):
            nats = float(DiagonalGaussian(posterior.moments.double()).kl())
            self._bits.append(nats / math.log(2) / self.pixels)

    def finding(self) -> Finding:
        """Of all that was added."""
        stored, error, quality = 16 * self.numbers, mean(self._mse), mean(self._psnr)
        numbers = [
            Number(name="latent numbers", value=self.numbers, unit="per pixel"),
            Number(name="bits as float16", value=stored, unit="bits per pixel"),
            Number(name="PSNR", value=quality, unit="dB"),
            Number(name="MSE", value=error, unit="levels²"),
            Number(name="SSIM", value=mean(self._ssim)),
        ]
        price = f"{said(stored)} bits a pixel as float16, where the picture itself has {self.itself}"
        if self._bits:
            bits = mean(self._bits)
            numbers.append(Number(name="KL rate", value=bits, unit="bits per pixel"))
            price = (
                f"{said(bits)} bits a pixel by the KL ({said(stored)} as float16, {self.itself} in the picture itself)"
            )
        return Finding(
            key="rate",
            title="Rate and distortion",
            numbers=tuple(numbers),
            sentence=f"For {price}, pictures come back with {said(quality, 'dB')} (MSE {said(error)}).",
            method=(
                f"Means over {len(self._names)} pictures of the decoded mode, rounded to 8 bits. The KL rate is what "
                f"bits-back coding with the prior N(0, I) would take; the picture is {_square(self.pixels)}."
            ),
            figures=(self._points(),),
        )

    def _points(self) -> Figure:
        if self._bits:
            return Scatter(
                title="Rate and distortion of each picture",
                x=array(torch.tensor(self._bits)),
                y=array(torch.tensor(self._psnr)),
                x_label="KL rate (bits per pixel)",
                y_label="PSNR (dB)",
                labels=self._names,
            )
        return Lines(
            title="Distortion of the pictures, from the worst to the best",
            x=array(torch.arange(1, len(self._psnr) + 1)),
            series={"PSNR": array(torch.tensor(sorted(self._psnr)))},
            x_label="pictures",
            y_label="PSNR (dB)",
        )


class Colour:
    """Collects signed errors of colours."""

    def __init__(self, bench: Bench) -> None:
        self._grey = bench.channels == 1
        self._errors: list[tuple[float, ...]] = []  # of R, G and B
        self._luma: list[float] = []
        self._chroma: list[tuple[float, float]] = []  # before and after
        self._by_level = torch.zeros(3, BINS, dtype=torch.float64)
        self._counts = torch.zeros(3, BINS, dtype=torch.float64)

    def add(self, sample: Sample, reconstruction: Tensor) -> None:
        """One more picture and its pixels [3, H, W] in [-1, 1]."""
        before, after = sample.levels.double(), 127.5 * (reconstruction.double() + 1.0)
        error = after - before
        means = error.mean((1, 2))
        self._errors.append(tuple(means.tolist()))
        self._luma.append(float(means @ torch.tensor(LUMA, dtype=torch.float64)))
        self._chroma.append((_chroma(before), _chroma(after)))
        bins = sample.levels.long() * BINS // 256
        for c in range(3):
            self._by_level[c].index_add_(0, bins[c].flatten(), error[c].flatten())
            self._counts[c] += bins[c].flatten().bincount(minlength=BINS)

    def finding(self) -> Finding:
        """Of all that was added."""
        if self._grey:
            raise LeftOut("its pictures are grey")
        n = len(self._errors)
        bias = [mean([one[c] for one in self._errors]) for c in range(3)]
        luma = mean(self._luma)
        before, after = mean([b for b, _ in self._chroma]), mean([a for _, a in self._chroma])
        worst = max(abs(value) for one in self._errors for value in one)
        verdict = (
            "Colours stay where they are"
            if max(map(abs, bias)) < 0.5
            else f"The pictures get a cast of up to {said(max(map(abs, bias)))} levels"
        )
        return Finding(
            key="colour",
            title="Colour bias",
            numbers=(
                Number(name="bias of R", value=bias[0], unit="levels"),
                Number(name="bias of G", value=bias[1], unit="levels"),
                Number(name="bias of B", value=bias[2], unit="levels"),
                Number(name="bias of luma", value=luma, unit="levels"),
                Number(name="bias of chroma", value=after - before, unit="levels"),
                Number(name="chroma kept", value=after / before if before else math.nan),
                Number(name="largest bias of a picture", value=worst, unit="levels"),
            ),
            sentence=(
                f"{verdict}: red, green and blue move by {bias[0]:+.2f}, {bias[1]:+.2f} and {bias[2]:+.2f} of 255 "
                f"levels, luma by {luma:+.2f}, and chroma (saturation) by {after - before:+.2f}."
            ),
            method=(
                f"Mean of reconstruction minus picture over {n} pictures, decoded mode, not rounded; luma with Rec. "
                f"709's weights, chroma as the largest of R, G and B minus the smallest. By level, errors lean towards "
                f"the middle wherever detail is lost."
            ),
            figures=(
                Bars(
                    title="Mean signed error",
                    labels=["red", "green", "blue", "luma", "chroma"],
                    series={"error": array(torch.tensor([*bias, luma, after - before], dtype=torch.float64))},
                    x_label="",
                    y_label="levels",
                ),
                Lines(
                    title="Mean signed error by the level that it was",
                    x=array((torch.arange(BINS) + 0.5) * 256 / BINS - 0.5),
                    series={
                        name: array(self._by_level[c] / self._counts[c])
                        for c, name in enumerate(("red", "green", "blue"))
                    },
                    x_label="level in the picture",
                    y_label="error (levels)",
                ),
            ),
        )


def _chroma(levels: Tensor) -> float:
    """The mean over pixels of max(R, G, B) - min(R, G, B)."""
    return float((levels.amax(0) - levels.amin(0)).mean())


def _square(pixels: int) -> str:
    side = math.isqrt(pixels)
    return f"{side} x {side} pixels"
