"""Key tables: how the layouts in circulation call the same tensors. Pure text, no torch.

LDM names are the home: the network's attributes are called so. Tables hold modules; ``.weight`` and ``.bias`` follow.
"""

from __future__ import annotations

import re
from functools import cache

from calotype.families.kl.config import AutoencoderConfig

# (LDM, diffusers). {s} is a side, {i} a level, {r} the same level counted from the other end, {j} a block.
MODULES = (
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
    ("{s}.conv_in", "{s}.conv_in"),
    ("{s}.conv_out", "{s}.conv_out"),
    ("{s}.norm_out", "{s}.conv_norm_out"),
    ("{s}.mid.block_1.{resnet}", "{s}.mid_block.resnets.0.{resnet}"),
    ("{s}.mid.block_2.{resnet}", "{s}.mid_block.resnets.1.{resnet}"),
    ("{s}.mid.attn_1.{attn}", "{s}.mid_block.attentions.0.{attn}"),
    ("encoder.down.{i}.block.{j}.{resnet}", "encoder.down_blocks.{i}.resnets.{j}.{resnet}"),
    ("encoder.down.{i}.attn.{j}.{attn}", "encoder.down_blocks.{i}.attentions.{j}.{attn}"),
    ("encoder.down.{i}.downsample.conv", "encoder.down_blocks.{i}.downsamplers.0.conv"),
    ("decoder.up.{i}.block.{j}.{resnet}", "decoder.up_blocks.{r}.resnets.{j}.{resnet}"),
    ("decoder.up.{i}.attn.{j}.{attn}", "decoder.up_blocks.{r}.attentions.{j}.{attn}"),
    ("decoder.up.{i}.upsample.conv", "decoder.up_blocks.{r}.upsamplers.0.conv"),
    ("decoder.condition_encoder.layers.{j}", "decoder.condition_encoder.layers.{j}"),
)
RESNET = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
)
ATTN = (
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
)
# before diffusers 0.17
ATTN_OLD = (
    ("norm", "group_norm"),
    ("q", "query"),
    ("k", "key"),
    ("v", "value"),
    ("proj_out", "proj_attn"),
)


def diffusers_to_ldm(key: str, levels: int) -> str | None:
    """The LDM name of a diffusers key (old or new attention names), or None if there is none."""
    return _translate(key, levels, source=1)


def ldm_to_diffusers(key: str, levels: int) -> str | None:
    """The diffusers name (new attention names) of an LDM key, or None if there is none."""
    return _translate(key, levels, source=0)


def _translate(key: str, levels: int, source: int) -> str | None:
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
    """The tables as (regular expression, format string); those of attention twice for diffusers' two spellings."""
    patterns = []
    for module in MODULES:
        rows: list[tuple[str, str]] = [module]
        for field, tables in (("resnet", (RESNET,)), ("attn", (ATTN, ATTN_OLD))):
            if f"{{{field}}}" in module[0]:
                pairs = dict.fromkeys(pair for table in tables for pair in table)
                rows = [(a.replace(f"{{{field}}}", x), b.replace(f"{{{field}}}", y)) for x, y in pairs for a, b in rows]
        for row in rows:
            text = re.escape(row[source]).replace(r"\{", "{").replace(r"\}", "}")
            text = text.replace("{s}", "(?P<s>encoder|decoder)")
            text = re.sub(r"\{([irj])\}", r"(?P<\1>[0-9]+)", text)
            patterns.append((re.compile(text), row[1 - source]))
    return patterns


def keras_layers(config: AutoencoderConfig, side: str) -> list[tuple[str, list[str]]]:
    """Layers and keys of encoder or decoder in Keras's order."""
    return keras_encoder(config) if side == "encoder" else keras_decoder(config)


def keras_encoder(config: AutoencoderConfig) -> list[tuple[str, list[str]]]:
    """The encoder's layers and keys in Keras's order: (layer name, LDM modules), quant_conv last."""
    layers = [("conv_in", ["encoder.conv_in"])]
    previous = config.channels[0]
    for i, channels in enumerate(config.channels):
        for j in range(config.num_res_blocks):
            layers.append(_resnet(f"encoder.down.{i}.block.{j}", previous != channels))
            previous = channels
            if i in config.attn_levels:
                layers.append(_attn(f"encoder.down.{i}.attn.{j}"))
        if i < len(config.channels) - 1:
            layers.append((f"down_{i}_downsample", [f"encoder.down.{i}.downsample.conv"]))
    layers += _mid("encoder", config)
    layers += [("norm_out", ["encoder.norm_out"]), ("conv_out", ["encoder.conv_out"])]
    if config.quant_conv:
        layers.append(("quant_conv", ["quant_conv"]))
    return layers


def keras_decoder(config: AutoencoderConfig) -> list[tuple[str, list[str]]]:
    """The decoder's layers and keys in Keras's order: (layer name, LDM modules), post_quant_conv first."""
    layers = [("post_quant_conv", ["post_quant_conv"])] if config.decoder_quant_conv else []
    layers.append(("conv_in", ["decoder.conv_in"]))
    layers += _mid("decoder", config)
    previous = config.decoder_channels[-1]
    for i in reversed(range(len(config.decoder_channels))):
        for j in range(config.decoder_blocks + 1):
            layers.append(_resnet(f"decoder.up.{i}.block.{j}", previous != config.decoder_channels[i]))
            previous = config.decoder_channels[i]
            if i in config.attn_levels:
                layers.append(_attn(f"decoder.up.{i}.attn.{j}"))
        if i > 0:
            layers.append((f"up_{i}_upsample", [f"decoder.up.{i}.upsample.conv"]))
    layers += [("norm_out", ["decoder.norm_out"]), ("conv_out", ["decoder.conv_out"])]
    count = len(config.condition_channels) if config.condition else 0
    return [*layers, *((f"condition_{i}", [f"decoder.condition_encoder.layers.{i}"]) for i in range(count))]


def _mid(side: str, config: AutoencoderConfig) -> list[tuple[str, list[str]]]:
    attn = [_attn(f"{side}.mid.attn_1")] if config.mid_attention else []
    return [_resnet(f"{side}.mid.block_1", False), *attn, _resnet(f"{side}.mid.block_2", False)]


def _resnet(module: str, shortcut: bool) -> tuple[str, list[str]]:
    parts = [ldm for ldm, _ in RESNET if shortcut or ldm != "nin_shortcut"]
    return _layer_name(module), [f"{module}.{part}" for part in parts]


def _attn(module: str) -> tuple[str, list[str]]:
    return _layer_name(module), [f"{module}.{ldm}" for ldm, _ in ATTN]


def _layer_name(module: str) -> str:
    return module.partition(".")[2].replace(".", "_")
