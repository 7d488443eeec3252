"""Latents that other programs wrote: what is read, what tells their space, and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import sqlite3
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latentkit import (
    ai_toolkit,
    comfyui,
    diffusion_pipe,
    latents,
    musubi,
    npz,
    sd_scripts,
    simpletuner,
    torch_bytes,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import one_sentence
from torch import Tensor

from calotype.errors import CalotypeError, LatentsError, UsageError
from calotype.latent_files import file_name, load_latents, open_latents, save_latents, stored_space
from calotype.latent_files.models import AI_TOOLKIT, DIFFUSION_PIPE, MUSUBI, SD_SCRIPTS, Stored, Unread
from calotype.latent_files.spaces import called, factor, fitting
from calotype.latents import (
    KNOWN,
    Latents,
    PackedUntold,
    ScaleShift,
    flux2,
    latent_format_from_dict,
    same_as_model,
)
from calotype.pixels import Padding

Z4, Z16 = latents(4, 6, 8), latents(16, 6, 8, seed=1)


def refused(path: Path, match: str, error: type[CalotypeError] = LatentsError, **said: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        load_latents(path, **said)
    one_sentence(str(caught.value))
    assert str(caught.value).startswith(str(path))


def same(one: Latents, tensor: Tensor, name: str, space: str) -> None:
    """Whether latents of another program are these, to the last bit."""
    assert (one.format.name, one.space, one.vae, one.vae_name) == (name, space, "", "")
    assert torch.equal(one.tensor, tensor.double() if tensor.dtype == torch.float64 else tensor.float())


# ComfyUI


@pytest.mark.parametrize("to", ["comfyui", "sd-scripts"])
def test_what_is_written_has_the_published_scale(to: Any, tmp_path: Path) -> None:
    """A TAESD's raw latents are model latents; another program takes raw ones for those of the VAE that it imitates."""
    path = tmp_path / ("x.latent" if to == "comfyui" else "x_0064x0048_sd.npz")
    z = torch.randn(4, 6, 8)
    padding = Padding(48, 64, 0, 0, "replicate")
    taesd = Latents(tensor=z, space="raw", format=same_as_model("sd1", 4), vae="a" * 64, padding=padding)
    save_latents(path, taesd, to=to)
    back = load_latents(path, latent_format="sd1" if to == "comfyui" else None)
    torch.testing.assert_close(back.to_model().tensor, z)
    other = replace(taesd, format=ScaleShift(name="sd1", channels=4, scaling_factor=1.7))
    with pytest.raises(UsageError, match="with other numbers than those it is published with"):
        save_latents(path, other, to=to)


def test_comfyui_keeps_raw_latents_of_any_vae(tmp_path: Path) -> None:
    path = comfyui(tmp_path / "ComfyUI_00001_.latent", Z4[None])
    same(load_latents(path, latent_format="sdxl"), Z4, "sdxl", "raw")
    refused(path, r"latents of ComfyUI, which have 4 channels; say of which space they are with "
                  r"--latent-format sd1\|sdxl\|playground\|.*none \(latent_format=\)", UsageError)  # fmt: skip
    refused(path, r"are raw, and not model; leave out --space \(space=\)", UsageError, space="model")


def test_comfyui_batches(tmp_path: Path) -> None:
    path = comfyui(tmp_path / "x.latent", batch := latents(3, 16, 4, 6), metadata={"prompt": "{}"})
    file = open_latents(path, latent_format="sd3")
    assert (len(file), file.program, file.shape) == (3, "ComfyUI", (16, 4, 6))
    for one, tensor in zip(file, batch, strict=True):
        same(one, tensor, "sd3", "raw")
    same(load_latents(path, latent_format="sd3", index=2), batch[2], "sd3", "raw")
    refused(path, r"there are 3 latents in it; say which with index=0 to 2", latent_format="sd3")
    refused(path, "there is no latent 3, for it holds 3", UsageError, latent_format="sd3", index=3)


def test_comfyui_before_its_version_is_scaled_as_stable_diffusion_1(tmp_path: Path) -> None:
    one = load_latents(comfyui(tmp_path / "x.latent", Z4[None].half(), version=False))
    assert (one.format, one.space) == (KNOWN["sd1"], "raw")
    assert torch.equal(one.tensor, Z4.half().float() * (1.0 / 0.18215))
    assert torch.allclose(one.to_model().tensor, Z4.half().float(), atol=1e-6)


def test_comfyui_of_flux2_is_packed_and_normalised(tmp_path: Path) -> None:
    one = load_latents(comfyui(tmp_path / "x.latent", z := latents(1, 128, 3, 4)))
    same(one, z[0], "flux2", "model")
    assert (one.padding.height, one.padding.width) == (48, 64)


def test_comfyui_of_a_video_vae(tmp_path: Path) -> None:
    path = comfyui(tmp_path / "x.latent", z := latents(2, 16, 1, 4, 6))
    same(load_latents(path, latent_format="wan2.1", index=1), z[1, :, 0], "wan2.1", "raw")
    refused(comfyui(tmp_path / "video.latent", latents(1, 16, 5, 4, 6)), "5 frames of a video", latent_format="wan2.1")


# sd-scripts


