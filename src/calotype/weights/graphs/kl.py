"""Halves of AutoencoderKL in graphs: every weight by its place.

From the end on, each sum is a residual block or attention, each convolution after an enlargement or with a stride ends
a level, and the one without is the first. So it is in diffusers' AutoencoderKL (0.42.1), whose names are given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from calotype.weights.graphs.terms import Act, Attention, Conv, Doubled, Input, Linear, Norm, Sum, Term, Value, bare
from calotype.weights.graphs.walk import (
    Half,
    Side_,
    Unfit,
    add_conv,
    add_norm,
    begins_with,
    described,
    ends_in,
    factor,
    square,
)

RESNET, ATTENTION, DOWN, UP = "resnet", "attention", "down", "up"


@dataclass(frozen=True)
class _Block:
    """A part of a level; `parts` by their names in diffusers, norms before what they are for."""

    kind: str
    parts: dict[str, Conv | Linear | Norm] = field(default_factory=dict)
    activation: str = ""


def halves(outputs: Sequence[Value]) -> list[Half]:
    """The decoder, the encoder, or both, whose output a graph gives.

    Raises:
        Unfit: it is of no AutoencoderKL; says why.
    """
    last, around = ends_in(outputs)
    found: list[Half] = []
    while True:
        half, begin = _half(last, around)
        found.append(half)
        if isinstance(begin, Input):
            break
        if half.side == "encoder" or len(found) > 1:
            raise Unfit(f"before its first convolution stands {described(begin)}")
        last, around = ends_in([begin])
    return found


def _half(last: Conv, around: list[str]) -> tuple[Half, Term]:
    """One half, and what goes into it."""
    quant = last if square(last, 1) and isinstance(last.x, Conv) else None
    conv_out = last.x if quant and isinstance(last.x, Conv) else last
    norm, activation = _activated(conv_out.x)
    if norm is None or activation != "silu" or not square(conv_out, 3):
        raise Unfit(f"before its last convolution, {conv_out.at}, stands no norm with SiLU but {described(conv_out.x)}")
    blocks, conv_in = _blocks(norm.x)
    post = conv_in.x if isinstance(conv_in.x, Conv) and square(conv_in.x, 1) else None
    begin, before = begins_with(post.x if post else conv_in.x)
    half = Half(side=_side(blocks, quant, post, begin), around=tuple(dict.fromkeys([*before, *around])))
    side = half.side
    if quant:
        add_conv(half, "quant_conv", quant)
    if post:
        add_conv(half, "post_quant_conv", post)
    add_conv(half, f"{side}.conv_in", conv_in)
    kinds = {block.activation for block in blocks if block.activation}
    if len(kinds) > 1:
        raise Unfit(f"its blocks have different activations ({', '.join(sorted(kinds))})")
    half.activation = kinds.pop() if kinds else "silu"
    for name, block in _named(side, blocks):
        _add(half, name, block)
    add_norm(half, f"{side}.conv_norm_out", norm, conv_out.weight.shape[1])
    add_conv(half, f"{side}.conv_out", conv_out)
    return half, begin


def _side(blocks: Sequence[_Block], quant: Conv | None, post: Conv | None, begin: Term) -> Side_:
    kinds = {block.kind for block in blocks}
    encodes, decodes = DOWN in kinds or quant is not None, UP in kinds or post is not None
    if encodes and decodes:
        raise Unfit("it makes its maps both smaller and larger")
    if not encodes and not decodes:
        name = begin.name.lower() if isinstance(begin, Input) else ""
        return "decoder" if "latent" in name or name == "z" else "encoder"
    return "encoder" if encodes else "decoder"


def _activated(term: Term) -> tuple[Norm | None, str]:
    """The norm before an activation, and the activation."""
    if isinstance(term, Act) and isinstance(term.x, Norm):
        return term.x, term.kind
    return None, ""


def _blocks(h: Term) -> tuple[list[_Block], Conv]:
    """All blocks, from the first on, and the convolution before them."""
    blocks: list[_Block] = []
    while True:
        if isinstance(h, Sum):
            block, h = _residual(h)
        elif isinstance(h, Conv) and h.stride == (2, 2):
            if h.weight.shape[2:] != (3, 3) or h.pads != (0, 0, 1, 1):
                raise Unfit(f"{h.at} halves its maps otherwise than by 3x3 pixels with zeros on the right and below")
            block, h = _Block(DOWN, {"conv": h}), h.x
        elif isinstance(h, Conv) and square(h, 3) and isinstance(h.x, Doubled):
            block, h = _Block(UP, {"conv": h}), h.x.x
        elif isinstance(h, Conv) and square(h, 3):
            return blocks[::-1], h
        else:
            raise Unfit(f"where a block ends, stands {described(h)}")
        blocks.append(block)


def _residual(total: Sum) -> tuple[_Block, Term]:
    """The block that ends in a sum, and what goes into it."""
    for branch, skip in ((total.x, total.y), (total.y, total.x)):
        if found := _resnet(branch, skip) or _attention(branch, skip):
            return found
    for branch in (total.x, total.y):  # of a residual block the second convolution, and the first
        norm, _ = _activated(branch.x) if isinstance(branch, Conv) else (None, "")
        if norm is not None and isinstance(norm.x, Conv) and _activated(norm.x.x)[0] is None:
            raise Unfit(f"before {norm.x.at} stands no norm with an activation, but {described(norm.x.x)}")
    raise Unfit(f"the sum {total.at} is neither a residual block's nor that of attention")


def _resnet(branch: Term, skip: Term) -> tuple[_Block, Term] | None:
    if not isinstance(branch, Conv) or not square(branch, 3):
        return None
    norm2, second = _activated(branch.x)
    conv1 = norm2.x if norm2 else None
    if norm2 is None or not isinstance(conv1, Conv) or not square(conv1, 3):
        return None
    norm1, first = _activated(conv1.x)
    if norm1 is None or first != second:
        return None
    h = norm1.x
    parts: dict[str, Conv | Linear | Norm] = {"norm1": norm1, "conv1": conv1, "norm2": norm2, "conv2": branch}
    if skip is not h:
        if not (isinstance(skip, Conv) and square(skip, 1) and skip.x is h):
            return None
        parts["conv_shortcut"] = skip
    return _Block(RESNET, parts, first), h


def _projection(term: Term) -> Conv | Linear | None:
    term = bare(term)
    if isinstance(term, Linear) or (isinstance(term, Conv) and square(term, 1)):
        return term
    return None


def _attention(branch: Term, skip: Term) -> tuple[_Block, Term] | None:
    out = _projection(branch)
    attended = bare(out.x) if out else None
    if out is None or not isinstance(attended, Attention):
        return None
    made = [_projection(one) for one in (attended.q, attended.k, attended.v)]
    q, k, v = made
    if q is None or k is None or v is None:
        raise Unfit(f"queries, keys and values of {attended.at} do not come from a linear layer each")
    norm = bare(q.x)
    if not isinstance(norm, Norm) or bare(k.x) is not norm or bare(v.x) is not norm:
        raise Unfit(f"queries, keys and values of {attended.at} do not come from one norm")
    h = bare(norm.x)
    if bare(skip) is not h:
        return None
    size = q.bias.count if q.bias else max(q.weight.shape)
    scale = size**-0.5 if attended.usual and not attended.scales else factor(attended.scales, size)
    if attended.usual and attended.scales and scale is not None:
        scale *= size**-0.5
    if scale is None or not math.isclose(scale, size**-0.5, rel_tol=5e-3):
        told = "can't be told" if scale is None else f"is {scale:g}"
        raise Unfit(
            f"the scale of {attended.at} {told}, and attention of one head has {size**-0.5:g} for {size} channels"
        )
    return _Block(ATTENTION, {"group_norm": norm, "to_q": q, "to_k": k, "to_v": v, "to_out.0": out}), h


def _named(side: Side_, blocks: Sequence[_Block]) -> list[tuple[str, _Block]]:
    """Blocks with their names: levels end where sizes change, and the middle is at the lowest size."""
    levels: list[list[_Block]] = [[]]
    ends: list[_Block] = []
    for block in blocks:
        if block.kind in (DOWN, UP):
            ends.append(block)
            levels.append([])
        else:
            levels[-1].append(block)
    where = -1 if side == "encoder" else 0
    low = levels[where]
    places = [i for i, block in enumerate(low) if block.kind == RESNET]
    if len(places) < 3:
        raise Unfit(
            f"at its lowest size are {len(places)} residual blocks, and an AutoencoderKL has at least three there"
        )
    cut = places[-2] if side == "encoder" else places[2]
    middle, levels[where] = (low[cut:], low[:cut]) if side == "encoder" else (low[:cut], low[cut:])
    if [block.kind for block in middle] not in ([RESNET, ATTENTION, RESNET], [RESNET, RESNET]):
        raise Unfit("its middle is neither two residual blocks nor two with attention between")
    named = _counted(f"{side}.mid_block", middle)
    stem = "down_blocks" if side == "encoder" else "up_blocks"
    for i, level in enumerate(levels):
        kinds = [block.kind for block in level]
        resnets = kinds.count(RESNET)
        if kinds not in ([RESNET] * resnets, [RESNET, ATTENTION] * resnets):
            raise Unfit(f"its level {i} has attention after some of its residual blocks, and not after others")
        named += _counted(f"{side}.{stem}.{i}", level)
        if i < len(ends):
            kind = "downsamplers" if side == "encoder" else "upsamplers"
            named.append((f"{side}.{stem}.{i}.{kind}.0", ends[i]))
    return named


def _counted(stem: str, blocks: Sequence[_Block]) -> list[tuple[str, _Block]]:
    """Blocks with their names, each kind counted by itself."""
    count: dict[str, int] = {}
    named = []
    for block in blocks:
        kind = "resnets" if block.kind == RESNET else "attentions"
        named.append((f"{stem}.{kind}.{count.setdefault(kind, 0)}", block))
        count[kind] += 1
    return named


def _add(half: Half, name: str, block: _Block) -> None:
    """Adds all weights of a block; a norm has as many channels as what comes after it takes."""
    after = {"norm1": "conv1", "norm2": "conv2", "group_norm": "to_q"}
    for part, one in block.parts.items():
        if isinstance(one, Norm):
            taken = block.parts[after[part]]
            assert not isinstance(taken, Norm)
            turned = isinstance(taken, Linear) and not taken.transposed
            add_norm(half, f"{name}.{part}", one, taken.weight.shape[0 if turned else 1])
        else:
            add_conv(half, f"{name}.{part}", one)
