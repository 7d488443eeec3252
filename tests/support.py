"""Helpers for tests of networks and weight files."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calotype.families import make_network
from calotype.families.face import NetworkConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.names import ldm_to_diffusers
from calotype.families.kl.network import AutoencoderKL
from calotype.families.network import Network
from calotype.families.taehv.config import TaehvConfig
from calotype.families.tiny.config import TinyConfig
from calotype.families.tiny.network import TinyAutoencoder
from calotype.weights.load import load_tensors

SMALL = AutoencoderConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, norm_groups=4)  # f2
NARROW = AutoencoderConfig(ch=32)  # kl-f8, at a quarter of its width; its norms have the usual 32 groups


def fill(module: Any, seed: int, gain: float = 1.0) -> Any:
    """Random values for every parameter, norms included, of a size that keeps outputs O(1). Returns the module."""
    generator = torch.Generator().manual_seed(seed)
    norms = {name for name, child in module.named_modules() if isinstance(child, nn.GroupNorm)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            owner, _, leaf = name.rpartition(".")
            noise = torch.randn(parameter.shape, generator=generator)
            if leaf == "bias":
                parameter.copy_(0.2 * noise)
            elif owner in norms:
                parameter.copy_(1.0 + 0.3 * noise)
            else:
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
        for name, buffer in module.named_buffers():
            noise = torch.randn(buffer.shape, generator=generator)
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * noise)
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + noise.square())
    return module.eval().requires_grad_(False)


def network(config: NetworkConfig, seed: int = 0) -> Network:
    """A network with random weights."""
    module: Network = fill(
        make_network(config), seed, gain=0.7 if isinstance(config, TinyConfig | TaehvConfig) else 1.0
    )
    return module


def kl(config: AutoencoderConfig = NARROW, seed: int = 0) -> AutoencoderKL:
    module = network(config, seed)
    assert isinstance(module, AutoencoderKL)
    return module


def tiny(config: TinyConfig = TinyConfig(), seed: int = 0) -> TinyAutoencoder:  # noqa: B008
    module = network(config, seed)
    assert isinstance(module, TinyAutoencoder)
    return module


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Its tensors under our keys."""
    return {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}


def diffusers_tensors(module: AutoencoderKL, *, old: bool = False, linear: bool = True) -> dict[str, Tensor]:
    """Its tensors under diffusers' keys; `old` has the attention names of before 0.17."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    result = {}
    for key, tensor in tensors_of(module).items():
        name = ldm_to_diffusers(key, len(module.config.channels))
        assert name is not None
        if match := re.search(r"attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)\.", name):
            if tensor.ndim == 4 and linear:
                tensor = tensor[:, :, 0, 0].contiguous()
            if old:
                name = name.replace(match[1], names[match[1]])
        result[name] = tensor
    return result


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def same_tensors(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks hold the same tensors, bit by bit."""
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in first
    )


def assert_close(result: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to `tolerance`, or that part of the expected result's standard deviation where this is above 1."""
    assert result.shape == expected.shape
    spread = expected.std().item()
    assert spread > 0.01, "the expected result is constant, so it can't tell right from wrong"
    assert (result - expected).abs().max().item() <= tolerance * max(1.0, spread)


def one_sentence(message: str) -> None:
    """Error messages are one line without a traceback in it, and end like a sentence."""
    assert "\n" not in message
    assert "Traceback" not in message
    assert message.endswith((".", "?"))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def import_diffusers() -> Any:
    """diffusers, without the warnings that it gives while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = importlib.import_module("diffusers")
        for name in ("AutoencoderKL", "AutoencoderTiny"):
            getattr(diffusers, name)
    return diffusers


def taken_over(theirs: Any) -> Network:
    """Ours, with the weights that a network of diffusers holds in memory: gigabytes take long to write."""
    name = type(theirs).__name__
    return load_tensors(theirs.state_dict(), {**theirs.config, "_class_name": name}, where=name).module


def pictures(seed: int, *shape: int) -> Tensor:
    """Random pixels in [-1, 1], smooth enough to have a structure."""
    generator = torch.Generator().manual_seed(seed)
    n, height, width = shape
    rough = torch.rand(n, 3, max(1, height // 4), max(1, width // 4), generator=generator) * 2 - 1
    smooth = nn.functional.interpolate(rough, size=(height, width), mode="bilinear")
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)


def all_keys(configs: Iterable[AutoencoderConfig]) -> list[str]:
    with torch.device("meta"):
        return [key for config in configs for key in make_network(config).state_dict()]


@contextmanager
def room(limit: int) -> Iterator[None]:
    """Files can be no larger than so many bytes: what a full disk is to a writer, and real (POSIX only)."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # Python ignores the signal, and writing is refused
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
