"""What latents know about pictures' labels, against what as many pixels know."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.evaluate.figures import Bars, Heatmap
from calotype.evaluate.probe.bench import Bench, Sample, array
from calotype.evaluate.probe.finding import Finding, LeftOut, Number, said

POOL = 4  # positions a side that latents are pooled to
FOLDS = 5
PENALTIES = (0.001, 0.01, 0.1, 1.0)
STARTS = 10  # of k-means
ROUNDS = 100  # of each, at most
NAMED = 20  # labels in a title, at most


class Labels:
    """Collects pooled latents and pooled pixels of pictures with labels."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        # as many pixels as latents, or a few more: the side must be whole
        numbers = bench.vae.latent_channels * POOL**2
        self.planes = 1 if bench.channels == 1 else 3
        self.side = min(math.ceil(math.sqrt(numbers / self.planes)), bench.side)
        self._of: list[tuple[str, str]] = []  # label and digest of each picture that has a label
        self._without = 0
        # whole blocks, as in `Certainty`
        self._latents = torch.empty(bench.samples.labelled, numbers, dtype=torch.float64)
        self._pixels = torch.empty(bench.samples.labelled, self.planes * self.side**2, dtype=torch.float64)

    def add(self, sample: Sample, latents: Tensor) -> None:
        """One more picture and its latents [C, h, w]."""
        if sample.label is None:
            self._without += 1
        else:
            self._latents[len(self._of)] = F.adaptive_avg_pool2d(latents.double(), POOL).flatten()
            self._pixels[len(self._of)] = F.adaptive_avg_pool2d(
                sample.pixels[: self.planes].double(), self.side
            ).flatten()
            self._of.append((sample.label, sample.digest))

    def finding(self) -> Finding:
        """Of all that was added."""
        if not self._of:
            raise LeftOut("there are no labels, neither in a file nor by folders")
        counts = Counter(label for label, _ in self._of)
        names = sorted(name for name, n in counts.items() if n > 1)
        if len(names) < 2:
            raise LeftOut("a linear probe needs two labels with two pictures each")
        place = {name: i for i, name in enumerate(names)}
        used = [i for i, (label, _) in enumerate(self._of) if label in place]
        y = torch.tensor([place[self._of[i][0]] for i in used])
        folds = split([self._of[i][1] for i in used], y, self.bench.seed)
        spaces = {
            "latents": self._latents[used],
            "pixels": self._pixels[used],
        }
        n, k = len(y), len(names)
        numbers, groups = [], {}
        confusion = torch.zeros(k, k)
        accuracies = {}
        for space, x in spaces.items():
            guesses = cross_validated(x, y, folds, k)
            clusters = k_means(standardised(x, x)[0], k, self.bench.generator("k-means"))
            accuracy = float((guesses == y).double().mean())
            nmi, purity = mutual_information(y, clusters), _purity(y, clusters)
            if space == "latents":
                confusion.index_put_((y, guesses), torch.ones(n), accumulate=True)
            accuracies[space] = accuracy
            groups[space] = torch.tensor([accuracy, nmi, purity])
            numbers += [
                Number(name=f"accuracy of a linear probe, {space}", value=accuracy),
                Number(name=f"NMI of k-means, {space}", value=nmi),
                Number(name=f"purity of k-means, {space}", value=purity),
                Number(name=f"features, {space}", value=float(x.shape[1])),
            ]
        chance = max(counts[name] for name in names) / n
        error = math.sqrt(max(accuracies["latents"] * (1 - accuracies["latents"]), 1 / n) / n)
        apart = accuracies["latents"] - accuracies["pixels"]
        verdict = (
            "as much as pixels do, within the error"
            if abs(apart) <= 2 * error
            else "more than pixels do"
            if apart > 0
            else "less than pixels do"
        )
        numbers += [
            Number(name="accuracy of the most frequent label", value=chance),
            Number(name="standard error of the accuracy", value=error),
            Number(name="labels", value=float(k)),
            Number(name="pictures", value=float(n)),
            Number(name="pictures without a label, left out here", value=float(self._without)),
            Number(name="pictures alone with their label, left out here", value=float(len(self._of) - n)),
        ]
        return Finding(
            key="labels",
            title="What latents know",
            numbers=tuple(numbers),
            sentence=(
                f"A linear probe finds {100 * accuracies['latents']:.1f} % of labels in pooled latents and "
                f"{100 * accuracies['pixels']:.1f} % in about as many pooled pixels (the most frequent label: "
                f"{100 * chance:.1f} %; standard error {said(100 * error)} %): latents tell {verdict}."
            ),
            method=(
                f"{n} pictures, {k} labels. Latents pooled to {POOL} x {POOL}, pixels to {self.side} x {self.side}; "
                f"logistic regression on standardised features, its penalty chosen within the training part, "
                f"{FOLDS}-fold cross-validation by the seed. k-means++ with k = {k}, the best of {STARTS} starts; NMI "
                f"with the arithmetic mean of entropies."
            ),
            figures=(
                Bars(
                    title="Latents and pixels against labels",
                    labels=["linear probe: accuracy", "k-means: NMI", "k-means: purity"],
                    series={space: array(values) for space, values in groups.items()},
                    x_label="",
                    y_label="1 is perfect",
                ),
                Heatmap(
                    title=f"Labels as the linear probe of latents finds them ({_listed(names)})",
                    values=array(confusion / confusion.sum(1, keepdim=True)),
                    x=(0, k - 1),
                    y=(0, k - 1),
                    x_label="found",
                    y_label="label",
                    value_label="share",
                ),
            ),
        )


