"""Weights of MLX and of mflux: kernels with their inputs last, names of their own, and quantised matrices.

mflux (src/mflux/models/flux and flux2, 0.17) saves a VAE under diffusers' names, but for a module more in some
("conv_in.conv2d", "conv_norm_out.norm"), and one number less ("to_out" for "to_out.0"). The models of mlx-examples have
diffusers' names with other words in them (stable_diffusion/model_io.py), or latent-diffusion's (flux/autoencoder.py),
and linear layers for convolutions of 1x1.

MLX has the axes of a kernel in the order O, H, W, I. A quantised matrix is stored as `weight`, `scales` and `biases`:
each `group` numbers of a row have a scale and a bias, w = scale * q + bias, and the q of a row are one stream of bits
in words of 32, the lowest bits first (`mx.quantize`; mlx/backend/cpu/quantized.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.damage import quoted
from calotype.errors import WeightsError
from calotype.texts import TextError, json_of
from calotype.weights.container import Container
from calotype.weights.translated import Made, Translated

_SIZES = (1, 3, 5, 7)  # of kernels
_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)
_IN_NETWORK = re.compile(r"((?:.*?\.)?)(?:encoder|decoder|(?:post_)?quant_(?:conv|proj))\..+")
_ATTENTION = re.compile(r".*\.(?:attentions\.[0-9]+|attn(?:_1|\.[0-9]+)|mid_blocks\.1)\.\w+(?:\.0)?")  # its matrices
_LINEAR = re.compile(
    r"(?:.*\.)?(?:nin_shortcut|conv_shortcut|quant_conv|post_quant_conv)\.weight"
)  # where torch has not

# (a name that a network of them has, what is so in its names, diffusers' words for it)
_WORDS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        r"(encoder|decoder)\.conv_in\.conv2d\.weight",
        ((r"\.conv2d(?=\.\w+$)", ""), (r"(?<=\.conv_norm_out)\.norm(?=\.\w+$)", "")),
    ),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.to_out\.\w+", ((r"(?<=\.0\.to_out)(?=\.\w+$)", ".0"),)),
    (
        r"(encoder|decoder)\.mid_blocks\.1\.query_proj\.\w+",
        (
            (r"\.mid_blocks\.0\.", ".mid_block.resnets.0."),
            (r"\.mid_blocks\.1\.", ".mid_block.attentions.0."),
            (r"\.mid_blocks\.2\.", ".mid_block.resnets.1."),
            (r"\.query_proj\.", ".to_q."),
            (r"\.key_proj\.", ".to_k."),
            (r"\.value_proj\.", ".to_v."),
            (r"\.out_proj\.", ".to_out.0."),
            (r"\.(down|up)sample\.", r".\1samplers.0.conv."),
            (r"(?<![^.])((?:post_)?quant)_proj\.", r"\1_conv."),
        ),
    ),
)


class _Packed(NamedTuple):
    """A quantised matrix.

    Attributes:
        name: of its module.
        bits: of a number.
        group: numbers that share a scale and a bias.
    """

    name: str
    rows: int
    columns: int
    bits: int
    group: int


def from_mlx(container: Container) -> Container:
    """Tensors of MLX under diffusers' names, in torch's shapes, and as numbers; a container of others as it is.

    Raises:
        WeightsError: two tensors would have one name.
    """
    names = _names(container.shapes)
    turned = _turned_networks(container)
    packed = {f"{one.name}.weight": one for one in _quantised(container)}
    if not packed and not turned and all(key == name for key, name in names.items()):
        return container
    left_out = {f"{one.name}.{part}" for one in packed.values() for part in ("scales", "biases")}
    made: dict[str, Made] = {}
    for key, shape in container.shapes.items():
        if key in left_out:
            continue
        read, stored = partial(container.read, key), container.stored(key)
        if one := packed.get(key):
            shape, stored, read = (one.rows, one.columns), f"MLX {one.bits} bits", partial(_unpacked, container, one)
        if _network(key) in turned and (len(shape) == 4 or (len(shape) == 2 and _LINEAR.fullmatch(names[key]))):
            o, *sides, i = shape
            shape, read = (o, i, *(sides or (1, 1))), partial(_turned, read)
        if names[key] in made:
            raise WeightsError(f"two of its tensors are called {quoted(names[key], 60)}; fetch or convert it again")
        made[names[key]] = Made(shape, stored, read)
    return Translated(made, kind=container.kind, metadata=container.metadata, notices=container.notices)


def _network(key: str) -> str | None:
    """What stands before a network's names, if the key is of one."""
    match = _IN_NETWORK.fullmatch(key)
    return match[1] if match else None


