"""Damaged weight files: what they claim is held against what they hold, and their checksums are looked at."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import NARROW, kl, one_sentence, same_tensors, tensors_of, write

from calotype.damage import LONGEST_HEADER, quoted, require_held
from calotype.errors import WeightsError
from calotype.weights.container import open_container
from calotype.weights.load import load_weights
from calotype.weights.machine import Machine, as_key
from calotype.weights.shards import shards_of

MODULE = kl(NARROW, 3)
LDM = tensors_of(MODULE)


def refuse(path: Path, message: str, read: Callable[[Path], Any] = load_weights) -> str:
    with pytest.raises(WeightsError, match=message) as caught:
        read(path)
    if read is load_weights:
        one_sentence(str(caught.value))
        assert str(caught.value).startswith(str(path))
    assert caught.value.__cause__ is None
    return str(caught.value)


# Checksums of torch's zips


def place_of(path: Path, name: str) -> int:
    """Where a member's bytes begin."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith(name))
        file.seek(entry.header_offset + 26)
        return entry.header_offset + 30 + sum(struct.unpack("<2H", file.read(4)))


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("name", ["/data/0", "/data/7", "/data.pkl", "/byteorder"])
def test_a_member_that_does_not_fit_its_sum(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(LDM, path)
    flip(path, place_of(path, name) + 1)
    refuse(path, rf"{name} in it does not fit its checksum \(CRC-32\); fetch it again\.$")


def test_what_is_not_read_is_not_summed(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"state_dict": LDM, "optimiser": torch.ones(500)}, path)
    with zipfile.ZipFile(path) as archive:
        name = next(
            e.filename for e in archive.infolist() if e.file_size == 2000 and archive.read(e)[:4] == b"\0\0\x80?"
        )
    flip(path, place_of(path, name))
    assert same_tensors(load_weights(path).module, MODULE)
    refuse(path, "optimiser: the file is damaged: .*CRC-32", lambda p: open_container(p).read("optimiser"))


def test_files_of_torch_without_sums(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(LDM, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert {entry.CRC for entry in archive.infolist()} == {0}
    assert same_tensors(load_weights(tmp_path / "x.pt").module, MODULE)


def test_a_file_whose_numbers_were_filled_in_later(tmp_path: Path) -> None:
    """torch.serialization.skip_data writes no sums of those, and of the rest it does."""
    path = tmp_path / "x.pt"
    with torch.serialization.skip_data():
        torch.save({"a": torch.zeros(8)}, path)
    content = bytearray(path.read_bytes())
    at = place_of(path, "/data/0")
    content[at : at + 32] = struct.pack("<8f", *range(8))
    path.write_bytes(content)
    assert torch.equal(open_container(path).read("a"), torch.arange(8.0))
    flip(path, place_of(path, "/data.pkl") + 1)
    refuse(path, "CRC-32", open_container)


def test_a_sum_that_was_lost_in_one_place(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(8.0)}, path)
    with zipfile.ZipFile(path) as archive:
        crc = next(e.CRC for e in archive.infolist() if e.filename.endswith("/data/0"))
    content = path.read_bytes()
    last = content.rindex(struct.pack("<I", crc))  # in the table of contents
    path.write_bytes(content[:last] + bytes(4) + content[last + 4 :])
    assert torch.equal(open_container(path).read("a"), torch.arange(8.0))
    flip(path, place_of(path, "/data/0"))
    refuse(path, "CRC-32", lambda p: open_container(p).read("a"))


def test_a_name_in_the_table_of_contents_that_is_anothers(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(8), "b": torch.ones(8)}, path)
    content = path.read_bytes()
    at = content.rindex(b"x/data/1")
    path.write_bytes(content[:at] + b"x/data/0" + content[at + 8 :])
    refuse(path, r"truncated or damaged \(at x/data/0\)", open_container)


# Lengths and sizes