@pytest.mark.parametrize(
    ("suffix", "channels", "name", "space", "drawn"),
    [
        ("sd", 4, "sd1", "raw", "sample"),
        ("sdxl", 4, "sdxl", "raw", "sample"),
        ("sd3", 16, "sd3", "raw", "sample"),
        ("flux", 16, "flux", "model", "sample"),
        ("lumina", 16, "flux", "model", "sample"),
        ("hi", 64, "hunyuan-image", "raw", "sample"),
        ("anima", 16, "wan2.1", "model", "mode"),
    ],
)
@pytest.mark.parametrize("sized", [True, False])
def test_sd_scripts_tells_the_model_at_the_end_of_the_name(
    suffix: str, channels: int, name: str, space: str, drawn: str, sized: bool, tmp_path: Path
) -> None:
    z = latents(channels, 6, 8)
    path = sd_scripts(tmp_path / f"my_photo_0064x0048_{suffix}.npz", z, sized=sized, flipped=True, mask=True)
    file = open_latents(path)
    assert (file.program, file.model, file.drawn, file.question) == ("sd-scripts", suffix, drawn, "")
    assert {name.partition("_6x8")[0] for name in file.left_out} == {
        "original_size", "crop_ltrb", "latents_flipped", "alpha_mask"
    }  # fmt: skip
    same(file[0], z, name, space)
    f = 32 if suffix == "hi" else 8
    assert (file[0].padding.height, file[0].padding.width) == (6 * f, 8 * f)  # of the latents, not of the original
    refused(path, "leave out --latent-format", UsageError, latent_format="vq-f4")


def test_sd_scripts_of_several_resolutions(tmp_path: Path) -> None:
    sizes = [latents(16, 6, 8), latents(16, 4, 4), latents(16, 8, 6)]
    path = sd_scripts(tmp_path / "a_1024x0768_flux.npz", *sizes, sized=True)
    for one, z in zip(open_latents(path), sizes, strict=True):
        same(one, z, "flux", "model")


def test_sd_scripts_old_names_tell_no_model_but_are_raw(tmp_path: Path) -> None:
    for sized in (False, True):
        path = sd_scripts(tmp_path / "photo.npz", Z4, sized=sized)
        same(load_latents(path, latent_format="sdxl"), Z4, "sdxl", "raw")
        refused(path, r"latents of sd-scripts, which have 4 channels; say of which space .* sd1\|sdxl", UsageError)
    path = sd_scripts(tmp_path / "photo.npz", Z16, sized=True)  # SD3's raw, or FLUX's scaled
    refused(path, r"sd3\|flux.*, and whether they are scaled .* --space raw\|model", UsageError)
    same(load_latents(path, latent_format="flux", space="model"), Z16, "flux", "model")


def test_an_array_called_latents_is_not_sd_scripts_alone(tmp_path: Path) -> None:
    file = open_latents(npz(tmp_path / "mine.npz", latents=Z4))
    assert file.program == ""
    assert "--space" in file.question
    assert open_latents(npz(tmp_path / "a_sdxl.npz", latents=Z4)).program == "sd-scripts"


# musubi-tuner


@pytest.mark.parametrize(
    "model", [name for name, stored in MUSUBI.items() if isinstance(stored, Stored) and name != "ideogram4"]
)
def test_musubi_tells_the_model_in_its_metadata(model: str, tmp_path: Path) -> None:
    stored = MUSUBI[model]
    assert isinstance(stored, Stored)
    packed = stored.format == "flux2"
    z = latents(128 if packed else 16, 6, 8)
    whole = z[:, None] if stored.format == "wan2.1" else z
    path = musubi(tmp_path / "a_0064x0048_x.safetensors", model, whole.to(torch.bfloat16), frames=not packed,
                  latents_control_0_1x6x8_bf16=z.clone())  # fmt: skip
    file = open_latents(path)
    assert (file.program, file.model, file.drawn, len(file)) == ("musubi-tuner", model, stored.drawn, 1)
    assert file.left_out == ("latents_control_0_1x6x8_bf16",)
    same(file[0], z.to(torch.bfloat16), stored.format, stored.space)


def test_whose_latents_models_have() -> None:
    """Read in the programs' own code, for one model of each kind; guessing either way would be wrong for some."""
    wan, flux = ("wan2.1", "model"), ("flux", "model")
    expected: dict[str, tuple[Any, dict[str, tuple[str, str]]]] = {
        "musubi": (MUSUBI, {"wan": wan, "qwen_image": wan, "krea2": wan, "flux_kontext": flux,
                            "z_image": ("flux", "raw"), "ideogram4": ("flux2", "raw"),
                            "flux_2_dev": ("flux2", "model")}),
        "ai-toolkit": (AI_TOOLKIT, {"sd1": ("sd1", "model"), "sdxl": ("sdxl", "model"), "sd3": ("sd3", "model"),
                                    "flux1": flux, "zimage": flux, "chroma": flux, "hidream": flux, "omnigen2": flux,
                                    "flex2": flux, "f-lite": flux, "lumina2": flux, "boogu_image_edit": flux,
                                    "pixart": ("sd1", "model"), "ernie_image": ("flux2", "model"),
                                    "wan21": wan, "wan22_14b": wan, "wan22_5b": ("wan2.2", "model"), "anima": wan,
                                    "qwen_image": wan, "krea2": wan, "flux2_klein_9b": ("flux2", "model")}),
        "diffusion-pipe": (DIFFUSION_PIPE, {"sdxl": ("sdxl", "model"), "auraflow": ("sdxl", "model"), "flux": flux,
                                            "sd3": ("sd3", "model"), "lumina_2": flux, "z_image": flux, "wan": wan,
                                            "qwen_image": wan, "anima": wan, "flux2": ("flux2", "model"),
                                            "wan_flf2v": wan, "wan2.2_5b": ("wan2.2", "model"),
                                            "ernie_image": ("flux2", "model"), "ideogram4": ("flux2", "model"),
                                            "hunyuan_image": ("hunyuan-image", "model")}),
    }  # fmt: skip
    for program, (table, models) in expected.items():
        assert {name: table[name][:2] for name in models} == models, program
    modes = {name for name, stored in MUSUBI.items() if isinstance(stored, Stored) and stored.drawn == "mode"}
    assert "flux_kontext" not in modes
    assert {"wan", "qwen_image", "z_image", "flux_2_dev"} <= modes
    raw = {name for name, stored in MUSUBI.items() if isinstance(stored, Stored) and stored.space == "raw"}
    assert raw == {"z_image", "ideogram4"}
    assert {name for name, stored in MUSUBI.items() if isinstance(stored, Unread)} == {
        "hunyuan_video", "hunyuan_video_1_5", "framepack", "kandinsky5", "hidream_o1_image"
    }  # fmt: skip
    assert [DIFFUSION_PIPE[name].drawn for name in ("flux", "z_image")] == ["sample", "mode"]  # type: ignore[union-attr]


