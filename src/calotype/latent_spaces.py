"""The latent spaces there are: their numbers, the models whose latents are of them, and what decodes them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from calotype.families import FORMATS, PRESETS, SPACES, family_of
from calotype.texts import json_of
from calotype.weights.presets import BUILTIN

OWN = "builtin"  # the name of the space of the weights that ship, and of these weights


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Published weights that decode latents of a space.

    Attributes:
        name: as `calotype.load` takes it.
        enlarges: how many times as large along each side pictures come out as they went in.
        alpha: whether its pictures have alpha.
        tiny: whether it is one for previews.
        licence: of its weights, for people.
        about: what it is, for people.
    """

    name: str
    enlarges: int = 1
    alpha: bool = False
    tiny: bool = False
    licence: str = ""
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """What VAEs share that understand each other's latents.

    Attributes:
        name: as of its latent format.
        title: for people.
        factor: pixels along each side that a raw latent stands for.
        channels: of raw latents.
        patch: raw latents along each side that become one model latent, of patch**2 times the channels.
        format: how raw latents become model latents, as `LatentFormat.to_dict` has it; None where the numbers come with
            the weights.
        models: whose latents are of it -> where that is written.
        decoders: presets, those for previews last.
    """

    name: str
    title: str
    factor: int
    channels: int
    patch: int
    format: Mapping[str, Any] | None
    models: Mapping[str, str]
    decoders: tuple[Decoder, ...]

    @property
    def scaling(self) -> str:
        """How raw latents become model latents, in words; of many numbers the first and the last."""
        if self.format is None:
            return f"{self.patch}x{self.patch} packed to {self.patch**2 * self.channels}, mean and std in the weights"
        factor, shift = self.format.get("scaling_factor", 1.0), self.format.get("shift_factor", 0.0)
        times = [] if factor == 1 else [f"scale {factor:g}"]
        if self.format["kind"] == "per_channel":
            ends = [f"{name} {_ends(self.format[name])}" for name in ("mean", "std")]
            return ", ".join([*ends, *times])
        return ", ".join([*times, *([f"shift {shift:g}"] if shift else [])]) or "as they are"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        models = [{"name": name, "source": source} for name, source in self.models.items()]
        return {**asdict(self), "models": models, "decoders": [asdict(one) for one in self.decoders]}


def spaces() -> tuple[LatentSpace, ...]:
    """The latent spaces of published weights, what is known best first, and last that of the weights that ship."""
    formats = {values["name"]: values for values in FORMATS}
    found = []
    for name, known in sorted(SPACES.items(), key=lambda item: item[0] == OWN):
        format_ = _own_format() if name == OWN else formats.get(name)
        found.append(
            LatentSpace(
                name=name, title=known.title, factor=known.factor, patch=known.patch,
                channels=format_["channels"] if format_ else known.channels, format=format_, models=known.models,
                decoders=_decoders(name),
            )
        )  # fmt: skip
    return tuple(found)


def fitting(name: str | None, most: int = 4) -> str:
    """Presets that decode a space, for messages: "sdxl-vae, sdxl-vae-fp16-fix"; empty where there are none.

    Args:
        name: of a space, or None.
        most: presets that are named.
    """
    names = [one.name for one in _decoders(name)] if name else []
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more of `calotype spaces`" if more > 0 else "")


def _decoders(space: str) -> tuple[Decoder, ...]:
    found = [Decoder(name=OWN, about="ships with calotype")] if space == OWN else []
    for name, preset in PRESETS.items():
        if preset.space == space:
            family, config = family_of(preset.config), preset.config
            found.append(
                Decoder(
                    name=name, enlarges=family.enlarges(config), alpha=config.picture_channels == 4, tiny=preset.tiny,
                    licence=preset.licence, about=preset.about,
                )
            )  # fmt: skip
    return tuple(sorted(found, key=lambda one: one.tiny))


def _own_format() -> dict[str, Any]:
    """What the header of the weights that ship says of their latents."""
    with BUILTIN.open("rb") as file:
        header = json_of(file.read(int.from_bytes(file.read(8), "little")))
    found: dict[str, Any] = json_of(header["__metadata__"]["calotype_latent_format"])
    return found


def _ends(values: list[float]) -> str:
    """The first and the last of a column of numbers."""
    return f"{values[0]:.3g} ... {values[-1]:.3g}"
