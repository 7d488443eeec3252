"""One picture through one VAE, as a protocol says, and everything that is measured of it."""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol as Interface

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from calotype.errors import CalotypeError
from calotype.evaluate.alpha import APART, apart
from calotype.evaluate.lpips import LEAST, LPIPS
from calotype.evaluate.metrics import ms_ssim, psnr, ssim
from calotype.evaluate.protocol import Protocol
from calotype.evaluate.similarity import ssim_reflect, ssim_uniform
from calotype.evaluate.tone import TONE, tone
from calotype.latents import carried
from calotype.pixels import pad, seen, to_channels, to_uint8
from calotype.posterior import DiagonalGaussian, Posterior
from calotype.vae import VAE, picture_generator

Array = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""
TOGETHER = 2**20
"""Pixels of a picture at most that LPIPS looks at together with what became of it: faster, in twice the memory."""
FAILURES = (CalotypeError, RuntimeError, MemoryError)
"""What ends one picture's turn, and not the others': torch's errors, of a GPU's memory too, are RuntimeErrors."""


@dataclass(frozen=True)
class Metric:
    """A figure of one picture.

    Attributes:
        higher: is better; of one that has an ideal, neither more nor less than that is.
        least: pixels a side.
        absent: why VAEs or pictures have none, where that may be for another reason than their size.
        ideal: what it is where nothing is lost, if both more and less of it is worse.
    """

    key: str
    title: str
    unit: str
    higher: bool
    least: int
    absent: str = ""
    ideal: float | None = None

    def badness(self, value: float) -> float:
        """More is worse."""
        if self.ideal is not None:
            return abs(value - self.ideal)
        return -value if self.higher else value


METRICS = {
    metric.key: metric
    for metric in (
        Metric("psnr", "PSNR", "dB", True, 1),
        Metric("ssim", "SSIM", "", True, 11),
        Metric("ms_ssim", "MS-SSIM", "", True, 161),
        Metric("lpips_vgg", "LPIPS (VGG)", "", False, LEAST["vgg"]),
        Metric("lpips_alex", "LPIPS (AlexNet)", "", False, LEAST["alex"]),
        Metric("colour_psnr", "PSNR of colours", "dB", True, 1, absent="without alpha or anything to see"),
        Metric("alpha_psnr", "PSNR of alpha", "dB", True, 1, absent="without alpha"),
        Metric("alpha_mae", "Error of alpha, mean", "of 255", False, 1, absent="without alpha"),
        Metric("alpha_max", "Error of alpha, largest", "of 255", False, 1, absent="without alpha"),
    )
}
"""Those that are measured where nobody names some."""

TONES = {
    metric.key: metric
    for metric in (
        *(
            Metric(f"bias_{name}", f"Bias of {name}", "of 255", False, 1, absent="without anything to see", ideal=0.0)
            for name in ("red", "green", "blue")
        ),
        Metric("contrast", "Contrast", "", False, 1, absent="of one colour", ideal=1.0),
        Metric("gradient", "Gradients", "", False, 1, absent="of one colour", ideal=1.0),
    )
}
"""What comes back with more of or less; measured of several decoders, too."""

ALL_METRICS = METRICS | TONES


