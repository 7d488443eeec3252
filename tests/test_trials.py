"""Devices that compute wrong numbers: found out, kept, and not loaded on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import kl, one_sentence, tensors_of, tiny, write
from torch import Tensor

import calotype
from calotype.engine.run import Engine
from calotype.errors import NonFiniteError, UsageError
from calotype.families.kl.config import AutoencoderConfig
from calotype.steps import Direction
from calotype.vae import load_as_stored, trials
from calotype.vae.tensors import Coder
from calotype.vae.trials import LEAST, Trial, Way, compute, decibels, keep, kept, record_path, try_device
from calotype.weights.load import Loaded

F8 = AutoencoderConfig(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of their own, and small pictures."""
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(trials.TRUST, raising=False)
    monkeypatch.setattr(trials, "HEIGHT", 16)
    monkeypatch.setattr(trials, "WIDTH", 24)
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "x.safetensors", tensors_of(kl(F8)), {"calotype_config": json.dumps(F8.to_dict())})


@pytest.fixture
def loaded(path: Path) -> Loaded:
    return load_as_stored(path, "sd1")


def pads_wrong(coder: Coder, direction: Direction, x: Tensor, way: Way) -> Tensor:
    """A device on which one encode's convolution sees zeros in the lower half of a map, as MPS's F.pad made them."""
    if direction == "encode":
        x = x.clone()
        x[..., x.shape[2] // 2 :, :] = 0
    return compute(coder, direction, x, way)


def in_float16_only(coder: Coder, direction: Direction, x: Tensor, way: Way) -> Tensor:
    return (pads_wrong if coder.dtype == torch.float16 else compute)(coder, direction, x, way)


def tried(**wrong: str) -> list[Trial]:
    """Trials as of a device that is right but for `wrong`."""
    found = []
    for dtype, least in LEAST.items():
        for direction in ("encode", "decode"):
            trial = Trial(direction=direction, dtype=str(dtype).removeprefix("torch."), way="engine", db=90.0,
                          least=least, verdict="right")  # fmt: skip
            if wrong and all(getattr(trial, key) == value for key, value in wrong.items()):
                trial = replace(trial, db=6.6, verdict="wrong")
            found.append(trial)
    return found


def of(found: list[Trial], **wanted: str) -> Iterator[Trial]:
    return (one for one in found if all(getattr(one, key) == value for key, value in wanted.items()))


@pytest.mark.slow
def test_the_cpu_is_right_in_every_type(loaded: Loaded) -> None:
    parts: list[float] = []
    found = try_device(loaded, "cpu", progress=parts.append)
    assert len(found) == 2 * 3 * 3
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert {one.verdict for one in found} == {"right"}
    for one in found:
        assert one.db is not None
        assert one.db > one.least == LEAST[getattr(torch, one.dtype)]
    mean = {
        dtype: sum(one.db or 0 for one in of(found, dtype=dtype)) / 6 for dtype in ("float32", "float16", "bfloat16")
    }
    assert mean["float32"] > 80 > mean["float16"] > 10 + mean["bfloat16"]
    assert {weight.device.type for weight in loaded.module.parameters()} == {"cpu"}
    assert {weight.dtype for weight in loaded.module.parameters()} == {torch.float32}


@pytest.mark.slow
def test_a_device_that_is_silently_wrong_is_named(loaded: Loaded) -> None:
    found = try_device(loaded, "cpu", run=pads_wrong)
    assert {one.verdict for one in of(found, direction="encode")} == {"wrong"}
    assert {one.verdict for one in of(found, direction="decode")} == {"right"}
    assert all(one.db is not None and one.db < 12 for one in of(found, direction="encode"))


@pytest.mark.slow
def test_what_devices_say_themselves(loaded: Loaded) -> None:
    def run(coder: Coder, direction: Direction, x: Tensor, way: Way) -> Tensor:
        if way == "network":
            raise NotImplementedError("The operator 'aten::x' is not implemented for this device.\nMore lines.")
        made = compute(coder, direction, x, way)
        if coder.dtype == torch.float16:
            if way == "engine":
                raise NonFiniteError("float16 gave NaN or infinity.")
            made[0, 0, 0, 0] = math.nan
        return made

    found = try_device(loaded, "cpu", run=run)
    for one in found:
        expected = "failed" if one.way == "network" else "not finite" if one.dtype == "float16" else "right"
        assert one.verdict == expected
        assert (one.db is None) == (expected != "right")
        assert one.why == ("The operator 'aten::x' is not implemented for this device." if expected == "failed" else "")
    keep(CPU, loaded, "x", found)
    trials.require_right(CPU, loaded, {"encode": torch.float16, "decode": torch.float16})  # neither is silent


def test_decibels_by_hand() -> None:
    right = torch.tensor([1.0, -1.0, 1.0, -1.0]) * math.sqrt(3 / 4)  # a std of 1
    assert decibels(right + 0.1, right) == pytest.approx(20.0, abs=1e-5)
    assert decibels(right, right) == 200.0
    assert decibels(torch.zeros(4), torch.zeros(4)) == 200.0
    assert decibels(torch.ones(4), torch.zeros(4)) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_half_a_vae(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "LEAST", {torch.float32: 45.0})
    tensors = {key: value for key, value in tensors_of(tiny()).items() if key.startswith(part)}
    half = load_as_stored(write(tmp_path / "half.safetensors", tensors), "sd1")
    assert half.parts == {part}
    found = try_device(half, "cpu")
    assert {one.direction for one in found} == {part[:-1]}
    assert {one.verdict for one in found} == {"right"}


@pytest.mark.slow
def test_load_refuses_what_was_wrong(path: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(CPU, loaded, "x.safetensors", try_device(loaded, "cpu", run=in_float16_only))
    half = torch.float16
    with pytest.raises(UsageError) as caught:
        calotype.load(path, device="cpu", encode_dtype=half)
    said = str(caught.value)
    one_sentence(said)
    for part in ("The device cpu encodes wrong in float16", "`calotype doctor --device cpu`", "dB from the CPU's",
                 "where 35 dB are the least", "--device cpu", "trust_device=True"):  # fmt: skip
        assert part in said
    calotype.load(path, device="cpu")
    calotype.load(path, device="cpu", dtype=half)  # whose encodes are in float32
    assert calotype.load(path, device="cpu", encode_dtype=half, trust_device=True).encode_dtype == half
    monkeypatch.setenv(trials.TRUST, "0")
    with pytest.raises(UsageError):
        calotype.load(path, device="cpu", encode_dtype=half)
    monkeypatch.setenv(trials.TRUST, "1")
    calotype.load(path, device="cpu", encode_dtype=half)


def test_only_what_there_is_counts(tmp_path: Path, loaded: Loaded) -> None:
    """A decoder alone may be loaded where encodes are wrong."""
    keep(CPU, loaded, "builtin", tried(direction="encode"))
    for part, right in (("decoder", True), ("encoder", False)):
        tensors = {key: value for key, value in tensors_of(tiny()).items() if key.startswith(part)}
        half = write(tmp_path / f"{part}.safetensors", tensors)
        if right:
            calotype.load(half, device="cpu", latent_format="sd1")
        else:
            with pytest.raises(UsageError, match="encodes wrong in float32"):
                calotype.load(half, device="cpu", latent_format="sd1")


def test_other_families_are_held_to_the_built_in_vae(tmp_path: Path, path: Path, loaded: Loaded) -> None:
    small = write(tmp_path / "t.safetensors", tensors_of(tiny()))
    bad = tried(direction="encode")
    keep(CPU, loaded, "some.safetensors", bad)
    calotype.load(small, device="cpu", latent_format="sd1")  # nothing is known of its family
    keep(CPU, loaded, "builtin", bad)
    with pytest.raises(UsageError, match="encodes wrong in float32"):
        calotype.load(small, device="cpu", latent_format="sd1")
    own = load_as_stored(small, "sd1")
    keep(CPU, own, "t.safetensors", tried())  # it was tried itself
    calotype.load(small, device="cpu", latent_format="sd1")
    with pytest.raises(UsageError):
        calotype.load(path, device="cpu")
    keep(CPU, loaded, "builtin", tried())  # after it was mended
    calotype.load(path, device="cpu")
    assert len(kept(CPU)) == 2


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [(torch, "__version__", "99.0"), (calotype, "__version__", "99.0"), (trials, "device_name", lambda _: "another")],
)
def test_other_versions_and_devices_are_tried_anew(
    path: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, module: object, name: str, value: object
) -> None:
    keep(CPU, loaded, "x", tried(direction="encode"))
    with pytest.raises(UsageError):
        calotype.load(path, device="cpu")
    before = record_path(CPU)
    monkeypatch.setattr(module, name, value)
    assert record_path(CPU) != before
    calotype.load(path, device="cpu")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"families": 7}', b"\x00\xff"])
