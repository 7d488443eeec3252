"""The page, from the numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any

from family_page.claims import SWEEP, Claim, Results, claims, margin, short, spread

TITLES = {
    "pca": "PCA, 192 components",
    "linear": "dense, linear",
    "dense": "dense, one hidden layer",
    "conv": "convolutional",
    "vae": "convolutional VAE",
    "kl-f8": "KL-f8: norms and attention as well",
}

SAMPLED = {  # key in the results -> (row of the figure, row of the table)
    "photographs": ("photographs", "(photographs, held out)"),
    "vae N(0, I)": ("VAE,\nN(0, I)", "VAE, N(0, I)"),
    "vae-1e-6 N(0, I)": ("VAE, KL 1e-6,\nN(0, I)", "VAE with KL weight 1e-6, N(0, I)"),
    "vae-0 N(0, I)": ("VAE, KL 0,\nN(0, I)", "VAE with KL weight 0, N(0, I)"),
    "conv N(0, I)": ("autoencoder,\nN(0, I)", "autoencoder, N(0, I)"),
    "conv per channel": ("autoencoder,\nper channel", "autoencoder, Gaussian with each channel's mean and std"),
    "conv all": ("autoencoder,\nall numbers", "autoencoder, Gaussian with the covariance of all 192 numbers"),
    "pca all": ("PCA,\nall numbers", "PCA, Gaussian with the variance of each component"),
    "noise": ("noise", "(uniform noise)"),
}

PROBED = {
    "pixels": "pixels (3,072 numbers)",
    "pca": "PCA",
    "conv": "autoencoder",
    "vae": "VAE",
    "kl-f8": "KL-f8",
}

WHOLE: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}

HEADINGS = {
    1: "Reconstruction",
    2: "Samples",
    3: "Interpolation",
    4: "The KL weight",
    5: "Residual connections",
    6: "Without KL",
    7: "What latents know",
}


def prose(text: str) -> list[str]:
    """Paragraphs, filled anew: numbers have changed the lines' lengths."""
    return [line for paragraph in text.split("\n\n") for line in (fill(" ".join(paragraph.split()), 120, **WHOLE), "")]


def heading(number: int) -> list[str]:
    return [f"## {number} {HEADINGS[number]}", ""]


def link(number: int) -> str:
    return f"[{number}](#{number}-{HEADINGS[number].lower().replace(' ', '-')})"


