"""Weights as other programs write them: Flax, keras-hub, mflux and MLX; written here after their formats alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import diffusers_tensors
from torch import Tensor

from calotype.families.kl.network import AutoencoderKL

msgpack: Any = importlib.import_module("msgpack")

# --- Flax ---


def flax_tree(module: AutoencoderKL) -> dict[str, Any]:
    """A network's tensors as diffusers' Flax class has them: "down_blocks_0", kernels HWIO, [in, out], scale."""
    tree: dict[str, Any] = {}
    for key, tensor in diffusers_tensors(module, old=True).items():
        *way, leaf = key.split(".")
        steps: list[str] = []
        for step in way:
            if step.isdecimal():
                steps[-1] += f"_{step}"
            else:
                steps.append(step)
        inside = tree
        for step in steps:
            inside = inside.setdefault(step, {})
        if leaf == "weight":
            leaf = "scale" if tensor.ndim == 1 else "kernel"
        order = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[tensor.ndim]
        inside[leaf] = tensor.permute(order).contiguous()
    return tree


def flax_array(tensor: Tensor) -> Any:
    """What flax.serialization makes of an array: an extension of type 1."""
    numbers = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    name = str(tensor.dtype).removeprefix("torch.")
    return msgpack.ExtType(1, msgpack.packb((tuple(tensor.shape), name, numbers), use_bin_type=True))


def flax_chunked(tensor: Tensor, size: int) -> dict[str, Any]:
    """An array in pieces, as flax.serialization has those of more than 1 GiB."""
    pieces = tensor.reshape(-1).split(size)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(tensor.shape)},
        "chunks": {str(i): flax_array(piece) for i, piece in enumerate(pieces)},
    }


def _sorted(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return flax_array(tree)
    return {key: _sorted(tree[key]) for key in sorted(tree)} if isinstance(tree, dict) else tree


def flax_bytes(tree: Any) -> bytes:
    """A file of a tree of tensors."""
    content: bytes = msgpack.packb(_sorted(tree), strict_types=True)
    return content


# --- keras-hub ---

HUB = {
    "conv_in": "input_projection",
    "conv_norm_out": "output_norm",
    "conv_out": "output_projection",
    "mid_block.resnets.0": "mid_block_0",
    "mid_block.resnets.1": "mid_block_1",
    "mid_block.attentions.0": "mid_attention",
    "conv_shortcut": "residual_projection",
    "to_q": "query_conv2d",
    "to_k": "key_conv2d",
    "to_v": "value_conv2d",
    "to_out.0": "output_conv2d",
}


def hub_arrays(module: AutoencoderKL) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A network's arrays by their place in a file of keras-hub's VAEBackbone, below "layers/"; and titles of blocks."""
    arrays, titles = {}, {}
    for key, tensor in diffusers_tensors(module, linear=False).items():
        side, _, rest = key.partition(".")
        module_name, _, leaf = rest.rpartition(".")
        count = module.config.num_res_blocks if side == "encoder" else module.config.decoder_blocks + 1
        steps = module_name.split(".")
        if steps[0] in ("down_blocks", "up_blocks") and steps[2] == "resnets":
            level, block = int(steps[1]), int(steps[3])
            number = level * count + block
            group = f"blocks/res_net_block{f'_{number}' if number else ''}"
            titles[f"vae_{side}/{group}"] = f"block_{level}_{block}"
            place = f"{group}/{HUB.get(steps[4], steps[4])}"
        elif steps[0] in ("down_blocks", "up_blocks"):
            place = f"{steps[2].removesuffix('rs')}s/conv2d{f'_{steps[1]}' if steps[1] != '0' else ''}"
        else:
            head = next(name for name in HUB if module_name == name or module_name.startswith(f"{name}."))
            part = module_name.removeprefix(head).removeprefix(".")
            place = HUB[head] + (f"/{HUB.get(part, part)}" if part else "")
        array = tensor.permute(2, 3, 1, 0).contiguous() if tensor.ndim == 4 else tensor
        arrays[f"vae_{side}/{place}/vars/{('weight', 'bias').index(leaf)}"] = array
    return arrays, titles


