"""The figures of the page: PNG, readable at the width of a page, in colours that colour-blind people tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from calotype.files import atomic_path
from family_page.claims import LEAST, SWEEP, Results, short
from family_page.models import SIDE, Array, resized

DPI = 110
WIDTH = 830  # pixels of a chart
GAP = 4  # pixels between pictures
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#777777"  # Okabe and Ito's

Row = tuple[str, Array]

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def save(figure: Figure, path: Path) -> None:
    """As a PNG of at most 256 colours where that is enough."""
    file = BytesIO()
    figure.savefig(file, dpi=DPI, format="png", facecolor="white")
    image = Image.open(file).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        if len(image.getcolors(2**24) or ()) <= 4096:  # a chart: pictures have more
            image = image.quantize(64, dither=Image.Dither.NONE)
        image.save(temporary, "PNG", optimize=True)


def panel(path: Path, rows: Sequence[Row], *, columns: Sequence[str] = (), scale: int = 2, labels: int = 150) -> None:
    """Pictures in rows, each with its name on the left.

    Args:
        columns: titles above.
        scale: screen pixels for a pixel.
        labels: screen pixels for the names.
    """
    size = SIDE * scale
    count = max(len(pictures) for _, pictures in rows)
    top = 8 + 16 * max((name.count("\n") + 1 for name in columns), default=0)
    width, height = labels + count * (size + GAP), top + len(rows) * (size + GAP)
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    for i, (_, pictures) in enumerate(rows):
        for j, one in enumerate(pictures):
            y, x = top + i * (size + GAP), labels + j * (size + GAP)
            canvas[y : y + size, x : x + size] = resized(one, size)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width / DPI, height / DPI))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
        axes.set_axis_off()
        for i, (name, _) in enumerate(rows):
            axes.text(labels - 10, top + i * (size + GAP) + size / 2, name, ha="right", va="center")
        for j, name in enumerate(columns):
            axes.text(labels + j * (size + GAP) + size / 2, top - 4, name, ha="center", va="bottom")
        save(figure, path)


def _charts(height: int, ratios: Sequence[float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), layout="constrained")
    return figure, list(figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0])


def rate(path: Path, results: Results) -> None:
    """Rate against distortion, one point a KL weight."""
    found, models = results["posterior"], results["models"]
    with mpl.rc_context(STYLE):
        figure, (axes,) = _charts(400, [1])
        names = SWEEP[1:]
        x = [found[name]["nats"] for name in names]
        for key, colour, marker, title in (
            ("mode", BLUE, "o", "mode"),
            ("sample", ORANGE, "s", "sample"),
        ):
            axes.plot(x, [found[name][key] for name in names], marker=marker, color=colour, label=title)
        for name, nats in zip(names, x, strict=True):
            axes.annotate(
                short(models[name]["kl_weight"]),
                (nats, min(found[name]["sample"], found[name]["mode"])),
                xytext=(5, -13) if nats < max(x) else (-5, 8),
                textcoords="offset points",
            )
        none = found["vae-0"]["mode"]
        axes.axhline(none, color=GREY, linestyle=":")
        axes.text(0.02, none, " no KL term, mode", transform=axes.get_yaxis_transform(), va="bottom", color=GREY)
        axes.set_xlabel("rate: KL to the prior, nats per pixel (numbers at the points: KL weight)")
        axes.set_ylabel("PSNR of held-out pictures, dB")
        axes.margins(x=0.08, y=0.12)
        axes.legend(loc="lower right")
        save(figure, path)


def residual(path: Path, results: Results) -> None:
    """Gradients by depth, and losses."""
    with mpl.rc_context(STYLE):
        figure, (left, right) = _charts(400, [3, 2])
        for name, colour, title in (("deep-plain", ORANGE, "without"), ("deep-residual", BLUE, "with")):
            model = results["models"][name]
            for key, line, when in (("first", "-", "first step"), ("last", "--", "last step")):
                norms = np.maximum(model["gradients"][key], LEAST)
                left.semilogy(range(1, len(norms) + 1), norms, line, color=colour, label=f"{title}, {when}")
            steps, losses = zip(*model["curve"], strict=True)
            right.plot(steps, losses, color=colour, label=title)
        layers = len(results["models"]["deep-plain"]["gradients"]["first"])
        left.axvline(results["deep_encoder_layers"] + 0.5, color=GREY, linewidth=0.8)
        left.text(
            results["deep_encoder_layers"],
            1.0,
            "encoder ",
            transform=left.get_xaxis_transform(),
            ha="right",
            va="bottom",
            color=GREY,
        )
        left.text(
            results["deep_encoder_layers"] + 1,
            1.0,
            " decoder",
            transform=left.get_xaxis_transform(),
            va="bottom",
            color=GREY,
        )
        left.set_xlim(1, layers)
        left.set_xlabel("layer, from the picture to its reconstruction")
        left.set_ylabel("norm of the weights' gradient")
        left.legend(loc="lower left", bbox_to_anchor=(0.02, 0.06), title="residual connections")
        right.axhline(results["mean_loss"], color=GREY, linestyle="--", linewidth=0.8)
        right.set_ylim(0, 1.4 * results["mean_loss"])
        right.set_xlabel("training step")
        right.set_ylabel("mean squared error (pixels in [-1, 1])")
        right.legend(title="residual connections")
        save(figure, path)  # fmt: skip


def without_kl(path: Path, noise: dict[str, NDArray[np.float32]], latents: dict[str, NDArray[np.float32]]) -> None:
    """Histograms by the model's title: of the posterior's std, and of latents."""
    colours = (ORANGE, PURPLE, BLUE)
    with mpl.rc_context(STYLE):
        figure, (left, right) = _charts(340, [1, 1])
        low = min(float(np.quantile(values, 0.001)) for values in noise.values())
        bins = np.geomspace(max(low, 1e-5) / 1.5, 2, 60)
        for colour, (title, values) in zip(colours, noise.items(), strict=True):
            left.hist(values, list(bins), histtype="stepfilled", color=colour, alpha=0.45, label=title)
        left.set_ylim(0, 1.35 * left.get_ylim()[1])  # room for the legend
        left.axvline(1, color=GREY, linestyle=":")
        left.set_xscale("log")
        left.set_xlabel("standard deviation of the posterior")
        left.set_ylabel("latent numbers of held-out pictures")
        left.legend()
        widest = max(float(np.quantile(np.abs(values), 0.995)) for values in latents.values())
        edges = np.linspace(-widest, widest, 121)
        for colour, (title, values) in zip(colours, latents.items(), strict=True):
            right.hist(values, list(edges), density=True, histtype="step", color=colour, label=title, linewidth=1.4)
        x = np.linspace(-widest, widest, 600)
        right.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color="black", label="N(0, 1)", linewidth=1)
        right.set_yscale("log")
        right.set_ylim(1e-4, None)
        right.set_xlabel("latents (mode of the posterior)")
        right.set_ylabel("density")
        right.legend()
        save(figure, path)
