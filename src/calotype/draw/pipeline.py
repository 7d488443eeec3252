"""Words to latents, by a drawing model and the VAE in whose latents it draws."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from calotype.draw.ground import Ground, white_ground
from calotype.draw.meaning import SMALL, Names
from calotype.draw.model import DrawingModel, enlarged, load_model
from calotype.draw.sampler import Keep, Step, guided, noise_for, sample
from calotype.draw.schedule import Flow, Sampler
from calotype.draw.text import Context, words_of
from calotype.edit.paths import EASINGS
from calotype.errors import UsageError
from calotype.families import require_as_large
from calotype.latents import Latents
from calotype.pixels import Padding, require_rgb, to_pil
from calotype.vae import VAE, load

OnStep = Callable[[Step], None]  # is called after each step of a drawing

_OTHER = 0x9E3779B97F4A7C15  # makes another seed of a seed
_TEXT_ALONE = 0.7  # the strength from which on a redraw follows its words' sketch alone


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a drawing depends on, beside prompt and seed.

    These defaults are for models whose velocity is guessed from their sketches; see `Drawer.usual`.

    Attributes:
        steps: calls of the denoiser, each for two texts while guidance counts, and then for one.
        guidance: how much the text counts against the negative one, as `sampler.guided` has it; 1 leaves that out.
        guidance_above: it counts so while more than this part of the noise that a drawing begins with is left; then
            the text counts as it is. 0 is to the end.
        sampler: see `schedule.SAMPLERS`.
        negative: what not to draw, for a guidance other than 1; the empty text where nothing is given.
        size: (width, height) in pixels; what the model was trained on where none is given.

    Raises:
        UsageError: a guidance, a part of noise or a size that can't be, or a negative text that guidance leaves out.
    """

    steps: int = 2
    guidance: float = 1.0
    guidance_above: float = 0.4
    sampler: Sampler = "dpm++"
    negative: str = ""
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.guidance <= 100.0:
            raise UsageError(f"Guidance is a number from 0 to 100, not {self.guidance:g}; 1 follows the text as it is.")
        if not 0.0 <= self.guidance_above < 1.0:
            raise UsageError(
                f"Guidance counts above a part of noise from 0 (to the end) to below 1, not {self.guidance_above:g}."
            )
        if self.negative and self.guidance == 1.0:
            raise UsageError(
                "A negative prompt does nothing at guidance 1; give another guidance, or no negative prompt."
            )
        if self.size is not None and not all(8 <= side <= 4096 for side in self.size):
            raise UsageError(f"A picture is 8 to 4096 pixels wide and high, not {self.size[0]}x{self.size[1]}.")


LONG = Settings(steps=24, guidance=4.0)
"""How models are drawn whose denoiser has all to find out itself; see `Drawer.usual`."""


