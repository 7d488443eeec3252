"""Muon for the matrices inside convolutions, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from calotype.train.model import Model
from calotype.train.recipe import Recipe


def orthogonalize(g: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to G (all singular values near 1), by five Newton-Schulz steps.

    The quintic of Keller Jordan's Muon (https://kellerjordan.github.io/posts/muon). It is run on the Gram matrix
    G G^T: each step multiplies G from the left by a polynomial of it, so the wide matrix is touched twice only.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    rows, columns = g.shape
    if rows > columns:
        return orthogonalize(g.T).T
    g = g / (g.norm() + 1e-7)
    gram = g @ g.T
    left = torch.eye(rows, device=g.device, dtype=g.dtype)
    for _ in range(5):
        step = b * gram + c * gram @ gram
        step.diagonal().add_(a)
        left = step @ left
        gram = step @ gram @ step
    return left @ g


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; convolution weights are seen as [out, in * kh * kw] matrices.

    The update is scaled by sqrt(max(1, rows / columns)), and weight decay is decoupled, as in the original.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state: dict[str, Any] = self.state[p]
                buffer = state.setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(buffer, group["momentum"]).flatten(1))
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"] * scale)


def _hidden(model: Model) -> list[str]:
    """Names of the convolutions inside encoder and decoder: all but the first and the last of each.

    One of several groups (a depthwise one) is many small matrices, and no single one.
    """
    names: list[str] = []
    for half in ("encoder", "decoder"):
        of_half = getattr(model.network, half).named_modules(prefix=f"network.{half}")
        names += [f"{name}.weight" for name, m in of_half if isinstance(m, nn.Conv2d) and m.groups == 1][1:-1]
    return names


def _of_norms(model: Model) -> set[str]:
    """Names of what norms multiply by and add, whatever their kind: modules that have vectors only."""
    found: set[str] = set()
    for prefix, module in model.network.named_modules(prefix="network"):
        own = dict(module.named_parameters(prefix=prefix, recurse=False))
        if own and all(p.ndim == 1 for p in own.values()):
            found |= own.keys()
    return found


def optimisers_of(recipe: Recipe, module: Model) -> list[torch.optim.Optimizer]:
    """What trains a model's parameters: Muon for the matrices of hidden convolutions where asked for, and Adam.

    Norms have no weight decay: it would pull maps to zero, and not weights.
    """
    adam = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimisers: list[torch.optim.Optimizer] = []
    if recipe.optimiser == "muon":
        matrices = [adam.pop(name) for name in _hidden(module) if name in adam]
        optimisers.append(Muon(matrices, recipe.muon_rate, weight_decay=recipe.weight_decay))
    kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.AdamW
    decay = 0.0 if recipe.optimiser == "adam" else recipe.weight_decay
    of_norms = _of_norms(module) if decay else set()
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in adam.items() if (name in of_norms) == norms], "weight_decay": rate}
        for norms, rate in ((False, decay), (True, 0.0))
    ]
    groups = [group for group in groups if group["params"]]
    optimisers.append(kind(groups, recipe.learning_rate, betas=recipe.betas))
    return optimisers
