"""How an AutoencoderKL is told by the names and shapes of its tensors. No torch."""

from __future__ import annotations

import re
from dataclasses import replace

from calotype.errors import WeightsError
from calotype.families.face import Group, Shapes, Sign, Told, listing, picture_channels, require_one_picture, shape_of
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.names import diffusers_to_ldm

SIGN = Sign(
    first=re.compile(r"((?:.*?\.)?)(?:encoder|decoder)\.conv_in\.weight"),
    own=re.compile(
        r"(?s)(encoder|decoder|quant_conv|post_quant_conv)\..+|bn\.(running_(mean|var)|num_batches_tracked)"
    ),
)


def tell(shapes: Shapes, group: Group, norm_groups: int | None) -> Told:
    """What a group of tensors is; norms that nobody says the groups of have 32."""
    diffusers = any(".down_blocks." in name or ".up_blocks." in name for name in group.keys)
    levels = len({m[1] for n in group.keys if (m := re.search(r"\.(?:up|down)(?:_blocks)?\.([0-9]+)\.", n))})
    keys: dict[str, str] = {}
    unknown: list[str] = []
    statistics = {}
    conditioned = any(name.startswith("decoder.encoder.layers.") for name in group.keys)
    for name, key in group.keys.items():
        if match := re.fullmatch(r"bn\.(running_mean|running_var|num_batches_tracked)", name):
            statistics[match[1]] = key
            continue
        # FLUX.2's own files keep the 1x1 convolutions inside encoder and decoder
        name = re.sub(r"^(encoder\.(?=quant_conv)|decoder\.(?=post_quant_conv))", "", name)
        # asymmetric ones' original files call the condition's encoder so, and have their levels once more
        if conditioned and name.startswith("decoder.up_layers."):
            continue
        name = re.sub(r"^decoder\.encoder\.(?=layers\.)", "decoder.condition_encoder.", name)
        ours = diffusers_to_ldm(name, levels) if diffusers else name
        if ours is None:
            unknown.append(key)
        else:
            keys[ours] = key
    if unknown:
        raise WeightsError(listing("unexpected", unknown))

    parts = frozenset(side for side in ("encoder", "decoder") if f"{side}.conv_in.weight" in keys)
    ours_shapes = {ours: shapes[key] for ours, key in keys.items()}
    bn = None
    if statistics:
        if lacking := [f"bn.{name}" for name in ("running_mean", "running_var") if name not in statistics]:
            raise WeightsError(listing("missing", lacking))
        bn = statistics["running_mean"], statistics["running_var"]
    return Told(
        layout="diffusers" if diffusers else "ldm",
        config=_config(ours_shapes, parts, norm_groups),
        parts=parts,
        keys=keys,
        statistics=bn,
        groups_assumed=norm_groups is None,
    )


def _config(shapes: Shapes, parts: frozenset[str], norm_groups: int | None) -> AutoencoderConfig:
    """The configuration that has exactly these tensors (our keys), as far as shapes tell."""

    def count(pattern: str) -> int:
        return len({match[1] for key in shapes if (match := re.match(pattern, key))})

    def widths(stem: str) -> tuple[int, ...]:
        n = count(rf"{re.escape(stem)}\.([0-9]+)\.")
        return tuple(shape_of(shapes, f"{stem}.{i}.block.0.conv1.weight")[0] for i in range(n))

    stem, extra = ("encoder.down", 0) if "encoder" in parts else ("decoder.up", 1)
    channels = widths(stem)
    decoder_channels = widths("decoder.up") if "decoder" in parts else channels
    blocks = count(rf"{re.escape(stem)}\.0\.block\.([0-9]+)\.") - extra
    decoder_blocks = count(r"decoder\.up\.0\.block\.([0-9]+)\.") - 1 if "decoder" in parts else blocks
    if len(channels) * max(blocks, decoder_blocks) > len(shapes):
        raise WeightsError(
            f"{len(channels)} levels of {max(blocks, decoder_blocks)} blocks are more than its tensors: it is not a "
            f"whole VAE"
        )
    if not channels or not decoder_channels:
        raise WeightsError(f"the file holds no {'decoder.up' if channels else stem}.0: it is not a whole VAE")
    ch = shape_of(shapes, "encoder.conv_in.weight")[0] if "encoder" in parts else channels[0]
    z_channels = (
        shape_of(shapes, "decoder.conv_in.weight")[1]
        if "decoder" in parts
        else shape_of(shapes, "encoder.conv_out.weight")[0] // 2
    )
    decoder_ch = decoder_channels[0] if "decoder" in parts else ch
    side = stem.partition(".")[0]
    if norm_groups is None:
        if any(c % 32 for c in (*channels, decoder_ch)):
            raise WeightsError(
                f"{', '.join(map(str, channels))} channels can't be normalised in the usual 32 groups, and nothing "
                f"in the file says in how many; put its config.json beside it"
            )
        norm_groups = 32
    # of half a VAE, that of the other half is as its own
    quant_conv, post_quant_conv = (
        any(key.startswith(f"{name}.") for key in shapes) if side in parts else None
        for name, side in (("quant_conv", "encoder"), ("post_quant_conv", "decoder"))
    )
    quant_conv = post_quant_conv if quant_conv is None else quant_conv
    post_quant_conv = quant_conv if post_quant_conv is None else post_quant_conv
    assert quant_conv is not None
    return AutoencoderConfig(
        ch=ch,
        ch_mult=tuple(c // ch if c % ch == 0 else c / ch for c in channels),
        num_res_blocks=blocks,
        z_channels=z_channels,
        attn_levels=tuple(i for i in range(len(channels)) if f"{stem}.{i}.attn.0.q.weight" in shapes),
        mid_attention=f"{side}.mid.attn_1.q.weight" in shapes,
        quant_conv=quant_conv,
        post_quant_conv=post_quant_conv if post_quant_conv != quant_conv else None,
        decoder_ch=decoder_ch if decoder_ch != ch else None,
        decoder_num_res_blocks=decoder_blocks if decoder_blocks != blocks else None,
        norm_groups=norm_groups,
        in_channels=picture_channels(shapes, parts, "encoder.conv_in.weight", "decoder.conv_out.weight"),
        condition=any(key.startswith("decoder.condition_encoder.") for key in shapes),
    )


def joined(encoder: AutoencoderConfig, decoder: AutoencoderConfig) -> AutoencoderConfig:
    """The configuration of both, from what each half's file tells."""
    require_one_picture(encoder.in_channels, decoder.in_channels)
    decoder_ch, post = decoder.decoder_channels[0], decoder.decoder_quant_conv
    blocks = decoder.decoder_blocks
    return replace(
        encoder,
        decoder_ch=decoder_ch if decoder_ch != encoder.ch else None,
        decoder_num_res_blocks=blocks if blocks != encoder.num_res_blocks else None,
        post_quant_conv=post if post != encoder.quant_conv else None,
        condition=decoder.condition,
    )