def test_musubi_packs_ideograms_latents_in_an_order_of_its_own(tmp_path: Path) -> None:
    raw = latents(32, 6, 8)
    packed = torch.empty(128, 3, 4)
    for c in range(32):
        for i in range(2):
            for j in range(2):  # "(pi pj c)"
                packed[(2 * i + j) * 32 + c] = raw[c, i::2, j::2]
    one = load_latents(musubi(tmp_path / "x_i4.safetensors", "ideogram4", packed))
    same(one, raw, "flux2", "raw")


def test_musubi_of_what_has_no_vae_here(tmp_path: Path) -> None:
    path = musubi(tmp_path / "x_hv.safetensors", "hunyuan_video", latents(16, 1, 4, 6))
    refused(path, "cached by musubi-tuner for hunyuan_video, and can't be decoded: they are of a video's VAE")
    path = musubi(tmp_path / "x_ho1.safetensors", "hidream_o1_image", latents(4, 6, 3072))
    refused(path, "they are pixels, for that model has no VAE")
    path = musubi(tmp_path / "x_qi.safetensors", "qwen_image", latents(16, 3, 4, 6))
    refused(path, "3 frames of a video")


def test_programs_that_keep_one_picture_a_tensor_have_no_batches(tmp_path: Path) -> None:
    path = tmp_path / "x_qi.safetensors"
    save_file({"latents_1x4x6_float32": latents(2, 16, 1, 4, 6)}, path, {"architecture": "qwen_image"})
    refused(path, r"must be \[16, h, w\], not \[2, 16, 1, 4, 6\]")
    save_file({"latents_1x4x6_float32": (z := latents(1, 16, 1, 4, 6))}, path, {"architecture": "qwen_image"})
    same(load_latents(path), z[0, :, 0], "wan2.1", "model")
    same(load_latents(sd_scripts(tmp_path / "a_anima.npz", z[0], sized=True)), z[0, :, 0], "wan2.1", "model")
    refused(sd_scripts(tmp_path / "a_sd.npz", latents(3, 4, 6, 8), sized=False), r"not \[3, 4, 6, 8\]")


def test_musubi_of_a_model_that_is_not_known_is_asked(tmp_path: Path) -> None:
    path = musubi(tmp_path / "x.safetensors", "later_model", Z16)
    refused(path, r"latents of musubi-tuner \(later_model\), which have 16 channels; say .*--latent-format.*--space",
            UsageError)  # fmt: skip
    same(load_latents(path, latent_format="flux", space="raw"), Z16, "flux", "raw")


# ai-toolkit


@pytest.mark.parametrize("model", [name for name, stored in AI_TOOLKIT.items() if isinstance(stored, Stored)])
def test_ai_toolkit_tells_the_model_in_its_metadata(model: str, tmp_path: Path) -> None:
    stored = AI_TOOLKIT[model]
    assert isinstance(stored, Stored)
    assert stored.space == "model"
    channels = 128 if stored.format == "flux2" else KNOWN[stored.format].channels
    z = latents(channels, 4, 6)
    whole = z[:, None] if stored.format.startswith("wan") else z
    file = open_latents(ai_toolkit(tmp_path / "a_x.safetensors", model, whole, first_frame_latent=z.clone()))
    assert (file.program, file.model, file.left_out) == ("ai-toolkit", model, ("first_frame_latent",))
    same(file[0], z, stored.format, "model")


def test_ai_toolkit_of_models_without_a_vae(tmp_path: Path) -> None:
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    refused(ai_toolkit(tmp_path / "a.safetensors", "zimage_l2p", pixels), "they are pixels")
    refused(ai_toolkit(tmp_path / "a.safetensors", "later", pixels), "pixels \\(uint8\\) of a model without a VAE")
    refused(ai_toolkit(tmp_path / "a.safetensors", "ideogram4", Z16), "statistics, which are not known here")
    refused(ai_toolkit(tmp_path / "a.safetensors", "mageflow", latents(128, 4, 6)), "a VAE that calotype does not have")
    refused(ai_toolkit(tmp_path / "a.safetensors", "ace_step_15", latents(64, 6)), "they are of sound")
    refused(
        ai_toolkit(tmp_path / "a.safetensors", "later", Z16),
        r"latents of ai-toolkit \(later\), .* say of which space [^,]*$",
        UsageError,
    )
    same(load_latents(tmp_path / "a.safetensors", latent_format="sd3"), Z16, "sd3", "model")


