"""What diffusers' AutoencoderDC (0.42.1) has of the same network. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from calotype.errors import WeightsError
from calotype.families.dcae.config import ActivationName, DcaeConfig, attends, tells_heads
from calotype.families.dcae.names import QKV, from_diffusers, to_diffusers
from calotype.families.face import Diffusers, DiffusersClass, Parts, contradiction, unsupported

# diffusers' names of activations -> ours
ACTIVATIONS: Mapping[str, ActivationName] = {"silu": "silu", "swish": "silu", "relu": "relu"}
# values of a field that mean the same, as the class reads it; the first is written
DOWN = {"conv": ("Conv", "conv"), "unshuffle": ("pixel_unshuffle",)}
UP = {"nearest": ("interpolate",), "shuffle": ("pixel_shuffle",)}
NORMS = {"rms": "rms_norm", "batch": "batch_norm"}
# fields that no tensor tells -> ours, and the class's default
UNTOLD: Mapping[str, tuple[str, Any]] = {
    "attention_head_dim": ("head_dim", 32),
    "decoder_act_fns": ("decoder_activations", "silu"),
    "decoder_conv_act_fn": ("out_activation", "relu"),
    "encoder_out_shortcut": ("encoder_shortcut", True),
    "decoder_in_shortcut": ("decoder_shortcut", True),
}


def _completed(config: DcaeConfig, said: Mapping[str, Any], own: Mapping[str, Any]) -> DcaeConfig:
    """With what tensors don't tell: as the weights' own metadata say, else as the config.json does."""
    told: dict[str, Any] = {
        ours: tuple(own[ours]) if isinstance(own[ours], list) else own[ours]
        for ours, _ in UNTOLD.values()
        if own.get(ours) is not None and not (ours == "head_dim" and tells_heads(config))
    }
    if said:
        for field, (ours, usual) in UNTOLD.items():
            if ours == "head_dim" and tells_heads(config):
                continue
            value = said.get(field)
            read = _read(field, usual if value is None else value, config)
            if ours in told and not _agree(field, read, told[ours], config):
                raise WeightsError(contradiction(field, value, told[ours]))
            told.setdefault(ours, read)
    if (
        "head_dim" not in told
        and not tells_heads(config)
        and attends(config)
        and config.head_dim != DcaeConfig.head_dim
    ):
        raise WeightsError(
            f"nothing tells how many channels a head of its attention has, and {DcaeConfig.head_dim}, as the published "
            f"ones have, do not fit it; put its config.json (attention_head_dim) beside it"
        )
    return replace(config, **told)


def _agree(field: str, read: Any, told: Any, config: DcaeConfig) -> bool:
    if field != "decoder_act_fns":
        return bool(read == told)
    return all(read[level] == told[level] for level in _of_residual_blocks(config))


def _of_residual_blocks(config: DcaeConfig) -> list[int]:
    """Levels of the decoder in which there are any, and so activations and norms."""
    return [n for n, count in enumerate(config.decoder_blocks) if count and n not in config.decoder_attn_levels]


def _read(field: str, value: Any, config: DcaeConfig) -> Any:
    """What a field says, as our configuration has it."""
    if field == "decoder_act_fns":
        levels = len(config.decoder_ch)
        values = value if isinstance(value, list) else [value] * levels
        if len(values) != levels:
            raise WeightsError(contradiction(field, value, levels))
        return tuple(_activation(field, one) for one in values)
    if field == "decoder_conv_act_fn":
        return _activation(field, value)
    if field == "attention_head_dim":
        return value
    if not isinstance(value, bool):
        raise WeightsError(unsupported(field, value, "true and false"))
    return value


def _activation(field: str, name: object) -> ActivationName:
    known = ACTIVATIONS.get(name.lower()) if isinstance(name, str) else None
    if known is None:
        raise WeightsError(unsupported(field, name, ", ".join(ACTIVATIONS)))
    return known


def _expected(config: DcaeConfig, said: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """What fields must say beside these tensors; what counts for nothing may be anything."""
    fields = _fields(config)
    for field, known, kinds in (
        ("downsample_block_type", config.down, DOWN),
        ("upsample_block_type", config.up, UP),
    ):
        named = [name for names in kinds.values() for name in names]
        if (value := said.get(field)) is not None and value not in named:
            raise WeightsError(unsupported(field, value, ", ".join(named)))
        fields[field] = value if value in kinds[known] else kinds[known][0]
    for field in _UNREAD:
        fields[field] = said.get(field, fields[field])  # `_completed` has read it
    if tells_heads(config):
        fields["attention_head_dim"] = config.head_dim
    for side in ("encoder", "decoder"):
        blocks = getattr(config, f"{side}_blocks")
        for name in ("block_types", "block_out_channels", "qkv_multiscales", "norm_types"):
            field = f"{side}_{name}"
            if field not in fields:
                continue
            value = said.get(field)
            if name == "qkv_multiscales" and isinstance(value, list) and len(value) == len(blocks):
                attended = getattr(config, f"{side}_attn_levels")
                found = zip(value, fields[field], strict=True)
                fields[field] = [ours if n in attended else one for n, (one, ours) in enumerate(found)]
            if side not in parts:
                fields[field] = value
            elif isinstance(value, str):  # one for all
                fields[field] = (
                    value if all(one == value for one in _counting(fields[field], blocks)) else fields[field]
                )
            elif isinstance(value, list) and len(value) == len(blocks) and not blocks[0]:
                fields[field] = [value[0], *fields[field][1:]]
        if side not in parts:
            fields[f"{side}_layers_per_block"] = said.get(f"{side}_layers_per_block")
    if "decoder" not in parts:
        fields["upsample_block_type"] = said.get("upsample_block_type")
    if "encoder" not in parts:
        fields["downsample_block_type"] = said.get("downsample_block_type")
    return fields


_UNREAD = tuple(UNTOLD)


def _counting(values: Sequence[Any], blocks: Sequence[int]) -> list[Any]:
    return [value for value, count in zip(values, blocks, strict=True) if count]


def _fields(config: DcaeConfig) -> dict[str, Any]:
    """The fields of a config.json."""
    fields: dict[str, Any] = {
        "in_channels": config.in_channels,
        "latent_channels": config.z_channels,
        "attention_head_dim": config.head_dim,
        "downsample_block_type": DOWN[config.down][0],
        "upsample_block_type": UP[config.up][0],
        "decoder_norm_types": [NORMS[norm] for norm in config.decoder_norms],
        "decoder_act_fns": list(config.decoder_activations),
        "decoder_conv_act_fn": config.out_activation,
        "encoder_out_shortcut": config.encoder_shortcut,
        "decoder_in_shortcut": config.decoder_shortcut,
    }
    for side in ("encoder", "decoder"):
        of = config.of(side)
        fields |= {
            f"{side}_block_types": [
                "EfficientViTBlock" if level in of.attn_levels else "ResBlock" for level in range(config.levels)
            ],
            f"{side}_block_out_channels": list(of.channels),
            f"{side}_layers_per_block": list(of.blocks),
            f"{side}_qkv_multiscales": [list(scales) for scales in of.scales],
        }
    return fields


def _theirs(key: str, config: DcaeConfig) -> str | None:
    names = to_diffusers(key, config)
    return names[0] if len(names) == 1 else None


def _parted(key: str, config: DcaeConfig) -> tuple[str, ...]:
    names = to_diffusers(key, config)
    return names if len(names) > 1 else ()


def _ours(key: str, config: DcaeConfig) -> str | None:
    found = from_diffusers(key, config.down == "conv")
    return found[0] if found and found[1] is None else None


LINEAR: Callable[[str], bool] = lambda key: key.endswith((f"{QKV}.weight", "context_module.main.proj.conv.weight"))  # noqa: E731

DIFFUSERS = Diffusers(
    classes={"AutoencoderDC": DiffusersClass(kept=("scaling_factor",))},
    completed=_completed,
    expected=_expected,
    written=_fields,
    theirs=_theirs,
    ours=_ours,
    parted=_parted,
    linear=LINEAR,
)
