"""`decode --picture --mask`: a decoder that goes on from the picture around what is decoded."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from clikit import Calotype, draw, files, levels
from PIL import Image
from support import SMALL, fill, kl

import calotype as library
from calotype.families import make_network
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.weights.save import save_weights

CONFIG = AutoencoderConfig(
    ch=16, norm_groups=8, num_res_blocks=1, decoder_ch=24, decoder_num_res_blocks=2, condition=True
)
WIDTH, HEIGHT = 45, 30


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("asymmetric") / "asymmetric.safetensors"
    return save_weights(fill(make_network(CONFIG), 0, gain=0.7), path, layout="ldm", format_=KNOWN["sd1"])[0]


@pytest.fixture(scope="module")
def latents(weights: Path) -> Path:
    """Those of another picture than the one they are decoded into."""
    vae = library.load(weights, device="cpu")
    picture = draw(str(weights.with_name("other.png")), WIDTH, HEIGHT, seed=1)
    library.save_latents(path := weights.with_name("other.latents.safetensors"), vae.encode_image(picture))
    return path


@pytest.fixture
def words(weights: Path, latents: Path) -> list[object]:
    """What decodes latents around a mask; and the files that are named."""
    draw("photo.png", WIDTH, HEIGHT)
    shutil.copy(latents, ".")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8:20, 16:] = 255
    Image.fromarray(mask).save("mask.png")
    return ["decode", "other.latents.safetensors", "--vae", weights, "--picture", "photo.png", "--mask", "mask.png"]


def expected(weights: Path, mask: np.ndarray) -> np.ndarray:
    """The same by the library."""
    vae = library.load(weights, device="cpu")
    latents = library.load_latents("other.latents.safetensors")
    picture = library.read_picture("photo.png").pixels[None]
    pixels = vae.decode_masked(latents.tensor[None], picture, torch.from_numpy(mask).float()[None, None])[0]
    return ((pixels + 1) * 127.5).round().permute(1, 2, 0).numpy()


def near(first: np.ndarray, second: np.ndarray) -> bool:
    return first.shape == second.shape and bool(np.abs(first - second).max() <= 1)


@pytest.mark.slow
def test_what_is_white_is_decoded_and_the_rest_is_the_picture(
    calotype: Calotype, weights: Path, words: list[object]
) -> None:
    mask = levels("mask.png") / 255
    ran = calotype(*words, "--out", "o")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"other.latents.safetensors -> o/other-decoded.png ({WIDTH}x{HEIGHT})\n"
    made = levels("o/other-decoded.png")
    assert near(made, expected(weights, mask))
    alone = expected(weights, np.ones_like(mask))
    assert np.abs(made - alone).max() > 8
    assert calotype(*words, "--invert-mask", "--out", "inverted").code == 0
    assert near(levels("inverted/other-decoded.png"), expected(weights, 1 - mask))


@pytest.mark.slow
def test_the_document_says_what_was_around(calotype: Calotype, words: list[object]) -> None:
    (result,) = calotype(*words, "--json").json["results"]
    assert result == {
        "latents": "other.latents.safetensors", "picture": "other-decoded.png", "width": WIDTH, "height": HEIGHT,
        "around": "photo.png", "mask": "mask.png", "invert_mask": False,
    }  # fmt: skip


def test_the_pictures_own_holes_are_a_mask(calotype: Calotype, weights: Path, words: list[object]) -> None:
    mask = levels("mask.png") / 255
    with Image.open("photo.png") as image:
        image.putalpha(Image.fromarray(np.uint8(255 * (1 - mask))))
        image.save("holes.png")
    ran = calotype(*words[:-3], "holes.png", "--mask", "holes.png", "--out", "o")
    assert ran.code == 0
    assert "what is transparent in it is selected" in ran.err
    assert near(levels("o/other-decoded.png"), expected(weights, mask))  # what is under a hole does not count


@pytest.mark.slow
def test_alpha_that_was_kept_aside_comes_back(calotype: Calotype, weights: Path, words: list[object]) -> None:
    draw("clear.png", WIDTH, HEIGHT, mode="RGBA")
    assert calotype("encode", "clear.png", "--vae", weights, "--alpha", "keep").code == 0
    assert calotype("decode", "clear.latents.safetensors", *words[2:], "--out", "o").code == 0
    assert (levels("o/clear-decoded.png")[..., 3] == levels("clear.png")[..., 3]).all()


REFUSED = {
    "no mask": (["--picture", "photo.png"], [], 2, "--picture and --mask go together; give --mask too"),
    "no picture": (["--mask", "mask.png"], [], 2, "--picture and --mask go together; give --picture too"),
    "nothing to invert": (["--invert-mask"], [], 2, "--invert-mask goes with a mask; give --picture and --mask too"),
    "in so much memory": (None, ["--memory", "1GB"], 2, "all is in memory at once, which --memory can't bound"),
    "a preview": (None, ["--preview"], 2, "--picture is of a decoder, and --preview makes pictures without"),
    "another size": (
        ["--picture", "small.png", "--mask", "mask.png"], [], 1,
        f"small.png is 44x30 and these latents' picture {WIDTH}x{HEIGHT}; give the one they are of.",
    ),
    "a mask of another size": (["--picture", "photo.png", "--mask", "small.png"], [], 1, "draw the mask in that size."),
    "latents for a picture": (
        ["--picture", "other.latents.safetensors", "--mask", "mask.png"], [], 1, "give the picture they were made from",
    ),
    "no picture there": (["--picture", "none.png", "--mask", "mask.png"], [], 1, "none.png"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str, calotype: Calotype, words: list[object]) -> None:
    draw("small.png", 44, 30)
    given, more, code, said = REFUSED[name]
    ran = calotype(*(words if given is None else [*words[:4], *given]), *more, "--out", "o")
    assert ran.code == code
    assert ran.said[-1].startswith("calotype: ")
    assert said in ran.said[-1]
    assert len(ran.said) == 1
    assert not Path("o").exists()


def test_several_latents_are_refused(calotype: Calotype, words: list[object]) -> None:
    assert calotype("encode", "photo.png", "--vae", words[3]).code == 0
    ran = calotype("decode", "photo.latents.safetensors", *words[1:], "--out", "o")
    assert (ran.code, ran.out) == (2, "")
    assert "--picture is of one picture's latents, and these are 2; decode them one by one." in ran.err


def test_other_decoders_take_no_picture(
    calotype: Calotype, words: list[object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("kl") / "kl.safetensors"
    save_weights(kl(SMALL), other, layout="ldm", format_=KNOWN["sd1"])
    assert calotype("encode", "photo.png", "--vae", other).code == 0
    ran = calotype("decode", "photo.latents.safetensors", "--vae", other, *words[4:], "--out", "o")
    assert (ran.code, ran.out) == (1, "")
    assert ran.said[-1] == (
        "calotype: This VAE's decoder takes latents and nothing else; one of an AsymmetricAutoencoderKL takes a "
        "picture and a mask too."
    )
    assert not Path("o").exists()


def test_no_input_is_written_over(calotype: Calotype, words: list[object]) -> None:
    before = files()
    draw("other-decoded.png", WIDTH, HEIGHT)
    ran = calotype(*words[:5], "other-decoded.png", *words[6:])
    assert ran.code == 2
    assert files() == sorted([*before, "other-decoded.png"])
    assert (levels("other-decoded.png") == levels("photo.png")).all()
