"""From one picture to another, in latents; and one picture there and back, again and again."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from calotype.evaluate.figures import Lines, Pictures
from calotype.evaluate.probe.bench import Bench, array, psnr, rmse, shown
from calotype.evaluate.probe.finding import Finding, LeftOut, Number, gap, mean, said

PAIRS = 4
FRAMES = 9  # both ends included
CYCLES = 20
DRIFTING = 4  # pictures
KINDS = ("lerp", "slerp", "cross-fade")


def interpolation(bench: Bench) -> Finding:
    """How evenly pictures change along straight and round ways between latents, against a cross-fade of pixels."""
    if len(bench.few) < 2:
        raise LeftOut("a way needs two pictures")
    ends = [(i, i + 1) for i in range(min(PAIRS, len(bench.few) - 1))]
    steps: dict[str, dict[str, list[list[float]]]] = {key: {kind: [] for kind in KINDS} for key in bench.measures}
    whole: dict[str, list[float]] = {key: [] for key in bench.measures}
    middles: list[float] = []
    seen: list[Tensor] = []
    for a, b in bench.over(ends):
        # as a diffusion model sees them; slerp turns around the origin, so it has to lie in the middle
        first, last = ((bench.latents[i] - bench.mean) / bench.std for i in (a, b))
        before, after = bench.reconstructions[a], bench.reconstructions[b]
        ways: dict[str, list[Tensor]] = {kind: [before] for kind in KINDS}
        for t in torch.linspace(0, 1, FRAMES).tolist()[1:-1]:
            for kind, z in (("lerp", torch.lerp(first, last, t)), ("slerp", slerp(first, last, t))):
                ways[kind].append(bench.decode(z * bench.std + bench.mean))
            ways["cross-fade"].append(torch.lerp(before, after, t))
        for kind, frames in ways.items():
            frames.append(after)
            found = [bench.distances(x, y) for x, y in pairwise(frames)]
            for key in bench.measures:
                steps[key][kind].append([one[key] for one in found])
        for key, distance in bench.distances(before, after).items():
            whole[key].append(distance)
        middles.append(rmse(ways["lerp"][FRAMES // 2], ways["cross-fade"][FRAMES // 2]))
        if not seen:
            seen = [x for kind in KINDS for x in ways[kind][::2]]
    numbers = []
    for key, name in bench.measures.items():
        for kind in KINDS:
            ways_ = steps[key][kind]
            numbers += [
                Number(name=f"largest over mean step, {kind}, {name}", value=mean([_uneven(way) for way in ways_])),
                Number(
                    name=f"way over distance of the ends, {kind}, {name}",
                    value=mean([sum(way) / d if d else 1.0 for way, d in zip(ways_, whole[key], strict=True)]),
                ),
            ]
    numbers.append(Number(name="middle of lerp to middle of cross-fade, RMSE", value=mean(middles), unit="levels"))
    used = list(bench.measures)[-1]  # LPIPS where there is one
    apart = mean(middles)
    jumps = {kind: mean([_uneven(way) for way in steps[used][kind]]) for kind in KINDS}
    even = (
        "about as evenly as a cross-fade"
        if jumps["lerp"] < 1.25 * jumps["cross-fade"]
        else "less evenly than a cross-fade, but without a jump"
        if jumps["lerp"] < 2 * jumps["cross-fade"]
        else "in jumps"
    )
    return Finding(
        key="interpolation",
        title="Between two pictures",
        numbers=tuple(numbers),
        sentence=(
            f"On the straight way between two pictures' latents the largest of {FRAMES - 1} steps is "
            f"{said(jumps['lerp'])} times the mean ({said(jumps['slerp'])} by slerp, {said(jumps['cross-fade'])} in a "
            f"cross-fade; {bench.measures[used]}): the picture changes {even}; its middle is "
            f"{said(apart, 'levels')} (RMSE) from the cross-fade's."
        ),
        method=(
            f"{len(ends)} pairs of pictures; latents standardised by channel, linear and spherical interpolation "
            f"(Shoemake 1985) in equal steps; the cross-fade is of the two reconstructions."
        ),
        figures=(
            *(
                Lines(
                    title=f"Steps from frame to frame, {name}, mean over pairs",
                    x=array(torch.arange(1, FRAMES)),
                    series={kind: array(torch.tensor(steps[key][kind]).mean(0)) for kind in KINDS},
                    x_label="step",
                    y_label=name,
                )
                for key, name in bench.measures.items()
            ),
            Pictures(
                title="From one picture to another",
                images=[shown(x) for x in seen],
                captions=[f"{kind} {i}/{FRAMES - 1}" for kind in KINDS for i in range(0, FRAMES, 2)],
                columns=FRAMES // 2 + 1,
            ),
        ),
    )


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation (Shoemake, SIGGRAPH 1985, section 3.3), with a and b each taken as one vector.

    Where they point the same or opposite ways, which leaves no arc or no single one, it is linear.
    """
    x, y = a.double().flatten(), b.double().flatten()
    lengths = float(x.norm() * y.norm())
    cosine = float(x @ y) / lengths if lengths else 1.0
    if abs(cosine) > 1.0 - 1e-9:
        return torch.lerp(a, b, t)
    angle = torch.tensor(cosine, dtype=torch.float64).acos()
    mixed = (x * ((1 - t) * angle).sin() + y * (t * angle).sin()) / angle.sin()
    return mixed.to(a.dtype).view_as(a)


