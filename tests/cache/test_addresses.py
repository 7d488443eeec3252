"""Pictures at addresses: on a real S3 server on this machine, and over HTTP from one that fails."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from cachekit import contents, fill, folder, picture, shards
from clikit import run
from PIL import Image
from remotekit import BUCKET, Bucket, Reading, http_server, s3_server
from support import one_sentence
from torch.utils.data import DataLoader

from calotype import addresses
from calotype.cache import open_cache
from calotype.cache.check import verify
from calotype.cache.decoded import changed, compare
from calotype.cache.store import Store
from calotype.cache.words import words
from calotype.errors import CalotypeError, PictureError, RemoteError, UsageError
from calotype.evaluate.probe.labelling import labelling
from calotype.sources import Stored, files_of, open_source
from calotype.train.crops import gather
from calotype.train.recipe import Source
from calotype.vae import VAE

pytest.importorskip("s3fs")
pytest.importorskip("moto")

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",  # or what has no credentials asks a server of the cloud for them
}


@pytest.fixture(scope="module")
def server() -> Iterator[Bucket]:
    """The server, as the environment names it; requests are tried three times."""
    with s3_server() as bucket, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": bucket.url}.items():
            patch.setenv(name, value)
        patch.setattr(addresses, "PAUSES", (0.01, 0.01))
        forget()
        yield bucket
    forget()


@pytest.fixture
def bucket(server: Bucket) -> Bucket:
    """The server, of which nothing was seen yet."""
    server.clear()
    return server


@pytest.fixture
def anew() -> Iterator[Callable[[], None]]:
    """Makes clients by the environment as it is then; after the test as it was before."""
    yield forget
    forget()


def forget() -> None:
    addresses._systems.clear()
    for protocol in ("s3", "http"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


@pytest.fixture
def there(bucket: Bucket, data: Path, request: pytest.FixtureRequest) -> str:
    """The address of the folder `data`, with another picture in a folder and a label."""
    picture(data / "deeper" / "x.PNG", seed=9, format="PNG")
    (data / "deeper" / "x.json").write_text('{"caption": "deep", "label": 3}')
    (data / ".hidden.png").write_bytes(b"no picture")
    return bucket.put_folder(data, request.node.name.replace("[", "-").replace("]", ""))


def refused(address: str, kind: type[CalotypeError] = UsageError) -> str:
    with pytest.raises(kind) as error:
        open_source(address)
    one_sentence(str(error.value))
    return str(error.value)


def same(here: Stored, there: Stored) -> None:
    """Names, pixels, captions and labels."""
    assert list(here.names) == list(there.names)
    assert all(np.array_equal(here.read(i), there.read(i)) for i in range(len(here)))
    assert [here.side(i) for i in range(len(here))] == [there.side(i) for i in range(len(there))]
    say, said = (words(one.names, one.beside) for one in (here, there))
    assert [say(i) for i in range(len(here))] == [said(i) for i in range(len(here))]


def tar_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def members_of(data: Path) -> dict[str, bytes]:
    return {path.relative_to(data).as_posix(): path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}


# What is read


@pytest.mark.slow
def test_a_folder(bucket: Bucket, data: Path, there: str) -> None:
    source = open_source(there)
    assert [method for method, _, _ in bucket.seen] == ["HEAD", "GET", "GET"]  # no object, a folder, its listing
    same(open_source(data), source)
    same(open_source(data), open_source(f"{there}/"))
    same(open_source(data), open_source("", there))
    same(open_source(data / "deeper"), open_source("deeper", there))
    assert list(files_of(there)) == []


@pytest.mark.slow
def test_each_picture_is_fetched_in_one_request(bucket: Bucket, there: str) -> None:
    source = open_source(there)
    bucket.clear()
    source.read(0)
    assert len(bucket.seen) == 1
    bucket.clear()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(source.read, range(len(source))))
    assert len(bucket.seen) == len(source)


def test_a_header_is_not_all_of_a_picture(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png"):
        noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        bucket.put(**{f"large/{name}": (tmp_path / name).read_bytes()})
    source = open_source(f"s3://{BUCKET}/large")
    bucket.clear()
    assert source.side(0) == 300
    assert [range_ for _, _, range_ in bucket.seen] == ["bytes=0-65535"]
    bucket.clear()
    assert source.side(1) == 300
    assert len(bucket.seen) <= 3  # of a PNG all chunks are looked at


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip(packing: int, bucket: Bucket, data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", packing) as archive:
        archive.comment = b"of a zip" * 20
        for name, content in members_of(data).items():
            archive.writestr(name, content)
    bucket.put(**{f"a{packing}.zip": (tmp_path / "a.zip").read_bytes(), "b.zip": b"PK", "c": b"PK\5\6", "d.zip": b""})
    source = open_source(f"s3://{BUCKET}/a{packing}.zip")
    assert [method for method, _, _ in bucket.seen] == ["HEAD", "GET"]
    bucket.clear()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(source.read, range(len(source))))
    assert len(bucket.seen) == len(source)
    same(open_source(tmp_path / "a.zip"), source)
    for name in ("b.zip", "c", "d.zip"):
        assert "this zip is damaged (" in refused(f"s3://{BUCKET}/{name}")


@pytest.mark.slow
def test_tars(bucket: Bucket, data: Path, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    for i in (8, 9, 10):
        (data / "0.json").write_text(f'{{"label": {i}}}')
        (tmp_path / "tars" / f"t-{i:03}.tar").write_bytes(tar_of(members_of(data)))
    address = bucket.put_folder(tmp_path / "tars", "tars")
    for spec in ("tars", "tars/t-{009..010}.tar", "tars/t-008.tar"):
        bucket.clear()
        here, there = open_source(tmp_path / spec), open_source(f"s3://{BUCKET}/{spec}")
        assert len(bucket.gets()) == len({name.partition("/")[0] for name in here.names if "tar/" in name} or [1])
        bucket.clear()
        same(here, there)
        assert len(bucket.seen) == 2 * len(here)  # pixels and sides; texts came with the headers
    bucket.put(**{"bad.tar": tar_of(members_of(data))[:-15_000], "packed.tar": b"\x1f\x8b" + bytes(2000)})
    said = refused(f"{address}/t-{{006..009}}.tar")
    assert "2 of these 4 files are missing, the first of them t-006.tar; get" in said
    assert "this tar is damaged (" in refused(f"s3://{BUCKET}/bad.tar")
    assert "this tar is compressed" in refused(f"s3://{BUCKET}/packed.tar")


def test_headers_of_tars_are_found_in_few_requests(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of members below a block all are fetched in passing; of larger ones what lies between headers is not."""
    monkeypatch.setattr(addresses, "BLOCK", 2**16)
    png = Path(__file__).read_bytes()[:900]
    bucket.put(**{"small.tar": tar_of({f"{i}.png": png for i in range(300)}),
                  "large.tar": tar_of({f"{i}.png": bytes(2**20) for i in range(4)})})  # fmt: skip
    assert len(open_source(f"s3://{BUCKET}/small.tar")) == 300
    assert len(bucket.gets()) <= 300 * 1536 // 2**16 + 2
    bucket.clear()
    assert len(open_source(f"s3://{BUCKET}/large.tar")) == 4
    assert len(bucket.gets()) == 5


