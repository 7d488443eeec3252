"""Commands with a VAE whose pictures come out larger than they went in."""

from __future__ import annotations

from pathlib import Path

import pytest
from clikit import Calotype
from PIL import Image
from wankit import theirs


@pytest.mark.slow
def test_sizes_are_those_of_what_comes_out(calotype: Calotype, tmp_path: Path) -> None:
    """Of an encoder, those of what goes in."""
    folder = tmp_path / "larger"
    theirs("wan-2.1-larger").save_pretrained(folder)
    plans = [calotype("plan", folder, "30x20", *more, "--json").json for more in ([], ["--encode"])]
    assert [(plan["width"], plan["height"]) for plan in plans] == [(32, 24), (32, 20)]
    about = calotype("inspect", folder, "--json").json
    assert (about["factor"], about["enlarges"]) == (4, 2)
    steps = calotype("inspect", folder, "--program", "--size", "30x20", "--json").json
    assert (steps["encode"][-1]["shape"], steps["decode"][-1]["shape"]) == ([32, 6, 8], [3, 24, 32])
    Image.new("RGB", (37, 22), (200, 90, 30)).save(tmp_path / "a.png")
    calotype("encode", tmp_path / "a.png", "--vae", folder, "--out", tmp_path / "l", "--json")
    latents = tmp_path / "l" / "a.latents.safetensors"
    (made,) = calotype("decode", latents, "--vae", folder, "--out", tmp_path, "--json").json["results"]
    with Image.open(made["picture"]) as again:
        assert (made["width"], made["height"]) == again.size == (74, 44)
