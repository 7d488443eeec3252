"""`decode`, `inspect` and `encode --to` with latents of other programs."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clikit import Calotype, draw, files, levels
from diffusers import AutoencoderTiny
from latentkit import ai_toolkit, comfyui, diffusion_pipe, latents, musubi, sd_scripts, simpletuner
from safetensors.torch import save_file
from support import SMALL, kl, tiny

import calotype as library
from calotype.edit.sources import latents_of, read
from calotype.errors import CalotypeWarning
from calotype.latent_files import load_latents, save_latents
from calotype.latents import KNOWN, flux2
from calotype.weights.save import save_weights

Z = latents(4, 6, 8)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VAE of f2 whose latents are Stable Diffusion 1's."""
    path = tmp_path_factory.mktemp("sd1") / "sd1.safetensors"
    return save_weights(kl(SMALL), path, layout="ldm", format_=KNOWN["sd1"])[0]


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, which do not tell their format."""
    return save_weights(kl(SMALL), tmp_path_factory.mktemp("unknown") / "kl.safetensors", layout="ldm")[0]


def picture(vae: Path, raw: torch.Tensor) -> np.ndarray:
    """What raw latents decode to, in levels."""
    pixels = library.load(vae, device="cpu").decode(raw[None])[0]
    return ((pixels + 1) * 127.5).round().permute(1, 2, 0).numpy()


def near(path: str, expected: np.ndarray) -> bool:
    return levels(path).shape == expected.shape and bool(np.abs(levels(path) - expected).max() <= 1)


def made(name: str) -> tuple[Path, list[str], torch.Tensor]:
    """A file of a program, what has to be said of it, and the raw latents in it."""
    scale = 0.18215
    say = ["--latent-format", "sd1"]
    torch.save(Z, "bare.pt")
    np.save("bare.npy", Z.numpy())
    kinds: dict[str, tuple[Path, list[str], torch.Tensor]] = {
        "ComfyUI": (comfyui(Path("c.latent"), Z[None]), say, Z),
        "ComfyUI, old": (comfyui(Path("o.latent"), Z[None], version=False), [], Z / scale),
        "sd-scripts": (sd_scripts(Path("a_0016x0012_sd.npz"), Z, sized=False), [], Z),
        "sd-scripts, old": (sd_scripts(Path("a.npz"), Z, sized=False), say, Z),
        "ai-toolkit": (ai_toolkit(Path("a_hash.safetensors"), "sd1", Z), [], Z / scale),
        "SimpleTuner": (simpletuner(Path(f"{'0a' * 32}.pt"), Z, packed=True), say, Z / scale),
        "torch": (Path("bare.pt"), [*say, "--space", "model"], Z / scale),
        "numpy": (Path("bare.npy"), [*say, "--space", "raw"], Z),
    }
    return kinds[name]


@pytest.mark.parametrize(
    "name",
    ["ComfyUI", "ComfyUI, old", "sd-scripts", "sd-scripts, old", "ai-toolkit", "SimpleTuner", "torch", "numpy"],
)  # fmt: skip
def test_latents_of_other_programs_are_decoded(name: str, calotype: Calotype, sd1: Path) -> None:
    path, said, raw = made(name)
    ran = calotype("decode", path, "--vae", sd1, *said, "--out", "o")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{path} -> o/{path.stem}-decoded.png (16x12)\n"  # of f2, whatever f others of the format have
    assert near(f"o/{path.stem}-decoded.png", picture(sd1, raw))
    if said:
        ran = calotype("decode", path, "--vae", sd1, "--out", "none")
        assert (ran.code, ran.out, len(ran.said)) == (2, "", 1)
        assert ran.err.startswith(f"calotype: {path}: nothing tells all of these ")
        assert not Path("none").exists()


@pytest.mark.slow
def test_what_is_said_counts_for_weights_that_do_not_tell(calotype: Calotype, unknown: Path, sd1: Path) -> None:
    path, said, raw = made("torch")
    assert calotype("decode", path, "--vae", unknown, *said, "--out", "o").code == 0
    assert near("o/bare-decoded.png", picture(unknown, raw))
    ran = calotype("decode", path, "--vae", sd1, "--latent-format", "sdxl", "--space", "raw", "--out", "no")
    assert (ran.code, len(ran.said)) == (1, 1)
    assert "are of format 'sdxl', and sd1.safetensors decodes those of 'sd1'" in ran.err
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        words = ("--latent-format", "sdxl", "--space", "raw", "--any-vae", "--out", "o")
        ran = calotype("decode", path, "--vae", sd1, *words)
    assert ran.code == 0
    assert "what comes out is no picture of them" in ran.err
    assert near("o/bare-decoded.png", picture(sd1, Z * 0.13025 / 0.18215))  # through model space
    ran = calotype("decode", "bare.npy", "--vae", sd1, "--latent-format", "none", "--space", "raw", "--out", "o")
    assert (ran.code, ran.err) == (0, "")
    assert near("o/bare-decoded.png", picture(sd1, Z))
    ran = calotype("decode", "bare.npy", "--vae", sd1, "--latent-format", "none", "--space", "model", "--out", "o")
    assert near("o/bare-decoded.png", picture(sd1, Z / 0.18215))


def test_a_taesd_decodes_them_through_model_space(here: Path) -> None:
    path = save_weights(tiny(), here / "taesd.safetensors", layout="ldm")[0]
    vae = library.load(path, device="cpu", latent_format="sd1")
    one = load_latents(sd_scripts(here / "a_0064x0048_sd.npz", Z, sized=False))
    assert torch.allclose(vae.own(one), Z * 0.18215)
    assert vae.decoded_size(vae.adopt(one)) == (64, 48)
    with pytest.raises(library.CalotypeError, match="are of format 'flux'"):
        vae.own(load_latents(sd_scripts(here / "a_0064x0048_flux.npz", latents(16, 6, 8), sized=True)))


@pytest.mark.slow
def test_raw_latents_of_a_tiny_autoencoder_in_one_command(calotype: Calotype, here: Path) -> None:
    """Nothing tells the format of the latents nor of the weights, and one option says both."""
    weights = save_weights(tiny(), here / "mine.safetensors", layout="ldm")[0]
    comfyui(here / "a.latent", Z[None])
    np.save("bare.npy", Z.numpy())
    expected = (library.load(weights, device="cpu").decode(Z[None])[0].clamp(-1, 1) + 1) * 127.5
    for path in ("a.latent", "bare.npy"):
        ran = calotype("decode", path, "--vae", weights, "--latent-format", "model:sd1", "--out", "o")
        assert (ran.code, ran.err) == (0, "")
        assert near(f"o/{Path(path).stem}-decoded.png", expected.round().permute(1, 2, 0).numpy())
    ran = calotype("decode", "a.latent", "--vae", weights, "--latent-format", "model:sd1", "--space", "model")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "are raw, and not model; leave out --space" in ran.err


@pytest.mark.slow
def test_a_format_may_be_said_of_weights_whose_own_names_no_space(calotype: Calotype, here: Path) -> None:
    """A folder's config.json has a scale, which diffusers writes for every network, and no name."""
    folder = here / "folder"
    AutoencoderTiny().save_pretrained(folder)
    assert library.load(folder, device="cpu").latent_format.name == "custom"
    np.save("z.npy", Z.numpy())
    said = ("decode", "z.npy", "--vae", folder, "--latent-format", "model:sd1", "--out", "o")
    ran = calotype(*said)
    assert (ran.code, ran.err) == (0, "")
    expected = (library.load(folder, device="cpu").decode(Z[None])[0].clamp(-1, 1) + 1) * 127.5
    assert near("o/z-decoded.png", expected.round().permute(1, 2, 0).numpy())


