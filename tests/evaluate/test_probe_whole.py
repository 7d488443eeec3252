"""A whole probe: what is left out, order and seed, progress, errors, and the built-in VAE."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from probekit import Toy, exact, named
from skimage import data as skimage_data
from support import one_sentence

import calotype
from calotype.errors import PictureError, UsageError
from calotype.evaluate.figures import Bars, Heatmap, Lines, Pictures, Scatter
from calotype.evaluate.lpips import LPIPS
from calotype.evaluate.probe import Finding, Probe, probe, uncertainty
from calotype.latents import ScaleShift

data: Any = skimage_data  # scikit-image is not typed


def test_without_a_posterior_what_needs_one_is_left_out() -> None:
    found = probe(Toy(), named(2))
    assert found.left_out.keys() == {"kl", "posterior", "draws", "labels", "lpips"}
    assert "without a posterior" in found.left_out["kl"]
    assert [finding.key for finding in found.findings] == [
        "rate", "channels", "noise", "interpolation", "shifts", "transforms", "constants", "colour", "preview", "prior",
        "drift",
    ]  # fmt: skip


def test_one_picture_is_enough_for_most() -> None:
    found = probe(Toy(logvar=-4.0), named(1))
    assert found.left_out.keys() == {"kl", "interpolation", "labels", "lpips"}


@pytest.mark.slow
def test_nothing_depends_on_the_order_and_all_on_the_seed() -> None:
    given = named(10)
    toy = Toy(logvar=-4.0, latent_format=ScaleShift(name="mine", channels=3, scaling_factor=1.0))
    first, again = probe(toy, given, seed=3), probe(toy, given[::-1], seed=3)
    assert first.to_dict() == again.to_dict()
    for one, other in zip(first.findings, again.findings, strict=True):
        for a, b in zip(one.figures, other.figures, strict=True):
            if isinstance(a, Pictures):
                assert isinstance(b, Pictures)
                assert all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    other = probe(toy, given, seed=4)
    changed = {f.key for f in first.findings if f.to_dict() != other[f.key].to_dict()}
    assert changed == {"draws", "noise", "prior"}


class Asked:
    """Pictures that are made when they are asked for."""

    def __init__(self, count: int, make: Callable[[int], np.ndarray[Any, Any]]) -> None:
        self.count, self.make = count, make
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int, /) -> tuple[str, np.ndarray[Any, Any]]:
        self.asked.append(i)
        return f"{i}.png", self.make(i)


def rough(i: int, height: int = 120, width: int = 96) -> np.ndarray[Any, Any]:
    levels = np.random.default_rng(i).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return levels.repeat(4, 0).repeat(4, 1)


@pytest.mark.slow
def test_pictures_are_not_kept() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()  # it sees what NumPy holds, and pixels of pictures are that before anything is made of them
        probe(Toy(logvar=-4.0), Asked(count, rough), labels=["ab"[i % 2] for i in range(count)])
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(9)  # what is imported or cached once
    few, many = peak(9), peak(41)
    assert many - few < 6 * rough(0).nbytes  # of 32 more


@pytest.mark.slow
def test_pictures_read_when_asked_for_give_the_same() -> None:
    toy = Toy(logvar=-4.0)
    # a smaller one comes in the middle, so that what was cut before it is cut anew
    sizes = [(100, 120), (88, 96), (70, 140), (200, 72), (120, 96), (75, 75), (96, 96), (90, 71), (80, 80), (100, 100)]
    asked = Asked(len(sizes), lambda i: rough(i, 240, 240)[: sizes[i][0], : sizes[i][1]])
    listed = [asked[i] for i in range(len(sizes))]
    found = probe(toy, asked)
    assert found.side == 64
    assert found.to_dict() == probe(toy, listed[::-1]).to_dict()
    cut = [(n, x[(x.shape[0] - 64) // 2 :, (x.shape[1] - 64) // 2 :][:64, :64]) for n, x in listed]
    assert found.to_dict() == probe(toy, cut).to_dict()


def test_positions_are_kept_of_so_many_pictures_only(monkeypatch: pytest.MonkeyPatch) -> None:
    given = named(7)
    toy = Toy(logvar=-4.0)
    whole = probe(toy, given)
    monkeypatch.setattr(uncertainty, "KEPT", 3 * 16 * 16 + 5)
    found = probe(toy, given)
    assert "the first 3 of 7 pictures by hash" in found["posterior"].method
    first = probe(toy, [one for one in given if one[0] in found.pictures[:3]])
    assert found["posterior"].numbers == first["posterior"].numbers
    for finding in found.findings:
        if finding.key != "posterior":
            assert finding.to_dict() == whole[finding.key].to_dict()


def fails_at(*numbers: int) -> Callable[[int], np.ndarray[Any, Any]]:
    def make(i: int) -> np.ndarray[Any, Any]:
        if i in numbers:
            raise PictureError(f"photos: {i}.png: it is damaged.")
        return rough(i)

    return make


def without_reading(found: Probe) -> dict[str, Any]:
    return {key: value for key, value in found.to_dict().items() if key != "unread"}


@pytest.mark.slow
def test_pictures_that_cannot_be_read_are_told_and_the_others_go_on() -> None:
    toy = Toy(logvar=-4.0)
    labels = ["a", "b", "a", "b", "a", "b"]
    found = probe(toy, Asked(6, fails_at(1, 4)), labels=labels)
    assert found.unread == ("photos: 1.png: it is damaged.", "photos: 4.png: it is damaged.")
    assert found.to_dict()["unread"] == list(found.unread)
    others = [(f"{i}.png", rough(i)) for i in (0, 2, 3, 5)]
    assert without_reading(found) == without_reading(probe(toy, others, labels=["a", "a", "b", "b"]))
    with pytest.raises(PictureError, match=r"1 more.*0\.png: it is damaged") as caught:
        probe(toy, Asked(2, fails_at(0, 1)))
    one_sentence(str(caught.value))


def test_a_picture_that_changes_meanwhile() -> None:
    asked = Asked(2, rough)
    asked.make = lambda i: rough(i + 10 * (len(asked.asked) > 2))
    with pytest.raises(PictureError, match="was changed while it was probed") as caught:
        probe(Toy(), asked)
    one_sentence(str(caught.value))


@pytest.mark.slow
def test_pictures_without_a_label_are_measured_in_all_else() -> None:
    toy, given = Toy(logvar=-4.0), named(9)
    labels = ["x", None, "y", "x", "y", None, "y", "x", "alone"]
    found, plain = probe(toy, given, labels=labels), probe(toy, given)
    assert (found.labelled, plain.labelled) == (7, 0)
    assert found.to_dict()["unlabelled"] == 2
    assert found.notes == [
        "Labels are from the caller, and 7 of 9 pictures have one; 2 without are left out where labels are needed."
    ]
    for finding in plain.findings:
        assert finding.to_dict() == found[finding.key].to_dict()
    knows = found["labels"]
    assert knows.value("pictures") == 6
    assert knows.value("pictures without a label, left out here") == 2
    assert knows.value("pictures alone with their label, left out here") == 1
    some = [i for i, label in enumerate(labels) if label in ("x", "y")]
    alone = probe(toy, [given[i] for i in some], labels=[labels[i] for i in some])
    assert alone.notes == ["Labels are from the caller, and all 6 pictures have one."]
    for number in alone["labels"].numbers:
        if "left out" not in number.name:
            assert knows.value(number.name) == number.value
    assert "labels" in probe(toy, given, labels=[None] * 9).left_out


def test_progress_only_grows_and_ends_at_one() -> None:
    seen: list[float] = []
    probe(Toy(logvar=-4.0), named(3), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 20
    assert sum(part == 1.0 for part in seen) <= 2


@pytest.mark.slow
def test_work_does_not_grow_with_the_pictures_but_for_one_pass() -> None:
    few, many = Toy(logvar=-4.0), Toy(logvar=-4.0)
    probe(few, named(8))
    probe(many, named(28))
    assert many.encoded - few.encoded == many.decoded - few.decoded == 20


@pytest.mark.slow
def test_pictures_are_cut_to_the_smallest_from_their_middles() -> None:
    large = np.zeros((200, 301, 3), np.uint8)
    large[64:136, 114:186] = 255  # 72 x 72 around the middle
    small = np.full((75, 90, 3), 255, np.uint8)
    found = probe(exact(), [("large", large), ("small", small)])
    assert found.side == 72  # 75, rounded down to whole pairs of latents
    assert found["channels"].value("mean") == 1.0
    assert found["channels"].value("std") == 0.0
    assert probe(exact(), [("small", small), ("large", large)])["channels"].value("mean") == 1.0
    assert probe(exact(), [("large", large)], side=100).side == 96
    assert probe(exact(), [("large", large)], side=1000).side == 200


@pytest.mark.parametrize(
    ("given", "options", "match"),
    [
        ([], {}, "at least one picture"),
        ([("a.png", np.zeros((31, 64, 3), np.uint8))], {}, "a.png: this picture is 64x31"),
        ([("a.png", np.zeros((64, 64), np.uint8))], {}, "a.png"),
        ([("a.png", np.zeros((64, 64, 3), np.float32))], {}, "float32"),
        (named(2), {"labels": ["a"]}, "1 labels for 2 pictures"),
        (named(2), {"side": 16}, "at least 32 pixels"),
    ],
)
def test_what_makes_no_sense_is_refused(given: list[Any], options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        probe(Toy(), given, **options)
    one_sentence(str(caught.value))


def check(finding: Finding) -> None:
    """What every report can rely on."""
    one_sentence(finding.sentence)
    one_sentence(finding.method)
    assert finding.numbers
    names = [number.name for number in finding.numbers]
    assert len(set(names)) == len(names)
    for figure in finding.figures:
        if isinstance(figure, Lines | Bars):
            size = len(figure.x) if isinstance(figure, Lines) else len(figure.labels)
            assert all(values.shape == (size,) for values in figure.series.values())
        elif isinstance(figure, Scatter):
            assert figure.x.shape == figure.y.shape
            assert len(figure.labels) in (0, len(figure.x))
        elif isinstance(figure, Heatmap):
            assert figure.values.ndim == 2
            assert np.isfinite(figure.values).all()
        else:
            assert len(figure.images) == len(figure.captions)
            assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in figure.images)


@pytest.mark.slow
def test_lpips_is_used_where_it_is_given() -> None:
    torch.manual_seed(0)
    found = probe(Toy(logvar=-4.0), named(2), lpips=LPIPS("alex"))  # with random weights: a distance all the same
    assert found.lpips == "alex"
    assert "lpips" not in found.left_out
    assert found["draws"].value("LPIPS to the mode") > 0
    assert found["noise"].value("LPIPS (alex) at 1 std") > found["noise"].value("LPIPS (alex) at 0.1 std") > 0
    assert found["interpolation"].value("largest over mean step, lerp, LPIPS (alex)") >= 1
    assert "LPIPS" in found["interpolation"].sentence


def test_an_exact_vae_gives_sentences_and_json_too() -> None:
    found = probe(exact(), named(3))  # where PSNRs are infinite, or nearly
    for finding in found.findings:
        check(finding)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.slow
def test_the_built_in_vae_gives_finite_numbers() -> None:
    found = probe(
        calotype.load(device="cpu"), [(name, getattr(data, name)()) for name in ("astronaut", "coffee")], side=64
    )
    assert found.left_out.keys() == {"lpips", "labels"}
    for finding in found.findings:
        check(finding)
        for number in finding.numbers:
            values = number.value if isinstance(number.value, tuple) else (number.value,)
            assert all(map(math.isfinite, values)), number.name
    json.dumps(found.to_dict(), allow_nan=False)
    assert found["draws"].value("PSNR to the mode") > 50
    assert found["drift"].value("lost") > 0


@pytest.mark.slow
def test_the_built_in_vae_as_it_is_known() -> None:
    vae = calotype.load(device="cpu")
    given = [(name, getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    found = probe(vae, given, side=128)
    assert found.left_out.keys() == {"lpips", "labels"}
    assert found.sha256 == vae.sha256
    assert found["rate"].value("PSNR") > 26
    assert 1 < found["rate"].value("KL rate") < 3
    assert 0.7 < found["channels"].value("std in the own format") < 1.4
    assert found["kl"].value("share of active units") > 0.9
    assert 0.001 < found["posterior"].value("std") < 0.05
    assert found["posterior"].value("rank correlation with texture") > 0.4
    assert found["draws"].value("PSNR to the mode") > 50
    assert found["noise"].value("pictures whose error grows with every step") == 4
    assert found["shifts"].value("latent error, 8 pixels (one latent)") < 0.05
    assert found["shifts"].value("latent error, half a latent") > 0.3
    assert found["constants"].value("grid") < 2
    assert abs(found["colour"].value("bias of luma")) < 1
    assert found["drift"].value("lost") > 0.5
