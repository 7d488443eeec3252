"""Tensors in, tensors out: what a VAE computes, checked and in bounded memory."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal

import torch
from torch import Tensor

from calotype.engine.executor import Progress
from calotype.engine.run import Engine, EngineName, rows_of
from calotype.errors import CalotypeWarning, LatentsError, MemoryLimitError, NonFiniteError, UsageError, WeightsError
from calotype.families import family_of
from calotype.families.face import NetworkConfig
from calotype.families.network import Network
from calotype.gradients import differentiated, require_none_lost
from calotype.latents import LatentFormat
from calotype.pixels import (
    pad,
)
from calotype.posterior import DiagonalGaussian, Point, Posterior
from calotype.steps import Direction
from calotype.vae.encoding import encoding_network, written
from calotype.weights.load import Loaded, require_format
from calotype.weights.mapped import dtype_name


def picture_generator(seed: int, pixels: Tensor | Iterable[Tensor]) -> torch.Generator:
    """The generator that draws one picture's latents: the same whenever the seed and the padded pixels are the same.

    Args:
        pixels: [C, H, W], or its parts: channel after channel, each from the top down.
    """
    digest = hashlib.sha256(str(seed).encode())
    for part in [pixels] if isinstance(pixels, Tensor) else pixels:
        digest.update(part.detach().cpu().contiguous().numpy().data)
    return torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "little") >> 1)


def posterior_of(config: NetworkConfig, moments: Tensor) -> Posterior:
    """The posterior that a network's encoder means by its moments, [N, 2C, h, w], or latents [N, C, h, w] (TAESD)."""
    return DiagonalGaussian(moments) if config.has_posterior else Point(moments)


