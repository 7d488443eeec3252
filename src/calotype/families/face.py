"""What all families of autoencoders show, and nothing else of them is known outside. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.steps import Direction, Program
from calotype.texts import shown

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by their names
Layout = Literal["ldm", "diffusers", "diffusers-2d", "keras", "taesd", "taehv", "calotype"]
"""Whose names tensors have."""

Parts = frozenset[str]  # "encoder", "decoder" or both


class NetworkConfig(Protocol):
    """The numbers from which a whole network follows; a frozen dataclass, whose fields have defaults."""

    kind: ClassVar[str]  # of the family, in metadata and recipes
    has_posterior: ClassVar[bool]  # whether the encoder gives moments, and not latents
    in_model_space: ClassVar[bool]  # whether raw latents are the model latents of another VAE, which it imitates

    @property
    def imitated(self) -> str | None:
        """The latent format of that VAE, if its architecture tells."""

    @property
    def z_channels(self) -> int:
        """Channels of raw latents."""

    @property
    def factor(self) -> int:
        """Spatial compression f: a latent stands for f x f pixels."""

    @property
    def picture_channels(self) -> int:
        """Channels of the pictures that go in and come out: 1 is grey, 3 RGB, 4 RGBA."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, `kind` among them, as written into metadata."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """How networks of a family are seen among the names of tensors.

    Attributes:
        first: a name that every such network has; its group is what stands before the network's own names.
        own: names, after that, of what belongs to it.
        layout: tells kinds of one family apart.
        sure: no other network has such a name.
        holds: asked about all names and shapes, and what stands before the own ones, where `first` is not enough.
    """

    first: re.Pattern[str]
    own: re.Pattern[str]
    layout: str = ""
    sure: bool = False
    holds: Callable[[Shapes, str], bool] = lambda shapes, prefix: True


@dataclass(frozen=True, kw_only=True)
class Group:
    """The tensors of one network in a file.

    Attributes:
        family: whose sign was seen.
        sign: which of the family's signs that was.
        keys: name within the network -> key in the file, in the file's order.
        prefix: what stands before the names.
        other: what the network is, where it is none that is read.
        averaged: whether its name says that it is an average over a training.
    """

    family: Family
    sign: Sign
    prefix: str
    keys: Mapping[str, str]
    other: str | None = None
    averaged: bool = False


@dataclass(frozen=True, kw_only=True)
class Told:
    """What names and shapes tell of a network.

    Attributes:
        layout: whose names the tensors have.
        config: the numbers of the network.
        parts: the halves that are there.
        keys: our key -> key in the file.
        joined: our key -> keys in the file of tensors whose rows, one after another, are its own.
        assumed: what nothing in the file tells, for people; a config.json or the file's metadata do.
        statistics: file keys of the running mean and variance of latents.
        whole: as `keys`, with all that a file of a video's network has beside what one picture needs; empty where it
            has nothing more.
    """

    layout: Layout
    config: NetworkConfig
    parts: Parts
    keys: Mapping[str, str]
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    assumed: str = ""
    statistics: tuple[str, str] | None = None
    groups_assumed: bool = False  # nobody said how many groups the norms have
    whole: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published VAE."""

    repo: str  # repository on the Hugging Face hub, or on GitHub where `sha256` is given
    files: tuple[str, ...]  # what is fetched from it
    latent_format: str  # name of its latents' format; ``model:NAME`` where they are NAME's model latents
    config: NetworkConfig  # its architecture, which is known without its weights
    licence: str  # of the weights, as its publisher calls it
    about: str  # which models it belongs to, for people
    gated: bool = False  # the hub asks for a login and consent
    tiny: bool = False  # for previews
    sha256: tuple[str, ...] = ()  # of the files, for what is not on the hub (whose client checks what it fetches)

    @property
    def space(self) -> str:
        """The latent space whose latents it decodes."""
        return self.latent_format.removeprefix("model:")


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is known of a latent space beside the numbers of its format.

    Attributes:
        title: for people.
        factor: pixels along each side that a raw latent stands for.
        models: whose latents are of it -> where that is written.
        channels: of raw latents; of a space whose numbers come with the weights, so that its format does not say it.
        patch: how many raw latents along each side become one model latent; of such a space.
    """

    title: str
    factor: int
    models: Mapping[str, str]
    channels: int = 0
    patch: int = 1


