"""How an autoencoder of Wan's kind is told by the names and shapes of its tensors. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from calotype.errors import WeightsError
from calotype.families.face import Group, Shapes, Sign, Told, listing, require_one_picture
from calotype.families.wan.config import WanConfig
from calotype.families.wan.names import Names, resampler, theirs

# over time alone; for one picture it does nothing
TIME_CONV = re.compile(r"(encoder|decoder)\..+\.time_conv\.(weight|bias)")

# kernels that are not stored as they compute, which others tell
ODD = re.compile(r".*(\.base_layer\.|lora_|parametrizations|weight_(v|g|orig)$).*")


def _has_ends(shapes: Shapes, prefix: str) -> bool:
    """Whether its first layers are plain convolutions, as in no other network with these norms."""
    names = [f"{prefix}{side}.{name}.weight" for side in ("encoder", "decoder") for name in ("conv1", "conv_in")]
    plain = any(len(shapes.get(name, ())) in (4, 5) for name in names)
    return plain and not any(ODD.fullmatch(name) for name in shapes if name.startswith(prefix))


ORIGINAL = Sign(
    first=re.compile(r"((?:.*?\.)?)(?:encoder|decoder)\.middle\.0\.residual\.0\.gamma"),
    own=re.compile(r"(?s)(encoder|decoder|conv1|conv2)\..+"),
    holds=_has_ends,
    sure=True,
)
DIFFUSERS = Sign(
    first=re.compile(r"((?:.*?\.)?)(?:encoder|decoder)\.mid_block\.attentions\.0\.norm\.gamma"),
    own=re.compile(r"(?s)(encoder|decoder|quant_conv|post_quant_conv)\..+"),
    holds=_has_ends,
    sure=True,
)


def tell(shapes: Shapes, group: Group, norm_groups: int | None) -> Told:
    """What a group of tensors is."""
    names: Names = "ldm" if group.sign is ORIGINAL else "diffusers"
    inside = {name: shapes[key] for name, key in group.keys.items()}
    config, parts = _config(names, inside)
    back = {theirs: ours for ours, theirs in keys_of(names, config).items()}
    times = {theirs: ours for ours, theirs in time_keys_of(names, config).items()}
    known = {name: key for name, key in group.keys.items() if not TIME_CONV.fullmatch(name)}
    if unknown := [key for name, key in known.items() if name not in back]:
        raise WeightsError(listing("unexpected", unknown))
    flat = len(known) == len(group.keys) and not any(len(shape) == 5 for shape in inside.values())
    return Told(
        layout="ldm" if names == "ldm" else "diffusers-2d" if flat else "diffusers",
        config=config,
        parts=parts,
        keys={back[name]: key for name, key in known.items()},
        beside={times[name]: key for name, key in group.keys.items() if name in times},
    )


def keys_of(names: Names, config: WanConfig) -> Mapping[str, str]:
    """Our key -> the key in files of these names."""
    return theirs(names, config.residual, len(config.dim_mult), config.num_res_blocks, config.attn_levels)


def time_keys_of(names: Names, config: WanConfig) -> Mapping[str, str]:
    """Names of convolutions over time alone, beside the ones that change the size: in our manner -> in files."""
    return {
        ours.replace(".conv.", ".time_conv."): other.replace(".resample.1.", ".time_conv.")
        for ours, other in keys_of(names, config).items()
        if ".resample.1." in other
    }


def name_of(names: Names, key: str, config: WanConfig) -> str | None:
    """What files of these names call a tensor, also one over time; None where there is none."""
    return keys_of(names, config).get(key) or time_keys_of(names, config).get(key)


def original(key: str, config: WanConfig) -> str:
    """What the original files call a tensor."""
    name = name_of("ldm", key, config)
    assert name is not None, key
    return name


def _config(names: Names, shapes: Shapes) -> tuple[WanConfig, frozenset[str]]:
    """The configuration that has these tensors (their names within the network), as far as shapes tell; and its parts.

    Which changes of size take two frames is told by the convolutions over time; a file without any doesn't tell.
    """
    conv_in = "conv1" if names == "ldm" else "conv_in"
    parts = frozenset(side for side in ("encoder", "decoder") if f"{side}.{conv_in}.weight" in shapes)
    nested = r"(encoder\.downsamples\.[0-9]+\.down|decoder\.upsamples\.[0-9]+\.up)samples\..*"
    named = r"encoder\.down_blocks\.[0-9]+\.resnets\..*|decoder\.up_blocks\.[0-9]+\.upsampler\..*"
    residual = any(re.fullmatch(f"{nested}|{named}", name) for name in shapes)
    side = "encoder" if "encoder" in parts else "decoder"
    attn: tuple[int, ...] = ()
    levels, blocks = _counts(shapes, side)
    if side == "decoder":
        blocks -= 1
    elif not residual:
        attn = _attn_levels(shapes)
    if levels * blocks < 1:
        raise WeightsError(f"its {side} has no residual blocks: this is not a whole VAE")
    table = theirs(names, residual, levels, blocks, attn)

    def kernel(ours: str) -> tuple[int, ...]:
        found = shapes.get(table[f"{ours}.weight"], ())
        if len(found) not in (4, 5):
            raise WeightsError(f"{table[f'{ours}.weight']} is missing or is no convolution: this is not a whole VAE")
        return found

    if kernel(f"{side}.mid.block_1.conv1")[-2:] != (3, 3):
        raise WeightsError(
            "its kernels have their axes in another order (as MLX and TensorFlow have them); get the weights that it "
            "was converted from"
        )
    widths = {
        "encoder": [kernel(f"encoder.down.{i}.block.0.conv1")[0] for i in range(levels) if "encoder" in parts],
        "decoder": [
            kernel(f"decoder.up.{levels - 1 - i}.block.0.conv1")[0] for i in range(levels) if "decoder" in parts
        ],
    }
    base = kernel("encoder.conv_in")[0] if side == "encoder" else widths[side][0]
    if odd := [channels for channels in widths[side] if not base or channels % base]:
        raise WeightsError(
            f"its levels have {odd[0]} channels, which is no multiple of {base}: this is not a whole VAE"
        )
    mult = tuple(channels // base for channels in widths[side])
    decoder = widths["decoder"][0] // mult[0] if "decoder" in parts else base
    taken = kernel("encoder.conv_in")[1] if "encoder" in parts else None
    made = kernel("decoder.conv_out")[0] if "decoder" in parts else None
    folded = taken or made or 0
    if not residual and made in (12, 16) and taken in (None, made // 4):
        raise WeightsError(
            f"its decoder makes pictures of twice the size ({made} channels that are 2x2 pixels), as Wan 2.1's "
            f"upscaling one, which is not read; Wan 2.1's own VAE (wan2.1-vae) decodes the same latents"
        )
    patch = 2 if residual and folded > 4 and folded % 4 == 0 else 1
    if taken is not None:
        require_one_picture(taken // patch**2, made and made // patch**2)
    changes = range(levels - 1) if residual else range(0)
    z_channels = kernel("decoder.conv_in")[1] if "decoder" in parts else kernel("encoder.conv_out")[0] // 2
    config = WanConfig(
        base_dim=base,
        decoder_base_dim=decoder if decoder != base else None,
        dim_mult=mult,
        num_res_blocks=blocks,
        z_channels=z_channels,
        attn_levels=attn,
        in_channels=folded // patch**2,
        patch=patch,
        residual=residual,
        frames=tuple(2 if _over_time(names, shapes, side, i, levels, blocks) else 1 for i in changes),
    )
    return config, parts


def _counts(shapes: Shapes, side: str) -> tuple[int, int]:
    """Levels, and residual blocks of each."""
    inside = [name for name in shapes if re.match(rf"{side}\.((down|up)samples|(down|up)_blocks)\.", name)]
    levels = 1 + sum(name.endswith(".resample.1.weight") for name in inside)
    blocks = sum(name.endswith((".residual.2.weight", ".conv1.weight")) for name in inside)
    if blocks % levels:
        raise WeightsError(f"its {side} has {blocks} residual blocks at {levels} levels: this is not a whole VAE")
    return levels, blocks // levels


def _attn_levels(shapes: Shapes) -> tuple[int, ...]:
    """Levels of an encoder without shortcuts that have attention."""
    found = {}
    for name in shapes:
        if match := re.fullmatch(r"encoder\.(?:downsamples|down_blocks)\.([0-9]+)\.(to_qkv|resample\.1)\.weight", name):
            found[int(match[1])] = match[2]
    levels, level = set(), 0
    for at in sorted(found):
        if found[at] == "to_qkv":
            levels.add(level)
        else:
            level += 1
    return tuple(sorted(levels))


def _over_time(names: Names, shapes: Shapes, side: str, change: int, levels: int, blocks: int) -> bool:
    """Whether a change of size, counted from full resolution, has a convolution over time."""
    at, blocks = (change, blocks) if side == "encoder" else (levels - 2 - change, blocks + 1)
    return f"{resampler(names, side, at, blocks)}.time_conv.weight" in shapes


def joined(encoder: WanConfig, decoder: WanConfig) -> WanConfig:
    """The configuration of both, from what each half's file tells."""
    require_one_picture(encoder.in_channels, decoder.in_channels)
    base = decoder.base_dim if decoder.base_dim != encoder.base_dim else None
    both = replace(encoder, decoder_base_dim=base)
    if replace(decoder, base_dim=encoder.base_dim, decoder_base_dim=base, attn_levels=encoder.attn_levels) != both:
        raise WeightsError(f"encoder and decoder differ: {encoder} and {decoder}")
    return both
