"""The engine against the whole network in float64: every plan gives the numbers of the whole picture."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from enginekit import CONFIGS, Replay, candidates, exact, execute, inputs, plain
from support import SMALL, fill, kl, network
from torch import Tensor

import calotype
from calotype.engine import blocks, memory as memories, plan as plans
from calotype.engine.blocks import Job
from calotype.engine.executor import Statistics
from calotype.engine.memory import Memory
from calotype.engine.plan import Plan
from calotype.engine.run import Engine, EngineName, half_available, winograd_available
from calotype.errors import CalotypeWarning, MemoryLimitError, NonFiniteError, UsageError
from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import KNOWN
from calotype.steps import Conv, Direction, Norm
from calotype.vae import VAE
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

CPU = torch.device("cpu")
winograd_only = pytest.mark.skipif(bool(winograd_available()), reason="the CPU kernels can't be used here")
KERNELS = ["reference", pytest.param("winograd", marks=winograd_only)]

# Parts of the result's standard deviation.
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small convolutions gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def some(config: Any, direction: Direction, height: int, width: int, kernels: Any, n: int) -> list[Plan]:
    """Of a few plans the smallest, the largest, some between, and one that spills if there is any."""
    found = candidates(config, direction, height, width, kernels=kernels, threads=1, few=8)
    found = tuple(sorted(found, key=lambda one: one.peak))
    chosen = [found[round(i * (len(found) - 1) / (n - 1))] for i in range(n)]
    if not any(one.spill for one in chosen):
        chosen[1] = next((one for one in found if one.spill), chosen[1])
    return chosen


def given(name: str, direction: Direction, height: int, width: int, kind: str = "noise") -> Tensor:
    """Latents of that size, or pixels of a picture of that many."""
    config = CONFIGS[name]
    if direction == "decode":
        return inputs(kind, config.z_channels, height, width)
    return inputs(kind, config.picture_channels, height * config.factor, width * config.factor).clamp(-1, 1)


def error(result: Tensor, expected: Tensor) -> float:
    """The largest, as part of the standard deviation."""
    assert result.shape == expected.shape
    return ((result.double() - expected).abs().max() / expected.std(correction=0)).item()


# Numbers


@pytest.mark.slow
@pytest.mark.usefixtures("spill_everything")
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_plan_gives_the_whole_pictures_numbers(name: str, kernels: Any, direction: Direction) -> None:
    module = network(CONFIGS[name])
    for height, width in ((1, 1), (6, 3)) if name == "narrow" else ((1, 1), (13, 5)):
        x = given(name, direction, height, width)
        expected = exact(module, direction, x)
        spilled = 0
        for one in some(CONFIGS[name], direction, height, width, kernels, 3):
            assert error(execute(module, one, x), expected) <= TOLERANCE
            spilled += one.spill > 0
        assert spilled or name in ("folded", "tiny") or height == 1


@pytest.mark.usefixtures("spill_everything")
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("size", [(8, 8), (2, 60), (60, 2), (33, 1)])
@pytest.mark.parametrize("name", ["small", "tiny-pool"])
def test_every_size(name: str, size: tuple[int, int], kernels: Any, direction: Direction) -> None:
    module = network(CONFIGS[name])
    x = given(name, direction, *size)
    expected = exact(module, direction, x)
    for one in some(CONFIGS[name], direction, *size, kernels, 2):
        assert error(execute(module, one, x), expected) <= TOLERANCE


@pytest.mark.usefixtures("spill_everything")
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["zero", "constant", "gradient"])
@pytest.mark.parametrize("name", ["small", "folded", "tiny-pool"])
def test_flat_inputs(name: str, kind: str, kernels: Any, direction: Direction) -> None:
    module = network(CONFIGS[name])
    x = given(name, direction, 9, 6, kind)
    expected = exact(module, direction, x)
    for one in some(CONFIGS[name], direction, 9, 6, kernels, 3):
        assert error(execute(module, one, x), expected) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.usefixtures("spill_everything")
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_plan_size_and_input(name: str, kernels: Any, direction: Direction) -> None:
    module = network(CONFIGS[name])
    for height, width, kind in ((8, 8, "constant"), (2, 60, "noise"), (60, 2, "noise")):
        x = given(name, direction, height, width, kind)
        expected = exact(module, direction, x)
        for one in some(CONFIGS[name], direction, height, width, kernels, 3):
            assert error(execute(module, one, x), expected) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.usefixtures("spill_everything")
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", ["small", "folded", "tiny-pool"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_no_worse_than_the_plain_network(name: str, direction: Direction, dtype: torch.dtype) -> None:
    """With statistics in float32 and merged in float64, the engine is as near to float64 as torch's own layers."""
    module = network(CONFIGS[name])
    narrow = fill(network(CONFIGS[name]), 0, 0.7 if name.startswith(("tiny", "taehv")) else 1.0).to(dtype)
    x = given(name, direction, 9, 6)
    expected = exact(module, direction, x)

    def rms(result: Tensor) -> float:
        return ((result.double() - expected).square().mean().sqrt() / expected.std()).item()

    own = rms(plain(narrow, direction, x.to(dtype)))
    for one in candidates(CONFIGS[name], direction, 9, 6, kernels="reference", threads=1, itemsize=2, few=8):
        result = execute(narrow, one, x.to(dtype), dtype=dtype)
        assert result.dtype == dtype
        assert 0 < rms(result) <= 1.2 * own


