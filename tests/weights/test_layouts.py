"""Every layout in circulation is read, and those that are written come back bit by bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    NARROW,
    SMALL,
    diffusers_tensors,
    fill,
    import_diffusers,
    kl,
    names,
    one_sentence,
    room,
    same_tensors,
    tensors_of,
    tiny,
    write,
)
from torch import Tensor

from calotype.errors import StorageError, UsageError, WeightsError
from calotype.families import make_network
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.kl.network import AutoencoderKL
from calotype.families.tiny.config import TinyConfig
from calotype.latents import KNOWN, LatentFormat, Packed, PerChannel, flux2
from calotype.weights import formats, places
from calotype.weights.container import Container, open_container
from calotype.weights.load import load_weights, tensors_sha256
from calotype.weights.save import WriteLayout, save_weights

MODULE = kl(NARROW, 7)
SHA256 = tensors_sha256(MODULE.state_dict())
STABLE = "diffusion_pytorch_model"


def torch_file(path: Path, content: Any, *, zipped: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def flux2_layout(module: AutoencoderKL) -> dict[str, Tensor]:
    """FLUX.2's own file: the 1x1 convolutions live in encoder and decoder."""
    inside = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    return {
        f"{inside[key.split('.')[0]]}.{key.split('.')[1]}" if key.split(".")[0] in inside else key: tensor
        for key, tensor in tensors_of(module).items()
    }


UNET = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}
LDM = tensors_of(MODULE)
LIGHTNING = {
    **LDM,
    "loss.logvar": torch.zeros(()),
    "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(4, 3, 3, 3),
    "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
    "model_ema.decay": torch.tensor(0.999),
    "model_ema.encoderconv_inweight": torch.zeros(32, 3, 3, 3),
}

