"""Weight files in every layout, of a network so small that their headers are most of them."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzzkit import Accepted, Case
from otherkit import flax_bytes, flax_tree, hub_arrays, kernels_last, mflux_tensors, mlx_quantised, write_hub
from support import SMALL, diffusers_tensors, kl, tensors_of

from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import ScaleShift
from calotype.tensor_files import safetensors_parts
from calotype.weights.load import load_weights
from calotype.weights.save import diffusers_config, save_weights

SQUARE = AutoencoderConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=1, quant_conv=False)  # with attention
TINIEST = AutoencoderConfig(ch=4, ch_mult=(1,), num_res_blocks=1, z_channels=1, norm_groups=2, mid_attention=False)


def read(path: Path) -> Accepted:
    loaded = load_weights(path)
    size = sum(tensor.nbytes for tensor in loaded.module.state_dict().values())
    return Accepted(f"{loaded.module.config} {loaded.format} {loaded.sha256}", 4 * size)


def packed(content: bytes) -> bytes:
    """A torch file, as an archiver packs it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return made.getvalue()


def pickle_in(content: bytes) -> bytes:
    """The pickle of a torch file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))


def repacked(content: bytes, other: bytes) -> bytes:
    """A torch file with another pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, other if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


def parted(content: bytes) -> tuple[bytes, bytes]:
    """Header and numbers of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]


def torch_file(content: Any, **more: Any) -> bytes:
    made = io.BytesIO()
    torch.save(content, made, **more)
    return made.getvalue()


def without_sums(content: Any) -> bytes:
    torch.serialization.set_crc32_options(False)
    try:
        return torch_file(content)
    finally:
        torch.serialization.set_crc32_options(True)


def safetensors(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    return b"".join(safetensors_parts(tensors, metadata))


def npz(tensors: dict[str, torch.Tensor], *, packed: bool) -> bytes:
    made = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(made, **{key: value.numpy() for key, value in tensors.items()})  # type: ignore[arg-type]
    return made.getvalue()


def mflux() -> bytes:
    """With quantised attention."""
    tensors = {}
    for key, tensor in mflux_tensors(kl(SQUARE)).items():
        parts = mlx_quantised(tensor, 8, 32)[0] if tensor.ndim == 2 else {"weight": tensor}
        name = key.removesuffix(".weight")
        tensors |= {f"{name}.{part}": value for part, value in parts.items()} if name != key else {key: tensor}
    return safetensors(tensors, {"quantization_level": "8", "mflux_version": "0.17"})


def of_keras(folder: Path) -> tuple[bytes, bytes]:
    """An h5 file of keras-hub, and an archive with it."""
    h5 = write_hub(folder / "hub.h5", *hub_arrays(kl(SQUARE))).read_bytes()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "VAEBackbone", "config": {"scale": 0.5}}))
        archive.writestr("model.weights.h5", h5)
    return h5, made.getvalue()


def cases(folder: Path) -> list[Case]:
    module, kept = kl(TINIEST), kl(SMALL)
    ldm, diffusers = tensors_of(module), diffusers_tensors(module)
    told = {"calotype_config": json.dumps(TINIEST.to_dict())}
    format_ = ScaleShift(name="mine", channels=1, scaling_factor=0.5)
    nest = {"epoch": 3, "state_dict": {f"first_stage_model.{k}": v for k, v in ldm.items()}, "loss": [0.5, None]}
    arrays = {key: value.numpy() for key, value in ldm.items()}
    (own,) = save_weights(module, folder / "own.safetensors", layout="ldm")
    config = json.dumps(diffusers_config(TINIEST)).encode()

    def beside(path: Path) -> Accepted:
        """With a config.json of its own, which is whole."""
        inside = folder / "beside" / path.name
        inside.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, inside)
        (inside.parent / "config.json").write_bytes(config)
        return read(inside)

    keys = sorted(diffusers)
    shards = {
        f"diffusion_pytorch_model-{i + 1:05}-of-00002.safetensors": safetensors(
            {key: diffusers[key] for key in keys[i::2]}
        )
        for i in range(2)
    }
    index = {"metadata": {"total_size": 1}, "weight_map": {
        key: f"diffusion_pytorch_model-{i % 2 + 1:05}-of-00002.safetensors" for i, key in enumerate(keys)
    }}  # fmt: skip

    def sharded(path: Path) -> Accepted:
        """An index, whose shards are whole."""
        inside = folder / "sharded"
        inside.mkdir(exist_ok=True)
        for name, content in {**shards, "config.json": config}.items():
            (inside / name).write_bytes(content)
        return read(Path(shutil.copyfile(path, inside / "diffusion_pytorch_model.safetensors.index.json")))

    def first_shard(path: Path) -> Accepted:
        inside = folder / "first"
        inside.mkdir(exist_ok=True)
        first, second = shards
        (inside / second).write_bytes(shards[second])
        (inside / "config.json").write_bytes(config)
        shutil.copyfile(path, inside / first)
        return read(inside)

    plain = torch_file(ldm)
    h5, archive = of_keras(folder)
    header, numbers = parted(safetensors(ldm, told))

    def headed(path: Path) -> Accepted:
        """A header alone, whose numbers are whole."""
        text = path.read_bytes()
        path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
        return read(path)

    def described(path: Path) -> Accepted:
        """A configuration and a latent format alone, that stand in a file's metadata."""
        own, _, format_ = path.read_bytes().decode("latin-1").partition("\n")
        metadata = {"calotype_config": own, "calotype_latent_format": format_, "calotype_training_steps": format_}
        path.write_bytes(safetensors(ldm, metadata))
        loaded = load_weights(path)
        loaded.training()
        return Accepted(f"{loaded.module.config} {loaded.format}")

    def pickled(path: Path) -> Accepted:
        """A pickle alone, in an archive whose sums fit."""
        path.write_bytes(repacked(plain, path.read_bytes()))
        return beside(path)

    made = [
        Case("header.safetensors", header, headed, text=True),
        Case("header-bytes.safetensors", header, headed),
        Case(
            "config.safetensors",
            f"{told['calotype_config']}\n{json.dumps(format_.to_dict())}".encode(),
            described,
            text=True,
        ),
        Case("pickle.pt", pickle_in(plain), pickled),
        Case("own.safetensors", own.read_bytes(), read),
        Case("told.safetensors", safetensors(ldm, told), read, text=True),
        Case("diffusers.safetensors", safetensors(diffusers), beside),
        Case("half.safetensors", safetensors({k: v.half() for k, v in ldm.items()}), beside),
        Case("zip.pt", torch_file(ldm), beside, summed=True),
        Case("nested.ckpt", torch_file(nest), beside, summed=True),
        Case("packed.pt", packed(torch_file(ldm)), beside, summed=True),
        Case("unsummed.pt", without_sums(ldm), beside),
        Case("legacy.pt", torch_file(nest, _use_new_zipfile_serialization=False), beside),
        Case("arrays-2.pkl", pickle.dumps(arrays, protocol=2), beside),
        Case("arrays-4.pkl", pickle.dumps(arrays, protocol=4), beside),
        Case("flax.msgpack", flax_bytes(flax_tree(module)), beside),
        Case("train.msgpack", flax_bytes({"params": flax_tree(module), "step": torch.tensor(3)}), beside),
        Case("stored.npz", npz(kernels_last(diffusers), packed=False), beside, summed=True),
        Case("packed.npz", npz(ldm, packed=True), beside, summed=True),
        Case("mflux.safetensors", mflux(), read),
        Case("hub.weights.h5", h5, read),
        Case("vae.keras", archive, read),
        Case("index.json", json.dumps(index, indent=1).encode(), sharded, text=True),
        Case("shard.safetensors", shards[next(iter(shards))], first_shard),
    ]
    for which in save_weights(kept, folder / "h5", layout="keras"):
        made.append(Case(which.name, which.read_bytes(), read))
    return made
