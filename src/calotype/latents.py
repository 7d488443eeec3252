"""Latent formats, and latents on disk.

*Raw* latents are what the encoder gives. *Model* latents are what a diffusion model was trained on: raw latents,
scaled and shifted, and for FLUX.2 packed. A `LatentFormat` is the border between them, and the only one.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from safetensors import safe_open
from torch import Tensor

from calotype.damage import LONGEST_HEADER, damage, quoted
from calotype.errors import LatentsError, UsageError
from calotype.families import FORMATS
from calotype.families.numbers import MOST_CHANNELS
from calotype.files import text_path
from calotype.other_latents import describe
from calotype.pixels import Padding
from calotype.tensor_files import write_safetensors
from calotype.texts import COUNT, TextError, is_number, json_of, made, shown, whole

Space = Literal["raw", "model"]

MODEL = "model:"  # what begins the name of a format whose raw latents are the model latents of the one named

_LARGEST = torch.finfo(torch.float32).max
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class LatentFormat(ABC):
    """One way from raw latents [N, C, h, w] to model latents and back."""

    name: str  # how it is called on the command line and in files
    channels: int  # C, of the raw latents

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise UsageError(f"A latent format's name must be a text, not {shown(self.name)}.")
        try:
            whole(self.channels, "channels", 1, MOST_CHANNELS)
        except TextError as error:
            raise UsageError(f"Latent format {self.name!r}: {error}.") from None

    kind: ClassVar[str]
    patch: ClassVar[int] = 1  # raw latents folded into one model latent, along each side

    def fits(self, model: Tensor) -> bool:
        """Whether model latents [C, h, w] have the channels of this format."""
        return model.shape[0] == self.channels * self.patch**2

    @abstractmethod
    def to_model(self, raw: Tensor) -> Tensor:
        """Raw latents -> model latents."""

    @abstractmethod
    def to_raw(self, model: Tensor) -> Tensor:
        """Model latents -> raw latents."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metadata; `latent_format_from_dict` gives the format back."""
        return {"kind": self.kind, **self.__dict__}


@dataclass(frozen=True, kw_only=True)
class ScaleShift(LatentFormat):
    """model = (raw - shift_factor) * scaling_factor."""

    scaling_factor: float
    shift_factor: float = 0.0

    kind: ClassVar[str] = "scale_shift"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_numbers(self, None, "scaling_factor", "shift_factor")
        _require_factor(self, self.scaling_factor)

    def to_model(self, raw: Tensor) -> Tensor:
        return (raw - self.shift_factor) * self.scaling_factor

    def to_raw(self, model: Tensor) -> Tensor:
        return model / self.scaling_factor + self.shift_factor


