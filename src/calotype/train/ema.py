"""An exponential moving average of weights, kept in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """Shadow of a module's parameters: shadow <- d * shadow + (1 - d) * parameter after every step.

    The decay warms up as (1 + n) / (10 + n), as in CompVis/latent-diffusion (ldm/modules/ema.py), so that the first
    random weights are forgotten soon.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().float().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes one step towards the module's parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_(
            list(self.shadow.values()), [parameters[name].float() for name in self.shadow], 1.0 - decay
        )

    def state_dict(self) -> dict[str, Tensor | int]:
        """Everything needed to go on later."""
        return {**self.shadow, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """The inverse of `state_dict`."""
        for name, value in state.items():
            if isinstance(value, int):
                self.updates = value
            else:
                self.shadow[name].copy_(value)
