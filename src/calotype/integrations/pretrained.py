"""What `from_pretrained` is given -> a VAE."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from calotype.errors import FetchError, UsageError
from calotype.families import PRESETS
from calotype.vae import VAE, load
from calotype.weights.diffusers_config import KEPT

HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")
# How diffusers reads files, or where from; the weights are the same.
INDIFFERENT = ("use_safetensors", "low_cpu_mem_usage", "disable_mmap", "mirror", "user_agent")
FILES = ("*.json", "*.safetensors", "*.bin")


def load_pretrained(name: str | os.PathLike[str], options: Mapping[str, Any]) -> tuple[VAE, dict[str, Any]]:
    """A VAE by the name and options that diffusers' `from_pretrained` takes, and the fields that were given for it.

    Raises:
        UsageError: for an option that can't be met, or a name of nothing.
        WeightsError, FetchError: as `calotype.load`; if the hub can't be reached.
    """
    given = dict(options)
    fields = {key: given.pop(key) for key in KEPT if key in given}
    hub = {key: given.pop(key) for key in HUB if key in given}
    for key in INDIFFERENT:
        given.pop(key, None)
    subfolder, variant, latent_format = (given.pop(key, None) for key in ("subfolder", "variant", "latent_format"))
    dtype = given.pop("torch_dtype", given.pop("dtype", None)) or torch.float32
    device = _device(given.pop("device_map", None))
    if unknown := [key for key, value in given.items() if value is not None]:
        raise UsageError(
            f"from_pretrained of calotype's classes takes no {', '.join(sorted(unknown))}; diffusers' own does."
        )
    if isinstance(dtype, str):
        dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype, dtype)
    return load(_place(name, subfolder, variant, hub), latent_format=latent_format, device=device, dtype=dtype), fields


def _device(given: Any) -> torch.device | str:
    if given is None or given in ("auto", "balanced"):
        return "cpu"
    if isinstance(given, Mapping):
        if set(given) != {""}:
            raise UsageError("device_map must be one device: a VAE is not spread over several.")
        given = given[""]
    return f"cuda:{given}" if isinstance(given, int) else given


def _place(name: str | os.PathLike[str], subfolder: str | None, variant: str | None, hub: dict[str, Any]) -> Path | str:
    """Where the weights lie; a preset's name is left as it is."""
    text = os.fspath(name)
    folder = Path(text)
    if not folder.exists():
        if text in PRESETS or text == "builtin":
            return text
        if text.count("/") != 1 or "\\" in text or folder.suffix in (".safetensors", ".ckpt", ".pt", ".bin"):
            raise UsageError(f"{text}: there is no such file or folder; files elsewhere must be fetched first.")
        folder = _fetched(text, subfolder, hub)
    if subfolder:
        folder = folder / subfolder
    if variant and folder.is_dir():
        places = [folder / f"diffusion_pytorch_model.{variant}.{suffix}" for suffix in ("safetensors", "bin")]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise UsageError(f"{folder}: there is no variant {variant!r} of its weights ({places[0].name}).")
        return found
    return folder


def _fetched(name: str, subfolder: str | None, hub: dict[str, Any]) -> Path:
    """A repository's VAE in the hub's cache."""
    from huggingface_hub import snapshot_download

    inside = f"{subfolder}/" if subfolder else ""
    patterns = [f"{inside}{pattern}" for pattern in FILES] + ["model_index.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **hub))
    except Exception as error:  # of whichever HTTP library this huggingface_hub uses
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise FetchError(f"{name}: it is no folder here, and can't be had from the hub ({reason}).") from None
