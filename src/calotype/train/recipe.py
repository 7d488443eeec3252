"""A training run as a value: typed, frozen, read from TOML, unknown keys refused. No torch."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from calotype.errors import UsageError
from calotype.families import PRESETS, family_of
from calotype.families.numbers import MOST_CHANNELS
from calotype.texts import COUNT, TextError, is_number, is_whole, plain, shown, toml_of
from calotype.train.configs import TRAINABLE, ConvConfig, DenseConfig, Trainable

NONE = "none"  # leaves out what a recipe has
PICTURES = (3, 4)  # channels of pictures to train on

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}  # for messages

NAMED = Path(__file__).parent / "recipes"  # where those with names lie


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pictures: a folder, a zip, tar shards or a Hugging Face dataset, or an address; see `sources.open_source`."""

    path: str  # relative to the data folder given on the command line, or an address
    repeat: int = 1  # how often each picture stands in an epoch
    hold_out: int = 0  # every n-th picture is kept for validation; 0: none


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights to begin from, instead of random ones."""

    weights: str  # a preset's name or a path
    train: Literal["all", "encoder", "decoder"] = "decoder"  # the other half stays as it is, bit by bit


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A VAE whose latents, and perhaps whose pictures, the network is to give.

    The decoder reads the teacher's latents, so encoder and decoder learn apart from each other.
    """

    weights: str  # a preset's name or a path
    latents: float = 1.0  # weight of the mean squared difference of latents
    target: Literal["pictures", "teacher"] = "pictures"  # what the decoder is to give: pictures, or what it gives


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """A PatchGAN discriminator (Isola et al. 2017, arXiv:1611.07004)."""

    start: int  # first step in which the network is trained against it
    warm_up: int = 0  # steps before that in which it is trained alone
    weight: float = 0.5  # of its logits' mean in the loss; see docs/training.md, Losses
    adaptive: bool = True  # times the ratio of gradients at the last layer (Esser et al. 2021, arXiv:2012.09841, eq. 7)
    loss: Literal["hinge", "vanilla"] = "hinge"  # its own; see `discriminator_loss`
    norm: Literal["batch", "group", "spectral", "none"] = "batch"  # between its convolutions
    ndf: int = 64  # channels after its first convolution
    layers: int = 3  # convolutions of stride 2
    lecam: float = 0.0  # weight of LeCam's regularisation (arXiv:2104.03310)
    r1: float = 0.0  # gamma of the gradient penalty on real pictures (arXiv:1801.04406)
    learning_rate: float | None = None  # where it is not the network's


@dataclass(frozen=True, kw_only=True)
class Equivariance:
    """EQ-VAE (arXiv:2502.09509): decoding transformed latents is to give the transformed picture."""

    probability: float = 0.5  # of a scaled and rotated batch
    low: float = 0.25  # of a scaled one, among the others


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """VA-VAE (arXiv:2501.01423): latents are to be as similar to each other as the features of a frozen network are."""

    features: str = "vgg"  # vgg, dinov2, or a folder with a DINOv2
    weight: float = 0.1  # times the ratio of gradients at the encoder's last layer
    margins: tuple[float, float] = (0.25, 0.5)  # of distances and of cosines: differences below them are no loss


@dataclass(frozen=True, kw_only=True)
class Shift:
    """AF-LDM (arXiv:2503.09419): shifting by a fraction of a pixel before or after is to be the same."""

    weight: float = 1.0  # of the squared differences