# name -> (what writes it into a folder and says what to load, layout, prefix)
Writer = Callable[[Path], Path]
LAYOUTS: dict[str, tuple[Writer, str, str]] = {
    "an LDM file": (lambda f: write(f / "vae.safetensors", LDM), "ldm", ""),
    "an .sft file": (lambda f: write(f / "ae.sft", LDM), "ldm", ""),
    "an LDM torch file": (lambda f: torch_file(f / "vae.pt", LDM), "ldm", ""),
    "an LDM torch file of before 1.6": (lambda f: torch_file(f / "vae.ckpt", LDM, zipped=False), "ldm", ""),
    "a lightning checkpoint": (
        lambda f: torch_file(
            f / "last.ckpt", {"epoch": 3, "global_step": 7, "state_dict": LIGHTNING, "hparams": {"a": 1}}
        ),
        "ldm",
        "",
    ),
    "a state_dict in a state_dict": (
        lambda f: torch_file(f / "last.ckpt", {"state_dict": {"state_dict": LDM}}),
        "ldm",
        "",
    ),
    "a diffusers folder": (
        lambda f: write(f / f"{STABLE}.safetensors", diffusers_tensors(MODULE)).parent,
        "diffusers",
        "",
    ),
    "a single diffusers file": (lambda f: write(f / "any.safetensors", diffusers_tensors(MODULE)), "diffusers", ""),
    "a pipeline's folder": (
        lambda f: write(f / "vae" / f"{STABLE}.safetensors", diffusers_tensors(MODULE)).parent.parent,
        "diffusers",
        "",
    ),
    "a folder with the fp16 variant's name": (
        lambda f: write(f / f"{STABLE}.fp16.safetensors", diffusers_tensors(MODULE)).parent,
        "diffusers",
        "",
    ),
    "a folder with a .bin": (
        lambda f: torch_file(f / f"{STABLE}.bin", diffusers_tensors(MODULE)).parent,
        "diffusers",
        "",
    ),
    "a folder with a .fp16.bin": (
        lambda f: torch_file(f / f"{STABLE}.fp16.bin", diffusers_tensors(MODULE)).parent,
        "diffusers",
        "",
    ),
    "old attention names, linear": (
        lambda f: write(f / "x.safetensors", diffusers_tensors(MODULE, old=True)),
        "diffusers",
        "",
    ),
    "old attention names, 1x1 convolutions": (
        lambda f: write(f / "x.safetensors", diffusers_tensors(MODULE, old=True, linear=False)),
        "diffusers",
        "",
    ),
    "new attention names, 1x1 convolutions": (
        lambda f: write(f / "x.safetensors", diffusers_tensors(MODULE, linear=False)),
        "diffusers",
        "",
    ),
    "a whole checkpoint": (
        lambda f: write(f / "sd.safetensors", {**UNET, **prefixed("first_stage_model.", LDM)}),
        "ldm",
        "first_stage_model.",
    ),
    "a whole checkpoint as .ckpt": (
        lambda f: torch_file(f / "sd.ckpt", {"state_dict": {**UNET, **prefixed("first_stage_model.", LDM)}}),
        "ldm",
        "first_stage_model.",
    ),
    "a checkpoint with vae.": (lambda f: write(f / "x.safetensors", {**UNET, **prefixed("vae.", LDM)}), "ldm", "vae."),
    "a checkpoint with vae. in diffusers' names": (
        lambda f: write(f / "x.safetensors", {**UNET, **prefixed("vae.", diffusers_tensors(MODULE))}),
        "diffusers",
        "vae.",
    ),
    "FLUX.2's own layout": (lambda f: write(f / "ae.safetensors", flux2_layout(MODULE)), "ldm", ""),
    "an encoder's and a decoder's file": (
        lambda f: (
            (
                write(f / "enc.safetensors", {k: v for k, v in LDM.items() if k.startswith(("encoder", "quant"))}),
                write(f / "dec.safetensors", {k: v for k, v in LDM.items() if k.startswith(("decoder", "post"))}),
            )[0].parent
        ),
        "ldm",
        "",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_read(name: str, tmp_path: Path) -> None:
    writer, layout, prefix = LAYOUTS[name]
    loaded = load_weights(writer(tmp_path / "weights"))
    assert same_tensors(loaded.module, MODULE)
    assert loaded.module.config == NARROW
    assert (loaded.layout, loaded.prefix, loaded.parts) == (layout, prefix, {"encoder", "decoder"})
    assert loaded.sha256 == SHA256
    assert loaded.dtypes == ("float32",)
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_the_best_of_several_files_in_a_diffusers_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path / f"{STABLE}.fp16.safetensors", {k: v.half() for k, v in diffusers_tensors(MODULE).items()})
    torch_file(tmp_path / f"{STABLE}.bin", {"broken": 1})
    assert load_weights(tmp_path).dtypes == ("float16",)
    write(tmp_path / f"{STABLE}.safetensors", diffusers_tensors(MODULE))
    loaded = load_weights(tmp_path)
    assert loaded.files == (tmp_path / f"{STABLE}.safetensors",)
    assert loaded.dtypes == ("float32",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_stored_dtype_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    loaded = load_weights(write(tmp_path / "x.safetensors", {k: v.to(dtype) for k, v in LDM.items()}))
    assert loaded.dtypes == (str(dtype).removeprefix("torch."),)
    assert {p.dtype for p in loaded.module.parameters()} == {dtype}
    assert loaded.sha256 != SHA256


def test_files_that_diffusers_writes_are_read(tmp_path: Path) -> None:
    diffusers = import_diffusers()
    theirs = fill(diffusers.AutoencoderKL(block_out_channels=(32, 64), down_block_types=["DownEncoderBlock2D"] * 2,
                                          up_block_types=["UpDecoderBlock2D"] * 2), 0)  # fmt: skip
    theirs.save_pretrained(tmp_path / "safe")
    theirs.save_pretrained(tmp_path / "half", variant="fp16")
    theirs.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    first = load_weights(tmp_path / "safe")
    assert names(tmp_path / "half") == ["config.json", f"{STABLE}.fp16.safetensors"]
    assert names(tmp_path / "pickle") == ["config.json", f"{STABLE}.bin"]
    assert load_weights(tmp_path / "half").sha256 == first.sha256
    assert load_weights(tmp_path / "pickle").sha256 == first.sha256
    assert first.format == KNOWN["sd1"]
    assert first.format_source == "config.json"


def test_diffusers_reads_what_is_written(tmp_path: Path) -> None:
    diffusers = import_diffusers()
    config = AutoencoderConfig(ch=32, ch_mult=(1, 2, 2), attn_levels=(1,), z_channels=6, norm_groups=8)
    module = kl(config, 2)
    format_ = PerChannel(name="mine", channels=6, mean=(0.0,) * 6, std=(2.0,) * 6)
    save_weights(module, tmp_path / "folder", layout="diffusers", format_=format_)
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "folder")
    z, x = torch.randn(1, 6, 4, 4), torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(theirs.decode(z).sample, module.decode(z), atol=1e-4)
        assert torch.allclose(theirs.encode(x).latent_dist.parameters, module.encode(x).moments, atol=1e-4)
    assert theirs.config.latents_mean == [0.0] * 6
    assert theirs.config.latents_std == [2.0] * 6


def test_diffusers_reads_flux2_as_written(tmp_path: Path) -> None:
    diffusers = import_diffusers()
    config = AutoencoderConfig(ch=32, z_channels=32, decoder_ch=64)
    module = kl(config, 2)
    format_ = flux2(tuple(torch.randn(128).tolist()), tuple(torch.rand(128).add(0.5).tolist()))
    save_weights(module, tmp_path / "folder", layout="diffusers", format_=format_)
    theirs = diffusers.AutoencoderKLFlux2.from_pretrained(tmp_path / "folder")
    assert torch.equal(theirs.bn.running_mean, torch.tensor(format_.running_mean))
    assert torch.equal(theirs.bn.running_var, torch.tensor(format_.running_var))
    z = torch.randn(1, 32, 4, 4)
    with torch.inference_mode():
        assert torch.allclose(theirs.decode(z).sample, module.decode(z), atol=1e-4)


# Only what is needed is read


class Counting:
    """A container that notes what is read from it."""

    def __init__(self, inner: Container, read: list[str]) -> None:
        self.inner, self.shapes, self.metadata, self.keys = inner, inner.shapes, inner.metadata, read
        self.kind, self.notices, self.stored = inner.kind, inner.notices, inner.stored

    def read(self, key: str) -> Tensor:
        self.keys.append(key)
        return self.inner.read(key)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_only_the_vaes_tensors_are_read_from_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    read: list[str] = []
    monkeypatch.setattr(places, "open_container", lambda path: Counting(open_container(path), read))
    tensors = {**UNET, **prefixed("first_stage_model.", LDM), "cond_stage_model.transformer.x": torch.zeros(5)}
    path = tmp_path / f"sd{suffix}"
    write(path, tensors) if suffix == ".safetensors" else torch_file(path, {"state_dict": tensors})
    loaded = load_weights(path)
    assert sorted(read) == sorted(f"first_stage_model.{key}" for key in LDM)
    assert loaded.sha256 == SHA256


def test_a_corrupted_unet_is_not_noticed(tmp_path: Path) -> None:
    unet = {"model.diffusion_model.out.2.weight": torch.full((64, 64), float("nan"))}
    path = write(tmp_path / "sd.safetensors", {**unet, **prefixed("first_stage_model.", LDM)})
    assert load_weights(path).sha256 == SHA256


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_large_checkpoint_is_mapped_and_not_loaded(tmp_path: Path, suffix: str) -> None:
    tensors = {**prefixed("first_stage_model.", LDM), "model.diffusion_model.x": torch.zeros(1)}
    path = tmp_path / f"sd{suffix}"
    write(path, tensors) if suffix == ".safetensors" else torch_file(path, {"state_dict": tensors})
    container = open_container(path)
    bias = container.read("first_stage_model.decoder.conv_in.bias")
    with path.open("r+b") as file:  # the same file, mapped: what is changed in it is seen by who reads it later
        content = file.read()
        where = content.index(LDM["decoder.norm_out.bias"].numpy().tobytes())
        file.seek(where)
        file.write(torch.full((32,), 7.0).numpy().tobytes())
    if suffix == ".ckpt":  # and held against its sum, not before
        with pytest.raises(WeightsError, match="CRC-32"):
            container.read("first_stage_model.decoder.norm_out.bias")
    else:
        assert torch.equal(container.read("first_stage_model.decoder.norm_out.bias"), torch.full((32,), 7.0))
    assert torch.equal(bias, LDM["decoder.conv_in.bias"])


def test_whole_checkpoints_are_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "file_sha256", lambda path: pytest.fail("it was hashed"))
    load_weights(write(tmp_path / "sd.safetensors", {**UNET, **prefixed("first_stage_model.", LDM)}))


