"""What a DC-AE's tensors are called in diffusers (0.42.1) and in the original files, whose names are ours. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from calotype.families.dcae.config import DcaeConfig

# (ours, diffusers'): modules outside of the levels
ENDS = (
    ("encoder.project_out.main.op_list.0.conv", "encoder.conv_out"),
    ("decoder.project_in.main.conv", "decoder.conv_in"),
    ("decoder.project_out.op_list.0", "decoder.norm_out"),
    ("decoder.project_out.op_list.2.conv", "decoder.conv_out"),
    ("decoder.project_out.op_list.2.conv.conv", "decoder.conv_out.conv"),
)
# those of a block
PARTS = (
    ("main.conv1.conv", "conv1"),
    ("main.conv2.conv", "conv2"),
    ("main.conv2.norm", "norm"),
    ("context_module.main.proj.conv", "attn.to_out"),
    ("context_module.main.proj.norm", "attn.norm_out"),
    ("local_module.main.inverted_conv.conv", "conv_out.conv_inverted"),
    ("local_module.main.depth_conv.conv", "conv_out.conv_depth"),
    ("local_module.main.point_conv.conv", "conv_out.conv_point"),
    ("local_module.main.point_conv.norm", "conv_out.norm"),
)
# those of attention's further scales
SCALE = ("proj_in", "proj_out")
# what is one convolution here, and three layers there, whose rows follow one another
QKV, TO_QKV = "context_module.main.qkv.conv", ("attn.to_q", "attn.to_k", "attn.to_v")
# a change of resolution: that of an encoder with strides is a convolution itself
RESIZED, STRIDED, THEIR_RESIZED = "main.conv.conv", "main.conv", "conv"


# where pixels go in: that of an encoder whose first level has no blocks is a change of resolution too
IN, IN_RESIZED, THEIR_IN, THEIR_IN_RESIZED = (
    "encoder.project_in.conv",
    "encoder.project_in.conv.conv",
    "encoder.conv_in",
    "encoder.conv_in.conv",
)


def to_diffusers(key: str, config: DcaeConfig) -> tuple[str, ...]:
    """The diffusers names of one of our keys; three where it is q, k and v in one, none where there is no such key."""
    module, _, leaf = key.rpartition(".")
    if module in (IN, IN_RESIZED):
        named = [THEIR_IN if config.encoder_blocks[0] else THEIR_IN_RESIZED]
    elif match := re.fullmatch(r"(encoder|decoder)\.stages\.([0-9]+)\.op_list\.([0-9]+)\.(.+)", module):
        side, level, i, part = match.groups()
        blocks = "down_blocks" if side == "encoder" else "up_blocks"
        named = [f"{side}.{blocks}.{level}.{i}.{name}" for name in _their_part(part)]
    else:
        named = [theirs for ours, theirs in ENDS if ours == module]
    return tuple(f"{name}.{leaf}" for name in named)


def _their_part(name: str) -> Sequence[str]:
    if name == QKV:
        return TO_QKV
    if name in (RESIZED, STRIDED):
        return (THEIR_RESIZED,)
    if match := re.fullmatch(r"context_module\.main\.aggreg\.([0-9]+)\.([01])", name):
        return (f"attn.to_qkv_multiscale.{match[1]}.{SCALE[int(match[2])]}",)
    return [theirs for ours, theirs in PARTS if ours == name]


def from_diffusers(key: str, strided: bool) -> tuple[str, int | None] | None:
    """Our name of a diffusers key, and which of q, k and v it is; None if there is no such key.

    Args:
        strided: whether the encoder halves by strides.
    """
    module, _, leaf = key.rpartition(".")
    found: tuple[str, int | None] | None = None
    if module in (THEIR_IN, THEIR_IN_RESIZED):
        found = (IN if module == THEIR_IN or strided else IN_RESIZED), None
    elif match := re.fullmatch(r"(encoder\.down|decoder\.up)_blocks\.([0-9]+)\.([0-9]+)\.(.+)", module):
        side, level, i, part = match.groups()
        inner = _our_part(part, strided and side == "encoder.down")
        found = inner and (f"{side.partition('.')[0]}.stages.{level}.op_list.{i}.{inner[0]}", inner[1])
    else:
        found = next(((ours, None) for ours, theirs in ENDS if theirs == module), None)
    return found and (f"{found[0]}.{leaf}", found[1])


def _our_part(name: str, strided: bool) -> tuple[str, int | None] | None:
    if name in TO_QKV:
        return QKV, TO_QKV.index(name)
    if name == THEIR_RESIZED:
        return STRIDED if strided else RESIZED, None
    if match := re.fullmatch(r"attn\.to_qkv_multiscale\.([0-9]+)\.(proj_in|proj_out)", name):
        return f"context_module.main.aggreg.{match[1]}.{SCALE.index(match[2])}", None
    return next(((ours, None) for ours, theirs in PARTS if theirs == name), None)
