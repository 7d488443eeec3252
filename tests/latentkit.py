"""Files with latents as other programs write them: each after the program's own code."""

from __future__ import annotations

import gzip
import io
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def comfyui(path: Path, tensor: Tensor, *, version: bool = True, metadata: Mapping[str, str] | None = None) -> Path:
    """SaveLatent of ComfyUI (nodes.py)."""
    tensors = {"latent_tensor": tensor}
    if version:
        tensors["latent_format_version_0"] = torch.tensor([])
    save_file(tensors, path, dict(metadata) if metadata else None)
    return path


def npz(path: Path, **arrays: Any) -> Path:
    with path.open("wb") as file:
        np.savez(file, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


def sd_scripts(path: Path, *tensors: Tensor, sized: bool, flipped: bool = False, mask: bool = False) -> Path:
    """LatentsCachingStrategy.save_latents_to_disk of sd-scripts (library/strategy_base.py)."""
    arrays: dict[str, Any] = {}
    for tensor in tensors:
        height, width = tensor.shape[-2:]
        size = f"_{height}x{width}" if sized else ""
        arrays["latents" + size] = tensor.float().numpy()
        arrays["original_size" + size] = [8 * width + 3, 8 * height + 5]
        arrays["crop_ltrb" + size] = [1, 2, 8 * width + 1, 8 * height + 2]
        if flipped:
            arrays["latents_flipped" + size] = tensor.flip(-1).float().numpy()
        if mask:
            arrays["alpha_mask" + size] = np.ones((8 * height, 8 * width), np.float32)
    return npz(path, **arrays)


def musubi(path: Path, architecture: str, tensor: Tensor, *, frames: bool = True, **more: Tensor) -> Path:
    """save_latent_cache_common of musubi-tuner (dataset/cache_io.py)."""
    *_, height, width = tensor.shape
    count = tensor.shape[1] if tensor.ndim == 4 else 1
    size = f"{count}x{height}x{width}" if frames else f"{height}x{width}"
    metadata = {"architecture": architecture, "width": "999", "height": "777", "format_version": "1.0.1"}
    save_file({f"latents_{size}_{str(tensor.dtype).removeprefix('torch.')}": tensor, **more}, path, metadata)
    return path


def ai_toolkit(path: Path, version: str, tensor: Tensor, **more: Tensor) -> Path:
    """_cache_one_latent of ai-toolkit (toolkit/dataloader_mixins.py)."""
    metadata = {
        "filename": "a.jpg",
        "crop_x": "0",
        "latent_space_version": version,
        "latent_version": "1",
        "format": "pt",
    }
    save_file({"latent": tensor, **more}, path, metadata)
    return path


def torch_bytes(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def simpletuner(path: Path, content: Any, *, packed: bool = False) -> Path:
    """torch_save of SimpleTuner (helpers/data_backend/local.py), under the sha256 of a name."""
    path.write_bytes(gzip.compress(torch_bytes(content)) if packed else torch_bytes(content))
    return path


def diffusion_pipe(folder: Path, items: Sequence[Any], shard_of: int = 2) -> Path:
    """Cache of diffusion-pipe (utils/cache.py), with so many items a shard."""
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / "metadata.db") as connection:
        connection.execute("CREATE TABLE fingerprint(value)")
        connection.execute("INSERT INTO fingerprint VALUES('0')")
        connection.execute("CREATE TABLE items(shard, shard_index)")
        for shard in range(-(-len(items) // shard_of)):
            connection.execute(f"CREATE TABLE shard_{shard}(offset, size)")
            content = b""
            for i, one in enumerate(items[shard * shard_of : (shard + 1) * shard_of]):
                blob = torch_bytes(one)
                connection.execute("INSERT INTO items VALUES(?, ?)", (shard, i))
                connection.execute(f"INSERT INTO shard_{shard} VALUES(?, ?)", (len(content), len(blob)))
                content += blob
            (folder / f"shard_{shard}.bin").write_bytes(content)
    connection.close()
    return folder / "metadata.db"
