"""Captions: what is read, what is kept apart, how often each is seen, and what is asked for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawkit import picture, write_data, write_lines
from PIL import Image
from support import assert_close, one_sentence
from torch import Tensor

from calotype import VAE, load
from calotype.draw import data as reading
from calotype.draw.captions import (
    Caption,
    held_out,
    is_variant,
    prompt_for,
    read_captions,
    weights_of,
)
from calotype.draw.data import Listed
from calotype.errors import PictureError, UsageError
from calotype.posterior import Posterior

GOOD = {"file": "pictures/a.png", "name": "a"}


@pytest.fixture(scope="module")
def vae() -> VAE:
    return load("builtin", device="cpu")


def of_bases(bases: int, variants: int) -> list[Caption]:
    """So many pictures, each with so many variants."""
    return [
        Caption(file=f"p/{code}.png", name=code, base=f"{base}")
        for base in range(bases)
        for code in (f"{base}", *(f"{base}-{tone}" for tone in range(variants)))
    ]


def test_what_is_read(tmp_path: Path) -> None:
    lines = [
        {**GOOD, "synonyms": ["b", "c"], "keywords": ["d"], "base": "x", "group": "unknown to us", "tone": None},
        {**GOOD, "name": "line\N{LINE SEPARATOR}separator"},
    ]
    (tmp_path / "captions.jsonl").write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8"
    )
    first, second = read_captions(tmp_path)
    assert first == Caption(file="pictures/a.png", name="a", synonyms=("b", "c"), keywords=("d",), base="x")
    assert first.names == ("a", "b", "c")
    assert second == Caption(file="pictures/a.png", name="line\N{LINE SEPARATOR}separator")


@pytest.mark.parametrize(
    "bad",
    [
        "no json",
        "",
        "[1, 2]",
        "null",
        {"file": "a.png"},
        {"name": "a"},
        {**GOOD, "name": 3},
        {**GOOD, "file": None},
        {**GOOD, "base": 7},
        {**GOOD, "synonyms": "letters"},
        {**GOOD, "synonyms": None},
        {**GOOD, "keywords": [1]},
    ],
)
def test_bad_lines_are_named(tmp_path: Path, bad: Any) -> None:
    write_lines(tmp_path, [GOOD, GOOD, bad, GOOD])
    with pytest.raises(UsageError, match="line 3:") as caught:
        read_captions(tmp_path)
    one_sentence(str(caught.value))
    assert str(tmp_path / "captions.jsonl") in str(caught.value)


def test_no_text(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe{}\n")
    with pytest.raises(UsageError, match="line 2:"):
        read_captions(tmp_path)


def test_none_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file") as missing:
        read_captions(tmp_path)
    one_sentence(str(missing.value))
    write_lines(tmp_path, [])
    with pytest.raises(UsageError, match="is empty") as empty:
        read_captions(tmp_path)
    one_sentence(str(empty.value))


def test_variants() -> None:
    assert not is_variant(Caption(file="p/a.png", name="a"))
    assert not is_variant(Caption(file="p/a.png", name="a", base="a"))
    assert is_variant(Caption(file="p/a-dark.png", name="a", base="a"))


def test_what_is_held_out() -> None:
    captions = of_bases(200, 5)
    apart = held_out(captions, 0.04)
    assert all(is_variant(one) for one in apart)
    assert 20 <= len(apart) <= 62  # 40 of 1000 are expected, and 3.5 standard deviations are 22
    assert held_out(captions[::-1], 0.04) == apart[::-1]
    assert set(apart) <= set(held_out(captions, 0.2))
    left = Counter(one.base for one in captions if one not in apart)
    assert len(left) == 200
    assert min(left.values()) >= 2  # the picture itself and a variant at least
    assert held_out(captions, 0) == []
    assert len(held_out(captions, 1)) == 1000
    # sha256("p/0-0.png") begins with 1576b854, a share of 0.0838
    assert held_out(captions[1:2], 0.083) == []
    assert held_out(captions[1:2], 0.084) == captions[1:2]


@pytest.mark.parametrize("variants", [1.0, 0.25, 0.0])
def test_how_often_each_is_seen(variants: float) -> None:
    captions = [*of_bases(3, 4), *of_bases(1, 0)]
    weights = weights_of(captions, variants)
    assert weights.shape == (16,)
    assert weights.sum() == pytest.approx(1)
    plain = [weight for one, weight in zip(captions, weights, strict=True) if not is_variant(one)]
    total = 4 + 3 * variants
    assert plain == pytest.approx([1 / total] * 4)
    of_first = [w for one, w in zip(captions, weights, strict=True) if is_variant(one) and one.base == "0"]
    assert of_first == pytest.approx([variants / 4 / total] * 4)


FULL = Caption(file="a.png", name="N", synonyms=("S", "T"), keywords=("k", "l", "m", "n"))


def kinds(caption: Caption, draws: int = 20_000) -> tuple[Counter[str], Counter[str]]:
    """How often prompts are of each kind, and have each article."""
    choose = np.random.default_rng(0)
    found: Counter[str] = Counter()
    articles: Counter[str] = Counter()
    for _ in range(draws):
        prompt = prompt_for(caption, choose)
        article, _, rest = prompt.partition(" ")
        if article in ("a", "the"):
            articles[article] += 1
            prompt = rest
        if prompt in (caption.name, *caption.synonyms):
            found[prompt] += 1
        elif prompt.startswith(f"{caption.name}, "):
            assert prompt.removeprefix(f"{caption.name}, ") in caption.keywords
            found["with keyword"] += 1
        else:
            words = prompt.split(" ")
            assert len(words) == len(set(words)) <= 3
            assert set(words) <= set(caption.keywords)
            found[f"{len(words)} keywords"] += 1
    return found, articles


def close(found: Counter[str], shares: dict[str, float], draws: int = 20_000) -> bool:
    """Within five standard deviations of the shares, which are all there is."""
    assert set(found) == set(shares)
    assert sum(found.values()) == draws
    return all(abs(found[key] - draws * p) < 5 * (draws * p * (1 - p)) ** 0.5 + 1 for key, p in shares.items())


def test_prompts_in_proportion() -> None:
    found, articles = kinds(FULL)
    keywords = {f"{count} keywords": 1 / 24 for count in (1, 2, 3)}
    assert close(found, {"N": 1 / 2, "S": 1 / 8, "T": 1 / 8, "with keyword": 1 / 8, **keywords})
    articles["none"] = 20_000 - articles.total()
    assert close(articles, {"a": 0.15, "the": 0.05, "none": 0.8})


def test_prompts_of_less() -> None:
    name = Caption(file="a.png", name="N")
    assert close(kinds(name)[0], {"N": 1})
    synonym = Caption(file="a.png", name="N", synonyms=("S",))
    assert close(kinds(synonym)[0], {"N": 1 / 2, "S": 1 / 2})
    keyword = Caption(file="a.png", name="N", keywords=("k",))
    assert close(kinds(keyword)[0], {"N": 3 / 4, "with keyword": 1 / 8, "1 keywords": 1 / 8})


def test_prompts_of_a_seed() -> None:
    first, again, other = (
        [prompt_for(FULL, choose) for _ in range(50)] for choose in map(np.random.default_rng, (1, 1, 2))
    )
    assert first == again
    assert first != other


def test_latents_are_of_the_posteriors_mode(tmp_path: Path, vae: VAE) -> None:
    data = write_data(tmp_path / "data")
    made = Listed(data).latents(vae, 32)
    assert made.shape == (4, 16, 4, 4)
    assert made.dtype == torch.float32
    for row, colour in enumerate(("red", "blue", "green", "yellow")):
        shown = Image.new("RGB", (32, 32), "white")
        disc = picture(colour)
        shown.paste(disc.convert("RGB"), mask=disc.getchannel("A"))
        pixels = torch.from_numpy(np.asarray(shown).astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        expected = vae.latent_format.to_model(vae.encode(pixels).mode())
        assert_close(made[row : row + 1], expected, 1e-4)


def test_pictures_encoded_together_are_as_if_alone(tmp_path: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Listed(write_data(tmp_path / "data"))
    shapes = []
    encode = vae.encode

    def told(pixels: Tensor) -> Posterior:
        shapes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(vae, "encode", told)
    alone = torch.cat([listed.latents_of([i], vae, 32) for i in range(4)])
    assert torch.equal(listed.latents(vae, 32), alone)
    monkeypatch.setattr(reading, "PIXELS", 3 * 32**2)
    assert torch.equal(listed.latents(vae, 32), alone)
    assert shapes == [1, 1, 1, 1, 4, 3, 1]


def test_transparent_is_white(tmp_path: Path, vae: VAE) -> None:
    """Whatever colour transparent pixels have."""
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    write_lines(tmp_path, ({"file": f"{name}.png", "name": name} for name in ("clear", "white")))
    clear, white = Listed(tmp_path).latents(vae, 32)
    torch.testing.assert_close(clear, white, atol=1e-5, rtol=0)


def test_any_size_is_made_square(tmp_path: Path, vae: VAE) -> None:
    seen = []

    def track(items: Any) -> Any:
        for item in items:
            seen.append(item)
            yield item

    picture("red", 96).save(tmp_path / "large.png")
    picture("red", 96).resize((20, 30)).save(tmp_path / "small.png")
    write_lines(tmp_path, ({"file": f"{name}.png", "name": name} for name in ("large", "small")))
    assert Listed(tmp_path).latents(vae, 48, track).shape == (2, 16, 6, 6)
    assert seen == [0, 1]


def damaged_header(content: bytes) -> bytes:
    return content[:8] + b"\0\0\0\x05" + content[12:]


def damaged_chunk(content: bytes) -> bytes:
    at = content.index(b"IDAT")
    return content[: at + 4] + b"\0" * 8 + content[at + 12 :]


def nameless_chunk(content: bytes) -> bytes:
    at = content.index(b"IDAT")
    return content[:at] + b"\xef\xf4\xe5c" + content[at + 4 :]


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:60], damaged_header, damaged_chunk,
                                    nameless_chunk, None])  # fmt: skip
def test_pictures_that_cannot_be_read(tmp_path: Path, vae: VAE, damage: Any) -> None:
    data = write_data(tmp_path / "data")
    path = data / "pictures" / "2.png"
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    with pytest.raises(PictureError) as caught:
        Listed(data).latents(vae, 32)
    one_sentence(str(caught.value))
    assert "2.png" in str(caught.value)
