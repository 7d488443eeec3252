"""The end of a run: weights that say how they were made, in the layouts people load, and a card."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calotype import __version__
from calotype.evaluate.metrics import psnr, ssim
from calotype.families import CONFIGS, family_of
from calotype.families.network import Network
from calotype.files import write_text
from calotype.latents import LatentFormat, PerChannel, ScaleShift
from calotype.pixels import to_uint8
from calotype.tensor_files import write_safetensors
from calotype.train.crops import centre_crop
from calotype.train.family import Autoencoder
from calotype.train.loop import Trainer
from calotype.train.recipe import Recipe
from calotype.weights.load import TRAINING
from calotype.weights.save import save_weights

Array = NDArray[np.uint8]

SNIPPET = ["```python", "import calotype", "", 'vae = calotype.load("weights.safetensors")', "```", ""]


@dataclass(frozen=True)
class Statistics:
    """Of latents (mode) over pictures, in float64.

    Attributes:
        mean, std: of each channel.
        noise: mean standard deviation of the posterior.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    noise: float


@torch.no_grad()
def latent_statistics(network: Autoencoder, pictures: Iterable[Array]) -> Statistics:
    """Measures latents over the middles of pictures, each at most 256 pixels a side."""
    device = next(network.parameters()).device
    count = pictures_seen = 0
    total = squares = torch.zeros((), dtype=torch.float64)
    noise = 0.0
    for picture in pictures:
        posterior = network.encode(centre_crop(picture, network.config.factor).to(device))
        z = posterior.mode().double().cpu()
        count += z.shape[2] * z.shape[3]
        pictures_seen += 1
        total = total + z.sum((0, 2, 3))
        squares = squares + z.square().sum((0, 2, 3))
        noise += posterior.std.double().mean().item()
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    std = variance.sqrt()
    std = torch.where(std > 1e-6, std, 1.0)  # a channel that never varies needs no scale
    return Statistics(tuple(mean.tolist()), tuple(std.tolist()), noise / max(1, pictures_seen))


@torch.no_grad()
def validate(network: Autoencoder, pictures: Iterable[Array], perceptual: nn.Module | None = None) -> dict[str, float]:
    """Means over the middles of pictures (mode, uint8): psnr in dB, ssim, and lpips where its network is given."""
    device = next(network.parameters()).device
    found: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for picture in pictures:
        x = centre_crop(picture, network.config.factor).to(device)
        y = network.decode(network.encode(x).mode()).float()
        before, after = to_uint8(x[0].cpu()), to_uint8(y[0].cpu())
        found["psnr"].append(psnr(after, before))
        if min(before.shape[1:]) >= 11:  # SSIM's window
            found["ssim"].append(ssim(after, before))
        if perceptual is not None and min(x.shape[2:]) >= 32:
            found.setdefault("lpips", []).append(float(perceptual(x, y.clamp(-1, 1))))
    return {key: sum(values) / len(values) for key, values in found.items() if values}


@contextmanager
def stored(trainer: Trainer) -> Iterator[Autoencoder]:
    """The network with averaged weights as they will be stored, so that what is measured is what is stored."""
    dtype = getattr(torch, trainer.recipe.export_dtype)
    with trainer.averaged() as network:
        with torch.no_grad():
            for p in network.parameters():
                p.copy_(p.to(dtype))
        yield network


def export(
    trainer: Trainer,
    network: Autoencoder,
    pictures: Iterable[Array],
    held_out: Iterable[Array],
    out: Path,
    *,
    count: int,
    perceptual: nn.Module | None,
) -> Path:
    """Writes OUT/weights.safetensors (averaged weights, LDM keys, the recipe and figures in its header) and a card.

    An AutoencoderKL is also written to OUT/diffusers, with one scale and shift of all channels.

    Args:
        network: as `stored` gives it. Its latent format is that of a frozen encoder or of a teacher, if there is one
            and it is known, and else what is measured.
        pictures: of the training set, for statistics of the latents; `count` of them.
        held_out: that quality is measured on.
    """
    recipe = trainer.recipe
    path = out / "weights.safetensors"
    statistics = latent_statistics(network, pictures)
    shown = 0

    def counted() -> Iterator[Array]:
        nonlocal shown
        for picture in held_out:
            shown += 1
            yield picture

    quality = validate(network, counted(), perceptual)
    facts: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "changes": trainer.history,
        **({"start": trainer.helpers.before} if trainer.helpers.before else {}),
        "steps": trainer.step,
        "pictures": count,
        "held_out": shown,
        **{f"held_out_{key}": value for key, value in quality.items()},
        "posterior_std": statistics.noise,
        "calotype": __version__,
        "torch": torch.__version__,
    }
    header = {f"{TRAINING}{key}": json.dumps(value) for key, value in facts.items()}
    config, dtype = network.config, getattr(torch, recipe.export_dtype)
    channels = len(statistics.mean)
    if isinstance(network, Network):
        measured = PerChannel(name=recipe.name, channels=channels, mean=statistics.mean, std=statistics.std)
        format_ = trainer.helpers.format or measured
        save_weights(network, path, layout="ldm", format_=format_, dtype=dtype, metadata=header)
        if (diffusers := family_of(network.config).diffusers) and diffusers.written:
            one = with_one_scale(format_)
            save_weights(network, out / "diffusers", layout=diffusers.layout, format_=one, dtype=dtype, metadata=header)
    else:
        state: dict[str, Tensor] = network.state_dict()
        tensors = {key: value.to("cpu", dtype) for key, value in state.items()}
        write_safetensors(path, tensors, {"calotype_config": json.dumps(config.to_dict()), **header})
    write_text(out / "README.md", card(trainer, statistics, quality, count, shown))
    return path