def test_inspect_tells_a_scale_by_a_name_that_may_be_said(calotype: Calotype) -> None:
    np.save("z.npy", Z.numpy())
    for name in ("sd1", "model:sd1"):
        save_latents("own.safetensors", load_latents("z.npy", latent_format=name, space="raw"))
        assert calotype("inspect", "own.safetensors", "--json").json["latent_format"] == name
        assert calotype("inspect", "z.npy", "--latent-format", name, "--json").json["latent_format"] == name


@pytest.mark.slow
def test_a_format_may_be_said_of_the_weights_of_calotypes_own_latents(
    calotype: Calotype, unknown: Path, sd1: Path
) -> None:
    draw("a.png", 16, 12)
    assert calotype("encode", "a.png", "--vae", sd1).code == 0
    raw = load_latents("a.latents.safetensors").tensor
    for name in ("sd1", "sdxl"):  # the latents tell theirs
        told = ("--vae", unknown, "--latent-format", name, "--any-vae", "--out", name)
        assert calotype("decode", "a.latents.safetensors", *told).code == 0
        assert near(f"{name}/a-decoded.png", picture(unknown, raw))


def test_flux2_uses_the_statistics_of_the_vae(here: Path) -> None:
    format_ = flux2(tuple(0.01 * i for i in range(128)), tuple(1.0 + 0.1 * i for i in range(128)))
    path = save_weights(kl(replace(SMALL, z_channels=32)), here / "f2.safetensors", layout="ldm", format_=format_)[0]
    vae = library.load(path, device="cpu")
    packed = latents(128, 3, 4)
    one = load_latents(comfyui(here / "a.latent", packed[None]))
    assert torch.allclose(vae.own(one), vae.latent_format.to_raw(packed[None])[0])
    assert vae.decoded_size(vae.adopt(one)) == (16, 12)
    raw = latents(32, 6, 8)
    torch.save({"latent_image": raw}, here / "1.pt")
    assert torch.equal(vae.own(load_latents(here / "1.pt", latent_format="flux2")), raw)


