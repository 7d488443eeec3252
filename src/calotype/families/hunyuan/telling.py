"""How the VAE of HunyuanImage 2.1 is told by the names and shapes of its tensors. No torch."""

from __future__ import annotations

import re
from typing import Any

from calotype.errors import WeightsError
from calotype.families.face import Group, Shapes, Sign, Told, listing, picture_channels, shape_of
from calotype.families.hunyuan.config import HunyuanImageConfig
from calotype.families.hunyuan.names import from_diffusers


def _folds(shapes: Shapes, prefix: str) -> bool:
    """Whether its changes of size fold pixels: what an AutoencoderKL's names have another meaning for."""
    if any(f"{prefix}{side}_blocks.0.conv1.weight" in shapes for side in ("encoder.down", "decoder.up")):
        return True
    if f"{prefix}decoder.up.0.upsample.conv.weight" in shapes:  # an AutoencoderKL's up.0 is full resolution
        return True
    for i in range(16):
        conv = shapes.get(f"{prefix}encoder.down.{i}.downsample.conv.weight")
        norm = shapes.get(f"{prefix}encoder.down.{i + 1}.block.0.norm1.weight")
        if conv and norm and 4 * conv[0] == norm[0]:
            return True
    return False


SIGN = Sign(
    first=re.compile(r"((?:.*?\.)?)(?:encoder|decoder)\.conv_in\.weight"),
    own=re.compile(r"(?s)(encoder|decoder)\..+"),
    holds=_folds,
)


def taken(config: HunyuanImageConfig, key: str, tensor: Any) -> Any:
    """Kernels over a single frame, as the original file may have them, without it."""
    return tensor[:, :, 0] if tensor.ndim == 5 and tensor.shape[2] == 1 else tensor


def tell(shapes: Shapes, group: Group, norm_groups: int | None) -> Told:
    """What a group of tensors is."""
    diffusers = any(re.match(r"(encoder\.down|decoder\.up)_blocks\.", name) for name in group.keys)
    blocks = _blocks(group) if diffusers else 0
    keys: dict[str, str] = {}
    unknown = []
    for name, key in group.keys.items():
        ours = from_diffusers(name, blocks) if diffusers else name
        if ours is None:
            unknown.append(key)
        else:
            keys[ours] = key
    if unknown:
        raise WeightsError(listing("unexpected", unknown))
    parts = frozenset(side for side in ("encoder", "decoder") if f"{side}.conv_in.weight" in keys)
    flat = {ours: _flat(shapes[key]) for ours, key in keys.items()}
    return Told(layout="diffusers" if diffusers else "ldm", config=_config(flat, parts), parts=parts, keys=keys)


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] + shape[3:] if len(shape) == 5 and shape[2] == 1 else shape


def _blocks(group: Group) -> int:
    """Residual blocks of an encoder's level, by diffusers' names: what stands before the first change of size."""
    for row, more in (("encoder.down", 0), ("decoder.up", 1)):
        found = [int(m[1]) for n in group.keys if (m := re.fullmatch(rf"{row}_blocks\.(\d+)\.conv\.weight", n))]
        if found and min(found) > more:
            return min(found) - more
    raise WeightsError("its sides never change their size: it is not a whole VAE")


def _config(shapes: Shapes, parts: frozenset[str]) -> HunyuanImageConfig:
    stem, extra = ("encoder.down", 0) if "encoder" in parts else ("decoder.up", 1)

    def count(pattern: str) -> int:
        return len({match[1] for key in shapes if (match := re.match(pattern, key))})

    levels = count(rf"{stem}\.([0-9]+)\.")
    blocks = count(rf"{stem}\.0\.block\.([0-9]+)\.") - extra
    if levels * blocks > len(shapes):
        raise WeightsError(f"{levels} levels of {blocks} blocks are more than its tensors: it is not a whole VAE")
    channels = tuple(shape_of(shapes, f"{stem}.{i}.block.0.conv1.weight")[0] for i in range(levels))
    return HunyuanImageConfig(
        channels=channels[::-1] if extra else channels,
        num_res_blocks=blocks,
        z_channels=(
            shape_of(shapes, "decoder.conv_in.weight")[1]
            if "decoder" in parts
            else shape_of(shapes, "encoder.conv_out.weight")[0] // 2
        ),
        in_channels=picture_channels(shapes, parts, "encoder.conv_in.weight", "decoder.conv_out.weight"),
    )
