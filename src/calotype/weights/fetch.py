"""Fetching presets: the only code here that uses the network."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import urllib.error
import urllib.request
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
    from rich.console import Console
    from rich.progress import wrap_file

    cache = Path(os.environ.get("CALOTYPE_CACHE") or Path.home() / ".cache" / "calotype")
    folder = cache / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, sha256 in zip(preset.files, preset.sha256, strict=True):
        path = folder / file
        if path.is_file():
            continue
        url = f"{GITHUB}/{preset.repo}/raw/main/{file}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                total = int(response.headers.get("Content-Length") or 0)
                with wrap_file(response, total, description=file, console=Console(stderr=True), transient=True) as data:
                    content = data.read()
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = (
                f"the server answered {error.code}"
                if isinstance(error, urllib.error.HTTPError)
                else "it can't be reached"
            )
            raise FetchError(f"{name}: {file} is not in the local cache, and {reason} at {url}; {ADVICE}.") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise FetchError(f"{name}: {url} gave other bytes than expected (their sha256 differs); nothing was kept.")
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return folder


ADVICE = "connect to the network and try again, or get the files elsewhere and give their path"
