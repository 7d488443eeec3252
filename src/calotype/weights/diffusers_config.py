"""What diffusers' config.json says of a VAE: obeyed, or refused by name. No torch.

What fields are about a network, its family says; here are those about latents and files, and who may say what. All are
those of diffusers 0.42.1, among them all that its classes had in earlier versions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from calotype.errors import WeightsError
from calotype.families import CLASSES, family_of
from calotype.families.face import DiffusersClass, NetworkConfig, contradiction, unsupported
from calotype.families.numbers import MOST_CHANNELS
from calotype.texts import COUNT, TextError, is_number, is_whole, json_table, plain, shown
from calotype.weights import keras_hub

# Fields that are no part of the network: about latents, and about how pipelines treat a VAE.
LATENTS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
KEPT = ("force_upcast", "sample_size", *LATENTS)

# Fields that no class has, as forks write them: the value with which the network is the usual one.
USUAL: Mapping[str, Any] = {
    "double_z": True,
    "dropout": 0.0,
    "norm_eps": 1e-6,
    "norm_type": "group",
    "resnet_eps": 1e-6,
}
# Fields about the file and not about the network. What is quantised its tensors tell, and few are of those to which a
# pipeline's configuration says it.
ASIDE = ("architectures", "dtype", "latent_format", "license", "quantization_config", "torch_dtype")

# A config.json without a class is about a VAE if it has one of these.
OF_A_VAE = ("latent_channels", "block_out_channels", "norm_num_groups", "use_quant_conv", *LATENTS)
# ... and about another model, whatever else it says, if it has one of these.
OF_OTHERS = ("architectures", "model_type", "hidden_size", "vocab_size")

# Ways from raw to model latents that a config.json can mean.
MEANS, SCALED_MEANS, SCALE, SCALE_SHIFT = "means", "scaled-means", "scale", "scale-shift"

# What diffusers' pipelines (0.42.1) do with the fields, by their classes' names; the first that fits counts.
PIPELINES = (
    (r"GlmImage|BriaFibo(Edit)?Pipeline", MEANS),
    (r"StableDiffusionXL|SDXL|Kolors", SCALED_MEANS),
    (r"StableDiffusion3|Flux|Chroma|ZImage|Lumina2|HiDream|^Bria|LongCatImage|OvisImage|VisualCloze", SCALE_SHIFT),
    (
        r"StableDiffusion|AltDiffusion|LatentConsistency|PixArt|HunyuanDiT|HunyuanImage|AuraFlow|CogView|Lumina|UnCLIP",
        SCALE,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What stands beside weights.

    Attributes:
        file: the config.json, or None.
        values: its fields; none where it is missing, or about something else than these weights.
        pipeline: class of the pipeline in whose folder the weights lie, or "".
        notes: sentences for people.
    """

    file: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    pipeline: str = ""
    notes: tuple[str, ...] = ()

    @property
    def network(self) -> str:
        """The class that the weights are said to be of, or ""."""
        return str(self.values.get("_class_name", ""))

    @property
    def of(self) -> DiffusersClass:
        """What is known of that class."""
        return CLASSES.get(self.network, DiffusersClass())

    @property
    def kept(self) -> dict[str, Any]:
        """What the network and its latent format do not hold, and a conversion keeps."""
        return {key: self.values[key] for key in KEPT if key in self.values}

    def without(self, note: str) -> Said:
        """The same, with the config.json left aside."""
        return replace(self, values={}, notes=(*self.notes, note))


@dataclass(frozen=True, kw_only=True)
class Scales:
    """How a config.json scales latents: model = (raw - mean) / std * factor, or (raw - shift) * factor."""

    factor: float
    shift: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read_said(file: Path | None, beside: Path) -> Said:
    """What a config.json and the index of a pipeline say of weights.

    Args:
        file: the config.json, or None.
        beside: where the weights lie; the pipeline's index lies there or one folder above.

    Raises:
        WeightsError: if the config.json is no JSON object, or about another kind of autoencoder.
    """
    notes: list[str] = []
    pipeline = _pipeline(beside, notes)
    if file is None:
        return Said(pipeline=pipeline, notes=tuple(notes))
    values = as_diffusers_says(parse_config(file.read_bytes()))
    name = values.get("_class_name", "")
    if not isinstance(name, str):
        raise WeightsError(unsupported("_class_name", name, _classes()))
    title = plain(name)
    said = Said(file=file, values=values, pipeline=pipeline, notes=tuple(notes))
    if name in CLASSES:
        return said
    if name:
        if re.search(r"auto_?encoder|vae|vq", name, re.IGNORECASE):
            raise WeightsError(
                f"the config.json beside it says that this is a network of the class {title}, "
                f"and only {_classes()} can be read"
            )
        return said.without(f"{file} is about a {title} and was not read.")
    if any(key in values for key in OF_OTHERS) or not any(key in values for key in (*OF_A_VAE, "act_fn")):
        return said.without(f"{file} is not about a VAE and was not read.") if values else said
    return said


