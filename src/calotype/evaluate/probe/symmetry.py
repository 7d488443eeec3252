"""Whether latents move, turn and scale as pictures do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.evaluate.figures import Bars, Lines, Pictures
from calotype.evaluate.probe.bench import Bench, array, psnr, shown
from calotype.evaluate.probe.finding import Finding, Number, gap, mean, said


@dataclass
class _Errors:
    """Of one transform T, over pictures."""

    squares: float = 0.0  # |E(T x) - T E(x)|^2
    norms: float = 0.0  # |E(T x) - mean|^2
    encoded: list[float] = field(default_factory=list)  # PSNR of D(E(T x)) to T x
    moved: list[float] = field(default_factory=list)  # PSNR of D(T E(x)) to T x

    def add(self, got: Tensor, wanted: Tensor, centre: Tensor) -> None:
        self.squares += float((got.double() - wanted.double()).square().sum())
        self.norms += float((wanted.double() - centre.double()).square().sum())

    @property
    def relative(self) -> float:
        return math.sqrt(self.squares / self.norms) if self.norms else 0.0

    @property
    def lost(self) -> float:
        return gap(mean(self.encoded), mean(self.moved))

    def numbers(self, name: str) -> list[Number]:
        return [
            Number(name=f"latent error, {name}", value=self.relative),
            Number(name=f"PSNR lost, {name}", value=self.lost, unit="dB"),
        ]


# --- turning and scaling ---

TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "left-right flip": lambda x: x.flip(-1),
    "upside-down flip": lambda x: x.flip(-2),
    "90 degrees": lambda x: torch.rot90(x, 1, (-2, -1)),
    "half size": lambda x: F.avg_pool2d(x, 2),
}


def transforms(bench: Bench) -> Finding:
    """Flips, a quarter turn, and half the size: of latents against pictures."""
    found = {name: _Errors() for name in TRANSFORMS}
    seen: list[Tensor] = []
    for i, sample in bench.over(list(enumerate(bench.few))):
        for name, transform in TRANSFORMS.items():
            errors = found[name]
            x, z = transform(sample.pixels).contiguous(), transform(bench.latents[i]).contiguous()
            encoded = bench.mode(x)
            errors.add(z, encoded, bench.mean)
            of_latents = bench.decode(z)
            errors.encoded.append(psnr(bench.decode(encoded), x))
            errors.moved.append(psnr(of_latents, x))
            if not i and name != "half size":
                seen += [x, of_latents]
    names = list(TRANSFORMS)
    worst = max(names, key=lambda name: found[name].relative)
    best = min(names, key=lambda name: found[name].relative)
    return Finding(
        key="transforms",
        title="Turning, flipping and scaling latents",
        numbers=tuple(number for name, errors in found.items() for number in errors.numbers(name)),
        sentence=(
            f"0 means that latents transform as pictures do, 1 that they might as well be replaced by their mean: "
            f"from {said(found[best].relative)} ({best}) to {said(found[worst].relative)} ({worst}); decoding "
            f"transformed latents instead of encoding the transformed picture costs "
            f"{said(min(e.lost for e in found.values()), 'dB')} to {said(max(e.lost for e in found.values()), 'dB')}."
        ),
        method=(
            f"Decoded mode, {len(bench.few)} pictures. Latent error: |E(T x) - T E(x)| / |E(T x) - channel means|. "
            f"PSNR lost: of D(E(T x)) minus of D(T E(x)), each to T x. Half size is the mean of 2 x 2 pixels, or "
            f"latents."
        ),
        figures=(
            *_charts({name: found[name] for name in names}),
            Pictures(
                title="Transformed pictures, and decoded transformed latents",
                images=[shown(x) for x in seen],
                captions=[text for name in names[:3] for text in (name, "of latents")],
                columns=6,
            ),
        ),
    )


def _charts(found: dict[str, _Errors]) -> tuple[Bars, Bars]:
    return (
        Bars(
            title="Error of transformed latents (0: as pictures; 1: as their mean)",
            labels=list(found),
            series={"latent error": array(torch.tensor([e.relative for e in found.values()]))},
            x_label="transform",
            y_label="relative error",
        ),
        Bars(
            title="PSNR lost by transforming latents instead of pictures",
            labels=list(found),
            series={"PSNR lost": array(torch.tensor([e.lost for e in found.values()]))},
            x_label="transform",
            y_label="dB",
        ),
    )


# --- shifts ---


def shifts(bench: Bench) -> Finding:
    """Moving the picture under the encoder, by whole latents and by parts of one.

    Windows of one picture, 0 to f pixels apart, are encoded, so that what moves in is real: nothing is wrapped round
    or padded. Only the middle half of the latents is compared, since the borders do see something else.
    """
    factor = bench.vae.factor
    distances = sorted({1, factor // 4, factor // 2, 3 * factor // 4, factor - 1, factor} - {0})
    found = {k: _Errors() for k in distances}
    for sample in bench.over(bench.few):
        window = bench.side - factor
        first = bench.mode(_window(sample.pixels, 0, window))
        edge = first.shape[-1] // 4
        for k in distances:
            x = _window(sample.pixels, k, window)
            encoded = bench.mode(x)
            z = shifted(first, k / factor)
            found[k].add(_inner(z, edge), _inner(encoded, edge), bench.mean)
            for latents, into in ((encoded, found[k].encoded), (z, found[k].moved)):
                decoded = bench.decode(latents)
                into.append(psnr(_inner(decoded, edge * factor), _inner(x, edge * factor)))
    whole = found[factor]
    half = found[min(distances, key=lambda k: abs(k - factor / 2))]
    parts = [errors.relative for k, errors in found.items() if k != factor]
    verdict = (
        "so pictures may be moved in steps of whole latents only"
        if parts and max(parts) > 3 * whole.relative + 0.05
        else "so latents move with the picture"
    )
    return Finding(
        key="shifts",
        title="Moving latents",
        numbers=(
            *whole.numbers(f"{factor} pixels (one latent)"),
            *half.numbers("half a latent"),
            Number(name="latent error by distance", value=tuple(e.relative for e in found.values())),
            Number(name="PSNR lost by distance", value=tuple(e.lost for e in found.values()), unit="dB"),
            Number(name="distances", value=tuple(float(k) for k in distances), unit="pixels"),
        ),
        sentence=(
            f"Moved by one whole latent ({factor} pixels) latents are {said(whole.relative)} off (0: as pictures; 1: "
            f"as their mean), by half of one {said(half.relative)}, {verdict}; decoding moved latents costs "
            f"{said(whole.lost, 'dB')} and {said(half.lost, 'dB')}."
        ),
        method=(
            f"Windows of {len(bench.few)} pictures, 0 to {factor} pixels apart down and right; latents of the first "
            f"are moved by cubic convolution (Keys 1981), which is exact for whole latents. Latent error: "
            f"|E(T x) - T E(x)| / |E(T x) - channel means|; PSNR lost: of D(E(T x)) minus of D(T E(x)), each to T x; "
            f"both of the middle half."
        ),
        figures=(
            Lines(
                title="Error of moved latents",
                x=array(torch.tensor(distances)),
                series={"latent error": array(torch.tensor([e.relative for e in found.values()]))},
                x_label="pixels",
                y_label="relative error",
            ),
            Lines(
                title="PSNR lost by moving latents instead of pictures",
                x=array(torch.tensor(distances)),
                series={"PSNR lost": array(torch.tensor([e.lost for e in found.values()]))},
                x_label="pixels",
                y_label="dB",
            ),
        ),
    )


def shifted(z: Tensor, by: float) -> Tensor:
    """Latents [C, h, w], `by` (0 to 1) further down and right: value j is that at j + by. The last is repeated.

    By cubic convolution with a = -1/2: Keys, IEEE TASSP 29(6), 1981, equation 15.
    """
    t = by
    weights = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1.0 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2.0 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    for axis in (-2, -1):
        n = z.shape[axis]
        places = torch.arange(n)
        z = sum(
            (weight * z.index_select(axis, (places + i - 1).clamp(0, n - 1)) for i, weight in enumerate(weights)),
            start=torch.zeros_like(z),
        )
    return z


def _window(pixels: Tensor, offset: int, side: int) -> Tensor:
    return pixels[:, offset : offset + side, offset : offset + side].contiguous()


def _inner(x: Tensor, edge: int) -> Tensor:
    return x[:, edge : x.shape[1] - edge, edge : x.shape[2] - edge]
