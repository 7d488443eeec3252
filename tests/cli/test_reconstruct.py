"""`calotype reconstruct`, as people use it and as they misuse it."""

from __future__ import annotations

import math
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from clikit import Calotype, draw, files, levels
from PIL import Image

LABELS = 24  # rows above the pictures of a panel


def huge_png() -> bytes:
    """A header that promises 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bad_pictures() -> dict[str, str]:
    """Files that are no pictures, with a word that the message must have."""
    draw("whole.png")
    Path("text.png").write_text("not a picture")
    Path("empty.png").touch()
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:200])
    Path("huge.png").write_bytes(huge_png())
    Path("folder.png").mkdir()
    return {
        "text.png": "text",
        "empty.png": "is empty",
        "cut.png": "cut off",
        "huge.png": "pixels",
        "folder.png": "is a folder",
        "missing.png": "does not exist",
    }


def test_a_photo_gives_a_reconstruction_and_a_panel(calotype: Calotype) -> None:
    draw("photo.png", 40, 24)
    ran = calotype("reconstruct", "photo.png", "--out", "seen/deep")
    assert (ran.code, ran.err) == (0, "")
    assert files("seen") == ["deep/photo-panel.png", "deep/photo-reconstruction.png"]
    assert "photo.png (40x24): PSNR " in ran.out
    assert "seen/deep/photo-panel.png" in ran.out
    with Image.open("seen/deep/photo-reconstruction.png") as image:
        assert (image.size, image.mode) == ((40, 24), "RGB")
    panel = levels("seen/deep/photo-panel.png")
    assert panel.shape == (24 + LABELS, 3 * 40, 3)
    before, after, difference = np.split(panel[LABELS:], 3, axis=1)
    assert np.array_equal(before, levels("photo.png"))
    assert np.array_equal(after, levels("seen/deep/photo-reconstruction.png"))
    assert np.abs(difference - np.clip(127.5 + 4 * (after - before), 0, 255)).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (13, 7), (50, 37), (8, 8), (4000, 1), (1, 4000)])
def test_sizes_stay(size: tuple[int, int], calotype: Calotype) -> None:
    draw("odd.png", *size)
    ran = calotype("reconstruct", "odd.png", "--out", "o", "--json")
    assert ran.code == 0
    result = ran.json["results"][0]
    assert (result["width"], result["height"]) == size
    assert (result["ssim"] is None) == (min(size) < 11)
    with Image.open(result["reconstruction"]) as image:
        assert image.size == size
    with Image.open(result["panel"]) as panel:
        assert panel.size == (3 * size[0], size[1] + LABELS)


def test_a_built_in_reconstruction_resembles_its_picture(calotype: Calotype) -> None:
    draw("photo.png", 64, 48)
    assert calotype("reconstruct", "photo.png", "--json").json["results"][0]["psnr"] > 20


def test_json_is_all_there_is_and_tells_the_truth(calotype: Calotype, vae: Path) -> None:
    draw("a.png", 40, 24)
    draw("b.jpg", 21, 30)
    ran = calotype("reconstruct", "a.png", "b.jpg", "--vae", vae, "--out", "o", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = ran.json
    assert (told["vae"], told["seed"], told["dtype"]) == (vae.name, None, "float32")
    assert len(told["vae_sha256"]) == 64
    assert [result["photo"] for result in told["results"]] == ["a.png", "b.jpg"]
    for result in told["results"]:
        error = np.mean((levels(result["photo"]) - levels(result["reconstruction"])) ** 2)
        assert result["psnr"] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-9)
        padded = -(-result["width"] // 8) * -(-result["height"] // 8) * 4
        assert result["numbers_per_pixel"] == pytest.approx(padded / (result["width"] * result["height"]))
        assert result["bits_per_pixel"] == pytest.approx(16 * result["numbers_per_pixel"])
        assert result["kl_bits_per_pixel"] >= 0


def test_several_photos_end_with_their_mean(calotype: Calotype, vae: Path) -> None:
    for name in ("a", "b"):
        draw(f"{name}.png", seed=ord(name))
    ran = calotype("reconstruct", "a.png", "b.png", "--vae", vae)
    scores = [float(line.split("PSNR ")[1].split()[0]) for line in ran.out.splitlines() if "): PSNR" in line]
    assert len(scores) == 2
    assert f"over {len(scores)} pictures" in ran.out.splitlines()[-1]
    mean = float(ran.out.splitlines()[-1].split("PSNR ")[1].split()[0])
    assert mean == pytest.approx(sum(scores) / 2, abs=0.011)


def test_bad_pictures_are_said_once_and_the_others_done(calotype: Calotype, vae: Path) -> None:
    bad = bad_pictures()
    draw("last.png")
    ran = calotype("reconstruct", "whole.png", *bad, "last.png", "--vae", vae, "--out", "o")
    assert ran.code == 1
    for (name, word), line in zip(bad.items(), ran.said[:-1], strict=True):
        assert line.startswith(f"calotype: {name} ")
        assert line.endswith(".")
        assert word in line
    assert ran.said[-1] == f"calotype: {len(bad)} of {len(bad) + 2} failed."
    assert files("o") == [f"{name}-{kind}.png" for name in ("last", "whole") for kind in ("panel", "reconstruction")]


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_a_single_bad_picture_is_one_line(json: tuple[str, ...], calotype: Calotype, vae: Path) -> None:
    ran = calotype("reconstruct", "missing.png", "--vae", vae, "--out", "o", *json)
    assert (ran.code, ran.said) == (1, ["calotype: missing.png does not exist; check the path."])
    assert (ran.json["results"] == []) if json else ran.out == ""
    assert files("o") == []


def test_json_stays_json_when_a_picture_fails(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    ran = calotype("reconstruct", "missing.png", "a.png", "--vae", vae, "--json")
    assert ran.code == 1
    assert [result["photo"] for result in ran.json["results"]] == ["a.png"]


def test_a_lossless_picture_has_a_psnr_of_null_in_json(
    calotype: Calotype, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calotype.evaluate.metrics.RowMetrics.psnr", lambda self: math.inf)
    draw("a.png")
    assert calotype("reconstruct", "a.png", "--vae", vae, "--json").json["results"][0]["psnr"] is None
    assert "PSNR inf dB" in calotype("reconstruct", "a.png", "--vae", vae).out


def test_alpha_is_kept_as_it_was(calotype: Calotype, vae: Path) -> None:
    draw("glass.png", 19, 14, mode="RGBA")
    ran = calotype("reconstruct", "glass.png", "--vae", vae, "--alpha", "keep", "--out", "o")
    assert ran.code == 0
    with Image.open("o/glass-reconstruction.png") as image:
        assert image.mode == "RGBA"
    assert np.array_equal(levels("o/glass-reconstruction.png")[..., 3], levels("glass.png")[..., 3])


def test_alpha_is_composited_with_a_notice(calotype: Calotype, vae: Path) -> None:
    glass = np.zeros((16, 24, 4), np.uint8)
    glass[:, 12:] = (10, 20, 30, 255)
    Image.fromarray(glass).save("glass.png")
    ran = calotype("reconstruct", "glass.png", "--vae", vae, "--background", "#00c800", "--out", "o", "--json")
    assert ran.code == 0
    assert len(ran.said) == 1
    assert ran.said[0].startswith("calotype: glass.png: Alpha was composited over the background (0, 200, 0)")
    assert ran.json["results"]
    original = levels("o/glass-panel.png")[LABELS:, :24]
    assert np.unique(original[:, :12], axis=(0)).reshape(-1, 3).tolist()[0] == [0, 200, 0]
    assert original[:, 12:].reshape(-1, 3).min(0).tolist() == [10, 20, 30]


def test_a_seed_repeats_and_differs_from_the_mode(calotype: Calotype, vae: Path) -> None:
    draw("a.png", 64, 48)
    seen = []
    for i, words in enumerate([(), ("--seed", 1), ("--seed", 1), ("--seed", 2)]):
        assert calotype("reconstruct", "a.png", "--vae", vae, "--out", f"o{i}", *words).code == 0
        seen.append(Path(f"o{i}/a-reconstruction.png").read_bytes())
    assert seen[1] == seen[2]
    assert len(set(seen)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_come_close(dtype: str, calotype: Calotype) -> None:
    draw("a.png", 24, 16)
    wide = calotype("reconstruct", "a.png", "--out", "wide", "--json").json
    narrow = calotype(
        "reconstruct", "a.png", "--out", "narrow", "--dtype", dtype, "--encode-dtype", dtype, "--json"
    ).json
    assert narrow["dtype"] == narrow["encode_dtype"] == dtype
    assert narrow["results"][0]["psnr"] == pytest.approx(wide["results"][0]["psnr"], abs=2.0)
    apart = np.abs(levels("wide/a-reconstruction.png") - levels("narrow/a-reconstruction.png"))
    assert 0 < apart.mean() < 3


def test_amplify_scales_the_difference(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    assert calotype("reconstruct", "a.png", "--vae", vae, "--amplify", 0).code == 0
    assert np.unique(levels("a-panel.png")[LABELS:, 80:]).tolist() == [128]


@pytest.mark.slow
def test_little_memory_gives_the_same(calotype: Calotype, vae: Path) -> None:
    draw("a.png", 500, 300)
    for memory in ("28MB", "1GB"):
        assert calotype("reconstruct", "a.png", "--vae", vae, "--memory", memory, "--out", memory).code == 0
    for kind in ("reconstruction", "panel"):
        few, many = (levels(f"{memory}/a-{kind}.png")[LABELS:] for memory in ("28MB", "1GB"))
        assert np.abs(few - many).max() <= 4  # the panel's differences are amplified by as much


def test_too_little_memory_leaves_nothing(calotype: Calotype, vae: Path) -> None:
    draw("a.png", 500, 300)
    ran = calotype("reconstruct", "a.png", "--vae", vae, "--memory", "10KB", "--out", "o")
    assert (ran.code, len(ran.said)) == (1, 1)
    assert "can't be done in 10" in ran.said[0]
    assert files("o") == []


# What makes no sense


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "toaster"], "There is no device 'toaster' here; `calotype doctor` lists those there are."),
        (
            ["--out", "o.safetensors"],
            "--out o.safetensors: a folder is wanted here, and this is a file's name; give o, say.",
        ),
        (
            ["--vae", "sdxl"],
            "'sdxl' is neither a file, nor a folder, nor a preset; did you mean sdxl-vae or sdxl-vae-fp16-fix",
        ),
        (["--vae", "sdxl-va"], "'sdxl-va' is neither a file, nor a folder, nor a preset; did you mean sdxl-vae?"),
        (["--background", "mud"], "--background mud: give a colour's name or #rrggbb."),
        (["--amplify", "nan"], "--amplify nan: give a number from 0 up."),
        (["--amplify", "-1"], "--amplify -1: give a number from 0 up."),
        (["--memory", "much"], "'much' is no amount of memory"),
        (["--out", "a.png"], "--out a.png: a.png is a file; give a folder."),
        (["--out", "a.png/below/it"], "--out a.png/below/it: a.png is a file; give a folder."),
        (["a.png"], "a.png is given twice; give it once."),
        (["other/a.jpg"], "a.png and other/a.jpg would both be written to o/a-reconstruction.png; run them one by one"),
    ],
)
def test_a_senseless_request_is_one_line_and_leaves_nothing(words: list[str], message: str, calotype: Calotype) -> None:
    draw("a.png")
    draw("other/a.jpg")
    words = words if "--out" in words else [*words, "--out", "o"]
    ran = calotype("reconstruct", "a.png", *words)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.said) == 1
    assert ran.said[0].startswith(f"calotype: {message}")
    assert ran.said[0].endswith((".", "?"))
    assert files() == ["a.png", "other/a.jpg"]
    assert not Path("o").exists()


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--seed", str(2**63)], ["--dtype", "int8"], ["--alpha", "lose"]])
def test_options_out_of_range_are_refused(words: list[str], calotype: Calotype) -> None:
    draw("a.png")
    ran = calotype("reconstruct", "a.png", *words)
    assert (ran.code, ran.out) == (2, "")
    assert f"Invalid value for '{words[0]}'" in ran.err
    assert files() == ["a.png"]


def test_an_input_is_never_overwritten(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    assert calotype("reconstruct", "a.png", "--vae", vae).code == 0
    before = {name: Path(name).read_bytes() for name in files()}
    ran = calotype("reconstruct", *sorted(before), "--vae", vae)  # what `*.png` names the second time
    assert (ran.code, ran.out) == (2, "")
    assert ran.said == ["calotype: a-reconstruction.png would be overwritten; give another --out."]
    assert {name: Path(name).read_bytes() for name in files()} == before
    shutil.copy("a.png", "link-target.png")
    Path("b-panel.png").symlink_to("link-target.png")
    draw("b.png")
    ran = calotype("reconstruct", "b.png", "b-panel.png", "--vae", vae)
    assert (ran.code, ran.said) == (2, ["calotype: b-panel.png would be overwritten; give another --out."])


def test_results_of_an_earlier_run_are_replaced(calotype: Calotype, vae: Path) -> None:
    draw("a.png")
    for _ in range(2):
        assert calotype("reconstruct", "a.png", "--vae", vae).code == 0
    assert files() == ["a-panel.png", "a-reconstruction.png", "a.png"]


@pytest.mark.parametrize("name", ["text.png", "empty.png", "missing.safetensors"])
def test_weights_that_are_no_vae_leave_nothing(name: str, calotype: Calotype) -> None:
    bad_pictures()
    before = files()
    ran = calotype("reconstruct", "whole.png", "--vae", name, "--out", "o")
    assert (ran.code, ran.out) == (1, "")
    assert len(ran.said) == 1
    assert ran.said[0].startswith(f"calotype: {name}: ")
    assert files() == before
    assert not Path("o").exists()


# Half-written files


def test_a_full_disk_leaves_whole_files_only(calotype: Calotype, vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        draw(f"{name}.png")
    sync, begun = os.fsync, []

    def fill_up(number: int) -> None:
        if len(begun) == 2:  # a's pictures
            raise OSError(28, "No space left on device")
        begun.append(number)
        sync(number)

    monkeypatch.setattr(os, "fsync", fill_up)
    ran = calotype("reconstruct", "a.png", "b.png", "c.png", "--vae", vae, "--out", "o")
    said = "No space left on device; make room, or give another place."
    assert ran.code == 1
    assert ran.said == [
        f"calotype: o/b-reconstruction.png can't be written: {said}",
        f"calotype: o/c-reconstruction.png can't be written: {said}",
        "calotype: 2 of 3 failed.",
    ]
    assert files("o") == ["a-panel.png", "a-reconstruction.png"]
