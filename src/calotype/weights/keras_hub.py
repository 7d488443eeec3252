"""What keras-hub calls the VAE of Stable Diffusion 3 (VAEBackbone), in h5 files of Keras 3 and in its config.json.

No torch. The names are those under which Keras 3 saves layers: of the attribute that holds them, and in lists of their
class, counted ("blocks/res_net_block_7/conv1/vars/0"); keras-hub 0.32, vae_backbone.py and vae_layers.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from calotype.errors import WeightsError

# keras-hub's modules -> diffusers'; {resnet} and {attention} are parts of those
_MODULES = {
    "input_projection": "conv_in",
    "output_norm": "conv_norm_out",
    "output_projection": "conv_out",
    "mid_block_0/{resnet}": "mid_block.resnets.0.{resnet}",
    "mid_block_1/{resnet}": "mid_block.resnets.1.{resnet}",
    "mid_attention/{attention}": "mid_block.attentions.0.{attention}",
}
_RESNET = {
    "norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "residual_projection": "conv_shortcut",
}  # fmt: skip
_ATTENTION = {
    "group_norm": "group_norm", "query_conv2d": "to_q", "key_conv2d": "to_k", "value_conv2d": "to_v",
    "output_conv2d": "to_out.0",
}  # fmt: skip
_LEAVES = ("weight", "bias")  # a kernel or gamma, and a bias or beta

_FIXED = {
    module.format(resnet=a, attention=b): theirs.format(resnet=x, attention=y)
    for module, theirs in _MODULES.items()
    for a, x in (_RESNET.items() if "{resnet}" in module else (("", ""),))
    for b, y in (_ATTENTION.items() if "{attention}" in module else (("", ""),))
}
_SIDE = re.compile(r"((?:.*/)?)vae_(encoder|decoder)/(.+)/vars/([01])")
_BLOCK = re.compile(r"blocks/res_net_block(?:_([0-9]+))?")
_IN_BLOCK = re.compile(rf"{_BLOCK.pattern}/({'|'.join(_RESNET)})")
_SAMPLE = re.compile(r"(?:down|up)samples/conv2d(?:_([0-9]+))?")
_TITLE = re.compile(r"block_([0-9]+)_([0-9]+)")

SCALE, SHIFT = 1.5305, 0.0609  # of VAEBackbone, where its config.json says nothing


def names(keys: Iterable[str], titles: Mapping[str, str]) -> dict[str, str]:
    """Keys of a VAE's arrays -> diffusers' names, behind what stands before the VAE's.

    Args:
        keys: all of a file; others are left out.
        titles: what blocks are called in the file: "layers/vae_decoder/blocks/res_net_block_7" -> "block_2_1".

    Raises:
        WeightsError: if its levels have unequal numbers of blocks.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}  # (before, side) -> rest of the name -> key
    for key in keys:
        if match := _SIDE.fullmatch(key):
            before, side, rest, leaf = match.groups()
            found.setdefault((before, side), {})[f"{rest}/{leaf}"] = key
    named = {}
    for (before, side), own in found.items():
        places = _places(list(own), side, {rest: titles.get(f"{before}vae_{side}/{rest}", "") for rest in _blocks(own)})
        for rest, key in own.items():
            module, _, leaf = rest.rpartition("/")
            if theirs := _FIXED.get(module) or _in_list(module, side, places):
                named[key] = f"{before.replace('/', '.')}{side}.{theirs}.{_LEAVES[int(leaf)]}"
            else:
                named[key] = f"{before.replace('/', '.')}{side}.{rest.replace('/', '.')}"
    return named


def _blocks(rests: Iterable[str]) -> set[str]:
    return {match[0] for rest in rests if (match := _BLOCK.match(rest))}


def _places(rests: list[str], side: str, titles: Mapping[str, str]) -> dict[int, tuple[int, int]]:
    """Block, by its number in the list -> its level, from the one that comes first, and its number in that."""
    numbers = {int(match[1] or 0): title for block, title in titles.items() if (match := _BLOCK.fullmatch(block))}
    levels = 1 + len({match[0] for rest in rests if (match := _SAMPLE.match(rest))})
    told = {number: match for number, title in numbers.items() if (match := _TITLE.fullmatch(title))}
    if told.keys() == numbers.keys():
        return {number: (int(match[1]), int(match[2])) for number, match in told.items()}
    each = len(numbers) // levels
    if each * levels != len(numbers) or numbers.keys() != set(range(len(numbers))):
        raise WeightsError(
            f"its {side} has {len(numbers)} blocks for {levels} levels, and VAEs are read whose levels have as many "
            f"each"
        )
    return {number: divmod(number, each) for number in numbers}


def _in_list(module: str, side: str, places: Mapping[int, tuple[int, int]]) -> str | None:
    way = "down" if side == "encoder" else "up"
    if match := _IN_BLOCK.fullmatch(module):
        level, block = places[int(match[1] or 0)]
        return f"{way}_blocks.{level}.resnets.{block}.{_RESNET[match[2]]}"
    if match := _SAMPLE.fullmatch(module):
        return f"{way}_blocks.{match[1] or 0}.{way}samplers.0.conv"
    return None


def fields(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a config.json of keras-hub says of the VAE in it, in the words of diffusers'; None if it is no such file.

    The VAE is all of it, or a part of a model (StableDiffusion3Backbone).
    """
    if not isinstance(values.get("class_name"), str):
        return None
    config = values.get("config")
    vae = config.get("vae") if isinstance(config, dict) and values["class_name"] != "VAEBackbone" else values
    if not isinstance(vae, dict) or vae.get("class_name") != "VAEBackbone" or not isinstance(vae.get("config"), dict):
        return None
    said: dict[str, Any] = vae["config"]
    channels = said.get("sample_channels")
    told = {
        "block_out_channels": said.get("encoder_num_filters"),
        "in_channels": said.get("input_channels"),
        "out_channels": said.get("output_channels"),
        "latent_channels": channels // 2 if type(channels) is int else channels,
        "norm_num_groups": 32,
        "scaling_factor": said.get("scale", SCALE),
        "shift_factor": said.get("shift", SHIFT),
    }
    return {key: value for key, value in told.items() if value is not None}
