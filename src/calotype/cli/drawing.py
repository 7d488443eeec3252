"""What the commands that draw share: options, what draws, and how a drawing is followed."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from calotype.apart import weights_files
from calotype.cli.bars import shown
from calotype.cli.common import Dtype, make_folder, stop
from calotype.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from calotype.draw.checkpoints import Checkpoint
    from calotype.draw.pipeline import Drawer, Settings
    from calotype.draw.previews import Previewer
    from calotype.draw.sampler import Step
    from calotype.latents import Latents
    from calotype.pixels import PictureRows

    OnStep = Callable[[Step], None]

BUILTIN = "builtin"
CHECKPOINT_STEPS = 30
MOST_SEED = 2**63 - 1
_MOST_WORDS = 6  # that the model does not know, or draws instead, and that are named
_LONGEST = 60  # bytes of a name that a prompt is made


class SamplerName(str, Enum):
    """Samplers."""

    dpm = "dpm++"
    euler = "euler"
    ddim = "ddim"


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="What draws: a drawing model's file, or a checkpoint (a file of Stable Diffusion, or a diffusers folder).",
        show_default="built-in",
    ),
]
DrawVaeOption = Annotated[
    str | None,
    typer.Option("--vae", help="VAE in whose latents the model draws.", show_default="built-in, or the checkpoint's"),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(help="For a checkpoint in one file: folder or hub repository with its configurations."),
]
DrawDtypeOption = Annotated[
    Dtype | None,
    typer.Option(help="What a checkpoint computes in.", show_default="float32 on the CPU, else float16 or bfloat16"),
]
SeedsOption = Annotated[
    int | None,
    typer.Option(min=0, max=MOST_SEED, help="Of the first; the others count on.", show_default="0"),
]
StepsOption = Annotated[
    int | None,
    typer.Option(min=1, max=1000, help="Steps of a drawing.", show_default=f"2; checkpoints {CHECKPOINT_STEPS}"),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(help="How much the prompt counts; 1 is as it is.", show_default="1; checkpoints what is usual"),
]
GuidanceAboveOption = Annotated[
    float | None,
    typer.Option(
        "--guidance-above",
        help="It counts while more than this part of the noise is left; 0 is to the end. Not of checkpoints.",
        show_default="0.4",
    ),
]
NegativeOption = Annotated[str | None, typer.Option(help="What not to draw.", show_default="nothing")]
SamplerOption = Annotated[
    SamplerName | None, typer.Option(help="How steps are taken.", show_default="dpm++; checkpoints their own")
]
PreviewOption = Annotated[
    Path | None, typer.Option(help="Picture that shows the drawing after every step.", show_default="none")
]
PreviewByOption = Annotated[
    str | None,
    typer.Option(
        "--preview-by",
        help="What makes it: factors (at no cost), the factors.json of `calotype probe`, or a small VAE of the same "
        "latents (taesd, taesdxl, taef1, ...).",
        show_default="the VAE, as the picture itself",
    ),
]
PreviewEveryOption = Annotated[
    int | None,
    typer.Option("--preview-every", min=1, help="Only after every n-th step, and the last.", show_default="1"),
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a drawing depends on beside prompt and seed, as asked for; None is the model's own."""

    steps: int | None = None
    guidance: float | None = None
    guidance_above: float | None = None
    sampler: str | None = None
    negative: str = ""
    size: tuple[int, int] | None = None  # width, height

    def __post_init__(self) -> None:
        if self.negative and self.guidance == 1.0:
            raise UsageError(
                "A negative prompt does nothing at guidance 1; give another guidance, or no negative prompt."
            )
        require_text(self.negative)


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """What a picture is to become.

    Attributes:
        source: a picture, or latents.
        prompts: one after another.
        seed: of the first; the others count on.
        strength: from 0 to 1.
        mask: levels, uint8 [H, W], white where it is redrawn.
        feather: how far beyond the mask what was drawn is shown, in pixels.
    """

    source: PictureRows | Latents
    prompts: list[str]
    seed: int
    strength: float
    mask: Tensor | None = None
    feather: int = 0


class Stage(NamedTuple):
    """What a prompt has made of a picture."""

    latents: Latents
    write: Callable[[Path, dict[str, str]], Path]  # takes the text to write beside it


