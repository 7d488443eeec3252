"""Latent formats, and latents that have one.

*Raw* latents are what the encoder gives. *Model* latents are what a diffusion model was trained on: raw latents,
scaled and shifted, and for FLUX.2 packed. A `LatentFormat` is the border between them, and the only one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NoReturn, get_args

import torch
from torch import Tensor

from calotype.damage import quoted
from calotype.errors import LatentsError, UsageError
from calotype.families import CONFIGS, FORMATS
from calotype.families.numbers import MOST_CHANNELS
from calotype.pixels import Padding
from calotype.texts import TextError, is_number, made, shown, whole

Space = Literal["raw", "model"]  # as the VAE has latents, or as a diffusion model was trained on them

MODEL = "model:"  # what begins the name of a format whose raw latents are the model latents of the one named

_LARGEST = torch.finfo(torch.float32).max
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class LatentFormat(ABC):
    """One way from raw latents [N, C, h, w] to model latents and back.

    Raises:
        UsageError: its name is no text, or a number can't be.
    """

    name: str  # how it is called on the command line and in files
    channels: int  # C, of the raw latents

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise UsageError(f"A latent format's name must be a text, not {shown(self.name)}.")
        try:
            whole(self.channels, "channels", 1, MOST_CHANNELS)
        except TextError as error:
            raise UsageError(f"Latent format {self.name!r}: {error}.") from None

    kind: ClassVar[str]  # which of these classes it is, in files
    patch: ClassVar[int] = 1  # raw latents folded into one model latent, along each side

    def fits(self, model: Tensor) -> bool:
        """Whether model latents [C, h, w] have the channels of this format."""
        return model.shape[0] == self.channels * self.patch**2

    @abstractmethod
    def to_model(self, raw: Tensor) -> Tensor:
        """Raw latents [N, C, h, w] -> model latents: the same shape, but packed [N, 4C, h/2, w/2]."""

    @abstractmethod
    def to_raw(self, model: Tensor) -> Tensor:
        """Model latents -> raw latents [N, C, h, w]: the inverse of `to_model`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metadata; `latent_format_from_dict` gives the format back."""
        return {"kind": self.kind, **self.__dict__}


@dataclass(frozen=True, kw_only=True)
class ScaleShift(LatentFormat):
    """model = (raw - shift_factor) * scaling_factor.

    Raises:
        UsageError: a number is not finite in float32, or the factor is zero.
    """

    scaling_factor: float  # what makes the latents' standard deviation about 1; not zero
    shift_factor: float = 0.0  # about the latents' mean

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

    Raises:
        UsageError: there are not as many numbers as channels, or a deviation is not above zero.
    """

    mean: tuple[float, ...]  # of raw latents: one a channel, [C]
    std: tuple[float, ...]  # of raw latents: one a channel, [C], above zero
    scaling_factor: float = 1.0  # not zero

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

    Raises:
        UsageError: there are not four numbers for each channel, or a variance is not above zero.
    """

    running_mean: tuple[float, ...]  # of packed latents: four a channel, [4C]
    running_var: tuple[float, ...]  # four a channel, [4C], above zero together with eps
    eps: float = 1e-4  # is added to the variances

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


@dataclass(frozen=True, kw_only=True)
class PackedUntold(LatentFormat):
    """FLUX.2's, of latents that came without a VAE: its statistics stand among a VAE's weights, and nobody told them.

    Such latents stay in the space they are in; a VAE of FLUX.2 decodes them with its own statistics.
    """

    kind: ClassVar[str] = "packed_untold"
    patch: ClassVar[int] = 2

    def to_model(self, raw: Tensor) -> NoReturn:
        """Nothing: the statistics stand among the VAE's weights, and [N, C, h, w] alone does not say them.

        Raises:
            LatentsError: always; the message says what knows them.
        """
        raise LatentsError(self._untold("raw", "to_model"))

    def to_raw(self, model: Tensor) -> NoReturn:
        """Nothing, as `to_model`.

        Raises:
            LatentsError: always.
        """
        raise LatentsError(self._untold("model", "to_raw"))

    def _untold(self, space: str, method: str) -> str:
        return (
            f"These are {space} latents of format {self.name!r} that came without a VAE, and the statistics that scale "
            f"them stand among a VAE's weights; load one, and use its vae.latent_format.{method}."
        )


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
    """One value a channel, shaped [C, 1, 1] for broadcasting over latents.

    Args:
        values: C of them.
        like: whose dtype and device it gets.
    """
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def flux2(running_mean: tuple[float, ...], running_var: tuple[float, ...], eps: float = 1e-4) -> Packed:
    """FLUX.2's format, from the batch-norm statistics in its weights (``bn.running_mean``, ``bn.running_var``).

    Args:
        eps: what the norm adds to a variance.
    """
    channels = len(running_mean) // 4
    return Packed(name="flux2", channels=channels, running_mean=running_mean, running_var=running_var, eps=eps)


def same_as_model(name: str, channels: int) -> LatentFormat:
    """The format of a TAESD: its raw latents are the model latents of the VAE it imitates.

    Args:
        name: of that VAE's format.
        channels: of the raw latents.
    """
    if name == "flux2":
        n = 4 * channels
        return Packed(name=name, channels=channels, running_mean=(0.0,) * n, running_var=(1.0,) * n, eps=0.0)
    return ScaleShift(name=name, channels=channels, scaling_factor=1.0)


def latent_format_from_dict(values: Mapping[str, Any]) -> LatentFormat:
    """The inverse of `LatentFormat.to_dict`, also after a trip through JSON.

    Raises:
        UsageError: it is no table of these, or what is in it can't be.
    """
    kinds: dict[str, type[LatentFormat]] = {cls.kind: cls for cls in (ScaleShift, PerChannel, Packed, PackedUntold)}
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


# Formats share a latent space where they have one name and the same numbers: those that the name is published with, or
# none, because their raw latents are that space's model latents already (a TAESD's). "custom" and "none" name no space,
# and neither does a format that is called after a kind of network, as that of a TAESD which imitates no one knows what.
# FLUX.2's statistics come with the weights, rounded there to their dtype: they count as the same where no mean differs
# by more than a hundredth of its channel's standard deviation, and no deviation by more than a hundredth of itself.

NAMELESS = frozenset({"", "custom", "none", *CONFIGS})
"""Names of formats that are no space."""

NEARLY = 0.01  # bfloat16 rounds to a part in 256


def space_of(format_: LatentFormat | None) -> str | None:
    """The name of the latent space that a format is of; None where its name or its numbers are of none."""
    if format_ is None or format_.name in NAMELESS:
        return None
    known = KNOWN.get(format_.name)
    published = known is None or format_ == known or (is_model(format_) and format_.channels == known.channels)
    return format_.name if published else None


def same_space(a: LatentFormat | None, b: LatentFormat | None) -> bool:
    """Whether latents of one format are latents of the other too, after `carried`."""
    if a is None or b is None or space_of(a) is None or space_of(a) != space_of(b) or a.channels != b.channels:
        return False
    return alike(a, b) or is_model(a) or is_model(b)


def is_model(format_: LatentFormat) -> bool:
    """Whether raw latents are model latents already, so that nothing but packing is between them."""
    return format_ == same_as_model(format_.name, format_.channels)


def name_of(format_: LatentFormat) -> str:
    """A format's name, as it can be said again: ``model:NAME`` of raw latents that are NAME's model latents."""
    of_model = space_of(format_) is not None and is_model(format_) and format_ != KNOWN.get(format_.name)
    return f"{MODEL}{format_.name}" if of_model else format_.name


def alike(a: LatentFormat, b: LatentFormat) -> bool:
    """Whether raw latents of two formats are the same: their numbers are, but for rounding."""
    if a == b or not isinstance(a, Packed) or not isinstance(b, Packed) or a.channels != b.channels:
        return a == b
    (mean_a, std_a), (mean_b, std_b) = (
        (torch.tensor(one.running_mean).double(), (torch.tensor(one.running_var).double() + one.eps).sqrt())
        for one in (a, b)
    )
    least = torch.minimum(std_a, std_b)
    apart = torch.maximum((mean_a - mean_b).abs(), (std_a - std_b).abs()) / least
    return bool((apart <= NEARLY).all())


def carried(raw: Tensor, a: LatentFormat, b: LatentFormat) -> Tensor:
    """Raw latents [N, C, h, w] of one format as raw latents of another, through model latents where they differ."""
    if alike(a, b):
        return raw
    height, width = raw.shape[2:]
    patch = max(a.patch, b.patch)  # what is packed is scaled one by one, so rows that are added do no harm
    even = torch.nn.functional.pad(raw, (0, -width % patch, 0, -height % patch))
    return b.to_raw(a.to_model(even))[..., :height, :width]


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """The latents of one picture, with all that is needed to make it a picture again.

    Raises:
        LatentsError: they have not the channels of their format, no even sides where it packs, or no finite floats; or
            alpha has another size than the picture.
    """

    tensor: Tensor  # [C, h, w], float; a frame of a video ([C, 1, h, w] or [1, C, 1, h, w]) becomes such
    space: Space  # raw or model
    format: LatentFormat  # how raw and model latents of this VAE differ
    vae: str  # sha256 of the VAE's weights; "" where another program made them, and nothing names a VAE
    padding: Padding  # the picture's true size, and what was added to make it a multiple of f; without a VAE, that of f
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
