"""Several decoders of one VAE's latents: what is measured, kept, shown and refused, with small random networks."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluatekit import METRICS, setup, sheet
from familykit import PACKED
from PIL import Image
from safetensors.torch import save_file
from support import SMALL, kl, one_sentence, tensors_of, tiny
from torch.nn.functional import avg_pool2d
from wankit import theirs

from calotype.errors import CalotypeError, UsageError, WeightsError
from calotype.evaluate import measure as measuring
from calotype.evaluate.alpha import apart
from calotype.evaluate.decoders import half_sha256, rows_key
from calotype.evaluate.measure import averaged
from calotype.evaluate.metrics import psnr
from calotype.evaluate.protocol import Protocol
from calotype.evaluate.session import evaluate
from calotype.evaluate.setup import labels
from calotype.evaluate.store import Store
from calotype.evaluate.tone import TONE, tone
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.latents import KNOWN, LatentFormat, ScaleShift, same_as_model
from calotype.pixels import from_array, to_uint8
from calotype.sources import open_source
from calotype.vae import VAE, load, picture_generator
from calotype.weights.save import save_weights

F8 = AutoencoderConfig(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
ALL = (*METRICS, *TONE)


def save(folder: Path, name: str, seed: int, format_: LatentFormat | None, *, small: bool = False) -> str:
    module = tiny(TinyConfig(), seed) if small else kl(F8, seed)
    (path,) = save_weights(module, folder / f"{name}.safetensors", layout="ldm", format_=format_)
    return str(path)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A VAE of SD1's space, another decoder of it, a TAESD, one of SDXL's, and one of whom nothing tells it."""
    folder = tmp_path_factory.mktemp("sd")
    found = {
        "a": save(folder, "a", 0, KNOWN["sd1"]),
        "b": save(folder, "b", 1, KNOWN["sd1"]),
        "taesd": save(folder, "taesd", 2, same_as_model("sd1", 4), small=True),
        "sdxl": save(folder, "sdxl", 3, KNOWN["sdxl"]),
        "unknown": save(folder, "unknown", 4, None),
    }
    for side, prefixes in (("encoder", ("encoder.", "quant_conv.")), ("decoder", ("decoder.", "post_quant_conv."))):
        path = folder / f"b-{side}.safetensors"
        tensors = {k: v for k, v in tensors_of(kl(F8, 1)).items() if k.startswith(prefixes)}
        metadata = {
            "calotype_config": json.dumps(F8.to_dict()),
            "calotype_latent_format": json.dumps(KNOWN["sd1"].to_dict()),
        }
        save_file(tensors, path, metadata)
        found[side] = str(path)
    return found


def through(sd: dict[str, str], *decoders: str, vae: str = "a", **values: Any) -> Any:
    values = {"metrics": ALL, **values}
    return setup((sd[vae],), decoders=tuple(sd[one] for one in decoders), **values)


def by_hand(encoder: VAE, decoder: VAE, path: Path, seed: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels of a picture, and of what the decoder makes of the encoder's latents."""
    x = from_array(np.asarray(Image.open(path).convert("RGB")))
    posterior = encoder.encode(x[None])
    z = posterior.mode()
    if seed is not None:
        padded = torch.nn.functional.pad(
            x[None], (0, -x.shape[2] % encoder.factor, 0, -x.shape[1] % encoder.factor), mode="reflect"
        )[0]
        z = posterior.sample([picture_generator(seed, padded)])
    z = decoder.latent_format.to_raw(encoder.latent_format.to_model(z))
    n = decoder.enlarges
    y = decoder.decode(z, (n * x.shape[1], n * x.shape[2]))[0]
    return to_uint8(x), to_uint8(y if n == 1 else avg_pool2d(y, n))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 7])
