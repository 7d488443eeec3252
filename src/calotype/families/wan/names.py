"""Key tables: what the original files and diffusers call the tensors. Pure text, no torch.

Names of levels count from what is computed first, in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal

Names = Literal["ldm", "diffusers"]

# of a residual block: (ours, original, diffusers)
BLOCK = (
    ("norm1.weight", "residual.0.gamma", "norm1.gamma"),
    ("conv1", "residual.2", "conv1"),
    ("norm2.weight", "residual.3.gamma", "norm2.gamma"),
    ("conv2", "residual.6", "conv2"),
    ("nin_shortcut", "shortcut", "conv_shortcut"),
)
# of attention, the same in both
ATTN = (("norm.weight", "norm.gamma"), ("qkv", "to_qkv"), ("proj_out", "proj"))

# all but the levels
ENDS = (
    ("quant_conv", "conv1", "quant_conv"),
    ("post_quant_conv", "conv2", "post_quant_conv"),
    ("{s}.conv_in", "{s}.conv1", "{s}.conv_in"),
    ("{s}.norm_out.weight", "{s}.head.0.gamma", "{s}.norm_out.gamma"),
    ("{s}.conv_out", "{s}.head.2", "{s}.conv_out"),
    ("{s}.mid.block_1.{block}", "{s}.middle.0.{block}", "{s}.mid_block.resnets.0.{block}"),
    ("{s}.mid.attn_1.{attn}", "{s}.middle.1.{attn}", "{s}.mid_block.attentions.0.{attn}"),
    ("{s}.mid.block_2.{block}", "{s}.middle.2.{block}", "{s}.mid_block.resnets.1.{block}"),
)


@cache
def theirs(names: Names, residual: bool, levels: int, blocks: int, attn_levels: tuple[int, ...]) -> Mapping[str, str]:
    """Our key -> the key in files of these names, of a network with so many levels and blocks a level."""
    found = {}
    rows = [*_ends(names), *_encoder(names, residual, levels, blocks, attn_levels)]
    rows += _decoder(names, residual, levels, blocks)
    for ours, other in rows:
        if other.endswith(".gamma"):
            found[ours] = other
        else:
            found |= {f"{ours}.{leaf}": f"{other}.{leaf}" for leaf in ("weight", "bias")}
    return found


def over_time(needed: Mapping[str, str]) -> dict[str, str]:
    """Our key -> the key in files, of convolutions over time: for one picture they do nothing.

    Args:
        needed: what `theirs` gives.
    """
    found = {}
    for ours, other in needed.items():
        if other.endswith(".resample.1.weight"):
            for leaf in ("weight", "bias"):
                ours_there = f"{ours.removesuffix('.conv.weight')}.time_conv.{leaf}"
                found[ours_there] = f"{other.removesuffix('.resample.1.weight')}.time_conv.{leaf}"
    return found


def resampler(names: Names, side: str, level: int, blocks: int) -> str:
    """The module that changes the size after a level of a network.

    Args:
        blocks: residual blocks of the level.
    """
    stem = _stem(names, side)
    if names == "ldm":
        return f"{stem}.{level}.{stem.partition('.')[2]}.{blocks}"
    return f"{stem}.{level}.{'down' if side == 'encoder' else 'up'}sampler"


def _stem(names: Names, side: str) -> str:
    if names == "ldm":
        return f"{side}.{'down' if side == 'encoder' else 'up'}samples"
    return f"{side}.{'down' if side == 'encoder' else 'up'}_blocks"


def _parts(ours: str, other: str, rows: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, str]]:
    for a, b in rows:
        yield f"{ours}.{a}", f"{other}.{b}"


def _block(names: Names, ours: str, other: str) -> Iterator[tuple[str, str]]:
    return _parts(ours, other, tuple((row[0], row[1 if names == "ldm" else 2]) for row in BLOCK))


def _ends(names: Names) -> Iterator[tuple[str, str]]:
    for row in ENDS:
        ours, other = row[0], row[1 if names == "ldm" else 2]
        for side in ("encoder", "decoder") if "{s}" in ours else ("",):
            a, b = (text.replace("{s}", side) for text in (ours, other))
            if "{block}" in ours:
                yield from _block(names, a.removesuffix(".{block}"), b.removesuffix(".{block}"))
            elif "{attn}" in ours:
                yield from _parts(a.removesuffix(".{attn}"), b.removesuffix(".{attn}"), ATTN)
            else:
                yield a, b


def _encoder(
    names: Names, residual: bool, levels: int, blocks: int, attn_levels: tuple[int, ...]
) -> Iterator[tuple[str, str]]:
    stem = _stem(names, "encoder")
    at = 0  # without shortcuts all stand in one row
    for i in range(levels):
        for j in range(blocks):
            inner = f"{i}.{'downsamples' if names == 'ldm' else 'resnets'}.{j}" if residual else str(at)
            yield from _block(names, f"encoder.down.{i}.block.{j}", f"{stem}.{inner}")
            at += 1
            if i in attn_levels:
                yield from _parts(f"encoder.down.{i}.attn.{j}", f"{stem}.{at}", ATTN)
                at += 1
        if i < levels - 1:
            module = resampler(names, "encoder", i, blocks) if residual else f"{stem}.{at}"
            yield f"encoder.down.{i}.downsample.conv", f"{module}.resample.1"
            at += 1


def _decoder(names: Names, residual: bool, levels: int, blocks: int) -> Iterator[tuple[str, str]]:
    stem = _stem(names, "decoder")
    at = 0
    for i in range(levels):
        for j in range(blocks + 1):
            inner = f"{i}.{'upsamples' if names == 'ldm' else 'resnets'}.{j}"
            if names == "ldm" and not residual:
                inner = str(at)
            yield from _block(names, f"decoder.up.{i}.block.{j}", f"{stem}.{inner}")
            at += 1
        if i < levels - 1:
            module = resampler(names, "decoder", i, blocks + 1)
            if not residual:
                module = f"{stem}.{at}" if names == "ldm" else f"{stem}.{i}.upsamplers.0"
            yield f"decoder.up.{i}.upsample.conv", f"{module}.resample.1"
            at += 1
