"""What a weight file holds, told from its tensors' names and shapes alone. No torch, no file names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from calotype.config import AutoencoderConfig, FoldedConfig, NetworkConfig, TinyConfig
from calotype.damage import quoted
from calotype.errors import UsageError, WeightsError
from calotype.weights.groups import Choice, Group, Weights, choose
from calotype.weights.keys import diffusers_to_ldm
from calotype.weights.others import Shapes, other_autoencoder, other_model, quantised

Layout = Literal["ldm", "diffusers", "keras", "taesd", "calotype"]

# How latents of Playground v2.5 are normalised: tensors beside its single file's.
EDM = ("edm_mean", "edm_std")

# The rest of a whole checkpoint tells which family its VAE belongs to: (part of some key, latent format)
FAMILIES = (
    (".conditioner.embedders.1.", "sdxl"),
    (".cond_stage_model.", "sd1"),
    (".model.diffusion_model.joint_blocks.", "sd3"),
    (".model.diffusion_model.double_blocks.", "flux"),
)


@dataclass(frozen=True, kw_only=True)
class Detected:
    """A VAE found in a file."""

    layout: Layout
    config: NetworkConfig
    parts: frozenset[str]  # "encoder", "decoder" or both
    keys: Mapping[str, str]  # our key -> key in the file
    prefix: str = ""  # what stands before every key of the VAE
    statistics: tuple[str, str] | None = None  # file keys of FLUX.2's running mean and variance
    family: str | None = None  # latent format, where the rest of the file tells it
    choice: Choice | None = None  # what else was in the file


def detect(
    shapes: Shapes,
    *,
    norm_groups: int | None = None,
    prefix: str | None = None,
    weights: Weights | None = None,
    same: Callable[[str, str], bool] = lambda a, b: False,
) -> Detected:
    """Finds the VAE among tensors.

    Args:
        shapes: every tensor of the file.
        norm_groups: groups of the norms, which shapes can't tell; 32 where not given.
        prefix, weights: which VAE, where there are several.
        same: whether two tensors, by their keys, hold the same numbers: equal VAEs need no choice.

    Raises:
        WeightsError: if there is no VAE, not a whole one, or several.
        UsageError: if there is none under the prefix, or none averaged.
    """
    if not shapes:
        raise WeightsError("the file holds no tensors")
    choice = choose(shapes, prefix, weights, same)
    if choice is None:
        raise WeightsError(_what_else(shapes))
    group = choice.group
    if said := quantised(group.keys):
        raise WeightsError(said)
    try:
        if group.kind in ("tiny", "bare"):
            found = _detect_tiny(shapes, group)
        elif group.kind == "folded":
            found = _detect_folded(shapes, group)
        else:
            found = _detect_kl(shapes, group, norm_groups)
    except UsageError as error:  # of a configuration that can't be
        raise WeightsError(str(error)) from None
    return replace(found, prefix=group.prefix, choice=choice)


def _detect_tiny(shapes: Shapes, group: Group) -> Detected:
    keys: dict[str, str] = {}
    unknown: list[str] = []
    # encoders begin with a convolution of pixels, decoders with one of latents (after a clamp without weights)
    half = "encoder." if "0.weight" in group.keys else "decoder."
    for name, key in group.keys.items():
        if group.kind == "bare":
            keys[f"{half}{name}"] = key
        elif match := re.fullmatch(r"(?:taesd_)?(encoder|decoder)\.(layers\.)?([0-9]+)\.(.+)", name):
            side, diffusers, index, rest = match.groups()
            shift = 1 if diffusers and side == "decoder" else 0  # diffusers leaves the clamp out of its list
            keys[f"{side}.{int(index) + shift}.{rest}"] = key
        else:
            unknown.append(key)
    if unknown:
        raise WeightsError(f"{listing('unexpected', unknown)} in a TAESD")
    parts = frozenset(side for side in ("encoder", "decoder") if any(key.startswith(side) for key in keys))
    ours_shapes = {ours: shapes[key] for ours, key in keys.items()}
    _require_taesd(ours_shapes, parts)
    first_or_last, axis = ("decoder.1.weight", 1) if "decoder" in parts else ("encoder.14.weight", 0)
    config = TinyConfig(
        z_channels=_shape(ours_shapes, first_or_last)[axis],
        pool=any(".pool." in key for key in keys),
        in_channels=_picture_channels(ours_shapes, parts, "encoder.0.weight", "decoder.19.weight"),
    )
    return Detected(layout="taesd", config=config, parts=parts, keys=keys)


def _require_taesd(shapes: Shapes, parts: frozenset[str]) -> None:
    """Checks that it has the published one's width and depth; diffusers' AutoencoderTiny can have others."""
    for side, first, last in (("encoder", "encoder.0", 14), ("decoder", "decoder.1", 19)):
        if side not in parts or not any(".conv.0." in key for key in shapes):  # some other sequence of layers
            continue
        width = shapes.get(f"{first}.weight", (64,))[0]
        end = max(int(key.split(".")[1]) for key in shapes if key.startswith(f"{side}."))
        if width != 64 or end != last:
            found = f"{width} channels" if width != 64 else f"{'more' if end > last else 'fewer'} blocks"
            raise WeightsError(
                f"its {side} is a TAESD's with {found}, and only those of 64 channels and 3 blocks a level are read"
            )


def _detect_folded(shapes: Shapes, group: Group) -> Detected:
    shapes = {name: shapes[key] for name, key in group.keys.items()}

    def blocks(side: str) -> tuple[int, int]:
        quarter, eighth = (
            len({m[1] for key in shapes if (m := re.match(rf"{side}\.{stage}\.([0-9]+)\.", key))})
            for stage in ("quarter", "eighth")
        )
        return quarter, eighth

    config = FoldedConfig(
        z_channels=_shape(shapes, "encoder.conv_out.weight")[0] // 2,
        ch=(_shape(shapes, "encoder.conv_in.weight")[0], _shape(shapes, "encoder.down.weight")[0]),
        encoder_blocks=blocks("encoder"),
        decoder_blocks=blocks("decoder"),
    )
    return Detected(layout="calotype", config=config, parts=frozenset({"encoder", "decoder"}), keys=group.keys)


def _detect_kl(shapes: Shapes, group: Group, norm_groups: int | None) -> Detected:
    diffusers = any(".down_blocks." in name or ".up_blocks." in name for name in group.keys)
    levels = len({m[1] for n in group.keys if (m := re.search(r"\.(?:up|down)(?:_blocks)?\.([0-9]+)\.", n))})
    keys: dict[str, str] = {}
    unknown: list[str] = []
    statistics = {}
    for name, key in group.keys.items():
        if match := re.fullmatch(r"bn\.(running_mean|running_var|num_batches_tracked)", name):
            statistics[match[1]] = key
            continue
        # FLUX.2's own files keep the 1x1 convolutions inside encoder and decoder
        name = re.sub(r"^(encoder\.(?=quant_conv)|decoder\.(?=post_quant_conv))", "", name)
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
    family = next((f for start, f in FAMILIES if group.prefix and any(start in f".{key}" for key in shapes)), None)
    return Detected(
        layout="diffusers" if diffusers else "ldm",
        config=_config(ours_shapes, parts, norm_groups),
        parts=parts,
        keys=keys,
        statistics=bn,
        family=family,
    )


def _config(shapes: Shapes, parts: frozenset[str], norm_groups: int | None) -> AutoencoderConfig:
    """The configuration that has exactly these tensors (our keys), as far as shapes tell."""

    def count(pattern: str) -> int:
        return len({match[1] for key in shapes if (match := re.match(pattern, key))})

    def widths(stem: str) -> tuple[int, ...]:
        n = count(rf"{re.escape(stem)}\.([0-9]+)\.")
        return tuple(_shape(shapes, f"{stem}.{i}.block.0.conv1.weight")[0] for i in range(n))

    stem, extra = ("encoder.down", 0) if "encoder" in parts else ("decoder.up", 1)
    channels = widths(stem)
    decoder_channels = widths("decoder.up") if "decoder" in parts else channels
    blocks = count(rf"{re.escape(stem)}\.0\.block\.([0-9]+)\.") - extra
    if len(channels) * blocks > len(shapes):
        raise WeightsError(
            f"{len(channels)} levels of {blocks} blocks are more than its tensors: it is not a whole VAE"
        )
    if not channels or not decoder_channels:
        raise WeightsError(f"the file holds no {'decoder.up' if channels else stem}.0: it is not a whole VAE")
    ch = _shape(shapes, "encoder.conv_in.weight")[0] if "encoder" in parts else channels[0]
    z_channels = (
        _shape(shapes, "decoder.conv_in.weight")[1]
        if "decoder" in parts
        else _shape(shapes, "encoder.conv_out.weight")[0] // 2
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
        norm_groups=norm_groups,
        in_channels=_picture_channels(shapes, parts, "encoder.conv_in.weight", "decoder.conv_out.weight"),
    )


def _picture_channels(shapes: Shapes, parts: frozenset[str], first: str, last: str) -> int:
    """Channels of the pictures, by the encoder's first and the decoder's last convolution."""
    found = [_shape(shapes, first)[1]] if "encoder" in parts else []
    found += [_shape(shapes, last)[0]] if "decoder" in parts else []
    require_one_picture(*found)
    return found[0]


def require_one_picture(taken: int, made: int | None = None) -> None:
    """Checks that a decoder makes as many channels as its encoder takes.

    Raises:
        WeightsError: if it does not.
    """
    if made is not None and made != taken:
        raise WeightsError(
            f"its encoder takes pictures of {taken} channel{'s' * (taken > 1)} and its decoder makes {made}; VAEs are "
            f"supported whose pictures have as many channels on both sides (1 for grey, 3 for RGB, 4 for RGBA)"
        )


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if len(shapes.get(key, ())) != 4:
        raise WeightsError(f"{key} is missing or is no convolution: this is not a whole VAE")
    return shapes[key]


def _what_else(shapes: Shapes) -> str:
    if other := other_autoencoder(shapes, anywhere=True):
        return f"the file holds {other}"
    if what := other_model(shapes):
        return f"the file holds {what}, not a VAE"
    return f"the file holds no VAE: {listing('its', sorted(shapes))}"


def listing(what: str, keys: list[str], most: int = 8) -> str:
    """'unexpected tensors a, b, c and 5 more', for messages."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{what} tensor{'s' if len(keys) != 1 else ''} {', '.join(quoted(key, 200) for key in keys[:most])}{more}"
