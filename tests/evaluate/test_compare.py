"""VAEs on the same pictures: what is measured, kept, joined and said, with small random networks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluatekit import Means, figures, setup, sheet
from PIL import Image
from safetensors.torch import save_file
from support import fill, one_sentence, tiny

from calotype import load
from calotype.errors import NonFiniteError, PictureError, UsageError, WeightsError
from calotype.evaluate import compare, features, session, together
from calotype.evaluate.compare import Evaluation, Seen, here, run
from calotype.evaluate.lpips import LPIPS
from calotype.evaluate.measure import Features, Taken, Tools
from calotype.evaluate.metrics import psnr, ssim
from calotype.evaluate.protocol import Protocol, preset
from calotype.evaluate.report import Crop
from calotype.evaluate.session import evaluate
from calotype.evaluate.store import Store
from calotype.evaluate.together import results
from calotype.pixels import from_array, to_uint8
from calotype.sources import open_source
from calotype.vae import VAE, picture_generator
from calotype.weights.save import save_weights


@pytest.mark.slow
def test_figures_are_those_of_each_picture(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    found = evaluate(data, setup(vaes), tmp_path / "r")
    assert [one["label"] for one in found["vaes"]] == ["vae0", "vae1"]
    assert [one["name"] for one in found["pictures"]] == [f"{i}.png" for i in range(6)]
    for one, path in zip(found["vaes"], vaes, strict=True):
        vae = load(path, device="cpu")
        latents = []
        for row in one["rows"]:
            array = np.asarray(Image.open(data / f"{row['picture']}.png"))
            x = from_array(array)
            z = vae.encode(x[None]).mode()
            y = to_uint8(vae.decode(z, tuple(x.shape[1:]))[0])
            assert row["psnr"] == psnr(to_uint8(x), y)
            assert row["ssim"] == ssim(to_uint8(x), y)
            assert row["numbers_per_pixel"] == z.numel() / (x.shape[1] * x.shape[2])
            latents.append(z[0].flatten(1).double())
        mean = one["means"]["psnr"]
        assert mean["mean"] == pytest.approx(sum(row["psnr"] for row in one["rows"]) / 6)
        assert mean["low"] < mean["mean"] < mean["high"]
        together = torch.cat(latents, 1)
        assert one["latents"]["mean"] == pytest.approx(together.mean(1).tolist(), abs=1e-6)
        assert one["latents"]["std"] == pytest.approx(together.std(1, correction=0).tolist(), rel=1e-5)
        assert one["latents"]["scaling_factor"] == pytest.approx(1 / float(together.std(correction=0)), rel=1e-5)
        assert one["speed"]["encode_seconds_per_megapixel"] > 0
        assert one["memory"]["planned_peak_bytes"] > 1e6
    assert json.loads((tmp_path / "r" / "results.json").read_text())["vaes"] == json.loads(json.dumps(found["vaes"]))
    lines = (tmp_path / "r" / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 + 12
    assert "vae1" in (tmp_path / "r" / "index.html").read_text()


@pytest.mark.slow
def test_a_stopped_one_goes_on_and_measures_nothing_twice(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(data, setup(vaes), tmp_path / "whole")
    encoded = []
    encode = VAE.encode

    def stopping(self: VAE, *arguments: Any, **options: Any) -> Any:
        encoded.append(1)
        if len(encoded) == 6:
            raise KeyboardInterrupt
        return encode(self, *arguments, **options)

    monkeypatch.setattr(VAE, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, setup(vaes), tmp_path / "parts")
    monkeypatch.setattr(session, "SHOWN", 0)  # what the page decodes again
    again = evaluate(data, setup(vaes), tmp_path / "parts")
    assert len(encoded) == 6 + 7  # five were kept
    assert figures(whole) == figures(again)


@pytest.mark.slow
def test_the_page_decodes_nothing_twice(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops are made while pictures are measured, and are those of pictures that are decoded once more."""
    shown: list[list[Crop]] = []
    monkeypatch.setattr(session, "evaluation_page", lambda found, crops: shown.append(crops) or b"")
    monkeypatch.setattr(session, "SHOWN", 4)
    decoded: list[int] = []
    decode = VAE.decode

    def counted(self: VAE, *arguments: Any, **options: Any) -> torch.Tensor:
        decoded.append(1)
        return decode(self, *arguments, **options)

    monkeypatch.setattr(VAE, "decode", counted)
    evaluate(data, setup(vaes), tmp_path / "r")
    assert len(decoded) == 12
    evaluate(data, setup(vaes), tmp_path / "r")  # all is measured
    assert len(decoded) == 12 + 8
    evaluate(data, setup(vaes[:1]), tmp_path / "parts", limit=3)
    evaluate(data, setup(vaes), tmp_path / "parts")  # of three pictures there is one VAE only
    first, again, joined = shown[0], shown[1], shown[3]
    assert len(first) == 4
    assert len({crop.picture for crop in first}) == 4
    for others in (again, joined):
        for a, b in zip(first, others, strict=True):
            assert (a.picture, a.box) == (b.picture, b.box)
            assert np.array_equal(a.original, b.original)
            assert a.reconstructions.keys() == b.reconstructions.keys() == {"vae0", "vae1"}
            assert all(np.array_equal(a.reconstructions[key], b.reconstructions[key]) for key in a.reconstructions)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_features_of_a_picture_are_computed_once_for_all_vaes(
    kept: bool, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    small = np.random.default_rng(1).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    for i in range(2):
        Image.fromarray(small).resize((48 + i, 40), Image.Resampling.BICUBIC).save(tmp_path / "data" / f"{i}.png")
    monkeypatch.setenv("CALOTYPE_LPIPS", str(tmp_path / "weights.safetensors"))
    save_file(fill(LPIPS("alex"), seed=1, gain=1.4).state_dict(), tmp_path / "weights.safetensors")
    seen: list[int] = []
    stages = LPIPS.stages

    def counted(self: LPIPS, x: torch.Tensor) -> list[torch.Tensor]:
        seen.append(len(x))
        return stages(self, x)

    monkeypatch.setattr(LPIPS, "stages", counted)
    monkeypatch.setattr(compare, "KEPT", 2**21 if kept else 0)
    metrics = {"metrics": ("psnr", "lpips_alex")}
    both = evaluate(tmp_path / "data", setup(vaes, **metrics), tmp_path / "both")
    assert sum(seen) == (2 * 3 if kept else 2 * 4)
    for i in range(2):
        alone = evaluate(tmp_path / "data", setup(vaes[i : i + 1], **metrics), tmp_path / str(i))
        assert alone["vaes"][0]["rows"] == both["vaes"][i]["rows"]  # to the last bit


@pytest.mark.slow
def test_parts_and_one_more_vae_come_to_the_same(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    whole = evaluate(data, setup(vaes), tmp_path / "whole")
    for part in ("2/3", "1/3", "3/3"):
        assert evaluate(data, setup(vaes[:1]), tmp_path / "parts", part=part)["shard"] == part
    assert not (tmp_path / "parts" / "results.json").exists()
    joined = evaluate(data, setup(vaes), tmp_path / "parts")
    assert figures(whole) == figures(joined)
    assert sorted(path.name for path in (tmp_path / "parts").glob("*.sqlite")) == [
        "measured-1-of-3.sqlite", "measured-2-of-3.sqlite", "measured-3-of-3.sqlite", "measured.sqlite",
    ]  # fmt: skip


@pytest.mark.slow
def test_every_and_limit(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    found = evaluate(data, setup(vaes[:1]), tmp_path / "r", every=2, limit=2)
    assert [one["name"] for one in found["pictures"]] == ["0.png", "2.png"]
    more = evaluate(data, setup(vaes[:1]), tmp_path / "r", every=2)
    assert len(more["vaes"][0]["rows"]) == 3


@pytest.mark.slow
def test_samples_have_a_seed(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    rows = []
    for i, seed in enumerate((0, 1, 0)):
        protocol = Protocol(name="drawn", latent="sample", seed=seed)
        found = evaluate(data, setup(vaes[:1], protocol=protocol), tmp_path / str(i), limit=2)
        rows.append([row["psnr"] for row in found["vaes"][0]["rows"]])
    assert rows[0] == rows[2] != rows[1]


@pytest.mark.slow
def test_a_vae_that_fails_on_a_picture_is_listed_and_others_go_on(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = VAE.decode

    def failing(self: VAE, latents: torch.Tensor, size: tuple[int, int] | None = None, **options: Any) -> torch.Tensor:
        if self.name == "vae1.safetensors" and size == (35, 44):
            raise NonFiniteError("it overflows.")
        return decode(self, latents, size, **options)

    monkeypatch.setattr(VAE, "decode", failing)
    found = evaluate(data, setup(vaes), tmp_path / "r")
    errors = [
        (one["label"], row["picture"], row["error"]) for one in found["vaes"] for row in one["rows"] if "error" in row
    ]
    assert errors == [("vae1", 2, "it overflows.")]
    assert found["vaes"][1]["means"]["psnr"]["n"] == 5
    assert found["vaes"][0]["means"]["psnr"]["n"] == 6
    (failed,) = [row for row in sheet(tmp_path / "r") if row["error"]]
    assert (failed["kind"], failed["vae"], failed["picture"]) == ("picture", "vae1", "2.png")
    assert (failed["error"], failed["psnr"]) == ("it overflows.", "")
    assert sheet(tmp_path / "r")[1]["why"] == "PSNR: 1 failed; SSIM: 1 failed"
    monkeypatch.setattr(VAE, "decode", decode)
    monkeypatch.setattr(session, "SHOWN", 0)
    told: list[tuple[str, int]] = []
    run_ = session.run
    monkeypatch.setattr(
        session, "run", lambda *a, **k: run_(*a, **{**k, "watch": lambda label, i, taken: told.append((label, i))})
    )
    again = evaluate(data, setup(vaes), tmp_path / "r")  # the same command tries again what failed, and only that
    whole = evaluate(data, setup(vaes), tmp_path / "whole")
    assert told[0] == ("vae1", 2)
    assert len(told) == 1 + 12
    assert figures(again) == figures(whole)


def test_an_error_of_a_part_gives_way_to_figures(tmp_path: Path) -> None:
    parts: tuple[dict[str, Any], ...] = ({"error": "it overflows."}, {"psnr": 30.0}, {"error": "it overflows."})
    for i, row in enumerate(parts):
        part = Store(tmp_path, {}, f"{i}-of-3")
        part.put("vae", "picture", Taken(row=row, features={}))
        part.close()
    store = Store(tmp_path, {})
    assert store.rows("vae") == {"picture": {"psnr": 30.0}}
    store.close()


@pytest.mark.slow
def test_a_picture_that_can_not_be_read_is_listed_and_others_go_on(vaes: tuple[str, ...], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in (0, 2):
        Image.fromarray(np.full((33, 40, 3), 40 * i + 10, np.uint8)).save(photos / f"{i}.png")
    whole = evaluate(photos, setup(vaes), tmp_path / "whole")
    (photos / "1.png").write_bytes(b"no picture")
    told: list[tuple[int, int]] = []
    found = evaluate(photos, setup(vaes), tmp_path / "r", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (6, 6)
    assert [(one["name"], one["sha256"] is None) for one in found["pictures"]] == [
        ("0.png", False), ("1.png", True), ("2.png", False),
    ]  # fmt: skip
    for a, b in zip(found["vaes"], whole["vaes"], strict=True):
        assert "1.png" in a["rows"][1]["error"]
        assert a["means"] == b["means"]
        assert a["latents"] == b["latents"]
        assert [a["rows"][i]["psnr"] for i in (0, 2)] == [row["psnr"] for row in b["rows"]]
    assert "1.png" in (tmp_path / "r" / "index.html").read_text()
    for i in (0, 2):
        (photos / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"0\.png") as error:
        evaluate(photos, setup(vaes), tmp_path / "none")
    one_sentence(str(error.value))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightningdit", "dc-ae", "llamagen"])
def test_presets_measure_as_their_tables_were(name: str, vaes: tuple[str, ...], tmp_path: Path) -> None:
    """By the libraries those tables were made with."""
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    skimage = pytest.importorskip("skimage.metrics")
    small = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    (tmp_path / "data").mkdir()
    Image.fromarray(small).resize((700, 560), Image.Resampling.BICUBIC).save(tmp_path / "data" / "a.png")
    protocol = preset(name)
    found = evaluate(tmp_path / "data", setup(vaes[:1], protocol=protocol), tmp_path / "r")
    (row,) = found["vaes"][0]["rows"]
    vae = load(vaes[0], device="cpu")
    x = protocol.prepare(np.asarray(Image.open(tmp_path / "data" / "a.png")))
    posterior = vae.encode(x[None])
    z = posterior.mode() if protocol.latent == "mode" else posterior.sample([picture_generator(0, x)])
    y = vae.decode(z, (256, 256), clamp=False)
    after = (255 * (y[0] + 1) / 2 + 0.5).clamp(0, 255).to(torch.uint8)  # as DC-AE rounds; the others come to the same
    before = (127.5 * x + 128).clamp(0, 255).to(torch.uint8)
    if name == "lightningdit":
        similarity = torchmetrics.structural_similarity_index_measure(y, x[None], data_range=(-1.0, 1.0))
    elif name == "dc-ae":
        pair = (before[None].double(), after[None].double())
        similarity = torchmetrics.structural_similarity_index_measure(*pair, data_range=(0.0, 255.0))
    else:
        arrays = [one.permute(1, 2, 0).numpy().astype(np.float32) / 255 for one in (after, before)]
        similarity = skimage.structural_similarity(*arrays, data_range=2.0, channel_axis=-1)
    assert row["ssim"] == pytest.approx(float(similarity), abs=2e-5)
    mse = float((before.double() - after.double()).square().mean())
    assert row["psnr"] == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-6)


@pytest.mark.slow
def test_distances_are_over_features_of_all_pictures(data: Path, vaes: tuple[str, ...], tmp_path: Path) -> None:
    extractors: dict[str, Features] = {"means": Means()}
    tools = Tools(metrics=("psnr",), lpips={}, extractors=extractors)
    pictures = open_source(data)
    vae = load(vaes[0], device="cpu")
    evaluation = Evaluation(vaes={"one": vae}, pictures=pictures, protocol=preset("whole"), tools=tools)
    store = Store(tmp_path, evaluation.settings())
    seen = run(evaluation, store, range(6), engine=here)
    assert not seen.unread
    (one,) = results(evaluation, store, seen)["vaes"]
    before, after = [], []
    for i in range(6):
        x = from_array(pictures.read(i))
        y = vae.decode(vae.encode(x[None]).mode(), tuple(x.shape[1:]))[0]
        before.append(Means()(to_uint8(x)[None])[0].double().numpy())
        after.append(Means()(to_uint8(y)[None])[0].double().numpy())
    a, b = (np.cov(np.stack(part), rowvar=False) for part in (before, after))
    root = np.linalg.eigvals(a @ b).astype(complex) ** 0.5
    apart = np.mean(before, 0) - np.mean(after, 0)
    expected = apart @ apart + np.trace(a) + np.trace(b) - 2 * root.sum().real
    assert one["distances"]["fid_means"]["value"] == pytest.approx(expected, rel=1e-6)
    assert one["distances"]["kid_means"]["n"] == 6
    few = results(evaluation, store, Seen(hashes={i: seen.hashes[i] for i in range(4)}))  # so many others failed
    assert few["vaes"][0]["distances"]["fid_means"] == {
        "value": None, "n": 4, "why": "needs 5 pictures, and only 4 did not fail"
    }  # fmt: skip
    assert few["vaes"][0]["distances"]["kid_means"]["n"] == 4


def test_memory_is_given_back_after_every_task(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing of a picture is held any more but what its result has; where it failed, too."""
    done: list[str] = []
    measure, reference = compare.measure, compare.reference

    def measured(*arguments: Any) -> Taken:
        done.append("measured")
        taken = measure(*arguments)
        return replace(taken, row={"error": "It failed."}) if len(done) == 1 else taken

    def referred(*arguments: Any) -> Taken:
        done.append("measured")
        return reference(*arguments)

    monkeypatch.setattr(features, "load_extractor", lambda name, path: Means())
    monkeypatch.setattr(compare, "measure", measured)
    monkeypatch.setattr(compare, "reference", referred)
    monkeypatch.setattr(compare, "give_back", lambda: done.append("given back"))
    evaluate(data, setup(vaes[:2], features=("means",), distances=("kernel",)), tmp_path / "r", limit=2)
    assert done == ["measured", "given back"] * 6


@pytest.mark.slow
def test_too_few_pictures_are_refused_before_any_is_measured(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "load_extractor", lambda name, path: Means())
    encode, encoded = VAE.encode, []

    def counted(self: VAE, *arguments: Any, **options: Any) -> Any:
        encoded.append(1)
        return encode(self, *arguments, **options)

    monkeypatch.setattr(VAE, "encode", counted)
    with pytest.raises(UsageError, match="needs at least 5 pictures, not 4; give more, ask for ") as error:
        evaluate(data, setup(vaes[:1], features=("means",)), tmp_path / "r", limit=4)
    one_sentence(str(error.value))
    assert not encoded
    assert evaluate(data, setup(vaes[:1]), tmp_path / "r", limit=4)
    monkeypatch.setattr(session, "SHOWN", 0)
    found = evaluate(data, setup(vaes[:1], features=("means",)), tmp_path / "r")
    whole = evaluate(data, setup(vaes[:1], features=("means",)), tmp_path / "whole")
    assert found["vaes"][0]["distances"] == whole["vaes"][0]["distances"]
    assert found["vaes"][0]["distances"].keys() == {"fid_means", "kid_means"}
    encoded.clear()
    without = evaluate(data, setup(vaes[:1]), tmp_path / "r")
    assert not encoded
    assert without["vaes"][0]["distances"] == {}


def test_a_network_without_a_posterior_has_no_rate(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "taesd.safetensors"
    save_weights(tiny(), path, layout="ldm")
    found = evaluate(data, setup((str(path),)), tmp_path / "r", limit=1)
    assert found["vaes"][0]["rows"][0]["kl_bits_per_pixel"] is None


def test_a_picture_that_comes_back_unchanged_is_counted_apart(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = from_array(np.asarray(Image.open(data / "0.png")))
    decode = VAE.decode

    def perfect(self: VAE, latents: torch.Tensor, size: tuple[int, int] | None = None, **options: Any) -> torch.Tensor:
        return x[None].clone() if size == tuple(x.shape[1:]) else decode(self, latents, size, **options)

    monkeypatch.setattr(VAE, "decode", perfect)
    found = evaluate(data, setup(vaes[:1]), tmp_path / "r", limit=3)
    assert math.isinf(found["vaes"][0]["rows"][0]["psnr"])
    assert found["vaes"][0]["means"]["psnr"]["n"] == 2
    text = (tmp_path / "r" / "results.json").read_text()
    assert json.loads(text)["vaes"][0]["rows"][0]["psnr"] == "inf"
    assert "Infinity" not in text


def test_what_is_missing_is_said(
    data: Path, vaes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="there is no metric 'fid'; choose among psnr, "):
        setup(vaes, metrics=("fid",)).build(open_source(data))
    monkeypatch.setenv("CALOTYPE_LPIPS", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match=r"nowhere: there is no such file or folder; give the weights of LPIPS"):
        setup(vaes, metrics=("lpips_vgg",)).build(open_source(data))
    exact = replace(preset("whole"), name="mine", resize="exact", size=32)
    with pytest.raises(UsageError, match=r"0\.png is 40 x 33 pixels, and the protocol mine takes 32 x 32 only"):
        evaluate(data, setup(vaes[:1], protocol=exact), tmp_path / "r")


def test_a_slow_first_picture_of_two_is_no_speed() -> None:
    rows = [
        {"height": 10, "width": 100, "where": "cpu", "encode_seconds": seconds, "decode_seconds": 2 * seconds}
        for seconds in (9.0, 1.0)
    ]
    found = together._speed(rows, None)
    assert found["encode_seconds_per_megapixel"] == pytest.approx(1000.0)
    assert found["decode_seconds_per_megapixel"] == pytest.approx(2000.0)
    found = together._speed([*rows, {**rows[0], "encode_seconds": 2.0}], "cpu")
    assert found["encode_seconds_per_megapixel"] == pytest.approx(2000.0)
