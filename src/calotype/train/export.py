"""The end of a run: weights that say how they were made, in the layouts people load, and a card."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calotype import __version__
from calotype.evaluate.metrics import psnr, ssim
from calotype.families import CONFIGS, family_of
from calotype.families.face import Diffusers, DiffusersClass, NetworkConfig
from calotype.families.network import Network
from calotype.files import write_text
from calotype.latents import LatentFormat, PerChannel, ScaleShift
from calotype.pixels import seen, to_uint8
from calotype.tensor_files import write_safetensors
from calotype.train.configs import Trainable
from calotype.train.crops import centre_crop
from calotype.train.family import Autoencoder
from calotype.train.loop import Trainer
from calotype.train.model import triples
from calotype.train.recipe import Recipe
from calotype.weights.formats import can_mean
from calotype.weights.load import TRAINING
from calotype.weights.save import in_dtype, save_tensors

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
    """Means over the middles of pictures (mode, uint8): psnr in dB, ssim, and lpips where its network is given.

    RGBA is measured as it looks over white and over black.
    """
    device = next(network.parameters()).device
    found: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for picture in pictures:
        x = centre_crop(picture, network.config.factor).to(device)
        y = network.decode(network.encode(x).mode()).float()
        before, after = (seen(to_uint8(one[0].cpu())) for one in (x, y))
        found["psnr"].append(psnr(after, before))
        if min(before.shape[1:]) >= 11:  # SSIM's window
            found["ssim"].append(ssim(after, before))
        if perceptual is not None and min(x.shape[2:]) >= 32:
            found.setdefault("lpips", []).append(float(perceptual(triples(x), triples(y.clamp(-1, 1))).mean()))
    return {key: sum(values) / len(values) for key, values in found.items() if values}


@contextmanager
def stored(trainer: Trainer) -> Iterator[Autoencoder]:
    """The network with averaged weights as they will be stored, so that what is measured is what is stored.

    What was not trained stays as it was.
    """
    dtype = getattr(torch, trainer.recipe.export_dtype)
    trained = _trained(trainer)
    with trainer.averaged() as network:
        with torch.no_grad():
            for name, p in network.named_parameters():
                if name in trained:
                    p.copy_(p.to(dtype))
        yield network


def _trained(trainer: Trainer) -> set[str]:
    """Names of the parameters that are trained."""
    return {name for name, p in trainer.network.named_parameters() if p.requires_grad}


def _written(trainer: Trainer, network: Autoencoder, path: Path) -> dict[str, Tensor]:
    """The network's tensors as they are written: what was trained in the recipe's type, what was not as it came.

    Raises:
        WeightsError: if a number is too large for the type.
    """
    state, dtype = network.state_dict(), getattr(torch, trainer.recipe.export_dtype)
    origin, trained = trainer.helpers.origin, _trained(trainer)
    kept = {key: value for key, value in origin.tensors.items() if key not in trained} if origin else {}
    ours = {key: value for key, value in state.items() if key not in kept}
    return {**in_dtype(ours, dtype, path), **in_dtype(kept, None, path)}


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
    """Writes OUT/weights.safetensors (averaged weights, original keys, recipe and figures in its header) and a card.

    What diffusers has a class for is also written to OUT/diffusers, and what came as Keras's files to OUT/keras. What
    was begun from a video's VAE with all of its tensors is written as one: its other tensors, and other slices of its
    kernels, are those that it came with.

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
    tensors, channels = _written(trainer, network, path), len(statistics.mean)
    if isinstance(network, Network):
        measured = PerChannel(name=recipe.name, channels=channels, mean=statistics.mean, std=statistics.std)
        _save(trainer, network.config, tensors, trainer.helpers.format or measured, out, header)
    else:
        write_safetensors(path, tensors, {"calotype_config": json.dumps(network.config.to_dict()), **header})
    write_text(out / "README.md", card(trainer, statistics, quality, count, shown))
    return path


