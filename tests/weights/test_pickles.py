"""Torch files are read bit by bit as torch reads them, and nothing that they name is imported or called."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import io
import os
import pathlib
import pickle
import sys
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import NARROW, kl, one_sentence, same_tensors, tensors_of
from torch import Tensor, nn

from calotype.errors import WeightsError
from calotype.weights.container import TorchFile, open_container
from calotype.weights.load import load_weights
from calotype.weights.save import save_weights

MODULE = kl(NARROW, 3)
LDM = tensors_of(MODULE)
FORMATS = ("zip", "legacy", "plain")
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip


def store(path: Path, content: Any, how: str = "zip", **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "plain":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that storages are deprecated
            path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip", **more)
    return path


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().clone().reshape(-1).view(torch.uint8).numpy().tobytes()


def views() -> dict[str, Tensor]:
    """Tensors that do not lie in their storage from its beginning to its end in the usual order."""
    base = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32)
    grid = base.reshape(2, 3, 4, 5)
    return {
        "whole": grid,
        "transposed": grid.transpose(0, 3),
        "channels last": grid.clone().contiguous(memory_format=torch.channels_last),
        "a slice": grid[1, :, 1:3],
        "every other": base[7::2],
        "expanded": base[5:6].expand(3, 4),
        "one": base[11],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "beyond the first": base[60:],
        "parameter": nn.Parameter(base[10:20]),
        "buffer": nn.Buffer(base[3:5]),
        "negative": torch._neg_view(base[:4]),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj(),
    }


@pytest.mark.parametrize("how", FORMATS)
def test_every_type_is_read_as_torch_reads_it(tmp_path: Path, how: str) -> None:
    tensors = {str(d): torch.randint(0, 256, (16 * 7,), dtype=torch.uint8).view(d) for d in DTYPES if d != torch.bool}
    tensors["bool"] = torch.rand(9) > 0.5
    container = TorchFile(store(tmp_path / "x.pt", tensors, how))
    assert container.shapes == {key: tuple(value.shape) for key, value in tensors.items()}
    for key, value in tensors.items():
        assert container.read(key).dtype == value.dtype
        assert bits(container.read(key)) == bits(value), key


@pytest.mark.parametrize("how", FORMATS)
def test_views_have_their_values(tmp_path: Path, how: str) -> None:
    # a plain pickle loses without a word that numbers are to be taken negative
    tensors = {k: v for k, v in views().items() if how != "plain" or not v.is_neg()}
    path = store(tmp_path / "x.pt", tensors, how)
    container = TorchFile(path)
    theirs = torch.load(path, weights_only=False) if how != "plain" else tensors
    for key, value in theirs.items():
        read = container.read(key)
        assert torch.equal(read, value), key
        assert read.shape == value.shape
        assert not read.requires_grad


def test_tensors_of_one_storage_are_read_apart(tmp_path: Path) -> None:
    """They could not be written to one safetensors file otherwise, nor trained."""
    flat = torch.cat([t.flatten() for t in LDM.values()])
    parts = torch.split(flat, [t.numel() for t in LDM.values()])
    tied = {key: part.view(t.shape) for (key, t), part in zip(LDM.items(), parts, strict=True)}
    tied["decoder.norm_out.bias"] = tied["decoder.norm_out.weight"]
    loaded = load_weights(store(tmp_path / "x.pt", tied))
    state = loaded.module.state_dict()
    for key, value in tied.items():
        assert torch.equal(state[key], value)
    (path,) = save_weights(loaded.module, tmp_path / "y.safetensors", layout="ldm")
    assert load_weights(path).sha256 == loaded.sha256
    with torch.no_grad():
        loaded.module.decoder.norm_out.weight.add_(1)
    assert torch.equal(loaded.module.decoder.norm_out.bias, tied["decoder.norm_out.bias"])


def test_archives_are_mapped_and_not_read(tmp_path: Path) -> None:
    path = store(tmp_path / "x.pt", LDM)
    first = TorchFile(path).read("decoder.conv_in.weight")
    second = TorchFile(path).read("decoder.conv_in.weight")
    size = first.untyped_storage().nbytes()
    assert size == first.numel() * 4
    with torch.no_grad():
        first.zero_()  # in memory alone
    assert torch.equal(second, LDM["decoder.conv_in.weight"])
    assert torch.equal(TorchFile(path).read("decoder.conv_in.weight"), second)


@pytest.mark.parametrize("how", FORMATS)
def test_what_a_module_gives_as_its_state(tmp_path: Path, how: str) -> None:
    """A dictionary in order, with attributes."""
    assert hasattr(MODULE.state_dict(), "_metadata")
    assert same_tensors(load_weights(store(tmp_path / "x.pt", MODULE.state_dict(), how)).module, MODULE)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_was_packed_again(tmp_path: Path, packing: int) -> None:
    path = store(tmp_path / "x.pt", LDM)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pt", "w", packing) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert same_tensors(load_weights(tmp_path / "y.pt").module, MODULE)


# What stands beside the tensors


class Mark:
    """Leaves a mark wherever anything of it is made, called or filled."""

    def __init__(self, marker: Path, way: str) -> None:
        self.marker, self.way = str(marker), way

    def __reduce__(self) -> Any:
        make = os.mkdir, (self.marker,)
        return {
            "call": make,
            "state": (os.mkdir, (self.marker,), {"a": 1}),
            "items": (os.mkdir, (self.marker,), None, iter([1]), iter([(1, 2)])),
            "module": (__import__, ("calotype_mark",)),
            "getattr": (getattr, (Path(self.marker), "mkdir")),
            "eval": (eval, (f"__import__('os').mkdir({self.marker!r})",)),
            "partial": (functools.partial, (os.mkdir, self.marker)),
        }[self.way]


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("way", ["call", "state", "items", "module", "getattr", "eval", "partial"])
def test_code_in_a_file_does_not_run_and_its_tensors_are_read(
    tmp_path: Path, how: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "it ran"
    (tmp_path / "calotype_mark.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    path = store(tmp_path / "w" / "x.ckpt", {"before": Mark(marker, way), "state_dict": LDM, "after": [1]}, how)
    assert load_weights(path).sha256 == load_weights(store(tmp_path / "w" / "y.pt", LDM)).sha256
    assert not marker.exists()
    assert "calotype_mark" not in sys.modules


@pytest.mark.parametrize("protocol", range(2, 6))
def test_code_does_not_run_in_any_protocol(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "w" / "x.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({"a": Mark(marker, "items"), "b": {1, 2}, "c": frozenset([3])}, protocol=protocol))
    with pytest.raises(WeightsError, match="holds no tensors"):
        load_weights(path)
    assert not marker.exists()


class Colour(enum.Enum):
    RED = 1


class Easy(dict):  # type: ignore[type-arg]
    """A dictionary whose items are attributes too, as trainers' configurations are."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.__dict__[key] = value


