"""Directions: learned from sets that differ by something known, measured, kept and walked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from editkit import FORMAT, folded, levels, picture
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from support import names, one_sentence

from calotype.edit.directions import Direction, d_prime, learn, load_direction, save_direction
from calotype.edit.sources import latents_of
from calotype.errors import CalotypeWarning, LatentsError, UsageError
from calotype.latents import Latents, same_as_model
from calotype.pixels import Padding, PictureRows
from calotype.vae import VAE

WAY = torch.tensor([1.0, -2.0, 0.5, 0.0])


def folder(path: Path, count: int, first: int = 0, size: tuple[int, int] = (40, 32), brighter: int = 0) -> Path:
    path.mkdir()
    for i in range(count):
        made = levels(first + i, *size).astype(int) + brighter
        Image.fromarray(made.clip(0, 255).astype(np.uint8)).save(path / f"{i:02}.png")
    return path


def planted(vae: VAE, monkeypatch: pytest.MonkeyPatch, difference: torch.Tensor) -> None:
    """Latents of pictures become noise, plus a difference where the picture is white at its first pixel."""
    generator = torch.Generator().manual_seed(0)

    def encode_image(source: PictureRows, **_: Any) -> Latents:
        height, width = source.size
        z = torch.randn(4, height // 8, width // 8, generator=generator)
        z += torch.tensor([3.0, 0.0, -1.0, 0.0])[:, None, None]
        if source.levels[0, 0, 0] > 127:
            z = z + difference
        return Latents(
            tensor=z, space="raw", format=FORMAT, vae=vae.sha256, padding=Padding(height, width, 0, 0, "reflect")
        )

    monkeypatch.setattr(vae, "encode_image", encode_image)


def sets(tmp_path: Path, counts: tuple[int, int] = (40, 40)) -> tuple[Path, Path]:
    for name, count, level in (("black", counts[0], 0), ("white", counts[1], 255)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (32, 24), (level,) * 3).save(tmp_path / name / f"{i:02}.png")
    return tmp_path / "black", tmp_path / "white"


def test_a_planted_difference_by_channel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = folded()
    planted(vae, monkeypatch, WAY[:, None, None])
    found = learn(vae, *sets(tmp_path))
    # 32 pictures of 12 positions in each set: an error of sqrt(2 / 384) = 0.07
    assert found.tensor.shape == (4, 1, 1)
    assert torch.allclose(found.tensor.flatten(), WAY, atol=0.25)
    assert (found.counts, found.held_out, found.names) == ((32, 32), (8, 8), ("black", "white"))
    assert found.accuracy == 1.0
    # along the way one picture's score has a std of |way| / sqrt(12): the ends are sqrt(12) |way| apart
    assert found.d_prime == pytest.approx(float(WAY.norm()) * 12**0.5, rel=0.5)
    assert (found.vae, found.vae_name) == (vae.sha256, "small-0")


def test_a_planted_difference_by_position_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = folded()
    difference = torch.zeros(4, 3, 4)
    difference[1, 2, 1] = 6.0
    difference[3, 0, 3] = -4.0
    planted(vae, monkeypatch, difference)
    found = learn(vae, *sets(tmp_path), aligned=True)
    assert found.tensor.shape == (4, 3, 4)
    assert torch.allclose(found.tensor, difference, atol=1.0)  # an error of 0.25 each, the largest of 48
    assert float((found.tensor - difference).std()) == pytest.approx(0.25, rel=0.4)
    assert found.accuracy > 0.9


def test_sets_that_do_not_differ_are_not_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = folded()
    planted(vae, monkeypatch, torch.zeros(4, 1, 1))
    found = learn(vae, *sets(tmp_path))
    assert 0.2 <= found.accuracy <= 0.8  # of 16 held out
    assert found.d_prime is not None
    assert abs(found.d_prime) < 1.3


@pytest.mark.parametrize("aligned", [False, True])
def test_it_is_the_difference_of_means(aligned: bool, vae: VAE, tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 7), folder(tmp_path / "b", 11, first=20, brighter=60)
    found = learn(vae, a, b, aligned=aligned)
    held = {7: (2, 5), 11: (4, 9)}
    means = []
    for path, count in ((a, 7), (b, 11)):
        seen = [vae.encode_image(path / f"{i:02}.png").tensor.double().numpy() for i in range(count)]
        means.append(np.mean([x for i, x in enumerate(seen) if i not in held[count]], axis=0))
    expected = means[1] - means[0]
    if not aligned:
        expected = expected.mean(axis=(1, 2), keepdims=True)
    assert np.allclose(found.tensor.numpy(), expected, atol=1e-5)
    assert (found.counts, found.held_out) == ((5, 9), (2, 2))


def test_separation_by_hand(vae: VAE, tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 10), folder(tmp_path / "b", 10, first=20, brighter=90)
    found = learn(vae, a, b)
    x, y = (
        np.array([vae.encode_image(path / f"{i:02}.png").tensor.double().numpy().mean(axis=(1, 2)) for i in range(10)])
        for path in (a, b)
    )
    train = [i for i in range(10) if i not in (4, 9)]
    way = y[train].mean(0) - x[train].mean(0)
    variance = (x[train].var(0, ddof=1) + y[train].var(0, ddof=1)) / 2
    middle = (x[train].mean(0) + y[train].mean(0)) / 2
    s, t = ((z[[4, 9]] - middle) @ (way / variance) for z in (x, y))
    assert found.accuracy == pytest.approx(((s < 0).mean() + (t > 0).mean()) / 2)
    assert found.d_prime == pytest.approx(
        (t.mean() - s.mean()) / np.sqrt((s.var(ddof=1) + t.var(ddof=1)) / 2), rel=1e-3
    )


def test_d_prime() -> None:
    assert d_prime(torch.tensor([0.0, 2.0]), torch.tensor([4.0, 6.0])) == pytest.approx(4 / 2**0.5)
    assert d_prime(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])) is None


def test_applying_is_adding(vae: VAE) -> None:
    latents = latents_of(vae, picture())
    way = Direction(
        tensor=WAY[:, None, None], vae=vae.sha256, vae_name="x", names=("a", "b"), counts=(4, 4), held_out=(2, 2),
        d_prime=1.0, accuracy=1.0,
    )  # fmt: skip
    for strength in (-2.0, 0.0, 1.5):
        moved = way.apply(latents.to_model(), strength)
        assert moved.space == "raw"
        assert torch.allclose(moved.tensor, latents.tensor + strength * WAY[:, None, None], atol=1e-5)
    assert torch.equal(way.apply(latents, 0.0).tensor, latents.tensor)
    ramp = torch.arange(2.0).expand(4, 3, 2)
    wide = replace(way, tensor=ramp).apply(latents).tensor - latents.tensor  # 4 x 5 latents
    assert wide.shape == (4, 4, 5)
    assert torch.allclose(wide, wide[0, 0].expand_as(wide), atol=1e-5)
    assert torch.allclose(wide[0, 0], torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]), atol=1e-5)
    with pytest.raises(UsageError, match="finite number"):
        way.apply(latents, float("inf"))


def test_another_vae_is_refused(vae: VAE, tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 4), folder(tmp_path / "b", 4, first=9)
    way = learn(vae, a, b)
    with pytest.raises(LatentsError, match=r"learned with small-0 .* by small-1 .*learn it anew") as error:
        way.apply(latents_of(folded(1, "custom"), picture()))
    one_sentence(str(error.value))


def test_latents_that_another_vae_of_the_space_made(vae: VAE, tmp_path: Path) -> None:
    """They are moved as latents of the direction's VAE are, and stay those of the one that made them."""
    way = learn(vae, folder(tmp_path / "a", 4), folder(tmp_path / "b", 4, first=9))
    own = latents_of(vae, picture())
    other = replace(own.to_model(), space="raw", format=same_as_model("small", 4), vae="1" * 64)
    moved = way.apply(other, 2.0)
    with pytest.warns(CalotypeWarning, match="made these latents and"):
        assert torch.allclose(latents_of(vae, moved).tensor, way.apply(own, 2.0).tensor, atol=1e-5)
    assert (moved.vae, moved.format) == (other.vae, other.format)
    with pytest.raises(LatentsError, match="nothing tells that they are of one space"):
        replace(way, format=None).apply(other)  # as older files are read


