"""Fetching presets: the only code here that uses the network."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from calotype.errors import FetchError, StorageError
from calotype.families import PRESETS
from calotype.families.face import Preset
from calotype.files import FULL, make_folder, refusal, writing
from calotype.texts import TextError, json_of

GITHUB = "https://github.com"

MOST = 2 * 10**9  # bytes of a file; the largest that is fetched has a quarter


def fetch(name: str) -> Path:
    """The folder or the file with a preset's weights, from the local cache, or downloaded with a progress bar.

    What is on the Hugging Face hub lies in huggingface_hub's cache and follows its settings (``HF_HOME``,
    ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_TOKEN``); the rest lies in ``CALOTYPE_CACHE`` (~/.cache/calotype).

    Raises:
        FetchError: if the files are not cached and can't be downloaded.
    """
    preset = PRESETS[name]
    return _from_github(name, preset) if preset.sha256 else _from_hub(name, preset)


def _from_hub(name: str, preset: Preset) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:  # the cache first: published weights do not change, and a look at the hub costs a second
        paths = [Path(hf_hub_download(preset.repo, file, local_files_only=True)) for file in preset.files]
    except LocalEntryNotFoundError:
        paths = _downloaded(name, preset)
        for path in paths:
            _require_whole(name, preset, path, fetched=True)
    else:
        for path in paths:
            _require_whole(name, preset, path, fetched=False)
    # a repository may have several presets, each a file
    return paths[0] if len(paths) == 1 else paths[-1].parent


def _downloaded(name: str, preset: Preset) -> list[Path]:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        for file in preset.files:  # a download tries for long, this only once
            size = get_hf_file_metadata(hf_hub_url(preset.repo, file)).size
            if size is not None and size > MOST:
                raise _Refused(f"the hub announces {size:,} bytes for {file}, where at most {MOST:,} are taken")
        bounded = _bounded_bar()
        return [Path(hf_hub_download(preset.repo, file, tqdm_class=bounded)) for file in preset.files]
    except Exception as error:  # of whichever HTTP library this huggingface_hub uses
        if isinstance(error, OSError) and error.errno in (*FULL, errno.EACCES, errno.EROFS):
            raise FetchError(f"{name}: {refusal(error.filename or 'the cache', error)}") from None
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"the hub answered {status}" if status else "the hub can't be reached"
        if isinstance(error, _Refused):
            reason = str(error)
        elif "Consistency check failed" in str(error):  # what huggingface_hub says of another length
            reason = "the hub gave another number of bytes than it had announced"
        if preset.gated and status in (401, 403):
            advice = f"accept its licence at https://huggingface.co/{preset.repo} and log in with `hf auth login`"
        else:
            advice = ADVICE
        raise FetchError(f"{name}: {preset.repo} is not in the local cache, and {reason}; {advice}.") from None


class _Refused(Exception):
    """A hub's answer that is not taken."""


