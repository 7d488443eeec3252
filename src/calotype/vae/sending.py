"""A VAE on its way to another process: its network without values, and these as arrays, which can be shared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from calotype.engine.run import EngineName
from calotype.errors import WeightsError
from calotype.vae.pictures import VAE
from calotype.weights.load import Loaded, tensors_sha256
from calotype.weights.mapped import dtype_name


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A VAE that can be pickled.

    Attributes:
        loaded: without values.
        values: name -> type, shape and bytes of each.
        check: sha256 of the values.
        name, dtype, encode_dtype, engine: of the VAE.
    """

    loaded: Loaded
    values: Mapping[str, tuple[str, tuple[int, ...], NDArray[np.uint8]]]
    check: str
    name: str
    dtype: str
    encode_dtype: str
    engine: EngineName


def packed(vae: VAE) -> Packed:
    """A VAE, to be sent; its weights are not copied where they lie in memory of the CPU."""
    module = vae.loaded.module
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    empty: dict[int, Any] = {
        id(value): nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
        for value in module.parameters()
    }
    hollow = copy.deepcopy(module, empty)
    return Packed(
        loaded=replace(vae.loaded, module=hollow, files=(), whole=()),
        values={
            name: (dtype_name(value.dtype), tuple(value.shape), value.view(-1).view(torch.uint8).numpy())
            for name, value in state.items()
        },
        check=tensors_sha256(state),
        name=vae.name,
        dtype=dtype_name(vae.dtype),
        encode_dtype=dtype_name(vae.encode_dtype),
        engine=vae.engine.asked,
    )


def unpacked(sent: Packed, device: torch.device) -> VAE:
    """A VAE that was sent, on a device.

    Raises:
        WeightsError: its weights are not those that were sent.
    """
    state = {
        name: torch.from_numpy(values.copy()).view(getattr(torch, dtype)).view(shape)
        for name, (dtype, shape, values) in sent.values.items()
    }
    if (check := tensors_sha256(state)) != sent.check:
        raise WeightsError(
            f"The weights of {sent.name or 'the VAE'} came with sha256 {check[:12]}..., and {sent.check[:12]}... were "
            "sent; look at the machine's memory and network."
        )
    module = copy.deepcopy(sent.loaded.module)
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()
    return VAE(
        replace(sent.loaded, module=module),
        name=sent.name,
        device=device,
        dtype=getattr(torch, sent.dtype),
        encode_dtype=getattr(torch, sent.encode_dtype),
        engine=sent.engine,
    )
