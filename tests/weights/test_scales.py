"""Means, stds and factors of latents: in a config.json, in whose pipeline's folder it lies, and in a checkpoint."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import import_diffusers, kl, one_sentence, tensors_of, write
from torch import Tensor

import calotype
from calotype.errors import LatentFormatError, UsageError, WeightsError
from calotype.families.kl.config import AutoencoderConfig
from calotype.latent_files import load_latents
from calotype.latents import KNOWN, LatentFormat, PerChannel, ScaleShift, latent_format_from_dict
from calotype.weights.diffusers_config import MEANS, PIPELINES, SCALE, SCALE_SHIFT, SCALED_MEANS
from calotype.weights.load import load_weights, require_format
from calotype.weights.save import save_weights

F2 = {n: AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=n) for n in (4, 8, 16)}
STABLE = "diffusion_pytorch_model.safetensors"
PLAYGROUND = KNOWN["playground"]


def numbers(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(0.5 * c - 1 for c in range(channels)), tuple(1.5 + 0.25 * c for c in range(channels))


def means(channels: int, factor: float, name: str = "custom") -> PerChannel:
    mean, std = numbers(channels)
    return PerChannel(name=name, channels=channels, mean=mean, std=std, scaling_factor=factor)


def folder(path: Path, channels: int = 4, pipeline: str = "", index: str = "model_index.json", **fields: Any) -> Path:
    """A diffusers VAE in `path`/vae, with means, stds and a factor of 0.5 but for `fields`; `...` leaves one out."""
    mean, std = numbers(channels)
    values: dict[str, Any] = {"scaling_factor": 0.5, "latents_mean": list(mean), "latents_std": list(std)}
    vae = path / "vae"
    save_weights(kl(F2[channels]), vae, layout="diffusers", format_=KNOWN["sd1"] if channels == 4 else None)
    strip(vae / STABLE)
    values = json.loads((vae / "config.json").read_text()) | {"force_upcast": False} | values | fields
    (vae / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    if pipeline:
        (path / index).write_text(json.dumps({"_class_name": pipeline, "vae": ["diffusers", "AutoencoderKL"]}))
    return vae


def strip(path: Path) -> None:
    """Weights as others write them: without calotype's metadata."""
    write(path, load_file(path), {"format": "pt"})


# Which formula


@pytest.mark.parametrize(
    ("pipeline", "channels", "expected"),
    [
        ("StableDiffusionXLPipeline", 4, means(4, 0.5)),
        ("StableDiffusionXLImg2ImgPipeline", 4, means(4, 0.5)),
        ("StableDiffusionXLControlNetUnionPipeline", 4, means(4, 0.5)),
        ("StableDiffusionXLModularPipeline", 4, means(4, 0.5)),
        ("KolorsImg2ImgPipeline", 4, means(4, 0.5)),
        ("GlmImagePipeline", 16, means(16, 1.0)),
        # the pipeline's word comes before the number of channels
        ("GlmImagePipeline", 4, means(4, 1.0)),
        ("StableDiffusionXLPipeline", 16, means(16, 0.5)),
        ("GlmImagePipeline", 8, means(8, 1.0)),
        ("StableDiffusionXLPipeline", 8, means(8, 0.5)),
        # these read no means
        ("StableDiffusionPipeline", 4, ScaleShift(name="custom", channels=4, scaling_factor=0.5)),
        ("PixArtSigmaPipeline", 4, ScaleShift(name="custom", channels=4, scaling_factor=0.5)),
        ("StableDiffusion3Pipeline", 16, ScaleShift(name="custom", channels=16, scaling_factor=0.5)),
        # nobody's, or one that is not known
        ("", 4, means(4, 0.5)),
        ("", 16, means(16, 1.0)),
        ("MyPipeline", 4, means(4, 0.5)),
        ("MyPipeline", 16, means(16, 1.0)),
    ],
)
def test_the_formula_is_told_by_what_stands_beside(
    pipeline: str, channels: int, expected: LatentFormat, tmp_path: Path
) -> None:
    vae = folder(tmp_path, channels, pipeline)
    for given in (tmp_path, vae, vae / STABLE):
        loaded = load_weights(given)
        assert loaded.format == expected
        assert loaded.format_source.startswith("config.json, as ")
        assert (f"as {pipeline} reads it" in loaded.format_source) == (pipeline not in ("", "MyPipeline"))


