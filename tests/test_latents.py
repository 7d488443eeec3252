"""Latent formats, and latents on disk."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from support import import_diffusers, names, one_sentence
from torch import Tensor

from calotype.errors import LatentsError, UsageError
from calotype.latent_files import load_latents, save_latents
from calotype.latents import (
    KNOWN,
    LatentFormat,
    Latents,
    Packed,
    PerChannel,
    ScaleShift,
    flux2,
    latent_format,
    latent_format_from_dict,
    same_as_model,
)
from calotype.pixels import Padding

PADDING = Padding(height=30, width=47, bottom=2, right=1, mode="reflect")


def some_flux2(channels: int = 32) -> Packed:
    generator = torch.Generator().manual_seed(4)
    mean = torch.randn(4 * channels, generator=generator)
    var = torch.rand(4 * channels, generator=generator) + 0.01
    return flux2(tuple(mean.tolist()), tuple(var.tolist()))


PER_CHANNEL = PerChannel(name="mine", channels=3, mean=(0.5, -1.0, 2.0), std=(0.5, 2.0, 4.0))
FORMATS: list[LatentFormat] = [
    *KNOWN.values(),
    PerChannel(name="scaled", channels=3, mean=(0.5, -1.0, 2.0), std=(0.5, 2.0, 4.0), scaling_factor=-0.3),
    latent_format("none", 7),
    PER_CHANNEL,
    some_flux2(),
    same_as_model("flux2", 32),
    same_as_model("sd3", 16),
]


def latents(format_: LatentFormat = KNOWN["sd1"], **changes: Any) -> Latents:
    values: dict[str, Any] = {
        "tensor": torch.randn(format_.channels, 4, 6),
        "space": "raw",
        "format": format_,
        "vae": "0123456789abcdef" * 4,
        "padding": PADDING,
        "vae_name": "sd-vae-ft-mse",
    }
    return Latents(**{**values, **changes})


# Formats


@pytest.mark.parametrize(
    ("name", "channels", "scale", "shift"),
    [("sd1", 4, 0.18215, 0.0), ("sdxl", 4, 0.13025, 0.0), ("sd3", 16, 1.5305, 0.0609), ("flux", 16, 0.3611, 0.1159)],
)
def test_known_formats_have_the_numbers_of_their_models(name: str, channels: int, scale: float, shift: float) -> None:
    format_ = latent_format(name, channels)
    assert format_ == ScaleShift(name=name, channels=channels, scaling_factor=scale, shift_factor=shift)
    raw = torch.randn(1, channels, 4, 4, dtype=torch.float64)
    assert torch.allclose(format_.to_model(raw), (raw - shift) * scale, rtol=1e-12)


def test_known_formats_are_these() -> None:
    assert list(KNOWN) == [
        "sd1",
        "sdxl",
        "sd3",
        "flux",
        "playground",
        "wan2.1",
        "wan2.2",
        "qwen-image-2.1",
        "sana",
        "hunyuan-image",
        "vq-f4",
        "vq-f8",
        "vq-f16",
        "movq",
    ]


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f"{f.kind}-{f.name}")
def test_formats_are_undone(format_: LatentFormat) -> None:
    raw = torch.randn(2, format_.channels, 6, 4, dtype=torch.float64)
    model = format_.to_model(raw)
    assert model.shape == (2, format_.channels * format_.patch**2, 6 // format_.patch, 4 // format_.patch)
    assert format_.fits(model[0])
    assert not format_.fits(model[0, :-1])
    assert torch.allclose(format_.to_raw(model), raw, rtol=1e-10, atol=1e-12)
    assert torch.allclose(format_.to_model(format_.to_raw(model)), model, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f"{f.kind}-{f.name}")
def test_formats_survive_json(format_: LatentFormat) -> None:
    assert latent_format_from_dict(json.loads(json.dumps(format_.to_dict()))) == format_


@given(
    scale=st.floats(0.01, 100),
    shift=st.floats(-10, 10),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_any_scale_and_shift_are_undone(scale: float, shift: float, seed: int) -> None:
    format_ = ScaleShift(name="x", channels=2, scaling_factor=scale, shift_factor=shift)
    raw = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(format_.to_raw(format_.to_model(raw)), raw, rtol=1e-9, atol=1e-9)


def test_each_channel_has_its_mean_and_std() -> None:
    raw = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    model = PER_CHANNEL.to_model(raw)
    for c, (mean, std) in enumerate(zip(PER_CHANNEL.mean, PER_CHANNEL.std, strict=True)):
        assert torch.allclose(model[:, c], (raw[:, c] - mean) / std)


def test_a_factor_counts_beside_means() -> None:
    raw = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    scaled = replace(PER_CHANNEL, scaling_factor=0.5)
    assert torch.allclose(scaled.to_model(raw), 0.5 * PER_CHANNEL.to_model(raw))
    assert torch.allclose(scaled.to_raw(scaled.to_model(raw)), raw)
    for factor in (0, float("nan"), "1", True):
        with pytest.raises(UsageError, match="'mine'"):
            replace(PER_CHANNEL, scaling_factor=factor)


def test_none_changes_nothing() -> None:
    raw = torch.randn(1, 5, 3, 3)
    assert torch.equal(latent_format("none", 5).to_model(raw), raw)


def packed_by_hand(raw: Tensor, format_: Packed) -> Tensor:
    n, channels, height, width = raw.shape
    result = torch.zeros(n, 4 * channels, height // 2, width // 2, dtype=raw.dtype)
    for c in range(channels):
        for i in range(2):
            for j in range(2):
                k = 4 * c + 2 * i + j
                std = math.sqrt(format_.running_var[k] + format_.eps)
                result[:, k] = (raw[:, c, i::2, j::2] - format_.running_mean[k]) / std
    return result


def test_packing_has_the_order_of_an_explicit_loop() -> None:
    format_ = some_flux2(5)
    raw = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    assert torch.allclose(format_.to_model(raw), packed_by_hand(raw, format_), rtol=1e-12, atol=1e-12)


def test_flux2_has_the_epsilon_of_its_batch_norm() -> None:
    assert some_flux2().eps == 1e-4
    assert some_flux2().channels == 32


def of_pipeline(name: str) -> Any:
    """One of the functions in diffusers' pipeline for FLUX.2, from its source: importing it needs transformers."""
    source = Path(import_diffusers().__file__).parent / "pipelines" / "flux2" / "pipeline_flux2.py"
    (function,) = (
        node
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    function.decorator_list = []
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([function], []), str(source), "exec"), scope)
    return scope[name]


