"""Checkpoints of other models: drawn by diffusers' pipelines, encoded and decoded by calotype's VAE."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from calotype.draw.area import levels_of, pasted, thin, whole_latents
from calotype.draw.assemble import (
    checkpoint_vae,
    find_configs,
    pipeline_class,
    pipeline_from_file,
    pipeline_from_folder,
    quiet,
    require_libraries,
    vae_class,
)
from calotype.draw.kinds import Found, detect_file, detect_folder
from calotype.draw.sampler import Step
from calotype.draw.schedulers import Watched, scheduler_named
from calotype.edit.feather import FEATHER, shown
from calotype.edit.masks import MaskSource
from calotype.errors import CalotypeWarning, FetchError, UsageError, WeightsError
from calotype.families.face import listing
from calotype.latents import LatentFormat, Latents
from calotype.pixels import Padding, crop, pad, read_picture, to_pil
from calotype.vae import VAE, enough_memory, pick_device
from calotype.weights.container import Container, open_container

PictureSource = str | os.PathLike[str] | bytes | Image.Image  # bytes are those of a file


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    vae: VAE | str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """Loads a checkpoint of Stable Diffusion 1, 2, XL or 3, or a folder of one of the other `KINDS`.

    Args:
        path: a diffusers folder, or one file in the original layout (``model.diffusion_model.*`` and so on).
        vae: takes the place of the checkpoint's own: what `calotype.load` takes or returns. It must have the same
            latents; where its weights do not say how they are scaled, they are taken to be.
        config: for a single file, which holds no configurations and no words of a tokenizer: a diffusers folder that
            has them (weights need not be in it), or a repository on the hub. None: the repository of the original
            checkpoint of that kind, from the local cache or the network.
        device: where it runs; CUDA where there is one, else MPS, else the CPU.
        dtype: of weights and computation; None: float32 on the CPU, else float16, or bfloat16 where that is usual.
            Pictures to redraw are encoded in float32 all the same.

    Raises:
        WeightsError: if there is no whole checkpoint of a known kind; the message says what there is.
        FetchError: if a single file's configurations are neither in the cache nor can be fetched.
        UsageError: for a VAE with other latents, an unknown device or dtype, or if libraries are missing.
    """
    path = Path(path)
    target = pick_device(device)
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(f"A checkpoint computes in float32, bfloat16 or float16, not {dtype}.")
    if not path.exists():
        raise WeightsError(f"{path}: there is no such file or folder; give a checkpoint.")
    try:
        found = detect_folder(path) if path.is_dir() else detect_file(_whole(path).shapes)
        require_libraries()
        dtype = dtype or (torch.float32 if target.type == "cpu" else getattr(torch, found.kind.narrow))
        own = checkpoint_vae(path, found, vae, target, dtype)
        with quiet(Warning):
            wrapped = vae_class(path, found)(own).to(dtype)
            wrapped.encode_dtype = torch.float32
            if path.is_dir():
                if config is not None:
                    raise UsageError(f"{path}: a diffusers folder has its own configurations; leave --config away.")
                pipe = pipeline_from_folder(path, found, wrapped, dtype)
            else:
                pipe = pipeline_from_file(path, found, wrapped, dtype, find_configs(path, found, config))
            lacking = [
                f"{name}.{key}"
                for name, part in pipe.components.items()
                if isinstance(part, torch.nn.Module)
                for key, value in part.named_parameters()
                if value.is_meta
            ]
            if lacking:
                raise WeightsError(listing("missing", lacking))
            pipe.set_progress_bar_config(disable=True)
            pipe.to(target)
    except PermissionError:
        raise WeightsError(f"{path}: it may not be read; check its permissions.") from None
    except FetchError:
        raise
    except WeightsError as error:
        text = str(error).rstrip(".")
        raise WeightsError(f"{text}." if text.startswith(str(path)) else f"{path}: {text}.") from None
    return Checkpoint(pipe, found, own)


def _whole(path: Path) -> Container:
    """The tensors of a single file.

    Raises:
        WeightsError: if it is damaged, or of a kind that diffusers does not make a pipeline of.
    """
    container = open_container(path)
    if container.kind == "GGUF":
        raise WeightsError(
            "this is a GGUF file, of which the VAE alone is read; to draw with, get the checkpoint as safetensors"
        )
    return container


@dataclass(frozen=True, eq=False)
class Drawn:
    """One finished picture.

    Attributes:
        picture: RGB, or RGBA (Qwen-Image 2.1).
        latents: what it was decoded from, in the model's space; `VAE.decode_images` decodes them again.
        prompt, seed: what it was drawn by.
    """

    picture: Image.Image
    latents: Latents
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What `draw` and `redraw` were asked for, checked."""

    prompts: list[str]
    negatives: list[str] | None
    seeds: list[int]
    steps: int
    guidance: float
    scheduler: Any
    batch: int
    on_step: Callable[[Step], None] | None

    def batches(self) -> Iterator[slice]:
        for start in range(0, len(self.prompts), self.batch):
            yield slice(start, start + self.batch)


