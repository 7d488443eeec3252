"""What a weight file holds, told from its tensors' names and shapes alone. No torch, no file names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from calotype.config import AutoencoderConfig, FoldedConfig, NetworkConfig, TinyConfig
from calotype.errors import WeightsError
from calotype.weights.keys import diffusers_to_ldm

Layout = Literal["ldm", "diffusers", "keras", "taesd", "calotype"]
Shapes = Mapping[str, tuple[int, ...]]

# Tensors that stand beside a VAE in training checkpoints and are not part of it.
BESIDE = ("loss.", "model_ema.")

# What people give instead of a VAE: (a pattern some key must match, what the file is)
OTHERS = (
    (r".*(lora_(up|down|A|B)\b|\.lora\.|lora_unet_|lora_te).*", "a LoRA"),
    (r".*(diffusion_model\.|time_embed(ding)?\.|transformer_blocks\.).*", "a denoiser (U-Net or transformer)"),
    (r".*(text_model\.|token_embedding|shared\.weight).*", "a text encoder"),
    (r".*(control_model\.|controlnet_).*", "a ControlNet"),
)

# The rest of a whole checkpoint tells which family its VAE belongs to: (key prefix, latent format)
FAMILIES = (
    ("conditioner.embedders.1.", "sdxl"),
    ("cond_stage_model.", "sd1"),
    ("model.diffusion_model.joint_blocks.", "sd3"),
    ("model.diffusion_model.double_blocks.", "flux"),
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


def detect(shapes: Shapes, *, norm_groups: int | None = None) -> Detected:
    """Finds the VAE among tensors.

    Args:
        shapes: every tensor of the file.
        norm_groups: groups of the norms, which shapes can't tell; 32 where not given.

    Raises:
        WeightsError: if there is no VAE, or not a whole one.
    """
    if not shapes:
        raise WeightsError("the file holds no tensors")
    return _detect_tiny(shapes) or _detect_folded(shapes) or _detect_kl(shapes, norm_groups)


def _detect_tiny(shapes: Shapes) -> Detected | None:
    keys: dict[str, str] = {}
    unknown: list[str] = []
    # encoders begin with a convolution of pixels, decoders with one of latents (after a clamp without weights)
    bare = {"0.weight": "encoder.", "1.weight": "decoder."}
    sides = [side for first, side in bare.items() if len(shapes.get(first, ())) == 4]
    if sides and not ("0.weight" in shapes and "1.weight" in shapes):
        keys = {f"{sides[0]}{key}": key for key in shapes}
    elif any(re.match(r"(taesd_)?(encoder|decoder)\.(layers\.)?[0-9]+\.weight", key) for key in shapes):
        for key in shapes:
            if match := re.fullmatch(r"(?:taesd_)?(encoder|decoder)\.(layers\.)?([0-9]+)\.(.+)", key):
                side, diffusers, index, rest = match.groups()
                shift = 1 if diffusers and side == "decoder" else 0  # diffusers leaves the clamp out of its list
                keys[f"{side}.{int(index) + shift}.{rest}"] = key
            elif key not in ("vae_scale", "vae_shift"):
                unknown.append(key)
    else:
        return None
    if unknown:
        raise WeightsError(f"{listing('unexpected', unknown)} beside a TAESD")
    parts = frozenset(side for side in ("encoder", "decoder") if any(key.startswith(side) for key in keys))
    ours_shapes = {ours: shapes[key] for ours, key in keys.items()}
    first_or_last, axis = ("decoder.1.weight", 1) if "decoder" in parts else ("encoder.14.weight", 0)
    config = TinyConfig(
        z_channels=_shape(ours_shapes, first_or_last)[axis],
        pool=any(".pool." in key for key in keys),
        in_channels=_picture_channels(ours_shapes, parts, "encoder.0.weight", "decoder.19.weight"),
    )
    return Detected(layout="taesd", config=config, parts=parts, keys=keys)


def _detect_folded(shapes: Shapes) -> Detected | None:
    if "encoder.quarter.0.conv1.weight" not in shapes:
        return None

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
    keys = {key: key for key in shapes}
    return Detected(layout="calotype", config=config, parts=frozenset({"encoder", "decoder"}), keys=keys)


def _detect_kl(shapes: Shapes, norm_groups: int | None) -> Detected:
    pattern = re.compile(r"(.*?)(?:encoder|decoder)\.conv_in\.weight")
    prefixes = {match[1] for key in shapes if (match := pattern.fullmatch(key))}
    if not prefixes:
        raise WeightsError(_what_else(shapes))
    if len(prefixes) > 1:
        raise WeightsError(f"the file holds several VAEs, under {', '.join(sorted(map(repr, prefixes)))}")
    prefix = prefixes.pop()
    inside = [key for key in shapes if key.startswith(prefix)]
    if not prefix:
        inside = [key for key in inside if not key.startswith(BESIDE)]

    diffusers = any(".down_blocks." in key or ".up_blocks." in key for key in inside)
    levels = len({m[1] for key in inside if (m := re.search(r"\.(?:up|down)(?:_blocks)?\.([0-9]+)\.", key))})
    keys: dict[str, str] = {}
    unknown: list[str] = []
    statistics = {}
    for key in inside:
        name = key.removeprefix(prefix)
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
    family = next((f for start, f in FAMILIES if prefix and any(key.startswith(start) for key in shapes)), None)
    return Detected(
        layout="diffusers" if diffusers else "ldm",
        config=_config(ours_shapes, parts, norm_groups),
        parts=parts,
        keys=keys,
        prefix=prefix,
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
    return AutoencoderConfig(
        ch=ch,
        ch_mult=tuple(c // ch if c % ch == 0 else c / ch for c in channels),
        num_res_blocks=count(rf"{re.escape(stem)}\.0\.block\.([0-9]+)\.") - extra,
        z_channels=z_channels,
        attn_levels=tuple(i for i in range(len(channels)) if f"{stem}.{i}.attn.0.q.weight" in shapes),
        mid_attention=f"{side}.mid.attn_1.q.weight" in shapes,
        quant_conv="quant_conv.weight" in shapes or "post_quant_conv.weight" in shapes,
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
            f"its encoder takes pictures of {taken} channels and its decoder makes {made}; VAEs are supported whose "
            f"pictures have as many channels on both sides (1 for grey, 3 for RGB, 4 for RGBA)"
        )


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if len(shapes.get(key, ())) != 4:
        raise WeightsError(f"{key} is missing or is no convolution: this is not a whole VAE")
    return shapes[key]


def _what_else(shapes: Shapes) -> str:
    for pattern, what in OTHERS:
        if any(re.fullmatch(pattern, key) for key in shapes):
            return f"the file holds {what}, not a VAE"
    return f"the file holds no VAE: {listing('its', sorted(shapes))}"


def listing(what: str, keys: list[str], most: int = 8) -> str:
    """'unexpected tensors a, b, c and 5 more', for messages."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{what} tensor{'s' if len(keys) != 1 else ''} {', '.join(keys[:most])}{more}"
