"""Families of autoencoders, a folder each: all that is particular to a network is in its folder.

    config.py   its numbers
    steps.py    what it computes, for the engine
    telling.py  how it is told by the names and shapes of its tensors
    names.py    what its tensors are called in each layout (where there are several)
    presets.py  published weights, and formats of their latents
    factors.py  published factors that make RGB of latents (where there are any)
    network.py  the network; the only part that needs torch

Each shows one face, a `Family`; outside nothing knows a family by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from calotype.errors import UsageError
from calotype.families import dcae, folded, hunyuan, kl, taehv, tiny, vq, wan
from calotype.families.face import DiffusersClass, Family, NetworkConfig, Preset, Space
from calotype.steps import Direction, Program
from calotype.texts import TextError, made, shown

if TYPE_CHECKING:
    from calotype.families.network import Network

FAMILIES: tuple[Family, ...] = (
    folded.FAMILY, wan.FAMILY, dcae.FAMILY, hunyuan.FAMILY, vq.FAMILY, kl.FAMILY, taehv.FAMILY, tiny.FAMILY,
)  # fmt: skip
"""In the order in which they are told."""

_FIRST = (kl.FAMILY, tiny.FAMILY, taehv.FAMILY)
_SHOWN = (*_FIRST, *(family for family in FAMILIES if family not in _FIRST))
"""In the order in which people are shown presets, latent formats and classes: what is known best comes first."""

CONFIGS: Mapping[str, type[NetworkConfig]] = {family.config.kind: family.config for family in FAMILIES}
"""Classes of configurations, by their `kind`."""

PRESETS: Mapping[str, Preset] = {name: preset for family in _SHOWN for name, preset in family.presets.items()}
"""Published weights, by name."""

FORMATS: tuple[Mapping[str, Any], ...] = tuple(values for family in _SHOWN for values in family.formats)
"""Latent formats, as `latents.LatentFormat.to_dict` gives them."""

SPACES: Mapping[str, Space] = {name: space for family in _SHOWN for name, space in family.known_spaces.items()}
"""What else is known of latent formats, by name."""

FACTORS: Mapping[str, Mapping[str, Any]] = {
    name: values for family in FAMILIES for name, values in family.factors.items()
}
"""What makes RGB of model latents, by the name of their format, as `previews.Factors` has it."""

KNOWN_FILES: Mapping[str, str] = {sha: name for family in FAMILIES for sha, name in family.files.items()}
"""sha256 of single files in circulation -> latent format."""


CLASSES: Mapping[str, DiffusersClass] = {
    name: told for family in _SHOWN if family.diffusers for name, told in family.diffusers.classes.items()
}
"""What is known of diffusers' classes, by name."""


def family_of(config: NetworkConfig) -> Family:
    """The family of a configuration."""
    return next(family for family in FAMILIES if isinstance(config, family.config))


def require_as_large(config: NetworkConfig, doing: str) -> None:
    """Checks that pictures come out as large as they go in.

    Args:
        doing: what needs that, to begin a sentence with.

    Raises:
        UsageError: they do not.
    """
    if (n := family_of(config).enlarges(config)) != 1:
        raise UsageError(
            f"{doing} needs pictures that come out as large as they went in, and this VAE's decoder makes them {n} "
            f"times as large along each side; take another decoder of the same latents, or decode with this one alone."
        )


def config_from_dict(values: Mapping[str, Any]) -> NetworkConfig:
    """The inverse of `NetworkConfig.to_dict`, also after a trip through JSON (lists become tuples).

    Raises:
        UsageError: it is no table of these, or what is in it can't be.
    """
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise UsageError(f"A network's configuration has a kind of {', '.join(CONFIGS)}, not {shown(kind)}.")
    try:
        return made(CONFIGS[kind], {key: value for key, value in values.items() if key != "kind"}, kind)
    except TextError as error:
        raise UsageError(f"{error}.") from None


def program(config: NetworkConfig, direction: Direction) -> Program:
    """The steps of one direction of a network."""
    return family_of(config).program(config, direction)


def make_network(config: NetworkConfig) -> Network:
    """A network of this configuration, freshly initialised."""
    return network_class(family_of(config))(config)


def network_class(family: Family) -> type[Network]:
    """The class of its networks; only here torch is needed."""
    home = importlib.import_module(f"{family.config.__module__.rpartition('.')[0]}.network")
    found: type[Network] = getattr(home, family.network)
    return found