def test_a_direction_comes_back_from_its_file(vae: VAE, tmp_path: Path) -> None:
    found = learn(vae, folder(tmp_path / "a", 5), folder(tmp_path / "b", 4, first=9), aligned=True)
    save_direction(tmp_path / "way.safetensors", found)
    back = load_direction(tmp_path / "way.safetensors")
    assert torch.equal(back.tensor, found.tensor)
    assert {k: v for k, v in vars(back).items() if k != "tensor"} == {
        k: v for k, v in vars(found).items() if k != "tensor"
    }
    with safe_open(tmp_path / "way.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["vae_sha256"] == vae.sha256
    assert metadata["counts"] == "[3, 2]"


def test_sizes_of_aligned_pictures(vae: VAE, tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 4), folder(tmp_path / "b", 4, first=9, size=(48, 48))
    with pytest.raises(UsageError, match=r"b: 00\.png is 48x48 and the first picture 40x32; .*--size") as error:
        learn(vae, a, b, aligned=True)
    one_sentence(str(error.value))
    assert learn(vae, a, b).tensor.shape == (4, 1, 1)
    assert learn(vae, a, b, aligned=True, size=(32, 32)).tensor.shape == (4, 4, 4)


def test_equal_pictures_have_a_direction(vae: VAE, tmp_path: Path) -> None:
    """Without any variance within the sets."""
    found = learn(vae, *sets(tmp_path, (4, 4)))
    assert torch.isfinite(found.tensor).all()
    assert found.accuracy == 1.0


def test_a_damaged_picture_is_left_out(vae: VAE, tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 6), folder(tmp_path / "b", 6, first=10)
    whole = (a / "01.png").read_bytes()
    (a / "01.png").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(CalotypeWarning, match=r"01\.png.*It was left out\.$"):
        found = learn(vae, a, b)
    assert (found.counts, found.held_out) == ((3, 4), (2, 2))
    for name in ("00.png", "03.png", "04.png"):
        (a / name).write_bytes(b"no picture")
    with pytest.warns(CalotypeWarning), pytest.raises(UsageError, match="too few of its pictures can be read"):
        learn(vae, a, b)


def test_what_is_no_set_is_refused(vae: VAE, tmp_path: Path) -> None:
    few, enough = folder(tmp_path / "few", 3), folder(tmp_path / "enough", 4)
    (tmp_path / "empty").mkdir()
    for a, b, words in (
        (few, enough, "few: a direction needs at least 4 pictures of each set, and here is 3"),
        (enough, tmp_path / "empty", "there is no picture in it"),
        (tmp_path / "none", enough, "there is no such folder"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            learn(vae, a, b)
        one_sentence(str(error.value))


def test_bad_files_are_one_sentence(vae: VAE, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    good = {"calotype": "direction/1", "vae_sha256": "0" * 64, "vae_name": "", "names": '["a", "b"]'}
    whole = {**good, "counts": "[4, 4]", "held_out": "[2, 2]", "d_prime": "null", "accuracy": "1.0"}
    tensor = {"direction": torch.zeros(4, 1, 1)}

    def check(words: str) -> None:
        with pytest.raises(LatentsError, match=words) as error:
            load_direction(path)
        one_sentence(str(error.value))

    check("there is no such file")
    path.write_bytes(b"text")
    check("not a whole safetensors file")
    save_file(tensor, path, {**whole, "calotype": "latents/1"})
    check("this is no direction")
    save_file({"way": torch.zeros(4)}, path, whole)
    check("this is no direction")
    save_file(tensor, path, good)
    check("metadata is damaged")
    for bad in (torch.full((4, 1, 1), torch.nan), torch.zeros(4), torch.zeros(4, 1, 1, dtype=torch.int32)):
        save_file({"direction": bad}, path, whole)
        check("finite floats")
    save_file(tensor, path, whole)
    assert load_direction(path).d_prime is None
    assert names(tmp_path) == ["x.safetensors"]


def test_progress_ends_with_one(vae: VAE, tmp_path: Path) -> None:
    told: list[float] = []
    learn(vae, folder(tmp_path / "a", 4), folder(tmp_path / "b", 5, first=9), progress=told.append)
    assert told == pytest.approx([i / 9 for i in range(1, 10)])