# SimpleTuner, OneTrainer, diffusion-pipe


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("table", [False, True])
def test_simpletuner_scales_and_does_not_say_the_model(packed: bool, table: bool, tmp_path: Path) -> None:
    content = {"latents": Z16.half(), "extra": 3} if table else Z16.half()
    path = simpletuner(tmp_path / f"{'0123456789abcdef' * 4}.pt", content, packed=packed)
    same(load_latents(path, latent_format="flux"), Z16.half(), "flux", "model")
    refused(
        path, r"latents of SimpleTuner, which have 16 channels; say of which space .* sd3\|flux\|wan2.1", UsageError
    )
    refused(path, "are model, and not raw; leave out --space", UsageError, latent_format="flux", space="raw")


@pytest.mark.parametrize("packed", [False, True])
def test_simpletuner_keeps_some_models_raw(packed: bool, tmp_path: Path) -> None:
    """Sana's are not scaled, which their channels tell; one frame of 16 may be Wan's, scaled, or Cosmos's, raw."""
    path = tmp_path / f"{'0123456789abcdef' * 4}.pt"
    sana = latents(32, 3, 4)
    same(load_latents(simpletuner(path, sana, packed=packed), latent_format="sana"), sana, "sana", "raw")
    refused(path, "are raw, and not model; leave out --space", UsageError, latent_format="sana", space="model")
    frame = Z16[:, None]
    simpletuner(path, frame, packed=packed)
    refused(path, r"16 channels; say whether they are scaled .* --space raw\|model", UsageError, latent_format="wan2.1")
    for space in ("raw", "model"):
        same(load_latents(path, latent_format="wan2.1", space=space), Z16, "wan2.1", space)  # type: ignore[arg-type]
    wan22 = latents(48, 1, 3, 4)
    simpletuner(path, wan22, packed=packed)
    same(load_latents(path, latent_format="wan2.2"), wan22[:, 0], "wan2.2", "model")
    path.write_bytes(torch_bytes(torch.tensor(1.0)))
    refused(path, "latents are", latent_format="sd1")


def test_onetrainer_keeps_raw_means_and_does_not_say_the_model(tmp_path: Path) -> None:
    path = tmp_path / "17.pt"
    path.write_bytes(
        torch_bytes({"latent_image": Z4.bfloat16(), "latent_mask": torch.ones(1, 6, 8), "crop_offset": (0, 1)})
    )
    file = open_latents(path, latent_format="sd1")
    assert (file.program, file.drawn, file.left_out) == ("OneTrainer", "mode", ("latent_mask",))
    same(file[0], Z4.bfloat16(), "sd1", "raw")
    refused(path, r"latents of OneTrainer, which have 4 channels; say of which space they are [^,]*$", UsageError)
    path.write_bytes(torch_bytes([{"crop_resolution": (64, 64), "image_path": "a.jpg"}]))
    refused(path, "OneTrainer's list of sizes and paths \\(aggregate.pt\\), without latents; give one of the numbered")


@pytest.mark.parametrize("model", ["flux", "sdxl", "qwen_image", "hunyuan_image", "flux2_klein_4b"])
def test_diffusion_pipe_tells_the_model_by_its_folder(model: str, tmp_path: Path) -> None:
    stored = DIFFUSION_PIPE[model]
    assert isinstance(stored, Stored)
    channels = 128 if stored.format == "flux2" else KNOWN[stored.format].channels
    zs = [latents(channels, 4, 6, seed=i) for i in range(5)]
    items = [{"latents": z[:, None] if stored.format == "wan2.1" else z, "mask": None} for z in zs]
    path = diffusion_pipe(tmp_path / "cache" / model / "cache_1.0_512" / "latents", items)
    file = open_latents(path)
    assert (len(file), file.program, file.model) == (5, "diffusion-pipe", model)
    for one, z in zip(file, zs, strict=True):
        same(one, z, stored.format, stored.space)
    shard = open_latents(path.with_name("shard_1.bin"))
    assert len(shard) == 2
    same(shard[1], zs[3], stored.format, stored.space)


def test_diffusion_pipe_names_its_models_in_its_own_way(tmp_path: Path) -> None:
    for model, channels, name in (
        ("wan", 16, "wan2.1"), ("wan_flf2v", 16, "wan2.1"), ("wan2.2_5b", 48, "wan2.2"),
    ):  # fmt: skip
        z = latents(channels, 4, 6)
        path = diffusion_pipe(tmp_path / "cache" / model / "x", [{"latents": z[:, None]}])
        same(load_latents(path), z, name, "model")
    for model in ("hunyuan-video", "hunyuan_video_1.5", "ltx-video-2b-v0.9.5", "ltxv-13b-0.9.7-dev", "ltx2"):
        path = diffusion_pipe(tmp_path / "cache" / model / "x", [{"latents": latents(16, 1, 4, 6)}])
        refused(
            path, f"cached by diffusion-pipe for {re.escape(model)}, and can't be decoded: they are of a video's VAE"
        )


def test_diffusion_pipe_without_its_database_or_its_shards(tmp_path: Path) -> None:
    path = diffusion_pipe(tmp_path / "cache" / "flux" / "x", [{"latents": Z16}] * 3)
    path.with_name("shard_1.bin").unlink()
    refused(path, "item 2 lies in shard_1.bin, which is not beside it", index=2)
    first = path.with_name("shard_0.bin")
    first.write_bytes(first.read_bytes()[:-1])
    refused(path, "item 1 ends at byte .* of shard_0.bin, which has", index=1)
    path.unlink()
    refused(first, "a shard of diffusion-pipe, and metadata.db, which says where items begin in it, is not beside it")
    other = diffusion_pipe(tmp_path / "cache" / "flux" / "texts", [{"t5_embed": Z16}])
    refused(other, "holds t5_embed, and no latents")


