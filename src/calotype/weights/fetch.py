"""Fetching presets: the only code here that uses the network."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calotype.errors import FetchError
from calotype.files import atomic_path
from calotype.weights.presets import PRESETS, Preset

GITHUB = "https://github.com"


def fetch(name: str) -> Path:
    """The folder with a preset's weights, from the local cache, or downloaded with a progress bar.

    What is on the Hugging Face hub lies in huggingface_hub's cache and follows its settings (``HF_HOME``,
    ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_TOKEN``); the rest lies in ``CALOTYPE_CACHE`` (~/.cache/calotype).

    Raises:
        FetchError: if the files are not cached and can't be downloaded.
    """
    preset = PRESETS[name]
    return _from_github(name, preset) if preset.sha256 else _from_hub(name, preset)


def _from_hub(name: str, preset: Preset) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:  # the cache first: published weights do not change, and a look at the hub costs a second
        paths = [hf_hub_download(preset.repo, file, local_files_only=True) for file in preset.files]
    except LocalEntryNotFoundError:
        try:
            get_hf_file_metadata(hf_hub_url(preset.repo, preset.files[0]))  # a download tries for long, this only once
            paths = [hf_hub_download(preset.repo, file) for file in preset.files]
        except Exception as error:  # of whichever HTTP library this huggingface_hub uses
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise FetchError(
                    f"{name}: {error.filename or 'the cache'} can't be written: {error.strerror}."
                ) from None
            status = getattr(getattr(error, "response", None), "status_code", None)
            reason = f"the hub answered {status}" if status else "the hub can't be reached"
            if preset.gated and status in (401, 403):
                advice = f"accept its licence at https://huggingface.co/{preset.repo} and log in with `hf auth login`"
            else:
                advice = ADVICE
            raise FetchError(f"{name}: {preset.repo} is not in the local cache, and {reason}; {advice}.") from None
    return Path(paths[-1]).parent


def _from_github(name: str, preset: Preset) -> Path:
    with cached(name, name) as folder:
        for file, sha256 in zip(preset.files, preset.sha256, strict=True):
            if not (folder / file).is_file():
                with atomic_path(folder / file) as temporary:
                    url = f"{GITHUB}/{preset.repo}/raw/main/{file}"
                    download(url, temporary, sha256=sha256, owner=name, advice=ADVICE)
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
        path.mkdir(parents=True, exist_ok=True)
        yield path
    except OSError as error:
        raise FetchError(f"{owner}: {path} can't be written: {error.strerror or error}.") from None


def download(url: str, path: Path, *, sha256: str, owner: str, advice: str) -> None:
    """Writes what lies at an address into a file, with a progress bar.

    Args:
        sha256: of the bytes that are expected.
        owner: whose file it is, as errors say it; advice: half a sentence, what to do without the network.

    Raises:
        FetchError: it can't be had, or these are other bytes.
        OSError: the file can't be written.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in _chunks(url, owner, advice):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != sha256:
        raise FetchError(f"{owner}: {url} gave other bytes than expected (their sha256 differs); none were kept.")


def _chunks(url: str, owner: str, advice: str) -> Iterator[bytes]:
    from rich.console import Console
    from rich.progress import wrap_file

    name = url.rpartition("/")[2]
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            total = int(response.headers.get("Content-Length") or 0)
            with wrap_file(response, total, description=name, console=Console(stderr=True), transient=True) as data:
                while chunk := data.read(2**20):
                    yield chunk
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = "it can't be read"
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
            reason = f"the server answered {error.code}"
        raise FetchError(f"{owner}: {name} is not in the local cache, and {reason} at {url}; {advice}.") from None
