"""The posterior: what it costs, which latents are used, and where it is wide."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.evaluate.figures import Bars, Figure, Heatmap, Pictures, Scatter
from calotype.evaluate.probe.bench import Bench, Sample, array, enlarged, grey, shown
from calotype.evaluate.probe.finding import Finding, LeftOut, Number, said
from calotype.posterior import DiagonalGaussian, Posterior

ACTIVE = 0.01  # Burda et al.'s threshold
MAPS = 4  # pictures whose maps are shown
POINTS = 2000  # of a scatter plot, at most
KEPT = 2**21  # positions that are kept to be ranked; 32 MiB
NO_POSTERIOR = "this VAE's encoder gives latents without a posterior"


class Information:
    """Collects KL(posterior || N(0, I)) and the variance of posterior means over pictures."""

    def __init__(self) -> None:
        self.n = 0
        self.known = True
        self._kl = self._mean = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, posterior: Posterior) -> None:
        """One more picture's, [1, C, h, w]."""
        if not isinstance(posterior, DiagonalGaussian):
            self.known = False
            return
        self.n += 1
        mean, logvar = posterior.mean[0].double(), posterior.logvar[0].double()
        self._kl = self._kl + 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
        apart = mean - self._mean  # Welford's recurrence
        self._mean = self._mean + apart / self.n
        self._squares = self._squares + apart * (mean - self._mean)

    def finding(self) -> Finding:
        """Of all that was added."""
        if not self.known:
            raise LeftOut(NO_POSTERIOR)
        if self.n < 2:
            raise LeftOut("active units need the variance over at least two pictures")
        kl = self._kl / self.n
        active = (self._squares / (self.n - 1)) > ACTIVE
        per_channel, share = kl.mean((1, 2)), active.double().mean((1, 2))
        total, units = float(kl.sum()), int(active.sum())
        top = int(per_channel.argmax())
        use = (
            f"{units} of {active.numel()} units are active, the others have collapsed to the prior"
            if units < active.numel()
            else f"all {units} units are active, so none has collapsed"
        )
        return Finding(
            key="kl",
            title="KL and active units",
            numbers=(
                Number(name="KL of a picture", value=total, unit="nats"),
                Number(name="KL per dimension", value=float(kl.mean()), unit="nats"),
                Number(name="KL per channel", value=tuple(kl.sum((1, 2)).tolist()), unit="nats"),
                Number(name="KL per dimension of each channel", value=tuple(per_channel.tolist()), unit="nats"),
                Number(name="active units", value=float(units)),
                Number(name="units", value=float(active.numel())),
                Number(name="share of active units", value=units / active.numel()),
                Number(name="share of active units per channel", value=tuple(share.tolist())),
            ),
            sentence=(
                f"A latent number says {said(float(kl.mean()), 'nats')} "
                f"({said(float(kl.mean()) / math.log(2), 'bits')}) more than the prior N(0, I), most in channel {top} "
                f"({said(float(per_channel[top]), 'nats')}); {use}."
            ),
            method=(
                f"KL(q(z|x) || N(0, I)) of raw latents, mean over {self.n} pictures. A unit is one channel at one "
                f"position; it is active where the posterior mean's variance over pictures (over n - 1) is above "
                f"{ACTIVE} (Burda et al. 2015, arXiv:1509.00519, section 5.2)."
            ),
            figures=(
                Bars(
                    title="KL of each channel",
                    labels=[str(c) for c in range(len(kl))],
                    series={"KL": array(per_channel)},
                    x_label="channel",
                    y_label="nats per latent number",
                ),
                Bars(
                    title="Share of units that are active",
                    labels=[str(c) for c in range(len(kl))],
                    series={"active": array(share)},
                    x_label="channel",
                    y_label="share",
                ),
                Heatmap(
                    title="KL by position, mean over channels and pictures",
                    values=array(kl.mean(0)),
                    x=(0, kl.shape[2] - 1),
                    y=(0, kl.shape[1] - 1),
                    x_label="column",
                    y_label="row",
                    value_label="nats per latent number",
                ),
            ),
        )


