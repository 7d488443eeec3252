"""Single-head attention over all positions of a map, in bounded memory and exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from calotype.engine.blocks import KEYS, QUERIES
from calotype.engine.memory import room
from calotype.steps import Attention, PixelNorm


@dataclass(frozen=True)
class Folded:
    """The four 1x1 convolutions of an attention block as two matrices and two vectors.

    A score q . k = (Wq x + bq) . (Wk y + bk) is (A x + a) . y with A = Wk^T Wq and a = Wk^T bq, but for what is the
    same for every y, and softmax does not see that. And the sum of values p (Wv y + bv), projected by Wo, is
    Wo Wv (sum of p y) + Wo bv + bo, for the p sum to one. So keys and values are the normalised map itself, and need
    no memory.

    Attributes:
        query: [C, C], A with the scale 1 / sqrt(C); `query_bias`: [C].
        out: [C, C], Wo Wv; `out_bias`: [C].
    """

    query: Tensor
    query_bias: Tensor
    out: Tensor
    out_bias: Tensor

    @classmethod
    def of(cls, step: Attention, weights: Mapping[str, Tensor]) -> Folded:
        """From q, k, v and proj_out, multiplied in float64, on the CPU: not every device has it."""

        def matrix(name: str) -> Tensor:
            return part(step, weights, name, "weight").detach().cpu().double().flatten(1)

        def vector(name: str) -> Tensor:
            return part(step, weights, name, "bias").detach().cpu().double()

        q, k = matrix("q"), matrix("k")
        scale = len(q) ** -0.5
        query, query_bias = k.T @ q * scale, vector("q") @ k * scale
        del q, k
        o = matrix("proj_out")
        parts = query, query_bias, o @ matrix("v"), o @ vector("v") + vector("proj_out")
        device = part(step, weights, "q", "weight").device
        return cls(*(one.float().to(device) for one in parts))


def part(step: Attention, weights: Mapping[str, Tensor], name: str, leaf: str) -> Tensor:
    """Weight or bias of q, k, v or proj_out."""
    if not step.fused or name == "proj_out":
        return weights[f"{step.weights}.{name}.{leaf}"]
    return weights[f"{step.weights}.qkv.{leaf}"].chunk(3)["qkv".index(name)]


def normalise(x: Tensor, norm: PixelNorm) -> Tensor:
    """Positions [..., C] over the root mean square of their channels, in place."""
    channels = x.shape[-1]
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_().div_(channels)
    return x.mul_(mean.clamp_min_(norm.least**2 / channels).add_(norm.eps).rsqrt_())


def attend(
    positions: int,
    read: Callable[[int, int, int], Tensor],
    write: Callable[[int, int, Tensor], None],
    folded: Folded,
    scale: Tensor,
    shift: Tensor,
    scratch: Tensor,
    norm: PixelNorm | None = None,
    adds: bool = True,
) -> None:
    """x + proj_out(attention(norm(x))), or without the x, a block of queries and a block of keys at a time.

    The running maximum and sum of each query make the softmax exact whatever the blocks (Milakov & Gimelshein 2018,
    arXiv:1805.02867; Rabe & Staats 2021, arXiv:2112.05682).

    Args:
        positions: of the whole map.
        read: (start, end, slot) -> positions of it [n, C], until the same slot is read again: 0 for queries, 1 for
            keys.
        write: (start, end, values) puts the result, float [n, C].
        scale, shift: [C], the norm, after `norm` where it is one of positions.
        scratch: bytes to work in, `blocks.Job.attention_bytes` of them.
        adds: whether x is added.
    """
    channels = len(scale)
    queries, keys = min(QUERIES, positions), min(KEYS, positions)
    query_room, scratch = room(scratch, (queries, channels))
    mixed_room, scratch = room(scratch, (queries, channels))
    key_room, scratch = room(scratch, (keys, channels))
    score_room, _ = room(scratch, (queries, keys))

    def normalised(into: Tensor, start: int, end: int, slot: int) -> Tensor:
        x = into[: end - start].copy_(read(start, end, slot))
        if norm is not None:
            normalise(x, norm)
        return x.mul_(scale).add_(shift)

    for start in range(0, positions, QUERIES):
        end = min(positions, start + QUERIES)
        n = end - start
        query, mixed = query_room[:n], normalised(mixed_room, start, end, 0)
        torch.addmm(folded.query_bias, mixed, folded.query.T, out=query)
        highest = torch.full((n, 1), float("-inf"), device=query.device)
        total = torch.zeros_like(highest)
        mixed.zero_()
        for first in range(0, positions, KEYS):
            key = normalised(key_room, first, min(positions, first + KEYS), 1)
            scores = score_room.view(-1)[: n * len(key)].view(n, len(key))
            torch.mm(query, key.T, out=scores)
            above = torch.maximum(highest, scores.amax(1, keepdim=True))
            scores.sub_(above).exp_()
            fade = (highest - above).exp_()
            total.mul_(fade).add_(scores.sum(1, keepdim=True))
            mixed.mul_(fade).addmm_(scores, key)
            highest = above
        torch.addmm(folded.out_bias, mixed.div_(total), folded.out.T, out=query)
        write(start, end, query.add_(read(start, end, 0)) if adds else query)
