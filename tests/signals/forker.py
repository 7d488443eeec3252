"""Runs commands in forked processes, which begin with all that takes seconds to import.

Reads a line of JSON for each on standard input: {"words", "folder", "environment", "kill", "together"}; "kill" is a
time in seconds and a signal, or null, and "together" how many processes run it at once. Answers with the time that it
took, and with what `waitpid` tells of each.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback

HEAVY = (
    "typer._adapters", "av", "h5py", "lightning_fabric", "pyarrow.parquet", "rich.progress", "tensorboard",
    "torch.utils.tensorboard", "calotype.cache.make", "calotype.cli.main", "calotype.draw.training",
    "calotype.draw.redraw", "calotype.edit.morph", "calotype.edit.vary", "calotype.edit.blend",
    "calotype.edit.transfer", "calotype.edit.directions", "calotype.evaluate.examine", "calotype.train.run",
    "calotype.weights.keras",
)  # fmt: skip


def warm_up() -> None:
    """Kernels are compiled when they first run."""
    import torch

    from calotype.vae import load

    vae = load(device="cpu")
    latents = vae.encode(torch.zeros(1, 3, 64, 64))
    vae.decode(latents.mode())


def child(ready: int, words: list[str], folder: str, environment: dict[str, str], said: str) -> None:
    """As if a terminal had started it; tells by a pipe that signals are handled."""
    from calotype import stopping
    from calotype.__main__ import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in enumerate(("/dev/null", f"../{said}.out", f"../{said}.err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["calotype", *words]
    code = 1
    try:
        with stopping.stoppable(to_the_end=True):  # which `main` begins with
            os.write(ready, b"!")
            main()
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except KeyboardInterrupt:  # between the two, where `main` would be within its own `try`
        print("calotype: Stopped.", file=sys.stderr)
        code = stopping.exit_code()
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # to take apart all that was imported takes longer than what was done


def serve() -> None:
    """Until standard input ends."""
    gc.collect()
    gc.freeze()  # or every process would copy what a look at it changes
    for line in sys.stdin:
        task = json.loads(line)
        kill, together = task.pop("kill"), task.pop("together")
        told, ready = os.pipe()
        pids = []
        for i in range(together):
            pids.append(os.fork())
            if not pids[-1]:
                child(ready, **task, said=f"said{i}" if i else "said")
        os.close(ready)
        os.read(told, 1)
        begin = time.monotonic()
        if kill is not None:
            time.sleep(kill[0])
            for pid in pids:
                os.kill(pid, kill[1])  # it is not waited for yet, so the number is its own, or of what is left of it
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        os.close(told)
        print(time.monotonic() - begin, *statuses, flush=True)


for name in HEAVY:
    importlib.import_module(name)
warm_up()
print("ready", flush=True)
serve()