def test_diffusion_pipe_outside_its_folders_is_asked(tmp_path: Path) -> None:
    path = diffusion_pipe(tmp_path / "moved", [{"latents": Z16}])
    refused(path, "latents of diffusion-pipe, which have 16 channels; say [^,]*$", UsageError)
    same(load_latents(path, latent_format="sd3"), Z16, "sd3", "model")


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x, x FROM c"


@pytest.mark.parametrize(
    "rows",
    [
        ["UPDATE items SET shard = 7"],
        ["UPDATE items SET shard_index = 9"],
        ["UPDATE items SET shard_index = -1"],
        ["UPDATE shard_0 SET size = -5"],
        ["UPDATE shard_0 SET offset = 'x'"],
        ["UPDATE shard_0 SET offset = 9223372036854775807"],
        ["DROP TABLE items"],
        ["DROP TABLE shard_0"],
        ["DROP TABLE items", "CREATE VIEW items AS " + ENDLESS],
    ],
)  # fmt: skip
def test_a_database_that_lies(rows: list[str], tmp_path: Path) -> None:
    path = diffusion_pipe(tmp_path / "cache" / "flux" / "x", [{"latents": Z16}])
    with sqlite3.connect(path) as connection:
        for row in rows:
            connection.execute(row)
    connection.close()
    refused(path, "lies nowhere|of shard_0.bin|no table of items|no whole cache")


def test_no_program_runs_what_is_in_a_pickle(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "was here"),)

    content = {"latents": Z16, "note": Payload()}
    path = tmp_path / "x.pt"
    path.write_bytes(torch_bytes(content))
    same(load_latents(path, latent_format="flux", space="raw"), Z16, "flux", "raw")
    path.write_bytes(pickle.dumps(Payload()))
    refused(path, "holds a .*mkdir without tensors")
    assert not (tmp_path / "was here").exists()


# bare tensors

BARE: dict[str, Callable[[Path, Tensor], object]] = {
    ".npy": lambda path, z: np.save(path, z.numpy()),
    ".npz": lambda path, z: np.savez(path, z.numpy()),
    "packed.npz": lambda path, z: np.savez_compressed(path, latents=z.numpy()),
    ".safetensors": lambda path, z: save_file({"latents": z}, path),
    "one.safetensors": lambda path, z: save_file({"z": z.contiguous()}, path),
    ".pt": lambda path, z: torch.save(z, path),
    "old.pt": lambda path, z: torch.save(z, path, _use_new_zipfile_serialization=False),
    "table.pt": lambda path, z: torch.save({"samples": z, "noise_mask": None}, path),
    "array.pt": lambda path, z: path.write_bytes(pickle.dumps({"latents": z.numpy()})),
}