def test_over_http_archives_alone(bucket: Bucket, data: Path) -> None:
    files = {"/a.tar": tar_of(members_of(data)), "/a.zip": b"PK", "/b": b"x"}
    with http_server(files, lambda handler, before: False) as (url, seen):
        source = open_source(f"{url}/a.tar?key=1")
        assert len(seen) == 2
        assert source.read(3).shape == (32, 40, 3)
        assert "bytes=" in seen[-1]
        assert source.beside.stamp(0).endswith('"1" 0')
        assert "over http no folder can be listed; give a .zip, or .tar" in refused(f"{url}/gone")
        assert "this is a file, and no zip or tar" in refused(f"{url}/b")


def test_other_file_systems(data: Path, bucket: Bucket) -> None:
    memory = fsspec.filesystem("memory")
    for name, content in members_of(data).items():
        memory.pipe(f"/set/{name}", content)
    same(open_source(data), open_source("memory://set"))
    same(open_source(data), open_source(f"file://{data}"))
    memory.rm("/set", recursive=True)
    assert "there is no such folder, zip or tar of pictures" in refused("memory://set")


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes(start: str, bucket: Bucket, there: str, data: Path) -> None:
    source, here = open_source(there), open_source(data)
    source.read(0)  # this process has connections now
    sent = pickle.loads(pickle.dumps(source))
    same(here, sent)
    for one in (source, sent):
        loaded = DataLoader(Reading(one), batch_size=2, num_workers=2, multiprocessing_context=start)
        found = [levels for batch in loaded for levels in batch.numpy()]
        assert all(np.array_equal(levels, here.read(i)) for i, levels in enumerate(found))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(data / "3.png", "3.png")
    bucket.put(**{"p.zip": archive.getvalue()})
    assert np.array_equal(pickle.loads(pickle.dumps(open_source(f"s3://{BUCKET}/p.zip"))).read(0), here.read(3))


