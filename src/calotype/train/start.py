"""Weights that a training begins from: of any family, both halves, held as they are stored beside the network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from calotype.errors import CalotypeWarning, UsageError
from calotype.families.face import NetworkConfig
from calotype.families.network import Network
from calotype.train.configs import Trainable
from calotype.vae.loading import locate
from calotype.weights.load import Loaded, load_weights
from calotype.weights.video import whole_tensors


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Weights as they are stored.

    Attributes:
        loaded: what is known of them; its network is the one that is trained.
        tensors: of the network, by our keys, in the types that they are stored in. What is trained is not to be read
            here: it may share memory with the network.
        whole: of the file, where it holds more than the network; see `weights.video`.
    """

    loaded: Loaded
    tensors: Mapping[str, Tensor]
    whole: Mapping[str, Tensor]


def begin(weights: str, network: Trainable) -> tuple[Network, Origin]:
    """The network to train on, in float32 on the CPU, and what it was loaded from.

    Args:
        weights: a preset's name or a path.
        network: what the recipe says that it is.

    Raises:
        WeightsError: there are no usable weights.
        UsageError: they are of another network, or of half a VAE.
    """
    path, _, format_name = locate(weights, None)
    loaded = load_weights(path, latent_format_name=format_name)
    for notice in loaded.notices:
        warnings.warn(notice, CalotypeWarning, stacklevel=2)
    require_parts(loaded, weights, "encoder", "decoder")  # what one learns from is what the other gives
    module = loaded.module
    if module.config != network:
        raise UsageError(
            f"{weights} is another network than the recipe's: {_differences(network, module.config)}; leave the "
            f"recipe's network out (--set network=none), or begin from other weights."
        )
    origin = Origin(loaded=loaded, tensors=dict(module.state_dict()), whole=whole_tensors(loaded))
    return module.to(torch.float32).requires_grad_(True), origin


def require_parts(loaded: Loaded, name: str, *needed: str) -> None:
    """Checks that weights have the halves that training needs.

    Raises:
        UsageError: if one is missing.
    """
    if missing := {*needed} - loaded.parts:
        (there,) = loaded.parts
        raise UsageError(
            f"{name} holds {'an encoder' if there == 'encoder' else 'a decoder'} alone, and training needs its "
            f"{missing.pop()} too; give a whole VAE."
        )


def network_of(weights: str) -> NetworkConfig:
    """The network of a preset's weights or of those at a path.

    Raises:
        WeightsError: there are no usable weights.
        UsageError: for an unknown name.
    """
    path, _, format_name = locate(weights, None)
    return load_weights(path, latent_format_name=format_name).module.config


def _differences(network: Trainable, there: NetworkConfig) -> str:
    asked, found = network.to_dict(), there.to_dict()
    if asked["kind"] != found["kind"]:
        return f"it is of the kind {found['kind']}, not {asked['kind']}"
    return ", ".join(f"{key} is {found[key]} there, not {asked[key]}" for key in found if asked[key] != found[key])
