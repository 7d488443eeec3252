"""What is printed where: encodings that lack characters, streams that are closed or full, readers that are gone."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from clikit import draw

from calotype.cli.main import main

STRANGE = os.fsdecode("aä🍎\N{RIGHT-TO-LEFT OVERRIDE}".encode() + b"\xff")  # bytes that are no text
ENCODINGS = ["ascii", "cp1252", "latin-1", "cp437", "utf-16", "utf-8"]
posix_only = pytest.mark.skipif(os.name != "posix", reason="streams are closed and filled by the shell")


@dataclass(frozen=True)
class Printed:
    """What a command left behind, in the bytes that a terminal gets."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Printed]:
    """Runs the command line in this process, with streams of an encoding."""

    def ran(encoding: str, *words: str) -> Printed:
        with monkeypatch.context() as patch:
            streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
            patch.setattr(sys, "argv", ["calotype", *words])
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            with pytest.raises(SystemExit) as stopped:
                main()
            out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
        code = stopped.value.code
        assert code is None or isinstance(code, int)
        return Printed(code or 0, out, err)

    return ran


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`$C` is the command."""
    command = f'C="{sys.executable} -m calotype"; {line}'
    ran = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, env={**os.environ, **env}
    )
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr
    return ran


@pytest.fixture
def strange(here: Path) -> str:
    """A picture whose name no encoding has."""
    try:
        return str(draw(f"{STRANGE}.png"))
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system takes no such names")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_names_that_an_encoding_lacks_are_escaped(
    encoding: str, strange: str, vae: Path, run: Callable[..., Printed]
) -> None:
    ran = run(encoding, "encode", strange, "--vae", str(vae), "--out", "o")
    assert (ran.code, ran.err) == (0, "")
    assert "\\udcff.png" in ran.out
    assert ("🍎" in ran.out) == encoding.startswith("utf")
    if encoding == "ascii":
        assert ran.out.startswith("a\\xe4\\U0001f34e\\u202e")
    assert [path.name for path in Path("o").iterdir()] == [f"{STRANGE}.latents.safetensors"]
    ran = run(encoding, "encode", strange, "--vae", str(vae), "--out", "p", "--json")
    assert json.loads(ran.out)["results"][0]["photo"] == strange
    ran = run(encoding, "encode", f"no{strange}", "--vae", str(vae))
    assert (ran.code, ran.out) == (1, "")
    assert "does not exist" in ran.err


@pytest.mark.slow
@posix_only
def test_the_locale_that_knows_ascii_alone(strange: str, vae: Path) -> None:
    ran = shell(
        f"$C encode a*.png --vae {vae} --out o", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.isascii()
    assert [path.name for path in Path("o").iterdir()] == [f"{STRANGE}.latents.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16"])
def test_tables_and_help_are_printed_in_any_encoding(
    encoding: str, vae: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Printed]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    for words in (("--help",), ("evaluate", "--help"), ("inspect", str(vae)), ("evaluate", "--protocols")):
        ran = run(encoding, *words)
        assert (ran.code, ran.err) == (0, "")
        assert "\\u25" not in ran.out, "boxes are drawn with what there is"
        assert "\x1b" not in ran.out


def test_reports_hold_such_names(strange: str, vae: Path, run: Callable[..., Printed]) -> None:
    draw(f"d/{strange}")
    weights = f"{STRANGE}.safetensors"
    Path(weights).write_bytes(vae.read_bytes())
    ran = run("ascii", "evaluate", "d", "--vae", weights, "--report", "r", "--metrics", "psnr")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(Path("r/results.json").read_text(encoding="utf-8"))["pictures"][0]["name"] == strange
    escaped = strange.replace("\udcff", "\\udcff")
    with Path("r/results.csv").open(encoding="utf-8", newline="") as file:
        assert [row["picture"] for row in csv.DictReader(file)][-1] == escaped
    assert escaped in Path("r/index.html").read_text(encoding="utf-8")


def test_latents_remember_weights_of_such_names(strange: str, vae: Path, run: Callable[..., Printed]) -> None:
    weights = f"{STRANGE}.safetensors"
    Path(weights).write_bytes(vae.read_bytes())
    assert run("utf-8", "encode", strange, "--vae", weights, "--out", "o").code == 0
    latents = f"o/{STRANGE}.latents.safetensors"
    assert run("utf-8", "decode", latents, "--vae", weights, "--out", "p").code == 0
    ran = run("utf-8", "decode", latents, "--out", "q")
    assert ran.code == 1
    assert "\\udcff.safetensors (sha256" in ran.err


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("words", ["--help", "plan sdxl-vae 4096x4096 --memory 1GB --json"])
def test_a_reader_that_is_gone_is_no_error(words: str) -> None:
    ran = shell(f'$C {words} | head -c 1 >/dev/null; echo "${{PIPESTATUS[0]}}"')
    assert ran.stdout in ("0\n", "1\n")  # 0 where all was written before the reader went
    assert ran.stderr == ""
    ran = shell(f'$C {words} | true; echo "${{PIPESTATUS[0]}}"')
    assert (ran.stdout, ran.stderr) == ("1\n", "")


@pytest.mark.slow
@posix_only
def test_a_closed_stream_takes_everything(vae: Path) -> None:
    draw("a.png")
    assert shell(f"$C reconstruct a.png --vae {vae} --out o >&- 2>&- <&-; echo $? >code").stderr == ""
    assert Path("code").read_text() == "0\n"
    assert list(Path("o").iterdir())
    for path in Path("o").iterdir():
        assert b"PSNR" not in path.read_bytes(), "what was printed must not end in a file"
    assert shell("$C inspect nothing.ckpt >&-; echo $? >code").stderr.startswith("calotype: nothing.ckpt")
    assert Path("code").read_text() == "1\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("words", ["--version", "evaluate --protocols"])
def test_a_full_disk_under_standard_output(words: str) -> None:
    ran = shell(f"$C {words} >/dev/full; echo $?")
    assert (ran.stdout, ran.stderr) == ("1\n", "calotype: No space left on device.\n")
    assert shell(f"$C {words} >/dev/full 2>&1; echo $?").stdout == "1\n"