def _uneven(steps: list[float]) -> float:
    middle = sum(steps) / len(steps)
    return max(steps) / middle if middle else 1.0


def drift(bench: Bench) -> Finding:
    """What is left of pictures that are encoded and decoded again and again."""
    to_first: list[list[float]] = []
    to_before: list[list[float]] = []
    seen: list[Tensor] = []
    for sample in bench.over(bench.few[:DRIFTING]):
        now = sample.pixels
        first, before = [], []
        stages = [now]
        for cycle in range(1, CYCLES + 1):
            after = bench.decode(bench.mode(now))
            first.append(psnr(after, sample.pixels))
            before.append(psnr(after, now))
            now = after
            if cycle in (1, 5, CYCLES):
                stages.append(now)
        to_first.append(first)
        to_before.append(before)
        seen = seen or stages
    original = [mean(list(column)) for column in zip(*to_first, strict=True)]
    previous = [mean(list(column)) for column in zip(*to_before, strict=True)]
    lost = gap(original[0], original[-1])
    falling = gap(original[-2], original[-1])
    ending = (
        "so it hardly drifts"
        if lost < 1
        else f"and the last alone took {said(falling, 'dB')}: it still drifts"
        if falling > 0.05
        else "and it has come to rest"
    )
    return Finding(
        key="drift",
        title="There and back again",
        numbers=(
            Number(name="PSNR to the original after 1 cycle", value=original[0], unit="dB"),
            Number(name=f"PSNR to the original after {CYCLES} cycles", value=original[-1], unit="dB"),
            Number(name="lost", value=lost, unit="dB"),
            Number(name="PSNR to the original by cycle", value=tuple(original), unit="dB"),
            Number(name="PSNR to the cycle before", value=tuple(previous), unit="dB"),
        ),
        sentence=(
            f"After one cycle a picture has {said(original[0], 'dB')}, after {CYCLES} it has "
            f"{said(original[-1], 'dB')}, {ending}."
        ),
        method=(
            f"{len(to_first)} pictures, decoded mode; what is decoded is encoded again as it is, not rounded to 8 "
            f"bits; mean PSNR over pictures."
        ),
        figures=(
            Lines(
                title="PSNR by cycle",
                x=array(torch.arange(1, CYCLES + 1)),
                series={
                    "to the original": array(torch.tensor(original)),
                    "to the cycle before": array(torch.tensor(previous)),
                },
                x_label="cycles of encoding and decoding",
                y_label="PSNR (dB)",
            ),
            Pictures(
                title="A picture after some cycles",
                images=[shown(x) for x in seen],
                captions=["original", "1 cycle", "5 cycles", f"{CYCLES} cycles"],
                columns=4,
            ),
        ),
    )
