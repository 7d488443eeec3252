"""How pictures are prepared, sent through a VAE and compared: a protocol as a value, stored with every result.

Published figures of one VAE differ by 3 dB, because each of these choices differs between papers and libraries.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from calotype.errors import UsageError
from calotype.pixels import from_array

Array = NDArray[np.uint8]  # a picture: [H, W, P], levels
Resize = Literal["none", "exact", "bicubic", "bilinear", "tensor", "adm"]  # see `Protocol.resize`
Similarity = Literal["gaussian", "reflect", "uniform"]  # windows and borders of SSIM, see `Protocol.ssim`


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that decides a figure, but for the pictures and the VAE.

    Attributes:
        name: of the preset, or of your own.
        note: one sentence on what is particular about it.
        resize: what becomes of a picture before it is encoded. `short` is its shorter side:
            "none": nothing, whatever its size.
            "exact": nothing, and it must be `size` x `size`.
            "bicubic", "bilinear": Pillow's (antialiased) filter makes `short` `size`, and the middle is cut out.
            "tensor": the same by torch's bilinear filter with antialiasing, in float: pixels are no whole numbers then.
            "adm": halved by a box filter while `short` is at least 2 `size`, then bicubic, and the middle is cut out
                (openai/guided-diffusion, image_datasets.py).
            The last four enlarge a picture whose `short` is less, as what they are named after does.
        size: side of the square in pixels; 0 where there is none.
        latent: what of the posterior is decoded.
        seed: of the sample; each picture has a generator of its own.
        dtype: of the network, in both directions.
        ssim: "gaussian": `metrics.ssim`, of uint8 alone. "reflect": the same window, with the picture continued by
            reflection (torchmetrics). "uniform": mean over 7 x 7 with the sample covariance (scikit-image's default).
        ssim_range: what SSIM's constants are relative to, in units of the pixels' own range: 1 is right.
        on_floats: SSIM and LPIPS are of decoded pixels that are not rounded; SSIM clamps them, LPIPS does not.

    Raises:
        UsageError: there is no such value of a field, or two of them can't be together.
    """

    name: str = "whole"
    note: str = "Whole pictures as they are; the posterior's mode; uint8 rounded half up."
    resize: Resize = "none"
    size: int = 0
    latent: Literal["mode", "sample"] = "mode"
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    ssim: Similarity = "gaussian"
    ssim_range: float = 1.0
    on_floats: bool = False

    def __post_init__(self) -> None:
        if (self.size > 0) == (self.resize == "none"):
            wanted = "no size" if self.resize == "none" else "a size in pixels"
            raise UsageError(f"a protocol with resize = {self.resize} needs {wanted}, not size = {self.size}.")
        if self.ssim == "gaussian" and (self.on_floats or self.ssim_range != 1.0):
            given = "on_floats = True" if self.on_floats else f"ssim_range = {self.ssim_range:g}"
            raise UsageError(
                f"a protocol with ssim = gaussian compares uint8 by their own range, not with {given}; leave that out, "
                f"or give ssim = reflect or uniform."
            )

    def prepare(self, picture: Array, name: str = "the picture") -> Tensor:
        """A picture as it is encoded: uint8 [H, W, C] -> float [C, H', W'] in [-1, 1]; C is 3 (RGB) or 4 (RGBA).

        Raises:
            UsageError: its size is not what the protocol asks for.
        """
        self.require(picture, name)
        if self.resize in ("none", "exact"):
            return from_array(picture)
        if self.resize == "tensor":
            return _tensor(picture, self.size)
        image = Image.fromarray(np.ascontiguousarray(picture))
        return from_array(np.asarray(_adm(image, self.size) if self.resize == "adm" else self._pillow(image)))

    def enlarges(self, picture: Array) -> bool:
        """Whether a picture [H, W, P] has a side shorter than `size`, so that it is made larger."""
        return self.resize not in ("none", "exact") and min(picture.shape[:2]) < self.size

    def require(self, picture: Array, name: str = "the picture") -> None:
        """Refuses a picture [H, W, P] that the protocol does not take.

        Raises:
            UsageError: its size is another one.
        """
        height, width = picture.shape[:2]
        if self.resize == "exact" and (height, width) != (self.size, self.size):
            raise UsageError(
                f"{name} is {width} x {height} pixels, and the protocol {self.name} takes {self.size} x {self.size} "
                f"only; leave it out, or choose a protocol that resizes."
            )

    def _pillow(self, image: Image.Image) -> Image.Image:
        filter_ = Image.Resampling.BICUBIC if self.resize == "bicubic" else Image.Resampling.BILINEAR
        height, width = _scaled(image.height, image.width, self.size)
        top, left = _middle(height, width, self.size)
        return image.resize((width, height), filter_).crop((left, top, left + self.size, top + self.size))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are stored with results."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        shape = "whole pictures" if self.resize == "none" else f"{self.size} x {self.size} ({self.resize})"
        drawn = "mode" if self.latent == "mode" else f"sample (seed {self.seed})"
        window = {"gaussian": "gaussian 11/1.5, valid", "reflect": "gaussian 11/1.5, reflected", "uniform": "7 x 7"}
        spread = "" if self.ssim_range == 1.0 else f", range x {self.ssim_range:g}"
        values = "SSIM and LPIPS of floats, PSNR of uint8" if self.on_floats else "uint8 rounded half up"
        return f"{self.name}: {shape}, {drawn}, {self.dtype}, {values}, SSIM {window[self.ssim]}{spread}"


