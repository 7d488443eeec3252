"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support import names, one_sentence, room

from calotype.errors import LatentsError, StorageError, UsageError
from calotype.files import append_text, atomic_path, make_folder, write_bytes, write_text, writing, writing_all


def test_the_temporary_takes_the_place_of_the_target(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["out.png"]


def test_it_takes_a_string(tmp_path: Path) -> None:
    with atomic_path(str(tmp_path / "out")) as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["out.png"]


def test_a_failure_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "out.png"):
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_failing_rename_removes_the_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space"), atomic_path(tmp_path / "out.png") as temporary:
        temporary.write_bytes(b"new")
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "out") as temporary:
            temporary.write_bytes(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == mode


def test_two_writers_do_not_share_a_temporary(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "out") as first, atomic_path(tmp_path / "out") as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert (tmp_path / "out").read_bytes() == b"first"
    assert names(tmp_path) == ["out"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    target = tmp_path / "data" / "real.png"
    target.write_bytes(b"old")
    link = tmp_path / "link.png"
    link.symlink_to(target)
    with atomic_path(link) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*missing"), atomic_path(tmp_path / "missing" / "out"):
        pytest.fail("the block must not run")


def test_a_folder_as_target(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"), atomic_path(tmp_path):
        pytest.fail("the block must not run")


@pytest.mark.skipif(os.name != "posix", reason="a device file is needed")
def test_a_device_is_not_replaced() -> None:
    with pytest.raises(UsageError, match="not an ordinary file"), atomic_path(os.devnull):
        pytest.fail("the block must not run")


# Refusals: which file, why, and what to do


@pytest.mark.parametrize("write", [
    lambda path: write_bytes(path, bytes(2000)),
    lambda path: write_text(path, "x" * 2000),
])  # fmt: skip
@pytest.mark.parametrize("there", [True, False])
def test_no_room(there: bool, write: Callable[[Path], Path], tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    if there:
        target.write_bytes(b"old")
    with room(1000), pytest.raises(StorageError, match=r"out\.bin can't be written: File too large; .* another place"):
        write(target)
    assert names(tmp_path) == (["out.bin"] if there else [])
    assert not there or target.read_bytes() == b"old"


def test_an_error_of_ones_own(tmp_path: Path) -> None:
    with (
        room(10),
        pytest.raises(LatentsError, match="out can't be written"),
        writing(tmp_path / "out", LatentsError) as f,
    ):
        f.write(bytes(20))


def test_what_an_encoder_makes_of_a_refusal_does_not_hide_it(tmp_path: Path) -> None:
    """Some turn it into an error of their own, and some go on without a word."""
    with room(10), pytest.raises(StorageError, match="File too large"), writing(tmp_path / "out", StorageError) as file:
        try:
            file.write(bytes(100_000))
        except Exception:
            raise RuntimeError("unexpected pos 64 vs 0") from None
    with (
        room(10),
        pytest.raises(StorageError, match="File too large"),
        writing(tmp_path / "out") as file,
        suppress(StorageError),
    ):
        file.write(bytes(100_000))
    assert names(tmp_path) == []


def test_an_error_of_what_is_written_stays_its_own(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="another file") as caught, writing(tmp_path / "out") as file:
        file.write(b"half")
        raise OSError(errno.ENOENT, "another file")
    assert not isinstance(caught.value, StorageError)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_refuses_at_the_last_moment(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where room is given out late, and over a network, it is fsync that is refused."""

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "out").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=f"out can't be written: {os.strerror(number)}; ") as caught:
        write_bytes(tmp_path / "out", b"new")
    one_sentence(str(caught.value))
    assert (tmp_path / "out").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_a_file_system_without_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    assert write_bytes(tmp_path / "out", b"new").read_bytes() == b"new"


def test_bytes_are_on_the_disk_before_the_file_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut must not leave an empty file under a final name."""
    told: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(number: int) -> None:
        told.append(f"{os.fstat(number).st_size} bytes")
        fsync(number)

    def renamed(self: Path, target: Path) -> Path:
        told.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    with writing_all([tmp_path / "a", tmp_path / "b"]) as (a, b):
        a.write(b"1")
        b.write(b"22")
    assert told == ["1 bytes", "2 bytes", "a", "b"]


def test_a_refused_rename_names_the_file_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError, match=r"out can't be written: Permission denied; give another place") as caught:
        write_bytes(tmp_path / "out", b"new")
    assert ".calotype" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="a folder that nobody may write to is needed")
def test_a_folder_that_may_not_be_written_to() -> None:
    """It is told of the file that was asked for, not of a temporary."""
    said = r"^/sys/kernel/out\.x can't be written: (Permission denied|Read-only file system|Operation not permitted); "
    with pytest.raises(StorageError, match=said + "give another place, or get the right to write there") as caught:
        write_bytes("/sys/kernel/out.x", b"new")
    one_sentence(str(caught.value))


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="File name too long; give a shorter name"):
        write_bytes(tmp_path / ("n" * 300), b"new")


def test_a_folder_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/folder can't be written: Not a directory"):
        make_folder(tmp_path / "file" / "folder")
    assert make_folder(tmp_path / "a" / "b").is_dir()


def test_lines_are_added(tmp_path: Path) -> None:
    for line in ("a\n", "ä\n"):
        append_text(tmp_path / "log", line)
    assert (tmp_path / "log").read_text("utf-8") == "a\nä\n"
    with room(8), pytest.raises(StorageError, match="log can't be written: File too large"):
        append_text(tmp_path / "log", "too much")


def test_text_with_names_that_are_none(tmp_path: Path) -> None:
    write_text(tmp_path / "out", "name \udcff\n")
    assert (tmp_path / "out").read_bytes() == rb"name \udcff" + b"\n"


# Several files that belong together


@pytest.mark.parametrize("there", [(), ("a",), ("b",), ("a", "b")])
@pytest.mark.parametrize("failing", ["a", "b", "write", "sync", "block"])
@pytest.mark.parametrize("links", [True, False])
def test_all_or_none(
    links: bool, failing: str, there: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in there:
        (tmp_path / name).write_bytes(b"old " + name.encode())
    replace, fsync, synced = Path.replace, os.fsync, []

    def rename(self: Path, target: Path) -> Path:
        if Path(target).name == failing and not refused:
            refused.append(failing)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(self, target)

    def sync(number: int) -> None:
        synced.append(number)
        if len(synced) == 2 and failing == "sync":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    refused: list[str] = []
    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr(os, "fsync", sync)
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    with (
        room(100_000),
        pytest.raises(ValueError if failing == "block" else StorageError),
        writing_all([tmp_path / "a", tmp_path / "b"]) as (a, b),
    ):
        a.write(b"new a")
        b.write(b"new b" if failing != "write" else bytes(200_000))
        if failing == "block":
            raise ValueError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        name: b"old " + name.encode() for name in there
    }


def test_together_they_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with writing_all([tmp_path / "a", tmp_path / "b"]) as (a, b):
        a.write(b"1")
        b.write(b"2")
        assert (tmp_path / "a").read_bytes() == b"old"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}


def test_one_of_them_can_not_be_written_at_all(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "kept").touch()
    with pytest.raises(UsageError, match="is a folder"), writing_all([tmp_path / "a", tmp_path / "b"]):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["b/kept"]


def test_stopping_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def stopped(self: Path, target: Path) -> Path:
        if Path(target).name == "b":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt), writing_all([tmp_path / "a", tmp_path / "b"]):
        pass
    assert names(tmp_path) == []


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A real one, of 64 KiB, where it may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (disk / "out").write_bytes(b"old")
        with pytest.raises(StorageError, match=r"out can't be written: No space left on device; make room"):
            write_bytes(disk / "out", bytes(100_000))
        with pytest.raises(StorageError, match="No space left"), writing_all([disk / "out", disk / "b"]) as (_, b):
            b.write(bytes(100_000))
        assert (disk / "out").read_bytes() == b"old"
        assert names(disk) == ["out"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
