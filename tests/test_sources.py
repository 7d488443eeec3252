"""Sources of pictures: each kind gives the same pictures, refuses what it should, and says what is bad by name."""

from __future__ import annotations

import importlib
import io
import os
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import one_sentence

from calotype.errors import PictureError, UsageError
from calotype.pixels import read_picture, to_uint8
from calotype.sources import Array, Pictures, open_source, stored


def picture(seed: int, height: int = 20, width: int = 24) -> Array:
    """Noise: no two are alike, and every pixel tells."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(array: Array, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def folder_of(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i:02}.png").write_bytes(encode(picture(i)))
    return folder


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_of(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def same(pictures: Pictures, seeds: Iterable[int]) -> bool:
    """Whether these are the pictures made of those seeds, in that order."""
    expected = [picture(seed) for seed in seeds]
    read = [pictures.read(i) for i in range(len(pictures))]
    assert len(pictures.names) == len(read)
    return len(read) == len(expected) and all(map(np.array_equal, read, expected))


def refused(spec: str | Path, root: Path = Path()) -> str:
    """The error that a source is refused with."""
    with pytest.raises(UsageError) as error:
        open_source(spec, root)
    one_sentence(str(error.value))
    return str(error.value)


# Folders


def test_a_folder_is_read_in_the_order_of_paths(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", 3)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "x.PNG").write_bytes(encode(picture(9)))
    (folder / "notes.txt").write_text("no picture")
    (folder / "._00.png").write_bytes(b"what macOS leaves beside a picture")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "00.png").write_bytes(encode(picture(8)))
    (folder / "folder.png").mkdir()
    pictures = open_source("a", tmp_path)
    assert pictures.names == ["00.png", "01.png", "02.png", "deeper/x.PNG"]
    assert same(pictures, [0, 1, 2, 9])
    assert {pictures.read(i).dtype for i in range(4)} == {np.dtype(np.uint8)}
    assert [pictures.side(i) for i in range(4)] == [20] * 4


def test_a_hidden_folder_may_be_asked_for(tmp_path: Path) -> None:
    assert same(open_source(folder_of(tmp_path / ".hidden" / "a", 2)), range(2))


def test_a_folder_whose_listing_fails_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "a", 1)

    def scandir(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", scandir)
    assert refused(folder) == f"{folder}: this folder can't be listed (Permission denied); check its permissions."


def test_what_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no zip")
    where = tmp_path / "missing"
    expected = f"{where}: there is no such folder, zip, tar or dataset of pictures; give one that is there."
    assert refused("missing", tmp_path) == expected
    expected = f"{tmp_path / 'text.txt'}: this is a file, and no zip or tar; give the folder that the pictures are in."
    assert refused("text.txt", tmp_path) == expected
    assert refused("empty", tmp_path).startswith(f"{tmp_path / 'empty'}: there is no picture in it; ")


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    elsewhere = folder_of(tmp_path / "elsewhere", 2)
    folder = folder_of(tmp_path / "a", 1)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere)  # the same pictures twice, as asked for
    (folder / "round").symlink_to(folder)
    (folder / "itself").symlink_to("itself")
    (elsewhere / "back").symlink_to(folder)
    assert open_source(folder).names == ["00.png", "again/00.png", "again/01.png", "linked/00.png", "linked/01.png"]


# Pixels


def test_bad_pictures_are_told_by_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", 1)
    (folder / "bad.png").write_bytes(encode(picture(1))[:900])
    (folder / "empty.jpg").touch()
    (folder / "link.png").symlink_to("nowhere.png")
    pictures = open_source(folder)
    assert pictures.names == ["00.png", "bad.png", "empty.jpg", "link.png"]
    for i, reason in ((1, "cut off"), (2, "is empty"), (3, "No such file")):
        with pytest.raises(PictureError, match=reason) as error:
            pictures.read(i)
        assert str(error.value).startswith(f"{folder}: {pictures.names[i]}: ")
    for i, reason in ((2, "is empty"), (3, "No such file")):
        with pytest.raises(PictureError, match=reason) as error:
            pictures.side(i)
        assert str(error.value).startswith(f"{folder}: {pictures.names[i]}: ")


def test_all_kinds_become_upright_rgb_over_white(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    rng = np.random.default_rng(0)
    glass = rng.integers(0, 256, (300, 130, 4), dtype=np.uint8)  # more than one piece of 2^15 numbers
    deep = rng.integers(0, 65536, (300, 130), dtype=np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6
    (folder / "deep.png").write_bytes(encode(deep))  # type: ignore[arg-type]
    (folder / "glass.png").write_bytes(encode(glass))
    (folder / "grey.png").write_bytes(encode(glass[..., 0]))
    (folder / "photo.jpeg").write_bytes(encode(picture(1), "JPEG", exif=turned))
    pictures = open_source(folder)
    assert [pictures.read(i).shape for i in range(4)] == [(300, 130, 3)] * 3 + [(24, 20, 3)]
    for i, name in enumerate(pictures.names):
        expected = to_uint8(read_picture(folder / name).pixels).permute(1, 2, 0).numpy()
        assert np.array_equal(pictures.read(i), expected)
    clear = glass.copy()
    clear[..., 3] = 0
    (folder / "glass.png").write_bytes(encode(clear))
    assert (pictures.read(1) == 255).all()


def test_reading_leaves_torch_without_a_reason_for_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "glass.png").write_bytes(encode(np.full((300, 130, 4), 100, np.uint8)))
    sizes: list[int] = []

    def to_uint8_and_note(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(pixels.numel())
        return to_uint8(pixels)

    monkeypatch.setattr(stored, "to_uint8", to_uint8_and_note)
    open_source(folder).read(0)
    assert sum(sizes) == 300 * 130 * 3
    assert max(sizes) <= 32_768  # at::internal::GRAIN_SIZE


def test_a_side_beyond_pillows_own_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = open_source(folder_of(tmp_path / "a", 1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert pictures.side(0) == 20


# Zips


def test_a_zip_gives_what_the_folder_gives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("inside.png")
        for i in (3, 1, 0, 2):
            archive.writestr(f"a/{i}.png", encode(picture(i)))
            archive.writestr(f"__MACOSX/a/._{i}.png", b"no picture")
            archive.writestr(f".hidden/{i}.png", b"no picture")
    pictures = open_source("a.zip", tmp_path)
    assert pictures.names == [f"a/{i}.png" for i in range(4)]
    assert same(pictures, range(4))
    assert pictures.side(0) == 20


def test_damaged_members_of_a_zip_are_told(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"good.png": encode(picture(0)), "bad.png": (body := encode(picture(1)))})
    content = path.read_bytes()
    place = content.index(body) + 60
    path.write_bytes(content[:place] + b"xxxx" + content[place + 4 :])
    pictures = open_source(path)
    with pytest.raises(PictureError, match=r"a\.zip: bad\.png: Bad CRC-32"):
        pictures.read(0)
    assert np.array_equal(pictures.read(1), picture(0))


def test_members_with_a_password_or_an_unknown_method_are_told(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"a.png": encode(picture(0)), "b.png": encode(picture(1))})
    content = bytearray(path.read_bytes())
    for place in (content.index(b"PK\3\4") + 6, content.index(b"PK\1\2") + 8):
        content[place] |= 1  # encrypted
    for place in (content.rindex(b"PK\3\4") + 8, content.rindex(b"PK\1\2") + 10):
        content[place] = 97  # a method that Python has not
    path.write_bytes(content)
    pictures = open_source(path)
    for i, reason in ((0, "password"), (1, "not supported")):
        with pytest.raises(PictureError, match=reason) as error:
            pictures.read(i)
        assert str(error.value).startswith(f"{path}: {pictures.names[i]}: ")


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"a.png": encode(picture(0))})
    path.write_bytes(path.read_bytes()[:-30])
    assert refused(path) == f"{path}: this zip is damaged (File is not a zip file); make or download it again."


# Tars


def test_a_tar_gives_its_pictures_in_their_order(tmp_path: Path) -> None:
    members = {}
    for i in (2, 0, 1):
        members[f"./{i}.txt"] = b"a caption" * 100
        members[f"./{i}.png"] = encode(picture(i))
        members[f"./._{i}.png"] = b"no picture"
    pictures = open_source("a.tar", tmp_path / tar_of(tmp_path / "a.tar", members).parent)
    assert pictures.names == ["./2.png", "./0.png", "./1.png"]
    assert same(pictures, [2, 0, 1])
    assert pictures.side(1) == 20


def test_long_names_and_what_is_no_file_in_a_tar(tmp_path: Path) -> None:
    name = "a" * 150 + ".png"
    path = tar_of(tmp_path / "a.tar", {name: encode(picture(0))})
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo("b.png")
            info.type, info.linkname = kind, name
            archive.addfile(info)
    assert open_source(path).names == [name]


def test_many_tars_are_one_source(tmp_path: Path) -> None:
    for shard in range(8, 12):
        members = {f"{i}.png": encode(picture(10 * shard + i)) for i in range(2)}
        tar_of(tmp_path / "s" / f"t-{shard:03}.tar", members)
    (tmp_path / "s" / "index.json").write_text("{}")
    (tmp_path / "s" / "._t-008.tar").write_bytes(b"what macOS leaves beside a tar")
    whole = open_source("s", tmp_path)
    assert whole.names == [f"t-{shard:03}.tar/{i}.png" for shard in range(8, 12) for i in range(2)]
    assert same(whole, [80, 81, 90, 91, 100, 101, 110, 111])
    assert same(open_source("s/t-{009..010}.tar", tmp_path), [90, 91, 100, 101])
    assert same(open_source("s/t-01{0..1}.tar", tmp_path), [100, 101, 110, 111])


def test_ranges_multiply_and_keep_their_digits(tmp_path: Path) -> None:
    for name in ("a8-0", "a8-1", "a9-0", "a9-1", "a10-0", "a10-1"):
        tar_of(tmp_path / f"{name}.tar", {"x.png": encode(picture(0))})
    names = open_source("a{8..10}-{0..1}.tar", tmp_path).names
    assert [name.partition(".")[0] for name in names] == ["a8-0", "a8-1", "a9-0", "a9-1", "a10-0", "a10-1"]
    assert "there is nothing between 3 and 1; give the lower end first" in refused("a{3..1}.tar", tmp_path)
    message = refused("a{08..10}-0.tar", tmp_path)
    assert "2 of these 3 files are missing, the first of them a08-0.tar; get them" in message


def test_tars_of_a_range_that_are_called_alike_are_refused(tmp_path: Path) -> None:
    """Pictures, captions and times go by the names of their tars, and those of one would be taken for the other's."""
    fsspec = pytest.importorskip("fsspec")
    for i in range(2):
        path = tar_of(tmp_path / f"{i}.tar", {"x.png": encode(picture(i)), "x.txt": b"of %d" % i})
        (tmp_path / str(i)).mkdir()
        path.rename(tmp_path / f"{i}/a.tar")
        fsspec.filesystem("memory").pipe_file(f"/alike/{i}/a.tar", (tmp_path / f"{i}/a.tar").read_bytes())
    for given, root in (("{0..1}/a.tar", tmp_path), ("memory://alike/{0..1}/a.tar", Path())):
        assert "several of these tars are called a.tar" in refused(given, root)


