"""How a TAEHV is told by the names and shapes of its tensors. No torch."""

from __future__ import annotations

import re

from calotype.errors import WeightsError
from calotype.families.face import Group, Shapes, Sign, Told, listing, shape_of
from calotype.families.taehv.config import (
    CHANNELS,
    DECODER_CHANNELS,
    DECODER_FRAMES,
    ENCODER_FRAMES,
    GROWN,
    GROWS,
    PATCHES,
    POOLS,
    TaehvConfig,
)

SUPER = re.compile(r"(.*\.)?decoder\.[0-9]+\.conv\.3\.weight")


def _has_frames(shapes: Shapes, prefix: str) -> bool:
    """Whether it has layers from frames to one, or from one to frames, as they are in the files or here."""
    names = [f"{prefix}{stem}" for stem in ("encoder.2.conv", "decoder.7.conv")]
    return any(shapes.get(f"{name}{leaf}", ())[2:] == (1, 1) for name in names for leaf in (".weight", ".0.weight"))


SIGN = Sign(
    first=re.compile(r"((?:.*?\.)?)(?:encoder\.0|decoder\.[01])\.weight"),
    own=re.compile(r"(?s)(encoder|decoder)\..+"),
    holds=_has_frames,
    sure=True,
)


def tell(shapes: Shapes, group: Group, norm_groups: int | None) -> Told:
    """What a group of tensors is."""
    found = {name: shapes[key] for name, key in group.keys.items()}
    if any(SUPER.fullmatch(name) for name in found):
        raise WeightsError(
            "the file holds a TAEHV with the larger decoder, which is not read; those without 'super' in their names "
            "are, and decode the same latents"
        )
    parts = frozenset(side for side in ("encoder", "decoder") if any(name.startswith(f"{side}.") for name in found))
    z_channels = (
        shape_of(found, "decoder.1.weight")[1] if "decoder" in parts else shape_of(found, "encoder.17.weight")[0]
    )
    if z_channels not in PATCHES:
        known = " and ".join(map(str, PATCHES))
        raise WeightsError(
            f"the file holds a tiny VAE of videos (TAEHV) for latents of {z_channels} channels, which no model of "
            f"pictures has; those of {known} channels are read (Wan 2.1 and Qwen-Image, Wan 2.2)"
        )
    config = TaehvConfig(z_channels=z_channels)
    keys = {ours: group.keys[name] for ours, theirs in layers(parts).items() if (name := _source(found, ours, theirs))}
    used = set(keys.values())
    if unknown := [key for key in group.keys.values() if key not in used]:
        raise WeightsError(f"{listing('unexpected', unknown)} in a TAEHV")
    _require_frames(found, parts)
    return Told(layout="taehv", config=config, parts=parts, keys=keys)


def layers(parts: frozenset[str]) -> dict[str, str]:
    """Our key -> the key in published files."""
    found: dict[str, str] = {}
    if "encoder" in parts:
        found |= _both("encoder.0")
        at = 2
        for stride, frames in zip(POOLS, ENCODER_FRAMES, strict=True):
            found |= {f"encoder.{at}.conv.{i}.weight": f"encoder.{at}.conv.weight" for i in range(stride)}
            found[f"encoder.{at + 1}.weight"] = f"encoder.{at + 1}.weight"
            for i in range(at + 2, at + 5):
                found |= _block(f"encoder.{i}", frames)
            at += 5
        found |= _both(f"encoder.{at}")
    if "decoder" in parts:
        found |= _both("decoder.1")
        at = 3
        for frames, grown in zip(DECODER_FRAMES, GROWN, strict=True):
            for i in range(at, at + 3):
                found |= _block(f"decoder.{i}", frames)
            found |= {f"decoder.{at + 4}.conv.{i}.weight": f"decoder.{at + 4}.conv.weight" for i in range(grown)}
            found[f"decoder.{at + 5}.weight"] = f"decoder.{at + 5}.weight"
            at += 6
        found |= _both(f"decoder.{at + 1}")
    return found


def _both(stem: str) -> dict[str, str]:
    return {f"{stem}.{leaf}": f"{stem}.{leaf}" for leaf in ("weight", "bias")}


def _block(stem: str, frames: int) -> dict[str, str]:
    found = {key: key for i in (0, 2, 4) for key in _both(f"{stem}.conv.{i}")}
    if frames > 1:
        found[f"{stem}.past.weight"] = f"{stem}.conv.0.weight"
    return found


def _require_frames(shapes: Shapes, parts: frozenset[str]) -> None:
    """Checks that frames become one, and one becomes frames, where they do in the published ones."""
    for side, at, counts, widths in (
        ("encoder", (2, 7, 12), POOLS, (CHANNELS,) * 3),
        ("decoder", (7, 13, 19), GROWS, DECODER_CHANNELS[:3]),
    ):
        if side not in parts:
            continue
        for i, count, width in zip(at, counts, widths, strict=True):
            shape = shapes.get(f"{side}.{i}.conv.weight")
            axis = 1 if side == "encoder" else 0
            if shape is not None and shape[axis : axis + 1] != (count * width,):
                raise WeightsError(
                    f"{side}.{i}.conv.weight has the shape {list(shape)}, and a TAEHV of Wan's has {count * width} "
                    f"{'columns' if axis else 'rows'} there: its frames are others"
                )


def _source(shapes: Shapes, ours: str, theirs: str) -> str | None:
    """The name that a layer is read from: its own, or that of the tensor in published files that it is part of."""
    if ours in shapes:
        return ours
    shape = shapes.get(theirs)
    if shape is None or (ours.endswith(".past.weight") and shape[1:2] != (2 * shape[0],)):
        return None  # a block's own part, where the other one is missing
    return theirs
