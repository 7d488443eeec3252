"""A whole probe: what is left out, order and seed, progress, errors, and the built-in VAE."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from probekit import Toy, exact, named
from skimage import data as skimage_data
from support import one_sentence

import calotype
from calotype.errors import UsageError
from calotype.evaluate.figures import Bars, Heatmap, Lines, Pictures, Scatter
from calotype.evaluate.lpips import LPIPS
from calotype.evaluate.probe import Finding, probe
from calotype.latents import ScaleShift

data: Any = skimage_data  # scikit-image is not typed


def test_without_a_posterior_what_needs_one_is_left_out() -> None:
    found = probe(Toy(), named(2))
    assert found.left_out.keys() == {"kl", "posterior", "draws", "labels", "lpips"}
    assert "without a posterior" in found.left_out["kl"]
    assert [finding.key for finding in found.findings] == [
        "rate", "channels", "noise", "interpolation", "shifts", "transforms", "constants", "colour", "prior", "drift",
    ]  # fmt: skip


def test_one_picture_is_enough_for_most() -> None:
    found = probe(Toy(logvar=-4.0), named(1))
    assert found.left_out.keys() == {"kl", "interpolation", "labels", "lpips"}


def test_nothing_depends_on_the_order_and_all_on_the_seed() -> None:
    given = named(10)
    toy = Toy(logvar=-4.0, latent_format=ScaleShift(name="mine", channels=3, scaling_factor=1.0))
    first, again = probe(toy, given, seed=3), probe(toy, iter(given[::-1]), seed=3)
    assert first.to_dict() == again.to_dict()
    for one, other in zip(first.findings, again.findings, strict=True):
        for a, b in zip(one.figures, other.figures, strict=True):
            if isinstance(a, Pictures):
                assert isinstance(b, Pictures)
                assert all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    other = probe(toy, given, seed=4)
    changed = {f.key for f in first.findings if f.to_dict() != other[f.key].to_dict()}
    assert changed == {"draws", "noise", "prior"}


def test_progress_only_grows_and_ends_at_one() -> None:
    seen: list[float] = []
    probe(Toy(logvar=-4.0), named(3), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 20
    assert sum(part == 1.0 for part in seen) <= 2


def test_work_does_not_grow_with_the_pictures_but_for_one_pass() -> None:
    few, many = Toy(logvar=-4.0), Toy(logvar=-4.0)
    probe(few, named(8))
    probe(many, named(28))
    assert many.encoded - few.encoded == many.decoded - few.decoded == 20


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
