"""Commands one after another in one process, which keeps what they import: `python -m calotype.cli.standing`.

The studio runs by it the very command lines that it shows. Each line of standard input is a JSON object, `argv` and
`folder`; for each there are lines of standard output: `part` and `says` while it runs, and at its end `code`, `out` and
`err`. SIGINT stops the command that runs, as Ctrl-C does, and the process goes on; it ends with its input.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import IO, Any

from calotype.errors import CalotypeWarning

_OFTEN = 0.08  # seconds between two lines that say how far a command is


def serve(orders: IO[str], answers: IO[str]) -> None:
    """Runs what is ordered until there are no more orders."""
    from calotype.cli import bars

    def say(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    last = (0.0, "")

    def told(part: float, words: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last[0] >= _OFTEN or words != last[1]:
            last = now, words
            say(part=part, says=words)

    bars.listener.set(told)
    for line in orders:
        order = json.loads(line)
        os.chdir(order["folder"])
        code, out, err = run(order["argv"])
        os.chdir(Path(order["folder"]).anchor)  # the folder may be removed
        say(code=code, out=out, err=err)


def run(argv: list[str]) -> tuple[int, str, str]:
    """One command as the shell runs it: (exit code, standard output, standard error)."""
    from calotype.cli.main import main

    show = warnings.showwarning
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["calotype", *argv]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        code = 1
        err.write(f"calotype: {type(error).__name__}: {error}\n")
    finally:
        warnings.showwarning = show
    return code, out.getvalue(), err.getvalue()


def _ready() -> None:
    """Imports what most commands need, before anyone waits for it."""
    import calotype.draw.record
    import calotype.evaluate.reconstruct
    import calotype.vae  # noqa: F401


def main() -> None:
    """Serves standard input; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, lambda *_: None)  # between commands; within one it interrupts
    warnings.simplefilter("always", CalotypeWarning)  # each command says it anew
    with contextlib.suppress(BrokenPipeError):
        _ready()
        print(json.dumps({"ready": True}), file=answers, flush=True)
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
