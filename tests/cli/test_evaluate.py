"""`calotype evaluate` and `calotype probe`, as people use them and as they misuse them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clikit import Calotype, draw
from PIL import Image
from report_example import example

from calotype.engine.memory import PLENTY
from calotype.vae import VAE

PLAIN = ("--metrics", "psnr,ssim", "--device", "cpu")


def pictures(count: int = 3, side: int = 48) -> None:
    Path("photos").mkdir()
    for i in range(count):
        draw(f"photos/{i}.png", side + 2 * i, side)


@pytest.mark.slow
def test_vaes_are_compared_and_the_page_is_written(calotype: Calotype, vae: Path, other_vae: Path) -> None:
    pictures()
    ran = calotype("evaluate", "photos", "--vae", vae, "--vae", other_vae, "--report", "report", *PLAIN)
    assert ran.code == 0, ran.err
    assert "whole: whole pictures, mode, float32, uint8 rounded half up" in ran.out
    assert "small" in ran.out
    assert ran.out.splitlines()[-1] == "report/index.html"
    assert sorted(path.name for path in Path("report").iterdir()) == [
        "index.html", "measured.sqlite", "results.csv", "results.json",
    ]  # fmt: skip
    again = calotype("evaluate", "photos", "--vae", vae, "--vae", other_vae, "--report", "report", *PLAIN, "--json")
    found = json.loads(again.out)
    assert [one["label"] for one in found["vaes"]] == ["small", "other"]
    assert found["vaes"][0]["rows"] == json.loads(Path("report/results.json").read_text())["vaes"][0]["rows"]


@pytest.mark.slow
def test_parts_are_measured_alone(calotype: Calotype, vae: Path) -> None:
    pictures()
    words = ("evaluate", "photos", "--vae", vae, "--report", "report", *PLAIN)
    for part in ("1/2", "2/2"):
        ran = calotype(*words, "--shard", part)
        assert ran.code == 0
        assert f"Part {part} is measured: " in ran.out
        assert "without --shard, which makes the report." in ran.out
    assert calotype(*words).code == 0


def test_a_part_as_json(calotype: Calotype, vae: Path) -> None:
    pictures()
    words = ("evaluate", "photos", "--vae", vae, "--report", "report", *PLAIN, "--shard", "1/2", "--json")
    ran = calotype(*words)
    assert (ran.code, ran.err.strip()) == (0, "")
    assert (ran.json["shard"], ran.json["pictures"], ran.json["file"]) == ("1/2", 2, "report/measured-1-of-2.sqlite")
    assert [(one["label"], one["rows"], one["measured"]) for one in ran.json["vaes"]] == [("small", 2, 2)]
    assert ran.json["next"].startswith("Run the same command with --shard 2/2, then without --shard")
    Path("photos/2.png").write_bytes(b"no picture")
    ran = calotype(*words)
    assert ran.code == 1
    assert [(one["vae"], one["picture"]) for one in ran.json["failures"]] == [(None, "2.png")]
    assert "2.png" in ran.said[-1]
    assert [(one["rows"], one["measured"]) for one in ran.json["vaes"]] == [(1, 0)]


def test_freed_memory_is_kept_but_under_a_limit(calotype: Calotype, vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr("calotype.engine.memory.keep_freed", lambda least: kept.append(least))
    pictures(1)
    words = ("evaluate", "photos", "--vae", vae, *PLAIN)
    assert calotype(*words, "--report", "limited", "--memory", "1GB").code == 0
    assert kept == []
    assert calotype(*words, "--report", "free").code == 0
    assert kept == [PLENTY]


def words_of(text: str) -> str:
    """What a table says, without its lines."""
    return " ".join("".join(" " if letter in "\u2502\u2503" else letter for letter in text).split())


@pytest.mark.slow
def test_the_table_says_what_figures_are_over(calotype: Calotype, vae: Path, other_vae: Path) -> None:
    pictures()
    draw("photos/3.png", 170, 165)
    Path("boxes.json").write_text(json.dumps({"faces": {"0.png": [[0, 0, 24, 24], [4, 4, 12, 12]]}}))
    words = ("evaluate", "photos", "--vae", vae, "--vae", other_vae, "--report", "report", "--device", "cpu")
    ran = calotype(*words, "--metrics", "ms_ssim,ssim,psnr,ssim", "--boxes", "boxes.json")
    assert ran.code == 0, ran.err
    found = json.loads(Path("report/results.json").read_text())
    whole, of_faces = ran.out.split("subset", 1)
    assert whole.index("PSNR") < whole.index("SSIM") < whole.index("MS-SSIM")
    for one in found["vaes"]:
        for part, means in ((whole, one["means"]), (of_faces, one["subsets"]["faces"])):
            assert f"[{means['psnr']['low']:.2f}, {means['psnr']['high']:.2f}]" in part
    assert whole.count("[") == 4  # none of a single picture
    assert (whole.count("n = 4"), whole.count("n = 1"), whole.count("smaller than 161 x 161 pixels")) == (4, 2, 2)
    assert (of_faces.count("n = 2"), of_faces.count("n = 1"), of_faces.count("2 smaller than 161 x 161")) == (2, 2, 2)
    assert of_faces.count("1 smaller than 11 x 11") == 2
    assert of_faces.count("faces") == 2


def test_the_best_is_that_of_the_page(
    calotype: Calotype, vae: Path, other_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has the better mean only because it failed on the worst picture; on the others it is worse."""
    base = [20.0, 25.0, 30.0, 35.0, 40.0, 28.0, 31.0]
    rows: list[list[dict[str, Any]]] = [
        [{"picture": i, "psnr": v - (k == 0) * (0.1 + 0.01 * i)} for i, v in enumerate(base)] for k in range(2)
    ]
    rows[0][0] = {"picture": 0, "error": "It failed."}
    results, _ = example(labels=("one", "two"), count=7)
    results |= {"engine": "local", "extractors": {}}
    results["metrics"] = [{**results["metrics"][0], "least": 1}]
    for one, of in zip(results["vaes"], rows, strict=True):
        values = [row["psnr"] for row in of if "psnr" in row]
        mean = sum(values) / len(values)
        one |= {"rows": of, "means": {"psnr": {"mean": mean, "low": 20.0, "high": 40.0, "n": len(values)}}}
        one |= {"distances": {}, "subsets": {}}
    means = [one["means"]["psnr"]["mean"] for one in results["vaes"]]
    assert means[0] > means[1]
    monkeypatch.setattr("calotype.evaluate.session.evaluate", lambda *arguments, **options: results)
    said = words_of(calotype("evaluate", "photos", "--report", "report").out)
    assert f"{means[1]:.2f} best" in said
    assert f"{means[0]:.2f} best" not in said
    assert "n = 6" in said
    assert "1 failed" in said
    assert "best: better than each other VAE on the same pictures" in said
    for i, row in enumerate(rows[1][1:], start=1):
        row["psnr"] = rows[0][i]["psnr"] + (-1) ** i
    said = words_of(calotype("evaluate", "photos", "--report", "report").out)
    assert said.count(" tied [20.00, 40.00]") == 2
    assert "best:" not in said


