"""`calotype inspect` and `calotype convert`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from clikit import Calotype, draw, files
from safetensors.torch import load_file, save_file
from support import SMALL, import_diffusers, kl, room, tensors_of
from wankit import theirs

from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.network import AutoencoderKL
from calotype.latents import KNOWN
from calotype.vae import load
from calotype.weights.save import save_weights


@pytest.fixture
def module(here: Path) -> AutoencoderKL:
    """A small AutoencoderKL, written as ldm without and as diffusers with a latent format."""
    module = kl(SMALL)
    save_weights(module, here / "ldm.safetensors", layout="ldm")
    save_weights(module, here / "diffusers", layout="diffusers", format_=KNOWN["sdxl"])
    return module


@pytest.mark.slow
def test_inspect_shows_the_built_in_weights(calotype: Calotype) -> None:
    ran = calotype("inspect", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = ran.json
    module = load().module
    assert told["network"] == "FoldedAutoencoder"
    assert told["configuration"] == {**json.loads(json.dumps(module.config.to_dict()))}
    assert (told["factor"], told["latent_channels"]) == (8, 16)
    assert told["parts"] == ["decoder", "encoder"]
    assert told["parameters"]["total"] == sum(p.numel() for p in module.parameters())
    assert told["parameters"]["encoder"] == sum(p.numel() for p in module.encoder.parameters())
    assert told["parameters"]["decoder"] == sum(p.numel() for p in module.decoder.parameters())
    assert told["dtypes"] == ["float16"]
    assert told["latent_format"]["kind"] == "per_channel"
    assert told["finite_in"] == {"float32": True, "bfloat16": True, "float16": True}
    assert told["training"]["recipe"]["name"] == "builtin-adversarial"
    text = calotype("inspect").out
    assert all(word in text for word in ("FoldedAutoencoder, f8, 16 latent channels", told["sha256"], "trained: steps"))


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_inspect_shows_a_small_vae(layout: str, module: AutoencoderKL, calotype: Calotype) -> None:
    name = "ldm.safetensors" if layout == "ldm" else "diffusers"
    ran = calotype("inspect", name, "--json")
    assert (ran.code, ran.err) == (0, "")
    told = ran.json
    assert told["layout"] == layout
    assert told["network"] == "AutoencoderKL"
    assert (told["factor"], told["latent_channels"], told["dtypes"]) == (2, 4, ["float32"])
    assert told["configuration"]["ch"] == SMALL.ch
    assert told["configuration"]["ch_mult"] == list(SMALL.ch_mult)
    decoder = sum(p.numel() for n, p in module.named_parameters() if n.startswith(("decoder.", "post_quant_conv.")))
    total = sum(p.numel() for p in module.parameters())
    assert told["parameters"] == {"total": total, "encoder": total - decoder, "decoder": decoder}
    assert told["sha256"] == load("ldm.safetensors").sha256
    assert told["training"] == {}
    assert told["files"] == [name if layout == "ldm" else "diffusers/diffusion_pytorch_model.safetensors"]


@pytest.mark.slow
def test_inspect_says_how_the_latent_format_is_known(
    module: AutoencoderKL, calotype: Calotype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calotype.vae.VAE.check_dtypes", lambda self: {})  # the slow part
    told = calotype("inspect", "ldm.safetensors", "--json").json
    assert (told["latent_format"], told["latent_format_from"]) == (None, "")
    assert "unknown: give --latent-format to encode" in calotype("inspect", "ldm.safetensors").out
    told = calotype("inspect", "diffusers", "--json").json
    assert told["latent_format"]["name"] == "sdxl"
    assert told["latent_format"]["scaling_factor"] == 0.13025
    told = calotype("inspect", "ldm.safetensors", "--latent-format", "sd1", "--json").json
    assert (told["latent_format"]["name"], told["latent_format_from"]) == ("sd1", "--latent-format")


def test_a_latent_format_for_other_channels_is_refused(module: AutoencoderKL, calotype: Calotype) -> None:
    ran = calotype("inspect", "ldm.safetensors", "--latent-format", "flux")
    assert (ran.code, ran.out, len(ran.said)) == (2, "", 1)
    assert "is for 16 channels, and this VAE has 4" in ran.err


def test_inspect_notices_overflow(here: Path, calotype: Calotype) -> None:
    module = kl(SMALL)
    with torch.no_grad():
        module.get_parameter("decoder.conv_in.weight").mul_(1e6)
    save_weights(module, here / "hot.safetensors", layout="ldm")
    ran = calotype("inspect", "hot.safetensors")
    assert ran.code == 0
    assert "float32: finite, bfloat16: finite, float16: NaN or infinity" in ran.out


@pytest.mark.slow
@pytest.mark.parametrize("command", [["inspect"], ["convert", "--layout", "ldm"]])
def test_what_is_no_vae_is_one_line(command: list[str], calotype: Calotype) -> None:
    Path("text.safetensors").write_text("weights? no")
    Path("empty.ckpt").touch()
    Path("folder").mkdir()
    torch.save({"layer.weight": torch.zeros(3, 3)}, "classifier.pt")
    before = files()
    for name in ("text.safetensors", "empty.ckpt", "folder", "classifier.pt", "missing.safetensors"):
        words = [*command, name] if command == ["inspect"] else [*command, name, "out.safetensors"]
        ran = calotype(*words)
        assert (ran.code, ran.out, len(ran.said)) == (1, "", 1), ran
        assert ran.said[0].startswith(f"calotype: {name}: ")
    assert files() == before


def test_a_misspelt_preset(calotype: Calotype) -> None:
    ran = calotype("inspect", "sd-vae-ft-mes")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert ran.err.endswith("did you mean sd-vae-ft-mse?\n")
    ran = calotype("inspect", "zzz")
    assert "presets are sd-vae-ft-mse" in ran.err


@pytest.mark.slow
def test_there_and_back_changes_no_bit(module: AutoencoderKL, calotype: Calotype) -> None:
    ran = calotype("convert", "ldm.safetensors", "d", "--layout", "diffusers")
    assert (ran.code, ran.said[0].endswith("--latent-format sd1|sdxl|playground.")) == (2, True)
    ran = calotype("convert", "ldm.safetensors", "d", "--layout", "diffusers", "--latent-format", "sdxl")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "ldm -> diffusers: d/config.json, d/diffusion_pytorch_model.safetensors\n"
    ran = calotype("convert", "d", "again.safetensors", "--layout", "ldm", "--json")
    assert ran.json == {"from": "diffusers", "to": "ldm", "files": ["again.safetensors"]}
    first, second = load_file("ldm.safetensors"), load_file("again.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_what_was_converted_loads_in_diffusers(module: AutoencoderKL, calotype: Calotype) -> None:
    assert calotype("convert", "ldm.safetensors", "d", "--layout", "diffusers", "--latent-format", "sd1").code == 0
    diffusers = import_diffusers()
    theirs = diffusers.AutoencoderKL.from_pretrained("d")
    assert theirs.config.scaling_factor == 0.18215
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.inference_mode():
        assert torch.allclose(theirs.encode(x).latent_dist.mean, module.encode(x).mode(), atol=1e-4)


def test_types_are_changed_when_asked(module: AutoencoderKL, calotype: Calotype) -> None:
    assert calotype("convert", "ldm.safetensors", "h.safetensors", "--layout", "ldm", "--dtype", "float16").code == 0
    half = load_file("h.safetensors")
    assert all(torch.equal(half[key], value.half()) for key, value in tensors_of(module).items())
    assert calotype("inspect", "h.safetensors", "--json").json["dtypes"] == ["float16"]


@pytest.mark.slow
def test_keras(here: Path, calotype: Calotype) -> None:
    from support import NARROW

    module = kl(NARROW)
    save_weights(module, here / "narrow.safetensors", layout="ldm")
    ran = calotype("convert", "narrow.safetensors", "k", "--layout", "keras", "--latent-format", "sdxl")
    assert ran.code == 0
    assert files("k") == ["decoder.h5", "encoder.h5"]
    assert calotype("convert", "k", "again.safetensors", "--layout", "ldm").code == 0
    again = load_file("again.safetensors")
    assert all(torch.equal(again[key], value) for key, value in tensors_of(module).items())


@pytest.mark.parametrize(
    ("out", "layout", "words"),
    [
        ("out.ckpt", "ldm", "the ldm layout is a single file"),
        ("folder", "ldm", "the ldm layout is a single file"),
        ("none/out.safetensors", "ldm", "there is no folder"),
        ("ldm.safetensors", "diffusers", "the diffusers layout is a folder"),
        ("ldm.safetensors", "keras", "the keras layout is a folder"),
    ],
)
def test_a_path_that_does_not_fit_the_layout(
    out: str, layout: str, words: str, module: AutoencoderKL, calotype: Calotype
) -> None:
    before = files()
    ran = calotype("convert", "diffusers", out, "--layout", layout)
    assert (ran.code, ran.out, len(ran.said)) == (2, "", 1)
    assert words in ran.err
    assert files() == before


@pytest.mark.slow
def test_the_built_in_network_has_a_layout_of_its_own(calotype: Calotype) -> None:
    ran = calotype("convert", "builtin", "d", "--layout", "diffusers")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "--layout ldm writes it" in ran.err
    assert calotype("convert", "builtin", "b.safetensors", "--layout", "ldm").code == 0
    told = calotype("inspect", "b.safetensors", "--json").json
    assert told["sha256"] == calotype("inspect", "--json").json["sha256"]
    assert told["latent_format"]["kind"] == "per_channel"


def test_a_failed_write_leaves_the_old_file(module: AutoencoderKL, calotype: Calotype) -> None:
    Path("out.safetensors").write_bytes(b"old")
    before = files()
    with room(5000):
        ran = calotype("convert", "ldm.safetensors", "out.safetensors", "--layout", "ldm")
    assert (ran.code, ran.out, len(ran.said)) == (1, "", 1)
    assert ran.err.startswith("calotype: out.safetensors can't be written: File too large; ")
    assert files() == before
    assert Path("out.safetensors").read_bytes() == b"old"


@pytest.mark.slow
def test_what_is_assumed_and_what_is_asked_is_told(here: Path, calotype: Calotype) -> None:
    module = kl(AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=8))
    save_file(tensors_of(module), here / "lone.safetensors")
    ran = calotype("inspect", "lone.safetensors")
    assert (ran.code, ran.err) == (0, "")
    assert "Its norms are taken to have 32 groups" in ran.out
    (note,) = calotype("inspect", "lone.safetensors", "--json").json["notes"]
    assert note.startswith("Its norms are taken")

    values = {
        "_class_name": "AutoencoderKL",
        "scaling_factor": 0.5,
        "latents_mean": [0.0] * 8,
        "latents_std": [2.0] * 8,
    }
    Path("config.json").write_text(json.dumps(values | {"force_upcast": False}))
    assert "scaling_factor 0.5, and nothing tells whether" in " ".join(
        calotype("inspect", "lone.safetensors").out.split()
    )
    # a conversion answers nothing, and loses nothing
    assert calotype("convert", "lone.safetensors", "sub.safetensors", "--layout", "ldm").code == 0
    Path("config.json").unlink()
    assert calotype("convert", "sub.safetensors", "d", "--layout", "diffusers").code == 0
    written = json.loads(Path("d/config.json").read_text())
    assert {key: written[key] for key in values} == values
    assert written["force_upcast"] is False
    ran = calotype("convert", "sub.safetensors", "h5", "--layout", "keras")
    assert (ran.code, ran.said[0].endswith("--latent-format means|scaled-means|none.")) == (2, True)
    told = calotype("inspect", "d", "--latent-format", "scaled-means", "--json").json["latent_format"]
    assert (told["std"], told["scaling_factor"]) == ([2.0] * 8, 0.5)


# Files with more than one VAE


@pytest.mark.slow
@pytest.mark.filterwarnings("always::calotype.errors.CalotypeWarning")
def test_raw_or_averaged_weights_are_chosen_and_shown(here: Path, calotype: Calotype) -> None:
    raw, averaged = (tensors_of(kl(AutoencoderConfig(ch=32, ch_mult=(1,)), seed)) for seed in (1, 2))
    torch.save({"model": raw, "ema": averaged, "global_step": torch.tensor(3)}, "x.pt")
    ran = calotype("inspect", "x.pt", "--json")
    told = ran.json
    assert (told["averaged"], told["prefix"], told["other_weights"]) == (True, "ema.", "model.")
    assert told["beside"] == "global_step"
    assert ran.err == f"calotype: {told['notices'][0]}\n"
    ran = calotype("inspect", "x.pt", "--weights", "raw")
    assert (ran.code, ran.err) == (0, "")
    for words in ("raw; the averaged (ema) ones stand under 'ema.'", "under 'model.'", "left out", "global_step"):
        assert words in ran.out
    for which, tensors in (("raw", raw), ("ema", averaged)):
        ran = calotype("convert", "x.pt", f"{which}.safetensors", "--layout", "ldm", "--weights", which)
        assert (ran.code, ran.err) == (0, "")
        assert all(torch.equal(value, tensors[key]) for key, value in load_file(f"{which}.safetensors").items())
    ran = calotype("inspect", "raw.safetensors", "--weights", "ema")
    assert (ran.code, ran.out) == (2, "")
    assert "raw.safetensors: there are no averaged weights in it" in ran.err


@pytest.mark.slow
def test_one_of_two_vaes_is_chosen(here: Path, calotype: Calotype) -> None:
    photo = draw("photo.png")
    first, second = (tensors_of(kl(AutoencoderConfig(ch=32, ch_mult=(1, 1)), seed)) for seed in (1, 2))
    save_file({f"a.{k}": v for k, v in first.items()} | {f"b.{k}": v for k, v in second.items()}, "two.safetensors")
    for i, tensors in enumerate((first, second)):
        save_file(tensors, f"{i}.safetensors")
    refused = calotype("reconstruct", photo, "--vae", "two.safetensors", "--out", "no")
    assert refused.code == 1
    assert "several VAEs, under 'a.', 'b.'; choose one with --prefix" in refused.err
    made = {}
    for name, options in {"a": ["two.safetensors", "--prefix", "a."], "b": ["two.safetensors", "--prefix", "b"],
                          "0": ["0.safetensors"], "1": ["1.safetensors"]}.items():  # fmt: skip
        vae, *chosen = options
        assert calotype("reconstruct", photo, "--vae", vae, *chosen, "--out", name).code == 0
        of_model = ("--latent-format", "sd1")
        assert calotype("encode", photo, "--vae", vae, *chosen, "--out", name, *of_model).code == 0
        latents = next(str(path) for path in sorted(Path(name).iterdir()) if path.name.endswith(".latents.safetensors"))
        assert calotype("decode", latents, "--vae", vae, *chosen, "--out", name, *of_model).code == 0
        assert calotype("plan", vae, "64x64", *chosen).code == 0
        made[name] = {path.name: path.read_bytes() for path in Path(name).iterdir() if path.suffix == ".png"}
    assert "photo-decoded.png" in made["a"]
    assert (made["a"], made["b"]) == (made["0"], made["1"])
    assert made["a"] != made["b"]
    ran = calotype("plan", "two.safetensors", "64x64", "--prefix", "c")
    assert ran.code == 2
    assert "no VAE stands under the prefix 'c'; they stand under 'a.', 'b.'" in ran.err


@pytest.mark.slow
def test_a_videos_vae_is_converted_from_a_file_that_has_all_of_it(calotype: Calotype, here: Path) -> None:
    theirs("qwen-image").save_pretrained(here / "whole")
    done = calotype("convert", "whole", "again", "--layout", "diffusers", "--dtype", "float16")
    assert done.code == 0, done.err
    before, after = (load_file(f"{name}/diffusion_pytorch_model.safetensors") for name in ("whole", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value.half(), after[key]) for key, value in before.items())
    assert json.loads(Path("again/config.json").read_text())["_class_name"] == "AutoencoderKLQwenImage"
    assert calotype("convert", "whole", "flat", "--layout", "diffusers-2d").code == 0
    done = calotype("convert", "flat", "back", "--layout", "diffusers")
    assert (done.code, len(done.said)) == (2, 1)
    assert "only the original file has: the other slices of its kernels" in done.said[0]
    assert not Path("back").exists()
