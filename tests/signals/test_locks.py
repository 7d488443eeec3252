"""One process at a time: the next is told who is there, and a dead one is no hindrance."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import one_sentence

from calotype import locks
from calotype.errors import StorageError, UsageError
from calotype.locks import lock
from calotype.processes import this

HOLDING = """
import sys, time
from pathlib import Path
from calotype import locks
if sys.argv[2] == "names":
    locks._locked = lambda descriptor: None
with locks.lock(Path(sys.argv[1]), "a training", "give another --out"):
    print("holds", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path, by: str = "locks") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(path), by], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "holds\n"
        yield process


@pytest.fixture(params=["locks", "names"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What decides: the system's locks, or (a file system has none) the name in the file."""
    if request.param == "names":
        monkeypatch.setattr(locks, "_locked", lambda descriptor: None)
    return str(request.param)


def held(path: Path) -> None:
    with lock(path, "a training", "give another --out"):
        pass


def test_it_is_there_while_it_is_held(tmp_path: Path, by: str) -> None:
    path = tmp_path / "run" / "deep" / ".lock"
    with lock(path, "a training", "give another --out"):
        told = json.loads(path.read_text())
        assert (told["pid"], told["name"], told["host"]) == (os.getpid(), platform.node(), this().host)
    assert list(tmp_path.iterdir()) == []  # nor are the folders that were made for it
    with lock(path, "a training", "give another --out"):
        (path.parent / "weights").touch()
    assert [one.name for one in path.parent.iterdir()] == ["weights"]


def test_a_second_one_is_refused_and_told_who_is_there(tmp_path: Path, by: str) -> None:
    path = tmp_path / ".lock"
    with holder(path, by) as process:
        with pytest.raises(UsageError) as caught:
            held(path)
        assert path.exists()
    said = str(caught.value)
    one_sentence(said)
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"
    more = f"; if that has ended, delete {re.escape(str(path))}" if by == "names" else ""
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))}: a training is under way there, by process {process.pid} on "
        rf"{re.escape(platform.node())} since {since}; wait for it, or give another --out{more}\.",
        said,
    )
    held(path)
    assert list(tmp_path.iterdir()) == []


def test_threads_and_blocks_of_one_process_are_two_as_well(tmp_path: Path, by: str) -> None:
    with lock(tmp_path / ".lock", "a training", "wait"):
        with pytest.raises(UsageError, match=f"by process {os.getpid()} "):
            held(tmp_path / ".lock")
        assert (tmp_path / ".lock").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_dead_ones_is_taken_over(tmp_path: Path, by: str) -> None:
    path = tmp_path / ".lock"
    with holder(path, by) as process:
        process.kill()
        process.wait()
    assert json.loads(path.read_text())["pid"] == process.pid
    with lock(path, "a training", "give another --out"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_other_hosts(tmp_path: Path, by: str) -> None:
    """Where there are locks, that it could be had tells that its holder is dead; else nothing does."""
    path = tmp_path / ".lock"
    told = {"name": "elsewhere", "since": "2020-01-01 00:00 UTC", "host": "0" * 12, "pid": 1, "start": "0"}
    path.write_text(json.dumps(told))
    if by == "locks":
        held(path)
        assert not path.exists()
    else:
        with pytest.raises(UsageError, match=r"process 1 on elsewhere since .* if that has ended, delete "):
            held(path)
        assert json.loads(path.read_text()) == told


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": 1}', "\0\0", '{"pid": "x", "name": 1, "since": 1, "host": 1, "start": 1}']
)
def test_whatever_the_file_holds(text: str, tmp_path: Path, by: str) -> None:
    (tmp_path / ".lock").write_text(text)
    held(tmp_path / ".lock")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with holder(tmp_path / ".lock"):
        monkeypatch.setattr("fcntl.flock", refuse)
        with pytest.raises(UsageError, match="if that has ended"):
            held(tmp_path / ".lock")


@pytest.mark.skipif(sys.platform == "win32", reason="open files can't be removed there")
def test_a_file_that_its_holder_removes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking: the lock is of a file that nobody else can find."""
    path, first = tmp_path / ".lock", locks._locked
    calls = 0

    def locked(descriptor: int) -> bool | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()
        return first(descriptor)

    monkeypatch.setattr(locks, "_locked", locked)
    with lock(path, "a training", "wait"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert calls == 2


def test_a_place_that_takes_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        held(tmp_path / "file" / "run" / ".lock")
    one_sentence(str(caught.value))
    assert "give another --out" in str(caught.value)