def test_figures_are_those_of_the_same_latents(
    seed: int | None, sd: dict[str, str], data: Path, tmp_path: Path
) -> None:
    protocol = Protocol() if seed is None else Protocol(name="drawn", latent="sample", seed=seed)
    found = evaluate(data, through(sd, "b", "taesd", protocol=protocol), tmp_path / "r")
    assert [one["label"] for one in found["vaes"]] == ["a", "b", "taesd"]
    assert found["encoder"] == {
        "label": "a", "weights": "a.safetensors", "sha256": load(sd["a"], device="cpu").sha256, "space": "sd1",
    }  # fmt: skip
    encoder = load(sd["a"], device="cpu")
    for one, name in zip(found["vaes"], ("a", "b", "taesd"), strict=True):
        decoder = load(sd[name], device="cpu")
        for row in one["rows"]:
            before, after = by_hand(encoder, decoder, data / f"{row['picture']}.png", seed)
            assert row["psnr"] == pytest.approx(psnr(before, after), abs=2e-3)
            for key, value in vars(tone(before, after)).items():
                assert row[key] == pytest.approx(value, abs=2e-3)
        mean = one["means"]["bias_green"]
        assert mean["mean"] == pytest.approx(sum(row["bias_green"] for row in one["rows"]) / 6)
        assert one["latents"] == found["vaes"][0]["latents"]  # of the same encoder
    assert found["protocol"]["text"].startswith("latents of a through 3 decoders, ")
    assert {m["key"]: (m["better"], m.get("ideal")) for m in found["metrics"]} == {
        "psnr": ("higher", None), "ssim": ("higher", None), "contrast": ("nearest", 1.0), "gradient": ("nearest", 1.0),
        **{f"bias_{name}": ("nearest", 0.0) for name in ("red", "green", "blue")},
    }  # fmt: skip


@pytest.mark.slow
def test_of_a_decoder_only_its_half_counts(sd: dict[str, str], data: Path, tmp_path: Path) -> None:
    found = evaluate(data, through(sd, "b"), tmp_path / "r", limit=2)
    own, other = found["vaes"]
    vae = load(sd["b"], device="cpu")
    half = sum(p.numel() for key, p in vae.module.named_parameters() if key.startswith(("decoder.", "post_quant")))
    assert other["parameters"] == half < own["parameters"]
    assert other["memory"]["weights_bytes"] == 4 * half
    assert "encode_seconds_per_megapixel" in own["speed"]
    assert set(other["speed"]) == {"device", "n", "decode_seconds_per_megapixel"}


