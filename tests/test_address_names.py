"""What is an address and what a path, and which addresses are refused before anything is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image
from support import one_sentence

from calotype import addresses
from calotype.errors import UsageError
from calotype.sources import open_source


def refused(address: str | Path) -> str:
    with pytest.raises(UsageError) as error:
        open_source(address)
    one_sentence(str(error.value))
    return str(error.value)


def test_addresses_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing here reads foo://; give s3://, gs://" in refused("foo://bar/a")
    for address in ("simplecache::s3://b/a", "zip://a.png::s3://b/a.zip", "tar://a", "reference://x"):
        assert "stands for another one; give where the files lie themselves." in refused(address)
    message = refused("sftp://me:secret@host/folder")
    assert "no password may stand in an address" in message
    assert "secret" not in message

    def missing(protocol: str) -> Any:
        raise ImportError(f"Install {protocol}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    monkeypatch.setattr(addresses, "_systems", {})
    assert refused("s3://b/a").endswith("a package is needed; install it with: pip install 'calotype[s3]'.")
    assert refused("gs://b/a").endswith("pip install gcsfs.")
    assert refused("oss://b/a") == "oss://b/a: to read oss://, a package is needed: Install oss."


def test_paths_that_look_like_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (8, 8)).save(data / "a.png")
    assert "if an address is meant, give it as a text, s3://bucket/a." in refused(Path("s3://bucket/a"))
    for name in ("s3:", "C:", "a::b"):
        data.rename(tmp_path / name)
        data = tmp_path / name
        assert len(open_source(f"./{name}")) == 1
        assert len(open_source(name)) == 1
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    addresses.require_local(Path("s3://bucket/out"), "--out")  # such a folder is there
    with pytest.raises(UsageError, match="--out s3://bucket/out: files are written"):
        addresses.require_local("s3://bucket/out", "--out")