def test_a_folder_of_both_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", 1)
    tar_of(folder / "b.tar", {"x.png": encode(picture(0))})
    assert refused(folder) == f"{folder}: both pictures and .tar are in it; give a folder with one of them."


@pytest.mark.parametrize("part", ["last byte of a picture", "header", "first header", "all"])
def test_a_damaged_tar_is_refused(part: str, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {f"{i}.png": encode(picture(i)) for i in range(3)})
    content = path.read_bytes()
    third = content.index(b"2.png")
    if part == "last byte of a picture":
        content = content[: third + 600]
    elif part == "header":
        content = content[: third + 10] + b"xxxx" + content[third + 14 :]
    elif part == "first header":
        content = b"xxxx" + content[4:]
    else:
        content = b""
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(f"{path}: this tar is damaged (")
    assert message.endswith("); make or download it again.")


@pytest.mark.parametrize(("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar", "w:xz")])
def test_a_compressed_tar_is_refused(name: str, mode: str, tmp_path: Path) -> None:
    path = tar_of(tmp_path / name, {"a.png": encode(picture(0))}, mode)
    assert refused(path).startswith(f"{path}: this tar is compressed, ")


# Threads


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_pictures_are_read_by_many_threads_at_once(kind: str, tmp_path: Path) -> None:
    contents = {f"{i:02}.png": encode(picture(i)) for i in range(16)}
    if kind == "zip":
        path = zip_of(tmp_path / "a.zip", contents)
    elif kind == "tar":
        path = tar_of(tmp_path / "a.tar", contents)
    else:
        path = folder_of(tmp_path / "a", 16)
    pictures = open_source(path)
    expected = [picture(i) for i in range(16)]
    gate = threading.Barrier(8)

    def read(_: int) -> bool:
        gate.wait()
        return all(np.array_equal(pictures.read(i), expected[i]) for i in range(16))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