@pytest.mark.skipif(not half_available(), reason="the processor does not multiply bfloat16")
@pytest.mark.usefixtures("spill_everything")
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", ["small", "attention-at-two-levels", "folded", "tiny-pool", "odd"])
def test_products_of_bfloat16(name: str, direction: Direction) -> None:
    module = network(CONFIGS[name])
    x = given(name, direction, 9, 6)
    expected = exact(module, direction, x)
    spread = expected.std()
    own = (plain(network(CONFIGS[name]).bfloat16(), direction, x.bfloat16()).double() - expected).square().mean().sqrt()
    for one in candidates(CONFIGS[name], direction, 9, 6, threads=1, half=True, few=12):
        rms = (execute(module, one, x).double() - expected).square().mean().sqrt()
        # maps and sums are float32, but a transform enlarges what rounding does to its numbers
        assert 1e-4 * spread < rms <= min(3.2 * own, 0.035 * spread)


def test_statistics_merge_without_loss() -> None:
    rng = np.random.default_rng(0)
    x = 1e4 + 0.01 * rng.standard_normal((8, 1000))
    merged: Statistics | None = None
    for part in np.split(x, [1, 300, 310, 999], axis=1):
        mean = part.mean(1)
        moments = part.shape[1], mean, ((part - mean[:, None]) ** 2).sum(1)
        if merged is None:
            merged = Statistics(*moments)
        else:
            merged.add(*moments)
    assert merged is not None
    assert merged.count == 1000
    assert np.allclose(merged.m2, 1000 * x.var(1), rtol=1e-6)
    weight, bias = torch.rand(8), torch.rand(8)
    scale, shift = merged.normalise(Norm(weights="", groups=2, eps=1e-6), weight, bias)
    expected = torch.nn.functional.group_norm(torch.from_numpy(x)[None], 2, weight.double(), bias.double(), 1e-6)[0]
    ours = x * scale[:, None].astype(np.float64) + shift[:, None]
    assert np.abs(ours - expected.numpy()).max() < 0.2  # scale and shift are float32, and x is 10000
    centred = (x - x.reshape(2, -1).mean(1).repeat(4)[:, None]) * scale[:, None] + bias.numpy()[:, None]
    assert np.abs(centred - expected.numpy()).max() < 1e-5


# What results do not depend on


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", ["small", "folded", "tiny-pool"])
@pytest.mark.parametrize("engine", ["reference", pytest.param("winograd", marks=winograd_only)])
def test_a_picture_does_not_depend_on_the_others(engine: EngineName, name: str, direction: Direction) -> None:
    run = Engine(network(CONFIGS[name]), CPU, torch.float32, engine)
    x = torch.stack([given(name, direction, 7, 9, kind) for kind in ("noise", "gradient", "zero")])
    together = run(direction, x)
    for i in range(3):
        assert torch.equal(run(direction, x[i : i + 1])[0], together[i])
    assert torch.equal(run(direction, x.flip(0)).flip(0), together)


@winograd_only
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", ["small", "attention-at-two-levels", "folded", "tiny", "tiny-pool"])
def test_the_number_of_threads_changes_nothing(name: str, direction: Direction) -> None:
    run = Engine(network(CONFIGS[name]), CPU, torch.float32, "winograd")
    x = given(name, direction, 20, 9)[None]
    one = run(direction, x)
    torch.set_num_threads(2)
    two = run(direction, x)
    assert torch.equal(one, two)
    assert torch.equal(run(direction, x), two)


