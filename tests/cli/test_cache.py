"""`calotype cache` on the command line: what it says and what it ends with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from clikit import Calotype, draw, files
from support import one_sentence

pytest.importorskip("pyarrow")

MAKE = ("cache", "make", "data", "out", "--size", "16")


@pytest.fixture
def made(vae: Path, calotype: Calotype) -> tuple[object, ...]:
    """The words that made a cache in `out` of four pictures in `data`, one of them empty."""
    for i in range(3):
        draw(f"data/{i}.png", seed=i)
    Path("data/empty.png").touch()
    words = (*MAKE, "--vae", vae)
    ran = calotype(*words)
    assert (ran.code, ran.said) == (0, ["calotype: empty.png: it is empty: 0 bytes."])
    assert ran.out.startswith("out: 3 of 3 pictures are there, 3 made now")
    return words


def test_again_and_as_json(made: tuple[object, ...], calotype: Calotype) -> None:
    told = calotype(*made, "--json").json
    assert (told["held"], told["made"], told["wanted"], told["enlarged"]) == (3, 0, 3, 0)
    assert told["bad"] == [
        {"name": "empty.png", "key": told["bad"][0]["key"], "reason": "it is empty: 0 bytes.", "again": False}
    ]


def test_a_cluster_without_ray(vae: Path, calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    draw("data/0.png")
    ran = calotype(*MAKE, "--vae", vae, "--engine", "ray")
    assert ran.code == 2
    assert ran.said == ["calotype: --engine ray needs the package ray; pip install 'calotype[ray]'."]
    assert files() == ["data/0.png"]


def test_status(made: tuple[object, ...], vae: Path, calotype: Calotype) -> None:
    ran = calotype("cache", "status", "out")
    lines = {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in ran.out.splitlines()}
    assert lines["done"] == "3 of 4"
    assert lines["bad"] == "1"
    assert lines["buckets"] == "16x16: 3"
    assert lines["VAE"].startswith("small.safetensors, sha256 ")
    assert lines["latents"] == "moments, raw, float16; format small; encoded in float32"
    assert "bad: empty.png: it is empty: 0 bytes." in ran.out
    assert calotype("cache", "status", "out", "--json").json["done"] == 3


@pytest.mark.slow
def test_verify_names_the_unit_and_repair(
    made: tuple[object, ...], vae: Path, other_vae: Path, calotype: Calotype
) -> None:
    ran = calotype("cache", "verify", "out", "--data", "data", "--decode", "2", "--vae", vae)
    assert (ran.code, ran.said) == (0, [])
    assert ran.out.splitlines()[-1] == "out: 1 unit with 3 samples: all as it should be."
    assert "dB the VAE's own round trip" in ran.out
    ran = calotype("cache", "verify", "out", "--decode", "1", "--vae", other_vae)
    assert ran.code == 1
    assert "is not the VAE that made this cache" in ran.said[0]
    (shard,) = Path("out/shards/16x16").iterdir()
    shard.write_bytes(shard.read_bytes()[:-2] + b"xx")
    ran = calotype("cache", "verify", "out", "--json")
    assert ran.code == 1
    assert ran.json["broken"].keys() == {shard.stem}
    assert ran.said[0].startswith(f"calotype: unit {shard.stem}: ")
    assert "calotype cache repair out" in ran.said[0]
    one_sentence(ran.said[0])
    ran = calotype("cache", "repair", "out")
    assert ran.out.splitlines()[-1] == "out: 0 samples are there, 3 are missing."
    assert calotype(*made).out.startswith("out: 3 of 3 pictures are there, 3 made now")
    assert calotype("cache", "verify", "out").code == 0


@pytest.mark.parametrize("words", ["--decode 1 --vae nothing", "--decode 1 --vae {vae} --data nowhere"])
def test_verify_says_what_it_cannot_do_before_it_reads_all(
    words: str, made: tuple[object, ...], vae: Path, calotype: Calotype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calotype.cache.check.verify", lambda *args: pytest.fail("it was read"))
    ran = calotype("cache", "verify", "out", *words.format(vae=vae).split())
    assert ran.code == 2


def test_names_are_one_line_each(vae: Path, calotype: Calotype) -> None:
    draw("data/new\nline.png")
    calotype(*MAKE, "--vae", vae)
    ran = calotype("cache", "verify", "out", "--decode", "1", "--vae", vae)
    assert len(ran.out.splitlines()) == 2
    assert "new\\nline.png': " in ran.out


def test_stats_beside_the_vaes_own(made: tuple[object, ...], calotype: Calotype) -> None:
    ran = calotype("cache", "stats", "out")
    assert ran.out.startswith("3 pictures, raw latents (samples):\nchannel 0  mean")
    assert "scaling_factor " in ran.out
    assert "the VAE's own: format small (per_channel)" in ran.out


@pytest.mark.slow
def test_gc(made: tuple[object, ...], calotype: Calotype) -> None:
    Path("data/1.png").unlink()
    calotype(*made)
    ran = calotype("cache", "gc", "out")
    assert ran.out.startswith("out: removed 0 stray files and 1 row of 1 unit, ")
    Path("out/notes.txt").write_text("x")
    assert "what others have put there is not" in calotype("cache", "gc", "out", "--all").out
    assert files("out") == ["notes.txt"]
    Path("out/notes.txt").unlink()
    calotype(*made)
    assert calotype("cache", "gc", "out", "--all").out == "out: empty.\n"
    assert files("out") == []


@pytest.mark.parametrize(("words", "said"), [
    ("cache make data out", "Give either one size"),
    ("cache make data out --size 16 --buckets sdxl", "Give either one size"),
    ("cache make data out --size sixteen", "'sixteen' is no size"),
    ("cache make data out --size 12", "sides must be multiples of 8"),
    ("cache make data out --buckets sdx", "there is no such table"),
    ("cache make data out --size 16 --part 3/2", "--part 3/2"),
    ("cache make data out --size 16 --max-bad some", "--max-bad some"),
    ("cache make data out --size 16 --memory none", "'none' is no amount of memory"),
    ("cache make data out --size 16 --background no", "--background no"),
    ("cache make nothing out --size 16", "nothing: there is no such folder"),
    ("cache make data data --size 16", "can't be the folder of the pictures itself"),
    ("cache make data data/0.png --size 16", "OUT data/0.png"),
    ("cache make data /proc/out --size 16", "/proc/out"),
    ("cache status data", "there is no cache here"),
    ("cache verify data", "there is no cache here"),
    ("cache stats data", "there is no cache here"),
    ("cache repair data", "there is no cache here"),
    ("cache gc data", "there is no cache here"),
    ("cache gc data --all", "there is no cache here"),
])  # fmt: skip
def test_misuse_is_one_sentence_and_writes_nothing(words: str, said: str, vae: Path, calotype: Calotype) -> None:
    draw("data/0.png")
    more = ("--vae", vae) if "make" in words else ()
    ran = calotype(*words.split(), *more)
    assert ran.code in ((1, 2) if "/proc" in words else (2,))
    assert len(ran.said) == 1
    assert said in ran.said[0]
    one_sentence(ran.said[0])
    assert files() == ["data/0.png"]


@pytest.mark.parametrize("command", ["make", "status", "verify", "stats", "repair", "gc"])
def test_every_command_explains_itself(command: str, calotype: Calotype) -> None:
    ran = calotype("cache", command, "--help")
    assert ran.code == 0
    assert "OUT" in ran.out
    assert "Example: calotype cache" in ran.out


def test_another_vae_is_refused(made: tuple[object, ...], other_vae: Path, calotype: Calotype) -> None:
    ran = calotype(*MAKE, "--vae", other_vae)
    assert ran.code == 2
    assert ran.said[0].startswith("calotype: out: this cache was made with the VAE small.safetensors (")


def test_what_is_enlarged_is_counted(vae: Path, calotype: Calotype) -> None:
    draw("data/0.png", 8, 8)
    draw("data/1.png")
    assert "1 picture had to be enlarged" in calotype(*MAKE, "--vae", vae).said[0]
    ran = calotype("cache", "make", "data", "strict", "--size", "16", "--no-enlarge", "--vae", vae)
    assert "0.png: it has 8x8 pixels" in ran.said[0]


@pytest.mark.slow
def test_report(made: tuple[object, ...], vae: Path, calotype: Calotype) -> None:
    ran = calotype("cache", "report", "out", "--vae", vae, "--report", "page", "--samples", 2)
    assert (ran.code, ran.out) == (0, "page/index.html\n")
    text = Path("page/index.html").read_text("utf-8")
    assert text.count("<img") == 4
    assert "it is empty: 0 bytes." in text
    told = calotype("cache", "report", "out", "--samples", 0, "--report", "none", "--json").json
    assert told["notes"] == ["No VAE was given, so no samples are decoded."]
    for words in (("data",), ("out", "--data", "nowhere")):
        ran = calotype("cache", "report", *words, "--report", "other", "--vae", vae)
        assert ran.code == 2
        one_sentence(ran.said[0])
        assert not Path("other").exists()
