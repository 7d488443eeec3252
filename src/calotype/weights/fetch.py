"""Fetching presets from the Hugging Face hub: the only code here that uses the network."""

from __future__ import annotations

from pathlib import Path

from calotype.errors import FetchError
from calotype.weights.presets import PRESETS


def fetch(name: str) -> Path:
    """The folder (or file) of a preset's weights, from the local cache, or downloaded with a progress bar.

    The cache and its settings (``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_TOKEN``) are huggingface_hub's.

    Raises:
        FetchError: if the files are not cached and can't be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    preset = PRESETS[name]
    try:  # the cache first: published weights do not change, and a look at the hub costs a second
        paths = [hf_hub_download(preset.repo, file, local_files_only=True) for file in preset.files]
    except LocalEntryNotFoundError:
        try:
            paths = [hf_hub_download(preset.repo, file) for file in preset.files]
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if preset.gated and status in (401, 403):
                advice = f"accept its licence at https://huggingface.co/{preset.repo} and log in with `hf auth login`"
            else:
                advice = "connect to the network and try again, or download the files elsewhere and give their path"
            reason = f"the hub answered {status}" if status else "the hub can't be reached"
            raise FetchError(f"{name}: {preset.repo} is not in the local cache, and {reason}; {advice}.") from None
    return Path(paths[-1])