def test_flux2_latents_are_those_of_diffusers_pipeline() -> None:
    patchify, unpatchify = of_pipeline("_patchify_latents"), of_pipeline("_unpatchify_latents")
    format_ = some_flux2()
    norm = import_diffusers().AutoencoderKLFlux2(block_out_channels=(32,) * 4).eval().bn
    assert norm.eps == format_.eps
    norm.running_mean.copy_(torch.tensor(format_.running_mean))
    norm.running_var.copy_(torch.tensor(format_.running_var))
    raw = torch.randn(2, 32, 6, 8)
    patches = patchify(raw)
    assert torch.allclose(format_.to_model(raw), norm(patches), rtol=1e-5, atol=1e-5)
    identity = same_as_model("flux2", 32)
    assert torch.equal(identity.to_model(raw), patches)
    assert torch.equal(identity.to_raw(patches), unpatchify(patches))


def test_a_taesd_has_model_latents() -> None:
    raw = torch.randn(1, 16, 4, 4)
    format_ = same_as_model("sd3", 16)
    assert format_.name == "sd3"
    assert torch.equal(format_.to_model(raw), raw)
    assert torch.equal(format_.to_raw(raw), raw)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f"{f.kind}-{f.name}")
def test_formats_keep_the_dtype(format_: LatentFormat, dtype: torch.dtype) -> None:
    raw = torch.randn(1, format_.channels, 4, 4).to(dtype)
    assert format_.to_model(raw).dtype == dtype
    assert format_.to_raw(format_.to_model(raw)).dtype == dtype


def test_an_unknown_format() -> None:
    with pytest.raises(UsageError, match=r"'sd9'; choose one of sd1, sdxl, sd3, flux, playground, wan2\.1, .*none\.$"):
        latent_format("sd9", 4)


def test_a_format_for_another_number_of_channels() -> None:
    with pytest.raises(
        UsageError, match="'flux' is for 16 channels, and this VAE has 4; choose another --latent-format"
    ):
        latent_format("flux", 4)


# Latents


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f"{f.kind}-{f.name}")
def test_latents_go_to_model_space_and_back(format_: LatentFormat) -> None:
    raw = latents(format_)
    model = raw.to_model()
    assert model.space == "model"
    assert torch.equal(model.tensor, format_.to_model(raw.tensor[None])[0])
    assert torch.allclose(model.to_raw().tensor, raw.tensor, atol=1e-5)
    assert raw.to_raw() is raw
    assert model.to_model() is model
    assert (model.padding, model.vae, model.vae_name) == (raw.padding, raw.vae, raw.vae_name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "latent"}, r"^Latents are raw or model, not 'latent'\.$"),
        ({"tensor": torch.zeros(5, 4, 4)}, r"^Raw latents of format 'sd1' must be \[4, h, w\], not \[5, 4, 4\]\.$"),
        ({"tensor": torch.zeros(1, 4, 4, 4)}, r"must be \[4, h, w\], not \[1, 4, 4, 4\]"),
        ({"tensor": torch.full((4, 2, 2), float("nan"))}, r"^The latents hold NaN or infinity; .*\.$"),
        ({"tensor": torch.full((4, 2, 2), float("inf"))}, "NaN or infinity"),
    ],
)
def test_latents_that_can_not_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LatentsError, match=message):
        latents(**changes)


