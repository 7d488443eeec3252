"""Nothing that a command reads is overwritten by it, whatever it is called."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from clikit import Calotype, draw, files, small_vae
from support import NARROW, kl

from calotype.errors import UsageError
from calotype.latents import KNOWN
from calotype.weights.save import save_weights

pytest_plugins = ["drawing_fixtures"]
NARROW_KL = kl(NARROW)


def content() -> dict[str, bytes]:
    return {path: Path(path).read_bytes() for path in files()}


def refused(calotype: Calotype, words: str, said: str) -> None:
    """With one sentence, and nothing is changed or made."""
    before = content()
    ran = calotype(*words.split())
    assert (ran.code, ran.out, len(ran.said)) == (2, "", 1), ran
    assert said in ran.err
    assert content() == before


@pytest.fixture
def weights(here: Path) -> None:
    """One VAE in every layout, and under other names."""
    save_weights(NARROW_KL, "x.safetensors", layout="ldm", format_=KNOWN["sdxl"])
    for layout in ("diffusers", "keras"):
        save_weights(NARROW_KL, layout, layout=layout, format_=KNOWN["sdxl"])  # type: ignore[arg-type]
    Path("link.safetensors").symlink_to("x.safetensors")
    os.link("x.safetensors", "hard.safetensors")
    Path("folder").mkdir()
    Path("way").symlink_to("folder")
    Path("folder/link.safetensors").symlink_to("../x.safetensors")
    torch.save(NARROW_KL.state_dict(), "model.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("x.safetensors x.safetensors --layout ldm", "calotype: x.safetensors would be overwritten; give another OUT."),
        ("x.safetensors x.safetensors --layout ldm --dtype float16", "x.safetensors would be overwritten"),
        ("x.safetensors ./folder/../x.safetensors --layout ldm", "x.safetensors would be overwritten"),
        ("x.safetensors link.safetensors --layout ldm", "link.safetensors is x.safetensors, which is read"),
        ("link.safetensors x.safetensors --layout ldm", "x.safetensors is link.safetensors, which is read"),
        ("x.safetensors way/link.safetensors --layout ldm", "way/link.safetensors is x.safetensors, which is read"),
        ("x.safetensors hard.safetensors --layout ldm", "hard.safetensors is x.safetensors, which is read"),
        (
            "diffusers diffusers --layout diffusers",
            "diffusers/diffusion_pytorch_model.safetensors would be overwritten",
        ),
        ("diffusers folder/../diffusers --layout diffusers --dtype float16", "would be overwritten"),
        (
            "diffusers/diffusion_pytorch_model.safetensors diffusers --layout diffusers",
            "diffusers/diffusion_pytorch_model.safetensors would be overwritten",
        ),
        ("diffusers diffusers/diffusion_pytorch_model.safetensors --layout ldm", "would be overwritten"),
        ("keras keras --layout keras", "keras/decoder.h5 would be overwritten"),
        ("keras/decoder.h5 keras --layout keras", "keras/decoder.h5 would be overwritten"),
        ("./keras keras/ --layout keras --dtype float16", "keras/decoder.h5 would be overwritten"),
    ],
)
def test_convert(words: str, said: str, weights: None, calotype: Calotype) -> None:
    refused(calotype, f"convert {words}", said)


@pytest.mark.slow
def test_convert_beside_what_describes_the_weights(weights: None, calotype: Calotype) -> None:
    """The config.json beside a file is read too."""
    Path("diffusers/diffusion_pytorch_model.safetensors").rename("diffusers/other.safetensors")
    refused(
        calotype, "convert diffusers/other.safetensors diffusers --layout diffusers", "diffusers/config.json would be"
    )


@pytest.mark.slow
def test_convert_into_a_presets_cache(weights: None, calotype: Calotype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose files are links to others, as huggingface_hub keeps them."""
    blobs = Path("cache/blobs")
    blobs.mkdir(parents=True)
    Path("cache/snapshot").mkdir()
    for number, name in enumerate(("config.json", "diffusion_pytorch_model.safetensors")):
        shutil.copy(Path("diffusers", name), blobs / str(number))
        Path("cache/snapshot", name).symlink_to(f"../blobs/{number}")
    monkeypatch.setattr("calotype.vae.loading.fetch", lambda name: Path("cache/snapshot"))
    refused(calotype, "convert sdxl-vae cache/snapshot --layout diffusers", "would be overwritten; give another OUT.")


