"""Names that are kept packed: they are what they were, whatever they hold, and take little."""

from __future__ import annotations

import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

from calotype.names import Names, Readers, in_parts
from calotype.sources import open_source

ODD = [
    "",
    "a",
    "a b",
    "a/b",
    "a\0b",
    "\n",
    "ä/ö",
    "\N{GRINNING FACE}.png",
    os.fsdecode(b"\xff\xfe.png"),
    "\ud800",
    "x" * 5000,
]


def many(count: int) -> list[str]:
    return [f"part-{i // 1000:04d}/picture-{i:07d}.png" for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 1000])
def test_names_are_what_they_were(count: int) -> None:
    plain = many(count) + ODD
    names = Names(plain)
    assert len(names) == len(plain)
    assert list(names) == plain
    assert [names[i] for i in range(-len(plain), len(plain))] == plain + plain
    assert names[3:-2:7] == plain[3:-2:7]
    assert names == plain
    assert names == Names(plain)
    assert names != plain[:-1]
    assert names != [*plain[:-1], "another"]
    for i in (len(plain), -len(plain) - 1):
        with pytest.raises(IndexError):
            names[i]


def test_a_copy_in_another_process_is_the_same() -> None:
    names = Names(many(300))
    names[5]
    copy = pickle.loads(pickle.dumps(names))
    assert copy == names
    copy.append("one more")
    assert (len(copy), len(names), copy[-1]) == (301, 300, "one more")


def test_threads_read_the_same_names() -> None:
    plain = many(20_000)
    names = Names(plain)
    order = random.Random(0).sample(range(len(plain)), 4000)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(names.__getitem__, order)) == [plain[i] for i in order]


def test_a_million_names_take_little() -> None:
    names = Names(many(100_000))
    assert names.nbytes <= 10 * len(names)  # of which each alone would take 80


def test_readers_find_names_among_neighbours() -> None:
    plain = sorted({*many(700), "a/x", "a-b/x", "a b", "a", "a/x/y", os.fsdecode(b"\xff/1")}, key=in_parts)
    readers = Readers(Names(plain), lambda i: str(i).encode())
    assert list(readers) == plain
    assert len(readers) == len(plain)
    for i, name in enumerate(plain):
        assert readers[name]() == str(i).encode()
        assert name in readers
    for name in ("", "a/", "b", "part-0000", "part-0000/picture-0000000", "zzz", "\ud8ff"):
        assert readers.get(name) is None
        assert name not in readers
    assert not Readers(Names(), lambda i: b"")


def test_paths_have_the_order_of_their_parts(tmp_path: Path) -> None:
    """Those of a folder, and what stands beside them; names that are no text, too."""
    names = [
        "a.png",
        "a/1.png",
        "a b/2.png",
        "a-b/3.png",
        "a!.png",
        "ä.png",
        "a/b/4.png",
        "b/" + os.fsdecode(b"\xff.png"),
    ]
    for i, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (2 + i, 2)).save(path)
        path.with_suffix(".txt").write_text(name.encode("utf-8", "backslashreplace").decode())
    source = pickle.loads(pickle.dumps(open_source(tmp_path)))
    expected = sorted(map(PurePosixPath, names))
    assert list(source.names) == [str(path) for path in expected]
    texts = source.beside.texts
    for i, path in enumerate(expected):
        assert source.read(i).shape[1] == 2 + names.index(str(path))
        said = texts[str(path.with_suffix(".txt"))]()
        assert said.decode() == str(path).encode("utf-8", "backslashreplace").decode()
    assert len(texts) == len(names)
