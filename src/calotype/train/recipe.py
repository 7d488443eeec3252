"""A training run as a value: typed, frozen, read from TOML, unknown keys refused. No torch."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from calotype.config import AutoencoderConfig, FoldedConfig
from calotype.errors import UsageError

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}

# networks with a posterior, by the `kind` that recipes name
TRAINABLE = {"autoencoder_kl": AutoencoderConfig, "folded": FoldedConfig}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder or zip of pictures."""

    path: str  # relative to the data folder given on the command line
    repeat: int = 1  # how often each picture stands in an epoch
    hold_out: int = 0  # every n-th picture is kept for validation; 0: none


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What changes at a step and stays so until the next phase."""

    start: int  # the first step it holds for
    crop: int | None = None
    batch: int | None = None
    muon_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training run gives."""

    name: str
    network: AutoencoderConfig | FoldedConfig
    sources: tuple[Source, ...]

    crop: int = 64  # side of the square crops, in pixels
    zoom: float = 1.0  # half of the crops are enlarged by up to this factor
    batch: int = 16  # crops a step
    steps: int = 10_000  # optimiser steps
    seed: int = 0  # of weights, order, crops and posterior samples

    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = 1e-6  # on KL summed over latents, against the reconstruction summed over pixels

    optimiser: Literal["adamw", "muon"] = "adamw"  # muon: for hidden convolutions; AdamW for the rest
    muon_rate: float = 2e-2  # its learning rate
    learning_rate: float = 1e-3  # AdamW's
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 100  # steps of linear rise
    cooldown: int = 1_000  # steps of linear fall to zero, at the end
    clip: float = 1.0  # largest gradient norm
    ema_decay: float = 0.999
    precision: Literal["float32", "bfloat16"] = "float32"  # of the products; weights are float32

    phases: tuple[Phase, ...] = ()  # in the order of their starts

    log_every: int = 50  # steps
    checkpoint_every: int = 500  # steps; validation runs at the same time

    def at(self, step: int) -> Recipe:
        """The recipe as it holds at a step, with the phases' changes made."""
        changes: dict[str, Any] = {}
        for phase in self.phases:
            if phase.start <= step:
                changes |= {k: v for k, v in dataclasses.asdict(phase).items() if k != "start" and v is not None}
        return dataclasses.replace(self, **changes)

    def crops(self) -> set[int]:
        """Every crop size the run uses."""
        return {self.crop, *(phase.crop for phase in self.phases if phase.crop)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into checkpoints and metadata."""
        return {**dataclasses.asdict(self), "network": self.network.to_dict()}


LEAST: dict[type, dict[str, int]] = {  # numbers that no run can have less of
    Recipe: {
        **dict.fromkeys(("crop", "zoom", "batch", "steps", "log_every", "checkpoint_every"), 1),
        **dict.fromkeys(("seed", "kl_weight", "warmup", "cooldown", "clip", "ema_decay", "betas"), 0),
        **dict.fromkeys(("learning_rate", "muon_rate", "weight_decay"), 0),
    },
    Phase: {"start": 0, "crop": 1, "batch": 1, "muon_rate": 0},
    Source: {"repeat": 1, "hold_out": 0},
}


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Reads a recipe from TOML and changes it by `key=value` settings (``network.ch=64`` reaches inside).

    Raises:
        UsageError: for a missing file, bad TOML, an unknown key or a value of the wrong type.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such recipe; give a TOML file such as recipes/builtin.toml.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: this is not valid TOML ({error}).") from None
    for setting in settings:
        _set(values, setting)
    recipe = typing.cast(Recipe, _build(Recipe, values, str(path)))
    _check(recipe, str(path))
    return recipe


def _set(values: Any, setting: str) -> None:
    """Makes one change; a number reaches into a list (``sources.0.repeat=2``)."""
    key, equals, text = setting.partition("=")
    if not equals:
        raise UsageError(f"--set {setting}: give key=value.")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text  # so that text needs no quotes
    *parents, last = key.strip().split(".")
    try:
        for parent in parents:
            values = values[int(parent)] if isinstance(values, list) else values.setdefault(parent, {})
        values[int(last) if isinstance(values, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError):
        raise UsageError(f"--set {setting}: the recipe has no such place; see its keys.") from None


def _check(recipe: Recipe, where: str) -> None:
    """What neither types nor `LEAST` say."""
    factor = recipe.network.factor
    if not recipe.sources:
        raise UsageError(f"{where}: sources must name at least one folder or zip of pictures.")
    for key, values in (("ema_decay", (recipe.ema_decay,)), ("betas", recipe.betas)):
        if not all(value < 1 for value in values):
            raise UsageError(f"{where}: {key} must be below 1, not {getattr(recipe, key)}.")
    if bad := sorted(crop for crop in recipe.crops() if crop % factor):
        raise UsageError(
            f"{where}: crop must be a multiple of {factor}, because the network is f{factor}, not {bad[0]}."
        )
    starts = [phase.start for phase in recipe.phases]
    if starts != sorted(starts):
        raise UsageError(f"{where}: phases must stand in the order of their starts, not {starts}.")


def _build(cls: Any, values: Any, where: str) -> Any:
    """A dataclass from plain values, checked against its annotations."""
    if not isinstance(values, dict):
        raise UsageError(f"{where} must be a table, not {values!r}.")
    hints = typing.get_type_hints(cls)
    if unknown := sorted(values.keys() - hints.keys()):
        raise UsageError(f"{where}: unknown key {', '.join(unknown)}; {cls.__name__} has {', '.join(sorted(hints))}.")
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - values.keys()):
        raise UsageError(f"{where}: {', '.join(missing)} must be given.")
    built = cls(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in values.items()})
    for key, least in LEAST.get(cls, {}).items():
        value = getattr(built, key)
        if value is not None and not all(item >= least for item in (value if isinstance(value, tuple) else (value,))):
            raise UsageError(f"{where}: {key} must be at least {least}, not {value}.")
    return built


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint == AutoencoderConfig | FoldedConfig:
        if not isinstance(value, dict):
            raise UsageError(f"{where} must be a table, not {value!r}.")
        value = dict(value)
        kind = value.pop("kind", None)
        if not isinstance(kind, str) or kind not in TRAINABLE:
            raise UsageError(f"{where}.kind must be one of {', '.join(TRAINABLE)}, not {kind!r}.")
        return _build(TRAINABLE[kind], value, where)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise UsageError(f"{where} must be a list, not {value!r}.")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise UsageError(f"{where} must have {len(kinds)} entries, not {len(value)}.")
        return tuple(
            _value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is Literal:
        if value not in args:
            raise UsageError(f"{where} must be one of {', '.join(map(str, args))}, not {value!r}.")
        return value
    if origin is types.UnionType:
        hint = next(arg for arg in args if arg is not type(None))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UsageError(f"{where} must be {WORDS[hint]}, not {value!r}.")
    return value
