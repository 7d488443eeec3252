"""Latents as RGB in the page of an evaluation: of which VAEs, of which part, and where they stand."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluatekit import setup
from PIL import Image
from report_example import HOSTILE, example
from support import kl, one_sentence

from calotype.errors import UsageError
from calotype.evaluate import session
from calotype.evaluate.report import Crop, write_evaluation
from calotype.evaluate.report.articles import LATENTS
from calotype.evaluate.session import evaluate
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN, LatentFormat, flux2
from calotype.pixels import from_array, to_uint8
from calotype.previews import published
from calotype.vae import load
from calotype.weights.save import save_weights

F8 = AutoencoderConfig(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
SMALLEST = np.random.default_rng(5).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def tiles(path: Path) -> list[dict[str, list[np.ndarray[Any, Any]]]]:
    """Of each article the small pictures of each tile, by what the tile is of."""
    articles = path.read_text("utf-8").split("<article")[1:]
    found = []
    for article in articles:
        parts = re.findall(r'<figure class="tile" data-vae="(\w+)">(.*?)</figure>', article, re.DOTALL)
        found.append(
            {of: list(map(pixels, re.findall(r'<img class="latents" src="([^"]+)"', body))) for of, body in parts}
        )
    return found


def pixels(uri: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_they_stand_beside_their_vae(tmp_path: Path) -> None:
    results, crops = example(count=3)
    other = SMALLEST[::-1]
    crops[0] = replace(crops[0], latents={"alpha": SMALLEST, "gamma": other})
    path = write_evaluation(results, crops, tmp_path / "report.html")
    first, *rest = tiles(path)
    assert [len(first[key]) for key in ("original", "0", "1", "2")] == [0, 1, 0, 1]
    assert np.array_equal(first["0"][0], SMALLEST) and np.array_equal(first["2"][0], other)
    assert not any(images for one in rest for images in one.values())
    page = path.read_text("utf-8")
    assert LATENTS in page and "picture-00.png, latents of gamma as RGB" in page
    assert LATENTS not in write_evaluation(results, crops[1:], tmp_path / "without.html").read_text("utf-8")


def test_of_several_decoders_they_stand_beside_the_original(tmp_path: Path) -> None:
    results, crops = example(count=2)
    results["encoder"] = {"label": "alpha", "weights": "", "sha256": "", "space": None}
    crops = [replace(crop, latents={"alpha": SMALLEST}) for crop in crops]
    for one in tiles(write_evaluation(results, crops, tmp_path / "report.html")):
        assert {key: len(images) for key, images in one.items() if images} == {"original": 1}
        assert np.array_equal(one["original"][0], SMALLEST)


def test_names_stay_names(tmp_path: Path) -> None:
    results, crops = example(labels=(HOSTILE, "beta"), count=2)
    crops[0] = replace(crops[0], latents={HOSTILE: SMALLEST})
    page = write_evaluation(results, crops, tmp_path / "report.html").read_text("utf-8")
    assert page.count("<script") == 2 and "<img src=x" not in page


@pytest.mark.parametrize(
    ("latents", "words"),
    [
        ({"delta": SMALLEST}, "delta"),
        ({"alpha": SMALLEST[..., 0]}, "latents of alpha; it must be uint8"),
        ({"alpha": SMALLEST.astype(np.float32)}, "float32"),
        ({"alpha": SMALLEST[:0]}, "latents of alpha"),
    ],
)
def test_what_makes_no_sense(latents: dict[str, Any], words: str, tmp_path: Path) -> None:
    results, crops = example(count=2)
    with pytest.raises(UsageError, match=words) as error:
        write_evaluation(results, [replace(crops[0], latents=latents)], tmp_path / "report.html")
    one_sentence(str(error.value))


# --- what an evaluation makes ---


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Crop]:
    """The crops that a page is made of."""
    found: list[Crop] = []
    page = session.evaluation_page

    def seen(results: Any, crops: list[Crop]) -> bytes:
        found.extend(crops)
        return page(results, crops)

    monkeypatch.setattr(session, "evaluation_page", seen)
    return found


def saved(folder: Path, name: str, seed: int, format_: LatentFormat | None, config: AutoencoderConfig = F8) -> str:
    (path,) = save_weights(kl(config, seed), folder / f"{name}.safetensors", layout="ldm", format_=format_)
    return str(path)


def drawn(folder: Path) -> Path:
    """A picture of which a part in its middle is worst, so that a crop begins within it."""
    folder.mkdir()
    values = np.full((72, 90, 3), 128, np.uint8)
    values[40:, 48:] = np.random.default_rng(1).integers(0, 256, (32, 42, 3))
    Image.fromarray(values).save(folder / "a.png")
    return folder


def by_hand(path: str, picture: Path, name: str, box: tuple[int, int, int, int]) -> np.ndarray[Any, Any]:
    vae = load(path, device="cpu")
    z = vae.encode(from_array(np.asarray(Image.open(picture)))[None]).mode()
    factors = published(name)
    assert factors is not None and vae.latent_format is not None
    rgb = to_uint8(factors.rgb(vae.latent_format.to_model(z)[0]))
    top, left, height, width = (n // 8 for n in (box[0], box[1], box[2] + 7, box[3] + 7))
    assert top and left
    return rgb[:, top : top + height, left : left + width].permute(1, 2, 0).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_of_each_vae_whose_factors_are_known(
    again: bool, made: list[Crop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where pictures were measured before, and are decoded once more to be shown."""
    monkeypatch.setattr(session, "SIDE", 24)
    one, xl = (saved(tmp_path, name, seed, KNOWN[name]) for seed, name in enumerate(("sd1", "sdxl")))
    none = saved(tmp_path, "none", 2, None)
    data = drawn(tmp_path / "data")
    for _ in range(1 + again):
        made.clear()
        evaluate(data, setup((one, xl, none)), tmp_path / "r")
    (crop,) = made
    assert list(crop.latents) == ["sd1", "sdxl"]
    for label, path in (("sd1", one), ("sdxl", xl)):
        assert np.array_equal(crop.latents[label], by_hand(path, data / "a.png", label, crop.box))
    (tile,) = tiles(tmp_path / "r" / "index.html")
    assert [len(tile[key]) for key in ("original", "0", "1", "2")] == [0, 1, 1, 0]


