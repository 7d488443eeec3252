"""How a TAESD is told by the names and shapes of its tensors. No torch."""

from __future__ import annotations

import re
from itertools import product

from calotype.errors import WeightsError
from calotype.families.face import Group, Shapes, Sign, Told, listing, picture_channels, shape_of
from calotype.families.tiny.config import TinyConfig


def _convolves(shapes: Shapes, prefix: str) -> bool:
    """Whether one of its first two layers is a convolution."""
    names = product(("", "taesd_"), ("encoder", "decoder"), (".", ".layers."), "01")
    return any(len(shapes.get(f"{prefix}{''.join(parts)}.weight", ())) == 4 for parts in names)


def _is_half(shapes: Shapes, prefix: str) -> bool:
    """Whether it is half a TAESD: a convolution, then blocks; at the top of a file any row of layers may be one."""
    there = [shapes[name] for name in (f"{prefix}0.weight", f"{prefix}1.weight") if name in shapes]
    blocks = f"{prefix}1.conv.0.weight" in shapes or f"{prefix}3.conv.0.weight" in shapes
    return (
        len(there) == 1
        and len(there[0]) == 4
        and (blocks or (not prefix and all(name[:1].isdigit() for name in shapes)))
    )


WHOLE = Sign(
    first=re.compile(r"((?:.*?\.)?)(?:taesd_)?(?:encoder|decoder)\.(?:layers\.)?[01]\.weight"),
    own=re.compile(r"(?s)(taesd_)?(encoder|decoder)\.(layers\.)?.+"),
    holds=_convolves,
)
# half of one, without a name
BARE = Sign(
    first=re.compile(r"((?:.*?\.)?)(?<!coder\.)(?<!layers\.)([01])\.weight"),
    own=re.compile(r"(?s)[0-9]+\..+"),
    holds=_is_half,
)


def tell(shapes: Shapes, group: Group, norm_groups: int | None) -> Told:
    """What a group of tensors is."""
    keys: dict[str, str] = {}
    unknown: list[str] = []
    # encoders begin with a convolution of pixels, decoders with one of latents (after a clamp without weights)
    half = "encoder." if "0.weight" in group.keys else "decoder."
    for name, key in group.keys.items():
        if group.sign is BARE:
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
        z_channels=shape_of(ours_shapes, first_or_last)[axis],
        pool=any(".pool." in key for key in keys),
        in_channels=picture_channels(ours_shapes, parts, "encoder.0.weight", "decoder.19.weight"),
    )
    return Told(layout="taesd", config=config, parts=parts, keys=keys)


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
