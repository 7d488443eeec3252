"""The page, from the numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from family_page.claims import SWEEP, Claim, Results, claims, margin, spread

TITLES = {
    "pca": "PCA, 192 components",
    "linear": "dense, linear",
    "dense": "dense, one hidden layer",
    "conv": "convolutional",
    "vae": "convolutional VAE",
    "kl-f8": "KL-f8: residual blocks, norms, attention",
}

SAMPLED = {  # key in the results -> (row of the figure, row of the table)
    "photographs": ("photographs", "photographs, held out"),
    "vae N(0, I)": ("VAE,\nN(0, I)", "VAE, N(0, I)"),
    "vae-1e-6 N(0, I)": ("VAE, KL 1e-6,\nN(0, I)", "VAE with KL weight 1e-6, N(0, I)"),
    "vae-0 N(0, I)": ("VAE, KL 0,\nN(0, I)", "VAE with KL weight 0, N(0, I)"),
    "conv N(0, I)": ("autoencoder,\nN(0, I)", "autoencoder, N(0, I)"),
    "conv per channel": ("autoencoder,\nper channel", "autoencoder, Gaussian with each channel's mean and std"),
    "conv all": ("autoencoder,\nall numbers", "autoencoder, Gaussian with the covariance of all 192 numbers"),
    "pca all": ("PCA,\nall numbers", "PCA, Gaussian with the variance of each component"),
    "noise": ("noise", "uniform noise"),
}

PROBED = {
    "pixels": "pixels (3,072 numbers)",
    "pca": "PCA",
    "conv": "autoencoder",
    "vae": "VAE",
    "kl-f8": "KL-f8",
}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Markdown."""
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)] + [""]


def verdict(claim: Claim) -> list[str]:
    """The claim, its verdict and what decided it."""
    rows = [(check.wanted, check.found, "yes" if check.holds else "no") for check in claim.checks]
    return [
        f"> {claim.text}",
        "",
        f"**{claim.verdict.capitalize()}.**",
        "",
        *table(("looked for", "found", "holds"), rows),
    ]


def picture(name: str, alt: str) -> list[str]:
    return [f"![{alt}](pictures/family-{name}.png)", ""]


def page(results: Results) -> str:
    """docs/family.md."""
    found = claims(results)
    parts = _opening(results, found)
    sections = (_reconstruction, _samples, _interpolations, _rate, _residual, _without_kl, _latents)
    for number, section in enumerate(sections, 1):
        of_it = [claim for claim in found if claim.section == number]
        parts += section(results, [line for claim in of_it for line in verdict(claim)])
    return "\n".join([*parts, *_closing(results)])


def _opening(results: Results, found: list[Claim]) -> list[str]:
    first = next(iter(results["models"].values()))
    return [
        "# From PCA to Stable Diffusion's autoencoder",
        "",
        "What does each idea add: layers, convolutions, variance, the KL term, residual blocks? Here every step is trained on "
        "the same photographs by the same loop, measured, and held against what is usually said of it. Numbers, figures "
        "and verdicts are made by one command:",
        "",
        f"    {results['command']}",
        "",
        f"Pictures are the middles of photographs at {results['side']} x {results['side']} pixels, {results['pictures']:,} to "
        f"train on and {results['held_out']:,} (every {results['hold_out']}th) held out; PSNR is of the held-out ones. Every "
        f"model has {results['numbers']} numbers for the {3 * results['side'] ** 2:,} values of a picture. Pictures that are "
        "shown are scikit-image's, which are in nobody's training set. "
        f"This is small: {first['batch']} pictures a step and a minute or so of training a model on {results['threads']} CPU "
        "cores. **Verdicts hold for these networks, pictures and minutes**, not in general; what a larger run would give "
        "can be another thing, above all where two models are close.",
        "",
        "*Latents* are what an encoder gives; *PSNR* is the reconstruction error on a logarithmic scale, in dB: 1 dB is a fifth "
        "less squared error, and more is better. *KL weight* is on the KL divergence summed over latents, against the "
        "squared error summed over the picture's values, as in latent-diffusion.",
        "",
        *table(
            ("claim", "verdict", "section"),
            [(claim.text, f"**{claim.verdict}**", f"[{claim.section}](#{ANCHORS[claim.section]})") for claim in found],
        ),
        "A claim is broken into comparisons with a threshold each: it is true if all hold, false if none does. Differences in "
        f"PSNR count from {margin(results):.2f} dB on: twice what another seed makes for the convolutional network, and at "
        "least 0.1.",
        "",
    ]