# Caches


@pytest.mark.slow
def test_a_cache_is_that_of_the_folder(
    bucket: Bucket, there: str, data: Path, out: Path, tmp_path: Path, vae: VAE
) -> None:
    fill(data, tmp_path / "here", vae)
    assert fill(there, out, vae).made == 8
    assert shards(out) == shards(tmp_path / "here")
    assert open_cache(out).samples["caption"].to_pylist() == [*(f"picture {i}" for i in range(7)), "deep"]
    without = [{k: v for k, v in contents(one).items() if k != "scan.parquet"} for one in (out, tmp_path / "here")]
    assert without[0].keys() == without[1].keys()
    assert not verify(Store(out)).units
    assert changed(Store(out), there) == []
    compared = compare(open_cache(out), there, vae, 2)
    assert len(compared.samples) == 2
    assert not compared.faults


@pytest.mark.slow
def test_what_did_not_change_is_not_fetched_again(bucket: Bucket, there: str, out: Path, vae: VAE, data: Path) -> None:
    prefix = there.removeprefix(f"s3://{BUCKET}/")
    bucket.put(**{f"{prefix}/9.bmp": picture(data / "9.bmp", seed=1).read_bytes()})
    fill(there, out, vae)
    assert len(bucket.gets("png")) + len(bucket.gets("PNG")) == 16  # looked at, and encoded
    bucket.clear()
    assert fill(there, out, vae).made == 0
    assert bucket.gets("png") + bucket.gets("PNG") == []
    assert len([path for _, path, _ in bucket.seen if "list-type" in path]) == 2
    bucket.put(**{f"{prefix}/3.png": picture(data / "3.png", seed=33).read_bytes(), f"{prefix}/4.txt": b"other words"})
    bucket.put(**{f"{prefix}/9.bmp": picture(data / "9.bmp", seed=2).read_bytes()})  # of the same size
    bucket.clear()
    assert fill(there, out, vae).made == 2
    assert bucket.gets("png") == [f"/{BUCKET}/{prefix}/3.png"] * 2
    assert open_cache(out).samples["caption"].to_pylist()[4] == "other words"


@pytest.mark.slow
def test_an_archive_that_did_not_change(bucket: Bucket, data: Path, out: Path, vae: VAE) -> None:
    bucket.put(**{"same.tar": tar_of(members_of(data))})
    fill(address := f"s3://{BUCKET}/same.tar", out, vae)
    bucket.clear()
    assert fill(address, out, vae).made == 0
    assert len(bucket.gets()) == 1  # its headers
    bucket.put(**{"same.tar": tar_of(members_of(folder(data, 8)))})
    assert fill(address, out, vae).made == 1


def test_an_object_that_vanishes(bucket: Bucket, there: str, out: Path, vae: VAE) -> None:
    """And one that is other than when it was listed."""
    source = open_source(there)
    prefix = there.removeprefix(f"s3://{BUCKET}/")
    bucket.client.delete_object(Bucket=BUCKET, Key=f"{prefix}/0.png")
    bucket.put(**{f"{prefix}/1.png": bytes(10_000), f"{prefix}/2.png": bytes(10)})
    reasons = []
    for i in range(3):
        with pytest.raises(PictureError) as error:
            source.read(i)
        one_sentence(str(error.value))
        reasons.append(str(error.value))
    assert reasons[0] == f"{there}: 0.png: it was there when it was listed, and is no longer."
    assert reasons[1] == f"{there}: 1.png: it is longer than when it was listed; run the same command again."
    assert "2.png: it is shorter than when it was listed (of 2,385 bytes 10 came); run" in reasons[2]


