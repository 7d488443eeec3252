"""Tensors as they stand in files, and as the network has them. No torch: only what any array can."""

from __future__ import annotations

from typing import Any

from calotype.families.wan.config import WanConfig


def taken(config: WanConfig, key: str, tensor: Any) -> Any:
    """A tensor of a file as the network has it, sharing memory with it where it can.

    Of kernels the last slice in time; norms without their dimensions of one; and channels of 2x2 pixels (Wan 2.2)
    in the order of torch's pixel_unshuffle, row by row, where files have them column by column.
    """
    if _is_norm(key) and tensor.numel() == tensor.shape[0]:
        tensor = tensor.reshape(-1)
    if tensor.ndim == 5:
        tensor = tensor[:, :, -1]
    return _turned(config, key, tensor)


def given(config: WanConfig, key: str, tensor: Any) -> Any:
    """A tensor of the network as files have it, without a dimension of time."""
    if _is_norm(key):
        return tensor[:, None, None]
    return _turned(config, key, tensor).contiguous()


def shaped(config: WanConfig, key: str, tensor: Any) -> Any:
    """A tensor of a file with all that frames need, as diffusers' classes have it.

    Norms have their dimensions of one; and kernels of Qwen-Image 2.1, which some files have with a slice in time, none.
    """
    if _is_norm(key) and tensor.numel() == tensor.shape[0]:
        return tensor.reshape(-1, 1, 1) if key.endswith(".norm.weight") else tensor.reshape(-1, 1, 1, 1)
    if config.of_images and tensor.ndim == 5 and tensor.shape[2] == 1:
        return tensor[:, :, 0]
    return tensor


def _is_norm(key: str) -> bool:
    return key.endswith((".norm.weight", ".norm1.weight", ".norm2.weight", ".norm_out.weight"))


def _turned(config: WanConfig, key: str, tensor: Any) -> Any:
    """The channels of 2x2 pixels the other way round: rows and columns in each other's place."""
    axis = {"encoder.conv_in.weight": 1, "decoder.conv_out.weight": 0, "decoder.conv_out.bias": 0}.get(key)
    n = config.patch
    if axis is None or n == 1 or tensor.ndim <= axis or tensor.shape[axis] % n**2:
        return tensor
    return tensor.unflatten(axis, (-1, n, n)).transpose(axis + 1, axis + 2).flatten(axis, axis + 2)