@pytest.mark.slow
def test_a_picture_is_encoded_once(
    sd: dict[str, str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count: Counter[str] = Counter()
    encode = measuring.encode

    def counted(vae: VAE, *words: Any) -> Any:
        count[vae.name] += 1
        return encode(vae, *words)

    monkeypatch.setattr(measuring, "encode", counted)
    evaluate(data, through(sd, "b", "taesd"), tmp_path / "r")
    assert count == {"a.safetensors": 6}


@pytest.mark.slow
def test_decoders_are_added_to_what_there_is(
    sd: dict[str, str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own decoder's rows are those of an evaluation without others; a decoder alone is that of the whole VAE."""
    alone = evaluate(data, setup((sd["a"],), metrics=ALL), tmp_path / "r")
    decode = measuring.decoded
    seen: Counter[str] = Counter()

    def counted(vae: VAE, *words: Any) -> Any:
        seen[vae.name] += 1
        return decode(vae, *words)

    monkeypatch.setattr(measuring, "decoded", counted)
    first = evaluate(data, through(sd, "b"), tmp_path / "r")
    assert seen == {"b.safetensors": 6}
    assert first["vaes"][0]["rows"] == alone["vaes"][0]["rows"]
    seen.clear()
    second = evaluate(data, through(sd, "decoder", "taesd"), tmp_path / "r")
    assert seen == {"taesd.safetensors": 6}
    assert [one["label"] for one in second["vaes"]] == ["a", "b-decoder", "taesd"]
    assert second["vaes"][1]["rows"] == first["vaes"][1]["rows"]
    # another encoder's latents are others
    seen.clear()
    with pytest.warns(match="decodes latents of the space 'sd1', and sdxl.safetensors makes those of 'sdxl'"):
        evaluate(data, through(sd, "b", vae="sdxl", any_vae=True), tmp_path / "r")
    assert seen["b.safetensors"] == 6


def test_a_key_is_of_both_halves_and_of_what_latents_pass_through(sd: dict[str, str]) -> None:
    a, b, xl, half = (load(sd[name], device="cpu") for name in ("a", "b", "sdxl", "decoder"))
    assert rows_key(a, a) == a.sha256
    assert rows_key(a, b) == rows_key(a, half)
    assert half_sha256(b) == half_sha256(half) != half_sha256(a)
    assert len({rows_key(a, b), rows_key(xl, b), rows_key(b, a), rows_key(a, xl)}) == 4
    other = load(sd["b"], device="cpu", latent_format="sdxl")
    assert rows_key(a, other) != rows_key(a, b)


@pytest.mark.slow
def test_parts_are_joined(sd: dict[str, str], data: Path, tmp_path: Path) -> None:
    asked = through(sd, "b")
    parts = [evaluate(data, asked, tmp_path / "r", part=f"{i}/2") for i in (1, 2)]
    assert [one["label"] for one in parts[0]["vaes"]] == ["a", "b"]
    assert [one["measured"] for one in parts[1]["vaes"]] == [3, 3]
    whole = evaluate(data, asked, tmp_path / "r")
    again = evaluate(data, asked, tmp_path / "one")
    drop = ("where",)
    for x, y in zip(whole["vaes"], again["vaes"], strict=True):
        assert [{k: v for k, v in row.items() if k not in drop} for row in x["rows"]] == [
            {k: v for k, v in row.items() if k not in drop} for row in y["rows"]
        ]


@pytest.mark.slow
def test_a_decoder_that_fails_is_listed_and_the_others_go_on(
    sd: dict[str, str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = measuring.decoded

    def failing(vae: VAE, original: Any, *words: Any) -> Any:
        if vae.name == "b.safetensors" and original.pixels.shape[2] == 44:
            raise RuntimeError("no kernel")
        return decode(vae, original, *words)

    monkeypatch.setattr(measuring, "decoded", failing)
    found = evaluate(data, through(sd, "b", "taesd"), tmp_path / "r")
    assert ["error" in row for row in found["vaes"][1]["rows"]] == [False, False, True, False, False, False]
    assert all("psnr" in row for i in (0, 2) for row in found["vaes"][i]["rows"])


# --- what enlarges ---


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("wan")
    for seed, variant in enumerate(("wan-2.1", "qwen-image", "wan-2.1-larger", "qwen-image-layered", "wan-2.2")):
        theirs(variant, seed).save_pretrained(root / variant)
    return {path.name: str(path) for path in root.iterdir()}


@pytest.mark.slow
def test_what_is_larger_is_averaged_and_that_is_said(wan: dict[str, str], data: Path, tmp_path: Path) -> None:
    asked = through(wan, "wan-2.1", "wan-2.1-larger", vae="qwen-image")
    with pytest.warns(
        match=r"wan-2\.1-larger makes pictures 2 times as large .* each 2 x 2 of their pixels were averaged"
    ):
        found = evaluate(data, asked, tmp_path / "r", limit=3)
    assert any("averaged" in text for text in found["warnings"])
    assert [one.get("enlarges") for one in found["vaes"]] == [None, None, 2]
    encoder, decoder = (load(wan[name], device="cpu") for name in ("qwen-image", "wan-2.1-larger"))
    for row in found["vaes"][2]["rows"]:
        before, after = by_hand(encoder, decoder, data / f"{row['picture']}.png")
        assert row["psnr"] == pytest.approx(psnr(before, after), abs=2e-3)
    assert found["vaes"][2]["memory"]["planned_peak_bytes"] > found["vaes"][1]["memory"]["planned_peak_bytes"]
    assert "2 times as large" in (tmp_path / "r" / "index.html").read_text()


def test_averages_of_rgba_are_of_what_can_be_seen() -> None:
    pixels = torch.tensor([[1.0, -1.0], [1.0, -1.0]]).expand(3, 2, 2)
    opaque = torch.cat([pixels, torch.ones(1, 2, 2)])
    assert torch.allclose(averaged(opaque, 2).flatten(), torch.tensor([0.0, 0.0, 0.0, 1.0]))
    half = torch.cat([pixels, torch.tensor([[[1.0, -1.0], [1.0, -1.0]]])])  # only the white ones are opaque
    assert torch.allclose(averaged(half, 2).flatten(), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    nothing = torch.cat([pixels, -torch.ones(1, 2, 2)])
    assert torch.allclose(averaged(nothing, 2).flatten(), torch.tensor([0.0, 0.0, 0.0, -1.0]))


# --- channels ---


def transparent(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(count):
        small = Image.fromarray(rng.integers(60, 256, (5, 6, 4), dtype=np.uint8))  # something is seen everywhere
        small.resize((24 + 4 * i, 20), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
def test_alpha_has_an_error_of_its_own(wan: dict[str, str], tmp_path: Path) -> None:
    """Two decoders of RGBA, and beside them one of RGB, where all are compared over white."""
    theirs("qwen-image-layered", 9).save_pretrained(tmp_path / "other")
    vaes = {**wan, "other": str(tmp_path / "other")}
    pictures = transparent(tmp_path / "pictures")
    asked = through(vaes, "other", vae="qwen-image-layered", metrics=(*METRICS, "alpha_mae", *TONE))
    found = evaluate(pictures, asked, tmp_path / "r")
    assert found["channels"] == 4
    encoder, decoder = (load(vaes[name], device="cpu") for name in ("qwen-image-layered", "other"))
    for row in found["vaes"][1]["rows"]:
        x = from_array(np.asarray(Image.open(pictures / f"{row['picture']}.png")))
        z = encoder.encode(x[None]).mode()
        y = to_uint8(decoder.decode(z, (x.shape[1], x.shape[2]))[0])
        assert row["alpha_mae"] == pytest.approx(apart(to_uint8(x), y).alpha_mae, abs=2e-3)
        weight = to_uint8(x)[3].double()
        bias = ((y[0].double() - to_uint8(x)[0].double()) * weight).sum() / weight.sum()
        assert row["bias_red"] == pytest.approx(float(bias), abs=2e-3)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = evaluate(pictures, through(vaes, "wan-2.1", vae="qwen-image-layered"), tmp_path / "mixed")
    assert found["channels"] == 3
    assert all("error" not in row for one in found["vaes"] for row in one["rows"])


@pytest.mark.slow
def test_packed_latents_of_odd_sides(data: Path, tmp_path: Path) -> None:
    """FLUX.2's model latents pack 2x2, and a picture may have an odd number of raw ones."""
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_weights(kl(SMALL, 0), a, layout="ldm", format_=PACKED)
    save_weights(kl(SMALL, 1), b, layout="ldm", format_=same_as_model("flux2", 4))
    found = evaluate(data, setup((str(a),), decoders=(str(b),)), tmp_path / "r")
    assert all("error" not in row for one in found["vaes"] for row in one["rows"])


# --- what is written ---


@pytest.mark.slow
def test_the_files(sd: dict[str, str], data: Path, tmp_path: Path) -> None:
    found = evaluate(data, through(sd, "b", "taesd", metrics=ALL), tmp_path / "r")
    rows = sheet(tmp_path / "r")
    assert {row["vae"] for row in rows} == {"a", "b", "taesd"}
    assert float(rows[1]["bias_green"]) == found["vaes"][1]["means"]["bias_green"]["mean"]
    assert "contrast_low" in rows[0]
    page = (tmp_path / "r" / "index.html").read_text()
    assert "Latents of a decoded by a, b and taesd on 6 pictures" in page
    for words in ("Colours, contrast, gradients", "Bias of green", "0 is best", "1 is best", ">Decoder<"):
        assert words in page
    assert "KL rate" not in page  # the encoder's, of which all have the same
    assert json.loads((tmp_path / "r" / "results.json").read_text())["encoder"]["space"] == "sd1"


@pytest.mark.slow
def test_without_decoders_nothing_changes(sd: dict[str, str], data: Path, tmp_path: Path) -> None:
    asked = setup((sd["a"],), metrics=None).build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calotype.evaluate.setup.load_lpips", lambda name: torch.nn.Linear(1, 1))
        pictures = open_source(data.name, data.parent)
        plain = asked(pictures)
        assert not set(plain.metrics) & set(TONE)
        many = through(sd, "b", metrics=None).build(pictures)
        assert set(many.metrics) > set(TONE)
    found = evaluate(data, setup((sd["a"],)), tmp_path / "r")
    assert "encoder" not in found
    page = (tmp_path / "r" / "index.html").read_text()
    assert "Colours, contrast" not in page and "KL rate" in page


def test_a_picture_of_one_colour_has_no_contrast(sd: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    Image.new("RGB", (24, 16), (9, 90, 200)).save(tmp_path / "p" / "a.png")
    found = evaluate(tmp_path / "p", through(sd, "b"), tmp_path / "r")
    row = found["vaes"][1]["rows"][0]
    assert "contrast" not in row
    assert math.isfinite(row["bias_blue"])
    assert "contrast" not in found["vaes"][1]["means"]
    assert "of one colour" in (tmp_path / "r" / "index.html").read_text()


# --- bad input ---


def refused(kind: type[CalotypeError], words: str, asked: Any, data: Path, tmp_path: Path) -> None:
    with pytest.raises(kind, match=words) as error:
        evaluate(data, asked, tmp_path / "r")
    one_sentence(str(error.value))
    assert not (tmp_path / "r").exists()


CASES: dict[str, tuple[type[CalotypeError], str, tuple[str, ...], dict[str, Any]]] = {
    "another space": (
        UsageError,
        r"^--decoder: .*sdxl\.safetensors decodes latents of the space 'sdxl', and a\.safetensors makes those of "
        r"'sd1'; "
        r"give decoders of that space \(sd-vae-ft-mse, .*\), or compare it all the same with --any-vae\.$",
        ("sdxl",),
        {},
    ),
    "an unknown space": (UsageError, "nothing tells that .*unknown.safetensors decodes the latents", ("unknown",), {}),
    "of an unknown one": (UsageError, "nothing tells that .*b.safetensors decodes the latents of unknown",
                          ("b",), {"vae": "unknown"}),
    "an encoder alone as a decoder": (WeightsError, "b-encoder.* holds only the encoder", ("encoder",), {}),
    "an encoder alone": (WeightsError, "b-encoder.* holds only the encoder", ("a",), {"vae": "encoder"}),
    "a decoder alone": (WeightsError, "b-decoder.* holds only the decoder", ("a",), {"vae": "decoder"}),
    "twice": (UsageError, r"^--decoder .*b\.safetensors is given twice; give each once\.$", ("b", "b"), {}),
    "its own": (UsageError, "is given as --vae, whose own decoder is compared too; give each once", ("a",), {}),
    "the same decoder": (UsageError, r"--decoder .*b.safetensors and --decoder .*b-decoder.* have the same decoder",
                         ("b", "decoder"), {}),
    "no decoder of that name": (UsageError, "'nonsense' is neither a file", ("nonsense",), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_can_not_be_compared_is_refused(case: str, sd: dict[str, str], data: Path, tmp_path: Path) -> None:
    kind, words, decoders, values = CASES[case]
    refused(kind, words, through({**sd, "nonsense": "nonsense"}, *decoders, **values), data, tmp_path)


@pytest.mark.slow
def test_other_channels_and_factors(wan: dict[str, str], sd: dict[str, str], data: Path, tmp_path: Path) -> None:
    both = {**wan, **sd}
    for any_vae in (False, True):
        words = r"decodes latents of the space 'wan2\.2' of 48 channels at f8, and wan-2\.1 makes latents of the space"
        refused(UsageError, words, through(both, "wan-2.2", vae="wan-2.1", any_vae=any_vae), data, tmp_path)
        refused(UsageError, "4 channels at f8", through(both, "a", vae="wan-2.1", any_vae=any_vae), data, tmp_path)


def test_several_vaes_and_an_enlarging_one(wan: dict[str, str], sd: dict[str, str], data: Path, tmp_path: Path) -> None:
    asked = setup((sd["a"], sd["sdxl"]), decoders=(sd["b"],))
    refused(UsageError, "decodes the latents of one VAE, and --vae names 2; give one", asked, data, tmp_path)
    asked = through(wan, "wan-2.1", vae="wan-2.1-larger")
    refused(UsageError, "An evaluation needs pictures that come out as large", asked, data, tmp_path)


@pytest.mark.slow
def test_others_are_compared_all_the_same_and_that_is_said(sd: dict[str, str], data: Path, tmp_path: Path) -> None:
    with pytest.warns(match="Nothing tells that"):
        found = evaluate(data, through(sd, "unknown", any_vae=True), tmp_path / "r")
    assert [text for text in found["warnings"] if text.startswith("Nothing tells that")]
    encoder, decoder = (load(sd[name], device="cpu") for name in ("a", "unknown"))
    x = from_array(np.asarray(Image.open(data / "0.png")))
    y = decoder.decode(encoder.encode(x[None]).mode(), (x.shape[1], x.shape[2]))[0]
    assert found["vaes"][1]["rows"][0]["psnr"] == pytest.approx(psnr(to_uint8(x), to_uint8(y)), abs=2e-3)


def test_labels_of_decoders() -> None:
    assert labels(("x/a.safetensors",), ("y/a.safetensors", "z/b.ckpt")) == {
        "x/a.safetensors": "x/a.safetensors", "y/a.safetensors": "y/a.safetensors", "b": "z/b.ckpt",
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"^--decoder ' ' names nothing"):
        labels(("a",), (" ",))


@pytest.mark.slow
def test_rows_of_other_versions_of_a_decoder_are_none_of_it(sd: dict[str, str], data: Path, tmp_path: Path) -> None:
    """The store holds each under a key of its own."""
    asked = through(sd, "b", "taesd")
    evaluate(data, asked, tmp_path / "r")
    evaluation = asked.build(open_source(data.name, data.parent))
    store = Store(tmp_path / "r", evaluation.settings())
    try:
        assert len(set(evaluation.keys.values())) == 3
        assert all(len(store.rows(key)) == 6 for key in evaluation.keys.values())
        assert not store.rows(load(sd["b"], device="cpu").sha256)
    finally:
        store.close()


def test_scaled_latents(data: Path, tmp_path: Path) -> None:
    """Formats of one space that scale otherwise: the decoder gets what it was trained on."""
    one = save(tmp_path, "one", 0, ScaleShift(name="mine", channels=4, scaling_factor=0.25, shift_factor=0.5))
    other = save(tmp_path, "other", 1, same_as_model("mine", 4))
    found = evaluate(data, setup((one,), decoders=(other,)), tmp_path / "r", limit=1)
    before, after = by_hand(load(one, device="cpu"), load(other, device="cpu"), data / "0.png")
    assert found["vaes"][1]["rows"][0]["psnr"] == pytest.approx(psnr(before, after), abs=2e-3)