def test_raw_latents_of_flux2_are_not_those_of_a_taef2(shared: Path, calotype: Calotype) -> None:
    folder = shared / "weights" / "taef2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    np.save("z.npy", latents(32, 6, 8).numpy())
    ran = calotype("decode", "z.npy", "--vae", folder, "--latent-format", "flux2", "--space", "raw", "--out", "o")
    assert (ran.code, len(ran.said)) == (1, 1)
    assert "decodes them scaled by statistics in that one's weights; load flux2-vae, or say model:flux2" in ran.err
    ran = calotype("decode", "z.npy", "--vae", folder, "--latent-format", "model:flux2", "--out", "o")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.slow
def test_a_file_with_several(calotype: Calotype, sd1: Path) -> None:
    comfyui(Path("batch.latent"), batch := latents(3, 4, 6, 8))
    words = ("decode", "batch.latent", "--vae", sd1, "--latent-format", "sd1", "--out", "o")
    ran = calotype(*words)
    assert (ran.code, ran.err) == (0, "")
    assert files("o") == [f"batch-{i}-decoded.png" for i in range(3)]
    for i in range(3):
        assert near(f"o/batch-{i}-decoded.png", picture(sd1, batch[i]))
    assert calotype(*words, "--index", 1, "--out", "one").code == 0
    assert files("one") == ["batch-1-decoded.png"]
    ran = calotype(*words, "--index", 3)
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "--index 3: batch.latent holds 3, counted from 0" in ran.err
    comfyui(Path("batch-1.latent"), batch[:1])
    ran = calotype("decode", "batch.latent", "batch-1.latent", *words[2:])
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "Two pictures would both be written to o/batch-1-decoded.png" in ran.err
    ran = calotype("decode", "batch.latent", "batch-1.latent", *words[2:], "--index", "0")
    assert (ran.code, "Two pictures would both be written" in ran.err) == (0, False)
    Path("batch-1.latent").rename("batch-0.latent")
    comfyui(Path("batch-0.latent"), batch[:1])
    ran = calotype("decode", "batch.latent", "batch-0.latent", *words[2:], "--index", "0")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "Two pictures would both be written to o/batch-0-decoded.png" in ran.err


def test_a_cache_of_diffusion_pipe(calotype: Calotype, sd1: Path) -> None:
    zs = [latents(4, 6, 8, seed=i) for i in range(3)]
    path = diffusion_pipe(Path("cache/mine/latents"), [{"latents": z} for z in zs])
    assert calotype("decode", path, "--vae", sd1, "--latent-format", "sd1", "--out", "o").code == 0
    for i, z in enumerate(zs):
        assert near(f"o/metadata-{i}-decoded.png", picture(sd1, z / 0.18215))


def test_no_vae_is_named(calotype: Calotype) -> None:
    sd_scripts(Path("a_0064x0048_sdxl.npz"), Z, sized=False)
    ran = calotype("decode", "a_0064x0048_sdxl.npz", "--out", "o")
    assert (ran.code, len(ran.said)) == (1, 1)
    assert "these latents name no VAE; give one of the space 'sdxl' (sdxl-vae, " in ran.err
    assert not Path("o").exists()


