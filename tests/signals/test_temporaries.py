"""Temporaries go with who made them: at the block's end, at the process's end, or when the next one comes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from calotype import processes, temporaries
from calotype.files import atomic_path
from calotype.processes import Process, is_dead, this
from calotype.temporaries import temporary_file, temporary_folder, temporary_path

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
ME = this()


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not looked into any folder yet."""
    monkeypatch.setattr(temporaries, "_swept", set())


@pytest.fixture
def dead() -> Process:
    """One of this host that has ended."""
    words = [sys.executable, "-c", "from calotype.processes import this; me = this(); print(me.host, me.pid, me.start)"]
    host, pid, start = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return Process(host, int(pid), start)


def leftover(folder: Path, owner: Process, ending: str = ".png") -> Path:
    path = folder / f".calotype-{owner.host}-{owner.pid}-{owner.start}-0123abcd{ending}"
    path.write_bytes(b"half")
    return path


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_dead_process_is_known_as_one(dead: Process) -> None:
    assert dead.host == ME.host
    assert is_dead(dead)
    assert not is_dead(ME)
    assert not is_dead(Process(ME.host, os.getppid(), processes.UNKNOWN))


@linux_only
def test_its_number_may_be_anothers_by_now() -> None:
    assert is_dead(Process(ME.host, ME.pid, "0" * 7 + "1"))
    assert not is_dead(Process(ME.host, ME.pid, processes.UNKNOWN))  # where nothing tells them apart


@linux_only
def test_one_that_nobody_has_looked_at_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.read()  # until it ends
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(Process(ME.host, child.pid, processes.UNKNOWN))
    child.wait()
    child.stdout.close()


def test_nothing_is_known_of_other_hosts(dead: Process) -> None:
    assert not is_dead(Process("0" * 12, dead.pid, dead.start))


@pytest.mark.parametrize("pid", [0, 2**31, 10**10 - 1])
def test_numbers_that_no_process_has(pid: int) -> None:
    is_dead(Process(ME.host, pid, "01234567"))  # whatever it says: it raises nothing


@linux_only
def test_other_containers_are_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have numbers of their own, under the same name."""
    processes._host.cache_clear()
    outside = processes._host()
    processes._host.cache_clear()
    monkeypatch.setattr(Path, "readlink", lambda self: Path("pid:[4026532999]"))
    assert processes._host() != outside
    processes._host.cache_clear()


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path, dead: Process) -> None:
    for ending in (".png", ".safetensors", ""):
        leftover(tmp_path, dead, ending)
    folder = tmp_path / f".calotype-{dead.host}-{dead.pid}-{dead.start}-89abcdef"
    (folder / "inside").mkdir(parents=True)
    (folder / "inside" / "old.json").write_text("{}")
    with atomic_path(tmp_path / "out.png") as temporary:
        assert names(tmp_path) == [temporary.name]
    assert names(tmp_path) == ["out.png"]


def test_nothing_else_goes(tmp_path: Path, dead: Process) -> None:
    kept = [
        leftover(tmp_path, ME),
        leftover(tmp_path, Process(ME.host, os.getppid(), processes._stat(os.getppid())[0])),
        leftover(tmp_path, Process("0" * 12, dead.pid, dead.start)),  # another host's
        tmp_path / f".calotype-{dead.pid}.png",
        tmp_path / ".calotype-training.lock",
        tmp_path / f"calotype-{dead.host}-{dead.pid}-{dead.start}-0.png",
        tmp_path / ".hidden",
    ]
    for path in kept:
        path.write_bytes(b"kept")
    with atomic_path(tmp_path / "out.png"):
        pass
    assert names(tmp_path) == sorted(["out.png", *(path.name for path in kept)])


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_link_goes_and_not_what_it_names(tmp_path: Path, dead: Process) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("kept")
    (tmp_path / f".calotype-{dead.host}-{dead.pid}-{dead.start}-89abcdef").symlink_to(tmp_path / "mine")
    temporaries.sweep(tmp_path)
    assert names(tmp_path) == ["mine"]
    assert (tmp_path / "mine" / "a.txt").read_text() == "kept"


def test_a_folder_is_looked_into_once(tmp_path: Path, dead: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(path) or scandir(path))  # type: ignore[func-returns-value]
    for i in range(5):
        with atomic_path(tmp_path / f"{i}.png"):
            pass
    assert looked == [tmp_path]


def test_a_temporary_folder_and_a_file_without_a_name(tmp_path: Path, dead: Process) -> None:
    leftover(tmp_path, dead)
    with temporary_folder(tmp_path) as folder:
        (folder / "a").write_text("a")
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []
    temporaries._swept.clear()
    leftover(tmp_path, dead)
    with temporary_file(str(tmp_path)) as file:
        file.write(b"abc")
        file.seek(0)
        assert file.read() == b"abc"
        if sys.platform == "linux":
            assert names(tmp_path) == []


LEAVING = """
import ctypes, sys
from pathlib import Path
from calotype.temporaries import temporary_path

made = temporary_path(Path(sys.argv[1]))
made.__enter__().touch()
ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))  # its end never comes, as when an interrupt comes just before it
"""


def test_what_is_not_ended_ends_with_the_process(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAVING + "print(list(Path(sys.argv[1]).iterdir()))", tmp_path], check=True)
    assert names(tmp_path) == []
    killed = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)" if os.name == "posix" else "os._exit(1)"
    subprocess.run([sys.executable, "-c", LEAVING + killed, tmp_path], check=False)
    assert len(names(tmp_path)) == 1
    with temporary_path(tmp_path):
        assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_remove_its_parents(tmp_path: Path) -> None:
    forked = """
pid = os.fork()
if not pid:
    sys.exit()  # by way of all that runs at an end
os.waitpid(pid, 0)
print(len(list(Path(sys.argv[1]).iterdir())))
"""
    words = [sys.executable, "-W", "ignore", "-c", "import os\n" + LEAVING + forked, tmp_path]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "1\n"
    assert names(tmp_path) == []
