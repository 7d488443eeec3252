"""The models of the page, and their training by the package's own loop. Finished ones are kept and found again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from calotype.families.kl.config import AutoencoderConfig
from calotype.files import atomic_path
from calotype.posterior import Point
from calotype.train.configs import ConvConfig, DenseConfig
from calotype.train.crops import Batch, Crops, Picked, gather, load
from calotype.train.family import Autoencoder, make_autoencoder
from calotype.train.loop import Trainer, run
from calotype.train.recipe import Recipe, Source
from calotype.train.run import Options, launch

Array = NDArray[np.uint8]

SIDE = 32  # of all pictures, in pixels
NUMBERS = 192  # in the latents of every model: 1 x 192, or 12 channels of 4 x 4
HOLD_OUT = 20
BATCH = 16
QUICK = 3  # steps, to see whether it works

CONV = ConvConfig(ch=16, ch_mult=(1, 2, 4, 8), z_channels=12, residual=True)
DEEP = ConvConfig(ch=16, ch_mult=(1, 2, 4, 8), num_blocks=2, z_channels=12)
KL_F8 = AutoencoderConfig(ch=16, ch_mult=(1, 2, 4, 4), num_res_blocks=1, z_channels=12, norm_groups=8)

KL_WEIGHTS = {"vae-1e-6": 1e-6, "vae-1e-3": 1e-3, "vae-1e-2": 1e-2, "vae": 5e-2, "vae-2e-1": 0.2, "vae-1": 1.0}


def recipe(name: str, network: Any, *, steps: int, **changes: Any) -> Recipe:
    """What all models have in common, with what is particular to one."""
    common = Recipe(
        name=name,
        network=network,
        sources=(Source(path="pictures", hold_out=HOLD_OUT),),
        crop=SIDE,
        rule="centre",
        batch=BATCH,
        steps=steps,
        reconstruction="l2",
        kl_weight=0.0,
        optimiser="muon",
        learning_rate=2e-3,
        warmup=min(50, steps),
        cooldown=steps // 2,
        quiet=False,  # so that noise is what was learnt, not where it began
        ema_decay=0.98,
        channels_last=True,
        log_every=max(1, steps // 50),
        checkpoint_every=steps,
    )
    return replace(common, **changes)


def recipes(quick: bool) -> dict[str, Recipe]:
    """Every model by its name, in the order they are trained in.

    Args:
        quick: a few steps each, and narrow networks.
    """
    conv, deep, kl_f8 = CONV, DEEP, KL_F8
    if quick:
        conv, deep = replace(conv, ch=4), replace(deep, ch=4)
        kl_f8 = replace(kl_f8, ch=8)

    def steps(n: int) -> int:
        return QUICK if quick else n

    of_dense: dict[str, Any] = {"batch": 128, "optimiser": "adamw", "weight_decay": 0.0}
    of_conv = steps(800)
    # Muon's steps are as large whatever the gradient, so it would hide what this is about
    of_deep: dict[str, Any] = {"steps": steps(250), "optimiser": "adamw", "learning_rate": 1e-3}
    linear = DenseConfig(side=SIDE, hidden=(), z_channels=NUMBERS)
    models = [
        recipe("linear", linear, steps=steps(1_500), learning_rate=3e-3, **of_dense),
        recipe("dense", replace(linear, hidden=(512,)), steps=steps(1_000), **of_dense),
        recipe("conv", conv, steps=of_conv),
        recipe("conv-again", conv, steps=of_conv, seed=1),
        *(
            recipe(name, replace(conv, variational=True), steps=of_conv, kl_weight=weight)
            for name, weight in {"vae-0": 0.0, **KL_WEIGHTS}.items()
        ),
        recipe("kl-f8", kl_f8, steps=of_conv, kl_weight=1e-6, quiet=True),
        recipe("deep-plain", deep, **of_deep),
        recipe("deep-residual", replace(deep, residual=True), **of_deep),
    ]
    return {one.name: one for one in models}


# --- pictures ---


@dataclass(frozen=True)
class Photos:
    """Pictures of one size in memory: `calotype.sources.Pictures`."""

    names: Sequence[str]
    pictures: Array  # [N, side, side, 3]

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, i: int) -> Array:
        """Picture i."""
        return self.pictures[i]

    def side(self, i: int) -> int:
        """Of all of them."""
        return self.pictures.shape[1]

    def digest(self) -> str:
        """Of names and pixels."""
        return hashlib.sha256(json.dumps(list(self.names)).encode() + self.pictures.tobytes()).hexdigest()


Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def photographs(data: Path, track: Track, notice: Callable[[str], None]) -> tuple[Photos, Photos]:
    """The middles of a folder's or zip's pictures: (to train on, held out), in the order of their names."""
    source = Source(path=str(data.resolve()), hold_out=HOLD_OUT)
    parts = gather([source], Path(), cache=0, notice=notice)
    return _middles(parts[0], track), _middles(parts[1], track)


def _middles(pictures: Picked, track: Track) -> Photos:
    crops = Crops(pictures, crop=SIDE, rule="centre", flip=False, seed=0)
    with ThreadPoolExecutor(2) as pool:
        found = {
            name: crop for crop, name in track(pool.map(crops.at, range(len(pictures))), "Pictures", len(pictures))
        }
    names = sorted(found)
    return Photos(names, np.stack([found[name] for name in names]))


def shown() -> Photos:
    """Pictures of scikit-image, for looking at: free to be shown, and in nobody's training set."""
    from skimage import data

    astronaut, cat, coffee, rocket = data.astronaut(), data.chelsea(), data.coffee(), data.rocket()
    cuts = {
        "astronaut": astronaut,
        "face": astronaut[20:240, 110:330],
        "cat": cat,
        "eyes": cat[40:200, 130:290],
        "coffee": coffee,
        "spoon": coffee[150:400, 300:550],
        "rocket": rocket,
    }
    return Photos(list(cuts), np.stack([_middle(picture) for picture in cuts.values()]))


