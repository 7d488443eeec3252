"""Noise in latents: draws of the posterior, noise added on purpose, and nothing but noise."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from calotype.errors import LatentFormatError
from calotype.evaluate.figures import Bars, Lines, Pictures
from calotype.evaluate.probe.bench import Bench, array, grey, psnr, shown
from calotype.evaluate.probe.finding import Finding, LeftOut, Number, gap, mean, said
from calotype.evaluate.probe.uncertainty import NO_POSTERIOR, correlation
from calotype.posterior import DiagonalGaussian
from calotype.vae import picture_generator

DRAWS = 4  # of each picture
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5)
SEEN = (0.1, 0.4, 1.0)  # of which pictures are shown
PRIOR = 8  # pictures of noise
FAR = 4  # latents
GROWS = {"rmse": "error", "lpips": "LPIPS"}  # what of each measure may grow with noise
STATISTICS = (("mean", "levels"), ("std", "levels"), ("neighbours' correlation", ""), ("correlation afar", ""))


def draws(bench: Bench) -> Finding:
    """How far decoded samples of one posterior are from its decoded mode, and from each other."""
    to_mode: list[dict[str, float]] = []
    to_each: list[dict[str, float]] = []
    modes, samples = [], []
    spread = torch.empty(0)
    for i, sample in bench.over(list(enumerate(bench.few))):
        posterior = bench.encode(sample.pixels)
        if not isinstance(posterior, DiagonalGaussian):
            raise LeftOut(NO_POSTERIOR)
        generator = picture_generator(bench.seed, sample.pixels)
        drawn = [bench.decode(posterior.sample([generator])[0]) for _ in range(DRAWS)]
        mode = bench.reconstructions[i]
        to_mode.append(_agreement(bench, [(one, mode) for one in drawn]))
        to_each.append(_agreement(bench, list(combinations(drawn, 2))))
        modes.append(psnr(mode, sample.pixels))
        samples.append(mean([psnr(one, sample.pixels) for one in drawn]))
        if not i:
            spread = 127.5 * torch.stack(drawn).double().std(0).mean(0)
    both = (("to the mode", to_mode), ("to each other", to_each))
    numbers = [
        Number(name=f"{key} {where}", value=mean([one[key] for one in found]), unit="dB" if key == "PSNR" else "")
        for key in to_mode[0]
        for where, found in both
    ]
    numbers += [
        Number(name="PSNR of the mode to the picture", value=mean(modes), unit="dB"),
        Number(name="PSNR of draws to the picture", value=mean(samples), unit="dB"),
    ]
    near, lost = mean([one["PSNR"] for one in to_mode]), gap(mean(modes), mean(samples))
    seen = (
        "too near to be told apart by eye"
        if near > 50
        else "they differ, if by less than the reconstruction's own error"
        if near > mean(modes)
        else "they differ by more than the mode does from the picture"
    )
    return Finding(
        key="draws",
        title="Agreement of draws",
        numbers=tuple(numbers),
        sentence=(
            f"Decoded samples of one posterior are {said(near, 'dB')} from the decoded mode: {seen}; decoding a sample "
            f"instead of the mode costs {said(lost, 'dB')}."
        ),
        method=f"{DRAWS} samples for each of {len(bench.few)} pictures; pixels are not rounded to 8 bits.",
        figures=(
            Bars(
                title="Agreement of draws, picture by picture",
                labels=[str(i) for i in range(len(to_mode))],
                series={where: _column(found, "PSNR") for where, found in both}
                | {"the mode to the picture": array(torch.tensor(modes))},
                x_label="picture",
                y_label="PSNR (dB)",
            ),
            Pictures(
                title=f"Where draws differ (std over draws; white is {said(float(spread.max()))} levels)",
                images=[shown(bench.reconstructions[0]), grey(spread, float(spread.max()))],
                captions=["decoded mode", "std over draws"],
                columns=2,
            ),
        ),
    )


def _agreement(bench: Bench, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    found = {"PSNR": mean([psnr(a, b) for a, b in pairs])}
    if "lpips" in bench.measures:
        found["LPIPS"] = mean([bench.lpips(a, b) for a, b in pairs])
    return found


def _column(found: list[dict[str, float]], key: str) -> NDArray[Any]:
    return array(torch.tensor([one[key] for one in found]))


def response(bench: Bench) -> Finding:
    """How much pixels change with noise in the latents."""
    curves: dict[str, list[list[float]]] = {key: [] for key in bench.measures}
    pictures = []
    for i, sample in bench.over(list(enumerate(bench.few))):
        # the same noise at all sizes: what changes along a curve is only its size
        eps = torch.randn(bench.latents[i].shape, generator=picture_generator(bench.seed, sample.pixels))
        found = []
        for sigma in SIGMAS:
            decoded = bench.decode(bench.latents[i] + sigma * bench.std * eps)
            found.append(bench.distances(bench.reconstructions[i], decoded))
            if not i and sigma in SEEN:
                pictures.append(decoded)
        for key, curve in curves.items():
            curve.append([one[key] for one in found])
    numbers = []
    steady: dict[str, int] = {}
    for key, name in bench.measures.items():
        values = torch.tensor(curves[key], dtype=torch.float64)
        steady[key] = int((values.diff(dim=1) > 0).all(1).sum())
        numbers += [
            Number(name=f"{name} at {sigma:g} std", value=mean(values[:, j].tolist()))
            for j, sigma in enumerate(SIGMAS)
            if sigma in SEEN
        ]
    all_ = torch.tensor(curves["rmse"], dtype=torch.float64).mean(0)
    slope = float(all_[0]) / SIGMAS[0]
    fall = float(all_[-1]) / SIGMAS[-1] / slope if slope else math.nan
    numbers += [
        Number(name="slope at the smallest noise", value=slope, unit="levels per std"),
        Number(name="slope at the largest over that at the smallest", value=fall),
        *(
            Number(name=f"pictures whose {GROWS[key]} grows with every step", value=float(many))
            for key, many in steady.items()
        ),
    ]
    grows = " and ".join(
        f"{GROWS[key]} grows with every step in {'all' if many == len(bench.few) else f'{many} of {len(bench.few)}'}"
        f" pictures"
        for key, many in steady.items()
    )
    at = float(all_[SIGMAS.index(0.1)])
    return Finding(
        key="noise",
        title="Response to noise in the latents",
        numbers=tuple(numbers),
        sentence=(
            f"Noise of a tenth of the channels' std moves pixels by {said(at)} levels (RMSE), and noise of one std by "
            f"{said(float(all_[SIGMAS.index(1.0)]))}; the {grows}."
        ),
        method=(
            f"Gaussian noise in units of each channel's std over all pictures, added to the mode of {len(bench.few)} "
            f"pictures, against the decoded mode; one draw a picture, at all sizes."
        ),
        figures=(
            *(
                Lines(
                    title=f"{name} against noise, mean over pictures",
                    x=array(torch.tensor(SIGMAS, dtype=torch.float64)),
                    series={name: array(torch.tensor(curves[key], dtype=torch.float64).mean(0))},
                    x_label="noise (stds of each channel)",
                    y_label=name,
                    log_x=True,
                    log_y=True,
                )
                for key, name in bench.measures.items()
            ),
            Pictures(
                title="A picture with noise in its latents",
                images=[shown(bench.reconstructions[0]), *(shown(x) for x in pictures)],
                captions=["none", *(f"{sigma:g} std" for sigma in SEEN)],
                columns=1 + len(SEEN),
            ),
        ),
    )


def prior(bench: Bench) -> Finding:
    """What N(0, I) decodes to, drawn as raw latents and as model latents."""
    shape = bench.latents[0].shape
    try:
        format_ = bench.vae.latent_format
    except LatentFormatError:
        format_ = None
    kinds = ["raw latents"] if format_ is None else ["raw latents", "model latents"]
    made: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    for i in bench.over(range(PRIOR)):
        for kind in kinds:
            generator = bench.generator("prior", i)
            if kind == "raw latents" or format_ is None:
                z = torch.randn(shape, generator=generator)
            else:
                like = format_.to_model(bench.latents[0][None])
                z = format_.to_raw(torch.randn(like.shape, generator=generator))[0]
            made[kind].append(bench.decode(z))
    groups = {"pictures": [sample.pixels for sample in bench.few], **made}
    found = {
        name: [mean(list(column)) for column in zip(*(_statistics(x, bench.vae.factor) for x in group), strict=True)]
        for name, group in groups.items()
    }
    numbers = [
        Number(name=f"{key} of {name}", value=value, unit=unit)
        for name, values in found.items()
        for (key, unit), value in zip(STATISTICS, values, strict=True)
    ]
    kind = kinds[-1]
    (_, wide, near, far), (_, real_wide, real_near, real_far) = found[kind], found["pictures"]
    alike = near > real_near / 2 and far > real_far / 2
    n = min(4, len(bench.few))
    return Finding(
        key="prior",
        title="What noise decodes to",
        numbers=tuple(numbers),
        sentence=(
            f"Decoded N(0, I) ({kind}) has a std of {said(wide, 'levels')} and pixels that correlate by {said(near)} "
            f"with their neighbours and by {said(far)} over {FAR} latents, pictures have {said(real_wide)}, "
            f"{said(real_near)} and {said(real_far)}: "
            + (
                "these numbers can't tell it from pictures, so look at it."
                if alike
                else "it is texture, no picture, so a model (a diffusion model, say) must draw these latents."
            )
        ),
        method=(
            f"{PRIOR} draws each, decoded at the pictures' size; mean and std of all values of a picture, and the "
            f"correlation of values with those 1 pixel and {FAR} latents further right and down; means over pictures."
        ),
        figures=(
            Pictures(
                title="Pictures, and decoded noise",
                images=[shown(x) for group in groups.values() for x in group[:n]],
                captions=[name for name in groups for _ in range(n)],
                columns=n,
            ),
        ),
    )


def _statistics(pixels: Tensor, factor: int) -> list[float]:
    """What `STATISTICS` names, of pixels [3, H, W]."""
    x = pixels.double()
    correlations = [
        mean([correlation(a.flatten(), b.flatten()) for a, b in ((x[:, d:], x[:, :-d]), (x[..., d:], x[..., :-d]))])
        for d in (1, FAR * factor)
    ]
    return [127.5 * (float(x.mean()) + 1.0), 127.5 * float(x.std(correction=0)), *correlations]