def test_packed_latents_have_four_times_the_channels() -> None:
    with pytest.raises(LatentsError, match=r"^Model latents of format 'flux2' must be \[128, h, w\], not \[32, 4, 6\]"):
        latents(some_flux2(), space="model")


# On disk


@pytest.mark.parametrize("space", ["raw", "model"])
@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f"{f.kind}-{f.name}")
def test_latents_come_back_from_disk(tmp_path: Path, format_: LatentFormat, space: str) -> None:
    before = latents(format_).to_model() if space == "model" else latents(format_)
    path = save_latents(tmp_path / "x.safetensors", before)
    assert path == tmp_path / "x.safetensors"
    after = load_latents(str(path))
    assert torch.equal(after.tensor, before.tensor)
    for name in ("space", "format", "vae", "vae_name", "padding"):
        assert getattr(after, name) == getattr(before, name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept_on_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    before = latents(tensor=torch.randn(4, 3, 3).to(dtype))
    after = load_latents(save_latents(tmp_path / "x.safetensors", before))
    assert after.tensor.dtype == dtype
    assert torch.equal(after.tensor, before.tensor)


def test_alpha_is_kept_in_256_levels(tmp_path: Path) -> None:
    alpha = torch.arange(30 * 47).reshape(30, 47).remainder(256).float() / 255
    before = latents(alpha=alpha)
    after = load_latents(save_latents(tmp_path / "x.safetensors", before))
    assert after.alpha is not None
    assert after.alpha.dtype == torch.float32
    assert torch.equal(after.alpha, alpha)
    assert before.to_model().alpha is alpha


def test_the_file_is_plain_safetensors_with_all_metadata(tmp_path: Path) -> None:
    before = latents(alpha=torch.ones(30, 47))
    path = save_latents(tmp_path / "x.safetensors", before)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"latents", "alpha"}
        assert torch.equal(file.get_tensor("latents"), before.tensor)
        assert torch.equal(file.get_tensor("alpha"), torch.full((30, 47), 255, dtype=torch.uint8))
        metadata = file.metadata()
    assert metadata == {
        "calotype": "latents/1",
        "space": "raw",
        "latent_format": json.dumps(KNOWN["sd1"].to_dict()),
        "vae_sha256": before.vae,
        "vae_name": "sd-vae-ft-mse",
        "padding": json.dumps({"height": 30, "width": 47, "bottom": 2, "right": 1, "mode": "reflect"}),
    }
    assert names(tmp_path) == ["x.safetensors"]


def test_latents_that_are_no_plain_memory_are_written(tmp_path: Path) -> None:
    before = latents(tensor=torch.randn(6, 4, 4).permute(2, 0, 1).requires_grad_())
    after = load_latents(save_latents(tmp_path / "x.safetensors", before))
    assert torch.equal(after.tensor, before.tensor)


def refuse(path: Path, message: str) -> None:
    with pytest.raises(LatentsError, match=message) as caught:
        load_latents(path)
    one_sentence(str(caught.value))
    assert str(caught.value).startswith(str(path))


def test_a_missing_file(tmp_path: Path) -> None:
    refuse(tmp_path / "no.safetensors", "there is no such file")
    refuse(tmp_path, "this is a folder; give one of the files")


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x00" * 100, b"\x89PNG\r\n\x1a\n" + b"x" * 50])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    refuse(path, "not a whole safetensors file")


