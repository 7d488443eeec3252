"""What people look at while a run goes on: figures, panels of pictures, and what the run was made with."""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from calotype import __version__
from calotype.errors import UsageError
from calotype.files import append_text, make_folder, write_text
from calotype.pixels import to_uint8, write_picture
from calotype.pixels.channels import over
from calotype.posterior import DiagonalGaussian
from calotype.train.checkpoint import keep_lines
from calotype.train.crops import centre_crop
from calotype.train.family import Autoencoder
from calotype.train.recipe import Recipe

Array = NDArray[np.uint8]

PANELS = "panels"  # a folder
PANEL_PICTURES = 8
PANEL_SIDE = 256  # pixels at most of each
GROUND = 0.0  # grey, behind what is smaller or transparent


class Watch:
    """A run's folder: recipe.json, environment.json, metrics.jsonl, panels/ and, where asked for, other logs.

    Args:
        out: the folder; made if need be.
        tensorboard: also to OUT/tensorboard.
        wandb: also to Weights & Biases, in the project of this name.
        first: the step the run begins or goes on at; lines after it are of a part that is done again, and go.
    """

    def __init__(self, recipe: Recipe, out: Path, *, tensorboard: bool, wandb: str | None, first: int) -> None:
        self.out = out
        make_folder(out)
        self._metrics = out / "metrics.jsonl"
        self.lines = keep_lines(self._metrics, lambda line: line["step"] <= first)
        _write(out / "recipe.json", recipe.to_dict())
        _write(out / "environment.json", environment())
        self._board: Any = None
        self._wandb: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first + 1)
        if wandb is not None:
            try:
                library = importlib.import_module("wandb")
            except ImportError:
                raise UsageError("--wandb needs the package wandb; install it, or leave the option out.") from None
            self._wandb = library.init(project=wandb, name=out.name, dir=str(out), config=recipe.to_dict())

    def line(self, values: dict[str, float]) -> None:
        """Adds figures of a step."""
        append_text(self._metrics, json.dumps(values) + "\n")
        step = int(values["step"])
        if self._board is not None:
            for key, value in values.items():
                if key != "step":
                    self._board.add_scalar(key, value, step)
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def panel(self, picture: Image.Image, step: int) -> Path:
        """Keeps a panel as panels/step-N.png."""
        path = write_picture(make_folder(self.out / PANELS) / f"step-{step:08}.png", picture)
        if self._board is not None:
            self._board.add_image("panel", np.asarray(picture), step, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.log({"panel": importlib.import_module("wandb").Image(picture)}, step=step)
        return path

    def close(self) -> None:
        """Ends the logs."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def environment() -> dict[str, Any]:
    """What a run is made with."""
    source = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=10, check=False,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {
        "calotype": __version__,
        "commit": commit or None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "command": sys.argv,
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


@torch.no_grad()
def panel(network: Autoencoder, pictures: Sequence[Array], seed: int) -> Image.Image:
    """A row for each of a few pictures: it, its reconstruction, one of a sample, and their difference four times.

    Where the latents have a posterior, a last row shows what decoding standard normal noise gives.
    """
    factor = network.config.factor
    device = next(network.parameters()).device
    rows: list[Tensor] = []
    gaussian = False
    for i, picture in enumerate(pictures[:PANEL_PICTURES]):
        x = centre_crop(picture, factor, PANEL_SIDE).to(device)
        posterior = network.encode(x)
        gaussian = isinstance(posterior, DiagonalGaussian)
        mode = network.decode(posterior.mode())
        sample = network.decode(posterior.sample(torch.Generator().manual_seed(seed + i)))
        x, mode, sample = (_on_grey(one) for one in (x, mode, sample))
        difference = (mode - x).mul(2).clamp(-1, 1)
        rows.append(torch.cat([x, mode, sample, difference]).clamp(-1, 1).cpu())
    if gaussian:
        side = max(1, min(PANEL_SIDE, min(min(p.shape[:2]) for p in pictures)) // factor)
        shape = (4, network.config.z_channels, side, side)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        rows.append(_on_grey(network.decode(noise.to(device))).clamp(-1, 1).cpu())
    side = max(64, *(n for row in rows for n in row.shape[-2:]))
    return Image.fromarray(torch.cat([_row(one, side) for one in rows], dim=1).permute(1, 2, 0).numpy())


def _on_grey(pixels: Tensor) -> Tensor:
    """RGB as it is, and RGBA on the ground that panels have."""
    return over(pixels, GROUND) if pixels.shape[1] == 4 else pixels


def _row(pictures: Tensor, side: int) -> Tensor:
    """Pictures beside each other in the middle of grey squares: uint8 [3, side, 4 * side]."""
    ground = torch.full((len(pictures), 3, side, side), GROUND)
    height, width = pictures.shape[-2:]
    top, left = (side - height) // 2, (side - width) // 2
    ground[:, :, top : top + height, left : left + width] = pictures.float()
    return torch.cat(list(to_uint8(ground)), dim=2)