# Datasets of Hugging Face


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, kept from the network and from the user's cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own while it is imported
        package = pytest.importorskip("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    package.disable_progress_bars()
    return package


def table(datasets: Any, seeds: Iterable[int]) -> Any:
    """A dataset with captions, pictures in one column, and the same ones cut in another."""
    seeds = list(seeds)
    columns = {
        "caption": [f"picture {seed}" for seed in seeds],
        "image": [{"bytes": encode(picture(seed)), "path": None} for seed in seeds],
        "mask": [{"bytes": encode(picture(seed + 100)), "path": None} for seed in seeds],
    }
    kinds = {"caption": datasets.Value("string"), "image": datasets.Image(), "mask": datasets.Image()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


@pytest.mark.slow
def test_a_saved_dataset_is_read(datasets: Any, tmp_path: Path) -> None:
    table(datasets, range(3)).save_to_disk(tmp_path / "a")
    pictures = open_source("a", tmp_path)
    assert pictures.names == ["row 0", "row 1", "row 2"]
    assert same(pictures, range(3))
    assert pictures.side(0) == 20
    assert same(open_source("hf:a::mask", tmp_path), range(100, 103))
    assert "there are no pictures in a column caption; give one of image, mask" in refused("hf:a::caption", tmp_path)
    assert "saved without splits; leave test out" in refused("hf:a:test", tmp_path)
    with ThreadPoolExecutor(4) as pool:
        for i, read in enumerate(pool.map(pictures.read, [i % 3 for i in range(24)])):
            assert np.array_equal(read, picture(i % 3))


def test_splits_of_a_saved_dataset(datasets: Any, tmp_path: Path) -> None:
    splits = {"test": table(datasets, range(5, 7)), "train": table(datasets, range(3))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "a")
    assert same(open_source("a", tmp_path), range(3))
    assert same(open_source("hf:a:test", tmp_path), range(5, 7))
    assert "there is no split val in this dataset; give one of test, train" in refused("hf:a:val", tmp_path)
    datasets.DatasetDict({"val": table(datasets, [4])}).save_to_disk(tmp_path / "b")
    assert same(open_source("b", tmp_path), [4])


def test_a_dataset_is_loaded_by_name(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table(datasets, range(10)).to_parquet(tmp_path / "set" / "train.parquet")
    name = tmp_path / "set"
    assert same(open_source(f"hf:{name}"), range(10))
    assert same(open_source(f"hf:{name}:train[:30%]"), range(3))
    assert same(open_source(f"hf:{name}:train[8:]:mask"), range(108, 110))
    assert "can't be loaded" in refused(f"hf:{name}:val")
    assert "can't be loaded" in refused(f"hf:{tmp_path / 'gone'}")


def test_rows_without_a_picture_and_files_beside_the_table(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode(picture(7)))
    rows = [{"bytes": None, "path": str(tmp_path / "x.png")}, None, {"bytes": b"no picture", "path": None}]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).save_to_disk(tmp_path / "a")
    pictures = open_source("a", tmp_path)
    assert np.array_equal(pictures.read(0), picture(7))
    with pytest.raises(PictureError, match="row 1: there is no picture in this row"):
        pictures.read(1)
    with pytest.raises(PictureError, match="row 2: The picture is no picture that can be read"):
        pictures.read(2)


def test_a_dataset_without_pictures_is_refused(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"caption": ["a"]}).save_to_disk(tmp_path / "a")
    assert "no column of this dataset holds pictures; give another dataset" in refused("a", tmp_path)
    table(datasets, []).save_to_disk(tmp_path / "b")
    assert "this dataset can't be loaded" in refused("b", tmp_path)
    (tmp_path / "c").mkdir()
    table(datasets, [1]).to_parquet(tmp_path / "c" / "train.parquet")
    assert "corresponds to no data" in refused(f"hf:{tmp_path / 'c'}:train[:0]")


@pytest.mark.parametrize("spec", ["hf:", "hf::train", "hf:a:train:image:more"])
def test_a_spec_of_a_dataset_has_a_name_and_at_most_three_parts(spec: str) -> None:
    assert refused(spec) == f"{spec} names no dataset; give hf:NAME, hf:NAME:SPLIT or hf:NAME:SPLIT:COLUMN."


def test_without_the_package_datasets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    expected = "hf:a/b: to read it, the package datasets is needed; install it with: pip install 'calotype[train]'."
    assert refused("hf:a/b") == expected
