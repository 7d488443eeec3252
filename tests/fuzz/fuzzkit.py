"""Mutants of files, and what becomes of them in a process that is watched.

A reader may refuse a mutant, by one of the project's own errors, or accept it. It fails where it raises anything else,
takes longer than `SECONDS`, takes `MEMORY` more than what it accepts needs, dies, or accepts damage that a checksum in
the file tells of. Mutants are made of a seed and a number, so that each can be made again (see worker.py).
"""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
SECONDS = 5.0  # for one mutant
MEMORY = 2**30  # bytes, beside what the accepted needs
START = 120.0  # seconds that a worker may take to import all


class Accepted(NamedTuple):
    """What a reader made of a file.

    Attributes:
        content: tells two results apart (a hash, or the result's text).
        needs: bytes that the result needs, where they are many.
    """

    content: str
    needs: int = 0


@dataclass(frozen=True)
class Case:
    """A whole file, and a reader of such files.

    Attributes:
        name: of the case, and with its suffix of the file.
        content: that the reader accepts.
        read: the reader; raises CalotypeError over what it refuses.
        summed: the file has checksums of all that matters, so that a damaged one is refused, or read as the whole one.
        text: it is text, and mutated by its words.
    """

    name: str
    content: bytes
    read: Callable[[Path], Accepted]
    summed: bool = False
    text: bool = False


def mutant(case: Case, number: int) -> bytes:
    """The mutant with this number."""
    rng = random.Random(f"{case.name} {number}")
    ways = _TEXT if case.text else _DAMAGE if case.summed else (*_DAMAGE, *_BINARY)
    content = bytearray(case.content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if content:
            rng.choice(ways)(content, rng)
    return bytes(content)


def _flip(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _set(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _span(content: bytearray, rng: random.Random, longest: int = 64) -> slice:
    start = rng.randrange(len(content))
    return slice(start, min(len(content), start + rng.randint(1, longest)))


def _noise(content: bytearray, rng: random.Random) -> None:
    where = _span(content, rng)
    content[where] = rng.randbytes(len(content[where]))


def _zeros(content: bytearray, rng: random.Random) -> None:
    where = _span(content, rng, 512)
    content[where] = bytes(len(content[where]))


def _cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def _drop(content: bytearray, rng: random.Random) -> None:
    del content[_span(content, rng)]


def _insert(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content) + 1)
    content[at:at] = rng.randbytes(rng.randint(1, 16))


def _repeat(content: bytearray, rng: random.Random) -> None:
    where = _span(content, rng)
    content[where.start : where.start] = bytes(content[where]) * rng.choice((1, 2, 50))


def _move(content: bytearray, rng: random.Random) -> None:
    part = bytes(content[_span(content, rng)])
    at = rng.randrange(len(content))
    content[at : at + len(part)] = part


def _number(content: bytearray, rng: random.Random) -> None:
    """Where a header holds a size, it claims another."""
    size = rng.choice((1, 2, 4, 8))
    bits = 8 * size
    value = (
        rng.choice((0, 1, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1, 2 ** min(bits - 1, 24), 65535)) % 2**bits
    )
    at = rng.randrange(min(len(content), rng.choice((64, 1024, len(content)))))
    content[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


_DAMAGE = (_flip, _flip, _set, _noise, _zeros, _cut, _drop, _insert)
_BINARY = (_repeat, _move, _number, _number)

_VALUES = (
    b"true", b"false", b"null", b"0", b"-1", b"1.5", b"2.0", b"1e999", b"-0.0", b"1e30", b"NaN", b"nan", b"inf",
    b"Infinity", b'""', b"[]", b"{}", b"[[]]", b"[1, 2]", b'{"a": {}}', b'"a"', b"'a'", b'"1"', b'"\\ud800"', b"0x10",
    b"1_000", b"1" + b"0" * 30, b"9" * 400, b"-" + b"9" * 5000, b"2024-01-01", b"\xff", b"\x00", b"\xef\xbb\xbf",
)  # fmt: skip
_WORD = 24  # the longest word that is replaced


def _words(content: bytearray) -> list[slice]:
    """Runs of letters and digits, with the quotation marks around them."""
    found, start = [], None
    for at, byte in enumerate(bytes(content) + b" "):
        part = chr(byte).isalnum() or byte in b'"_.-'
        if part and start is None:
            start = at
        elif not part and start is not None:
            found.append(slice(start, min(at, start + _WORD)))
            start = None
    return found


def _other_value(content: bytearray, rng: random.Random) -> None:
    words = _words(content)
    if words:
        content[rng.choice(words)] = rng.choice(_VALUES)


def _other_word(content: bytearray, rng: random.Random) -> None:
    words = _words(content)
    if words:
        content[rng.choice(words)] = bytes(content[rng.choice(words)])


def _nested(content: bytearray, rng: random.Random) -> None:
    words = _words(content)
    if words:
        depth = rng.choice((2, 30, 1000, 100_000))
        begin, end = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"{a=", b"}")))
        where = rng.choice(words)
        content[where] = begin * depth + bytes(content[where]) + end * rng.choice((depth, 0))


