"""Command lines that visits ask for: one runs at a time, in a process of its own, and the others wait their turn.

What runs is what the page shows. A command that is cancelled, or that the system kills for its memory, takes nothing
with it but its process, and the next one gets a new one.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from calotype.errors import CalotypeError, UsageError
from calotype.studio.shelf import Given
from calotype.studio.visits import MOST_OF_A_VISIT, Visit

State = Literal["waiting", "running", "done", "failed", "cancelled"]
Word = str | Given

_MOST_WAITING = 4  # jobs of one visit
_MOST_KEPT = 60  # finished jobs of one visit
_PATIENCE = 20.0  # seconds in which a command that is stopped may clean up
_LONGEST_ANSWER = 2**26  # bytes


@dataclass(frozen=True)
class Command:
    """One command line.

    Attributes:
        name: of the command, in one word or two.
        words: its arguments; a prompt may look like an option, so they stand after two hyphens where one does.
        options: their names and values.
        hidden: options that change nothing about what is made, and are not shown.
        makes: a file that is there where the command did its work, though it complained of a part.
        may_refuse: its reason not to is a result like others.
    """

    name: str
    words: Sequence[Word]
    options: Sequence[Word] = ()
    hidden: Sequence[str] = ("--json",)
    makes: str | None = None
    may_refuse: bool = False

    def argv(self) -> list[str]:
        """As it runs."""
        end = [one.argument if isinstance(one, Given) else one for one in self.words]
        options = [one.argument if isinstance(one, Given) else one for one in self.options]
        return [*self.name.split(), *options, *self.hidden, "--", *end]

    def line(self) -> str:
        """As it is shown, and as a shell takes it."""
        words = [one.shown if isinstance(one, Given) else one for one in self.words]
        options = [one.shown if isinstance(one, Given) else one for one in self.options]
        ends = ["--", *words] if any(word.startswith("-") for word in words) else []
        parts = ["calotype", *self.name.split(), *([] if ends else words), *options, *ends]
        return shlex.join(parts)


@dataclass(frozen=True)
class Order:
    """What a tab makes of a form.

    Attributes:
        doing: in a word or two.
        commands: one after another, in one folder.
        inputs: files, or what is in them, by the names that the commands have for them.
        python: lines that make the same.
        finish: what came out: the folder and what each command said (its JSON) -> what the page shows.
        preview: a picture in the folder that is rewritten while it runs.
    """

    doing: str
    commands: Sequence[Command]
    inputs: Mapping[str, Path | bytes]
    python: str
    finish: Callable[[Visit, Job, list[Any]], list[dict[str, Any]]]
    preview: str | None = None


@dataclass(eq=False)
class Job:
    """An order on its way."""

    id: str
    order: Order
    visit: Visit
    folder: Path
    state: State = "waiting"
    part: float = 0.0
    says: str = ""
    notes: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)  # that the page may fetch
    previews: int = 0
    stopping: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    stopper: asyncio.Task[None] | None = None

    @property
    def unfinished(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")

    def tell(self) -> None:
        """Wakes who follows it."""
        self.changed.set()
        self.changed = asyncio.Event()

    def facts(self, place: int) -> dict[str, Any]:
        """For pages.

        Args:
            place: how many jobs are before it.
        """
        return {
            "id": self.id, "state": self.state, "doing": self.order.doing, "part": round(self.part, 4),
            "says": self.says, "place": place, "notes": self.notes, "results": self.results,
            "preview": self.previews, "python": self.order.python,
            "command": "\n".join(one.line() for one in self.order.commands),
        }  # fmt: skip

    def keep(self, path: Path) -> str:
        """A file that the page may fetch -> its address."""
        name = path.relative_to(self.folder).as_posix()
        self.files[name] = path
        return f"/api/jobs/{self.id}/files/{name}"


class Desk:
    """Takes orders and has them run."""

    def __init__(self) -> None:
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begins to serve."""
        self._task = asyncio.create_task(self._serve())

    async def close(self) -> None:
        """Stops what runs, and lets it clean up."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._end()

    def take(self, visit: Visit, order: Order) -> Job:
        """Puts an order at the end of the queue.

        Raises:
            UsageError: the visit has too much waiting, or holds too much.
        """
        own = [job for job in visit.jobs.values() if job.unfinished]
        if len(own) > _MOST_WAITING:
            raise UsageError(f"{len(own)} of your jobs wait already; let one end, or cancel it.")
        if visit.bytes() > MOST_OF_A_VISIT:
            raise UsageError("Your pictures and results take 4 GiB here; forget some, or all, before you go on.")
        self._forget_old(visit)
        folder = visit.place()
        try:
            for name, given in order.inputs.items():
                _lay(given, folder / name)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        job = Job(id=secrets.token_hex(8), order=order, visit=visit, folder=folder)
        visit.jobs[job.id] = job
        self._waiting.append(job)
        self._more.set()
        return job

    def _forget_old(self, visit: Visit) -> None:
        finished = [job for job in visit.jobs.values() if not job.unfinished]
        for job in finished[: max(0, len(finished) - _MOST_KEPT)]:
            if not any(thing.made and job.folder in thing.path.parents for thing in visit.things.values()):
                del visit.jobs[job.id]
                shutil.rmtree(job.folder, ignore_errors=True)

    def place(self, job: Job) -> int:
        """How many jobs are before it."""
        return self._waiting.index(job) + (self._running is not None) if job in self._waiting else 0

    def cancel(self, job: Job) -> None:
        """Takes it out of the queue, or stops it."""
        if job in self._waiting:
            self._waiting.remove(job)
            self._finish(job, "cancelled", "Cancelled before it began.")
            self._tell_others()
        elif job is self._running and not job.stopping:
            job.stopping = True
            job.stopper = asyncio.create_task(self._stop(job))

    async def follow(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        """What becomes of it, until its end; at times although nothing does, so that a closed page is noticed."""
        while True:
            changed = job.changed
            yield job.facts(self.place(job))
            if not job.unfinished:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), 10.0)

    async def _stop(self, job: Job) -> None:
        """Interrupts the command until it ends, and kills it where it does not."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if self._process is None or job is not self._running:
                return
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.5)  # and again: before a command begins, a signal does nothing
        if self._process is not None and job is self._running:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _serve(self) -> None:
        await self._start()
        while True:
            while not self._waiting:
                self._more.clear()
                await self._more.wait()
            job = self._running = self._waiting.pop(0)
            try:
                await self._run(job)
            except CalotypeError as error:
                self._finish(job, "failed", job.visit.tidy(str(error)))
            except Exception as error:  # of the studio itself; the others go on, with a new process
                traceback.print_exc(file=sys.stderr)
                said = job.visit.tidy(f"{type(error).__name__}: {error}")
                self._finish(job, "failed", f"The studio made an error of its own ({said}).")
                await self._end()
                await self._start()
            finally:
                self._running = None
            self._tell_others()

    def _tell_others(self) -> None:
        """Their places are others."""
        for other in self._waiting:
            other.tell()

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "calotype.cli.standing", stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, limit=_LONGEST_ANSWER, start_new_session=True,
        )  # fmt: skip
        await self._answer()

    async def _answer(self) -> dict[str, Any] | None:
        """The process's next line; None if it has ended."""
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    async def _end(self) -> None:
        if (process := self._process) is None:
            return
        self._process = None
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _PATIENCE / 2)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _run(self, job: Job) -> None:
        job.state, job.says = "running", job.order.doing
        job.tell()
        said: list[Any] = []
        for i, command in enumerate(job.order.commands):
            if job.stopping:
                break
            answer = await self._one(job, command, i)
            if answer is None:
                await self._end()
                await self._start()
                if not job.stopping:
                    self._finish(job, "failed", _KILLED)
                break
            lines = [one.removeprefix("calotype: ") for one in answer["err"].splitlines() if one.strip()]
            partly = command.makes is not None and (job.folder / command.makes).exists()
            if answer["code"] and command.may_refuse and not job.stopping:
                said.append({"error": job.visit.tidy(lines[-1] if lines else "It was refused.")})
                continue
            if job.stopping or (answer["code"] and not partly):
                if not job.stopping:
                    self._finish(job, "failed", job.visit.tidy(lines[-1] if lines else "The command failed."))
                break
            job.notes = list(dict.fromkeys([*job.notes, *map(job.visit.tidy, lines)]))
            said.append(json.loads(answer["out"]) if "--json" in command.hidden else None)
        else:
            results = await asyncio.to_thread(job.order.finish, job.visit, job, said)
            job.results = results
            self._finish(job, "done", "")
        if job.stopping and job.unfinished:
            self._finish(job, "cancelled", "Cancelled.")

    async def _one(self, job: Job, command: Command, i: int) -> dict[str, Any] | None:
        """Runs one command; None if its process did not survive it."""
        assert self._process is not None and self._process.stdin is not None
        order = {"argv": command.argv(), "folder": str(job.folder)}
        with suppress(ConnectionError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._process.stdin.drain()
        preview = job.folder / job.order.preview if job.order.preview else None
        seen = 0.0
        while (answer := await self._answer()) is not None and "code" not in answer:
            job.part, job.says = (i + answer["part"]) / len(job.order.commands), answer["says"]
            if preview is not None and preview.exists() and (at := preview.stat().st_mtime_ns) != seen:
                seen = at
                job.previews += 1
            job.tell()
        return answer

    def _finish(self, job: Job, state: State, says: str) -> None:
        job.state, job.says, job.part = state, says, 1.0
        if state != "done":
            shutil.rmtree(job.folder, ignore_errors=True)
        for path in {job.folder / name for name in job.order.inputs} - set(job.files.values()):
            path.unlink(missing_ok=True)  # a picture that is forgotten stays nowhere
        job.tell()


def _lay(given: Path | bytes, path: Path) -> None:
    """A file where a command reads it."""
    if isinstance(given, bytes):
        path.write_bytes(given)
        return
    try:
        os.link(given, path)
    except OSError:  # a file system without
        shutil.copy(given, path)


_KILLED = (
    "The command's process was ended from outside, most likely because memory ran out; give the studio --memory, or a "
    "smaller picture."
)