@dataclass(frozen=True, kw_only=True)
class DiffusersClass:
    """A class of diffusers that holds networks of a family.

    Attributes:
        defaults: of fields of its config.json that may be absent.
        packs: pipelines pack its latents, and normalise them by running statistics among the weights.
        kept: fields of its config.json about latents, and about how pipelines treat a VAE; None: all that there are.
        holds: whether its modules can be a network of this configuration.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    packs: bool = False
    kept: tuple[str, ...] | None = None
    holds: Callable[[Any], bool] = lambda config: True


@dataclass(frozen=True, kw_only=True)
class Diffusers:
    """What diffusers has of a family.

    Attributes:
        classes: by name; the usual one first.
        completed: (config, fields of a config.json, configuration in the weights' own metadata) -> the configuration
            with what tensors can't tell.
        expected: (config, fields, parts) -> what the fields must say beside these tensors.
        untold: which of them no tensor tells.
        written: config -> fields for a config.json; None where the family is not written in this layout.
        flax: as `written`, for the Flax class of older versions, with its name; None where there is none.
        theirs: (our key, config) -> the key in diffusers' files; None where there is none.
        ours: (a key in diffusers' files, config) -> our key; None where there is none.
        parted: (our key, config) -> the keys in diffusers' files of several tensors whose rows it holds, in equal
            parts; () where it is one.
        linear: whether diffusers has a linear layer for a 1x1 convolution, by our key.
        layout: what networks are written as: in diffusers' own shapes, or with its names alone ("diffusers-2d").
        lacks: what diffusers' own layout needs that a network here does not have, where that is so.
        scaled: config -> whether pipelines scale its latents as its config.json says.
    """

    classes: Mapping[str, DiffusersClass]
    completed: Callable[[Any, Mapping[str, Any], Mapping[str, Any]], NetworkConfig] = lambda config, said, own: config
    expected: Callable[[Any, Mapping[str, Any], Parts], dict[str, Any]]
    untold: tuple[str, ...] = ()
    written: Callable[[Any], dict[str, Any]] | None = None
    flax: Callable[[Any], dict[str, Any]] | None = None
    theirs: Callable[[str, Any], str | None] = lambda key, config: key
    ours: Callable[[str, Any], str | None] = lambda key, config: key
    parted: Callable[[str, Any], tuple[str, ...]] = lambda key, config: ()
    linear: Callable[[str], bool] = lambda key: False
    layout: Literal["diffusers", "diffusers-2d"] = "diffusers"
    lacks: str = ""
    scaled: Callable[[Any], bool] = lambda config: True


@dataclass(frozen=True, kw_only=True)
class Video:
    """What files of a family of videos hold, of which networks here have what one picture needs.

    Attributes:
        named: (config, "ldm" or "diffusers") -> our key -> the key in files of that layout, of all that there can be.
        shaped: (config, our key, tensor) -> a tensor of such a file as diffusers has it.
        fields: (config, our keys) -> what these tensors alone tell of fields of a config.json.
    """

    named: Callable[[Any, Literal["ldm", "diffusers"]], Mapping[str, str]]
    shaped: Callable[[Any, str, Any], Any] = lambda config, key, tensor: tensor
    fields: Callable[[Any, Collection[str]], Mapping[str, Any]] = lambda config, keys: {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of autoencoders.

    Attributes:
        config: its numbers.
        network: name of the class that makes a network of them, in the family's network.py.
        program: its steps.
        signs: how it is seen in files.
        tell: what a group's shapes tell; the last is the number of groups of the norms, if that is known.
        presets: published weights, by name.
        files: sha256 of single files in circulation -> latent format, where shapes can't tell it.
        formats: latent formats, as `latents.LatentFormat.to_dict` gives them.
        known_spaces: what else is known of them and of formats whose numbers come with the weights, by name.
        factors: name of a latent format -> what makes RGB of its model latents, as `previews.Factors` has it.
        space: name of the latent format that all networks of a configuration have; None where they differ.
        spaces: names of the latent formats that networks of a configuration may have, where nothing tells which; ()
            where any format of the family, or of all, may be.
        diffusers: what diffusers has of it.
        original: (our key, config) -> the key in the original files, where that is another.
        taken: (config, our key, tensor) -> a tensor of a file as the network has it.
        given: (config, our key, tensor) -> a tensor of the network as a file has it.
        copies: whether what is taken of a file is copied, and not mapped into memory: for most of it is left there.
        video: what its files hold beside what one picture needs, if it is of videos.
        trains: what of it can be trained: "all", "encoder", "decoder".
        clamps: whether pipelines' class limits what it decodes to [-1, 1]; networks here never do.
        enlarges: how many times as large along each side pictures of a configuration come out as they went in.
        keras: (config, side) -> layers and our modules in the order of Keras's files, if it has such.
        join: configurations of an encoder and a decoder in files of their own -> that of both; None where they must be
            the same.
        choices: flags of its configuration that no weights tell, and who loads them may choose.
    """

    config: type[NetworkConfig]
    network: str
    program: Callable[[Any, Direction], Program]
    signs: tuple[Sign, ...]
    tell: Callable[[Shapes, Group, int | None], Told]
    presets: Mapping[str, Preset] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    formats: Sequence[Mapping[str, Any]] = ()
    known_spaces: Mapping[str, Space] = field(default_factory=dict)
    factors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    space: Callable[[Any], str | None] = lambda config: None
    spaces: Callable[[Any], tuple[str, ...]] = lambda config: ()
    diffusers: Diffusers | None = None
    original: Callable[[str, Any], str] = lambda key, config: key
    taken: Callable[[Any, str, Any], Any] = lambda config, key, tensor: tensor
    given: Callable[[Any, str, Any], Any] = lambda config, key, tensor: tensor
    copies: bool = False
    video: Video | None = None
    trains: tuple[str, ...] = ("all", "encoder", "decoder")
    clamps: bool = False
    enlarges: Callable[[Any], int] = lambda config: 1
    keras: Callable[[Any, str], list[tuple[str, list[str]]]] | None = None
    join: Callable[[Any, Any], NetworkConfig] | None = None
    choices: tuple[str, ...] = ()


def on_the_hub(folder: str = "") -> tuple[str, ...]:
    """The files of a VAE in diffusers' layout, in a folder that ends with a slash, or at the top."""
    return tuple(f"{folder}{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors"))


# --- what tellers say ---


def shape_of(shapes: Shapes, key: str) -> tuple[int, ...]:
    """A convolution's shape, by the key of its weight.

    Raises:
        WeightsError: it is missing, or no convolution.
    """
    if len(shapes.get(key, ())) != 4:
        raise WeightsError(f"{key} is missing or is no convolution: this is not a whole VAE")
    return shapes[key]


def picture_channels(shapes: Shapes, parts: Parts, first: str, last: str) -> int:
    """Channels of the pictures, by the encoder's first and the decoder's last convolution.

    Raises:
        WeightsError: the two differ.
    """
    found = [shape_of(shapes, first)[1]] if "encoder" in parts else []
    found += [shape_of(shapes, last)[0]] if "decoder" in parts else []
    require_one_picture(*found)
    return found[0]


def require_one_picture(taken: int, made: int | None = None) -> None:
    """Checks that a decoder makes as many channels as its encoder takes.

    Args:
        taken: channels of the encoder's pictures, or of the decoder's where there is no encoder.
        made: channels of the decoder's; None: there is one half only.

    Raises:
        WeightsError: if it does not.
    """
    if made is not None and made != taken:
        raise WeightsError(
            f"its encoder takes pictures of {taken} channel{'s' * (taken > 1)} and its decoder makes {made}; VAEs are "
            f"supported whose pictures have as many channels on both sides (1 for grey, 3 for RGB, 4 for RGBA)"
        )


def listing(what: str, keys: Sequence[str], most: int = 8) -> str:
    """'unexpected tensors a, b, c and 5 more', for messages: `what` they are, and at most `most` of the `keys`."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{what} tensor{'s' if len(keys) != 1 else ''} {', '.join(quoted(key, 200) for key in keys[:most])}{more}"


def contradiction(key: str, said: object, found: object) -> str:
    """Why a config.json is not obeyed: it is about other tensors, for its `key` does not say what was found."""
    return (
        f"its config.json says {key} {shown(said)}, and its tensors are of {found!r}: it is not about these weights; "
        f"put the right one in its place, or the weights into a folder of their own"
    )


def unsupported(key: str, value: object, supported: str) -> str:
    """Why it is not obeyed: what its `key` asks for is not there, but only what is `supported`."""
    several = "," in supported or " and " in supported
    return f"its config.json says {key} {shown(value)}, and supported {'are' if several else 'is'} {supported}"