@pytest.mark.parametrize("kind", BARE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_bare_tensors_are_read_when_told_the_space(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / (f"x{kind}" if kind.startswith(".") else kind)
    z = latents(4, 6, 8).to(dtype)
    BARE[kind](path, z)
    same(load_latents(path, latent_format="sdxl", space="model"), z, "sdxl", "model")
    same(load_latents(path, latent_format="sd1", space="raw"), z, "sd1", "raw")
    for said in ({}, {"latent_format": "sd1"}, {"space": "raw"}):
        file = open_latents(path, **said)  # type: ignore[arg-type]
        assert ("--latent-format" in file.question, "--space" in file.question) == (
            "latent_format" not in said, "space" not in said
        )  # fmt: skip
        assert file.program == ""
        refused(path, "nothing tells all of these bare latents, which have 4 channels; say", UsageError, **said)


def test_shapes_of_bare_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for shape, index in (((4, 6, 8), None), ((1, 4, 6, 8), None), ((2, 4, 6, 8), 1), ((4, 1, 6, 8), None),
                         ((2, 4, 1, 6, 8), 1), ((4, 4, 6, 8), 3)):  # fmt: skip
        torch.save(z := latents(*shape), path)
        one = load_latents(path, latent_format="sd1", space="raw", index=index)
        expected = z[index] if index is not None else z
        assert torch.equal(one.tensor, expected.reshape(4, 6, 8))
    torch.save([latents(4, 6, 8), z := latents(2, 4, 4, 4)], path)
    file = open_latents(path, latent_format="sd1", space="raw")
    assert [list(one.tensor.shape) for one in file] == [[4, 6, 8], [4, 4, 4], [4, 4, 4]]
    assert torch.equal(file[-1].tensor, z[1])
    assert len(file[1:]) == 2
    for channels in (7, 16):  # as many as no format has, and as many as some have
        torch.save(latents(channels, 1, 6, 8), path)
        file = open_latents(path)
        assert (len(file), file.shape) == (1, (channels, 1, 6, 8))
        assert f"which have {channels} channels" in file.question
    for shape in ((16, 5, 6, 8), (1, 16, 5, 6, 8)):  # frames, of which nothing has to be said first
        torch.save(latents(*shape), path)
        refused(path, r"bare latents are of 5 frames of a video, \[")
    refused(comfyui(tmp_path / "v.latent", latents(1, 16, 5, 6, 8)), "latents of ComfyUI are of 5 frames of a video")
    torch.save(latents(7, 1, 6, 8), path)
    assert len(open_latents(path, latent_format="none", space="raw")) == 1
    same(load_latents(path, latent_format="none", space="raw"), latents(7, 1, 6, 8)[:, 0], "none", "raw")
    torch.save(latents(4, 3, 6, 8), path)
    refused(path, "3 frames of a video", latent_format="sd1", space="raw")


def test_numpys_odd_arrays(tmp_path: Path) -> None:
    for array in (np.asfortranarray(Z4.numpy()), Z4.numpy().astype(">f4"), Z4.numpy().astype("<f8")[:, ::-1]):
        np.save(tmp_path / "x.npy", array)
        one = load_latents(tmp_path / "x.npy", latent_format="sd1", space="raw")
        assert np.array_equal(one.tensor.numpy(), array)


def test_what_is_no_file_or_no_number(tmp_path: Path) -> None:
    refused(tmp_path, "this is a folder; give one of the files")
    np.save(path := tmp_path / "x.npy", latents(2, 4, 6, 8).numpy())
    refused(path, "counted from 0, and -1 was given", UsageError, latent_format="sd1", space="raw", index=-1)
    with pytest.raises(UsageError, match="given by its name, not by 5"):
        open_latents(path, latent_format=5)  # type: ignore[arg-type]


def test_formats_that_may_be_said(tmp_path: Path) -> None:
    np.save(path := tmp_path / "x.npy", Z16.numpy())
    refused_here = pytest.raises(UsageError, match=r"no latent format 'sd15'; choose one of sd1, .*flux2, none\.")
    with refused_here:
        load_latents(path, latent_format="sd15", space="raw")
    with pytest.raises(UsageError, match="Latents are raw or model, not 'scaled'"):
        load_latents(path, space="scaled")  # type: ignore[arg-type]
    refused(path, r"of format 'sd1' must be \[4, h, w\], not \[16, 6, 8\]", latent_format="sd1", space="raw")
    # a TAEHV's raw latents are the model latents of another VAE
    for said in ({}, {"space": "raw"}, {"space": "model"}):
        one = load_latents(path, latent_format="model:wan2.1", **said)  # type: ignore[arg-type]
        same(one, Z16, "wan2.1", said.get("space", "raw"))
        assert one.format == same_as_model("wan2.1", 16)
        assert torch.equal(one.to_model().tensor, Z16)
    one = load_latents(comfyui(tmp_path / "x.latent", Z16[None, :, None]), latent_format="model:wan2.1")
    assert (one.space, one.format, one.tensor.shape) == ("raw", same_as_model("wan2.1", 16), (16, 6, 8))
    for name in ("model:none", "model:model:wan2.1", "model:"):
        with pytest.raises(UsageError, match=f"There is no latent format '{name}'; choose one of"):
            load_latents(path, latent_format=name)
    # those of the VAE that decodes them are not the same raw and scaled
    refused(path, r"say whether they are scaled .* with --space raw\|model", UsageError, latent_format="none")
    np.save(path := tmp_path / "f2.npy", latents(32, 6, 8).numpy())
    same(load_latents(path, latent_format="model:flux2"), latents(32, 6, 8), "flux2", "raw")
    np.save(path, latents(128, 3, 4).numpy())
    same(load_latents(path, latent_format="model:flux2"), latents(128, 3, 4), "flux2", "model")
    np.save(path := tmp_path / "x.npy", Z16.numpy())
    same(load_latents(path, latent_format="none", space="raw"), Z16, "none", "raw")
    assert set(fitting(16, None)) == {"sd3", "flux", "wan2.1"}
    assert fitting(128, None) == ["flux2"]
    assert fitting(32, "raw") == ["sana", "flux2"]
    assert fitting(32, "model") == ["sana"]
    assert [factor(name) for name in ("sd1", "wan2.2", "sana", "flux2", "vq-f4", "vq-f16")] == [8, 16, 32, 8, 4, 16]


def test_flux2_without_its_statistics_stays_where_it_is(tmp_path: Path) -> None:
    np.save(path := tmp_path / "x.npy", latents(32, 6, 8).numpy())
    raw = load_latents(path, latent_format="flux2", space="raw")
    assert raw.to_raw() is raw
    with pytest.raises(LatentsError, match="came without a VAE, and the statistics that scale them stand among"):
        raw.to_model()
    assert latent_format_from_dict(called("flux2", 32).to_dict()) == raw.format
    assert isinstance(raw.format, PackedUntold)
    model = load_latents(comfyui(tmp_path / "x.latent", latents(1, 128, 3, 4)))
    with pytest.raises(LatentsError, match="These are model latents of format 'flux2'"):
        model.to_raw()


# bad input


def npy_header(shape: str, descr: str = "'<f4'", more: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + more


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (npy_header("(4, 6, 8)", more=bytes(100)), "its header claims 768 bytes of numbers, and there are 100"),
        (npy_header(f"(4, {10**6}, {10**6})"), "its header claims 16,000,000,000,000 bytes of numbers"),
        (npy_header(f"({10**30}, 1, 1)"), "claims .* bytes of numbers"),
        (npy_header("(4, -6, -8)", more=bytes(1000)), "truncated or damaged"),
        (npy_header("(4, 6)", more=bytes(96)), r"latents are \[C, h, w\], .*, and the array is \[4, 6\]"),
        (npy_header("(4, 0, 8)"), r"the array is \[4, 0, 8\]"),
        (npy_header("(4, 6, 8)", "'|O'", bytes(2000)), "holds Python objects, which could run code"),
        (npy_header("(4, 6, 8)", "'<i4'", bytes(768)), "floats of 16, 32 or 64 bits, not int32"),
        (npy_header("(4, 6, 8)", "'|V2'", bytes(768)), "floats of 16, 32 or 64 bits, not"),
        (npy_header("(4, 6, 8)", "'<c8'", bytes(2000)), "floats of 16, 32 or 64 bits, not complex64"),
        (npy_header("__import__('os').getcwd()"), "truncated or damaged"),
        (b"\x93NUMPY", "truncated or damaged"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "truncated or damaged|version 9"),
    ],
)
def test_arrays_that_lie(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    refused(path, match, latent_format="sd1", space="raw")
    with zipfile.ZipFile(packed := tmp_path / "x_sd.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latents.npy", content)
    refused(packed, match.replace("the array", "latents"))


def test_object_arrays_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[[1, "a"]]], dtype=object), allow_pickle=True)
    refused(tmp_path / "x.npy", "Python objects")


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calotype.damage._ROOMY", 2**21)
    path = tmp_path / "a_sd.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("latents.npy", "w") as file:
        file.write(npy_header(f"(4, {2**10}, {2**10})"))
        for _ in range(2**4):
            file.write(bytes(2**20))
    refused(path, "claim to hold")