@dataclass(frozen=True, kw_only=True)
class Range:
    """Activations are to stay in a range, so that float16 holds them."""

    limit: float = 1_000.0  # magnitude above which they cost
    weight: float = 1e-3  # on the mean square of what is above it, in limits


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What changes at a step and stays so until the next phase."""

    start: int  # the first step it holds for
    crop: int | None = None  # side of the crops, in pixels; None, here and below: as before
    batch: int | None = None  # crops a step
    muon_rate: float | None = None  # Muon's learning rate


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training run gives."""

    name: str  # of the recipe, and of the latent format that a run of it measures
    network: Trainable  # a file may leave it out where it names weights to begin from, whose it is
    sources: tuple[Source, ...]  # pictures
    start: Start | None = None  # weights to begin from
    teacher: Teacher | None = None  # another VAE whose latents are learned

    crop: int = 64  # side of the square crops, in pixels
    rule: Literal["random", "resized", "centre"] = "random"  # how crops are cut; see `crops.Crops`
    zoom: float = 1.0  # half of the crops are enlarged by up to this factor
    flip: bool = True  # half of the crops are mirrored
    enlarge: bool = True  # pictures smaller than the crop; they are refused otherwise
    batch: int = 16  # crops a step, over all processes and parts
    accumulate: int = 1  # parts a step is computed in
    steps: int = 10_000  # optimiser steps; each trains the network once, and the discriminator once
    seed: int = 0  # of weights, order, crops and posterior samples

    reconstruction: Literal["l1", "l2", "charbonnier", "ssim", "ms_ssim"] = "l1"  # see `losses.reconstruction`
    reconstruction_weight: float = 1.0  # of the reconstruction; see docs/training.md, Losses
    perceptual: float = 0.0  # weight of LPIPS
    perceptual_net: Literal["vgg", "alex"] = "vgg"  # of LPIPS: VGG-16 or AlexNet
    kl_weight: float = 1e-6  # on KL summed over latents, against the reconstruction summed over pixels
    logvar: Literal["fixed", "learned"] = "fixed"  # of the reconstruction, a scalar; fixed at 0
    latent: Literal["sample", "mode"] = "sample"  # what is decoded
    quiet: bool = True  # fresh networks begin with little posterior noise
    adversarial: Adversarial | None = None  # against a discriminator; None, here and in the four below: no such loss
    equivariance: Equivariance | None = None  # of decoding, to scaling and turning
    alignment: Alignment | None = None  # of latents with a frozen network's features
    shift: Shift | None = None  # by parts of a pixel
    activation_range: Range | None = None  # of activations, so that float16 holds them

    optimiser: Literal["adam", "adamw", "muon"] = "adamw"  # muon: for hidden convolutions; AdamW for the rest
    muon_rate: float = 2e-2  # its learning rate
    learning_rate: float = 1e-3  # Adam's
    weight_decay: float = 1e-2  # of matrices and kernels; norms have none
    betas: tuple[float, float] = (0.9, 0.99)  # Adam's
    warmup: int = 100  # steps of linear rise
    cooldown: int = 1_000  # steps of linear fall to zero, at the end
    clip: float = 1.0  # largest gradient norm; 0: any
    ema_decay: float = 0.999  # of the running average of weights, a step
    precision: Literal["float32", "bfloat16"] = "float32"  # of the products; weights are float32
    channels_last: bool | None = None  # the layout of maps; left out: on the CPU, where it is the faster one
    gradient_checkpointing: bool = False  # blocks are computed again in the backward pass: less memory, more time
    compile: bool = False  # by torch.compile

    phases: tuple[Phase, ...] = ()  # in the order of their starts

    log_every: int = 50  # steps
    checkpoint_every: int = 500  # steps; pictures held out are measured and shown at the same time
    keep: int = 3  # newest checkpoints that are kept, beside the best
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # of the weights that are written at the end

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


LEAST: dict[type, dict[str, float]] = {  # numbers that no run can have less of
    Recipe: {
        **dict.fromkeys(("crop", "zoom", "batch", "accumulate", "steps"), 1),
        **dict.fromkeys(("log_every", "checkpoint_every", "keep"), 1),
        **dict.fromkeys(("seed", "kl_weight", "warmup", "cooldown", "clip", "ema_decay", "betas"), 0),
        **dict.fromkeys(("learning_rate", "muon_rate", "weight_decay", "perceptual", "reconstruction_weight"), 0),
    },
    Adversarial: {
        **dict.fromkeys(("start", "warm_up", "weight", "lecam", "r1", "learning_rate"), 0),
        **dict.fromkeys(("ndf", "layers"), 1),
    },
    Teacher: {"latents": 0},
    Equivariance: {"probability": 0, "low": 0},
    Alignment: {"weight": 0, "margins": 0},
    Shift: {"weight": 0},
    Range: {"limit": 1, "weight": 0},
    Phase: {"start": 0, "crop": 1, "batch": 1, "muon_rate": 0},
    Source: {"repeat": 1, "hold_out": 0},
}
MOST: dict[type, dict[str, float]] = {  # and more of; whole numbers that are not here end at COUNT
    Recipe: {"crop": 2**16, "zoom": 2**10, "batch": 2**20, "accumulate": 2**20, "seed": 2**63 - 1},
    Adversarial: {"ndf": MOST_CHANNELS, "layers": 10},
    Phase: {"crop": 2**16, "batch": 2**20},
}


def named_recipes() -> list[str]:
    """Names of the recipes that come with calotype."""
    return sorted(path.stem for path in NAMED.glob("*.toml"))