class Features(Interface):
    """A network that distances between sets of pictures are over; see `features.load_extractor`."""

    name: str
    width: int
    weights: str
    resize: str

    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> [N, width]."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What measures.

    Attributes:
        metrics: keys of `ALL_METRICS`; those of `alpha.APART` are of VAEs that have them.
        lpips: networks by their metric's key.
        extractors: by their names.
        sha256: of the weights of all these networks, by the same keys and names.
        distances: those over extractors' features, of `sets.DISTANCES`.
        memory: for the VAE; see `VAE.encode`.
    """

    metrics: tuple[str, ...]
    lpips: Mapping[str, LPIPS]
    extractors: Mapping[str, Features]
    sha256: Mapping[str, str] = field(default_factory=dict)
    distances: tuple[str, ...] = ("frechet", "kernel")
    memory: int | str | None = None

    def kept(self, extractor: str) -> str:
        """Under what an extractor's features are kept: those of other weights are other features."""
        return f"{extractor} {self.sha256.get(extractor, '')}".strip()


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What one picture gave.

    Attributes:
        row: figures by key; or the sentence why there are none, as `error`.
        features: [width] float32 of each extractor (by `Tools.kept`), of what was decoded.
        levels: how the picture looks as prepared and as decoded, uint8 [3, H, W], RGBA over white; None where there are
            none, or not any more.
        latents: raw ones [C, h, w] that were decoded, likewise.
    """

    row: dict[str, Any]
    features: dict[str, NDArray[np.float32]]
    levels: tuple[Tensor, Tensor] | None = None
    latents: Tensor | None = None


class Original:
    """A picture as prepared, and what is known of it whatever it is compared with.

    Args:
        pixels: [3, H, W] in [-1, 1], or RGBA [4, H, W].
        channels: of what it is compared in: 1 (grey), 3 (RGB) or, where it has alpha, 4 (RGBA); see `pixels.seen`.
        keep: LPIPS's features are computed once and kept, about 500 bytes a pixel; else each time anew.

    Attributes:
        compared: its pixels in so many channels.
        planes: how they look, uint8 [C, H, W]; see `pixels.seen`.
    """

    def __init__(self, pixels: Tensor, channels: int = 3, *, keep: bool = False) -> None:
        self.pixels, self.channels, self.keep = pixels, channels, keep
        self.compared = to_channels(pixels, channels)
        self.planes = seen(to_uint8(self.compared))
        self._kept: dict[str, list[Tensor]] = {}
        self._encoded: tuple[VAE, Encoded] | None = None

    @property
    def levels(self) -> Tensor:
        """How it looks in what it is compared in: uint8 [3, H, W], RGBA over white."""
        return _rgb(self.planes)

    def lpips(self, key: str, pixels: Tensor, tools: Tools, protocol: Protocol) -> float:
        """The distance of what was decoded, [C, H, W] in [-1, 1] and beyond, by LPIPS's network with this key.

        Grey is repeated, and of RGBA it is the mean of those over white and over black.
        """
        network = tools.lpips[key]

        def stages(*pictures: Tensor) -> list[Tensor]:
            values = torch.cat([_triples(one if protocol.on_floats else _rounded(one)) for one in pictures])
            return network.stages(values.to(network.shift.device))

        if not self.keep and pixels[0].numel() <= TOGETHER:
            both = stages(self.compared, pixels)
            n = len(both[0]) // 2
            return float(network.distance([one[:n] for one in both], [one[n:] for one in both]).mean())
        mine = self._kept.get(key) or stages(self.compared)
        if self.keep:
            self._kept[key] = mine
        return float(network.distance(mine, stages(pixels)).mean())

    def encoded(self, vae: VAE, protocol: Protocol, tools: Tools, *, keep: bool) -> Encoded:
        """What a VAE's encoder makes of it; it is kept, and computed once, where several decoders of it follow."""
        if self._encoded is not None and self._encoded[0] is vae:
            return self._encoded[1]
        found = encode(vae, to_channels(self.pixels, vae.picture_channels), protocol, tools)
        if keep:
            self._encoded = vae, found
        return found

    def part(self, box: Box) -> Original:
        """What lies in a box."""
        return Original(_part(self.pixels, box), self.channels)


def _triples(pixels: Tensor) -> Tensor:
    """Pixels [C, H, W] as networks for RGB take them: [N, 3, H, W]; N is 2 for RGBA."""
    values = seen(pixels)
    return values.expand(3, -1, -1)[None] if len(values) == 1 else values.reshape(-1, 3, *values.shape[1:])


def looks(pixels: Tensor) -> Tensor:
    """How pixels [C, H, W] look: uint8 [3, H, W], RGBA over white."""
    return _rgb(seen(to_uint8(pixels)))


def _rgb(planes: Tensor) -> Tensor:
    return planes[:3].expand(3, -1, -1)


def _rounded(pixels: Tensor) -> Tensor:
    """Pixels as their uint8 levels have them."""
    return to_uint8(pixels).float() / 127.5 - 1