def pickled(program: bytes, path: Path) -> Path:
    path.write_bytes(b"\x80\x04" + program)
    return path


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (b"\x8e" + struct.pack("<Q", 2**40), "1,099,511,627,776 bytes are to come"),
        (b"\x8d" + struct.pack("<Q", 2**62), "bytes are to come"),
        (b"\x96" + struct.pack("<Q", 2**35), "34,359,738,368 bytes are to come"),
        (b"B\xff\xff\xff\xff", "4,294,967,295 bytes are to come"),
        (b"T\xff\xff\xff\xff", "-1 bytes are to come"),
        (b"\x8b\xff\xff\xff\x7f", "bytes are to come"),
        (b"\x95" + struct.pack("<Q", 2**50), "a frame of 1,125,899,906,842,624 bytes"),
        (b"\x80\x63}.", "protocol 99"),
        (b"h\x07.", "from its memo"),
        (b"0" * 9 + b".", "a mark that was not set"),
        (b"\x97.", "something that is not in it"),
        (b"\x82\x01.", "something that is not in it"),
        (b"\xff.", "no operation of a pickle"),
        (b"I" + b"9" * 5000 + b"\n.", "digits"),
    ],
)
def test_lengths_in_a_pickle(tmp_path: Path, program: bytes, why: str) -> None:
    refuse(pickled(program, tmp_path / "x.pkl"), rf"truncated or damaged \(.*{why}.*\); fetch it again\.$")


def test_a_place_in_the_memo_takes_no_memory(tmp_path: Path) -> None:
    refuse(pickled(b"]r\xff\xff\xff\x7f0}.", tmp_path / "x.pkl"), "holds no tensors")


@pytest.mark.parametrize("depth", [100, 3000])
def test_keys_that_are_nested(tmp_path: Path, depth: int) -> None:
    """Python hashes such keys without looking at the stack, or at what it has hashed already."""
    for pair in (b"\x85", b"2\x86"):
        refuse(
            pickled(b"})" + pair * depth + b"K\x01s.", tmp_path / "x.pkl"), "a key of a dictionary is nested too deep"
        )


def test_keys_that_are_not() -> None:
    for value in ("a", 3, None, (1, ("a", b"b")), frozenset([1, (2, 3)])):
        assert as_key(value) is value


def test_the_machine_makes_what_python_makes() -> None:
    values: list[Any] = [
        None, True, False, 0, -1, 255, 256, 2**31, -(2**31), 2**70, -(2**2000), 0.5, float("inf"), "a",
        "ü€\U0001f600\n",
        "x" * 300, b"", b"ab", b"y" * 300, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1, [2]], {}, {"a": {1: 2}},
        {(1, 2): 3}, list(range(3000)), {i: str(i) for i in range(3000)},
    ]  # fmt: skip
    values.append([values[-1], values[-1]])
    for protocol in range(6):
        made = values if protocol > 2 else [value for value in values if not isinstance(value, bytes)]  # no such
        content = pickle.dumps(made, protocol=protocol)
        machine = Machine(b"before" + content + b"after", 6)
        assert machine.load() == made
        assert machine.at == 6 + len(content)
    for value in ({1, 2}, frozenset([1]), bytearray(b"abc")):
        content = pickle.dumps(value, protocol=5)
        assert Machine(content).load() == value


@pytest.mark.slow
def test_a_member_that_unpacks_to_much_more(tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(300_000_000) if name.endswith("data/0") else old.read(name))
    assert (tmp_path / "x.pt").stat().st_size < 400_000
    refuse(tmp_path / "x.pt", "bytes claim to hold 300000[0-9]{3} bytes of numbers")