def _middle(picture: Array) -> Array:
    return Crops(Photos([""], picture[None]), crop=SIDE, rule="centre", flip=False, seed=0).at(0)[0]


# --- training ---


@dataclass(frozen=True)
class Trained:
    """A finished model.

    Attributes:
        network: with its averaged weights.
        seconds: that training took.
        curve: (step, reconstruction loss) along it.
        gradients: at the first step and after the last, the norm of each convolution's gradient, from the picture's
            end of the encoder to the picture's end of the decoder.
    """

    recipe: Recipe
    network: Autoencoder
    seconds: float
    curve: list[tuple[int, float]]
    gradients: dict[str, list[float]]

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(p.numel() for p in self.network.parameters())


class Stopped(Exception):
    """Training was interrupted."""


def trained(recipe: Recipe, photos: Photos, work: Path, advance: Callable[[int], None]) -> Trained:
    """The model of this recipe: as kept in `work`, else trained now and kept.

    Args:
        advance: is told of steps that are done.

    Raises:
        Stopped: by SIGINT or SIGTERM; nothing is kept of this model.
    """
    stamp = {"recipe": recipe.to_dict(), "pictures": photos.digest()}
    facts, weights = work / f"{recipe.name}.json", work / f"{recipe.name}.safetensors"
    if facts.is_file():
        kept = json.loads(facts.read_text(encoding="utf-8"))
        if kept["stamp"] == json.loads(json.dumps(stamp)):
            network = make_autoencoder(recipe.network)
            network.load_state_dict(load_file(weights))
            advance(recipe.steps)
            return Trained(recipe, network.eval().requires_grad_(False), **kept["found"])
    crops = Crops(photos, crop=SIDE, rule=recipe.rule, flip=recipe.flip, seed=recipe.seed)

    def batches(first: int, last: int) -> Iterator[Batch]:
        return load(lambda step: (crops, recipe.batch), first, last, workers=1)

    trainer = Trainer(recipe, launch(recipe, Options(device="cpu")))
    first = crops.batch(0, recipe.batch)[0]
    before = gradients(trainer, first)
    hooks = _Curve(advance)
    begin = time.perf_counter()
    if not run(trainer, batches, hooks):
        raise Stopped
    seconds = time.perf_counter() - begin
    found = {
        "seconds": seconds,
        "curve": hooks.curve,
        "gradients": {"first": before, "last": gradients(trainer, first)},
    }
    work.mkdir(parents=True, exist_ok=True)
    with trainer.averaged() as network:
        tensors = {key: value.contiguous().clone() for key, value in network.state_dict().items()}
    with atomic_path(weights) as temporary:
        save_file(tensors, temporary)
    with atomic_path(facts) as temporary:  # last: a model without it is not finished
        temporary.write_text(json.dumps({"stamp": stamp, "found": found}), encoding="utf-8")
    return trained(recipe, photos, work, lambda steps: None)


class _Curve:
    """Keeps the loss."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance, self.curve, self._before = advance, list[tuple[int, float]](), 0

    def logged(self, line: dict[str, float]) -> None:
        """See `calotype.train.loop.Hooks`."""
        step = int(line["step"])
        self.curve.append((step, line["rec"]))
        self.advance(step - self._before)
        self._before = step

    def checked(self, trainer: Trainer, line: dict[str, float]) -> None:
        """See `calotype.train.loop.Hooks`."""


def gradients(trainer: Trainer, crops: Array) -> list[float]:
    """The norm of each convolution's gradient; nothing is trained."""
    trainer.fabric.backward(trainer.losses(crops))
    weights = [
        p for half in (trainer.network.encoder, trainer.network.decoder) for p in half.parameters() if p.ndim > 1
    ]
    norms = [float(p.grad.norm()) for p in weights if p.grad is not None]
    trainer.own.zero_grad(set_to_none=True)
    return norms


class PCA(nn.Module):
    """Principal components as an autoencoder: the best linear one there is, with no training at all.

    Args:
        pixels: [N, 3, H, W] to fit to; their mirror images are added, because networks see them too.
        numbers: how many components.
    """

    def __init__(self, pixels: Tensor, numbers: int) -> None:
        super().__init__()
        rows = torch.cat([pixels, pixels.flip(3)]).flatten(1).double()
        self.shape = pixels.shape[1:]
        mean = rows.mean(0)
        rows = rows - mean
        if len(rows) < rows.shape[1]:  # the right singular vectors, by the smaller square
            values, left = torch.linalg.eigh(rows @ rows.T)
            directions = rows.T @ left / values.clamp(min=1e-12).sqrt()
        else:
            _, directions = torch.linalg.eigh(rows.T @ rows)
        self.mean = nn.Parameter(mean.float(), requires_grad=False)
        self.components = nn.Parameter(
            directions[:, -numbers:].flip(1).float(), requires_grad=False
        )  # [pixels, numbers]

    def encode(self, pixels: Tensor) -> Point:
        """Pixels -> latents [N, numbers, 1, 1]."""
        return Point(((pixels.flatten(1) - self.mean) @ self.components)[:, :, None, None])

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pixels, not clamped."""
        return (latents.flatten(1) @ self.components.T + self.mean).view(-1, *self.shape)


def resized(picture: Array, side: int) -> Array:
    """Enlarged so that its pixels are seen."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST))