@pytest.mark.parametrize("given", [".", STABLE, "./", f"../vae/{STABLE}"])
def test_a_relative_path_finds_the_pipeline_too(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(tmp_path, 4, "GlmImagePipeline"))
    assert load_weights(given).format == means(4, 1.0)


def test_a_modular_pipelines_index_counts(tmp_path: Path) -> None:
    folder(tmp_path, 8, "StableDiffusionXLModularPipeline", "modular_model_index.json")
    assert load_weights(tmp_path).format == means(8, 0.5)


def test_links_into_a_cache_are_not_followed_to_other_places(tmp_path: Path) -> None:
    vae = folder(tmp_path / "blobs", 4)
    snapshot = tmp_path / "snapshot"
    (snapshot / "vae").mkdir(parents=True)
    (snapshot / "model_index.json").write_text('{"_class_name": "GlmImagePipeline"}')
    for name in ("config.json", STABLE):
        (snapshot / "vae" / name).symlink_to(vae / name)
    for given in (snapshot, snapshot / "vae", snapshot / "vae" / STABLE):
        assert load_weights(given).format == means(4, 1.0)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"_class_name": null}', "\xff"])
def test_a_damaged_index_tells_nothing(content: str, tmp_path: Path) -> None:
    folder(tmp_path, 4)
    (tmp_path / "model_index.json").write_text(content)
    loaded = load_weights(tmp_path)
    assert loaded.format == means(4, 0.5)
    assert any("model_index.json names no pipeline" in note for note in loaded.notes)


@pytest.mark.parametrize("fields", [{"scaling_factor": 1.0}, {"scaling_factor": 1}])
@pytest.mark.parametrize("channels", [4, 8, 16])
def test_a_factor_of_one_is_no_question(fields: dict[str, Any], channels: int, tmp_path: Path) -> None:
    loaded = load_weights(folder(tmp_path, channels, **fields))
    assert (loaded.format, loaded.format_source) == (means(channels, 1.0), "config.json")


def test_a_factor_left_out_is_what_diffusers_takes(tmp_path: Path) -> None:
    vae = folder(tmp_path, 4, scaling_factor=...)
    assert import_diffusers().AutoencoderKL.load_config(vae).get("scaling_factor") is None
    assert load_weights(vae).format == means(4, 0.18215)
    assert load_weights(folder(tmp_path, 16, scaling_factor=...)).format == means(16, 1.0)
    # where no class is named, nothing has that default
    assert load_weights(folder(tmp_path, 4, scaling_factor=..., _class_name=...)).format == means(4, 1.0)


def test_where_nothing_tells_it_is_asked(tmp_path: Path) -> None:
    loaded = load_weights(folder(tmp_path, 8))
    assert loaded.format is None
    with pytest.raises(
        LatentFormatError, match=r"scaling_factor 0\.5, .*--latent-format means\|scaled-means\|"
    ) as caught:
        require_format(loaded)
    one_sentence(str(caught.value))
    for name, factor in ((MEANS, 1.0), (SCALED_MEANS, 0.5)):
        loaded = load_weights(tmp_path, latent_format_name=name)
        assert (loaded.format, loaded.format_source) == (means(8, factor), f"--latent-format {name}")


def test_means_with_a_shift_are_asked_for(tmp_path: Path) -> None:
    loaded = load_weights(folder(tmp_path, 4, shift_factor=0.25))
    assert loaded.format is None
    with pytest.raises(LatentFormatError, match="latents_mean and a shift_factor, and no known pipeline uses both"):
        require_format(loaded)
    loaded = load_weights(folder(tmp_path, 4, "StableDiffusionXLPipeline", shift_factor=0.25))
    assert loaded.format == means(4, 0.5)
    assert any("shift_factor of its config.json does not count" in note for note in loaded.notes)


