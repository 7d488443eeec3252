"""Evaluations, probes and reconstructions of VAEs of grey and of RGBA pictures."""

from __future__ import annotations

import csv
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import SMALL, network

from calotype.errors import CalotypeWarning, UsageError
from calotype.evaluate.alpha import APART, apart
from calotype.evaluate.measure import METRICS, Original, Tools
from calotype.evaluate.metrics import RowMetrics, ms_ssim, psnr, ssim
from calotype.evaluate.probe import probe
from calotype.evaluate.protocol import PRESETS, Protocol
from calotype.evaluate.reconstruct import reconstruct, reconstruct_files
from calotype.evaluate.session import evaluate
from calotype.evaluate.setup import Setup
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.pixels import from_array, luma, read_picture, read_picture_rows, seen, to_channels, to_uint8
from calotype.vae import VAE
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

GREY, RGBA = replace(SMALL, in_channels=1), replace(SMALL, in_channels=4)
OF = {1: GREY, 3: SMALL, 4: RGBA}


def file_of(folder: Path, config: AutoencoderConfig, seed: int = 0) -> Path:
    """A small VAE's file."""
    path = folder / f"vae{config.in_channels}-{seed}.safetensors"
    save_weights(network(config, seed), path, layout="ldm", format_=KNOWN["sd1"])
    return path


def vae_of(folder: Path, channels: int) -> VAE:
    return VAE(load_weights(file_of(folder, OF[channels])), name=f"vae{channels}")


def drawn(seed: int = 0, width: int = 48, height: int = 32) -> Any:
    """Smooth colours, and alpha of all values: uint8 [H, W, 4]."""
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([x * 5 + 9 * seed, y * 6, 3 * x + 2 * y, 20 + x * 5 + y], axis=-1)
    return ((planes + np.random.default_rng(seed).integers(0, 16, planes.shape)) % 256).astype(np.uint8)


def levels_of(path: Path) -> Any:
    """A picture's pixels as evaluations have them: over white, rounded to 8 bits."""
    return from_array(to_uint8(read_picture(path).pixels).permute(1, 2, 0).numpy())


def folder_of(at: Path, count: int = 3) -> Path:
    at.mkdir()
    for i in range(count):
        Image.fromarray(drawn(i)).save(at / f"{i}.png")
    return at


def evaluated(tmp_path: Path, vaes: list[Path], data: Path, report: str = "report", **more: Any) -> dict[str, Any]:
    setup = Setup(**{"vaes": tuple(map(str, vaes)), "metrics": ("psnr", "ssim"), "protocol": Protocol(), **more})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalotypeWarning)
        return evaluate(data, setup, tmp_path / report)


