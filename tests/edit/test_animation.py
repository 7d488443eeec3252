"""Animations, opened again by Pillow and PyAV."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from editkit import levels
from PIL import Image
from support import names, one_sentence

from calotype.edit.animation import SUFFIXES, animation, rate, require_animation
from calotype.errors import PictureError, UsageError

STILL = [suffix for suffix in SUFFIXES if suffix != ".mp4"]
EXACT = [suffix for suffix in STILL if suffix != ".gif"]


def frames(count: int, width: int = 31, height: int = 18) -> list[Image.Image]:
    return [Image.fromarray(levels(seed, width, height)) for seed in range(count)]


def written(path: Path, images: list[Image.Image], fps: float = 10, plays: int = 0) -> Path:
    with animation(path, size=images[0].size, frames=len(images), fps=fps, plays=plays) as add:
        for image in images:
            add(image)
    return path


def opened(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Frames, and how long each is shown in ms."""
    found, durations = [], []
    with Image.open(path) as image:
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            image.load()
            found.append(np.asarray(image.convert("RGB")))
            durations.append(float(image.info["duration"]))
    return found, durations


@pytest.mark.parametrize("suffix", EXACT)
def test_apng_and_webp_keep_every_level(suffix: str, tmp_path: Path) -> None:
    images = frames(5)
    found, durations = opened(written(tmp_path / f"a{suffix}", images))
    assert len(found) == 5
    assert all(np.array_equal(x, np.asarray(y)) for x, y in zip(found, images, strict=True))
    assert durations == [100.0] * 5


def test_gif_keeps_what_256_colours_can(tmp_path: Path) -> None:
    images = frames(5, 64, 48)
    found, durations = opened(written(tmp_path / "a.gif", images))
    assert durations == [100.0] * 5
    for x, image in zip(found, images, strict=True):
        y = np.asarray(image).astype(float)
        assert np.sqrt(np.mean((x - y) ** 2)) < 12
        assert np.abs(x.mean((0, 1)) - y.mean((0, 1))).max() < 2  # dithered: right on average


