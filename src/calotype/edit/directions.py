"""Directions between two sets of pictures, in latents: learned, measured, kept, and walked."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from calotype.edit.sources import fit
from calotype.edit.transfer import require_strength
from calotype.engine.executor import Progress
from calotype.errors import CalotypeWarning, LatentsError, PictureError, UsageError
from calotype.files import text_path
from calotype.latents import LatentFormat, Latents, carried, latent_format_from_dict, same_space
from calotype.pixels import PictureRows, require_channels
from calotype.sources import Stored, open_source
from calotype.tensor_files import write_safetensors
from calotype.texts import TextError, json_of, number, shown, whole
from calotype.vae import VAE
from calotype.weights.mapped import dtype_name

KIND = "direction/1"  # what the file of a direction says it is
LEAST = 4  # pictures a set
EVERY = 5  # one of so many is held out


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """What leads from the mean of one set of pictures to that of another.

    Attributes:
        tensor: raw latents, [C, 1, 1] (by channel) or [C, h, w] (by position), float32; the whole way between the
            means.
        vae: sha256 of the VAE whose latents they are.
        vae_name: what that VAE is called, for people.
        names: of the sets, from and to.
        counts: pictures it was learned from, of each set.
        held_out: pictures it was measured on, of each set.
        d_prime: how far the held-out sets lie apart along it, in their own std; None where that is zero.
        accuracy: part of the held-out pictures told right by it, the mean of both sets'; 0.5 is chance.
        format: of that VAE's latents; None where older files do not tell it.
    """

    tensor: Tensor
    vae: str
    vae_name: str
    names: tuple[str, str]
    counts: tuple[int, int]
    held_out: tuple[int, int]
    d_prime: float | None
    accuracy: float
    format: LatentFormat | None = None

    def require(self, vae: str, vae_name: str, format_: LatentFormat | None) -> None:
        """Checks that it is of the VAE with this sha256, or of the space of its latents' format.

        Raises:
            LatentsError: if it is not.
        """
        if vae != self.vae and not same_space(self.format, format_):
            raise LatentsError(
                f"This direction was learned with {self.vae_name or 'an unnamed VAE'} ({self.vae[:12]}), and the "
                f"latents are by {vae_name or 'an unnamed VAE'} ({vae[:12]}), and nothing tells that they are of one "
                f"space; learn it anew with that one."
            )

    def apply(self, latents: Latents, strength: float = 1.0) -> Latents:
        """Raw latents of the VAE that made them, moved along it; one by position is scaled to their height and width.

        Args:
            strength: 1 goes the whole way between the sets' means, and less than 0 the other way.

        Raises:
            LatentsError: if the latents are of another space or have another number of channels, or it leads to NaN
                or infinity.
            UsageError: if the strength is no finite number.
        """
        self.require(latents.vae, latents.vae_name, latents.format)
        require_strength(strength)
        raw, way = latents.to_raw(), self.tensor
        ours = latents.format if self.format is None or latents.vae == self.vae else self.format
        tensor = carried(raw.tensor[None], latents.format, ours)[0]
        if len(way) != len(tensor):
            raise LatentsError(
                f"This direction has {len(way)} channels and the latents {len(tensor)}, so one of the two is not of "
                f"the VAE that it names; learn the direction anew, or make the latents again."
            )
        if way.shape[1:] not in ((1, 1), tensor.shape[1:]):
            way = functional.interpolate(way[None], tensor.shape[1:], mode="bilinear", antialias=True)[0]
        moved = carried((tensor + strength * way.to(tensor))[None], ours, latents.format)[0]
        if not torch.isfinite(moved).all():
            raise LatentsError(
                f"At a strength of {strength:g} this direction leads to NaN or infinity; give a smaller one."
            )
        return replace(raw, tensor=moved)


def learn(
    vae: VAE,
    start: str | Path,
    end: str | Path,
    *,
    aligned: bool = False,
    size: tuple[int, int] | None = None,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> Direction:
    """The difference of two sets' mean latents (attribute vectors: White 2016, arXiv:1609.04468, section 3.2).

    One picture in five of each set (in the order of their names; of fewer than ten, two) is held out. A held-out
    picture's score is its inner product with the direction, each channel divided by its variance within the sets; it
    counts as told right on its set's side of the middle between the means.

    Args:
        start, end: folders or archives of pictures, here or at addresses, see `sources.open_source`.
        aligned: what is to change lies at the same place in all pictures (faces cut alike): the difference is taken at
            each position. Otherwise it is taken by channel, over all positions: tone, colour, contrast.
        size: (width, height) that pictures are brought to (see `fit`); needed for aligned ones of several sizes.
        memory: as for `VAE.encode`.
        progress: called with the part of the pictures that is done.

    Warns:
        CalotypeWarning: files of a source are left out, which may be pictures; a picture can't be read.

    Raises:
        UsageError: a source that is none, sets of fewer than four pictures or of too few that can be read, or aligned
            pictures of several sizes.
    """
    require_channels(vae.picture_channels)
    sets = [open_source(path) for path in (start, end)]
    if vae.picture_channels == 4:
        sets = [pictures.with_alpha() for pictures in sets]
    for path, pictures in zip((start, end), sets, strict=True):
        if pictures.left_out:
            warnings.warn(f"{path}: {pictures.left_out.sentence}", CalotypeWarning, stacklevel=2)
        if len(pictures) < LEAST:
            raise UsageError(
                f"{path}: a direction needs at least {LEAST} pictures of each set, and here is {len(pictures)}."
            )
    total, done = sum(map(len, sets)), 0
    features: list[tuple[int, int]] = []  # the size of the first picture, when it is known

    def encoded(pictures: Stored, held: bool) -> Iterator[Tensor]:
        nonlocal done
        stride = min(EVERY, len(pictures) // 2)
        for i in range(len(pictures)):
            if (i % stride == stride - 1) != held:
                continue
            try:
                levels = pictures.read(i)
            except PictureError as error:
                warnings.warn(f"{error} It was left out.", CalotypeWarning, stacklevel=2)
                continue
            opacity = levels[..., 3] if levels.shape[2] == 4 else None
            picture = PictureRows(levels[..., :3], opacity, opacity is not None, (255, 255, 255), ())
            if size is not None:
                picture = fit(picture, size)
            features.append(picture.size)
            if aligned and picture.size != features[0]:
                (h, w), (h0, w0) = picture.size, features[0]
                raise UsageError(
                    f"{pictures.title}: {pictures.names[i]} is {w}x{h} and the first picture {w0}x{h0}; aligned "
                    f"pictures are of one size, so give --size (size=) or leave --aligned out."
                )
            z = vae.encode_image(picture, memory=memory).tensor.double()
            yield z if aligned else z.mean((1, 2), keepdim=True)
            done += 1
            if progress is not None:
                progress(done / total)

    def enough(pictures: Stored, count: int) -> None:
        if count < LEAST // 2:
            raise UsageError(f"{pictures.title}: too few of its pictures can be read to learn from; mend or add some.")

    moments = []
    for pictures in sets:
        moments.append(_moments(encoded(pictures, held=False)))
        enough(pictures, moments[-1][0])
    (n, mean_a, squares_a), (m, mean_b, squares_b) = moments
    way = mean_b - mean_a
    # of every channel, over positions: one position alone has too few pictures
    variance = ((squares_a + squares_b) / (n + m - 2)).mean((1, 2), keepdim=True)
    variance = variance.masked_fill(variance == 0, float(variance.max()) or 1.0)
    middle = float(((mean_a + mean_b) / 2 * way / variance).sum())
    scores = [
        torch.tensor([float((x * way / variance).sum()) - middle for x in encoded(pictures, held=True)])
        for pictures in sets
    ]
    for pictures, held_out in zip(sets, scores, strict=True):
        enough(pictures, len(held_out))
    return Direction(
        tensor=way.float(),
        vae=vae.sha256,
        vae_name=vae.name,
        names=(PurePath(start).stem, PurePath(end).stem),
        counts=(n, m),
        held_out=(len(scores[0]), len(scores[1])),
        d_prime=d_prime(scores[0], scores[1]),
        accuracy=(float((scores[0] < 0).double().mean()) + float((scores[1] > 0).double().mean())) / 2,
        format=vae.loaded.format,
    )


def _moments(features: Iterator[Tensor]) -> tuple[int, Tensor, Tensor]:
    """Count, mean and sum of squared distances from it (Welford 1962)."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for x in features:
        count += 1
        apart = x - mean
        mean = mean + apart / count
        squares = squares + apart * (x - mean)
    return count, mean, squares


