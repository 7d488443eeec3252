"""Training a drawing model: a rectified flow in the latents of a VAE, told what each picture is called."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from calotype import __version__
from calotype.apart import described_by, require_apart
from calotype.draw.cached import CachedPictures, is_cache
from calotype.draw.captions import Caption, held_out, prompt_for, weights_of
from calotype.draw.data import Captioned, Track, captioned
from calotype.draw.model import DrawingConfig, DrawingModel, save_model
from calotype.draw.recipe import DrawingRecipe
from calotype.draw.record import digest
from calotype.draw.start import start_file, start_of
from calotype.draw.text import make_tokenizer, words_of
from calotype.engine.run import multiplies_bfloat16
from calotype.errors import UsageError
from calotype.families import require_as_large
from calotype.files import append_text, writing
from calotype.locks import lock
from calotype.pixels import require_rgb
from calotype.stopping import noted
from calotype.train.checkpoint import DOING, LOCK, keep_lines, read, restoring, told
from calotype.train.ema import EMA
from calotype.train.optim import Muon
from calotype.vae import VAE

CHECKPOINT = "checkpoint.pt"
LATENTS = "latents.safetensors"
METRICS = "metrics.jsonl"
WEIGHTS = "weights.safetensors"
ADVICE = "give another --out"  # where a checkpoint is damaged
TEXTS = 64  # that are sketched at once

# what may differ between the parts of a run: its length and what lies ahead
MAY_CHANGE = {
    "word_steps", "steps", "cooldown", "muon_rate", "learning_rate", "ema_decay", "clip", "time_mean", "time_std",
    "ground_std", "known_within", "log_every", "checkpoint_every",
}  # fmt: skip


class Batch(NamedTuple):
    """A step of the second part.

    Attributes:
        clean: latents, [N, C, h, w].
        prompts: N of them.
        t: times, [N], from 0 (latents) to 1 (noise).
        noise: [N, C, h, w].
        blur: noise on sketches, [N, C, s, s].
    """

    clean: Tensor
    prompts: list[str]
    t: Tensor
    noise: Tensor
    blur: Tensor


class Drawing:
    """A drawing model in training.

    Args:
        recipe: how it is trained.
        captions: of the pictures that are trained on.
        latents: of these pictures, [N, C, h, w].
        vae: sha256 of the VAE that they are of.
        device: where it is trained.
        drawn: gives the latents of such pictures for a step of the denoiser; those of `latents` without it.
        start: whose weights and tokens it begins with; see `start_of`.
    """

    def __init__(
        self,
        recipe: DrawingRecipe,
        captions: list[Caption],
        latents: Tensor,
        vae: str,
        device: torch.device,
        drawn: Callable[[Tensor, int], Tensor] | None = None,
        start: DrawingModel | None = None,
    ) -> None:
        self.recipe, self.captions, self.latents, self.device = recipe, captions, latents, device
        self.drawn = drawn or (lambda picked, step: self.latents[picked])
        self.word_step = self.step = 0  # of the two parts
        self._halved = multiplies_bfloat16(device)
        text = recipe.text_config()
        tokenizer = _tokenizer(captions, recipe, start)
        config = DrawingConfig(
            denoiser=recipe.denoiser_config(latents.shape[1]), text=text, size=recipe.size, vae=vae,
            sketch_noise=recipe.sketch_noise, sketch_std=recipe.sketch_std, ground_std=recipe.ground_std,
            known_within=recipe.known_within,
        )  # fmt: skip
        torch.manual_seed(recipe.seed)
        names, words = [one.name for one in captions], {word for text in _texts(captions) for word in words_of(text)}
        if start:
            names, words = list(dict.fromkeys((*start.names, *names))), words | set(start.words)
        model: Any = DrawingModel(config, tokenizer, names, sorted(words))
        if start:
            model.load_state_dict(start.state_dict())
        # torch has no types for this
        self.model: DrawingModel = model.to(device, memory_format=torch.channels_last)
        self.ema = EMA(self.model.denoiser, recipe.ema_decay)
        self.often = weights_of(captions, recipe.variants)
        self.sketches = functional.adaptive_avg_pool2d(latents, text.sketch_side)
        ends = ("input_blocks.0.", "out.", "time_embed.0")
        named = dict(self.model.denoiser.named_parameters())
        matrices = [named.pop(key) for key in sorted(named) if named[key].ndim > 1 and not key.startswith(ends)]
        self.of_words = optimisers_of_words(self.model.text, recipe)
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices, recipe.muon_rate, weight_decay=recipe.weight_decay),
            torch.optim.AdamW(named.values(), recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0),
        ]

    def _picked(self, part: int, step: int, count: int) -> tuple[Tensor, list[str], torch.Generator]:
        """Which pictures a step is of, its prompts, and a generator for it: of seed and step alone."""
        recipe = self.recipe
        choose = np.random.default_rng([recipe.seed, part, step])
        picked = choose.choice(len(self.captions), count, p=self.often)
        prompts = [
            "" if choose.random() < recipe.text_dropout else prompt_for(self.captions[one], choose) for one in picked
        ]
        return torch.from_numpy(picked), prompts, torch.Generator().manual_seed(int(choose.integers(2**62)))

    def advance_words(self) -> float:
        """One step of the first part; gives its loss, the mean squared error of sketches."""
        recipe = self.recipe
        picked, prompts, _ = self._picked(0, self.word_step, recipe.word_batch)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # the like-long have little padding
        value = 0.0
        for first in range(0, len(order), TEXTS):
            some = order[first : first + TEXTS]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._halved):
                sketched = self.model.text([prompts[i] for i in some]).sketch
            off = (sketched.float() - self.sketches[picked[some]].to(self.device)).square().mean()
            loss = off * (len(some) / len(order))
            loss.backward()
            value += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.text.parameters(), recipe.clip)
        self._move(self.of_words, (recipe.word_muon_rate, recipe.word_rate), recipe.word_share(self.word_step))
        self.word_step += 1
        return value

    def batch(self) -> Batch:
        """What this step of the second part is of."""
        recipe = self.recipe
        picked, prompts, generator = self._picked(1, self.step, recipe.batch)
        clean = self.drawn(picked, self.step)
        noise = torch.randn(clean.shape, generator=generator)
        # logit-normal times (Esser et al. 2024, arXiv:2403.03206, section 3.1)
        t = (recipe.time_mean + recipe.time_std * torch.randn(recipe.batch, generator=generator)).sigmoid()
        blur = recipe.sketch_noise * torch.randn(self.sketches[picked].shape, generator=generator)
        to = self.device
        return Batch(clean.to(to), prompts, t.to(to), noise.to(to), blur.to(to))

    def advance(self) -> float:
        """One step of the second part; gives its loss, the mean squared error of the velocity."""
        recipe = self.recipe
        clean, prompts, t, noise, blur = self.batch()
        at = t[:, None, None, None]
        noisy = (1 - at) * clean + at * noise
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._halved):
            with torch.no_grad():
                context = self.model.text(prompts)
            predicted = self.model(noisy, t, context._replace(sketch=context.sketch + blur))
        loss = (predicted.float() - (noise - clean)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.denoiser.parameters(), recipe.clip)
        self._move(self.optimisers, (recipe.muon_rate, recipe.learning_rate), recipe.rate(self.step))
        self.ema.update(self.model.denoiser)
        self.step += 1
        value: float = loss.item()
        return value

    def _move(self, optimisers: list[torch.optim.Optimizer], rates: tuple[float, float], share: float) -> None:
        for optimiser, rate in zip(optimisers, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * share
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later."""
        return {
            "word_step": self.word_step,
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimisers": [one.state_dict() for one in (*self.of_words, *self.optimisers)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.word_step, self.step = state["word_step"], state["step"]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for one, of_one in zip((*self.of_words, *self.optimisers), state["optimisers"], strict=True):
            one.load_state_dict(of_one)

    def averaged(self, about: dict[str, Any]) -> DrawingModel:
        """The model with the denoiser's averaged weights."""
        model = DrawingModel(self.model.config, self.model.text.tokenizer, self.model.names, self.model.words, about)
        model.text.load_state_dict(self.model.text.state_dict())
        model.denoiser.load_state_dict({name: value.cpu() for name, value in self.ema.shadow.items()})
        return model.eval().requires_grad_(False)


def optimisers_of_words(text: nn.Module, recipe: DrawingRecipe) -> list[torch.optim.Optimizer]:
    """What trains a text encoder to sketch: Muon for inner matrices, AdamW for embeddings, the last layer, vectors."""
    named = dict(text.named_parameters())
    ends = ("embedding", "sketch.4.")
    matrices = [named.pop(key) for key in sorted(named) if named[key].ndim > 1 and not any(end in key for end in ends)]
    return [
        Muon(matrices, recipe.word_muon_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(named.values(), recipe.word_rate, betas=(0.9, 0.99), weight_decay=0.0),
    ]


def _tokenizer(captions: list[Caption], recipe: DrawingRecipe, start: DrawingModel | None) -> Tokenizer:
    return start.text.tokenizer if start else make_tokenizer(_texts(captions), recipe.text_config())


def pictures_of(recipe: DrawingRecipe, data: str | Path, vae: VAE) -> tuple[Captioned | CachedPictures, list[int]]:
    """What is there, and the numbers of those that are trained on."""
    if is_cache(Path(data)):  # none of its pictures is held out
        cached = CachedPictures(Path(data), vae, recipe.size, recipe.seed)
        return cached, list(range(len(cached.captions)))
    pictures = captioned(data)
    apart = {one.file for one in held_out(pictures.captions, recipe.held_out)}
    return pictures, [index for index, one in enumerate(pictures.captions) if one.file not in apart]


def require_drawable(vae: VAE) -> None:
    """Checks that pictures can be drawn in a VAE's latents.

    Raises:
        UsageError: its pictures are not RGB, or their latents as large as they are.
    """
    require_rgb(vae.picture_channels, vae.name, "drawing")
    require_as_large(vae.config, "Drawing")


def train_drawing(
    recipe: DrawingRecipe,
    data: str | Path,
    out: Path,
    vae: VAE,
    *,
    resume: bool = False,
    report: Callable[[dict[str, float]], None] = lambda line: None,
    track: Track = lambda items: items,
) -> Path | None:
    """Trains a drawing model on captioned pictures, or on a cache of latents.

    Of a cache of moments the denoiser sees a fresh sample at each step; of pictures, the posterior's mode.

    Args:
        data: pictures with captions, here or at an address (see `captioned`), or the folder of a cache (see
            `CachedPictures`).
        out: the run's folder: latents where pictures are encoded, checkpoint, metrics.jsonl, and at the end
            weights.safetensors.
        vae: in whose latents it will draw.
        resume: goes on from the checkpoint in `out`.
        report: is given the figures of some steps.
        track: shows how far the encoding of the pictures is.

    Returns:
        The weights' path, or None if SIGINT, SIGTERM or SIGHUP stopped it; what was reached is in the checkpoint.

    Raises:
        UsageError: if captions can't be read, or `out` holds a run of another recipe, or one and `resume` is off, or
            another process trains there, or what is read would be overwritten, or the VAE's pictures are not RGB, or
            a cache is not of this VAE and size.
        PictureError: if a picture can't be read.
        RemoteError: if pictures are at an address, whose server does not answer.
        StorageError: if the disk refuses what is to be kept; what was written before stays. Or if a cache is damaged.
    """
    require_drawable(vae)
    with lock(out / LOCK, DOING, "give another --out"):
        return _train(recipe, data, out, vae, resume, report, track)


def _train(
    recipe: DrawingRecipe,
    data: str | Path,
    out: Path,
    vae: VAE,
    resume: bool,
    report: Callable[[dict[str, float]], None],
    track: Track,
) -> Path | None:
    start = start_of(recipe, vae)
    pictures, seen = pictures_of(recipe, data, vae)
    trained = [pictures.captions[index] for index in seen]
    known = (*pictures.files, *described_by(vae.loaded.files), *([start_file(recipe)] if start else []))
    require_apart([out / name for name in (LATENTS, CHECKPOINT, METRICS, WEIGHTS)], known)
    checkpoint = out / CHECKPOINT
    # before pictures are encoded, which takes long and replaces the latents of the run that is there
    source = {"VAE": vae.sha256}
    if isinstance(pictures, CachedPictures):
        source["cache"] = pictures.fingerprint
    if start:
        source["start"] = digest(start_file(recipe))
    begun = _begun(out, recipe, _tokenizer(trained, recipe, start), source, resume) if checkpoint.exists() else None
    if isinstance(pictures, CachedPictures):
        drawing = Drawing(recipe, trained, pictures.modes(), vae.sha256, vae.device, pictures.drawn, start)
    else:
        latents = pictures.kept(vae, recipe.size, out / LATENTS, track)
        drawing = Drawing(recipe, trained, latents[seen], vae.sha256, vae.device, start=start)
    if begun:
        with restoring(checkpoint, ADVICE):
            drawing.load_state_dict(begun)
    keep_lines(out / METRICS, lambda line: line["step"] <= (drawing.word_step if line["part"] == 1 else drawing.step))
    about = {
        "calotype": __version__, "recipe": recipe.to_dict(), "pictures": len(trained), "captions": pictures.sha256,
        "held_out": sorted(pictures.captions[index].name for index in set(range(len(pictures.captions))) - set(seen)),
        **({"start": source["start"]} if start else {}),
    }  # fmt: skip

    on = json.dumps(_trained_on(source, drawing.model.text.tokenizer))

    def save() -> None:
        with writing(checkpoint) as file:
            torch.save({"recipe": json.dumps(recipe.to_dict()), "trained_on": on, **drawing.state_dict()}, file)
        save_model(drawing.averaged({**about, "steps": drawing.step}), out / WEIGHTS)

    losses: list[float] = []
    began = time.perf_counter()
    with noted() as stopped:
        while not stopped() and (drawing.word_step < recipe.word_steps or drawing.step < recipe.steps):
            words = drawing.word_step < recipe.word_steps
            losses.append(drawing.advance_words() if words else drawing.advance())
            step = drawing.word_step if words else drawing.step
            if step % recipe.log_every == 0:
                now_ = time.perf_counter()
                line = {
                    "part": 1 if words else 2,
                    "step": step,
                    "loss": sum(losses) / len(losses),
                    "pictures_per_second": (recipe.word_batch if words else recipe.batch)
                    * len(losses)
                    / (now_ - began),
                }
                append_text(out / METRICS, json.dumps(line) + "\n")
                report(line)
                losses, began = [], now_
            if words and step == recipe.word_steps:  # no line is of both parts
                losses, began = [], time.perf_counter()
            if step % recipe.checkpoint_every == 0:
                save()
        save()
    return out / WEIGHTS if drawing.step >= recipe.steps else None


def _begun(
    out: Path, recipe: DrawingRecipe, tokenizer: Tokenizer, source: dict[str, str], resume: bool
) -> dict[str, Any]:
    """The checkpoint of a run, if it can be gone on with."""
    checkpoint = out / CHECKPOINT
    if not resume:
        raise UsageError(f"{checkpoint}: a run is here already; go on with --resume, or give another --out.")
    keys = ("recipe", "trained_on", "word_step", "step", "model", "ema", "optimisers")
    state = read(checkpoint, keys, ADVICE)
    then, now = told(state, "recipe", checkpoint, ADVICE), json.loads(json.dumps(recipe.to_dict()))
    # a denoiser that has begun knows texts as they are
    fixed = now.keys() - MAY_CHANGE | ({"word_steps"} if state["step"] else set())
    usual = DrawingRecipe().to_dict()  # of a key that recipes had not yet
    changed = sorted(key for key in fixed if then.get(key, usual[key]) != now[key])
    if not changed:  # the same recipe, so tokenizers differ by their texts alone
        before, after = told(state, "trained_on", checkpoint, ADVICE), _trained_on(source, tokenizer)
        changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if changed:
        raise UsageError(f"{checkpoint}: it was trained with another {', '.join(changed)}; give another --out.")
    return state


def _trained_on(source: dict[str, str], tokenizer: Tokenizer) -> dict[str, str]:
    """What a run is of beside its recipe, as hashes: whose latents (and which cache) it learned, and what words."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return {**source, "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest()}


def _texts(captions: list[Caption]) -> list[str]:
    """Texts that the tokenizer learns from: names weigh more than keywords."""
    return [text for one in captions for text in (*one.names, *one.names, *one.keywords)]