def test_gif_keeps_few_colours_exactly(tmp_path: Path) -> None:
    """And so shows that every frame has its own colours."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(4):
        colours = rng.integers(0, 256, (5, 3), dtype=np.uint8)
        images.append(Image.fromarray(colours[rng.integers(0, 5, (20, 30))]))
    found, _ = opened(written(tmp_path / "a.gif", images))
    assert all(np.array_equal(x, np.asarray(y)) for x, y in zip(found, images, strict=True))


@pytest.mark.parametrize("suffix", STILL)
def test_equal_frames_stay_frames(suffix: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (9, 7), "teal")
    found, durations = opened(written(tmp_path / f"a{suffix}", [image] * 4))
    assert len(found) == 4
    assert durations == [100.0] * 4


@pytest.mark.parametrize(("suffix", "unit"), [(".gif", 10), (".webp", 1)])
def test_rounded_durations_add_up(suffix: str, unit: int, tmp_path: Path) -> None:
    _, durations = opened(written(tmp_path / f"a{suffix}", frames(24, 4, 3), fps=24))
    assert sum(durations) == 1000
    assert set(durations) <= {unit * (1000 // 24 // unit), unit * (1000 // 24 // unit + 1)}


def test_apng_holds_the_rate_as_a_ratio(tmp_path: Path) -> None:
    _, durations = opened(written(tmp_path / "a.png", frames(3, 4, 3), fps=23.976))
    assert durations == pytest.approx([1001 / 24] * 3, abs=1e-3)


def test_rates_are_ratios_that_files_can_hold() -> None:
    assert (rate(12), rate(0.5), rate(23.976)) == (12, Fraction(1, 2), Fraction(2997, 125))
    for fps in (0.1, 59.94006, 119.999, 120.0, 0.123456789):
        found = rate(fps)
        assert float(found) == pytest.approx(fps, rel=2e-5)
        assert max(found.numerator, found.denominator) < 2**16


@pytest.mark.parametrize("suffix", STILL)
@pytest.mark.parametrize("plays", [0, 1, 3])
def test_how_often_it_is_played(suffix: str, plays: int, tmp_path: Path) -> None:
    path = written(tmp_path / f"a{suffix}", frames(3, 4, 3), plays=plays)
    with Image.open(path) as image:
        image.load()
        if suffix == ".gif":  # counts how often it begins again, and not at all for once
            assert image.info.get("loop") == {0: 0, 1: None, 3: 2}[plays]
        else:
            assert image.info["loop"] == plays


@pytest.mark.parametrize("suffix", STILL)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (301, 2)])
def test_any_size(suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    found, _ = opened(written(tmp_path / f"a{suffix}", frames(2, *size)))
    assert [x.shape for x in found] == [(size[1], size[0], 3)] * 2


@pytest.mark.parametrize("suffix", STILL)
def test_one_frame(suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"a{suffix}", frames(1))
    with Image.open(path) as image:
        assert image.size == (31, 18)
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - levels(0, 31, 18)).mean() < 6


@pytest.mark.parametrize("suffix", [*STILL, ".mp4"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_is_stopped_leaves_what_was_there(suffix: str, error: type[BaseException], tmp_path: Path) -> None:
    if suffix == ".mp4":
        pytest.importorskip("av")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"before")
    with (
        pytest.raises(error),
        animation(path, size=(31, 18), frames=9, fps=10) as add,
    ):
        for image in frames(3):
            add(image)
        raise error
    assert names(tmp_path) == [path.name]
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_frames_is_refused(count: int, tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="was to have 3 frames"),
        animation(tmp_path / "a.gif", size=(31, 18), frames=3, fps=10) as add,
    ):
        for image in frames(count):
            add(image)
    assert names(tmp_path) == []


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(PictureError, match=r"a\.png can't be written: No space left on device\.$") as error,
        animation(tmp_path / "a.png", size=(31, 18), frames=3, fps=10) as add,
    ):
        monkeypatch.setattr(Image.Image, "save", full)
        add(frames(1)[0])
    one_sentence(str(error.value))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.avi", {}, r"'\.avi' is no animation; use one of \.gif, \.png, \.apng, \.webp, \.mp4"),
        ("a", {}, "'no suffix' is no animation"),
        ("a.gif", {"fps": 60}, r"at most 50 frames a second, not 60; use \.png or \.webp"),
        ("a.png", {"fps": 0}, "from 0.1 to 120 frames a second, not 0"),
        ("a.png", {"fps": float("nan")}, "from 0.1 to 120"),
        ("a.png", {"plays": -1}, "from 1 to 65535 times"),
        ("a.webp", {"size": (16384, 2)}, "at most 16383 pixels a side, and this is 16384x2"),
    ],
)
def test_what_a_format_can_not_is_refused(name: str, options: dict[str, float], words: str, tmp_path: Path) -> None:
    given = {"fps": 10, **options}
    with pytest.raises(UsageError, match=words) as error:
        if given.get("fps") == 10:
            require_animation(tmp_path / name, **given)  # type: ignore[arg-type]
        else:
            with animation(tmp_path / name, size=(4, 3), frames=2, **given):  # type: ignore[arg-type]
                pass
    one_sentence(str(error.value))
    assert names(tmp_path) == []


def test_mp4_without_pyav_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        UsageError, match=r"the package av is needed; install it with: pip install 'calotype\[video\]'"
    ) as e:
        require_animation(tmp_path / "a.mp4", 12)
    one_sentence(str(e.value))


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_mp4(size: tuple[int, int], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    images = [
        Image.fromarray(np.stack([2 * x + 8 * i, 3 * y, 255 - 2 * x], -1).clip(0, 255).astype(np.uint8))
        for i in range(12)
    ]
    path = written(tmp_path / "a.mp4", images, fps=24)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames) == (24, 12)
        assert (stream.width, stream.height) == (64, 48)
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == 1  # BT.709
        assert float(stream.duration * stream.time_base) == pytest.approx(0.5)
        found = [frame.to_ndarray(format="rgb24", src_colorspace="ITU709") for frame in container.decode(stream)]
    assert len(found) == 12
    for image, decoded in zip(images, found, strict=True):
        before = np.asarray(image).astype(float)
        error = np.sqrt(np.mean((before - decoded[: size[1], : size[0]]) ** 2))
        assert error < 4  # levels; in the wrong colour space it is 10
        assert np.abs(before.mean((0, 1)) - decoded[: size[1], : size[0]].mean((0, 1))).max() < 2


def test_mp4_can_not_say_how_often(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="MP4 does not say how often"):
        require_animation(tmp_path / "a.mp4", 12, plays=2)
