"""The drawing model that ships: what it says of itself, and a grid of what it draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calotype.draw.model import BUILTIN
from calotype.draw.pipeline import Drawer, Settings, load_drawer
from calotype.evaluate.features import load_extractor
from calotype.latents import Latents

GRID = Path(__file__).with_name("grid.png")  # 4 x 3 pictures of 128 x 128, drawn when the weights were chosen
PROMPTS = (
    "a red apple", "cat face", "flag of france", "fire engine",
    "crying face", "airplane", "sunflower", "pizza",
    "rocket", "panda", "house", "waving hand, dark skin tone",
)  # fmt: skip


@pytest.fixture(scope="module")
def drawer() -> Drawer:
    return load_drawer()


@pytest.mark.slow
def test_it_ships_whole(drawer: Drawer) -> None:
    assert BUILTIN.stat().st_size <= 60e6
    assert drawer.model.config.size >= 128
    assert drawer.model.config.vae == drawer.vae.sha256
    about = drawer.model.about
    assert about["recipe"]["name"] == "emoji"
    assert about["recipe"]["seed"] == 0
    assert "MIT" in about["recipe"]["data"]
    assert about["steps"] == about["recipe"]["steps"]
    for features in ("lpips-vgg", "efficientnet-lite0"):
        of_names = about["figures"][features]["trained"]
        assert of_names["count"] == 200
        assert 0 < of_names["first"] < of_names["five"] < 1
    assert len(drawer.model.names) == about["pictures"] > 3000
    assert not set(about["held_out"]) & set(drawer.model.names)
    assert all(torch.isfinite(value).all() for value in drawer.model.state_dict().values())


def test_it_knows_its_words(drawer: Drawer) -> None:
    assert drawer.unknown("a red apple on the moon") == []
    assert drawer.unknown("a hexagonal apple") == ["hexagonal"]
    assert "red apple" in drawer.nearest("apples that are red")


@pytest.mark.slow
def test_a_grid_is_drawn_as_it_was(drawer: Drawer) -> None:
    """Alike to the eye of a network that classifies, and in levels; and unlike the other eleven. Every second one."""
    kept = np.asarray(Image.open(GRID).convert("RGB"))
    extractor = load_extractor("efficientnet-lite0")

    def features(levels: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            found = extractor(torch.from_numpy(levels.copy()).permute(2, 0, 1)[None])
        return torch.nn.functional.normalize(found.float(), dim=1)[0]

    cells = [kept[r * 128 : r * 128 + 128, c * 128 : c * 128 + 128] for r in range(3) for c in range(4)]
    known = torch.stack([features(cell) for cell in cells])
    assert len(cells) == len(PROMPTS)
    for place, (prompt, cell) in list(enumerate(zip(PROMPTS, cells, strict=True)))[::2]:
        image = np.asarray(drawer.vae.decode_image(drawer.draw(prompt, place)))
        likeness = known @ features(image)
        assert int(likeness.argmax()) == place
        assert float(likeness[place]) > 0.95, prompt
        assert np.abs(image.astype(np.int16) - cell).mean() < 4, prompt


@pytest.mark.slow
def test_words_change_the_picture_and_seeds_do(drawer: Drawer) -> None:
    """Seeds by little, as there is one picture of a name to learn from."""
    few = Settings(steps=2)
    apple, again, other, cat = (
        np.asarray(drawer.vae.decode_image(drawer.draw(prompt, seed, few)), np.float32)
        for prompt, seed in (("a red apple", 0), ("a red apple", 0), ("a red apple", 1), ("cat face", 0))
    )
    assert np.array_equal(apple, again)
    assert 0.1 < np.abs(apple - other).mean() < 5
    assert np.abs(apple - cat).mean() > 10


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 8])
def test_redraws_of_drawings_have_no_blotches(drawer: Drawer, steps: int) -> None:
    """No stronger changes from pixel to pixel than the two pictures it is between have, and nearer to the second."""

    def levels(latents: Latents) -> np.ndarray:
        return np.asarray(drawer.vae.decode_image(latents), np.float64)

    def changes(picture: np.ndarray) -> float:
        return sum(float(np.square(np.diff(picture, axis=axis)).sum()) for axis in (0, 1))

    for name, other in (("red apple", "green apple"), ("red apple", "lemon"), ("cat face", "dog face")):
        source, target = drawer.draw(name, 0), levels(drawer.draw(other, 0))
        most = max(changes(levels(source)), changes(target))
        between = [
            levels(drawer.redraw(source, other, 0, Settings(steps=steps), strength=strength))
            for strength in (0.2, 0.4, 0.5, 0.6, 0.8)
        ]
        assert max(map(changes, between)) < 1.1 * most, (name, other)
        off = [float(np.abs(picture - target).mean()) for picture in (levels(source), *between)]
        assert off[:5] == sorted(off[:5], reverse=True)
        assert off[4] < 0.2 * off[0]


@pytest.mark.slow
def test_what_it_has_no_picture_of_is_drawn_as_what_is_near(drawer: Drawer) -> None:
    assert next(iter(drawer.near("a house on fire"))) == "house"
    assert "elephant" in drawer.near("a pink elephant")
    hearts = {drawer.meant("heart", seed) for seed in range(20)}
    assert len(hearts) > 2
    assert all("heart" in one for one in hearts)
    assert all(drawer.meant(prompt, 0) == prompt for prompt in (*PROMPTS, *drawer.model.about["held_out"]))