# Written and read again


ROUND_TRIPS = {
    "sd": (NARROW, KNOWN["sd1"]),
    "sd3": (AutoencoderConfig(ch=32, z_channels=16, quant_conv=False), KNOWN["sd3"]),
    "attention": (AutoencoderConfig(ch=32, ch_mult=(1, 2), attn_levels=(0, 1), mid_attention=False), None),
    "small": (SMALL, PerChannel(name="mine", channels=4, mean=(0.0, 1.0, 2.0, 3.0), std=(1.0, 2.0, 3.0, 4.0))),
    "flux2": (
        AutoencoderConfig(ch=32, ch_mult=(1, 2), z_channels=8, decoder_ch=64),
        flux2(tuple(x / 7 for x in range(32)), tuple(1 + x / 7 for x in range(32))),
    ),
}


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_ldm_to_diffusers_to_ldm_changes_no_bit(tmp_path: Path, name: str, dtype: torch.dtype | None) -> None:
    config, format_ = ROUND_TRIPS[name]
    module = kl(config, 5)
    (one,) = save_weights(module, tmp_path / "a.safetensors", layout="ldm", format_=format_, dtype=dtype)
    first = load_weights(one)
    assert save_weights(first.module, tmp_path / "folder", layout="diffusers", format_=first.format) == [
        tmp_path / "folder" / "config.json",
        tmp_path / "folder" / f"{STABLE}.safetensors",
    ]
    second = load_weights(tmp_path / "folder")
    assert (second.layout, first.layout) == ("diffusers", "ldm")
    (two,) = save_weights(second.module, tmp_path / "b.safetensors", layout="ldm", format_=second.format)
    third = load_weights(two)
    assert third.metadata == first.metadata  # (safetensors writes it in any order, so the files' bytes may differ)
    assert same_tensors(first.module, third.module)
    assert first.sha256 == second.sha256 == third.sha256
    assert first.format == second.format == third.format == format_
    if dtype is None:
        assert same_tensors(first.module, module)
    assert first.module.config == second.module.config == config


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_batch_norm_statistics_are_in_the_file(tmp_path: Path, layout: Any) -> None:
    config, format_ = ROUND_TRIPS["flux2"]
    assert isinstance(format_, Packed)
    path = tmp_path / ("x.safetensors" if layout == "ldm" else "x")
    written = save_weights(kl(config), path, layout=layout, format_=format_, dtype=torch.float16)[-1]
    container = open_container(written)
    assert torch.equal(container.read("bn.running_mean"), torch.tensor(format_.running_mean))
    assert torch.equal(container.read("bn.running_var"), torch.tensor(format_.running_var))
    # and they are enough, without our metadata
    bare = write(tmp_path / "bare.safetensors", {key: container.read(key) for key in container.shapes})
    loaded = load_weights(bare)
    assert loaded.format_source == "batch-norm statistics in the weights"
    assert isinstance(loaded.format, Packed)
    assert loaded.format.running_mean == pytest.approx(format_.running_mean)


