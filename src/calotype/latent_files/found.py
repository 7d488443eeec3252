"""Latents in a file, as its reader found them, and what the user says of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, overload

import torch
from torch import Tensor

from calotype.damage import damage, quoted
from calotype.errors import LatentsError, UsageError, WeightsError
from calotype.latent_files.models import Stored, Unread
from calotype.latent_files.spaces import called, factor, fitting
from calotype.latents import MODEL, LatentFormat, Latents, Space, is_model
from calotype.pixels import Padding


class CacheError(LatentsError):
    """Latents of a program that is known, and which can't be decoded."""


class Item(NamedTuple):
    """A tensor with latents in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a file holds, and what is told of it.

    Attributes:
        program: that wrote it; "" where nothing tells.
        items: its latents.
        model: what it says of the model, or of the kind of cache.
        format, space: of the latents; None: nothing tells.
        drawn: "sample" or "mode" of the posterior; "" where nothing tells.
        batches: whether a tensor may be of several pictures: four dimensions are [N, C, h, w], and not one frame of a
            video, [C, 1, h, w]; None: the channels tell.
        left_out: what else is in the file, and not read.
    """

    program: str
    items: Sequence[Item]
    model: str = ""
    format: str | None = None
    space: Space | None = None
    drawn: str = ""
    batches: bool | None = None
    left_out: tuple[str, ...] = ()


def told(stored: Stored | Unread | None, program: str, model: str) -> tuple[str | None, Space | None, str]:
    """Format, space and what was drawn, as a table of models says.

    Raises:
        CacheError: it says that they can't be decoded.
    """
    if isinstance(stored, Unread):
        raise CacheError(
            f"these were cached by {program} for {quoted(model, 40)}, and can't be decoded: they are {stored.why}."
        )
    return (stored.format, stored.space, stored.drawn) if stored else (None, None, "")


@dataclass(frozen=True, eq=False)
class LatentFile(Sequence[Latents]):
    """The latents of one file, each read when it is asked for.

    Attributes:
        path: of the file.
        program: that wrote it: "calotype", "ComfyUI", ...; "" where nothing tells.
        model: what the file says of the model they are for.
        space: raw or model; None: not known.
        format: their latent format; None: not known.
        drawn: "sample" or "mode" of the posterior; "" where nothing tells.
        dtype: that they are stored in.
        left_out: what else is in the file, and is not read.
        question: what has to be said before they can be read; "" where all is known.
    """

    path: Path
    program: str
    model: str
    space: Space | None
    format: LatentFormat | None
    drawn: str
    dtype: str
    left_out: tuple[str, ...]
    question: str
    shape: tuple[int, ...]  # of the first
    _counts: Sequence[int] | int = field(repr=False)  # of latents, up to each item; a number: one an item
    _read: Callable[[int, int], Latents] = field(repr=False)  # (item, latent within it)

    def __len__(self) -> int:
        if isinstance(self._counts, int):
            return self._counts
        return self._counts[-1] if self._counts else 0

    @overload
    def __getitem__(self, index: int) -> Latents: ...
    @overload
    def __getitem__(self, index: slice) -> list[Latents]: ...
    def __getitem__(self, index: int | slice) -> Latents | list[Latents]:
        """One of them.

        Raises:
            UsageError: nothing tells in which space they are (`question` says what to say).
            LatentsError: they are damaged.
            IndexError: there is none of this number.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if self.question:
            raise UsageError(self.question)
        if isinstance(self._counts, int):
            return self._read(index, 0)
        item = bisect_right(self._counts, index)
        return self._read(item, index - (self._counts[item - 1] if item else 0))


def settle(found: Found, path: Path, latent_format: str | None, space: Space | None) -> LatentFile:
    """What a file holds, with what the user says where the file does not.

    Raises:
        UsageError: the file says otherwise.
        LatentsError: it holds no latents of pictures.
    """
    if not found.items:
        raise LatentsError(f"{path}: there are no latents in it.")
    whose = f"latents of {found.program}" if found.program else "bare latents"
    require_agreement(path, whose, found.model, (latent_format, found.format), (space, found.space))
    space, name = found.space or space, found.format or latent_format
    with named(path):
        first = found.items[0]
    if not 3 <= len(first.shape) <= 5 or 0 in first.shape:
        raise LatentsError(
            f"{path}: latents are [C, h, w], [N, C, h, w] or [N, C, 1, h, w], and {quoted(first.name, 60)} is "
            f"{list(first.shape)}."
        )
    channels = _channels(first.shape, found.batches)
    format_ = None if name is None else called(name, channels)
    frames = _frames(first.shape, found.batches)
    if frames != 1 and (format_ is None or channels in (format_.channels, format_.channels * format_.patch**2)):
        raise CacheError(
            f"{path}: these {whose} are of {frames} frames of a video, {list(first.shape)}, and pictures are decoded; "
            f"give one frame after another."
        )
    # raw latents of a tiny autoencoder are model latents: either is right, but for what is packed
    if format_ is not None and space is None and format_.name != "none" and is_model(format_):
        space = "raw" if channels == format_.channels else "model"
    wanted = (
        None if format_ is None or space is None else format_.channels * (format_.patch**2 if space == "model" else 1)
    )
    last: tuple[int, Tensor] | None = None

    def read(i: int, within: int) -> Latents:
        nonlocal last
        assert format_ is not None and space is not None
        with named(path):
            item = found.items[i]
            if not _is_batch(item.shape, found.batches, wanted):
                return _latents(item.read(), format_, space)
            if last is None or last[0] != i:  # kept for the others in it
                last = i, item.read()
            return _latents(last[1][within], format_, space)

    counts: Sequence[int] | int
    if found.batches is False:
        counts = len(found.items)
    else:
        counts = list(
            accumulate(_count(item.shape, _is_batch(item.shape, found.batches, wanted)) for item in found.items)
        )
    return LatentFile(
        path=path, program=found.program, model=found.model, space=space, format=format_, drawn=found.drawn,
        dtype=first.dtype, left_out=found.left_out, question=_question(path, whose, found, name, space, channels),
        shape=_single(first.shape, _is_batch(first.shape, found.batches, wanted)), _counts=counts, _read=read,
    )  # fmt: skip


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What a reader raises over a file becomes a LatentsError that names it, or stays a CacheError."""
    try:
        with damage(LatentsError, "these latents are truncated or damaged ({why}); make them again."):
            yield
    except (LatentsError, WeightsError) as error:
        kind = CacheError if isinstance(error, CacheError) else LatentsError
        raise kind(f"{path}: {str(error).rstrip('.')}.") from None
    except PermissionError:
        raise LatentsError(f"{path}: this file may not be read; check its permissions.") from None