class Certainty:
    """Collects the posterior's standard deviation, and how much the pixels under each latent vary.

    Of the first pictures only if there are very many: ranks need all values at once. Pictures come in the order of
    their hashes, so the first are as good a draw as any.
    """

    def __init__(self, bench: Bench) -> None:
        self.factor = bench.vae.factor
        self.known = True
        side = bench.side // self.factor
        many = max(1, min(len(bench.samples), KEPT // side**2))
        # whole blocks: a small one for each picture, among large ones that come and go, would scatter the heap
        self._std = torch.empty(many, side, side, dtype=torch.float64)  # mean over channels
        self._texture = torch.empty_like(self._std)
        self._n = 0
        self._shown: list[Tensor] = []
        self._of_channels = torch.zeros(bench.vae.latent_channels, dtype=torch.float64)
        self._beyond = 0

    def add(self, sample: Sample, posterior: Posterior) -> None:
        """One more picture and its posterior, [1, C, h, w]."""
        if not isinstance(posterior, DiagonalGaussian):
            self.known = False
            return
        std = posterior.std[0].double()
        if self._n == len(self._std):
            self._beyond += 1
            return
        self._of_channels += std.mean((1, 2))
        self._std[self._n] = std.mean(0)
        self._texture[self._n] = texture(sample.levels, self.factor)
        self._n += 1
        if len(self._shown) < MAPS:
            self._shown.append(sample.pixels)

    def finding(self) -> Finding:
        """Of all that was added."""
        if not self.known:
            raise LeftOut(NO_POSTERIOR)
        n = self._n
        of = f"{n} pictures" if not self._beyond else f"the first {n} of {n + self._beyond} pictures by hash"
        std, pixels = self._std[:n].flatten(), self._texture[:n].flatten()
        order = pixels.argsort(stable=True)
        fifth = max(1, len(order) // 5)
        flat, rich = float(std[order[:fifth]].mean()), float(std[order[-fifth:]].mean())
        with_texture, by_rank = correlation(pixels, std), correlation(_ranks(pixels), _ranks(std))
        tells = (
            "wider over texture than over flat areas"
            if rich > 1.05 * flat
            else "narrower over texture than over flat areas"
            if rich < flat / 1.05
            else "as wide over texture as over flat areas"
        )
        return Finding(
            key="posterior",
            title="Where the posterior is wide",
            numbers=(
                Number(name="std", value=float(std.mean())),
                Number(name="std per channel", value=tuple((self._of_channels / n).tolist())),
                Number(name="std over the flattest fifth", value=flat),
                Number(name="std over the most textured fifth", value=rich),
                Number(name="texture over flat", value=rich / flat),
                Number(name="correlation with texture", value=with_texture),
                Number(name="rank correlation with texture", value=by_rank),
            ),
            sentence=(
                f"A std of 0 is a point and 1 the prior: here it is {said(float(std.mean()))} on average, {tells}: "
                f"{said(rich)} over the most textured fifth and {said(flat)} over the flattest (rank correlation "
                f"{said(by_rank)})."
            ),
            method=(
                f"The posterior's std, mean over channels, at each position of {of}; texture is the std of "
                f"brightness (mean of R, G and B) in the {self.factor} x {self.factor} pixels of the position, in "
                f"levels. Pearson's correlation, and Spearman's."
            ),
            figures=(self._maps(), self._points(pixels, std)),
        )

    def _maps(self) -> Figure:
        """Pictures over maps of their posterior's std, white for the widest."""
        std = self._std[: len(self._shown)]
        top = float(std.max())
        maps = [grey(enlarged(x, self.factor), top) for x in std]
        pictures = [shown(x) for x in self._shown]
        return Pictures(
            title=f"Pictures, and their posteriors' std (black 0, white {said(top)})",
            images=[*pictures, *maps],
            captions=["picture"] * len(pictures) + ["posterior std"] * len(maps),
            columns=len(pictures),
        )

    def _points(self, pixels: Tensor, std: Tensor) -> Figure:
        some = torch.arange(0, len(std), -(-len(std) // POINTS))
        return Scatter(
            title="Posterior std against texture, one point a position",
            x=array(pixels[some]),
            y=array(std[some]),
            x_label="std of the pixels (levels)",
            y_label="posterior std, mean over channels",
        )


def texture(levels: Tensor, factor: int) -> Tensor:
    """The std of brightness in blocks of f x f pixels, in levels: uint8 [3, H, W] -> float64 [h, w]."""
    brightness = levels.double().mean(0)[None, None]
    centre = F.avg_pool2d(brightness, factor)
    apart = brightness - enlarged(centre, factor)  # squares of what is left lose no digits
    return F.avg_pool2d(apart.square(), factor)[0, 0].sqrt()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of [n] and [n]; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0; equal values have the mean of theirs."""
    _, which, counts = np.unique(values.numpy(), return_inverse=True, return_counts=True)
    return torch.from_numpy((np.cumsum(counts) - (counts + 1) / 2)[which])
