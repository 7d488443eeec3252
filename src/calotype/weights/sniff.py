"""Files that are not weights that can be read: what they are, told from their first bytes, and what to do. No torch."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from calotype.texts import TextError, json_of, json_table

# (the first bytes, a sentence on what begins so)
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "this is a pointer of Git LFS, not the weights themselves; fetch them with 'git lfs pull', or download the "
        "file itself",
    ),
    (b"\x93NUMPY", "this is a single numpy array (.npy), not named tensors; get the weights as safetensors"),
    (b"ftrt", "this is a TensorRT engine, made for one GPU; get the weights that it was built from, as safetensors"),
    (b"\x1f\x8b", "this is a gzip archive; unpack it and give the weights in it"),
    (b"BZh", "this is a bzip2 archive; unpack it and give the weights in it"),
    (b"\xfd7zXZ", "this is an xz archive; unpack it and give the weights in it"),
    (b"\x28\xb5\x2f\xfd", "this is a Zstandard archive; unpack it and give the weights in it"),
    (b"7z\xbc\xaf\x27\x1c", "this is a 7z archive; unpack it and give the weights in it"),
    (b"Rar!", "this is a RAR archive; unpack it and give the weights in it"),
    (b"\x89PNG", "this is a picture (PNG), not weights"),
    (b"\xff\xd8\xff", "this is a picture (JPEG), not weights"),
    (b"RIFF", "this is a picture or a sound (RIFF), not weights"),
    (b"%PDF", "this is a PDF document, not weights"),
    (b"SQLite format 3", "this is an SQLite database, not weights"),
    (b"PAR1", "this is a Parquet table, not weights"),
    (b"ARROW1", "this is an Arrow table, not weights"),
    *(
        (magic, "this is a file of an old version of ggml, which is not read; get the VAE as safetensors")
        for magic in (b"lmgg", b"tjgg", b"fmgg", b"algg")
    ),
)

# (what the file's name matches, a sentence), for formats without a signature
NAMES: tuple[tuple[str, str], ...] = (
    (
        r".*\.onnx(_data|\.data)",
        "these are numbers of an ONNX model (.onnx), which is not beside them; fetch it as well and give it",
    ),
    (r".*\.(mlmodel|mlmodelc|mlpackage)", "this is a Core ML model; get the weights that it was converted from"),
    (r".*\.(engine|plan|trt)", "this is a TensorRT engine, made for one GPU; get the weights that it was built from, "
     "as safetensors"),
    (r".*\.data-\d{5}-of-\d{5}|.*\.ckpt\.(index|meta)|checkpoint", "this is part of a TensorFlow checkpoint, which is "
     "not read; get the weights as safetensors or Keras h5"),
    (r".*\.pb|.*\.tflite", "this is a TensorFlow model, which is not read; get the weights as safetensors or Keras h5"),
    (r".*\.(part|partial|crdownload|aria2|incomplete|tmp)", "this is a download that has not finished; fetch it again"),
)  # fmt: skip

CORE_ML = NAMES[1][1]


def is_onnx(path: Path, head: bytes) -> bool:
    """Whether a file is an ONNX model: its version, then the name of what wrote it, if it says so."""
    return bool(re.match(rb"\x08[\x01-\x20]\x12[\x00-\x40][A-Za-z]{3}", head)) or path.suffix.lower() == ".onnx"


def is_openvino(head: bytes) -> bool:
    """Whether a file is the graph of a model of OpenVINO."""
    return bool(re.match(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.{0,200}?-->\s*)?<net[\s>]", head, re.DOTALL))


def other_file(path: Path, head: bytes) -> str | None:
    """What a file is that begins with `head` (512 bytes of it, or all) and holds no weights that can be read.

    Returns:
        Words for a message, or None where it may be weights.
    """
    for signature, said in SIGNATURES:
        if head.startswith(signature):
            return said
    if head[257:262] == b"ustar":
        return (
            "this is a tar archive; unpack it and give the weights in it (torch files of before 0.2 are such archives)"
        )
    if path.suffix == ".distcp":
        return (
            "this is part of a checkpoint of torch.distributed; make one file of it with "
            "'python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE'"
        )
    if head[:2] == b"PK":
        return _zip(path)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if (told := _text(path, text)) is not None:
        return told
    if head[:1] == b"\x80" and len(head) > 1 and head[1] < 8:  # a pickle
        return None
    for pattern, said in NAMES:
        if re.fullmatch(pattern, path.name.lower()):
            return said
    if len(head) > 64 and not head.strip(b"\0"):
        return "this file begins with nothing but zeros, as a download that has not finished does; fetch it again"
    return None


def _text(path: Path, text: bytes) -> str | None:
    lower = text[:256].lower()
    if is_openvino(text):
        return None
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<!-")):
        return (
            "this is a web page, not weights: the address was one for people, or asked for a login; download the file "
            "itself"
        )
    if lower.startswith((b"<?xml", b"<net", b"<error")):
        return f"this is XML, not weights{_quoted(text)}; download the file itself"
    if lower[:1] in (b"{", b"["):
        return _json(path, text)
    printable = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text)
    if 4 < len(text) < 512 and printable:
        return f"this is text, not weights{_quoted(text)}; download the file itself"
    return None


def _json(path: Path, text: bytes) -> str | None:
    try:
        content = json_of(path.read_bytes()) if path.stat().st_size < 2**24 else None
    except TextError:
        return None
    if isinstance(content, dict):
        for key in ("error", "message", "detail", "errors"):
            if key in content and len(content) < 8:
                return f"this is the answer of a server, not weights{_quoted(str(content[key]).encode())}; download " \
                    "the file itself, with a login if it asks for one"  # fmt: skip
        if "_class_name" in content or "_diffusers_version" in content:
            return "this is a configuration (JSON) that belongs to weights; give the folder it lies in, or the weights"
    return "this is JSON, not weights; give the weights themselves"


def _zip(path: Path) -> str | None:
    """What a zip archive is that is no torch file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(entry.flag_bits & 1 for entry in archive.infolist()):
            return "this is a zip archive with a password; unpack it and give the weights in it"
    last = [name.rpartition("/")[2] for name in names]
    roots = {name.partition("/")[0] for name in names}
    if "constants.pkl" in last or any(name.startswith(f"{root}/code/") for root in roots for name in names):
        return (
            "this is a TorchScript archive, a program with its weights; take them out where you trust it: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'vae.pt')"
        )
    if "serialized_exported_program.json" in last or any(
        "models/" in name and name.endswith(".json") for name in names
    ):
        return (
            "this is a program of torch.export (.pt2); take its weights out where you trust it: "
            "torch.save(torch.export.load(FILE).state_dict, 'vae.pt')"
        )
    if "extern_modules" in last:
        return "this is a package of torch.package; load its module where you trust it and save its state_dict()"
    if "data.pkl" in last:
        return None
    if _of_weights(names):
        return None
    if "Manifest.json" in last or any(".mlmodel" in name for name in names):
        return "this is a Core ML model; get the weights that it was converted from"
    inside = [name for name in names if name.endswith((".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin"))]
    if inside:
        more = f" and {len(inside) - 1} more" if len(inside) > 1 else ""
        return f"this is a zip archive that holds {inside[0]}{more}; unpack it and give the weights in it"
    first = f", of {len(names)} files ({names[0]}...)" if names else " without files"
    return f"this is a zip archive of something else than weights{first}"