@dataclass(frozen=True, kw_only=True)
class PerChannel(LatentFormat):
    """model = (raw - mean) / std * scaling_factor, a mean and a std for each channel, measured over a training set.

    Pipelines of SDXL in diffusers compute so (pipeline_stable_diffusion_xl.py); those of GLM-Image leave the factor out
    whatever the configuration says (pipeline_glm_image.py), which is a factor of 1 here.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scaling_factor: float = 1.0

    kind: ClassVar[str] = "per_channel"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_numbers(self, self.channels, "mean", "std")
        _require_numbers(self, None, "scaling_factor")
        if min(self.std) <= 0:
            raise UsageError(f"Latent format {self.name!r} needs standard deviations above zero.")
        _require_factor(self, self.scaling_factor)

    def to_model(self, raw: Tensor) -> Tensor:
        return (raw - column(self.mean, raw)) / self._unit(raw)

    def to_raw(self, model: Tensor) -> Tensor:
        return model * self._unit(model) + column(self.mean, model)

    def _unit(self, like: Tensor) -> Tensor:
        """What is 1 in model latents, of each channel."""
        return column(tuple(std / self.scaling_factor for std in self.std), like)


@dataclass(frozen=True, kw_only=True)
class Packed(LatentFormat):
    """FLUX.2: 2x2 latents side by side become one with four times the channels, normalised by running statistics.

    Packed channel 4c + 2i + j is raw channel c at row i and column j of its 2x2 patch; then
    model = (packed - running_mean) / sqrt(running_var + eps). (black-forest-labs/flux2, src/flux2/autoencoder.py.)
    Heights and widths of the raw latents must be even. The statistics come with the weights; TAEF2's latents are
    normalised already, so its format packs only.
    """

    running_mean: tuple[float, ...]
    running_var: tuple[float, ...]
    eps: float = 1e-4

    kind: ClassVar[str] = "packed"
    patch: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_numbers(self, 4 * self.channels, "running_mean", "running_var")
        _require_numbers(self, None, "eps")
        if min(self.running_var) + self.eps <= 0:
            raise UsageError(f"Latent format {self.name!r} needs variances above zero.")

    def to_model(self, raw: Tensor) -> Tensor:
        packed = torch.nn.functional.pixel_unshuffle(raw, 2)
        return (packed - column(self.running_mean, raw)) / self._std(raw)

    def to_raw(self, model: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(model * self._std(model) + column(self.running_mean, model), 2)

    def _std(self, like: Tensor) -> Tensor:
        return torch.sqrt(column(self.running_var, like) + self.eps)


def _require_numbers(format_: LatentFormat, count: int | None, *names: str) -> None:
    """Checks that attributes hold so many numbers (None: a number, and no column), and makes them float."""
    for name in names:
        found = getattr(format_, name)
        values = (found,) if count is None else found
        if not isinstance(values, tuple) or len(values) != (count or 1) or not all(map(_is_number, values)):
            raise UsageError(
                f"Latent format {shown(format_.name)} needs {count or 1} finite numbers, not {shown(found)}."
            )
        floats = tuple(map(float, values))
        object.__setattr__(format_, name, floats[0] if count is None else floats)


def _require_factor(format_: LatentFormat, factor: float) -> None:
    if factor == 0:
        raise UsageError(f"Latent format {format_.name!r} can't have a scaling factor of zero.")


def _is_number(value: object) -> bool:
    """Whether it is one that float32 has."""
    return is_number(value) and -_LARGEST <= value <= _LARGEST


def column(values: tuple[float, ...], like: Tensor) -> Tensor:
    """One value a channel, shaped [C, 1, 1] for broadcasting over latents."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def flux2(running_mean: tuple[float, ...], running_var: tuple[float, ...], eps: float = 1e-4) -> Packed:
    """FLUX.2's format, from the batch-norm statistics in its weights (``bn.running_mean``, ``bn.running_var``)."""
    channels = len(running_mean) // 4
    return Packed(name="flux2", channels=channels, running_mean=running_mean, running_var=running_var, eps=eps)


def same_as_model(name: str, channels: int) -> LatentFormat:
    """The format of a TAESD: its raw latents are the model latents of the VAE it imitates."""
    if name == "flux2":
        n = 4 * channels
        return Packed(name=name, channels=channels, running_mean=(0.0,) * n, running_var=(1.0,) * n, eps=0.0)
    return ScaleShift(name=name, channels=channels, scaling_factor=1.0)


def latent_format_from_dict(values: Mapping[str, Any]) -> LatentFormat:
    """The inverse of `LatentFormat.to_dict`, also after a trip through JSON.

    Raises:
        UsageError: it is no table of these, or what is in it can't be.
    """
    kinds: dict[str, type[LatentFormat]] = {cls.kind: cls for cls in (ScaleShift, PerChannel, Packed)}
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise UsageError(f"A latent format has a kind of {', '.join(kinds)}, not {shown(kind)}.")
    try:
        return made(kinds[kind], {key: value for key, value in values.items() if key != "kind"}, kind)
    except TextError as error:
        raise UsageError(f"{error}.") from None


KNOWN: Mapping[str, ScaleShift | PerChannel] = {
    values["name"]: latent_format_from_dict(values)  # type: ignore[misc]
    for values in FORMATS
}
"""Formats of published weights, by name."""


