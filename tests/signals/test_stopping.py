"""What signals do: once, twice, where they are ignored, where they get lost, and before a command has begun."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from calotype import stopping

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX"),
    pytest.mark.usefixtures("interruptible"),
]

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
STOPS = pytest.mark.parametrize("number", list(CODES), ids=lambda number: number.name)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # it comes between two lines


@STOPS
def test_all_of_them_interrupt(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in stopping.SIGNALS]
    with stopping.stoppable():
        assert not stopping.interrupted()
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert stopping.interrupted()
        assert stopping.exit_code() == CODES[number]
    assert [signal.getsignal(one) for one in stopping.SIGNALS] == before


@STOPS
@pytest.mark.parametrize("second", list(CODES), ids=lambda number: number.name)
def test_what_cleans_up_is_not_interrupted_by_a_second(
    number: signal.Signals, second: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopping.stoppable():
        with pytest.raises(KeyboardInterrupt):
            send(number)
        send(second)
        send(second)
        assert stopping.exit_code() == CODES[number]
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 6)
        with pytest.raises(KeyboardInterrupt):  # but one that does not end can be stopped
            send(second)
        assert stopping.exit_code() == CODES[number]


@STOPS
def test_work_that_can_be_resumed_is_asked(number: signal.Signals) -> None:
    with stopping.stoppable():
        with stopping.noted() as stopped:
            assert not stopped()
            send(number)
            assert stopped()
            send(number)
        assert stopping.exit_code() == CODES[number]
        assert not stopping.interrupted()


@STOPS
@pytest.mark.parametrize("handling", [stopping.stoppable, stopping.noted])
def test_what_is_ignored_stays_so(number: signal.Signals, handling: Callable[[], object]) -> None:
    """Under nohup, and in the background of a shell without job control."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with handling() as stopped:  # type: ignore[attr-defined]
            send(number)
            assert not (stopped and stopped())
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_other_threads_change_nothing() -> None:
    """Python lets the main one alone handle signals; a training in another one is not refused."""
    seen: list[bool] = []

    def work() -> None:
        with stopping.stoppable(), stopping.noted() as stopped, stopping.kept():
            seen.append(stopped())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_librarys_handler_goes_again() -> None:
    with stopping.stoppable():
        mine = signal.getsignal(signal.SIGTERM)
        with stopping.kept():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is mine


def test_an_interrupt_that_c_code_drops_comes_again() -> None:
    """What a callback raises can't pass through C; nor through the end of an object."""

    def back(_: object) -> int:
        send(signal.SIGTERM)
        return 0

    class Ends:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
    for lose in (lambda: call(back)(None), lambda: Ends()):
        with stopping.stoppable():
            lose()
            with pytest.raises(KeyboardInterrupt):
                time.sleep(10)
            assert stopping.exit_code() == 143


# The program


def started(body: str, *words: str, folder: Path) -> subprocess.Popen[str]:
    """The program, with something done to it before."""
    run = "import sys, runpy\nsys.argv = ['calotype', *sys.argv[1:]]\nrunpy.run_module('calotype', run_name='__main__')"
    code = f"{body}\n{run}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def at_import(name: str, number: int) -> str:
    """Sends a signal in the middle of a module's import."""
    return f"""
import os, sys, time
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), {int(number)})
            time.sleep(0.01)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("calotype.cli.main", signal.SIGINT), ("typer", signal.SIGHUP), ("torch", signal.SIGTERM),
        ("numpy", signal.SIGINT), ("numpy", signal.SIGTERM), ("safetensors", signal.SIGTERM),
    ],
)  # fmt: skip
def test_while_it_is_still_being_imported(name: str, number: signal.Signals, tmp_path: Path) -> None:
    with started(at_import(name, number), "inspect", folder=tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (CODES[number], "", "calotype: Stopped.\n")


@pytest.mark.slow
def test_an_error_that_an_interrupt_became_is_no_error(tmp_path: Path) -> None:
    """As where a library's C code turns it into its own."""
    body = """
import os, signal, time
from calotype import vae
from calotype.errors import WeightsError
def load(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    except KeyboardInterrupt:
        raise WeightsError("It can't be read.")
vae.load = load
"""
    for words in (("inspect",), ("encode", "a.png", "b.png", "--out", "o")):
        with started(body, *words, folder=tmp_path) as process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (143, "", "calotype: Stopped.\n")


@pytest.mark.slow
def test_a_second_signal_while_it_ends(tmp_path: Path) -> None:
    body = """
import os, signal, time
def again():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
from calotype import vae
def load(*_, **__):
    import atexit
    atexit.register(again)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
vae.load = load
"""
    with started(body, "inspect", folder=tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "", "calotype: Stopped.\n")


@pytest.mark.slow
def test_a_program_that_ignores_interrupts_ends_well(tmp_path: Path) -> None:
    body = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
from calotype import vae
first = vae.load
def load(*words, **more):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)
    return first(*words, **more)
vae.load = load
"""
    with started(body, "inspect", folder=tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "builtin" in out


@pytest.mark.slow
def test_it_is_said_when_a_progress_bar_was_interrupted(tmp_path: Path) -> None:
    """rich takes standard error over, and an interrupt in the middle of it may leave it so and mute."""
    body = """
import os, signal, sys, time
from calotype import vae
from rich.console import Console
from rich.file_proxy import FileProxy
def load(*_, **__):
    console = Console(stderr=True)
    console._enter_buffer()
    sys.stderr = FileProxy(console, sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
vae.load = load
"""
    with started(body, "inspect", folder=tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "", "calotype: Stopped.\n")


@pytest.mark.slow
def test_it_is_the_last_thing_said(tmp_path: Path) -> None:
    """A bar in a generator ends with it, and on a terminal takes the lines that were said meanwhile away."""
    body = """
import os, signal, time
from calotype import vae
from rich.console import Console
from rich.progress import track
def load(*_, **__):
    items = track([1, 2], console=Console(stderr=True, force_terminal=True), transient=True)
    for _ in items:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
vae.load = load
"""
    with started(body, "inspect", folder=tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert err.endswith("calotype: Stopped.\n")


def test_streams_are_not_broken_where_it_comes_while_they_are_opened(tmp_path: Path) -> None:
    """A stream whose `reconfigure` an interrupt ends takes nothing any more."""
    body = """
import codecs, os, signal
class Late(codecs.lookup("utf-8").incrementalencoder):
    def __init__(self, errors="strict"):
        if errors == "backslashreplace":
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):
                pass
        super().__init__(errors)
codecs.register(
    lambda name: codecs.CodecInfo(*codecs.lookup("utf-8")[:4], incrementalencoder=Late,
    incrementaldecoder=codecs.lookup("utf-8").incrementaldecoder) if name == "late" else None
)
import sys
sys.stderr.reconfigure(encoding="late")
"""
    with started(body, "inspect", folder=tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "", "calotype: Stopped.\n")


def test_what_is_held_comes_afterwards() -> None:
    done = []
    with stopping.stoppable(), pytest.raises(KeyboardInterrupt):
        with stopping.held():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # a test's process may have other threads
            time.sleep(0.01)
            done.append("within")
        done.append("after")
    assert done == ["within"]