def zip_of_weights(path: Path) -> str:
    """What a zip is that is no torch file and holds weights: "npz" (numpy's), "keras" (a Keras 3 archive), or ""."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        return _of_weights(archive.namelist())


def _of_weights(names: Sequence[str]) -> str:
    if any(name.endswith(".weights.h5") for name in names):
        return "keras"
    return "npz" if names and all(name.endswith((".npy", "/")) for name in names) else ""


def is_flax(path: Path, head: bytes) -> bool:
    """Whether a file that begins so is one of Flax: a map of msgpack with a text for its first key."""
    text = rb"([\xa1-\xbf]|\xd9.|\xda..)"
    return path.suffix == ".msgpack" or bool(
        re.match(rb"(?s)([\x81-\x8f]|\xde..|\xdf....)" + text + rb"[A-Za-z0-9_]", head)
    )


def _quoted(text: bytes) -> str:
    words = " ".join(re.sub(r"<[^>]*>", " ", text.decode("utf-8", "replace")).split())
    return f" ({words[:80].rstrip('. ')})" if words else ""


def audio_pipeline(folder: Path) -> str | None:
    """The class of an audio pipeline of diffusers, whose VAE (of spectrograms) looks like one of grey pictures."""
    try:
        name = json_table((folder / "model_index.json").read_bytes()).get("_class_name")
    except (OSError, TextError):
        return None
    return name if isinstance(name, str) and re.search("Audio|Music", name) else None


def in_folder(folder: Path) -> str | None:
    """What a folder without weight files holds instead, if it can be told."""
    for path in sorted(folder.rglob("*"), key=lambda path: (len(path.parts), path.name)):
        if len(path.relative_to(folder).parts) > 2:
            break
        if path.suffix == ".mlpackage":
            return CORE_ML
        if path.is_file() and path.suffix not in (".json", ".txt", ".md"):
            with path.open("rb") as file:
                head = file.read(512)
            if head and (said := other_file(path, head)):
                return f"{path.relative_to(folder)}: {said}"
    return None
