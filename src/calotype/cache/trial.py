"""Latents that were taken over held against their pictures: is it this VAE, and this scale?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calotype.cache.buckets import Size
from calotype.cache.decoded import decode, evenly
from calotype.cache.job import Job
from calotype.cache.reader import Cache
from calotype.cache.receipts import Bad
from calotype.cache.rules import Placed, Rules
from calotype.cache.store import Store
from calotype.cache.units import Sample
from calotype.cache.worker import picture
from calotype.errors import CalotypeError
from calotype.evaluate.metrics import psnr
from calotype.pixels import alpha_mode, from_array, luma, to_uint8
from calotype.sources import Stored
from calotype.texts import plain
from calotype.vae import VAE

LOST = 3.0
"""dB that a decode may lack of the VAE's own round trip: other programs resize with other filters."""

APART = 0.5
"""How far latents may be from the VAE's own, as a share of these about their mean, beyond what a sample differs by."""

ALIKE = 0.8
"""Correlation from which on latents are those of this picture and this VAE, on whatever scale."""

NARROW, WIDE = 1 / 3, 3.0
"""Between these lies the standard deviation of model latents, which is about 1 in every model."""


@dataclass(frozen=True)
class Checked:
    """One sample.

    Attributes:
        name: of its picture.
        psnr: of what its latents decode to, in dB.
        own: of the VAE's own round trip.
        apart: how far the latents are from the VAE's own mean, as a share of that about its mean (root mean square).
        scale: how many times the VAE's own they are.
        alike: their correlation with these.
    """

    name: str
    psnr: float
    own: float
    apart: float
    scale: float
    alike: float


def require_right(
    store: Store,
    job: Job,
    vae: VAE,
    pictures: Stored | None,
    samples: Sequence[Sample],
    count: int,
    memory: int | str | None,
) -> tuple[tuple[Checked, ...], tuple[str, ...]]:
    """Decodes so many samples, evenly from first to last, and compares them with their pictures.

    Args:
        samples: whose pictures lie beside.

    Returns:
        What was compared, and what could not be, a sentence each.

    Raises:
        CalotypeError: they are not what the VAE makes of them; says whether it seems to be the scale or the VAE.
        WeightsError: the VAE has no encoder or no decoder.
    """
    if not count:
        return (), ()
    cache = Cache(store.root)
    _require_spread(cache, vae, count)
    if pictures is None or not samples:
        return (), ("No picture lies beside these latents, so nothing was compared but how far they spread.",)
    vae.require("encoder", "decoder")
    places = {(name, key): i for i, (name, key) in enumerate(_names(cache))}
    checked, notes = [], []
    for sample in (samples[i] for i in evenly(len(samples), count)):
        row = cache.row(places[sample.name, sample.key])
        tried = []
        for placed in _places(sample, (row["bucket_width"], row["bucket_height"])):
            levels = picture(pictures, sample, job.rules, placed, alpha_mode(vae.picture_channels, None))
            if isinstance(levels, Bad):  # also what lies on its side, which these programs don't turn
                notes.append(f"{plain(sample.name)} was not compared: {levels.reason.rstrip('.')}.")
                break
            tried.append(_checked(sample.name, row["latents"].float(), from_array(levels), vae, job, memory))
            if tried[-1].apart <= APART:
                break
        if tried:
            checked.append(max(tried, key=lambda one: one.alike))
    _require(checked, vae)
    return tuple(checked), tuple(notes)


def _places(sample: Sample, bucket: Size) -> Iterator[Placed]:
    """How these programs bring a picture to its bucket: resized to cover it, or cut out of it as it is."""
    yield Rules(size=bucket).place(*sample.upright, sample.key)
    spare = sample.upright[0] - bucket[0], sample.upright[1] - bucket[1]
    if min(spare) >= 0 and max(spare) > 0:
        yield Placed(resized=sample.upright, corner=(spare[0] // 2, spare[1] // 2), bucket=bucket, enlarged=False)


def _names(cache: Cache) -> list[tuple[str, bytes]]:
    found: Any = cache.columns("name", "key")
    return list(zip(found["name"].to_pylist(), found["key"].to_pylist(), strict=True))


def _checked(name: str, stored: Tensor, pixels: Tensor, vae: VAE, job: Job, memory: int | str | None) -> Checked:
    given = (luma(pixels) if vae.picture_channels == 1 else pixels)[None]
    posterior = vae.encode(given, memory=memory).float()
    mean = posterior.mode()[0].cpu()
    own = posterior.sample([torch.Generator().manual_seed(0)])[0].cpu() if job.value == "sample" else mean
    about = mean - mean.mean()
    size = float(about.square().mean().sqrt()) or 1.0
    spread = float(posterior.std.square().mean().sqrt()) if job.value == "sample" else 0.0
    apart = max(0.0, float((stored - mean).square().mean().sqrt()) - 1.5 * spread) / size
    centred = stored - stored.mean()
    scale = float((centred * about).mean()) / size**2
    alike = scale * size / (float(centred.square().mean().sqrt()) or 1.0)
    got, reached = (psnr(to_uint8(decode(vae, latents, memory)), to_uint8(given[0])) for latents in (stored, own))
    return Checked(name, got, reached, apart, scale, alike)


def _require(checked: Sequence[Checked], vae: VAE) -> None:
    name = vae.name or "this VAE"
    for one in checked:
        if one.apart <= APART and one.psnr >= one.own - LOST:
            continue
        told = f"{plain(one.name)}: its latents decode with {one.psnr:.1f} dB, and {name}'s own with {one.own:.1f} dB"
        if one.alike > ALIKE and 0.75 < one.scale < 1.33:
            raise CalotypeError(
                f"{told}: they are near what this VAE gives and not the same, by another shift, crop or version of the "
                "VAE; --verify 0 takes them unseen. Nothing was written."
            )
        if one.alike > ALIKE:
            raise CalotypeError(
                f"{told}: they are {one.scale:.3g} times what this VAE gives, so their scale is another one than such "
                "files have; nothing was written."
            )
        raise CalotypeError(
            f"{told}: another VAE made them, or they are of another picture or crop; give the VAE that did with --vae, "
            "or --verify 0 to take them unseen. Nothing was written."
        )


def _require_spread(cache: Cache, vae: VAE, count: int) -> None:
    """Checks that model latents are about as wide as such are."""
    format_ = vae.latent_format
    rows = evenly(len(cache), count)
    std = float(torch.stack([format_.to_model(cache.row(i)["latents"].float()[None]).std() for i in rows]).mean())
    if not NARROW < std < WIDE:
        raise CalotypeError(
            f"These latents, scaled for a diffusion model, have a standard deviation of {std:.3g}, and such have about "
            f"1: their scale is another one than such files have, or another VAE than {vae.name or 'this one'} made "
            "them; nothing was written."
        )