@pytest.mark.slow
def test_other_networks_are_written_under_their_own_keys(tmp_path: Path) -> None:
    for i, config in enumerate((TinyConfig(), TinyConfig(z_channels=32, pool=True), FoldedConfig(ch=(8, 8)))):
        module = tiny(config) if isinstance(config, TinyConfig) else fill(make_network(config), 0)
        (path,) = save_weights(module, tmp_path / f"{i}.safetensors", layout="ldm")
        loaded = load_weights(path)
        assert loaded.module.config == config
        assert same_tensors(loaded.module, module)
        with pytest.raises(UsageError, match="has no diffusers layout"):
            save_weights(module, tmp_path / "folder", layout="diffusers")
    assert names(tmp_path) == ["0.safetensors", "1.safetensors", "2.safetensors"]


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_half_a_vae_is_read_and_written(tmp_path: Path, side: str, layout: Any) -> None:
    own = {"encoder": ("encoder", "quant"), "decoder": ("decoder", "post")}[side]
    half = {key: tensor for key, tensor in LDM.items() if key.startswith(own)}
    loaded = load_weights(write(tmp_path / "half.safetensors", half))
    assert loaded.parts == {side}
    assert loaded.module.config == NARROW
    assert loaded.module.state_dict().keys() == half.keys()
    target = tmp_path / ("again.safetensors" if layout == "ldm" else "again")
    save_weights(loaded.module, target, layout=layout)
    again = load_weights(target)
    assert (again.parts, again.sha256) == ({side}, loaded.sha256)