class Model(ABC):
    """What draws.

    Attributes:
        name, sha256: of its file (or folder).
        vae_name, vae_sha256: of its VAE.
    """

    name: str
    sha256: str
    vae_name: str
    vae_sha256: str

    @abstractmethod
    def made_with(self, asked: Asked) -> dict[str, Any]:
        """What pictures depend on, for their records; what is left out is the model's own."""

    @abstractmethod
    def draw(self, prompt: str, seed: int, asked: Asked, on_step: OnStep) -> Image.Image:
        """One picture."""

    @abstractmethod
    def redraw(self, edit: Edit, asked: Asked, on_step: Callable[[int], OnStep]) -> Iterator[Stage]:
        """A picture changed by one prompt after another."""

    @abstractmethod
    def decode(self, latents: Latents) -> Image.Image:
        """The picture that latents are."""

    @abstractmethod
    def preview(self, step: Step) -> Image.Image:
        """What a drawing looks like after a step."""

    @abstractmethod
    def previewer(self, by: str) -> Previewer:
        """What shows its latents more quickly; see `draw.previews.previewer`."""

    def notices(self, prompt: str) -> list[str]:
        """What is to be said of a prompt, a sentence each."""
        return [] if prompt.strip() else ["The prompt is empty, so it is drawn without words."]

    @property
    def names(self) -> dict[str, dict[str, str]]:
        """Model and VAE, for records."""
        return {
            "model": {"name": self.name, "sha256": self.sha256},
            "vae": {"name": self.vae_name, "sha256": self.vae_sha256},
        }


class OwnModel(Model):
    """A drawing model of calotype."""

    def __init__(self, drawer: Drawer, name: str, sha256: str) -> None:
        self.drawer, self.name, self.sha256 = drawer, name, sha256
        self.vae_name, self.vae_sha256 = drawer.vae.name, drawer.vae.sha256

    def settings(self, asked: Asked) -> Settings:
        """What was asked for, and the defaults for what was not."""
        return replace(self.drawer.usual, **{key: value for key, value in vars(asked).items() if value is not None})

    def made_with(self, asked: Asked) -> dict[str, Any]:
        found = self.settings(asked)
        return {
            "negative": found.negative, "steps": found.steps, "guidance": found.guidance,
            "guidance_above": found.guidance_above, "sampler": found.sampler,
        }  # fmt: skip

    def draw(self, prompt: str, seed: int, asked: Asked, on_step: OnStep) -> Image.Image:
        return self.decode(self.drawer.draw(prompt, seed, self.settings(asked), on_step=on_step))

    def redraw(self, edit: Edit, asked: Asked, on_step: Callable[[int], OnStep]) -> Iterator[Stage]:
        from calotype.draw.area import pasted
        from calotype.draw.redraw import latent_mask, redrawn, write_redrawn
        from calotype.edit.feather import shown
        from calotype.edit.sources import latents_of
        from calotype.latents import Latents
        from calotype.pixels import write_picture

        vae, source = self.drawer.vae, edit.source
        mask = None if edit.mask is None else latent_mask(vae, edit.mask)
        part = None if edit.mask is None else shown(edit.mask, edit.feather)
        before = vae.decode_image(source) if isinstance(source, Latents) and part is not None else None
        stages = redrawn(
            self.drawer, latents_of(vae, source), edit.prompts, edit.seed, self.settings(asked),
            strength=edit.strength, mask=mask, on_step=on_step,
        )  # fmt: skip
        for latents in stages:

            def write(path: Path, text: dict[str, str], latents: Latents = latents) -> Path:
                if part is None:
                    return vae.write_image(path, latents, text=text)
                if before is not None:
                    return write_picture(path, pasted(vae.decode_image(latents), before, part), text=text)
                assert not isinstance(source, Latents)
                return write_redrawn(vae, latents, source, part, path, text=text)

            yield Stage(latents, write)

    def decode(self, latents: Latents) -> Image.Image:
        return self.drawer.vae.decode_image(latents)

    def preview(self, step: Step) -> Image.Image:
        return self.drawer.preview(step)

    def previewer(self, by: str) -> Previewer:
        from calotype.draw.previews import previewer

        vae = self.drawer.vae
        return previewer(by, vae.latent_format, vae.sha256, vae.factor, vae_name=vae.name, device=vae.device)

    def notices(self, prompt: str) -> list[str]:
        from calotype.draw.text import words_of

        notices = super().notices(prompt)
        text = self.drawer.model.text
        if (length := text.length(prompt)) > text.config.context_length:
            notices += [f"{_short(prompt)} has {length} tokens, and the first {text.config.context_length} are read."]
        if prompt.strip() and not words_of(prompt):
            notices += [f"{_short(prompt)} has no words, and the model knows nothing else; say in words what to draw."]
        if unknown := self.drawer.unknown(prompt):
            near = ", ".join(self.drawer.nearest(prompt))
            notices += [f"The model does not know {_some(unknown)}; the nearest that it knows: {near}."]
        if meant := list(self.drawer.near(prompt)):
            notices += [f"The model learned no picture called {_short(prompt)}; it draws, by the seed: {_some(meant)}."]
        return notices


