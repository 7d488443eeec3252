"""What a TAEHV looks like. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from calotype.errors import UsageError
from calotype.families.numbers import require_counts

CHANNELS = 64  # of the encoder's maps
DECODER_CHANNELS = (256, 128, 64, 64)  # of the decoder's levels, from the smallest up

POOLS = (2, 2, 1)  # frames that become one before each level of the encoder
GROWS = (1, 2, 2)  # frames that come of one after each level of the decoder

# Frames of each level. A picture is encoded as if it stood still for as many frames as become one latent; of the
# frames that come of a latent the last is the picture, and of what it alone needs the rest is left out.
ENCODER_FRAMES = (2, 1, 1)
DECODER_FRAMES = (1, 1, 2)
GROWN = (1, 2, 1)  # frames after each level of the decoder that are needed, the last ones

PATCHES = {16: 1, 48: 2}  # latent channels of the published ones -> side of the blocks of pixels that are channels


@dataclass(frozen=True, kw_only=True)
class TaehvConfig:
    """Architecture of a TAEHV (madebyollin/taehv; LightTAE of ModelTC/LightX2V), as it is for one picture.

    The default is TAEW2.1, for the latents of Wan 2.1 and Qwen-Image; with 48 channels it is TAEW2.2.

    Raises:
        UsageError: if there is no such network.
    """

    kind: ClassVar[str] = "taehv"
    has_posterior: ClassVar[bool] = False
    in_model_space: ClassVar[bool] = False  # TAEHV's own are, LightTAE is not, and they look alike

    z_channels: int = 16  # channels of the latents

    def __post_init__(self) -> None:
        require_counts(self, "z_channels")
        if self.z_channels not in PATCHES:
            raise UsageError(
                f"TaehvConfig.z_channels must be {' or '.join(map(str, PATCHES))}, not {self.z_channels}: others are "
                f"for the latents of videos alone."
            )

    @property
    def patch(self) -> int:
        """Pixels of a side of the blocks that are channels of the first map and the last."""
        return PATCHES[self.z_channels]

    @property
    def factor(self) -> int:
        """Spatial compression f: a latent stands for f x f pixels."""
        return 8 * self.patch

    @property
    def imitated(self) -> None:
        """The architecture does not tell whether its raw latents are the model latents of another VAE."""
        return None

    @property
    def picture_channels(self) -> int:
        """Channels of the pictures: RGB."""
        return 3

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into metadata."""
        return {"kind": self.kind, **asdict(self)}
