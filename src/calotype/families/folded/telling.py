"""How the built-in network is told by the names and shapes of its tensors. No torch."""

from __future__ import annotations

import re

from calotype.families.face import Group, Shapes, Sign, Told, shape_of
from calotype.families.folded.config import FoldedConfig

SIGN = Sign(
    first=re.compile(r"((?:.*?\.)?)encoder\.quarter\.0\.conv1\.weight"),
    own=re.compile(r"(?s)(encoder|decoder)\..+"),
    sure=True,
)


def tell(shapes: Shapes, group: Group, norm_groups: int | None) -> Told:
    """What a group of tensors is."""
    shapes = {name: shapes[key] for name, key in group.keys.items()}

    def blocks(side: str) -> tuple[int, int]:
        quarter, eighth = (
            len({m[1] for key in shapes if (m := re.match(rf"{side}\.{stage}\.([0-9]+)\.", key))})
            for stage in ("quarter", "eighth")
        )
        return quarter, eighth

    config = FoldedConfig(
        z_channels=shape_of(shapes, "encoder.conv_out.weight")[0] // 2,
        ch=(shape_of(shapes, "encoder.conv_in.weight")[0], shape_of(shapes, "encoder.down.weight")[0]),
        encoder_blocks=blocks("encoder"),
        decoder_blocks=blocks("decoder"),
    )
    return Told(layout="calotype", config=config, parts=frozenset({"encoder", "decoder"}), keys=group.keys)