def test_one_bad_file_does_not_stop_the_others(calotype: Calotype, sd1: Path) -> None:
    good = sd_scripts(Path("good_sd.npz"), Z, sized=False)
    video = musubi(Path("video.safetensors"), "qwen_image", latents(16, 3, 6, 8))
    Path("cut_sd.npz").write_bytes(good.read_bytes()[:-30])
    ran = calotype("decode", "cut_sd.npz", video, good, "--vae", sd1, "--out", "o", "--json")
    assert ran.code == 1
    assert [failure["file"] for failure in ran.json["failures"]] == ["cut_sd.npz", "video.safetensors"]
    assert "frames of a video" in ran.json["failures"][1]["error"]
    assert files("o") == ["good_sd-decoded.png"]


def test_inspect_says_whose_they_are(calotype: Calotype) -> None:
    sd_scripts(Path("a_0064x0048_flux.npz"), latents(16, 6, 8), sized=True, flipped=True)
    ran = calotype("inspect", "a_0064x0048_flux.npz")
    assert (ran.code, ran.err) == (0, "")
    told = dict(line.split("  ", 1) for line in ran.out.splitlines() if "  " in line.strip())
    told = {key.strip(): value.strip() for key, value in told.items()}
    assert told["latents of"] == "sd-scripts, for flux"
    assert told["space"] == "model, drawn from the posterior"
    assert told["latent format"] == "flux"
    assert "latents_flipped_6x8" in told["left out"]
    assert "flux-vae" in told["decoded by"]
    comfyui(Path("a.latent"), Z[None])
    told = calotype("inspect", "a.latent", "--json").json
    assert (told["program"], told["space"], told["latent_format"], told["latents"]) == ("ComfyUI", "raw", None, 1)
    assert "--latent-format sd1|" in told["question"]
    torch.save(Z, "bare.pt")
    assert calotype("inspect", "bare.pt", "--json").json["program"] is None
    ran = calotype("inspect", "a.latent", "--latent-format", "sdxl")
    assert "sdxl-vae" in ran.out


@pytest.mark.parametrize("name", ["musubi-tuner", "ai-toolkit", "ai-toolkit's pixels", "OneTrainer", "newer"])
def test_inspect_says_why_latents_can_not_be_decoded(name: str, calotype: Calotype) -> None:
    """As the reader of that program's files does, and not as of weights that lack something."""
    path, why = {
        "musubi-tuner": (
            musubi(Path("a.safetensors"), "hunyuan_video", latents(16, 1, 6, 8)),
            "cached by musubi-tuner",
        ),
        "ai-toolkit": (ai_toolkit(Path("b.safetensors"), "chroma_radiance", Z), "for chroma_radiance, and can't be"),
        "ai-toolkit's pixels": (ai_toolkit(Path("c.safetensors"), "x", torch.zeros(3, 8, 8).byte()), "are pixels"),
        "OneTrainer": (Path("aggregate.pt"), "OneTrainer's list of sizes and paths"),
        "newer": (Path("d.safetensors"), "are latents/9, of a newer calotype"),
    }[name]
    if name == "OneTrainer":
        torch.save([{"crop_resolution": (8, 8), "image_path": "a.jpg"}], path)
    if name == "newer":
        save_file({"latents": Z}, path, {"calotype": "latents/9"})
    for command in (("inspect",), ("decode", "--vae", "sd-vae-ft-mse")):
        ran = calotype(command[0], path, *command[1:])
        assert (ran.code, ran.out, len(ran.said)) == (1, "", 1)
        assert why in ran.err


def test_inspect_of_calotypes_own(calotype: Calotype, vae: Path) -> None:
    draw("a.png", 37, 21)
    assert calotype("encode", "a.png", "--vae", vae).code == 0
    told = calotype("inspect", "a.latents.safetensors", "--json").json
    assert (told["program"], told["vae"], told["picture"]) == ("calotype", vae.name, {"width": 37, "height": 21})
    Path("x.npz").write_bytes(b"PK\x03\x04")
    ran = calotype("inspect", "x.npz")
    assert (ran.code, len(ran.said)) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["comfyui", "sd-scripts"])
def test_encode_for_another_program(to: str, calotype: Calotype, sd1: Path) -> None:
    draw("a.png", 40, 24)
    assert calotype("encode", "a.png", "--vae", sd1, "--out", "own").code == 0
    ran = calotype("encode", "a.png", "--vae", sd1, "--to", to, "--out", "o")
    name = "a.latent" if to == "comfyui" else "a_0040x0024_sd.npz"
    assert (ran.code, ran.err, ran.out) == (0, "", f"a.png -> o/{name} [4, 12, 20], raw, format sd1\n")
    own = load_latents("own/a.latents.safetensors")
    said = {"latent_format": "sd1"} if to == "comfyui" else {}
    assert torch.equal(load_latents(f"o/{name}", **said).tensor, own.tensor)  # type: ignore[arg-type]
    words = ("--latent-format", "sd1") if to == "comfyui" else ()
    assert calotype("decode", f"o/{name}", "--vae", sd1, *words, "--out", "again").code == 0
    assert calotype("decode", "own/a.latents.safetensors", "--vae", sd1, "--out", "again").code == 0
    again = levels(f"again/{Path(name).stem}-decoded.png" if to != "comfyui" else "again/a-decoded.png")
    assert np.array_equal(again, levels("again/a-decoded.png"))


