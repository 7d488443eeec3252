"""Helpers for tests of latents handed over: VAEs whose latents are of published formats, and caches by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cachekit import fill as fill_cache, picture
from clikit import FOLDED
from support import fill
from torch import Tensor

from calotype.cache import Rules
from calotype.cache.worker import drawn
from calotype.families.folded.network import FoldedAutoencoder
from calotype.latents import KNOWN, LatentFormat, flux2
from calotype.posterior import DiagonalGaussian
from calotype.vae import VAE, load
from calotype.weights.save import save_weights

GAINS = {"sd1": 35.0, "flux": 7.6, "wan2.1": 1.9, "flux2": 3.1}  # that make model latents about 1 wide
FLUX2 = flux2(tuple(i / 100 for i in range(128)), tuple(1 + i / 50 for i in range(128)))


def format_of(name: str) -> LatentFormat:
    return FLUX2 if name == "flux2" else KNOWN[name]


def weights_of(path: Path, name: str, seed: int = 0) -> Path:
    """A small VAE's file; its latents are of a published format."""
    format_ = format_of(name)
    module: FoldedAutoencoder = fill(FoldedAutoencoder(replace(FOLDED, z_channels=format_.channels)), seed, gain=0.7)
    with torch.no_grad():  # an encoder that spreads its means as wide as such are, and is sure of them
        last = [one for one in module.encoder.modules() if isinstance(one, torch.nn.Conv2d)][-1]
        last.weight[: format_.channels] *= GAINS[name]
        last.bias[: format_.channels] *= GAINS[name]
        last.weight[format_.channels :] = 0
        last.bias[format_.channels :] = -6.0
    save_weights(module, path, layout="ldm", format_=format_)
    return path


def vae_of(path: Path, name: str, seed: int = 0) -> VAE:
    return load(weights_of(path / f"{name}-{seed}.safetensors", name, seed), device="cpu")


def pictures(folder: Path) -> Path:
    """Five pictures of three shapes, in folders, with captions and labels."""
    for i, (name, width, height) in enumerate(
        (("cat/0.png", 40, 40), ("cat/1.png", 64, 32), ("dog/2.png", 32, 64), ("dog/3.v2.png", 48, 48),
         ("dog/4.jpg", 40, 40))
    ):  # fmt: skip
        picture(folder / name, width, height, seed=i)
    (folder / "cat/1.txt").write_text("a cat, aside\n")
    return folder


def cached(
    folder: Path, vae: VAE, *, size: bool = False, flip: bool = True, value: str = "moments", **more: str
) -> Path:
    """A cache of such pictures in `folder`/latents, of one size or of several."""
    rules = Rules(size=(32, 32), flip=flip) if size else Rules(buckets="32/16", flip=flip)
    fill_cache(pictures(folder / "pictures"), folder / "latents", vae, rules=rules, folders=True, value=value, **more)
    return folder / "latents"


def sample_of(row: dict[str, Any], seed: int = 0, end: str = "") -> Tensor:
    """What is drawn of a row's moments; `end` is "_flip" for the mirrored picture."""
    moments = torch.cat([row[f"{name}{end}"].float() for name in ("mean", "logvar")])
    return drawn(DiagonalGaussian(moments[None]), seed, row["key"], mirrored=bool(end))
