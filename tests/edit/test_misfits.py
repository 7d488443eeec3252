"""Directions and latents that do not fit each other, or whose files tell absurd things: one sentence each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import kl, one_sentence, tensors_of, write

import calotype
from calotype.edit.directions import Direction, load_direction, save_direction
from calotype.edit.transfer import transfer
from calotype.errors import CalotypeError, LatentsError, UsageError
from calotype.latent_files import load_latents, save_latents
from calotype.latents import KNOWN, Latents
from calotype.pixels import Padding

DEEP = "[" * 100_000
LONGER = "9" * 5000


def refused(kind: type[CalotypeError], read: Callable[..., object], *words: object, match: str | None = None) -> str:
    with pytest.raises(kind, match=match) as caught:
        read(*words)
    one_sentence(str(caught.value))
    return str(caught.value)


def latents(channels: int = 4, vae: str = "0" * 64, value: float = 0.5) -> Latents:
    format_ = KNOWN["sd1" if channels == 4 else "sd3"]
    tensor = torch.linspace(-1, 1, channels * 6).view(channels, 2, 3) * value
    return Latents(tensor=tensor, space="raw", format=format_, vae=vae, padding=Padding(16, 24, 0, 0, "reflect"))


def direction(tensor: torch.Tensor) -> Direction:
    return Direction(
        tensor=tensor,
        vae="0" * 64,
        vae_name="x",
        names=("a", "b"),
        counts=(4, 4),
        held_out=(1, 1),
        d_prime=None,
        accuracy=0.5,
    )


@pytest.mark.parametrize("shape", [(3, 1, 1), (16, 1, 1), (16, 2, 3), (1, 1, 1)])
def test_a_direction_of_other_channels(shape: tuple[int, ...]) -> None:
    words = f"This direction has {shape[0]} channels and the latents 4"
    refused(LatentsError, direction(torch.ones(shape)).apply, latents(), match=words)


def test_directions_that_lead_nowhere() -> None:
    way = direction(torch.full((4, 1, 1), 1e30))
    refused(LatentsError, way.apply, latents(), 1e30, match="leads to NaN or infinity; give a smaller one")
    refused(LatentsError, direction(torch.full((4, 1, 1), torch.nan)).apply, latents(), match="NaN or infinity")
    refused(LatentsError, way.apply, latents(vae="1" * 64), match="learn it anew")
    assert direction(torch.ones(4, 2, 3, dtype=torch.float64)).apply(latents()).tensor.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_directions_of_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    path = save_direction(tmp_path / "d.safetensors", direction(torch.ones(4, 1, 1).to(dtype)))
    loaded = load_direction(path)
    assert torch.equal(loaded.tensor, torch.ones(4, 1, 1))
    assert torch.equal(loaded.apply(latents()).tensor, latents().tensor + 1)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(4, 1, 1, dtype=torch.float64) * 1e300,
        torch.ones(4, 0, 0),
        torch.ones(4),
        torch.ones(1, 4, 1, 1),
        torch.ones(4, 1, 1, dtype=torch.int64),
        torch.ones(4, 1, 1) * torch.inf,
    ],
    ids=lambda tensor: f"{tensor.dtype} {list(tensor.shape)}",
)
def test_directions_that_are_none(tensor: torch.Tensor, tmp_path: Path) -> None:
    path = save_direction(tmp_path / "d.safetensors", direction(tensor))
    refused(LatentsError, load_direction, path, match="a direction is finite floats")


@pytest.mark.parametrize("key", ["names", "counts", "held_out", "d_prime", "accuracy", "latent_format"])
@pytest.mark.parametrize("text", [DEEP, LONGER, "[1]", "[true, 2]", '"a"', "NaN", "{}", "[1, 2, 3]", '["a", 1e999]'])
def test_metadata_of_directions(key: str, text: str, tmp_path: Path) -> None:
    path = save_direction(tmp_path / "d.safetensors", direction(torch.ones(4, 1, 1)))
    metadata = {
        "calotype": "direction/1",
        "space": "raw",
        "vae_sha256": "0" * 64,
        "vae_name": "",
        "names": '["a", "b"]',
        "counts": "[4, 4]",
        "held_out": "[1, 1]",
        "d_prime": "null",
        "accuracy": "1.0",
    }
    save_file({"direction": torch.ones(4, 1, 1)}, path, metadata)
    assert load_direction(path).accuracy == 1
    save_file({"direction": torch.ones(4, 1, 1)}, path, {**metadata, key: text})
    refused(LatentsError, load_direction, path, match="metadata is damaged")


def test_a_style_of_other_channels() -> None:
    refused(LatentsError, transfer, latents(), latents(16), match="have 4 channels and the style's 16")
    other = latents(vae="1" * 64)
    custom = replace(other, format=replace(other.format, name="custom"))
    words = "nothing tells that they are of one space; encode both with one"
    refused(LatentsError, transfer, latents(), custom, match=words)
    refused(UsageError, transfer, latents(), latents(), 1e300, match="the largest is")


def test_latents_that_name_a_vae_of_other_channels(tmp_path: Path) -> None:
    vae = calotype.load(write(tmp_path / "x.safetensors", tensors_of(kl())), device="cpu")
    words = "These latents have 16 channels and name this VAE, whose latents have 4"
    refused(LatentsError, vae.decode_image, latents(16, vae.sha256), match=words)


@pytest.mark.parametrize("key", ["padding", "latent_format"])
@pytest.mark.parametrize("text", [DEEP, LONGER, "[1]", "{}", '{"height": true}', '{"kind": []}'])
def test_metadata_of_latents(key: str, text: str, tmp_path: Path) -> None:
    path = save_latents(tmp_path / "x.safetensors", latents())
    metadata = {
        "calotype": "latents/1",
        "space": "raw",
        "vae_sha256": "0" * 64,
        "padding": json.dumps(latents().padding.__dict__),
        "latent_format": json.dumps(KNOWN["sd1"].to_dict()),
    }
    save_file({"latents": latents().tensor}, path, metadata)
    assert torch.equal(load_latents(path).tensor, latents().tensor)
    save_file({"latents": latents().tensor}, path, {**metadata, key: text})
    refused(LatentsError, load_latents, path, match="metadata is damaged")


@pytest.mark.parametrize(
    "changes",
    [{"height": 10**30}, {"height": 0}, {"bottom": True}, {"right": 1.0}, {"mode": 3}, {"mode": ["reflect"]}],
)
def test_paddings_of_latents(changes: dict[str, Any], tmp_path: Path) -> None:
    path = save_latents(tmp_path / "x.safetensors", latents())
    padding = json.dumps({**latents().padding.__dict__, **changes})
    metadata = {
        "calotype": "latents/1",
        "space": "raw",
        "vae_sha256": "0" * 64,
        "padding": padding,
        "latent_format": json.dumps(KNOWN["sd1"].to_dict()),
    }
    save_file({"latents": latents().tensor}, path, metadata)
    assert f"{next(iter(changes))} " in refused(LatentsError, load_latents, path, match="metadata is damaged")