def _listed(names: list[str]) -> str:
    """Numbered names, and of many the first ones only."""
    some = [f"{i} {name}" for i, name in enumerate(names[:NAMED])]
    return ", ".join(some if len(names) <= NAMED else [*some, f"... {len(names) - 1} {names[-1]}"])


def split(digests: list[str], y: Tensor, seed: int) -> Tensor:
    """A fold for each picture, [n], by content and seed; each label is spread over as many folds as it can be."""
    order = sorted(range(len(digests)), key=lambda i: hashlib.sha256(f"{seed} {digests[i]}".encode()).digest())
    order.sort(key=lambda i: int(y[i]))
    folds = torch.empty(len(digests), dtype=torch.long)
    folds[torch.tensor(order)] = torch.arange(len(digests)) % FOLDS
    return folds


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both, with the training part's means and stds; features that do not vary become 0."""
    mean, std = train.mean(0), train.std(0, correction=0)
    scale = torch.where(std > 1e-12 * mean.abs(), std, torch.inf)
    return (train - mean) / scale, (test - mean) / scale


def cross_validated(x: Tensor, y: Tensor, folds: Tensor, k: int) -> Tensor:
    """The label that logistic regression on the other folds gives each picture, [n].

    Its penalty is that with the least loss on the next fold, when this is left out too.
    """
    guesses = torch.full_like(y, -1)
    some = sorted(set(folds.tolist()))
    for fold, next_ in zip(some, some[1:] + some[:1], strict=True):
        test, check = folds == fold, folds == next_
        losses = {}
        for penalty in PENALTIES:
            part, rest = standardised(x[~test & ~check], x[check])
            losses[penalty] = float(F.cross_entropy(logistic(part, y[~test & ~check], k, penalty)(rest), y[check]))
        part, rest = standardised(x[~test], x[test])
        guesses[test] = logistic(part, y[~test], k, min(PENALTIES, key=losses.__getitem__))(rest).argmax(1)
    return guesses


def logistic(x: Tensor, y: Tensor, k: int, penalty: float) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression: what gives rows [m, d] their logits [m, k].

    It has the least mean cross-entropy + penalty / 2 * the sum of squared weights (offsets are free), by L-BFGS. (Least
    squares on one-hot labels would be a closed form, but hides labels that lie between others: Hastie, Tibshirani &
    Friedman, "The Elements of Statistical Learning", 2nd ed. 2009, section 4.2.)

    Args:
        x: float64 [n, d].
        y: 0 to k - 1, [n].
    """
    weights = torch.zeros(x.shape[1], k, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(k, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, offset], max_iter=200, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weights + offset, y) + 0.5 * penalty * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    weights, offset = weights.detach(), offset.detach()
    return lambda rows: rows @ weights + offset


def k_means(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The cluster of each row, [n]: Lloyd's algorithm from k-means++ (Arthur & Vassilvitskii, SODA 2007).

    Of several starts the one with the least sum of squares.
    """
    best, found = math.inf, torch.empty(0)
    for _ in range(STARTS):
        centres = _seeds(x, k, generator)
        for _ in range(ROUNDS):
            distances = _squares(x, centres)
            clusters = distances.argmin(1)
            member = F.one_hot(clusters, k).double()
            sizes = member.sum(0)[:, None]
            moved = torch.where(sizes > 0, member.T @ x / sizes.clamp(min=1), centres)
            if torch.equal(moved, centres):
                break
            centres = moved
        cost = float(distances.gather(1, clusters[:, None]).sum())
        if cost < best:
            best, found = cost, clusters
    return found


def _seeds(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k rows, each drawn with a probability like its squared distance to those there are."""
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    for _ in range(k - 1):
        nearest = _squares(x, x[chosen]).amin(1)
        place = torch.rand((), generator=generator, dtype=torch.float64) * nearest.sum()
        chosen.append(min(int((nearest.cumsum(0) <= place).sum()), len(x) - 1))
    return x[chosen]


def _squares(x: Tensor, centres: Tensor) -> Tensor:
    """Squared distances, [n, k]."""
    return torch.stack([(x - centre).square().sum(1) for centre in centres], 1)


def mutual_information(a: Tensor, b: Tensor) -> float:
    """Normalised: I(a; b) over the mean of both entropies; 1 where one tells the other, 0 where nothing."""
    joint = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    joint.index_put_((a, b), torch.ones(len(a), dtype=torch.float64), accumulate=True)
    joint /= len(a)
    both, rows, columns = (_entropy(p) for p in (joint, joint.sum(1), joint.sum(0)))
    return 2 * (rows + columns - both) / (rows + columns) if rows + columns else 1.0


def _entropy(p: Tensor) -> float:
    return -float(torch.xlogy(p, p).sum())


def _purity(labels: Tensor, clusters: Tensor) -> float:
    """The share of pictures that have their cluster's most frequent label."""
    return sum(int(labels[clusters == c].bincount().max()) for c in set(clusters.tolist())) / len(labels)