HEADINGS = {
    1: "Reconstruction",
    2: "Samples",
    3: "Interpolation",
    4: "The KL weight",
    5: "Residual connections",
    6: "Without KL",
    7: "What latents know",
}
ANCHORS = {n: f"{n}-{title.lower().replace(' ', '-')}" for n, title in HEADINGS.items()}


def heading(number: int) -> list[str]:
    return [f"## {number} {HEADINGS[number]}", ""]


def _reconstruction(results: Results, verdicts: list[str]) -> list[str]:
    models, rec = results["models"], results["reconstruction"]
    rows = []
    for name, title in TITLES.items():
        facts = models.get(
            name, {"parameters": results["pca_parameters"], "steps": "", "seconds": results["pca_seconds"]}
        )
        steps = f"{facts['steps']:,}" if facts["steps"] else ""
        rows.append(
            (title, f"{facts['parameters']:,}", steps, f"{facts['seconds']:.0f}",
             f"{rec[name]['training']:.2f}", f"**{rec[name]['held_out']:.2f}**")
        )  # fmt: skip
    shift = results["shift"]
    moves = [
        (
            TITLES[name],
            f"{v['still']:.2f}",
            f"{v['moved']:.2f}",
            f"{v['latents']:.2f}" if "latents" in v else "no places",
        )
        for name, v in shift.items()
    ]
    return [
        *heading(1),
        "An encoder squeezes a picture into 192 numbers, and a decoder makes a picture of them again. Without the bottleneck "
        "both could copy. PCA is the best *linear* way, and needs no training. The dense network gives one list of 192 "
        "numbers; the convolutional ones give 12 channels of 4 x 4, each place for 8 x 8 pixels (f8).",
        "",
        *picture("reconstruction", "Pictures and their reconstructions by each model"),
        "Each row is one model's reconstructions of the pictures at the top. Look at edges, eyes and small colours: that is "
        "what 192 numbers leave out first, and each model leaves out something else.",
        "",
        *table(("model", "parameters", "steps", "seconds", "PSNR, training pictures", "PSNR, held out"), rows),
        "A gap between the last two columns means that a model knows its training pictures better than pictures in general. "
        "Models have as many latents, but neither as many parameters nor as many seconds.",
        "",
        *picture(
            "shift", "A picture moved to the right by 8 pixels, and what a dense and a convolutional network make of it"
        ),
        "The picture is moved by 8 pixels, which is one place of the latents; what leaves on the right comes back on the left. "
        "In the last column nothing is encoded again: the *latents* are moved by one place, and decoded. That can be done "
        "where latents have places.",
        "",
        *table(("PSNR, dB", "reconstruction", "of the moved picture", "moved latents"), moves),
        *verdicts,
    ]


def _samples(results: Results, verdicts: list[str]) -> list[str]:
    far = results["samples"]
    weight = results["models"]["vae"]["kl_weight"]
    rows = [(title, f"{far[key]:.1f}") for key, (_, title) in SAMPLED.items()]
    return [
        *heading(2),
        "Can pictures be made from nothing? Draw latents at random, decode them, and see. A VAE is trained so that the latents "
        f"of all pictures together look like standard normal noise, N(0, I), its *prior*. Its KL weight here is {weight:g}, "
        "near the one that the theory asks for (see section 4). Autoencoder and VAE are the same network otherwise.",
        "",
        *picture("samples", "Samples of each model in rows, photographs above"),
        "Each row shows the first ten samples of a model; none is picked.",
        "",
        *table(("latents drawn from", "distance to photographs"), rows),
        f"The distance is Fréchet's, between Gaussians fitted to 48 statistics of {results['held_out']} samples and of the "
        "training pictures: contrast of details of 1, 2 and 4 pixels in each quarter of the picture, and its mean, for brightness "
        "and two colour differences. It tells whether light, colour and detail are distributed as in photographs. "
        "It can't tell whether anything is in the picture: compare the row of PCA, whose samples show nothing.",
        "",
        *verdicts,
    ]


