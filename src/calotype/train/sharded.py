"""Weights, gradients and optimisers' states shared among processes (FSDP, arXiv:2304.11277), each holding a part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from calotype.errors import UsageError
from calotype.train.model import BLOCKS, Judge
from calotype.train.recipe import Recipe


def require_shardable(recipe: Recipe) -> None:
    """Refuses what looks at one layer's gradient, at a whole matrix, or at a gradient's gradient.

    Raises:
        UsageError: if the recipe has such a thing.
    """
    wrong = [
        word
        for word, there in (
            ("optimiser = muon", recipe.optimiser == "muon"),
            ("adversarial.adaptive = true", recipe.adversarial is not None and recipe.adversarial.adaptive),
            ("adversarial.r1 above 0", recipe.adversarial is not None and recipe.adversarial.r1 > 0),
            ("alignment", recipe.alignment is not None),
        )
        if there
    ]
    if wrong:
        raise UsageError(f"With --strategy fsdp a recipe can't have {', '.join(wrong)}; change that, or take ddp.")


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shares a module among processes, block by block; a discriminator as one, for it is also called alone."""
    among = mesh["data_parallel"]
    for part in module.modules():
        if isinstance(part, BLOCKS):
            fully_shard(part, mesh=among)
    fully_shard(module.discriminator if isinstance(module, Judge) else module, mesh=among)
    return module


def whole(value: Any, keep: bool | None = None) -> Any:
    """Nested values with every shared tensor put together; all processes must ask.

    Args:
        keep: whether this process wants them, each put on the CPU before the next one is put together; left out:
            they stay on their device.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full if keep is None else full.cpu() if keep else full.new_empty(0)
    if isinstance(value, Mapping):
        return {key: whole(one, keep) for key, one in value.items()}
    return [whole(one, keep) for one in value] if isinstance(value, list) else value


def shared(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor shared as another one is, if that is."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def local(value: Tensor) -> Tensor:
    """This process's part."""
    return value.to_local() if isinstance(value, DTensor) else value