def test_grey_is_measured_in_grey(tmp_path: Path) -> None:
    path, data = file_of(tmp_path, GREY), folder_of(tmp_path / "data")
    found = evaluated(tmp_path, [path], data)
    vae = VAE(load_weights(path))
    for i, row in enumerate(found["vaes"][0]["rows"]):
        x = luma(levels_of(data / f"{i}.png"))
        y = vae.decode(vae.encode(x[None]).mode(), (32, 48))[0]
        assert row["psnr"] == pytest.approx(psnr(to_uint8(x), to_uint8(y)), abs=1e-6)
        assert row["ssim"] == pytest.approx(ssim(to_uint8(x), to_uint8(y)), abs=1e-6)
    assert found["channels"] == 1
    assert found["vaes"][0]["picture_channels"] == 1
    assert found["protocol"]["text"].endswith(", in grey (luma)")
    assert not found["warnings"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "which is 1 itself" in page
    assert "in grey (luma)" in page


@pytest.mark.slow
def test_grey_and_rgb_are_compared_in_grey(tmp_path: Path) -> None:
    paths, data = [file_of(tmp_path, GREY), file_of(tmp_path, SMALL)], folder_of(tmp_path / "data")
    found = evaluated(tmp_path, paths, data)
    vae = VAE(load_weights(paths[1]))
    for i, row in enumerate(found["vaes"][1]["rows"]):
        x = levels_of(data / f"{i}.png")
        y = luma(vae.decode(vae.encode(x[None]).mode(), (32, 48))[0])  # of all its colours
        assert row["psnr"] == pytest.approx(psnr(to_uint8(luma(x)), to_uint8(y)), abs=1e-6)
    (told,) = found["warnings"]
    assert "compared in grey, for the pictures of vae1-0 have no more" in told
    alone = evaluated(tmp_path, paths[:1], data, "alone")
    assert alone["vaes"][0]["means"] == found["vaes"][0]["means"]
    with pytest.raises(UsageError, match="channels 3, not 1"):
        evaluated(tmp_path, paths[1:], data, "rgb")
        evaluated(tmp_path, paths, data, "rgb")


@pytest.mark.slow
def test_rgba_is_measured_over_white_and_over_black(tmp_path: Path) -> None:
    path, data = file_of(tmp_path, RGBA), folder_of(tmp_path / "data")
    found = evaluated(tmp_path, [path], data)
    vae = VAE(load_weights(path))
    for i, row in enumerate(found["vaes"][0]["rows"]):
        x = from_array(drawn(i))
        x[:3] = torch.where(x[3] == -1.0, torch.ones(3, 1, 1), x[:3])  # under alpha 0: white
        y = vae.decode(vae.encode(x[None]).mode(), (32, 48))[0]
        assert row["psnr"] == pytest.approx(psnr(seen(to_uint8(x)), seen(to_uint8(y))), abs=1e-6)
    assert found["protocol"]["text"].endswith("RGBA over white and over black")
    both = evaluated(tmp_path, [path, file_of(tmp_path, SMALL)], data, "both")
    assert both["channels"] == 3
    x = levels_of(data / "0.png")
    y = to_channels(vae.decode(vae.encode(to_channels(x, 4)[None]).mode(), (32, 48))[0], 3)
    assert both["vaes"][0]["rows"][0]["psnr"] == pytest.approx(psnr(to_uint8(x), to_uint8(y)), abs=1e-6)


@pytest.fixture
def without_lpips(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All metrics but those that need weights are all that there are."""
    kept = {key: metric for key, metric in METRICS.items() if "lpips" not in key}
    monkeypatch.setattr("calotype.evaluate.setup.METRICS", kept)
    return list(kept)


def test_errors_of_alpha_are_told_apart(tmp_path: Path, without_lpips: list[str]) -> None:
    path, data = file_of(tmp_path, RGBA), folder_of(tmp_path / "data")
    boxes = {"corner": {"1.png": [(4, 2, 30, 28)]}}
    found = evaluated(tmp_path, [path], data, metrics=None, boxes=boxes)
    assert [metric["key"] for metric in found["metrics"]] == without_lpips
    vae = VAE(load_weights(path))
    for i, row in enumerate(found["vaes"][0]["rows"]):
        x = from_array(drawn(i))
        x[:3] = torch.where(x[3] == -1.0, torch.ones(3, 1, 1), x[:3])
        y = vae.decode(vae.encode(x[None]).mode(), (32, 48))[0]
        assert {key: row[key] for key in APART} == vars(apart(to_uint8(x), to_uint8(y)))
        if i == 1:
            (part,) = row["subsets"]["corner"]
            assert {key: part[key] for key in APART} == vars(
                apart(to_uint8(x[:, 2:28, 4:30]), to_uint8(y[:, 2:28, 4:30]))
            )
    means = found["vaes"][0]["means"]
    assert means["alpha_mae"]["mean"] == pytest.approx(np.mean([row["alpha_mae"] for row in found["vaes"][0]["rows"]]))
    page = (tmp_path / "report" / "index.html").read_text()
    for key in APART:
        assert METRICS[key].title in page
    assert "errors of colours and of alpha are mixed" in page
    sheet = list(csv.DictReader((tmp_path / "report" / "results.csv").read_text().splitlines()))
    assert [float(row["alpha_max"]) for row in sheet if row["kind"] == "picture"] == [
        row["alpha_max"] for row in found["vaes"][0]["rows"]
    ]


@pytest.mark.slow
def test_beside_a_vae_of_rgb_alpha_is_that_of_opaque_pictures(tmp_path: Path, without_lpips: list[str]) -> None:
    paths, data = [file_of(tmp_path, RGBA), file_of(tmp_path, SMALL)], folder_of(tmp_path / "data")
    alone = evaluated(tmp_path, paths[1:], data, metrics=None)
    assert [metric["key"] for metric in alone["metrics"]] == without_lpips[:3]
    found = evaluated(tmp_path, paths, data, metrics=None)  # goes on where the one of RGB was measured
    vae = VAE(load_weights(paths[0]))
    for i, (row, other) in enumerate(zip(*(one["rows"] for one in found["vaes"]), strict=True)):
        x = to_channels(levels_of(data / f"{i}.png"), 4)
        y = vae.decode(vae.encode(x[None]).mode(), (32, 48))[0]
        assert {key: row[key] for key in APART} == vars(apart(to_uint8(x), to_uint8(y)))
        assert not other.keys() & set(APART)
    assert found["vaes"][1]["means"] == alone["vaes"][0]["means"]
    assert any("how far from opaque it came back" in told for told in found["warnings"])
    assert "3 without alpha" in (tmp_path / "report" / "index.html").read_text()
    with pytest.raises(UsageError, match="the metric alpha_max is of VAEs of RGBA pictures"):
        evaluated(tmp_path, paths[1:], data, "refused", metrics=("psnr", "alpha_max"))
    assert not (tmp_path / "refused").exists()


def test_pictures_of_which_nothing_can_be_seen(tmp_path: Path) -> None:
    path, data = file_of(tmp_path, RGBA), folder_of(tmp_path / "data", 2)
    empty = drawn()
    empty[..., 3] = 0
    Image.fromarray(empty).save(data / "empty.png")
    found = evaluated(tmp_path, [path], data, metrics=("colour_psnr", "alpha_psnr"))
    means = found["vaes"][0]["means"]
    assert (means["colour_psnr"]["n"], means["alpha_psnr"]["n"]) == (2, 3)
    assert "1 without alpha or anything to see" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_protocols_take_alpha(name: str) -> None:
    opaque = np.dstack([drawn()[..., :3], np.full((32, 48), 255, np.uint8)])
    protocol = PRESETS[name]
    x = protocol.prepare(opaque)
    assert torch.equal(x[3], torch.ones(x.shape[1:]))
    assert (x[:3] - protocol.prepare(opaque[..., :3])).abs().max() <= 1.01 / 127.5
    glass = opaque.copy()
    glass[:, 24:] = (0, 255, 0, 0)  # what can't be seen does not bleed into what can
    glass[:, :24] = (200, 0, 100, 255)
    x = protocol.prepare(glass)
    there = x[3] > -0.5
    assert (127.5 * (x[1][there] + 1)).max() <= 3
    assert to_uint8(x).shape[0] == 4


def test_lpips_of_grey_and_of_rgba() -> None:
    class Network(torch.nn.Module):
        shift = torch.zeros(())

        def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x]

        def distance(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
            return (a[0] - b[0]).square().mean((1, 2, 3))

    tools = Tools(metrics=("lpips_vgg",), lpips={"lpips_vgg": Network()}, extractors={})  # type: ignore[dict-item]
    protocol = replace(PRESETS["lightningdit"])
    x, y = (from_array(drawn(i)) for i in (0, 1))
    for keep in (False, True):
        grey = Original(x[:3], 1, keep=keep).lpips("lpips_vgg", luma(y[:3]), tools, protocol)
        assert grey == pytest.approx(float((luma(x[:3]) - luma(y[:3])).square().mean()), rel=1e-5)
        rgba = Original(x, 4, keep=keep).lpips("lpips_vgg", y, tools, protocol)
        assert rgba == pytest.approx(float((seen(x) - seen(y)).square().mean()), rel=1e-5)


def test_pictures_of_two_channels_are_told_before_anything_is_measured(tmp_path: Path) -> None:
    path, data = file_of(tmp_path, replace(SMALL, in_channels=2)), folder_of(tmp_path / "data", 1)
    with pytest.raises(UsageError, match=r"have 2 channels.*1 \(grey\)"):
        evaluated(tmp_path, [path], data)
    assert not (tmp_path / "report").exists()
    vae = VAE(load_weights(path))
    with pytest.raises(UsageError, match="have 2 channels"):
        probe(vae, [("a", drawn()[..., :3])])
    with pytest.raises(UsageError, match="have 2 channels"):
        reconstruct(vae, read_picture(data / "0.png"))


@pytest.mark.parametrize("channels", [1, 6])
def test_metrics_of_other_channels(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 256, (2, channels, 170, 180), generator=generator, dtype=torch.uint8)
    mean = [[metric(a[c : c + 1], b[c : c + 1]) for c in range(channels)] for metric in (ssim, ms_ssim)]
    assert ssim(a, b) == pytest.approx(sum(mean[0]) / channels)
    assert ms_ssim(a, b) == pytest.approx(sum(mean[1]) / channels)
    rows = RowMetrics(170, 180)
    rows.add(a[:, :100], b[:, :100])
    with pytest.raises(UsageError, match=rf"rows to compare must be \[{channels}, n, 180\]"):
        rows.add(a[:1].expand(3, -1, -1)[:, :5], b[:1].expand(3, -1, -1)[:, :5])
    rows.add(a[:, 100:], b[:, 100:])
    assert rows.psnr() == pytest.approx(psnr(a, b))
    assert rows.ssim() == pytest.approx(ssim(a, b))


@pytest.mark.parametrize("channels", [1, 4])
def test_reconstructions(tmp_path: Path, channels: int) -> None:
    vae = vae_of(tmp_path, channels)
    path = folder_of(tmp_path / "data", 1) / "0.png"
    alpha = "keep" if channels == 4 else "over"
    whole = reconstruct(vae, read_picture(path, alpha=alpha))  # type: ignore[arg-type]
    assert whole.image().mode == {1: "L", 4: "RGBA"}[channels]
    assert whole.psnr == psnr(seen(whole.original), seen(whole.reconstruction))
    assert whole.apart == (apart(whole.original, whole.reconstruction) if channels == 4 else None)
    files = tmp_path / "a.png", tmp_path / "b.png"
    figures = reconstruct_files(
        vae, read_picture_rows(path, alpha=alpha), reconstruction=files[0], panel=files[1]  # type: ignore[arg-type]
    )  # fmt: skip
    assert figures.psnr == pytest.approx(whole.psnr, abs=1e-3)
    with Image.open(files[0]) as image:
        written = torch.from_numpy(np.array(image)).permute(2, 0, 1) if channels == 4 else None
    assert figures.apart == (None if written is None else apart(whole.original, written))
    with Image.open(files[0]) as image:
        assert image.mode == whole.image().mode
        assert np.abs(np.asarray(image).astype(int) - np.asarray(whole.image())).max() <= 1
    with Image.open(files[1]) as panel:
        assert (panel.mode, panel.size) == ("RGB", (3 * 48, 32 + 24))
        assert whole.panel().size == panel.size
        middle = np.asarray(panel)[24:, :48]
    assert np.array_equal(middle, seen(whole.original)[:3].expand(3, -1, -1).permute(1, 2, 0).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_probes(tmp_path: Path, channels: int) -> None:
    vae = vae_of(tmp_path, channels)
    pictures = [(str(i), drawn(i, 32, 32)[..., :3]) for i in range(3)]
    found = probe(vae, pictures, labels=["a", "b", "a"])
    keys = {finding.key for finding in found.findings}
    psnrs = []
    for _, picture in pictures:
        x = to_channels(luma(from_array(picture)) if channels == 1 else from_array(picture), channels)
        x = to_uint8(x).float() / 127.5 - 1.0
        y = to_channels(vae.decode(vae.encode(x[None]).mode())[0], 3)
        psnrs.append(psnr(to_uint8(to_channels(x, 3)), to_uint8(y)))
    numbers = {number.name: number.value for number in found["rate"].numbers}
    assert numbers["PSNR"] == pytest.approx(sum(psnrs) / 3, abs=1e-3)
    assert f"{8 * channels} in the picture itself" in found["rate"].sentence
    if channels == 1:
        assert found.left_out["colour"] == "its pictures are grey"
        assert "constants" in keys
        assert "red" not in found["constants"].sentence
        assert "5 colours" in found["constants"].method
    else:
        assert "colour" in keys
        assert "over white" in found.left_out["alpha"]
    json.dumps(found.to_dict())