@pytest.mark.slow
@pytest.mark.filterwarnings("always::calotype.errors.CalotypeWarning")
def test_enlarged_pictures_are_warned_of(calotype: Calotype, vae: Path) -> None:
    pictures()
    words = ("evaluate", "photos", "--vae", vae, "--report", "report", *PLAIN, "--protocol", "stability-card", "--json")
    ran = calotype(*words)
    assert ran.code == 0, ran.err
    (said,) = filter(None, ran.said)
    assert said == f"calotype: {ran.json['warnings'][0]}"
    assert "The protocol stability-card enlarged 3 of 3 pictures, which have a side shorter than 256" in said
    assert all(one["enlarged"] for one in ran.json["pictures"])


def test_the_same_weights_twice(calotype: Calotype, vae: Path) -> None:
    pictures(1)
    Path("copy.safetensors").write_bytes(vae.read_bytes())
    words = ("evaluate", "photos", "--vae", vae, "--vae", "copy.safetensors", "--report", "report", *PLAIN)
    ran = calotype(*words)
    assert ran.code == 2
    (said,) = filter(None, ran.said)
    assert "copy.safetensors are the same weights (sha256 " in said


def test_protocols_are_listed(calotype: Calotype) -> None:
    ran = calotype("evaluate", "--protocols")
    assert ran.code == 0
    for name in ("stability-card", "lightningdit", "dc-ae", "llamagen"):
        assert name in ran.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nowhere",), 2, "there is no such folder"),
        (("empty",), 2, "there is no picture in it"),
        (("photos", "--metrics", "fid"), 2, "there is no metric 'fid'"),
        (("photos", "--protocol", "best"), 2, "there is no protocol 'best'"),
        (("photos", "--features", "clip"), 2, "clip"),
        (("photos", "--metrics", "psnr,,ssim"), 2, "--metrics 'psnr,,ssim' has an empty name in it"),
        (("photos", "--metrics", ""), 2, "--metrics '' has an empty name in it"),
        (("photos", "--features", "inception,"), 2, "--features 'inception,' has an empty name in it"),
        (("photos", "--vae", ""), 2, "--vae '' names nothing"),
        (("photos", "--shard", ""), 2, "give which of how many parts"),
        (("photos", "--shard", "3/2"), 2, "give which of how many parts"),
        (("photos", "--boxes", "no.json"), 2, "there is no such file"),
        (("photos", "--boxes", "empty"), 2, "empty: boxes can't be read there (Is a directory)"),
        (("photos", "--memory", "lots"), 2, "'lots' is no amount of memory"),
        (("photos", "--seed", "0"), 2, "--seed 0: the protocol whole decodes the mode and draws nothing"),
        (("photos", "--vae", "no.safetensors"), 1, "there is no such file or folder"),
    ],
)
def test_what_makes_no_sense_is_said(
    calotype: Calotype, vae: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    pictures(1)
    Path("empty").mkdir()
    given = words if "--vae" in words else (*words, "--vae", str(vae))
    given = given if "--metrics" in words else (*given, *PLAIN)
    ran = calotype("evaluate", *given, "--report", "report")
    assert ran.code == code, ran.err
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not Path("report").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("always::calotype.errors.CalotypeWarning")
def test_a_seed_is_of_protocols_that_draw(calotype: Calotype, vae: Path) -> None:
    pictures(1)
    words = ("evaluate", "photos", "--vae", vae, "--metrics", "psnr", "--protocol", "lightningdit", "--json")
    found = []
    for seed in ("3", "4"):
        ran = calotype(*words, "--seed", seed, "--report", seed)
        assert ran.code == 0, ran.err
        assert ran.json["protocol"]["seed"] == int(seed)
        found.append(ran.json["vaes"][0]["means"]["psnr"]["mean"])
    assert found[0] != found[1]


def test_one_picture_and_two_vaes(calotype: Calotype, vae: Path, other_vae: Path) -> None:
    pictures(1)
    ran = calotype("evaluate", "photos", "--vae", vae, "--vae", other_vae, "--report", "report", *PLAIN)
    assert ran.code == 0, ran.err
    assert "\n1 picture; whole: " in ran.out
    said = "No VAE is marked best: 1 picture may favour one by chance; give 6 or more"
    assert f"\n{said}\n" in ran.out
    assert f"{said}." in Path("report/index.html").read_text()


def full(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_no_report(
    calotype: Calotype, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(1, side=64)
    words = ("evaluate", "photos", "--vae", vae, "--report", "report", *PLAIN)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        ran = calotype(*words)
    said = "report/index.html can't be written: No space left on device; make room, or give another place; what was "
    assert (ran.code, ran.out) == (1, "")
    assert ran.said == [f"calotype: {said}measured is kept, so the same command goes on from there."]
    assert [path.name for path in Path("report").iterdir()] == ["measured.sqlite"]
    assert calotype(*words).code == 0
    monkeypatch.setattr(os, "fsync", full)
    ran = calotype("probe", vae, "photos", "--report", "probed", "--lpips", "none")
    said = "calotype: probed/index.html can't be written: No space left on device; make room, or give another place."
    assert (ran.code, ran.said) == (1, [said])
    assert not Path("probed").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_folder_that_can_not_be_made(calotype: Calotype, vae: Path) -> None:
    pictures(1)
    ran = calotype("evaluate", "photos", "--vae", vae, "--report", "/proc/nowhere", *PLAIN)
    assert ran.code == 1
    (said,) = ran.said
    assert said.startswith("calotype: /proc/nowhere: what was measured can't be kept there (")
    assert said.endswith("; give another --report.")


def test_an_empty_name_is_no_vae_to_probe(calotype: Calotype) -> None:
    ran = calotype("probe", " ")
    assert (ran.code, ran.said) == (
        2,
        ["calotype: VAE ' ' names nothing; give builtin, a preset, a file or a folder."],
    )


@pytest.mark.parametrize(("extractor", "least"), [("efficientnet-lite0", "1,281"), ("inception", "2,049")])
def test_too_few_pictures_are_refused_before_weights_are_looked_for(
    extractor: str, least: str, calotype: Calotype, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALOTYPE_INCEPTION", "nowhere.pth")
    pictures()
    ran = calotype("evaluate", "photos", "--vae", vae, "--report", "report", *PLAIN, "--features", extractor)
    assert ran.code == 2
    assert f"over {extractor} needs at least {least} pictures, not 3" in ran.err
    assert not Path("report").exists()


def test_of_many_failures_some_are_said(calotype: Calotype, vae: Path) -> None:
    pictures(1)
    for i in range(1, 24):
        Path(f"photos/{i}.png").write_bytes(b"no picture")
    words = ("evaluate", "photos", "--vae", vae, "--report", "report", *PLAIN)
    ran = calotype(*words)
    assert ran.code == 1
    assert sum("no picture" in line for line in ran.said) == 20, ran.said
    assert ran.said[-1] == "calotype: 3 more pictures failed; report/results.csv lists all."
    assert Path("report/results.csv").read_text("utf-8").count("no picture") == 23
    part = calotype(*words, "--shard", "1/1", "--json")
    assert part.said[-1] == "calotype: 3 more pictures failed; --json lists all."
    assert len(part.json["failures"]) == 23


@pytest.mark.slow
def test_each_vae_gets_its_share_of_what_is_said(
    calotype: Calotype, vae: Path, other_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(14)
    first = VAE.encode
    calls: list[int] = []

    def failing(self: VAE, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) % 2 or len(calls) == 4:  # all of the first VAE's, and one of the second's
            raise RuntimeError("no room")
        return first(self, *arguments, **options)

    monkeypatch.setattr(VAE, "encode", failing)
    ran = calotype("evaluate", "photos", "--vae", vae, "--vae", other_vae, "--report", "report", *PLAIN)
    assert ran.code == 1
    assert sum(line.startswith("calotype: small: ") for line in ran.said) == 11
    assert "calotype: small: 4 more pictures failed; report/results.csv lists all." in ran.said
    assert ran.said[-1] == "calotype: other: 1.png: It failed with RuntimeError: no room."


@pytest.mark.slow
def test_the_kernel_distance_alone_over_weights_of_ones_own(calotype: Calotype, vae: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained("dino")
    pictures()
    words = ("evaluate", "photos", "--vae", vae, "--report", "report", *PLAIN, "--features", "dinov2=dino")
    ran = calotype(*words)
    assert ran.code == 2
    assert "needs at least 9 pictures, not 3; give more, ask for the kernel distance alone (--distances" in ran.err
    ran = calotype(*words, "--distances", "kernel")
    assert ran.code == 0, ran.err
    assert "kid_dinov2" in ran.out
    assert "fid_dinov2" not in ran.out
    assert "; engine local; 95% intervals by bootstrap over pictures" in ran.out
    assert "dinov2: dino; 224 x 224 whatever the ratio, bicubic" in ran.out
    for wrong, message in (("fid", "there is no distance 'fid'"), ("kernel,", "has an empty name in it")):
        ran = calotype(*words, "--distances", wrong)
        assert (ran.code, len(ran.said)) == (2, 1)
        assert message in ran.said[0]


def test_a_picture_that_can_not_be_read_is_a_failure(calotype: Calotype, vae: Path, other_vae: Path) -> None:
    pictures()
    Path("photos/1.png").write_bytes(b"no picture")
    ran = calotype("evaluate", "photos", "--vae", vae, "--vae", other_vae, "--report", "report", *PLAIN)
    assert ran.code == 1
    (said,) = filter(None, ran.said)
    assert "1.png" in said
    assert "report/index.html" in ran.out


def test_json_has_no_infinity(calotype: Calotype, vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(1)
    monkeypatch.setattr("calotype.evaluate.measure.psnr", lambda before, after: float("inf"))
    ran = calotype("evaluate", "photos", "--vae", vae, "--report", "report", *PLAIN, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["vaes"][0]["rows"][0]["psnr"] == "inf"


def test_stopped_it_says_how_to_go_on(calotype: Calotype, vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    pictures(1)
    monkeypatch.setattr("calotype.evaluate.compare.measure", stopped)
    ran = calotype("evaluate", "photos", "--vae", vae, "--report", "report", *PLAIN)
    assert (ran.code, ran.said[-1]) == (130, "calotype: Stopped; the same command goes on where it was.")


@pytest.mark.parametrize("words", [("evaluate", "photos"), ("probe", "builtin")])
def test_a_report_that_is_a_file(calotype: Calotype, words: tuple[str, ...]) -> None:
    Path("taken").write_text("")
    ran = calotype(*words, "--report", "taken")
    assert (ran.code, ran.said) == (2, ["calotype: --report taken: taken is a file; give a folder."])


@pytest.mark.slow
def test_a_vae_is_probed(calotype: Calotype, vae: Path) -> None:
    pictures(2, side=64)
    Path("labels.json").write_text(json.dumps({"0.png": "a", "1.png": "b"}))
    ran = calotype("probe", vae, "photos", "--report", "report", "--lpips", "none", "--labels", "labels.json")
    assert ran.code == 0, ran.err
    assert "lpips was left out: no weights of LPIPS were given." in ran.out
    found = json.loads(Path("report/probe.json").read_text())
    digests = {}  # of the middle of each, which has 64 pixels a side: the pictures' order
    for name in ("0.png", "1.png"):
        array = np.asarray(Image.open(Path("photos") / name))
        left = (array.shape[1] - 64) // 2
        middle = np.ascontiguousarray(array[:, left : left + 64].transpose(2, 0, 1))
        digests[hashlib.sha256(middle.tobytes()).hexdigest()] = name
    assert found["pictures"] == [digests[key] for key in sorted(digests)]
    assert {"channels", "kl", "drift"} <= {finding["key"] for finding in found["findings"]}
    assert "</html>" in Path("report/index.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "there is no such folder"),
        (("photos", "--labels", "no.json"), "there is no such file"),
        (("photos", "--labels", "bad.json"), "labels must be JSON"),
        (("photos", "--labels", "others.json"), "none of the pictures has a label there"),
    ],
)
def test_a_probe_says_what_is_wrong(calotype: Calotype, vae: Path, words: tuple[str, ...], message: str) -> None:
    pictures(2)
    Path("bad.json").write_text("[1]")
    Path("others.json").write_text('{"x.png": "a"}')
    ran = calotype("probe", vae, *words, "--report", "report", "--lpips", "none")
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not Path("report/probe.json").exists()
