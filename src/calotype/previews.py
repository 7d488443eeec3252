"""Latents as small pictures: RGB as a linear map of their channels, of a pixel for each latent.

It takes no decoder and next to no time. The map is fitted by `calotype probe` (see `evaluate.probe.preview`), ships
for the built-in VAE, and is published for many spaces.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from calotype.damage import damage
from calotype.errors import LatentsError
from calotype.families import FACTORS
from calotype.files import write_text
from calotype.latents import KNOWN, LatentFormat, Latents, Packed, Space, space_of
from calotype.pixels import to_pil
from calotype.texts import TextError, is_number, json_table, number, shown, whole

KIND = "factors/1"  # what files of factors say that they are
BUILTIN = Path(__file__).parent / "weights" / "builtin" / "factors.json"  # those of the VAE that ships
_LARGEST = 256  # pixels along a side that a latent stands for
_PACKED = "flux2"  # whose format comes with the weights, and not from `KNOWN`

Colour = tuple[float, float, float]  # red, green and blue: what a latent channel adds to each


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What makes RGB of latents: rgb = latents @ factors + bias, in [-1, 1] but for what is beyond.

    Attributes:
        factors: R, G and B of each channel; where model latents are packed (FLUX.2), of each channel of the unpacked.
        bias: R, G and B of latents that are 0.
        format: name of the latent format.
        space: which latents: those of published factors, as ComfyUI has them, are model latents.
        vae: sha256 of the VAE to whose latents they were fitted; empty of published ones.
        vae_name: what that VAE is called; empty of published ones.
        pictures: to so many.
        rmse: how far RGB is from those pictures, averaged to a pixel a latent: the root mean square difference in
            levels of 255. None of published ones.
        r2: the part of their variance that is explained, at most 1. None of published ones.
    """

    factors: tuple[Colour, ...]
    bias: Colour = (0.0, 0.0, 0.0)
    format: str
    space: Space = "model"
    vae: str = ""
    vae_name: str = ""
    pictures: int = 0
    rmse: float | None = None
    r2: float | None = None

    def rgb(self, latents: Tensor) -> Tensor:
        """Latents [C, h, w] of `space` -> [3, h, w], about [-1, 1], float32; twice as high and wide where packed.

        Raises:
            LatentsError: for another number of channels.
        """
        channels = len(self.factors)
        if latents.ndim == 3 and latents.shape[0] == 4 * channels and self.format == _PACKED:
            latents = functional.pixel_shuffle(latents[None], 2)[0]
        if latents.ndim != 3 or latents.shape[0] != channels:
            raise LatentsError(
                f"These factors are of latents [{channels}, h, w] of format {self.format!r}, and these are "
                f"{list(latents.shape)}; give those of their own space."
            )
        weights = torch.tensor(self.factors, device=latents.device)
        bias = torch.tensor(self.bias, device=latents.device)
        return torch.einsum("chw,cd->dhw", latents.float(), weights) + bias[:, None, None]

    def fit(self, format_: LatentFormat, vae: str) -> bool:
        """Whether they are of latents of a VAE (its sha256) in a format, or of its published space."""
        if self.vae and self.vae == vae:
            return True
        published = self.format in KNOWN or self.format == _PACKED
        return self.space == "model" and published and self.format == space_of(format_)

    def fit_untold(self, latents: Latents) -> bool:
        """Whether nothing tells of which VAE latents are, nor their scale, so that they may be those of these."""
        return not latents.vae and latents.format.name == "none" and latents.space == self.space

    def code(self) -> str:
        """As a latent format of ComfyUI has them (comfy/latent_formats.py), to be pasted there."""
        rows = "\n".join(f"    [{', '.join(f'{value:8.4f}' for value in row)}]," for row in self.factors)
        bias = ", ".join(f"{value:.4f}" for value in self.bias)
        return f"latent_rgb_factors = [\n{rows}\n]\nlatent_rgb_factors_bias = [{bias}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in a file."""
        return {
            "calotype": KIND, "vae_name": self.vae_name, "vae_sha256": self.vae, "latent_format": self.format,
            "space": self.space, "pictures": self.pictures, "rmse_levels": self.rmse, "r2": self.r2,
            "latent_rgb_factors": [list(row) for row in self.factors], "latent_rgb_factors_bias": list(self.bias),
        }  # fmt: skip

    def text(self) -> str:
        """The file's text, a channel a line."""
        values = self.to_dict()
        rows = ",\n  ".join(json.dumps(row) for row in values["latent_rgb_factors"])
        parts = [
            f' "{key}": ' + (f"[\n  {rows}\n ]" if key == "latent_rgb_factors" else json.dumps(value))
            for key, value in values.items()
        ]
        return "{\n" + ",\n".join(parts) + "\n}\n"


def save_factors(path: str | os.PathLike[str], factors: Factors) -> Path:
    """Writes a file that `load_factors` reads, and from which ComfyUI's two lists can be copied.

    Args:
        path: of the file; what was there is replaced.

    Returns:
        That path.

    Raises:
        UsageError, StorageError: it can't be written.
    """
    return write_text(path, factors.text())


