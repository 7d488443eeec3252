"""The page of a cache."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from cachekit import fill, picture, spoilt
from support import one_sentence

from calotype.cache import Rules, open_cache
from calotype.cache.page import write_page
from calotype.errors import UsageError
from calotype.evaluate.metrics import psnr
from calotype.pixels import read_picture, to_uint8
from calotype.vae import VAE


@pytest.fixture
def square(tmp_path: Path) -> Path:
    """Pictures that are encoded as they are."""
    for i in range(4):
        picture(tmp_path / f"data/{i}.png", 16, 16, seed=i)
    return tmp_path / "data"


def test_samples_stand_beside_what_their_latents_decode_to(square: Path, out: Path, tmp_path: Path, vae: VAE) -> None:
    (square / "3.txt").write_text("<b>three</b>")
    fill(square, out, vae, store="float32")
    notes = write_page(out, page := tmp_path / "page.html", vae, samples=2)
    text = page.read_text("utf-8")
    assert notes == []
    assert [re.findall(f"{i}\\.png", text) != [] for i in range(4)] == [True, False, False, True]
    assert "3.png: &lt;b&gt;three&lt;/b&gt;" in text
    row = open_cache(out).row(3)
    pixels = read_picture(square / "3.png").pixels
    assert f"16\u00d716, {psnr(to_uint8(vae.decode(row['mean'][None])[0]), to_uint8(pixels)):.2f} dB" in text
    assert text.count("<img") == 4
    assert "Nothing is missing, and nothing is wrong." in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text), "it asks something of the network"


def test_it_says_what_is_not_there_and_what_is_wrong(square: Path, out: Path, tmp_path: Path, vae: VAE) -> None:
    spoilt(square / "<bad>.png", square / "0.png")
    picture(square / "wide.png", 40, 16)
    fill(square, out, vae, rules=Rules(buckets="16/8"))
    (square / "1.png").unlink()
    fill(square, out, vae, rules=Rules(buckets="16/8"))
    (square / "0.png").unlink()
    notes = write_page(out, page := tmp_path / "page.html", vae)
    text = page.read_text("utf-8")
    assert notes == ["0.png is no longer among the pictures."]
    assert "0.png is no longer among the pictures." in text
    assert re.search(r"1 can(&#x27;|')t be cached; 1 row is of a picture that is gone", text)
    assert "&lt;bad&gt;.png" in text
    assert "<bad>" not in text
    assert "Pictures of each size" in text


def test_another_vae_decodes_nothing(square: Path, out: Path, tmp_path: Path, vae: VAE, other: VAE) -> None:
    fill(square, out, vae)
    notes = write_page(out, page := tmp_path / "page.html", other)
    assert len(notes) == 1
    assert "is not the VAE that made this cache" in notes[0]
    assert "<img" not in page.read_text("utf-8")
    assert write_page(out, page, None) == ["No VAE was given, so no samples are decoded."]


def test_a_cache_that_was_never_finished_has_a_page(square: Path, out: Path, tmp_path: Path, vae: VAE) -> None:
    fill(square, out, vae)
    (out / "manifest.parquet").unlink()
    assert write_page(out, tmp_path / "page.html", vae) == ["The cache was never finished, so no samples are shown."]
    with pytest.raises(UsageError) as raised:
        write_page(tmp_path / "data", tmp_path / "page.html", vae)
    one_sentence(str(raised.value))


def test_the_same_cache_gives_the_same_page(square: Path, out: Path, tmp_path: Path, vae: VAE) -> None:
    fill(square, out, vae)
    pages = [tmp_path / "one.html", tmp_path / "two.html"]
    for page in pages:
        write_page(out, page, vae)
        torch.manual_seed(1)
    assert pages[0].read_bytes() == pages[1].read_bytes()