class CheckpointModel(Model):
    """A checkpoint that diffusers draws with."""

    def __init__(self, checkpoint: Checkpoint, name: str, sha256: str) -> None:
        self.checkpoint, self.name, self.sha256 = checkpoint, name, sha256
        self.vae_name, self.vae_sha256 = checkpoint.vae_name, checkpoint.vae_sha256

    def options(self, asked: Asked) -> dict[str, Any]:
        """What `Checkpoint.draw` and `Checkpoint.redraw` both take.

        Raises:
            UsageError: there is something that they don't take.
        """
        if asked.guidance_above is not None:
            raise UsageError(f"--guidance-above goes with calotype's own models, and {self.name} is a checkpoint.")
        return {
            "steps": asked.steps or CHECKPOINT_STEPS, "guidance": asked.guidance, "negative": asked.negative or None,
            "sampler": asked.sampler,
        }  # fmt: skip

    def made_with(self, asked: Asked) -> dict[str, Any]:
        from calotype.weights.mapped import dtype_name

        dtype = dtype_name(self.checkpoint.pipe.dtype)
        return {**self.options(asked), "negative": asked.negative, "dtype": dtype}

    def draw(self, prompt: str, seed: int, asked: Asked, on_step: OnStep) -> Image.Image:
        size = None if asked.size is None else (asked.size[1], asked.size[0])
        drawn = self.checkpoint.draw([prompt], seeds=[seed], size=size, on_step=on_step, **self.options(asked))
        return next(drawn).picture

    def redraw(self, edit: Edit, asked: Asked, on_step: Callable[[int], OnStep]) -> Iterator[Stage]:
        from calotype.latents import Latents
        from calotype.pixels import to_pil, write_picture

        assert not isinstance(edit.source, Latents)
        image = to_pil(edit.source.rows(0, edit.source.size[0]))
        for i, prompt in enumerate(edit.prompts):
            [drawn] = self.checkpoint.redraw(
                [image], [prompt], seeds=[edit.seed + i], strength=edit.strength,
                mask=edit.mask, feather=edit.feather, on_step=on_step(i), **self.options(asked),
            )  # fmt: skip
            image = drawn.picture

            def write(path: Path, text: dict[str, str], image: Image.Image = image) -> Path:
                return write_picture(path, image, text=text)

            yield Stage(drawn.latents, write)

    def decode(self, latents: Latents) -> Image.Image:
        raise UsageError("A checkpoint redraws pictures, not latents; give what `calotype decode` makes of them.")

    def preview(self, step: Step) -> Image.Image:
        from calotype.pixels import to_pil

        return to_pil(self.checkpoint.pixels(step.clean[:1])[0])

    def previewer(self, by: str) -> Previewer:
        from calotype.draw.previews import previewer

        own = self.checkpoint
        return previewer(
            by, own.latent_format, own.vae_sha256, own.factor, vae_name=own.vae_name, device=own.pipe.device
        )


def load_model(
    model: str | None, vae: str | None, config: str | None, device: str | None, dtype: Dtype | None
) -> Model:
    """What draws, by the options.

    Raises:
        WeightsError: if there is nothing that draws.
        UsageError: options that belong to a checkpoint where there is none, or as the loaders.
    """
    from calotype.draw import model as own
    from calotype.draw.record import digest

    path = own.BUILTIN if model in (None, BUILTIN) else Path(str(model))
    if not path.exists() and path != own.BUILTIN:
        raise WeightsError(f"{path}: there is no such file or folder; give a drawing model or a checkpoint.")
    name = BUILTIN if path == own.BUILTIN else path.name
    if own.is_model(path):
        for option, value in (("--config", config), ("--dtype", dtype)):
            if value is not None:
                raise UsageError(f"{option} goes with a checkpoint, and {name} is none; leave it out.")
        from calotype.draw.pipeline import load_drawer

        return OwnModel(load_drawer(path, vae, device=device), name, digest(path))
    import torch

    from calotype.draw.checkpoints import load_checkpoint

    kind = None if dtype is None else getattr(torch, dtype.value)
    return CheckpointModel(load_checkpoint(path, vae=vae, config=config, device=device, dtype=kind), name, digest(path))