def _interpolations(results: Results, verdicts: list[str]) -> list[str]:
    rows = [
        (TITLES[name], f"{v['jump']:.2f}", f"{v['jump_most']:.2f}", f"{v['ends']:.1f}", f"{v['crossfade']:.1f}", f"{v['middle']:.1f}")
        for name, v in results["interpolation"].items()
    ]  # fmt: skip
    return [
        *heading(3),
        "Go straight from the latents of one picture to those of another, and decode on the way.",
        "",
        *picture("interpolation", "Rows of frames between two pictures: cross-fade, autoencoder, VAE, KL-f8"),
        "The first row is a cross-fade of pixels: in its middle both pictures are seen, at half the contrast. If latents "
        "describe what is in a picture, the middles of the other rows should look like *a* picture instead.",
        "",
        *table(
            ("", "largest step / mean step", "worst pair", "distance of reconstructions", "of cross-fades halfway", "of latents halfway"),
            rows,
        ),
        f"Means over {results['held_out']} pairs of held-out pictures. A step is the RMS difference of two of nine frames; a "
        "cross-fade's are all equal, a ratio of 1. Distances are those of section 2; cross-fades are of the same model's "
        "reconstructions, so that blur counts alike.",
        "",
        *verdicts,
    ]  # fmt: skip


def _rate(results: Results, verdicts: list[str]) -> list[str]:
    found, models = results["posterior"], results["models"]
    rows = [
        (f"{models[n]['kl_weight']:g}", f"{v['nats']:.3f}", f"{v['mode']:.2f}", f"{v['sample']:.2f}",
         f"{results['reconstruction'][n]['training']:.2f}", f"{results['samples'][f'{n} N(0, I)']:.1f}")
        for n in SWEEP for v in [found[n]]
    ]  # fmt: skip
    return [
        *heading(4),
        "The KL term counts how much the latents say about the picture beyond what the prior already knows: in nats, of "
        "which 0.69 are one bit. The larger its weight, the dearer each nat.",
        "",
        *picture("rate", "Rate in nats a pixel against PSNR, one point a KL weight"),
        "Each point is one trained network. To the right latents say more; upwards pictures are truer. A network that is "
        "regularised for free would lie above those on its right. *Mode* is the decoded mean of the posterior, *sample* "
        "a decoded draw, which is what the rate pays for.",
        "",
        *table(
            ("KL weight", "nats a pixel", "PSNR, mode", "PSNR, sample", "PSNR, training pictures", "distance of samples from N(0, I)"),
            rows,
        ),
        "The loss is the likelihood bound of a VAE whose decoder has Gaussian errors where the weight is twice their mean "
        f"square: {results['elbo_weight']:.3f} for the error of the VAE of section 2.",
        "",
        *verdicts,
    ]  # fmt: skip


def _residual(results: Results, verdicts: list[str]) -> list[str]:
    rows = []
    for name, title in (("deep-plain", "without"), ("deep-residual", "with")):
        model = results["models"][name]
        first, last = model["gradients"]["first"], model["gradients"]["last"]
        rows.append(
            (title, len(first), f"{min(first):.1e}", f"{spread(first):.2g}", f"{spread(last):.2g}",
             f"{model['curve'][-1][1]:.4f}", f"{results['reconstruction'][name]['held_out']:.2f}")
        )  # fmt: skip
    steps = results["models"]["deep-plain"]["steps"]
    return [
        *heading(5),
        "A pair of convolutions gives conv(conv(x)), or with a residual connection x + conv(conv(x)): then a gradient can go "
        "around the pair. The network is a deep one without norms, with and without; nothing else differs.",
        "",
        *picture("residual", "Gradient norm of each layer at the first and last step, and the loss, with and without residual connections"),
        "Left: the size of each layer's gradient, from the encoder's first layer to the decoder's last. Where a line dives, "
        "those layers learn nothing. Right: the loss while training; the dashed line is what a constant mean picture costs.",
        "",
        *table(
            ("residual connections", "layers", "smallest gradient, first step", "largest / smallest, first step",
             f"after {steps} steps", f"loss after {steps} steps", "PSNR, held out"), rows,
        ),
        *verdicts,
    ]  # fmt: skip


