"""How a VQModel is told by the names and shapes of its tensors. No torch."""

from __future__ import annotations

import re

from calotype.errors import WeightsError
from calotype.families.face import Group, Shapes, Sign, Told, listing, picture_channels, shape_of
from calotype.families.vq.config import VqConfig
from calotype.families.vq.names import CODEBOOK, from_diffusers

# the first block of a side, without which a codebook belongs to another network
BLOCKS = (
    "encoder.down.0.block.0.conv1.weight",
    "decoder.up.0.block.0.conv1.weight",
    "encoder.down_blocks.0.resnets.0.conv1.weight",
    "decoder.up_blocks.0.resnets.0.conv1.weight",
)


def _holds(shapes: Shapes, prefix: str) -> bool:
    return any(len(shapes.get(f"{prefix}{name}", ())) == 4 for name in BLOCKS)


SIGN = Sign(
    first=re.compile(r"((?:.*?\.)?)quantize\.embedding\.weight"),
    own=re.compile(r"(?s)(encoder|decoder|quant_conv|post_quant_conv)\..+|quantize\.embedding\.weight"),
    sure=True,
    holds=_holds,
)


def tell(shapes: Shapes, group: Group, norm_groups: int | None) -> Told:
    """What a group of tensors is; norms that nobody says the groups of have 32."""
    diffusers = any(".down_blocks." in name or ".up_blocks." in name for name in group.keys)
    levels = len({m[1] for n in group.keys if (m := re.search(r"\.(?:up|down)(?:_blocks)?\.([0-9]+)\.", n))})
    keys: dict[str, str] = {}
    unknown: list[str] = []
    for name, key in group.keys.items():
        ours = from_diffusers(name, levels) if diffusers else name
        if ours is None:
            unknown.append(key)
        else:
            keys[ours] = key
    if unknown:
        raise WeightsError(listing("unexpected", unknown))
    parts = frozenset(side for side in ("encoder", "decoder") if f"{side}.conv_in.weight" in keys)
    if not parts:
        raise WeightsError("the file holds no conv_in: it is not a whole VAE")
    config = _config({ours: shapes[key] for ours, key in keys.items()}, parts, norm_groups)
    if "decoder" not in parts:  # to encode none is needed
        del keys[CODEBOOK]
    return Told(
        layout="diffusers" if diffusers else "ldm",
        config=config,
        parts=parts,
        keys=keys,
        groups_assumed=norm_groups is None,
    )


def _config(shapes: Shapes, parts: frozenset[str], norm_groups: int | None) -> VqConfig:
    """The configuration that has exactly these tensors (our keys), as far as shapes tell."""

    def count(pattern: str) -> int:
        return len({match[1] for key in shapes if (match := re.match(pattern, key))})

    stem, extra = ("encoder.down", 0) if "encoder" in parts else ("decoder.up", 1)
    side = stem.partition(".")[0]
    levels = count(rf"{re.escape(stem)}\.([0-9]+)\.")
    blocks = count(rf"{re.escape(stem)}\.0\.block\.([0-9]+)\.") - extra
    if levels * blocks > len(shapes):
        raise WeightsError(f"{levels} levels of {blocks} blocks are more than its tensors: it is not a whole VAE")
    channels = tuple(shape_of(shapes, f"{stem}.{i}.block.0.conv1.weight")[0] for i in range(levels))
    if not channels:
        raise WeightsError(f"the file holds no {stem}.0: it is not a whole VAE")
    if len(shapes[CODEBOOK]) != 2:
        raise WeightsError(f"{CODEBOOK} {list(shapes[CODEBOOK])} is no codebook, which is [entries, channels]")
    n_embed, embed_dim = shapes[CODEBOOK]
    inner = (
        shape_of(shapes, "encoder.conv_out.weight")[0]
        if "encoder" in parts
        else shape_of(shapes, "decoder.conv_in.weight")[1]
    )
    ch = shape_of(shapes, "encoder.conv_in.weight")[0] if "encoder" in parts else channels[0]
    if norm_groups is None:
        if any(c % 32 for c in (ch, *channels)):
            raise WeightsError(
                f"{', '.join(map(str, channels))} channels can't be normalised in the usual 32 groups, and nothing "
                f"in the file says in how many; put its config.json beside it"
            )
        norm_groups = 32
    return VqConfig(
        ch=ch,
        ch_mult=tuple(c // ch if c % ch == 0 else c / ch for c in channels),
        num_res_blocks=blocks,
        embed_dim=embed_dim,
        n_embed=n_embed,
        inner_channels=inner if inner != embed_dim else None,
        attn_levels=tuple(i for i in range(levels) if f"{stem}.{i}.attn.0.q.weight" in shapes),
        mid_attention=f"{side}.mid.attn_1.q.weight" in shapes,
        norm_groups=norm_groups,
        spatial_norm="decoder.norm_out.conv_y.weight" in shapes,
        in_channels=picture_channels(shapes, parts, "encoder.conv_in.weight", "decoder.conv_out.weight"),
    )
