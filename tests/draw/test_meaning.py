"""What a prompt is taken for: itself where the model knows it, and else a name near it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drawkit import encoder

from calotype.draw.meaning import Names

AT = {
    "red circle": (0.0, 0.0), "round thing": (0.5, 0.0), "blue circle": (10.0, 0.0), "cyan circle": (10.0, 1.0),
    "box": (0.0, 40.0), "nowhere": (0.0, 30.0), "circle": (6.0, 0.0), "a boxy box": (20.0, 39.0), "": (0.0, 0.0),
    "a red box": (0.0, 19.0), "a box with a red circle": (0.0, 19.0), "with a box": (0.0, 19.0),
    "a box circle": (0.0, 22.0),
}  # fmt: skip
NAMES = ("red circle", "blue circle", "cyan circle", "box")


class Places:
    """A text encoder that has states of its own choice; it counts the texts that it was asked about."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Any:
        self.asked += texts
        return SimpleNamespace(pooled=torch.tensor([AT[text] for text in texts]))


@pytest.fixture
def names() -> Names:
    places: Any = Places()
    return Names(places, NAMES, 2.0)


def asked(names: Names) -> list[str]:
    places: Any = names.text
    found: list[str] = places.asked
    return found


@pytest.mark.parametrize("prompt", ["red circle", "A red circle", "the  Red, circle!", "box", "", "a the"])
def test_names_are_what_they_are_and_cost_nothing(names: Names, prompt: str) -> None:
    assert names.near(prompt) == {}
    assert names.meant(prompt, 3) == prompt
    assert asked(names) == []


def test_texts_near_a_name_are_drawn_as_they_are(names: Names) -> None:
    assert names.meant("round thing", 3) == "round thing"
    assert asked(names).count("box") == 1
    names.meant("round thing", 4)
    assert asked(names).count("box") == 1


def test_texts_far_from_all_names_are_drawn_as_the_nearest(names: Names) -> None:
    assert names.near("nowhere") == {"box": 1.0}
    assert names.meant("nowhere", 3) == "box"


def test_a_word_in_common_brings_a_name_nearer(names: Names) -> None:
    """4, 4.1 and 6 away, all circles; each as often as its share, and of a seed always the same."""
    near = names.near("circle")
    assert list(near)[:2] == ["blue circle", "cyan circle"]
    assert sum(near.values()) == pytest.approx(1)
    counts = Counter(names.meant("circle", seed) for seed in range(400))
    assert counts.keys() == near.keys()
    assert all(abs(counts[name] / 400 - share) < 0.1 for name, share in near.items())
    assert names.meant("circle", 7) == names.meant("circle", 7)
    assert next(iter(names.near("a boxy box"))) == "box"


@pytest.mark.parametrize(
    ("prompt", "what"),
    [("a red box", "box"), ("a box with a red circle", "box"), ("with a box", "box"), ("a box circle", "circle")],
)
def test_what_a_prompt_is_of_counts_most(prompt: str, what: str) -> None:
    """A circle is 19 away from the first three, and the box 21; from the last one 22 and 18."""
    places: Any = Places()
    near = Names(places, NAMES, 15.0).near(prompt)
    assert what in next(iter(near)).split()
    assert near[next(iter(near))] > 0.3


def test_of_a_real_encoder() -> None:
    """Nothing is known within almost nothing, and everything within very much."""
    prompts = ["a green box", "night moon", "star"]
    assert all(Names(encoder(), ["red circle", "moon, night"], 1e6).near(one) == {} for one in prompts)
    strict = Names(encoder(), ["red circle", "moon, night"], 1e-3)
    assert all(strict.near(one) for one in prompts)
    assert Names(encoder(), [], 1.0).near("star") == {}
    assert Names(encoder(), ["red circle"], 0.0).meant("star", 1) == "star"