def test_gzip_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calotype.latent_files.torch_files._MOST", 2**20)
    path = simpletuner(tmp_path / "x.pt", Z16, packed=True)
    whole = path.read_bytes()
    for content, match in (
        (whole[:-20], "gzip file is truncated"),
        (whole[:40] + b"\xff" * 40 + whole[80:], "truncated or damaged"),
        (gzip.compress(b"hello"), "compressed with gzip, and no torch file is in it"),
        (gzip.compress(b""), "compressed with gzip, and no torch file is in it"),
        (gzip.compress(bytes(2**22)), "unpacks to more than 1,048,576 bytes"),
    ):
        path.write_bytes(content)
        refused(path, match)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    bad = Z16.clone()
    bad[3, 2, 1] = value
    for path in (
        sd_scripts(tmp_path / "a_flux.npz", bad, sized=True),
        musubi(tmp_path / "a.safetensors", "flux_kontext", bad),
        diffusion_pipe(tmp_path / "cache" / "flux" / "x", [{"latents": bad}]),
    ):
        refused(path, "NaN or infinity")


def test_files_that_are_cut(tmp_path: Path) -> None:
    made = [
        comfyui(tmp_path / "x.latent", Z4[None], version=False),
        sd_scripts(tmp_path / "x_sd.npz", Z4, sized=False),
        musubi(tmp_path / "x_qi.safetensors", "qwen_image", Z16[:, None]),
        simpletuner(tmp_path / f"{'ab' * 32}.pt", Z4),
        simpletuner(tmp_path / f"{'cd' * 32}.pt", Z4, packed=True),
        diffusion_pipe(tmp_path / "cache" / "flux" / "x", [{"latents": Z16}]),
    ]
    for path in made:
        whole = path.read_bytes()
        load_latents(path, **({"latent_format": "sd1"} if path.suffix == ".pt" else {}))
        for part in (2, 3, 10, 100):
            path.write_bytes(whole[: len(whole) * (part - 1) // part])
            with pytest.raises(LatentsError) as caught:
                load_latents(path)
            one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: save_file({"conv.weight": Z4, "conv.bias": Z4.clone()}, path), "a safetensors file of 2 tensors"),
        (lambda path: save_file({"conv.weight": Z4}, path), "a safetensors file of 1 tensors \\(conv.weight\\)"),
        (lambda path: npz(path, a=Z4, b=Z4), r"an archive of numpy arrays \(a, b\)"),
        (lambda path: save_file({"latents": Z4}, path, {"calotype": "latents/9"}), "of a newer calotype"),
        (lambda path: torch.save({"a.weight": Z4, "b.weight": Z4}, path), "a torch file of 2 tensors"),
        (lambda path: torch.save({"epoch": 3}, path), "holds a dict without tensors"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "there are no|a zip archive|truncated"),
        (lambda path: sqlite3.connect(path).execute("CREATE TABLE a(b)").connection.close(), "no table of items"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(200)), "no whole cache of diffusion-pipe"),
        (lambda path: save_file({"latent_tensor": Z4[None].int()}, path), "floats, not int32"),
        (lambda path: save_file({"latent_tensor": Z4[0]}, path), r"latent_tensor is \[6, 8\]"),
    ],
)
def test_what_holds_no_latents(write: Callable[[Path], object], match: str, tmp_path: Path) -> None:
    write(path := tmp_path / "x.bin")
    refused(path, match)


# writing


