"""Latents: calotype's own, and those of other programs."""

from __future__ import annotations

import gzip
import io
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from fuzzkit import Accepted, Case
from latentkit import diffusion_pipe, torch_bytes
from safetensors.torch import save

from calotype.errors import LatentsError
from calotype.latent_files import load_latents, open_latents, save_latents
from calotype.latents import KNOWN, LatentFormat, Latents, flux2
from calotype.pixels import Padding
from calotype.weights.load import tensors_sha256


def read(path: Path) -> Accepted:
    latents = load_latents(path)
    tensors = {"latents": latents.tensor} | ({} if latents.alpha is None else {"alpha": latents.alpha})
    told = f"{latents.space} {latents.format} {latents.vae} {latents.padding} {latents.vae_name}"
    with suppress(LatentsError):  # of factors with which numbers are none any more
        latents.to_raw()
        latents.to_model()
    return Accepted(f"{told} {tensors_sha256(tensors)}", 4 * sum(tensor.nbytes for tensor in tensors.values()))


def headed(path: Path) -> Accepted:
    """A header alone, whose numbers are whole."""
    text = path.read_bytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(48)) * 4)
    return read(path)


def described(path: Path) -> Accepted:
    """A latent format and a size alone, that stand in a file's metadata."""
    text = path.read_bytes().decode("latin-1")
    metadata = {"calotype": "latents/1", "space": "raw", "latent_format": text.partition("\n")[0], "vae_sha256": "0",
                "padding": text.partition("\n")[2]}  # fmt: skip
    path.write_bytes(save({"latents": torch.ones(4, 3, 4)}, metadata))
    return read(path)


def foreign(path: Path) -> Accepted:
    """Latents of another program, with what has to be said of them."""
    file = open_latents(path)
    if file.question:
        file = open_latents(path, latent_format=file.format.name if file.format else "sd1", space=file.space or "raw")
    told = f"{file.program} {file.model} {file.space} {file.format} {len(file)}"
    tensors = {str(i): file[i].tensor for i in range(min(len(file), 3))}
    return Accepted(f"{told} {tensors_sha256(tensors)}", 4 * sum(tensor.nbytes for tensor in tensors.values()))


def items(path: Path) -> Accepted:
    """A database, with whole shards beside it; or a shard, with a whole database."""
    folder = path.parent / "cache" / "sdxl" / path.stem
    if not folder.is_dir():
        diffusion_pipe(folder, [{"latents": torch.ones(4, 3, 4) * i} for i in range(3)])
    name = "metadata.db" if path.suffix == ".db" else "shard_0.bin"
    (folder / name).write_bytes(path.read_bytes())
    return foreign(folder / name)


def own(path: Path, format_: LatentFormat, alpha: bool) -> bytes:
    patch = format_.patch
    shape = (format_.channels * patch**2, 3, 4) if alpha else (format_.channels, 3 * patch, 4 * patch)
    generator = torch.Generator().manual_seed(0)
    latents = Latents(
        tensor=torch.randn(shape, generator=generator),
        space="model" if alpha else "raw",
        format=format_,
        vae="0" * 64,
        padding=Padding(20, 30, 4, 2, "reflect"),
        vae_name="sd-vae-ft-mse",
        alpha=torch.rand(20, 30, generator=generator) if alpha else None,
    )
    return save_latents(path, latents).read_bytes()


def cases(folder: Path) -> list[Case]:
    path = folder / "made.safetensors"
    z = torch.zeros(4, 3, 4)
    npz, npy = io.BytesIO(), io.BytesIO()
    np.savez(npz, latents=z.numpy(), original_size=np.array([24, 32]))
    np.save(npy, z.numpy())
    packed = flux2(tuple(0.1 * i for i in range(8)), tuple(1.0 + i for i in range(8)))
    made = [
        Case(f"{name}.safetensors", own(path, format_, alpha), read, text=text)
        for name, format_, alpha, text in (
            ("sd1", KNOWN["sd1"], False, False), ("sd1-text", KNOWN["sd1"], False, True),
            ("means", KNOWN["playground"], True, False), ("means-text", KNOWN["playground"], True, True),
            ("packed", packed, False, False), ("packed-text", packed, True, True),
        )
    ]  # fmt: skip
    sizes = io.BytesIO()
    np.savez_compressed(sizes, latents_3x4=np.zeros((16, 3, 4), "f4"), latents_2x2=np.ones((16, 2, 2), "f4"))
    database = diffusion_pipe(folder / "cache" / "sdxl" / "whole", [{"latents": z + i} for i in range(3)])
    torch_file = io.BytesIO()
    torch.save(z, torch_file)
    header = made[0].content[8:-192]
    size = json.dumps({"height": 20, "width": 30, "bottom": 4, "right": 2, "mode": "reflect"})
    return [
        *made,
        Case("header.safetensors", header, headed, text=True),
        Case("header-bytes.safetensors", header, headed),
        *(
            Case(
                f"described-{name}.safetensors",
                f"{json.dumps(KNOWN[name].to_dict())}\n{size}".encode(),
                described,
                text=True,
            )
            for name in ("sd1", "playground")
        ),
        Case("comfy.latent", save({"latent_tensor": z[None], "latent_format_version_0": torch.tensor([])}), foreign),
        Case("comfy-text.latent", save({"latent_tensor": z[None]}, {"prompt": "{}"}), foreign, text=True),
        Case(
            "musubi.safetensors",
            save({"latents_1x3x4_fp32": torch.zeros(16, 1, 3, 4)}, {"architecture": "wan"}),
            foreign,
            text=True,
        ),
        Case("ai-toolkit.safetensors", save({"latent": z}, {"latent_space_version": "sd1"}), foreign, text=True),
        Case("sd-scripts_sd.npz", npz.getvalue(), foreign),
        Case("sizes_flux.npz", sizes.getvalue(), foreign),
        Case("bare.npy", npy.getvalue(), foreign),
        Case("bare-text.npy", npy.getvalue(), foreign, text=True),
        Case("torch.pt", torch_file.getvalue(), foreign),
        Case("onetrainer.pt", torch_bytes({"latent_image": z, "crop_offset": (0, 1)}), foreign),
        Case("packed.pt", gzip.compress(torch_bytes({"latents": z})), foreign),
        Case("items.db", database.read_bytes(), items),
        Case("shard.bin", database.with_name("shard_0.bin").read_bytes(), items),
    ]
