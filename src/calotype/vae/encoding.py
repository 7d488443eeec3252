"""The network that encodes, where it computes in another type than the one that decodes."""

from __future__ import annotations

import copy

import torch
from torch import nn

from calotype.families.network import Network


def encoding_network(module: Network, device: torch.device, dtype: torch.dtype) -> Network:
    """A network that encodes as `module` does, on a device and in a dtype; it can't decode.

    It is `module` itself where its weights are there and of that dtype already. Otherwise it is a copy without the
    decoder, so it takes memory for the encoder alone.
    """
    decoding = {name for name, part in module.sides.items() if part == "decoder"} | {"decoder"}
    own = [value for name, value in module.named_parameters() if name.partition(".")[0] not in decoding]
    if all(value.dtype == dtype and value.device.type == device.type for value in own) and device.type == "cpu":
        return module
    left_out = {id(part): nn.Module() for name, part in module.named_children() if name in decoding}
    copied: Network = copy.deepcopy(module, left_out)
    return copied.to(device=device, dtype=dtype)


def written(module: nn.Module) -> tuple[int, ...]:
    """How often each weight was written to, as far as torch counts it: `.data` is written to uncounted."""
    return tuple(0 if weight.is_inference() else weight._version for weight in module.parameters())
