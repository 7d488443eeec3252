"""VAE: what `calotype.load` returns. Tensors in, tensors out; or pictures in, pictures out."""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from calotype.config import NetworkConfig, TinyConfig
from calotype.engine.executor import Progress
from calotype.engine.program import Direction
from calotype.engine.run import Engine, EngineName, rows_of, share
from calotype.errors import CalotypeWarning, LatentsError, MemoryLimitError, NonFiniteError, UsageError, WeightsError
from calotype.files import as_text
from calotype.gradients import require_none_lost
from calotype.latents import KNOWN, LatentFormat, Latents, Space
from calotype.networks import Network
from calotype.pixels import (
    AlphaMode,
    Picture,
    PictureRows,
    alpha_mode,
    crop,
    for_channels,
    pad,
    pad_rows,
    planes,
    read_picture_rows,
    require_channels,
    to_pil,
)
from calotype.posterior import DiagonalGaussian, Point, Posterior
from calotype.rows import require_rows_writable, write_rows
from calotype.weights.fetch import fetch
from calotype.weights.groups import Weights
from calotype.weights.load import Loaded, load_weights, require_format
from calotype.weights.presets import PRESETS, is_preset

BUILTIN = Path(__file__).parent / "weights" / "builtin" / "builtin.safetensors"

PictureSource = str | os.PathLike[str] | bytes | Image.Image | Picture | PictureRows


def load(
    vae: str | os.PathLike[str] | None = None,
    *,
    latent_format: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    engine: EngineName = "auto",
    prefix: str | None = None,
    weights: Weights | None = None,
) -> VAE:
    """Loads a VAE: the built-in one, a preset by name, or any weights by path.

    Args:
        vae: None for the weights that ship with calotype; the name of a preset (fetched from the hub on first use);
            or a file or folder in any layout.
        latent_format: sd1, sdxl, sd3, flux, playground or none, or how a config.json is meant that can be read in
            two ways, means or scaled-means; needed only where the weights can't tell and model latents or latents on
            disk are wanted.
        device: where it runs; CUDA where there is one, else MPS, else the CPU.
        dtype: of weights and computation. Results that are not finite in a narrower type are computed again in float32.
        engine: what computes: "winograd" (CPU), "fused" (CUDA), "reference" (anywhere), or the fastest of them here.
        prefix: which VAE of a file with several: what stands before its names, as "first_stage_model.".
        weights: "raw" or "ema", where a file holds both those trained and their average over the training; the average
            where not given, if it is the whole VAE.

    Raises:
        WeightsError: if there are no usable weights there.
        UsageError: for an unknown name, device or latent format, or a prefix or weights that are not there.

    Warns:
        CalotypeWarning: where the file is not quite as it should be, or holds more than one VAE that could be meant.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(f"A VAE computes in float32, bfloat16 or float16, not {dtype}.")
    path, name, latent_format = locate(vae, latent_format)
    loaded = load_weights(path, latent_format_name=latent_format, prefix=prefix, weights=weights)
    for notice in loaded.notices:
        warnings.warn(notice, CalotypeWarning, stacklevel=2)
    return VAE(loaded, name=name, device=pick_device(device), dtype=dtype, engine=engine)


def load_as_stored(
    vae: str | os.PathLike[str] | None,
    latent_format: str | None = None,
    *,
    prefix: str | None = None,
    weights: Weights | None = None,
) -> Loaded:
    """Weights as `load` finds them, in the dtype they are stored in and on the CPU; for conversion."""
    path, _, latent_format = locate(vae, latent_format)
    loaded = load_weights(path, latent_format_name=latent_format, prefix=prefix, weights=weights)
    for notice in loaded.notices:
        warnings.warn(notice, CalotypeWarning, stacklevel=2)
    return loaded


def locate(vae: str | os.PathLike[str] | None, latent_format: str | None) -> tuple[Path, str, str | None]:
    """What `load` was given -> (where the weights lie, what to call them, the latent format if it is known).

    Presets are fetched.
    """
    if vae is None or vae == "builtin":
        return BUILTIN, "builtin", latent_format
    if is_preset(text := os.fspath(vae)):
        known = PRESETS[text].latent_format
        return fetch(text), text, latent_format or (known if known in KNOWN else None)
    path = Path(text)
    if not path.exists() and os.sep not in text and not path.suffix:
        near = get_close_matches(text, PRESETS, n=1, cutoff=0.8)
        near = near or [name for name in PRESETS if text in name][:3] or get_close_matches(text, PRESETS, n=1)
        hint = f"did you mean {' or '.join(near)}?" if near else f"presets are {', '.join(PRESETS)}."
        raise UsageError(f"{text!r} is neither a file, nor a folder, nor a preset; {hint}")
    # a file that is called like a preset must not be taken for it when its latents are decoded
    name = as_text(path.name or path.resolve().name)
    name = f"./{name}" if name in ("builtin", *PRESETS) else name
    return path, name, latent_format


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
    """The posterior that a network's encoder means by its moments."""
    return Point(moments) if isinstance(config, TinyConfig) else DiagonalGaussian(moments)