def test_a_member_that_is_not_as_long_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    plain = io.BytesIO()
    torch.save({"a": torch.ones(3)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        size = next(e.file_size for e in new.infolist() if e.filename.endswith("data.pkl"))
    content = path.read_bytes()
    at = content.rindex(b"data.pkl") - len("archive/") - 46 + 24
    assert struct.unpack("<I", content[at : at + 4]) == (size,)
    path.write_bytes(content[:at] + struct.pack("<I", size - 1) + content[at + 4 :])
    refuse(path, f"does not hold the {size - 1:,} bytes that its table of contents says", open_container)


def test_a_tensor_that_repeats_one_number(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(2**20, 2**20)}, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", "bytes of numbers")
    torch.save({**LDM, "a": torch.zeros(1).expand(9, 9)}, tmp_path / "y.pt")
    assert open_container(tmp_path / "y.pt").read("a").shape == (9, 9)


def test_what_may_be_held() -> None:
    require_held(2**28, 10)
    require_held(8 * 10**9, 10**9)
    for claimed, size in ((2**28 + 1, 10), (8 * 10**9 + 1, 10**9), (10**300, 10**9)):
        with pytest.raises(ValueError, match="bytes of numbers"):
            require_held(claimed, size)


# safetensors


def headed(path: Path, header: bytes, numbers: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + numbers)
    return path


def test_a_header_that_is_too_long(tmp_path: Path) -> None:
    path = headed(tmp_path / "x.safetensors", b"{")
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", LONGEST_HEADER + 1))
        file.truncate(LONGEST_HEADER + 100)
    refuse(path, r"a header of 25,000,001 bytes is longer than that of any weights \(25,000,000\)")


@pytest.mark.parametrize("shape", [
    "[true]", "[1.0]", "[-1]", '["1"]', "[null]", "[[1]]", "{}", "1", "true", "null", "[" + "9" * 400 + "]",
    "[0, 1" + "0" * 30 + "]", "[0, 9223372036854775807, 9223372036854775807]", "[NaN]", "[" * 5000 + "]" * 5000,
    "[" + "9" * 5000 + "]",
])  # fmt: skip
def test_shapes_that_are_none(tmp_path: Path, shape: str) -> None:
    header = f'{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 0]}}}}'
    path = headed(tmp_path / "x.safetensors", header.encode())
    refuse(path, "truncated or damaged", lambda p: open_container(p).read("a"))


@pytest.mark.parametrize("offsets", ["[true, 4]", "[0, 4.0]", "[0]", "[0, 4, 4]", "[4, 0]", "null", f"[0, {10**30}]"])
def test_offsets_that_are_none(tmp_path: Path, offsets: str) -> None:
    header = f'{{"a": {{"dtype": "F32", "shape": [1], "data_offsets": {offsets}}}}}'
    refuse(headed(tmp_path / "x.safetensors", header.encode(), bytes(4)), "truncated|damaged")


NUMBERS = ["true", "1e400", "9" * 400, "-1", "0", "null", '"4"', "[4]", "{}", "NaN", "[" * 5000]
FITTING = {("norm_groups", "null"), ("post_quant_conv", "null"), ("post_quant_conv", "true")}


@pytest.mark.parametrize("key", ["norm_groups", "activation", "post_quant_conv"])
@pytest.mark.parametrize("value", NUMBERS)
def test_a_configuration_in_the_metadata(tmp_path: Path, key: str, value: str) -> None:
    path = write(tmp_path / "x.safetensors", LDM, {"calotype_config": f'{{"{key}": {value}}}'})
    if (key, value) in FITTING:
        assert same_tensors(load_weights(path).module, MODULE)
    else:
        refuse(path, f"{key} must be|can't be split into|its metadata say {key}|its own metadata, is not valid JSON")


@pytest.mark.parametrize("value", [*NUMBERS[:4], *NUMBERS[5:]])
@pytest.mark.parametrize("key", ["channels", "scaling_factor"])
def test_a_latent_format_in_the_metadata(tmp_path: Path, key: str, value: str) -> None:
    if (key, value) == ("scaling_factor", "-1"):
        pytest.skip("a factor may be negative")
    told = f'{{"kind": "scale_shift", "name": "x", "channels": 4, "scaling_factor": 1.0, "{key}": {value}}}'
    path = write(tmp_path / "x.safetensors", LDM, {"calotype_latent_format": told})
    refuse(path, "what it says about its latents is damaged")


def test_a_factor_that_is_a_large_whole_number(tmp_path: Path) -> None:
    told = f'{{"kind": "scale_shift", "name": "x", "channels": 4, "scaling_factor": {10**30}}}'
    path = write(tmp_path / "x.safetensors", LDM, {"calotype_latent_format": told})
    refuse(path, "damaged \\(scaling_factor is a whole number of 31 digits")


def test_names_of_tensors_are_one_line_in_messages(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {**LDM, "decoder.a\nb\x1b[31m" + "c" * 5000: torch.zeros(1)})
    assert len(refuse(path, r"unexpected tensor decoder\.a b\\x1b\[31mcc+\.\.\.\.$")) < 500


def test_more_blocks_than_tensors(tmp_path: Path) -> None:
    """Levels and blocks are counted apart: a few names would make a network of a million modules."""
    kernel = torch.zeros(32, 1, 1, 1)
    names = [*(f"encoder.down.{i}.block.0.conv1.weight" for i in range(300)), "encoder.conv_in.weight",
             *(f"encoder.down.0.block.{i}.conv1.weight" for i in range(300)), "encoder.conv_out.weight"]  # fmt: skip
    began = time.monotonic()
    refuse(write(tmp_path / "x.safetensors", {name: kernel.clone() for name in names}), "not a whole VAE")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "index", ["[" * 5000, '{"weight_map": true}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x"}}',
              "9" * 5000, '{"weight_map": {"a": ["b"]}}', '{"weight_map": {"a": "b\\u0000"}}']
)  # fmt: skip
def test_an_index_of_shards(tmp_path: Path, index: str) -> None:
    (tmp_path / "x.safetensors.index.json").write_text(index)
    refuse(tmp_path / "x.safetensors.index.json", "no index of shards|not beside it", shards_of)


def test_foreign_words() -> None:
    assert quoted("a\n\tb\x00\x1b c. ") == r"a b\x00\x1b c"
    assert quoted("x" * 500, 5) == "xxxxx..."
    assert quoted(ValueError()) == ""


def test_words_of_a_reader_have_no_line_breaks(tmp_path: Path) -> None:
    refuse(pickled(b"ca\nb\n)R\x8c\x03a\nb\x81.", tmp_path / "x.pkl"), "truncated or damaged")


# h5: in a process of its own

h5py: Any = pytest.importorskip("h5py")


def test_hdf5_that_does_not_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stands_in(monkeypatch, tmp_path, "print('ready', flush=True); time.sleep(60)")
    monkeypatch.setattr("calotype.weights.h5.SECONDS", 0.5)
    began = time.monotonic()
    refuse(an_h5(tmp_path), "HDF5 came to no end while it read the file, which is damaged; fetch it again")
    assert time.monotonic() - began < 10


def test_hdf5_that_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stands_in(monkeypatch, tmp_path, "raise SystemExit(3)")
    refuse(an_h5(tmp_path), r"h5py could not be started to read it \(ended with 0x3\); check that it can be imported")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("after", ["ready", "header"])
def test_hdf5_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    header = json.dumps({"metadata": {}, "arrays": [["f4", [3]]]}) if after == "header" else ""
    stands_in(monkeypatch, tmp_path, f"print('ready'); print({header!r}, end={chr(10) * bool(header)!r}, flush=True); "
              "os.kill(os.getpid(), signal.SIGSEGV)")  # fmt: skip
    refuse(an_h5(tmp_path), r"HDF5 crashed \(SIGSEGV\) (while|at an array of \[3\])")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both_at_once(tmp_path: Path, number: signal.Signals, interruptible: None) -> None:
    marker = tmp_path / "pid"
    code = f"""
    import sys
    import calotype.weights.h5 as h5
    from calotype.stopping import stoppable
    from pathlib import Path
    h5.CHILD = "stand_in"
    sys.path.insert(0, {str(tmp_path)!r})
    with stoppable():
        h5.read_h5(Path({str(an_h5(tmp_path))!r}))
    """
    (tmp_path / "stand_in.py").write_text(
        "import os, time, pathlib; print('ready', flush=True); "
        f"pathlib.Path({str(marker)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not (marker.exists() and marker.read_text()):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        began = time.monotonic()
        assert "KeyboardInterrupt" in process.communicate()[1]
        assert time.monotonic() - began < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems end it with its time")
def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    fifo = tmp_path / "x.h5"
    os.mkfifo(fifo)
    code = f"""
    import subprocess, sys, os
    child = subprocess.Popen([sys.executable, "-m", "calotype.weights.h5_child", {str(fifo)!r}, "60", str(os.getpid())],
                             stdout=subprocess.PIPE)
    child.stdout.readline()
    print(child.pid, flush=True)
    os.kill(os.getpid(), 9)
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, check=False).stdout
    end = time.monotonic() + 10
    while (
        Path(f"/proc/{int(said)}/stat").exists() and Path(f"/proc/{int(said)}/stat").read_text().split()[2] not in "ZX"
    ):
        assert time.monotonic() < end, "it still runs"
        time.sleep(0.05)


def an_h5(folder: Path) -> Path:
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["a"]
        group = file.create_group("a")
        group.attrs["weight_names"] = ["w"]
        group["w"] = [1.0, 2.0, 3.0]
    return path


def stands_in(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Another program in the place of the one that reads."""
    (folder / "stand_in.py").write_text(f"import os, signal, time\n{code}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("calotype.weights.h5.CHILD", "stand_in")


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replaced(group: Any, name: str, **how: Any) -> None:
    del group[name]
    group.create_dataset(name, **how)


def external(file: Any) -> None:
    Path(f"{file.filename}.raw").write_bytes(bytes(12))
    replaced(file["a"], "w", shape=3, dtype="f4", external=[(f"{file.filename}.raw", 0, 12)])


def elsewhere(file: Any) -> None:
    with h5py.File(f"{file.filename}.other", "w") as other:
        other["w"] = [1.0]
    del file["a"]["w"]
    file["a"]["w"] = h5py.ExternalLink(f"{file.filename}.other", "/w")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda f: f.attrs.__setitem__("layer_names", 3), "lists of names are none"),
        (lambda f: f.attrs.__setitem__("layer_names", "a"), "lists of names are none"),
        (lambda f: f.attrs.__setitem__("layer_names", [1.5]), "no text"),
        (lambda f: f.attrs.__setitem__("layer_names", [b"\xff\xfe"]), "codec"),
        (lambda f: f.attrs.__setitem__("layer_names", h5py.Empty("f4")), "lists of names are none"),
        (lambda f: f.attrs.__setitem__("layer_names", ["a/w"]), "/a/w is no group"),
        (lambda f: f["a"].attrs.__setitem__("weight_names", ["."]), "/a is no dataset"),
        (lambda f: f.attrs.__setitem__("calotype_config", 3), "an attribute of it is no text"),
        (lambda f: f.attrs.__setitem__("calotype_config", [1, 2]), "an attribute of it is no text"),
        (lambda f: f.attrs.__setitem__("layer_names", np.array([b"a"] * 2_001)), "more than 2,000 arrays"),
        (lambda f: replaced(f["a"], "w", data=["text"]), "is of type object"),
        (lambda f: replaced(f["a"], "w", data=h5py.Empty("f4")), "is of type"),
        (lambda f: replaced(f["a"], "w", shape=(2**40,), chunks=(2**10,), dtype="f4"), "bytes of numbers"),
        (lambda f: replaced(f["a"], "w", shape=(2**20, 2**20), chunks=(9, 9), dtype="f4", fillvalue=1), "of numbers"),
        (external, "/a/w lies in another file"),
        (elsewhere, "/w lies in another file"),
    ],
)
def test_what_an_h5_file_may_hold_instead(tmp_path: Path, change: Callable[[Any], None], why: str) -> None:
    path = changed(an_h5(tmp_path), change)
    refuse(path, rf"this is no whole h5 file of Keras weights \(.*{why}.*\)\.$")