def test_a_narrower_decoder_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    module = kl(AutoencoderConfig(ch=64, ch_mult=(1, 2), decoder_ch=32))
    tensors = tensors_of(module)
    write(tmp_path / "e.safetensors", {k: v for k, v in tensors.items() if k.startswith(("encoder", "quant"))})
    write(tmp_path / "d.safetensors", {k: v for k, v in tensors.items() if k.startswith(("decoder", "post"))})
    loaded = load_weights(tmp_path)
    assert loaded.module.config == module.config
    assert same_tensors(loaded.module, module)


def test_further_metadata_is_written(tmp_path: Path) -> None:
    (path,) = save_weights(MODULE, tmp_path / "x.safetensors", layout="ldm", metadata={"made by": "me"})
    metadata = open_container(path).metadata
    assert metadata["made by"] == "me"
    assert json.loads(metadata["calotype_config"]) == json.loads(json.dumps(NARROW.to_dict()))


@pytest.mark.parametrize("layout", ["ldm", "diffusers", "keras"])
@pytest.mark.parametrize("share", [0, 0.4, 0.9])
@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_what_was_there(there: bool, share: float, layout: WriteLayout, tmp_path: Path) -> None:
    path = tmp_path / ("x.safetensors" if layout == "ldm" else "x")
    (tmp_path / "whole").mkdir()
    sizes = [file.stat().st_size for file in save_weights(MODULE, tmp_path / "whole" / path.name, layout=layout)]
    shutil.rmtree(tmp_path / "whole")
    written = save_weights(MODULE, path, layout=layout) if there else []
    before = {file: file.read_bytes() for file in written}
    with (
        room(int(max(sizes) * share)),
        pytest.raises(StorageError, match=r"\.(safetensors|json|h5) can't be written: File too large; ") as caught,
    ):
        save_weights(kl(NARROW, 9), path, layout=layout)
    one_sentence(str(caught.value))
    assert {file: file.read_bytes() for file in written} == before
    assert sorted(names(tmp_path)) == sorted(str(file.relative_to(tmp_path)) for file in written)


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("x", "ldm", r"the ldm layout is a single file; give it a name that ends in \.safetensors"),
        ("x.ckpt", "ldm", "the ldm layout is a single file"),
        ("x.safetensors", "diffusers", "the diffusers layout is a folder; give the name of a folder"),
        ("x.h5", "keras", "the keras layout is a folder"),
        ("x", "onnx", "There is no layout 'onnx'; choose one of ldm, diffusers, diffusers-2d, keras"),
    ],
)
def test_a_path_that_does_not_fit_the_layout(tmp_path: Path, name: str, layout: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        save_weights(MODULE, tmp_path / name, layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_a_folders_name_may_hold_a_dot(tmp_path: Path) -> None:
    save_weights(MODULE, tmp_path / "vae-v1.5", layout="diffusers")
    assert load_weights(tmp_path / "vae-v1.5").sha256 == SHA256


def test_a_link_to_weights_is_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "blob", LDM)
    (tmp_path / "x.safetensors").symlink_to(path)
    assert load_weights(tmp_path / "x.safetensors").sha256 == SHA256


def test_the_name_of_a_file_says_nothing(tmp_path: Path) -> None:
    shutil.move(torch_file(tmp_path / "a.pt", LDM), tmp_path / "a.safetensors")
    assert load_weights(tmp_path / "a.safetensors").sha256 == SHA256


def test_a_format_fits_its_network(tmp_path: Path) -> None:
    formats: list[LatentFormat] = [KNOWN["sd1"], KNOWN["sdxl"]]
    for format_ in formats:
        (path,) = save_weights(MODULE, tmp_path / "x.safetensors", layout="ldm", format_=format_)
        loaded = load_weights(path)
        assert (loaded.format, loaded.format_source) == (format_, "the file's metadata")


def test_numbers_too_large_for_the_type_are_not_written(tmp_path: Path) -> None:
    module = kl(MODULE.config, 0)
    with torch.no_grad():
        module.decoder.conv_out.bias.fill_(1e5)
    with pytest.raises(WeightsError, match=r"decoder\.conv_out\.bias would overflow in float16"):
        save_weights(module, tmp_path / "x.safetensors", layout="ldm", dtype=torch.float16)
    assert names(tmp_path) == []