def _line(content: bytearray, rng: random.Random) -> None:
    lines = bytes(content).split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.randrange(3)
    if what == 0:
        lines[i] = lines[j]
    elif what == 1:
        lines.insert(i, lines[j])
    else:
        del lines[i]
    content[:] = b"\n".join(lines)


_HOLE = "@hole@"  # where a value goes that JSON may not have


def _places(value: Any, found: list[tuple[Any, Any]]) -> None:
    """All places in a nest: what they are in, and their keys."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found.append((value, key))
            _places(inner, found)


def _node(content: bytearray, rng: random.Random) -> None:
    """Of JSON, or of a line of JSON: a value becomes another one, or goes, or takes another one's place or name."""
    lines = bytes(content).split(b"\n")
    which = rng.randrange(len(lines))
    text = b"\n".join(lines)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        text = lines[which]
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):
            return
    nest = [whole]
    places: list[tuple[Any, Any]] = []
    _places(nest, places)
    inside, key = rng.choice(places)
    what = rng.randrange(6)
    value: bytes = b""
    if what <= 2:
        inside[key] = _HOLE
        value = rng.choice(_VALUES)
    elif what == 3:
        del inside[key]
    elif what == 4:
        other, name = rng.choice(places)
        inside[key] = json.loads(json.dumps(other[name]))
    elif isinstance(inside, dict):
        names = [name for other, name in places if isinstance(other, dict)]
        inside[rng.choice((f"{key}_", "", key.upper(), "kind", *names))] = inside.pop(key)
    made = json.dumps(nest[0] if nest else None, ensure_ascii=False).encode("utf-8", "surrogatepass")
    made = made.replace(json.dumps(_HOLE).encode(), value)
    content[:] = made if text == b"\n".join(lines) else b"\n".join([*lines[:which], made, *lines[which + 1 :]])


def _assignment(content: bytearray, rng: random.Random) -> None:
    """Of TOML: all of what a key is given."""
    lines = bytes(content).split(b"\n")
    given = [i for i, line in enumerate(lines) if b"=" in line]
    if given:
        i = rng.choice(given)
        lines[i] = lines[i].partition(b"=")[0] + b"= " + rng.choice(_VALUES)
        content[:] = b"\n".join(lines)


_TEXT = (
    *(_node, _node, _node, _node, _assignment, _assignment),
    *(_other_value, _other_value, _other_word, _nested, _line, _flip, _cut, _drop, _insert, _noise),
)


@dataclass
class Report:
    """What became of mutants.

    Attributes:
        counts: refused, accepted, failed.
        failures: a line for each that failed: which, and what it did.
        slowest: seconds of the slowest.
        end: by the monotonic clock, after which no more is tried.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    end: float = float("inf")

    def __str__(self) -> str:
        told = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        return f"{told}; the slowest took {self.slowest:.1f} s"


def run(family: str, folder: Path, total: int, seconds: float) -> Report:
    """So many mutants, of each case of a family in turn, or as many as the time allows that begins with the first."""
    report = Report()
    first = 0
    while first < total and time.monotonic() < report.end and len(report.failures) < 20:
        first = _watched(family, folder, first, total, seconds, report)
    return report


def _watched(family: str, folder: Path, first: int, total: int, seconds: float, report: Report) -> int:
    """One process, until it dies, hangs or is done; the number to go on with."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, str(HERE / "worker.py"), family, str(folder), str(first), str(total)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    number, doing = first, "before the first"
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        for line in _lines(process.stdout.fileno()):
            report.end = min(report.end, time.monotonic() + seconds)
            if line is None or time.monotonic() > report.end:
                process.kill()
                if line is None:
                    report.failures.append(f"{doing}: no end")
                    report.counts["failed"] += 1
                    return number + 1
                return total
            what, number, rest = json.loads(line)
            if what == "begin":
                doing = f"{rest} {number}"
            elif what == "failed":
                report.failures.append(f"{doing}: {rest}")
                report.counts["failed"] += 1
            else:
                report.counts[what] += 1
                report.slowest = max(report.slowest, rest)
        if process.wait() == 0:
            return total
        report.failures.append(f"{doing}: the process ended with {process.returncode}")
        report.counts["failed"] += 1
        return number + 1


def _lines(descriptor: int) -> Iterator[bytes | None]:
    """Lines as they come; None where none comes any more."""
    kept, patience = b"", START
    while select.select([descriptor], [], [], patience)[0]:
        more = os.read(descriptor, 2**16)
        if not more:
            return
        *lines, kept = (kept + more).split(b"\n")
        yield from lines
        patience = SECONDS + 1.0  # the worker itself tells of those that end
    yield None