@pytest.mark.slow
def test_encode_for_a_program_that_does_not_know_them(calotype: Calotype, vae: Path, sd1: Path) -> None:
    draw("a.png")
    for to in ("comfyui", "sd-scripts"):
        ran = calotype("encode", "a.png", "--vae", vae, "--to", to, "--out", "o")
        assert (ran.code, len(ran.said)) == (2, 1)
        assert "has no latents of format 'small', only those of sd1, " in ran.err
    ran = calotype("encode", "a.png", "--vae", sd1, "--to", "comfyui", "--space", "model", "--out", "o")
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "leave out --space or --to" in ran.err
    assert not Path("o").exists()
    draw("odd.png", 39, 23)
    ran = calotype("encode", "odd.png", "--vae", sd1, "--to", "sd-scripts", "--out", "o")
    assert ran.code == 0
    assert ran.said == ["calotype: odd.png: its 39x23 pixels were padded to 40x24, which sd-scripts is not told."]


def test_latents_of_others_are_edited_as_the_vaes_own(here: Path, sd1: Path) -> None:
    vae = library.load(sd1, device="cpu")
    one = latents_of(vae, read(ai_toolkit(here / "a.safetensors", "sd1", Z)))
    assert (one.vae, one.format, one.space) == (vae.sha256, KNOWN["sd1"], "raw")
    assert (one.padding.height, one.padding.width) == (12, 16)
    assert torch.allclose(one.tensor, Z / 0.18215)
    assert vae.decode_image(one).size == (16, 12)


@pytest.mark.slow
def test_every_kind_of_file_is_edited(calotype: Calotype, sd1: Path) -> None:
    made("numpy")
    paths = [sd_scripts(Path("b_0064x0048_sd.npz"), Z, sized=False), comfyui(Path("a.latent"), Z[None], version=False)]
    for path in paths:
        assert (
            calotype("vary", path, "--vae", sd1, "--count", "1", "--noise", "latents", "--temperature", "0").code == 0
        )
        assert near(f"{path.stem}-vary-0.png", picture(sd1, load_latents(path).to_raw().tensor))
    Path("text.npz").write_text("no latents\n")
    sd_scripts(Path("c_0064x0048_sd3.npz"), latents(16, 6, 8), latents(16, 4, 8), sized=True)
    for path, why in (
        ("c_0064x0048_sd3.npz", "there are 2 latents in it, and one picture's are edited"),
        ("bare.npy", "nothing tells of which space these latents are"),
        ("bare.pt", "nothing tells of which space these latents are"),
        ("text.npz", "these are not latents with calotype's metadata"),
    ):
        ran = calotype("vary", path, "--vae", sd1)
        assert (ran.code, len(ran.said)) == (1 if path == "text.npz" else 2, 1)
        assert why in ran.err


def test_any_vae_warns_in_python_too(here: Path, sd1: Path) -> None:
    one = load_latents(ai_toolkit(here / "a.safetensors", "sdxl", Z))
    with pytest.warns(CalotypeWarning, match="no picture of them"):
        library.load(sd1, device="cpu").own(one, any_vae=True)
    with pytest.raises(library.CalotypeError, match="of format 'flux', with 16 channels, and"):
        library.load(sd1, device="cpu").own(
            load_latents(ai_toolkit(here / "b.safetensors", "flux1", latents(16, 6, 8))), any_vae=True
        )


def test_edits_say_how_to_bring_bare_tensors(calotype: Calotype, sd1: Path) -> None:
    save_file({"latents": Z}, "bare.safetensors")
    ran = calotype("vary", "bare.safetensors", "--vae", sd1)
    assert (ran.code, len(ran.said)) == (2, 1)
    assert "nothing tells of which space these latents are" in ran.err
    assert "calotype.load_latents('bare.safetensors', latent_format=..., space=...)" in ran.err