def test_what_a_pipeline_leaves_aside_is_said(tmp_path: Path) -> None:
    def notes(pipeline: str, channels: int = 4, **fields: Any) -> str:
        return " ".join(load_weights(folder(tmp_path / pipeline, channels, pipeline, **fields)).notes)

    assert "scaling_factor of its config.json does not count: GlmImagePipeline" in notes("GlmImagePipeline", 16)
    assert "latents_mean and latents_std of its config.json do not count" in notes("StableDiffusionPipeline")
    assert notes("StableDiffusionXLPipeline") == ""


def test_a_shift_counts_where_a_pipeline_reads_it(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"latents_mean": None, "latents_std": None, "shift_factor": 0.25}
    for pipeline, shift in (("StableDiffusionPipeline", 0.0), ("StableDiffusion3Pipeline", 0.25), ("", 0.25)):
        loaded = load_weights(folder(tmp_path / pipeline, 4, pipeline, **plain))
        assert loaded.format == ScaleShift(name="custom", channels=4, scaling_factor=0.5, shift_factor=shift)


def test_the_numbers_of_playground_have_its_name(tmp_path: Path) -> None:
    assert isinstance(PLAYGROUND, PerChannel)
    fields = {"latents_mean": list(PLAYGROUND.mean), "latents_std": list(PLAYGROUND.std)}
    assert load_weights(folder(tmp_path, 4, **fields)).format == PLAYGROUND
    raw = torch.randn(1, 4, 2, 2, dtype=torch.float64)
    mean, std = (torch.tensor(n, dtype=torch.float64)[:, None, None] for n in (PLAYGROUND.mean, PLAYGROUND.std))
    # ComfyUI's process_in (comfy/latent_formats.py, SDXL_Playground_2_5)
    assert torch.allclose(PLAYGROUND.to_model(raw), (raw - mean) * 0.5 / std, rtol=1e-12)