@contextmanager
def enough_memory(shape: Sequence[int]) -> Iterator[None]:
    """Turns what torch raises when memory runs out into one sentence.

    Args:
        shape: of what is computed, for the sentence.

    Raises:
        MemoryLimitError: if it did.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
            raise MemoryLimitError(
                f"There is not enough memory for {' x '.join(map(str, shape))}; give --memory (memory=), a smaller "
                f"picture, a narrower --dtype, or --device cpu."
            ) from None
        raise


class Coder:
    """What a VAE does with tensors; see `VAE`, which people get, and what it says of attributes."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        name: str = "",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        encode_dtype: torch.dtype | None = None,
        engine: EngineName = "auto",
    ) -> None:
        self.loaded = loaded  # where the weights came from
        self.name = name
        self.sha256 = loaded.sha256
        self.device = torch.device(device)  # on which it computes
        self.dtype = dtype
        # a narrower copy computes, and the weights as stored stay for what overflows in it
        narrows = dtype != torch.float32 and any(weight.dtype != dtype for weight in loaded.module.parameters())
        own = copy.deepcopy(loaded.module) if narrows else loaded.module
        self.module: Network = own.to(device=self.device, dtype=dtype)
        self.engine = Engine(self.module, self.device, dtype, engine)  # runs decodes; its plans say what they take
        self.encode_dtype = encode_dtype or torch.float32
        self._unsaid = encode_dtype is None and dtype != torch.float32
        self._encoding: tuple[Engine, tuple[int, ...]] | None = None
        self._as_loaded = written(self.module)
        self._wide: Engine | None = None
        self._said: set[str] = set()  # notices, each of which is said once

    @property
    def config(self) -> NetworkConfig:
        """The network's architecture."""
        return self.module.config

    def engine_of(self, direction: Direction) -> Engine:
        """What computes in a direction: `engine`, but for an encode in another dtype than `dtype`.

        The weights of that are copied at its first use, those of the encoder alone, and anew once they were changed.
        """
        if self._wide is not None:
            return self._wide
        if direction == "decode" or self.encode_dtype == self.dtype:
            return self.engine
        now = written(self.module)
        if self._encoding is None or self._encoding[1] != now or self._encoding[0].dtype != self.encode_dtype:
            # as they were loaded they may have more digits than `module` has of them
            source = self.loaded.module if now == self._as_loaded else self.module
            network = encoding_network(source, self.device, self.encode_dtype)
            self._encoding = Engine(network, self.device, self.encode_dtype, self.engine.asked), now
        return self._encoding[0]

    @property
    def weights_bytes(self) -> int:
        """Memory of the weights that it computes with so far, on its device."""
        networks = [self.module, *((self._encoding[0].module,) if self._encoding else ())]
        weights = {id(weight): weight for network in networks for weight in network.parameters()}
        return sum(weight.numel() * weight.element_size() for weight in weights.values())

    @property
    def factor(self) -> int:
        """Spatial compression f: a latent stands for f x f pixels."""
        return self.config.factor

    @property
    def enlarges(self) -> int:
        """How many times as large along each side pictures come out as they went in: 1, but of upscaling decoders."""
        return family_of(self.config).enlarges(self.config)

    @property
    def latent_channels(self) -> int:
        """Channels of raw latents."""
        return self.config.z_channels

    @property
    def picture_channels(self) -> int:
        """P, channels of the pictures: 1 is grey, 3 RGB, 4 RGBA (whose alpha is in [-1, 1] too)."""
        return self.config.picture_channels

    @property
    def latent_format(self) -> LatentFormat:
        """How raw and model latents differ.

        Raises:
            LatentFormatError: if the weights do not say; give `latent_format` to `load`.
        """
        return require_format(self.loaded)

    def encode(self, pixels: Tensor, *, memory: int | str | None = None, progress: Progress | None = None) -> Posterior:
        """Pixels -> the posterior over raw latents, whose `mode()` and `sample()` are float32.

        The result is that of the whole picture, in whatever memory: nothing is cut into tiles. It has no gradients;
        `module.encode` does.

        Args:
            pixels: [N, P, H, W], float, in [-1, 1]; or [N, P, 1, H, W], of a video of one frame. Sizes that are no
                multiple of f are padded at the bottom and right (reflected where large enough, else replicated).
            memory: at most so much beside the weights and what goes in and out: bytes, or words like "1GB". None: what
                is fast, and free.
            progress: called with the part of the work that is done, from 0 to 1; may raise to stop.

        Raises:
            UsageError: for another shape, type or range, and where a gradient would be lost.
            WeightsError: if only a decoder was loaded.
            MemoryLimitError: if it can't be done in so much memory; the message says in how much it can.
            NonFiniteError: if the result is not finite in float32 either.
        """
        self.require("encoder")
        channels = self.picture_channels
        pixels = _one_frame("encode", "pixels", pixels)
        if pixels.ndim != 4 or pixels.shape[1] != channels or 0 in pixels.shape or not pixels.is_floating_point():
            raise UsageError(
                f"encode takes float pixels [N, {channels}, H, W] in [-1, 1], not {pixels.dtype} "
                f"{list(pixels.shape)}; calotype.pixels.from_array makes them from uint8."
            )
        require_none_lost("encode", pixels, self.module)
        if not torch.isfinite(pixels).all():
            raise NonFiniteError("The pixels to encode hold NaN or infinity.")
        if pixels.abs().max() > 1.5:
            raise UsageError(
                f"Pixels must be in [-1, 1], and these reach {pixels.abs().max().item():.4g}; "
                f"calotype.pixels.from_array maps 0..255 to it."
            )
        self._say_encode_dtype(stacklevel=3)
        with enough_memory(pixels.shape), torch.no_grad():
            padded, _ = pad(pixels, self.factor)
            return posterior_of(self.config, self._run("encode", padded, memory, progress))

    def decode(
        self,
        latents: Tensor,
        size: tuple[int, int] | None = None,
        *,
        clamp: bool = True,
        memory: int | str | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Raw latents -> pixels [N, P, H, W], float32.

        The result is that of the whole picture, in whatever memory: nothing is cut into tiles. It has no gradients;
        `module.decode` does.

        Args:
            latents: [N, C, h, w], float, raw (`latent_format.to_raw` makes them from model latents); or
                [N, C, 1, h, w], of a video of one frame.
            size: (height, width) of the picture, to crop what `encode` padded; the whole where not given, which is h*f
                x w*f, times `enlarges`.
            clamp: pixels to [-1, 1].
            memory, progress: as for `encode`.

        Raises:
            UsageError: for another shape or number of channels, and where a gradient would be lost.
            WeightsError: if only an encoder was loaded.
            MemoryLimitError: if it can't be done in so much memory; the message says in how much it can.
            LatentsError: if the latents are not finite.
            NonFiniteError: if the result is not finite in float32 either.
        """
        latents = self._check_latents(latents)
        f = self.factor * self.enlarges
        if size is not None and not all(0 < n <= m * f for n, m in zip(size, latents.shape[2:], strict=True)):
            raise UsageError(
                f"A picture of {size[0]}x{size[1]} can't be cropped from latents of "
                f"{latents.shape[2]}x{latents.shape[3]} at f{f}."
            )
        with enough_memory(latents.shape), torch.no_grad():
            pixels = self._run("decode", latents, memory, progress)
            if clamp:
                pixels = pixels.clamp_(-1, 1)
        return pixels if size is None else pixels[:, :, : size[0], : size[1]]

    def decode_masked(self, latents: Tensor, pixels: Tensor, mask: Tensor, *, clamp: bool = True) -> Tensor:
        """Raw latents and a picture -> pixels [N, P, H, W], float32: where the mask is 0 the picture, where 1 decoded.

        For VAEs whose decoder was trained to go on from a picture (AsymmetricAutoencoderKL), so that there is no edge.
        It makes the picture anew, nearly the same. Unlike in `decode` all maps are in memory at once.

        Args:
            latents: [N, C, h, w], as for `decode`.
            pixels: [N, P, H, W], float, in [-1, 1]; what `encode` would take for latents of this size.
            mask: [N, 1, H, W] or [1, 1, H, W], float, in [0, 1].
            clamp: pixels to [-1, 1].

        Raises:
            UsageError: where the decoder takes latents alone, for other shapes and ranges, and where a gradient would
                be lost.
            WeightsError, LatentsError, NonFiniteError: as `decode`.
        """
        latents = self._check_latents(latents)
        n, f = len(latents), self.factor
        expected = (n, self.picture_channels)
        padded, _ = pad(pixels, f) if pixels.ndim == 4 and pixels.numel() else (pixels, None)
        if (
            pixels.ndim != 4
            or pixels.shape[:2] != expected
            or padded.shape[2:] != tuple(m * f for m in latents.shape[2:])
        ):
            raise UsageError(
                f"decode_masked takes pixels [{n}, {expected[1]}, H, W] of the picture that latents "
                f"{list(latents.shape)} are of, not {list(pixels.shape)}."
            )
        if mask.ndim != 4 or mask.shape[0] not in (1, n) or mask.shape[1:] != (1, *pixels.shape[2:]):
            raise UsageError(
                f"decode_masked takes a mask [{n}, 1, {pixels.shape[2]}, {pixels.shape[3]}], not {list(mask.shape)}."
            )
        for what, given, low in (("Pixels", pixels, -1), ("A mask", mask, 0)):
            if not given.is_floating_point() or not bool(((given >= low) & (given <= 1)).all()):
                raise UsageError(f"{what} must be float and in [{low}, 1], for decode_masked.")
            if torch.is_grad_enabled() and differentiated(given):
                raise UsageError(
                    f"decode_masked computes without gradients, and {what.lower()} given to it require them; call "
                    f"vae.module.decode_masked, which has them."
                )
        engine = self._wide or self.engine
        inputs = [one.to(self.device, engine.dtype) for one in (latents, padded, pad(mask, f)[0])]
        with enough_memory(latents.shape), torch.no_grad():
            made = engine.module.decode_masked(*inputs).float()
        if not torch.isfinite(made).all():
            if not self.may_widen:
                raise self._not_finite(engine.dtype)
            self.widen(stacklevel=3)
            return self.decode_masked(latents, pixels, mask, clamp=clamp)
        made = made[:, :, : pixels.shape[2], : pixels.shape[3]]
        return made.clamp_(-1, 1) if clamp else made

    def decode_rows(
        self, latents: Tensor, *, memory: int | str | None = None, progress: Progress | None = None
    ) -> Iterator[Tensor]:
        """Raw latents [C, h, w] of one picture -> its pixels from the top down, rows [P, n, W] at a time, in [-1, 1].

        The whole picture is never in memory. Rows belong to the caller.

        Raises (when the first rows are asked for, not before):
            NonFiniteError: if rows are not finite; unlike in `decode` nothing is computed again, for rows are gone.
            UsageError, WeightsError, LatentsError, MemoryLimitError: as `decode`.
        """
        if latents.ndim != 3:
            raise UsageError(
                f"decode_rows takes latents [{self.latent_channels}, h, w] of one picture, not {list(latents.shape)}."
            )
        self._check_latents(latents[None])
        engine = self._wide or self.engine
        with enough_memory(latents.shape):
            height, width = (n * self.factor * self.enlarges for n in latents.shape[1:])
            source = rows_of(latents.to(self.device))
            try:
                for _, _, rows in engine.rows("decode", source, height, width, memory=memory, progress=progress):
                    yield rows.float().clamp(-1, 1).cpu()
            except NonFiniteError:
                raise self._not_finite(engine.dtype) from None

    def encode_rows(
        self,
        pixels: Callable[[int, int], Tensor],
        height: int,
        width: int,
        *,
        memory: int | str | None = None,
        progress: Progress | None = None,
    ) -> Posterior:
        """One picture -> the posterior over its raw latents [1, C, h, w], without the whole picture in memory.

        Args:
            pixels: (top, bottom) -> its rows, [P, bottom - top, width], float in [-1, 1]; called from the top down, and
                for the rows near a stripe's end more than once.
            height, width: of the picture; multiples of f (`pixels.pad_rows` pads others).

        Raises:
            UsageError, WeightsError, MemoryLimitError, NonFiniteError: as `encode`.
        """
        self.require("encoder")
        if height < 1 or width < 1 or height % self.factor or width % self.factor:
            raise UsageError(f"encode_rows takes sides that are multiples of {self.factor}, not {height}x{width}.")

        recording = torch.is_grad_enabled()
        require_none_lost("encode", None, self.module)
        self._say_encode_dtype(stacklevel=3)

        def source(start: int, end: int) -> Tensor:
            with torch.set_grad_enabled(recording):  # as where this was called, to see what rows require
                rows = pixels(start, end)
                if rows.ndim != 3 or len(rows) != self.picture_channels:
                    raise UsageError(
                        f"encode_rows takes rows [{self.picture_channels}, n, {width}], not {list(rows.shape)}."
                    )
                require_none_lost("encode", rows, self.module)
            return rows.detach().permute(1, 2, 0).to(self.device)

        def moments(engine: Engine) -> Tensor:
            target = engine.program("encode").target
            made = torch.empty(1, target.channels, *target.size(height, width), device=self.device)
            for start, end, rows in engine.rows("encode", source, height, width, memory=memory, progress=progress):
                made[0, :, start:end] = rows
            return made

        with enough_memory((self.picture_channels, height, width)), torch.no_grad():
            if self._wide is None:
                engine = self.engine_of("encode")
                with suppress(NonFiniteError):
                    return posterior_of(self.config, moments(engine))
                if engine.dtype == torch.float32:
                    raise self._not_finite(torch.float32)
                self.widen(engine.dtype, stacklevel=3)
            assert self._wide is not None
            try:
                return posterior_of(self.config, moments(self._wide))
            except NonFiniteError:
                raise self._not_finite(torch.float32) from None

    def _check_latents(self, latents: Tensor) -> Tensor:
        """Raw latents of pictures, [N, C, h, w]."""
        self.require("decoder")
        latents = _one_frame("decode", "latents", latents)
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels or 0 in latents.shape:
            raise UsageError(
                f"decode takes raw latents [N, {self.latent_channels}, h, w], not {list(latents.shape)}: "
                f"this VAE has {self.latent_channels} latent channels."
            )
        require_none_lost("decode", latents, self.module)
        if not torch.isfinite(latents).all():
            raise LatentsError("The latents hold NaN or infinity; nothing was decoded.")
        return latents

    def _run(self, direction: Direction, x: Tensor, memory: int | str | None, progress: Progress | None) -> Tensor:
        """Moments or pixels, float32; computed again in float32 where the narrower type overflowed."""
        if self._wide is None:
            engine = self.engine_of(direction)
            with suppress(NonFiniteError):
                return engine(direction, x.to(self.device), memory=memory, progress=progress)
            if engine.dtype == torch.float32:
                raise self._not_finite(torch.float32)
            self.widen(engine.dtype, stacklevel=4)
        assert self._wide is not None
        try:
            return self._wide(direction, x.to(self.device, torch.float32), memory=memory, progress=progress)
        except NonFiniteError:
            raise self._not_finite(torch.float32) from None

    @property
    def may_widen(self) -> bool:
        """Whether what is not finite may be so in float32, in which nothing was computed yet."""
        return self.dtype != torch.float32 and self._wide is None

    def widen(self, dtype: torch.dtype | None = None, *, stacklevel: int = 2) -> None:
        """Computes in float32 from now on, and warns that it does; once.

        Args:
            dtype: what was too narrow; that of decodes where not given.
            stacklevel: of the warning, as `warnings.warn` counts it.
        """
        if self._wide is not None:
            return
        warnings.warn(
            f"{self.name or 'This VAE'} gave NaN or infinity in {dtype_name(dtype or self.dtype)}; "
            f"computing in float32 from now on.",
            CalotypeWarning,
            stacklevel=stacklevel,
        )
        wide = copy.deepcopy(self.loaded.module).to(self.device, torch.float32)
        self._wide = Engine(wide, self.device, torch.float32, self.engine.asked)
        self._encoding = None

    def _say_encode_dtype(self, stacklevel: int) -> None:
        """Says once that encodes are in another type than the one asked for, where nobody chose that."""
        if self._unsaid:
            self._unsaid = False
            warnings.warn(
                f"{self.name or 'This VAE'} decodes in {dtype_name(self.dtype)} and encodes in float32: latents lose "
                f"more than pictures do; --encode-dtype (encode_dtype=) chooses.",
                CalotypeWarning,
                stacklevel=stacklevel,
            )

    def _not_finite(self, dtype: torch.dtype) -> NonFiniteError:
        name = self.name or "This VAE"
        if dtype == torch.float32:
            return NonFiniteError(f"{name} gives NaN or infinity in float32 too: its weights or this input are broken.")
        return NonFiniteError(f"{name} gives NaN or infinity in {dtype_name(dtype)}; use float32.")

    @torch.no_grad()
    def check_dtypes(self) -> dict[str, bool]:
        """Whether a small noise picture goes through (encoded, decoded, or both) without NaN or infinity, by dtype."""
        checks = {}
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(1, self.picture_channels, 8 * self.factor, 8 * self.factor, generator=generator) * 2 - 1
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            module = copy.deepcopy(self.module).to(dtype)
            z = torch.randn(1, self.latent_channels, 8, 8, generator=generator)
            finite = True
            if "encoder" in self.loaded.parts:
                z = module.encode(x.to(self.device, dtype)).mode()
                finite = bool(torch.isfinite(z).all())
            if "decoder" in self.loaded.parts:
                finite = finite and bool(torch.isfinite(module.decode(z.to(self.device, dtype))).all())
            checks[dtype_name(dtype)] = finite
        return checks

    def require(self, *parts: Literal["encoder", "decoder"]) -> None:
        """Checks that a VAE is as whole as something needs it.

        Raises:
            WeightsError: if a part is not there; the message says what to do.
        """
        for part in parts:
            if part in self.loaded.parts:
                continue
            other = "decoder" if part == "encoder" else "encoder"
            raise WeightsError(
                f"{self.loaded.files[0]} holds only the {other}; put the {part}'s file beside it in a folder of "
                f"their own, and give the folder."
            )


def _one_frame(what: str, of: str, given: Tensor) -> Tensor:
    """Tensors of pictures; those that are of a video, [N, C, frames, height, width], have one frame, which they lose.

    Raises:
        UsageError: they have more.
    """
    if given.ndim != 5:
        return given
    if given.shape[2] != 1:
        raise UsageError(
            f"{what} takes {of} of pictures, [N, C, height, width], and these are of {given.shape[2]} frames, "
            f"{list(given.shape)}; give it one frame after another, as {of}[:, :, 0]: of a video's VAE calotype has "
            f"what one picture needs."
        )
    return given[:, :, 0]