def picture(name: str, alt: str) -> list[str]:
    return [f"![{alt}](pictures/family-{name}.png)", ""]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Markdown."""
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)] + [""]


def verdict(claim: Claim) -> list[str]:
    """The claim, its verdict and what decided it."""
    rows = [(check.wanted, check.found, "yes" if check.holds else "no") for check in claim.checks]
    said = f"**{claim.verdict.capitalize()}:** *{claim.text}*"
    return [said, "", *table(("looked for", "found", "holds"), rows)]


def page(results: Results) -> str:
    """docs/family.md."""
    found = claims(results)
    parts = _opening(results, found)
    sections = (_reconstruction, _samples, _interpolations, _rate, _residual, _without_kl, _latents)
    for number, section in enumerate(sections, 1):
        parts += [*heading(number), *section(results)]
        parts += [line for claim in found if claim.section == number for line in verdict(claim)]
    return "\n".join([*parts, *_closing(results)])


def _opening(results: Results, found: list[Claim]) -> list[str]:
    side = results["side"]
    summary = [(claim.text, f"**{claim.verdict}**", link(claim.section)) for claim in found]
    return [
        "# From PCA to Stable Diffusion's autoencoder",
        "",
        *prose("""
            What does each idea add: layers, convolutions, variance, the KL term, residual blocks? Here every step is
            trained on the same photographs by the same loop, measured, and held against what is usually said of it.
            Numbers, figures and verdicts are made by one command:
        """),
        "<!-- not run: trains for half an hour; tests/test_family_page.py runs it on a few pictures -->",
        "",
        f"    {results['command']}",
        "",
        *prose(f"""
            The pictures are the middles of photographs at {side} x {side} pixels: {results["pictures"]:,} to train
            on, and {results["held_out"]:,} (every {results["hold_out"]}th) held out, which is what PSNR is measured
            on. Every model has {results["numbers"]} numbers for the {3 * side**2:,} values of a picture. The pictures
            that are shown are scikit-image's; no model was trained on them. What these ideas are, one after another and
            with code, tells [tutorial.md](tutorial.md).

            This is small: a minute or so of training a model on a CPU. **Verdicts hold for these networks, pictures
            and minutes.** A longer run can end differently, above all where two models are close.

            *Latents* are what an encoder gives. *PSNR* is the error of the reconstruction on a logarithmic scale:
            more is better, and 1 dB is a fifth less squared error. The *KL weight* is on the KL divergence summed
            over latents, against the squared error summed over the values of the picture, as in latent-diffusion.
        """),
        *table(("claim", "verdict", "section"), summary),
        *prose(f"""
            A claim is broken into comparisons, each with a threshold: it is true if all hold, false if none does.
            Differences in PSNR count from {margin(results):.2f} dB on: twice what another seed makes for the
            convolutional network, and at least 0.1.
        """),
    ]


def _reconstruction(results: Results) -> list[str]:
    models, rec = results["models"], results["reconstruction"]
    rows = []
    for name, title in TITLES.items():
        facts = models.get(name, {"parameters": results["pca_parameters"], "seconds": results["pca_seconds"]})
        rows.append(
            (
                title,
                f"{facts['parameters']:,}",
                f"{facts['steps']:,} of {facts['batch']}" if "steps" in facts else "none",
                f"{facts['seconds']:.0f}",
                f"{rec[name]['training']:.2f}",
                f"**{rec[name]['held_out']:.2f}**",
            )
        )
    moves = [
        (
            TITLES[name],
            f"{found['still']:.2f}",
            f"{found['moved']:.2f}",
            f"{found['latents']:.2f}" if "latents" in found else "(no places)",
        )
        for name, found in results["shift"].items()
    ]
    return [
        *prose("""
            An encoder squeezes a picture into 192 numbers, and a decoder makes a picture of them again; without the
            bottleneck both could copy. PCA is the best *linear* way, and needs no training. The dense networks give
            one list of 192 numbers. The convolutional ones give 12 channels of 4 x 4 places, each for 8 x 8 pixels
            (f8); they have residual connections, and section 5 shows why.
        """),
        *picture("reconstruction", "Pictures and their reconstructions by each model"),
        *prose("""
            How to read it: a row is what one model makes of the pictures at the top. Look at edges, eyes and small
            spots of colour. That is what 192 numbers lose first, and each model loses something else.
        """),
        *table(("model", "parameters", "steps of pictures", "seconds", "PSNR, training", "PSNR, held out"), rows),
        *prose("""
            A gap between the last two columns would mean that a model knows its training pictures better than others.
            All models have as many latents, but not as many parameters or seconds.
        """),
        *picture(
            "shift", "Pictures moved to the right by 8 pixels, and what dense and convolutional networks make of them"
        ),
        *prose("""
            How to read it: the picture is moved to the right by 8 pixels, which is one place of the latents; what
            leaves on the right comes back on the left. The third and fourth columns reconstruct the moved picture.
            For the last, nothing is encoded again: the *latents* of the picture are moved by one place, and decoded.
            Only latents that have places can be moved.
        """),
        *table(("PSNR, dB", "of the picture", "of the moved picture", "moved latents, decoded"), moves),
    ]


def _samples(results: Results) -> list[str]:
    far = results["samples"]
    weight = results["models"]["vae"]["kl_weight"]
    return [
        *prose(f"""
            Can pictures be made from nothing? Draw latents at random, decode them, and look. A VAE's encoder gives
            not one list of latents but a Gaussian for each number (the *posterior*), and the KL term pulls all of
            them towards N(0, I), standard normal noise (the *prior*): then that is what to draw from. "VAE" here is
            the one with KL weight {short(weight)}. It and the autoencoder are the same network otherwise.
        """),
        *picture("samples", "Samples of each model in rows, photographs above"),
        *prose("""
            How to read it: each row shows the first ten samples of one model, none picked. Ask of each: is it as
            sharp, as colourful and as calm as a photograph? And is there a thing in it?
        """),
        *table(
            ("latents drawn from", "distance to photographs"),
            [(t, f"{far[key]:.1f}") for key, (_, t) in SAMPLED.items()],
        ),
        *prose(f"""
            The distance is Fréchet's between Gaussians fitted to 48 statistics of {results["held_out"]} samples and
            of the training pictures: for brightness and two differences of colour, in each quarter of the picture,
            the contrast of details of 1, 2 and 4 pixels, and the mean. 1 is about one standard deviation in one of
            the 48. It tells whether light, colour and detail are spread as in photographs. It can't tell whether a
            thing is in the picture.
        """),
    ]


def _interpolations(results: Results) -> list[str]:
    rows = [
        (
            TITLES[name],
            f"{found['jump']:.2f}",
            f"{found['jump_most']:.2f}",
            f"{found['ends']:.1f}",
            f"{found['crossfade']:.1f}",
            f"{found['middle']:.1f}",
        )
        for name, found in results["interpolation"].items()
    ]
    head = ("", "largest / mean step", "worst pair", "reconstructions", "cross-fades, halfway", "latents, halfway")
    return [
        *prose("""
            Go straight from the latents of one picture to those of another, and decode on the way.
        """),
        *picture("interpolation", "Rows of frames between two pictures: cross-fade, autoencoder, VAE, KL-f8"),
        *prose("""
            How to read it: the first row of each block is a cross-fade of pixels: halfway both pictures are there,
            each at half its contrast. If latents describe what is in a picture, halfway down the other rows there
            should be *a* picture.
        """),
        *table(head, rows),
        *prose(f"""
            Means over {results["held_out"]} pairs of held-out pictures. A step is the RMS difference between two of
            nine frames; those of a cross-fade are equal, so its ratio is 1. The last three columns are distances to
            photographs as in section 2; cross-fades are of the same model's reconstructions, so blur counts alike.
        """),
    ]


def _rate(results: Results) -> list[str]:
    found, models = results["posterior"], results["models"]
    rows = [
        (
            short(models[name]["kl_weight"]),
            f"{found[name]['nats']:.3f}",
            f"{found[name]['mode']:.2f}",
            f"{found[name]['sample']:.2f}",
            f"{results['reconstruction'][name]['training']:.2f}",
            f"{results['samples'][f'{name} N(0, I)']:.1f}",
        )
        for name in SWEEP
    ]
    head = ("KL weight", "nats a pixel", "PSNR, mode", "PSNR, sample", "PSNR, training (mode)", "distance of samples")
    return [
        *prose("""
            The KL term counts how much the latents say about a picture that the prior does not know already: in nats,
            of which 0.69 are a bit. The larger its weight, the dearer each nat.
        """),
        *picture("rate", "Rate in nats a pixel against PSNR, one point a KL weight"),
        *prose("""
            How to read it: each point is one trained network. Further right, latents say more; further up, pictures
            are truer. *Mode* decodes the middle of the posterior; *sample* decodes a draw from it, which is what the
            rate pays for. If regularising reduced the error, the curve would rise to the left.
        """),
        *table(head, rows),
        *prose(f"""
            Distances are those of section 2, for samples from N(0, I). With a weight of twice the mean squared error
            the loss is the likelihood bound of a VAE whose decoder has Gaussian errors: {results["elbo_weight"]:.3f}
            for the VAE of section 2.
        """),
    ]


def _residual(results: Results) -> list[str]:
    rows = []
    for name, title in (("deep-plain", "without"), ("deep-residual", "with")):
        model = results["models"][name]
        first, last = model["gradients"]["first"], model["gradients"]["last"]
        rows.append(
            (
                title,
                len(first),
                f"{min(first):.1e}",
                f"{spread(first):.1e}",
                f"{spread(last):.1e}",
                f"{model['curve'][-1][1]:.4f}",
                f"{results['reconstruction'][name]['held_out']:.2f}",
            )
        )
    steps = results["models"]["deep-plain"]["steps"]
    head = (
        "residual connections",
        "layers",
        "smallest gradient, first step",
        "largest / smallest, first step",
        f"after {steps} steps",
        f"loss after {steps} steps",
        "PSNR, held out",
    )
    return [
        *prose("""
            A pair of convolutions turns x into conv(conv(x)), or with a residual connection into x + conv(conv(x)):
            then the gradient can also go around the pair. This is one deep network without norms, with and without;
            nothing else differs. It is trained by AdamW.
        """),
        *picture("residual", "Gradient of each layer, and the loss, with and without residual connections"),
        *prose("""
            How to read it: left, the size of each layer's gradient, from the picture (1) through the latents to the
            reconstruction. Layers where a line lies on the floor (1e-12 or less) learn nothing. Right, the loss in
            training; the dashed line is the loss of always answering with the mean picture.
        """),
        *table(head, rows),
    ]


def _without_kl(results: Results) -> list[str]:
    rows = []
    for name in SWEEP:
        found = results["posterior"][name]
        rows.append(
            (
                short(results["models"][name]["kl_weight"]),
                f"{found['noise']:.2g}",
                f"{found['noise_low']:.2g} to {found['noise_high']:.2g}",
                f"{found['spread']:.2f}",
                f"{100 * found['used']:.0f}%",
                f"{found['mode']:.2f}",
                f"{results['samples'][f'{name} N(0, I)']:.1f}",
            )
        )
    head = (
        "KL weight",
        "noise (std), median",
        "5% to 95%",
        "spread of latents",
        "used",
        "PSNR, mode",
        "distance of samples",
    )
    return [
        *prose("""
            Noise in the latents costs reconstruction, and the KL term is all that pays for it. What happens when it
            goes?
        """),
        *picture("without-kl", "Noise of the posterior and spread of latents, with and without KL"),
        *prose("""
            How to read it: left, how much noise each network adds to its latents; all begin with about 1 (dotted).
            Right, where the latents of held-out pictures lie, against the N(0, 1) that samples are drawn from
            (black). A prior fits if draws from it fall where latents lie. A curve that is narrower than the black one
            leaves draws outside; noise far below the spread leaves gaps between pictures, which the decoder has never
            seen.
        """),
        *table(head, rows),
        *prose("""
            *Spread* is the standard deviation of all latents (modes); *used* is the share of the 192 numbers that
            vary more from picture to picture than their noise.
        """),
    ]


def _latents(results: Results) -> list[str]:
    found = results["probe"]
    if not found:
        return prose("Not measured: there is no labels.jsonl beside these pictures.")
    rows = [
        (title, f"{found[name]['set']:.1f}", f"{found[name]['label']:.1f}", f"{found[name]['clusters']:.3f}")
        for name, title in PROBED.items()
    ]
    sets, names = found["asked"]["set"], found["asked"]["label"]
    return [
        *prose(f"""
            If latents keep what is essential, it should be easier to say from them what a picture shows. A linear
            classifier (ridge regression) is fitted to the latents of the training pictures and asked about those held
            out: which of {sets["classes"]} sets is the picture from, and which of {names["classes"]} labels has it?
            k-means is told nothing, and makes as many clusters as there are sets.
        """),
        *table(("features", "set, % right", "label, % right", "clusters against sets, NMI (0 to 1)"), rows),
        *prose(f"""
            How to read it: always naming the commonest gets {sets["commonest"]:.1f}% of sets and
            {names["commonest"]:.1f}% of labels right. {sets["asked"]} and {names["asked"]} pictures were asked about,
            which is few: differences count from twice their standard error on, over the same pictures.
        """),
    ]


def _closing(results: Results) -> list[str]:
    versions: dict[str, Any] = results["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [
        "## How this was made",
        "",
        *prose(f"""
            `{results["command"]}` on {results["date"]}, {results["device"]}, threads: {results["threads"]}. It took
            {results["seconds"]:,.0f} seconds, {results["seconds_training"]:,.0f} of them in training; seconds are
            wall time, and grow where other programs run. {packages}.
        """),
        *prose("""
            Seed 0, and 1 for the second convolutional network: weights, order, mirror images and noise follow from
            it. The loss is the mean squared error, and the KL term. Convolutions are trained by Muon and the rest by
            AdamW; all begin with much noise in the posterior, except KL-f8. All numbers are in
            [family.json](family.json). Networks: `src/calotype/train/family.py`, and for KL-f8
            `src/calotype/families/kl/network.py`. Recipes, for `calotype.train.loop`: `scripts/family_page/models.py`.
            Finished models are kept in `runs/family` and not trained again.
        """),
    ]
