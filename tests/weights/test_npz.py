"""numpy's archives of weights, as MLX saves them."""

from __future__ import annotations

import io
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from otherkit import flax_tree, kernels_last
from support import diffusers_tensors, kl, one_sentence, same_tensors, tensors_of
from torch import Tensor

from calotype import damage
from calotype.errors import WeightsError
from calotype.families.kl.config import AutoencoderConfig
from calotype.weights.container import open_container
from calotype.weights.load import load_weights

MODULE = kl(AutoencoderConfig(ch=32, ch_mult=(1,), num_res_blocks=1), 1)
TENSORS = tensors_of(MODULE)


def array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view("V2")
    return tensor.numpy()


def saved(path: Path, tensors: dict[str, Tensor], *, packed: bool = False) -> Path:
    arrays: dict[str, Any] = {key: array(value) for key, value in tensors.items()}
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path)
    one_sentence(str(caught.value))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_archives_are_read(tmp_path: Path, dtype: torch.dtype, packed: bool) -> None:
    module = kl(MODULE.config, 1).to(dtype)
    path = saved(tmp_path / "weights.npz", kernels_last(diffusers_tensors(module)), packed=packed)
    for place in (path, tmp_path):
        loaded = load_weights(place)
        assert same_tensors(loaded.module, module)
        assert (loaded.layout, loaded.container) == ("diffusers", "numpy npz")
        assert loaded.dtypes == (str(dtype).removeprefix("torch."),)


def test_names_of_flax_in_an_archive(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {}

    def walk(tree: Any, way: str) -> None:
        for name, inner in tree.items():
            if isinstance(inner, Tensor):
                tensors[f"{way}{name}"] = inner
            else:
                walk(inner, f"{way}{name}/")

    walk(flax_tree(MODULE), "params/")
    assert same_tensors(load_weights(saved(tmp_path / "x.npz", tensors)).module, MODULE)


def test_an_archive_beside_weights_is_none(tmp_path: Path) -> None:
    saved(tmp_path / "statistics.npz", {"mu": torch.zeros(3)})
    torch.save(TENSORS, tmp_path / "vae.pt")
    assert same_tensors(load_weights(tmp_path).module, MODULE)


def test_every_type_and_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = {
        code: (rng.random((3, 4)) * 100).astype(code)
        for code in ("<f8", ">f4", "<f2", ">i8", "<i4", ">i2", "|i1", "<u8", ">u4", "<u2", "|u1", "|b1")
    }
    arrays = {f"a{i}": value for i, value in enumerate(whole.values())}
    arrays["columns"] = np.asfortranarray(arrays["a0"])
    arrays["number"] = np.array(2.5)
    arrays["none"] = np.zeros((0, 3))
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    container = open_container(tmp_path / "x.npz")
    assert container.shapes.keys() == arrays.keys()
    for key, value in arrays.items():
        assert container.shapes[key] == value.shape
        read = container.read(key)
        native = value.astype(value.dtype.newbyteorder("="))
        assert np.array_equal(read.numpy(), native)
        assert container.stored(key) == native.dtype.name


def test_opening_reads_heads_alone(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("a.npy", "w", force_zip64=True) as member:
        member.write(npy("<f4", (50_000_000,))[:128])
        for _ in range(200):
            member.write(bytes(1_000_000))
    tracemalloc.start()
    container = open_container(tmp_path / "x.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert container.shapes == {"a": (50_000_000,)}
    assert peak < 1e6


def npy(code: str, shape: Any, numbers: bytes = b"", order: str = "False") -> bytes:
    """A .npy file, by its format."""
    text = f"{{'descr': '{code}', 'fortran_order': {order}, 'shape': {shape}, }}"
    text = text.ljust(-(len(text) + 11) % 64 + len(text)) + "\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode("latin-1") + numbers


def zipped(*members: tuple[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


def pickled() -> bytes:
    made = io.BytesIO()
    np.savez(made, a=np.array([{}], dtype=object))  # type: ignore[arg-type]
    return made.getvalue()


def whole() -> bytes:
    made = io.BytesIO()
    np.savez(made, **{key: value.numpy() for key, value in TENSORS.items()})  # type: ignore[arg-type]
    return made.getvalue()


def changed() -> bytes:
    content = bytearray(whole())
    where = content.index(TENSORS["decoder.conv_in.bias"].numpy().tobytes())
    content[where] ^= 1
    return bytes(content)


BAD: list[tuple[str, Callable[[], bytes], str]] = [
    ("half", lambda: whole()[: len(whole()) // 2], "table of contents, which stands at its end, is missing"),
    ("objects", pickled, r"a\.npy in it holds Python objects, which are not read"),
    ("no array", lambda: zipped(("a.npy", b"x" * 100)), r"a\.npy in it is no numpy array"),
    ("nothing", lambda: zipped(("a.npy", b"")), r"a\.npy in it is no numpy array"),
    ("more than there is", lambda: zipped(("a.npy", npy("<f4", (10**12,), bytes(8)))), "has 1.. bytes"),
    ("less than there is", lambda: zipped(("a.npy", npy("<f4", (1,), bytes(8)))), "has 1.. bytes"),
    ("many numbers of axes", lambda: zipped(("a.npy", npy("<f4", (2**63, 2**63), bytes(8)))), "has 1.. bytes"),
    ("a negative shape", lambda: zipped(("a.npy", npy("<f4", (-1,), bytes(4)))), "no array of numbers"),
    ("a shape of texts", lambda: zipped(("a.npy", npy("<f4", ("a",), bytes(4)))), "no array of numbers"),
    ("texts", lambda: zipped(("a.npy", npy("<U4", (1,), bytes(16)))), "no array of numbers"),
    ("complex", lambda: zipped(("a.npy", npy("<c8", (1,), bytes(8)))), "no array of numbers"),
    ("no order", lambda: zipped(("a.npy", npy("<f4", (1,), bytes(4), order="x()"))), "no array of numbers"),
    ("a long header", lambda: zipped(("a.npy", b"\x93NUMPY\2\0" + b"\xff" * 4)), "no array of numbers"),
    ("a bomb", lambda: zipped(("a.npy", npy("|u1", (30_000_000,)) + bytes(30_000_000)), packing=8),
     "claim to hold 30000128 bytes"),
    ("packed otherwise", lambda: zipped(("a.npy", npy("<f4", (1,), bytes(4))), packing=12), "is packed as torch packs"),
    ("a changed number", changed, "does not fit its checksum"),
    ("latents", lambda: zipped(("latents.npy", npy("<f4", (1,), bytes(4)))), "holds no VAE: its tensor latents"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_archives(
    tmp_path: Path, content: Callable[[], bytes], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "_ROOMY", 2**24)
    path = tmp_path / "x.npz"
    path.write_bytes(content())
    tracemalloc.start()
    began = time.process_time()
    refused(path, message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - began < 5
    assert peak < 50e6