def as_diffusers_says(values: dict[str, Any]) -> dict[str, Any]:
    """Fields of a config.json of keras-hub, or of a Flax class of diffusers, in the words of its torch classes.

    Flax's classes are the same networks; they have no activation but SiLU, whatever act_fn says.
    """
    name = values.get("_class_name")
    if isinstance(name, str) and name.startswith("Flax") and name.removeprefix("Flax") in CLASSES:
        return {**values, "_class_name": name.removeprefix("Flax"), "act_fn": "silu"}
    return keras_hub.fields(values) or values


def _classes() -> str:
    *others, last = CLASSES
    return f"{', '.join(others)} and {last}"


def parse_config(text: str | bytes) -> dict[str, Any]:
    """The fields of a config.json, or of its like in a file's metadata.

    Raises:
        WeightsError: if it is no JSON object.
    """
    try:
        return json_table(text, finite=False)  # whoever reads a number says what to do about one that is none
    except TextError as error:
        raise WeightsError(
            f"its config.json, or its own metadata, is not valid JSON of its kind ({error}); fetch it again"
        ) from None


def _pipeline(beside: Path, notes: list[str]) -> str:
    folder = beside.absolute()  # not resolved: what lies in a cache of the hub is linked to elsewhere
    for place in (folder, folder.parent):
        for name in ("model_index.json", "modular_model_index.json"):
            try:
                text = (place / name).read_bytes()
            except OSError:
                continue
            try:
                named = json_table(text).get("_class_name")
            except TextError:
                named = None
            if isinstance(named, str) and named.isidentifier():
                return named
            notes.append(f"{place / name} names no pipeline and was not read.")
    return ""


def norm_groups_of(said: Said) -> int | None:
    """Groups of the norms, as the config.json says."""
    groups = said.values.get("norm_num_groups")
    if groups is None:
        return said.of.defaults.get("norm_num_groups")
    if not is_whole(groups) or not 1 <= groups <= MOST_CHANNELS:
        raise WeightsError(
            f"norm_num_groups must be the number of a norm's groups, not {shown(groups)}, in its config.json"
        )
    return groups


def described(config: NetworkConfig, said: Said, parts: frozenset[str], own: Mapping[str, Any]) -> NetworkConfig:
    """The configuration that tensors show, with what only the config.json can say.

    Args:
        config: as told from the tensors.
        parts: "encoder", "decoder" or both: what is there.
        own: the configuration in the weights' own metadata; empty where there is none.

    Raises:
        WeightsError: if it contradicts the tensors, or asks for what is not supported; the message names the field.
    """
    diffusers = family_of(config).diffusers
    if diffusers is not None:
        config = diffusers.completed(config, said.values, own)
    if not said.values:
        return config
    if diffusers is None or said.network not in ("", *diffusers.classes):
        found = next(iter(diffusers.classes)) if diffusers else "another network"
        raise WeightsError(contradiction("_class_name", said.network or next(iter(CLASSES)), found))
    expected = diffusers.expected(config, said.values, parts)
    class_ = said.network or next(iter(diffusers.classes))
    for key, value in said.values.items():
        if key in expected:
            if value is not None and not _same(value, expected[key]):
                if key in diffusers.untold:
                    raise WeightsError(unsupported(key, value, repr(expected[key])))
                raise WeightsError(contradiction(key, value, expected[key]))
        elif key in USUAL:
            if value is not None and not _same(value, USUAL[key]):
                raise WeightsError(unsupported(key, value, repr(USUAL[key])))
        elif key not in (*KEPT, *_FREE, *ASIDE) and not key.startswith("_") and value is not None:
            raise WeightsError(
                f"its config.json has a field {shown(key)} that no {class_} of diffusers has, and what it changes "
                f"is not known; take it out if it changes nothing"
            )
    _check_kept(said.values)
    return config


# Numbers of training, of splitting into tiles and of storing latents as bytes.
_FREE = ("act_fn", "batch_norm_eps", "batch_norm_momentum", "latent_magnitude", "latent_shift", "norm_num_groups")


def _check_kept(values: Mapping[str, Any]) -> None:
    if not isinstance(upcast := values.get("force_upcast", True), bool | None):
        raise WeightsError(unsupported("force_upcast", upcast, "true and false"))
    size = values.get("sample_size", 512)
    sides = size if isinstance(size, list) else [size]
    if size is not None and not (1 <= len(sides) <= 2 and all(is_whole(n) and 0 < n <= COUNT for n in sides)):
        raise WeightsError(unsupported("sample_size", size, "pixels of a side"))
    eps = values.get("batch_norm_eps")
    if eps is not None and (not is_number(eps) or eps < 0):
        raise WeightsError(unsupported("batch_norm_eps", eps, "numbers that are not negative"))


def _same(a: object, b: object) -> bool:
    """Equal, as JSON has it: 1.0 and true are not 1, as they are for Python."""
    return json.dumps(a) == json.dumps(b)


# --- latents ---


