"""The arithmetic of taesd.py and taehv.py (madebyollin/taesd and /taehv), layer by layer, over any number of frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layer(NamedTuple):
    """One of a row of layers; `n` is its frames, or the side of its blocks of pixels."""

    kind: str
    ins: int = 0
    outs: int = 0
    n: int = 1


def _blocks(kind: str, channels: int) -> list[Layer]:
    return [Layer(kind, channels, channels)] * 3


def _taehv(z: int, patch: int) -> dict[str, list[Layer]]:
    pixels = 3 * patch**2
    encoder = [Layer("unshuffle", n=patch), Layer("conv", pixels, 64), Layer("relu")]
    for frames in (2, 2, 1):
        encoder += [Layer("pool", 64, 64, frames), Layer("down", 64, 64), *_blocks("memory", 64)]
    decoder = [Layer("clamp"), Layer("conv", z, 256), Layer("relu")]
    for ins, outs, frames in ((256, 128, 1), (128, 64, 2), (64, 64, 2)):
        decoder += [*_blocks("memory", ins), Layer("up"), Layer("grow", ins, ins, frames), Layer("plain", ins, outs)]
    return {
        "encoder": [*encoder, Layer("conv", 64, z)],
        "decoder": [*decoder, Layer("relu"), Layer("conv", 64, pixels), Layer("shuffle", n=patch)],
    }


def _up(ins: int, outs: int) -> list[Layer]:
    return [*_blocks("block", ins), Layer("up"), Layer("plain", ins, outs)]


def _down(ins: int, outs: int) -> list[Layer]:
    return [Layer("down", ins, outs), *_blocks("block", outs)]


NETWORKS: dict[str, dict[str, list[Layer]]] = {
    "taew2_1": _taehv(16, 1),
    "taew2_2": _taehv(48, 2),
    "taeqi2_1": {
        "encoder": [
            *(Layer("unshuffle", n=2), Layer("conv", 16, 64), Layer("relu"), Layer("block", 64, 64)),
            *(*_down(64, 64), *_down(64, 128), *_down(128, 256), Layer("conv", 256, 64)),
        ],
        "decoder": [
            *(Layer("clamp"), Layer("conv", 64, 256), Layer("relu")),
            *(*_up(256, 128), *_up(128, 64), *_up(64, 64)),
            *(Layer("block", 64, 64), Layer("conv", 64, 16), Layer("shuffle", n=2)),
        ],
    },
    "taesana": {
        "encoder": [
            *(Layer("stride", 3, 32), Layer("relu"), Layer("stride", 32, 64), Layer("relu"), Layer("block", 64, 64)),
            *(*_down(64, 64), *_down(64, 64), *_down(64, 64), Layer("conv", 64, 32)),
        ],
        "decoder": [
            *(Layer("clamp"), Layer("conv", 32, 256), Layer("relu")),
            *(*_up(256, 128), *_up(128, 64), *_up(64, 64), *_up(64, 64), *_up(64, 64)),
            *(Layer("block", 64, 64), Layer("conv", 64, 3)),
        ],
    },
}


def _rows(name: str, side: str) -> list[tuple[int, Layer]]:
    """Layers and their numbers in the files."""
    layers = NETWORKS[name][side]
    skipped = name.startswith("taew") and side == "encoder"
    return [(i - skipped, layer) for i, layer in enumerate(layers)]


def tensors(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under the names that the published files have, encoder. and decoder. before them."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}

    def put(key: str, *shape: int, bias: bool = False) -> None:
        noise = torch.randn(shape, generator=generator)
        gain = 0.7 if ".conv." in key else 1.4  # so that what goes in is still seen in what comes out
        found[f"{key}.weight"] = gain * noise / noise[0].numel() ** 0.5
        if bias:
            found[f"{key}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    for side in ("encoder", "decoder"):
        for i, (kind, ins, outs, n) in _rows(name, side):
            key = f"{side}.{i}"
            if kind in ("conv", "stride"):
                put(key, outs, ins, 3, 3, bias=True)
            elif kind in ("plain", "down"):
                put(key, outs, ins, 3, 3)
            elif kind in ("block", "memory"):
                put(f"{key}.conv.0", outs, ins * (2 if kind == "memory" else 1), 3, 3, bias=True)
                put(f"{key}.conv.2", outs, outs, 3, 3, bias=True)
                put(f"{key}.conv.4", outs, outs, 3, 3, bias=True)
            elif kind == "pool":
                put(f"{key}.conv", outs, ins * n, 1, 1)
            elif kind == "grow":
                put(f"{key}.conv", outs * n, ins, 1, 1)
    return found


def run(name: str, side: str, given: Mapping[str, Tensor], frames: list[Tensor]) -> list[Tensor]:
    """What one half makes of frames [N, C, H, W], one after another."""
    x = frames
    for i, (kind, _, _, n) in _rows(name, side):

        def convolve(y: Tensor, leaf: str = "", stride: int = 1, key: str = f"{side}.{i}") -> Tensor:
            weight, bias = given[f"{key}{leaf}.weight"], given.get(f"{key}{leaf}.bias")
            return F.conv2d(y, weight, bias, stride=stride, padding=weight.shape[2] // 2)

        def block(y: Tensor, seen: Tensor, convolve=convolve) -> Tensor:  # type: ignore[no-untyped-def]
            h = convolve(seen, ".conv.0").relu()
            return (convolve(convolve(h, ".conv.2").relu(), ".conv.4") + y).relu()

        if kind == "relu":
            x = [one.relu() for one in x]
        elif kind == "clamp":
            x = [3 * (one / 3).tanh() for one in x]
        elif kind in ("conv", "plain"):
            x = [convolve(one) for one in x]
        elif kind in ("down", "stride"):
            x = [convolve(one, stride=2) for one in x]
        elif kind == "up":
            x = [one.repeat_interleave(2, 2).repeat_interleave(2, 3) for one in x]
        elif kind == "shuffle":
            x = [F.pixel_shuffle(one, n) for one in x]
        elif kind == "unshuffle":
            x = [F.pixel_unshuffle(one, n) for one in x]
        elif kind == "block":
            x = [block(one, one) for one in x]
        elif kind == "memory":
            before = [torch.zeros_like(x[0]), *x[:-1]]
            x = [block(one, torch.cat([one, past], 1)) for one, past in zip(x, before, strict=True)]
        elif kind == "pool":
            x = [convolve(torch.cat(x[j : j + n], 1), ".conv") for j in range(0, len(x), n)]
        elif kind == "grow":
            x = [part for one in x for part in convolve(one, ".conv").chunk(n, 1)]
    return x


def encode(name: str, given: Mapping[str, Tensor], picture: Tensor) -> Tensor:
    """A picture in [0, 1] -> its latents: of a TAEHV, of a video that stands still for four frames."""
    (made,) = run(name, "encoder", given, [picture] * (4 if name.startswith("taew") else 1))
    return made


def decode(name: str, given: Mapping[str, Tensor], latents: Tensor) -> Tensor:
    """Latents -> a picture, about [0, 1]: of a TAEHV the last of the four frames that come of them."""
    made = run(name, "decoder", given, [latents])
    assert len(made) == (4 if name.startswith("taew") else 1)
    return made[-1]