def _some(texts: list[str]) -> str:
    """The first of them, and how many there are beside."""
    more = len(texts) - _MOST_WORDS
    return ", ".join(map(_short, texts[:_MOST_WORDS])) + (f" and {more} more" if more > 0 else "")


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 40 else f"{prompt[:40]}...")


def require_text(prompt: str) -> None:
    """Checks that a prompt is text.

    Raises:
        UsageError: if it holds bytes that are none.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{prompt!a:.60} is no text in UTF-8; type it anew.") from None


def caption(prompt: str) -> str:
    """A prompt on one line."""
    return " ".join(prompt.split())


def slug(prompt: str) -> str:
    """A prompt as part of a file's name: letters and digits in lower case and hyphens, without its article."""
    text = unicodedata.normalize("NFC", prompt.lower())
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        del words[0]
    return "-".join(words).encode()[:_LONGEST].decode(errors="ignore").strip("-") or "drawing"


@dataclass(frozen=True)
class Preview:
    """A picture of the drawing: where, by what (None is the VAE itself), and after which steps."""

    path: Path
    by: str | None = None
    every: int = 1


class Follow:
    """Shows how far drawings are: a bar on a terminal, and a picture where one is asked for."""

    def __init__(self, model: Model, count: int, preview: Preview | None, show: Callable[[float, str], None]) -> None:
        self.model, self.count, self.preview, self.show = model, count, preview, show
        self._quick = model.previewer(preview.by) if preview is not None and preview.by is not None else None

    def on_step(self, index: int) -> OnStep:
        """What is called after the steps of picture `index`, counted from 0."""
        from calotype.pixels import to_pil, write_picture

        def told(step: Step) -> None:
            done = (step.index + 1) / step.total
            which = f"{index + 1} of {self.count}, " if self.count > 1 else ""
            self.show((index + done) / self.count, f"{which}step {step.index + 1} of {step.total}")
            number = step.index + 1
            if self.preview is not None and (number % self.preview.every == 0 or number == step.total):
                shown = self.model.preview(step) if self._quick is None else to_pil(self._quick(step.clean[0]))
                make_folder(self.preview.path.parent)
                write_picture(self.preview.path, shown)

        return told


@contextmanager
def following(model: Model, count: int, *, doing: str, preview: Preview | None, quiet: bool) -> Iterator[Follow]:
    """Follows so many drawings."""
    with shown(doing, quiet=quiet, percent=False) as move:
        yield Follow(model, count, preview, lambda part, text: move(part, f"{doing} {text}"))


@contextmanager
def keeping(count: int, out: Path) -> Iterator[list[Path]]:
    """A list for the paths of finished pictures; if it is stopped, how many of so many there are is said."""
    finished: list[Path] = []
    try:
        yield finished
    except KeyboardInterrupt:
        there = f", in {out}" if finished else ""
        stop(f"Stopped; {len(finished)} of {count} pictures are finished{there}.")


def preview_of(path: Path | None, by: str | None, every: int | None, others: list[Path]) -> Preview | None:
    """What --preview and its options ask for.

    Args:
        others: what is read and written beside it.

    Raises:
        UsageError: it is one of those or no picture's name, or there are options and no --preview.
    """
    if path is None and (by is not None or every is not None):
        option = "--preview-by" if by is not None else "--preview-every"
        raise UsageError(f"{option} goes with --preview; say which picture that is to be, or leave it out.")
    _require_preview(path, [*others, *weights_files(by)])
    return None if path is None else Preview(path, by, every or 1)


def _require_preview(preview: Path | None, others: list[Path]) -> None:
    """Checks that --preview names a picture that nothing else is.

    Raises:
        UsageError: if it does not.
    """
    from calotype.cli.editing import output_file
    from calotype.pixels import require_writable

    if preview is not None:
        if preview.is_dir():
            raise UsageError(f"--preview {preview}: this is a folder; give the name of a file.")
        if any(preview.resolve() == other.resolve() for other in others):
            raise UsageError(f"--preview {preview} is one of the pictures; give it another name.")
        require_writable(output_file(preview, others, "--preview"))