def _without_kl(results: Results, verdicts: list[str]) -> list[str]:
    rows = [
        (f"{results['models'][n]['kl_weight']:g}", f"{v['noise']:.2g}", f"{v['noise_low']:.2g} to {v['noise_high']:.2g}",
         f"{v['spread']:.2f}", f"{100 * v['used']:.0f}%", f"{v['mode']:.2f}",
         f"{results['samples'][f'{n} N(0, I)']:.1f}")
        for n in SWEEP for v in [results["posterior"][n]]
    ]  # fmt: skip
    return [
        *heading(6),
        "The variance costs reconstruction, and only KL pays for it. Without KL nothing does.",
        "",
        *picture("without-kl", "Noise of the posterior and spread of latents, with and without KL"),
        "Left: how much noise each network adds to its latents. Networks begin with 0.007 (dotted). Right: the latents of all "
        "held-out pictures, against the N(0, I) that samples are drawn from (black). Where a curve is wider than the black "
        "one, a draw from N(0, I) lies in a small corner of the latents that the decoder knows.",
        "",
        *table(
            ("KL weight", "noise (std), median", "5% to 95%", "spread of latents (std)", "numbers that say more than noise",
             "PSNR, mode", "distance of samples from N(0, I)"), rows,
        ),
        *verdicts,
    ]  # fmt: skip


def _latents(results: Results, verdicts: list[str]) -> list[str]:
    found = results["probe"]
    if not found:
        return [*heading(7), "Not measured: there is no labels.jsonl beside these pictures.", ""]
    rows = [
        (title, f"{found[name]['set']:.1f}", f"{found[name]['label']:.1f}", f"{found[name]['clusters']:.3f}")
        for name, title in PROBED.items()
    ]
    asked = found["asked"]
    return [
        *heading(7),
        "If latents keep what is essential, it should be easier to say from them what a picture shows. A linear classifier "
        "(ridge regression) is fitted to the latents of the training pictures, and asked about the held-out ones: which of the "
        f"{asked['set']['classes']} sets a picture is of, and which of {asked['label']['classes']} labels it has. k-means is told "
        "nothing, and makes as many clusters as there are sets.",
        "",
        *table(("features", "set, % right", "label, % right", "clusters against sets (NMI, 0 to 1)"), rows),
        f"Always naming the commonest gets {asked['set']['commonest']:.1f}% of sets and {asked['label']['commonest']:.1f}% of "
        f"labels right. {asked['set']['asked']} and {asked['label']['asked']} pictures were asked about, so a point or "
        "two is chance.",
        "",
        *verdicts,
    ]


def _closing(results: Results) -> list[str]:
    versions: dict[str, Any] = results["versions"]
    return [
        "## How this was made",
        "",
        f"`{results['command']}` on {results['date']}, on {results['device']}, {results['threads']} threads: "
        f"{results['seconds'] / 60:.0f} minutes in all, of which {results['seconds_training'] / 60:.0f} were training. "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ". Seed 0, and 1 for the second convolutional network; order, flips, weights and noise follow from it. All numbers: "
        "[family.json](family.json). A model that is finished is kept in `runs/family` and not trained again.",
        "",
        "Networks: `src/calotype/train/family.py`, and `src/calotype/autoencoder.py` for KL-f8. Recipes, all trained by "
        "`calotype.train.loop`: `scripts/family_page/models.py`.",
        "",
    ]