def test_an_attribute_that_is_not_needed_may_be_anything(tmp_path: Path) -> None:
    path = changed(an_h5(tmp_path), lambda file: file.attrs.__setitem__("keras_version", [1, 2]))
    refuse(path, "1 arrays are neither an encoder")


def test_arrays_of_the_other_byte_order(tmp_path: Path) -> None:
    from calotype.weights.h5 import read_h5

    path = changed(an_h5(tmp_path), lambda file: replaced(file["a"], "w", data=[1.0, 2.0], dtype=">f4"))
    assert [array.tolist() for array in read_h5(path).arrays] == [[1.0, 2.0]]


def test_a_checksum_in_an_h5_file(tmp_path: Path) -> None:
    numbers = torch.arange(64.0).numpy()
    path = changed(an_h5(tmp_path), lambda file: replaced(file["a"], "w", data=numbers, chunks=(64,), fletcher32=True))
    content = path.read_bytes()
    at = content.index(numbers.tobytes())
    path.write_bytes(content[:at] + b"\x07" + content[at + 1 :])
    refuse(path, r"the file is truncated or damaged \(HDF5 .* at an array of \[64\]\)")


def test_metadata_that_describe_more_than_there_is(tmp_path: Path) -> None:
    config = json.dumps({**NARROW.to_dict(), "num_res_blocks": 100})
    path = changed(an_h5(tmp_path), lambda file: file.attrs.__setitem__("calotype_config", config))
    refuse(path, "its metadata describe a larger network than 1 arrays are of")


def test_nothing_of_torch_is_needed_to_read_h5() -> None:
    code = "import sys, calotype.weights.h5_child; print(sorted({'torch', 'safetensors'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_words_of_h5py_are_quoted(tmp_path: Path) -> None:
    path = changed(an_h5(tmp_path), lambda file: file["a"].attrs.__setitem__("weight_names", ["gone"]))
    assert re.search(r"\(.*gone.*\)\.$", refuse(path, "no whole h5 file"))
