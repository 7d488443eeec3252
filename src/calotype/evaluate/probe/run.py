"""All measurements of one VAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from calotype.engine.executor import Progress
from calotype.evaluate.lpips import LPIPS
from calotype.evaluate.probe.bench import LEAST_LPIPS, Bench, Coder, Given, Sample, Samples
from calotype.evaluate.probe.channels import Channels
from calotype.evaluate.probe.constants import constants
from calotype.evaluate.probe.finding import Finding, LeftOut
from calotype.evaluate.probe.labels import Labels
from calotype.evaluate.probe.noise import draws, prior, response
from calotype.evaluate.probe.paths import drift, interpolation
from calotype.evaluate.probe.preview import Previews
from calotype.evaluate.probe.rate import Colour, Rate
from calotype.evaluate.probe.symmetry import shifts, transforms
from calotype.evaluate.probe.uncertainty import Certainty, Information
from calotype.families import require_as_large
from calotype.pixels import require_channels
from calotype.previews import Factors
from calotype.vae import VAE

SIDE = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """What a VAE's latent space does.

    Attributes:
        vae: what the VAE is called.
        sha256: of its weights.
        factor: its f, pixels along a side that one latent stands for.
        latent_channels: its C, of raw latents.
        pictures: names, in the order of charts that number them (by content, whatever order they were given in).
        side: of the pictures as they were used, in pixels.
        seed: of all that is drawn.
        lpips: the network of LPIPS; None without.
        findings: in the order of a report.
        left_out: what was not measured (its key) -> why, as half a sentence.
        unread: what was said of each picture that can't be read; the others were measured.
        labelled: how many pictures have a label.
        factors: what makes RGB of the latents, for previews; finding `preview` says how well.
        about: when, with what and on what this was measured; empty where nobody told.
    """

    vae: str
    sha256: str
    factor: int
    latent_channels: int
    pictures: tuple[str, ...]
    side: int
    seed: int
    lpips: str | None
    findings: tuple[Finding, ...]
    left_out: dict[str, str]
    unread: tuple[str, ...] = ()
    labelled: int = 0
    factors: Factors | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Finding:
        """The finding with this key.

        Raises:
            KeyError: if there is none.
        """
        for finding in self.findings:
            if finding.key == key:
                return finding
        raise KeyError(key)

    @property
    def notes(self) -> list[str]:
        """What people should know of the labels, a sentence each."""
        found = []
        many = len(self.pictures)
        if self.labelled:
            source = self.about.get("labels") or "the caller"
            some = "all" if self.labelled == many else f"{self.labelled} of"
            without = many - self.labelled
            rest = f"; {without} without are left out where labels are needed" if without else ""
            found.append(f"Labels are from {source}, and {some} {many} pictures have one{rest}.")
        elif self.about.get("labels"):
            found.append(f"Labels are from {self.about['labels']}, and none of these {many} pictures has one.")
        if strange := self.about.get("labels_of_no_picture"):
            found.append(
                f"{len(strange)} name{'s' * (len(strange) > 1)} there belong{'s' * (len(strange) == 1)} to no picture, "
                f"{strange[0]} for one."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """All but the figures, as plain values for JSON."""
        plain = {name: value for name, value in vars(self).items() if name not in ("findings", "pictures", "about")}
        return {**self.about, **plain} | {
            "pictures": list(self.pictures),
            "unread": list(self.unread),
            "unlabelled": len(self.pictures) - self.labelled,
            "notes": self.notes,
            "factors": None if self.factors is None else self.factors.to_dict(),
            "findings": [finding.to_dict() for finding in self.findings],
        }


class _Survey:
    """One pass over all pictures; what is measured of each alone."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.channels = Channels(bench)
        self.information = Information()
        self.certainty = Certainty(bench)
        self.rate = Rate(bench)
        self.colour = Colour(bench)
        self.previews = Previews(bench)
        self.labels = Labels(bench)
        bench.latents, bench.reconstructions = [], []
        for i, sample in enumerate(bench.over(bench.samples)):
            self._add(i, sample)
        bench.mean = self.channels.raw.mean.float()[:, None, None]
        std = self.channels.raw.std
        bench.std = torch.where(std > 0, std, 1.0).float()[:, None, None]

    def _add(self, i: int, sample: Sample) -> None:
        posterior = self.bench.encode(sample.pixels)
        latents = posterior.mode()[0]
        reconstruction = self.bench.decode(latents)
        self.channels.add(latents)
        self.information.add(posterior)
        self.certainty.add(sample, posterior)
        self.rate.add(sample, posterior, reconstruction)
        self.colour.add(sample, reconstruction)
        self.previews.add(sample, latents)
        self.labels.add(sample, latents)
        if i < len(self.bench.few):
            self.bench.latents.append(latents)
            self.bench.reconstructions.append(reconstruction)