def load_recipe(
    recipe: str | Path, settings: Sequence[str] = (), network_of: Callable[[str], Trainable] | None = None
) -> Recipe:
    """Reads a recipe, by name or from a TOML file, and changes it by `key=value` settings (``network.ch=64``).

    ``start=PATH`` begins from other weights, and with their network, whatever the recipe's is.

    Args:
        network_of: path of weights -> their network, for a recipe that begins from some and names none; of presets it
            is known.

    Raises:
        UsageError: for a missing file, bad TOML, an unknown key or a value of the wrong type.
    """
    path = Path(recipe)
    if not path.is_file() and str(recipe) in named_recipes():
        path = NAMED / f"{recipe}.toml"
    if not path.is_file():
        raise UsageError(
            f"{recipe}: there is no such recipe; give a TOML file, or one of {', '.join(named_recipes())}."
        )
    values = read_toml(path)
    for setting in settings:
        _set(values, setting)
    where = f"{path.name} with --set {' --set '.join(map(plain, settings))}" if settings else str(path)
    _begin(values, network_of)
    loaded = typing.cast(Recipe, _build(Recipe, values, where))
    _check(loaded, where)
    return loaded


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and values of a recipe's file.

    Raises:
        UsageError: it can't be read, or is no TOML.
    """
    try:
        return toml_of(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: this recipe can't be read ({error.strerror}); check its permissions.") from None
    except TextError as error:
        raise UsageError(f"{path}: this is not valid TOML ({error}).") from None


def _set(values: Any, setting: str) -> None:
    """Makes one change; a number reaches into a list (``sources.0.repeat=2``)."""
    key, equals, text = setting.partition("=")
    if not equals:
        raise UsageError(f"--set {plain(setting)}: give key=value.")
    try:
        (value,) = toml_of(f"x = {text}").values()
    except ValueError:
        value = text  # so that text needs no quotes
    *parents, last = key.strip().split(".")
    if (parents, last) == ([], "start") and isinstance(value, str) and value != NONE:
        values.pop("network", None)  # it is that of the weights
        before = values.get("start")
        value = {**(before if isinstance(before, dict) else {}), "weights": value}
    try:
        for parent in parents:
            values = values[int(parent)] if isinstance(values, list) else values.setdefault(parent, {})
        values[int(last) if isinstance(values, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError):
        raise UsageError(f"--set {plain(setting)}: the recipe has no such place; see its keys.") from None


def _begin(values: dict[str, Any], network_of: Callable[[str], Trainable] | None) -> None:
    """Completes what a recipe says of weights to begin from: their path is enough, and tells the network too."""
    start = values.get("start")
    if isinstance(start, str) and start != NONE:
        start = values["start"] = {"weights": start}
    if values.get("network", NONE) != NONE:
        return
    values.pop("network", None)
    weights = start.get("weights") if isinstance(start, dict) else None
    if not isinstance(weights, str):
        return  # what is missing is told where the recipe is built
    if weights in PRESETS:
        values["network"] = PRESETS[weights].config
    elif network_of is not None:
        values["network"] = network_of(weights)


def _check(recipe: Recipe, where: str) -> None:
    """What neither types nor `LEAST` say."""
    factor = recipe.network.factor
    if recipe.network.picture_channels not in PICTURES:
        raise UsageError(
            f"{where}: network.in_channels must be 3 (RGB) or 4 (RGBA), not {recipe.network.picture_channels}: these "
            f"are the pictures that losses are made for."
        )
    if not recipe.sources:
        raise UsageError(f"{where}: sources must name at least one folder or zip of pictures.")
    for key, values in (("ema_decay", (recipe.ema_decay,)), ("betas", recipe.betas)):
        if not all(value < 1 for value in values):
            raise UsageError(f"{where}: {key} must be below 1, not {getattr(recipe, key)}.")
    if bad := sorted(crop for crop in recipe.crops() if crop % factor):
        raise UsageError(
            f"{where}: crop must be a multiple of {factor}, because the network is f{factor}, not {bad[0]}."
        )
    batches = {recipe.batch, *(phase.batch for phase in recipe.phases if phase.batch)}
    if uneven := sorted(batch for batch in batches if batch % recipe.accumulate):
        raise UsageError(
            f"{where}: batch must be a multiple of accumulate, {recipe.accumulate}, not {uneven[0]}: parts are equal."
        )
    starts = [phase.start for phase in recipe.phases]
    if starts != sorted(starts):
        raise UsageError(f"{where}: phases must stand in the order of their starts, not {starts}.")
    gan = recipe.adversarial
    if gan and not gan.warm_up <= gan.start < recipe.steps:
        raise UsageError(
            f"{where}: adversarial.start is {gan.start}; it must lie below steps ({recipe.steps}), and not below its "
            f"warm_up ({gan.warm_up}); change it, or set adversarial=none."
        )
    if recipe.teacher and (recipe.equivariance or recipe.alignment):
        raise UsageError(f"{where}: a teacher decides what the latents are; leave equivariance and alignment out.")
    least, what = max(_needs(recipe))
    smallest = min(recipe.crops()) // (4 if recipe.equivariance else 1)
    if smallest < least:
        quarter = " (equivariance makes crops four times as small)" if recipe.equivariance else ""
        raise UsageError(
            f"{where}: {what} needs pictures of at least {least} x {least} pixels, not {smallest} x "
            f"{smallest}{quarter}; give a larger crop."
        )
    if isinstance(recipe.network, DenseConfig) and recipe.crops() != {recipe.network.side}:
        raise UsageError(f"{where}: a dense network takes crops of its side, {recipe.network.side} pixels, only.")
    if isinstance(recipe.network, DenseConfig) and recipe.optimiser == "muon":
        raise UsageError(f"{where}: muon is for convolutions, and a dense network has none; take adam or adamw.")
    if recipe.shift and min(recipe.crops()) < 4 * factor:
        raise UsageError(f"{where}: shift needs crops of at least {4 * factor} pixels, four latents a side.")
    train = recipe.start.train if recipe.start else "all"
    if not isinstance(recipe.network, DenseConfig | ConvConfig) and train not in family_of(recipe.network).trains:
        raise UsageError(
            f"{where}: start.train = {train} can't be with a network of the kind {recipe.network.kind}, of which the "
            f"decoder alone is trained here; give start.train = decoder, and weights to begin from."
        )
    if (train == "decoder" and recipe.alignment) or (train == "encoder" and gan and gan.adaptive):
        raise UsageError(f"{where}: start.train = {train} leaves nothing to weigh the gradient of; leave the loss out.")
    if recipe.equivariance and not recipe.equivariance.probability <= 1 >= recipe.equivariance.low:
        raise UsageError(f"{where}: probabilities of equivariance must be at most 1.")


def _needs(recipe: Recipe) -> list[tuple[int, str]]:
    """How small pictures may be for each loss, in pixels a side."""
    found = [(1, "a picture"), ({"ssim": 11, "ms_ssim": 161}.get(recipe.reconstruction, 1), recipe.reconstruction)]
    if recipe.perceptual:
        found.append(({"vgg": 16, "alex": 31}[recipe.perceptual_net], f"LPIPS ({recipe.perceptual_net})"))
    if recipe.alignment:
        found.append((16, "alignment"))
    if recipe.adversarial:
        found.append((3 * 2**recipe.adversarial.layers, "the discriminator"))
    return found


def _build(cls: Any, values: Any, where: str) -> Any:
    """A dataclass from plain values, checked against its annotations."""
    if not isinstance(values, dict):
        raise UsageError(f"{where} must be a table, not {shown(values)}.")
    hints = typing.get_type_hints(cls)
    if unknown := sorted(values.keys() - hints.keys()):
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"{where}: unknown key {', '.join(map(plain, unknown[:3]))}; {meant}{cls.__name__} has "
            f"{', '.join(sorted(hints))}."
        )
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - values.keys()):
        raise UsageError(f"{where}: {', '.join(missing)} must be given.")
    fields = {key: _value(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    for key, value in fields.items():
        least, most = LEAST.get(cls, {}).get(key, -math.inf), MOST.get(cls, {}).get(key, math.inf)
        for item in value if isinstance(value, tuple) else (value,):
            if not isinstance(item, int | float):
                continue
            if item < least:
                raise UsageError(f"{where}: {key} must be at least {least}, not {value}.")
            if item > (min(most, COUNT) if isinstance(item, int) and key != "seed" else most):
                raise UsageError(f"{where}: {key} must be at most {min(most, COUNT)}, not {value}.")
    try:
        return cls(**fields)
    except UsageError as error:  # of a network
        raise UsageError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint == Trainable:
        if isinstance(value, tuple(TRAINABLE.values())):  # that of weights
            return value
        if not isinstance(value, dict):
            raise UsageError(f"{where} must be a table, not {shown(value)}.")
        value = dict(value)
        kind = value.pop("kind", None)
        if not isinstance(kind, str) or kind not in TRAINABLE:
            raise UsageError(f"{where}.kind must be one of {', '.join(TRAINABLE)}, not {shown(kind)}.")
        return _build(TRAINABLE[kind], value, where)
    if origin is types.UnionType:
        if value == NONE:
            return None
        hint = next(arg for arg in args if arg is not type(None))
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise UsageError(f"{where} must be a list, not {shown(value)}.")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise UsageError(f"{where} must have {len(kinds)} entries, not {len(value)}.")
        return tuple(
            _value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is Literal:
        if not isinstance(value, str) or value not in args:
            raise UsageError(f"{where} must be one of {', '.join(map(str, args))}, not {shown(value)}.")
        return value
    if hint is float and is_number(value):
        return float(value)
    if not (is_whole(value) if hint is int else isinstance(value, hint) and hint is not float):
        raise UsageError(f"{where} must be {WORDS[hint]}, not {shown(value)}.")
    return value
