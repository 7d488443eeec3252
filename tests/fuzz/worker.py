"""Reads mutants: `python worker.py FAMILY FOLDER FIRST END` tells of each, in lines of JSON, what a reader made of it.

`python worker.py FAMILY FOLDER NUMBER CASE` reads that one alone, and shows what was raised.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(path) for path in HERE.parent.iterdir() if path.is_dir()), str(HERE.parent)]

from fuzzkit import MEMORY, SECONDS, Case, mutant  # noqa: E402

from calotype.errors import CalotypeError  # noqa: E402

GUARD = 12 * 2**30  # bytes of address space: the machine survives what a reader takes


def tell(what: str, number: int, rest: Any) -> None:
    print(json.dumps([what, number, rest]), flush=True)


def peak() -> int:
    """Of resident memory in bytes, since `forget`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def one_line(message: str) -> bool:
    return "\n" not in message and "Traceback" not in message and message.endswith((".", "?"))


def judged(case: Case, path: Path, content: bytes, whole: str) -> tuple[str, Any]:
    """What a reader makes of it: refused, accepted or failed, and in what time or how."""
    path.write_bytes(content)
    measured = Path("/proc/self/clear_refs").exists()
    if measured:
        forget()
        before = peak()
    began = time.monotonic()
    needs = 0
    try:
        found = case.read(path)
        what, needs = "accepted", found.needs
        if case.summed and found.content != whole:
            return "failed", "damage was accepted"
    except CalotypeError as error:
        what = "refused"
        if not one_line(str(error)):
            return "failed", f"no sentence: {str(error)[:300]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = error.__traceback__
        while where and where.tb_next:
            where = where.tb_next
        place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else ""
        return "failed", f"{type(error).__name__}: {str(error)[:200]} ({place})"
    took = time.monotonic() - began
    if took > SECONDS:
        return "failed", f"took {took:.1f} s"
    if measured and (more := peak() - before - needs) > MEMORY:
        return "failed", f"took {more / 2**20:,.0f} MiB more than it needs"
    return what, took


def cases(family: str, folder: Path) -> list[Case]:
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Case] = importlib.import_module(f"seeds_{family}").cases(folder)
    return made


def main(family: str, folder: Path, first: int, last: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (GUARD, resource.RLIM_INFINITY))
    every = cases(family, folder / "whole")
    warnings.simplefilter("error")
    if not last.isdecimal():
        case = next(case for case in every if case.name == last)
        path = folder / case.name
        path.write_bytes(mutant(case, first))
        print(case.read(path))
        return
    said = (folder / "said").open("wb")
    os.dup2(said.fileno(), sys.stderr.fileno())
    wholes: dict[str, str] = {}
    for number in range(first, int(last)):
        case = every[number % len(every)]
        path = folder / case.name
        if case.name not in wholes:
            path.write_bytes(case.content)
            wholes[case.name] = case.read(path).content
        tell("begin", number, case.name)
        before = os.fstat(sys.stderr.fileno()).st_size
        what, rest = judged(case, path, mutant(case, number), wholes[case.name])
        sys.stderr.flush()
        if what != "failed" and os.fstat(sys.stderr.fileno()).st_size > before:
            what, rest = "failed", f"printed {(folder / 'said').read_bytes()[before:][:200]!r}"
        tell(what, number, rest)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