def of(name: str, alpha: bool = False) -> Latents:
    if name == "flux2":
        format_ = flux2(tuple(0.01 * i for i in range(128)), tuple(1.0 + 0.1 * i for i in range(128)))
    else:
        format_ = KNOWN[name]  # type: ignore[assignment]
    f = factor(name)
    return Latents(
        tensor=latents(format_.channels, 4, 6), space="raw", format=format_, vae="0" * 64,
        padding=Padding(4 * f - 3, 6 * f, 3, 0, "reflect"), alpha=torch.rand(4 * f - 3, 6 * f) if alpha else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["sd1", "sdxl", "playground", "sd3", "flux", "flux2", "hunyuan-image", "qwen-image-2.1", "wan2.1", "wan2.2"],
)
def test_comfyui_reads_what_is_written_for_it(name: str, tmp_path: Path) -> None:
    before = of(name)
    path = save_latents(tmp_path / file_name("a", before, "comfyui"), before, to="comfyui")
    assert path.name == "a.latent"
    held = load_file(path)  # as LoadLatent does
    assert held.keys() == {"latent_tensor", "latent_format_version_0"}
    assert held["latent_format_version_0"].numel() == 0
    expected = before.to_model() if name == "flux2" else before
    tensor = expected.tensor[None, :, None] if name.startswith("wan") else expected.tensor[None]
    assert held["latent_tensor"].dtype == torch.float32
    assert torch.equal(held["latent_tensor"], tensor)
    again = load_latents(path, latent_format=name)
    same(again, expected.tensor, name, stored_space("comfyui", name))
    with safe_open(path, "pt") as file:
        assert file.keys()


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux", "hunyuan-image", "wan2.1"])
def test_sd_scripts_reads_what_is_written_for_it(name: str, tmp_path: Path) -> None:
    before = of(name, alpha=True)
    path = tmp_path / file_name("photo", before, "sd-scripts")
    suffix = next(suffix for suffix, stored in SD_SCRIPTS.items() if stored.format == name)
    width, height = before.padding.width, before.padding.height
    assert path.name == f"photo_{width:04d}x{height:04d}_{suffix}.npz"
    save_latents(path, before, to="sd-scripts")
    size = "" if suffix in ("sd", "sdxl") else "_4x6"
    with np.load(path, allow_pickle=False) as held:
        assert set(held.files) == {f"{key}{size}" for key in ("latents", "original_size", "crop_ltrb", "alpha_mask")}
        assert held[f"original_size{size}"].tolist() == [width, height]
        assert held[f"crop_ltrb{size}"].tolist() == [0, 0, width, height]
        assert held[f"latents{size}"].dtype == np.float32
        mask = held[f"alpha_mask{size}"]  # of the bucket's size: sd-scripts stacks those of a batch
        assert mask.shape == (4 * factor(name), width)
        assert np.array_equal(mask[:height], before.alpha.numpy())  # type: ignore[union-attr]
        assert not mask[height:].any()
    stored = SD_SCRIPTS[suffix]
    same(load_latents(path), (before.to_model() if stored.space == "model" else before).tensor, name, stored.space)


def test_latents_that_a_program_does_not_know(tmp_path: Path) -> None:
    for to in ("comfyui", "sd-scripts"):
        with pytest.raises(UsageError, match=r"has no latents of format 'sana', only those of sd1, ") as caught:
            save_latents(tmp_path / "x_sana.npz", of("sana"), to=to)  # type: ignore[arg-type]
        one_sentence(str(caught.value))
    with pytest.raises(UsageError, match=r"let it end with _sdxl\.npz"):
        save_latents(tmp_path / "x.npz", of("sdxl"), to="sd-scripts")
    with pytest.raises(UsageError, match="written for comfyui or sd-scripts, not 'kohya'"):
        save_latents(tmp_path / "x.npz", of("sdxl"), to="kohya")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no folder"):
        save_latents(tmp_path / "none" / "x_sdxl.npz", of("sdxl"), to="sd-scripts")
    assert not list(tmp_path.iterdir())


def test_latents_of_others_are_kept_in_calotypes_own_files(tmp_path: Path) -> None:
    for path in (sd_scripts(tmp_path / "a_flux.npz", Z16, sized=True),
                 comfyui(tmp_path / "x.latent", latents(1, 128, 3, 4))):  # fmt: skip
        before = load_latents(path)
        after = load_latents(save_latents(tmp_path / "own.safetensors", before))
        assert torch.equal(after.tensor, before.tensor)
        assert (after.format, after.space, after.vae, after.padding) == (
            before.format,
            before.space,
            "",
            before.padding,
        )


def test_calotypes_own_files_tell_all(tmp_path: Path) -> None:
    path = save_latents(tmp_path / "own.safetensors", of("sd1"))
    file = open_latents(path, latent_format="sd1", space="raw")
    assert (file.program, len(file), file.question, file.shape) == ("calotype", 1, "", (4, 4, 6))
    assert (file.space, file.format) == ("raw", KNOWN["sd1"])
    assert file[0].format == KNOWN["sd1"]
    refused(path, "these latents of calotype are raw, and not model; leave out --space", UsageError, space="model")
    refused(path, "are sd1, and not sdxl; leave out --latent-format", UsageError, latent_format="sdxl")


def test_real_latents_of_other_programs(shared: Path) -> None:
    expected = {
        "ComfyUI_00001_.latent": ("ComfyUI", None, "raw"),
        "astro_0096x0064_flux.npz": ("sd-scripts", "flux", "model"),
        "astro_0096x0064_qi.safetensors": ("musubi-tuner", "wan2.1", "model"),
        "astro_0096x0064_sd.npz": ("sd-scripts", "sd1", "raw"),
        "astro_aitoolkit.safetensors": ("ai-toolkit", None, "model"),
    }
    for name, (program, format_, space) in expected.items():
        path = shared / "files" / "latents" / name
        if not path.is_file():
            pytest.skip(f"{path} is not there")
        file = open_latents(path)
        assert file.program == program
        assert (file.format.name if file.format else None, file.space) == (format_, space)
        if path.suffix == ".npz":
            with np.load(io.BytesIO(path.read_bytes())) as held:
                (key,) = (key for key in held.files if key.startswith("latents") and "flipped" not in key)
                assert np.array_equal(file[0].tensor.numpy(), held[key])
        else:
            (tensor,) = (
                value for key, value in load_file(path).items() if re.fullmatch("latents?(_tensor|_1x.*)?", key)
            )
            one = file[0] if file.format else load_latents(path, latent_format="sd1")
            assert torch.equal(one.tensor, tensor.float().reshape(one.tensor.shape))