def latent_format(name: str, channels: int) -> LatentFormat:
    """The known format of that name; ``none`` leaves latents as they are, and so does ``model:NAME``, where they are
    NAME's model latents already.

    Raises:
        UsageError: if there is none, or it is for another number of channels.
    """
    if name.startswith(MODEL):
        known = latent_format(name.removeprefix(MODEL), channels)
        return same_as_model(known.name, channels)
    if name == "none":
        return ScaleShift(name="none", channels=channels, scaling_factor=1.0)
    if name not in KNOWN:
        raise UsageError(f"There is no latent format {name!r}; choose one of {', '.join([*KNOWN, 'none'])}.")
    if KNOWN[name].channels != channels:
        raise UsageError(
            f"Latent format {name!r} is for {KNOWN[name].channels} channels, and this VAE has {channels}; "
            f"choose another --latent-format."
        )
    return KNOWN[name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """The latents of one picture, with all that is needed to make it a picture again."""

    tensor: Tensor  # [C, h, w], float; a frame of a video ([C, 1, h, w] or [1, C, 1, h, w]) becomes such
    space: Space  # raw or model
    format: LatentFormat  # how raw and model latents of this VAE differ
    vae: str  # sha256 of the VAE's weights
    padding: Padding  # the picture's true size, and what was added to make it a multiple of f
    vae_name: str = ""  # for people
    alpha: Tensor | None = None  # [height, width] in [0, 1], where it was kept aside

    def __post_init__(self) -> None:
        if self.space not in get_args(Space):
            raise LatentsError(f"Latents are raw or model, not {quoted(self.space, 20)!r}.")
        folded = self.format.patch if self.space == "model" else 1
        channels = self.format.channels * folded**2
        object.__setattr__(self, "tensor", _one_frame(self.tensor, channels))
        sides = self.tensor.shape[1:]
        if self.tensor.ndim != 3 or self.tensor.shape[0] != channels or 0 in sides:
            raise LatentsError(
                f"{self.space.capitalize()} latents of format {self.format.name!r} must be [{channels}, h, w], "
                f"not {list(self.tensor.shape)}."
            )
        if any(side * folded % self.format.patch for side in sides):
            raise LatentsError(
                f"Raw latents of format {self.format.name!r} have even sides, and these are {list(self.tensor.shape)}."
            )
        if self.tensor.dtype not in _FLOATS:
            raise LatentsError(f"Latents must be floats, not {self.tensor.dtype}.")
        if self.alpha is not None and tuple(self.alpha.shape) != (self.padding.height, self.padding.width):
            raise LatentsError(
                f"The alpha beside the latents is {list(self.alpha.shape)}, and the picture "
                f"{self.padding.height}x{self.padding.width}."
            )
        if not torch.isfinite(self.tensor).all():
            raise LatentsError("The latents hold NaN or infinity; make them again, in float32 if they were in float16.")

    def to_raw(self) -> Latents:
        """The same latents, raw."""
        if self.space == "raw":
            return self
        return replace(self, tensor=self.format.to_raw(self.tensor[None])[0], space="raw")

    def to_model(self) -> Latents:
        """The same latents, as a diffusion model sees them."""
        if self.space == "model":
            return self
        return replace(self, tensor=self.format.to_model(self.tensor[None])[0], space="model")


def _one_frame(tensor: Tensor, channels: int) -> Tensor:
    """Latents [C, h, w] of one picture, which may come as a video's VAE gives them: [C, 1, h, w] or [1, C, 1, h, w].

    Raises:
        LatentsError: there are more frames than one.
    """
    if tuple(tensor.shape[:-3]) not in ((channels,), (1, channels)):
        return tensor
    if (frames := tensor.shape[-3]) != 1:
        raise LatentsError(
            f"Latents are of one picture, [C, h, w], and these are of {frames} frames of a video, "
            f"{list(tensor.shape)}; give one frame after another."
        )
    return tensor.reshape(channels, *tensor.shape[-2:])


def save_latents(path: str | os.PathLike[str], latents: Latents) -> Path:
    """Writes latents as safetensors: tensor ``latents`` (and ``alpha``), everything else as JSON in the metadata.

    Raises:
        LatentsError: if the file can't be written.
        UsageError: if its folder does not exist.
    """
    metadata = {
        "calotype": "latents/1",
        "space": latents.space,
        "latent_format": json.dumps(latents.format.to_dict()),
        "vae_sha256": latents.vae,
        "vae_name": latents.vae_name,
        "padding": json.dumps(latents.padding.__dict__),
    }
    tensors = {"latents": latents.tensor}
    if latents.alpha is not None:
        tensors["alpha"] = latents.alpha.mul(255).round().to(torch.uint8)
    return write_safetensors(path, tensors, metadata, LatentsError)


def load_latents(path: str | os.PathLike[str]) -> Latents:
    """Reads what `save_latents` wrote.

    Raises:
        LatentsError: if the file is missing, is no safetensors file, or holds anything but calotype's latents.
    """
    path = Path(path)
    if not path.is_file():
        raise LatentsError(f"{path}: there is no such file; give latents that `calotype encode` wrote.")
    try:
        with damage(LatentsError, "this is not a whole safetensors file ({why}); make the latents again."):
            tensor, alpha, metadata = _tensors(path)
        with damage(LatentsError, "its metadata is damaged ({why}); make the latents again."):
            return _latents(tensor, alpha, metadata)
    except LatentsError as error:
        raise LatentsError(f"{path}: {error}") from None
    except PermissionError:
        raise LatentsError(f"{path}: this file may not be read; check its permissions.") from None


def _tensors(path: Path) -> tuple[Tensor, Tensor | None, dict[str, str]]:
    """Latents, alpha and metadata in a file."""
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    if head[8:] != b"{" and (other := describe(path)):
        raise _no_latents(other)
    if head[8:] == b"{" and length > LONGEST_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    with text_path(path) as named, safe_open(named, framework="pt") as opened:
        metadata = opened.metadata() or {}
        names = set(opened.keys())
        if metadata.get("calotype") != "latents/1" or "latents" not in names:
            raise _no_latents(describe(path))
        alpha = opened.get_tensor("alpha") if "alpha" in names else None
        return opened.get_tensor("latents"), alpha, metadata


def _latents(tensor: Tensor, alpha: Tensor | None, metadata: Mapping[str, str]) -> Latents:
    """What the metadata make of tensors."""
    if alpha is not None and alpha.dtype != torch.uint8:
        raise ValueError(f"alpha of {str(alpha.dtype).removeprefix('torch.')}")
    try:
        format_ = latent_format_from_dict(json_of(metadata["latent_format"]))
    except UsageError as error:
        raise ValueError(str(error)) from None
    return Latents(
        tensor=tensor,
        space=cast(Space, metadata["space"]),
        format=format_,
        vae=metadata["vae_sha256"],
        padding=_padding(json_of(metadata["padding"])),
        vae_name=metadata.get("vae_name", ""),
        alpha=None if alpha is None else alpha.float() / 255,
    )


def _no_latents(what: str | None) -> LatentsError:
    return LatentsError(
        f"these are not latents with calotype's metadata{f', but {quoted(what, 200)}' if what else ''}; make them with "
        f"`calotype encode`, or decode the tensor in Python with `calotype.load(VAE).decode`, which takes raw latents."
    )


def _padding(values: Mapping[str, Any]) -> Padding:
    padding = made(Padding, values, "padding")
    for name, least in (("height", 1), ("width", 1), ("bottom", 0), ("right", 0)):
        whole(getattr(padding, name), f"padding.{name}", least, COUNT)
    if not isinstance(padding.mode, str):  # older files name others
        raise TextError(f"padding.mode must be a text, not {shown(padding.mode)}")
    return padding