@pytest.mark.parametrize("keep", [4, 8, 50, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = save_latents(tmp_path / "x.safetensors", latents())
    path.write_bytes(path.read_bytes()[:keep])
    refuse(path, "not a whole safetensors file")


def test_safetensors_of_others(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"latents": torch.zeros(4, 4, 4)}, path, {"calotype": "latents/9"})
    refuse(path, "are latents/9, of a newer calotype than this one")
    save_file({"conv.weight": torch.zeros(4, 4)}, path, {"calotype": "latents/1"})
    refuse(path, "not latents with calotype's metadata")


def rewritten(path: Path, tensor: Tensor | None = None, **changes: str | None) -> Path:
    """The file with another tensor, or other metadata (None: left out)."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), **changes}
    if tensor is not None:
        tensors["latents"] = tensor
    save_file(tensors, path, {key: value for key, value in metadata.items() if value is not None})
    return path


@pytest.mark.parametrize("key", ["space", "latent_format", "vae_sha256", "padding"])
@pytest.mark.parametrize("value", [None, "", "{", "[]", "3", "null", '{"kind": "unknown"}', '{"height": 1}'])
def test_damaged_metadata(tmp_path: Path, key: str, value: str | None) -> None:
    path = rewritten(save_latents(tmp_path / "x.safetensors", latents()), **{key: value})
    if key == "vae_sha256" and value is not None:
        return  # any text may be the name of another VAE
    refuse(path, "raw or model" if key == "space" and value is not None else "metadata is damaged")


@pytest.mark.parametrize(
    "padding",
    [
        {"height": "30", "width": 47, "bottom": 2, "right": 1, "mode": "reflect"},
        {"height": -30, "width": 47, "bottom": 2, "right": 1, "mode": "reflect"},
    ],
)
def test_a_damaged_size(tmp_path: Path, padding: dict[str, Any]) -> None:
    refuse(rewritten(save_latents(tmp_path / "x.safetensors", latents()), padding=json.dumps(padding)), "is damaged")


@pytest.mark.parametrize(
    "changes", [{"mean": [0.0, 1.0]}, {"std": [1.0]}, {"std": [1.0, 0.0, 1.0]}, {"mean": ["a", "b", "c"]}]
)
def test_a_damaged_format(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = save_latents(tmp_path / "x.safetensors", latents(PER_CHANNEL))
    refuse(rewritten(path, latent_format=json.dumps({**PER_CHANNEL.to_dict(), **changes})), "is damaged")


def test_damaged_tensors(tmp_path: Path) -> None:
    path = save_latents(tmp_path / "x.safetensors", latents())
    refuse(rewritten(path, torch.full((4, 4, 6), float("nan"))), "NaN or infinity")
    refuse(rewritten(path, torch.zeros(5, 4, 6)), r"must be \[4, h, w\], not \[5, 4, 6\]")
    refuse(rewritten(path, torch.zeros(4, 4, 6, dtype=torch.int64)), "float")


def test_nothing_is_written_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        save_latents(tmp_path / "no" / "x.safetensors", latents())
    assert names(tmp_path) == []


def test_a_name_for_people_may_be_missing(tmp_path: Path) -> None:
    path = rewritten(save_latents(tmp_path / "x.safetensors", latents()), vae_name=None)
    assert load_latents(path).vae_name == ""


NUMBERS = ["true", "1e400", "9" * 400, "9" * 5000, "null", '"4"', "[4]", "{}", "NaN", "[" * 5000 + "]" * 5000]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("key", ["channels", "scaling_factor", "shift_factor", "height", "bottom"])
def test_what_is_no_number(tmp_path: Path, key: str, value: str) -> None:
    metadata = {
        "latent_format": {"kind": "scale_shift", "name": "x", "channels": 4, "scaling_factor": 1.0},
        "padding": {"height": 30, "width": 47, "bottom": 2, "right": 1, "mode": "reflect"},
    }
    about = "padding" if key in ("height", "bottom") else "latent_format"
    told = f'{json.dumps(metadata[about])[:-1]}, "{key}": {value}}}'
    refuse(rewritten(save_latents(tmp_path / "x.safetensors", latents()), **{about: told}), "its metadata is damaged")


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    format_ = {"kind": "scale_shift", "name": "x", "channels": 4, "scaling_factor": 10**15, "shift_factor": 0}
    path = rewritten(save_latents(tmp_path / "x.safetensors", latents()), latent_format=json.dumps(format_))
    read = load_latents(path)
    assert torch.equal(read.to_model().tensor, read.tensor * 1e15)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8, torch.bool])
def test_latents_of_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    path = save_latents(tmp_path / "x.safetensors", latents())
    refuse(rewritten(path, torch.ones(4, 4, 6).to(dtype)), "Latents must be floats")


def test_raw_latents_that_can_not_be_folded() -> None:
    with pytest.raises(LatentsError, match=r"even sides, and these are \[32, 4, 5\]"):
        latents(some_flux2(), tensor=torch.zeros(32, 4, 5))


def test_latents_without_extent() -> None:
    with pytest.raises(LatentsError, match=r"must be \[4, h, w\], not \[4, 0, 6\]"):
        latents(tensor=torch.zeros(4, 0, 6))


def test_a_header_longer_than_any(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((30_000_000).to_bytes(8, "little") + b"{")
        file.truncate(30_000_008)
    refuse(path, "a header of 30,000,000 bytes")
