"""Sizes, crops and tables of sizes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from math import log

import pytest
from hypothesis import given, strategies as st

from calotype.cache.buckets import nearest, table
from calotype.cache.rules import Rules, rules_from_dict
from calotype.errors import UsageError

SIDES = st.integers(1, 5000)


def test_the_published_table_of_sdxl() -> None:
    sizes = table("sdxl")
    assert len(sizes) == 41
    assert sizes[0] == (512, 2048)
    assert sizes[-1] == (2048, 512)
    assert {(1024, 1024), (832, 1216), (1344, 704), (704, 1344), (960, 1088)} <= set(sizes)
    assert {(height, width) for width, height in sizes} == set(sizes)


@pytest.mark.parametrize(("name", "side", "step", "least"), [
    ("sd1", 512, 64, 256), ("sd2", 768, 64, 256), ("flux", 1024, 64, 256), ("1024/16", 1024, 16, 256),
    ("128/8", 128, 8, 64),
])  # fmt: skip
def test_tables_by_the_rule(name: str, side: int, step: int, least: int) -> None:
    sizes = table(name)
    assert (side, side) in sizes
    for width, height in sizes:
        assert width % step == height % step == 0
        assert width * height <= side * side
        assert least <= width <= 2 * side
        assert (height, width) in sizes
    shapes = [width / height for width, height in sizes]
    assert shapes == sorted(shapes)


def test_sd1_as_kohyas_trainer_has_it() -> None:
    assert set(table("sd1")) == {
        (256, 1024), (256, 960), (256, 896), (256, 832), (320, 768), (320, 704), (384, 640), (448, 576), (512, 512),
        (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["", "sdx", "0", "512/0", "64/128", "99999", "512/-8", "512x512"])
def test_what_is_no_table(name: str) -> None:
    with pytest.raises(UsageError):
        Rules(buckets=name).sizes  # noqa: B018


@pytest.mark.slow
@given(SIDES, SIDES, st.sampled_from(["centre", "top", "random"]), st.sampled_from(["sdxl", "sd1", ""]))
def test_every_crop_lies_in_a_picture_that_just_covers_it(width: int, height: int, crop: str, buckets: str) -> None:
    rules = Rules(size=None if buckets else (96, 64), buckets=buckets, crop=crop)  # type: ignore[arg-type]
    key = hashlib.sha256(b"%d %d" % (width, height)).digest()
    placed = rules.place(width, height, key)
    assert rules.place(width, height, key) == placed
    for corner, side, whole in zip(placed.corner, placed.bucket, placed.resized, strict=True):
        assert 0 <= corner <= whole - side
    assert placed.resized[0] == placed.bucket[0] or placed.resized[1] == placed.bucket[1]
    assert abs(placed.resized[0] * height - placed.resized[1] * width) <= max(width, height)  # as rounding makes it
    assert placed.enlarged == (placed.resized[0] > width or placed.resized[1] > height)
    if crop == "top":
        assert placed.corner[1] == 0


@given(SIDES, SIDES)
def test_the_nearest_shape(width: int, height: int) -> None:
    sizes = table("sdxl")
    found = nearest(sizes, width, height)
    apart = [abs(log(one[0] / one[1]) - log(width / height)) for one in sizes]
    assert abs(log(found[0] / found[1]) - log(width / height)) == min(apart)


def test_random_crops_depend_on_seed_and_bytes() -> None:
    keys = [hashlib.sha256(bytes([i])).digest() for i in range(40)]
    one, two = (Rules(size=(64, 64), crop="random", seed=seed) for seed in (0, 1))
    corners = [one.place(640, 64, key).corner for key in keys]
    assert len(set(corners)) > 30
    assert corners != [two.place(640, 64, key).corner for key in keys]


def test_rules_survive_their_dictionary() -> None:
    for rules in (Rules(size=(64, 32), flip=True), Rules(buckets="sd1", crop="random", seed=5, enlarge=False)):
        assert rules_from_dict(rules.to_dict()) == rules
    for wrong in ({}, {"size": (1, 1), "buckets": "sd1"}, {"size": (0, 8)}):
        with pytest.raises(UsageError):
            Rules(**wrong)  # type: ignore[arg-type]


def test_what_needs_no_torch_does_not_import_it() -> None:
    code = "import sys, calotype.cache.status, calotype.cache; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_pyarrow_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from calotype.cache.tables import arrow\n"
        "from calotype.errors import UsageError\n"
        "try: arrow()\n"
        "except UsageError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'calotype[cache]'" in ran.stdout
