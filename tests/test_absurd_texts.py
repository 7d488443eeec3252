"""Damaged and absurd texts, wherever they are read: one sentence, which names what can't be."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import SMALL, diffusers_tensors, kl, one_sentence, tensors_of, write

import calotype
from calotype.draw.captions import read_captions
from calotype.draw.kinds import detect_folder
from calotype.draw.recipe import load_drawing_recipe
from calotype.errors import CalotypeError, StorageError, UsageError, WeightsError
from calotype.evaluate.setup import read_boxes
from calotype.evaluate.store import Store
from calotype.families import config_from_dict
from calotype.families.folded.config import FoldedConfig
from calotype.families.kl.config import AutoencoderConfig
from calotype.families.tiny.config import TinyConfig
from calotype.latents import KNOWN, latent_format_from_dict
from calotype.locks import lock
from calotype.texts import shown
from calotype.train import checkpoint
from calotype.train.configs import ConvConfig, DenseConfig
from calotype.train.recipe import load_recipe
from calotype.weights.shards import shards_of

DEEP = "[" * 100_000
LONG = "9" * 400
LONGER = "9" * 5000
NO_NUMBERS = [True, 0, -1, 1.5, "8", None, [8], 10**30, 10**5000, float("nan")]


def refused(kind: type[CalotypeError], read: Callable[..., object], *words: object, match: str | None = None) -> str:
    with pytest.raises(kind, match=match) as caught:
        read(*words)
    one_sentence(str(caught.value))
    return str(caught.value)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=shown)
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        *((AutoencoderConfig, name) for name in ("ch", "z_channels", "num_res_blocks", "norm_groups", "in_channels")),
        *((TinyConfig, name) for name in ("z_channels", "in_channels")),
        (FoldedConfig, "z_channels"),
        *((DenseConfig, name) for name in ("side", "z_channels")),
        *((ConvConfig, name) for name in ("ch", "num_blocks", "z_channels")),
    ],
)
def test_sizes_of_networks(cls: type[Any], name: str, value: object) -> None:
    assert f"{name} " in refused(UsageError, lambda: cls(**{name: value}))


@pytest.mark.parametrize(
    "fields",
    [
        {"ch_mult": 2},
        {"ch_mult": (1, True)},
        {"ch_mult": (1, -1)},
        {"ch_mult": (1, 1e300)},
        {"ch_mult": (1,) * 17},
        {"attn_levels": (True,)},
        {"attn_levels": 1},
        {"attn_levels": (1.0,)},
        {"quant_conv": 1},
        {"activation": ["silu"]},
        {"post_quant_conv": "no"},
        {"decoder_ch": True},
        {"ch": 2**16, "ch_mult": (1, 2)},
        {"in_channels": (3,)},
    ],
)
def test_other_fields_of_networks(fields: dict[str, Any]) -> None:
    refused(UsageError, lambda: AutoencoderConfig(**fields))


@pytest.mark.parametrize(
    "values",
    [
        None,
        3,
        [],
        {},
        {"kind": 3},
        {"kind": ["taesd"]},
        {"kind": "unet"},
        {"kind": "taesd", "pools": True},
        {"kind": "folded", "ch": [8]},
        {"kind": "folded", "ch": [8, True]},
        {"kind": "taesd", "pool": 1},
    ],
)
def test_configurations_of_networks(values: Any) -> None:
    refused(UsageError, config_from_dict, values)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": ["packed"]},
        {"name": 3},
        {"channels": True},
        {"channels": 10**30},
        {"scaling_factor": 10**400},
        {"scaling_factor": True},
        {"scaling_factor": float("nan")},
        {"shift": 1},
        {"scaling_factor": [1.0]},
    ],
)
def test_latent_formats(changes: dict[str, Any]) -> None:
    refused(UsageError, latent_format_from_dict, {**KNOWN["sd1"].to_dict(), **changes})


CONFIG = {"_class_name": "AutoencoderKL", "norm_num_groups": 4, "scaling_factor": 0.5, "block_out_channels": [8, 16]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "nested too deep"),
        (json.dumps(CONFIG)[:-1] + f', "sample_size": {LONG}}}', "sample_size is a whole number of 400 digits"),
        (json.dumps(CONFIG)[:-1] + f', "sample_size": {LONGER}}}', "sample_size is a whole number of 5000 digits"),
        (json.dumps({**CONFIG, "norm_num_groups": True}), "norm_num_groups"),
        (json.dumps({**CONFIG, "scaling_factor": 10**30}), "scaling_factor is a whole number of 31 digits"),
        (json.dumps({**CONFIG, "scaling_factor": float("inf")}), "scaling_factor must be a number, not inf"),
        (json.dumps({**CONFIG, "_class_name": ["AutoencoderKL"]}), "_class_name"),
        (json.dumps({**CONFIG, "_class_name": "a\nb"}), r"a 'a\\nb' and was not read|'a\\nb'|in the usual 32 groups"),
        (
            json.dumps(CONFIG)[:-1] + ', "scaling_factor": 0.25}',
            "'scaling_factor' stands in it twice, with 0.5 and with",
        ),
        ("\ufeff" + json.dumps(CONFIG), ""),
        (json.dumps(CONFIG).encode("utf-16"), "written in UTF-16, and UTF-8 is expected"),
    ],
)
def test_configurations_beside_weights(text: str | bytes, reason: str, tmp_path: Path) -> None:
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    write(weights, diffusers_tensors(kl(SMALL)))
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    if not reason:
        assert calotype.load(tmp_path, device="cpu").latent_format.to_dict()["scaling_factor"] == 0.5
        return
    message = refused(WeightsError, calotype.load, tmp_path, match=reason)
    assert str(tmp_path) in message


@pytest.mark.parametrize("key", ["calotype_config", "calotype_latent_format", "calotype_diffusers_config"])
@pytest.mark.parametrize("text", [DEEP, f'{{"a": {LONGER}}}', "[1]", '{"norm_groups": true, "kind": 1}', "\x00", ""])
def test_metadata_of_weights(key: str, text: str, tmp_path: Path) -> None:
    whole = {"calotype_config": json.dumps(SMALL.to_dict()), "calotype_latent_format": ""}
    path = tmp_path / "x.safetensors"
    save_file(tensors_of(kl(SMALL)), path, {**whole, key: text})
    if key == "calotype_latent_format" and not text:
        assert calotype.load(path, device="cpu").loaded.format is None
        return
    if key == "calotype_diffusers_config" and "norm_groups" in text:  # which is no key there
        calotype.load(path, device="cpu")
        return
    assert str(path) in refused(WeightsError, calotype.load, path)


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        "{}",
        "[]",
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": "../b"}}',
        '{"weight_map": {"a": "\\u0000"}}',
        f'{{"weight_map": {{"a": "{LONG}"}}}}',
    ],
)
def test_indices_of_shards(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    refused(WeightsError, shards_of, path, match="this is no index of shards, or a damaged one")


@pytest.mark.parametrize(
    "unet", [{"in_channels": [4]}, {"out_channels": 10**30}, {"in_channels": True}, [], {"a": DEEP}]
)
def test_configurations_of_pipelines(unet: Any, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (tmp_path / "unet/config.json").write_text(json.dumps(unet).replace(f'"{DEEP}"', DEEP))
    with pytest.raises(WeightsError, match=r"channels|unet/config\.json"):
        detect_folder(tmp_path)
    for name in ("3", '["a"]', '"a b"', "null"):
        (tmp_path / "model_index.json").write_text(f'{{"_class_name": {name}}}')
        with pytest.raises(WeightsError, match="names no pipeline"):
            detect_folder(tmp_path)


# --- recipes


@pytest.mark.parametrize(
    "setting",
    [
        "steps=true",
        "steps=1.5",
        "steps=0",
        "steps=-3",
        f"steps={10**30}",
        f"steps={LONGER}",
        "steps=nan",
        f"crop={10**30}",
        "crop=1.0",
        f"batch={2**40}",
        "zoom=1e300",
        "zoom=inf",
        "learning_rate=nan",
        "betas=[0.9, true]",
        "keep=[[1]]",
        f"steps={DEEP}",
        f"seed={2**63}",
        "network.ch=[96, 1e3]",
        f"network.ch=[96, {10**30}]",
        "network.z_channels=true",
        "optimiser=[1]",
        "name=[]",
        "flip=1",
        "a\nb=1",
        "a.b=1",
        f"sources.{LONGER}.repeat=2",
        "sources.0.path=3",
    ],
    ids=lambda text: text[:30],
)
def test_settings_of_recipes(setting: str) -> None:
    message = refused(UsageError, load_recipe, "builtin", [setting])
    assert len(message) < 2000


@pytest.mark.parametrize(
    "setting",
    [
        "steps=true",
        "steps=1.5",
        "steps=0",
        f"steps={10**30}",
        f"steps={LONGER}",
        f"batch={2**40}",
        "size=1000000",
        "muon_rate=inf",
        f"name={DEEP}",
        f"denoiser.num_heads={10**30}",
        "denoiser.channel_mult=[1, true]",
        "denoiser.channel_mult=[1000000]",
        "denoiser.num_res_blocks=1000000",
        "text.depth=1000000",
        f"text.width={2**40}",
        "text.sketch_side=100000",
        "text.vocab_size=1e6",
        "steps=2024-01-01",
        "a" + ".a" * 20_000 + "=1",
    ],
    ids=lambda text: text[:30],
)
def test_settings_of_drawing_recipes(setting: str) -> None:
    refused(UsageError, load_drawing_recipe, "emoji", [setting])


@pytest.mark.parametrize("read", [load_recipe, lambda path: load_drawing_recipe(str(path))])
@pytest.mark.parametrize(
    "text", [f"steps = {DEEP}", f"steps = {LONGER}", "name = 'é'", "steps = nan", "a" + ".a" * 30_000 + " = 1"]
)
def test_files_of_recipes(read: Callable[[Path], object], text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(text.encode("utf-16" if "é" in text else "utf-8"))
    assert refused(UsageError, read, path, match="not valid TOML").startswith(str(path))


# --- captions, boxes, stores, checkpoints, locks


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (DEEP, "nested too deep"),
        ('{"file": "a.png"}', "lacks name"),
        ('{"file": 3, "name": "a"}', "file must be a text"),
        ('{"file": "a.png", "name": "a", "keywords": "b"}', "keywords must be a list of texts, not 'b'"),
        ('{"file": "a.png", "name": "a", "synonyms": [true]}', "synonyms must be"),
        ('{"file": "", "name": "a"}', "file must be"),
        ('{"file": "a\\u0000", "name": "a"}', "file must be the name of a picture"),
        (f'{{"file": "{LONG}", "name": "a"}}', "file"),
        ('{"file": "a", "name": "\\ud800"}', "half a surrogate pair"),
        (f'{{"file": "a", "name": "b", "n": {LONG}}}', "400 digits"),
        ("[]", "it is a list"),
        ('{"file": "a", "name": "b"} {}', "extra data"),
    ],
)
def test_lines_of_captions(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "name": "a"}\n' + line)
    refused(UsageError, read_captions, tmp_path, match=f"line 2: .*{reason}")


@pytest.mark.parametrize(
    "text", [DEEP, f'{{"a": {{"b": [[0, 0, 1, {10**30}]]}}}}', '{"a\\nb": {"c\\nd": 3}}', "\ufeff[]"]
)
def test_boxes(text: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(text)
    refused(UsageError, read_boxes, tmp_path / "b.json")


ROW: dict[str, Any] = {
    "height": 8,
    "width": 8,
    "psnr": 30.0,
    "encode_seconds": 1.0,
    "decode_seconds": 1.0,
    "where": "cpu",
    "latents": {"count": 4, "mean": [0.0], "m2": [1.0]},
}


@pytest.mark.parametrize(
    "row",
    [
        None,
        3,
        DEEP,
        "{}",
        "[1]",
        json.dumps({**ROW, "height": True}),
        json.dumps({**ROW, "psnr": "a"}),
        json.dumps({**ROW, "latents": []}),
        json.dumps({**ROW, "latents": {"count": 4, "mean": [0.0], "m2": [-1.0]}}),
        json.dumps({**ROW, "latents": {"count": 4, "mean": [0.0, 1.0], "m2": [1.0]}}),
        json.dumps({"height": 8, "width": 8}),
        json.dumps({**ROW, "subsets": {"a": [3]}}),
        json.dumps({**ROW, "where": 3}),
        json.dumps({**ROW, "width": 10**30}),
    ],
    ids=lambda row: str(row)[:40],
)
def test_rows_of_stores(row: Any, tmp_path: Path) -> None:
    Store(tmp_path, {"a": 1}).close()
    with closing(sqlite3.connect(tmp_path / "measured.sqlite")) as file, file:
        file.execute("CREATE TABLE loose AS SELECT * FROM rows")  # as another program may make it
        file.execute("DROP TABLE rows")
        file.execute("ALTER TABLE loose RENAME TO rows")
        file.execute("INSERT INTO rows VALUES ('x', 'p', ?)", (row,))
    with closing(Store(tmp_path, {"a": 1})) as store:
        refused(StorageError, store.measured, "x", match=r"what was measured is damaged there")
    with closing(sqlite3.connect(tmp_path / "measured.sqlite")) as file, file:
        file.execute("DELETE FROM rows")
        file.execute("INSERT INTO rows VALUES ('x', 'p', ?)", (json.dumps({**ROW, "psnr": float("inf")}),))
        file.execute("INSERT INTO features VALUES ('x', 'p', 'vgg', ?)", (b"abc",))
    with closing(Store(tmp_path, {"a": 1})) as store:
        assert store.rows("x")["p"]["psnr"] == float("inf")
        refused(StorageError, store.features, "x", "vgg", match="damaged there")


def test_pages_of_stores(tmp_path: Path) -> None:
    with closing(Store(tmp_path, {"a": 1})) as store, store._files[store.path] as file:
        file.executemany("INSERT INTO rows VALUES ('x', ?, ?)", [(f"{i}", json.dumps(ROW)) for i in range(200)])
    path = tmp_path / "measured.sqlite"
    content = bytearray(path.read_bytes())
    content[2 * 4096 :] = b"\xa5" * (len(content) - 2 * 4096)
    path.write_bytes(content)

    def read() -> None:
        with closing(Store(tmp_path, {"a": 1})) as store:
            store.rows("x")

    refused(StorageError, read)


@pytest.mark.parametrize("settings", [3, "[1]", DEEP, "{"])
def test_settings_of_stores(settings: Any, tmp_path: Path) -> None:
    Store(tmp_path, {"a": 1}).close()
    with closing(sqlite3.connect(tmp_path / "measured.sqlite")) as file, file:
        file.execute("UPDATE settings SET value = ?", (settings,))
    refused(StorageError, Store, tmp_path, {"a": 1}, match="damaged there")


@pytest.mark.parametrize(
    "changes",
    [{"recipe": 3}, {"recipe": DEEP}, {"recipe": "[1]"}, {"step": True}, {"step": -1}, {"step": "1"}],
    ids=str,
)
def test_what_checkpoints_keep(changes: dict[str, Any], tmp_path: Path) -> None:
    recipe = load_recipe("builtin")
    state = {"recipe": json.dumps(recipe.to_dict()), "step": 1, "model": {}, "ema": {}, "optimisers": []}
    path = tmp_path / "step-00000001.pt"
    torch.save(state, path)
    assert checkpoint.load(path, recipe) == state
    torch.save({**state, **changes}, path)
    refused(UsageError, checkpoint.load, path, recipe, match="this checkpoint is damaged .*; delete it")


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), KeyError("shadow"), TypeError(), AttributeError()])
def test_checkpoints_that_do_not_fit(error: Exception) -> None:
    def restore() -> None:
        with checkpoint.restoring(Path("c.pt"), "give another --out"):
            raise error

    assert refused(UsageError, restore).startswith("c.pt: this checkpoint does not fit what is trained, or is damaged")


def test_figures_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "loss": NaN, "held_out_psnr": 20.0, "note": "a"}'
    path.write_text("\n".join([good, DEEP, f'{{"step": {LONGER}}}', '{"step": "1"}', "[]", '{"step": 9}', '{"st']))
    (kept,) = checkpoint.keep_lines(path, lambda line: line["step"] <= 3)
    assert (kept["step"], kept["held_out_psnr"], "note" in kept) == (1, 20.0, False)
    assert path.read_text() == f"{good}\n"


@pytest.mark.parametrize("pid", [True, -1, 0, 1.5, 10**30, LONGER])
def test_holders_of_locks(pid: Any, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    text = json.dumps({"name": "a", "since": "b", "host": "c", "start": "d", "pid": 1})
    path.write_text(text.replace('"pid": 1', f'"pid": {pid}'))
    with lock(path, "a test", "wait"):
        path.write_text(text.replace('"pid": 1', f'"pid": {pid}'))
        with pytest.raises(UsageError, match="by another process; wait for it"), lock(path, "a test", "wait"):
            pass