def load_factors(path: str | os.PathLike[str]) -> Factors:
    """Reads what `save_factors` wrote to a path.

    Raises:
        LatentsError: there is no such file, or it is another or damaged.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise LatentsError(f"{path}: {reason}; give the factors.json that `calotype probe` wrote.") from None
    with damage(LatentsError, f"{path}: these are no factors ({{why}}); `calotype probe` writes them."):
        return _factors(json_table(content))


def _factors(values: dict[str, Any]) -> Factors:
    if values.get("calotype") != KIND:
        raise TextError(f"calotype is {shown(values.get('calotype'))} in it, and not {KIND}")
    rows, texts = values.get("latent_rgb_factors"), {}
    for key in ("latent_format", "space", "vae_sha256", "vae_name"):
        texts[key] = values.get(key, "")
        if not isinstance(texts[key], str):
            raise TextError(f"{key} is {shown(texts[key])}, and no text")
    if texts["space"] not in get_args(Space):
        raise TextError(f"space is {shown(texts['space'])}, and neither raw nor model")
    if not isinstance(rows, list) or not rows:
        raise TextError("latent_rgb_factors is no list of rows")
    rmse, r2 = (None if values.get(key) is None else number(values[key], key) for key in ("rmse_levels", "r2"))
    return Factors(
        factors=tuple(_colour(row, f"row {i} of latent_rgb_factors") for i, row in enumerate(rows)),
        bias=_colour(values.get("latent_rgb_factors_bias"), "latent_rgb_factors_bias"),
        format=texts["latent_format"], space=cast(Space, texts["space"]),
        vae=texts["vae_sha256"], vae_name=texts["vae_name"],
        pictures=whole(values.get("pictures", 0), "pictures", 0), rmse=rmse, r2=r2,
    )  # fmt: skip


def _colour(value: object, name: str) -> Colour:
    if not isinstance(value, list) or len(value) != 3 or not all(map(is_number, value)):
        raise TextError(f"{name} is {shown(value)}, and not three numbers")
    red, green, blue = map(float, value)
    return red, green, blue


@cache
def builtin() -> Factors:
    """Those of the built-in VAE, as `calotype probe` wrote them."""
    return load_factors(BUILTIN)


def published(format_: str) -> Factors | None:
    """Published ones; None where there are none.

    Args:
        format_: name of the latent format.
    """
    found = FACTORS.get(format_)
    return None if found is None else Factors(format=format_, **found)


def find_factors(format_: LatentFormat, vae: str, vae_name: str = "", given: Factors | None = None) -> Factors:
    """What makes pictures of a VAE's latents: the factors given, or those that ship or are published.

    Args:
        format_, vae, vae_name: the latents' format, and sha256 and name of their VAE.

    Raises:
        LatentsError: the factors given are of other latents, or none are known.
    """
    whose = f"{vae_name or 'an unnamed VAE'} (format {format_.name!r})"
    if given is not None:
        if not given.fit(format_, vae):
            raise LatentsError(
                f"These factors are of latents of {given.vae_name or 'an unnamed VAE'} (format {given.format!r}), and "
                f"these latents of {whose}; fit others with `calotype probe VAE PICTURES`."
            )
        return given
    if vae == builtin().vae:
        return builtin()
    space = space_of(format_)
    if space and (known := published(space)) is not None and len(known.factors) == format_.channels:
        return known
    raise LatentsError(
        f"No factors are known that make pictures of latents of {whose}; fit them with `calotype probe VAE PICTURES`, "
        f"and give the factors.json that it writes with --factors."
    )


def preview(latents: Latents, factors: Factors | None = None, *, enlarge: bool = False) -> Image.Image:
    """Latents -> a quick picture of them, without a decoder.

    Args:
        factors: as `load_factors` reads them; None: those that ship with calotype or are published for the format.
        enlarge: to the picture's true size, smoothly; else a pixel stands for a latent, as `rgb` gives them.

    Raises:
        LatentsError: no factors are known, those given are of other latents, or the latents are damaged.
    """
    if factors is not None and factors.fit_untold(latents):  # whoever gives them knows
        found = factors
    else:
        found = find_factors(latents.format, latents.vae, latents.vae_name, factors)
    rgb = found.rgb((latents.to_model() if found.space == "model" else latents.to_raw()).tensor)
    padding, alpha = latents.padding, latents.alpha
    sides = padding.height + padding.bottom, padding.width + padding.right
    times = sides[0] // rgb.shape[1]
    if not 1 <= times <= _LARGEST or sides != (times * rgb.shape[1], times * rgb.shape[2]):
        raise LatentsError(
            f"These latents are {latents.tensor.shape[1]}x{latents.tensor.shape[2]} and of a picture padded to "
            f"{sides[0]}x{sides[1]}, which is no whole multiple of that: they are damaged; make them again."
        )
    if enlarge:
        rgb = enlarged(rgb, sides)[:, : padding.height, : padding.width]
    else:  # what is of the picture, if only in part
        cells = [
            -(-true * n // side)
            for true, n, side in zip((padding.height, padding.width), rgb.shape[1:], sides, strict=True)
        ]
        rgb = rgb[:, : cells[0], : cells[1]]
        alpha = None if alpha is None else functional.interpolate(alpha[None, None], size=cells, mode="area")[0, 0]
    return to_pil(rgb, alpha)


def latents_rgb(raw: Tensor, format_: LatentFormat, factors: Factors) -> Tensor:
    """Raw latents [C, h, w] of any sides, of a format that the factors are of -> [3, h, w], about [-1, 1], float32."""
    if factors.space == "raw":
        return factors.rgb(raw)
    height, width = raw.shape[1:]
    whole = functional.pad(raw, (0, -width % format_.patch, 0, -height % format_.patch))
    return factors.rgb(format_.to_model(whole[None])[0])[:, :height, :width]


def enlarged(rgb: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, h, w] -> [3, height, width], bilinear; `size` is (height, width)."""
    return functional.interpolate(rgb[None], size=size, mode="bilinear", align_corners=False)[0]


def fitted_space(format_: LatentFormat | None, raw: Tensor) -> Tensor:
    """Raw latents [C, h, w] as factors take them: model latents, not packed; raw ones where the format is not known."""
    if format_ is None:
        return raw
    model = format_.to_model(raw[None])
    return (functional.pixel_shuffle(model, format_.patch) if isinstance(format_, Packed) else model)[0]