def write_hub(
    path: Path,
    arrays: Mapping[str, Tensor],
    titles: Mapping[str, str] | None = None,
    before: str = "layers/",
    others: Mapping[str, Any] | None = None,
) -> Path:
    """An h5 file as Keras 3 writes it.

    Args:
        others: places -> arrays of other layers.
    """
    h5py: Any = importlib.import_module("h5py")
    with h5py.File(path, "w") as file:
        for place, tensor in arrays.items():
            if tensor.dtype == torch.bfloat16:
                dataset = file.create_dataset(before + place, data=tensor.view(torch.int16).numpy().view("V2"))
                dataset.attrs["dtype"] = "bfloat16"
            else:
                file.create_dataset(before + place, data=tensor.numpy())
        for place, title in (titles or {}).items():
            file[before + place].attrs["name"] = title
        for place, array in (others or {}).items():
            file.create_dataset(place, data=array)
        file.create_group("vars")
    return path


def hub_config(module: AutoencoderKL, **more: Any) -> dict[str, Any]:
    """The config.json of such a VAE."""
    config = module.config
    return {
        "module": "keras_hub.src.models.vae.vae_backbone",
        "class_name": "VAEBackbone",
        "config": {
            "name": "vae_backbone",
            "trainable": True,
            "encoder_num_filters": list(config.channels),
            "encoder_num_blocks": [config.num_res_blocks] * len(config.channels),
            "decoder_num_filters": list(reversed(config.decoder_channels)),
            "decoder_num_blocks": [config.decoder_blocks + 1] * len(config.channels),
            "sampler_method": "sample",
            "input_channels": config.in_channels,
            "sample_channels": 2 * config.z_channels,
            "output_channels": config.in_channels,
            "scale": 1.5305,
            "shift": 0.0609,
            **more,
        },
        "registered_name": "keras_hub>VAEBackbone",
    }


# --- mflux and MLX ---


def kernels_last(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as MLX has them: kernels O, H, W, I."""
    return {k: v.permute(0, 2, 3, 1).contiguous() if v.ndim == 4 else v for k, v in tensors.items()}


def mflux_tensors(module: AutoencoderKL) -> dict[str, Tensor]:
    """A network's tensors under mflux's names."""
    named = {}
    for key, tensor in diffusers_tensors(module).items():
        module_name, _, leaf = key.rpartition(".")
        side, _, rest = module_name.partition(".")
        more = {"conv_in": ".conv2d", "conv_out": ".conv2d", "conv_norm_out": ".norm"}.get(rest, "")
        named[f"{side}{'.' if rest else ''}{rest}{more}.{leaf}"] = tensor
    return kernels_last(named)


def mlx_quantised(matrix: Tensor, bits: int, group: int) -> tuple[dict[str, Tensor], Tensor]:
    """A matrix as `mx.quantize` packs one, and the numbers that it stands for; the bits of a row are one number."""
    rows, columns = matrix.shape
    groups = matrix.float().view(rows, -1, group)
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / (2**bits - 1)).clamp(min=1e-7).to(matrix.dtype)
    biases = low.to(matrix.dtype)
    q = ((groups - biases.float()[..., None]) / scales.float()[..., None]).round().clamp(0, 2**bits - 1)
    words = []
    for row in q.reshape(rows, columns).to(torch.int64).tolist():
        whole = sum(number << (bits * i) for i, number in enumerate(row))
        words.append(np.frombuffer(whole.to_bytes(columns * bits // 8, "little"), "<u4"))
    packed = torch.from_numpy(np.stack(words).copy())
    numbers = scales.double()[..., None] * q.double() + biases.double()[..., None]
    return {"weight": packed, "scales": scales, "biases": biases}, numbers.view(rows, columns)