def _save(
    trainer: Trainer,
    config: NetworkConfig,
    tensors: dict[str, Tensor],
    format_: LatentFormat,
    out: Path,
    header: dict[str, str],
) -> None:
    """Writes a network in all layouts that people load it from, that it came in among them."""
    origin, diffusers = trainer.helpers.origin, family_of(config).diffusers
    whole = origin.whole if origin else {}
    save = partial(
        save_tensors, tensors, config, metadata=header, kept=origin.loaded.kept if origin else None, whole=whole
    )
    save(out / "weights.safetensors", layout="ldm", format_=format_)
    if diffusers is not None and diffusers.written:
        said = origin.loaded.said if origin else {}
        told = as_told(format_, diffusers, said or (origin.loaded.kept if origin else {}))
        save(out / "diffusers", layout="diffusers" if whole else diffusers.layout, format_=told, said=said)
    if origin and origin.loaded.layout == "keras":
        save(out / "keras", layout="keras", format_=format_)


def as_told(format_: LatentFormat, diffusers: Diffusers, said: Mapping[str, Any]) -> LatentFormat:
    """A latent format as a config.json of diffusers can say it, and its pipelines read it.

    Args:
        said: by a config.json that the weights came with, of which nothing need change if it says the same.
    """
    class_ = diffusers.classes.get(said.get("_class_name", ""), _usual(diffusers))
    if said and can_mean(said, format_):
        return format_
    if class_.kept is None or "scaling_factor" in class_.kept:
        one = with_one_scale(format_)
        shifts = class_.kept is None or "shift_factor" in class_.kept
        return one if shifts or not isinstance(one, ScaleShift) else replace(one, shift_factor=0.0)
    if isinstance(format_, ScaleShift):
        n, std = format_.channels, 1.0 / format_.scaling_factor
        return PerChannel(name=format_.name, channels=n, mean=(format_.shift_factor,) * n, std=(std,) * n)
    return format_


def _scale(known: LatentFormat | None, statistics: Statistics, recipe: Recipe) -> list[str]:
    noise = f"The posterior's mean std is {statistics.noise:.4g}."
    measured = PerChannel(name=recipe.name, channels=len(statistics.mean), mean=statistics.mean, std=statistics.std)
    before = f" The format is {known.name}, as before." if known else ""
    if isinstance(known or measured, PerChannel) and _by_channel(recipe.network):
        return [f"Model latents = (raw - mean) / std, channel by channel.{before} {noise} Measured here:"]
    one = with_one_scale(known or measured)
    if not isinstance(one, ScaleShift):
        return [f"Their format is {one.name}, as before. {noise}"]
    return [
        f"One scale for all channels: scaling_factor {one.scaling_factor:.5f}, shift_factor {one.shift_factor:.5f} "
        f"(model latents = (raw - shift_factor) x scaling_factor).{before} {noise} Measured here, channel by channel:"
    ]


def _by_channel(config: Trainable) -> bool:
    """Whether pipelines of diffusers know no other way to normalise latents."""
    diffusers = family_of(config).diffusers if config.kind in CONFIGS else None  # type: ignore[arg-type]
    return diffusers is not None and "scaling_factor" not in (_usual(diffusers).kept or ("scaling_factor",))


def _usual(diffusers: Diffusers) -> DiffusersClass:
    return next(iter(diffusers.classes.values()))


def with_one_scale(format_: LatentFormat) -> LatentFormat:
    """A format of means and stds by channel as one of a single scale and shift, those of all numbers together."""
    if not isinstance(format_, PerChannel):
        return format_
    n = format_.channels
    shift = sum(format_.mean) / n
    square = sum(mean**2 + std**2 for mean, std in zip(format_.mean, format_.std, strict=True)) / n
    scale = format_.scaling_factor / math.sqrt(max(square - shift**2, 1e-12))
    return ScaleShift(name=format_.name, channels=n, scaling_factor=scale, shift_factor=shift)


def _begun(trainer: Trainer) -> list[str]:
    """What of it is as it was before, and what videos are not to expect."""
    start, origin = trainer.recipe.start, trainer.helpers.origin
    if start is None or origin is None:
        return []
    other = {"decoder": "encoder", "encoder": "decoder"}.get(start.train)
    kept = f" Its {other} is as it was there, bit for bit." if other else ""
    videos = (
        " It was trained on single pictures: what of a video's frames acts on those after them is as it was, so "
        "videos may not come out well."
        if origin.whole
        else ""
    )
    return [f"It began from {start.weights} (tensors' sha256 {origin.loaded.sha256[:12]}...).{kept}{videos}", ""]


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
        *_begun(trainer),
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
