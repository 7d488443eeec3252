"""Presets: from the cache, from a hub, or one clear error."""

from __future__ import annotations

import gc
import hashlib
import http.server
import importlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import taekit
from support import diffusers_tensors, kl, names, one_sentence, room, tensors_of, tiny, write

import calotype
from calotype.errors import FetchError, UsageError
from calotype.families import PRESETS
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.latents import KNOWN, MODEL, same_as_model
from calotype.vae import load, locate
from calotype.weights import fetch as fetch_module
from calotype.weights.fetch import fetch

constants: Any = importlib.import_module("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
STABLE = "diffusion_pytorch_model.safetensors"


@dataclass
class Hub:
    """A server on this machine with the few endpoints that are needed."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)  # path -> content
    refuse: tuple[int, str] | None = None  # (status, X-Error-Code)
    lfs: bool = False  # call files by their sha256
    headers: dict[str, str | None] = field(default_factory=dict)  # instead of the right ones; None: left out
    status: int = 200
    body: bytes | None = None  # instead of what a GET is to be given
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(f"{self.command} {self.path}")
            content = found.files.get(self.path)
            if found.refuse or content is None:
                status, code = found.refuse or (404, "EntryNotFound")
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", "no")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            digest = hashlib.sha256 if found.lfs else hashlib.sha1
            headers = {
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{digest(content).hexdigest()}"',
                "Content-Length": str(len(content if found.body is None else found.body)),
                **found.headers,
            }
            self.send_response(found.status)
            for key, value in headers.items():
                if value is not None:
                    self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                with suppress(OSError):  # whoever has had enough goes away
                    self.wfile.write(content if found.body is None else found.body)

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an endpoint where nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "calotype"))
    point_at(monkeypatch, f"http://127.0.0.1:{port}")
    return folder


def point_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(fetch_module, "GITHUB", url)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small VAE as on the hub: file -> content."""
    module = kl(AutoencoderConfig(ch=32, ch_mult=(1, 2)))
    path = write(tmp_path_factory.mktemp("published") / STABLE, diffusers_tensors(module))
    return {"config.json": json.dumps({"scaling_factor": 0.5}).encode(), STABLE: path.read_bytes()}


def publish(hub: Hub, name: str, files: dict[str, bytes]) -> None:
    for file in PRESETS[name].files:
        hub.files[f"/{PRESETS[name].repo}/resolve/main/{file}"] = files[file.rpartition("/")[2]]


@pytest.mark.parametrize("name", ["sd-vae-ft-mse", "flux-vae"])
def test_a_preset_is_fetched_once(
    hub: Hub, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    point_at(monkeypatch, hub.url)
    publish(hub, name, published)
    folder = fetch(name)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == published
    asked = len(hub.asked)
    assert any(request.startswith("GET") for request in hub.asked)
    assert fetch(name) == folder
    assert len(hub.asked) == asked


@pytest.mark.slow
def test_presets_of_one_repository_are_not_confused(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each is a file there, and all lie in one folder of the cache."""
    point_at(monkeypatch, hub.url)
    for name, like in (("lighttaew2_1", "taew2_1"), ("lighttaew2_2", "taew2_2")):
        path = write(tmp_path / PRESETS[name].files[0], taekit.tensors(like))
        publish(hub, name, {path.name: path.read_bytes()})
        assert fetch(name).name == path.name
    for name, format_ in (("lighttaew2_1", "wan2.1"), ("lighttaew2_2", "wan2.2")):
        vae = load(name, device="cpu")
        assert (vae.config, vae.latent_format) == (PRESETS[name].config, KNOWN[format_])


@pytest.mark.slow
def test_presets_whose_latents_are_model_latents(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path / "taew2_1.safetensors", taekit.tensors("taew2_1"))
    preset = replace(PRESETS["lighttaew2_1"], latent_format="model:wan2.1")
    for module in ("calotype.weights.fetch", "calotype.vae.loading"):
        monkeypatch.setattr(f"{module}.PRESETS", {**PRESETS, "lighttaew2_1": preset})
    point_at(monkeypatch, hub.url)
    publish(hub, "lighttaew2_1", {preset.files[0]: path.read_bytes()})
    assert load("lighttaew2_1", device="cpu").latent_format == same_as_model("wan2.1", 16)


def test_what_is_cached_needs_no_network(
    hub: Hub, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        point_at(patch, hub.url)
        publish(hub, "sdxl-vae", published)
        fetch("sdxl-vae")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    vae = calotype.load("sdxl-vae", device="cpu")
    assert vae.name == "sdxl-vae"
    assert vae.latent_format == KNOWN["sdxl"]  # as the preset says, whatever is in config.json
    assert calotype.load("sdxl-vae", device="cpu", latent_format="none").latent_format.name == "none"


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("name", ["sdxl-vae", "flux-vae", "taesd"])
def test_without_cache_and_network_there_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, name: str, offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    start = time.monotonic()
    with pytest.raises(
        FetchError, match=rf"^{name}: \S+ is not in the local cache, and the hub can't be reached; "
    ) as e:
        calotype.load(name)
    assert time.monotonic() - start < 10
    one_sentence(str(e.value))
    assert PRESETS[name].repo in str(e.value)


@pytest.mark.parametrize(
    ("name", "refuse", "message"),
    [
        ("flux-vae", (401, "GatedRepo"), r"the hub answered 401; accept its licence at https://\S+ and log in"),
        ("sd3-vae", (403, "GatedRepo"), r"the hub answered 403; accept its licence at https://\S+ and log in"),
        ("flux-vae", (401, ""), "the hub answered 401; accept its licence"),
        ("sdxl-vae", (401, "RepoNotFound"), "the hub answered 401; connect to the network"),
        ("sdxl-vae", (404, "EntryNotFound"), "the hub answered 404; connect to the network"),
    ],
)
def test_the_hubs_refusal_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str, refuse: tuple[int, str], message: str
) -> None:
    point_at(monkeypatch, hub.url)
    hub.refuse = refuse
    with pytest.raises(FetchError, match=message) as caught:
        fetch(name)
    one_sentence(str(caught.value))


def test_a_file_of_that_name_comes_before_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "taesd" / "x.safetensors", tensors_of(tiny()))
    assert locate("taesd", None) == (Path("taesd"), "./taesd", None)  # so that its latents do not name the preset


# What a hub gives is looked at


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _page(content: bytes) -> bytes:
    return b"<html>Log in to go on</html>"


@pytest.mark.parametrize(
    ("file", "spoil", "lfs", "words"),
    [
        (STABLE, _page, False, "no whole safetensors file"),
        (STABLE, _cut, False, "no whole safetensors file"),
        (STABLE, lambda content: b"", False, "no whole safetensors file"),
        (STABLE, lambda content: (16).to_bytes(8, "little") + b'{"a":' + b"[" * 11, False, "no whole safetensors file"),
        (STABLE, lambda content: (8).to_bytes(8, "little") + b"{}      ", False, "it holds no tensors"),
        ("config.json", _page, False, "it is no JSON"),
        ("config.json", lambda content: b"[1]", False, "it holds no JSON object"),
        ("config.json", lambda content: b"[" * 100_000, False, "it is no JSON"),
        ("config.json", lambda content: b"\xff\xfe", False, "it is no JSON"),
    ],
)
def test_a_bad_answer_does_not_stay(
    file: str, spoil: Any, lfs: bool, words: str, hub: Hub, published: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch, cache: Path,
) -> None:  # fmt: skip
    point_at(monkeypatch, hub.url)
    publish(hub, "sdxl-vae", {**published, file: spoil(published[file])})
    with pytest.raises(
        FetchError, match=f"^sdxl-vae: what the hub gave for {file} is of no use, for .*{words}"
    ) as caught:
        fetch("sdxl-vae")
    one_sentence(str(caught.value))
    assert "it was removed from the cache: try again" in str(caught.value)
    assert file not in [path.name for path in cache.rglob("*")]
    publish(hub, "sdxl-vae", published)
    folder = fetch("sdxl-vae")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == published
    assert calotype.load("sdxl-vae", device="cpu").name == "sdxl-vae"


def test_other_bytes_than_the_hub_announced(
    hub: Hub, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """The hub calls large files by their sha256, which huggingface_hub believes."""
    point_at(monkeypatch, hub.url)
    publish(hub, "sdxl-vae", published)
    hub.lfs = True
    wrong = _flipped(published[STABLE])
    digest = hashlib.sha256(published[STABLE]).hexdigest()
    hub.files[f"/{PRESETS['sdxl-vae'].repo}/resolve/main/{STABLE}"] = wrong
    hub.headers = {"ETag": f'"{digest}"'}
    hub.files[f"/{PRESETS['sdxl-vae'].repo}/resolve/main/config.json"] = published["config.json"]
    with pytest.raises(FetchError, match="these are other bytes than the hub announced") as caught:
        fetch("sdxl-vae")
    one_sentence(str(caught.value))
    assert digest not in [path.name for path in cache.rglob("*")]
    hub.headers = {}
    publish(hub, "sdxl-vae", published)
    assert (fetch("sdxl-vae") / STABLE).read_bytes() == published[STABLE]


@pytest.mark.parametrize("spoil", [_page, _cut])
def test_a_bad_file_that_lies_in_the_cache_goes_away(
    spoil: Any, hub: Hub, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(monkeypatch, hub.url)
    publish(hub, "sdxl-vae", published)
    blob = (fetch("sdxl-vae") / STABLE).resolve()
    blob.write_bytes(spoil(published[STABLE]))
    with pytest.raises(FetchError, match=f"^sdxl-vae: {STABLE} in the local cache is of no use, .*removed") as caught:
        calotype.load("sdxl-vae")
    one_sentence(str(caught.value))
    assert not blob.exists()
    assert (fetch("sdxl-vae") / STABLE).read_bytes() == published[STABLE]


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"Content-Length": "3000000000"}, b"x", r"announces 3,000,000,000 bytes for config\.json, where at most"),
        ({"Content-Length": None}, b"x" * 3_000_000, "more bytes than it had announced|another number of bytes"),
        ({"Content-Length": "abc"}, b"x" * 3_000_000, "."),
    ],
)
def test_a_hub_without_an_end(
    headers: dict[str, str | None], body: bytes, words: str, hub: Hub, published: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch, cache: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(fetch_module, "MOST", 2_000_000)
    point_at(monkeypatch, hub.url)
    publish(hub, "sdxl-vae", published)
    hub.headers, hub.body = headers, body
    with pytest.raises(FetchError, match=words) as caught:
        fetch("sdxl-vae")
    one_sentence(str(caught.value))
    assert all(path.stat().st_size < 2_500_000 for path in cache.rglob("*"))


# From GitHub


@pytest.fixture
def two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """taef2 with other bytes than the published ones."""
    tensors = tensors_of(tiny(TinyConfig(z_channels=32, pool=True)))
    halves = {}
    for side in ("encoder", "decoder"):
        half = {k.removeprefix(f"{side}."): v for k, v in tensors.items() if k.startswith(side)}
        halves[f"taef2_{side}.pth"] = write(tmp_path / side, half).read_bytes()
    digests = tuple(hashlib.sha256(halves[file]).hexdigest() for file in PRESETS["taef2"].files)
    monkeypatch.setattr(fetch_module, "PRESETS", {"taef2": replace(PRESETS["taef2"], sha256=digests)})
    return halves


def test_a_preset_from_github_is_fetched_once(
    hub: Hub, two_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point_at(monkeypatch, hub.url)
    hub.files = {f"/madebyollin/taesd/raw/main/{file}": content for file, content in two_files.items()}
    vae = calotype.load("taef2", device="cpu")
    assert vae.latent_format.name == "flux2"
    assert {path.name: path.read_bytes() for path in (tmp_path / "calotype" / "taef2").iterdir()} == two_files
    assert len(hub.asked) == 2
    fetch("taef2")
    assert len(hub.asked) == 2


def test_other_bytes_than_expected_are_not_kept(
    hub: Hub, two_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point_at(monkeypatch, hub.url)
    hub.files = {f"/madebyollin/taesd/raw/main/{file}": b"<html>" for file in two_files}
    with pytest.raises(FetchError, match=r"gave other bytes than expected .* none were kept") as caught:
        fetch("taef2")
    one_sentence(str(caught.value))
    assert names(tmp_path / "calotype") == []


@pytest.mark.slow
def test_github_refuses_or_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FetchError, match=r"^taef2: taef2_encoder\.pth is not in the local cache, and it can't be read"):
        fetch("taef2")
    point_at(monkeypatch, hub.url)
    with pytest.raises(FetchError, match="the server answered 404 at http"):
        fetch("taef2")
    gc.collect()  # a connection that is left open warns now


def test_a_cache_that_cant_be_written_is_told(
    two_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        FetchError, match=r"^taef2: \S+ can't be written: Not a directory; give another place\.$"
    ) as caught:
        fetch("taef2")
    one_sentence(str(caught.value))


LENGTH = {"Content-Length": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "status", "body", "words"),
    [
        ({"Content-Length": "abc"}, 200, None, "announces 'abc' as the length"),
        ({"Content-Length": "-5"}, 200, None, "announces '-5' as the length"),
        ({"Content-Length": "1" * 5000}, 200, None, "as the length of its answer"),
        ({"Content-Length": "1" * 18}, 200, None, "announces 111,111,111,111,111,111 bytes, where at most"),
        ({"Content-Length": "1000000"}, 200, b"short", "only 5 of 1,000,000 bytes came"),
        (LENGTH, 200, b"x" * 3_000_000, "more than 2,000,000 bytes came without an end"),
        ({**LENGTH, "Transfer-Encoding": "chunked"}, 200, b"zzz\r\n", "it can't be read"),
        ({"Location": "http://[bad"}, 302, b"", "leads to what is no address"),
        ({"Location": "http://a b:c/"}, 302, b"", "(leads to what is no address|it can't be read)"),
        ({"Location": f"http://{'a' * 70}.example/"}, 302, b"", "(leads to what is no address|it can't be read)"),
        ({"Location": "http://127.0.0.1:99999/"}, 302, b"", "(leads to what is no address|it can't be read)"),
        ({"Location": "file:///etc/hostname"}, 302, b"", "answered 302, and leads nowhere"),
        ({"Location": "ftp://127.0.0.1/x"}, 302, b"", "answered 302, and leads nowhere"),
        ({"Location": "mailto:me"}, 302, b"", "answered 302, and leads nowhere"),
        ({"Location": "elsewhere"}, 302, b"", "answered 404"),
        ({"Location": "//[::1"}, 302, b"", "leads to what is no address"),
        ({"Location": ""}, 302, b"", "answered 302, and leads nowhere"),
        ({}, 302, b"", "answered 302, and leads nowhere"),
        ({"Location": "/madebyollin/taesd/raw/main/taef2_encoder.pth"}, 302, b"", "answered 302, and leads nowhere"),
    ],
)
def test_a_strange_answer_is_one_sentence(
    headers: dict[str, str | None], status: int, body: bytes | None, words: str, hub: Hub,
    two_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(fetch_module, "MOST", 2_000_000)
    point_at(monkeypatch, hub.url)
    hub.files = {f"/madebyollin/taesd/raw/main/{file}": content for file, content in two_files.items()}
    hub.headers, hub.status, hub.body = headers, status, body
    with pytest.raises(
        FetchError, match=rf"^taef2: taef2_encoder\.pth is not in the local cache, and .*{words}"
    ) as caught:
        fetch("taef2")
    one_sentence(str(caught.value))
    assert names(tmp_path / "calotype") == []
    gc.collect()  # a connection that is left open warns now


def test_a_download_that_does_not_fit(
    hub: Hub, two_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point_at(monkeypatch, hub.url)
    hub.files = {f"/madebyollin/taesd/raw/main/{file}": content for file, content in two_files.items()}
    with (
        room(1000),
        pytest.raises(FetchError, match=r"^taef2: \S+taef2_encoder\.pth can't be written: File too large; "),
    ):
        fetch("taef2")
    assert names(tmp_path / "calotype") == []


# Names


@pytest.mark.parametrize(
    ("name", "hint"),
    [("sdxlvae", r"sdxl-vae"), ("sd-vae-ft-msee", "sd-vae-ft-mse"), ("tae-sd", "taesd"), ("Flux-vae", "flux")],
)
def test_a_near_miss_gets_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(
        UsageError, match=rf"'{name}' is neither a file, nor a folder, nor a preset; did you mean {hint}"
    ) as e:
        calotype.load(name)
    one_sentence(str(e.value))


def test_another_name_gets_the_list() -> None:
    with pytest.raises(UsageError, match=r"presets are sd-vae-ft-mse, .*taef2"):
        calotype.load("qqqq")


def test_presets_name_what_is_known_of_them() -> None:
    for name, preset in PRESETS.items():
        assert preset.latent_format.removeprefix(MODEL) in (*KNOWN, "flux2"), name
        assert preset.repo.count("/") == 1
        assert preset.licence
        assert preset.about
        assert not preset.sha256 or len(preset.sha256) == len(preset.files)