def pixels_sha256(picture: Array) -> str:
    """A hash of a picture's pixels, whatever file they are in."""
    return hashlib.sha256(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()


def place(device: torch.device, memory: int | str | None) -> str:
    """What decides how fast a VAE is here, in words: the device, its threads, and how much memory it may take."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        found = f"cpu ({_processor()}), {threads} thread{'' if threads == 1 else 's'}"
    elif device.type == "cuda":
        found = f"cuda ({torch.cuda.get_device_name(device)})"
    else:
        found = device.type
    return found if memory is None else f"{found}, at most {memory}{'' if isinstance(memory, str) else ' bytes'}"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def reason(error: BaseException) -> str:
    """Why a picture failed, in one sentence."""
    if isinstance(error, CalotypeError):
        return str(error)
    first = str(error).strip().split("\n")[0].rstrip(".")
    return f"It failed with {type(error).__name__}{': ' if first else ''}{first}."


@torch.no_grad()
def reference(original: Original, tools: Tools) -> Taken:
    """A picture's own features, as prepared. Where an extractor fails, the row says why."""
    height, width = original.pixels.shape[1:]
    try:
        return Taken(row={"height": height, "width": width}, features=_features(original.levels, tools))
    except FAILURES as error:
        return Taken(row={"error": reason(error)}, features={})


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """What an encoder made of a picture.

    Attributes:
        latents: raw ones [1, C, h, w], which are decoded.
        seconds: that it took.
    """

    posterior: Posterior
    latents: Tensor
    seconds: float


def encode(vae: VAE, x: Tensor, protocol: Protocol, tools: Tools) -> Encoded:
    """A prepared picture [P, H, W] -> its posterior, and what of it is decoded."""
    begin = time.perf_counter()
    posterior = vae.encode(x[None], memory=tools.memory)
    if protocol.latent == "mode":
        z = posterior.mode()
    else:
        z = posterior.sample([picture_generator(protocol.seed, pad(x, vae.factor)[0])])
    return Encoded(posterior=posterior, latents=z, seconds=time.perf_counter() - begin)


@torch.no_grad()
def measure(
    vae: VAE,
    original: Original,
    protocol: Protocol,
    tools: Tools,
    boxes: Mapping[str, Sequence[Box]],
    encoder: VAE | None = None,
) -> Taken:
    """Encodes and decodes a picture and compares. Where the VAE, a metric or an extractor fails, the row says why.

    Args:
        vae: that decodes, and encodes too where there is no encoder.
        boxes: parts of the prepared picture that are also compared alone, by the name of their subset.
        encoder: the VAE whose latents are decoded; it encodes a picture once for all its decoders.
    """
    try:
        return _measured(vae, original, protocol, tools, boxes, encoder)
    except FAILURES as error:
        return Taken(row={"error": reason(error)}, features={})


def _measured(
    vae: VAE,
    original: Original,
    protocol: Protocol,
    tools: Tools,
    boxes: Mapping[str, Sequence[Box]],
    encoder: VAE | None,
) -> Taken:
    encoded = original.encoded(encoder or vae, protocol, tools, keep=encoder is not None)
    begin = time.perf_counter()
    y = decoded(vae, original, encoded.latents, tools, encoder)
    end = time.perf_counter()
    rgba = to_uint8(y) if len(y) == 4 else None
    if len(y) != original.channels:  # as a file of it would be brought to them
        y = to_channels(y.clamp(-1, 1), original.channels)
    height, width = original.pixels.shape[1:]
    row: dict[str, Any] = {
        "height": height,
        "width": width,
        **_figures(original, y, rgba, protocol, tools),
        "numbers_per_pixel": encoded.latents.numel() / (height * width),
        "kl_bits_per_pixel": _rate(encoded.posterior, original.pixels),
        "encode_seconds": encoded.seconds,
        "decode_seconds": end - begin,
        "where": place(vae.device, tools.memory),
        "latents": _moments(encoded.posterior.mode()[0]),
    }
    if boxes:
        row["subsets"] = {
            subset: [
                {
                    "box": list(box),
                    **_figures(
                        original.part(box), _part(y, box), None if rgba is None else _part(rgba, box), protocol, tools
                    ),
                }
                for box in parts
            ]
            for subset, parts in boxes.items()
        }
    after = looks(y)
    levels, latents = (original.levels, after), encoded.latents[0].float().cpu()
    return Taken(row=row, features=_features(after, tools), levels=levels, latents=latents)


def decoded(vae: VAE, original: Original, latents: Tensor, tools: Tools, encoder: VAE | None = None) -> Tensor:
    """Raw latents [1, C, h, w] of a picture -> [P, H, W] of its size, about [-1, 1], not clamped.

    Those of another VAE's encoder pass through model space where formats differ (`exchange.carried`). Pictures that
    come out larger than they went in are clamped, as a file of them would be, and each n x n pixels averaged.
    """
    n = 1 if encoder is None else vae.enlarges  # of others both are as large
    height, width = (n * side for side in original.pixels.shape[1:])
    theirs = encoder.loaded.format if encoder is not None and encoder is not vae else None
    if theirs is not None and vae.loaded.format is not None:
        latents = carried(latents, theirs, vae.loaded.format)
    y = vae.decode(latents, (height, width), clamp=False, memory=tools.memory)[0].float().cpu()
    return y if n == 1 else averaged(y.clamp(-1, 1), n)


def averaged(pixels: Tensor, n: int) -> Tensor:
    """The mean of each n x n pixels [P, H, W] in [-1, 1]; of RGBA, colours count as much as they are opaque."""
    if len(pixels) != 4:
        return avg_pool2d(pixels, n)
    opacity = (pixels[3:] + 1) / 2
    mean = avg_pool2d(opacity, n)
    colours = avg_pool2d(pixels[:3] * opacity, n) / mean.clamp(min=1e-6)
    plain = avg_pool2d(pixels[:3], n)  # of what nothing can be seen of
    return torch.cat([torch.where(mean > 0, colours, plain), 2 * mean - 1])


def _part(pixels: Tensor, box: Box) -> Tensor:
    left, top, right, bottom = box
    return pixels[:, top:bottom, left:right]


def _figures(original: Original, y: Tensor, rgba: Tensor | None, protocol: Protocol, tools: Tools) -> dict[str, float]:
    """The metrics that a picture [C, H, W], or a part of one, is large enough for.

    Args:
        rgba: the same as it was made, levels [4, H, W], where it has alpha.
    """
    before, after = original.planes, seen(to_uint8(y))
    found: dict[str, float] = {}
    for key in tools.metrics:
        if key in APART or key in TONE or min(y.shape[1:]) < ALL_METRICS[key].least:
            continue
        if key == "psnr":
            found[key] = psnr(before, after)
        elif key == "ssim":
            found[key] = _ssim(original, y, before, after, protocol)
        elif key == "ms_ssim":
            found[key] = ms_ssim(before, after)
        else:
            found[key] = original.lpips(key, y, tools, protocol)
    told: dict[str, float | None] = {}
    both = None if rgba is None else (to_uint8(to_channels(original.pixels, 4)), rgba)
    if both is not None and any(key in APART for key in tools.metrics):
        told |= vars(apart(*both))
    if any(key in TONE for key in tools.metrics):
        told |= vars(tone(original.levels, _rgb(after), both if original.channels == 4 else None))
    return found | {key: value for key in tools.metrics if (value := told.get(key)) is not None}


def _ssim(original: Original, y: Tensor, before: Tensor, after: Tensor, protocol: Protocol) -> float:
    if protocol.ssim == "gaussian":
        return ssim(before, after)
    similarity = ssim_reflect if protocol.ssim == "reflect" else ssim_uniform
    if protocol.on_floats:
        floats = [seen(one.clamp(-1, 1)) for one in (original.compared, y)]
        return similarity(floats[0], floats[1], 2.0 * protocol.ssim_range)
    return similarity(before.float() / 255, after.float() / 255, protocol.ssim_range)


def _rate(posterior: Posterior, x: Tensor) -> float | None:
    """KL(posterior || N(0, I)) in bits a pixel."""
    if not isinstance(posterior, DiagonalGaussian):
        return None
    return float(posterior.kl()) / math.log(2) / (x.shape[1] * x.shape[2])


def _moments(z: Tensor) -> dict[str, Any]:
    """Count, and mean and sum of squared deviations of each channel, in float64."""
    values = z.double().cpu().flatten(1)
    mean = values.mean(1)
    return {
        "count": values.shape[1],
        "mean": mean.tolist(),
        "m2": (values - mean[:, None]).square().sum(1).tolist(),
    }


def _features(picture: Tensor, tools: Tools) -> dict[str, NDArray[np.float32]]:
    return {
        tools.kept(name): extractor(picture[None])[0].float().cpu().numpy()
        for name, extractor in tools.extractors.items()
    }
