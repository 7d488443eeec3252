"""What is said of autoencoders, and whether the numbers agree: verdicts are computed, never written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Results = dict[str, Any]

LEAST = 1e-12  # of a gradient's norm: what is below is nothing

SWEEP = ("vae-0", "vae-1e-6", "vae-1e-3", "vae-1e-2", "vae", "vae-2e-1", "vae-1")  # by rising KL weight


def short(weight: float) -> str:
    """1e-6, where Python has 1e-06."""
    return f"{weight:g}".replace("e-0", "e-")


@dataclass(frozen=True)
class Check:
    """One comparison: what was looked for, what was found, and whether it holds."""

    wanted: str
    found: str
    holds: bool


@dataclass(frozen=True)
class Claim:
    """A claim and the comparisons that decide it."""

    section: int
    text: str
    checks: Sequence[Check]

    @property
    def verdict(self) -> str:
        """True if all checks hold, false if none does."""
        held = [check.holds for check in self.checks]
        return "true here" if all(held) else "partly true here" if any(held) else "false here"


def margin(results: Results) -> float:
    """dB that make a difference: twice what another seed makes, at least 0.1."""
    found = results["reconstruction"]
    return max(0.1, 2 * abs(found["conv"]["held_out"] - found["conv-again"]["held_out"]))


def claims(results: Results) -> list[Claim]:
    """All of them, in the order of the page's sections."""
    found = [*_reconstruction(results), *_samples(results), *_interpolations(results), *_rate(results)]
    found += [*_residual(results), *_without_kl(results)]
    return found + (_latents(results) if results["probe"] else [])


def _reconstruction(results: Results) -> list[Claim]:
    rec = {name: value["held_out"] for name, value in results["reconstruction"].items()}
    models, least, shift = results["models"], margin(results), results["shift"]
    lost = {name: value["still"] - value["moved"] for name, value in shift.items()}

    def above(a: str, b: str, names: str) -> Check:
        gain = rec[a] - rec[b]
        return Check(f"{names}, by more than {least:.2f} dB", f"{gain:+.2f} dB", gain > least)

    return [
        Claim(
            1,
            "A linear autoencoder learns what PCA computes.",
            [
                Check(
                    "PSNR within 0.5 dB of PCA's",
                    f"{rec['linear'] - rec['pca']:+.2f} dB",
                    abs(rec["linear"] - rec["pca"]) <= 0.5,
                )
            ],
        ),
        Claim(
            1,
            "Convolutions suit pictures better than dense layers.",
            [
                above("conv", "dense", "higher PSNR than the dense network with a hidden layer"),
                above("conv", "pca", "higher PSNR than PCA"),
                Check(
                    "with fewer parameters than the dense network",
                    f"{models['conv']['parameters'] / models['dense']['parameters']:.2f} times as many",
                    models["conv"]["parameters"] < models["dense"]["parameters"],
                ),
            ],
        ),
        Claim(
            1,
            "Convolutional latents keep the picture's spatial structure.",
            [
                Check(
                    "a moved picture costs a convolutional network less than a dense one",
                    f"{lost['conv']:.2f} dB against {lost['dense']:.2f} dB",
                    lost["conv"] < lost["dense"],
                ),
                Check(
                    "moving the latents moves the picture: at most 3 dB worse than encoding the moved picture",
                    f"{shift['conv']['moved'] - shift['conv']['latents']:.2f} dB worse",
                    shift["conv"]["moved"] - shift["conv"]["latents"] <= 3,
                ),
            ],
        ),
        Claim(
            1,
            "Stable Diffusion's network (blocks with norms, attention) reconstructs better than convolutions alone.",
            [above("kl-f8", "conv", "higher PSNR after as many steps")],
        ),
    ]


def _samples(results: Results) -> list[Claim]:
    far, photos = results["samples"], results["samples"]["photographs"]
    vae = far["vae N(0, I)"]

    def ratio(a: float, b: float) -> str:
        return f"{a / b:.1f} times"

    return [
        Claim(
            2,
            "A VAE makes new pictures that resemble its training pictures.",
            [
                Check(
                    "its samples are at most half as far from photographs as the plain autoencoder's",
                    ratio(vae, far["conv N(0, I)"]),
                    vae <= far["conv N(0, I)"] / 2,
                ),
                Check(
                    "its samples are at most twice as far from photographs as other photographs are",
                    ratio(vae, photos),
                    vae <= 2 * photos,
                ),
            ],
        ),
        Claim(
            2,
            "A plain autoencoder is a generative model too.",
            [
                Check(
                    "decoded noise from N(0, I) is no farther from photographs than the VAE's",
                    ratio(far["conv N(0, I)"], vae),
                    far["conv N(0, I)"] <= vae,
                ),
                Check(
                    "a Gaussian with each channel's mean and std, decoded, is no farther than the VAE's",
                    ratio(far["conv per channel"], vae),
                    far["conv per channel"] <= vae,
                ),
                Check(
                    "a Gaussian with the covariance of all 192 numbers, decoded, is no farther than the VAE's",
                    ratio(far["conv all"], vae),
                    far["conv all"] <= vae,
                ),
            ],
        ),
        Claim(
            2,
            "The KL weight of Stable Diffusion's autoencoder, 1e-6, is enough to sample from the prior.",
            [
                Check(
                    "samples from N(0, I) are at most twice as far from photographs as the VAE's",
                    ratio(far["vae-1e-6 N(0, I)"], vae),
                    far["vae-1e-6 N(0, I)"] <= 2 * vae,
                )
            ],
        ),
    ]