def test_a_damaged_record_is_none(path: Path, loaded: Loaded, content: bytes) -> None:
    keep(CPU, loaded, "x", tried(direction="encode"))
    record_path(CPU).write_bytes(content)
    assert kept(CPU) == {}
    calotype.load(path, device="cpu")


@pytest.mark.parametrize("trial", [7, {"db": 1}, {"direction": "encode"}, None])
def test_a_record_of_something_else_is_none(path: Path, loaded: Loaded, trial: object) -> None:
    keep(CPU, loaded, "x", tried(direction="encode"))
    record = json.loads(record_path(CPU).read_text())
    record["families"][F8.kind]["trials"] = [trial]
    record_path(CPU).write_text(json.dumps(record))
    assert kept(CPU) == {}
    calotype.load(path, device="cpu")


@pytest.mark.slow
def test_the_engine_is_what_counts(path: Path, loaded: Loaded) -> None:
    """A plain network in another memory format is not what `encode` computes with."""

    def run(coder: Coder, direction: Direction, x: Tensor, way: Way) -> Tensor:
        return (compute if way == "engine" else pads_wrong)(coder, direction, x, way)

    found = try_device(loaded, "cpu", run=run)
    assert {one.verdict for one in of(found, direction="encode", way="network, channels last")} == {"wrong"}
    keep(CPU, loaded, "x", found)
    calotype.load(path, device="cpu")


def test_what_computes_is_the_engine_and_the_network(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    coder = Coder(loaded)
    x = trials.picture(3, 8)
    assert x.shape == (1, 3, 16, 24)
    assert x.abs().max() <= 1
    assert x.std() > 0.2
    seen = []
    first = coder.module.forward if hasattr(coder.module, "forward") else None
    assert first is not None
    hook = coder.module.encoder.register_forward_hook(
        lambda module, given, made: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    for way in ("network", "network, channels last"):
        compute(coder, "encode", x, way)  # type: ignore[arg-type]
    hook.remove()
    assert seen == [False, True]
    monkeypatch.setattr(Engine, "__call__", lambda self, direction, x, **_: (_ for _ in ()).throw(RuntimeError("used")))
    with pytest.raises(RuntimeError, match="used"):
        compute(coder, "encode", x, "engine")
