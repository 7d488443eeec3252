"""One picture through a VAE and back: the figures by arithmetic, and the panel by its pixels."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import SMALL, kl, names, network, one_sentence, pictures
from torch import Tensor, nn

from calotype.engine.memory import Spill
from calotype.errors import CalotypeWarning, MemoryLimitError, NonFiniteError, UsageError
from calotype.evaluate import reconstruct as module
from calotype.evaluate.metrics import psnr, ssim
from calotype.evaluate.reconstruct import LABEL_HEIGHT, Figures, Reconstruction, reconstruct, reconstruct_files
from calotype.families.face import NetworkConfig
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.network import Network
from calotype.families.tiny.config import TinyConfig
from calotype.pixels import Picture, read_picture, read_picture_rows, to_pil, to_uint8
from calotype.vae import VAE
from calotype.weights.load import Loaded

FOLDED = FoldedConfig(z_channels=4, ch=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1))


def vae_of(config: NetworkConfig | Network, dtype: torch.dtype = torch.float32) -> VAE:
    return VAE(
        Loaded(
            module=config if isinstance(config, nn.Module) else network(config),
            layout="ldm",
            parts=frozenset({"encoder", "decoder"}),
            sha256="0" * 64,
            dtypes=("float32",),
            files=(),
        ),
        dtype=dtype,
        encode_dtype=dtype,
    )


@pytest.fixture(scope="module")
def vae() -> VAE:
    return vae_of(FOLDED)


def picture(height: int, width: int, seed: int = 0, alpha: Tensor | None = None) -> Picture:
    return Picture(pictures(seed, 1, height, width)[0], alpha, ())


def test_figures_by_arithmetic(vae: VAE) -> None:
    photo = picture(20, 30)
    result = reconstruct(vae, photo)
    # 20 x 30 is padded to 24 x 32: 3 x 4 latents of 4 channels
    assert result.numbers_per_pixel == pytest.approx(3 * 4 * 4 / 600)
    assert result.bits_per_pixel == pytest.approx(16 * 3 * 4 * 4 / 600)
    assert torch.equal(result.original, to_uint8(photo.pixels))
    assert result.reconstruction.shape == (3, 20, 30)
    assert result.psnr == pytest.approx(psnr(result.original, result.reconstruction), rel=1e-12)
    assert result.ssim == pytest.approx(ssim(result.original, result.reconstruction), rel=1e-12)


def test_bits_of_the_posterior_by_arithmetic(vae: VAE) -> None:
    photo = picture(16, 24)
    posterior = vae.encode(photo.pixels[None])
    mean, logvar = posterior.moments.double().chunk(2, dim=1)
    nats = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum().item()
    assert reconstruct(vae, photo).kl_bits_per_pixel == pytest.approx(nats / math.log(2) / (16 * 24), rel=1e-5)


def test_it_is_encoding_and_decoding(vae: VAE) -> None:
    photo = picture(16, 24)
    with torch.inference_mode():
        expected = to_uint8(vae.decode(vae.encode(photo.pixels[None]).mode())[0])
    assert torch.equal(reconstruct(vae, photo).reconstruction, expected)


def test_other_networks() -> None:
    result = reconstruct(vae_of(SMALL), picture(16, 24))  # f2
    assert result.numbers_per_pixel == 1.0
    assert result.kl_bits_per_pixel is not None
    result = reconstruct(vae_of(TinyConfig()), picture(16, 24))
    assert result.numbers_per_pixel == 4 / 64
    assert result.kl_bits_per_pixel is None  # no posterior, no rate


@pytest.mark.parametrize("size", [(1, 1), (10, 40), (40, 10), (7, 13)])
def test_pictures_below_the_window_have_no_ssim(size: tuple[int, int], vae: VAE) -> None:
    result = reconstruct(vae, picture(*size))
    assert result.ssim is None
    assert math.isfinite(result.psnr)
    assert result.reconstruction.shape == (3, *size)
    assert result.panel().size == (3 * size[1], size[0] + LABEL_HEIGHT)


def test_the_smallest_picture_with_ssim(vae: VAE) -> None:
    assert reconstruct(vae, picture(11, 11)).ssim is not None


def test_a_seed_repeats_and_differs_from_the_mode(vae: VAE) -> None:
    photo = picture(32, 32)
    seen = [reconstruct(vae, photo, seed=seed).reconstruction for seed in (None, 1, 1, 2)]
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[3])


def test_alpha_is_no_part_of_it(vae: VAE) -> None:
    with_alpha = reconstruct(vae, picture(16, 16, alpha=torch.rand(16, 16)))
    without = reconstruct(vae, picture(16, 16))
    assert with_alpha.psnr == without.psnr
    assert with_alpha.image().mode == "RGB"


def by_hand(before: Tensor, after: Tensor) -> Reconstruction:
    return Reconstruction(
        original=before,
        reconstruction=after,
        psnr=psnr(before, after),
        ssim=None,
        numbers_per_pixel=1.0,
        bits_per_pixel=16.0,
        kl_bits_per_pixel=None,
    )


def test_the_panel_by_hand() -> None:
    before = torch.full((3, 30, 200), 100, dtype=torch.uint8)
    after = before.clone()
    after[0], after[1, :15], after[2] = 110, 90, 255
    panel = np.asarray(by_hand(before, after).panel(4.0)).astype(int)
    assert panel.shape == (30 + module.LABEL_HEIGHT, 600, 3)
    body = panel[module.LABEL_HEIGHT :]
    assert (body[:, :200] == 100).all()
    assert (body[:15, 200:400] == (110, 90, 255)).all()
    # mid-grey 127.5, and four times the difference
    assert np.abs(body[:15, 400:] - (167.5, 87.5, 255)).max() <= 0.5
    assert np.abs(body[15:, 400:, 1] - 127.5).max() <= 0.5
    labels = panel[: module.LABEL_HEIGHT]
    assert all((labels[:, i * 200 : i * 200 + 200] < 128).any() for i in range(3))


def test_labels_that_do_not_fit_are_left_out() -> None:
    zeros = torch.zeros(3, 4, 5, dtype=torch.uint8)
    panel = np.asarray(by_hand(zeros, zeros).panel())
    assert (panel[: module.LABEL_HEIGHT] == 255).all()


def test_an_equal_picture_has_an_infinite_psnr_and_a_grey_difference() -> None:
    same = torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8)
    result = by_hand(same, same)
    assert result.psnr == math.inf
    difference = np.asarray(result.panel(100.0))[module.LABEL_HEIGHT :, 32:]
    assert (difference == 128).all()


# Files, by rows


def drawn(height: int, width: int, mode: str = "RGB") -> Image.Image:
    values = pictures(height + width, 1, height, width)[0]
    if mode == "I;16":
        return Image.fromarray(((values[0] + 1) * 32767).numpy().astype(np.uint16))
    image = to_pil(values, torch.rand(height, width) if mode == "RGBA" else None)
    if mode == "RGBA":
        image.putpixel((0, 0), (1, 2, 3, 0))
    return image


def by_files(
    vae: VAE, image: Image.Image, folder: Path, alpha: Any = "over", **options: Any
) -> tuple[Path, Path, Figures]:
    paths = folder / "a-reconstruction.png", folder / "a-panel.png"
    picture = read_picture_rows(image, alpha=alpha)
    return *paths, reconstruct_files(vae, picture, reconstruction=paths[0], panel=paths[1], **options)


def figures(result: Figures) -> dict[str, float | None]:
    return {field.name: getattr(result, field.name) for field in fields(Figures)}


def same_image(path: Path, expected: Image.Image) -> bool:
    with Image.open(path) as image:
        return image.mode == expected.mode and np.array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("band", [1, 5000, 2**17])
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (10, 40), (83, 121), (64, 64)])
def test_files_are_the_same_as_in_memory(
    size: tuple[int, int], seed: int | None, band: int, vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BAND", band)
    image = drawn(*size)
    expected = reconstruct(vae, read_picture(image), seed=seed)
    reconstruction, panel, result = by_files(vae, image, tmp_path, seed=seed, amplify=3.0)
    assert figures(result) == figures(expected)
    assert same_image(reconstruction, expected.image())
    assert same_image(panel, expected.panel(3.0))
    assert names(tmp_path) == ["a-panel.png", "a-reconstruction.png"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
@pytest.mark.parametrize("config", [SMALL, TinyConfig(), FOLDED])
def test_long_pictures_and_other_networks(size: tuple[int, int], config: NetworkConfig, tmp_path: Path) -> None:
    vae, image = vae_of(config), drawn(*size)
    expected = reconstruct(vae, read_picture(image), seed=1)
    reconstruction, panel, result = by_files(vae, image, tmp_path, seed=1)
    assert figures(result) == figures(expected)
    assert same_image(reconstruction, expected.image())
    assert same_image(panel, expected.panel())


@pytest.mark.parametrize("step", [1, 3])
def test_it_does_not_matter_how_many_rows_are_decoded_at_a_time(
    step: int, vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = drawn(33, 41)
    expected = reconstruct(vae, read_picture(image))
    decode_rows = vae.decode_rows

    def split(latents: Tensor, **options: Any) -> Iterator[Tensor]:
        for part in decode_rows(latents, **options):
            yield from part.split(step, dim=1)

    monkeypatch.setattr(vae, "decode_rows", split)
    reconstruction, panel, result = by_files(vae, image, tmp_path)
    assert figures(result) == figures(expected)
    assert same_image(reconstruction, expected.image())
    assert same_image(panel, expected.panel())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_other_kinds_of_pictures(mode: str, vae: VAE, tmp_path: Path) -> None:
    image = drawn(45, 61, mode)
    expected = reconstruct(vae, read_picture(image))
    reconstruction, panel, result = by_files(vae, image, tmp_path)
    assert figures(result) == figures(expected)
    assert same_image(reconstruction, expected.image())
    assert same_image(panel, expected.panel())


def test_alpha_that_is_kept_is_the_reconstructions(vae: VAE, tmp_path: Path) -> None:
    image = drawn(45, 61, "RGBA")
    expected = reconstruct(vae, read_picture(image, alpha="keep"))
    reconstruction, panel, result = by_files(vae, image, tmp_path, alpha="keep")
    assert figures(result) == figures(expected)
    whole = expected.image()
    whole.putalpha(image.getchannel("A"))
    assert same_image(reconstruction, whole)
    assert same_image(panel, expected.panel())


def test_tiff(vae: VAE, tmp_path: Path) -> None:
    image = drawn(20, 30)
    picture = read_picture_rows(image)
    reconstruct_files(vae, picture, reconstruction=tmp_path / "a.tif", panel=tmp_path / "b.tif")
    expected = reconstruct(vae, read_picture(image))
    assert same_image(tmp_path / "a.tif", expected.image())
    assert same_image(tmp_path / "b.tif", expected.panel())


def test_progress_goes_from_0_to_1(vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BAND", 500)
    told: list[float] = []
    by_files(vae, drawn(45, 61), tmp_path, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert all(any(i / 4 < part < (i + 1) / 4 for part in told) for i in range(4))
    told.clear()
    reconstruct(vae, picture(45, 61), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [0.1, 0.3, 0.6])
def test_what_is_stopped_leaves_nothing(at: float, vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BAND", 500)
    closed: list[Spill] = []
    close = Spill.close
    monkeypatch.setattr(Spill, "close", lambda self: (closed.append(self), close(self)))

    def stop(part: float) -> None:
        if part > at:
            raise Stopped

    with pytest.raises(Stopped):
        by_files(vae, drawn(45, 61), tmp_path, progress=stop)
    assert names(tmp_path) == []
    assert not any(spill._files for spill in closed)


def test_a_full_disk_for_the_temporary_file(vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spill, "_move", fail)
    with pytest.raises(MemoryLimitError, match="No space left on device") as caught:
        by_files(vae, drawn(45, 61), tmp_path)
    one_sentence(str(caught.value))
    assert names(tmp_path) == []


def test_what_files_can_not_hold_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    image = read_picture_rows(drawn(1, 24000))
    with pytest.raises(UsageError, match="JPEG holds at most 65500 pixels a side, and this is 72000 x 25"):
        reconstruct_files(None, image, reconstruction=tmp_path / "a.png", panel=tmp_path / "b.jpg")  # type: ignore[arg-type]


def overflowing(bias: float) -> Network:
    """Twice the bias is more than float16 holds, but only the decoder adds it twice."""
    made = kl(AutoencoderConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1), 2)
    for block in (made.decoder.mid.block_1, made.decoder.mid.block_2):
        nn.init.constant_(block.conv2.bias, bias)
    return made


@pytest.mark.slow
def test_what_overflows_is_decoded_again(tmp_path: Path) -> None:
    image = drawn(24, 16)
    narrow = vae_of(overflowing(4e4), torch.float16)
    with pytest.warns(CalotypeWarning, match=r"gave NaN or infinity in float16; computing in float32"):
        reconstruction, panel, result = by_files(narrow, image, tmp_path)
    with pytest.warns(CalotypeWarning):
        expected = reconstruct(vae_of(overflowing(4e4), torch.float16), read_picture(image))
    assert figures(result) == figures(expected)
    assert same_image(reconstruction, expected.image())
    assert same_image(panel, expected.panel())


def test_what_overflows_in_float32_too_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="in float32 too"):
        by_files(vae_of(overflowing(3e38)), drawn(24, 16), tmp_path)
    assert names(tmp_path) == []


PEAK = """
import re, sys, torch
from pathlib import Path
from PIL import Image
from calotype.evaluate.reconstruct import reconstruct_files
from calotype.pixels import read_picture_rows
from calotype.vae import load

def run(side):
    paths = {kind: folder / f"{side}-{kind}.png" for kind in ("reconstruction", "panel")}
    reconstruct_files(vae, read_picture_rows(folder / f"{side}.png"), **paths, memory="480MB")

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

folder, vae = Path(sys.argv[1]), load(device="cpu")
run(64)
before = peak()
run(4096)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_large_picture_in_bounded_memory(tmp_path: Path) -> None:
    """Of 4096 x 4096 pixels the floats are 200 MB, and the outputs 200 MB; the network computes in 400 MB."""
    small = drawn(64, 64)
    small.save(tmp_path / "64.png")
    small.resize((4096, 4096), Image.Resampling.BICUBIC).save(tmp_path / "4096.png")
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, timeout=1200, check=True
    )
    assert float(run.stdout) < 730.0
    for kind, size in (("reconstruction", (4096, 4096)), ("panel", (3 * 4096, 4096 + LABEL_HEIGHT))):
        with Image.open(tmp_path / f"4096-{kind}.png") as image:
            assert image.size == size
