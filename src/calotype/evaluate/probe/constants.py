"""Pictures of one colour: what comes back, and whether a grid comes with it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from calotype.evaluate.figures import Bars, Heatmap, Pictures
from calotype.evaluate.probe.bench import Bench, array, shown
from calotype.evaluate.probe.finding import Finding, Number, mean, said

COLOURS = {
    "black": (0, 0, 0),
    "grey 64": (64, 64, 64),
    "grey 128": (128, 128, 128),
    "grey 192": (192, 192, 192),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "yellow": (255, 255, 0),
}
AMPLIFY = 16.0


def constants(bench: Bench) -> Finding:
    """What comes back of pictures of one colour."""
    factor = bench.vae.factor
    errors, grids, edges, images = [], [], [], []
    spectrum = torch.zeros((), dtype=torch.float64)
    colours = {name: levels for name, levels in COLOURS.items() if bench.channels > 1 or len(set(levels)) == 1}
    for levels in bench.over(list(colours.values())):
        colour = torch.tensor(levels, dtype=torch.float32)[:, None, None]
        pixels = (colour / 127.5 - 1.0).expand(3, bench.side, bench.side).contiguous()
        residual = 127.5 * (bench.decode(bench.mode(pixels)).double() - pixels.double())
        inner = middle(residual, factor)
        errors.append(inner.mean((1, 2)))
        grids.append(float(periodic(inner, factor).square().mean().sqrt()))
        edges.append(float(residual.square().mean().sqrt()))
        spectrum = spectrum + power(inner)
        images.append(shown((AMPLIFY * residual / 127.5).float()))
    spectrum = spectrum / len(colours)
    rows, columns = (torch.arange(n) % (n // factor) == 0 for n in spectrum.shape)
    on_grid = rows[:, None] & columns
    on_grid[0, 0] = False  # the mean is no grid
    rest = spectrum.clone()
    rest[0, 0] = 0.0
    total = float(rest.sum())
    share = float(rest[on_grid].sum()) / total if total else 0.0
    top = int(rest.argmax())
    frequency = tuple(_fold(k, n) / n for k, n in zip(divmod(top, rest.shape[1]), rest.shape, strict=True))
    off = [float(one.abs().mean()) for one in errors]
    grid = mean([one * one for one in grids]) ** 0.5
    names = list(colours)
    worst, worst_grid = names[off.index(max(off))], names[grids.index(max(grids))]
    verdict = (
        "less than 8 bits can hold"
        if max(grids) < 0.5
        else "faint"
        if max(grids) < 2
        else "enough to be seen in flat areas"
    )
    return Finding(
        key="constants",
        title="Pictures of one colour",
        numbers=(
            Number(name="mean error of a colour", value=mean(off), unit="levels"),
            Number(name="largest error of a colour", value=max(off), unit="levels"),
            Number(name="error of each colour", value=tuple(off), unit="levels"),
            Number(name="grid", value=grid, unit="levels"),
            Number(name="largest grid", value=max(grids), unit="levels"),
            Number(name="grid of each colour", value=tuple(grids), unit="levels"),
            Number(name="share of the residual on grid frequencies", value=share),
            Number(name="strongest frequency", value=frequency, unit="cycles per pixel (rows, columns)"),
            Number(name="RMSE with the borders", value=mean([e * e for e in edges]) ** 0.5, unit="levels"),
        ),
        sentence=(
            f"Pictures of one colour come back {said(mean(off), 'levels')} off on average ({worst}: {said(max(off))}), "
            f"under a grid of {said(grid, 'levels')} RMS ({worst_grid}: {said(max(grids))}): {verdict}."
        ),
        method=(
            f"{len(colours)} colours, drawn by the program; decoded mode minus colour, in the middle half. The grid is "
            f"what repeats every {factor} pixels: the mean over all {factor} x {factor} blocks, without its own mean, "
            f"as RMS. Grid frequencies are multiples of 1/{factor} cycles a pixel; the share is of power without the "
            f"constant part."
        ),
        figures=(
            Bars(
                title="Error and grid of each colour",
                labels=names,
                series={"mean absolute error of R, G, B": _column(off), "grid (RMS)": _column(grids)},
                x_label="colour",
                y_label="levels",
            ),
            _spectrum(rest),
            Pictures(
                title=f"What is wrong with each, {AMPLIFY:g} times amplified around mid-grey",
                images=images,
                captions=names,
                columns=6,
            ),
        ),
    )


def middle(residual: Tensor, factor: int) -> Tensor:
    """The middle half [..., n, n], in whole blocks: borders see what the encoder and the decoder pad with."""
    blocks = residual.shape[-1] // factor
    edge = blocks // 4 * factor
    return residual[..., edge : blocks * factor - edge, edge : blocks * factor - edge]


def periodic(residual: Tensor, factor: int) -> Tensor:
    """The part with a period of f pixels along both axes, without the mean: [C, n, n] -> [C, f, f]."""
    c, n, _ = residual.shape
    blocks = residual.reshape(c, n // factor, factor, n // factor, factor).mean((1, 3))
    return blocks - blocks.mean((1, 2), keepdim=True)


def power(residual: Tensor) -> Tensor:
    """The power at each frequency, mean over channels: [C, n, n] -> [n, n], whose sum is the mean square."""
    amplitudes: Tensor = torch.fft.fft2(residual).abs() / residual[0].numel()
    return amplitudes.square().mean(0)


def _fold(k: int, n: int) -> int:
    """A bin's frequency, without its sign."""
    return min(k, n - k)


def _spectrum(rest: Tensor) -> Heatmap:
    n = rest.shape[0]
    half = n // 2 + 1
    # frequencies of the lower half have their mirror images in the upper
    amplitude = torch.fft.fftshift(rest, dim=0)[:, :half].sqrt()
    return Heatmap(
        title="Spectrum of what is wrong, mean over colours",
        values=array(amplitude.clamp(min=1e-6).log10()),
        x=(0.0, (half - 1) / n),
        y=(-(n // 2) / n, (n - 1 - n // 2) / n),
        x_label="cycles per pixel, along rows",
        y_label="cycles per pixel, along columns",
        value_label="log10 of the amplitude (levels)",
    )


def _column(values: list[float]) -> NDArray[Any]:
    return array(torch.tensor(values, dtype=torch.float64))