def test_means_come_before_the_hash_of_known_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Playground's VAE may be SDXL's, with its latents normalised otherwise."""
    from calotype.weights import formats

    vae = folder(tmp_path, 4)
    known = {formats.file_sha256(vae / STABLE): "sdxl"}
    monkeypatch.setattr(formats, "KNOWN_FILES", known)
    assert load_weights(vae).format == means(4, 0.5)


# What can't be


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"scaling_factor": 0}, "scaling_factor must not be 0"),
        ({"scaling_factor": "0.5"}, "scaling_factor must be a number, not '0.5'"),
        ({"scaling_factor": True}, "scaling_factor must be a number, not True"),
        ({"scaling_factor": [0.5]}, r"scaling_factor must be a number, not \[0.5\]"),
        ({"scaling_factor": math.nan}, "scaling_factor must be a number, not nan"),
        ({"scaling_factor": math.inf}, "scaling_factor must be a number, not inf"),
        ({"shift_factor": "x"}, "shift_factor must be a number, not 'x'"),
        ({"shift_factor": math.nan}, "shift_factor must be a number"),
        ({"latents_std": None}, "latents_mean is there and latents_std is not"),
        ({"latents_std": ...}, "latents_mean is there and latents_std is not"),
        ({"latents_mean": None}, "latents_std is there and latents_mean is not"),
        ({"latents_mean": [0.0] * 3}, "latents_mean must be 4 numbers, one for each latent channel"),
        ({"latents_mean": [], "latents_std": []}, "latents_mean must be 4 numbers"),
        ({"latents_std": [1.0] * 16}, "latents_std must be 4 numbers"),
        ({"latents_mean": 0.5}, "latents_mean must be 4 numbers"),
        ({"latents_mean": [[0.0]] * 4}, "latents_mean must be 4 numbers"),
        ({"latents_std": [1.0, 1.0, 0.0, 1.0]}, "latents_std must be above 0"),
        ({"latents_std": [1.0, 1.0, -1.0, 1.0]}, "latents_std must be above 0"),
        ({"latents_std": [1.0, 1.0, math.nan, 1.0]}, "latents_std must be 4 numbers"),
        ({"latents_std": [1.0, 1.0, True, 1.0]}, "latents_std must be 4 numbers"),
    ],
)
@pytest.mark.parametrize("pipeline", ["", "StableDiffusionXLPipeline"])
def test_numbers_that_can_not_be_are_one_sentence(
    fields: dict[str, Any], pattern: str, pipeline: str, tmp_path: Path
) -> None:
    vae = folder(tmp_path, 4, pipeline, **fields)
    with pytest.raises(WeightsError, match=rf"config\.json: .*{pattern}.*--latent-format") as caught:
        load_weights(vae)
    one_sentence(str(caught.value))
    assert load_weights(vae, latent_format_name="sdxl").format == KNOWN["sdxl"]  # the way out that it names


def test_a_factor_of_null(tmp_path: Path) -> None:
    assert load_weights(folder(tmp_path, 16, "GlmImagePipeline", scaling_factor=None)).format == means(16, 1.0)
    for pipeline in ("", "StableDiffusionXLPipeline"):
        plain: dict[str, Any] = {"latents_mean": None, "latents_std": None}
        for fields in ({}, plain) if pipeline else (plain,):
            loaded = load_weights(folder(tmp_path / "null", 4, pipeline, scaling_factor=None, **fields))
            assert loaded.format is None
            with pytest.raises(LatentFormatError, match="scaling_factor null"):
                require_format(loaded)


@pytest.mark.parametrize("name", [MEANS, SCALED_MEANS])
def test_ways_to_read_a_config_need_one(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", tensors_of(kl(F2[4])))
    with pytest.raises(UsageError, match=f"'{name}' reads a config.json, and there is none") as caught:
        load_weights(path, latent_format_name=name)
    one_sentence(str(caught.value))
    vae = folder(tmp_path, 4, latents_mean=None, latents_std=None)
    with pytest.raises(WeightsError, match="it has no latents_mean and latents_std"):
        load_weights(vae, latent_format_name=name)


# diffusers' own code


def test_the_table_of_pipelines_is_that_of_diffusers() -> None:
    """Of every pipeline with an AutoencoderKL: whether its code reads means and shifts as the table says."""
    pipelines = importlib.import_module("diffusers.pipelines")
    checked: dict[str, set[str]] = {way: set() for way in (MEANS, SCALED_MEANS, SCALE, SCALE_SHIFT)}
    root = Path(inspect.getfile(pipelines)).parent
    for path in root.rglob("pipeline_*.py"):
        text = path.read_text(encoding="utf-8")
        if "deprecated" in path.parts or not re.search(r"\bvae: AutoencoderKL\b(?!\w)", text):
            continue
        for name in re.findall(r"^class (\w+Pipeline)\(", text, re.MULTILINE):
            way = next((way for pattern, way in PIPELINES if re.search(pattern, name)), None)
            if way is None:
                continue
            reads = {key: f"vae.config.{key}" in text for key in ("scaling_factor", "shift_factor", "latents_mean")}
            if not any(reads.values()):
                continue
            checked[way].add(name)
            # some of SDXL's forget the means, which the model was trained with all the same
            expected = {
                MEANS: not reads["scaling_factor"] and reads["latents_mean"],
                SCALED_MEANS: reads["scaling_factor"] and not reads["shift_factor"],
                SCALE: reads["scaling_factor"] and not reads["shift_factor"] and not reads["latents_mean"],
                SCALE_SHIFT: reads["scaling_factor"] and reads["shift_factor"] and not reads["latents_mean"],
            }[way]
            assert expected, (name, way, reads)
    assert {"GlmImagePipeline"} == checked[MEANS]
    assert {"StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline", "KolorsPipeline"} <= checked[SCALED_MEANS]
    assert {"StableDiffusionPipeline", "PixArtAlphaPipeline", "HunyuanDiTPipeline"} <= checked[SCALE]
    assert {"StableDiffusion3Pipeline", "FluxPipeline", "ZImagePipeline"} <= checked[SCALE_SHIFT]


def lines_of(name: str, first: str, last: str) -> str:
    """Lines of a pipeline's module, from the one that begins with `first` to the one that begins with `last`."""
    text = Path(inspect.getfile(importlib.import_module(name))).read_text(encoding="utf-8").splitlines()
    end = max(i for i, line in enumerate(text) if line.strip().startswith(last))
    start = max(i for i, line in enumerate(text[:end]) if line.strip().startswith(first))
    indent = len(text[start]) - len(text[start].lstrip())
    return "\n".join(line[indent:] for line in text[start : end + 1])