def _bounded_bar() -> Any:
    """huggingface_hub's progress bar, which stops a download that is longer than was announced."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bounded(tqdm):
        taken = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.taken += int(n or 0)
            if self.taken > min(self.total or MOST, MOST):
                raise _Refused("the hub gave more bytes than it had announced")
            shown: bool | None = super().update(n)
            return shown

    return Bounded


def _require_whole(name: str, preset: Preset, path: Path, *, fetched: bool) -> None:
    """Checks that a file of the hub's cache is what it should be; what is not goes away, so that it can be had anew.

    Args:
        fetched: just now, so its sha256 is looked at, where the hub has said one: such a file is called by it.

    Raises:
        FetchError: if it is not.
    """
    blob = path.resolve()
    wrong = _what_is_wrong(path)
    if wrong is None and fetched and re.fullmatch("[0-9a-f]{64}", blob.name):
        with blob.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != blob.name:
                wrong = "these are other bytes than the hub announced (their sha256 differs)"
    if wrong is None:
        return
    whose = f"what the hub gave for {path.name}" if fetched else f"{path.name} in the local cache"
    kept = ""
    try:
        for one in (path, blob):
            one.unlink(missing_ok=True)
    except OSError as error:
        kept = f", and it can't be removed from there ({error.strerror}), so remove {path} and {blob}"
    raise FetchError(
        f"{name}: {whose} is of no use, for {wrong}{kept or '; it was removed from the cache'}: try again, or get the "
        f"files of {preset.repo} elsewhere and give their path."
    )


def _what_is_wrong(path: Path) -> str | None:
    """Why a fetched file is not what its name says; None where it is."""
    try:
        if path.suffix == ".json":
            if not isinstance(json_of(path.read_bytes()), dict):
                return "it holds no JSON object"
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:  # it holds the lengths in the header against the file's
                if not file.keys():
                    return "it holds no tensors"
    except TextError as error:
        return f"it is no JSON ({error})"
    except SafetensorError as error:
        return f"it is no whole safetensors file ({error})"
    except OSError as error:
        return f"it can't be read ({error.strerror or error})"
    return None


def _from_github(name: str, preset: Preset) -> Path:
    with cached(name, name) as folder:
        for file, sha256 in zip(preset.files, preset.sha256, strict=True):
            if not (folder / file).is_file():
                url = f"{GITHUB}/{preset.repo}/raw/main/{file}"
                download(url, folder / file, sha256=sha256, owner=name, advice=ADVICE)
    return folder


ADVICE = "connect to the network and try again, or get the files elsewhere and give their path"


# --- for all that is downloaded from elsewhere than the hub ---


def cache() -> Path:
    """The local cache: ``CALOTYPE_CACHE``, or ~/.cache/calotype."""
    return Path(os.environ.get("CALOTYPE_CACHE") or Path.home() / ".cache" / "calotype")


@contextmanager
def cached(folder: str, owner: str) -> Iterator[Path]:
    """A folder of the local cache, to write into.

    Args:
        owner: whose files they are, as errors say it.

    Raises:
        FetchError: it can't be written.
    """
    path = cache() / folder
    try:
        yield make_folder(path)
    except StorageError as error:
        raise FetchError(f"{owner}: {error}") from None
    except OSError as error:
        raise FetchError(f"{owner}: {refusal(path, error)}") from None


def download(url: str, path: Path, *, sha256: str, owner: str, advice: str) -> None:
    """Writes what lies at an address to a file, with a progress bar; what is not expected is not kept.

    Args:
        sha256: of the bytes that are expected.
        owner: whose file it is, as errors say it; advice: half a sentence, what to do without the network.

    Raises:
        FetchError: it can't be had, these are other bytes, or more than are announced or than anything has.
        StorageError: the file can't be written.
    """
    digest = hashlib.sha256()
    with writing(path) as file:
        for chunk in _chunks(url, owner, advice):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != sha256:
            raise FetchError(f"{owner}: {url} gave other bytes than expected (their sha256 differs); none were kept.")


def _chunks(url: str, owner: str, advice: str) -> Iterator[bytes]:
    from rich.console import Console
    from rich.progress import wrap_file

    name = url.rpartition("/")[2]
    taken = 0
    try:
        with _open(url) as response:
            total = _length(response.headers.get("Content-Length"))
            console = Console(stderr=True)
            shown: Any = {"console": console, "transient": True, "disable": not console.is_terminal}
            with wrap_file(response, total or 0, description=name, **shown) as data:
                while chunk := data.read(2**20):
                    taken += len(chunk)
                    if taken > MOST:
                        raise _Refused(f"more than {MOST:,} bytes came without an end")
                    yield chunk
            if total is not None and taken != total:
                raise _Refused(f"only {taken:,} of {total:,} bytes came")
    except (OSError, http.client.HTTPException, ValueError, _Refused) as error:  # URLError is an OSError
        reason = "it can't be read"
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
            moved = 300 <= error.code < 400
            reason = f"the server answered {error.code}{', and leads nowhere' if moved else ''}"
        elif isinstance(error, ValueError):  # of an address
            reason = "the server leads to what is no address"
        elif isinstance(error, _Refused):
            reason = str(error)
        raise FetchError(f"{owner}: {name} is not in the local cache, and {reason} at {url}; {advice}.") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To the web only; urllib would go on by FTP."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith(("http://", "https://")):
            raise urllib.error.HTTPError(req.full_url, code, msg, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str) -> Any:
    return urllib.request.build_opener(_Redirects).open(url, timeout=30)


def _length(text: str | None) -> int | None:
    """What a server announces; None: nothing."""
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", text.strip()):
        raise _Refused(f"the server announces {text[:40]!r} as the length of its answer")
    if (length := int(text)) > MOST:
        raise _Refused(f"the server announces {length:,} bytes, where at most {MOST:,} are taken")
    return length
