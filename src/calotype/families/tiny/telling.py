"""How a TAESD is told by the names and shapes of its tensors. No torch."""

from __future__ import annotations

import re
from itertools import product
from typing import get_args

from calotype.errors import WeightsError
from calotype.families.face import Group, Shapes, Sign, Told, listing, picture_channels, shape_of
from calotype.families.tiny.config import STEM, WIDTHS, TinyConfig, Variant

# the first and the last layer of each variant's halves that have weights
ENCODERS: dict[Variant, tuple[int, int]] = {"f8": (0, 14), "f16": (1, 16), "f32": (0, 17)}
DECODERS: dict[Variant, tuple[int, int]] = {"f8": (1, 19), "f16": (1, 19), "f32": (1, 29)}


def _convolves(shapes: Shapes, prefix: str) -> bool:
    """Whether one of its first two layers is a convolution."""
    names = product(("", "taesd_"), ("encoder", "decoder"), (".", ".layers."), "01")
    return any(len(shapes.get(f"{prefix}{''.join(parts)}.weight", ())) == 4 for parts in names)


def _is_half(shapes: Shapes, prefix: str) -> bool:
    """Whether it is half a TAESD: a convolution, then blocks; at the top of a file any row of layers may be one."""
    there = [shapes[name] for name in (f"{prefix}0.weight", f"{prefix}1.weight") if name in shapes]
    blocks = any(f"{prefix}{i}.conv.0.weight" in shapes for i in (1, 3, 4))
    return (
        len(there) == 1
        and len(there[0]) == 4
        and (blocks or (not prefix and all(name[:1].isdigit() for name in shapes)))
    )


WHOLE = Sign(
    first=re.compile(r"((?:.*?\.)?)(?<!coder\.)(?:taesd_)?(?:encoder|decoder)\.(?:layers\.)?[01]\.weight"),
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
    # encoders begin with a convolution of pixels, or of blocks of them, with another after the first block; decoders
    # with one of latents (after a clamp without weights), and three blocks
    half = "encoder." if "0.weight" in group.keys or "4.weight" in group.keys else "decoder."
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
    variant = _variant(ours_shapes, parts)
    (first, end), (_, last) = ENCODERS[variant], DECODERS[variant]
    latents, axis = ("decoder.1.weight", 1) if "decoder" in parts else (f"encoder.{end}.weight", 0)
    patch = 2 if variant == "f16" else 1
    folded = picture_channels(ours_shapes, parts, f"encoder.{first}.weight", f"decoder.{last}.weight")
    if folded % patch**2:
        raise WeightsError(f"its pictures have {folded} channels of blocks of 2x2 pixels: it is not a whole TAESD")
    config = TinyConfig(
        z_channels=shape_of(ours_shapes, latents)[axis],
        pool=any(".pool." in key for key in keys),
        in_channels=folded // patch**2,
        variant=variant,
    )
    return Told(layout="taesd", config=config, parts=parts, keys=keys)


def _variant(shapes: Shapes, parts: frozenset[str]) -> Variant:
    """Which of the published ones has its layers; diffusers' AutoencoderTiny can have others."""
    able: list[Variant] = list(get_args(Variant))
    for side, halves in (("encoder", ENCODERS), ("decoder", DECODERS)):
        if side not in parts or not any(".conv.0." in key for key in shapes):  # some other sequence of layers
            continue
        end = max(int(key.split(".")[1]) for key in shapes if key.startswith(f"{side}."))
        found = {v: shapes.get(f"{side}.{first}.weight", (0,))[0] for v, (first, _) in halves.items()}
        there = [v for v in able if halves[v][1] == end and found[v] == _first_width(v, side)]
        if not there:
            raise WeightsError(
                f"its {side} is a TAESD's with {_difference(end, halves, found, side)}, and only the published ones "
                f"are read: of 64 channels and 3 blocks a level, TAESANA, and TAEQI2.1"
            )
        able = there
    return able[0]


def _first_width(variant: Variant, side: str) -> int:
    """Channels after the first convolution."""
    if side == "encoder" and variant == "f32":
        return STEM
    down, up = WIDTHS[variant]
    return (down if side == "encoder" else up)[0]


def _difference(end: int, halves: dict[Variant, tuple[int, int]], found: dict[Variant, int], side: str) -> str:
    """How it differs from those that are read, in words."""
    width = found["f8"] or found["f16"]
    if width != _first_width("f8", side) and end == halves["f8"][1]:
        return f"{width} channels"
    return f"{'more' if end > halves['f8'][1] else 'fewer'} blocks"