@pytest.mark.slow
def test_the_command_line(
    bucket: Bucket, there: str, out: Path, weights: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    calotype = partial(run, monkeypatch, capsys)
    asked = ("--vae", weights, "--size", "16", "--device", "cpu")
    assert calotype("cache", "make", there, out, *asked).code == 0
    said = calotype("cache", "status", out)
    assert there in said.out
    assert (
        calotype("cache", "verify", out, "--data", there, "--decode", "2", "--vae", weights, "--device", "cpu").code
        == 0
    )
    for command in (
        ("cache", "make", there, f"s3://{BUCKET}/out", *asked),
        ("cache", "status", f"s3://{BUCKET}/out"),
        ("evaluate", there, "--report", f"s3://{BUCKET}/report"),
        ("encode", out / "cache.json", "--out", f"s3://{BUCKET}/latents"),
        ("convert", "builtin", f"s3://{BUCKET}/vae", "--layout", "diffusers"),
        ("direction", "learn", there, there, "--out", f"s3://{BUCKET}/way.safetensors"),
    ):
        refusal = calotype(*command)
        assert refusal.code == 2
        assert "files are written to folders alone; give one, such as that where it is mounted." in refusal.err
        assert f"s3://{BUCKET}/" in refusal.err
    assert not Path("s3:").exists()


@pytest.mark.slow
def test_other_commands(
    bucket: Bucket, there: str, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    calotype, on = partial(run, monkeypatch, capsys), ("--vae", weights, "--device", "cpu")
    found = {}
    for name, place in (("here", data), ("there", there)):
        done = calotype("evaluate", place, "--report", tmp_path / name, "--metrics", "psnr", *on)
        assert done.code == 0
        found[name] = json.loads((tmp_path / name / "results.json").read_text())["vaes"]
    assert found["here"][0]["means"] == found["there"][0]["means"]
    words = ("direction", "learn", there, f"{there}/", "--out", tmp_path / "way.safetensors")
    assert calotype(*words, *on).code == 0
    assert (tmp_path / "way.safetensors").is_file()
    bucket.put(**{f"{there.removeprefix(f's3://{BUCKET}/')}/alone.png": (data / "0.png").read_bytes()})
    refusal = calotype("train", "emoji", "--data", there, "--out", tmp_path / "run")
    assert refusal.code == 2
    assert "pictures have no caption, such as alone.png" in refusal.err


def test_sources_and_labels_below_an_address(bucket: Bucket, there: str, data: Path) -> None:
    train, _ = gather([Source(path="deeper"), Source(path=there)], there, cache=0, notice=pytest.fail)
    assert len(train) == 9
    bucket.put(**{f"{there.removeprefix(f's3://{BUCKET}/')}/labels.json": b'{"0.png": "a", "x.PNG": "b"}'})
    source = open_source(there)
    for file in (None, Path("labels.json")):
        labels = labelling(source.names, there, file, source.beside.texts).labels
        assert labels == ("a", *[None] * 6, "b")
    with pytest.raises(UsageError, match="there is no such file, and none in s3:"):
        labelling(source.names, there, Path("other.json"), source.beside.texts)


# What fails


def test_what_is_not_there(bucket: Bucket) -> None:
    said = "there is no such bucket, folder or file; give one that is there."
    assert refused("s3://no-such-bucket/folder") == f"s3://no-such-bucket/folder: {said}"
    assert "there is no such folder, zip or tar of pictures" in refused(f"s3://{BUCKET}/none")
    bucket.put(**{"notes.txt": b"words", "texts/a.txt": b"words"})
    assert "this is a file, and no zip or tar" in refused(f"s3://{BUCKET}/notes.txt")
    assert "there is no picture in it; those of files end in" in refused(f"s3://{BUCKET}/texts")


@pytest.mark.slow
def test_denied_and_without_credentials(
    bucket: Bucket, there: str, anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(there)
    bucket.before = lambda method, path: 403
    assert "the server denies it (" in refused(there)
    with pytest.raises(PictureError, match=r"0.png: the server denies it \("):
        source.read(0)
    bucket.before = lambda method, path: 400
    with pytest.raises(RemoteError, match=r"the credentials have expired .* renew them, and run"):
        source.read(0)
    bucket.clear()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    anew()
    message = refused(there)
    assert "there are no credentials for it (Unable to locate credentials); give them as" in message
    assert bucket.seen == []
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})
    anew()
    assert len(open_source(there)) == 8


@pytest.mark.slow
def test_what_fails_for_a_while_is_tried_again(bucket: Bucket, there: str, out: Path, vae: VAE) -> None:
    counts: dict[str, int] = {}

    def once(method: str, path: str) -> int | None:
        counts[path] = counts.get(path, 0) + 1
        return 503 if counts[path] == 1 else None

    bucket.before = once
    source = open_source(there)
    source.read(0)
    assert len(counts) == 4
    assert max(counts.values()) == 3  # what asks whether there is an object asks for a folder then
    counts.clear()
    bucket.before = lambda method, path: counts.update({path: counts.get(path, 0) + 1}) or 500
    with pytest.raises(RemoteError) as error:
        source.read(0)
    one_sentence(str(error.value))
    assert "/0.png: the server does not answer as it should, and was asked 3 times (" in str(error.value)
    assert list(counts.values()) == [3]
    with pytest.raises(RemoteError):  # no picture is bad for it
        fill(there, out, vae)
    assert not shards(out)
    bucket.clear()
    assert fill(there, out, vae).made == 8
    bucket.before = lambda method, path: 503 if method == "GET" and path.endswith("png") else None
    other = out.with_name("other")
    with pytest.raises(RemoteError):
        fill(there, other, vae)


def test_a_server_that_breaks_off(bucket: Bucket, data: Path) -> None:
    tar = tar_of(members_of(data))

    def half(handler: Any, before: int) -> bool:
        if handler.command == "HEAD" or before > 2:
            return False
        handler.send_response(206)
        handler.send_header("Content-Length", str(len(tar)))
        handler.end_headers()
        handler.wfile.write(tar[:1000])
        handler.close_connection = True
        return True

    with http_server({"/a.tar": tar}, half) as (url, seen):
        assert len(open_source(f"{url}/a.tar")) == 7
        assert len(seen) == 4

    def all_of_it(handler: Any, before: int) -> bool:
        handler.headers.replace_header("Range", "bytes=0-") if handler.headers.get("Range") else None
        return False

    with http_server({"/b.tar": tar}, all_of_it) as (url, seen):
        source = open_source(f"{url}/b.tar")
        with pytest.raises(RemoteError, match="gives no parts of files; download it, and give the file"):
            source.read(2)


def test_nobody_answers(bucket: Bucket, anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    anew()
    message = refused(f"s3://{BUCKET}/any", RemoteError)
    assert "the server does not answer as it should, and was asked 3 times (" in message
    assert "127.0.0.1:9" in message
    assert "was asked 3 times" in refused("http://127.0.0.1:9/a.zip", RemoteError)


@pytest.mark.slow
def test_a_server_that_is_silent(
    bucket: Bucket, there: str, anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, gate = open_source(there), threading.Event()
    monkeypatch.setattr("s3fs.S3FileSystem.read_timeout", 0.2)
    anew()

    def silent(method: str, path: str) -> None:
        gate.wait(5)

    bucket.before = silent
    try:
        with pytest.raises(RemoteError, match="was asked 3 times"):
            source.read(0)
    finally:
        gate.set()


@pytest.mark.slow
def test_a_process_ends_without_a_word(bucket: Bucket, there: str) -> None:
    """Sessions that nobody closed would be complained of."""
    code = (
        "import sys; from calotype.sources import open_source\n"
        "source = open_source(sys.argv[1]); source.read(0); from concurrent.futures import ThreadPoolExecutor as P\n"
        "list(P(4).map(source.read, range(4)))\n"
        "try: open_source('s3://no-such-bucket/a')\n"
        "except ValueError: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, there], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "nclosed" not in done.stderr
    assert "Traceback" not in done.stderr
