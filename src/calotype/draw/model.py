"""A drawing model: text encoder and denoiser, what they were trained on, and the file they come in."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from calotype.draw.denoiser import Denoiser, DenoiserConfig
from calotype.draw.recipe import MOST_SIZE
from calotype.draw.text import Context, TextConfig, TextEncoder
from calotype.errors import WeightsError
from calotype.hollow import hollow
from calotype.tensor_files import write_safetensors
from calotype.texts import json_table, made, number, whole
from calotype.weights.container import open_container

BUILTIN = Path(__file__).parent / "builtin" / "drawing.safetensors"
KEY = "calotype.drawing"
LATER = ("sketch_std", "ground_std", "known_within")  # are not in headers of before


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """What a drawing model is made of.

    Attributes:
        denoiser: the U-Net's sizes.
        text: the text encoder's sizes.
        size: side in pixels of the pictures it was trained on.
        vae: sha256 of the VAE's weights in whose latents it draws.
        sketch_noise: std of the noise on sketches, so that what they have wrong is not copied.
        sketch_std: of latents about such a sketch, which the velocity is guessed from; 0 where nothing is guessed. See
            `guessed_velocity`.
        ground_std: of latents about those of plain white where a drawing's ground is; 0 where pictures don't stand on
            white. See `ground.Ground`.
        known_within: how far a text's state may lie from those of all names; one that lies farther is drawn as one of
            the names near it. 0 where every text is drawn as it is. See `meaning.Names`.
    """

    denoiser: DenoiserConfig
    text: TextConfig
    size: int
    vae: str
    sketch_noise: float = 0.0
    sketch_std: float = 0.0
    ground_std: float = 0.0
    known_within: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The values by name, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DrawingConfig:
        """The inverse of `to_dict`."""
        return cls(
            denoiser=DenoiserConfig.from_dict(values["denoiser"]),
            text=made(TextConfig, values["text"], "text"),
            size=whole(values["size"], "size", 1, MOST_SIZE),
            vae=values["vae"],
            sketch_noise=number(values["sketch_noise"], "sketch_noise", 0),
            **{key: number(values.get(key, 0.0), key, 0) for key in LATER},
        )


def guessed_velocity(x: Tensor, sketch: Tensor, t: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """The velocity, noise minus latents, that noisy latents and a sketch tell by themselves.

    Were latents normal about their sketch, this would be the best there is. A network that learns the rest alone, in
    units of its std, begins with drawings that look like their sketches. (A network's output of unit variance at every
    noise: Karras et al. 2022, arXiv:2206.00364, section 5; here latents have a mean that is told.)

    Args:
        x: (1 - t) latents + t noise, [N, C, H, W].
        sketch: [N, C, H, W].
        t: [N, 1, 1, 1], from 0 to 1.
        std: of the latents about the sketch, above 0.

    Returns:
        The velocity's mean [N, C, H, W], and the std about it [N, 1, 1, 1].
    """
    clean = 1 - t
    variance = (clean * std) ** 2 + t**2  # of x about the sketch
    return ((t - clean * std**2) * x - t * sketch) / variance, std / variance.sqrt()


def enlarged(sketch: Tensor, x: Tensor) -> Tensor:
    """Sketches [N, C, s, s] as large as latents [N, C, H, W], bilinear, and of their type."""
    return functional.interpolate(sketch, x.shape[2:], mode="bilinear", align_corners=False).to(x.dtype)


class DrawingModel(nn.Module):
    """Noisy model latents, a time and a text -> the velocity of a rectified flow, noise minus latents.

    Attributes:
        config: its sizes.
        names: of the pictures it was trained on.
        words: of all their captions.
        about: how it was trained: recipe, data, seed, figures.
    """

    def __init__(
        self,
        config: DrawingConfig,
        tokenizer: Tokenizer,
        names: Sequence[str] = (),
        words: Sequence[str] = (),
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.names, self.words = tuple(names), tuple(words)
        self.about = about or {}
        self.text = TextEncoder(config.text, tokenizer, config.denoiser.out_channels)
        self.denoiser = Denoiser(config.denoiser)

    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """x [N, C, H, W], t [N] from 0 (clean) to 1 (noise) and N texts -> [N, C, H, W].

        Sketches are made as large as the latents and are further channels of what the denoiser sees.
        """
        sketch = enlarged(context.sketch, x)
        seen = torch.cat([x, sketch], 1).contiguous(memory_format=torch.channels_last)
        made: Tensor = self.denoiser(seen, t * 1000, context.states, context.mask, context.pooled)
        if not self.config.sketch_std:
            return made
        mean, std = guessed_velocity(x, sketch, t[:, None, None, None], self.config.sketch_std)
        return mean + std * made


def save_model(model: DrawingModel, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float16) -> None:
    """Writes a drawing model to one safetensors file; what was there is replaced only when the new one is whole.

    Raises:
        WeightsError: if a number is too large for `dtype`.
        StorageError: if the disk refuses it.
    """
    tensors = {key: value.detach().cpu().to(dtype) for key, value in model.state_dict().items()}
    if broken := [key for key, value in tensors.items() if not torch.isfinite(value).all()]:
        raise WeightsError(f"{broken[0]} holds numbers that {dtype} can't; give a wider dtype.")
    head = {
        "config": model.config.to_dict(),
        "tokenizer": json.loads(model.text.tokenizer.to_str()),
        "names": list(model.names),
        "words": list(model.words),
        "about": model.about,
    }
    write_safetensors(path, tensors, {KEY: json.dumps(head, ensure_ascii=False)})


def is_model(path: Path) -> bool:
    """Whether a file is a drawing model; what is wrong with one that is none, says who loads it."""
    try:
        return path.is_file() and KEY in open_container(path).metadata
    except WeightsError:
        return False


def load_model(path: str | os.PathLike[str] | None = None) -> DrawingModel:
    """Reads what `save_model` wrote, in float32 and for inference; the built-in model where no path is given.

    Raises:
        WeightsError: if there is no such file, or it is damaged or holds something else.
    """
    path = BUILTIN if path is None else Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file; give a drawing model that calotype wrote.")
    try:
        container = open_container(path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}.") from None
    if KEY not in container.metadata:
        raise WeightsError(f"{path}: this is no drawing model of calotype: its header does not say so.")
    try:
        head = json_table(container.metadata[KEY], finite=False, names=True)
        config = DrawingConfig.from_dict(head["config"])
        tokenizer = Tokenizer.from_str(json.dumps(head["tokenizer"]))
        with hollow():
            model = DrawingModel(config, tokenizer, head["names"], head["words"], head["about"])
    except Exception as error:  # tokenizers raises nothing narrower
        reason = str(error).rstrip(".")
        raise WeightsError(f"{path}: the header of this drawing model is damaged ({reason}); get it again.") from None
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if wanted != dict(container.shapes):
        differing = sorted(
            key for key in wanted.keys() | container.shapes.keys() if wanted.get(key) != container.shapes.get(key)
        )
        raise WeightsError(f"{path}: {differing[0]} is missing, is too many or has another shape than its header says.")
    # copied, as kernels may round in another way where a tensor lies as it happens to lie in its file
    model.load_state_dict({key: container.read(key).to(torch.float32, copy=True) for key in wanted}, assign=True)
    return model.eval().requires_grad_(False)
