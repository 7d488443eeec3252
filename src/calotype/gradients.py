"""The engine computes without gradients; where one would be lost, that is said instead."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from calotype.errors import UsageError

_PARTS = {"encode": ("encoder", "quant_conv"), "decode": ("decoder", "post_quant_conv")}


def require_none_lost(direction: Literal["encode", "decode"], given: Tensor | None, module: nn.Module) -> None:
    """Checks that nothing that torch would differentiate is given to what computes without gradients.

    Under `torch.no_grad()` and `torch.inference_mode()` nothing would be, so nothing is refused.

    Args:
        direction: what is to be computed.
        given: of what. None: only weights are looked at.
        module: the network; weights of the other direction do not count.

    Raises:
        UsageError: if what is given, or a weight that takes part, requires gradients.
    """
    if not torch.is_grad_enabled():
        return
    if given is not None and differentiated(given):
        what = "the pixels" if direction == "encode" else "the latents"
    elif any(p.requires_grad for name in _PARTS[direction] if hasattr(module, name)
             for p in getattr(module, name).parameters()):  # fmt: skip
        what = "its weights"
    else:
        return
    raise UsageError(
        f"A VAE's {direction} computes without gradients, and {what} require them: they would be lost. Call "
        f"vae.module.{direction}, which has them, or this under torch.no_grad()."
    )


def differentiated(tensor: Tensor) -> bool:
    """Whether a tensor takes part in reverse or in forward mode differentiation."""
    return tensor.requires_grad or forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