@pytest.mark.usefixtures("spill_everything")
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", ["small", "attention-at-two-levels", "folded", "tiny-pool", "odd"])
def test_what_is_in_memory_before_does_not_matter(
    name: str, kernels: Any, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of it is NaN, so one that is read before it is written is seen."""
    made = Memory.__init__

    def dirty(memory: Memory, size: int, device: torch.device) -> None:
        made(memory, size, device)
        memory.bytes.fill_(byte)

    monkeypatch.setattr(Memory, "__init__", dirty)
    module = network(CONFIGS[name])
    x = given(name, direction, 9, 6)
    for one in some(CONFIGS[name], direction, 9, 6, kernels, 3):
        byte = 0
        clean = execute(module, one, x)
        byte = 0xFF
        assert torch.equal(execute(module, one, x), clean)


@pytest.mark.parametrize("engine", ["reference", pytest.param("winograd", marks=winograd_only)])
def test_it_is_the_same_every_time(engine: EngineName) -> None:
    run = Engine(kl(SMALL), CPU, torch.float32, engine)
    x = given("small", "decode", 9, 6)[None]
    first = run("decode", x)
    run("decode", 3 * x)
    assert torch.equal(run("decode", x), first)
    assert torch.equal(run("decode", x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)), first)


# As users have it


@pytest.fixture
def vae(tmp_path: Path) -> VAE:
    (path,) = save_weights(kl(SMALL), tmp_path / "x.safetensors", layout="ldm", format_=KNOWN["sd1"])
    return VAE(load_weights(path), name="test")


@pytest.mark.slow
@pytest.mark.usefixtures("spill_everything")
def test_any_memory_that_is_enough_gives_the_same_picture(vae: VAE) -> None:
    z = torch.randn(1, 4, 40, 24)
    whole = vae.decode(z)
    peaks = sorted({one.peak for one in candidates(SMALL, "decode", 40, 24, threads=1)})
    if vae.engine.name != "winograd":
        peaks = sorted({one.peak for one in candidates(SMALL, "decode", 40, 24, kernels="reference", threads=1)})
    assert len(peaks) > 5
    for memory in (*peaks[:3], peaks[len(peaks) // 2], f"{peaks[-1] / 1e6 + 1:.2f}MB"):
        result = vae.decode(z, memory=memory)
        assert (result - whole).abs().max() <= TOLERANCE * whole.std()
        assert torch.equal(torch.cat(list(vae.decode_rows(z[0], memory=memory)), 1), result[0])
    with pytest.raises(MemoryLimitError, match="can't be done in"):
        vae.decode(z, memory=peaks[0] - 1)
    x = whole.detach()
    tight = min(one.peak for one in [vae.engine.plan("encode", 80, 48, "1GB")])
    assert torch.equal(vae.encode(x, memory=tight).moments, vae.encode(x, memory=tight).moments)  # type: ignore[union-attr]


@pytest.mark.parametrize("memory", ["much", 0, "-1MB"])
def test_memory_that_is_no_amount(vae: VAE, memory: Any) -> None:
    with pytest.raises(UsageError, match="amount of memory"):
        vae.decode(torch.zeros(1, 4, 2, 2), memory=memory)


def test_rows_belong_to_the_caller(vae: VAE) -> None:
    z = torch.randn(4, 40, 9)
    rows = []
    for part in vae.decode_rows(z, memory=vae.engine.plan("decode", 80, 18).peak):
        assert part.dtype == torch.float32
        rows.append(part)
    result = torch.cat(rows, 1)
    assert torch.equal(result, vae.decode(z[None])[0])
    assert result.abs().max() <= 1


@pytest.mark.parametrize("enabled", [True, False])
def test_gradients_are_as_they_were(vae: VAE, enabled: bool) -> None:
    z = torch.randn(1, 4, 24, 3)
    with torch.set_grad_enabled(enabled):
        assert not vae.decode(z).requires_grad
        assert torch.is_grad_enabled() == enabled
        rows = vae.decode_rows(z.detach()[0])
        for part in rows:
            assert torch.is_grad_enabled() == enabled
            assert not part.requires_grad
        assert not vae.encode(pictures_like(vae)).mode().requires_grad
        assert torch.is_grad_enabled() == enabled
    rows = vae.decode_rows(z[0])
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert torch.is_grad_enabled()


def pictures_like(vae: VAE) -> Tensor:
    return torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)


def test_the_plain_network_can_be_trained_afterwards(vae: VAE) -> None:
    z = torch.randn(1, 4, 5, 4)
    before = vae.decode(z, clamp=False)
    vae.module.requires_grad_(True)
    optimizer = torch.optim.SGD(vae.module.parameters(), 1e-2)
    loss: Any = vae.module.decode(z).square().mean()
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in vae.module.parameters())
    optimizer.step()
    with torch.no_grad():
        after = vae.decode(z, clamp=False)
    assert (after - before).abs().max() > 1e-3
    assert error(after[0], exact(vae.module, "decode", z[0])) <= TOLERANCE
    assert not after.requires_grad


# Progress, and what is left of an interrupted run


def open_files() -> list[str]:
    """Temporary files of the engine that this process holds open."""
    found = []
    for entry in os.scandir("/proc/self/fd"):
        try:
            target = str(Path(entry.path).readlink())
        except OSError:
            continue
        if "calotype-" in target or "(deleted)" in target:
            found.append(target)
    return found


def mapped() -> int:
    """Bytes of memory that this process has mapped."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmSize"))


