"""The command as a whole: help, version, cost of starting, `doctor`, and errors that no command expects."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from clikit import Calotype, Ran

import calotype as package
from calotype.cli import common
from calotype.cli.main import app
from calotype.families import FORMATS

COMMANDS = [
    "reconstruct", "encode", "decode", "draw", "redraw", "evaluate", "probe", "inspect", "spaces", "plan", "convert",
    "train", "morph", "vary", "blend", "transfer", "channels", "studio", "doctor",
]  # fmt: skip
HEAVY = ("torch", "numpy", "PIL", "safetensors", "huggingface_hub")


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)


def test_every_command_is_known() -> None:
    assert [command.name for command in app.registered_commands] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, calotype: Calotype) -> None:
    ran = calotype(command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Example: calotype {command}" in ran.out
    assert "Usage: calotype" in ran.out
    assert calotype(command, "-h").out == ran.out


def test_no_help_has_words_that_rich_takes_for_a_style() -> None:
    """They would be missing."""

    def said(command: Any, name: str) -> Iterator[tuple[str, str]]:
        yield name, command.help or ""
        yield from ((f"{name} {one.name}", getattr(one, "help", None) or "") for one in command.params)
        for inner, one in getattr(command, "commands", {}).items():
            yield from said(one, f"{name} {inner}")

    every = list(said(typer.main.get_command(app), "calotype"))
    assert len(every) > 200
    assert [name for name, text in every if re.search(r"(?<!\\)\[[a-z@/#]", text)] == []


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_the_overview_names_every_command(words: tuple[str, ...], calotype: Calotype) -> None:
    ran = calotype(*words)
    assert all(command in ran.out + ran.err for command in COMMANDS)


def test_the_version(calotype: Calotype) -> None:
    assert calotype("--version") == Ran(0, f"calotype {package.__version__}\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom calotype.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    ran = python(code, *words)
    assert ran.stderr == "[]\n"


def test_importing_the_package_imports_nothing_heavy() -> None:
    ran = python(f"import sys, calotype; print([m for m in {(*HEAVY, 'typer', 'rich')!r} if m in sys.modules])")
    assert ran.stdout == "[]\n"


def test_help_names_all_latent_formats() -> None:
    assert ", ".join(str(one["name"]) for one in FORMATS) == common.LATENT_FORMATS


@pytest.mark.slow
def test_help_comes_at_once() -> None:
    """In 0.3 s, or where a processor takes long for it, in twice the time of the smallest program of this kind."""
    smallest = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
    times: list[list[float]] = [[], []]
    for _ in range(8):  # the best of several: other programs may be busy
        for code, taken in zip(("from calotype.cli.main import main; main()", smallest), times, strict=True):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, check=True, timeout=60)
            taken.append(time.perf_counter() - start)
        ours, least = map(min, times)
        if ours <= max(0.3, 2 * least):
            return
    raise AssertionError(f"--help took {ours:.2f} s, and that of the smallest program {least:.2f} s")


PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.slow
@pytest.mark.skipif(
    not PAGES.is_file() or "[madvise]" not in PAGES.read_text(encoding="utf-8"),
    reason="large pages are not given to those who ask for them here",
)
def test_tensors_lie_in_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by faults, of which small pages take 16,384; and whoever sets the variable has their way."""
    code = (
        "import resource\nfrom calotype.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "import torch\ntorch.empty(2**24).fill_(1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "kept = torch.empty(2**24).fill_(1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert int(python(code, "--version").stdout.split()[-1]) < 2000
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert int(python(code, "--version").stdout.split()[-1]) > 2000


def test_the_module_runs_too() -> None:
    ran = subprocess.run([sys.executable, "-m", "calotype", "--version"], capture_output=True, text=True, timeout=60)
    assert ran.stdout == f"calotype {package.__version__}\n"


@pytest.mark.parametrize("words", [["paint"], ["encode"], ["encode", "a.png", "--colour"], ["decode", "--seed", "1"]])
def test_words_that_make_no_sense_exit_with_2(words: list[str], calotype: Calotype) -> None:
    ran = calotype(*words)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: calotype" in ran.err


def test_an_error_of_the_system_is_one_line(calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("calotype.vae.load", full)
    ran = calotype("inspect")
    assert (ran.code, ran.out, ran.err) == (1, "", "calotype: somewhere: No space left on device.\n")


def test_ctrl_c_is_one_line(calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("calotype.vae.load", stop)
    ran = calotype("inspect")
    assert (ran.code, ran.out, ran.err) == (130, "", "calotype: Stopped.\n")


def test_doctor_tells_what_there_is(calotype: Calotype) -> None:
    ran = calotype("doctor", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = ran.json
    assert told["calotype"] == package.__version__
    assert told["devices"][0] == "cpu"
    assert told["default_device"].split(":")[0] in [device.split(":")[0] for device in told["devices"]]
    assert told["threads"] >= 1
    assert told["packages"]["torch"].startswith(__import__("torch").__version__.split("+")[0])
    assert told["picture_formats"]["jpg"] is True
    assert "builtin" in told["builtin"]
    text = calotype("doctor").out
    assert all(word in text for word in ("calotype", "packages", "devices", "threads", "pictures", "built-in VAE"))


def test_doctor_fails_when_the_built_in_weights_are_gone(
    calotype: Calotype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("calotype.vae.loading.BUILTIN", tmp_path / "gone.safetensors")
    ran = calotype("doctor", "--json")
    assert ran.code == 1
    assert "gone.safetensors: there is no such file" in ran.json["builtin"]


def test_tables_show_brackets_and_colons_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    common.table([("[bold]", "model[fp16].safetensors :smile: [/red]")])
    assert "[bold]" in (line := capsys.readouterr().out)
    assert "model[fp16].safetensors :smile: [/red]" in line


@pytest.mark.parametrize("columns", ["", "wide", "60"])
def test_a_strange_width_of_the_terminal_is_survived(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "COLUMNS", columns)
    common.table([("name", "word " * 40)])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= (60 if columns == "60" else 120)


def test_colours() -> None:
    assert common.colour("red") == (255, 0, 0)
    assert common.colour("#102030") == (16, 32, 48)
    assert common.colour("#10203040") == (16, 32, 48)
    with pytest.raises(package.CalotypeError, match=r"--background mud: give a colour's name or #rrggbb\."):
        common.colour("mud")
