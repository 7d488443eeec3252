"""What pictures say of how they were made."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import one_sentence

import calotype
from calotype.draw.record import KEYWORD, digest, origin, read_record, record
from calotype.errors import PictureError, UsageError
from calotype.pixels import read_picture, write_picture
from calotype.rows import write_rows

VALUES: dict[str, Any] = {
    "prompt": 'a "red"\napple, 红苹果 🍎', "seed": 2**63 - 1, "guidance": 4.5, "size": [64, 32], "vae": {"name": "x"},
    "mask": None,
}  # fmt: skip


def picture() -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * 32 * 64).view(3, 32, 64)


def chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """A PNG's chunks; their checksums are checked."""
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        found.append((kind, body))
        at += 12 + length
    return found


def written(path: Path, text: dict[str, str] | None, by_rows: bool) -> Path:
    if by_rows:
        return write_rows(path, picture().split(5, dim=1), width=64, height=32, text=text)
    return write_picture(path, picture(), text=text)


@pytest.mark.parametrize("by_rows", [False, True])
def test_a_record_comes_back_and_changes_no_pixel(by_rows: bool, tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", record("draw", VALUES), by_rows)
    assert read_record(path) == {"calotype": calotype.__version__, "kind": "draw", **VALUES}
    [text] = [body for kind, body in chunks(path) if kind == b"iTXt"]
    assert text.startswith(b"calotype\0\0\0\0\0{")
    assert json.loads(text[13:].decode("utf-8")) == read_record(path)
    with Image.open(path) as image:
        assert json.loads(image.text[KEYWORD]) == read_record(path)  # type: ignore[attr-defined]
    plain = written(tmp_path / "b.png", None, by_rows)
    assert [kind for kind, _ in chunks(plain) if kind in (b"iTXt", b"tEXt")] == []
    assert torch.equal(read_picture(path).pixels, read_picture(plain).pixels)
    assert read_picture(path).notices == ()


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("by_rows", [False, True])
def test_other_formats_are_written_without_it(by_rows: bool, suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"a{suffix}", record("draw", VALUES), by_rows)
    assert path.read_bytes() == written(tmp_path / f"b{suffix}", None, by_rows).read_bytes()
    with pytest.raises(UsageError, match="is no PNG") as caught:
        read_record(path)
    one_sentence(str(caught.value))


def test_a_chunk_after_the_pixels_and_among_others_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", {"Comment": "none", **record("draw", VALUES), "Title": "é"}, True)
    parts = [one for one in chunks(path) if one[0] != b"IEND"]
    late = sorted(parts, key=lambda one: one[0] == b"iTXt")
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*late, (b"IEND", b"")]
    )
    assert late != parts
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert read_record(path)["prompt"] == VALUES["prompt"]


def changed(path: Path, old: bytes, new: bytes) -> None:
    """Changes what the chunk holds; its checksum is right again."""
    data = path.read_bytes()
    start = data.index(b"iTXt")
    length = struct.unpack(">I", data[start - 4 : start])[0]
    body = data[start : start + 4 + length].replace(old, new)
    rest = data[start + 8 + length :]
    path.write_bytes(
        data[: start - 4] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + rest
    )


@pytest.mark.parametrize(
    ("old", "new"), [(b'"kind": "draw"', b'"kind": 3'), (b"}", b""), (b"{", b"["), (b"apple", b"\xff\xfe")]
)
def test_a_damaged_record_is_said(old: bytes, new: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", record("draw", {"prompt": "apple"}), True)
    changed(path, old, new)
    with pytest.raises(PictureError, match="its text chunk 'calotype' is damaged") as caught:
        read_record(path)
    one_sentence(str(caught.value))


def test_what_can_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", record("draw", VALUES), True)
    data = path.read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:100])
    (tmp_path / "end.png").write_bytes(data[:-12])
    at = data.index(b"seed")
    (tmp_path / "bit.png").write_bytes(data[:at] + b"S" + data[at + 1 :])
    (tmp_path / "text.png").write_text("no picture")
    written(tmp_path / "plain.png", None, False)
    written(tmp_path / "other.png", {"calotypes": "{}"}, True)
    for name, error, words in (
        ("none.png", PictureError, "does not exist"),
        ("cut.png", PictureError, "damaged or cut off"),
        ("bit.png", PictureError, "damaged or cut off"),
        ("text.png", UsageError, "is no PNG"),
        ("plain.png", UsageError, "no text chunk 'calotype'"),
        ("other.png", UsageError, "no text chunk 'calotype'"),
    ):
        with pytest.raises(error, match=words) as caught:
            read_record(tmp_path / name)
        one_sentence(str(caught.value))
        assert str(tmp_path / name) in str(caught.value)
    assert read_record(tmp_path / "end.png")["seed"] == VALUES["seed"]  # the record itself is whole


def test_digests_are_those_of_sha256sum(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(np.arange(70000, dtype=np.uint16).tobytes())
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest(file) == expected
    assert origin(file) == {"name": "a.bin", "sha256": expected}
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "w").write_bytes(b"1")
    (folder / "index").write_bytes(b"2")
    lines = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in (("index", b"2"), ("unet/w", b"1"))
    )
    assert digest(folder) == hashlib.sha256(lines.encode()).hexdigest()
    before = digest(folder)
    (folder / "unet" / "w").rename(folder / "unet" / "v")
    assert digest(folder) != before


def test_names_that_are_no_text_do_not_stop_a_picture(tmp_path: Path) -> None:
    odd = tmp_path / "b\udcffd.png"
    odd.write_bytes(b"1")
    path = written(tmp_path / "a.png", record("vary", {"source": origin(odd)}), True)
    assert read_record(path)["source"]["name"] == odd.name


def test_importing_it_is_cheap() -> None:
    code = "import sys, calotype.draw.record; print([m for m in ('torch', 'tokenizers', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