def probe(
    vae: Coder,
    pictures: Given,
    *,
    labels: Sequence[str | None] | None = None,
    lpips: LPIPS | None = None,
    seed: int = 0,
    side: int = SIDE,
    progress: Progress | None = None,
) -> Probe:
    """Measures what a VAE's latent space does, on pictures.

    Everything is deterministic given the seed, and independent of the order of the pictures. What is costly is measured
    on eight of them. About 70 times as much is encoded and 100 times as much decoded as those eight.

    Args:
        vae: a `calotype.VAE`, or what encodes and decodes like one.
        pictures: (name, uint8 [H, W, 3]); at least 8 f pixels a side. Two are needed for all measurements, and a few
            dozen for figures that mean something. They are asked for one at a time and not kept, so what reads them
            when they are asked for needs no more memory for many than for few; one that raises `PictureError` is
            left out and told of in `Probe.unread`.
        labels: one for each picture, in their order, or None; for the linear probe, which alone leaves out pictures
            without one.
        lpips: with its weights (`calotype.evaluate.lpips.load_lpips`); without, distances are RMSE only.
        seed: of draws, noise and splits.
        side: pictures are cut to squares of so many pixels, or of the smallest picture's side where this is less.
        progress: called with the part of the work that is done, from 0 to 1; may raise to stop.

    Raises:
        UsageError: no pictures, one that is too small or none, labels that do not match, or a VAE whose pictures are
            neither grey, RGB nor RGBA.
        PictureError: no picture can be read, or one has changed meanwhile.
        WeightsError: if only an encoder or a decoder was loaded.
        NonFiniteError, MemoryLimitError: as `VAE.encode` and `VAE.decode`.
    """
    channels = vae.picture_channels if isinstance(vae, VAE) else 3
    require_channels(channels)
    if isinstance(vae, VAE):
        require_as_large(vae.config, "A probe")
    samples = Samples(pictures, labels, vae.factor, side, grey=channels == 1)
    left_out: dict[str, str] = {}
    if channels == 4:
        left_out["alpha"] = "pictures are probed over white, so it was 1 everywhere"
    if lpips is None:
        left_out["lpips"] = "no weights of LPIPS were given"
    elif samples.side < LEAST_LPIPS:
        left_out["lpips"] = f"it needs pictures of at least {LEAST_LPIPS} pixels a side"
        lpips = None
    bench = Bench(vae, samples, seed, lpips, None, channels)
    # what runs after the survey, with about how many times it encodes or decodes
    costly: dict[str, tuple[Callable[[Bench], Finding], float]] = {
        "draws": (draws, 40),
        "noise": (response, 64),
        "interpolation": (interpolation, 60),
        "shifts": (shifts, 128),
        "transforms": (transforms, 96),
        "constants": (constants, 22),
        "prior": (prior, 16),
        "drift": (drift, 160),
    }
    work = 2.0 * len(samples) + sum(cost for _, cost in costly.values())

    def part(done: float, cost: float) -> Progress | None:
        return None if progress is None else lambda share: progress((done + cost * share) / work)

    bench.progress, done = part(0.0, 2.0 * len(samples)), 2.0 * len(samples)
    survey = _Survey(bench)
    measured: dict[str, Callable[[], Finding]] = {
        "rate": survey.rate.finding,
        "channels": survey.channels.finding,
        "kl": survey.information.finding,
        "posterior": survey.certainty.finding,
        "colour": survey.colour.finding,
        "preview": survey.previews.finding,
        "labels": survey.labels.finding,
    }
    found: dict[str, Finding] = {}
    for key in ORDER:
        try:
            if key in measured:
                found[key] = measured[key]()
            else:
                measure, cost = costly[key]
                bench.progress = part(done, cost)
                done += cost
                found[key] = measure(bench)
        except LeftOut as reason:
            left_out[key] = str(reason)
    if progress is not None:
        progress(1.0)
    return Probe(
        vae=vae.name,
        sha256=vae.sha256,
        factor=vae.factor,
        latent_channels=vae.latent_channels,
        pictures=samples.names,
        side=bench.side,
        seed=seed,
        lpips=None if lpips is None else lpips.net,
        findings=tuple(found.values()),
        factors=survey.previews.factors(),
        left_out=left_out,
        unread=samples.unread,
        labelled=samples.labelled,
    )


ORDER = (
    "rate",
    "channels",
    "kl",
    "posterior",
    "draws",
    "noise",
    "interpolation",
    "shifts",
    "transforms",
    "constants",
    "colour",
    "preview",
    "prior",
    "drift",
    "labels",
)
