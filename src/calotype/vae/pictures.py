"""VAE: tensors in, tensors out; or pictures in, pictures out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.nn import functional

from calotype.engine.executor import Progress
from calotype.engine.run import share
from calotype.errors import CalotypeWarning, LatentsError, NonFiniteError
from calotype.latents import Latents, Space
from calotype.pixels import (
    AlphaMode,
    Padding,
    Picture,
    PictureRows,
    alpha_mode,
    crop,
    for_channels,
    pad_rows,
    planes,
    read_picture_rows,
    require_channels,
    to_pil,
)
from calotype.rows import require_rows_writable, write_rows
from calotype.vae.exchange import adopted
from calotype.vae.tensors import Coder, picture_generator

PictureSource = str | os.PathLike[str] | bytes | Image.Image | Picture | PictureRows  # bytes are those of a file


class VAE(Coder):
    """A variational autoencoder with weights, ready to run.

    It computes without gradients: `encode`, `decode` and what calls them refuse pixels, latents or weights that require
    them (a UsageError) unless under `torch.no_grad()`. `module` is the plain network, which has gradients.

    Attributes:
        module: the network (for training or a look inside); its weights do not require gradients until they are told to
            (`requires_grad_`). Its `encode` and `decode` take and give what the VAE's do, but pad, check and clamp
            nothing, need memory for all maps at once, and are of `dtype`.
        dtype: what it decodes in.
        encode_dtype: what it encodes in; it may be set.
        name: what it was loaded as.
        sha256: of its weights; the same whatever layout they came in.
    """

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
        """Latents -> PIL images of the pictures' true sizes (`enlarges` times as large), one each.

        They are what the VAE's pictures are: L, RGB or RGBA; of L and RGB, with alpha where it was kept aside.

        Args:
            any_vae: also decode latents of which nothing tells that they are of this VAE's space; see `adopt`.
            memory, progress: as for `encode`.

        Raises:
            LatentsError: as `adopt`, or if alpha was kept aside and this VAE makes its own.
            UsageError: for a VAE whose pictures are neither grey, RGB nor RGBA.
        """
        results = []
        for one in latents:
            self._require_picture(one)
        own = [self.adopt(one, any_vae) for one in latents]
        for i, one in enumerate(own):
            pixels = self.decode(one.tensor[None], memory=memory, progress=share(progress, i, len(latents)))
            results.append(to_pil(crop(pixels[0].cpu(), self._padding(one)), self._alpha(one)))
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
        """Latents -> a picture file of the true size (`enlarges` times as large); PNG and TIFF are written by rows.

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
        own, channels = self.adopt(latents, any_vae), self.picture_channels
        width, height = self.decoded_size(own)
        alpha = self._alpha(own)
        require_rows_writable(Path(path), width, height, alpha=alpha is not None or channels == 4)

        def rows() -> Iterator[Tensor]:
            left = height
            for part in self.decode_rows(own.tensor, memory=memory, progress=progress):
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

    def decoded_size(self, latents: Latents) -> tuple[int, int]:
        """(width, height) of the picture that latents of its own (see `adopt`) are decoded to."""
        padding = self._padding(latents)
        return padding.width, padding.height

    def _padding(self, latents: Latents) -> Padding:
        """The true size of what is decoded, and its padding."""
        n, padding = self.enlarges, latents.padding
        sides = {name: n * getattr(padding, name) for name in ("height", "width", "bottom", "right")}
        return replace(padding, **sides)

    def _alpha(self, latents: Latents) -> Tensor | None:
        """The alpha that was kept aside, of the size of what is decoded."""
        if latents.alpha is None or self.enlarges == 1:
            return latents.alpha
        size = [self.enlarges * side for side in latents.alpha.shape]
        return functional.interpolate(latents.alpha[None, None], size=size, mode="bilinear")[0, 0]

    def _require_picture(self, latents: Latents) -> None:
        """Checks that what is decoded is a picture, with one alpha at most."""
        require_channels(self.picture_channels)
        if self.picture_channels == 4 and latents.alpha is not None:
            raise LatentsError(
                "These latents have a picture's alpha beside them, and this VAE of RGBA pictures makes alpha itself; "
                "decode them with a VAE of RGB, or encode the picture with this one."
            )

    def adopt(self, latents: Latents, any_vae: bool = False) -> Latents:
        """Latents as this VAE's own: raw, in its format, and named after it.

        It understands those of its latent space, whichever VAE made them (see `exchange`). They are scaled as its own
        are, through model space where formats differ. Unless `any_vae` is set, a CalotypeWarning says so once for each
        maker.

        Args:
            any_vae: also those of which nothing tells that they are of its space; of those of another published one a
                CalotypeWarning says that they are no pictures to this VAE.

        Raises:
            LatentsError: if nothing tells that they are of its space and `any_vae` is not set, or if they have other
                channels, are of a picture at another f, or are damaged.
        """
        raw, notice = adopted(self, latents, any_vae)
        if notice and notice not in self._said:
            self._said.add(notice)
            warnings.warn(notice, CalotypeWarning, stacklevel=2)
        return raw

    def own(self, latents: Latents, any_vae: bool = False) -> Tensor:
        """Latents -> the raw latents of this VAE, [C, h, w]; see `adopt`."""
        return self.adopt(latents, any_vae).tensor

    def __repr__(self) -> str:
        return f"VAE({self.name!r}, f{self.factor}, {self.latent_channels} channels, {self.device}, {self.dtype})"


def _opacity(picture: Picture | PictureRows) -> Tensor | None:
    """Alpha in [0, 1]."""
    if isinstance(picture, Picture) or picture.alpha is None:
        return picture.alpha
    return picture.alpha.float() / 255.0
