"""Morphs: one picture turning into the next, through their latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from calotype.edit.animation import WITH_ALPHA, animation, require_animation
from calotype.edit.paths import Kind, between, times
from calotype.edit.sheet import sheet as contact_sheet, thumbnail
from calotype.engine.executor import Progress
from calotype.engine.memory import spill_folder
from calotype.engine.run import share
from calotype.errors import UsageError
from calotype.evaluate.lpips import LPIPS
from calotype.evaluate.probe.bench import LEAST_LPIPS, rmse
from calotype.families import require_as_large
from calotype.latents import Latents
from calotype.pixels import crop, require_channels, to_channels, to_pil, write_picture
from calotype.temporaries import temporary_file
from calotype.vae import VAE


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a morph goes.

    Attributes:
        frames: from one picture to the next, both included.
        kind: see `paths.between`.
        easing: of every way from a picture to the next, see `paths.EASINGS`.
        closed: goes on from the last picture to the first.
        ping_pong: goes back the way it came.

    Raises:
        UsageError: there is no such easing, there are fewer than two frames, or both ways to go on at the end.
    """

    frames: int = 24
    kind: Kind = "slerp"
    easing: str = "linear"
    closed: bool = False
    ping_pong: bool = False

    def __post_init__(self) -> None:
        times(self.frames, self.easing)
        if self.closed and self.ping_pong:
            raise UsageError("A morph goes back the way it came or on to the first picture, not both.")

    def decoded(self, pictures: int) -> int:
        """How many different frames there are between so many pictures."""
        ways = pictures if self.closed else pictures - 1
        return ways * (self.frames - 1) + (not self.closed)

    def count(self, pictures: int) -> int:
        """How many frames are shown of a way between so many pictures.

        Those that return end one before the first frame, so that repeats join.
        """
        n = self.decoded(pictures)
        return 2 * n - 2 if self.ping_pong else n


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame.

    Attributes:
        pixels: [C, H, W] in [-1, 1].
        before, after: the decoded pictures that it lies between, [C, H, W] in [-1, 1].
        t: where between them, from 0 to 1.
    """

    pixels: Tensor
    before: Tensor
    after: Tensor
    t: float

    def cross_fade(self) -> Tensor:
        """The frame that a cross-fade of pixels has there: [C, H, W] in [-1, 1]."""
        return torch.lerp(self.before, self.after, self.t)


@dataclass
class Steps:
    """Distances from frame to frame.

    Attributes:
        morph: from each of its frames to the next.
        cross_fade: the same of a cross-fade of the pictures, to compare with.
    """

    morph: list[float] = field(default_factory=list)
    cross_fade: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Morph:
    """What was written.

    Attributes:
        frames: in the animation.
        width: of each frame, in pixels.
        height: of each frame, in pixels.
        steps: by measure (rmse in levels, lpips), where asked for.
    """

    frames: int
    width: int
    height: int
    steps: dict[str, Steps]


def morph(
    vae: VAE,
    pictures: Sequence[Latents],
    way: Way = Way(),
    *,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> Iterator[Frame]:
    """Frames from picture to picture, decoded one at a time; where the way is at a picture, it is its round trip.

    Args:
        pictures: two or more, of one size.
        way: `ping_pong` is not looked at: the way back has the same frames.
        memory, progress: as for `VAE.decode`.

    Raises:
        UsageError: fewer than two pictures, or of several sizes.
        LatentsError: if they are of another space; see `VAE.adopt`.
    """
    require_channels(vae.picture_channels)
    require_as_large(vae.config, "A morph")
    if len(pictures) < 2:
        raise UsageError(f"A morph leads from one picture to another, and {len(pictures)} was given.")
    padding, total = pictures[0].padding, way.decoded(len(pictures))
    for i, one in enumerate(pictures):
        if replace(one.padding, mode=padding.mode) != padding:  # how it was padded is no matter
            raise UsageError(
                f"Picture {i + 1} is {one.padding.width}x{one.padding.height} and the first "
                f"{padding.width}x{padding.height}; bring them to one size with --size (calotype.edit.fit)."
            )
    raws = [vae.own(one) for one in pictures]
    count = 0

    def decoded(z: Tensor) -> Tensor:
        nonlocal count
        pixels = vae.decode(z[None], memory=memory, progress=share(progress, count, total))
        count += 1
        return crop(pixels[0].cpu(), padding)

    first = before = decoded(raws[0])
    yield Frame(first, first, first, 0.0)
    for i, (a, b) in enumerate(pairwise([*raws, raws[0]] if way.closed else raws)):
        closing = i == len(raws) - 1
        after = first if closing else decoded(b)
        for t in times(way.frames, way.easing)[1:-1]:
            yield Frame(decoded(between(a, b, t, way.kind, vae.latent_format)), before, after, t)
        if not closing:
            yield Frame(after, before, after, 1.0)
        before = after


def write_morph(
    vae: VAE,
    pictures: Sequence[Latents],
    out: Path,
    way: Way = Way(),
    *,
    fps: float = 12.0,
    plays: int = 0,
    sheet: Path | None = None,
    measure: bool = False,
    lpips: LPIPS | None = None,
    text: Mapping[str, str] | None = None,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> Morph:
    """Writes a morph as an animation.

    Three frames are in memory at a time. With `ping_pong` the others wait in a temporary file, of 3 bytes a pixel (4
    with alpha), that has no name.

    Args:
        out: .gif, .png or .apng, .webp or .mp4; see `animation`.
        fps: frames a second.
        plays: how often the animation is played; 0 is without end.
        sheet: where to write a contact sheet of the frames.
        measure: how far frames lie from one another, beside a cross-fade of the decoded pictures at the same times.
        lpips: measures too, where given.
        text: of the sheet, as for `pixels.write_picture`.
        memory, progress: as for `VAE.decode`.

    Raises:
        UsageError: see `morph` and `animation`; and for pictures that are too small for LPIPS.
        PictureError: if the disk or the encoder refuses it.
    """
    frames = morph(vae, pictures, way, memory=memory, progress=progress)
    size = pictures[0].padding.width, pictures[0].padding.height
    return write_frames(
        frames, out, way, len(pictures), size,
        alpha=vae.picture_channels == 4, fps=fps, plays=plays, sheet=sheet, measure=measure, lpips=lpips, text=text,
    )  # fmt: skip


def write_frames(
    frames: Iterator[Frame],
    out: Path,
    way: Way,
    stops: int,
    size: tuple[int, int],
    *,
    alpha: bool = False,
    fps: float = 12.0,
    plays: int = 0,
    sheet: Path | None = None,
    measure: bool = False,
    lpips: LPIPS | None = None,
    text: Mapping[str, str] | None = None,
) -> Morph:
    """Writes the frames of a way between so many stops, of a (width, height); the rest is as `write_morph` has it.

    Frames with alpha are written with it where the format has it (`animation.WITH_ALPHA`), and else over white. They
    are measured, and shown on the sheet, over white.

    Raises:
        UsageError: LPIPS is to be measured of frames that are too small for it.
    """
    width, height = size
    require_animation(out, fps, plays, size)
    if measure and lpips and min(size) < LEAST_LPIPS:
        raise UsageError(f"LPIPS needs pictures of at least {LEAST_LPIPS} pixels a side, not {width}x{height}.")
    count = way.count(stops)
    channels = 4 if alpha and out.suffix.lower() in WITH_ALPHA else 3
    steps = {key: Steps() for key in (("rmse", "lpips") if lpips else ("rmse",)) if measure}
    small: list[Image.Image] = []
    first: tuple[Tensor, Tensor] | None = None
    last: tuple[Tensor, Tensor] | None = None
    with (
        animation(out, size=size, frames=count, fps=fps, plays=plays, alpha=channels == 4) as add,
        temporary_file(spill_folder()) as spool,
    ):
        for frame in frames:
            image = to_pil(to_channels(frame.pixels, channels))
            add(image)
            if way.ping_pong:
                spool.write(image.tobytes())
            if sheet:
                small.append(thumbnail(image))
            if measure:
                now = to_channels(frame.pixels, 3), to_channels(frame.cross_fade(), 3)
                if last is not None:
                    _measured(steps, last, now, lpips)
                last = now
                first = first or now
        if way.closed and first and last:
            _measured(steps, last, first, lpips)
        if way.ping_pong:
            for i in range(way.decoded(stops) - 2, 0, -1):
                spool.seek(i * channels * width * height)
                levels = np.frombuffer(spool.read(channels * width * height), dtype=np.uint8)
                add(Image.fromarray(levels.reshape(height, width, channels)))
    if sheet:
        write_picture(sheet, contact_sheet(small), text=text)
    return Morph(frames=count, width=width, height=height, steps=steps)


def _measured(
    steps: dict[str, Steps], last: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor], lpips: LPIPS | None
) -> None:
    """Adds one step of the morph and of the cross-fade."""
    for kind, a, b in zip(("morph", "cross_fade"), last, now, strict=True):
        found = {"rmse": rmse(a, b)}
        if lpips is not None:
            device = lpips.shift.device
            with torch.no_grad():
                found["lpips"] = float(lpips(a[None].to(device), b[None].to(device)))
        for key, value in found.items():
            getattr(steps[key], kind).append(value)
