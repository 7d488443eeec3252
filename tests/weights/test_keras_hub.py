"""keras-hub's VAE of Stable Diffusion 3: h5 files of Keras 3, alone, in presets and in archives."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from otherkit import hub_arrays, hub_config, write_hub
from support import assert_close, kl, one_sentence, same_tensors, tensors_of

from calotype.errors import WeightsError
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN, ScaleShift
from calotype.weights import h5_child
from calotype.weights.h5 import read_h5
from calotype.weights.keras_hub import names
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

h5py: Any = importlib.import_module("h5py")

CONFIG = AutoencoderConfig(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=16, quant_conv=False)
MODULE = kl(CONFIG, 1)
ARRAYS, TITLES = hub_arrays(MODULE)
WEIGHTS = "model.weights.h5"


def refused(path: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path)
    one_sentence(str(caught.value))


def preset(folder: Path, config: Any) -> Path:
    """A folder as keras-hub's `save_to_preset` makes it."""
    folder.mkdir(exist_ok=True)
    write_hub(folder / WEIGHTS, ARRAYS, TITLES)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metadata.json").write_text('{"keras_version": "3.15.1", "parameter_count": 1}')
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    module = kl(CONFIG, 1).to(dtype)
    arrays, titles = hub_arrays(module)
    loaded = load_weights(write_hub(tmp_path / WEIGHTS, arrays, titles))
    assert same_tensors(loaded.module, module)
    assert (loaded.layout, loaded.container, loaded.prefix) == ("diffusers", "Keras h5", "layers.")
    assert loaded.dtypes == (str(dtype).removeprefix("torch."),)
    assert loaded.format is None  # nothing in it tells


@pytest.mark.slow
def test_two_blocks_a_level_and_half_a_vae(tmp_path: Path) -> None:
    module = kl(AutoencoderConfig(ch=32, ch_mult=(1, 1), z_channels=4, quant_conv=False), 2)
    arrays, _ = hub_arrays(module)
    assert same_tensors(load_weights(write_hub(tmp_path / "a.h5", arrays)).module, module)  # without titles
    half = {place: array for place, array in arrays.items() if place.startswith("vae_decoder/")}
    loaded = load_weights(write_hub(tmp_path / "b.h5", half))
    assert loaded.parts == {"decoder"}


@pytest.mark.slow
def test_a_preset_tells_how_latents_are_scaled(tmp_path: Path) -> None:
    loaded = load_weights(preset(tmp_path / "p", hub_config(MODULE)))
    assert same_tensors(loaded.module, MODULE)
    assert loaded.format == KNOWN["sd3"]
    assert not loaded.notes
    loaded = load_weights(preset(tmp_path / "q", hub_config(MODULE, scale=0.5, shift=0.25)))
    assert isinstance(loaded.format, ScaleShift)
    assert (loaded.format.scaling_factor, loaded.format.shift_factor) == (0.5, 0.25)
    save_weights(loaded.module, tmp_path / "d", layout="diffusers", format_=loaded.format, kept=loaded.kept)
    again = load_weights(tmp_path / "d")
    assert (again.sha256, again.format) == (loaded.sha256, loaded.format)