linux_only = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="/proc tells what is open")


@pytest.mark.usefixtures("spill_everything")
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", ["small", "attention-at-two-levels", "folded", "tiny-pool"])
def test_progress_goes_up_to_the_end(name: str, kernels: Any, direction: Direction) -> None:
    module = network(CONFIGS[name])
    for one in some(CONFIGS[name], direction, 9, 6, kernels, 3):
        told: list[float] = []
        execute(module, one, given(name, direction, 9, 6), progress=told.append)
        assert told == sorted(told)
        assert 0 < told[0] < 0.5
        assert told[-1] == pytest.approx(1.0)
        assert len(told) >= len(one.passes)


def test_progress_of_many_pictures_is_one(vae: VAE) -> None:
    told: list[float] = []
    vae.decode(torch.randn(3, 4, 5, 6), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    assert sum(0.32 < part < 0.35 for part in told) >= 1
    told.clear()
    vae.encode(torch.zeros(2, 3, 9, 6), progress=told.append)
    assert told[-1] == pytest.approx(1.0)


@pytest.mark.slow
@linux_only
@pytest.mark.usefixtures("spill_everything")
@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kernels", KERNELS)
def test_an_interrupted_run_leaves_nothing(kernels: Any, stop: type[BaseException]) -> None:
    module = kl(SMALL)
    spilled = [one for one in candidates(SMALL, "decode", 20, 12, kernels=kernels, threads=1) if one.spill]
    x = given("small", "decode", 20, 12)
    before = open_files()
    during: list[int] = []
    for at in (0.01, 0.3, 0.9):

        def progress(part: float, at: float = at) -> None:
            during.append(len(open_files()))
            if part >= at:
                raise stop

        with pytest.raises(stop):
            execute(module, spilled[-1], x, progress=progress)
        gc.collect()
        assert open_files() == before
    assert max(during) > len(before)
    assert error(execute(module, spilled[-1], x), exact(module, "decode", x)) <= TOLERANCE


@pytest.mark.slow
@linux_only
def test_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "IDLE", 0)  # nothing is kept for the next run
    vae = calotype.load(device="cpu")
    z = torch.randn(1, 16, 40, 40)
    vae.decode(z)
    gc.collect()
    held = mapped()
    half = (vae.engine.plan("decode", 320, 320).peak - plans.FIXED) // 2
    during: list[int] = []

    def progress(part: float) -> None:
        during.append(mapped())
        if part > 0.5:
            raise InterruptedError

    for _ in range(3):
        with pytest.raises(InterruptedError):
            vae.decode(z, progress=progress)
        assert max(during) > held + half
        assert mapped() < held + half
    rows = vae.decode_rows(z[0])
    next(rows)
    assert mapped() > held + half
    rows.close()  # type: ignore[attr-defined]
    assert mapped() < held + half


# Which engine runs


def test_engines_that_can_not_be_used() -> None:
    module: Any = network(CONFIGS["tiny"])
    gelu = network(replace(SMALL, activation="gelu"))
    assert Engine(gelu, CPU, torch.float32).name == "reference"
    with pytest.raises(UsageError, match="'winograd' can't be used: it computes no gelu"):
        Engine(gelu, CPU, torch.float32, "winograd")
    with pytest.raises(UsageError, match="There is no engine 'fast'"):
        Engine(module, CPU, torch.float32, "fast")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'winograd' can't be used"):
        Engine(module, CPU, torch.float16, "winograd")
    with pytest.raises(UsageError, match="it runs on the CPU, not on meta"):
        Engine(module, torch.device("meta"), torch.float32, "winograd")


def test_the_reference_is_taken_where_kernels_can_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from calotype.engine import run

    monkeypatch.setattr(run, "winograd_available", lambda: "Numba is not installed")
    assert Engine(kl(SMALL), CPU, torch.float32).name == "reference"
    assert not run.half_available()
    with pytest.raises(UsageError, match="Numba is not installed"):
        Engine(kl(SMALL), CPU, torch.float32, "winograd")