class Slots:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 3


def easy(values: dict[str, Any]) -> Easy:
    made = Easy()
    for key, value in values.items():
        made[key] = value
    return made


BESIDE: dict[str, Callable[[], Any]] = {
    "a namespace": lambda: argparse.Namespace(lr=1e-4, path=pathlib.PurePosixPath("a/b")),
    "dates": lambda: [datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), datetime.timedelta(3)],
    "paths": lambda: {"a": pathlib.Path("a/b"), pathlib.PurePosixPath("b"): 1},
    "numpy numbers": lambda: {"best": np.float64(0.5), "n": np.int64(3), "nan": np.nan},
    "numpy arrays": lambda: [np.arange(3.0), np.array(["a"]), np.array([object()], dtype=object)],
    "a random state": lambda: {"numpy": np.random.get_state(), "torch": torch.get_rng_state()},  # noqa: NPY002
    "an easy dictionary": lambda: easy({"a": 1, "b": easy({"c": [1]})}),
    "a partial": lambda: functools.partial(print, end=""),
    "an enumeration": lambda: {Colour.RED: Colour.RED},
    "other dictionaries": lambda: [collections.defaultdict(list, a=[1]), collections.Counter("aab")],
    "deques and sets": lambda: [collections.deque([1, 2]), {1, 2}, frozenset("ab"), {Colour.RED}],
    "bytes": lambda: [b"abc", bytearray(b"abc"), 1 + 2j, range(3), slice(1, 2), ...],
    "slots": Slots,
    "types": lambda: {nn.Conv2d: int, "f": torch.nn.functional.silu, "dtype": torch.float32, "d": torch.device("cpu")},
    "a module": lambda: nn.Linear(2, 2),
    "an optimiser": lambda: torch.optim.Adam([nn.Parameter(torch.zeros(2))]).state_dict(),
    "sizes": lambda: torch.Size((1, 2)),
    "a callback": lambda: {type("Callback", (), {"__module__": __name__, "__qualname__": "Mark"}): {"best": 0.1}},
}


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_tensors_is_of_no_account(
    tmp_path: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "a callback":
        made = types.ModuleType("calotype_made_up")
        callback = type("Callback", (), {"__module__": "calotype_made_up"})
        made.Callback = callback  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "calotype_made_up", made)
        beside: Any = {"callbacks": {callback: {"best": 0.1}}, "hyper_parameters": callback()}
    else:
        beside = BESIDE[name]()
    path = store(tmp_path / "x.ckpt", {"a": beside, "state_dict": LDM, "z": beside}, how)
    monkeypatch.delitem(sys.modules, "calotype_made_up", raising=False)
    assert same_tensors(load_weights(path).module, MODULE)


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize(
    "wrap", [easy, lambda t: collections.defaultdict(dict, t), lambda t: argparse.Namespace(weights=t), lambda t: [t]]
)
def test_tensors_in_other_dictionaries_are_found(tmp_path: Path, how: str, wrap: Callable[[Any], Any]) -> None:
    for i, content in enumerate(({"state_dict": wrap(LDM)}, wrap(LDM))):
        assert same_tensors(load_weights(store(tmp_path / f"{i}.pt", content, how)).module, MODULE)


