"""How a DC-AE is told by the names and shapes of its tensors. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from math import gcd
from typing import Any

from calotype.errors import WeightsError
from calotype.families.dcae.config import DcaeConfig, NormName, Up, attends, tells_heads
from calotype.families.dcae.names import TO_QKV, from_diffusers
from calotype.families.face import Group, Parts, Shapes, Sign, Told, listing, require_one_picture, shape_of
from calotype.families.numbers import MOST_LEVELS

# the first tensor of the second level, which always has blocks
ORIGINAL = Sign(
    first=re.compile(
        r"((?:.*?\.)?)(?:encoder|decoder)\.stages\.1\.op_list\.0\."
        r"(?:main\.conv\.conv|main\.conv1\.conv|context_module\.main\.qkv\.conv)\.weight"
    ),
    own=re.compile(r"(?s)(encoder|decoder)\..+"),
    layout="ldm",
)
DIFFUSERS = Sign(
    first=re.compile(
        r"((?:.*?\.)?)(?:encoder\.down_blocks|decoder\.up_blocks)\.1\.0\.(?:conv|conv1|attn\.to_q)\.weight"
    ),
    own=re.compile(r"(?s)(encoder|decoder)\..+"),
    layout="diffusers",
)


def tell(shapes: Shapes, group: Group, norm_groups: int | None) -> Told:
    """What a group of tensors is. Activations are those of the published networks, which shapes do not tell."""
    keys, joined_keys = _keys(shapes, group)
    ours = {name: shapes[key] for name, key in keys.items()}
    for name, thirds in joined_keys.items():
        rows, *rest = shapes[thirds[0]]
        ours[name] = (len(thirds) * rows, *rest)
    parts: Parts = frozenset(
        side for side in ("encoder", "decoder") if any(name.startswith(f"{side}.") for name in ours)
    )
    config = _config(ours, parts)
    heads = (
        ""
        if tells_heads(config) or not attends(config)
        else f", and heads of its attention to have {config.head_dim} channels"
    )
    return Told(
        layout="diffusers" if group.sign is DIFFUSERS else "ldm",
        config=config,
        parts=parts,
        keys=keys,
        joined=joined_keys,
        assumed=f"Its activations are taken to be those of the published network of its shape{heads}",
    )


def _keys(shapes: Shapes, group: Group) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Our keys -> those in the file: one, or several whose rows follow one another."""
    if group.sign is ORIGINAL:
        return dict(group.keys), {}
    keys: dict[str, str] = {}
    thirds: dict[str, dict[int, str]] = {}
    unknown: list[str] = []
    strided = _strided({name: shapes[key] for name, key in group.keys.items()})
    for name, key in group.keys.items():
        found = from_diffusers(name, strided)
        if found is None:
            unknown.append(key)
        elif found[1] is not None:
            thirds.setdefault(found[0], {})[found[1]] = key
        else:
            keys[found[0]] = key
    if unknown:
        raise WeightsError(f"{listing('unexpected', unknown)} in a DC-AE")
    for name, found_parts in thirds.items():
        there = list(found_parts.values())
        if len(there) != len(TO_QKV) or len({shapes[key] for key in there}) != 1 or not shapes[there[0]]:
            raise WeightsError(f"{name} needs q, k and v of one shape, and there {listing('are the', sorted(there))}")
    return keys, {name: tuple(thirds[name][i] for i in range(len(TO_QKV))) for name in thirds}


def _strided(theirs: Shapes) -> bool:
    """Whether an encoder under diffusers' names halves by strides: then its convolutions make all of the channels."""
    for name, shape in theirs.items():
        match = re.fullmatch(r"encoder\.(?:down_blocks\.([0-9]+)\.[0-9]+|conv_in)\.conv\.weight", name)
        if match is not None:
            after = f"encoder.down_blocks.{int(match[1] or 0) + 1}.0"
            first = theirs.get(f"{after}.conv1.weight") or theirs.get(f"{after}.attn.to_q.weight", ())
            return len(first) > 1 and shape[:1] == first[1:2]
    return False


def _config(shapes: Shapes, parts: Parts) -> DcaeConfig:
    """The configuration that has these tensors (our keys), as far as shapes tell."""
    told: dict[str, Any] = {}
    for side in parts:
        told |= _side(shapes, side)
    if len(parts) == 1:  # the other half is as its own
        own, other = ("encoder", "decoder") if "encoder" in parts else ("decoder", "encoder")
        told |= {f"{other}_{field}": told[f"{own}_{field}"] for field in ("ch", "blocks", "attn_levels", "scales")}
    decoder = told["decoder_ch"], told["decoder_blocks"]
    told.setdefault("decoder_norms", ("rms",) * len(decoder[0]))
    told["decoder_activations"] = tuple("relu" if norm == "batch" else "silu" for norm in told["decoder_norms"])
    told["out_activation"] = "relu" if decoder[1][0] or "batch" in told["decoder_norms"] else "silu"
    if "encoder" in parts:
        told["down"] = "conv" if any(re.search(r"\d\.main\.conv\.weight$", key) for key in shapes) else "unshuffle"
        if "encoder.project_in.conv.weight" in shapes and not told["encoder_blocks"][0]:
            told["down"] = "conv"
    if "decoder" in parts:
        told["up"] = _up(shapes, *decoder)
    told.setdefault("up", "nearest" if told.get("down") == "conv" else "shuffle")
    told.setdefault("down", "conv" if told["up"] == "nearest" else "unshuffle")
    told.setdefault("head_dim", _heads(told))
    z, axis = ("decoder.project_in.main.conv", 1) if "decoder" in parts else (OUT, 0)
    return DcaeConfig(
        **told,
        z_channels=shape_of(shapes, f"{z}.weight")[axis],
        in_channels=_picture_channels(shapes, parts, shuffled=told["up"] == "shuffle" and not decoder[1][0]),
    )