def _scale(known: LatentFormat | None, statistics: Statistics, recipe: Recipe) -> list[str]:
    noise = f"The posterior's mean std is {statistics.noise:.4g}."
    measured = PerChannel(name=recipe.name, channels=len(statistics.mean), mean=statistics.mean, std=statistics.std)
    one = with_one_scale(known or measured)
    if not isinstance(one, ScaleShift):
        return [f"Their format is {one.name}, as before. {noise}"]
    before = f" The format is {known.name}, as before." if known else ""
    return [
        f"One scale for all channels: scaling_factor {one.scaling_factor:.5f}, shift_factor {one.shift_factor:.5f} "
        f"(model latents = (raw - shift_factor) x scaling_factor).{before} {noise} Measured here, channel by channel:"
    ]


def with_one_scale(format_: LatentFormat) -> LatentFormat:
    """A format of means and stds by channel as one of a single scale and shift, those of all numbers together."""
    if not isinstance(format_, PerChannel):
        return format_
    n = format_.channels
    shift = sum(format_.mean) / n
    square = sum(mean**2 + std**2 for mean, std in zip(format_.mean, format_.std, strict=True)) / n
    scale = format_.scaling_factor / math.sqrt(max(square - shift**2, 1e-12))
    return ScaleShift(name=format_.name, channels=n, scaling_factor=scale, shift_factor=shift)


def card(trainer: Trainer, statistics: Statistics, quality: dict[str, float], count: int, held_out: int) -> str:
    """A model card in Markdown."""
    recipe = trainer.recipe
    config = recipe.network.to_dict()
    kind = config.pop("kind")
    numbers = sum(p.numel() for p in trainer.network.parameters())
    loads = recipe.network.kind in CONFIGS
    lines = [
        f"# {recipe.name}",
        "",
        f"An autoencoder ({kind}, {numbers / 1e6:.2f} M parameters, f{recipe.network.factor}, "
        f"{recipe.network.z_channels} latent channels), trained with calotype {__version__} for {trainer.step:,} steps "
        f"on {count:,} pictures.",
        "",
        *(SNIPPET if loads else []),
        "## Measured",
        "",
    ]
    if quality:
        names = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": f"LPIPS ({recipe.perceptual_net})"}
        lines += [
            f"Means over the middles (at most 256 x 256 pixels) of {held_out:,} held-out "
            f"{'picture' if held_out == 1 else 'pictures'}; mode of the posterior, uint8.",
            "",
            "| " + " | ".join(names[key] for key in quality) + " |",
            "|" + "---|" * len(quality),
            "| " + " | ".join(f"{value:.4g}" for value in quality.values()) + " |",
        ]
    else:
        lines.append("No picture was held out, so nothing was measured.")
    lines += [
        "",
        "## Latents",
        "",
        *_scale(trainer.helpers.format, statistics, recipe),
        "",
        "| channel | mean | std |",
        "|---|---|---|",
        *(
            f"| {i} | {mean:.5f} | {std:.5f} |"
            for i, (mean, std) in enumerate(zip(statistics.mean, statistics.std, strict=True))
        ),
        "",
        "## Network",
        "",
        *(f"- {key}: {value}" for key, value in config.items()),
        "",
        "## Recipe",
        "",
        "```json",
        json.dumps(recipe.to_dict(), indent=2),
        "```",
    ]
    if trainer.history:
        lines += ["", "Changed on the way:", "", "```json", json.dumps(trainer.history, indent=2), "```"]
    return "\n".join(lines) + "\n"