def require_agreement(
    path: Path, whose: str, model: str, formats: tuple[str | None, str | None], spaces: tuple[str | None, str | None]
) -> None:
    """Checks that the user says nothing else of a file's latents than the file.

    Args:
        whose, model: what they are called, and what the file says of their model.
        formats, spaces: what the user says, and what the file does; None: nothing.

    Raises:
        UsageError: if not.
    """
    format_ = None if formats[0] is None else formats[0].removeprefix(MODEL)
    for option, argument, given, says in (
        ("--space", "space", *spaces), ("--latent-format", "latent_format", format_, formats[1]),
    ):  # fmt: skip
        if given is not None and says is not None and given != says:
            raise UsageError(
                f"{path}: these {whose} are {says}{f', for {quoted(model, 40)}' if model else ''}, and not {given}; "
                f"leave out {option} ({argument}=)."
            )


def _question(path: Path, whose: str, found: Found, name: str | None, space: Space | None, channels: int) -> str:
    """What has to be said of latents; "" if nothing."""
    asked = []
    if name is None:
        fits = [*fitting(channels, space), "none"]
        asked.append(f"of which space they are with --latent-format {'|'.join(fits)} (latent_format=)")
    if space is None:
        asked.append("whether they are scaled for a diffusion model with --space raw|model (space=)")
    if not asked:
        return ""
    model = f" ({quoted(found.model, 40)})" if found.model else ""
    said = ", and ".join(asked)
    return f"{path}: nothing tells all of these {whose}{model}, which have {channels} channels; say {said}."


def _channels(shape: tuple[int, ...], batches: bool | None) -> int:
    return shape[0] if len(shape) == 3 or _is_video(shape, batches) else shape[1]


def _is_video(shape: tuple[int, ...], batches: bool | None) -> bool:
    """Whether four dimensions are those of frames, [C, F, h, w]; no VAE has one channel."""
    if len(shape) != 4:
        return False
    if batches is not None:
        return not batches
    return not fitting(shape[1], None) and (shape[1] == 1 or bool(fitting(shape[0], None)))


def _frames(shape: tuple[int, ...], batches: bool | None) -> int:
    return shape[2] if len(shape) == 5 else shape[1] if _is_video(shape, batches) else 1


def _is_batch(shape: tuple[int, ...], batches: bool | None, channels: int | None) -> bool:
    """Whether the first dimension counts pictures."""
    if len(shape) != 4 or batches is not None:
        return len(shape) > 3 and batches is not False
    if channels is None:
        return not _is_video(shape, batches)
    return shape[1] == channels or shape[0] != channels


def _count(shape: tuple[int, ...], batch: bool) -> int:
    return shape[0] if batch else 1


def _single(shape: tuple[int, ...], batch: bool) -> tuple[int, ...]:
    return shape[1:] if batch else shape


def _latents(one: Tensor, format_: LatentFormat, space: Space) -> Latents:
    """One picture's latents; halves are widened, which changes no number."""
    if one.dtype in (torch.float16, torch.bfloat16):
        one = one.float()
    one = one.clone()  # what it is part of may be a mapped file
    f = factor(format_.name) * (format_.patch if space == "model" else 1)
    height, width = (max(f * side, 1) for side in one.shape[-2:])
    return Latents(tensor=one, space=space, format=format_, vae="", padding=Padding(height, width, 0, 0, "replicate"))
