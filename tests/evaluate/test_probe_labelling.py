"""Where labels of pictures come from: files, files that lie with the pictures, and folders."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from support import one_sentence

from calotype.errors import UsageError
from calotype.evaluate.probe.labelling import labelling

NAMES = ("a.png", "b.png", "c.png")
LINES = '{"file": "a.png", "label": "cat", "set": "more"}\n\n{"file": "c.png", "label": 7}\n'


def packed(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.jsonl", LINES),
        ("l.json", '{"a.png": "cat", "c.png": 7}'),
        ("l.json", '\ufeff{"a.png": "cat", "c.png": "7"}'),
    ],
)
def test_a_file_that_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = labelling(NAMES, tmp_path, tmp_path / name)
    assert found.labels == ("cat", None, "7")
    assert (found.source, found.strange, found.why) == (str(tmp_path / name), (), "")


@pytest.mark.parametrize("inner", ["labels.jsonl", "train/labels.jsonl"])
@pytest.mark.parametrize("named", [False, True])
def test_a_file_in_a_zip(tmp_path: Path, inner: str, named: bool) -> None:
    data = packed(tmp_path / "x.zip", **{inner: LINES, "deep/er/labels.jsonl": "nothing"})
    found = labelling(NAMES, data, Path("labels.jsonl") if named else None)
    assert found.labels == ("cat", None, "7")
    assert found.source == ("labels.jsonl" if named else f"labels.jsonl in {data}")


def test_two_files_in_a_zip(tmp_path: Path) -> None:
    data = packed(tmp_path / "x.zip", **{"train/labels.jsonl": LINES, "val/labels.jsonl": LINES.replace("cat", "dog")})
    for file in (None, Path("labels.jsonl")):
        with pytest.raises(UsageError, match=r"train/labels\.jsonl and val/labels\.jsonl are both in") as caught:
            labelling(NAMES, data, file)
        one_sentence(str(caught.value))
    assert labelling(NAMES, data, Path("val/labels.jsonl")).labels == ("dog", None, "7")
    data = packed(tmp_path / "y.zip", **{"labels.jsonl": LINES, "more/labels.jsonl": LINES.replace("cat", "dog")})
    with pytest.raises(UsageError, match=r"labels\.jsonl and more/labels\.jsonl are both in it"):
        labelling(NAMES, data)
    assert labelling(NAMES, data, Path("labels.jsonl")).labels == ("cat", None, "7")


def test_a_file_in_a_folder_comes_before_folders(tmp_path: Path) -> None:
    names = ("x/a.png", "y/b.png")
    assert labelling(names, tmp_path).labels == ("x", "y")
    (tmp_path / "labels.json").write_text('{"x/a.png": "p", "b.png": "q"}')
    assert labelling(names, tmp_path).labels == ("p", "q")


def test_the_labels_of_real_photos_are_found(shared: Path) -> None:
    data = shared / "photos" / "train.zip"
    if not data.is_file():
        pytest.skip("there are no photos to train with")
    with zipfile.ZipFile(data) as archive:
        rows = [json.loads(line) for line in archive.read("labels.jsonl").splitlines()]
    names = sorted(name for name in zipfile.ZipFile(data).namelist() if name.endswith(".webp"))
    found = labelling(names, data)
    assert found.labels == tuple(row["label"] for row in sorted(rows, key=lambda row: row["file"]))
    assert not found.strange


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("cat/1.png", "cat/2.png", "dog/deep/3.png"), ("cat", "cat", "dog")),
        (("all/in/cat/1.png", "all/in/dog/2.png"), ("cat", "dog")),
        (("cat/1.png", "dog/2.png", "3.png"), ("cat", "dog", None)),
        (("cat/1.png", "cat/2.png"), None),
        (("cat/1.png", "2.png"), None),
        (NAMES, None),
        (("s-0.tar/1.png", "s-1.tar/2.png"), None),
        (("s-0.tar/cat/1.png", "s-1.tar/dog/2.png"), ("cat", "dog")),
        ((), None),
        (("train/cat/1.png", "train/dog/2.png", "val/cat/3.png"), ("cat", "dog", "cat")),
        (("x/train/cat/1.png", "x/train/dog/2.png", "x/val/dog/3.png", "x/4.png"), ("cat", "dog", "dog", None)),
        (("train/cat/1.png", "train/cat/2.png", "val/cat/3.png"), None),
    ],
)
def test_folders(tmp_path: Path, names: tuple[str, ...], labels: tuple[str | None, ...] | None) -> None:
    assert labelling(names, tmp_path).labels == labels


def test_names_of_no_picture_are_told(tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    path.write_text('{"a.png": "x", "gone.png": "y", "b.png": "z", "d/c.png": "w"}')
    found = labelling(NAMES, tmp_path, path)
    assert found.labels == ("x", "z", None)
    assert found.strange == ("gone.png", "d/c.png")


def test_a_name_alone_stands_for_one_picture_only(tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    path.write_text('{"a.png": "x"}')
    with pytest.raises(UsageError, match=r"a\.png is the name of 2 pictures") as caught:
        labelling(("p/a.png", "q/a.png"), tmp_path, path)
    one_sentence(str(caught.value))
    # where it is a path, it is that picture's
    assert labelling(("a.png", "q/a.png"), tmp_path, path).labels == ("x", None)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("l.json", "[1]", "labels must be JSON: a .json like"),
        ("l.json", "{", "labels must be JSON"),
        ("l.json", "{}", "labels must be JSON"),
        ("l.json", '{"cat": ["a.png", "b.png"]}', "labels must be JSON"),
        ("l.json", '{"a.png": {"label": "cat"}}', "labels must be JSON"),
        ("l.json", '{"a.png": null}', "labels must be JSON"),
        ("l.json", '{"a.png": "cat", "a.png": "dog"}', "the key 'a.png' stands in it twice, with 'cat' and with 'dog'"),
        ("l.json", LINES, "labels must be JSON"),
        ("l.jsonl", '{"file": "a.png"}', 'or a .jsonl with a line {"file": "a.png", "label": "cat"} each'),
        ("l.jsonl", "[1]", "labels must be JSON"),
        ("l.jsonl", '{"file": "a.png", "label": "x"}\n{"file": "a.png", "label": "y"}', "two labels"),
        ("l.json", '{"x.png": "cat"}', r"none of the pictures has a label there; .*such as a.png"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=match) as caught:
        labelling(NAMES, tmp_path, tmp_path / name)
    one_sentence(str(caught.value).split(": a .json like")[0] + ".")
    # one that nobody named may be something else: then there are no labels, and it is told why
    there = f"labels{Path(name).suffix}"
    (tmp_path / there).write_text(text)
    found = labelling(NAMES, tmp_path)
    assert found.labels is None
    assert found.why == str(caught.value).replace(str(tmp_path / name), f"{there} in {tmp_path}")


def test_no_file_anywhere(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.json: there is no such file, and none in"):
        labelling(NAMES, tmp_path, Path("no.json"))