@pytest.mark.slow
def test_a_preset_of_the_whole_model(tmp_path: Path) -> None:
    """Stable Diffusion 3, whose config.json has the VAE's in it, and whose `shift` is of something else."""
    whole = {
        "class_name": "StableDiffusion3Backbone",
        "config": {"mmdit_num_layers": 24, "shift": 3.0, "vae": hub_config(MODULE)},
    }
    folder = preset(tmp_path / "p", whole)
    others = {
        "layers/clip_text_encoder/vars/0": np.zeros(2_000_000, np.float32),
        "layers/mm_di_t/joint_blocks/mm_di_t_block/vars/0": np.zeros((3, 3), np.float16),
        "layers/seed_generator/vars/0": np.zeros(2, np.uint32),
    }
    write_hub(folder / WEIGHTS, ARRAYS, TITLES, others=others)
    shutil.copy(folder / WEIGHTS, folder / "task.weights.h5")
    loaded = load_weights(folder)
    assert same_tensors(loaded.module, MODULE)
    assert loaded.format == KNOWN["sd3"]
    assert loaded.files == (folder / WEIGHTS,)
    assert "layers. (3 tensors)" in loaded.beside
    content = read_h5(folder / WEIGHTS)  # of which the VAE's alone are read
    assert len(content.arrays) == len(tensors_of(MODULE))
    assert content.others.keys() == others.keys()
    (folder / "config.json").unlink()
    loaded = load_weights(folder / WEIGHTS)
    assert (loaded.format, loaded.format_source) == (KNOWN["sd3"], "the other tensors of the checkpoint")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"encoder_num_filters": [32, 64, 128]}, "says block_out_channels"),
        ({"sample_channels": 8}, "says latent_channels"),
        ({"scale": "much"}, "scaling_factor must be a number"),
    ],
)
def test_a_config_that_is_about_something_else(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    refused(preset(tmp_path, hub_config(MODULE, **more)), message)


@pytest.mark.slow
def test_an_archive(tmp_path: Path) -> None:
    write_hub(tmp_path / "inner.h5", ARRAYS, TITLES)
    for name, packing in (("stored", zipfile.ZIP_STORED), ("packed", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / f"{name}.keras", "w", packing) as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("config.json", json.dumps(hub_config(MODULE)))
            archive.write(tmp_path / "inner.h5", WEIGHTS)
    loaded = load_weights(tmp_path / "stored.keras")
    assert same_tensors(loaded.module, MODULE)
    assert loaded.format == KNOWN["sd3"]
    refused(tmp_path / "packed.keras", "its weights are packed; unpack the archive")


@pytest.mark.slow
def test_shards(tmp_path: Path) -> None:
    """As Keras splits what is larger than it was told; a layer's arrays may lie in two files."""
    places = sorted(ARRAYS)
    files = [f"model_{i:05}.weights.h5" for i in range(2)]
    for i, file in enumerate(files):
        own = places[i::2]
        titles = {k: v for k, v in TITLES.items() if any(place.startswith(f"{k}/") for place in own)}
        write_hub(tmp_path / file, {place: ARRAYS[place] for place in own}, titles)
    table: dict[str, Any] = {f"/layers/{place.rpartition('/')[0]}": files for place in places}
    table["/layers/x/vars"] = files[0]
    index = tmp_path / "model.weights.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    (tmp_path / "config.json").write_text(json.dumps(hub_config(MODULE)))
    for path in (tmp_path, tmp_path / files[1]):
        loaded = load_weights(path)
        assert same_tensors(loaded.module, MODULE)
        assert (loaded.format, loaded.container) == (KNOWN["sd3"], "Keras h5, 2 shards")
    (tmp_path / files[0]).unlink()
    refused(tmp_path, f"one of 2 shards, and {files[0]} is not beside it")


def test_what_keras_hub_wrote(shared: Path) -> None:
    if not (shared / "files" / "keras-hub.weights.h5").exists():
        pytest.skip("there is no such file")
    expected = np.load(shared / "files" / "keras-hub-expected.npz")
    module = load_weights(shared / "files" / "keras-hub.weights.h5").module
    assert module.config.z_channels == 16
    latents, pixels, picture, moments = (
        torch.from_numpy(np.moveaxis(expected[name], -1, 1).copy()) for name in expected.files
    )
    assert_close(module.decode(latents), pixels, 1e-4 * min(1.0, float(pixels.std())))
    assert_close(module.encode(picture).moments, moments, 1e-4 * min(1.0, float(moments.std())))


# Names


def test_unequal_levels_are_told_by_their_titles_or_refused() -> None:
    keys = [f"layers/vae_encoder/blocks/res_net_block{n}/conv1/vars/0" for n in ("", "_1", "_2")]
    keys.append("layers/vae_encoder/downsamples/conv2d/vars/0")
    with pytest.raises(WeightsError, match="its encoder has 3 blocks for 2 levels"):
        names(keys, {})
    with pytest.raises(WeightsError, match="its encoder has 2 blocks for 2 levels"):
        names([keys[0], keys[2], keys[3]], {})  # one is missing between them
    blocks = [key.removesuffix("/conv1/vars/0") for key in keys[:3]]
    titles = dict(zip(blocks, ("block_0_0", "block_0_1", "block_1_0"), strict=True))
    assert names(keys, titles)[keys[2]] == "layers.encoder.down_blocks.1.resnets.0.conv1.weight"


# Bad input


def changed(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write_hub(path, ARRAYS, TITLES)
        with h5py.File(path, "r+") as file:
            change(file)

    return make


def deep(file: Any) -> None:
    group = file["layers"]
    for _ in range(50):
        group = group.create_group("x")


def replaced(place: str, **how: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[place]
        file.create_dataset(place, **how)

    return change


def linked(link: Any) -> Callable[[Any], None]:
    return lambda file: file["layers"].__setitem__("again", link)


def without(file: Any) -> None:
    for side in ("encoder", "decoder"):
        del file[f"layers/vae_{side}"]


BIAS = "layers/vae_decoder/input_projection/vars/1"
REFUSED: list[tuple[str, Callable[[Any], Any], str]] = [
    ("of texts", replaced(BIAS, data=np.array([b"abc"] * 64)), r"vars/1 is of type \|S3"),
    ("of two bytes of nobody", replaced(BIAS, data=np.zeros(64, "V2")), r"vars/1 is of type \|V2"),
    ("more than the file", replaced(BIAS, shape=(10**9,), dtype="f4", chunks=(1000,)), "claim to hold 400"),
    ("a soft link", linked(h5py.SoftLink("/layers/vae_decoder")), "layers/again is a link"),
    ("a link outside", linked(h5py.ExternalLink("other.h5", "/x")), "layers/again is a link"),
    ("a circle", lambda file: linked(file["layers"])(file), "layers/again is a group that is there twice"),
    ("deep", deep, "more than 100,000 groups and arrays, or 32 levels"),
    ("a title that is none", lambda f: f["layers/vae_decoder/blocks"].attrs.__setitem__("name", 3), "no text"),
    ("many", lambda f: [f.create_dataset(f"layers/vae_encoder/{i}", data=0) for i in range(150)], "more than 200"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [bad[1:] for bad in REFUSED], ids=[bad[0] for bad in REFUSED])
def test_what_a_file_may_hold_instead(
    tmp_path: Path, change: Callable[[Any], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the process that reads sees it."""
    monkeypatch.setattr(h5_child, "_MOST", 200)  # so that this is quick
    changed(change)(tmp_path / WEIGHTS)
    out = io.BytesIO()
    with h5py.File(tmp_path / WEIGHTS) as file, pytest.raises((TypeError, ValueError), match=message):
        h5_child._write_named(file, (tmp_path / WEIGHTS).stat().st_size, "", out)
    assert not out.getvalue()


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("missing", lambda file: file.__delitem__(BIAS), "missing tensor decoder.conv_in.bias"),
    ("one more", lambda file: file.create_dataset("layers/vae_decoder/more/vars/0", data=np.zeros(3)), "unexpected"),
    ("a circle", lambda file: linked(file["layers"])(file), "layers/again is a group that is there twice"),
    ("no VAE", without, "the file holds no tensors"),
    ("the first presets", lambda f: (
        without(f),
        f.create_dataset("layers/vae_image_decoder/layers/conv2d/vars/0", data=np.zeros((3, 3, 16, 8), np.float32)),
    ), "keras-hub's first presets of Stable Diffusion 3, which is not read; get a newer preset"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_files(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    changed(change)(tmp_path / WEIGHTS)
    refused(tmp_path / WEIGHTS, message)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    yield write_hub(tmp_path_factory.mktemp("hub") / WEIGHTS, ARRAYS, TITLES).read_bytes()


def test_truncated_files(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / WEIGHTS, "this is no whole h5 file")


@pytest.mark.slow
def test_archives_that_lie(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(WEIGHTS, whole[: len(whole) // 2])
    refused(path, "this is no whole h5 file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "[1, 2")
        archive.writestr(WEIGHTS, whole)
    refused(path, "is not valid JSON")