@pytest.mark.slow
def test_other_layouts_may_stand_in_the_same_folder(weights: None, calotype: Calotype) -> None:
    """And are replaced when they are written again: they are not what is read."""
    before = content()
    for _ in range(2):
        assert calotype("convert", "diffusers", "diffusers", "--layout", "keras").code == 0
        assert calotype("convert", "diffusers", "diffusers/one.safetensors", "--layout", "ldm").code == 0
    assert {path: content()[path] for path in before} == before
    Path("old.safetensors").write_bytes(b"old")
    assert calotype("convert", "model.ckpt", "old.safetensors", "--layout", "ldm").code == 0
    assert Path("old.safetensors").read_bytes() != b"old"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # the VAE has a name that an output gets
        ("encode a.png --vae a.latents.safetensors", "a.latents.safetensors would be overwritten; give another --out."),
        ("encode a.png --vae v.safetensors --out links", "links/a.latents.safetensors is v.safetensors, which is read"),
        ("decode a-decoded.png --vae v.safetensors --out links", "links/a-decoded-decoded.png is a-decoded.png"),
        ("reconstruct a.png --vae v.safetensors --out links", "links/a-panel.png is a.png, which is read and would be"),
        ("vary a.png --vae v.safetensors --seed 3 --out links", "links/a-vary-3.png is a.png, which is read"),
        ("vary a.png --vae v.safetensors --seed 20 --out links", "links/a-vary.png is v.safetensors, which is read"),
        ("morph a.png b.png --out hard.png --vae v.safetensors", "hard.png is a.png, which is read"),
        ("morph a.png b.png --out m.gif --sheet b.png", "b.png would be overwritten; give another --sheet."),
        ("blend a.png b.png mask.png --out ./links/../mask.png", "mask.png would be overwritten"),
        ("blend a.png b.png mask.png --vae v.png --out v.png", "v.png would be overwritten"),
        ("transfer a.png b.png --out hard.png", "hard.png is a.png, which is read"),
        ("transfer a.png b.png --vae v.png --out v.png", "v.png would be overwritten"),
        ("direction learn set b.png --out set/2.png", "set/2.png would be overwritten"),
        ("direction learn b.png set --out in.png", "in.png is set/2.png, which is read"),
        ("direction learn set set --vae v.safetensors --out v.safetensors", "v.safetensors would be overwritten"),
        ("direction apply a.png v.safetensors --out hard.png", "hard.png is a.png, which is read"),
        ("draw sun --model sun-0.png", "sun-0.png would be overwritten"),
        ("draw sun --preview v.safetensors --vae v.safetensors", "v.safetensors"),
        ("draw sun --preview v.png --vae v.png", "v.png is one of the pictures; give it another name"),
        ("redraw a.png sun --out links", "links/a-redraw-1.png is a.png, which is read"),
        ("redraw a.png sun --model a-redraw.png", "a-redraw.png would be overwritten"),
        ("redraw a.png sun --mask mask.png --preview mask.png", "mask.png is one of the pictures"),
        (
            "redraw a.png sun --preview hard.png",
            "hard.png is a.png, which is read and would be overwritten; give another --p",
        ),
        (
            "evaluate set --vae v.safetensors --report report --boxes report/results.json",
            "report/results.json would be",
        ),
        ("evaluate set --vae report/results.csv --report report", "report/results.csv would be overwritten"),
        (
            "probe v.safetensors set --report report --labels report/probe.json",
            "report/probe.json would be overwritten",
        ),
        (
            "probe report/index.html set --report report",
            "report/index.html would be overwritten; give another --report",
        ),
        (
            "train r.toml --data . --out run --set start.weights=run/weights.safetensors",
            "run/weights.safetensors would",
        ),
        ("train r.toml --data . --out set", "--out set lies in set, so the run's panels would be among the pictures"),
        ("train r.toml --data . --out set/runs/1", "--out set/runs/1 lies in set, so"),
        ("train r.toml --data . --out way/run", "--out way/run lies in set, so"),
    ],
)
def test_what_is_read_is_not_overwritten(words: str, said: str, calotype: Calotype) -> None:
    for name in ("a.png", "b.png", "mask.png", "a-decoded.png", "sun-0.png", "a-redraw.png"):
        draw(name)
    for i in range(6):
        draw(f"set/{i}.png", seed=i)
    small_vae(Path("v.safetensors"))
    for name in (
        "v.png",
        "a.latents.safetensors",
        "run/weights.safetensors",
        "report/results.csv",
        "report/index.html",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy("v.safetensors", name)
    Path("links").mkdir()
    for name, target in (
        ("a.latents.safetensors", "v.safetensors"), ("a-decoded-decoded.png", "a-decoded.png"),
        ("a-panel.png", "a.png"),
        ("a-vary-3.png", "a.png"), ("a-vary.png", "v.safetensors"), ("a-redraw-1.png", "a.png"), ("sun-0.png", "a.png"),
    ):  # fmt: skip
        Path("links", name).symlink_to(f"../{target}")
    os.link("a.png", "hard.png")
    Path("in.png").symlink_to("set/2.png")
    Path("way").symlink_to("set")
    Path("report/results.json").write_text('{"parts": {"0.png": [[0, 0, 8, 8]]}}')
    Path("report/probe.json").write_text('{"0.png": "a"}')
    Path("r.toml").write_text(
        'name = "tiny"\ncrop = 16\nbatch = 2\nsteps = 2\nwarmup = 1\ncooldown = 1\n[start]\nweights = "v.safetensors"\n'
        '[network]\nkind = "folded"\nz_channels = 4\nch = [8, 16]\nencoder_blocks = [1, 1]\ndecoder_blocks = [1, 1]\n'
        '[[sources]]\npath = "set"\n'
    )
    refused(calotype, words, said)


@pytest.mark.slow
def test_a_run_beside_its_pictures(calotype: Calotype) -> None:
    """What is written beside pictures is none, and is written again."""
    for i in range(6):
        draw(f"set/{i}.png", 32, 32, seed=i)
    vae = small_vae(Path("v.safetensors"))
    for _ in range(2):
        words = ("direction", "learn", "set", "set", "--vae", vae, "--out", "set/way.safetensors")
        assert calotype(*words).code == 0
    for _ in range(2):
        words = ("evaluate", "set", "--vae", vae, "--metrics", "psnr", "--report", "set/report")
        assert calotype(*words).code == 0


def test_a_drawing_models_vae(here: Path) -> None:
    from calotype.apart import described_by, require_apart

    Path("run").mkdir()
    vae = small_vae(Path("run/weights.safetensors"))
    with pytest.raises(UsageError, match=r"run/weights\.safetensors would be overwritten"):
        require_apart([Path("run/weights.safetensors")], described_by([vae]))
