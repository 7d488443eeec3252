"""What the tensors of HunyuanImage 2.1's VAE are called. No torch.

Our keys are those of Tencent's file. diffusers counts blocks and changes of size of a side in one row.
"""

from __future__ import annotations

import re

MID = (("block_1", "resnets.0"), ("attn_1", "attentions.0"), ("block_2", "resnets.1"))
ATTN = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "proj"), ("norm", "norm"))


def to_diffusers(key: str, blocks: int) -> str | None:
    """diffusers' name of one of our keys; `blocks` are the encoder's of a level."""
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.(\w+)\.(.+)", key):
        side, part, rest = match.groups()
        if part == "attn_1":
            name, _, leaf = rest.partition(".")
            rest = f"{dict(ATTN).get(name, name)}.{leaf}"
        return f"{side}.mid_block.{dict(MID)[part]}.{rest}" if part in dict(MID) else None
    if match := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d+)\.(?:block\.(\d+)|(?:down|up)sample)\.(.+)", key):
        row, level, block, rest = match.groups()
        n = blocks + (row == "decoder.up")
        return f"{row}_blocks.{int(level) * (n + 1) + int(block if block else n)}.{rest}"
    return key


def from_diffusers(name: str, blocks: int) -> str | None:
    """Our key of diffusers' name; None if there is none."""
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.(\w+\.\d)\.(.+)", name):
        side, part, rest = match.groups()
        ours = {theirs: ours for ours, theirs in MID}.get(part)
        if ours == "attn_1":
            first, _, leaf = rest.partition(".")
            rest = f"{ {theirs: ours for ours, theirs in ATTN}.get(first, first) }.{leaf}"
        return f"{side}.mid.{ours}.{rest}" if ours else None
    if match := re.fullmatch(r"(encoder\.(down)|decoder\.(up))_blocks\.(\d+)\.(.+)", name):
        row, down, up, index, rest = match.groups()
        n = blocks + (row == "decoder.up")
        level, block = divmod(int(index), n + 1)
        return f"{row}.{level}.{down or up}sample.{rest}" if block == n else f"{row}.{level}.block.{block}.{rest}"
    return name if re.fullmatch(r"(encoder|decoder)\.(conv_in|norm_out|conv_out)\.(weight|bias)", name) else None