def test_glm_images_own_lines_give_our_raw_latents(tmp_path: Path) -> None:
    """What its pipeline does between the last step and the VAE, run from its own source."""
    import_diffusers()
    vae = calotype.load(folder(tmp_path, 16, "GlmImagePipeline"), device="cpu")
    code = lines_of(
        "diffusers.pipelines.glm_image.pipeline_glm_image", "latents_mean = (", "latents = latents * latents_std"
    )

    class Owner:
        pass

    owner: Any = Owner()
    owner.vae = import_diffusers().AutoencoderKL.from_pretrained(tmp_path / "vae")
    latents = torch.randn(2, 16, 3, 5)
    scope: dict[str, Any] = {"torch": torch, "self": owner, "latents": latents}
    exec(code, scope)
    assert torch.allclose(vae.latent_format.to_raw(latents), scope["latents"], atol=1e-6)


# Kept


@pytest.mark.parametrize(
    ("pipeline", "channels"),
    [("StableDiffusionXLPipeline", 4), ("GlmImagePipeline", 16), ("GlmImagePipeline", 8), ("GlmImagePipeline", 4),
     ("StableDiffusionPipeline", 4), ("", 4), ("", 16), ("", 8)],
)  # fmt: skip
@pytest.mark.parametrize("fields", [{}, {"shift_factor": 0.5}])
def test_conversions_keep_what_was_said_and_meant(
    pipeline: str, channels: int, fields: dict[str, Any], tmp_path: Path
) -> None:
    vae = folder(tmp_path / "own", channels, pipeline, **fields)
    first = load_weights(vae)
    aside = tmp_path / "aside"
    aside.mkdir()
    (one,) = save_weights(first.module, aside / "x.safetensors", layout="ldm", format_=first.format, kept=first.kept)
    second = load_weights(one)
    save_weights(second.module, tmp_path / "again", layout="diffusers", format_=second.format, kept=second.kept)
    third = load_weights(tmp_path / "again")
    assert first.format == second.format == third.format
    said, written = (json.loads((path / "config.json").read_text()) for path in (vae, tmp_path / "again"))
    for key in ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"):
        assert written.get(key) == said.get(key)
    if first.format is None:  # the question stays, and may be answered after the conversion
        assert second.question
        assert load_weights(one, latent_format_name=SCALED_MEANS).format == means(channels, 0.5)


def test_another_format_than_the_configs_is_written_as_asked(tmp_path: Path) -> None:
    first = load_weights(folder(tmp_path / "own"), latent_format_name="sdxl")
    save_weights(first.module, tmp_path / "again", layout="diffusers", format_=first.format, kept=first.kept)
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["scaling_factor"] == 0.13025
    assert "latents_mean" not in written
    assert load_weights(tmp_path / "again").format == KNOWN["sdxl"]


def test_files_of_before_the_factor_still_load(tmp_path: Path) -> None:
    mean, std = numbers(4)
    old = {"kind": "per_channel", "name": "mine", "channels": 4, "mean": list(mean), "std": list(std)}
    assert latent_format_from_dict(old) == means(4, 1.0, "mine")
    config = {key: value for key, value in F2[4].to_dict().items() if key not in ("activation", "post_quant_conv")}
    metadata = {"calotype_latent_format": json.dumps(old), "calotype_config": json.dumps(config)}
    loaded = load_weights(write(tmp_path / "x.safetensors", tensors_of(kl(F2[4])), metadata))
    assert (loaded.format, loaded.module.config) == (means(4, 1.0, "mine"), F2[4])
    # a diffusers folder of then, with its config.json
    vae = folder(tmp_path, 4, scaling_factor=1.0, latent_format="mine")
    assert load_weights(vae).format == means(4, 1.0, "mine")
    # latents of then
    metadata = {"calotype": "latents/1", "space": "model", "latent_format": json.dumps(old), "vae_sha256": "0" * 64}
    metadata["padding"] = json.dumps({"height": 4, "width": 4, "bottom": 0, "right": 0, "mode": "none"})
    write(tmp_path / "old.safetensors", {"latents": torch.zeros(4, 2, 2)}, metadata)
    assert load_latents(tmp_path / "old.safetensors").to_raw().tensor[:, 0, 0].tolist() == list(mean)