def d_prime(a: Tensor, b: Tensor) -> float | None:
    """(mean(b) - mean(a)) / sqrt((var(a) + var(b)) / 2), of scores [n] and [m]; None where both are constant."""
    spread = math.sqrt(float(a.double().var() + b.double().var()) / 2)
    return float(b.double().mean() - a.double().mean()) / spread if spread else None


def save_direction(path: str | os.PathLike[str], direction: Direction) -> Path:
    """Writes a direction as safetensors: tensor ``direction``, everything else as JSON in the metadata.

    Args:
        path: of the file; what was there is replaced.

    Returns:
        That path.

    Raises:
        LatentsError: if the file can't be written.
        UsageError: if its folder does not exist.
    """
    apart = ("tensor", "vae", "vae_name", "format")
    about = {key: value for key, value in direction.__dict__.items() if key not in apart}
    metadata = {
        "calotype": KIND,
        "space": "raw",
        "vae_sha256": direction.vae,
        "vae_name": direction.vae_name,
        **({} if direction.format is None else {"latent_format": json.dumps(direction.format.to_dict())}),
        **{key: json.dumps(value) for key, value in about.items()},
    }
    return write_safetensors(path, {"direction": direction.tensor}, metadata, LatentsError)


def load_direction(path: str | os.PathLike[str]) -> Direction:
    """Reads what `save_direction` wrote to a path.

    Raises:
        LatentsError: if the file is missing, damaged, or holds anything but a direction.
    """
    path = Path(path)
    if not path.is_file():
        raise LatentsError(f"{path}: there is no such file; make a direction with `calotype direction learn`.")
    try:
        with text_path(path) as named, safe_open(named, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("calotype") != KIND or "direction" not in file.keys():  # noqa: SIM118
                raise LatentsError(f"{path}: this is no direction; make one with `calotype direction learn`.")
            tensor = file.get_tensor("direction")
    except (SafetensorError, OSError) as error:
        raise LatentsError(
            f"{path}: this is not a whole safetensors file ({error}); learn the direction again."
        ) from None
    if tensor.ndim != 3 or not tensor.numel() or not tensor.is_floating_point():
        raise LatentsError(
            f"{path}: a direction is finite floats [C, h, w], not {dtype_name(tensor.dtype)} "
            f"{list(tensor.shape)}; learn the direction again."
        )
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise LatentsError(f"{path}: a direction is finite floats, and this one holds NaN or infinity; learn it again.")
    try:
        return Direction(tensor=tensor, vae=metadata["vae_sha256"], vae_name=metadata["vae_name"], **_about(metadata))
    except KeyError as error:
        raise LatentsError(f"{path}: its metadata is damaged (it lacks {error}); learn the direction again.") from None
    except TextError as error:
        raise LatentsError(f"{path}: its metadata is damaged ({error}); learn the direction again.") from None


def _about(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a direction's metadata tell of how it was learned."""
    told: dict[str, Any] = {}
    for key in ("names", "counts", "held_out"):
        pair = json_of(metadata[key], names=True)
        if not isinstance(pair, list) or len(pair) != 2:
            raise TextError(f"{key} must be two, not {shown(pair)}")
        for one in pair:
            if key != "names":
                whole(one, key, 0)
            elif not isinstance(one, str):
                raise TextError(f"names must be texts, not {shown(one)}")
        told[key] = tuple(pair)
    d_prime = json_of(metadata["d_prime"])
    told["d_prime"] = None if d_prime is None else number(d_prime, "d_prime")
    told["accuracy"] = number(json_of(metadata["accuracy"]), "accuracy", 0, 1)
    if "latent_format" in metadata:
        try:
            told["format"] = latent_format_from_dict(json_of(metadata["latent_format"]))
        except UsageError as error:
            raise TextError(str(error).rstrip(".")) from None
    return told