def _scaled(height: int, width: int, size: int) -> tuple[int, int]:
    """A picture's sides when the shorter one becomes `size`; the other is rounded down, as by torchvision's Resize."""
    short = min(height, width)
    return (size if height == short else size * height // short), (size if width == short else size * width // short)


def _middle(height: int, width: int, size: int) -> tuple[int, int]:
    """Where a middle square begins; halves are rounded to even, as torchvision's CenterCrop does."""
    return round((height - size) / 2), round((width - size) / 2)


def _tensor(picture: Array, size: int) -> Tensor:
    height, width = _scaled(picture.shape[0], picture.shape[1], size)
    x = from_array(picture)[None]
    opacity = (x[:, 3:] + 1.0) / 2.0
    if opacity.numel():  # what can't be seen is not to be mixed into what can
        x = torch.cat([x[:, :3] * opacity, opacity], dim=1)
    x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=True)
    if opacity.numel():
        colours, opacity = x[:, :3], x[:, 3:]
        x = torch.cat([torch.where(opacity > 0.0, colours / opacity, 1.0), opacity * 2.0 - 1.0], dim=1).clamp(-1.0, 1.0)
    top, left = _middle(height, width, size)
    return x[0, :, top : top + size, left : left + size].contiguous()


def _adm(image: Image.Image, size: int) -> Image.Image:
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return image.crop((left, top, left + size, top + size))


PRESETS = {
    protocol.name: protocol
    for protocol in (
        Protocol(),
        Protocol(
            name="crop256",
            note="The shorter side is made 256 pixels, and the middle cut out.",
            resize="bicubic",
            size=256,
        ),
        Protocol(
            name="stability-card",
            note="Tables of the cards of sd-vae-ft-ema, -mse and SDXL: COCO 2017 val, 5,000 pictures. Neither the "
            "crop nor the code of their PSIM was published, so the crop is the usual one and PSIM is left out; their "
            "rFID is of 5,000 pictures, which alone makes it several times that of 50,000.",
            resize="bicubic",
            size=256,
            latent="sample",
        ),
        Protocol(
            name="lightningdit",
            note="Tables of LightningDiT (VA-VAE) and EQ-VAE: pixels are resized after they became floats, and SSIM "
            "(torchmetrics', borders reflected) and LPIPS are of what is decoded, a sample, before it is rounded; it "
            "is clamped for SSIM, and not for LPIPS.",
            resize="tensor",
            size=256,
            latent="sample",
            ssim="reflect",
            on_floats=True,
        ),
        Protocol(
            name="dc-ae",
            note="Tables of DC-AE: ADM's crop, torchmetrics' SSIM, and LPIPS of AlexNet, about 2.3 times smaller than "
            "VGG's; DC-AE has no posterior, so the mode is decoded.",
            resize="adm",
            size=256,
            ssim="reflect",
        ),
        Protocol(
            name="llamagen",
            note="Tables of LlamaGen: ADM's crop, a sample, and SSIM over 7 x 7 whose range is given as 2 for pixels "
            "in [0, 1], which makes its constants four times as large and SSIM too high.",
            resize="adm",
            size=256,
            latent="sample",
            ssim="uniform",
            ssim_range=2.0,
        ),
    )
}
"""Protocols by name: those of published tables, and the default one."""


def preset(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no protocol {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
