"""Caches as they are made: what is in them, what is made again and what is kept."""

from __future__ import annotations

import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import numpy as np
import pytest
import torch
from cachekit import contents, fill, folder, picture, shards, spoilt, units_of
from PIL import Image
from safetensors import safe_open
from support import one_sentence

from calotype.cache import Job, Rules, looked, open_cache, scan
from calotype.cache.looked import Found
from calotype.cache.make import A_FEW, Progress, _begun, allowed, job_of, make
from calotype.cache.store import Store
from calotype.cache.worker import resized
from calotype.errors import CalotypeError, UsageError
from calotype.pixels import from_array, read_picture
from calotype.sources import Stored
from calotype.vae import VAE


def touched(path: Path) -> Path:
    """A file as if it were older than clocks' ticks: then a scan trusts its time."""
    old = path.stat().st_mtime_ns - 10**11
    os.utime(path, ns=(old, old))
    return path


def test_it_holds_the_posterior_of_the_pixels_that_its_rules_name(data: Path, out: Path, vae: VAE) -> None:
    outcome = fill(data, out, vae, rules=Rules(size=(32, 16), flip=True), store="float32")
    assert (outcome.made, outcome.held, outcome.wanted, outcome.units, outcome.bad) == (7, 7, 7, 3, [])
    cache = open_cache(out)
    assert len(cache) == 7
    assert cache.samples["name"].to_pylist() == [f"{i}.png" for i in range(7)]
    assert cache.samples["caption"].to_pylist() == [f"picture {i}" for i in range(7)]
    row = cache.row(4)
    with Image.open(data / "4.png") as image:
        whole = image.resize((row["resized_width"], row["resized_height"]), Image.Resampling.BICUBIC)
    x, y = row["crop_x"], row["crop_y"]
    pixels = from_array(np.asarray(whole)[y : y + 16, x : x + 32])[None]
    for name, picture_ in (("", pixels), ("_flip", pixels.flip(-1))):
        posterior = vae.encode(picture_)
        # the crop is resized alone, which rounds some of its levels otherwise than the whole
        assert torch.allclose(row[f"mean{name}"], posterior.mean[0], atol=0.05)
        assert torch.allclose(row[f"logvar{name}"], posterior.logvar[0], atol=0.05)  # type: ignore[union-attr]


def test_without_resizing_the_numbers_are_those_of_encode(tmp_path: Path, out: Path, vae: VAE) -> None:
    data = tmp_path / "data"
    for i in range(3):
        picture(data / f"{i}.png", 16, 16, seed=i)
    fill(data, out, vae, store="float32")
    for i in range(3):
        posterior = vae.encode(read_picture(data / f"{i}.png").pixels[None])
        row = open_cache(out).row(i)
        assert torch.equal(row["mean"], posterior.mean[0])
        assert torch.equal(row["logvar"], posterior.logvar[0])  # type: ignore[union-attr]


