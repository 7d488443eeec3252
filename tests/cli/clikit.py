"""Helpers for tests of the command line: what a run left behind, pictures and a small VAE."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from support import fill

from calotype.cli.main import main
from calotype.families.folded.config import FoldedConfig
from calotype.families.folded.network import FoldedAutoencoder
from calotype.latents import PerChannel
from calotype.weights.save import save_weights

FOLDED = FoldedConfig(z_channels=4, ch=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1))


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """The lines on standard error."""
        return self.err.splitlines()

    @property
    def json(self) -> Any:
        """All of standard output, as one JSON document (in the strict sense: no NaN, no Infinity)."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(self.out, parse_constant=refuse)


class Calotype(Protocol):
    """Runs the command line with these words."""

    def __call__(self, *words: object) -> Ran: ...


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> Ran:
    """Runs the command line in this process."""
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["calotype", *map(str, words)])
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as stopped:
            main()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    code = stopped.value.code
    assert code is None or isinstance(code, int)
    return Ran(code or 0, captured.out, captured.err)


def draw(path: str, width: int = 40, height: int = 24, mode: str = "RGB", seed: int = 0) -> Path:
    """A picture file with smooth colours and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 4, y * 5, 3 * x + 2 * y, 20 + x * 6 + y]
    noise = np.random.default_rng(seed).integers(0, 16, (height, width, 4))
    pixels = ((np.stack(planes, axis=-1) + noise) % 256).astype(np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path) if mode != "RGBA" else Image.fromarray(pixels).save(path)
    return Path(path)


def levels(path: str | Path) -> npt.NDArray[np.float64]:
    """A picture file's values."""
    with Image.open(path) as image:
        return np.asarray(image).astype(np.float64)


def files(folder: str | Path = ".") -> list[str]:
    """Every file, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def small_vae(path: Path, seed: int = 0, name: str = "small") -> Path:
    """A small VAE of the built-in kind with random weights; its latent format has this name."""
    module: FoldedAutoencoder = fill(FoldedAutoencoder(FOLDED), seed, gain=0.7)
    format_ = PerChannel(name=name, channels=4, mean=(0.1, -0.2, 0.3, 0.0), std=(1.0, 2.0, 0.5, 1.5))
    save_weights(module, path, layout="ldm", format_=format_)
    return path