@contextmanager
def enough_memory(shape: Sequence[int]) -> Iterator[None]:
    """Turns what torch raises when memory runs out into one sentence.

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


def name_for(latents: Latents, path: Path) -> str:
    """What `load` needs to get the VAE that made these latents.

    Raises:
        LatentsError: if it was loaded from a file.
    """
    if latents.vae_name == "builtin" or latents.vae_name in PRESETS:
        return latents.vae_name
    raise LatentsError(
        f"{path}: these latents were made by {latents.vae_name or 'an unnamed VAE'} (sha256 {latents.vae[:12]}...); "
        f"give its weights with --vae."
    )


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        UsageError: if it is not there.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"There is no device {str(device)!r} here; `calotype doctor` lists those there are.") from None
    return chosen


class VAE:
    """A variational autoencoder with weights, ready to run.

    It computes without gradients: `encode`, `decode` and what calls them refuse pixels, latents or weights that require
    them (a UsageError) unless under `torch.no_grad()`. `module` is the plain network, which has gradients.

    Attributes:
        module: the network (for training or a look inside); its weights do not require gradients until they are told to
            (`requires_grad_`). Its `encode` and `decode` take and give what the VAE's do, but pad, check and clamp
            nothing, need memory for all maps at once, and are of `dtype`.
        name: what it was loaded as.
        sha256: of its weights; the same whatever layout they came in.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        name: str = "",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        engine: EngineName = "auto",
    ) -> None:
        self.loaded = loaded
        self.name = name
        self.sha256 = loaded.sha256
        self.device = torch.device(device)
        self.dtype = dtype
        # a narrower copy computes, and the weights as stored stay for what overflows in it
        own = loaded.module if dtype == torch.float32 else copy.deepcopy(loaded.module)
        self.module: Network = own.to(device=self.device, dtype=dtype)
        self.engine = Engine(self.module, self.device, dtype, engine)
        self._wide: Engine | None = None

    @property
    def config(self) -> NetworkConfig:
        """The network's architecture."""
        return self.module.config

    @property
    def factor(self) -> int:
        """Spatial compression f: a latent stands for f x f pixels."""
        return self.config.factor

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
            pixels: [N, P, H, W], float, in [-1, 1]. Sizes that are no multiple of f are padded at the bottom and right
                (reflected where large enough, else replicated).
            memory: at most so much beside the weights and what goes in and out: bytes, or words like "1GB". None: what
                is fast, and free.
            progress: called with the part of the work that is done, from 0 to 1; may raise to stop.

        Raises:
            UsageError: for another shape, type or range, and where a gradient would be lost.
            WeightsError: if only a decoder was loaded.
            MemoryLimitError: if it can't be done in so much memory; the message says in how much it can.
            NonFiniteError: if the result is not finite in float32 either.
        """
        self._require("encoder")
        channels = self.picture_channels
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
            latents: [N, C, h, w], float, raw (`latent_format.to_raw` makes them from model latents).
            size: (height, width) of the picture, to crop what `encode` padded; the whole h*f x w*f where not given.
            clamp: pixels to [-1, 1].
            memory, progress: as for `encode`.

        Raises:
            UsageError: for another shape or number of channels, and where a gradient would be lost.
            WeightsError: if only an encoder was loaded.
            MemoryLimitError: if it can't be done in so much memory; the message says in how much it can.
            LatentsError: if the latents are not finite.
            NonFiniteError: if the result is not finite in float32 either.
        """
        self._check_latents(latents)
        if size is not None and not all(0 < n <= m * self.factor for n, m in zip(size, latents.shape[2:], strict=True)):
            raise UsageError(
                f"A picture of {size[0]}x{size[1]} can't be cropped from latents of "
                f"{latents.shape[2]}x{latents.shape[3]} at f{self.factor}."
            )
        with enough_memory(latents.shape), torch.no_grad():
            pixels = self._run("decode", latents, memory, progress)
            if clamp:
                pixels = pixels.clamp_(-1, 1)
        return pixels if size is None else pixels[:, :, : size[0], : size[1]]

    def decode_rows(
        self, latents: Tensor, *, memory: int | str | None = None, progress: Progress | None = None
    ) -> Iterator[Tensor]:
        """Raw latents [C, h, w] of one picture -> its pixels from the top down, [P, n, w * f] at a time, in [-1, 1].

        The whole picture is never in memory. Rows belong to the caller.

        Raises (when the first rows are asked for, not before):
            NonFiniteError: if rows are not finite; unlike in `decode` nothing is computed again, for rows are gone.
            UsageError, WeightsError, LatentsError, MemoryLimitError: as `decode`.
        """
        self._check_latents(latents[None])
        engine = self._wide or self.engine
        with enough_memory(latents.shape):
            height, width = (n * self.factor for n in latents.shape[1:])
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
        self._require("encoder")
        if height < 1 or width < 1 or height % self.factor or width % self.factor:
            raise UsageError(f"encode_rows takes sides that are multiples of {self.factor}, not {height}x{width}.")

        recording = torch.is_grad_enabled()
        require_none_lost("encode", None, self.module)

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
                with suppress(NonFiniteError):
                    return posterior_of(self.config, moments(self.engine))
                if self.dtype == torch.float32:
                    raise self._not_finite(torch.float32)
                self.widen(stacklevel=3)
            assert self._wide is not None
            try:
                return posterior_of(self.config, moments(self._wide))
            except NonFiniteError:
                raise self._not_finite(torch.float32) from None

    def _check_latents(self, latents: Tensor) -> None:
        self._require("decoder")
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels or 0 in latents.shape:
            raise UsageError(
                f"decode takes raw latents [N, {self.latent_channels}, h, w], not {list(latents.shape)}: "
                f"this VAE has {self.latent_channels} latent channels."
            )
        require_none_lost("decode", latents, self.module)
        if not torch.isfinite(latents).all():
            raise LatentsError("The latents hold NaN or infinity; nothing was decoded.")

    def encode_image(
        self,
        picture: PictureSource,
        *,
        seed: int | None = None,
        space: Space = "raw",
        alpha: AlphaMode | None = None,
        background: tuple[int, int, int] = (255, 255, 255),
        memory: int | str | None = None,
        progress: Progress | None = None,
    ) -> Latents:
        """One picture -> latents that know where they come from; see `encode_images`."""
        return self.encode_images(
            [picture], seed=seed, space=space, alpha=alpha, background=background, memory=memory, progress=progress
        )[0]

    def encode_images(
        self,
        pictures: Sequence[PictureSource],
        *,
        seed: int | None = None,
        space: Space = "raw",
        alpha: AlphaMode | None = None,
        background: tuple[int, int, int] = (255, 255, 255),
        memory: int | str | None = None,
        progress: Progress | None = None,
    ) -> list[Latents]:
        """Pictures -> latents, one each; sizes may differ.

        A VAE of grey pictures gets their luma (see `pixels.luma`), one of RGBA their colours and their alpha, which is
        1 where a picture has none.

        Args:
            pictures: paths, bytes, PIL images, `Picture`s or `PictureRows`.
            seed: None takes the posterior's mode. A seed draws from the posterior, with a generator for each picture
                (`picture_generator`), so that a draw does not depend on the other pictures, and differs from theirs.
            space: raw or model latents.
            alpha: "over" composites transparent pictures over `background`; "keep" keeps their alpha aside for
                `decode_image`. None is "over", but for a VAE of RGBA, which takes alpha itself: "over" makes pictures
                opaque for it, and "keep" is refused.
            background: R, G, B in 0..255; where alpha is not composited, the colour of fully transparent pixels.
            memory, progress: as for `encode`.

        Raises:
            PictureError: if a picture can't be read.
            UsageError: for alpha as above, a VAE whose pictures are neither grey, RGB nor RGBA, and where a gradient
                would be lost.
            LatentFormatError: if the VAE's latent format is not known.
        """
        how, channels = alpha_mode(self.picture_channels, alpha), self.picture_channels
        format_ = self.latent_format
        results = []
        for i, source in enumerate(pictures):
            picture = (
                source
                if isinstance(source, Picture | PictureRows)
                else read_picture_rows(source, alpha=how, background=background)
            )
            whole = for_channels(picture, channels)
            rows, padding = pad_rows(whole, *picture.size, self.factor * format_.patch)
            size = padding.height + padding.bottom, padding.width + padding.right
            posterior = self.encode_rows(rows, *size, memory=memory, progress=share(progress, i, len(pictures)))
            z = posterior.mode() if seed is None else posterior.sample([picture_generator(seed, planes(rows, *size))])
            raw = Latents(
                tensor=z[0].cpu(),
                space="raw",
                format=format_,
                vae=self.sha256,
                vae_name=self.name,
                padding=padding,
                alpha=None if channels == 4 else _opacity(picture),
            )
            results.append(raw if space == "raw" else raw.to_model())
        return results

    def decode_image(
        self,
        latents: Latents,
        *,
        any_vae: bool = False,
        memory: int | str | None = None,
        progress: Progress | None = None,
    ) -> Image.Image:
        """Latents -> a PIL image of the picture's true size; see `decode_images`."""
        return self.decode_images([latents], any_vae=any_vae, memory=memory, progress=progress)[0]

    def decode_images(
        self,
        latents: Sequence[Latents],
        *,
        any_vae: bool = False,
        memory: int | str | None = None,
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """Latents -> PIL images of the pictures' true sizes, one each.

        They are what the VAE's pictures are: L, RGB or RGBA; of L and RGB, with alpha where it was kept aside.

        Args:
            any_vae: also decode latents that another VAE made. They pass through model space, so VAEs of one family
                (say, SDXL's and TAESDXL) understand each other.
            memory, progress: as for `encode`.

        Raises:
            LatentsError: if another VAE made the latents and `any_vae` is not set, or if alpha was kept aside and
                this VAE makes its own.
            UsageError: for a VAE whose pictures are neither grey, RGB nor RGBA.
        """
        results = []
        for one in latents:
            self._require_picture(one)
        raws = [self.own(one, any_vae) for one in latents]
        for i, (one, raw) in enumerate(zip(latents, raws, strict=True)):
            pixels = self.decode(raw[None], memory=memory, progress=share(progress, i, len(latents)))
            results.append(to_pil(crop(pixels[0].cpu(), one.padding), one.alpha))
        return results

    def write_image(
        self,
        path: str | os.PathLike[str],
        latents: Latents,
        *,
        any_vae: bool = False,
        text: Mapping[str, str] | None = None,
        memory: int | str | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Latents -> a picture file of the true size; PNG and TIFF are written row by row.

        The picture is never whole in memory (but for other formats, which need that), so it can be larger than it.

        Args:
            path: its suffix names the format.
            text: as for `pixels.write_picture`.
            any_vae, memory, progress: as for `decode_images`.

        Raises:
            UsageError: for a suffix or a size that can't be written.
            PictureError: if the disk or the encoder refuses it.
            LatentsError: as `decode_images`.
        """
        self._require_picture(latents)
        raw, padding, channels = self.own(latents, any_vae), latents.padding, self.picture_channels
        width, height = padding.width, padding.height
        alpha = latents.alpha
        require_rows_writable(Path(path), width, height, alpha=alpha is not None or channels == 4)

        def rows() -> Iterator[Tensor]:
            left = height
            for part in self.decode_rows(raw, memory=memory, progress=progress):
                if left:
                    part = part[:, :left, :width]
                    left -= part.shape[1]
                    yield part

        def write() -> Path:
            return write_rows(path, rows(), width=width, height=height, channels=channels, alpha=alpha, text=text)

        if self.may_widen:
            with suppress(NonFiniteError):
                return write()
            self.widen(stacklevel=3)
        return write()

    def _require_picture(self, latents: Latents) -> None:
        """Checks that what is decoded is a picture, with one alpha at most."""
        require_channels(self.picture_channels)
        if self.picture_channels == 4 and latents.alpha is not None:
            raise LatentsError(
                "These latents have a picture's alpha beside them, and this VAE of RGBA pictures makes alpha itself; "
                "decode them with a VAE of RGB, or encode the picture with this one."
            )

    def own(self, latents: Latents, any_vae: bool = False) -> Tensor:
        """Latents -> the raw latents of this VAE, [C, h, w].

        Raises:
            LatentsError: if another VAE made them and `any_vae` is not set, or they are damaged.
        """
        own = latents.vae == self.sha256
        if not own and not any_vae:
            raise LatentsError(
                f"These latents were made by another VAE ({latents.vae_name or 'unnamed'}, {latents.vae[:12]}) "
                f"than this one ({self.name or 'unnamed'}, {self.sha256[:12]}); load that one, or decode them all the "
                f"same with --any-vae (any_vae=True)."
            )
        if own or latents.format == self.latent_format:
            raw = latents.to_raw().tensor
        else:
            model = latents.to_model().tensor
            if not self.latent_format.fits(model):
                raise LatentsError(
                    f"These latents have {latents.format.channels} channels, and this VAE decodes "
                    f"{self.latent_channels}; load one of their kind."
                )
            raw = self.latent_format.to_raw(model[None])[0]
        if len(raw) != self.latent_channels:
            raise LatentsError(
                f"These latents have {len(raw)} channels and name this VAE, whose latents have {self.latent_channels}: "
                f"they are damaged; make them again."
            )
        padding = latents.padding
        padded = (padding.height + padding.bottom, padding.width + padding.right)
        if padded != (raw.shape[1] * self.factor, raw.shape[2] * self.factor):
            raise LatentsError(
                f"These latents are of a picture padded to {padded[0]}x{padded[1]}, and {raw.shape[1]}x{raw.shape[2]} "
                f"of them make {raw.shape[1] * self.factor}x{raw.shape[2] * self.factor} at f{self.factor}: "
                f"they are damaged, or for a VAE of another f."
            )
        return raw

    def _run(self, direction: Direction, x: Tensor, memory: int | str | None, progress: Progress | None) -> Tensor:
        """Moments or pixels, float32; computed again in float32 where the narrower type overflowed."""
        if self._wide is None:
            with suppress(NonFiniteError):
                return self.engine(direction, x.to(self.device), memory=memory, progress=progress)
            if self.dtype == torch.float32:
                raise self._not_finite(torch.float32)
            self.widen(stacklevel=4)
        assert self._wide is not None
        try:
            return self._wide(direction, x.to(self.device, torch.float32), memory=memory, progress=progress)
        except NonFiniteError:
            raise self._not_finite(torch.float32) from None

    @property
    def may_widen(self) -> bool:
        """Whether what is not finite may be so in float32, in which nothing was computed yet."""
        return self.dtype != torch.float32 and self._wide is None

    def widen(self, stacklevel: int = 2) -> None:
        """Computes in float32 from now on, and warns that it does; once."""
        if self._wide is not None:
            return
        warnings.warn(
            f"{self.name or 'This VAE'} gave NaN or infinity in {str(self.dtype).removeprefix('torch.')}; "
            f"computing in float32 from now on.",
            CalotypeWarning,
            stacklevel=stacklevel,
        )
        wide = copy.deepcopy(self.loaded.module).to(self.device, torch.float32)
        self._wide = Engine(wide, self.device, torch.float32, self.engine.asked)

    def _not_finite(self, dtype: torch.dtype) -> NonFiniteError:
        name = self.name or "This VAE"
        if dtype == torch.float32:
            return NonFiniteError(f"{name} gives NaN or infinity in float32 too: its weights or this input are broken.")
        return NonFiniteError(f"{name} gives NaN or infinity in {str(dtype).removeprefix('torch.')}; use float32.")

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
            checks[str(dtype).removeprefix("torch.")] = finite
        return checks

    def _require(self, part: Literal["encoder", "decoder"]) -> None:
        if part not in self.loaded.parts:
            other = "decoder" if part == "encoder" else "encoder"
            raise WeightsError(
                f"{self.loaded.files[0]} holds only the {other}; put the {part}'s file beside it in a folder of "
                f"their own, and give the folder."
            )

    def __repr__(self) -> str:
        return f"VAE({self.name!r}, f{self.factor}, {self.latent_channels} channels, {self.device}, {self.dtype})"


def _opacity(picture: Picture | PictureRows) -> Tensor | None:
    """Alpha in [0, 1]."""
    if isinstance(picture, Picture) or picture.alpha is None:
        return picture.alpha
    return picture.alpha.float() / 255.0