# Playground's single file


def checkpoint(path: Path, beside: dict[str, Tensor], prefix: str = "first_stage_model.", channels: int = 4) -> Path:
    own = {f"{prefix}{key}": value for key, value in tensors_of(kl(F2[channels])).items()}
    sdxl = {"conditioner.embedders.1.model.text_projection": torch.zeros(2)} if prefix else {}
    return write(path, {**own, **sdxl, **beside})


def edm(mean: Any, std: Any, *shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "edm_mean": torch.tensor(mean, dtype=dtype).view(*shape),
        "edm_std": torch.tensor(std, dtype=dtype).view(*shape),
    }


@pytest.mark.parametrize("shape", [(4,), (1, 4, 1, 1), (4, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", ""])
def test_playgrounds_single_file_is_told(
    shape: tuple[int, ...], dtype: torch.dtype, prefix: str, tmp_path: Path
) -> None:
    assert isinstance(PLAYGROUND, PerChannel)
    beside = edm(PLAYGROUND.mean, PLAYGROUND.std, *shape, dtype=dtype)
    loaded = load_weights(checkpoint(tmp_path / "x.safetensors", beside, prefix))
    assert (loaded.format, loaded.format_source) == (PLAYGROUND, "edm_mean and edm_std in the checkpoint")


def test_they_are_found_in_a_nest(tmp_path: Path) -> None:
    assert isinstance(PLAYGROUND, PerChannel)
    flat = load_file(checkpoint(tmp_path / "x.safetensors", edm(PLAYGROUND.mean, PLAYGROUND.std, 4)))
    torch.save({"model": flat, "step": 7}, tmp_path / "x.pt")
    assert load_weights(tmp_path / "x.pt").format == PLAYGROUND


def test_its_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    mean, std = numbers(4)
    loaded = load_weights(checkpoint(tmp_path / "x.safetensors", edm(mean, std, 4)))
    assert loaded.format == means(4, 0.5, "playground")
    (one,) = save_weights(loaded.module, tmp_path / "y.safetensors", layout="ldm", format_=loaded.format)
    assert load_weights(one).format == loaded.format


@pytest.mark.parametrize(
    "beside",
    [
        {"edm_vpred.sigma_max": torch.tensor(120.0)},
        {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)},
        {"v_pred": torch.tensor([])},
        {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])},
    ],
    ids=str,
)
def test_marks_of_the_denoiser_do_not_disturb(beside: dict[str, Tensor], tmp_path: Path) -> None:
    assert load_weights(checkpoint(tmp_path / "x.safetensors", beside)).format == KNOWN["sdxl"]
    assert load_weights(checkpoint(tmp_path / "y.safetensors", beside, "")).format is None


@pytest.mark.parametrize("name", ["edm_mean", "edm_std"])
def test_one_of_the_two_is_asked_about(name: str, tmp_path: Path) -> None:
    mean, std = numbers(4)
    beside = {name: edm(mean, std, 4)[name]}
    loaded = load_weights(checkpoint(tmp_path / "x.safetensors", beside))
    assert loaded.format is None
    with pytest.raises(LatentFormatError, match=f"it holds {name} and not edm_"):
        require_format(loaded)


@pytest.mark.parametrize(
    "beside",
    [
        edm([0.0] * 3, [1.0] * 3, 3),
        edm([0.0] * 4, [1.0, 0.0, 1.0, 1.0], 4),
        edm([0.0, math.nan, 0.0, 0.0], [1.0] * 4, 4),
        edm([0.0] * 16, [1.0] * 16, 16),
    ],
    ids=["three", "zero", "nan", "sixteen"],
)
def test_damaged_numbers_are_said(beside: dict[str, Tensor], tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "x.safetensors", beside)
    with pytest.raises(WeightsError, match=r"x\.safetensors: .*edm_mean and edm_std") as caught:
        load_weights(path)
    one_sentence(str(caught.value))
    assert load_weights(path, latent_format_name="playground").format == PLAYGROUND