@pytest.mark.parametrize("store", ["float16", "bfloat16", "float32"])
def test_shards_are_plain_safetensors_that_say_what_they_hold(store: str, data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae, value="mode", store=store)
    cache = open_cache(out)
    for path in out.glob("shards/16x16/*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.keys() == ["latents"]
            tensor = file.get_tensor("latents")
            assert tensor.dtype == getattr(torch, store)
            assert tensor.shape[1:] == (4, 2, 2)
            assert file.metadata() == {
                "format": "calotype cache", "space": "raw", "value": "mode", "vae": vae.sha256,
                "fingerprint": cache.job.fingerprint, "bucket": "16x16",
            }  # fmt: skip
    row = cache.row(5)
    assert zlib.crc32(row["latents"].view(torch.uint8).numpy().tobytes()) == row["crc32"]
    assert (row["min"], row["max"]) == (float(row["latents"].min()), float(row["latents"].max()))


def test_a_slice_keeps_no_more_than_itself(data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae)
    shard = open_cache(out).shard(open_cache(out).units[0])
    rows = shard.rows("mean", 1, 2)
    assert rows.untyped_storage().nbytes() == rows.nbytes
    with pytest.raises(IndexError):
        shard.rows("mean", 2, 9)


def test_a_second_run_makes_nothing_and_reads_nothing(
    data: Path, out: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in data.iterdir():
        touched(path)
    fill(data, out, vae)
    before = contents(out)
    monkeypatch.setattr("calotype.cache.scan.look", None)
    assert fill(data, out, vae).made == 0
    assert contents(out) == before


def test_a_scan_that_was_killed_goes_on(data: Path, out: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in data.iterdir():
        touched(path)
    looks, look = [], scan.look

    def looking(source: Stored, i: int) -> Found:
        looks.append(i)
        return look(source, i)

    def killed(progress: Progress) -> None:
        if progress.done == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(looked, "KEEP", 0.0)
        fill(data, out, vae, tell=killed)
    assert len(list((out / "looked").iterdir())) == 4
    touched(touched(picture(data / "1.png", seed=77)))
    monkeypatch.setattr(scan, "look", looking)
    fill(data, out, vae)
    assert sorted(looks) == [1, 4, 5, 6], "all but what was found is read, and what was edited since"
    whole = out.with_name("whole")
    fill(data, whole, vae)
    assert contents(out) == contents(whole)


def test_an_edited_picture_is_made_again_and_nothing_else(data: Path, out: Path, vae: VAE) -> None:
    for path in data.iterdir():
        touched(path)
    fill(data, out, vae)
    old, before = open_cache(out).row(2), shards(out)
    stat = (data / "2.png").stat()
    content = (data / "2.png").read_bytes()
    picture(data / "2.png", seed=50)
    # of the same size and time, as by a copy that keeps times: only a file that is older than the clock's tick is
    # believed, and this one has another length
    assert (data / "2.png").read_bytes() != content
    os.utime(data / "2.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert fill(data, out, vae).made == 1
    assert before.items() <= shards(out).items()
    new = open_cache(out).row(2)
    assert new["name"] == "2.png"
    assert not torch.equal(new["mean"], old["mean"])
    assert len(open_cache(out)) == 7


def test_what_is_written_twice_within_a_tick_of_the_clock_is_read_again(data: Path, out: Path, vae: VAE) -> None:
    Image.new("RGB", (16, 16), (10, 20, 30)).save(data / "0.bmp")
    fill(data, out, vae)
    stat = (data / "0.bmp").stat()
    Image.new("RGB", (16, 16), (30, 20, 10)).save(data / "0.bmp")  # as long as before
    os.utime(data / "0.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fill(data, out, vae).made == 1


def test_a_caption_changes_without_its_latents(data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae)
    (data / "3.txt").write_text("something else")
    (data / "4.txt").unlink()
    assert fill(data, out, vae).made == 0
    assert open_cache(out).samples["caption"].to_pylist()[3:5] == ["something else", None]


def test_removed_pictures_leave_the_manifest(data: Path, out: Path, vae: VAE) -> None:
    fill(data, out, vae)
    before = shards(out)
    (data / "1.png").unlink()
    assert fill(data, out, vae).held == 6
    assert "1.png" not in open_cache(out).samples["name"].to_pylist()
    assert shards(out) == before
    picture(data / "1.png", seed=1)
    assert fill(data, out, vae).made == 0


def test_equal_names_and_equal_contents_are_two_samples(data: Path, out: Path, vae: VAE) -> None:
    shutil.copy(data / "0.png", data / "again.png")
    picture(data / "deep/0.png", seed=9)
    (data / "same").mkdir()
    shutil.copy(data / "0.png", data / "same/0.png")
    assert fill(data, out, vae).held == 10
    cache = open_cache(out)
    rows = {row["name"]: row for row in map(cache.row, range(len(cache)))}
    assert torch.equal(rows["0.png"]["mean"], rows["again.png"]["mean"])
    assert torch.equal(rows["0.png"]["mean"], rows["same/0.png"]["mean"])
    assert not torch.equal(rows["0.png"]["mean"], rows["deep/0.png"]["mean"])


def test_one_stem_of_two_kinds_is_two_samples(tmp_path: Path, out: Path, vae: VAE) -> None:
    picture(tmp_path / "data/a.png", seed=1)
    picture(tmp_path / "data/a.jpg", seed=2)
    fill(tmp_path / "data", out, vae)
    cache = open_cache(out)
    assert cache.samples["name"].to_pylist() == ["a.jpg", "a.png"]
    assert not torch.equal(cache.row(0)["mean"], cache.row(1)["mean"])


def test_another_vae_or_rule_is_refused_and_named(data: Path, out: Path, vae: VAE, other: VAE) -> None:
    fill(data, out, vae)
    before = contents(out)
    for said, given in (
        ("the VAE small.safetensors (", (other, {})),
        ("--value moments, not mode", (vae, {"value": "mode"})),
        ("--store float16, not float32", (vae, {"store": "float32"})),
        ("size 16x16, not 32x16", (vae, {"rules": Rules(size=(32, 16))})),
        ("no flip", (vae, {"rules": Rules(size=(16, 16), flip=True)})),
        ("crop centre, not top", (vae, {"rules": Rules(size=(16, 16), crop="top")})),
        ("seed 0, not 3", (vae, {"rules": Rules(size=(16, 16), seed=3)})),
        ("background 255,255,255, not 0,0,0", (vae, {"rules": Rules(size=(16, 16), background=(0, 0, 0))})),
    ):
        with pytest.raises(UsageError) as refused:
            fill(data, out, given[0], **given[1])  # type: ignore[arg-type]
        assert said in str(refused.value)
        one_sentence(str(refused.value))
    assert contents(out) == before


def test_a_cache_within_its_pictures_is_no_picture(data: Path, vae: VAE) -> None:
    out = data / "cached"
    fill(data, out, vae)
    picture(out / "summary.png", seed=5)  # as a page about the cache may have
    assert fill(data, out, vae).wanted == 7
    with pytest.raises(UsageError, match="can't be the folder of the pictures itself"):
        fill(data, data, vae)
    with pytest.raises(UsageError, match="no cache and not empty"):
        fill(data, folder(data.parent / "others", 1), vae)


def test_samples_depend_on_the_picture_and_the_seed_alone(data: Path, tmp_path: Path, vae: VAE) -> None:
    fill(data, tmp_path / "all", vae, value="sample")
    (tmp_path / "few").mkdir()
    for name in ("5.png", "2.png"):
        shutil.copy(data / name, tmp_path / "few" / name)
    fill(tmp_path / "few", tmp_path / "two", vae, value="sample")
    fill(data, tmp_path / "seeded", vae, value="sample", rules=Rules(size=(16, 16), seed=1))
    fill(data, tmp_path / "mode", vae, value="mode")
    whole, few, seeded, mode = (open_cache(tmp_path / name) for name in ("all", "two", "seeded", "mode"))
    assert torch.equal(whole.row(2)["latents"], few.row(0)["latents"])
    assert torch.equal(whole.row(5)["latents"], few.row(1)["latents"])
    assert not torch.equal(whole.row(2)["latents"], seeded.row(2)["latents"])
    assert not torch.equal(whole.row(2)["latents"], mode.row(2)["latents"])


def test_turned_pictures_are_upright_and_transparent_ones_over_the_background(
    tmp_path: Path, out: Path, vae: VAE
) -> None:
    data = tmp_path / "data"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(data / "a.png", 48, 16, seed=1, exif=exif)
    with Image.open(data / "a.png") as image:
        image.load()
        upright = image.transpose(Image.Transpose.ROTATE_270)
    upright.save(data / "b.png")
    Image.new("RGBA", (16, 48), (200, 0, 0, 0)).save(data / "c.png")
    Image.new("RGB", (16, 48), (0, 0, 255)).save(data / "d.png")
    fill(data, out, vae, rules=Rules(size=(16, 48), background=(0, 0, 255)))
    cache = open_cache(out)
    a, b, c, d = map(cache.row, range(4))
    assert (a["stored_width"], a["stored_height"], a["width"], a["height"]) == (48, 16, 16, 48)
    assert (b["stored_width"], b["stored_height"]) == (16, 48)
    assert torch.equal(a["mean"], b["mean"])
    assert torch.equal(c["mean"], d["mean"])


def test_buckets(tmp_path: Path, out: Path, vae: VAE) -> None:
    data = tmp_path / "data"
    shapes = [(64, 64), (128, 32), (30, 120), (90, 60), (61, 61)]
    for i, (width, height) in enumerate(shapes):
        picture(data / f"{i}.png", width, height, seed=i)
    outcome = fill(data, out, vae, rules=Rules(buckets="64/16"))
    assert outcome.enlarged == 2
    cache = open_cache(out)
    found = [(row["bucket_width"], row["bucket_height"]) for row in map(cache.row, range(5))]
    assert found == [(64, 64), (128, 32), (32, 128), (80, 48), (64, 64)]
    assert {path.name for path in out.glob("shards/*")} == {"64x64", "128x32", "32x128", "80x48"}
    for i in range(5):
        row = cache.row(i)
        assert row["mean"].shape == (4, row["bucket_height"] // 8, row["bucket_width"] // 8)
        assert row["resized_width"] >= row["bucket_width"]
        assert row["resized_height"] >= row["bucket_height"]


def test_small_pictures_are_enlarged_or_bad(data: Path, out: Path, tmp_path: Path, vae: VAE) -> None:
    picture(data / "small.png", 8, 8)
    assert fill(data, out, vae).enlarged == 1
    outcome = fill(data, tmp_path / "strict", vae, rules=Rules(size=(16, 16), enlarge=False))
    assert outcome.held == 7
    assert [(one.name, one.reason) for one in outcome.bad] == [
        ("small.png", "it has 8x8 pixels, and would have to be enlarged to cover 16x16.")
    ]


def test_bad_pictures_are_told_and_the_others_made(data: Path, out: Path, vae: VAE) -> None:
    (data / "empty.png").write_bytes(b"")
    spoilt(data / "31.png", data / "3.png")  # in the middle of a unit
    (data / "text.jpg").write_text("no picture")
    outcome = fill(data, out, vae)
    assert (outcome.made, outcome.held, outcome.wanted) == (7, 7, 7)
    again = fill(data, out, vae)
    assert (again.made, again.held, again.wanted, len(again.bad)) == (0, 7, 7, 3)
    reasons = {one.name: one.reason for one in outcome.bad}
    assert reasons.keys() == {"empty.png", "31.png", "text.jpg"}
    assert reasons["empty.png"] == "it is empty: 0 bytes."
    assert all(str(data) not in reason and reason.endswith(".") for reason in reasons.values())
    cache = open_cache(out)
    assert cache.samples["name"].to_pylist() == [f"{i}.png" for i in range(7)]
    for i in range(7):  # rows moved up where a bad one was left out
        assert torch.equal(cache.row(i)["mean"], _alone(data / f"{i}.png", vae))
    assert fill(data, out, vae).made == 0
    shutil.copy(data / "2.png", data / "31.png")
    again = fill(data, out, vae)
    assert (again.made, again.held, len(again.bad)) == (1, 8, 2)


def _alone(path: Path, vae: VAE) -> torch.Tensor:
    with Image.open(path) as image:
        levels = np.asarray(image)
    placed = Rules(size=(16, 16)).place(levels.shape[1], levels.shape[0], b"")
    return vae.encode(from_array(resized(levels, placed))[None]).mean[0].to(torch.float16)


def test_too_many_bad_ones_end_the_run_and_name_the_first(data: Path, out: Path, vae: VAE) -> None:
    for i in range(4):
        (data / f"bad{i}.png").write_bytes(b"no")
    with pytest.raises(CalotypeError) as ended:
        fill(data, out, vae)
    assert str(ended.value).startswith("4 of 11 pictures can't be cached, and --max-bad allows 3: bad0.png: ")
    assert "and 1 more" in str(ended.value)
    one_sentence(str(ended.value))
    assert len(fill(data, out, vae, max_bad="50%").bad) == 4
    for i in range(3):  # found while it is made: the unit in hand is committed, and what is made is kept
        spoilt(data / f"8{i}.png", data / "1.png", 60 + i)
    with pytest.raises(CalotypeError, match="7 of 14 pictures"):
        fill(data, out, vae, max_bad="6")
    assert fill(data, out, vae, max_bad="7").made == 0


def test_shares_of_bad_pictures() -> None:
    assert [allowed(text, 1000) for text in ("1%", "0%", "2.5 %", "0", "17", "100%")] == [10, A_FEW, 25, 0, 17, 1000]
    for text in ("", "x", "-1", "101%", "1.5", "%"):
        with pytest.raises(UsageError, match="--max-bad"):
            allowed(text, 1000)


def test_no_pictures_or_none_that_are_well(tmp_path: Path, out: Path, vae: VAE) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="there is no picture in it"):
        fill(tmp_path / "none", out, vae)
    assert not out.exists()
    (tmp_path / "none/a.png").write_bytes(b"")
    with pytest.raises(CalotypeError, match=r"none of its pictures can be cached: a\.png: it is empty"):
        fill(tmp_path / "none", out, vae, max_bad="100%")
    spoilt(tmp_path / "cut/a.png", picture(tmp_path / "cut/a.png"))
    with pytest.raises(CalotypeError, match="none of its pictures can be cached"):
        fill(tmp_path / "cut", tmp_path / "out2", vae, max_bad="100%")


def test_a_picture_that_vanishes_or_changes_meanwhile_is_told_and_made_later(
    data: Path, out: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calotype.cache import make as making

    ordinary = making.plan

    def then_gone(*given: object) -> object:
        made = ordinary(*given)  # type: ignore[arg-type]
        (data / "1.png").rename(data / "hidden")
        picture(data / "2.png", seed=77)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(making, "plan", then_gone)
        outcome = fill(data, out, vae)
    assert outcome.held == 5
    assert {one.name: one.again for one in outcome.bad} == {"1.png": True, "2.png": True}
    assert "changed while the cache was made" in outcome.bad[1].reason
    (data / "hidden").rename(data / "1.png")
    again = fill(data, out, vae)
    assert (again.made, again.held, again.bad) == (2, 7, [])


def test_latents_beyond_what_is_stored_are_bad_and_never_zero(
    data: Path, out: Path, vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calotype.posterior import DiagonalGaussian

    mean = DiagonalGaussian.__init__

    def large(self: DiagonalGaussian, moments: torch.Tensor) -> None:
        mean(self, moments)
        self.mean = self.mean * 1e6

    monkeypatch.setattr(DiagonalGaussian, "__init__", large)
    with pytest.raises(CalotypeError, match="more than float16 holds; give --store float32"):
        fill(data, out, vae)
    fill(data, tmp_path / "wide", vae, store="float32")
    assert float(open_cache(tmp_path / "wide").row(0)["mean"].abs().max()) > 65504


@pytest.mark.slow
def test_parts_are_the_same_however_much_is_done_and_together_the_whole(data: Path, tmp_path: Path, vae: VAE) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with units_of(1):
        fill(data, whole, vae)
        first = fill(data, parts, vae, part="1/3").made
        assert fill(data, parts, vae, part="1/3").made == 0
        second = fill(data, parts, vae, part="2/3").made
        third = fill(data, parts, vae, part="3/3")
        assert (first, second, third.made, third.held) == (3, 2, 2, 7)
        assert contents(parts) == contents(whole)
        for part in ("0/3", "4/3", "1", "a/b", "1/3/4", "-1/3"):
            with pytest.raises(UsageError, match=f"--part {part}"):
                fill(data, parts, vae, part=part)


@pytest.mark.slow
def test_moments_of_what_has_none_are_refused(data: Path, out: Path, vae: VAE) -> None:
    from support import network

    from calotype.families.tiny.config import TinyConfig
    from calotype.weights.save import save_weights

    path = out.parent / "tiny.safetensors"
    save_weights(network(TinyConfig()), path, layout="ldm")
    from calotype.vae import load

    tiny = load(path, device="cpu", latent_format="none")
    with pytest.raises(UsageError, match="give --value mode"):
        job_of(tiny, Rules(size=(16, 16)))
    make(data, out, tiny, job_of(tiny, Rules(size=(16, 16)), value="mode"))
    assert open_cache(out).tensors == ("latents",)


def test_sides_are_multiples_of_the_factor(vae: VAE) -> None:
    with pytest.raises(UsageError, match="--size 18x16: sides must be multiples of 8"):
        job_of(vae, Rules(size=(18, 16)))
    with pytest.raises(UsageError, match="--buckets 63/9"):
        job_of(vae, Rules(buckets="63/9"))


def test_a_job_says_what_differs_and_survives_its_file(vae: VAE) -> None:
    from calotype.cache.job import job_from_dict

    job = job_of(vae, Rules(buckets="sdxl", crop="random", seed=3))
    assert job_from_dict(job.to_dict()) == job
    assert job_from_dict(job.to_dict()).fingerprint == job.fingerprint
    assert job.difference(job) == ""
    assert replace(job, dtype="bfloat16").fingerprint != job.fingerprint


def test_of_two_jobs_that_begin_a_cache_at_once_one_is_refused(data: Path, out: Path, vae: VAE) -> None:
    jobs = [job_of(vae, Rules(size=(side, side))) for side in (16, 32)]
    here = Barrier(2)

    class Slow(Store):
        def size(self, name: str) -> int | None:
            found = super().size(name)
            with suppress(BrokenBarrierError):
                here.wait(0.3)  # both have looked, if they may
            return found

    def begin(job: Job) -> str:
        try:
            _begun(Slow(out), job)
        except UsageError as error:
            return str(error)
        return ""

    out.mkdir()
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(begin, jobs))
    assert sorted(map(bool, said)) == [False, True]
    assert "this cache was made with size" in max(said)
