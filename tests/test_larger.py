"""Decoders whose pictures are larger than what was encoded: sizes, alpha, files, and what needs both alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import assert_close, one_sentence
from torch import Tensor
from wankit import theirs

from calotype.edit.blend import blend
from calotype.edit.morph import morph
from calotype.errors import CalotypeWarning, UsageError
from calotype.evaluate.protocol import Protocol
from calotype.evaluate.reconstruct import reconstruct
from calotype.evaluate.setup import Setup
from calotype.latent_files import load_latents, save_latents
from calotype.pixels import read_picture, read_picture_rows, to_uint8
from calotype.sources import open_source
from calotype.vae import VAE, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("larger")
    theirs("wan-2.1-larger").save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def vae(folder: Path) -> VAE:
    return load(folder, device="cpu")


def image(mode: str = "RGB", size: tuple[int, int] = (37, 22)) -> Image.Image:
    channels = len(mode)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8))


def expected(vae: VAE, z: Tensor) -> Tensor:
    with torch.inference_mode():
        return vae.module.decode(z)


def test_tensors(vae: VAE) -> None:
    assert (vae.factor, vae.enlarges) == (4, 2)
    z = torch.randn(2, 16, 5, 3)
    pixels = vae.decode(z, clamp=False)
    assert pixels.shape == (2, 3, 40, 24)
    assert_close(pixels, expected(vae, z))
    assert torch.equal(vae.decode(z, (39, 20)), vae.decode(z)[:, :, :39, :20])
    with pytest.raises(UsageError, match="can't be cropped from latents of 5x3 at f8"):
        vae.decode(z, (41, 20))
    x = torch.rand(1, 3, 20, 12)
    assert vae.encode(x).mode().shape == (1, 16, 5, 3)


@pytest.mark.parametrize("engine", ["reference", "winograd", "fused"])
def test_every_executor_makes_them(engine: str, vae: VAE) -> None:
    if engine == "winograd" and vae.engine.name != engine:
        pytest.skip("no such kernels here")
    one = VAE(vae.loaded, engine=engine)  # type: ignore[arg-type]
    z = torch.randn(1, 16, 9, 7)
    whole = expected(vae, z)
    for memory in (None, one.engine.plan("decode", 72, 56).peak):
        assert_close(one.decode(z, clamp=False, memory=memory), whole)
        rows = torch.cat(list(one.decode_rows(z[0], memory=memory)), 1)
        assert_close(rows, whole[0].clamp(-1, 1))


@pytest.mark.parametrize("shape", [(1, 16, 9, 7), (16, 1, 9, 7), (9, 7)])
def test_rows_are_of_one_picture(shape: tuple[int, ...], vae: VAE) -> None:
    with pytest.raises(UsageError, match=r"takes latents \[16, h, w\] of one picture, not"):
        list(vae.decode_rows(torch.zeros(shape)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(37, 22), (4, 4), (1, 1), (50, 3)])
def test_pictures(mode: str, size: tuple[int, int], vae: VAE, tmp_path: Path) -> None:
    picture = image(mode, size)
    latents = vae.encode_image(picture, alpha="keep")
    again = vae.decode_image(latents)
    assert (again.mode, again.size) == (mode, (2 * size[0], 2 * size[1]))
    raw = vae.own(latents)
    whole = to_uint8(expected(vae, raw[None])[0].clamp(-1, 1))[:, : 2 * size[1], : 2 * size[0]]
    made = torch.from_numpy(np.asarray(again.convert("RGB")).copy()).permute(2, 0, 1)
    assert (made.int() - whole.int()).abs().max() <= 1
    vae.write_image(tmp_path / "a.png", latents)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png").convert(mode)), np.asarray(again))
    save_latents(tmp_path / "x.safetensors", latents)
    assert np.array_equal(np.asarray(vae.decode_image(load_latents(tmp_path / "x.safetensors"))), np.asarray(again))
    if mode == "RGBA" and min(size) > 1:
        mean = np.asarray(picture)[..., 3].mean()
        assert abs(np.asarray(again)[..., 3].mean() - mean) < 0.1 * mean


@pytest.mark.slow
def test_latents_are_those_of_the_network_without_it(vae: VAE, tmp_path: Path) -> None:
    """Decoders of one space can be swapped: both decode what the other encoded."""
    theirs("wan-2.1").save_pretrained(tmp_path)
    plain = load(tmp_path, device="cpu")
    latents = plain.encode_image(image())
    with pytest.warns(CalotypeWarning, match=r"both are of the space 'wan2\.1'"):
        assert vae.decode_image(latents).size == (74, 44)
    with pytest.warns(CalotypeWarning, match=r"both are of the space 'wan2\.1'"):
        assert plain.decode_image(vae.encode_image(image())).size == (37, 22)


def picture_of(path: Path) -> Path:
    image().save(path)
    return path


NEEDING: dict[str, Callable[[VAE, Path, Path], object]] = {
    "A reconstruction": lambda vae, folder, tmp: reconstruct(vae, read_picture(picture_of(tmp / "a.png"))),
    "An evaluation": lambda vae, folder, tmp: Setup(
        vaes=(str(folder),), protocol=Protocol(), metrics=("psnr",), distances=("frechet",), device="cpu"
    ).build(open_source(picture_of(tmp / "a.png").parent)),
    "A blend": lambda vae, folder, tmp: blend(
        vae,
        read_picture_rows(image()),
        read_picture_rows(image()),
        torch.zeros(22, 37, dtype=torch.uint8),
        tmp / "b.png",
    ),
    "A morph": lambda vae, folder, tmp: next(morph(vae, [vae.encode_image(image())] * 2)),
}


@pytest.mark.parametrize("what", NEEDING)
def test_what_needs_pictures_of_one_size_is_refused(what: str, vae: VAE, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{what} needs pictures .* makes them 2 times as large") as error:
        NEEDING[what](vae, folder, tmp_path)
    one_sentence(str(error.value))