class Drawer:
    """A drawing model and its VAE.

    Every picture is drawn alone, so what a seed gives does not depend on how many are drawn, bit by bit.

    Args:
        model: as `load_model` gives it; it is moved to the VAE's device.
        vae: the one in whose latents the model draws.

    Raises:
        UsageError: if the model draws in the latents of another VAE, or its pictures are not RGB.
    """

    def __init__(self, model: DrawingModel, vae: VAE) -> None:
        if vae.sha256 != model.config.vae:
            raise UsageError(
                f"This drawing model draws in the latents of the VAE with sha256 {model.config.vae[:12]}..., and "
                f"{vae.name or 'the VAE given'} has {vae.sha256[:12]}...; give the VAE it was trained with."
            )
        require_rgb(vae.picture_channels, vae.name, "drawing")
        require_as_large(vae.config, "Drawing")
        self.model = model.to(vae.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.vae = vae
        self._schedule = Flow()
        self._names = Names(self.model.text, self.model.names, self.model.config.known_within)
        self._grounds: dict[tuple[int, int], Ground] = {}  # by height and width

    def near(self, prompt: str) -> dict[str, float]:
        """The names that a prompt is drawn as, with their shares; none where it is drawn as it is.

        So it is with the names that the model learned and texts near them, and with models that know of no distance
        within which texts are known (`DrawingConfig.known_within`).
        """
        return self._names.near(prompt)

    def meant(self, prompt: str, seed: int) -> str:
        """What a prompt is drawn as: itself, or one of the names `near` it, by the seed."""
        return self._names.meant(prompt, seed)

    def embed(self, *texts: str) -> Context:
        """What the denoiser is told of texts, as they are."""
        with torch.no_grad():
            context: Context = self.model.text(texts)
        return context

    @property
    def usual(self) -> Settings:
        """How this model draws best: in few steps what its sketches tell, and else in many, guided."""
        return Settings() if self.model.config.sketch_std else LONG

    def padding(self, settings: Settings) -> Padding:
        """The size of a drawing, and what is added to it so that the denoiser can halve its latents."""
        size = self.model.config.size
        width, height = settings.size or (size, size)
        factor = self.vae.factor * self.model.config.denoiser.factor
        return Padding(height=height, width=width, bottom=-height % factor, right=-width % factor, mode="reflect")

    def noise(self, seed: int, padding: Padding) -> Tensor:
        """The noise that a seed's drawing begins with, [1, C, h, w]."""
        h, w = ((side // self.vae.factor) for side in (padding.height + padding.bottom, padding.width + padding.right))
        return noise_for([seed], (self.model.config.denoiser.out_channels, h, w))

    def sketched(self, texts: Context, noise: Tensor) -> Context:
        """Texts with noise on their sketches, [1, C, s, s] from N(0, I), as the denoiser was trained with."""
        return texts._replace(sketch=texts.sketch + self.model.config.sketch_noise * noise.to(texts.sketch))

    def sketch_noise(self, seed: int) -> Tensor:
        """The noise that a seed's sketch gets, [1, C, s, s]; not that of its latents."""
        side = self.model.config.text.sketch_side
        return noise_for([seed ^ _OTHER], (self.model.config.denoiser.out_channels, side, side))

    def draw(
        self, prompt: str, seed: int, settings: Settings | None = None, *, on_step: OnStep | None = None
    ) -> Latents:
        """One picture.

        Args:
            prompt: empty draws without words.
            seed: of the noise.
            settings: the `usual` ones where none are given.
            on_step: called after every step.

        Returns:
            Raw latents of the picture, for `VAE.decode_image` and `VAE.write_image`.

        Raises:
            UsageError: a seed, sampler or number of steps that can't be.
        """
        settings = settings or self.usual
        padding = self.padding(settings)
        noise = self.noise(seed, padding)
        texts = self.sketched(self.embed(self.meant(prompt, seed), settings.negative), self.sketch_noise(seed))
        return self.from_noise(texts, noise, padding, settings, on_step=on_step)

    def from_noise(
        self,
        texts: Context,
        noise: Tensor,
        padding: Padding,
        settings: Settings,
        *,
        start: Tensor | None = None,
        strength: float = 1.0,
        keep: Keep | None = None,
        on_step: OnStep | None = None,
    ) -> Latents:
        """What noise [1, C, h, w] becomes, told two texts: the one to draw and the negative one.

        The rest is as `sampler.sample` has it; of `settings` steps, guidance and sampler count.
        """

        def network(x: Tensor, t: Tensor, context: Context) -> Tensor:
            made: Tensor = self.model(x, t, context)
            return made

        above = settings.guidance_above * strength  # a redraw begins with as much noise
        told = guided(network, texts.rows(0, 1), texts.rows(1, 2), settings.guidance, above)
        if ground := self._ground(*noise.shape[2:]):
            told = ground.held(told)
        model_latents = sample(
            told, noise.to(self.vae.device), self._schedule,
            steps=settings.steps, sampler=settings.sampler, start=start, strength=strength, keep=keep, on_step=on_step,
        )  # fmt: skip
        raw = self.vae.latent_format.to_raw(model_latents)[0].float().cpu()
        return Latents(
            tensor=raw, space="raw", format=self.vae.latent_format, vae=self.vae.sha256, vae_name=self.vae.name,
            padding=padding,
        )  # fmt: skip

    def _ground(self, height: int, width: int) -> Ground | None:
        """What drawings of so many latents stand on, where the model's stand on white."""
        std, size = self.model.config.ground_std, (height * self.vae.factor, width * self.vae.factor)
        if std and size not in self._grounds:
            self._grounds[size] = white_ground(self.vae, std, *size)
        return self._grounds.get(size)

    def redraw(
        self,
        source: Latents,
        prompt: str,
        seed: int,
        settings: Settings | None = None,
        *,
        strength: float = 0.6,
        mask: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Latents:
        """A picture changed by words.

        Args:
            source: the picture's latents.
            settings: the `usual` ones where none are given; `size` is not looked at.
            strength: 0 gives the source itself, 1 does not look at it. Where the model guesses from sketches, what it
                is told is between the source and the text's sketch up to a strength of 0.7, and then the text's alone.
            mask: [h, w] of the model latents, in [0, 1]: 1 where it is redrawn, 0 where the source is kept; see
                `redraw.latent_mask`.

        Returns:
            Raw latents of the source's size.

        Raises:
            LatentsError: if the latents are of another space; see `VAE.adopt`.
            UsageError: a strength outside 0 to 1, a mask of another size, or as `draw`.
        """
        settings = settings or self.usual
        own = self.vae.adopt(source)
        raw = own.tensor[None]
        model = self.vae.latent_format.to_model(raw.float())
        _, _, h, w = model.shape
        factor = self.model.config.denoiser.factor
        more = (0, -w % factor, 0, -h % factor)
        start = functional.pad(model, more, mode="replicate")
        keep = None
        if mask is not None:
            if tuple(mask.shape) != (h, w):
                raise UsageError(f"The mask is {list(mask.shape)} and the latents are [{h}, {w}]; make it their size.")
            whole = functional.pad(mask[None, None].float(), more, mode="replicate")[0, 0]
            keep = Keep(latents=start, mask=whole.to(start.device))
        noise = noise_for([seed], start.shape[1:])
        texts = self.embed(self.meant(prompt, seed), settings.negative)
        if self.model.config.sketch_std:
            texts, start = _blended(texts, start, strength)
        texts = self.sketched(texts, self.sketch_noise(seed))
        made = self.from_noise(
            texts, noise, source.padding, settings,
            start=start, strength=strength, keep=keep, on_step=on_step,
        )  # fmt: skip
        if strength == 0.0:  # the way to model latents and back would round
            return own
        return replace(made, tensor=made.tensor[:, : raw.shape[2], : raw.shape[3]].contiguous(), alpha=source.alpha)

    def preview(self, step: Step) -> Image.Image:
        """What a drawing is going to be, as its denoiser sees it after a step; padding is shown too."""
        pixels = self.vae.decode(self.vae.latent_format.to_raw(step.clean[:1]))
        return to_pil(pixels[0].float().cpu())

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that no caption of the training had; none where these are not known."""
        known = set(self.model.words)
        if not known:
            return []
        return [word for word in dict.fromkeys(words_of(prompt)) if word not in known and word not in SMALL]

    def nearest(self, prompt: str, count: int = 3) -> list[str]:
        """The trained names whose words are most like those of a prompt, by the letters they share.

        Args:
            count: names at most; the likest comes first.
        """
        asked = _trigrams(prompt)
        likeness = {name: _likeness(asked, _trigrams(name)) for name in self.model.names}
        return sorted(likeness, key=lambda name: (-likeness[name], len(name), name))[:count]


def load_drawer(
    model: str | os.PathLike[str] | None = None,
    vae: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
) -> Drawer:
    """A drawer from files; the built-in model and VAE where none are given.

    Raises:
        WeightsError, UsageError: as `load_model`, `calotype.load` and `Drawer` raise them.
    """
    return Drawer(load_model(model), load(vae, device=device))


def _blended(texts: Context, start: Tensor, strength: float) -> tuple[Context, Tensor]:
    """Sketches between a picture's own and those of two texts, and the picture moved as far as the first of them.

    To a network that guesses from sketches (`model.guessed_velocity`) a picture that is far from its sketch is like
    none it learned from, and it answers with blotches.
    """
    part = EASINGS["smoothstep"](min(1.0, strength / _TEXT_ALONE))  # without a jolt at either end
    own = functional.adaptive_avg_pool2d(start, texts.sketch.shape[-1]).to(texts.sketch)
    sketch = torch.lerp(own.expand_as(texts.sketch), texts.sketch, part)
    return texts._replace(sketch=sketch), start + enlarged(sketch[:1] - own, start)


def _trigrams(text: str) -> frozenset[str]:
    return frozenset(f" {word} "[i : i + 3] for word in words_of(text) if word not in SMALL for i in range(len(word)))


def _likeness(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a and b else 0.0