def _heads(told: Mapping[str, Any]) -> int:
    """Channels of a head where no scale tells them: those of the published ones, or what fits all levels."""
    channels = [told[f"{side}_ch"][level] for side in ("encoder", "decoder") for level in told[f"{side}_attn_levels"]]
    return gcd(DcaeConfig.head_dim, *channels)


OUT = "encoder.project_out.main.op_list.0.conv"


def _side(shapes: Shapes, side: str) -> dict[str, Any]:
    """What tells of one side: fields of the configuration."""
    levels: dict[int, set[int]] = {}
    resized: set[tuple[int, int]] = set()
    for key in shapes:
        if match := re.match(rf"{side}\.stages\.([0-9]{{1,9}})\.op_list\.([0-9]{{1,9}})\.(main\.conv\.)?", key):
            level, i = int(match[1]), int(match[2])
            levels.setdefault(level, set()).add(i)
            if match[3]:
                resized.add((level, i))
    if not levels or max(levels) >= MOST_LEVELS:
        raise WeightsError(f"its {side} has no levels, or too many: it is not a whole DC-AE")
    count = max(levels) + 1
    blocks = tuple(len([i for i in levels.get(n, ()) if (n, i) not in resized]) for n in range(count))
    channels: list[int] = []
    scales: list[tuple[int, ...]] = []
    attends: list[int] = []
    norms: list[NormName] = []
    told: dict[str, Any] = {}
    for level in range(count):
        ops = sorted(i for i in levels.get(level, ()) if (level, i) not in resized)
        stem = f"{side}.stages.{level}.op_list.{ops[0] if ops else 0}"
        qkv, conv = f"{stem}.context_module.main.qkv.conv.weight", f"{stem}.main.conv1.conv.weight"
        gathered = [f"{stem}.context_module.main.aggreg.{i}" for i in range(len(shapes))]
        kernels = list(takewhile(lambda key: f"{key}.0.weight" in shapes, gathered))
        scales.append(tuple(shape_of(shapes, f"{key}.0.weight")[-1] for key in kernels))
        if kernels:
            told["head_dim"] = shape_of(shapes, f"{kernels[0]}.1.weight")[1]
        if qkv in shapes:
            attends.append(level)
        norms.append("batch" if f"{stem}.main.conv2.norm.running_mean" in shapes else "rms")
        channels.append(shape_of(shapes, conv)[0] if conv in shapes else shapes.get(qkv, (0, 0))[1])
    if not blocks[0]:  # what would be there is not told, and counts for nothing
        channels[0], norms[0] = max(1, channels[1] // 2), norms[1]
    told |= {
        f"{side}_ch": tuple(channels),
        f"{side}_blocks": blocks,
        f"{side}_attn_levels": tuple(attends),
        f"{side}_scales": tuple(scales),
    }
    if side == "decoder":
        told["decoder_norms"] = tuple(norms)
    return told


def _up(shapes: Shapes, channels: Sequence[int], blocks: Sequence[int]) -> Up:
    """How a decoder doubles sides: shuffled pixels come of four times the channels."""
    for level, n in enumerate(channels[:-1]):
        key = f"decoder.stages.{level}.op_list.0.main.conv.conv.weight"
        if blocks[level]:
            return "shuffle" if shape_of(shapes, key)[0] == 4 * n else "nearest"
    return "shuffle" if shape_of(shapes, "decoder.project_out.op_list.2.conv.conv.weight")[0] > 4 else "nearest"


def _picture_channels(shapes: Shapes, parts: Parts, *, shuffled: bool) -> int:
    found = []
    if "encoder" in parts:
        key = "encoder.project_in.conv.conv.weight"
        found.append(shape_of(shapes, key if key in shapes else "encoder.project_in.conv.weight")[1])
    if "decoder" in parts:
        key = "decoder.project_out.op_list.2.conv.conv.weight"
        rows = shape_of(shapes, key if key in shapes else "decoder.project_out.op_list.2.conv.weight")[0]
        found.append(rows // 4 if shuffled else rows)
    require_one_picture(*found)
    return found[0]


def joined(encoder: DcaeConfig, decoder: DcaeConfig) -> DcaeConfig:
    """The configuration of both, from what each half's file tells."""
    require_one_picture(encoder.in_channels, decoder.in_channels)
    if encoder.z_channels != decoder.z_channels:
        raise WeightsError(
            f"its encoder makes latents of {encoder.z_channels} channels and its decoder takes {decoder.z_channels}"
        )
    heads = {half.head_dim for half in (encoder, decoder) if tells_heads(half)}
    if len(heads) > 1:
        raise WeightsError(
            f"heads of its encoder's attention have {encoder.head_dim} channels and of its decoder's {decoder.head_dim}"
        )
    told = heads.pop() if heads else (decoder if attends(decoder) else encoder).head_dim
    of_encoder = ("encoder_ch", "encoder_blocks", "encoder_attn_levels", "encoder_scales", "encoder_shortcut", "down")
    return replace(decoder, head_dim=told, **{field: getattr(encoder, field) for field in of_encoder})