def test_bfloat16_is_computed_in_float32_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the kernels alike, so that it is not the slower choice; which is said once."""
    from calotype.engine import run

    monkeypatch.setattr(run, "half_available", lambda: False)
    monkeypatch.setattr(run, "_said", [])
    monkeypatch.setattr(logging.getLogger("calotype"), "propagate", True)
    narrow = network(CONFIGS["small"]).bfloat16()
    z = given("small", "decode", 9, 6)[None]
    engines = [Engine(narrow, CPU, torch.bfloat16) for _ in range(2)]
    assert [engine.name for engine in engines] == ["winograd", "winograd"]
    assert not engines[0].plan("decode", 18, 12).job.half
    wide = network(CONFIGS["small"]).bfloat16().float()  # the weights that are left
    assert torch.equal(engines[0]("decode", z), Engine(wide, CPU, torch.float32)("decode", z))
    assert [record.message for record in caplog.records if "bfloat16" in record.message] == [
        "On this processor bfloat16 is no faster than float32, in which it is computed."
    ]


def test_engines_agree(vae: VAE) -> None:
    z = torch.randn(1, 4, 9, 7)
    reference = VAE(vae.loaded, engine="reference")
    assert reference.engine.name == "reference"
    assert (reference.decode(z) - vae.decode(z)).abs().max() <= TOLERANCE * vae.decode(z).std()


def test_what_overflows_on_the_way_is_told_without_other_warnings(vae: VAE) -> None:
    """Infinity goes through norms and statistics, and NumPy must not warn about it."""
    for name in ("winograd", "reference") if not winograd_available() else ("reference",):
        broken = VAE(vae.loaded, name="test", engine=name)  # type: ignore[arg-type]
        module: Any = broken.module
        module.decoder.mid.block_1.conv1.bias.data[0] = 3e38
        module.decoder.mid.block_1.conv1.weight.data[0] *= 1e38
        with pytest.raises(NonFiniteError, match="float32 too"):
            broken.decode(torch.randn(1, 4, 5, 5))
        with pytest.raises(NonFiniteError, match="float32 too"):
            list(broken.decode_rows(torch.randn(4, 5, 5)))


def test_rows_in_float16_that_overflow_say_what_to_do(tmp_path: Path) -> None:
    config = AutoencoderConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4)
    module = kl(config)
    torch.nn.init.constant_(module.decoder.mid.block_1.conv2.bias, 6e4)
    torch.nn.init.constant_(module.decoder.mid.block_2.conv2.bias, 6e4)
    (path,) = save_weights(module, tmp_path / "x.safetensors", layout="ldm", format_=KNOWN["sd1"])
    vae = VAE(load_weights(path), name="test", dtype=torch.float16)
    z = torch.randn(1, 4, 5, 5)
    with pytest.raises(NonFiniteError, match=r"in float16; use float32\.$"):
        list(vae.decode_rows(z[0]))
    with pytest.warns(CalotypeWarning, match="in float16; computing in float32"):
        result = vae.decode(z)
    # and then rows are float32 too
    assert torch.equal(torch.cat(list(vae.decode_rows(z[0])), 1), result[0])


def test_rows_and_pictures_of_the_built_in_network_agree() -> None:
    vae = calotype.load(device="cpu")
    z = torch.randn(16, 9, 5)
    assert torch.equal(torch.cat(list(vae.decode_rows(z)), 1), vae.decode(z[None])[0])


@winograd_only
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_where_memory_is_scarce_transformed_weights_are_few(
    direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, config = network(CONFIGS["narrow"]), CONFIGS["narrow"]
    x = given("narrow", direction, 13, 5)
    size = 13 * config.factor, 5 * config.factor
    program = module.program(direction)
    usual = min(plans._candidates(Job(*size), program), key=lambda one: one.peak)
    monkeypatch.setattr(blocks, "LEAN", 1)
    lean = min(plans._candidates(Job(*size, lean=True), program), key=lambda one: one.peak)
    kernels = [step for step in program.steps if isinstance(step, Conv) and step.kernel == 3]
    sizes = [(lean.job.weight_bytes(step), usual.job.weight_bytes(step)) for step in kernels]
    assert all(few <= many for few, many in sizes)
    assert any(2 * few < many for few, many in sizes)
    assert lean.peak < usual.peak
    Replay(lean).run()
    assert error(execute(module, lean, x), exact(module, direction, x)) <= TOLERANCE
    # taken by itself where nothing else fits
    made = plans.plan(program, *size, memory=lean.peak)
    assert made.job.lean
    assert made.peak <= lean.peak
