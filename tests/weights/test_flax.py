"""Flax weights: msgpack files are read, and written byte for byte as flax.serialization writes them."""

from __future__ import annotations

import json
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from otherkit import flax_array, flax_bytes, flax_chunked, flax_tree, msgpack
from support import NARROW, assert_close, diffusers_tensors, kl, one_sentence, same_tensors, tensors_of, tiny, write

from calotype.errors import UsageError, WeightsError
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN, LatentFormat, PerChannel, flux2
from calotype.weights import msgpack as ours, places
from calotype.weights.container import open_container
from calotype.weights.flax import FlaxFile
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

CONFIG = AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)
MODULE = kl(CONFIG, 1)
TREE = flax_tree(MODULE)
FLAX_CONFIG = {
    "_class_name": "FlaxAutoencoderKL",
    "_diffusers_version": "0.31.0",
    "act_fn": "silu",
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 64,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
NAME = "diffusion_flax_model.msgpack"


def file(path: Path, tree: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(flax_bytes(tree))
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path)
    one_sentence(str(caught.value))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", [(), ("params",), ("vae", "params")])
def test_flax_files_are_read(tmp_path: Path, way: tuple[str, ...], dtype: torch.dtype) -> None:
    module = kl(CONFIG, 1).to(dtype)
    tree = flax_tree(module)
    for step in reversed(way):
        tree = {step: tree}
    loaded = load_weights(file(tmp_path / "x.msgpack", tree))
    assert same_tensors(loaded.module, module)
    assert (loaded.layout, loaded.container) == ("diffusers", "Flax msgpack")
    assert loaded.prefix == "".join(f"{step}." for step in way)
    assert loaded.dtypes == (str(dtype).removeprefix("torch."),)


def test_a_folder_is_described_by_its_config(tmp_path: Path) -> None:
    file(tmp_path / NAME, TREE)
    (tmp_path / "config.json").write_text(json.dumps(FLAX_CONFIG))
    loaded = load_weights(tmp_path)
    assert same_tensors(loaded.module, MODULE)
    assert loaded.format == KNOWN["sdxl"]
    assert loaded.files == (tmp_path / NAME,)
    assert not loaded.notes
    # the class has no other activation, whatever its config.json says
    (tmp_path / "config.json").write_text(json.dumps({**FLAX_CONFIG, "act_fn": "gelu"}))
    assert load_weights(tmp_path).module.config == CONFIG
    (tmp_path / "config.json").write_text(json.dumps({**FLAX_CONFIG, "latent_channels": 8}))
    refused(tmp_path / NAME, "its config.json says latent_channels 8")


def test_eight_groups_are_read_with_eight(tmp_path: Path) -> None:
    module = kl(AutoencoderConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8))
    file(tmp_path / NAME, flax_tree(module))
    config = {**FLAX_CONFIG, "norm_num_groups": 8, "block_out_channels": [8, 16]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_weights(tmp_path)
    assert same_tensors(loaded.module, module)
    assert loaded.module.config == module.config


def test_torchs_own_weights_come_first(tmp_path: Path) -> None:
    file(tmp_path / NAME, flax_tree(kl(CONFIG, 2)))
    write(tmp_path / "diffusion_pytorch_model.safetensors", diffusers_tensors(MODULE))
    assert same_tensors(load_weights(tmp_path).module, MODULE)


def test_what_diffusers_wrote(shared: Path, tmp_path: Path) -> None:
    if not (shared / "files" / "flax.msgpack").exists():
        pytest.skip("there is no such file")
    shutil.copy(shared / "files" / "flax.msgpack", tmp_path / NAME)
    shutil.copy(shared / "files" / "flax-config.json", tmp_path / "config.json")
    expected = np.load(shared / "files" / "flax-expected.npz")
    module = load_weights(tmp_path).module
    latents, pixels, picture = (torch.from_numpy(expected[name]) for name in ("latents", "pixels", "picture"))
    mean = torch.from_numpy(expected["mean"]).permute(0, 3, 1, 2)
    assert_close(module.decode(latents), pixels, 1e-4 * min(1.0, float(pixels.std())))
    assert_close(module.encode(picture).mode(), mean, 1e-4 * min(1.0, float(mean.std())))


def test_a_training_holds_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the VAE's arrays are read; the optimiser's have the same names and shapes."""
    zeros = flax_tree(kl(CONFIG, 3))
    tree = {
        "step": msgpack.ExtType(3, flax_array(torch.tensor(7)).data),
        "params": TREE,
        "opt_state": {"0": {"count": torch.tensor(7), "mu": zeros, "nu": zeros}, "1": {}},
        "name": "vae",
    }
    read: list[str] = []
    whole = FlaxFile.read
    monkeypatch.setattr(FlaxFile, "read", lambda self, key: (read.append(key), whole(self, key))[1])
    loaded = load_weights(file(tmp_path / "x.msgpack", tree))
    assert same_tensors(loaded.module, MODULE)
    assert len(read) == len(tensors_of(MODULE))
    assert all(key.startswith("params/") for key in read)
    assert "opt_state" in loaded.beside and "step" in loaded.beside
    averaged = load_weights(file(tmp_path / "y.msgpack", {"params": TREE, "ema_params": zeros}))
    assert same_tensors(averaged.module, kl(CONFIG, 3))


def test_arrays_in_pieces(tmp_path: Path) -> None:
    tree = flax_tree(MODULE)
    tree["encoder"]["conv_in"]["kernel"] = flax_chunked(tree["encoder"]["conv_in"]["kernel"], 100)
    tree["decoder"]["conv_out"]["bias"] = flax_chunked(tree["decoder"]["conv_out"]["bias"], 1)
    assert same_tensors(load_weights(file(tmp_path / "x.msgpack", tree)).module, MODULE)


def test_shards(tmp_path: Path) -> None:
    names = [f"flax_model-{i:05}-of-00002.msgpack" for i in (1, 2)]
    file(tmp_path / names[0], {"encoder": TREE["encoder"], "quant_conv": TREE["quant_conv"]})
    file(tmp_path / names[1], {"decoder": TREE["decoder"], "post_quant_conv": TREE["post_quant_conv"]})
    index = tmp_path / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"weight_map": {"encoder/conv_in/kernel": names[0], "decoder/x": names[1]}}))
    for path in (tmp_path, index, tmp_path / names[1]):
        loaded = load_weights(path)
        assert same_tensors(loaded.module, MODULE)
        assert loaded.container == "Flax msgpack, 2 shards"


def test_the_name_says_nothing(tmp_path: Path) -> None:
    assert same_tensors(load_weights(file(tmp_path / "x.bin", TREE)).module, MODULE)
    (tmp_path / "y.msgpack").write_bytes(b"\xc1\x01\x02\x03\x04\x05")
    refused(tmp_path / "y.msgpack", "nothing in msgpack begins with 0xc1")


def test_other_networks_are_told(tmp_path: Path) -> None:
    unet = {
        "down_blocks_0": {"attentions_0": {"transformer_blocks_0": {"attn1": {"to_q": {"kernel": torch.zeros(4, 4)}}}}}
    }
    refused(file(tmp_path / "x.msgpack", unet), r"the file holds a denoiser \(U-Net or transformer\), not a VAE")
    refused(file(tmp_path / "y.msgpack", {"a": {"b": torch.zeros(3)}}), "the file holds no VAE: its tensor a/b")
    refused(file(tmp_path / "z.msgpack", {"a": {}}), "the file holds no tensors")


# Written


def written(path: Path) -> tuple[bytes, dict[str, Any]]:
    return (path / NAME).read_bytes(), json.loads((path / "config.json").read_text())


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_what_is_written_is_what_flax_writes(tmp_path: Path, dtype: torch.dtype | None) -> None:
    paths = save_weights(MODULE, tmp_path / "f", layout="flax", format_=KNOWN["sdxl"], dtype=dtype)
    assert paths == [tmp_path / "f" / "config.json", tmp_path / "f" / NAME]
    content, config = written(tmp_path / "f")
    expected = kl(CONFIG, 1).to(dtype or torch.float32)
    assert content == flax_bytes(flax_tree(expected))
    assert config == {**FLAX_CONFIG, "_diffusers_version": "0.30.0", "sample_size": 512}
    loaded = load_weights(tmp_path / "f")
    assert same_tensors(loaded.module, expected)
    assert loaded.format == KNOWN["sdxl"]


def test_round_trips_change_no_bit(tmp_path: Path) -> None:
    """A config.json of torch's class, with all that a conversion keeps, through Flax and back."""
    first = save_weights(
        MODULE, tmp_path / "a", layout="diffusers", format_=KNOWN["sdxl"],
        kept={"force_upcast": False, "sample_size": 1024, "scaling_factor": 0.13025},
    )  # fmt: skip
    loaded = load_weights(tmp_path / "a")
    save_weights(
        loaded.module, tmp_path / "f", layout="flax", format_=loaded.format, kept=loaded.kept, said=loaded.said
    )
    again = load_weights(tmp_path / "f")
    save_weights(
        again.module, tmp_path / "b", layout="diffusers", format_=again.format, kept=again.kept, said=again.said
    )
    assert (loaded.sha256, loaded.format, loaded.kept["force_upcast"]) == (again.sha256, again.format, False)
    back = load_weights(tmp_path / "b")
    assert (back.sha256, back.format, back.module.config) == (loaded.sha256, loaded.format, CONFIG)
    said = json.loads((tmp_path / "b" / "config.json").read_text())
    assert said["_class_name"] == "AutoencoderKL"
    assert (said["force_upcast"], said["sample_size"]) == (False, 1024)
    assert (tmp_path / "b" / first[1].name).exists()
    last = save_weights(back.module, tmp_path / "c.safetensors", layout="ldm", format_=back.format)
    assert load_weights(last[0]).sha256 == loaded.sha256


@pytest.mark.parametrize(
    "config",
    [
        AutoencoderConfig(ch=32, ch_mult=(1, 2), quant_conv=False),
        AutoencoderConfig(ch=32, ch_mult=(1, 2), post_quant_conv=False),
        AutoencoderConfig(ch=32, ch_mult=(1, 2), attn_levels=(1,)),
        AutoencoderConfig(ch=32, ch_mult=(1, 2), mid_attention=False),
        AutoencoderConfig(ch=32, ch_mult=(1, 2), decoder_ch=64),
        AutoencoderConfig(ch=32, ch_mult=(1, 2), decoder_num_res_blocks=1),
        AutoencoderConfig(ch=32, ch_mult=(1, 2), activation="gelu"),
        AutoencoderConfig(ch=32, ch_mult=(1, 2, 4, 4), condition=True),
    ],
)
def test_networks_that_flaxs_class_has_not(tmp_path: Path, config: AutoencoderConfig) -> None:
    with pytest.raises(UsageError, match="FlaxAutoencoderKL has SiLU, attention in the middle") as caught:
        save_weights(kl(config), tmp_path / "f", layout="flax")
    one_sentence(str(caught.value))
    assert not (tmp_path / "f").exists()


def test_other_families_have_no_flax_layout(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of the kind taesd has no flax layout"):
        save_weights(tiny(), tmp_path / "f", layout="flax")
    with pytest.raises(UsageError, match=r"x\.msgpack: the flax layout is a folder"):
        save_weights(MODULE, tmp_path / "x.msgpack", layout="flax")


@pytest.mark.parametrize(
    ("format_", "word"),
    [
        (KNOWN["sd1"].__class__(name="mine", channels=4, scaling_factor=0.5, shift_factor=0.1), "shift_factor"),  # type: ignore[call-arg]
        (PerChannel(name="mine", channels=4, mean=(0.0,) * 4, std=(1.0,) * 4), "latents_mean"),
        (flux2((0.0,) * 16, (1.0,) * 16), "batch-norm statistics"),
    ],
)
def test_formats_that_its_config_can_not_say(tmp_path: Path, format_: LatentFormat, word: str) -> None:
    with pytest.raises(
        UsageError, match=f"nothing else to say how latents are scaled, and these have .*{word}"
    ) as caught:
        save_weights(MODULE, tmp_path / "f", layout="flax", format_=format_)
    one_sentence(str(caught.value))


def test_msgpack_itself_packs_nests_so() -> None:
    """All widths of heads: names, counts, shapes and extensions of every size."""
    shapes: list[tuple[int, ...]] = [(), (0,), (1,), (3, 5), (130,), (300, 2), (70_000,), (1,) * 15, (1,) * 16]
    tree: dict[str, Any] = {f"{'n' * length}{length}": torch.zeros(2) for length in (1, 30, 40, 300, 900)}
    tree["wide"] = {str(i): torch.tensor(i) for i in range(70)}
    tree |= {f"shape{i}": torch.zeros(shape, dtype=torch.uint8) for i, shape in enumerate(shapes)}
    content = b"".join(ours.written(tree))
    assert content == flax_bytes(tree)
    found = dict(ours.arrays(ours.Nest(memoryview(content)).content))
    whole = torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()
    for i, shape in enumerate(shapes):
        assert ours.read(whole, found[f"shape{i}"]).shape == shape
    assert [int(ours.read(whole, found[f"wide/{i}"])) for i in range(70)] == list(range(70))


# Bad input


GOOD = flax_bytes(TREE)
ARRAY = flax_array(torch.zeros(2, 3)).data
PIECES = flax_chunked(torch.zeros(9), 3)


def ext(content: Any) -> Any:
    return {"a": {"kernel": msgpack.ExtType(1, content if isinstance(content, bytes) else msgpack.packb(content))}}


BAD: list[tuple[str, Callable[[], bytes], str]] = [
    ("half", lambda: GOOD[: len(GOOD) // 2], "truncated or damaged: what begins at byte"),
    ("one byte short", lambda: GOOD[:-1], "truncated or damaged"),
    ("first bytes", lambda: GOOD[:40], "truncated or damaged"),
    ("one byte more", lambda: GOOD + b"\0", "it ends at byte"),
    ("fewer maps than there are", lambda: bytes([GOOD[0] - 1]) + GOOD[1:], "it ends at byte"),
    ("more maps than there are", lambda: bytes([GOOD[0] + 1]) + GOOD[1:], "truncated or damaged"),
    ("deep", lambda: b"\x81\xa1a" * 100_000 + b"\xc0", "a nest of more than 64 levels"),
    ("deep lists", lambda: b"\x81\xa1a" + b"\x91" * 100_000, "a nest of more than 64 levels"),
    ("too many entries", lambda: msgpack.packb({str(i): None for i in range(3_000)}), "more than 2,000 values"),
    ("a long list", lambda: b"\x81\xa1a\xdd\xff\xff\xff\xff" + bytes(3_000), "more than 2,000 values"),
    ("a map beyond", lambda: b"\x81\xa1a\xdf\xff\xff\xff\xff\xa1b\x01", "truncated or damaged"),
    ("a text beyond", lambda: b"\x81\xa1a\xdb\xff\xff\xff\xffxyz", r"claims 4,294,967,295 bytes, and 3 follow"),
    ("an array beyond", lambda: b"\x81\xa1a\xc9\xff\xff\xff\xff\x01" + ARRAY, "truncated or damaged"),
    ("the same name twice", lambda: b"\x82\xa1a\x01\xa1a\x02", "names a twice"),
    ("two ways to a name", lambda: flax_bytes({"a": {"b": torch.zeros(1)}, "a/b": torch.zeros(1)}), "names a/b twice"),
    ("a long name", lambda: flax_bytes({"n" * 2000: torch.zeros(1)}), "a name in it is no name"),
    ("a map for a name", lambda: b"\x82\xa1a\x01\x81\x01\x02\x03", "a name in it is no name"),
    ("a shape that lies", lambda: flax_bytes(ext(((2, 3), "float32", bytes(20)))), r"\[2, 3\] float32 .* 20 bytes"),
    ("an absurd shape", lambda: flax_bytes(ext(((2**62, 2**62), "float32", bytes(4)))), "has 4 bytes"),
    ("a negative shape", lambda: flax_bytes(ext(((-1, 3), "float32", bytes(12)))), "begins as an array .* is none"),
    ("a shape of halves", lambda: flax_bytes(ext(((0.5,), "float32", bytes(4)))), "begins as an array .* is none"),
    ("many axes", lambda: flax_bytes(ext(((1,) * 40, "float32", bytes(4)))), "begins as an array .* is none"),
    ("no shape", lambda: flax_bytes(ext((4, "float32", bytes(4)))), "begins as an array .* is none"),
    ("no type", lambda: flax_bytes(ext(((1,), 4, bytes(4)))), "begins as an array .* is none"),
    ("no numbers", lambda: flax_bytes(ext(((1,), "float32", 4))), "begins as an array .* is none"),
    ("two of three", lambda: flax_bytes(ext(((1,), "float32"))), "begins as an array .* is none"),
    ("more in an array", lambda: flax_bytes(ext(ARRAY + b"\0")), "begins as an array .* is none"),
    ("an empty array", lambda: flax_bytes(ext(b"\x01")), "begins as an array .* is none"),
    ("a piece missing", lambda: flax_bytes({"a": {**PIECES, "shape": {"0": 12}}}), "hold 9 numbers"),
    ("no pieces", lambda: flax_bytes({"a": {"__msgpack_chunked_array__": True}}), "an array in pieces is not whole"),
    ("pieces of no array", lambda: flax_bytes({"a": {**PIECES, "chunks": {"0": 1}}}), "not whole"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_files(tmp_path: Path, content: Callable[[], bytes], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_MOST", 2_000)  # so that this is quick
    path = tmp_path / "x.msgpack"
    path.write_bytes(content())
    tracemalloc.start()
    began = time.process_time()
    refused(path, message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - began < 5
    assert peak < 100e6


def test_types_that_torch_has_not(tmp_path: Path) -> None:
    tree = {
        **TREE,
        "post_quant_conv": {**TREE["post_quant_conv"], "bias": ext(((4,), "complex64", bytes(32)))["a"]["kernel"]},
    }
    refused(file(tmp_path / "x.msgpack", tree), "post_quant_conv/bias: it is stored as complex64, which is not read")


def test_nothing_is_read_to_open_a_file(tmp_path: Path) -> None:
    """Of a large file only the heads are looked at."""
    path = tmp_path / "x.msgpack"
    head = flax_bytes({"a": {"kernel": torch.zeros(1)}})
    size = 4 * 2**30 - 64
    with path.open("wb") as out:  # one array of 4 GiB, that takes no room on the disk
        inner = msgpack.packb((size // 4,)) and b"\x93\x91\xce" + (size // 4).to_bytes(4, "big") + b"\xa7float32"
        inner += b"\xc6" + size.to_bytes(4, "big")
        out.write(b"\x81\xa6kernel\xc9" + (len(inner) + size).to_bytes(4, "big") + b"\x01" + inner)
        out.truncate(out.tell() + size)
    tracemalloc.start()
    container = open_container(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert dict(container.shapes) == {"kernel": (size // 4,)}
    assert peak < 1e6
    assert len(head) < 100


def test_full_width_needs_no_more(tmp_path: Path) -> None:
    """A narrow network of Stable Diffusion's depth, alone and without a config.json."""
    module = kl(NARROW, 2)
    loaded = load_weights(file(tmp_path / "x.msgpack", flax_tree(module)))
    assert same_tensors(loaded.module, module)
    assert loaded.module.config == NARROW
    assert places.SUFFIXES  # and folders list such files after those of torch