def _names(keys: Iterable[str]) -> dict[str, str]:
    """Keys -> diffusers' names, where they are others of which it is known."""
    names = {key: key for key in keys}
    networks = {key: _network(key) for key in names}
    for sign, words in _WORDS:
        own = {n for key, n in networks.items() if n is not None and re.fullmatch(sign, key.removeprefix(n))}
        for key, network in networks.items():
            if network in own:
                for theirs, word in words:
                    names[key] = re.sub(theirs, word, names[key])
    return names


def _turned_networks(container: Container) -> set[str]:
    """Before which names networks stand whose kernels have their inputs last.

    A kernel of 3x3 tells, unless it has three inputs: [O, 3, 3, I] is none of torch's, which are [O, I, 3, 3]; nor
    TensorFlow's, [3, 3, I, O]. All kernels of a network must agree.
    """
    orders: dict[str, set[str]] = {}
    for key, shape in container.shapes.items():
        network = _network(key)
        if network is not None and len(shape) == 4 and key.endswith(".weight"):
            possible = {
                order
                for order, (a, b) in {"torch": shape[2:], "mlx": shape[1:3], "tensorflow": shape[:2]}.items()
                if a == b and a in _SIZES
            }
            orders[network] = orders.get(network, possible) & possible
    return {network for network, possible in orders.items() if possible == {"mlx"}}


def _turned(read: partial[Tensor]) -> Tensor:
    tensor = read()
    return tensor[:, :, None, None] if tensor.ndim == 2 else tensor.permute(0, 3, 1, 2).contiguous()


def _quantised(container: Container) -> Iterator[_Packed]:
    """All quantised matrices of networks of which it can be told in how many bits they are.

    What a matrix has of bits in a group goes for several, 8 in groups of 32 as for 4 of 64. Those of attention are
    square, which tells; others are as those beside them, or as the metadata say.
    """
    found: dict[str, list[_Packed]] = {}
    for key, shape in container.shapes.items():
        name = key.removesuffix(".weight")
        scales, biases = (container.shapes.get(f"{name}.{part}") for part in ("scales", "biases"))
        if name == key or _network(key) is None or len(shape) != 2 or scales is None or scales != biases:
            continue
        if container.stored(key) == "uint32" and len(scales) == 2 and scales[0] == shape[0] and scales[1]:
            found[name] = [
                _Packed(name, shape[0], scales[1] * group, bits, group)
                for bits in _BITS
                for group in _GROUPS
                if scales[1] * group * bits == 32 * shape[1]
            ]
    square = {
        name: [one for one in several if one.columns == one.rows]
        for name, several in found.items()
        if _ATTENTION.fullmatch(name)
    }
    beside = {(one.bits, one.group) for several in square.values() for one in several}
    level = _level(container)
    for name, several in found.items():
        for told in (
            square.get(name, []),
            [one for one in several if (one.bits, one.group) in beside],
            [one for one in several if one.bits == level],
            several,
        ):
            if len(told) == 1:
                yield told[0]
                break


def _level(container: Container) -> int | None:
    """The bits of all matrices, as mflux writes them into its metadata."""
    try:
        level = json_of(container.metadata.get("quantization_level", "null"))
    except TextError:
        return None
    return level if type(level) is int else None


def _unpacked(container: Container, one: _Packed) -> Tensor:
    """A matrix as numbers, in float32: MLX rounds them to the type of the scales, where it makes them at all."""
    words = container.read(f"{one.name}.weight").to(torch.int64)
    scales, biases = (container.read(f"{one.name}.{part}") for part in ("scales", "biases"))
    if not (scales.is_floating_point() and biases.is_floating_point()):
        raise WeightsError(f"{quoted(one.name, 60)} is quantised, and its scales are no numbers with a point")
    at = torch.arange(one.columns) * one.bits
    words = torch.cat([words, words.new_zeros(one.rows, 1)], dim=1)  # the last number ends with the row
    low, shift = at // 32, at % 32
    both = words[:, low] | (words[:, low + 1] << 32)
    quantised = ((both >> shift) & (2**one.bits - 1)).float().view(one.rows, -1, one.group)
    numbers: Tensor = quantised * scales.float()[:, :, None] + biases.float()[:, :, None]
    return numbers.view(one.rows, one.columns)
