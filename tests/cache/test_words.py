"""What sources say of their pictures, and caches of archives and datasets."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from cachekit import fill, folder, picture

from calotype.cache import open_cache
from calotype.cache.words import words
from calotype.errors import UsageError
from calotype.sources import open_source
from calotype.vae import VAE


def told(source: Path, folders: bool = False) -> dict[str, tuple[str | None, str | None]]:
    """Caption and label of each picture by name."""
    opened = open_source(source)
    say = words(opened.names, opened.beside, folders=folders)
    return {name: say(i) for i, name in enumerate(opened.names)}


def old(path: Path) -> None:
    os.utime(path, (1e9, 1e9))


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    old(path)


def png(seed: int, tmp_path: Path) -> bytes:
    return picture(tmp_path / "one.png", seed=seed).read_bytes()


def test_texts_beside_pictures(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("a.png", "b.png", "cats/c.d.png", "cats/e.png", "cats/f.png", "cats/g.png"):
        picture(data / name)
    (data / "a.txt").write_text("\ufeffa cat, \n sitting\n", encoding="utf-8")
    (data / "b.caption").write_text("a dog")
    (data / "cats/c.d.txt").write_text("of two dots")
    (data / "cats/e.json").write_text(json.dumps({"caption": "from JSON", "label": 7}))
    (data / "cats/f.json").write_text("[1, 2]")  # another program's
    lines = [
        {"file_name": "cats/g.png", "text": "of a line", "label": "tabby"},
        {"file_name": "a.png", "text": "first", "label": float("nan")},
        {"file_name": "b.png", "caption": float("nan")},
    ]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nno JSON\n")
    assert told(data) == {
        "a.png": ("first", None),
        "b.png": ("a dog", None),
        "cats/c.d.png": ("of two dots", None),
        "cats/e.png": ("from JSON", "7"),
        "cats/f.png": (None, None),
        "cats/g.png": ("of a line", "tabby"),
    }
    labels = {name: label for name, (_, label) in told(data, folders=True).items()}
    assert labels == {
        "a.png": None, "b.png": None, "cats/c.d.png": "cats", "cats/e.png": "7", "cats/f.png": "cats",
        "cats/g.png": "tabby",
    }  # fmt: skip


def test_webdataset(tmp_path: Path, out: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(2):
        members = {}
        for i in range(2):
            members[f"{i:03}.seg.png"] = png(10 * shard + i, tmp_path)
            members[f"{i:03}.txt"] = f"caption {shard} {i}".encode()
            members[f"{i:03}.cls"] = b"%d" % i
            members[f"{i:03}.json"] = json.dumps({"caption": "second to the text"}).encode()
        tar(tmp_path / f"data/{shard}.tar", members)
    fill(tmp_path / "data", out, vae)
    rows = [open_cache(out).row(i) for i in range(4)]
    assert [(row["name"], row["caption"], row["label"]) for row in rows] == [
        (f"{shard}.tar/{i:03}.seg.png", f"caption {shard} {i}", str(i)) for shard in range(2) for i in range(2)
    ]
    looked = []
    from calotype.cache import scan

    ordinary = scan.look
    monkeypatch.setattr(scan, "look", lambda source, i: looked.append(i) or ordinary(source, i))  # type: ignore[func-returns-value]
    assert fill(tmp_path / "data", out, vae).made == 0
    assert looked == []  # nothing was read again
    tar(tmp_path / "data/1.tar", {"000.seg.png": png(10, tmp_path), "001.seg.png": png(99, tmp_path)})
    assert fill(tmp_path / "data", out, vae).made == 1
    assert sorted(looked) == [2, 3]  # threads look


def test_a_list_that_is_not_read_to_its_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that stand after what is read would have no captions."""
    picture(tmp_path / "data/a.png")
    line = json.dumps({"file_name": "a.png", "text": "a cat"}) + "\n"
    (tmp_path / "data/metadata.jsonl").write_text(line * 10)
    for module in ("calotype.sources.local", "calotype.cache.words"):
        monkeypatch.setattr(f"{module}.MOST_TEXT", 200)
    with pytest.raises(UsageError, match=r"metadata\.jsonl: this file has more than the 200 bytes"):
        told(tmp_path / "data")
    monkeypatch.setattr("calotype.sources.local.MOST_TEXT", 2**28)
    monkeypatch.setattr("calotype.cache.words.MOST_TEXT", 2**28)
    assert told(tmp_path / "data") == {"a.png": ("a cat", None)}


def test_a_tar_among_several_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in "ab":
        tar(tmp_path / f"data/{shard}.tar", {"cat/0.png": png(0, tmp_path), "1.png": png(1, tmp_path)})
    assert told(tmp_path / "data", folders=True) == {
        f"{shard}.tar/{name}": (None, label)
        for shard in "ab"
        for name, label in (("cat/0.png", "cat"), ("1.png", None))
    }


def test_zips(tmp_path: Path, out: Path, vae: VAE) -> None:
    data = folder(tmp_path / "plain", 3)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in sorted(data.iterdir()):
            archive.write(path, f"inner/{path.name}")
    fill(tmp_path / "data.zip", out, vae)
    rows = [open_cache(out).row(i) for i in range(3)]
    assert [(row["name"], row["caption"]) for row in rows] == [(f"inner/{i}.png", f"picture {i}") for i in range(3)]


def test_datasets(tmp_path: Path, out: Path, vae: VAE) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])}
    )
    rows = {"image": [{"path": None, "bytes": png(i, tmp_path)} for i in range(3)], "text": ["a", None, "c"],
            "label": [1, 0, 1]}  # fmt: skip
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "data"))
    fill(tmp_path / "data", out, vae)
    found = [open_cache(out).row(i) for i in range(3)]
    assert [(row["name"], row["caption"], row["label"]) for row in found] == [
        ("row 0", "a", "1"), ("row 1", None, "0"), ("row 2", "c", "1"),
    ]  # fmt: skip