def scales_of(said: Said, channels: int, meaning: str | None = None) -> tuple[Scales | None, str, str]:
    """How the config.json scales latents: (scales or None, what tells it, what is not told or "").

    Where it says means and a factor, pipelines differ: those of SDXL use both, that of GLM-Image the means. The class
    of the pipeline around tells which, else the number of channels: SDXL's pipelines take 4 only, and GLM-Image has 16.

    Args:
        meaning: `MEANS` or `SCALED_MEANS`, if the user says which.

    Raises:
        WeightsError: if what it says can't be.
    """
    values, pipeline = said.values, said.pipeline
    shift = _number(values, "shift_factor") or 0.0
    factor = _number(values, "scaling_factor")
    if factor == 0:
        raise WeightsError("scaling_factor must not be 0")
    if factor is None and "scaling_factor" not in values:
        factor = said.of.defaults.get("scaling_factor")
    mean, std = (_numbers(values, key, channels) for key in ("latents_mean", "latents_std"))
    way = next((way for pattern, way in PIPELINES if re.search(pattern, pipeline)), None)
    if mean is None or std is None:
        if (mean is None) != (std is None):
            there, absent = ("latents_mean", "latents_std") if std is None else ("latents_std", "latents_mean")
            raise WeightsError(f"{there} is there and {absent} is not")
        if meaning is not None:
            raise WeightsError(f"it has no latents_mean and latents_std, which latent format {meaning!r} reads")
        return _one_scale(said, channels, factor, 0.0 if way in (SCALE, SCALED_MEANS) else shift)
    if min(std) <= 0:
        raise WeightsError("latents_std must be above 0")
    told = f"config.json, as {pipeline} reads it"
    if meaning is not None:
        way, told = meaning, f"--latent-format {meaning}"
    elif way is None:
        if shift:
            return None, "", "its config.json says latents_mean and a shift_factor, and no known pipeline uses both"
        if factor is None or factor == 1:
            way, told = MEANS, "config.json"
        elif channels == 4:
            way, told = SCALED_MEANS, "config.json, as SDXL's pipelines read it, the ones for means of 4 channels"
        elif channels == 16:
            way, told = MEANS, "config.json, as GLM-Image's pipeline reads it, the one for means of 16 channels"
        else:
            return (
                None,
                "",
                (
                    f"its config.json says latents_mean and scaling_factor {factor:g}, and nothing tells whether the "
                    f"factor counts, as for SDXL's pipelines, or not, as for GLM-Image's"
                ),
            )
    if way == MEANS:
        return Scales(factor=1.0, mean=mean, std=std), told, ""
    if factor is None:
        if meaning is None and "scaling_factor" not in values:
            return Scales(factor=1.0, mean=mean, std=std), told, ""
        return None, "", "its config.json says scaling_factor null, with which no pipeline that uses it can work"
    if way == SCALED_MEANS:
        return Scales(factor=factor, mean=mean, std=std), told, ""
    return Scales(factor=factor, shift=shift if way == SCALE_SHIFT else 0.0), told, ""


def unused(said: Said) -> Iterator[str]:
    """Sentences on fields about latents that the pipeline around does not read."""
    way = next((way for pattern, way in PIPELINES if re.search(pattern, said.pipeline)), None)
    means = said.values.get("latents_mean") is not None
    if means and way in (SCALE, SCALE_SHIFT):
        yield f"latents_mean and latents_std of its config.json do not count: {said.pipeline} does not read them."
    if said.values.get("shift_factor") and (way in (SCALE, SCALED_MEANS) or (way == MEANS and means)):
        yield f"shift_factor of its config.json does not count: {said.pipeline} does not read it."
    if means and way == MEANS and said.values.get("scaling_factor", 1.0) != 1:
        yield f"scaling_factor of its config.json does not count: {said.pipeline} does not read it."


def readings(kept: Mapping[str, Any]) -> Iterator[Scales]:
    """Every way in which fields about latents can be meant."""
    values = {key: kept.get(key) for key in LATENTS}
    factor, shift = values["scaling_factor"], values["shift_factor"] or 0.0
    if values["latents_mean"] and values["latents_std"]:
        mean, std = (tuple(cast(list[float], values[key])) for key in ("latents_mean", "latents_std"))
        yield Scales(factor=1.0, mean=mean, std=std)
        if factor:
            yield Scales(factor=factor, mean=mean, std=std)
    if factor:
        yield Scales(factor=factor, shift=shift)
        yield Scales(factor=factor)


def _one_scale(said: Said, channels: int, factor: float | None, shift: float) -> tuple[Scales | None, str, str]:
    if factor is None:
        absent = "scaling_factor" not in said.values or "scaling_factor" not in said.of.defaults
        return None, "", "" if absent else "its config.json says scaling_factor null"
    if "scaling_factor" not in said.values and channels != 4:
        return None, "", ""  # SD1's is no scale for others: the field was forgotten
    return Scales(factor=factor, shift=shift), "config.json", ""


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    if value is not None and not is_number(value):
        raise WeightsError(f"{key} must be a number, not {shown(value)}")
    return cast(float | None, value)


def _numbers(values: Mapping[str, Any], key: str, count: int) -> tuple[float, ...] | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != count or not all(map(is_number, value)):
        raise WeightsError(f"{key} must be {count} numbers, one for each latent channel, not {shown(value)}")
    return tuple(value)