def _interpolations(results: Results) -> list[Claim]:
    found = results["interpolation"]
    smooth = [
        Check(
            f"{title}: the largest step between frames is at most 1.5 times the mean one",
            f"{found[name]['jump']:.2f} times",
            found[name]["jump"] <= 1.5,
        )
        for name, title in (("vae", "VAE"), ("kl-f8", "KL-f8"))
    ]
    better = []
    for name, title in (("vae", "VAE"), ("kl-f8", "KL-f8")):
        ends, fade, middle = (found[name][key] for key in ("ends", "crossfade", "middle"))
        better.append(
            Check(
                f"{title}: frames from halfway are nearer to photographs than cross-fades, by at least half as much "
                "as reconstructions are",
                f"{middle:.1f}; cross-fades {fade:.1f}, reconstructions {ends:.1f}",
                middle <= (fade + ends) / 2,
            )
        )
    return [
        Claim(3, "Going from one picture to another in latents is smooth.", smooth),
        Claim(3, "On the way there are pictures, not cross-fades.", better),
    ]


def _rate(results: Results) -> list[Claim]:
    found, models, least = results["posterior"], results["models"], margin(results)
    weighed = SWEEP[1:]
    best = max(weighed, key=lambda name: found[name]["mode"])
    gain, loss = (found[name]["mode"] - found["vae-0"]["mode"] for name in (best, SWEEP[-1]))
    rates = [found[name]["nats"] for name in weighed]
    quality = [found[name]["sample"] for name in weighed]
    return [
        Claim(
            4,
            "Regularising latents reduces the reconstruction error.",
            [
                Check(
                    f"some KL weight gives more PSNR than none, by more than {least:.2f} dB",
                    f"{gain:+.2f} dB (with {short(models[best]['kl_weight'])})",
                    gain > least,
                ),
                Check(
                    f"the largest weight does, {short(models[SWEEP[-1]]['kl_weight'])}",
                    f"{loss:+.2f} dB",
                    loss > least,
                ),
            ],
        ),
        Claim(
            4,
            "It trades error against rate: the more weight, the fewer nats, and the larger the error.",
            [
                Check(
                    "nats fall with every step of the sweep",
                    f"from {rates[0]:.2f} to {rates[-1]:.3f} a pixel",
                    all(a > b for a, b in pairwise(rates)),
                ),
                Check(
                    f"PSNR of samples never rises by more than {least:.2f} dB",
                    f"from {quality[0]:.2f} to {quality[-1]:.2f} dB",
                    all(a + least > b for a, b in pairwise(quality)),
                ),
            ],
        ),
    ]


def spread(norms: Sequence[float]) -> float:
    """How many times smaller the smallest gradient is than the largest; none counts as less than 1e-12."""
    return max(norms) / max(min(norms), LEAST)


def _residual(results: Results) -> list[Claim]:
    plain, residual = (results["models"][name] for name in ("deep-plain", "deep-residual"))
    unequal = [spread(model["gradients"]["first"]) for model in (plain, residual)]
    losses = [model["curve"][-1][1] for model in (plain, residual)]
    return [
        Claim(
            5,
            "Residual connections keep the gradient alive through many layers.",
            [
                Check(
                    "at the first step, gradients of layers differ at most a tenth as much with them",
                    f"by a factor of {unequal[1]:.3g} against {unequal[0]:.3g}",
                    unequal[1] <= unequal[0] / 10,
                )
            ],
        ),
        Claim(
            5,
            "They make learning start sooner.",
            [
                Check(
                    f"after {plain['steps']} steps, at most 0.8 times the loss",
                    f"{losses[1] / losses[0]:.2f} times",
                    losses[1] <= 0.8 * losses[0],
                )
            ],
        ),
    ]


def _without_kl(results: Results) -> list[Claim]:
    found, far = results["posterior"], results["samples"]
    none, vae = found["vae-0"], found["vae"]
    return [
        Claim(
            6,
            "Without the KL term a VAE becomes a plain autoencoder.",
            [
                Check(
                    "relative to the spread of latents, the posterior's noise is at most a tenth of the VAE's",
                    f"{none['noise'] / none['spread']:.2g} against {vae['noise'] / vae['spread']:.2g}",
                    none["noise"] / none["spread"] <= vae["noise"] / vae["spread"] / 10,
                ),
                Check(
                    "samples from N(0, I) are more than twice as far from photographs as the VAE's",
                    f"{far['vae-0 N(0, I)'] / far['vae N(0, I)']:.1f} times",
                    far["vae-0 N(0, I)"] > 2 * far["vae N(0, I)"],
                ),
                Check(
                    "PSNR within 0.5 dB of the plain autoencoder's",
                    f"{none['mode'] - results['reconstruction']['conv']['held_out']:+.2f} dB",
                    abs(none["mode"] - results["reconstruction"]["conv"]["held_out"]) <= 0.5,
                ),
            ],
        )
    ]


def _latents(results: Results) -> list[Claim]:
    found = results["probe"]
    against = (("pixels", "from pixels"), ("pca", "from PCA"))
    checks = []
    for key, what in (("set", "more sets"), ("label", "more labels")):
        for name, title in against:
            gain, error = found["gains"][key][name]
            checks.append(
                Check(
                    f"{what} named from the VAE's latents than {title}, by more than chance ({error:.1f} points)",
                    f"{gain:+.1f} points",
                    gain > error,
                )
            )
    for name, title in against:
        ours, theirs = found["vae"]["clusters"], found[name]["clusters"]
        checks.append(
            Check(
                f"clusters agree better with sets than {title}, by more than 0.02",
                f"{ours:.3f} against {theirs:.3f}",
                ours > theirs + 0.02,
            )
        )
    return [Claim(7, "Latents help to tell what is in a picture.", checks)]
