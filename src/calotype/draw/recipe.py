"""A drawing model's training as a value, read from TOML."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from calotype.draw.denoiser import DenoiserConfig
from calotype.draw.text import TextConfig
from calotype.errors import UsageError
from calotype.texts import COUNT, TextError, is_number, is_whole, plain, shown, toml_of
from calotype.train.recipe import read_toml

RECIPES = Path(__file__).parent / "recipes"
KINDS = {
    str: "a text", int: "a whole number", float: "a number", dict: "a table", tuple: "a list of whole numbers above 0",
}  # fmt: skip
_BARE = re.compile(r"\s*\w+\s*=\s*(?![\[{\"'])[^\n]*")  # a key and a text
MOST_SIZE = 2**14  # pixels a side
RANGES: dict[str, tuple[float, float]] = {  # others: from 1 to COUNT where they are whole numbers, else from 0 on
    **dict.fromkeys(("warmup", "cooldown", "sketch_inner"), (0, COUNT)),
    **dict.fromkeys(("batch", "word_batch"), (1, 2**20)),
    "seed": (0, 2**63 - 1),
    **dict.fromkeys(("held_out", "text_dropout", "ground_std", "ema_decay"), (0, 1)),
    "time_mean": (-math.inf, math.inf),
    "size": (8, MOST_SIZE),
}


@dataclass(frozen=True, kw_only=True)
class DrawingRecipe:
    """How a drawing model is trained.

    Attributes:
        name: of the recipe.
        data: what the pictures are and whose, kept in the weights' header.
        vae: in whose latents the model draws, as `calotype.load` takes it.
        start: the drawing model whose weights and tokens it begins with, a file or "builtin"; from nothing where empty.
        size: side in pixels that pictures are made.
        held_out: share of the variants (skin tones) that training never sees.
        variants: how often all variants of a picture are seen together, against once for the picture itself.
        word_steps: of the first part, in which the text encoder learns to sketch; after it texts are left as they are.
        word_batch: pictures of such a step.
        word_muon_rate: learning rate of its matrices, by Muon; rates rise in the first and fall in the last steps.
        word_rate: learning rate of all else in it, by AdamW.
        sketch_noise: std of the noise on sketches in the second part, and in drawing.
        sketch_std: of latents about such a sketch, so that the denoiser learns only what it leaves open; 0 where it
            learns everything. See `model.guessed_velocity`.
        ground_std: what drawings' latents are off by where pictures are plain white, and are made so; 0 where they are
            left as they are. Training does without it. See `ground.Ground`.
        known_within: how far from all names a text may be that is drawn as it is; a farther one is drawn as a name near
            it. 0 where every text is drawn as it is. Training does without it. See `meaning.Names`.
        batch: pictures of a step of the second part, in which the denoiser learns.
        steps: of the second part.
        warmup: steps in which rates rise from zero.
        cooldown: last steps, in which rates fall to zero.
        muon_rate: learning rate of the matrices inside the denoiser, by Muon.
        learning_rate: of all else in the denoiser, by AdamW.
        weight_decay: of the matrices.
        text_dropout: share of prompts left empty, for guidance.
        time_mean: of the logit of the times that are trained: 0 is the middle, more is nearer to noise, where the text
            decides.
        time_std: of that logit.
        ema_decay: of the averaged weights, which are those kept.
        clip: norm that gradients are cut to.
        seed: of weights, batches, prompts, times and noise.
        log_every: steps between lines of figures.
        checkpoint_every: steps between checkpoints.
        denoiser: sizes of the U-Net, but for the channels of latents and text, which follow.
        text: sizes of the text encoder.
    """

    name: str = "drawing"
    data: str = ""
    vae: str = "builtin"
    start: str = ""
    size: int = 128
    held_out: float = 0.04
    variants: float = 1.0
    word_steps: int = 4_000
    word_batch: int = 128
    word_muon_rate: float = 0.02
    word_rate: float = 1e-3
    sketch_noise: float = 0.3
    sketch_std: float = 0.0
    ground_std: float = 0.0
    known_within: float = 0.0
    batch: int = 64
    steps: int = 10_000
    warmup: int = 100
    cooldown: int = 2_000
    muon_rate: float = 0.01
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    text_dropout: float = 0.1
    time_mean: float = 0.0
    time_std: float = 1.0
    ema_decay: float = 0.998
    clip: float = 1.0
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 250
    denoiser: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)

    def text_config(self) -> TextConfig:
        """The text encoder's sizes."""
        return TextConfig(**self.text)

    def denoiser_config(self, z_channels: int) -> DenoiserConfig:
        """The denoiser's sizes, for latents of so many channels."""
        width = self.text_config().width
        return DenoiserConfig.from_dict(
            {
                **self.denoiser,
                "in_channels": 2 * z_channels,  # latents, and the sketch of them
                "out_channels": z_channels,
                "context_dim": width,
                "adm_in_channels": width,
            }
        )

    def rate(self, step: int) -> float:
        """The share of the learning rates that a step (from 0 on) has: a trapezium."""
        return _trapezium(step, self.warmup, self.steps, self.cooldown)

    def word_share(self, step: int) -> float:
        """The same of the first part, which cools down for its second half."""
        return _trapezium(step, self.warmup, self.word_steps, self.word_steps // 2)

    def to_dict(self) -> dict[str, Any]:
        """The values by name."""
        return asdict(self)


def _trapezium(step: int, warmup: int, steps: int, cooldown: int) -> float:
    rising = min(1.0, (step + 1) / max(1, warmup))
    falling = min(1.0, (steps - step) / max(1, cooldown))
    return max(0.0, min(rising, falling))


def is_drawing_recipe(source: str) -> bool:
    """Whether a recipe's name or TOML file is that of a drawing model: it has a [denoiser]."""
    path = _path(source)
    try:
        return path.is_file() and "denoiser" in toml_of(path.read_bytes())
    except (OSError, TextError):  # whoever reads it says so
        return False


def _path(source: str) -> Path:
    return Path(source) if Path(source).suffix == ".toml" else RECIPES / f"{source}.toml"


def load_drawing_recipe(source: str, settings: Sequence[str] = ()) -> DrawingRecipe:
    """Reads a recipe.

    Args:
        source: a TOML file, or the name of one that comes with calotype.
        settings: ``key=value`` in TOML, put over the file's.

    Raises:
        UsageError: if there is no such recipe, it is no TOML, or a key or a value can't be.
    """
    path = _path(source)
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in RECIPES.glob("*.toml")))
        raise UsageError(f"There is no recipe {source!r}; give a TOML file or one of: {known}.")
    values = read_toml(path)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {plain(setting)}: give key=value.")
        try:
            changes = toml_of(setting)
        except TextError as error:
            if not _BARE.fullmatch(setting):
                raise UsageError(f"--set {plain(setting)}: this is not valid TOML ({error}).") from None
            changes = {key.strip(): text.strip()}  # so that text needs no quotes
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(before := values.get(key), dict):
                value = {**before, **value}
            values[key] = value
    _check(values, DrawingRecipe(), str(path))
    _check(values.get("denoiser", {}), DenoiserConfig(), f"{path}: denoiser")
    _check(values.get("text", {}), TextConfig(), f"{path}: text")
    recipe = replace(DrawingRecipe(), **values)
    try:
        recipe.denoiser_config(4)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return recipe


def _check(values: dict[str, Any], usual: Any, where: str) -> None:
    """Refuses keys that `usual` lacks, values of another kind than its, and numbers out of range."""
    known = {one.name: getattr(usual, one.name) for one in fields(usual)}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{where}: there is no key {shown(key)}; known are {', '.join(sorted(known))}.")
        kind = type(known[key])
        if not _is(value, kind):
            raise UsageError(f"{where}: {key} must be {KINDS[kind]}, not {shown(value)}.")
        least, most = RANGES.get(key, (0, math.inf) if kind is float else (1, COUNT))
        if kind in (int, float) and not least <= value <= most:
            limit = (
                f"at least {least}" if most in (COUNT, math.inf) and value < least else f"between {least} and {most}"
            )
            raise UsageError(f"{where}: {key} must be {limit}, not {value}.")


def _is(value: Any, kind: type) -> bool:
    if kind is tuple:
        return isinstance(value, list) and bool(value) and all(is_whole(one) and one > 0 for one in value)
    return is_whole(value) if kind is int else is_number(value) if kind is float else isinstance(value, kind)
