"""How latents are spread, channel by channel, and the scale and shift that follow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calotype.errors import LatentFormatError
from calotype.evaluate.figures import Bars
from calotype.evaluate.probe.bench import Bench, array
from calotype.evaluate.probe.finding import Finding, Number, said
from calotype.latents import LatentFormat, PerChannel, ScaleShift


class Moments:
    """Mean and central moments up to the fourth of values that come in parts, in one pass and float64.

    Parts are merged by Pébay's formulas (2008, Sandia report SAND2008-6212, equations 2.1 to 2.3), which lose nothing
    where the mean is much larger than the spread, as sums of powers do.
    """

    def __init__(self, channels: int) -> None:
        self.n = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self._sums = [torch.zeros(channels, dtype=torch.float64) for _ in range(3)]  # of powers 2, 3 and 4

    def add(self, values: Tensor) -> None:
        """More values, [C, ...]."""
        values = values.double().flatten(1)
        b = values.shape[1]
        centre = values.mean(1)
        apart = values - centre[:, None]
        self._merge(b, centre, [apart.pow(p).sum(1) for p in (2, 3, 4)])

    def pooled(self) -> Moments:
        """Those of all channels together, [1]."""
        found = Moments(1)
        share = self.n
        for c in range(len(self.mean)):
            found._merge(share, self.mean[c : c + 1], [one[c : c + 1] for one in self._sums])
        return found

    def _merge(self, b: int, centre: Tensor, sums: list[Tensor]) -> None:
        a, n = self.n, self.n + b
        (a2, a3, a4), (b2, b3, b4) = self._sums, sums
        d = centre - self.mean
        self._sums = [
            a2 + b2 + d**2 * (a * b / n),
            a3 + b3 + d**3 * (a * b * (a - b) / n**2) + 3 * d * (a * b2 - b * a2) / n,
            a4
            + b4
            + d**4 * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * d**2 * (a * a * b2 + b * b * a2) / n**2
            + 4 * d * (a * b3 - b * a3) / n,
        ]
        self.mean = self.mean + d * (b / n)
        self.n = n

    @property
    def std(self) -> Tensor:
        """Of the values there were (divided by n), [C]."""
        return (self._sums[0] / self.n).sqrt()

    @property
    def kurtosis(self) -> Tensor:
        """Excess kurtosis, [C]: 0 for a Gaussian, and for values that are all the same."""
        second = self._sums[0] / self.n
        return torch.where(second > 0, (self._sums[2] / self.n) / second.square().clamp(min=1e-300) - 3.0, 0.0)


class Channels:
    """Collects latents, and those in the VAE's own format."""

    def __init__(self, bench: Bench) -> None:
        self.raw = Moments(bench.vae.latent_channels)
        self.format: LatentFormat | None
        try:
            self.format = bench.vae.latent_format
        except LatentFormatError:
            self.format = None
        self._model: Moments | None = None
        self._count = 0

    def add(self, latents: Tensor) -> None:
        """Latents [C, h, w] of one more picture."""
        self.raw.add(latents)
        self._count += 1
        if self.format is not None:
            model = self.format.to_model(latents[None])[0]
            self._model = self._model or Moments(len(model))
            self._model.add(model)

    def finding(self) -> Finding:
        """Of all that was added."""
        raw, all_ = self.raw, self.raw.pooled()
        mean, std = float(all_.mean), float(all_.std)
        rms = math.hypot(mean, std)
        kurtosis = raw.kurtosis
        numbers = [
            Number(name="mean", value=mean),
            Number(name="std", value=std),
            Number(name="rms", value=rms),
            Number(name="recommended shift", value=mean),
            Number(name="recommended scale", value=_inverse(std)),
            Number(name="recommended scale without a shift", value=_inverse(rms)),
            Number(name="recommended shift per channel", value=_tuple(raw.mean)),
            Number(name="recommended scale per channel", value=tuple(_inverse(float(s)) for s in raw.std)),
            Number(name="mean per channel", value=_tuple(raw.mean)),
            Number(name="std per channel", value=_tuple(raw.std)),
            Number(name="excess kurtosis per channel", value=_tuple(kurtosis)),
            Number(name="excess kurtosis, mean over channels", value=float(kurtosis.mean())),
        ]
        sentence = (
            f"A diffusion model wants latents of mean 0 and std 1: subtract {said(mean)} and multiply by "
            f"{said(_inverse(std))}, or better do so for each channel, where stds go from {said(float(raw.std.min()))} "
            f"to {said(float(raw.std.max()))}"
        )
        if self.format is not None and self._model is not None:
            own = self._model.pooled()
            of_channels = self._model.std
            if isinstance(self.format, ScaleShift):
                numbers.append(Number(name="own scale", value=self.format.scaling_factor))
                numbers.append(Number(name="own shift", value=self.format.shift_factor))
            elif isinstance(self.format, PerChannel):
                own_scale = tuple(self.format.scaling_factor / std_ for std_ in self.format.std)
                numbers.append(Number(name="own scale per channel", value=own_scale))
                numbers.append(Number(name="own shift per channel", value=self.format.mean))
            numbers += [
                Number(name="mean in the own format", value=float(own.mean)),
                Number(name="std in the own format", value=float(own.std)),
                Number(name="std per channel in the own format", value=_tuple(of_channels)),
            ]
            sentence += (
                f"; in the VAE's own format ({self.format.name}) these pictures have mean {said(float(own.mean))} and "
                f"std {said(float(own.std))}, from {said(float(of_channels.min()))} to "
                f"{said(float(of_channels.max()))} in single channels."
            )
        else:
            sentence += "; the VAE's own format is not known."
        labels = [str(c) for c in range(len(raw.mean))]
        return Finding(
            key="channels",
            title="Latents by channel",
            numbers=tuple(numbers),
            sentence=sentence,
            method=f"Raw latents (the posterior's mode) of {self._count} pictures, float64, one pass; std over n.",
            figures=(
                Bars(
                    title="Mean and standard deviation of each channel",
                    labels=labels,
                    series={"mean": array(raw.mean), "std": array(raw.std)},
                    x_label="channel",
                    y_label="raw latents",
                ),
                Bars(
                    title="Excess kurtosis of each channel (a Gaussian has 0)",
                    labels=labels,
                    series={"excess kurtosis": array(kurtosis)},
                    x_label="channel",
                    y_label="excess kurtosis",
                ),
            ),
        )


def _inverse(value: float) -> float:
    return 1.0 / value if value else math.inf


def _tuple(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())