class _Hole(NamedTuple):
    """A mask: its levels, uint8 [H, W], and how much of what was drawn is shown, [H, W]."""

    levels: Tensor
    part: Tensor


class Checkpoint:
    """A model that draws; `load_checkpoint` makes it.

    Attributes:
        pipe: diffusers' pipeline, whose VAE is calotype's.
        kind: sd1, sd2, sdxl, sd3, flux, ...: a name of `kinds.KINDS`.
        inpainting: whether it was trained to fill holes; such a checkpoint only redraws.
        factor: pixels along a side that one latent stands for.
        multiple: sides of pictures are multiples of so many pixels.
        latent_format: how the VAE's raw latents and the model's differ.
        vae_name: how the VAE was asked for, for people.
        vae_sha256: of its weights.
    """

    def __init__(self, pipe: Any, found: Found, vae: VAE) -> None:
        self.pipe = pipe
        self.kind = found.kind.name
        self.inpainting = found.inpainting
        self.latent_format: LatentFormat = vae.latent_format
        self.vae_name, self.vae_sha256 = vae.name, vae.sha256
        self.factor = vae.factor
        self._found = found
        self._denoiser = getattr(pipe, found.kind.denoiser)
        self.multiple = self.factor * found.kind.patch
        self._scheduler = pipe.scheduler

    def __repr__(self) -> str:
        filling = " inpainting" if self.inpainting else ""
        return f"Checkpoint({self._found.kind.title}{filling}, VAE {self.vae_name}, {self.pipe.device})"

    def draw(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int = 30,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        negative: str | Sequence[str] | None = None,
        sampler: str | None = None,
        batch: int = 1,
        on_step: Callable[[Step], None] | None = None,
    ) -> Iterator[Drawn]:
        """Pictures of prompts, each as soon as its batch is finished, so that what interrupts keeps the others.

        A picture depends on its prompt, its seed and the settings, not on the others or the batch (but for rounding).

        Args:
            prompts: one for each picture.
            seeds: one for each picture, from 0 to 2^64 - 1; the noise is what diffusers draws from a generator on the
                CPU with that seed.
            steps: of the sampler, at least 1.
            guidance: scale of classifier-free guidance; none at 1 and below. None: what is usual for the kind.
            size: (height, width), multiples of `multiple`; None: what the model was trained at.
            negative: what not to draw: for all pictures, or for each.
            sampler: one of `SAMPLERS` with the checkpoint's own noise schedule; None: the checkpoint's own. Where the
                model predicts flow (SD3), DDIM's step is Euler's.
            batch: pictures drawn at once.
            on_step: called after every step of every batch; may raise to stop. `Step.clean` are model latents.

        Raises:
            UsageError: for any of these out of range; before anything is drawn.
            MemoryLimitError: if there is not enough memory.
            LatentsError, NonFiniteError: if what was drawn is not finite.
        """
        order = self._order(prompts, seeds, steps, guidance, negative, sampler, batch, on_step)
        if self.inpainting:
            raise UsageError("An inpainting checkpoint only redraws; give it a picture and a mask (redraw).")
        height, width = self._size(size)
        return self._draw(order, height, width)

    def redraw(
        self,
        pictures: PictureSource | Sequence[PictureSource],
        prompts: str | Sequence[str],
        *,
        seeds: Sequence[int],
        strength: float = 0.6,
        mask: MaskSource | Tensor | None = None,
        feather: int = FEATHER,
        steps: int = 30,
        guidance: float | None = None,
        negative: str | Sequence[str] | None = None,
        sampler: str | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Iterator[Drawn]:
        """Pictures changed by prompts, as `draw` gives them; one after the other, for their sizes may differ.

        Args:
            pictures: one for each prompt. Sizes that are no multiple of `multiple` are padded meanwhile.
            strength: 0 leaves the round trip through the VAE, 1 draws anew; of `steps`, this part is run.
            mask: of the size of every picture, as `edit.masks.read_mask` reads it, or a tensor [H, W]: bool, numbers
                from 0 to 1, or levels, uint8. What is white is redrawn, in whole latents (see `area`).
            feather: how far, in pixels, what was drawn is shown beyond the mask, less and less; what is further from it
                keeps its pixels bit for bit.
            prompts, seeds, steps, guidance, negative, sampler, on_step: as for `draw`.

        Raises:
            PictureError: if a picture or the mask can't be read.
            UsageError, MemoryLimitError, LatentsError, NonFiniteError: as `draw`.
        """
        if not self._found.kind.tasks:
            raise UsageError(
                f"{self._found.kind.title} only draws: no pipeline of diffusers starts it from a picture, part of "
                f"the way; redraw with another model."
            )
        order = self._order(prompts, seeds, steps, guidance, negative, sampler, 1, on_step)
        pictures = [pictures] if isinstance(pictures, str | bytes | os.PathLike | Image.Image) else pictures
        if len(pictures) != len(order.prompts):
            raise UsageError(f"There are {len(pictures)} pictures and {len(order.prompts)} prompts; give one for each.")
        if not 0.0 <= strength <= 1.0:
            raise UsageError(f"A strength is a number from 0 (nothing changes) to 1 (all is new), not {strength:g}.")
        run = math.floor(steps * strength + 1e-6)
        if strength and not run:
            least = math.ceil(1000 / steps) / 1000
            raise UsageError(
                f"A strength of {strength:g} runs none of {steps} steps; give at least {least:g}, or more steps."
            )
        # some pipelines round steps down, those of flows up: half a step more, or less, is what they can't round wrong
        half = -0.5 if self._found.kind.flow else 0.5
        exact = (run + half) / steps if 0 < run < steps else float(run > 0)
        if mask is None:
            return self._redraw(order, pictures, exact, None)
        levels, notices = levels_of(mask)
        notices += filter(None, [thin(levels, self.factor, self.multiple // self.factor)])
        for notice in notices:
            warnings.warn(notice, CalotypeWarning, stacklevel=2)
        return self._redraw(order, pictures, exact, _Hole(levels, shown(levels, feather)))

    def _draw(self, order: _Order, height: int, width: int) -> Iterator[Drawn]:
        for part in order.batches():
            latents = self._run("", order, part, (height, width), height=height, width=width)
            yield from self._finish(latents, order, part, [Padding(height, width, 0, 0, "reflect")] * len(latents))

    def _redraw(
        self, order: _Order, pictures: Sequence[PictureSource], strength: float, hole: _Hole | None
    ) -> Iterator[Drawn]:
        for i, source in enumerate(pictures):
            pixels = read_picture(source).pixels
            if hole is not None and hole.levels.shape != pixels.shape[1:]:
                sizes = [" x ".join(map(str, reversed(shape))) for shape in (hole.levels.shape, pixels.shape[1:])]
                raise UsageError(f"The mask is {sizes[0]} and the picture {sizes[1]}; they must be of one size.")
            image, padding = pad(pixels[None], self.multiple)
            height, width = self._size((image.shape[2], image.shape[3]))
            part = slice(i, i + 1)
            size = {"height": height, "width": width}
            if strength == 0.0:
                latents = self._latents(image)
            elif hole is not None or self.inpainting:
                drawn_anew = torch.ones(1, 1, height, width)
                if hole is not None:
                    cells = whole_latents(hole.levels, self.factor, self.multiple // self.factor)
                    drawn_anew = functional.interpolate(cells[None, None], scale_factor=self.multiple)
                masked = {"image": (image + 1) / 2, "mask_image": drawn_anew, "strength": strength}
                latents = self._run("Inpaint", order, part, (height, width), **masked, **size)
            elif strength == 1.0:
                latents = self._run("", order, part, (height, width), **size)
            else:
                if not self._found.kind.flow:
                    size = {}  # they take the picture's
                latents = self._run(
                    "Img2Img", order, part, (height, width), image=(image + 1) / 2, strength=strength, **size
                )
            for drawn in self._finish(latents, order, part, [padding]):
                if hole is not None:
                    drawn = replace(drawn, picture=pasted(drawn.picture, to_pil(pixels), hole.part))
                yield drawn

    def _run(self, task: str, order: _Order, part: slice, size: tuple[int, int], **inputs: Any) -> Tensor:
        """One call of a pipeline: model latents [N, C, h, w]."""
        scheduler = type(order.scheduler).from_config(order.scheduler.config)  # a new one: they count their steps
        if not hasattr(scheduler, "scale_noise") and self._found.kind.flow:  # DPM-Solver calls it by another name
            scheduler.scale_noise = lambda sample, timestep, noise: scheduler.add_noise(sample, noise, timestep)
        watched = Watched(scheduler)
        prompts, on_step = order.prompts[part], order.on_step

        def step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None:
                last = index + 1 == pipe.num_timesteps
                clean = tensors["latents"] if last or watched.clean is None else watched.clean
                on_step(Step(index=index, total=pipe.num_timesteps, clean=self._maps(clean, size)))
            return {}

        with quiet(FutureWarning, DeprecationWarning), enough_memory((len(prompts), 3, *size)):
            pipeline, extra = pipeline_class(self._found, task)
            said = {
                key: self.pipe.config[key] for key in inspect.signature(pipeline).parameters if key in self.pipe.config
            }
            pipe = pipeline(**{**said, **self.pipe.components, **extra, "scheduler": scheduler})
            pipe.set_progress_bar_config(disable=True)
            made = pipe(
                prompt=prompts,
                num_inference_steps=order.steps,
                generator=[torch.Generator().manual_seed(seed) for seed in order.seeds[part]],
                output_type="latent",
                callback_on_step_end=step,
                **self._guided(order, part),
                **inputs,
            )
        return self._maps(made.frames if hasattr(made, "frames") else made.images, size)

    def _guided(self, order: _Order, part: slice) -> dict[str, Any]:
        """What the pipeline is told of guidance."""
        kind = self._found.kind
        told = dict(kind.given)
        if kind.guided_by is not None:
            told[kind.guided_by] = order.guidance
        if order.negatives is not None:
            told["negative_prompt"] = order.negatives[part]
        elif kind.nothing is not None and order.guidance > 1:
            told["negative_prompt"] = [kind.nothing] * len(order.prompts[part])
        return told

    def _maps(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """What a pipeline calls latents of pictures of a size -> model latents [N, C, h, w]."""
        if (n := self._found.kind.rows) and latents.ndim == 3:
            height, width = (side // (self.factor * self.latent_format.patch * n) for side in size)
            cells = latents.reshape(len(latents), height, width, -1, n, n).permute(0, 3, 1, 4, 2, 5)
            return cells.reshape(len(latents), -1, height * n, width * n)
        return latents[:, :, 0] if latents.ndim == 5 else latents

    def _latents(self, pixels: Tensor) -> Tensor:
        """Pixels [N, P, H, W] in [-1, 1] -> model latents, without noise."""
        vae, frames = self.pipe.vae, self._found.kind.frames
        pixels = pixels.to(vae.device, vae.dtype)
        raw = vae.encode(pixels[:, :, None] if frames else pixels).latent_dist.mode()
        return self.latent_format.to_model(raw[:, :, 0] if frames else raw)

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:
        """Model latents [N, C, h, w] -> pixels [N, P, H, W], float32 on the CPU, about [-1, 1]."""
        vae, frames = self.pipe.vae, self._found.kind.frames
        raw = self.latent_format.to_raw(latents).to(vae.device, vae.dtype)
        made = vae.decode(raw[:, :, None] if frames else raw).sample
        pixels: Tensor = (made[:, :, 0] if frames else made).float().cpu()
        return pixels

    @torch.no_grad()
    def _finish(self, latents: Tensor, order: _Order, part: slice, paddings: Sequence[Padding]) -> Iterator[Drawn]:
        rows = zip(latents.float(), order.prompts[part], order.seeds[part], paddings, strict=True)
        for model, prompt, seed, padding in rows:
            named = Latents(
                tensor=model.cpu(),
                space="model",
                format=self.latent_format,
                vae=self.vae_sha256,
                padding=padding,
                vae_name=self.vae_name,
            )
            with enough_memory((3, padding.height, padding.width)):
                pixels = self.pixels(model[None])[0]
            yield Drawn(to_pil(crop(pixels, padding)), named, prompt, seed)

    def _order(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance: float | None,
        negative: str | Sequence[str] | None,
        sampler: str | None,
        batch: int,
        on_step: Callable[[Step], None] | None,
    ) -> _Order:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if len(prompts) != len(seeds) or not prompts:
            raise UsageError(f"There are {len(prompts)} prompts and {len(seeds)} seeds; give a seed for each prompt.")
        for seed in seeds:
            if not 0 <= seed < 2**64:
                raise UsageError(f"A seed is a whole number from 0 to 2^64 - 1, not {seed}.")
        for name, value in (("steps", steps), ("pictures in a batch", batch)):
            if value < 1:
                raise UsageError(f"The number of {name} must be at least 1, not {value}.")
        kind = self._found.kind
        if guidance is not None and kind.guided_by is None:
            raise UsageError(f"{kind.title} is guided as its folder says (guider/); leave the guidance out.")
        guidance = kind.guidance if guidance is None else guidance
        if not math.isfinite(guidance):
            raise UsageError(f"A guidance is a finite number, not {guidance}.")
        negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative or [])
        if negatives and not kind.negative:
            raise UsageError(f"{kind.title} takes no negative prompt; leave it out.")
        if negatives and len(negatives) != len(prompts):
            raise UsageError(f"There are {len(negatives)} negative prompts and {len(prompts)} prompts; give as many.")
        if negatives and guidance <= 1:
            raise UsageError(f"A negative prompt needs guidance above 1, and it is {guidance:g}.")
        for text in [*prompts, *(negatives or [])]:
            self._warn_if_long(text)
        return _Order(
            prompts=prompts,
            negatives=negatives or None,
            seeds=list(seeds),
            steps=steps,
            guidance=guidance,
            scheduler=self._scheduler if sampler is None else scheduler_named(sampler, self._scheduler, kind),
            batch=batch,
            on_step=on_step,
        )

    def _warn_if_long(self, text: str) -> None:
        name, most = self._found.kind.reads or ("", None)
        tokenizer = getattr(self.pipe, name, None)
        if tokenizer is None:
            return
        most = most or tokenizer.model_max_length
        with quiet(Warning):
            count = len(tokenizer(text).input_ids)
        if count > most:
            shown = text if len(text) <= 40 else f"{text[:40]}..."
            warnings.warn(
                f"The prompt {shown!r} has {count} tokens, and the text encoder reads the first {most}.",
                CalotypeWarning,
                stacklevel=4,
            )

    def _size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        config = self._denoiser.config
        if size is None:
            if self._found.kind.size is not None:
                return self._found.kind.size
            side = config.sample_size
            height, width = (side, side) if isinstance(side, int) else side
            return height * self.factor, width * self.factor
        if any(n < 1 or n % self.multiple for n in size):
            raise UsageError(
                f"A picture {size[1]} wide and {size[0]} high can't be drawn: sides are multiples of {self.multiple}."
            )
        positions = config.get("pos_embed_max_size")
        if positions is not None and max(size) > (most := positions * self.multiple):
            raise UsageError(
                f"A picture {size[1]} wide and {size[0]} high can't be drawn: sides are at most {most} here."
            )
        return size