@pytest.mark.slow
def test_numpy_arrays_are_tensors(tmp_path: Path) -> None:
    arrays = {key: np.asfortranarray(value.numpy()) for key, value in LDM.items()}
    for protocol in (2, 4):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
        assert same_tensors(load_weights(tmp_path / "x.pkl").module, MODULE)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols_of_torch_files(tmp_path: Path, protocol: int) -> None:
    for how in ("zip", "legacy"):
        path = store(tmp_path / "x.pt", {"a": Colour.RED, "state_dict": LDM}, how, pickle_protocol=protocol)
        assert same_tensors(load_weights(path).module, MODULE)


# What is refused


def refused(path: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path)
    one_sentence(str(caught.value))
    assert str(caught.value).startswith(str(path))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 3}, lambda m: [m, {}]])
def test_a_whole_module_says_what_to_save(tmp_path: Path, how: str, wrap: Callable[[Any], Any]) -> None:
    path = store(tmp_path / "x.pt", wrap(nn.Sequential(nn.Conv2d(3, 4, 3))), how)
    refused(path, r"a whole module \(torch\.nn\.modules\.container\.Sequential\).*module\.state_dict\(\)")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda: torch.zeros(32).to_sparse(), r"decoder\.norm_out\.bias: .*sparse.*to_dense"),
        (lambda: torch.quantize_per_tensor(torch.zeros(32), 1.0, 0, torch.qint8), "norm_out.*quantised.*dequantize"),
        (lambda: torch.zeros(32, device="meta"), "norm_out.*meta device"),
    ],
)
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path: Path, tensor: Callable[[], Tensor], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that quantised tensors are deprecated
        path = store(tmp_path / "x.pt", {**LDM, "decoder.norm_out.bias": tensor()})
    refused(path, message)


def test_a_view_beyond_its_storage(tmp_path: Path) -> None:
    """The pickle is made longer-reaching by hand: a shape of (33,) on a storage of 32."""
    path = store(tmp_path / "x.pt", {"a": torch.arange(32.0)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert content.count(b"K \x85") == 1  # the tuple (32,)
                content = content.replace(b"K \x85", b"K!\x85")
            new.writestr(name, content)
    container = open_container(tmp_path / "y.pt")
    with pytest.raises(WeightsError, match=r"a: a tensor of \[33\] in it reaches beyond its storage"):
        container.read("a")


def test_a_storage_that_is_missing(tmp_path: Path) -> None:
    path = store(tmp_path / "x.pt", {"a": torch.arange(32.0)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for name in old.namelist():
            if not name.endswith("data/0"):
                new.writestr(name, old.read(name))
    with pytest.raises(WeightsError, match=r"a: the numbers of its storage 0 are missing"):
        open_container(tmp_path / "y.pt").read("a")


def test_the_other_order_of_bytes(tmp_path: Path) -> None:
    path = store(tmp_path / "x.pt", LDM)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    refused(tmp_path / "y.pt", "saved on a big-endian machine")
    content = store(tmp_path / "z.pt", LDM, "legacy").read_bytes()
    little = b"little_endian" + content.split(b"little_endian")[1][:3]
    assert little.endswith(b"\x88")  # true
    (tmp_path / "z.pt").write_bytes(content.replace(little, little[:-1] + b"\x89"))
    refused(tmp_path / "z.pt", "saved on a big-endian machine")


def test_a_pickle_can_not_change_what_reads_it(tmp_path: Path) -> None:
    """State for one of torch's functions, or for a class, is no state of a stand-in."""
    for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cmade_up\nThing\n"):
        (tmp_path / "x.pkl").write_bytes(b"\x80\x02" + target + b"}X\x01\x00\x00\x00aK\x01sb.")
        with pytest.raises(WeightsError, match="truncated or damaged"):
            open_container(tmp_path / "x.pkl")
    assert open_container(store(tmp_path / "y.pt", LDM)).shapes.keys() == LDM.keys()


def test_a_nest_that_holds_itself(tmp_path: Path) -> None:
    nest: dict[str, Any] = {"state_dict": LDM}
    nest["again"] = [nest]
    buffer = io.BytesIO()
    torch.save(nest, buffer)
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    assert same_tensors(load_weights(tmp_path / "x.pt").module, MODULE)
