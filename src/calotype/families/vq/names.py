"""What diffusers calls the tensors of a VQModel. No torch.

Our keys are those of latent-diffusion's and Kandinsky's files. Tables hold modules; ``.weight`` and ``.bias`` follow.
"""

from __future__ import annotations

import re
from functools import cache

CODEBOOK = "quantize.embedding.weight"  # in every layout

# (ours, diffusers'). {s} is a side, {i} a level, {r} the same level counted from the other end, {j} a block.
MODULES = (
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
    ("{s}.conv_in", "{s}.conv_in"),
    ("{s}.conv_out", "{s}.conv_out"),
    ("{s}.norm_out{norm}", "{s}.conv_norm_out{norm}"),
    ("{s}.mid.block_1.{resnet}", "{s}.mid_block.resnets.0.{resnet}"),
    ("{s}.mid.block_2.{resnet}", "{s}.mid_block.resnets.1.{resnet}"),
    ("{s}.mid.attn_1.{attn}", "{s}.mid_block.attentions.0.{attn}"),
    ("encoder.down.{i}.block.{j}.{resnet}", "encoder.down_blocks.{i}.resnets.{j}.{resnet}"),
    ("encoder.down.{i}.attn.{j}.{attn}", "encoder.down_blocks.{i}.attentions.{j}.{attn}"),
    ("encoder.down.{i}.downsample.conv", "encoder.down_blocks.{i}.downsamplers.0.conv"),
    ("decoder.up.{i}.block.{j}.{resnet}", "decoder.up_blocks.{r}.resnets.{j}.{resnet}"),
    ("decoder.up.{i}.attn.{j}.{attn}", "decoder.up_blocks.{r}.attentions.{j}.{attn}"),
    ("decoder.up.{i}.upsample.conv", "decoder.up_blocks.{r}.upsamplers.0.conv"),
)
# of a norm: its own, and where it follows the latents those of its three parts
SPATIAL = ("norm_layer", "conv_y", "conv_b")
NORM = (("", ""), *((f".{part}", f".{part}") for part in SPATIAL))
RESNET = (
    *((f"norm1{ours}", f"norm1{theirs}") for ours, theirs in NORM),
    ("conv1", "conv1"),
    *((f"norm2{ours}", f"norm2{theirs}") for ours, theirs in NORM),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
)
ATTN = (
    ("norm", "group_norm"),
    *((f"norm.{part}", f"spatial_norm.{part}") for part in SPATIAL),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
    # before diffusers 0.17
    ("q", "query"),
    ("k", "key"),
    ("v", "value"),
    ("proj_out", "proj_attn"),
)
PARTS = (("norm", NORM), ("resnet", RESNET), ("attn", ATTN))


def from_diffusers(key: str, levels: int) -> str | None:
    """Our key of diffusers' name (old or new attention names), or None if there is none."""
    return _translate(key, levels, source=1)


def to_diffusers(key: str, levels: int) -> str | None:
    """diffusers' name (new attention names) of one of our keys, or None if there is none."""
    return _translate(key, levels, source=0)


def _translate(key: str, levels: int, source: int) -> str | None:
    if key == CODEBOOK:
        return key
    module, _, leaf = key.rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    for pattern, target in _patterns(source):
        if match := pattern.fullmatch(module):
            fields = match.groupdict()
            if "i" in fields:
                fields["r"] = str(levels - 1 - int(fields["i"]))
            elif "r" in fields:
                fields["i"] = str(levels - 1 - int(fields["r"]))
            return f"{target.format(**fields)}.{leaf}"
    return None


@cache
def _patterns(source: int) -> list[tuple[re.Pattern[str], str]]:
    """The tables as (regular expression, format string)."""
    patterns = []
    for module in MODULES:
        rows: list[tuple[str, str]] = [module]
        for field, table in PARTS:
            if f"{{{field}}}" in module[0]:
                rows = [(a.replace(f"{{{field}}}", x), b.replace(f"{{{field}}}", y)) for x, y in table for a, b in rows]
        for row in rows:
            text = re.escape(row[source]).replace(r"\{", "{").replace(r"\}", "}")
            text = text.replace("{s}", "(?P<s>encoder|decoder)")
            text = re.sub(r"\{([irj])\}", r"(?P<\1>[0-9]{1,4})", text)
            patterns.append((re.compile(text), row[1 - source]))
    return patterns