def test_of_several_decoders_they_are_the_encoders(made: list[Crop], tmp_path: Path) -> None:
    one, two = (saved(tmp_path, name, seed, KNOWN["sd1"]) for seed, name in enumerate("ab"))
    evaluate(drawn(tmp_path / "data"), setup((one,), decoders=(two,)), tmp_path / "r")
    assert list(made[0].latents) == ["a"]
    (tile,) = tiles(tmp_path / "r" / "index.html")
    assert np.array_equal(tile["original"][0], made[0].latents["a"])


def test_packed_latents_of_odd_sides(made: list[Crop], tmp_path: Path) -> None:
    """FLUX.2's are packed by 2 x 2, and a picture may have an odd number of them."""
    path = saved(tmp_path, "flux", 3, flux2((0.5,) * 128, (4.0,) * 128), replace(F8, z_channels=32))
    data = drawn(tmp_path / "data")
    evaluate(data, setup((path,)), tmp_path / "r")
    z = load(path, device="cpu").encode(from_array(np.asarray(Image.open(data / "a.png")))[None]).mode()[0]
    assert z.shape == (32, 9, 12)
    factors = published("flux2")
    assert factors is not None
    rgb = torch.einsum("chw,cd->dhw", (z - 0.5) / 2, torch.tensor(factors.factors))
    rgb += torch.tensor(factors.bias)[:, None, None]
    expected = to_uint8(rgb).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(made[0].latents["flux"] - expected).max() <= 1
